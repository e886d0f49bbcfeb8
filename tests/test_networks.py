"""Network file systems: what is open stays in its directory, and dates are remembered."""

import shutil
from pathlib import Path
from random import Random

import pytest

from campaign.builds import Run, after, prepared, succeeded
from campaign.networks import elsewhere, mounted, why_not
from lib.record import locks
from lib.run.hold import clear_abandoned

sshfs = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A project that is not built, in a directory that is served."""
    new, _, _ = prepared()
    return Path(shutil.copytree(new, tmp_path / "served", symlinks=True))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@sshfs
def test_steps_end_though_the_file_that_they_hold_stays_until_it_is_closed(served, here):
    """As .nfs… on NFS: the directory of a step could not be removed, and each step failed."""
    _, expected, _ = prepared()
    with mounted(served, here):
        assert succeeded(Run(here, output=here.with_suffix(".txt"))) is None
        assert after(here, expected) is None
        assert not list(here.glob("results/**/.*.building"))


def test_what_a_client_left_that_ended_before_its_file_was_closed_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("results/X/.it.bin.building")
    place.mkdir(parents=True)
    for name in ("hold", ".fuse_hidden0000000100000001", ".nfs000000000001"):
        (place / name).touch()
    clear_abandoned()
    assert not place.exists()


@sshfs
def test_what_another_host_has_built_is_kept_though_its_dates_show_late(served, here):
    """Snakemake saw the date of the wanted recipe from before, and deleted what had been built."""
    assert elsewhere(Random(1), served, here, 0, "resources/llama.cpp") is None


@pytest.mark.parametrize(("kind", "written"), [("ext4", True), ("nfs4", False)])
def test_only_local_file_systems_are_asked_whether_a_file_is_being_written(
    tmp_path, monkeypatch, kind, written
):
    """NFS 4 refuses leases where the server has not handed out the file: every step would fail."""
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_text(
        "20 1 8:1 / / rw - xfs /dev/sda1 rw\n"
        f"21 20 0:42 / {tmp_path} rw,relatime shared:1 - {kind} server:/home rw\n"
    )
    with (tmp_path / "file").open("w"):
        assert locks.is_written(tmp_path / "file") is written
