"""Check as a stranger what is published: signatures, hashes, and how each file was made.

`snakemake audit --config repo=org/name` takes a repository of the hub, and nothing else;
`dir=PATH` a directory with a copy of a branch. Further options:

    key=FILE       the public key that must have signed; without it nobody vouches for anything
    expect=DIGEST  of the release, as the publisher tells it elsewhere: so an older state is found
    target=NAME,…  only these files are downloaded and hashed, beside the small ones
    rederive=FORM,… or all
                   makes these files again and compares the bytes: forms from what is published,
                   `all` from the sources

Exit status 1 if anything does not fit.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.errors import UserError, program
from lib.record.digests import sha256_of
from lib.run.answers import columns, open_session, parser
from lib.run.rederive import Rederived, rederive
from lib.trust import attest, audit, keys, model_sig, statements
from lib.trust.audit import Branch
from lib.units import count, printable

# Read whatever `target` says.
SMALL = re.compile(rf"{attest.FOLDER}/.*|recipes/.*|README\.md|{re.escape(model_sig.NAME)}")


def main() -> int | None:
    arguments = parser(__doc__, builds=True).parse_args()
    session = open_session(arguments.config)
    options = session.options
    for word in ("key", "expect", "target", "rederive"):
        # A shell's variable that is not set, for instance.
        if word in session.raw and not session.raw[word]:
            raise UserError(f"{word}: nothing stands after {word}=")
    if bool(options.repo) == bool(options.dir):
        raise UserError("what? Say --config repo=org/name, or dir=PATH")
    key = Path(options.key) if options.key else None
    if key:
        keys.public_key(key)
    if options.dir:
        found = {"main": directory(Path(options.dir), key, options.target)}
    else:
        found = dict(repository(options.repo, key, options.target))
    for branch in found.values():
        branch.check()
    main_branch = found["main"]
    faults = [(name, fault) for name, branch in found.items() for fault in branch.faults]
    if options.repo:
        others = {name: branch for name, branch in found.items() if name != "main"}
        faults += [("main", fault) for fault in audit.main_faults(main_branch, others)]
    digest = statements.digest(main_branch.release) if main_branch.release else "none"
    if options.expect and digest != options.expect.lower():
        text = f"is {digest}, not {options.expect}: another state than the expected one"
        faults.append(("main", audit.Fault(attest.RELEASE, text)))
    again = []
    if options.rederive and not faults:
        again = rederive(found, options.rederive, arguments)
    show(found, again)
    print(f"\nRelease {digest}{printable(audit.place_of(main_branch.release))}")
    vouched, said = audit.signer_of(list(found.values()), key)
    if not (vouched and faults):  # else not all of it is signed, perhaps
        print(printable(f"{said[0].upper()}{said[1:]}."))
    different = [each for each in again if each.different]
    if faults or different:
        print(f"\nDoes not fit: {count(len(faults) + len(different), 'file')}.")
        many = len(found) > 1
        for name, fault in faults:
            print(printable(f"  {f'{name}: ' if many else ''}{fault.file}: {fault.text}"))
        for each in different:
            print(printable(f"  {each.file}: {each.text}"))
        if options.rederive and not again:
            print("Nothing was made again.")
        return 1
    unread = sum(sha is None for branch in found.values() for sha in branch.hashes.values())
    if unread:
        print(f"{count(unread, 'file')} not read: of these only the release was checked.")
    if unlike := sum(each.unlike for each in again):
        print(f"{count(unlike, 'file')} not comparable here: making them again showed nothing.")
    print("All fits together." if vouched else "All fits together; nobody known vouches for it.")
    return None


def wanted(name: str, targets: list[str]) -> bool:
    """Whether a file is hashed."""
    return not targets or name in targets or SMALL.fullmatch(name) is not None


def directory(top: Path, key: Path | None, targets: list[str]) -> Branch:
    """A directory as a branch. Raises UserError if it is none, or has what cannot be checked.

    Links to files are followed: the hub's cache consists of them.
    """
    if not top.is_dir():
        raise UserError(f"dir: {top} is no directory")
    names = []
    for path in sorted(below(top)):
        name = path.relative_to(top).as_posix()
        if audit.ADDED.fullmatch(name):
            continue
        with told(path):
            if path.is_file():
                names.append(name)
            elif path.is_symlink() or not path.is_dir():
                text = "is a link to a directory or to nothing, or no file"
                raise unchecked(path, f" {text}, so what is in it would not be checked")

    def hashed(name: str) -> str:
        with told(top / name):
            return sha256_of(top / name)

    with ThreadPoolExecutor(4) as pool:
        read = [name for name in names if wanted(name, targets)]
        hashes = dict(zip(read, pool.map(hashed, read), strict=True))
    check_targets(names, targets)
    return Branch(None, None, {name: hashes.get(name) for name in names}, top.joinpath, key)


def below(top: Path) -> Iterator[Path]:
    """All that is in a directory. Raises UserError for a directory that may not be read."""

    def fail(error: OSError) -> None:
        raise unchecked(error.filename, f": {error.strerror}")

    for here, folders, files in os.walk(top, onerror=fail):
        yield from (Path(here, name) for name in (*folders, *files))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raise UserError if a file cannot be read in the `with` block."""
    try:
        yield
    except OSError as error:
        raise unchecked(path, f": {error.strerror}") from None


def unchecked(path: Path | str, why: str) -> UserError:
    """What is said of a file or directory of which not everything can be checked."""
    return UserError(printable(f"dir: {path}{why}"))


def repository(repo: str, key: Path | None, targets: list[str]) -> Iterator[tuple[str, Branch]]:
    """(name, branch) of each branch of a repository on the hub, at one commit, main first.

    Files come into huggingface_hub's cache. Raises UserError in one line.
    """
    from huggingface_hub import HfApi, hf_hub_download

    from lib.hub import client as hub

    api = HfApi()
    try:
        refs = hub.persist(lambda: api.list_repo_refs(repo)).branches
        commits = {ref.name: ref.target_commit for ref in refs}
        if "main" not in commits:
            raise UserError(f"{repo}: has no branch main")
        seen: list[str] = []
        for name in sorted(commits, key=lambda name: (name != "main", name)):
            commit = commits[name]
            listed = sorted(hub.listing(api, repo, commit))
            seen += listed

            def place(file: str, commit: str = commit) -> Path:
                return Path(hub.persist(lambda: hf_hub_download(repo, file, revision=commit)))

            hashes = {n: sha256_of(place(n)) if wanted(n, targets) else None for n in listed}
            yield name, Branch(repo, name, hashes, place, key)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
        raise UserError(hub.explain(error, repo, "model", api)) from None
    check_targets(seen, targets)


def check_targets(names: list[str], targets: list[str]) -> None:
    """Raise UserError for a target that is no file."""
    for target in targets:
        if target not in names:
            raise UserError(f"target: there is no file {target}")


def possible(branch: Branch, path: str | None) -> str:
    """Whether a file that was not made again could be, from what its artifact was made from."""
    if path is None:
        return ""
    why_not = audit.where_again(path, branch.provenances)
    return f"no: {why_not}" if why_not else "possible"


def described(identity: Any) -> str:
    """What a source from outside is, in words. identity: as in recipes."""
    if isinstance(identity, dict) and "hub" in identity:
        commit = f" at {identity['commit'][:12]}" if "commit" in identity else ""
        return f"{identity['hub']} on the hub{commit}"
    if isinstance(identity, dict) and "sha256" in identity:
        return f"sha256 {identity['sha256']}"
    return f"{count(len(identity), 'file')}, with their sha256 in its statement"


def show(found: dict[str, Branch], again: list[Rederived]) -> None:
    """Print the table of files, and what all is made from."""
    results = {(each.branch, each.file): each.text for each in again}
    for name, branch in found.items():
        print(printable(f"{branch.repo or 'directory'} {name}") if len(found) > 1 else "")
        rows = [("file", "attested", "signed", "re-derived")]
        for file in branch.hashes:
            if audit.DESCRIBES.fullmatch(file) or file == model_sig.NAME:
                continue
            path = (branch.made(file) or (None,))[0]
            step = branch.provenances[path]["predicate"]["buildDefinition"] if path else None
            signer = branch.signers.get(attest.name_of(path)) if path else None
            rows.append(
                (
                    file,
                    f"by {step['externalParameters']['step']}" if step else "no",
                    signer[:12] if signer else "no",
                    results.get((name, file)) or possible(branch, path),
                )
            )
        print("\n".join(columns(tuple(map(printable, row)) for row in rows)))
    known = {p: said for branch in found.values() for p, said in branch.provenances.items()}
    outside = audit.sources(known)
    if outside:
        print("\nMade from")
        rows = [(printable(name), printable(described(said))) for name, said in outside]
        print("\n".join(columns(rows)))


if __name__ == "__main__":
    program(main)
