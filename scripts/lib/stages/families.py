"""The families: the forms in which people take a model.

What is true of one alone stands in its class; reports, cards and what plans them go through
FAMILIES, so that a further family is a further class.

Imported by the planner: standard library only.
"""

import shlex
from pathlib import PurePosixPath
from typing import Any

from lib.flags.context import context_flags
from lib.flags.imatrix import imatrix_flags
from lib.flags.quantize import quantize_flags
from lib.record.origins import Origins
from lib.record.recipe import Record


def command(*words: str) -> str:
    """A command line, quoted for a shell."""
    return shlex.join(words)


def text_named(calibration: dict[str, Any]) -> str:
    """A calibration text by its name and, where a record tells it, its hash."""
    sha256 = calibration.get("sha256")
    return f"`{calibration['corpus']}`" + (f" (sha256 `{sha256}`)" if sha256 else "")


class Family:
    """One family. Methods that tell nothing of most families return nothing here.

    rules: {rule that makes a form: whether the form is quantized}.
    """

    name: str
    title: str
    phrase: str  # what a card says after the model's name
    library: str  # the hub's library_name
    tags: tuple[str, ...] = ()
    rules: dict[str, bool]
    note = ""  # what limits where its forms run
    tag = ""  # what is put before or after the names of forms that do not tell the family
    colours: tuple[str, str]  # in plots, on light and on dark paper
    diamond = False  # the marker in plots; else a dot
    has_shards = False

    @property
    def quantized(self) -> bool:
        """Whether its forms are quants, or may be."""
        return any(self.rules.values())

    def options(self, model: Any, forms: dict[str, Any]) -> dict[str, Any]:
        """What a config's model says for its card. forms: {form: artifact}."""
        return {}

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        """Add what the records of its forms tell to `about`, its command lines among them."""
        about["commands"][self.name] = []

    def heading(self, repo: str | None) -> str:
        """What a card's table of files calls its first column."""
        return "File"

    def branch(self, form: str) -> str:
        """The branch of a repository in which a form lies."""
        return "main"

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        """The cell of a card's table of files that leads to a form, as Markdown."""
        raise NotImplementedError

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        """The command line that downloads a form."""
        raise NotImplementedError

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        """Command lines that use a form, with comments between."""
        raise NotImplementedError

    def run_note(self, row: dict[str, Any], repo: str | None) -> str:
        """What is to be said below these."""
        return ""

    def calibration(self, about: dict[str, Any]) -> str:
        """What the forms were calibrated with, as Markdown."""
        return ""

    def tags_of(self, about: dict[str, Any]) -> list[str]:
        """Tags that depend on how the forms were made."""
        return []


class Gguf(Family):
    """GGUF files, whole or in shards."""

    name, title, phrase = "gguf", "GGUF", " as GGUF for llama.cpp"
    library, tags = "gguf", ("gguf", "llama.cpp")
    rules = {"convert": False, "source_gguf": False, "quantize": True}
    has_shards = True
    colours = ("#1f5fbf", "#7fb0ff")

    def options(self, model: Any, forms: dict[str, Any]) -> dict[str, Any]:
        if not any("imatrix" in made.inputs for made in forms.values()):
            return {}
        if model.own_imatrix:
            return {"imatrix": {"format": PurePosixPath(model.own_imatrix).suffix[1:]}}
        keys = {"corpus", "chunks", "context", "format"}
        return {"imatrix": model.gguf.imatrix.model_dump(include=keys)}

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        name, lines = about["model"], []
        quants = {f: r for f, r in forms.items() if r.recipe["step"] == "quantize"}
        matrix = about.get("imatrix") and f"imatrix.{about['imatrix']['format']}"
        logits = f"results/{name}/evaluation/base.kld"
        measured = origins.record(logits) if about["evaluation"] else None
        for form, record in forms.items():
            if form in quants:
                continue
            gguf = f"{name}-{form}.gguf"
            if record.recipe["step"] == "convert":
                outtype = record.recipe["options"]["outtype"]
                words = ["python", "convert_hf_to_gguf.py", name, "--outtype", outtype]
                lines.append(command(*words, "--model-name", name, "--outfile", gguf))
            made = origins.record(f"results/{name}/{matrix}") if matrix else None
            if made and "corpus" in about["imatrix"]:
                text, kind = f"{about['imatrix']['corpus']}.txt", about["imatrix"]["format"]
                words = ["llama-imatrix", "--model", gguf, "--file", text]
                words += imatrix_flags(made.recipe["options"])
                lines.append(command(*words, "--output-format", kind, "--output-file", matrix))
            for quant, made in quants.items():
                options = made.recipe["options"]
                used = ["--imatrix", matrix] if "imatrix" in made.recipe["inputs"] else []
                words = [*used, *quantize_flags(options), gguf, f"{name}-{quant}.gguf"]
                lines.append(command("llama-quantize", *words, options["type"]))
            if measured:
                lines += perplexity_commands(name, gguf, about["evaluation"], measured, quants)
        about["commands"][self.name] = lines
        if matrix:
            made = origins.record(f"results/{name}/{matrix}")
            about["imatrix"] |= {
                "file": f"results/{name}/{matrix}",
                # Of one that was not computed here, the hash is its own.
                "sha256": made.inputs.get("corpus", made.sha256) if made else None,
            }

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        folder, parts = row["folder"], len(row["shards"])
        shown = f"{folder}/" if repo else f"[{folder}/]({folder}/)"
        if not row["whole"]:
            return f"{row['form'].name} in {parts} parts: {shown}"
        if parts:
            also = f", also in {parts} parts: {shown}"
        else:
            also = f", also as shards: {shown}" if row["sharded"] else ""
        return f"[{row['name']}]({row['path']}){also}"

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        what = row["name"] if row["whole"] else f"{row['folder']}/*"
        return f'hf download {repo} --include "{what}" --local-dir .'

    def tags_of(self, about: dict[str, Any]) -> list[str]:
        return ["imatrix"] if about.get("imatrix") else []

    def _target(self, row: dict[str, Any]) -> str:
        return row["path"] if row["whole"] else f"{row['folder']}/{row['shards'][0]}"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        target, form, bases = self._target(row), row["form"].name, about.get("bases") or []
        full = (about.get("repos") or {}).get("safetensors")
        full = full or (bases[0]["reference"] if bases else about["model"])
        lines = ["# llama.cpp", f"llama-cli {f'-hf {repo}:{form}' if repo else f'-m {target}'}"]
        if repo:
            lines += ["# Ollama", f"ollama run hf.co/{repo}:{form}"]
            lines += ["# LM Studio", f"lms get https://huggingface.co/{repo}@{form}"]
        else:
            model = about["model"].lower()
            lines += ["# Ollama"]
            lines += [f'echo "FROM ./{target}" > Modelfile && ollama create {model} -f Modelfile']
            lines += ["# LM Studio", f"lms import {target}"]
        lines += ["# vLLM, with its GGUF plugin; the tokenizer is taken from the full weights"]
        return [
            *lines,
            "pip install vllm vllm-gguf-plugin",
            f"vllm serve ./{target} --tokenizer {full}",
        ]

    def run_note(self, row: dict[str, Any], repo: str | None) -> str:
        if row["whole"]:
            return ""
        return (
            "Of a split file, name the first shard; llama.cpp finds the others beside it. vLLM "
            f"wants a single\nfile: `llama-gguf-split --merge {self._target(row)} {row['name']}`."
        )

    def calibration(self, about: dict[str, Any]) -> str:
        matrix = about.get("imatrix")
        if not matrix:
            return ""
        file = PurePosixPath(matrix["file"]).name
        link = f"Importance matrix: [{file}]({file})"
        if "corpus" not in matrix:
            return f"{link} (sha256 `{matrix['sha256']}`), which was not computed here."
        return (
            f"{link}, from the text\n{text_named(matrix)}, "
            f"{matrix['chunks'] or 'all'} chunks of {matrix['context']} tokens."
        )


def perplexity_commands(
    name: str, gguf: str, text: str, measured: Record, quants: dict[str, Record]
) -> list[str]:
    """The base logits of the conversion `gguf`, and each quant against them."""
    options, base = measured.recipe["options"], ["--kl-divergence-base", "base.kld"]
    words = ["--model", gguf, "--file", f"{text}.txt", *context_flags(options)]
    size = str(options["context"])
    lines = [command("llama-perplexity", *words, *base)]
    for quant in quants:
        words = ["--model", f"{name}-{quant}.gguf", "--ctx-size", size]
        lines.append(command("llama-perplexity", *words, *base, "--kl-divergence"))
    return lines


class Exl2(Family):
    """EXL2 directories, one for each bits value; on the hub a branch or a repository each."""

    name, title, phrase = "exl2", "EXL2", " as EXL2 for ExLlamaV2"
    library, tags = "exllamav2", ("exl2", "exllamav2")
    rules = {"exl2_quantize": True}
    note = "EXL2 runs on CUDA GPUs only."
    tag, colours, diamond = "EXL2", ("#b3500a", "#f2a15f"), True
    longest_row = 2048  # of exllamav2's own calibration set (0.3.2)

    def heading(self, repo: str | None) -> str:
        return "Branch" if repo else "Form"

    def branch(self, form: str) -> str:
        """As people name them: 5.0bpw -> 5_0, 4.25bpw -> 4_25."""
        return form.removesuffix("bpw").replace(".", "_")

    def options(self, model: Any, forms: dict[str, Any]) -> dict[str, Any]:
        return {"exl2": model.exl2.model_dump(include={"corpus", "rows", "length"})}

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
            """The own set has its own number of rows, whatever is asked for."""
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
            flags += [*rope, *text, "-cf", f"{name}-{form}"]
            lines.append(command(*tool, "-m", "measurement.json", *flags))

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
        exl2 = about.get("exl2")
        if not exl2:
            return ""
        if exl2["corpus"] == "default":
            length = min(exl2["length"], self.longest_row)
            return f"Calibration: ExLlamaV2's own texts, in rows of {length} tokens."
        rows = f"{exl2['rows']} rows of {exl2['length']} tokens"
        return f"Calibration: the text {text_named(exl2)}, {rows}."


class Safetensors(Family):
    """The full weights of a merge."""

    name, title, phrase = "safetensors", "Full weights", ": full weights"
    library = "transformers"
    colours = ("#59636e", "#9ba6b2")
    rules = {"merge": False}

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        return f"[{row['name']}]({row['path']}/)"

    def download(self, row: dict[str, Any] | None, repo: str, name: str) -> str:
        files = '"*.safetensors" "*.json" "*.model" "*.jinja"'
        return f"hf download {repo} --include {files} --local-dir {name}"

    def run(self, row: dict[str, Any] | None, repo: str | None, about: dict[str, Any]) -> list[str]:
        return ["# vLLM", f"vllm serve {repo or 'safetensors'}"]


FAMILIES: dict[str, Family] = {family.name: family for family in (Gguf(), Exl2(), Safetensors())}


def family_of(rule: str) -> Family:
    """The family to which the forms of a rule belong."""
    return next(family for family in FAMILIES.values() if rule in family.rules)


def families_of(forms: dict[str, Any]) -> list[str]:
    """The families of a model's forms, {form: artifact}; full weights where there is no form."""
    kept = [made.rule for made in forms.values() if not made.intermediate]
    found = [name for name, family in FAMILIES.items() if not family.rules.keys().isdisjoint(kept)]
    return found or [Safetensors.name]
