"""Print about.json (see card.py) for a model card, from its wanted recipe and the records."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from lib import recipe as recipes
from lib.flags import context_flags, imatrix_flags, quantize_flags
from lib.recipe import Record


def describe(options: dict[str, Any]) -> dict[str, Any]:
    """What card.py takes: what the config says, and what the records tell of the build."""
    about, name = options["about"], options["model"]
    records = {
        form: record
        for form, described in options["forms"].items()
        if (record := recipes.read(described["file"]))
    }
    merge = recipes.read(f"results/{name}/safetensors")
    about["tokenizer"] = options["weights"]
    about["versions"] = {
        tool: version
        for record in [*filter(None, [merge]), *records.values()]
        for tool, version in record.recipe["tools"].items()
    }
    about["commands"] = {"merge": [], "gguf": [], "exl2": []}
    if about["merge"]:
        seed = str(about["random_seed"])
        about["commands"]["merge"] = [
            line("mergekit-yaml", "merge.yaml", name, "--random-seed", seed)
        ]
    if about.get("imatrix"):
        about["imatrix"] |= imatrix(name, about["imatrix"]["format"])
    if about.get("exl2"):
        made = [r for r in records.values() if r.recipe["step"] == "exl2_quantize"]
        about["exl2"]["sha256"] = made[0].inputs.get("corpus") if made else None
    about["commands"]["gguf"] = gguf_commands(name, about, records)
    about["commands"]["exl2"] = exl2_commands(name, about, records)
    limit = about["max_file_size"] or float("inf")
    about["too_large"] = [form for form, record in records.items() if record.bytes > limit]
    about["shards"] = {
        form: sorted(shards.files)
        for form in records
        if (shards := recipes.read(f"results/{name}/shards/{form}"))
        if len(shards.files) > 1 or form in about["too_large"]
    }
    return about


def imatrix(name: str, kind: str) -> dict[str, Any]:
    """The file, and the hash of the calibration text or of the file itself, from the record."""
    path = f"results/{name}/imatrix.{kind}"
    record = recipes.read(path)
    # Of one that was not computed here, the hash is its own.
    sha = record.inputs.get("corpus", record.sha256) if record else None
    return {"file": path, "sha256": sha}


def line(*words: str) -> str:
    return shlex.join(words)


def gguf_commands(name: str, about: dict[str, Any], records: dict[str, Record]) -> list[str]:
    """The tools' command lines, in a directory that holds all files."""
    commands = []
    converted = {
        form: record
        for form, record in records.items()
        if record.recipe["step"] in ("convert", "source_gguf")
    }
    for form, record in converted.items():
        gguf = f"{name}-{form}.gguf"
        if record.recipe["step"] == "convert":
            outtype = record.recipe["options"]["outtype"]
            commands.append(
                line("python", "convert_hf_to_gguf.py", name, "--outtype", outtype)
                + " "
                + line("--model-name", name, "--outfile", gguf)
            )
        matrix = f"imatrix.{about['imatrix']['format']}" if about.get("imatrix") else None
        made = recipes.read(f"results/{name}/{matrix}") if matrix else None
        if made and made.recipe["step"] == "imatrix":
            text = f"{about['imatrix']['corpus']}.txt"
            flags = imatrix_flags(made.recipe["options"])
            commands.append(
                line("llama-imatrix", "--model", gguf, "--file", text, *flags)
                + " "
                + line("--output-format", about["imatrix"]["format"], "--output-file", matrix)
            )
        for quant, record in records.items():
            if record.recipe["step"] == "quantize":
                options = record.recipe["options"]
                used = ["--imatrix", matrix] if "imatrix" in record.recipe["inputs"] else []
                flags = [*used, *quantize_flags(options)]
                target = f"{name}-{quant}.gguf"
                commands.append(line("llama-quantize", *flags, gguf, target, options["type"]))
        if measured := recipes.read(f"results/{name}/evaluation/base.kld"):
            flags = context_flags(measured.recipe["options"])
            text = f"{about['evaluation']}.txt"
            commands.append(
                line("llama-perplexity", "--model", gguf, "--file", text, *flags)
                + " --kl-divergence-base base.kld"
            )
            size = str(measured.recipe["options"]["context"])
            commands += [
                line("llama-perplexity", "--model", f"{name}-{quant}.gguf", "--ctx-size", size)
                + " --kl-divergence-base base.kld --kl-divergence"
                for quant, record in records.items()
                if record.recipe["step"] == "quantize"
            ]
    return commands


def exl2_commands(name: str, about: dict[str, Any], records: dict[str, Record]) -> list[str]:
    made = {f: r for f, r in records.items() if r.recipe["step"] == "exl2_quantize"}
    measured = recipes.read(f"results/{name}/exl2/measurement.json")
    if not made or measured is None:
        return []
    tool = ("python", "-m", "exllamav2.conversion.convert_exl2", "-i", name, "-o", "work", "-nr")
    corpus = about["exl2"]["corpus"] if about.get("exl2") else "default"
    text = [] if corpus == "default" else ["-c", f"{corpus}.parquet"]
    options = next(iter(made.values())).recipe["options"]
    rope = [
        word
        for key, flag in (("rope_scale", "-rs"), ("rope_alpha", "-ra"))
        if options.get(key)
        for word in (flag, str(options[key]))
    ]
    commands = []
    if measured.recipe["step"] == "exl2_measure":
        options = measured.recipe["options"]
        rows = ["-mr", str(options["measurement_rows"]), "-ml", str(options["measurement_length"])]
        commands.append(line(*tool, "-om", "measurement.json", *rows, *rope, *text))
    for form, record in made.items():
        options = record.recipe["options"]
        flags = ["-b", str(options["bits"]), "-hb", str(options["head_bits"])]
        flags += ["-r", str(options["rows"]), "-l", str(options["length"])]
        flags += ["-ss", str(options["shard_size"]), *rope, *text]
        commands.append(line(*tool, "-m", "measurement.json", *flags, "-cf", f"{name}-{form}"))
    return commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", type=Path, help="the wanted recipe of the card")
    wanted = json.loads(parser.parse_args().wanted.read_text())
    print(json.dumps(describe(wanted["recipe"]["options"]), indent=1))


if __name__ == "__main__":
    main()
