"""One cluster and one local build for all tests here; a test works on a copy of that build."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builds import Run, snakemake, write_config
from cluster import Cluster, why_not

from tiny_models import make_models, make_texts


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster; the test is skipped where there can be none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with tiny models, their merge and all its forms, built without Slurm."""
    here = tmp_path_factory.mktemp("local")
    make_models(here / "models", "a", "b")
    make_texts(here / "models", 200)
    write_config(here)
    command = [*snakemake(here), "--cores", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return here


@pytest.fixture
def run(cluster: Cluster, local: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a run in `tmp_path`, a copy of the local build; no job is left afterwards."""
    shutil.copytree(local, tmp_path, symlinks=True, dirs_exist_ok=True)
    runs: list[Run] = []

    def start(*arguments: str, **options) -> Run:
        runs.append(Run(cluster, tmp_path, *arguments, **options))
        return runs[-1]

    yield start
    for each in runs:
        if each.process.poll() is None:
            each.kill()
    cluster.idle()
