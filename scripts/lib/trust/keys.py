"""Signatures in DSSE envelopes, by keys in PEM files; securesystemslib makes and checks them.

An *envelope* is a JSON object {payloadType, payload: base64, signatures: [{keyid, sig: base64}]}
(https://github.com/secure-systems-lab/dsse). Keys are elliptic curves, as model-signing takes them:

    openssl ecparam -name prime256v1 -genkey -noout -out private.pem
    openssl ec -in private.pem -pubout -out public.pem
"""

import base64
import binascii
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import UserError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE_ONE = "`openssl ecparam -name prime256v1 -genkey -noout -out private.pem` makes one"


def sign(payload: bytes, kind: str, key: Path) -> dict[str, Any]:
    """The envelope of a payload. kind: its media type. key: file of the private key.

    Raises UserError for a file that is no such key.
    """
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, kind, {})
    envelope.sign(private_key(key))
    return envelope.to_dict()


def verify(envelope: Any, kind: str, key: Path) -> bytes:
    """The payload of an envelope that this key has signed.

    kind: the media type that it must have. key: file of the public key. Raises UserError if it is
    no envelope, of another kind, not signed by this key, or changed since.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    public = public_key(key)
    try:
        read = Envelope.from_dict(copy.deepcopy(envelope))  # which takes it to pieces
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("is no signed envelope (DSSE)") from None
    if read.payload_type != kind:
        raise UserError(f"is signed as {read.payload_type!r}, not as {kind}")
    try:
        read.verify([public], 1)
    except VerificationError:
        raise UserError(f"is not signed by the key in {key}, or was changed since") from None
    return read.payload


def signer(envelope: Any) -> str | None:
    """The id of the key that an envelope says it is signed by, unchecked; None if it says none."""
    try:
        (signature,) = envelope["signatures"]
        return str(signature["keyid"])
    except (KeyError, TypeError, ValueError):
        return None


def payload(envelope: Any) -> bytes | None:
    """The payload of an envelope, whoever signed it; None if it is no envelope."""
    try:
        return base64.b64decode(envelope["payload"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None


def private_key(file: Path) -> "CryptoSigner":
    """The private key of a PEM file. Raises UserError in one line that names the file."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    text = _read(file)
    try:
        key = load_pem_private_key(text, None)
    except TypeError:
        raise UserError(f"{file}: the key has a password, which nobody could type here") from None
    except Exception:  # noqa: BLE001 - of several libraries
        raise UserError(f"{file}: no private key in PEM; {MAKE_ONE}") from None
    _check(key, file)
    return CryptoSigner(key)


def public_key(file: Path) -> "SSlibKey":
    """The public key of a PEM file. Raises UserError in one line that names the file."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    text = _read(file)
    try:
        key = load_pem_public_key(text)
    except Exception:  # noqa: BLE001 - of several libraries
        private = b"PRIVATE KEY" in text
        said = "it is a private key, which stays with its owner" if private else "no public key"
        raise UserError(f"{file}: {said}; wanted is a public key in PEM") from None
    _check(key, file)
    return SSlibKey.from_crypto(key)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


def _check(key: Any, file: Path) -> None:
    curve = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if curve not in CURVES:
        raise UserError(f"{file}: a key of {curve}; wanted is one of {', '.join(CURVES)}")
