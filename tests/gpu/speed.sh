#!/usr/bin/env bash
# How fast a GPU runs EXL2 and EXL3 directories of one model, by `snakemake speed`.
#
#   tests/gpu/speed.sh DIRECTORY
#
# Needs nvcc, a C++ compiler, and a Python (PYTHON, else python3) with requirements.txt, envs/exllamav2.txt,
# envs/exllamav3.txt and a torch built for CUDA. No network. What it made is in DIRECTORY/speed, what it found in
# DIRECTORY/proof.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work=$here/speed model=results/Proof-Speed config=$here/speed.yaml
mkdir -p "$work"
(cat "$root/tests/gpu/speed.yaml" && own_python exllamav2 exllamav3) >"$config"
cd "$work"

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" - <<'P'
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in "torch exllamav2 exllamav3".split()), sep=", ")
P

phase "a model"
"$python" "$root/scripts/demo_text.py" --output text
train base --output models/base --hidden 2048 --layers 8 --ffn 5632 --heads 16 --kv-heads 8 --vocab 8192 --steps 100
ls -l models/base

phase "EXL2 and EXL3, their extensions side by side"
mill --set-threads extension=8 --keep-going | tail -n 3
mill speed | tee "$proof/speed.txt"

phase "once more: nothing has changed, and all of it anew"
touch "$here/marker"
mill speed
[ -z "$(find $model/speed -newer "$here/marker" -name "*.json")" ] || fail "it was measured again"
mill speed --force | tee "$proof/speed-again.txt"
cp $model/speed/* "$proof"
phase "proven"
touch "$here/speed.done"
