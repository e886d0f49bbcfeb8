"""In-toto statements: how an artifact was made, and which files a published branch has.

The predicate of `provenance` is an SLSA provenance (https://slsa.dev/spec/v1.0/provenance), that of
`release` an in-toto release. A file of a statement is JSON; where it is signed, it is a DSSE
envelope (lib/trust/keys).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.recipe import Record
from lib.trust import keys

Statement = dict[str, Any]
MEDIA_TYPE = "application/vnd.in-toto+json"
TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
RELEASE = "https://in-toto.io/attestation/release/v0.1"
BUILD_TYPE = "urn:quantmill:step:v1"
# What a digest is of, beside the sha256 of a file: for a directory `recipes.digest` of {file:
# [bytes, sha256]}; for links to a source outside the recipe's, which has the source's identity.
DIRECTORY, LINKS = "quantmillFiles", "quantmillRecipe"


def provenance(record: Record, inputs: Mapping[str, Record], bound: str) -> Statement:
    """The statement of an artifact: its files, and all of its recipe.

    inputs: {role: record of the input}, as far as there are records. bound: where the same recipe
    and inputs give the same bytes (lib/record/bound.Bound).
    """
    recipe, known = recipes.normalise(record.recipe), {}
    for role, digest in recipe["inputs"].items():
        known[role] = {"name": f"input {role}", "annotations": {"recipe": digest}}
        if role in inputs:
            known[role]["uri"] = inputs[role].artifact
            (kind,) = identity(inputs[role])
            if role in record.inputs:  # else the step does not read it
                known[role]["digest"] = {kind: record.inputs[role]}
    sources = [
        {"name": f"source {name}", "annotations": {"identity": said}}
        for name, said in recipe["sources"].items()
    ]
    tools = [
        {"name": f"tool {tool}", "uri": f"pkg:generic/{tool}@{version}"}
        for tool, version in recipe["tools"].items()
    ]
    accepted = [{key: entry[key] for key in ("digest", "differs")} for entry in record.accepted]
    steps = {
        "buildType": BUILD_TYPE,
        "externalParameters": {key: recipe[key] for key in ("step", "options")},
        "internalParameters": {"recipe": record.digest, "code": recipe["code"]}
        | {"tools": recipe["tools"], "bound": bound}
        | ({"machine": record.machine} if record.machine else {})
        | ({"accepted": accepted} if accepted else {}),
        "resolvedDependencies": [*known.values(), *sources, *tools],
    }
    details = {"builder": {"id": BUILD_TYPE}}
    predicate = {"buildDefinition": steps, "runDetails": details}
    return _statement(subjects(record), PROVENANCE, predicate)


def release(
    repo: str, branch: str, files: Mapping[str, str], others: Mapping[str, str]
) -> Statement:
    """The statement of a branch: all files that were published on it.

    repo: "org/name". files: {name: sha256}. others: {branch: `digest` of its release}, of the other
    branches; only main has them.
    """
    subject = [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(files.items())]
    predicate = {"purl": f"pkg:huggingface/{repo}", "releaseId": f"{repo}@{branch}"}
    return _statement(subject, RELEASE, predicate | ({"branches": dict(others)} if others else {}))


def _statement(subject: list[dict], kind: str, predicate: dict[str, Any]) -> Statement:
    return {"_type": TYPE, "subject": subject, "predicateType": kind, "predicate": predicate}


def subjects(record: Record) -> list[dict[str, Any]]:
    """The files of an artifact, with their sha256; of links there is one subject for all."""
    if DIRECTORY not in identity(record):
        return [{"name": record.artifact, "digest": identity(record)}]
    return [
        {
            "name": f"{record.artifact}/{name}",
            "digest": {"sha256": sha},
            "annotations": {"bytes": size},
        }
        for name, (size, sha) in sorted(record.files.items())
    ]


def identity(record: Record) -> dict[str, str]:
    """{what the digest is of: digest} of an artifact, as those made from it name it."""
    kind = "sha256"
    if record.files:  # links are not hashed
        kind = DIRECTORY if all(sha for _, sha in record.files.values()) else LINKS
    return {kind: record.sha256}


def made(statement: Statement, path: str) -> dict[str, str]:
    """`identity`, from the provenance of an artifact. path: the artifact's.

    Raises KeyError if it is of another artifact.
    """
    files = statement["subject"]
    if len(files) == 1 and files[0]["name"] == path:
        return dict(files[0]["digest"])
    found = {}
    for each in files:
        top, _, name = each["name"].rpartition(f"{path}/")
        if top or not name:
            raise KeyError(path)
        found[name] = [each["annotations"]["bytes"], each["digest"]["sha256"]]
    return {DIRECTORY: recipes.digest(found)}


def dependencies(statement: Statement, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (role or name, descriptor) of what a provenance depends on.

    kind: `input`, `source` or `tool`.
    """
    for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]:
        found, _, name = each["name"].partition(" ")
        if found == kind:
            yield name, each


def behind(path: str, known: Mapping[str, Statement]) -> Iterator[tuple[str, Statement]]:
    """Yield (path, provenance) of an artifact and of all that it is made from, each once.

    known: {path: provenance}. What has none is left out.
    """
    todo, seen = [path], set()
    while todo:
        at = todo.pop()
        if at not in seen and at in known:
            seen.add(at)
            yield at, known[at]
            todo += [each["uri"] for _, each in dependencies(known[at], "input")]


def recipe_of(statement: Statement) -> dict[str, Any]:
    """The recipe that a provenance tells. Its digest is to be `recipe` in internalParameters."""
    build = statement["predicate"]["buildDefinition"]
    inputs, sources = (dependencies(statement, kind) for kind in ("input", "source"))
    return {
        **build["externalParameters"],
        **{key: build["internalParameters"][key] for key in ("tools", "code")},
        "inputs": {role: each["annotations"]["recipe"] for role, each in inputs},
        "sources": {name: each["annotations"]["identity"] for name, each in sources},
    }


def to_bytes(statement: Statement) -> bytes:
    """The bytes of a statement, which are signed: JSON with sorted keys."""
    return (json.dumps(statement, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def digest(statement: Statement) -> str:
    """sha256 (hex) of a statement, signed or not."""
    return hashlib.sha256(to_bytes(statement)).hexdigest()


def write(statement: Statement, directory: Path, key: Path | None) -> Path:
    """The file of a statement, signed if a private key is given. It is written if it is not there.

    Each signature is another one, so the file's name is made of what is signed and by whom.
    Raises UserError if the key is none.
    """
    data = to_bytes(statement)
    if key is None:
        return once(data, directory, lambda part: part.write_bytes(data))
    signer = keys.private_key(key).public_key.keyid

    def sign(part: Path) -> None:
        envelope = keys.sign(data, MEDIA_TYPE, key)
        part.write_bytes(json.dumps(envelope, indent=1).encode() + b"\n")

    return once(data + signer.encode(), directory, sign)


def once(said: bytes, directory: Path, write: Callable[[Path], object]) -> Path:
    """The file that is called after what it says. `write` writes it, if it is not there."""
    path = directory / hashlib.sha256(said).hexdigest()
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        write(part)
        os.replace(part, path)
    return path


def read(data: bytes, key: Path | None) -> tuple[Statement, str | None]:
    """(a statement, the signer's key id) from the bytes of its file.

    key: the public key that must have signed it; None: whoever signed it, unchecked. The key id is
    None if it is not signed. Raises UserError, without the file's name, for what is no statement,
    or not signed by this key.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError("is no JSON") from None
    signer = None
    if key is not None:
        data = keys.verify(document, MEDIA_TYPE, key)
        signer = keys.public_key(key).keyid
    elif (payload := keys.payload(document)) is not None:
        data, signer = payload, keys.signer(document)
    try:
        statement = json.loads(data)
        _check(statement)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is no in-toto statement of Quantmill's") from None
    return statement, signer


def _check(statement: Statement) -> None:
    """Raise ValueError, KeyError or TypeError for what is no statement as they are written here."""
    kind = statement["predicateType"]
    if statement["_type"] != TYPE or kind not in (PROVENANCE, RELEASE):
        raise ValueError
    for each in statement["subject"]:
        name, (value,) = each["name"], each["digest"].values()
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError
    to_bytes(statement)
    predicate = statement["predicate"]
    if kind == RELEASE:
        _texts(predicate["releaseId"], *(predicate.get("branches") or {}).values())
        return
    recipes.digest(recipe_of(statement))
    recipes.digest([each.get("annotations", {}).get("bytes") for each in statement["subject"]])
    build = predicate["buildDefinition"]
    said = build["internalParameters"]
    _texts(build["externalParameters"]["step"], said["recipe"], *said.get("machine", {}).values())
    _texts(*(entry["digest"] for entry in said.get("accepted", [])))
    for _, each in dependencies(statement, "input"):
        _texts(each.get("uri", ""), each["annotations"]["recipe"])
    for _, each in dependencies(statement, "source"):
        identity = each["annotations"]["identity"]
        _texts(*identity, *(identity[key] for key in ("hub", "commit") if key in identity))


def _texts(*values: Any) -> None:
    """Raise TypeError if one of them is no text."""
    if not all(isinstance(value, str) for value in values):
        raise TypeError
