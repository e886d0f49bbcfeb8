"""Print forms.json (see lib/forms.py) for a model's report and card, from the wanted recipe and the records on disk."""

import argparse
import json
import sys
from pathlib import Path

from lib import recipe as recipes

KINDS = {
    "convert": "unquantized",
    "source_gguf": "unquantized",
    "merge": "unquantized",
    "quantize": "gguf",
    "exl2_quantize": "exl2",
}


def describe(wanted: dict) -> dict:
    """The model's forms with their sizes and where their evaluations are."""
    options = wanted["recipe"]["options"]
    name = options["model"]
    forms, conditions = [], {}
    parameters = parameters_of(options["weights"])
    for form, about in options["forms"].items():
        record = recipes.read(about["file"])
        if record is None:
            sys.exit(f"{about['file']}: its recipe is missing; run the same command again")
        evaluation = f"results/{name}/evaluation/{form}.json" if about["evaluation"] else None
        if evaluation:
            measured = json.loads(Path(evaluation).read_text())
            conditions = {key: measured[key] for key in ("corpus", "context", "chunks")}
        if KINDS[about["rule"]] == "unquantized" and about["file"].endswith(".gguf"):
            parameters = record.notes.get("parameters", parameters)
            # A file of the user's own was not made here: what measured it tells the version.
            if about["rule"] == "source_gguf":
                record_of_tool = recipes.read(evaluation) if evaluation else None
            else:
                record_of_tool = record
            if record_of_tool:
                version = record_of_tool.recipe["tools"]["llama.cpp"]
                conditions["reference"] = f"llama.cpp {version}"
        forms.append(
            {
                "form": form,
                "kind": KINDS[about["rule"]],
                "file": about["file"],
                "bytes": record.bytes,
                "type": about.get("type"),
                "imatrix": about.get("imatrix"),
                "evaluation": evaluation,
            }
        )
    return {"model": name, "parameters": parameters, **conditions, "forms": forms}


def parameters_of(weights: str) -> int | None:
    """The number of parameters that was counted when the weights were made or linked."""
    record = recipes.read(weights)
    return record.notes.get("parameters") if record else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", type=Path, help="the wanted recipe")
    print(json.dumps(describe(json.loads(parser.parse_args().wanted.read_text())), indent=1))


if __name__ == "__main__":
    main()
