"""Write config/schema.json and the tables of keys in config/README.md.

Both are made from the pydantic models of the config (scripts/lib/config/schema.py and the sections
of families); nothing else is read but config/README.md, whose text around the tables is kept.

    python dev/config_docs.py            # write both
    python dev/config_docs.py --check    # write nothing; exit status 1 if a file would change
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.config.schema import Config, Options
from lib.errors import UserError, program
from lib.formats.quants import QUANT_TYPES, TENSOR_BITS
from lib.keys.section import Section, within

CONFIG_DIRECTORY = Path(__file__).resolve().parent.parent / "config"
BEGIN = "<!-- keys: made by dev/config_docs.py, do not edit -->"
END = "<!-- keys end -->"


def schema() -> dict[str, Any]:
    """The config's JSON schema, for editors and for programs that write configs."""
    document = Config.model_json_schema(mode="validation")
    # By default pydantic spells a title for every key, which says nothing that the key does not.
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_without_titles(document),
        "title": "Quantmill configuration",
    }


def places(section: type[Section], at: str = "") -> Iterator[tuple[str, str]]:
    """(name of a section's pydantic model, its key path), each before the sections in it."""
    yield section.__name__, f"`{at}`" if at else "Top level"
    for key, field in section.model_fields.items():
        if found := within(field.annotation):
            many = {dict: ".NAME", list: "[]"}.get(get_origin(field.annotation), "")
            yield from places(found, f"{at}.{key}{many}".lstrip("."))


def _without_titles(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_titles(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    titled = isinstance(value.get("title"), str)
    return {k: _without_titles(v) for k, v in value.items() if not (titled and k == "title")}


def tables() -> str:
    """Markdown: for each section of the config a heading, a sentence and a table of its keys."""
    document = schema()
    options = _without_titles(Options.model_json_schema(mode="validation"))
    sections = {"Config": document, **document["$defs"], "Options": options}
    parts = []
    found: dict[str, str] = {}
    for name, place in places(Config):
        found.setdefault(name, place)  # one that stands in two places is told at the first
    found |= {"Options": "On the command line: `--config KEY=VALUE`"}
    for name, place in found.items():
        section = sections[name]
        rows = [
            f"| `{key}` | {_kind(value)} | {_default(key, section)} | {_description(value)} |"
            for key, value in section["properties"].items()
        ]
        head = "| key | value | default | |\n| --- | --- | --- | --- |"
        introduction = " ".join(section["description"].split())
        parts.append("\n".join([f"### {place}", "", introduction, "", head, *rows, ""]))
        if name == "Quant":
            parts.append(_types())
    return "\n".join(parts)


def _types() -> str:
    """The quant types and tensor types, as Markdown."""
    types = [name for name, entry in QUANT_TYPES.items() if not entry.alias_of]
    needing = [name for name in types if QUANT_TYPES[name].needs_imatrix]
    return (
        f"Quant types: {', '.join(types)}. An imatrix is needed for {', '.join(needing)}. "
        "MXFP4_MOE is for mixtures of experts only.\n\n"
        f"Tensor types: {', '.join(TENSOR_BITS)}.\n"
    )


def _kind(value: dict[str, Any]) -> str:
    """A key's type in words."""
    if "anyOf" in value or "oneOf" in value:
        kinds = [_kind(entry) for entry in value.get("anyOf") or value["oneOf"]]
        kinds = [kind for kind in dict.fromkeys(kinds) if kind != "null"]
        if "`on`" in kinds[-1]:  # true and false are YAML's names for on and off
            kinds = kinds[-1:]
        return " or ".join(kinds)
    if "enum" in value:
        return " ".join(f"`{entry}`" for entry in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if value.get("type") == "array":
        items = value.get("items", {})
        return "list" if items == {} else f"list of {_kind(items)}"
    if value.get("type") in ("integer", "number"):
        low, high = value.get("minimum"), value.get("maximum")
        noun = "whole number" if value["type"] == "integer" else "number"
        if low is None:
            return noun
        return f"{noun}, at least {low}" if high is None else f"{noun}, {low} to {high}"
    names = {"string": "text", "boolean": "true or false", "object": "mapping"}
    kind = "object" if "$ref" in value else value.get("type", "anything")
    return names.get(kind, kind)


def _default(key: str, section: dict[str, Any]) -> str:
    if key in section.get("required", []):
        return "required"
    default = section["properties"][key].get("default")
    return "" if default in (None, "", [], {}) else f"`{json.dumps(default)}`".replace('"', "")


def _description(value: dict[str, Any]) -> str:
    return " ".join(value["description"].split()).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    arguments = parser.parse_args()
    readme = CONFIG_DIRECTORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme}: it has no place for the tables: lines {BEGIN} and {END}")
    wanted = {
        CONFIG_DIRECTORY / "schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        readme: f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}",
    }
    for path, content in wanted.items():
        if not arguments.check:
            path.write_text(content, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            raise UserError(
                f"{path}: not in step with scripts/lib/config/schema.py; run dev/config_docs.py"
            )


if __name__ == "__main__":
    program(main)
