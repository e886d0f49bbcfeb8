"""What is published where, and what a card says: from the config and the graph's artifacts.

Only what the config says is told here; sizes, hashes and what was measured are read from the
records when the card is written (describe_card.py) and when something is published (publish.py).
Imported by the Snakefile: standard library, yaml and lib.config.schema's objects only.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from lib.config.repositories import Repository, repositories
from lib.hub.license import combine, front_matter, of_facts
from lib.hub.lock import Lock
from lib.hub.references import leaves
from lib.stages.families import FAMILIES, families_of

UNQUANTIZED = ("convert", "source_gguf")
CARD_FACTS = ("license", "license_name", "license_link", "language")
PLOT, RECIPES = "quality.svg", "recipes"


def card_options(
    config: Any, lock: Lock, name: str, families: list[str], forms: dict, only: str | None = None
) -> dict[str, Any]:
    """What the config says for a card: an option of its artifact, for describe_card.py.

    families: those that it tells of. forms: {form: artifact}. Its intermediates are not published,
    and so not listed. only: the one form that the card is about, where its repository holds no other.
    """
    model = config.models[name]
    publish = model.publish
    facts = (*CARD_FACTS, "tags", "quantized_by")
    about = {
        "families": families,
        "model": name,
        "merge": model.merge,
        "random_seed": model.random_seed if model.merge else None,
        "source": model.source,
        "bases": bases(config, lock, name),
        "repos": repository_names(model, only),
        "publish": {key: getattr(publish, key) for key in facts} if publish else {},
        "template": publish.card_template if publish else None,
        "hidden": [
            form for form, made in forms.items() if made.intermediate or only not in (None, form)
        ],
        "max_file_size": max_file_size(model) if publish else None,
        "evaluation": model.evaluate.corpus if model.evaluate else None,
        "plot": PLOT,
        "recipes": RECIPES,
    }
    for family in families:
        about |= FAMILIES[family].options(model, forms)
    if only:
        about["form"] = only
    return about


def repository_names(model: Any, only: str | None) -> dict[str, str | list[str]]:
    """{kind: name} of the model's repositories, a list where each form has its own, or that of `only`."""
    found: dict[str, str | list[str]] = {}
    for repository in repositories(model):
        if repository.form in (None, only):
            found[repository.kind] = repository.name
        elif only is None:
            found.setdefault(repository.kind, []).append(repository.name)
    return found


def local_card_options(
    config: Any, lock: Lock, name: str, forms: dict, plot: str, sharded: list[str]
) -> dict[str, Any]:
    """As `card_options`, for the card of results/MODEL/: publishing makes no difference to it.

    plot: the plot's path from there. sharded: the forms of which there are shards.
    """
    about = card_options(config, lock, name, families_of(forms), forms)
    private = {"repos": {}, "publish": {}, "template": None, "max_file_size": None}
    return about | private | {"plot": plot, "recipes": None, "sharded": sharded}


def bases(config: Any, lock: Lock, name: str) -> list[dict[str, Any]]:
    """The models at the leaves of a model's tree, in order, with what their own cards say."""
    references = dict.fromkeys(reference for reference, _ in leaves(config, [name]))
    return [base(reference, lock) for reference in references]


def base(reference: str, lock: Lock) -> dict[str, Any]:
    entry = lock.get(reference)
    if entry:
        known = {"hub": entry.repo, "commit": entry.commit, **entry.card}
    else:
        try:
            text = (Path(reference).expanduser() / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        facts = front_matter(text)
        known = {"hub": None, "commit": None}
        known |= {key: facts[key] for key in CARD_FACTS if facts.get(key)}
    return {"reference": reference, **known}


def license_note(config: Any, lock: Lock, name: str) -> str:
    """A sentence for the plan where the licenses of a model's tree are not one; else empty.

    Nothing is said of a model that is only converted and quantized here: its license is its own.
    """
    model = config.models[name]
    if model.merge is None and model.publish is None:
        return ""
    facts = {key: getattr(model.publish, key, None) for key in CARD_FACTS[:3]}
    leaves = {leaf["reference"]: of_facts(leaf) for leaf in bases(config, lock, name)}
    return combine(leaves, of_facts(facts)).note


def max_file_size(model: Any) -> int:
    """Bytes; the config has 50G or 500M."""
    size = model.publish.max_file_size
    return int(size[:-1]) * {"M": 10**6, "G": 10**9}[size[-1]]


def manifest(config: Any, models: dict[str, Iterable[Any]]) -> dict[str, Any]:
    """What scripts/publish.py takes. models: {name: its artifacts}."""
    repos, forms = [], []
    for name, artifacts in models.items():
        model = config.models[name]
        if model.publish is None:
            continue
        made = {artifact.path: artifact for artifact in artifacts}
        for repository in repositories(model):
            kind, branches = repository.kind, BRANCHES[repository.kind](name, made)
            if repository.form:
                own = FAMILIES[kind].branch(repository.form)
                branches = {"main": branches["main"] + branches.get(own, [])}
            if not any(branches.values()):  # left out of this run: --config exl2=skip
                continue
            branches["main"] += support(name, repository, made)
            repos.append(
                {
                    "repo": repository.name,
                    "private": model.publish.private,
                    "max_file_size": max_file_size(model),
                    "branches": branches,
                    "recipes": origins(name, kind, made),
                }
            )
            forms += gated(name, model, repository, made)
    return {"repos": repos, "forms": forms}


def gguf_branches(name: str, made: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    files = []
    for path, artifact in made.items():
        if is_published_gguf(artifact):
            shards = f"results/{name}/shards/{form_of(name, path)}"
            shards = shards if shards in made else None
            file = PurePosixPath(path).name
            finished = made.get(f"results/{name}/labelled/{file}", artifact)
            files.append(entry(finished, file) | {"shards": shards})
        elif artifact.rule in ("imatrix", "imatrix_file"):
            files.append(entry(artifact, PurePosixPath(path).name))
    return {"main": files}


def exl2_branches(name: str, made: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The measurement on main; each bpw on a branch of its own."""
    branches: dict[str, list[dict[str, Any]]] = {"main": []}
    for path, artifact in made.items():
        file = PurePosixPath(path).name
        if artifact.rule in ("exl2_measure", "exl2_measurement_file"):
            branches["main"].append(entry(artifact, file))
        elif artifact.rule == "exl2_quantize":
            branches[FAMILIES["exl2"].branch(file)] = [entry(artifact, "")]
    return branches


def safetensors_branches(name: str, made: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {"main": [entry(merge, "") for merge in made.values() if merge.rule == "merge"]}


BRANCHES = {
    "gguf": gguf_branches,
    "exl2": exl2_branches,
    "safetensors": safetensors_branches,
}


def support(name: str, repository: Repository, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The card and, beside quants, the plot."""
    files = [entry(made[repository.card(name)], "README.md") | {"recipe": False}]
    if repository.kind != "safetensors":
        report = made[f"results/{name}/report/quality.csv"]
        plot = {"artifact": f"results/{name}/report/{PLOT}", "recipe": False}
        files.append(entry(report, PLOT) | plot)
    return files


def entry(artifact: Any, name: str) -> dict[str, Any]:
    """A file of the manifest. `digest` is that of the wanted recipe: what is stale stays here."""
    return {"artifact": artifact.path, "name": name, "digest": artifact.digest}


def origins(name: str, kind: str, made: dict[str, Any]) -> dict[str, str]:
    """{name in the repository: artifact} of what is not published there, but its recipe is."""
    found = {}
    for path, artifact in made.items():
        if artifact.rule == "merge" and kind != "safetensors":
            found[f"{name}-safetensors"] = path
        elif artifact.rule in UNQUANTIZED and kind == "gguf":
            found[PurePosixPath(path).name] = path
    return found


def gated(
    name: str, model: Any, repository: Repository, made: dict[str, Any]
) -> list[dict[str, Any]]:
    """The forms of a repository that must have been measured."""
    found, kind = [], repository.kind
    for path, artifact in made.items():
        if kind == "gguf" and is_published_gguf(artifact):
            form = form_of(name, path)
        elif kind == "exl2" and artifact.rule == "exl2_quantize":
            form = PurePosixPath(path).name
        else:
            continue
        if repository.form not in (None, form):
            continue
        evaluation = f"results/{name}/evaluation/{form}.json"
        limits = model.publish.max_kld
        found.append(
            {
                "model": name,
                "form": form,
                "evaluation": evaluation if evaluation in made else None,
                "max_kld": limits.get(form, limits.get("*")),
                "quantized": artifact.rule not in UNQUANTIZED,
            }
        )
    return found


def is_published_gguf(artifact: Any) -> bool:
    """Every quant; the conversion only where the config keeps it."""
    unquantized = artifact.rule in UNQUANTIZED
    return artifact.rule == "quantize" or (unquantized and not artifact.intermediate)


def form_of(name: str, path: str) -> str:
    return PurePosixPath(path).name.removeprefix(f"{name}-").removesuffix(".gguf")
