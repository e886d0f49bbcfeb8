"""The lines of a model card about EXL3 directories."""

from pathlib import PurePosixPath
from typing import Any

from lib.cards.lines import Lines, command, text_named
from lib.record.origins import Origins
from lib.record.recipe import Record


class Exl3Lines(Lines):
    """Each form is a directory; on the hub it has a branch or a repository of its own."""

    name = "exl3"
    has_tokenizer = True
    reads = ("exl3",)

    def heading(self, repo: str | None) -> str:
        return "Branch" if repo else "Form"

    def branch(self, form: str) -> str:
        """The usual name on the hub: 4.0bpw for 4.0bpw-exl3."""
        return form.removesuffix("-exl3")

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        made = next(iter(forms.values()), None)
        about["exl3"]["sha256"] = made.inputs.get("corpus") if made else None
        about["commands"][self.name] = lines = []
        own_set = about["exl3"]["corpus"] == "default"
        # A text is given as tokens, in a file that no command of exllamav3's makes.
        text = [] if own_set else ["-cd", f"{about['exl3']['corpus']}.safetensors"]
        for form, record in forms.items():
            flags = {"bits": "-b", "head_bits": "-hb", "shard_size": "-ss"}
            flags |= {"rows": "-cr", "length": "-cc"}
            options = record.recipe["options"]
            told = [word for key, flag in flags.items() for word in (flag, str(options[key]))]
            tool = ["python", "-m", "exllamav3.conversion.convert_model", "-i", about["model"]]
            lines.append(
                command(*tool, "-o", f"{about['model']}-{form}", "-w", "work", *told, *text)
            )

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        branch = row["branch"]
        if not repo:
            return f"[{row['form'].name}]({row['path']}/)"
        return f"[`{branch}`](https://huggingface.co/{repo}/tree/{branch}) ({row['form'].name})"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        path = PurePosixPath(row["directory"] if repo else row["path"])
        code = f'from exllamav3 import *; c = Config.from_directory("{path}"); '
        code += "m = Model.from_config(c); k = Cache(m, max_num_tokens=8192); m.load(); "
        code += "g = Generator(m, k, Tokenizer.from_config(c)); "
        code += 'print(g.generate("Once upon a time", max_new_tokens=100))'
        return [
            "# TabbyAPI",
            f"python main.py --model-dir {path.parent} --model-name {path.name}",
            "# ExLlamaV3",
            command("python", "-c", code),
        ]

    def calibration(self, about: dict[str, Any]) -> str:
        exl3 = about["exl3"]
        if not exl3:
            return ""
        rows = f"{exl3['rows']} rows of {exl3['length']} tokens"
        if exl3["corpus"] == "default":
            return f"Calibration: ExLlamaV3's own texts, {rows}."
        return f"Calibration: the text {text_named(exl3)}, at most {rows}."
