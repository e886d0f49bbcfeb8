"""Write a model's card: what it is, which file to take, how good it is, how it was made.

--forms   JSON, which scripts/describe_forms.py prints; lib/report/judge.py tells what it holds
--about   JSON, which scripts/describe_card.py prints; only `model` and `families` must be there:

    model          name
    families       names of lib/cards/registry.py, a section each; the card of a repository has one
    merge          mergekit configuration as the user wrote it; null where it is no merge
    source         the reference that is quantized, where it is no merge
    bases          [{reference, hub: "org/name" or null, commit, license, license_name,
                   license_link, language}]: every model at the leaves of the tree
    repos          {family: "org/name"}: where it is published, or a list of names. A card whose family is not among
                   them is that of results/MODEL/: its links lead to what lies there
    form           the one form that the repository holds (5.0bpw), where each has its own
    publish        {license, license_name, license_link, language, tags, quantized_by} of the config
    imatrix        {file, corpus, sha256, chunks, context}, without corpus where it was not computed
                   here, or null
    FAMILY         what else the lines of a family read; its module in lib/cards tells what
    shards         {form: [file names]} of the forms that there are as shards (too)
    sharded        [forms of which there are shards], where the card does not count them
    too_large      [forms that are published as shards alone]
    commands       {merge and each family: [command lines, in the order in which they were run]}
    versions       {tool: version}
    accepted       [{names, by, at, differs: [a line each]}]: forms that were taken as they are
                   although code or tools had changed (`snakemake accept`)
    tokenizer      a GGUF file, or a model directory, with the chat template
    plot           the plot, as a path from the card
    recipes        directory of the recipes in the repository; null where they lie beside the files
    hidden         [forms that are not listed]
    template       a jinja2 template of the user's own, or null

The same input gives the same bytes.
"""

import argparse
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lib.cards.lines import Lines
from lib.cards.registry import LINES
from lib.errors import UserError, program
from lib.formats import chat, fallbacks
from lib.formats.json_file import read_json
from lib.hub import license as licenses
from lib.hub.license import License
from lib.report import judge as judge
from lib.report.figures import decimal, places, scaled, size_text
from lib.report.judge import Figure, ModelForms
from lib.report.looks import Look, Looks

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
# What a template gets of --about as it is.
ABOUT = ("merge", "source", "versions", "plot", "recipes")
SAMPLE = (("system", "{system_prompt}"), ("user", "{prompt}"))


def front_matter(about: dict[str, Any], looks: Looks) -> dict[str, Any]:
    """What the hub reads of the card."""
    families = [looks[name] for name in about["families"]]
    publish, repos = about.get("publish") or {}, about.get("repos") or {}
    merged = about.get("merge") is not None
    bases = [base["hub"] for base in about.get("bases") or [] if base.get("hub")]
    relation = "merge" if merged else "quantized"
    quantized = any(family.has_quants for family in families)
    if merged and quantized and repos.get("safetensors"):
        bases, relation = [repos["safetensors"]], "quantized"
    verdict = license_of(about)
    facts: dict[str, Any] = {}
    if bases:
        facts |= {"base_model": list(dict.fromkeys(bases)), "base_model_relation": relation}
    facts["license"] = verdict.license.id
    if verdict.license.id == "other":
        facts["license_name"] = verdict.license.name or licenses.UNKNOWN
        if verdict.license.link:
            facts["license_link"] = verdict.license.link
    if languages := languages_of(about):
        facts["language"] = languages
    facts |= {"library_name": families[0].library, "pipeline_tag": "text-generation"}
    tags = [tag for family in families for tag in family.tags]
    tags += ["mergekit", "merge"] if merged else []
    tags += [tag for name in about["families"] for tag in LINES[name].tags_of(about)]
    facts["tags"] = list(dict.fromkeys([*tags, "quantmill", *(publish.get("tags") or [])]))
    if publish.get("quantized_by") and quantized:
        facts["quantized_by"] = publish["quantized_by"]
    return facts


def license_of(about: dict[str, Any]) -> licenses.Combined:
    """The license over all bases, or the config's."""
    publish = about.get("publish") or {}
    given = licenses.of_facts(publish)
    bases = about.get("bases") or []
    return licenses.combine({base["reference"]: licenses.of_facts(base) for base in bases}, given)


def languages_of(about: dict[str, Any]) -> list[str]:
    """The config's languages; else those of all bases."""
    found = (about.get("publish") or {}).get("language")
    if not found:
        found = []
        for base in about.get("bases") or []:
            value = base.get("language") or []
            found += [value] if isinstance(value, str) else value
    return sorted(set(found))


def prompt_format(source: str | None, tokens: dict[str, str]) -> str | None:
    """The chat template `source` applied to a system and a user message; None where there is none.

    tokens: the special tokens by name. A template that refuses a system message is shown without.
    """
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    # Templates print the date; the card is the same every day.
    environment.globals["strftime_now"] = lambda _: "{date}"
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    for first in (0, 1):
        messages = [{"role": role, "content": text} for role, text in SAMPLE[first:]]
        try:
            return environment.from_string(source).render(
                messages=messages, add_generation_prompt=True, **tokens
            )
        except jinja2.TemplateError:
            continue
    return None


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def rows(model: ModelForms, family: Lines, about: dict[str, Any]) -> list[dict[str, Any]]:
    """A family's table of files, the smallest first; paths as they are from the card."""
    hidden, repo = about.get("hidden") or [], (about.get("repos") or {}).get(family.name)
    forms = [f for f in model.forms if f.family == family.name and f.name not in hidden]
    columns = {
        "kld": texts([form.kld for form in forms], 6),
        "same_top": texts([scaled(form.same_top, 100) for form in forms], 3, " %"),
        "perplexity": texts([form.perplexity for form in forms], 3),
    }
    found = []
    for index, form in enumerate(forms):
        file = PurePosixPath(form.file)
        folder = file.name.removesuffix(".gguf") if repo else f"shards/{form.name}"
        branch = "main" if about.get("form") else family.branch(form.name)
        found.append(
            {
                "form": form,
                "name": file.name,
                "path": file.name if repo else form.file.removeprefix(f"results/{model.name}/"),
                "branch": branch,
                "directory": f"{model.name}-{form.name if branch == 'main' else branch}",
                "shards": (about.get("shards") or {}).get(form.name) or [],
                "sharded": form.name in (about.get("sharded") or []),
                "whole": form.name not in (about.get("too_large") or []),
                "folder": folder,
                "size": size_text(form.bytes, forms),
                "bits": "" if form.bits_per_weight is None else f"{form.bits_per_weight:.2f}",
                **{name: cells[index] for name, cells in columns.items()},
            }
        )
    for row in found:
        row["link"] = family.link(row, repo)
    return found


def texts(figures: list[Figure], most: int, unit: str = "") -> list[str]:
    """A column of figures with their errors, `most` decimals at most; empty if not measured."""
    cells = []
    for figure, digits in zip(figures, places(figures, most), strict=True):
        if figure.value is None:
            cells.append("")
            continue
        error = f" ± {decimal(figure.error, digits)}" if figure.error else ""
        cells.append(f"{decimal(figure.value, digits)}{error}{unit}")
    return cells


def by_memory(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For the usual sizes of memory, the row of the best form that fits; equal answers are one."""
    found = []
    for sizes, (best,) in judge.by_memory([[row["form"] for row in table]]):
        row = next((row for row in table if row["form"] is best), None)
        found.append({"memory": judge.memory_text(sizes), "row": row})
    return found


def section(model: ModelForms, look: Look, about: dict[str, Any]) -> dict[str, Any]:
    """What a card says of one family."""
    family = LINES[look.name]
    table, repo = rows(model, family, about), (about.get("repos") or {}).get(family.name)
    choices = by_memory(table) if table else []
    first = next(
        (choice["row"] for choice in choices if choice["row"]), table[0] if table else None
    )
    usable = first is not None or not look.has_quants
    forms = [row["form"] for row in table]
    return {
        "title": look.title,
        "heading": family.heading(repo),
        "repo": repo,
        "rows": table,
        "by_memory": choices,
        "conditions": sorted({form.conditions for form in forms if form.conditions}, key=str),
        "fallbacks": fallbacks.sentence({form.name: form.fallbacks for form in forms}),
        "twins": judge.twin_lines(forms),
        "download": [family.download(row, repo, about["model"]) for row in table or [None]]
        if repo and usable
        else [],
        "run": family.run(first, repo, about) if usable else [],
        "run_note": family.run_note(first, repo) if first else "",
        "calibration": family.calibration(about),
        "commands": (about.get("commands") or {}).get(family.name) or [],
    }


def render(model: ModelForms, about: dict[str, Any], template: Path, looks: Looks) -> str:
    """The card as Markdown."""
    families = [looks[name] for name in about["families"]]
    sections = [section(model, family, about) for family in families]
    first = sections[0]
    repos = dict.fromkeys(LINES) | (about.get("repos") or {})
    elsewhere = [
        (looks[name].title, place)
        for name in LINES
        if repos[name] and name not in about["families"]
        for place in ([repos[name]] if isinstance(repos[name], str) else repos[name])
    ]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["yaml"] = lambda value: yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=100
    )
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        front_matter=front_matter(about, looks),
        kind=about["families"][0],
        name=about["model"],
        phrase=" and".join(family.phrase for family in families),
        repos=repos,
        repo=first["repo"],
        elsewhere=elsewhere,
        sections=sections,
        **{key: first[key] for key in ("rows", "by_memory", "conditions")},
        reference=model.reference,
        verdict=license_of(about),
        prompt=prompt_format(*chat.read(Path(about["tokenizer"])))
        if about.get("tokenizer")
        else None,
        commands=[
            *((about.get("commands") or {}).get("merge") or []),
            *(line for section in sections for line in section["commands"]),
        ],
        bases=[described(base) for base in about.get("bases") or []],
        accepted=about.get("accepted") or [],
        **{
            key: about.get(key)
            for key in (*ABOUT, *(key for lines in LINES.values() for key in lines.reads))
        },
    )
    return tidy(text)


def tidy(text: str) -> str:
    """At most one empty line in a row, but for code blocks, which stay as they are."""
    parts = text.split("```")
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", part) for part in parts[::2]]
    return "```".join(parts)


def described(base: dict[str, Any]) -> dict[str, Any]:
    """A model that this is made from, with what the template says of it."""
    found = licenses.of_facts(base) or License(licenses.UNKNOWN)
    return {"hub": None, "commit": None, **base, "license": found.label, "link": found.link}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", type=Path, required=True, help="forms.json")
    parser.add_argument("--about", type=Path, help="without it the card tells of the forms alone")
    parser.add_argument(
        "--families",
        type=Path,
        help="JSON, as describe_families.py prints it; without it families"
        " are called by their keys",
    )
    parser.add_argument(
        "--template", type=Path, default=TEMPLATE, help="used where --about names no other"
    )
    parser.add_argument("--output", type=Path, required=True, help="the card to write")
    args = parser.parse_args()
    template = args.template
    try:
        looks = Looks.read(args.families)
        model = judge.read(args.forms, looks)
        families = dict.fromkeys(form.family for form in model.forms) or ["safetensors"]
        about = {"model": model.name, "families": list(families)}
        if args.about:
            about = read_json(args.about)
        template = Path(about.get("template") or template)
        if not template.is_file():
            raise UserError(f"{template}: there is no such template")
        args.output.write_text(render(model, about, template, looks), encoding="utf-8")
    except jinja2.TemplateError as error:
        line = f" line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise UserError(f"{template}{line}: {error}") from None


if __name__ == "__main__":
    program(main)
