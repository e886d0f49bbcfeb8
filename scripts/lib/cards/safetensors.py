"""The lines of a model card about a merge's full weights."""

from typing import Any

from lib.cards.lines import Lines


class SafetensorsLines(Lines):
    """The only form is a directory."""

    name = "safetensors"

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        return f"[{row['name']}]({row['path']}/)"

    def download(self, row: dict[str, Any] | None, repo: str, name: str) -> str:
        files = '"*.safetensors" "*.json" "*.model" "*.jinja"'
        return f"hf download {repo} --include {files} --local-dir {name}"

    def run(self, row: dict[str, Any] | None, repo: str | None, about: dict[str, Any]) -> list[str]:
        return ["# vLLM", f"vllm serve {repo or 'safetensors'}"]
