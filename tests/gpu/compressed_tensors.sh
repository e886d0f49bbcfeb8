#!/usr/bin/env bash
# compressed-tensors on a machine with an NVIDIA GPU: a merge in every scheme, calibrated and measured there by
# transformers; then vLLM loads each directory and the merge, and writes a text.
#
#   tests/gpu/compressed_tensors.sh DIRECTORY
#
# Needs nvcc, a C++ compiler, and Pythons with a torch built for CUDA: PYTHON (else python3) with requirements.txt,
# LLMCOMPRESSOR with envs/llmcompressor.txt, VLLM with vLLM (left out where it is not given). No network. What it made is
# in DIRECTORY/tensors, what it found in DIRECTORY/proof.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work=$here/tensors model=results/Proof-CT config=$here/compressed_tensors.yaml
mkdir -p "$work"
(cat "$root/tests/gpu/compressed_tensors.yaml" && python=$LLMCOMPRESSOR own_python llmcompressor) >"$config"
cd "$work"

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$LLMCOMPRESSOR" - <<'P'
import platform
from importlib.metadata import version
names = "torch transformers llmcompressor compressed-tensors tokenizers".split()
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
P

phase "text, and two models to merge"
"$python" "$root/scripts/demo_text.py" --output text
trainings=()
for name in one two; do
    "$python" "$root/tests/gpu/train.py" --kind untied --text text --output models/$name --seconds 30 --layers 8 \
        >$name.log 2>&1 &
    trainings+=($!)
done
wait "${trainings[@]}"
tail -qn 1 one.log two.log

phase "build"
mill preflight | grep "environments\|Proof-CT" || true
mill --keep-going || { tail -n 25 $(find logs -newer "$config" -size +0) && fail "the build"; }
touch "$here/marker"
mill >second.log
built=$(made_since "$here/marker")
[ -z "$built" ] || fail "the second run built $built"

phase "figures"
"$python" "$root/tests/gpu/figures.py" forms --work "$work" --model "$model" --output "$proof/compressed_tensors.md"
cat "$proof/compressed_tensors.md"
cp "$model/report/quality.csv" "$proof/compressed_tensors-quality.csv"
cp "$model/report/quality.svg" "$proof/compressed_tensors-quality.svg"
tar -czf "$proof/compressed_tensors-logs.tar.gz" logs benchmarks "$model/evaluation" "$model/README.md"

if [ -n "${VLLM:-}" ]; then
    phase "vLLM"
    "$VLLM" "$root/tests/gpu/vllm_text.py" "$model/safetensors" "$model"/compressed-tensors/*/ | tee "$proof/vllm.txt"
    grep -q "^failed: 0" "$proof/vllm.txt" || fail "vLLM"
fi
phase "proven"
touch "$here/compressed_tensors.done"
