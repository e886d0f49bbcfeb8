"""What is published beside files so that a stranger can check them: statements and signatures.

A branch gets attestations/PATH.intoto.json for each artifact that is on it and for all that these
are made from, attestations/release.intoto.json of all files of the branch, and, where there is a
key, model.sig.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lib.record import recipe as recipes
from lib.record.bound import Bound
from lib.record.layout import RUN_STATE
from lib.record.recipe import Record
from lib.trust import model_sig, statements

FOLDER = "attestations"
SUFFIX = ".intoto.json"
RELEASE, SIGNATURE = f"{FOLDER}/release{SUFFIX}", model_sig.NAME


def name_of(artifact: str) -> str:
    """The name of an artifact's provenance in a repository. artifact: its path."""
    return f"{FOLDER}/{artifact}{SUFFIX}"


def artifact_of(name: str) -> str | None:
    """The path of the artifact whose provenance has this name; None: it is that of none."""
    if name.startswith(f"{FOLDER}/") and name.endswith(SUFFIX) and name != RELEASE:
        return name.removeprefix(f"{FOLDER}/").removesuffix(SUFFIX)
    return None


def provenances(
    artifacts: Iterable[str],
    made_from: Mapping[str, Mapping[str, str]],
    bounds: Mapping[str, str],
    key: Path | None,
) -> tuple[dict[str, Path], list[str]]:
    """({name in the repository: file} of the provenances of artifacts and of all behind them,
    paths of those that have no record, so that an audit will find a gap there).

    artifacts: their paths. made_from: {path: {role: path of the input}}. bounds: {path: what the
    bytes are bound to}. key: file of a private key.
    """
    records: dict[str, Record] = {}
    missing: list[str] = []
    todo = list(artifacts)
    while todo:
        path = todo.pop()
        if path in records or path in missing:
            continue
        if (record := recipes.read(path)) is None:
            missing.append(path)
        else:
            records[path] = record
            todo += made_from.get(path, {}).values()
    found = {}
    for path, record in sorted(records.items()):
        inputs = {
            role: records[up] for role, up in made_from.get(path, {}).items() if up in records
        }
        bound = bounds.get(path, Bound.MACHINE.value)
        statement = statements.provenance(record, inputs, bound)
        found[name_of(path)] = statements.write(statement, RUN_STATE / FOLDER, key)
    return found, missing


def release(
    repo: str, branch: str, files: Mapping[str, str], others: Mapping[str, str], key: Path | None
) -> tuple[Path, str]:
    """(the file of a branch's release, its digest). The parameters are as `statements.release`."""
    statement = statements.release(repo, branch, files, others)
    return statements.write(statement, RUN_STATE / FOLDER, key), statements.digest(statement)


def signature(repo: str, files: Mapping[str, str], key: Path) -> Path:
    """The file of the signature of a branch. files: {name: sha256} of all others on it."""
    kept = {name: sha for name, sha in files.items() if name not in model_sig.IGNORED}
    return model_sig.write(kept, repo, RUN_STATE / FOLDER, key)


def text(content: str) -> Path:
    """A file with this content."""
    data = content.encode()
    return statements.once(data, RUN_STATE / FOLDER, lambda part: part.write_bytes(data))
