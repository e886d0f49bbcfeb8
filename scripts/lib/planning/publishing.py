"""Collect, from the config and its artifacts, what is published where and what a card says.

Sizes, hashes and measured figures are not part of it: they are read from the records when a card is
written (describe_card.py) and when something is published (publish.py).
"""

from pathlib import Path
from typing import Any

import yaml

from lib.config.repositories import Repository, repositories
from lib.hub.license import CARD_FACTS, card_facts, combine, front_matter, of_facts
from lib.hub.lock import LOCK_FILE, Lock, written
from lib.hub.references import hub_sources, leaves
from lib.keys.values import bytes_of
from lib.record.artifact import Artifact, in_order
from lib.stages.family import Forms, entry
from lib.stages.registry import FAMILIES, FULL_WEIGHTS

PLOT, RECIPES = "quality.svg", "recipes"


def card_options(
    config: Any,
    lock: Lock,
    name: str,
    families: dict[str, Forms],
    only: tuple[str, str | None] | None = None,
) -> dict[str, Any]:
    """The facts of the config for a card: the option `about` of its artifact, for describe_card.py.

    families: {family: the model's artifacts of that family}; intermediates are not published, so
    the card does not list them. only: (family, form) of the card's repository, form None if it
    holds all forms; None: the card of results/MODEL/.
    """
    model = config.models[name]
    publish = model.publish
    told, form = ([only[0]], only[1]) if only else (_told(families), None)
    forms = Forms.together(families.values()).forms
    facts = (*CARD_FACTS, "tags", "quantized_by")
    about = {
        **({"moe": model.moe} if model.moe else {}),
        "families": told,
        "model": name,
        "merge": model.merge,
        "random_seed": model.random_seed if model.is_made else None,
        "source": model.source,
        "bases": bases(config, lock, name),
        "repos": repository_names(model, form),
        "publish": {key: getattr(publish, key) for key in facts} if publish else {},
        "template": publish.card_template if publish else None,
        "hidden": [key for key, up in forms.items() if up.intermediate or form not in (None, key)],
        "max_file_size": bytes_of(publish.max_file_size) if publish else None,
        "survivors": publish is not None and publish.survivors,
        "evaluation": model.evaluate.corpus if model.evaluate else None,
        "plot": PLOT,
        "recipes": RECIPES,
    }
    for family in map(FAMILIES.get, told):
        if family.own(model) is not None:
            about |= family.card_options(model, forms)
    return about | ({"form": form} if form else {})


def _told(families: dict[str, Forms]) -> list[str]:
    """The families in the card of results/MODEL/: those with a form that is no intermediate."""
    kept = {
        name
        for name, made in families.items()
        if not all(up.intermediate for up in made.forms.values())
    }
    return [name for name in FAMILIES if name in kept] or [FULL_WEIGHTS]


def repository_names(model: Any, only: str | None) -> dict[str, str | list[str]]:
    """{family: name} of the model's repositories; a list of names if each form has its own.

    only: a form; of repositories for single forms, this form's name alone is given.
    """
    found: dict[str, str | list[str]] = {}
    for repository in repositories(model):
        if repository.form in (None, only):
            found[repository.family] = repository.name
        elif only is None:
            found.setdefault(repository.family, []).append(repository.name)
    return found


def local_card_options(
    config: Any, lock: Lock, name: str, families: dict[str, Forms], plot: str
) -> dict[str, Any]:
    """As `card_options`, for the card of results/MODEL/, which does not depend on `publish`.

    plot: the plot's path, relative to results/MODEL/.
    """
    about = card_options(config, lock, name, families)
    private = {"repos": {}, "publish": {}, "template": None, "max_file_size": None}
    private["survivors"] = False
    sharded = sorted(Forms.together(families.values()).shards)
    return about | private | {"plot": plot, "recipes": None, "sharded": sharded}


def bases(config: Any, lock: Lock, name: str) -> list[dict[str, Any]]:
    """The models at the leaves of a model's tree of merges, in order, each as `base` gives it."""
    references = dict.fromkeys(reference for reference, _ in leaves(config, [name]))
    return [base(reference, lock) for reference in references]


def base(reference: str, lock: Lock) -> dict[str, Any]:
    """The facts on a model at a leaf: {reference, hub, commit} and CARD_FACTS from its own card.

    hub: org/name; hub and commit are None for a directory.
    """
    entry = lock.get(reference)
    if entry:
        known = {"hub": entry.repo, "commit": entry.commit, **card_facts(entry.card)}
    else:
        try:
            text = Path(reference, "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        facts = front_matter(text)
        known = {"hub": None, "commit": None, **card_facts(facts)}
    return {"reference": reference, **known}


def license_note(config: Any, lock: Lock, name: str) -> str:
    """A sentence for the plan if licenses in a model's tree differ or are missing; else empty.

    It is also empty for a model that is neither made by mergekit nor published, and for a study.
    """
    model = config.models.get(name)
    if model is None or not (model.is_made or model.publish):
        return ""
    facts = {key: getattr(model.publish, key, None) for key in CARD_FACTS[:3]}
    leaves = {leaf["reference"]: of_facts(leaf) for leaf in bases(config, lock, name)}
    return combine(leaves, of_facts(facts)).note


def manifest(graph: Any) -> dict[str, Any]:
    """The manifest that scripts/publish.py reads, of all models of a Graph.

    repos: a repository's name, settings, files by branch, recipes, and what builds them again.
    forms: those that must have been measured (`_gated`). made_from, bounds: {path: {role: path of
    the input}} and {path: what its bytes are bound to}, of what is published and of all behind it.
    """
    repos, forms = [], []
    for name in graph.names:
        model, declared = graph.config.entries[name], graph.model(name)
        for repository in repositories(model):
            made = declared.families.get(repository.family)
            if made is None:  # left out of this run: --config skip=…
                continue
            family = FAMILIES[repository.family]
            branches = family.branches(name, made)
            if repository.form:
                own = family.lines.branch(repository.form)
                branches = {"main": branches["main"] + branches.get(own, [])}
            branches["main"] += _support(name, repository, declared.by_path)
            merge = declared.families.get(FULL_WEIGHTS, Forms()).artifacts
            repos.append(
                {
                    "repo": repository.name,
                    "private": model.publish.private,
                    "max_file_size": bytes_of(model.publish.max_file_size),
                    "branches": branches,
                    "recipes": family.made_from(name, made, *merge),
                    "sign": model.publish.sign.key if model.publish.sign else None,
                    "texts": again(graph.config, graph.lock, name),
                }
            )
            forms += _gated(name, model, repository, made)
    behind = in_order(up for name in graph.names for up in graph.artifacts(name).values())
    made_from = {up.path: {r: i.path for r, i in up.inputs.items()} for up in behind if repos}
    bounds = {up.path: up.bound.value for up in behind if repos}
    return {"repos": repos, "forms": forms, "made_from": made_from, "bounds": bounds}


def uploads(graph: Any) -> dict[str, dict[str, Any]]:
    """{path of a file or of shards: what the step that deletes it here uploads before}.

    {repo, private, max_file_size, file: its entry in the manifest, form: that of its form}. Nothing
    of models with `survivors`: which forms stay is known when all are measured.
    """
    found, said = {}, manifest(graph)
    forms = {form["artifact"]: form for form in said["forms"]}
    for repo in said["repos"]:
        about = {key: repo[key] for key in ("repo", "private", "max_file_size")}
        for file in repo["branches"]["main"]:
            form = forms.get(file["artifact"])
            if form and not form["survivors"]:
                paths = filter(None, (file["artifact"], file.get("shards")))
                found |= dict.fromkeys(paths, about | {"file": file, "form": form})
    return found


def again(config: Any, lock: Lock, name: str) -> dict[str, str]:
    """{name in a repository: text} of the config and the lock that build a model again.

    The config has this model and those that it is made from, without what concerns this machine
    or a repository; merges that stand in files of their own or were chosen in a study are in it.
    """
    names = [name]
    for known in names:  # which grows meanwhile
        model = config.models[known]
        named = [part for part in model.needs() if part in config.models]
        names += [part for part in dict.fromkeys(named) if part not in names]
    used = set().union(*(config.models[known].corpora() for known in names))
    how = {"mode": "json", "exclude_unset": True}
    models = {n: config.models[n].model_dump(exclude={"publish"}, **how) for n in names}
    corpora = {n: text.model_dump(**how) for n, text in config.corpora.items() if n in used}
    sources = {(source.kind, source.ref) for source in hub_sources(config, names)}
    kept = Lock({at: entry for at, entry in lock.entries.items() if at in sources})
    style = {"sort_keys": False, "allow_unicode": True, "width": 100}
    text = yaml.safe_dump({"corpora": corpora, "models": models}, **style)
    return {f"{RECIPES}/config.yaml": text, f"{RECIPES}/{LOCK_FILE.name}": written(kept)}


def _support(
    name: str, repository: Repository, by_path: dict[str, Artifact]
) -> list[dict[str, Any]]:
    """The manifest's entries for the card and, in a repository of quants, the plot."""
    files = [entry(by_path[repository.card(name)], "README.md") | {"recipe": False}]
    if FAMILIES[repository.family].has_quants:
        report = by_path[f"results/{name}/report/quality.csv"]
        plot = {"artifact": f"results/{name}/report/{PLOT}", "recipe": False}
        files.append(entry(report, PLOT) | plot)
    return files


def _gated(name: str, model: Any, repository: Repository, made: Forms) -> list[dict[str, Any]]:
    """The published forms of a repository, with their evaluations and their limits of KLD."""
    family, limits = FAMILIES[repository.family], model.publish.max_kld
    published = family.published(made)
    return [
        {
            "model": name,
            "form": form,
            "family": family.name,
            "artifact": published[form].path,
            "evaluation": made.evaluations[form].path if form in made.evaluations else None,
            "survivors": model.publish.survivors,
            "max_kld": limits.get(form, limits.get("*")),
            "quantized": family.quantized[artifact.rule],
        }
        for form, artifact in family.gated(made).items()
        if repository.form in (None, form)
    ]
