"""Signatures by keys: what is not signed by the key that was asked for is never taken."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from lib.errors import UserError
from lib.trust import keys

KIND = "application/vnd.in-toto+json"


def write_private(file: Path, key, password: bytes | None = None) -> Path:
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return file


def make_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """Files of a private and a public key."""
    key, public = ec.generate_private_key(ec.SECP256R1()), directory / f"{name}.pub"
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return write_private(directory / f"{name}.pem", key), public


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[tuple[Path, Path]]:
    here = tmp_path_factory.mktemp("keys")
    return [make_pair(here, "ours"), make_pair(here, "theirs")]


def test_what_a_key_has_signed_is_read_with_its_public_key(pairs):
    (private, public), _ = pairs
    envelope = json.loads(json.dumps(keys.sign(b"text", KIND, private)))
    assert keys.verify(envelope, KIND, public) == b"text"
    assert keys.payload(envelope) == b"text"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_keys_that_openssl_has_made_sign_and_are_read(tmp_path):
    """As docs/store.md says."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    for words in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private],
        ["ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    assert keys.verify(keys.sign(b"text", KIND, private), KIND, public) == b"text"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"payload": base64.b64encode(b"texT").decode()}, "or was changed since"),
        ({"payloadType": "text/plain"}, "is signed as 'text/plain'"),
        ({"signatures": []}, "is not signed by the key"),
        ({"signatures": [{"keyid": "", "sig": ""}]}, "is not signed by the key"),
        ({"signatures": 1}, "no signed envelope"),
        ({"payload": None}, "no signed envelope"),
    ],
)
def test_a_changed_envelope_is_refused(pairs, change, said):
    (private, public), _ = pairs
    with pytest.raises(UserError, match=re.escape(said)):
        keys.verify(keys.sign(b"text", KIND, private) | change, KIND, public)


def test_the_signature_of_another_key_is_refused_also_under_the_name_of_ours(pairs):
    (private, public), (other, _) = pairs
    ours, theirs = keys.sign(b"text", KIND, private), keys.sign(b"text", KIND, other)
    theirs["signatures"][0]["keyid"] = ours["signatures"][0]["keyid"]
    with pytest.raises(UserError, match="is not signed by the key"):
        keys.verify(theirs, KIND, public)


def test_a_file_that_is_no_key_is_named_and_nothing_of_a_private_key_is_shown(pairs, tmp_path):
    private, public = pairs[0]
    other = write_private(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate())
    encrypted = tmp_path / "locked.pem"
    write_private(encrypted, ec.generate_private_key(ec.SECP256R1()), b"x")
    for read, file, said in (
        (keys.private_key, public, "no private key in PEM"),
        (keys.private_key, other, "a key of Ed25519PrivateKey; wanted"),
        (keys.private_key, encrypted, "has a password"),
        (keys.private_key, tmp_path / "none.pem", "No such file"),
        (keys.public_key, private, "it is a private key, which stays with its owner"),
        (keys.public_key, Path(__file__), "no public key; wanted"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            read(file)
        assert str(file) in str(raised.value)
