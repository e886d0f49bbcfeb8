"""Whether what lies on a published branch fits together: files, release, statements, signatures.

Nothing is taken from anywhere else. What does not fit is a `Fault` with the name of the file, and
what cannot be checked is one too.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.bound import OF_RULE, Bound, kind_of_machine, words
from lib.record.recipe import Record
from lib.trust import attest, keys, model_sig, statements
from lib.trust.statements import Statement

# What may be on a branch beside what is attested: it describes the rest, and is in the release.
DESCRIBES = re.compile(r"README\.md|[^/]+\.svg|recipes/.*|attestations/.*")
# What the hub adds itself; and in a copy, what git and the hub's client add.
BY_HUB = re.compile(r"\.gitattributes")
ADDED = re.compile(r"\.gitattributes|\.gitignore|\.git/.*|\.cache/huggingface/.*")
LARGEST = 16_000_000  # bytes of a statement, a record or a signature: they are read whole


@dataclass(frozen=True)
class Fault:
    """What does not fit. file: its name on the branch. text: in words."""

    file: str
    text: str


@dataclass
class Branch:
    """A branch as it was found, and what was read of it.

    repo: "org/name" where it is known; else None. name: the branch's; None for a directory.
    hashes: {name: sha256 (hex) of the bytes; None if they were not to be read}, of all files.
    open: from a file's name to where it lies; for small files.
    key: file of the public key that has to have signed; None: whoever did.
    """

    repo: str | None
    name: str | None
    hashes: dict[str, str | None]
    open: Callable[[str], Path]
    key: Path | None = None
    faults: list[Fault] = field(default_factory=list)
    signers: dict[str, str | None] = field(default_factory=dict)
    provenances: dict[str, Statement] = field(default_factory=dict)
    release: Statement | None = None

    def __post_init__(self) -> None:
        added = ADDED if self.repo is None else BY_HUB
        self.hashes = {n: sha for n, sha in self.hashes.items() if not added.fullmatch(n)}

    def check(self) -> None:
        """Find all faults of the branch alone."""
        for name in [name for name in self.hashes if not is_name(name)]:
            self._fault(name, "is no name of a file in a repository")
            del self.hashes[name]
        self.release = self._read(attest.RELEASE, statements.RELEASE)
        if self.release is not None:
            self._check_release(self.release)
        for name in sorted(self.hashes):
            path = attest.artifact_of(name)
            said = self._read(name, statements.PROVENANCE) if path else None
            if said is not None:
                self.provenances[path] = said
        for path, said in self.provenances.items():
            for text in chain_faults(path, said, self.provenances):
                self._fault(attest.name_of(path), text)
        for name in self.hashes:
            if name.startswith("recipes/") and name.endswith(recipes.SUFFIX):
                self._check_record(name)
            elif not DESCRIBES.fullmatch(name) and name != model_sig.NAME and not self.made(name):
                self._fault(name, "no statement says how it was made")
        if self.key is not None:
            self._check_signature()

    @cached_property
    def _by_digest(self) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for path, said in self.provenances.items():
            for each in said["subject"]:
                found.setdefault(str(each["digest"].get("sha256")), []).append((path, each["name"]))
        return found

    def made(self, name: str) -> tuple[str, str] | None:
        """(artifact, path of the file when it was made) of a file of the branch; None: unknown.

        Of artifacts with the same bytes, it is the one whose file has this name.
        """
        known = self._by_digest.get(self.digest(name) or "", [])
        named = (each for each in known if f"/{each[1]}".endswith(f"/{name}"))
        return next(named, known[0] if known else None)

    def digest(self, name: str) -> str | None:
        """sha256 (hex) of a file: of its bytes, else as the release has it; None: in neither."""
        return self.hashes.get(name) or self.released.get(name)

    @cached_property
    def released(self) -> dict[str, str]:
        """{name: sha256 (hex)} of the files of the release."""
        found = self.release["subject"] if self.release else []
        return {each["name"]: str(each["digest"].get("sha256")) for each in found}

    def _fault(self, file: str, text: str) -> None:
        self.faults.append(Fault(file, text))

    def _bytes(self, name: str) -> bytes:
        file = self.open(name)
        if file.stat().st_size > LARGEST:
            raise UserError("is larger than what is written here")
        return file.read_bytes()

    def _read(self, name: str, kind: str) -> Statement | None:
        if name not in self.hashes:
            self._fault(name, "is missing, so nothing says which files belong here")
            return None
        try:
            said, self.signers[name] = statements.read(self._bytes(name), self.key)
        except UserError as error:
            self._fault(name, str(error))
            return None
        if said["predicateType"] != kind:
            self._fault(name, f"is a statement of another kind ({said['predicateType']})")
            return None
        return said

    def _check_release(self, release: Statement) -> None:
        repo, _, branch = release["predicate"]["releaseId"].partition("@")
        if self.repo not in (None, repo) or self.name not in (None, branch):
            self._fault(attest.RELEASE, f"is{place_of(release)}")
        here = self.hashes.keys() - {attest.RELEASE, model_sig.NAME}
        for name in sorted(self.released.keys() | here):
            if name not in here:
                self._fault(name, "is of the release, and not there")
            elif name not in self.released:
                self._fault(name, "is not of the release")
            elif self.hashes[name] not in (None, self.released[name]):
                self._fault(name, "has other bytes than those of the release")

    def _check_record(self, name: str) -> None:
        try:
            record = record_of(self._bytes(name))
            said = self.provenances[record.artifact]
            fits = statements.identity(record) == statements.made(said, record.artifact)
            recipe = statements.recipe_of(said)
            fits = fits and (record.recipe, record.digest) == (recipe, recipes.digest(recipe))
        except (UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fits = False
        if not fits:
            self._fault(name, "does not say what the statement of its artifact says")

    def _check_signature(self) -> None:
        if model_sig.NAME not in self.hashes:
            self._fault(model_sig.NAME, "is missing: the branch is not signed")
            return
        try:
            self._bytes(model_sig.NAME)
            signed = model_sig.read(self.open(model_sig.NAME), self.key)
        except UserError as error:
            self._fault(model_sig.NAME, str(error))
            return
        here = {n: self.digest(n) for n in self.hashes if n not in model_sig.IGNORED}
        if here != signed:
            wrong = sorted(n for n in here.keys() | signed.keys() if here.get(n) != signed.get(n))
            self._fault(
                model_sig.NAME, f"signs other bytes, or other files: {', '.join(wrong[:3])}"
            )


def record_of(data: bytes) -> Record:
    """A record from the bytes of its file. Raises ValueError, KeyError or TypeError for others."""
    said = json.loads(data)
    needed = (said[key] for key in ("artifact", "recipe", "digest", "bytes", "sha256"))
    return Record(*needed, said.get("files") or {}, said["inputs"], said.get("notes") or {})


def chain_faults(path: str, said: Statement, known: Mapping[str, Statement]) -> Iterator[str]:
    """Yield what does not fit between an artifact's provenance and those of its inputs, in words.

    path: the artifact's. known: {path: provenance}.
    """
    build = said["predicate"]["buildDefinition"]
    if not all(map(is_place, [path, *(each["name"] for each in said["subject"])])):
        yield "names what is no place of an artifact"
    try:
        statements.made(said, path)
    except KeyError:
        yield "is a statement of another artifact"
    if recipes.digest(statements.recipe_of(said)) != build["internalParameters"]["recipe"]:
        yield "its recipe is not the one whose digest it says"
    for role, each in statements.dependencies(said, "input"):
        up = each.get("uri", "")
        if up not in known:
            yield f"no statement of what it was made from ({role}{': ' * bool(up)}{up})"
            continue
        its = known[up]["predicate"]["buildDefinition"]["internalParameters"]
        taken_as = {its["recipe"], *(entry["digest"] for entry in its.get("accepted", []))}
        if each["annotations"]["recipe"] not in taken_as:
            yield f"{up}: has another recipe than this was made from"
        try:
            is_same = each.get("digest") in (None, statements.made(known[up], up))
        except KeyError:
            is_same = False
        if not is_same:
            yield f"{up}: has other bytes than this was made from"


def place_of(release: Statement | None) -> str:
    """The words " of REPOSITORY, branch NAME", as a release says; "" if there is none."""
    if release is None:
        return ""
    repo, _, branch = release["predicate"]["releaseId"].partition("@")
    return f" of {repo}, branch {branch}"


def is_name(name: str) -> bool:
    """Whether a name is one of a file inside a repository, plainly written."""
    return name.isprintable() and ".." not in name.split("/") and not name.startswith("/")


def is_place(path: str) -> bool:
    """Whether a path is one where artifacts lie, so that it may be built and compared."""
    top, *parts = path.split("/")
    plain = path.isprintable() and not {"", ".", ".."}.intersection(parts)
    return top in ("results", "resources") and bool(parts) and plain


def where_again(path: str, known: Mapping[str, Statement], chain: bool = False) -> str:
    """Where an artifact can be made again with the same bytes, in words, as this machine sees it.

    known: {path: provenance}. chain: from the sources; else from the inputs that it was made from.
    "" where nothing keeps this machine from it.
    """
    here = kind_of_machine()
    for at, statement in statements.behind(path, known):
        build = statement["predicate"]["buildDefinition"]
        said, made = build["internalParameters"], "it" if at == path else at
        anywhere = OF_RULE.get(build["externalParameters"]["step"]) is Bound.ANYWHERE
        if not anywhere:  # what comes out the same anywhere does so whatever its statement says
            if said.get("bound") == Bound.NEVER.value:
                return f"{made} never comes out the same twice"
            elsewhere = said.get("machine") and said["machine"] != here
            if said.get("bound") != Bound.ANYWHERE.value and elsewhere:
                return f"{made} was made on {words(said['machine'])}"
        if not chain:
            break
    return ""


def sources(known: Mapping[str, Statement]) -> list[tuple[str, Any]]:
    """(name, identity) of all that comes from outside, each once."""
    found = {
        name: each["annotations"]["identity"]
        for said in known.values()
        for name, each in statements.dependencies(said, "source")
    }
    return sorted(found.items())


def main_faults(main: Branch, others: Mapping[str, Branch]) -> Iterator[Fault]:
    """Yield what does not fit between a repository's main branch and its others."""
    named = (main.release or {"predicate": {}})["predicate"].get("branches") or {}
    for name in sorted(named.keys() | others.keys()):
        if name not in others:
            yield Fault(attest.RELEASE, f"the branch {name} is of the release, and not there")
        elif name not in named:
            yield Fault(f"branch {name}", "is not of the release")
        elif others[name].release is None or statements.digest(others[name].release) != named[name]:
            yield Fault(f"branch {name}", "is another state of it than that of the release")


def signer_of(branches: list[Branch], key: Path | None) -> tuple[bool, str]:
    """(whether somebody known vouches for all of it, who signed in words)."""
    found = {signer for branch in branches for signer in branch.signers.values()}
    if key is not None:
        return True, f"signed by the key in {key} ({keys.public_key(key).keyid[:12]})"
    if found <= {None}:
        return False, "not signed"
    names = sorted(signer[:12] if signer else "nobody" for signer in found)
    return False, f"signed by somebody unknown ({', '.join(names)}); key=FILE says whom you know"
