#!/usr/bin/env bash
# What prove.sh cannot see, after it, in its directory: a measurement of one's own, and a model with another rope_theta.
#
#   tests/gpu/own_measurement.sh DIRECTORY
#
# The needs are those of prove.sh. Two minutes on an H100.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$work"
export PYTHONPATH=$work/resources/extensions/exllamav2${PYTHONPATH:+:$PYTHONPATH}

echo "== a plain model directory with theta 100000, against itself"
cp -rL models/base models/theta
"$python" - <<'P'
import json
path = "models/theta/config.json"
config = json.load(open(path))
config["rope_parameters"]["rope_theta"] = 100000.0
json.dump(config, open(path, "w"))
P
for pair in "theta theta" "base base" "base theta"; do
    read -r model reference <<<"$pair"
    "$python" "$root/scripts/exl2_evaluate.py" --model "models/$model" --reference "models/$reference" \
        --text text/evaluation.txt --corpus evaluation --ctx-size 512 --chunks 8 --output "$here/theta.json"
    "$python" -c "
import json, sys
found = json.load(open(sys.argv[3]))
print(*sys.argv[1:2], 'against', sys.argv[2], 'KLD', found['kld']['mean'], 'perplexity', found['perplexity']['mean'])
" "$model" "$reference" "$here/theta.json"
done

echo "== a measurement of one's own"
mkdir -p "$here/own"
ln -sfn "$PWD/models" "$here/own/models"
ln -sfn "$PWD/text" "$here/own/text"
cp results/Proof-317M/exl2/measurement.json "$here/own/"
"$python" - "$here" <<'P'
import sys
import yaml
here = sys.argv[1]
config = yaml.safe_load(open(f"{here}/config.yaml"))
model = config["models"]["Proof-317M"]
del model["gguf"]
kept = {key: value for key, value in model["exl2"].items() if not key.startswith("measurement")}
model["exl2"] = kept | {"bits": [4.0], "measurement": "./measurement.json"}
yaml.safe_dump(config, open(f"{here}/own/config.yaml", "w"), sort_keys=False)
P
"$python" -m snakemake --snakefile "$root/Snakefile" --directory "$here/own" --configfile "$here/own/config.yaml" \
    --profile "$root/profiles/gpu" --cores all
"$python" - "$here" <<'P'
import json
import sys
for whose, top in (("our measurement", "work"), ("one's own", "own")):
    found = json.load(open(f"{sys.argv[1]}/{top}/results/Proof-317M/evaluation/4.0bpw.json"))["kld"]
    print(f"4.0bpw by {whose}: KLD {found['mean']:.6f} ± {found['error']:.6f}")
P
