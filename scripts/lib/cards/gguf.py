"""The lines of a model card about GGUF files."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from lib.cards.lines import Lines, command, text_named
from lib.flags.context import context_flags
from lib.flags.imatrix import imatrix_flags
from lib.flags.quantize import quantize_flags
from lib.mixes.files import called, read_mix
from lib.record.origins import Origins
from lib.record.recipe import Record

DRAFTING = ("--spec-type", "draft-mtp")
MIXED = "quantize_mix"  # the step that makes a quant of a mix


class GgufLines(Lines):
    """Each form is a file, whole or in shards."""

    name = "gguf"
    has_tokenizer = True
    reads = ("imatrix",)
    has_shards = True

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        name, lines = about["model"], []
        quants = {f: r for f, r in forms.items() if r.recipe["step"] in ("quantize", MIXED)}
        matrix = about.get("imatrix") and f"imatrix.{about['imatrix']['format']}"
        logits = f"results/{name}/evaluation/base.kld"
        measured = origins.record(logits) if about["evaluation"] else None
        imatrix = origins.record(f"results/{name}/{matrix}") if matrix else None
        for form, record in forms.items():
            if form in quants:
                continue
            gguf = f"{name}-{form}.gguf"
            if record.recipe["step"] == "convert":
                outtype = record.recipe["options"]["outtype"]
                words = ["python", "convert_hf_to_gguf.py", name, "--outtype", outtype]
                lines.append(command(*words, "--model-name", name, "--outfile", gguf))
            if imatrix and "corpus" in about["imatrix"]:
                text, kind = f"{about['imatrix']['corpus']}.txt", about["imatrix"]["format"]
                words = ["llama-imatrix", "--model", gguf, "--file", text]
                words += imatrix_flags(imatrix.recipe["options"])
                lines.append(command(*words, "--output-format", kind, "--output-file", matrix))
            if any("imatrix" in made.recipe["inputs"] for made in quants.values()):
                typed = command(f"results/{name}/{matrix}")
                lines.append(f"# The files hold the path of the imatrix as it was typed: {typed}")
            for quant, made in quants.items():
                used = ["--imatrix", matrix] if "imatrix" in made.recipe["inputs"] else []
                flags, type_ = quantize_words(quant, made, origins)
                words = [*used, *flags, gguf, f"{name}-{quant}.gguf"]
                lines.append(command("llama-quantize", *words, type_))
            if measured:
                lines += perplexity_commands(name, gguf, about["evaluation"], measured, quants)
        for path in origins.inputs_in("beside").values():
            made = origins.record(path)
            if alpha := made.notes.get("alpha"):
                of = f"{made.recipe['options']['name']}/adapter_config.json"
                lines.append(f"# An rsLoRA: llama.cpp needs lora_alpha {alpha:.9g} in {of}")
            lines.append(command(*beside_words(name, Path(path).name, made)))
        about["commands"][self.name] = lines
        if matrix:
            about["imatrix"] |= {
                "file": f"results/{name}/{matrix}",
                # The hash of the text; of the imatrix itself if it was not computed here.
                "sha256": imatrix.inputs.get("corpus", imatrix.sha256) if imatrix else None,
                # What its text did not reach of a mixture's experts (check_imatrix.py).
                "experts": imatrix.notes.get("experts", {}).get("says") if imatrix else None,
            }

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        folder, parts = row["folder"], len(row["shards"])
        shown = f"{folder}/" if repo else f"[{folder}/]({folder}/)"
        if not row["whole"]:
            return f"{row['form'].name} in {parts} parts: {shown}"
        how = f"in {parts} parts" if parts else "as shards"
        also = f", also {how}: {shown}" if parts or row["sharded"] else ""
        return f"[{row['name']}]({row['path']}){also}"

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        what = row["name"] if row["whole"] else f"{row['folder']}/*"
        return f'hf download {repo} --include "{what}" --local-dir .'

    def tags_of(self, about: dict[str, Any]) -> list[str]:
        return ["imatrix"] if about["imatrix"] else []

    def _target(self, row: dict[str, Any]) -> str:
        return row["path"] if row["whole"] else f"{row['folder']}/{row['shards'][0]}"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        target, form = self._target(row), row["form"].name
        source = about["bases"][0]["reference"] if about["bases"] else about["model"]
        full = about["repos"].get("safetensors") or source
        if repo:
            tagged = not row["whole"] or taken_by_tag(form, row["files"]) == row["name"]
            llama = f"llama-cli -hf {repo}" + (f":{form}" if tagged else f" -hff {row['name']}")
            ollama = f"ollama run hf.co/{repo}:{form}"
            studio = f"lms get https://huggingface.co/{repo}@{form}"
        else:
            llama, model = f"llama-cli -m {target}", about["model"].lower()
            ollama = f'echo "FROM ./{target}" > Modelfile && ollama create {model} -f Modelfile'
            studio = f"lms import {target}"
        return [
            *("# llama.cpp", llama, "# Ollama", ollama, "# LM Studio", studio),
            "# vLLM, with its GGUF plugin; the tokenizer is taken from the full weights",
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

    def beside(
        self, files: list[tuple[Any, str]], row: dict[str, Any], repo: str | None
    ) -> list[str]:
        model, lines = self._target(row), []
        for each, size in files:
            kind, name = each.what.split(" ", 1)
            file = PurePosixPath(each.file)
            path = file.name if repo else "/".join(file.parts[2:])
            says, words, found = {
                "lora": (f"the LoRA adapter {name}", ["--lora", path], ""),
                "mmproj": ("the projector, for images or sound", ["--mmproj", path], "by itself"),
                "mtp": (
                    "a draft of what the model writes, for more speed",
                    ["-md", path, *DRAFTING],
                    f"with `{command(*DRAFTING)}`",
                ),
            }[kind]
            used = f"`{command('llama-server', '-m', model, *words)}`"
            found = f"; `-hf` finds it {found}" if found and repo else ""
            lines.append(f"[{file.name}]({path}) ({size}), {says}: {used}{found}")
        return lines

    def calibration(self, about: dict[str, Any]) -> str:
        matrix = about["imatrix"]
        if not matrix:
            return ""
        file = PurePosixPath(matrix["file"]).name
        link = f"Importance matrix: [{file}]({file})"
        experts = f"\n{matrix['experts']}" if matrix.get("experts") else ""
        if "corpus" not in matrix:
            return f"{link} (sha256 `{matrix['sha256']}`), which was not computed here.{experts}"
        return (
            f"{link}, from the text\n{text_named(matrix)}, "
            f"{matrix['chunks'] or 'all'} chunks of {matrix['context']} tokens.{experts}"
        )


def taken_by_tag(tag: str, files: list[str]) -> str | None:
    """The file of a repository that llama.cpp's `-hf REPO:TAG` takes (b10605, find_best_model).

    It is the first, by name, in which `.` or `-` follows the tag, which may be the end of a longer
    word: F16 finds BF16. files: names of quants, and of the unquantized GGUF. None: it finds none.
    """
    asked = re.compile(f"{re.escape(tag)}[.-]", re.IGNORECASE)
    return next(filter(asked.search, sorted(files)), None)


def beside_words(name: str, file: str, made: Record) -> list[str]:
    """The command that made what lies beside. name: the model's. made: the file's record."""
    options = made.recipe["options"]
    if adapter := options.get("name"):
        words = ["convert_lora_to_gguf.py", adapter, "--base", name, "--outtype", "f16"]
    else:
        kind = f"--{made.recipe['step']}"
        words = ["convert_hf_to_gguf.py", name, kind, "--outtype", options["outtype"]]
        words += ["--model-name", name]
    return ["python", *words, "--outfile", file]


def quantize_words(quant: str, made: Record, origins: Origins) -> tuple[list[str], str]:
    """The flags of llama-quantize that made a quant, without the imatrix; the type it is called by.

    made: its record.
    """
    options = made.recipe["options"]
    if made.recipe["step"] != MIXED:
        return quantize_flags(options), options["type"]
    mix = Path(origins.inputs_in("mix")[quant])
    return ["--tensor-type-file", f"mixes/{mix.name}"], called(read_mix(mix))


def perplexity_commands(
    name: str, gguf: str, text: str, measured: Record, quants: dict[str, Record]
) -> list[str]:
    """The commands that compute base logits, and that compare each quant with them.

    name: the model's. gguf: the file of its conversion. text: the corpus's name.
    measured: the record of the base logits. quants: {quant: its record}.
    """
    options, base = measured.recipe["options"], ["--kl-divergence-base", "base.kld"]
    words = ["--model", gguf, "--file", f"{text}.txt", *context_flags(options)]
    size = str(options["context"])
    lines = [command("llama-perplexity", *words, *base)]
    for quant in quants:
        words = ["--model", f"{name}-{quant}.gguf", "--ctx-size", size]
        lines.append(command("llama-perplexity", *words, *base, "--kl-divergence"))
    return lines
