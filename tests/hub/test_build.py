"""Sources from the hub in a whole build, through Snakemake."""

import subprocess
import sys

import pytest
import yaml
from hubtest import MODEL, ROOT
from safetensors.numpy import save

from lib.graph import slug


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
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
        command += ["--configfile", "c.yaml", "--cores", "2", *args]
        done = subprocess.run(
            [*map(str, command)], cwd=workdir.path, env=workdir.env | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
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
