"""Publish finished forms on the hub: say what would change (`plan`), or do just that (`push`).

The manifest, made by the planner:

    {"repos": [{"repo": "org/name-GGUF", "private": true, "max_file_size": 50000000000,
                "branches": {"main": [FILE, …], …}, "recipes": {name: artifact}}],
     "forms": [{"model", "form", "evaluation": path or null, "max_kld": number or null,
                "quantized": true}]}
    FILE: {"artifact": path, "name": its name in the repository (of a directory: what its files'
           names begin with, may be empty), "digest": of the wanted recipe, if it is to be
           compared, "shards": the directory of its shards or null, "recipe": false where its
           record stays here}

Sizes and hashes are those of the artifacts' records. A whole file over max_file_size goes up as its
shards alone. Records go up as recipes/NAME.recipe.json, those of `recipes` on main.

A file is compared by its hash with what the hub has: `add`, `replace` or `keep`. What else is in
the repository is left alone; nothing is ever deleted. A push goes in commits, one for each large
file and one for all small ones of a branch, `main` last: after an interruption the same command
goes on with what is not there yet. Before the first byte every gate must hold.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from lib.errors import UserError, program
from lib.formats.json_file import read_json
from lib.hub import client as hub
from lib.hub.license import front_matter
from lib.record import recipe as recipes
from lib.record.digests import git_hash, sha256_of
from lib.units import count, is_are

CARD = "README.md"
CARD_FACTS = ("license", "library_name", "tags")


@dataclass
class Item:
    """A file, and what a push would do with it: add, replace or keep."""

    path: Path
    name: str
    size: int
    sha256: str | None
    action: str = "add"


@dataclass
class Branch:
    name: str
    items: list[Item]
    exists: bool = False
    others: list[str] = field(default_factory=list)


@dataclass
class Target:
    """A repository: its branches with `main` last. `private` is what the manifest wants."""

    repo: str
    private: bool
    branches: list[Branch]
    is_private: bool | None = None  # as the hub has it; None where there is no such repository

    @property
    def changes(self) -> list[Item]:
        return [item for b in self.branches for item in b.items if item.action != "keep"]


def read(manifest: dict[str, Any]) -> tuple[list[Target], list[str]]:
    """The targets, and a line for each file that cannot be published at all."""
    problems: list[str] = []
    targets = []
    for repo in manifest["repos"]:
        names = sorted(repo["branches"], key=lambda name: (name == "main", name))
        branches = []
        for name in names:
            found = {}
            for file in repo["branches"][name]:
                for item in items(file, repo["max_file_size"], problems):
                    found.setdefault(item.name, item)
            if name == "main":
                for label, artifact in repo["recipes"].items():
                    if recipes.read(artifact):
                        item = recipe_item(artifact, label)
                        found.setdefault(item.name, item)
            branches.append(Branch(name, [found[key] for key in sorted(found)]))
        targets.append(Target(repo["repo"], repo["private"], branches))
    return targets, problems


def items(file: dict[str, Any], limit: int, problems: list[str]) -> Iterator[Item]:
    """What goes up of one artifact; what cannot is told in `problems`."""
    artifact, name = file["artifact"], file["name"]
    record = recipes.read(artifact)
    if record is None:
        problems.append(f"{artifact}: no recipe beside it, so it is not finished; build it first")
        return
    if not record.fits(file.get("digest", record.digest)):
        problems.append(f"{artifact}: stale; `snakemake why` says why; build it first")
        return
    members = {name: (artifact, record.bytes, record.sha256)}
    if record.files:
        members = {
            name + member: (f"{artifact}/{member}", size, sha)
            for member, (size, sha) in record.files.items()
        }
    if file.get("recipe", True):
        yield recipe_item(artifact, name.rstrip("/") or Path(artifact).name)
    shards = file.get("shards")
    if shards and (record.bytes > limit or len((recipes.read(shards) or record).files) > 1):
        folder = name.removesuffix(".gguf") + "/"
        yield from items({"artifact": shards, "name": folder}, limit, problems)
    for member, (path, size, sha) in members.items():
        if not Path(path).is_file():
            problems.append(f"{path}: not there; build it first")
        elif Path(path).stat().st_size != size:
            found = Path(path).stat().st_size
            problems.append(f"{path}: {found} bytes, but its recipe says {size}")
        elif size <= limit:
            yield Item(Path(path), member, size, sha)
        elif not shards:
            problems.append(
                f"{path}: {human(size)} is over the limit of {human(limit)} a file; "
                "set gguf.split_max_size"
            )


def recipe_item(artifact: str, name: str) -> Item:
    """An artifact's record, as it is published."""
    path = Path(recipes.path_of(artifact))
    return Item(path, f"recipes/{name}{recipes.SUFFIX}", path.stat().st_size, None)


def compare(target: Target, api: HfApi) -> None:
    """Ask the hub what it has, and fill in what is to be done. Raises huggingface_hub's errors."""
    try:
        info = hub.persist(lambda: api.repo_info(target.repo))
    except RepositoryNotFoundError:
        return
    target.is_private = bool(info.private)
    for branch in target.branches:
        try:
            tree = hub.persist(
                lambda name=branch.name: list(
                    api.list_repo_tree(target.repo, recursive=True, revision=name)
                )
            )
        except RevisionNotFoundError:
            continue
        branch.exists = True
        there = {file.path: file for file in tree if isinstance(file, RepoFile)}
        for item in branch.items:
            if item.name in there:
                item.action = "keep" if is_same(item, there[item.name]) else "replace"
        ours = {item.name for item in branch.items} | {".gitattributes"}
        branch.others = sorted(set(there) - ours)


def is_same(item: Item, remote: RepoFile) -> bool:
    """Whether the hub's file has the local one's content: by sha256, or by git's hash if small."""
    if remote.lfs:
        return remote.lfs.size == item.size and remote.lfs.sha256 == digest(item)
    if remote.size != item.size:
        return False
    content = item.path.read_bytes()
    return remote.blob_id == git_hash(content)


def digest(item: Item) -> str:
    """The sha256 that the item's record gives; computed where it has no record."""
    return item.sha256 or sha256_of(item.path)


def gates(manifest: dict[str, Any], targets: list[Target]) -> list[str]:
    """Why these files must not be published, a line each; hashes every file that would go up."""
    problems = [line for form in manifest["forms"] for line in form_problems(form)]
    for target in targets:
        main = next((b for b in target.branches if b.name == "main"), Branch("main", []))
        problems += card_problems(target, {item.name: item for item in main.items})
    changed = [item for target in targets for item in target.changes if item.sha256]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda item: sha256_of(item.path), changed)
        for item, sha in zip(changed, found, strict=True):
            if sha != item.sha256:
                problems.append(f"{item.path}: sha256 {sha}, but its recipe says {item.sha256}")
    return problems


def form_problems(form: dict[str, Any]) -> Iterator[str]:
    """Gates of one form: it was measured, its figures are good, and it writes text."""
    name = f"{form['model']} {form['form']}"
    if form["evaluation"] is None:
        yield f"{name}: no evaluation; give the model an `evaluate:` section"
    elif not Path(form["evaluation"]).is_file():
        yield f"{form['evaluation']}: not there; build the evaluation first"
    else:
        yield from figure_problems(form, json.loads(Path(form["evaluation"]).read_text()))
        record = recipes.read(form["evaluation"])
        if record and not str(record.notes.get("text", name)).strip():
            yield f"{form['evaluation']}: {name} wrote no text when it was tried"


def figure_problems(form: dict[str, Any], evaluation: dict[str, Any]) -> Iterator[str]:
    path, quantized = form["evaluation"], form.get("quantized", True)
    for key, value in numbers(evaluation):
        if not math.isfinite(value):
            yield f"{path}: {key} is {value}"
    kld = (evaluation.get("kld") or {}).get("mean")
    if kld is None and quantized:
        yield f"{path}: kld.mean is missing"
    elif kld is not None and form["max_kld"] is not None and kld > form["max_kld"]:
        yield f"{path}: kld.mean is {kld:.6g}, over max_kld {form['max_kld']:g}"


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(key path, number) of every number in a JSON document."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from numbers(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from numbers(entry, f"{key}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def card_problems(target: Target, main: dict[str, Item]) -> Iterator[str]:
    """Gates of a repository's card: it is there, can be read, and names what is published."""
    card = main.get(CARD)
    if card is None:
        yield f"{target.repo}: no {CARD} on main"
        return
    text = card.path.read_text(encoding="utf-8")
    facts = front_matter(text)
    for key in CARD_FACTS:
        if not facts.get(key):
            yield f"{card.path}: its front matter has no {key}"
    if facts.get("license") == "other" and not facts.get("license_name"):
        yield f"{card.path}: license is other, but license_name is missing"
    for branch in target.branches:
        if branch.name != "main" and branch.name not in text:
            yield f"{card.path}: does not name the branch {branch.name}"
        for item in branch.items if branch.name == "main" else []:
            # Shards lie in a folder, which is named instead of them.
            shown = item.name.rpartition("/")[0] or item.name
            if item.name.endswith(".gguf") and shown not in text:
                yield f"{card.path}: does not name {shown}"
    for link in re.findall(r"!\[[^\]]*\]\(([^):]+)\)", text):
        if link not in main:
            yield f"{card.path}: shows {link}, which is not published"


def table(targets: list[Target]) -> list[str]:
    """What a push would do, as lines."""
    lines = []
    for target in targets:
        wanted = "private" if target.private else "public"
        if target.is_private is None:
            state = f"new, {wanted}"
        elif target.is_private != target.private:
            state = f"is {'private' if target.is_private else 'public'} and stays so"
        else:
            state = wanted
        lines.append(f"{target.repo} ({state})")
        for branch in target.branches:
            new = "" if branch.exists or target.is_private is None else " (new branch)"
            lines.append(f"  {branch.name}{new}")
            for item in branch.items:
                lines.append(f"    {item.action:8}{human(item.size):>10}  {item.name}")
            lines += [f"    {'left':8}{'':>10}  {name}" for name in branch.others]
    items = [item for target in targets for item in target.changes]
    kept = sum(len(b.items) for t in targets for b in t.branches) - len(items)
    total = human(sum(item.size for item in items))
    there = f"{kept} {is_are(kept)} there already"
    lines.append(f"{count(len(items), 'file')} to upload, {total}; {there}")
    return lines


def human(size: float) -> str:
    """Bytes in decimal units, as the hub shows them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def push(target: Target, api: HfApi, large: int) -> None:
    """Create what is missing, commit what differs. Raises what huggingface_hub raises."""
    if not target.changes:
        return
    if target.is_private is None:
        api.create_repo(target.repo, private=target.private, exist_ok=True)
    for branch in target.branches:
        if branch.name != "main" and not branch.exists:
            # From the first commit, so that a branch holds its own files and no others.
            first = api.list_repo_commits(target.repo)[-1].commit_id
            api.create_branch(target.repo, branch=branch.name, revision=first, exist_ok=True)
        for batch in batches(branch, large):
            names = ", ".join(item.name for item in batch[:3])
            more = f" and {len(batch) - 3} more" if len(batch) > 3 else ""
            title = f"Quantmill: {names}{more}"
            info = hub.persist(
                lambda n=branch.name, b=batch, t=title: commit(target.repo, n, b, t, api)
            )
            print(f"{target.repo} {branch.name}: {names}{more} ({info.oid[:12]})", flush=True)


def batches(branch: Branch, large: int) -> list[list[Item]]:
    """The commits: each large file by itself, then all small ones, so that the card comes last."""
    changed = [item for item in branch.items if item.action != "keep"]
    small = [item for item in changed if item.size < large]
    return [[item] for item in changed if item.size >= large] + ([small] if small else [])


def commit(repo: str, branch: str, batch: list[Item], title: str, api: HfApi) -> CommitInfo:
    """One commit. Called again after a fault, it leaves out what the hub has by then."""
    operations = []
    for item in batch:
        operation = CommitOperationAdd(item.name, item.path)
        if item.sha256:  # the gates have just computed it: spare the client a second reading
            operation.upload_info.sha256 = bytes.fromhex(item.sha256)
        operations.append(operation)
    return api.create_commit(repo, operations, commit_message=title, revision=branch)


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("plan", "push"))
    parser.add_argument("--manifest", type=Path, required=True, help="JSON, as told above")
    parser.add_argument(
        "--large", type=int, default=100_000_000, help="bytes from which a file has its own commit"
    )
    args = parser.parse_args()
    manifest = read_json(args.manifest)
    api = HfApi()
    targets, problems = read(manifest)
    for target in targets:
        try:
            compare(target, api)
        except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
            raise UserError(hub.explain(error, target.repo, "model", api)) from None
    problems += gates(manifest, targets)
    print("\n".join(table(targets)), flush=True)
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        print(f"Nothing is published until this is put right:\n{lines}", file=sys.stderr)
        return args.action == "push"
    if args.action == "push":
        for target in targets:
            try:
                push(target, api, args.large)
            except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
                why = hub.explain(error, target.repo, "model", api, write=True)
                raise UserError(why) from None
    return None


if __name__ == "__main__":
    program(main)
