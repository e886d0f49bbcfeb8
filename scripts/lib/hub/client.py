"""Requests to the hub: who is logged in, errors in one line, and retries.

Importing huggingface_hub takes about a second, so steps may import this module, but not the
Snakefile. huggingface_hub handles tokens; nothing here reads or prints one.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, cached_assets_path, constants, errors, try_to_load_from_cache
from huggingface_hub.hf_api import RepoFile

from lib.errors import shown
from lib.hub.lock import Locked

TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
PAUSES = (1, 2, 4)  # seconds between the tries of one call


def page(repo: str, kind: str = "model") -> str:
    """The address of a repository's page, where one asks for access. kind: "model" or "dataset"."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def login(api: HfApi) -> str:
    """Who is logged in, in words for a message: "logged in as NAME", or why nobody is."""
    try:
        return f"logged in as {api.whoami(cache=True)['name']}"
    except errors.LocalTokenNotFoundError:
        return "not logged in (`hf auth login` or HF_TOKEN)"
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 401:
            return "the hub does not accept this token (`hf auth login` for a new one)"
        return "login unknown, the hub did not say"
    except (errors.HTTPError, errors.OfflineModeIsEnabled):
        return "login unknown, the hub cannot be reached"


def explain(error: Exception, repo: str, kind: str, api: HfApi, write: bool = False) -> str:
    """One line on why a request failed: which repository, who is logged in, and what to do.

    error: the exception of the request. kind: "model" or "dataset".
    write: whether the request was to write to the repository; else it was to read it.
    """
    name = f"{kind} {repo}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: gated; {login(api)}; ask for access at {page(repo, kind)}"
    if write and (status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError)):
        return f"{name}: no right to write there; {login(api)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: there is no such revision; see {page(repo, kind)}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"{name}: not there, or private and without rights for this login; {login(api)}; "
            f"see {page(repo, kind)}"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{name}: HF_HUB_OFFLINE is set, and what is needed is not in the cache"
    if isinstance(error, errors.LocalEntryNotFoundError) or unanswered(error):
        cause = error.__cause__ or error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return explain(cause, repo, kind, api)
        return f"{name}: {constants.ENDPOINT} cannot be reached ({one_line(cause)})"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}: a file is not there ({one_line(error)})"
    return f"{name}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """An error's message in one line, as `shown`; the name of its type if the message is empty."""
    return shown(" ".join(str(error).split())) or type(error).__name__


def unanswered(error: Exception) -> bool:
    """Whether the hub gave no answer, or only a part of one.

    The classes are huggingface_hub's own, because it has changed the library below before (httpx,
    httpx2).
    """
    return isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError)


def transient(error: Exception) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError):  # both wrap the real error
        cause = error.__cause__
        return isinstance(cause, Exception) and transient(cause)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in TRANSIENT_STATUS
    # http_get raises this if a body ends early although the connection closes cleanly.
    cut_off = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return cut_off or unanswered(error)


def persist(call: Callable[[], Any]) -> Any:
    """Return `call()`. After a transient error, try again after each of PAUSES.

    Raises the last error. huggingface_hub 2.4.0 itself retries after some faults, but not after a
    reset connection or a 5xx answer to a download. Not needed once `http_get` retries those.
    """
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if not transient(error):
                raise
            print(f"{one_line(error)}; trying again in {pause} s", file=sys.stderr)
            time.sleep(pause)
    return call()


def listing(api: HfApi, repo: str, revision: str, kind: str = "model") -> dict[str, RepoFile]:
    """{path in the repository: file} at a revision. Raises what huggingface_hub raises."""
    tree = persist(
        lambda: list(api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind))
    )
    return {file.path: file for file in tree if isinstance(file, RepoFile)}


def cached(entry: Locked, name: str) -> Path | None:
    """The path of a file of a locked repository in the cache; None if it is not there."""
    path = try_to_load_from_cache(entry.repo, name, revision=entry.commit, repo_type=entry.kind)
    return Path(path) if isinstance(path, str) and Path(path).exists() else None


def cached_url(sha256: str) -> Path:
    """Where the content of a URL lies in the cache, if it is there. sha256: of it, hex."""
    return cached_assets_path("quantmill", "url") / sha256


def forget(path: Path) -> None:
    """Delete a file of the cache, and the blob that it is a link to."""
    path.resolve().unlink()
    path.unlink(missing_ok=True)
