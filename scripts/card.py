"""Write the model card: what this is, which file to take, how good it is, how it was made.

--forms is what scripts/report.py takes (see lib/forms.py). --about is a JSON object, as
scripts/describe_card.py prints it; only `model` and `kind` must be there:

    kind           of the repository that the card is for: gguf, exl2 or safetensors
    model          name
    merge          mergekit configuration as the user wrote it; null where it is no merge
    source         the reference that is quantized, where it is no merge
    bases          [{reference, hub: "org/name" or null, commit, license, license_name,
                   license_link, language}]: every model at the leaves of the tree
    repos          {gguf, exl2, safetensors: "org/name"}: where it is published
    publish        {license, license_name, license_link, language, tags, quantized_by} of the config
    imatrix        {file, corpus, sha256, chunks, context}, without corpus where it was not computed
                   here, or null
    exl2           {corpus, sha256, rows, length} or null
    shards         {form: [file names]} of the forms that are published as shards (too)
    too_large      [forms that are published as shards alone]
    commands       {merge, gguf, exl2: [command lines, in the order in which they were run]}
    versions       {tool: version}
    tokenizer      directory with the chat template (tokenizer_config.json, chat_template.jinja), or
                   a GGUF file
    plot           the plot's path in the repository
    recipes        the recipes' directory in the repository
    hidden         [forms that are not published]
    template       a jinja2 template of the user's own, or null

The same input gives the same bytes.
"""

import argparse
import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lib import forms as judge
from lib import license as licenses
from lib.forms import Figure, Form
from lib.license import License

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
LIBRARIES = {"gguf": "gguf", "exl2": "exllamav2", "safetensors": "transformers"}
KIND_TAGS = {"gguf": ["gguf", "llama.cpp"], "exl2": ["exl2", "exllamav2"], "safetensors": []}
SAMPLE = (("system", "{system_prompt}"), ("user", "{prompt}"))


def front_matter(about: dict[str, Any]) -> dict[str, Any]:
    """What the hub reads of the card."""
    kind, publish, repos = about["kind"], about.get("publish") or {}, about.get("repos") or {}
    merged = about.get("merge") is not None
    bases = [base["hub"] for base in about.get("bases") or [] if base.get("hub")]
    relation = "merge" if merged else "quantized"
    if merged and kind != "safetensors" and repos.get("safetensors"):
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
    facts |= {"library_name": LIBRARIES[kind], "pipeline_tag": "text-generation"}
    tags = KIND_TAGS[kind] + (["mergekit", "merge"] if merged else [])
    if kind == "gguf" and about.get("imatrix"):
        tags.append("imatrix")
    facts["tags"] = list(dict.fromkeys([*tags, "quantmill", *(publish.get("tags") or [])]))
    if publish.get("quantized_by") and kind != "safetensors":
        facts["quantized_by"] = publish["quantized_by"]
    return facts


def license_of(about: dict[str, Any]) -> licenses.Verdict:
    """The license over all bases, or the config's."""
    publish = about.get("publish") or {}
    wanted = licenses.of_facts(publish)
    bases = about.get("bases") or []
    return licenses.combine({base["reference"]: licenses.of_facts(base) for base in bases}, wanted)


def languages_of(about: dict[str, Any]) -> list[str]:
    """The config's languages; else those of all bases."""
    found = (about.get("publish") or {}).get("language")
    if not found:
        found = []
        for base in about.get("bases") or []:
            value = base.get("language") or []
            found += [value] if isinstance(value, str) else value
    return sorted(set(found))


def prompt_format(directory: Path | None) -> str | None:
    """The chat template applied to a system and a user message; None where there is no template.

    A template that refuses a system message is shown without one.
    """
    source = chat_template(directory) if directory else None
    if source is None:
        return None
    facts = tokens(directory)
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
                messages=messages, add_generation_prompt=True, **facts
            )
        except jinja2.TemplateError:
            continue
    return None


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def chat_template(directory: Path) -> str | None:
    """The model's chat template, of chat_template.jinja, tokenizer_config.json or a GGUF file."""
    if directory.suffix == ".gguf":
        return _gguf_fields(directory).get("tokenizer.chat_template")
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    template = _read(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def tokens(directory: Path) -> dict[str, str]:
    """The special tokens that templates use, by name."""
    if directory.suffix == ".gguf":
        fields = _gguf_fields(directory)
        known = dict(enumerate(fields.get("tokenizer.ggml.tokens", [])))
        ids = {
            "bos_token": fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token": fields.get("tokenizer.ggml.eos_token_id"),
            "unk_token": fields.get("tokenizer.ggml.unknown_token_id"),
            "pad_token": fields.get("tokenizer.ggml.padding_token_id"),
        }
        return {name: known.get(number, "") for name, number in ids.items()}
    facts = _read(directory / "special_tokens_map.json") | _read(
        directory / "tokenizer_config.json"
    )
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = facts.get(name) or ""
        found[name] = value["content"] if isinstance(value, dict) else value
    return found


def _gguf_fields(file: Path) -> dict[str, Any]:
    from lib.gguf_file import read_gguf  # most models are directories

    return read_gguf(file).metadata if file.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def size(count: int) -> str:
    """Bytes as people compare them on the hub: decimal GB, or MB where it is small."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def figure(value: Figure, factor: float = 1.0, unit: str = "") -> str:
    """A figure with its error, to the error's first two digits; empty where it was not measured."""
    if value.value is None:
        return ""
    number = value.value * factor
    if not value.error:
        return f"{number:.4g}{unit}"
    error = value.error * factor
    places = max(0, min(8, 1 - int(f"{error:e}".split("e")[1])))
    return f"{number:.{places}f} ± {error:.{places}f}{unit}"


def rows(model: judge.Model, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of files for a repository of this kind, the smallest first."""
    kind, shards, found = about["kind"], about.get("shards") or {}, []
    for form in model.forms:
        if file_kind(form) != kind or form.name in (about.get("hidden") or []):
            continue
        name = PurePosixPath(form.file).name
        found.append(
            {
                "form": form,
                "name": name,
                "branch": branch(form.name) if kind == "exl2" else "main",
                "shards": shards.get(form.name) or [],
                "whole": form.name not in (about.get("too_large") or []),
                "folder": name.removesuffix(".gguf"),
                "size": size(form.bytes),
                "bits": "" if form.bits_per_weight is None else f"{form.bits_per_weight:.2f}",
                "kld": figure(form.kld),
                "same_top": figure(form.same_top, 100, " %"),
                "perplexity": figure(form.perplexity),
            }
        )
    return found


def file_kind(form: Form) -> str:
    """In which kind of repository a form is published."""
    return (
        "gguf" if form.file.endswith(".gguf") else "exl2" if form.kind == "exl2" else "safetensors"
    )


def branch(form: str) -> str:
    """The branch of an EXL2 form, as people name them: 5.0bpw -> 5_0, 4.25bpw -> 4_25."""
    return form.removesuffix("bpw").replace(".", "_")


def by_memory(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each usual size of memory, the row of the best form that fits."""
    forms = [row["form"] for row in table]
    found = []
    for memory in judge.MEMORY_SIZES:
        best = judge.recommend(forms, memory)
        row = next((row for row in table if row["form"] is best), None)
        found.append({"memory": memory, "row": row})
    return found


def render(model: judge.Model, about: dict[str, Any], template: Path) -> str:
    """The card as Markdown."""
    kind, table = about["kind"], rows(model, about)
    commands = about.get("commands") or {}
    directory = about.get("tokenizer")
    repos = dict.fromkeys(LIBRARIES) | (about.get("repos") or {})
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["yaml"] = lambda value: yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=100
    )
    conditions = sorted(
        {row["form"].conditions for row in table if row["form"].conditions}, key=str
    )
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        front_matter=front_matter(about),
        kind=kind,
        name=about["model"],
        repos=repos,
        repo=repos[kind],
        rows=table,
        by_memory=by_memory(table) if table else [],
        conditions=conditions,
        reference=model.reference,
        verdict=license_of(about),
        prompt=prompt_format(Path(directory) if directory else None),
        commands=(commands.get("merge") or []) + (commands.get(kind) or []),
        bases=[described(base) for base in about.get("bases") or []],
        **{
            key: about.get(key)
            for key in (*("merge", "source", "imatrix", "exl2", "versions", "plot", "recipes"),)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", type=Path, required=True, help="forms.json")
    parser.add_argument(
        "--about",
        type=Path,
        help="JSON, as told above; without it the card tells of the forms alone",
    )
    parser.add_argument("--output", type=Path, required=True, help="the card to write")
    args = parser.parse_args()
    template = TEMPLATE
    try:
        model = judge.read(args.forms)
        kinds = [file_kind(form) for form in model.forms] or ["safetensors"]
        about = {"model": model.name, "kind": kinds[0]}
        if args.about:
            about = json.loads(args.about.read_text(encoding="utf-8"))
        template = Path(about.get("template") or TEMPLATE)
        args.output.write_text(render(model, about, template), encoding="utf-8")
    except judge.FormsError as error:
        sys.exit(f"card: {error}")
    except OSError as error:
        sys.exit(f"card: {error}")
    except jinja2.TemplateError as error:
        line = f" line {error.lineno}" if getattr(error, "lineno", None) else ""
        sys.exit(f"card: {template}{line}: {error}")


if __name__ == "__main__":
    main()
