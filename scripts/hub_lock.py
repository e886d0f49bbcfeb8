"""Write config/sources.lock.yaml: the commit of each hub reference, its files, sizes and sha256.

Weights are not downloaded, because the hub tells their sha256. Small files are downloaded into the
user's Hugging Face cache to be hashed; the build needs them anyway. The lock is YAML: `models` and
`datasets`, each {org/name@revision: {commit, files: {name: {sha256, size in bytes}}, license,
language}}. Exit status 1 if a reference cannot be locked; the others are written all the same.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, hf_hub_download

from lib.errors import UserError, program
from lib.formats import soundness
from lib.formats.json_file import read_json
from lib.hub import client as hub
from lib.hub import lock
from lib.hub.hubref import parse
from lib.hub.license import card_facts
from lib.hub.lock import File, HubSource, Lock, Locked
from lib.record.digests import git_hash


def needed_files(
    names: set[str], read: Callable[[str], bytes], allow_pickle: bool = False
) -> set[str]:
    """The names of those files of a model repository that a build needs.

    names: all its files. read: gives the content of one. `model_files` chooses them as it will for
    the build, in a directory of empty files that has the content of the index alone. Raises
    UserError as that does.
    """
    top = {name for name in names if "/" not in name}
    indexes = {name for name in top if name.endswith(".index.json")}
    indexes = {name for name in top if name.endswith(".safetensors.index.json")} or indexes
    with TemporaryDirectory() as place:
        for name in top:
            Path(place, name).write_bytes(read(name) if name in indexes else b"")
        try:
            return {file.name for file in soundness.files(Path(place), allow_pickle)}
        except UserError as error:
            text = str(error).replace(f"{place}/", "").removeprefix(f"{place}: ")
            raise UserError(text) from None


def lock_reference(source: HubSource, old: Locked | None, api: HfApi) -> Locked:
    """Ask the hub for the commit and the files of a source.

    old: the entry of a dataset to which a file is added; its commit is kept. Raises UserError, and
    what huggingface_hub raises.
    """
    ref = parse(source.ref)
    revision = old.commit if old else ref.revision
    info = hub.persist(lambda: api.repo_info(ref.repo, revision=revision, repo_type=source.kind))
    listing = hub.listing(api, ref.repo, info.sha, source.kind)

    def fetch(name: str) -> bytes:
        where = {"repo_type": source.kind, "revision": info.sha}
        path = Path(hub.persist(lambda: hf_hub_download(ref.repo, name, **where)))
        content = path.read_bytes()
        if not listing[name].lfs and git_hash(content) != listing[name].blob_id:
            hub.forget(path)
            raise UserError(f"{name} came with other bytes than the hub promises; run again")
        return content

    def describe(name: str) -> File:
        if listing[name].lfs:
            return File(listing[name].lfs.sha256, listing[name].lfs.size)
        content = fetch(name)
        return File(hashlib.sha256(content).hexdigest(), len(content))

    if source.kind == "dataset":
        if source.file not in listing:
            raise UserError(f"there is no file {source.file} in it at {info.sha}")
        names = {source.file}
    else:
        names = needed_files(set(listing), fetch, source.allow_pickle)
    with ThreadPoolExecutor(8) as pool:
        files = dict(zip(sorted(names), pool.map(describe, sorted(names)), strict=True))
    if old:
        files = {**old.files, **files}
    card = info.card_data.to_dict() if info.card_data else {}
    return Locked(source.ref, source.kind, info.sha, files, card_facts(card))


def lock_all(
    sources: list[HubSource], old: Lock, api: HfApi, renew: bool
) -> tuple[Lock, list[str]]:
    """(the lock with `sources` in it, a line for each reference that could not be locked).

    renew: ask again for references that are locked already. Without it a further file of a dataset
    is added at the commit that is locked.
    """
    new, problems = Lock(dict(old.entries)), []
    for source in dict.fromkeys(sources):
        key = (source.kind, source.ref)
        known = new.entries.get(key)
        if renew and known is old.entries.get(key):
            known = None
        try:
            new.entries[key] = lock_reference(source, known, api)
        except UserError as error:
            problems.append(f"{source.kind} {source.ref}: {error}")
        except Exception as error:  # noqa: BLE001 - every reference's problem is reported at once
            problems.append(hub.explain(error, parse(source.ref).repo, source.kind, api))
    return new, problems


def changes(old: Lock, new: Lock) -> list[str]:
    """A line for each reference that was locked or that has changed."""
    lines = []
    for key, entry in sorted(new.entries.items()):
        before = old.entries.get(key)
        if before is None:
            lines.append(f"{entry.ref}: locked at {entry.commit[:12]}")
        elif before.commit != entry.commit:
            lines.append(f"{entry.ref}: {before.commit[:12]} -> {entry.commit[:12]}")
        elif before != entry:
            lines.append(f"{entry.ref}: {entry.commit[:12]}, more files")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="working directory (default: this)"
    )
    parser.add_argument(
        "--sources",
        required=True,
        help="JSON file: [{ref: org/name[@revision], kind: model or dataset, file: of a dataset or "
        "null, allow_pickle: true or false}, …]; - is stdin",
    )
    parser.add_argument("--renew", action="store_true", help="ask again for what is locked")
    parser.add_argument("--only", default="", help="org/name,…: do not ask for other references")
    args = parser.parse_args()

    listed = json.load(sys.stdin) if args.sources == "-" else read_json(Path(args.sources))
    sources = [HubSource(**source) for source in listed]
    if args.only:
        only = set(args.only.split(","))
        sources = [s for s in sources if {s.ref, parse(s.ref).repo} & only]
        if not sources:
            raise UserError(f"the config has no hub reference {args.only}")
    old = Lock.read(args.directory)
    new, problems = lock_all(sources, old, HfApi(), args.renew)
    lines = changes(old, new)
    if lines:
        lock.write(args.directory, new)
    print("\n".join(lines) or "lock: nothing moved")
    if problems:
        raise UserError(*problems)


if __name__ == "__main__":
    program(main)
