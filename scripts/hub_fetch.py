"""Fetch a locked hub reference, or a URL, and make links to its files.

huggingface_hub downloads into the user's Hugging Face cache (HF_HOME). OUTPUT is a directory of
links into the cache, or one link for a single file, so nothing is on the disk twice. The size and
sha256 of each file are checked against the lock; a file that fails is deleted from the cache, and
the exit status is 1. If all files are in the cache, no network is needed.
"""

import argparse
import fnmatch
import glob
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import hf_raise_for_status

from lib.errors import UserError, program
from lib.formats.model_files import PICKLES
from lib.hub import client as hub
from lib.hub import lock
from lib.hub.lock import File, Locked
from lib.record.digests import sha256_of


def fetch(entry: Locked, names: list[str], api: HfApi) -> dict[str, Path]:
    """{name: path in the cache} of files of a locked repository, downloaded and checked.

    Raises UserError, which names each file that is missing or is not what the lock says.
    """
    if not all(hub.cached(entry, name) for name in names):
        try:
            hub.persist(lambda: download(entry, names))
        except Exception as error:
            absent = ", ".join(name for name in names if not hub.cached(entry, name))
            reason = hub.explain(error, entry.repo, entry.kind, api)
            raise UserError(f"{reason} (for {absent})") from None
    paths = {name: hub.cached(entry, name) for name in names}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: check(paths[name], entry.files[name]), names)
        problems = zip(names, found, strict=True)
        bad = [f"{entry.repo}: {name}: {text}" for name, text in problems if text]
    if bad:
        raise UserError(*bad)
    return paths


def download(entry: Locked, names: list[str]) -> None:
    """Download the files `names` into the cache. Raises what huggingface_hub raises."""
    where = {"repo_type": entry.kind, "revision": entry.commit}
    snapshot_download(entry.repo, allow_patterns=[glob.escape(name) for name in names], **where)
    # snapshot_download (2.4.0) returns without a word where the hub refuses to list the repository
    # and a part of it is cached. This asks for what is still missing, and raises.
    for name in names:
        hf_hub_download(entry.repo, name, **where)


def check(path: Path, wanted: File) -> str | None:
    """What is wrong with a file's size or sha256, in words; None if nothing is.

    A wrong file is deleted from the cache.
    """
    size = path.stat().st_size
    if size == wanted.size:
        digest = sha256_of(path)
        if digest == wanted.sha256:
            return None
        found = f"sha256 {digest}, but the lock says {wanted.sha256}"
    else:
        found = f"{size} bytes, but the lock says {wanted.size}"
    hub.forget(path)
    return f"{found}; removed from the cache, run again to download it anew"


def fetch_url(url: str, sha256: str) -> Path:
    """The path of a URL's content in the cache, downloaded if it is not there.

    sha256: of the content, hex. An interrupted download is resumed. Raises UserError if the URL
    cannot be reached, or its content has another sha256.
    """
    blob = hub.cached_url(sha256)
    if blob.exists():
        if sha256_of(blob) == sha256:
            return blob
        blob.unlink()
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{url}: HF_HUB_OFFLINE is set, and the file is not in the cache")
    partial = blob.with_name(f"{sha256}.incomplete")
    try:
        hub.persist(lambda: download_url(url, partial))
    except HfHubHTTPError as error:
        raise UserError(f"{url}: the server says {error.response.status_code}") from None
    except HTTPError as error:
        raise UserError(f"{url}: cannot be reached ({hub.one_line(error)})") from None
    digest = sha256_of(partial)
    if digest != sha256:
        partial.unlink()
        raise UserError(f"{url}: sha256 {digest}, but the config says {sha256}; not used")
    partial.rename(blob)
    return blob


def download_url(url: str, partial: Path) -> None:
    """Download `url` into the file `partial`, after what is in it already.

    Raises what huggingface_hub and its HTTP client raise.
    """
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code == 416:  # nothing after what we have: complete, or not this file
            return
        hf_raise_for_status(response)
        with partial.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)


def link_file(ref: str, kind: str, name: str, output: Path, lock_file: Path) -> None:
    """Make a link, `output`, to one file of a locked repository, which is fetched if need be.

    ref: org/name[@revision]. kind: model or dataset. Raises UserError if it is not in the lock.
    """
    entry = _locked(ref, kind, lock_file)
    if name not in entry.files:
        raise UserError(f"{name} of {ref} is not in {lock_file}; `snakemake lock` puts it there")
    output.symlink_to(fetch(entry, [name], HfApi())[name].absolute())


def link_model(ref: str, output: Path, lock_file: Path, allow_pickle: bool = False) -> None:
    """Fill the directory `output` with links to the files of a locked model.

    ref: org/name[@revision]. Raises UserError if it is not in the lock, or has pickles and
    `allow_pickle` is false.
    """
    entry = _locked(ref, "model", lock_file)
    names = sorted(entry.files)
    pickles = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in PICKLES)]
    if pickles and not allow_pickle:
        raise UserError(
            f"{ref}: {pickles[0]} is a pickle, which can run any code when it is "
            "loaded; say `allow_pickle: true` if you trust it"
        )
    for name, path in fetch(entry, names, HfApi()).items():
        link = output / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())


def _locked(ref: str, kind: str, lock_file: Path) -> Locked:
    entry = lock.load(lock_file).get(ref, kind)
    if entry is None:
        raise UserError(f"{ref} is not in {lock_file}; `snakemake lock` puts it there")
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="org/name[@revision] as in the lock, or a URL")
    parser.add_argument(
        "--lock",
        type=Path,
        default=lock.LOCK_FILE,
        help="sources.lock.yaml, which hub_lock.py writes (default: in config/)",
    )
    parser.add_argument(
        "--kind", choices=("model", "dataset"), default="model", help="what SOURCE is"
    )
    parser.add_argument("--file", help="path of the one file to fetch")
    parser.add_argument("--sha256", help="of a URL's content, hex")
    parser.add_argument("--allow-pickle", action="store_true", help="accept .bin weights")
    parser.add_argument("--output", type=Path, required=True, help="directory (or link) to make")
    args = parser.parse_args()
    if args.source.startswith(("http://", "https://")):
        args.output.symlink_to(fetch_url(args.source, args.sha256))
    elif args.file:
        link_file(args.source, args.kind, args.file, args.output, args.lock)
    else:
        link_model(args.source, args.output, args.lock, args.allow_pickle)


if __name__ == "__main__":
    program(main)
