"""Print about.json for a model card: the JSON that card.py takes as --about.

It says what the config says of the card (the options of its recipe), and what the records tell of
the build. `card.py --help` lists its keys.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from lib.cards.lines import command
from lib.cards.registry import LINES
from lib.errors import program
from lib.record.origins import Origins
from lib.record.recipe import MADE_FROM, ONLY_MADE_FROM, Record
from lib.record.wanted import WantedRecipe


def describe(wanted: WantedRecipe) -> dict:
    """The content of about.json, from the wanted recipe of a card and the records."""
    options, origins = wanted.recipe["options"], Origins(wanted)
    about = options["about"]
    found = {form: origins.record(said["file"]) for form, said in options["forms"].items()}
    records = {form: record for form, record in found.items() if record}
    mixed = about.get("moe") is not None
    merge = origins.record(options["weights"]) if about["merge"] or mixed else None
    about["commands"] = {"merge": []}
    seed = ["--random-seed", str(about.get("random_seed"))]
    if mixed:
        words = ["mergekit-moe", "moe.yaml", options["model"]]
        about["commands"]["merge"].append(command(*words, *seed))
    if about["merge"]:
        words = ["mergekit-yaml", "merge.yaml", options["model"]]
        about["commands"]["merge"].append(command(*words, *seed))
    made = {"the mixture" if mixed else "the merge": merge} if merge else {}
    told = {f: r for f, r in records.items() if about.get("form") in (None, f)}
    for name in about["families"]:
        own = {f: r for f, r in told.items() if options["forms"][f]["family"] == name}
        LINES[name].describe(about, own, origins)
        made |= own
    steps = {name: record.recipe["step"] for name, record in made.items()}
    if about.get("imatrix"):
        steps |= {"the importance matrix": "imatrix" if "corpus" in about["imatrix"] else ""}
    about["steps"] = steps
    about["versions"] = versions(made.values())
    about["accepted"] = accepted(made, origins)
    about["tokenizer"] = with_tokenizer(origins, options["forms"])
    limit = about["max_file_size"] or float("inf")
    about["too_large"] = [form for form, record in records.items() if record.bytes > limit]
    shards = {form: origins.record(path) for form, path in origins.inputs_in("shards").items()}
    about["shards"] = {
        form: sorted(record.files)
        for form, record in shards.items()
        if record and (len(record.files) > 1 or form in about["too_large"])
    }
    return about


def versions(records: Iterable[Record]) -> dict[str, str]:
    """{tool: version} by which the artifacts were really made; "A and B" for several versions."""
    found: dict[str, dict[str, None]] = {}  # each version once
    for record in records:
        for tool, version in record.recipe["tools"].items():
            found.setdefault(tool, {})[version] = None
    return {tool: " and ".join(known) for tool, known in found.items()}


def accepted(made: dict[str, Record], origins: Origins) -> list[dict]:
    """[{names, by, at, differs}]: what was accepted although code or tools had changed.

    made: {name: record}. Artifacts of the same reasons share an entry.
    """
    found: dict[str, dict] = {}
    for name, record in made.items():
        if not record.accepted or record.digest in origins.digests:
            continue
        entry = record.accepted[-1]
        own = [line for line in entry["differs"] if not line.startswith(MADE_FROM)]
        said = {"by": entry["by"], "at": entry["at"], "differs": own or [ONLY_MADE_FROM]}
        found.setdefault(json.dumps(said), said | {"names": []})["names"].append(name)
    return list(found.values())


def with_tokenizer(origins: Origins, forms: dict[str, dict]) -> str | None:
    """The path of an input that has the chat template: a form, else the model; None if none has.

    forms: {form: {family, …}}, an option of the recipe.
    """
    inputs = origins.inputs_in("form").items()
    places = [path for form, path in inputs if LINES[forms[form]["family"]].has_tokenizer]
    return next(iter(places), origins.inputs.get("model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "wanted",
        type=Path,
        help="the wanted recipe of the card, JSON that the plan leaves: {artifact, outputs, "
        "directory, links, rule, digest, recipe, inputs, left}; recipe.options is {model, weights, "
        "about, forms: {form: {family, quantized, file, type, imatrix}}}, inputs is {role: [path, "
        "digest]}",
    )
    print(json.dumps(describe(WantedRecipe.read(parser.parse_args().wanted)), indent=1))


if __name__ == "__main__":
    program(main)
