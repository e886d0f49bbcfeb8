#!/usr/bin/env bash
# What is different on two GPUs: steps side by side, each on a GPU of its own, and an importance matrix in two ranges.
#
#   tests/gpu/two_gpus.sh DIRECTORY
#
# Needs what prove.sh needs, and two GPUs.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
sed 's/quants: .*/quants: [Q8_0, Q4_K_M]/; s/bits: .*/bits: [3.0, 5.0]/' "$root/tests/gpu/config.yaml" >"$config"
own_python exllamav2 >>"$config"

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=index,name,uuid,driver_version --format=csv,noheader

phase "three models to merge"
cd "$work"
make_models 100 20

phase "build, with imatrix and base logits on both GPUs"
apps=gpu_uuid,pid,process_name,used_memory
(while sleep 1; do
    echo "- $SECONDS s"
    nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader
    nvidia-smi --query-compute-apps=$apps --format=csv,noheader
done >"$proof/gpus.txt") &
watcher=$!
mill --set-resources merge:gpu=1 evaluate:gpu=1 imatrix:gpu=2 base_logits:gpu=2 ||
    { tail -n 15 $(find "$work/logs" -newer "$config" -size +0) && exit 1; }
kill $watcher
grep "^--- chunks\|seconds per pass" "$work/logs/Proof-317M/imatrix.gguf.log"

phase "the matrix of two ranges, and that of one run"
"$python" "$root/tests/gpu/figures.py" ranges --work "$work" --model "$model" --output "$proof/ranges.json"
tail -n +1 "$work"/benchmarks/Proof-317M/imatrix.gguf.tsv "$work"/benchmarks/Proof-317M/evaluation/base.kld.tsv
phase "proven"
touch "$here/done"
