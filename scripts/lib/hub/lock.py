"""The lock, config/sources.lock.yaml: the commit and the files that each hub reference means.

    models:
      org/name@revision:                       # the reference as it is written in the config
        commit: 0123…
        files:
          model.safetensors: {sha256: 89ab…, size: 1234}
        license: apache-2.0                    # as the repository's card says; may be missing
    datasets:
      org/dataset: …                           # only the files that corpora name

The Snakefile imports this module at each start, so it uses the standard library and yaml only.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from lib.errors import UserError
from lib.hub.hubref import parse

LOCK_FILE = Path("config/sources.lock.yaml")
HEADER = """\
# What the references to the hub in the config mean: written by Quantmill, to be committed.
# A branch that moves on the hub changes nothing here; renew with `snakemake lock`
# (one reference: `snakemake lock --config only=org/name`).
"""
SECTIONS = {"model": "models", "dataset": "datasets"}
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub that the config needs.

    ref: the reference, as written in the config. kind: "model" or "dataset".
    file: the file that is needed of a dataset; None for a model.
    allow_pickle: whether pickled weights may be used.
    """

    ref: str
    kind: str = "model"
    file: str | None = None
    allow_pickle: bool = False


@dataclass
class File:
    """A file of a locked repository. sha256: hex. size: bytes."""

    sha256: str
    size: int


@dataclass
class Locked:
    """An entry of the lock.

    ref, kind: as in HubSource. commit: its hash (hex). files: {path in the repository: file}.
    card: `license` and the like from the repository's card. It is no part of the identity.
    """

    ref: str
    kind: str
    commit: str
    files: dict[str, File]
    card: dict[str, object] = field(default_factory=dict)

    @property
    def repo(self) -> str:
        """The reference without its revision: org/name."""
        return parse(self.ref).repo

    def identity(self, file: str | None = None) -> dict[str, str]:
        """The source in recipes: its repository, its commit, and a digest over its files' sha256.

        file: a file of a dataset. Its identity is its path and its sha256, without the commit.
        """
        if file is not None:
            return {"hub": f"{self.repo}/{file}", "sha256": self.files[file].sha256}
        lines = "".join(f"{self.files[name].sha256}  {name}\n" for name in sorted(self.files))
        digest = hashlib.sha256(lines.encode()).hexdigest()
        return {"hub": self.repo, "commit": self.commit, "files": digest}

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())


@dataclass
class Lock:
    """The lock. entries: {(kind, reference): entry}."""

    entries: dict[tuple[str, str], Locked] = field(default_factory=dict)

    @classmethod
    def read(cls, workdir: Path = Path()) -> "Lock":
        """Read the lock of a working directory; as `load`."""
        return load(Path(workdir) / LOCK_FILE)

    def identity(self, source: "str | HubSource") -> dict[str, str]:
        """`Locked.identity` of a source. For a model, its reference is enough.

        Raises UserError if it is not locked.
        """
        source = HubSource(source) if isinstance(source, str) else source
        if self.missing([source]):
            raise UserError(f"{source.kind} {source.ref}: not in {LOCK_FILE}; run `snakemake lock`")
        return self.get(source.ref, source.kind).identity(source.file)

    def get(self, ref: str, kind: str = "model") -> Locked | None:
        """The entry of a reference; None if it is not locked."""
        return self.entries.get((kind, ref))

    def missing(self, sources: Iterable[HubSource]) -> list[HubSource]:
        """The sources that have no entry, or whose file is not in their entry; each once."""

        def is_locked(source: HubSource) -> bool:
            entry = self.get(source.ref, source.kind)
            return entry is not None and (source.file is None or source.file in entry.files)

        return [source for source in dict.fromkeys(sources) if not is_locked(source)]


def load(path: Path) -> Lock:
    """Read the lock in a file; empty if there is no such file.

    Raises UserError if the file is not a lock.
    """
    try:
        data = yaml.load(path.read_bytes(), Loader=Loader) or {}
    except FileNotFoundError:
        return Lock()
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({text}); restore it or delete it") from None
    lock = Lock()
    try:
        for kind, section in SECTIONS.items():
            for ref, value in (data.pop(section, None) or {}).items():
                if not parse(ref):
                    raise ValueError(f"{ref!r} is no hub reference")
                files = {name: File(**file) for name, file in value.pop("files").items()}
                lock.entries[kind, ref] = Locked(ref, kind, value.pop("commit"), files, value)
        if data:
            raise ValueError(f"unknown key {next(iter(data))!r}")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a lock ({error}); restore it or delete it") from None
    return lock


def write(workdir: Path, lock: Lock) -> None:
    """Write the lock of a working directory, by rename. Equal locks give equal bytes."""
    path = Path(workdir) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(written(lock), encoding="utf-8")
    os.replace(partial, path)


def written(lock: Lock) -> str:
    """The text of a lock's file."""
    data: dict[str, dict[str, object]] = {}
    for (kind, ref), entry in sorted(lock.entries.items()):
        value = {"commit": entry.commit, "files": {n: asdict(f) for n, f in entry.files.items()}}
        data.setdefault(SECTIONS[kind], {})[ref] = value | entry.card
    return HEADER + yaml.safe_dump(data, default_flow_style=None, width=1000, allow_unicode=True)


def lock_missing(sources: Iterable[HubSource], workdir: Path) -> None:
    """Lock the sources that are not locked yet, all in one call of scripts/hub_lock.py.

    If none is missing, the hub is not asked. Raises UserError with a line for each reference that
    could not be locked; the others are written to the lock nevertheless.
    """
    missing = Lock.read(workdir).missing(sources)
    if not missing:
        return
    script = Path(__file__).parents[2] / "hub_lock.py"
    command = [sys.executable, str(script), "--directory", str(workdir), "--sources", "-"]
    request = json.dumps([asdict(source) for source in missing])
    # Its stdout goes to our stderr, because Snakemake's own output goes to stdout.
    done = subprocess.run(command, input=request, text=True, stdout=2, stderr=subprocess.PIPE)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        begin = f"{script.stem}: "
        problems = [line.removeprefix(begin) for line in said if line.startswith(begin)]
        raise UserError(*(problems or said or [f"{begin}failed without a word"]))
