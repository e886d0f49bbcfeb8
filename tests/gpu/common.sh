# What the scripts of this directory have in common. Each sources it, with its argument DIRECTORY.
# What they build is in $work, what they find in $proof, and what they say in $proof/SCRIPT.log too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$1"
here=$(cd "$1" && pwd)
work=$here/work proof=$here/proof model=results/Proof-317M config=$here/config.yaml
mkdir -p "$work/text" "$proof"
exec > >(tee "$proof/$(basename "$0" .sh).log") 2>&1
trap 'echo "== [$SECONDS s] ended with status $?"' EXIT

export QUANTMILL_CACHE=${QUANTMILL_CACHE:-$here/cache} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

phase() { echo && echo "== [$SECONDS s] $*"; }
fail() { echo "FAILED: $*" && exit 1; }

# own_python NAME...: in the config, this Python for tools that else would have an environment installed.
own_python() {
    local name where
    where=$(cd "$(dirname "$(command -v "$python")")" && pwd)/python
    echo "environments:"
    for name in "$@"; do echo "  $name: $where"; done
}

# What was built after a file was touched, by the recipes beside it.
made_since() {
    (cd "$work/$model" && find . -name '*.recipe.json' -newer "$1") |
        sed 's|^\./||; s|\.recipe\.json$||' | LC_ALL=C sort | paste -sd ' '
}
mill() {
    "$python" -m snakemake --snakefile "$root/Snakefile" --directory "$work" \
        --configfile "$config" --profile "$root/profiles/gpu" --cores all "$@" 2>&1
}
train() {
    "$python" "$root/scripts/demo_train.py" "$@" --text text --device cuda --batch 16 |
        sed -n '1p;$p'
}

# make_models STEPS STEPS [LAYERS FFN]: texts, a base model of so many steps and two finetunes of it,
# in $work.
make_models() {
    "$python" "$root/scripts/demo_text.py" --output text
    "$python" -c "
import pandas, re
parts = re.split(r'\n\s*\n', open('text/calibration.txt', encoding='utf-8').read())
pandas.DataFrame({'text': parts}).to_parquet('text/calibration.parquet')"
    train base --output models/base --hidden 2048 --layers "${3:-6}" --ffn "${4:-5632}" --heads 16 --kv-heads 8 \
        --vocab 8192 --steps "$1"
    for domain in code prose; do
        train finetune --base models/base --domain $domain --output models/$domain --steps "$2"
    done
}
