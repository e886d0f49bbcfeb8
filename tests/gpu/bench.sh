#!/usr/bin/env bash
# A build at 1.7B on a machine with an NVIDIA GPU, by Quantmill and by others: docs/speed.md has the figures.
#
#   tests/gpu/bench.sh DIRECTORY [ARGUMENTS OF dev/bench.py]
#
# Needs what prove.sh needs. Where PYTHONDONTWRITEBYTECODE is set, each start of Python takes 12 s in place of 4: it is
# unset here. The first call makes the models and compiles llama.cpp, in DIRECTORY/work and
# DIRECTORY/cache; with `--prepare` as its only argument it does nothing else.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cp "$root/tests/gpu/bench.yaml" "$config"
unset PYTHONDONTWRITEBYTECODE
cd "$work"

if [ ! -e "$here/prepared" ]; then
    phase "machine"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    nproc && grep -m 1 "model name" /proc/cpuinfo
    phase "llama.cpp, and three models of 1.7B"
    # By a config whose models are not looked for yet.
    (config=$root/config/config.yaml && mill resources/llama.cpp --config "llama_cpp={cuda: on}" \
        >"$here/compile.log" && echo "compiled after $SECONDS s") &
    compile=$!
    [ -e models/prose/model.safetensors ] || make_models 20 5 27 8192
    wait $compile || { tail -n 5 "$here/compile.log" && fail "llama.cpp"; }
    phase "sources"
    mill resources/models/models--{base-8cc7c1,code-639698,prose-84b588} resources/corpora/{calibration,evaluation}.txt
    touch "$here/prepared"
fi
[ "${2-}" != --prepare ] || exit 0

phase "bench"
"$python" "$root/dev/bench.py" --ready "$work" --configfile "$config" --cores "$(nproc)" --gpu --no-checks \
    --add Q5_K_M "${@:2}"
