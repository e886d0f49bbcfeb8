"""The flags of mergekit-extract-lora (0.1.5) that the options of an adapter become."""

from typing import Any

LISTS = {"save_module": "--save-module", "exclude_regex": "--exclude-regex"}
LISTS |= {"include_regex": "--include-regex"}


def extract_lora_flags(options: dict[str, Any]) -> list[str]:
    """options: of the artifact, as lib/stages/extract_lora.Adapter has them."""
    words = ["--max-rank", str(options["rank"]), "--sv-epsilon", str(options["sv_epsilon"])]
    for key in ("distribute_scale", "embed_lora"):
        name = key.replace("_", "-")
        words.append(f"--{name}" if options[key] else f"--no-{name}")
    words += ["--skip-undecomposable"] if options["skip_undecomposable"] else []
    for key, flag in LISTS.items():
        words += [word for value in options[key] for word in (flag, value)]
    return words
