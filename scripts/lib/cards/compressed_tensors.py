"""The lines of a model card about directories in compressed-tensors."""

import json
from pathlib import Path
from typing import Any

from lib.cards.lines import Lines, command
from lib.formats.json_file import read_json
from lib.record.origins import Origins
from lib.record.recipe import Record


class CompressedTensorsLines(Lines):
    """Each form is a directory; on the hub it has a repository or a branch of its own."""

    name = "compressed_tensors"
    has_tokenizer = True

    def heading(self, repo: str | None) -> str:
        return "Scheme"

    def branch(self, form: str) -> str:
        """The usual names on the hub: FP8-Dynamic for FP8_DYNAMIC."""
        first, *others = form.split("_")
        return "-".join([first, *map(str.capitalize, others)])

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        name, lines = about["model"], []
        for form, record in forms.items():
            config = read_json(Path(record.artifact, "config.json"))["quantization_config"]
            words = name, f"{name}-{form}", record.recipe["options"]["scheme"]
            asked = f"{', '.join(map(json.dumps, words))}, ignore={json.dumps(config['ignore'])}"
            code = f'from llmcompressor import *; model_free_ptq({asked}, device="cpu")'
            lines.append(command("python", "-c", code))
        about["commands"][self.name] = lines

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        form, branch = row["form"].name, row["branch"]
        if not repo:
            return f"[{form}]({row['path']}/)"
        return f"[{form}](https://huggingface.co/{repo}/tree/{branch})"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        path, branch = repo or row["path"], row["branch"]
        own = repo and branch != "main"
        revision = f', revision="{branch}"' if own else ""
        asked = f'pipeline("text-generation", "{path}"{revision})("Once upon a time")'
        return [
            "# vLLM",
            f"vllm serve {path}" + (f" --revision {branch}" if own else ""),
            "# transformers",
            "pip install transformers accelerate compressed-tensors",
            command("python", "-c", f"from transformers import pipeline; print({asked})"),
        ]
