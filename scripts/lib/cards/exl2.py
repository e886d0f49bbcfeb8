"""The lines of a model card about EXL2 directories."""

from pathlib import PurePosixPath
from typing import Any

from lib.cards.lines import Lines, command, text_named
from lib.record.origins import Origins
from lib.record.recipe import Record


class Exl2Lines(Lines):
    """Each form is a directory; on the hub it has a branch or a repository of its own."""

    name = "exl2"
    has_tokenizer = True
    reads = ("exl2",)
    longest_row = 2048  # of exllamav2's own calibration set (0.3.2)

    def heading(self, repo: str | None) -> str:
        return "Branch" if repo else "Form"

    def branch(self, form: str) -> str:
        """The usual names on the hub: 5_0 for 5.0bpw, 4_25 for 4.25bpw."""
        return form.removesuffix("bpw").replace(".", "_")

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        name = about["model"]
        measured = origins.record(f"results/{name}/exl2/measurement.json")
        made = next(iter(forms.values()), None)
        about["exl2"]["sha256"] = made.inputs.get("corpus") if made else None
        about["commands"][self.name] = lines = []
        if measured is None or made is None:
            return
        tool = ["python", "-m", "exllamav2.conversion.convert_exl2", "-i", name]
        tool += ["-o", "work", "-nr"]
        own_set = about["exl2"]["corpus"] == "default"
        text = [] if own_set else ["-c", f"{about['exl2']['corpus']}.parquet"]
        options = made.recipe["options"]
        rope = [
            word
            for key, flag in (("rope_scale", "-rs"), ("rope_alpha", "-ra"))
            if options.get(key)
            for word in (flag, str(options[key]))
        ]

        def rows(count: str, options: dict[str, Any], length: str, prefix: str = "") -> list[str]:
            """exllamav2's own set has a fixed number of rows, so it gets no flag for that."""
            counted = [] if own_set else [f"-{prefix}r", str(options[count])]
            return [*counted, f"-{prefix}l", str(options[length])]

        if measured.recipe["step"] == "exl2_measure":
            measuring = rows(
                "measurement_rows", measured.recipe["options"], "measurement_length", "m"
            )
            lines.append(command(*tool, "-om", "measurement.json", *measuring, *rope, *text))
        for form, record in forms.items():
            options = record.recipe["options"]
            flags = ["-b", str(options["bits"]), "-hb", str(options["head_bits"])]
            flags += [*rows("rows", options, "length"), "-ss", str(options["shard_size"])]
            words = ["-m", "measurement.json", *flags, *rope, *text, "-cf", f"{name}-{form}"]
            lines.append(command(*tool, *words))

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        if not repo:
            return f"[{row['form'].name}]({row['path']}/)"
        branch, form = row["branch"], row["form"].name
        return f"[`{branch}`](https://huggingface.co/{repo}/tree/{branch}) ({form})"

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        branch, target = row["branch"], row["directory"]
        return f"hf download {repo} --revision {branch} --local-dir {target}"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        path = PurePosixPath(row["directory"] if repo else row["path"])
        return [
            "# ExLlamaV2, from its source tree",
            f'python test_inference.py -m {path} -p "Once upon a time"',
            "# TabbyAPI",
            f"python main.py --model-dir {path.parent} --model-name {path.name}",
        ]

    def calibration(self, about: dict[str, Any]) -> str:
        exl2 = about["exl2"]
        if not exl2:
            return ""
        if exl2["corpus"] == "default":
            length = min(exl2["length"], self.longest_row)
            return f"Calibration: ExLlamaV2's own texts, in rows of {length} tokens."
        rows = f"{exl2['rows']} rows of {exl2['length']} tokens"
        return f"Calibration: the text {text_named(exl2)}, {rows}."
