"""The lines of a model card about MLX directories."""

from typing import Any

from lib.cards.lines import Lines, command
from lib.flags.mlx import mlx_flags
from lib.record.origins import Origins
from lib.record.recipe import Record


class MlxLines(Lines):
    """Each form is a directory; on the hub it has a repository of its own."""

    name = "mlx"
    has_tokenizer = True

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        name = about["model"]
        about["commands"][self.name] = [
            command(
                *("mlx_lm.convert", "--hf-path", name, "--mlx-path", f"{name}-{form}"),
                *mlx_flags(record.recipe["options"]),
            )
            for form, record in forms.items()
        ]

    def branch(self, form: str) -> str:
        return form

    def heading(self, repo: str | None) -> str:
        return "Form"

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        form = row["form"].name
        return f"[{form}](https://huggingface.co/{repo})" if repo else f"[{form}]({row['path']}/)"

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        return f"hf download {repo} --local-dir {row['directory']}"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        model = repo or row["path"]
        return [
            "# mlx-lm",
            f'mlx_lm.generate --model {model} --prompt "Once upon a time"',
            "# A server with OpenAI's API",
            f"mlx_lm.server --model {model}",
        ]
