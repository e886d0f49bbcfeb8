"""Cold forms on the hub: each quant is uploaded when it is measured, and deleted here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hubtest import ROOT, Workdir
from standin import Fault, Hub
from test_build import start

sys.path.insert(0, str(ROOT / "tests"))

from lib.record import cold
from lib.record import recipe as recipes
from project import sha256
from tiny_models import make_models, make_texts

NAMES = ["Q8_0", "Q5_0", "Q4_0"]
REPO = "acme/M-GGUF"


def quant(name: str) -> str:
    return f"results/M/gguf/M-{name}.gguf"


class Publisher:
    """A working directory whose model is published on the stand-in."""

    def __init__(self, workdir, hub):
        self.workdir, self.hub, self.path = workdir, hub, workdir.path
        self.config = {
            "corpora": {"evaluation": {"path": "data/evaluation.txt"}},
            "models": {
                "M": {
                    "source": "./m/prose",
                    "gguf": {"imatrix": False, "quants": list(NAMES)},
                    "evaluate": {"context": 128, "chunks": 2},
                    "publish": {"gguf": REPO, "license": "mit"},
                }
            },
            "reclaim": ["quants"],
        }

    def run(self, *args: str, status: int | None = 0, **env: str) -> str:
        (self.path / "c.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        done = start(self.workdir, *args, HF_TOKEN="hf_alice", **env)
        assert status is None or done.returncode == status, done.stdout
        return done.stdout

    def there(self) -> set[str]:
        return {name for name in NAMES if (self.path / quant(name)).exists()}

    def uploads(self) -> list[str]:
        """The titles of the commits, the first one first."""
        repo = self.hub.repos["model", REPO]
        return [repo.commits[oid][1] for oid in reversed(repo.history(repo.branches["main"]))]


def with_sources(workdir: Workdir, hub: Hub) -> Publisher:
    """Nothing is built."""
    publisher = Publisher(workdir, hub)
    make_models(publisher.path / "m", "prose")
    make_texts(publisher.path / "data", 100)
    return publisher


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A directory in which a plain build has ended."""
    with Hub() as hub:
        publisher = with_sources(Workdir(tmp_path_factory.mktemp("built"), hub), hub)
        publisher.run()
        assert publisher.there() == set(NAMES)
        assert not hub.requests("POST .*(commit|preupload|batch)")
    return publisher.path


@pytest.fixture
def publisher(built, workdir, hub) -> Publisher:
    """All is built, and lies here."""
    subprocess.run(["cp", "-a", f"{built}/.", workdir.path], check=True)
    return Publisher(workdir, hub)


def test_publish_uploads_each_quant_and_deletes_it_and_then_all_that_is_said_of_them(workdir, hub):
    publisher = with_sources(workdir, hub)
    assert "no store has them" in publisher.run("plan")
    assert not hub.requests("POST .*commit")
    said = publisher.run("publish")
    assert not publisher.there()
    titles = publisher.uploads()
    for name in NAMES:
        assert f"cold    {quant(name)}" in said
        assert any(f"M-{name}.gguf" in title for title in titles[:-1])
        content = hub.repos["model", REPO].files()[f"M-{name}.gguf"]
        record = recipes.read(quant(name), publisher.path)
        place = recipes.read(cold.note_of(quant(name)), publisher.path).notes["place"]
        assert len(content) == record.bytes and place["hub"]["repo"] == REPO
    files = hub.repos["model", REPO].files()
    assert {"README.md", "attestations/release.intoto.json"} <= files.keys()
    assert "0 files to upload" in publisher.run("publish")
    assert "results/M/gguf/M-" not in publisher.run()  # it writes the card of results/M/
    audited = publisher.run("audit", "--config", f"repo={REPO}")
    assert "All fits together" in audited, audited


def test_what_is_on_the_hub_comes_back_from_its_commit(publisher):
    hashes = {name: sha256(publisher.path / quant(name)) for name in NAMES}
    publisher.run("publish")
    assert not publisher.there()
    assert f"taken   {quant('Q4_0')}" in publisher.run(quant("Q4_0"))
    assert sha256(publisher.path / quant("Q4_0")) == hashes["Q4_0"]
    assert "are what their records say" in publisher.run("verify")
    with (publisher.path / "data/evaluation.txt").open("a") as file:
        file.write("One more line of the text that is measured on.\n")
    said = publisher.run()
    assert f"taken   {quant('Q5_0')}" in said and f"built   {quant('Q5_0')} " not in said
    assert not publisher.there() and "Nothing to be done" in publisher.run()


def test_what_the_hub_has_lost_is_built_again_with_the_same_bytes(publisher, hub):
    publisher.run("publish")
    repo = hub.repos["model", REPO]
    for oid, (parent, title, files) in repo.commits.items():
        kept = {name: data for name, data in files.items() if name != "M-Q4_0.gguf"}
        repo.commits[oid] = parent, title, kept
    assert f"{quant('Q4_0')}  cold, and {REPO} has it no longer" in publisher.run(
        "verify", status=1
    )
    sha = recipes.read(quant("Q4_0"), publisher.path).sha256
    said = publisher.run(quant("Q4_0"))
    assert f"refused {quant('Q4_0')}: {REPO} has it no longer" in said
    assert f"built   {quant('Q4_0')}" in said and sha256(publisher.path / quant("Q4_0")) == sha
    publisher.run("publish")
    assert not publisher.there() and "M-Q4_0.gguf" in repo.files()


def test_what_the_hub_does_not_give_today_is_cold_tomorrow(publisher, hub):
    """Snakemake deletes the record of what a failed step should have brought."""
    publisher.run("publish")
    fault = Fault(f"(HEAD|GET) /{REPO}/resolve/", status=403, times=99)
    hub.faults.append(fault)
    said = publisher.run(quant("Q4_0"), status=1)
    assert f"{quant('Q4_0')} is cold. " in said
    hub.faults.remove(fault)
    assert f"taken   {quant('Q4_0')}" in publisher.run(quant("Q4_0"))
    assert "are what their records say" in publisher.run("verify")


def test_a_form_whose_gate_does_not_hold_stays_here_and_is_not_uploaded(publisher, hub):
    publisher.config["models"]["M"]["publish"]["max_kld"] = {"Q4_0": 1e-9}
    said = publisher.run("publish", status=1)
    assert f"kept    {quant('Q4_0')}: it is not published: " in said and "over max_kld" in said
    assert publisher.there() == {"Q4_0"}
    assert "M-Q4_0.gguf" not in hub.repos["model", REPO].files()
    assert "README.md" not in hub.repos["model", REPO].files()


def test_an_upload_that_is_cut_off_is_done_by_the_same_command_again(publisher, hub):
    hub.faults.append(Fault(f"POST /api/models/{REPO}/commit/main", status=403, times=1))
    said = publisher.run("publish", status=None)
    assert "no right to write there" in said
    assert len(publisher.there()) <= 1
    publisher.run("publish")
    assert not publisher.there()
    assert {f"M-{name}.gguf" for name in NAMES} <= hub.repos["model", REPO].files().keys()


def test_what_is_in_a_store_alone_is_taken_and_uploaded(publisher, hub, tmp_path: Path):
    (tmp_path / "store").mkdir()
    store = {"QUANTMILL_STORE": str(tmp_path / "store")}
    publisher.run(**store)
    assert not publisher.there() and not hub.requests("POST .*commit")
    said = publisher.run("publish", **store)
    assert f"taken   {quant('Q8_0')}" in said and not publisher.there()
    assert {f"M-{name}.gguf" for name in NAMES} <= hub.repos["model", REPO].files().keys()
    shutil.rmtree(tmp_path / "store")
    assert f"taken   {quant('Q8_0')}" in publisher.run(quant("Q8_0"))


def test_of_survivors_nothing_is_uploaded_before_all_are_measured(publisher, hub):
    publisher.config["models"]["M"]["publish"]["survivors"] = True
    publisher.run()
    said = publisher.run("publish")
    assert publisher.there() == set(NAMES) and "cold " not in said
    assert len(publisher.uploads()) == 2  # the first commit of a repository, and all at the end
