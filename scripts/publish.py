"""Publish finished forms on the hub: print what would change (`plan`), or upload it (`push`).

The manifest is a JSON object, which the planner writes:

    repos    [{repo: "org/name-GGUF", private: true or false, max_file_size: bytes,
             branches: {"main" and others: [FILE]}, recipes: {name: path of an artifact},
             sign: file of a private key or null, texts: {name: content of a small file}}]
    forms    [{model, family, form, artifact: path, evaluation: path or null,
             max_kld: nats per token or null, survivors, quantized: true or false}]: what must hold
             before anything is published; with `survivors` a form that one of its family, no
             larger, beats is left out
    made_from {path: {role: path of the input}} of all that is published and of all behind it
    bounds    {path: what its bytes are bound to (lib/record/bound)} of the same
    uploads   [paths of files that `snakemake publish` takes and uploads itself if they are cold]

    FILE     {artifact: path of a file or directory,
             name: its name in the repository; for a directory a prefix of its files' names,
             digest: of the recipe that it must be made by; left out if any will do,
             shards: path of the directory of its shards, or null,
             recipe: false if its record is not published}

Sizes and hashes are taken from the artifacts' records. A file over max_file_size is published as
its shards alone. Records are published as recipes/NAME.recipe.json; those of `recipes` on main.
Beside them lie in-toto statements of how each file was made and of which files a branch has
(lib/trust/attest), signed where there is a key.

Each file is compared with the hub's by hash: `add`, `replace` or `keep`. Other files in the
repository are left as they are; only statements of what is no longer published are deleted. A push
makes a commit for each large file and one for all small files of a branch; `main` comes last. After
an interruption the same command uploads what is missing. Nothing is uploaded before every check
holds: measured, KLD at most max_kld, hashes as recorded, a card with license, library and tags.
Exit status 1 if a push is refused or fails; a plan lists the reasons and ends with 0.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from lib.errors import UserError, program
from lib.formats.json_file import read_json
from lib.hub import client as hub
from lib.hub.license import front_matter
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.digests import git_hash, sha256_of
from lib.report import judge
from lib.report.looks import Looks
from lib.trust import attest
from lib.units import count, human, is_are

CARD = "README.md"
CARD_FACTS = ("license", "library_name", "tags")


@dataclass
class Item:
    """A file to publish.

    path: where it lies here. name: in the repository. size: bytes. sha256: by its record; None for
    a record, which has none. action: what a push does with it: add, replace or keep.
    """

    path: Path
    name: str
    size: int
    sha256: str | None
    action: str = "add"


@dataclass
class Branch:
    """A branch: the files to publish on it, and the names of other files that are there.

    artifacts: the paths of those that are attested. outdated: names of statements on the hub of
    what is not published any more.
    """

    name: str
    items: list[Item]
    artifacts: list[str] = field(default_factory=list)
    exists: bool = False
    others: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)


@dataclass
class Target:
    """A repository and its branches, `main` last. private: what the manifest asks for."""

    repo: str
    private: bool
    branches: list[Branch]
    is_private: bool | None = None  # as the hub has it; None where there is no such repository

    @property
    def changes(self) -> list[Item]:
        """The files that a push would upload."""
        return [item for b in self.branches for item in b.items if item.action != "keep"]


def beaten(manifest: dict) -> dict[str, str]:
    """{path of an artifact that is left out: by which form it is beaten, in words}."""
    families: dict[tuple[str, str], list[dict]] = {}
    for form in manifest["forms"]:
        # What is missing or no figure is told by the gates.
        there = form.get("survivors") and recipes.read(form["artifact"])
        if there and not list(form_problems({**form, "max_kld": None})):
            entry = {**form, "file": form["artifact"], "bytes": there.bytes}
            families.setdefault((form["model"], form["family"]), []).append(entry)
    found = {}
    for entries in families.values():
        forms = [judge.form_of(entry, {}, Path("manifest"), Looks()) for entry in entries]
        rivals = judge.rivals(forms)
        for form in forms:
            if form.name in rivals and (rival := rivals[form.name]).beats:
                value, error = rival.difference
                found[form.file] = f"{rival.form.name}, by {value:.6f} ± {error:.6f} nats a token"
    return found


def read(manifest: dict, left_out: Collection[str] = ()) -> tuple[list[Target], list[str]]:
    """(the repositories, a line for each file that cannot be published).

    left_out: paths of artifacts.
    """
    problems: list[str] = []
    targets = []
    for repo in manifest["repos"]:
        limit, branches = repo["max_file_size"], []
        for name in sorted(repo["branches"], key=lambda name: (name == "main", name)):
            files = [file for file in repo["branches"][name] if file["artifact"] not in left_out]
            if not files:
                continue
            found = [item for file in files for item in items(file, limit, problems)]
            paths = [file["artifact"] for file in files if file.get("recipe", True)]
            shards = [file["shards"] for file in files if file.get("shards")]
            folders = {str(item.path.parent) for item in found}
            paths += [path for path in shards if path in folders]
            if name == "main":
                wanted = [each for each in repo["recipes"].items() if recipes.read(each[1])]
                found += [recipe_item(path, label) for label, path in wanted]
                paths += [path for _, path in wanted]
                found += [small_item(attest.text(t), label) for label, t in repo["texts"].items()]
            first = {item.name: item for item in reversed(found)}
            branches.append(Branch(name, [first[key] for key in sorted(first)], paths))
        targets.append(Target(repo["repo"], repo["private"], branches))
    return targets, problems


def add_attestations(target: Target, manifest: dict, key: Path | None) -> set[str]:
    """Add to each branch the statements of its files, its release and its signature.

    Returns the paths of what has no record. Raises UserError if the key is none.
    """
    releases: dict[str, str] = {}
    gaps: set[str] = set()
    for branch in target.branches:  # main comes last, and names the releases of the others
        said, missing = attest.provenances(
            branch.artifacts, manifest["made_from"], manifest["bounds"], key
        )
        gaps.update(missing)
        branch.items += [small_item(path, name) for name, path in said.items()]
        files = {item.name: item.sha256 or sha256_of(item.path) for item in branch.items}
        others = releases if branch.name == "main" else {}
        path, releases[branch.name] = attest.release(target.repo, branch.name, files, others, key)
        branch.items.append(small_item(path, attest.RELEASE))
        if key:
            path = attest.signature(target.repo, files | {attest.RELEASE: sha256_of(path)}, key)
            branch.items.append(small_item(path, attest.SIGNATURE))
    return gaps


def items(file: dict, limit: int, problems: list[str]) -> Iterator[Item]:
    """The files that are published of one artifact.

    file: an entry of the manifest. limit: the most bytes of a file. A line for each file that
    cannot be published is added to `problems`.
    """
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
        here = Path(path).is_file()
        if not here and not cold.place_of(artifact, record):
            problems.append(f"{path}: not there; build it first")
        elif not here and size <= limit:
            yield Item(Path(path), member, size, sha)
        elif not here:
            continue
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
    """The item of an artifact's record. name: the artifact's in the repository."""
    return small_item(Path(recipes.path_of(artifact)), f"recipes/{name}{recipes.SUFFIX}")


def small_item(path: Path, name: str) -> Item:
    """The item of a file that has no record."""
    return Item(path, name, path.stat().st_size, None)


def compare(target: Target, api: HfApi) -> None:
    """Compare with the files on the hub and fill in each item's action.

    Raises what huggingface_hub raises.
    """
    try:
        info = hub.persist(lambda: api.repo_info(target.repo))
    except RepositoryNotFoundError:
        return
    target.is_private = bool(info.private)
    for branch in target.branches:
        try:
            there = hub.listing(api, target.repo, branch.name)
        except RevisionNotFoundError:
            continue
        branch.exists = True
        for item in branch.items:
            if item.name in there:
                item.action = "keep" if is_same(item, there[item.name]) else "replace"
        ours = {item.name for item in branch.items} | {".gitattributes"}
        others = sorted(set(there) - ours)
        branch.outdated = [name for name in others if attest.artifact_of(name)]
        branch.others = [name for name in others if name not in branch.outdated]


def is_same(item: Item, remote: RepoFile) -> bool:
    """Whether both files have the same content: by sha256, or by git's hash for a small file."""
    if remote.lfs:
        sha256 = item.sha256 or sha256_of(item.path)
        return remote.lfs.size == item.size and remote.lfs.sha256 == sha256
    if not item.path.exists():  # cold: only its sha256 is known
        return False
    return remote.size == item.size and remote.blob_id == git_hash(item.path.read_bytes())


def gates(manifest: dict, targets: list[Target], pushes: bool = True) -> list[str]:
    """The reasons why nothing may be published, a line each.

    Hashes every file that would be uploaded. pushes: what is cold was to be uploaded before.
    """
    problems = [line for form in manifest["forms"] for line in form_problems(form)]
    problems += [line for target in targets for line in card_problems(target)]
    changed = [item for target in targets for item in target.changes if item.sha256]
    away = [item for item in changed if not item.path.exists()]
    hint = "is cold, and not on the hub; this brings it back: snakemake --cores all"
    later = () if pushes else manifest.get("uploads", ())
    missing = [item.path for item in away if str(item.path) not in later]
    problems += [f"{path}: {hint} {path}" for path in missing]
    changed = [item for item in changed if item not in away]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda item: sha256_of(item.path), changed)
        for item, sha in zip(changed, found, strict=True):
            if sha != item.sha256:
                problems.append(f"{item.path}: sha256 {sha}, but its recipe says {item.sha256}")
    return problems


def form_problems(form: dict) -> Iterator[str]:
    """Reasons against one form: it was not measured, its figures are bad, it wrote no text."""
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


def figure_problems(form: dict, evaluation: dict) -> Iterator[str]:
    """Reasons against a form's figures: NaN, infinity, no mean KLD, one over max_kld."""
    path, quantized = form["evaluation"], form.get("quantized", True)
    for key, value in numbers(evaluation):
        if not math.isfinite(value):
            yield f"{path}: {key} is {value}"
    kld = (evaluation.get("kld") or {}).get("mean")
    if kld is None and quantized:
        yield f"{path}: kld.mean is missing"
    elif kld is not None and form["max_kld"] is not None and kld > form["max_kld"]:
        yield f"{path}: kld.mean is {kld:.6g}, over max_kld {form['max_kld']:g}"


def numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """(key path, number) of every number in a JSON document, as ("kld.mean", 0.01)."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from numbers(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from numbers(entry, f"{key}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def card_problems(target: Target) -> Iterator[str]:
    """Reasons against a repository's card: it is missing, or lacks facts or names of files."""
    main = {item.name: item for b in target.branches if b.name == "main" for item in b.items}
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
    for name in main:
        # Shards lie in a folder, which is named instead of them.
        shown = name.rpartition("/")[0] or name
        if name.endswith(".gguf") and shown not in text:
            yield f"{card.path}: does not name {shown}"
    for link in re.findall(r"!\[[^\]]*\]\(([^):]+)\)", text):
        if link not in main:
            yield f"{card.path}: shows {link}, which is not published"


def table(targets: list[Target]) -> list[str]:
    """The lines that say what a push would do."""
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
            folder = f"{attest.FOLDER}/"
            shown = [item for item in branch.items if not item.name.startswith(folder)]
            rows = [(item.action, human(item.size), item.name) for item in shown]
            for action in ("add", "replace", "keep"):
                said = [i for i in branch.items if i not in shown and i.action == action]
                if said:
                    size = human(sum(item.size for item in said))
                    rows.append((action, size, f"{folder} ({count(len(said), 'statement')})"))
            if branch.outdated:
                said = f"{folder} ({count(len(branch.outdated), 'statement')} of what is gone)"
                rows.append(("delete", "", said))
            rows += [("left", "", name) for name in branch.others]
            lines += [f"    {action:8}{size:>10}  {name}" for action, size, name in rows]
    items = [item for target in targets for item in target.changes]
    kept = sum(len(b.items) for t in targets for b in t.branches) - len(items)
    total = human(sum(item.size for item in items))
    there = f"{kept} {is_are(kept)} there already"
    if left := sum(len(b.others) for t in targets for b in t.branches):
        lines.append(
            f"{count(left, 'file')} left: not of this release, as `snakemake audit` will say"
        )
    lines.append(f"{count(len(items), 'file')} to upload, {total}; {there}")
    return lines


def push(target: Target, api: HfApi, large: int) -> None:
    """Create the repository and branches that are missing, and upload what differs.

    large: bytes from which a file has a commit of its own. Raises what huggingface_hub raises.
    """
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
            gone = branch.outdated if batch[-1].size < large else []
            names = ", ".join(item.name for item in batch[:3])
            more = f" and {len(batch) - 3} more" if len(batch) > 3 else ""
            title = f"Quantmill: {names}{more}"
            info = hub.persist(partial(commit, target.repo, branch.name, batch, gone, title, api))
            print(f"{target.repo} {branch.name}: {names}{more} ({info.oid[:12]})", flush=True)


def batches(branch: Branch, large: int) -> list[list[Item]]:
    """The commits of a branch: one for each large file, then one for all small ones.

    So the card comes last.
    """
    changed = [item for item in branch.items if item.action != "keep"]
    small = [item for item in changed if item.size < large]
    return [[item] for item in changed if item.size >= large] + ([small] if small else [])


def commit(
    repo: str, branch: str, batch: list[Item], gone: list[str], title: str, api: HfApi
) -> CommitInfo:
    """Make one commit. Called again after a fault, it skips the files that the hub has already.

    gone: names of files that it deletes.
    """
    operations = [CommitOperationDelete(name) for name in gone]
    for item in batch:
        operation = CommitOperationAdd(item.name, item.path)
        if item.sha256:  # the gates have just computed it: spare the client a second reading
            operation.upload_info.sha256 = bytes.fromhex(item.sha256)
        operations.append(operation)
    return api.create_commit(repo, operations, commit_message=title, revision=branch)


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("plan", "push"), help="print, or print and upload")
    parser.add_argument("--manifest", type=Path, required=True, help="JSON object, keys above")
    parser.add_argument(
        "--large", type=int, default=100_000_000, help="bytes from which a file has its own commit"
    )
    args = parser.parse_args()
    manifest = read_json(args.manifest)
    api, left_out = HfApi(), beaten(manifest)
    manifest["forms"] = [form for form in manifest["forms"] if form.get("artifact") not in left_out]
    targets, problems = read(manifest, left_out)
    keys = {repo["repo"]: repo["sign"] for repo in manifest["repos"]}
    for target in targets if not problems else ():
        key = keys[target.repo]
        try:
            for path in sorted(add_attestations(target, manifest, Path(key) if key else None)):
                print(f"{path}: no recipe beside it, so nobody can check what was made from it")
        except UserError as error:
            problems.append(str(error))
    for target in targets:
        try:
            compare(target, api)
        except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
            raise UserError(hub.explain(error, target.repo, "model", api)) from None
    problems += gates(manifest, targets, args.action == "push")
    print("\n".join(table(targets)), flush=True)
    for path, by in left_out.items():
        print(f"left out: {path} is beaten by {by}", flush=True)
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
