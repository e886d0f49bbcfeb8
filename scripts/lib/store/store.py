"""A store: entries by the digest of their recipe, and the bytes of files by their sha256.

    entries/ab/DIGEST.json    an entry (lib/store/entry.py); signed ones are in a DSSE envelope
    content/ab/SHA256         the bytes of a file; of files with the same bytes there is one
    parts/                    what is being written

The files come first and the entry last, so where there is an entry, there is the artifact; unless
somebody has removed or changed files since, which is found out when it is taken.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError, has_secret
from lib.record.digests import flushed_digests
from lib.store.entry import Entry, Foreign, Refused, is_sha256
from lib.store.places import Bucket, Found, Place, Unreachable, place_of
from lib.trust import keys as signatures
from lib.trust.keys import payload, verify

VARIABLE, KEY_VARIABLE, SIGN_VARIABLE = (
    "QUANTMILL_STORE",
    "QUANTMILL_STORE_KEY",
    "QUANTMILL_STORE_SIGN",
)
ENTRIES, CONTENT = "entries", "content"
TRIES = 3
KIND = "application/vnd.quantmill.store-entry+json"


@dataclass(frozen=True)
class Settings:
    """Which store is used, and how.

    location: a directory, or a URL. key: a public key (PEM): only entries that it fits are taken.
    sign: a private key (PEM), with which entries are signed. Both are paths of files.
    """

    location: str
    key: str | None = None
    sign: str | None = None

    @classmethod
    def of_environment(cls) -> "Settings | None":
        """Those of QUANTMILL_STORE and the variables beside it; None if it is not set.

        Raises UserError for a path that is not absolute, or a key that is not there.
        """
        location = os.environ.get(VARIABLE, "").strip()
        if not location:
            return None
        if "://" not in location and not Path(location).is_absolute():
            raise UserError(f"{VARIABLE}: {location}: give the whole path, from / on, or a URL")
        if "@" in location.partition("://")[2].partition("/")[0] or has_secret(location):
            where = "AWS_PROFILE, ~/.aws, or what its library reads"
            raise UserError(f"{VARIABLE}: a URL with credentials; they belong into {where}")
        keys = [os.environ.get(name) or None for name in (KEY_VARIABLE, SIGN_VARIABLE)]
        for name, key in zip((KEY_VARIABLE, SIGN_VARIABLE), keys, strict=True):
            if key and not (Path(key).is_absolute() and Path(key).is_file()):
                raise UserError(f"{name}: {key}: there is no such file; give its whole path")
        return cls(location.rstrip("/") or "/", *keys)


class Store:
    """A store that can be reached. Every call raises Unreachable where it no longer can.

    shown: its name for people. is_far: each question to it takes a while.
    """

    def __init__(self, settings: Settings):
        """Raises Unreachable, and UserError for a file that is no key."""
        self.settings = settings
        if settings.key:
            signatures.public_key(Path(settings.key))
        if settings.sign:
            signatures.private_key(Path(settings.sign))
        self.place: Place = place_of(settings.location)
        self.shown, self.is_far = self.place.shown, isinstance(self.place, Bucket)

    def look(self, digest: str) -> Entry | None:
        """The entry of a recipe, all of whose files are there; None if there is none.

        digest: the recipe's. Raises Refused.
        """
        if (entry := self.read(digest)) is None:
            return None
        for name, (size, sha256) in entry.contents.items():
            there = self.place.size(content_name(sha256))
            if there != size:
                what = f"{name}, " if name else ""
                cut = "are not there" if there is None else f"are {there}, not {size}"
                raise Refused(f"{what}its bytes {cut}")
        return entry

    def read(self, digest: str) -> Entry | None:
        """The entry of a recipe, whether its files are there or not. Raises Refused."""
        data = self.place.read(entry_name(digest))
        return None if data is None else Entry.read(opened(data, self.settings.key), digest)

    def named(self, digest: str) -> set[str] | None:
        """The sha256 of the content that an entry needs, whoever has signed it.

        digest: the recipe's. None if another version of Quantmill is to tell; a damaged entry needs
        nothing.
        """
        try:
            data = self.place.read(entry_name(digest))
            entry = None if data is None else Entry.read(opened(data, None), digest)
        except Foreign:
            return None
        except Refused:
            return set()
        return entry.sha256s if entry else set()

    def renew(self, digest: str) -> None:
        """Date an entry to now: who prunes by age, or looked before, leaves it."""
        name = entry_name(digest)
        if data := self.place.read(name):
            self.place.write(name, data, again=True)

    def take(self, entry: Entry, to: Path) -> str:
        """Make the artifact at `to`, which is not there yet, and hash it. How, in a word.

        Raises Refused if its bytes are not what the entry says.
        """
        ways, files = [], {}
        for name, (_, sha256) in entry.contents.items():
            file = to / name if name else to
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                ways.append(self.place.take(content_name(sha256), file))
            except FileNotFoundError:
                raise Refused(f"{name or 'its content'} is no longer there") from None
            files[file] = (name, sha256)
        found = flushed_digests(list(files), {})
        for file, (name, sha256) in files.items():
            if found[file] != sha256:
                raise Refused(f"{name or 'it'} has other bytes than its record says")
        return " and ".join(dict.fromkeys(ways))

    def put(self, entry: Entry, made: Path, again: bool = False) -> int | None:
        """Put an artifact that lies at `made`; None if it is there already, else bytes brought.

        again: in the place of what is there, which was refused. An entry that only others can sign
        stays: of that no more than lost content is put.
        """
        name, brought = entry_name(entry.record.digest), 0
        there = self.place.read(name)
        if not again and self.has(entry.record.digest):
            return None
        keep = there is not None and self.settings.key and not self.settings.sign
        if keep and not self._is_of(entry):
            return None
        for _ in range(TRIES):
            for inside, (size, sha256) in entry.contents.items():
                file = made / inside if inside else made
                brought += size if self.place.put(content_name(sha256), file, again) else 0
            if not keep:
                document = sealed(entry.to_json(), self.settings.sign)
                self.place.write(name, document, again=there is not None)
            # Files that were there may have been pruned meanwhile: then once more.
            sizes = entry.contents.values()
            if all(self.place.size(content_name(sha256)) == size for size, sha256 in sizes):
                return brought
        raise Unreachable("what is put there does not stay")

    def has(self, digest: str) -> bool:
        """Whether it has a good entry, which is good to us too: signed, if we ask for that."""
        try:
            return self.look(digest) is not None
        except Refused:
            return False

    def _is_of(self, entry: Entry) -> bool:
        """Whether what is there of an entry's recipe is good to us, and has the same bytes."""
        try:
            there = self.read(entry.record.digest)
        except Refused:
            return False
        return there is not None and there.contents == entry.contents

    def entries(self) -> Iterator[tuple[str, Found]]:
        """(digest of the recipe, its entry's file) of each entry."""
        for found in self.place.names(ENTRIES):
            name = found.name.rpartition("/")[2].removesuffix(".json")
            if found.name == entry_name(name):
                yield name, found

    def contents(self) -> Iterator[tuple[str, Found]]:
        """(sha256, file) of all content."""
        for found in self.place.names(CONTENT):
            name = found.name.rpartition("/")[2]
            if is_sha256(name):
                yield name, found


def entry_name(digest: str) -> str:
    """The name of an entry's file. digest: the recipe's."""
    return f"{ENTRIES}/{digest[:2]}/{digest}.json"


def content_name(sha256: str) -> str:
    """The name under which the bytes with this sha256 lie."""
    return f"{CONTENT}/{sha256[:2]}/{sha256}"


def opened(data: bytes, key: str | None) -> bytes:
    """An entry's document, from its file. Raises Refused if `key` is given and did not sign it."""
    try:
        envelope = json.loads(data)
    except ValueError:
        raise Refused("its record is damaged") from None
    if key is None:
        return payload(envelope) or data
    if payload(envelope) is None:
        raise Foreign(f"is not signed, and {KEY_VARIABLE} asks for that")
    try:
        return verify(envelope, KIND, Path(key))
    except UserError as error:
        ours = signatures.signer(envelope) == signatures.public_key(Path(key)).keyid
        raise (Refused if ours else Foreign)(str(error)) from None


def sealed(document: bytes, sign: str | None) -> bytes:
    """The file of an entry: its document, or an envelope that the key `sign` has signed."""
    if sign is None:
        return document
    return json.dumps(signatures.sign(document, KIND, Path(sign))).encode()
