"""Cold artifacts on the hub: bring one back from the commit that had it; look whether it has."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_download

from lib.errors import UserError
from lib.hub import client as hub
from lib.record.digests import flushed_digests
from lib.record.recipe import Record


class NoLonger(UserError):
    """The hub does not have a file any more, or has other bytes."""


def bring(place: dict[str, Any], record: Record, made: Path) -> None:
    """Download an artifact to `made`, and check it.

    place: {repo, commit, files} of its note. Raises NoLonger; UserError if the hub does not answer.
    """
    found = {}
    for member, (_, sha256) in record.contents.items():
        name, file = place["files"][member], made / member if member else made
        folder = made.with_name(".hub")
        try:
            got = hub.persist(
                lambda name=name, folder=folder: hf_hub_download(
                    place["repo"], name, revision=place["commit"], local_dir=folder
                )
            )
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise _unreached(error, place, record) from None
            raise NoLonger(f"{place['repo']} has it no longer") from None
        except Exception as error:
            raise _unreached(error, place, record) from None
        file.parent.mkdir(parents=True, exist_ok=True)
        os.replace(got, file)
        shutil.rmtree(folder)
        found[file] = sha256
    if flushed_digests(list(found), {}) != found:
        raise NoLonger(f"{place['repo']} has other bytes")


def _unreached(error: Exception, place: dict[str, Any], record: Record) -> UserError:
    why = hub.explain(error, place["repo"], "model", HfApi())
    build = "to have it built instead, delete"
    return UserError(f"{record.artifact} is cold. {why}; {build} {record.artifact}.cold.json")


def lost(place: dict[str, Any], record: Record) -> str | None:
    """Why a repository no longer has an artifact, in words; None: its listing has these bytes."""
    api = HfApi()
    try:
        there = hub.listing(api, place["repo"], place["commit"])
    except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
        return hub.explain(error, place["repo"], "model", api)
    for member, (_, sha256) in record.contents.items():
        file = there.get(place["files"].get(member))
        if file is None or file.lfs is None or file.lfs.sha256 != sha256:
            return f"{place['repo']} has it no longer"
    return None
