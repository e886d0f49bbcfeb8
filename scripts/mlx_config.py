"""Give the config.json of a model directory the keys for RoPE that mlx-lm reads.

transformers 5 writes `rope_parameters`, of which most models in mlx-lm (0.32.2) know nothing. If
`rope_theta` is missing they silently take 10000: SmolLM2-135M was then as far from itself as a KLD
of 0.17. Not needed once mlx_lm/models/llama.py reads `rope_parameters`.
"""

import argparse
import json
from pathlib import Path

from lib.errors import program
from lib.formats.exllamav2 import exllama_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory, whose config.json is rewritten")
    file = parser.parse_args().model / "config.json"
    config = exllama_config(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(dict(sorted(config.items())), indent=4), encoding="utf-8")


if __name__ == "__main__":
    program(main)
