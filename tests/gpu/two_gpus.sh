#!/usr/bin/env bash
# What is different on two GPUs: steps side by side, each on a GPU of its own, and an importance matrix in two ranges.
#
#   tests/gpu/two_gpus.sh DIRECTORY
#
# Needs what prove.sh needs, and two GPUs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$1"
here=$(cd "$1" && pwd)
work=$here/work proof=$here/proof model=results/Proof-317M
mkdir -p "$work/text" "$proof"
exec > >(tee "$proof/two_gpus.log") 2>&1
trap 'echo "== [$SECONDS s] ended with status $?"' EXIT

export QUANTMILL_CACHE=$here/cache TORCH_EXTENSIONS_DIR=$here/extensions
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
config=$here/config.yaml
sed 's/quants: .*/quants: [Q8_0, Q4_K_M]/; s/bits: .*/bits: [3.0, 5.0]/' "$root/tests/gpu/config.yaml" >"$config"

phase() { echo && echo "== [$SECONDS s] $*"; }
train() { "$python" "$root/scripts/demo_train.py" "$@" --text text --device cuda --batch 16; }

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=index,name,uuid,driver_version --format=csv,noheader

phase "three models to merge"
cd "$work"
"$python" "$root/scripts/demo_text.py" --output text
"$python" -c "
import pandas, re
parts = re.split(r'\n\s*\n', open('text/calibration.txt', encoding='utf-8').read())
pandas.DataFrame({'text': parts}).to_parquet('text/calibration.parquet')"
size=(--hidden 2048 --layers 6 --ffn 5632 --heads 16 --kv-heads 8 --vocab 8192)
train base --output models/base "${size[@]}" --steps 100 | tail -n 1
for domain in code prose; do
    train finetune --base models/base --domain $domain --output models/$domain --steps 20 | tail -n 1
done

phase "build, with --resources gpu=2, imatrix and base logits on both GPUs"
"$python" -c "import exllamav2" >"$here/extension.log" 2>&1
apps=gpu_uuid,pid,process_name,used_memory
(while sleep 1; do
    echo "- $SECONDS s"
    nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader
    nvidia-smi --query-compute-apps=$apps --format=csv,noheader
done >"$proof/gpus.txt") &
watcher=$!
"$python" -m snakemake --snakefile "$root/Snakefile" --directory "$work" --configfile "$config" \
    --profile "$root/profiles/gpu" --cores all --resources gpu=2 \
    --set-resources merge:gpu=1 evaluate:gpu=1 imatrix:gpu=2 base_logits:gpu=2 2>&1 ||
    { tail -n 15 $(find "$work/logs" -newer "$config" -size +0) && exit 1; }
kill $watcher
grep "^--- chunks\|seconds per pass" "$work/logs/Proof-317M/imatrix.gguf.log"

phase "the matrix of two ranges, and that of one run"
"$python" "$root/tests/gpu/figures.py" ranges --work "$work" --model "$model" --output "$proof/ranges.json"
tail -n +1 "$work"/benchmarks/Proof-317M/imatrix.gguf.tsv "$work"/benchmarks/Proof-317M/evaluation/base.kld.tsv
phase "proven"
touch "$here/done"
