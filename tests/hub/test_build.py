"""Sources from the hub in a whole build, through Snakemake."""

import io
from subprocess import CompletedProcess

import pyarrow
import pytest
import yaml
from hubtest import MODEL, ROOT
from pyarrow import parquet
from safetensors.numpy import save

import fresh
from lib.run.watch import part_done
from lib.stages.registry import STAGES
from lib.stages.sources import slug


@pytest.mark.parametrize("rows", [[], [None, "", " "]], ids=["no rows", "empty rows"])
def test_a_downloaded_text_with_nothing_in_it_stops_the_build_with_its_name(workdir, hub, rows):
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())}), table)
    hub.add_repo("acme/text", {"a.parquet": table.getvalue()}, "dataset")
    config = {
        "corpora": {"calibration": {"hub": "acme/text", "file": "a.parquet"}},
        "models": {"A": {"source": "acme/base", "gguf": {"imatrix": {}, "quants": ["Q8_0"]}}},
    }
    hub.add_repo("acme/base", MODEL)
    (workdir.path / "c.yaml").write_text(yaml.safe_dump(config))
    for suffix in (".txt", ".parquet"):
        done = start(workdir, f"resources/corpora/calibration{suffix}")
        assert done.returncode != 0
        assert "corpora.calibration: what it names " in done.stdout, done.stdout
        assert "Traceback" not in done.stdout
        assert not (workdir.path / f"resources/corpora/calibration{suffix}").exists()


def test_a_download_tells_how_far_it_is_and_its_failure_does_not_move_the_cursor(workdir, hub):
    hub.add_repo("acme/base", MODEL)  # whose weights are none
    models = {"A": {"source": "acme/base", "gguf": {"quants": ["Q8_0"]}}}
    (workdir.path / "c.yaml").write_text(yaml.safe_dump({"models": models}))
    path = f"resources/models/{slug('acme/base')}"
    del workdir.env["HF_HUB_DISABLE_PROGRESS_BARS"]
    done = start(workdir, path, "--config", "ignore_preflight=true")
    log = (workdir.path / f"logs/{path}.log").read_text()
    assert part_done(STAGES["source"].counted, [log]) == 1.0, log
    assert "not a safetensors file" in done.stdout and "100%|" in done.stdout
    assert "\x1b[A" in log and "\x1b[A" not in done.stdout, done.stdout


def start(workdir, *args: str, **env: str) -> CompletedProcess:
    """Run Snakemake with the directory's c.yaml."""
    given = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "c.yaml", "--cores", "2"]
    return fresh.snakemake([*given, *args], 120, workdir.path, workdir.env | env)


@pytest.fixture
def snakemake(workdir, hub):
    """Run Snakemake in the working directory; the config has two sources from the hub."""
    import numpy

    weights = save({"w": numpy.zeros(4, dtype=numpy.float32)})
    for name in ("base", "other"):
        hub.add_repo(f"acme/{name}", {**MODEL, "model.safetensors": weights})
    sections = {"gguf": {"quants": ["Q8_0"]}}
    models = {
        "A": {"source": "acme/base"} | sections,
        "B": {"source": "acme/other@main"} | sections,
    }
    (workdir.path / "c.yaml").write_text(yaml.safe_dump({"models": models}))

    def run(*args: str, **env: str) -> str:
        done = start(workdir, *args, **env)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.mark.slow
def test_moved_branch_makes_its_dependants_stale_when_the_lock_is_renewed(workdir, hub, snakemake):
    one, other = (f"resources/models/{slug(ref)}" for ref in ("acme/base", "acme/other@main"))
    snakemake(one)
    snakemake(other)
    assert (workdir.path / one / "model.safetensors").resolve().is_relative_to(workdir.home)
    hub.log.clear()
    assert "Nothing to be done" in snakemake(one, other, HF_HUB_OFFLINE="1")
    for repo in hub.repos.values():
        repo.commit("main", {**repo.files(), "config.json": b'{"architectures": ["New"]}'})
    assert "Nothing to be done" in snakemake(one, other)
    assert not hub.log, "a locked source was asked for again"
    said = snakemake("lock", "--config", "only=acme/base")
    assert "acme/base: " in said and "acme/other" not in said
    said = snakemake(one, other)
    assert f"built   {one}" in said and other not in said
    assert b"New" in (workdir.path / one / "config.json").read_bytes()
    assert b"New" not in (workdir.path / other / "config.json").read_bytes()
