"""Write a model's card: what it is, which file to take, how good it is, how it was made.

--forms is a JSON object, which scripts/describe_forms.py prints. `model` and `forms` are required,
and of each form `form`, `family`, `file` and `bytes`:

    model          the model's name
    parameters     number of weights
    trained        its longest context, in tokens
    reference      what the unquantized model was measured with: "llama.cpp b10605"
    corpus, context, chunks
                   the text of the evaluations, its tokens a chunk, its number of chunks
    forms          [{form, family, quantized, file, bytes, sha256, type, imatrix, fallbacks,
                   preset, mix, memory, evaluation, also, tasks}]: a form each. `preset` says
                   whether it is as llama-quantize makes it of a type. `mix` is null, or {file,
                   target, found, corpus, types} of how its tensors' types were found. `memory`
                   is {context in tokens: bytes}. `fallbacks` is {count, tensors, types, block} or
                   null: how many of its tensors have another type than asked for, and which types.
                   `evaluation` is the path of its JSON, as scripts/evaluate.py writes it, or null;
                   `also` is {text: path}, its evaluations on further texts, `tasks` {task: path}
    harness        {task: path}: what the model's own weights solve of tasks
    beside         [{what, file, bytes}]: files that are loaded beside a form of GGUF: "mmproj F16"
                   is a projector, "mtp Q8_0" a draft, "lora NAME" an adapter

--families is a JSON list, which a build leaves as .snakemake/quantmill/families.json: [{name,
title, order, phrase, library, tags, note, tag, colours, diamond, has_quants, bounds}]. `bounds` is
{rule: "anywhere", "this kind of machine" or "not reproducible"}: where what it makes has the same
bytes again.

--about is a JSON object, which scripts/describe_card.py prints. `model` and `families` are
required:

    model          the model's name
    families       [names of families], a section each; the card of a repository has one
    merge          the mergekit configuration as the user wrote it; null if the model is no merge
    moe            as `merge`, of a mixture of experts that mergekit-moe made
    source         the model that is quantized, as the config names it; null for a merge
    bases          [{reference, hub: "org/name" or null, commit, license, license_name,
                   license_link, language}]: the models from outside that it is made from
    repos          {family: "org/name", or a list of names}: where it is published. A card whose
                   family is not among them is that of results/MODEL/: its links lead to the files
                   there
    form           the form that the repository holds (5.0bpw), if each form has its own repository
    publish        {license, license_name, license_link, language, tags, quantized_by} of the config
    imatrix        {file, format, corpus, sha256, chunks, context, experts}, without corpus if it
                   was not computed here; null for a model without. `experts` is a sentence on those
                   of a mixture that the text did not reach, or null
    FAMILY         {corpus, rows, length, sha256} of the calibration, under the name of a family
                   that has its own; length in tokens
    shards         {form: [file names]}: the shards of each form that has them
    sharded        [forms that have shards], where the card does not list these
    too_large      [forms that are published as shards alone]
    commands       {"merge" and each family: [command lines, in the order in which they were run]}
    steps          {form, "the merge" or "the importance matrix": the rule that made it}
    versions       {tool: version}
    accepted       [{names, by, at, differs: [lines]}]: forms that were accepted as they are
                   although code or tools had changed (`snakemake accept`)
    tokenizer      a GGUF file, or a model directory, that has the chat template
    plot           the plot, as a path from the card
    recipes        the repository's directory of recipes; null if they lie beside the files
    hidden         [forms that are not listed]
    survivors      whether a form that a smaller one beats is not listed either
    template       a jinja2 template of the user's own, or null

The same input gives the same bytes.
"""

import argparse
import re
from dataclasses import astuple
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

from lib.cards.lines import Lines
from lib.cards.prompt import prompt_format
from lib.cards.registry import LINES
from lib.errors import UserError, program
from lib.formats import chat, fallbacks
from lib.formats.json_file import read_json
from lib.hub import license as licenses
from lib.hub.license import License
from lib.record import cold
from lib.report import judge, mixes
from lib.report.figures import decimal, places, scaled, size_text
from lib.report.judge import Figure, Form, ModelForms
from lib.report.looks import Look, Looks

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
# What a template gets of --about as it is.
ABOUT = ("merge", "moe", "source", "versions", "plot", "recipes", "accepted")
ABOUT += tuple(key for lines in LINES.values() for key in lines.reads)
# What --about may leave out, or have as null.
LEFT_OUT = dict.fromkeys((*ABOUT, "form", "tokenizer", "template"))
LEFT_OUT |= {"publish": {}, "repos": {}, "shards": {}, "commands": {}, "bases": [], "accepted": []}
LEFT_OUT |= {"hidden": [], "sharded": [], "too_large": [], "survivors": False, "steps": {}}
# Where what is made again by its recipe has the same bytes, by lib/record/bound.Bound.
AGAIN = {
    "anywhere": "on every machine",
    "this kind of machine": "on the kind of machine that its recipe names",
    "not reproducible": "nowhere: no two builds are alike",
}


def front_matter(about: dict[str, Any], looks: Looks) -> dict[str, Any]:
    """The card's front matter, {key: value}: what the hub reads of a card."""
    families = [looks[name] for name in about["families"]]
    publish, repos, mixed = about["publish"], about["repos"], about["moe"] is not None
    merged = about["merge"] is not None or mixed
    bases = [base["hub"] for base in about["bases"] if base.get("hub")]
    relation = "merge" if merged else "quantized"
    quantized = any(family.has_quants for family in families)
    if merged and quantized and repos.get("safetensors"):
        bases, relation = [repos["safetensors"]], "quantized"
    license = license_of(about).license
    other = license.id == "other"
    tags = [tag for family in families for tag in family.tags]
    tags += ["mergekit", "merge"] if merged else []
    tags += ["moe"] if mixed else []
    tags += [tag for name in about["families"] for tag in LINES[name].tags_of(about)]
    facts = {
        "base_model": list(dict.fromkeys(bases)),
        "base_model_relation": relation if bases else None,
        "license": license.id,
        "license_name": (license.name or licenses.UNKNOWN) if other else None,
        "license_link": license.link if other else None,
        "language": languages_of(about),
        "library_name": families[0].library,
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*tags, "quantmill", *(publish.get("tags") or [])])),
        "quantized_by": publish.get("quantized_by") if quantized else None,
    }
    return {key: value for key, value in facts.items() if value}


def license_of(about: dict[str, Any]) -> licenses.Combined:
    """The license that the config gives, else the one that follows from those of all bases."""
    of_bases = {base["reference"]: licenses.of_facts(base) for base in about["bases"]}
    return licenses.combine(of_bases, licenses.of_facts(about["publish"]))


def languages_of(about: dict[str, Any]) -> list[str]:
    """The languages that the config gives, else those of all bases, sorted."""
    found: set[str] = set(about["publish"].get("language") or [])
    for base in about["bases"] if not found else []:
        value = base.get("language") or []
        found |= {value} if isinstance(value, str) else set(value)
    return sorted(found)


def again(model: ModelForms, about: dict[str, Any], looks: Looks) -> str:
    """A sentence on where what is made again has the same bytes; "" if nothing is known of it."""
    bounds = {rule: bound for look in looks.values() for rule, bound in look.bounds.items()}
    hidden, family_of = about["hidden"], {form.name: form.family for form in model.forms}
    told = {
        name: bounds[rule]
        for name, rule in about["steps"].items()
        if rule in bounds and name not in hidden
    }

    def label(name: str) -> str:
        """The family's title for a form whose family has one bound; else the name."""
        family = family_of.get(name)
        own = {bound for other, bound in told.items() if family_of.get(other) == family}
        return looks[family].title if family and len(own) == 1 else name

    parts = []
    for bound, place in AGAIN.items():
        labels = list(dict.fromkeys(label(name) for name, found in told.items() if found == bound))
        if labels:
            parts.append(f"{', '.join(labels)} {place}")
    same = "Made again from the same inputs by its recipe, a file has the same bytes"
    return f"{same}: {'; '.join(parts)}." if parts else ""


def rows(model: ModelForms, family: Lines, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a family's table of files, the smallest first; paths are relative to the card."""
    repo = about["repos"].get(family.name)
    forms = [f for f in model.forms if f.family == family.name and f.name not in about["hidden"]]
    if about["survivors"]:
        forms = judge.survivors(forms)
    columns = {
        "kld": texts([form.kld for form in forms], 6),
        "same_top": texts([scaled(form.same_top, 100) for form in forms], 3, " %"),
        "perplexity": texts([form.perplexity for form in forms], 3),
    }
    found, files = [], [PurePosixPath(form.file).name for form in forms]
    for index, form in enumerate(forms):
        file = files[index]
        branch = "main" if about["form"] else family.branch(form.name)
        row = {
            "form": form,
            "name": file,
            "files": files,
            "path": file if repo else form.file.removeprefix(f"results/{model.name}/"),
            "branch": branch,
            "directory": f"{model.name}-{form.name if branch == 'main' else branch}",
            "shards": about["shards"].get(form.name, []),
            "sharded": form.name in about["sharded"],
            "whole": form.name not in about["too_large"],
            "folder": file.removesuffix(".gguf") if repo else f"shards/{form.name}",
            "size": size_text(form.bytes, forms),
            "bits": "" if form.bits_per_weight is None else f"{form.bits_per_weight:.2f}",
            **{name: cells[index] for name, cells in columns.items()},
        }
        found.append({**row, "link": family.link(row, repo)})
    return found


def texts(figures: list[Figure], most: int, unit: str = "") -> list[str]:
    """A column's cells: figure and error with at most `most` decimals; empty if not measured."""

    def cell(figure: Figure, digits: int) -> str:
        if figure.value is None:
            return ""
        error = f" ± {decimal(figure.error, digits)}" if figure.error else ""
        return f"{decimal(figure.value, digits)}{error}{unit}"

    return list(map(cell, figures, places(figures, most)))


def by_memory(table: list[dict[str, Any]], trained: int | None) -> tuple[list[str], list[dict]]:
    """Which row of a family's table to take, by memory and context.

    Returns the contexts as texts, and [{memory, row, takes}]: for the usual sizes of memory the row
    of the best form that fits with each of the contexts, None if none fits. `row` is that of the
    shortest context.
    """
    forms = [row["form"] for row in table]
    fitting = judge.by_memory(forms, trained)
    lines = []
    for sizes, picks in fitting.rows:
        takes = [table[forms.index(pick)] if pick else None for pick in picks]
        lines.append({"memory": judge.memory_text(sizes), "row": takes[0], "takes": takes})
    return list(map(judge.context_text, fitting.contexts)), lines


def mix_line(form: Form, model: ModelForms) -> str:
    """How a mix was found, what it is like, and whether a preset is better, as Markdown."""
    mix, path = form.mix, form.mix.file.removeprefix(f"results/{model.name}/")
    said = f"**{form.name}** ([types]({path})): {mixes.target_text(mix.target, model.trained)}."
    said += f" KLD expected {mixes.kld(mix.found['expected'])}"
    said += f" on `{mix.corpus}`" if mix.corpus else ""
    if form.kld.value is not None:
        said += f", measured {mixes.kld(*form.kld)} on `{form.conditions[1]}`"
    return f"{said}. It {mixes.verdict(form, model.forms)}."


def section(model: ModelForms, look: Look, about: dict[str, Any]) -> dict[str, Any]:
    """What the template gets for one family's section of the card."""
    family = LINES[look.name]
    table, repo = rows(model, family, about), about["repos"].get(family.name)
    contexts, choices = by_memory(table, model.trained) if table else ([], [])
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
        "contexts": contexts,
        "by_memory": choices,
        "floor": next(
            (texts([form.floor], 6)[0] for form in forms if form.floor.value is not None), ""
        ),
        "conditions": sorted({form.conditions for form in forms if form.conditions}, key=str),
        "fallbacks": fallbacks.sentence({form.name: form.fallbacks for form in forms}),
        "twins": judge.twin_lines(forms),
        "beside": family.beside(
            [(each, size_text(each.bytes, forms)) for each in model.beside], first, repo
        )
        if forms
        else [],
        "mixes": [mix_line(form, model) for form in forms if form.mix],
        "download": [family.download(row, repo, about["model"]) for row in table or [None]]
        if repo and usable
        else [],
        "run": family.run(first, repo, about) if usable else [],
        "run_note": family.run_note(first, repo) if first else "",
        "calibration": family.calibration(about),
        "commands": about["commands"].get(family.name, []),
    }


def render(model: ModelForms, about: dict[str, Any], template: Path, looks: Looks) -> str:
    """The card as Markdown. Raises jinja2.TemplateError for a template that does not work."""
    about = LEFT_OUT | {key: value for key, value in about.items() if value is not None}
    families = [looks[name] for name in about["families"]]
    sections = [section(model, family, about) for family in families]
    first = sections[0]
    repos = dict.fromkeys(LINES) | about["repos"]
    elsewhere = [
        (looks[name].title, place)
        for name in LINES
        if repos[name] and name not in about["families"]
        for place in ([repos[name]] if isinstance(repos[name], str) else repos[name])
    ]
    verdict = license_of(about)
    prompt = (
        prompt_format(*chat.read(cold.readable(Path(about["tokenizer"]))))
        if about["tokenizer"]
        else None
    )
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
        harness=model.harness,
        verdict=verdict._replace(license=inert(verdict.license)),
        prompt=prompt,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", prompt or "")), default=0)),
        commands=[
            *about["commands"].get("merge", []),
            *(line for section in sections for line in section["commands"]),
        ],
        again=again(model, about, looks),
        bases=[described(base) for base in about["bases"]],
        **{key: about[key] for key in ABOUT},
    )
    return tidy(text)


def tidy(text: str) -> str:
    """The text with at most one empty line in a row; code blocks stay as they are."""
    block = r"(^(`{3,})[^`\n]*\n.*?^\2$)"
    return re.sub(rf"(?ms){block}|\n{{3,}}", lambda found: found[1] or "\n\n", text)


def described(base: dict[str, Any]) -> dict[str, Any]:
    """An entry of `bases` with the defaults and the license's words that the template needs."""
    found = inert(licenses.of_facts(base) or License(licenses.UNKNOWN))
    return {"hub": None, "commit": None, **base, "license": found.label, "link": found.link}


def inert(found: License) -> License:
    """A license whose words, from the card of another model, are no Markdown and no HTML."""
    return License(*(re.sub(r"[<>`|\\\[\]]", r"\\\g<0>", text) for text in astuple(found)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", type=Path, required=True, help="JSON object, keys above")
    parser.add_argument(
        "--about",
        type=Path,
        help="JSON object, keys above; without it the card has the forms alone",
    )
    parser.add_argument(
        "--families",
        type=Path,
        help="JSON list, keys above; without it families are called by their keys",
    )
    parser.add_argument(
        "--template",
        type=Path,
        default=TEMPLATE,
        help="jinja2 template, used if --about names no other",
    )
    parser.add_argument("--output", type=Path, required=True, help="the card to write, Markdown")
    args = parser.parse_args()
    template = args.template
    try:
        looks = Looks.read(args.families)
        model = judge.read(args.forms, looks)
        families = list(dict.fromkeys(form.family for form in model.forms)) or ["safetensors"]
        about = {"model": model.name, "families": families}
        about = read_json(args.about) if args.about else about
        template = Path(about.get("template") or template)
        if not template.is_file():
            raise UserError(f"{template}: there is no such template")
        args.output.write_text(render(model, about, template, looks), encoding="utf-8")
    except jinja2.TemplateError as error:
        line = f" line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise UserError(f"{template}{line}: {error}") from None


if __name__ == "__main__":
    program(main)
