"""Print forms.json for a model's report and card: the JSON that report.py and card.py read.

It is made from the wanted recipe, the evaluations, the GGUFs' headers and the records. Its keys are
model, parameters, trained, corpus, context, chunks, reference, harness, beside, and forms, a list
of {form, family, quantized, file, bytes, sha256, type, imatrix, fallbacks, preset, mix, memory,
evaluation, also, tasks}; `card.py --help` says what each means.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lib.errors import UserError, program
from lib.formats import fallbacks
from lib.formats.gguf_file import read_gguf
from lib.formats.memory import CONTEXTS, Shape, shape_of
from lib.mixes.files import read_mix
from lib.record import cold
from lib.record.origins import Origins
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe


def describe(wanted: WantedRecipe) -> dict:
    """The content of forms.json, from the wanted recipe of a report or a card.

    An intermediate that has no record any more is left out. Raises UserError if the record of
    another form is missing.
    """
    options, origins = wanted.recipe["options"], Origins(wanted)
    inputs = origins.inputs_in("form")
    evaluations = origins.inputs_in("evaluation")
    also, tasks = (by_form(origins.inputs_in(role)) for role in ("also", "task"))
    forms, conditions, parameters = [], {}, None
    mixes = origins.inputs_in("mix")
    shapes = shapes_of({form: about for form, about in options["forms"].items() if form in inputs})
    for form, about in options["forms"].items():
        record = origins.record(about["file"])
        if record is None:
            if form in inputs:
                raise UserError(
                    f"{about['file']}: its recipe is missing; run the same command again"
                )
            continue
        evaluated = origins.record(evaluations[form]) if form in evaluations else None
        if evaluated:
            measured = json.loads(Path(evaluations[form]).read_text())
            conditions |= {key: measured[key] for key in ("corpus", "context", "chunks")}
        if not about["quantized"] and "parameters" in record.notes:
            parameters = record.notes["parameters"]
            # A file of the user's own was made elsewhere: what has measured it tells the version.
            tools = record.recipe["tools"] or (evaluated.recipe["tools"] if evaluated else {})
            if version := tools.get("llama.cpp"):
                conditions["reference"] = f"llama.cpp {version}"
        forms.append(
            {
                "form": form,
                "family": about["family"],
                "quantized": about["quantized"],
                "file": about["file"],
                "bytes": record.bytes,
                "sha256": record.sha256,
                "type": about.get("type"),
                "imatrix": about.get("imatrix"),
                "fallbacks": fallbacks_of(record),
                "preset": record.recipe["options"].keys() == {"type"},
                "mix": mix_of(mixes[form], options["model"], origins) if form in mixes else None,
                "memory": memory_of(record.bytes, shapes.get(about["family"])),
                "evaluation": evaluations.get(form),
                "also": also.get(form, {}),
                "tasks": tasks.get(form, {}),
            }
        )
    if parameters is None and (record := origins.record(options["weights"])):
        parameters = record.notes.get("parameters")  # counted when the weights were made or linked
    trained = next((shape.trained for shape in shapes.values()), None)
    facts = {"model": options["model"], "parameters": parameters, "trained": trained}
    beside = [
        {"what": what, "file": path, "bytes": record.bytes}
        for what, path in origins.inputs_in("beside").items()
        if (record := origins.record(path))
    ]
    more = {"forms": forms, "harness": origins.inputs_in("harness"), "beside": beside}
    return {**facts, **conditions, **more}


def by_form(inputs: dict[str, str]) -> dict[str, dict[str, str]]:
    """{form: {what it was measured on: path}}, from {"TEXT FORM": path}."""
    found: dict[str, dict[str, str]] = {}
    for name, path in inputs.items():
        measured, form = name.split(" ")
        found.setdefault(form, {})[measured] = path
    return found


def shapes_of(forms: dict[str, dict]) -> dict[str, Shape]:
    """The shape of the model as each family's engine sees it.

    forms: the entries of those that are inputs, by name; no other file may be read.
    """
    shapes: dict[str, Shape] = {}
    for about in forms.values():
        path = Path(about["file"])
        if about["family"] not in shapes and (shape := shape_of(cold.readable(path))):
            shapes[about["family"]] = shape
    return shapes


def memory_of(size: int, shape: Shape | None) -> dict[int, int]:
    """{context in tokens: bytes of memory} of a form of `size` bytes; empty if not known."""
    if shape is None:
        return {}
    contexts = {*CONTEXTS, min(shape.trained or CONTEXTS[0], CONTEXTS[0])}
    return {context: size + shape.beside_weights(context) for context in sorted(contexts)}


def mix_of(path: str, model: str, origins: Origins) -> dict:
    """What is told of a mix: its types, what was looked for, and what was found (its notes).

    {file, target: the options of its recipe, found: its notes, corpus: the text that its tensors
    were measured on, types: {tensor: type}}.
    """
    record = origins.record(path)
    measured = origins.record(f"results/{model}/sensitivity.json")
    return {
        "file": path,
        "target": record.recipe["options"],
        "found": record.notes,
        "corpus": measured.recipe["options"]["corpus"] if measured else None,
        "types": read_mix(Path(path)),
    }


def fallbacks_of(record: Record) -> dict | None:
    """{count, tensors, types, block}: a quant's tensors that have another type than asked for.

    None for a quant that has none, and for an artifact that has no `type`: only quants of
    llama-quantize have one.
    """
    options, with_imatrix = record.recipe["options"], "imatrix" in record.recipe["inputs"]
    if "type" not in options:
        return None
    found = fallbacks.found(read_gguf(cold.readable(Path(record.artifact))), options, with_imatrix)
    return found and asdict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "wanted",
        type=Path,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.options is {model, weights, forms: {form: "
        "{family, quantized, file, type, imatrix}}}, inputs is {role: [path, digest]}",
    )
    print(json.dumps(describe(WantedRecipe.read(parser.parse_args().wanted)), indent=1))


if __name__ == "__main__":
    program(main)
