"""Build a model again elsewhere, compare every artifact, and say where it differs.

`snakemake verify_rebuild --config model=NAME` names the model. It is built in
.snakemake/quantmill/verify/NAME, which is deleted if nothing differs. Sources, texts and tools are
the same: everything in the working directory but the results is linked there. Quants that never
come out the same twice are compared by their mean KLD. What is bound to the kind of machine and was
built on another kind is no fault if it differs, nor is what is made from it. Exit status 1 if
anything else differs.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.gguf_file import read_gguf
from lib.formats.safetensors import read_header
from lib.formats.same_bytes import same_bytes
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.bound import Bound, words
from lib.record.digests import sha256_of
from lib.run.answers import build, columns, open_session, parser
from lib.run.scratch import BUILT, new_directory
from lib.run.session import Session
from lib.stages.registry import STAGES
from lib.units import count

# Not linked: what is built, and resources/work, where a tool would find its interrupted job and
# resume it.
OURS = {*BUILT, "work"}
# Two builds that are never the same may differ by this share of the mean KLD, or by three standard
# errors.
TOLERANCE = 0.1
# How verdicts begin: of what is as it was, and of what may differ here.
SAME = ("identical", "within")
ELSEWHERE = ("bound to", "not comparable here")


def main() -> int | None:
    arguments = parser(__doc__, builds=True).parse_args()
    session = open_session(arguments.config)
    if len(session.options.model) != 1:
        raise UserError("which model? Say --config model=NAME, one name")
    (name,) = session.options.model
    skip = set(session.options.skip)
    if shutil.which("nvidia-smi") is None:
        for family in (f for f in session.config.models[name].families() if f.needs_gpu):
            print(f"There is no GPU here: {family.title} is not built again and not compared.")
            skip.add(family.name)
    scratch = prepare(name)
    rebuild(scratch, arguments, skip)
    rows = compare(session, name, scratch, skip)
    print("\n".join(columns(rows)))
    different = [row for row in rows if not row[1].startswith((*SAME, *ELSEWHERE))]
    others = [row for row in rows if row[1].startswith(ELSEWHERE)]
    if others:
        print(f"\n{count(len(others), 'artifact')} may differ here, and so cannot be compared.")
        print("\n".join(machines(session, name, scratch)))
    if different:
        print(
            f"\nDifferent: {len(different)} of {len(rows)}. What was built again is in {scratch}."
        )
        return 1
    shutil.rmtree(scratch)
    compared = count(len(rows) - len(others), "artifact")
    print(f"\n{'The other' if others else 'All'} {compared} of {name} came out the same again.")
    return None


def prepare(name: str) -> Path:
    """A new directory with links to everything in the working directory but what is built."""
    found = [*Path.cwd().iterdir(), *Path.cwd().glob("resources/*")]
    return new_directory(f"verify/{name}", (path for path in found if path.name not in OURS))


def rebuild(scratch: Path, arguments: argparse.Namespace, skip: set[str]) -> None:
    """Build the model in `scratch`; intermediates are not deleted. Raises UserError if that fails.

    skip: the families that are left out.
    """
    raw = json.loads(arguments.config.read_text()) | {"reclaim": [], "skip": sorted(skip)}
    config = Path.cwd() / scratch / "verify.json"
    config.write_text(json.dumps(raw))
    if not build(arguments, config, "--directory", scratch, "--notemp", takes=False):
        raise UserError(f"the build in {scratch} failed; see above")


def compare(session: Session, name: str, scratch: Path, skip: set[str]) -> list[tuple[str, str]]:
    """(path, verdict) of each artifact of the model that has a record here.

    skip: the families that were not built again.
    """
    rows, adopted = [], False  # adopted: something was accepted as it is, and cards tell so
    families = session.graph.model(name).families.items()
    skipped = [one for key, made in families if key in skip for one in made.artifacts]
    for artifact in session.graph.artifacts(name).values():
        noted = artifact.rule == cold.RULE  # nothing is deleted there
        for path in () if noted or artifact in skipped else artifact.outputs:
            record = recipes.read(path)
            if record is None:
                continue
            text = verdict(artifact, path, record, scratch)
            if artifact.describes and adopted:
                text = "within what was accepted, of which it tells"
            if accepted := record.acceptance(artifact.digest):
                adopted = True
                differs = "; ".join(accepted["differs"])
                text += f" (accepted by {accepted['by']}, although: {differs})"
            rows.append((path, text))
    return rows


def verdict(artifact: Artifact, path: str, record: recipes.Record, scratch: Path) -> str:
    """The verdict in words. It begins with "identical" or "within" if all is well."""
    again = recipes.read(path, scratch)
    if again is None:
        return "not built again"
    if not record.fits(again.digest):
        return (
            "not comparable: it was built from another recipe than the config wants now "
            "(snakemake why)"
        )
    if not artifact.reproducible:
        return "within tolerance if its evaluation is (it never comes out the same twice)"
    varies = not all(up.reproducible for up in artifact.inputs.values())
    excuse = elsewhere(artifact, scratch)
    if (varies or excuse) and STAGES[artifact.rule].measures and os.path.lexists(path):
        return by_quality(path, scratch) or excuse
    if not os.path.lexists(path):
        if again.sha256 == record.sha256:
            return "identical to its record"
        return excuse or "different from its record; the file itself is gone"
    if excuse and is_recorded(path, record):
        return excuse
    if artifact.directory:
        return directory_difference(Path(path), scratch / path, again)
    if sha256_of(path) == again.sha256:
        return "identical"
    return difference(Path(path), scratch / path)


def elsewhere(artifact: Artifact, scratch: Path) -> str | None:
    """Why an artifact may have other bytes here than it had, as a verdict; None: it may not.

    It was built on another kind of machine, to which it is bound, or is made from such a one.
    """
    ours, again = recipes.read(artifact.path), recipes.read(artifact.path, scratch)
    if ours is None or again is None or ours.sha256 == again.sha256:
        return None
    if artifact.bound is Bound.MACHINE and ours.machine and ours.machine != again.machine:
        return f"bound to {artifact.bound.value}; it was built on another"
    for role, up in artifact.read.items():
        if ours.inputs.get(role) != again.inputs.get(role) and elsewhere(up, scratch):
            return f"not comparable here: {Path(up.path).name} has other bytes"
    return None


def machines(session: Session, name: str, scratch: Path) -> list[str]:
    """A line for each other kind of machine that built the model's artifacts, and for this one."""
    records = [
        [recipes.read(path, top) for path in session.graph.artifacts(name)] for top in ("", scratch)
    ]
    there, here = (
        dict.fromkeys(words(record.machine) for record in found if record and record.machine)
        for found in records
    )
    others = [f"  built on {kind}" for kind in there if kind not in here]
    return others + [f"  this is  {kind}" for kind in here]


def is_recorded(path: str, record: recipes.Record) -> bool:
    """Whether a file, or each file of a directory, has the sha256 that its record says."""
    files = {Path(path, name): sha for name, (_, sha) in record.files.items()}
    wanted = files or {Path(path): record.sha256}
    return all(file.exists() and sha256_of(file) == sha for file, sha in wanted.items())


def by_quality(path: str, scratch: Path) -> str | None:
    """The verdict on an evaluation of what may have other bytes, by its KLD; None: it has none."""
    before, now = (json.loads((top / path).read_text()).get("kld") for top in (Path(), scratch))
    if before is None or now is None:
        return None
    allowed = max(TOLERANCE * before["mean"], 3 * (before.get("error") or 0.0))
    text = f"mean KLD {before['mean']:.5f}, again {now['mean']:.5f}"
    is_within = abs(before["mean"] - now["mean"]) <= allowed
    return f"{'within tolerance' if is_within else 'different'}: {text}"


def directory_difference(ours: Path, theirs: Path, again: recipes.Record) -> str:
    """The verdict on a directory: identical, or its first file that differs and where."""
    for name, (size, sha) in sorted(again.files.items()):
        if not (ours / name).exists():
            return f"different: {name} is missing"
        if (ours / name).stat().st_size != size or sha256_of(ours / name) != sha:
            return f"{difference(ours / name, theirs / name)} of {name}"
    return "identical"


def difference(ours: Path, theirs: Path) -> str:
    """The verdict on two files that differ: the first tensor, field, key or byte that does."""
    where = None
    try:
        if ours.suffix == ".gguf":
            where = gguf_difference(ours, theirs)
        elif ours.suffix == ".safetensors":
            where = safetensors_difference(ours, theirs)
        elif ours.suffix == ".json":
            lines = recipes.difference(json.loads(ours.read_text()), json.loads(theirs.read_text()))
            where = lines[0] if lines else None
    except (UserError, OSError, ValueError) as error:
        where = f"cannot be read ({error})"
    return f"different: {where or first_byte(ours, theirs)}"


def gguf_difference(ours: Path, theirs: Path) -> str | None:
    """The first field or tensor that differs; None if all are equal, as where only padding differs.

    Raises UserError for a file that is no GGUF.
    """
    a, b = read_gguf(ours), read_gguf(theirs)
    for key in sorted(a.raw.keys() | b.raw.keys()):
        if a.raw.get(key) != b.raw.get(key):
            return f"field {key}"
    kinds, others = ([(t.name, t.shape, t.type) for t in file.tensors] for file in (a, b))
    if kinds != others:
        return "names, shapes or types of tensors"
    pairs = zip(a.tensors, b.tensors, strict=True)
    spans = ((t.name, t.offset, u.offset, t.size) for t, u in pairs)
    return tensor_difference(ours, theirs, spans)


def safetensors_difference(ours: Path, theirs: Path) -> str | None:
    """The first field or tensor that differs; None if only the headers' spelling does."""
    a, b = read_header(ours), read_header(theirs)
    if a.metadata != b.metadata:
        return "field __metadata__"
    if a.tensors != b.tensors:
        return "names, shapes or types of tensors"
    spans = (
        (name, a.start + tensor.first, b.start + tensor.first, tensor.end - tensor.first)
        for name, tensor in a.tensors.items()
    )
    return tensor_difference(ours, theirs, spans)


def tensor_difference(
    ours: Path, theirs: Path, spans: Iterable[tuple[str, int, int, int]]
) -> str | None:
    """The first tensor whose bytes differ, as "tensor NAME"; None if there is none.

    spans: (name, offset in ours, offset in theirs, size in bytes).
    """
    for name, here, there, size in spans:
        if not same_bytes(ours, here, theirs, there, size):
            return f"tensor {name}"
    return None


def first_byte(ours: Path, theirs: Path) -> str:
    """The offset of the first byte that differs, as "byte N"."""
    at = 0
    with ours.open("rb") as a, theirs.open("rb") as b:
        while (left := a.read(1 << 20)) == (right := b.read(1 << 20)) and left:
            at += len(left)
    return f"byte {at + len(os.path.commonprefix([left, right]))}"


if __name__ == "__main__":
    program(main)
