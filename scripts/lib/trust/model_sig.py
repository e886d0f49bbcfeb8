"""model.sig: the signature of all files of a branch, as `model_signing verify key` takes it.

model-signing (1.1.1) would hash all files once more, which can be terabytes. Their hashes are known
and checked, so its manifest is made of those, by classes that it calls private. No longer needed
once `model_signing.signing.Config` takes hashes.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from lib.errors import UserError
from lib.trust import keys
from lib.trust.statements import once

NAME = "model.sig"
# As `model_signing sign` leaves them out.
IGNORED = (NAME, ".git", ".gitattributes", ".github", ".gitignore")


def write(files: Mapping[str, str], name: str, directory: Path, key: Path) -> Path:
    """The file of the signature. It is written if it is not there, as statements are.

    files: {name: sha256 (hex)}. name: of the signed directory. key: file of the private key, whose
    form lib/trust/keys has checked.
    """
    from model_signing._hashing.hashing import Digest
    from model_signing._signing import sign_ec_key, signing
    from model_signing.manifest import FileManifestItem, Manifest, SerializationType

    def sign(part: Path) -> None:
        how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
        items = [
            FileManifestItem(path=PurePosixPath(file), digest=Digest("sha256", bytes.fromhex(sha)))
            for file, sha in files.items()
        ]
        kind = SerializationType.from_args(how | {"ignore_paths": list(IGNORED)})
        signed = sign_ec_key.Signer(key).sign(signing.Payload(Manifest(name, items, kind)))
        signed.write(part)

    signer = keys.private_key(key).public_key.keyid
    return once(json.dumps([name, sorted(files.items()), signer]).encode(), directory, sign)


def read(path: Path, key: Path) -> dict[str, str]:
    """{name: sha256 (hex)} of the files that it signs. key: file of the public key.

    Raises UserError, without the file's name, if it is no such signature, or not by this key.
    """
    from model_signing._signing.sign_ec_key import Verifier
    from model_signing._signing.sign_sigstore_pb import Signature

    verifier = Verifier(key)
    try:
        manifest = verifier.verify(Signature.read(path))
    except Exception:  # noqa: BLE001 - of several libraries, and of whatever the file holds
        raise UserError(f"is not signed by the key in {key}, or was changed since") from None
    return {d.identifier: d.digest.digest_hex for d in manifest.resource_descriptors()}
