#!/usr/bin/env bash
# A study on a machine with an NVIDIA GPU: two rounds of six merges, measured on the GPU, then the winner's model.
#
#   tests/gpu/study.sh DIRECTORY
#
# Needs nvcc, a C++ compiler, and as PYTHON (else python3) one with requirements.txt whose torch is built for CUDA. No
# network. What it made is in DIRECTORY/study, what it found in DIRECTORY/proof.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
work=$here/study config=$here/study.yaml candidates=results/studies/Which
mkdir -p "$work"
cp "$root/tests/gpu/study.yaml" "$config"
cd "$work"

phase "machine"
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

phase "three models to merge"
make_models 100 30

phase "plan"
mill plan | grep -v "^Building\|^Using\|^Assuming" | tail -n 20

phase "first round"
(while sleep 0.2; do du -sm "$candidates" 2>/dev/null | cut -f1 || true; done >"$proof/study-disk.txt") &
watcher=$!
mill
mill choose | tail -n 25

phase "second round"
mill
mill choose | tail -n 25
kill $watcher
grep -h "seconds per pass" $(find logs/studies -path "*perplexity/2*.log") | sed 's/.*perplexity: //' | sort | uniq -c
echo "the study's largest size on the disk: $(sort -n "$proof/study-disk.txt" | tail -n 1) MB"
left=$(find $candidates -name "*.gguf" -o -name "*.safetensors" -o -name "*.kld")
[ -z "$left" ] || fail "candidates were left: $left"

phase "the winner's model"
mill
[ -s results/Best-317M/gguf/Best-317M-Q8_0.gguf ] || fail "no model"
mill -n | grep -q "Nothing to be done" || fail "something is stale"
cp $candidates/study.csv "$proof/study.csv"
cp $candidates/study.svg "$proof/study.svg"
cp config/studies.lock.yaml "$proof/"
phase "proven"
