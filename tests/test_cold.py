"""Cold forms: what a store has need not lie here, never more than two do, and nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.forecast.machine import Machine
from lib.forecast.outlook import forecast
from lib.record import cold
from lib.record import recipe as recipes
from lib.run.answers import chosen
from lib.store.store import Settings, Store, content_name, entry_name
from project import Planned, Project, append, sha256
from test_keys import make_pair
from test_store import bucket  # noqa: F401
from tiny_models import make_models, make_texts

NAMES = ["Q8_0", "Q6_K", "Q5_0", "Q4_K_M", "Q4_0", "Q3_K_M"]


def config(**gguf) -> dict:
    """A model with six quants, measured."""
    return {
        "corpora": {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")},
        "models": {
            "M": {
                "source": "./m/prose",
                "gguf": {"imatrix": False, "quants": list(NAMES)} | gguf,
                "evaluate": {"context": 128, "chunks": 2},
            }
        },
        "reclaim": ["quants"],
    }


def quant(name: str) -> str:
    return f"results/M/gguf/M-{name}.gguf"


def there(project: Project) -> set[str]:
    """The names of the quants on the disk."""
    return {name for name in NAMES if (project / quant(name)).exists()}


def bytes_of(project: Project) -> dict[str, str]:
    """{path: sha256} of reports, cards and evaluations."""
    kinds = ("report/*.*", "README.md", "evaluation/*.json")
    found = (path for kind in kinds for path in (project / "results/M").glob(kind))
    return {str(p.relative_to(project.path)): sha256(p) for p in found if "recipe" not in p.name}


@contextlib.contextmanager
def watched(project: Project) -> Iterator[list[set[str]]]:
    """The sets of quants that lie on the disk at one time, as they are seen in this block."""
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            seen.append(there(project))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The sources of the model."""
    path = tmp_path_factory.mktemp("start")
    make_models(path / "m", "prose")
    make_texts(path / "data", 100)
    return path


@pytest.fixture(scope="module")
def warm(start: Path, tmp_path_factory) -> Project:
    """The model, built without a store."""
    path = tmp_path_factory.mktemp("warm") / "project"
    shutil.copytree(start, path)
    project = Project(path, config())
    said = project.build()
    assert there(project) == set(NAMES) and not list(path.rglob("*.cold.json"))
    assert said.count("reclaim: quants: no store has them (QUANTMILL_STORE is not set)") == 1
    return project


@pytest.fixture(scope="module")
def cooled(start: Path, tmp_path_factory) -> tuple[Project, list[set[str]], str, Path]:
    """The model, built with a store: the project, what lay there, what was said, the store."""
    top = tmp_path_factory.mktemp("cooled")
    shutil.copytree(start, top / "project")
    (top / "store").mkdir()
    project = Project(top / "project", config())
    with pytest.MonkeyPatch.context() as patch, watched(project) as seen:
        patch.setenv("QUANTMILL_STORE", str(top / "store"))
        said = project.build("--cores", "8")  # as many as would start all of them at once
    return project, seen, said, top / "store"


@pytest.fixture
def frosty(cooled, tmp_path: Path, monkeypatch) -> Project:
    """A copy of the cooled project, beside a store of its own."""
    project, _, _, store = cooled
    shutil.copytree(store, tmp_path / "store", symlinks=True)
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    return project.copy(tmp_path / "project")


def test_six_quants_need_the_disk_of_two_and_are_told_as_if_they_lay_here(cooled, warm):
    project, seen, said, _ = cooled
    assert max(map(len, seen)) <= 2 and set().union(*seen) == set(NAMES)
    assert not there(project)
    for name in NAMES:
        assert f"cold    {quant(name)}" in said
        note = json.loads((project / cold.note_of(quant(name))).read_text())
        assert note["sha256"] == recipes.read(quant(name), project.path).sha256
    assert bytes_of(project) == bytes_of(warm)
    assert "cold 6, " in said


def test_when_all_is_cold_there_is_nothing_to_do_and_it_is_not_stale_without_a_store(
    frosty, monkeypatch
):
    assert frosty.plan() == set()
    frosty.config["reclaim"] = []
    assert frosty.plan() == set()
    monkeypatch.delenv("QUANTMILL_STORE")
    assert frosty.plan() == set()


def test_reports_and_cards_are_made_anew_from_notes(frosty):
    before = bytes_of(frosty)
    for path in ("report/quality.csv", "README.md"):
        os.unlink(frosty / f"results/M/{path}")
    assert frosty.plan() == {"results/M/report/quality.csv", "results/M/README.md"}
    frosty.build()
    assert bytes_of(frosty) == before and not there(frosty)


def test_another_text_brings_each_back_from_the_store_and_it_goes_again(frosty):
    append(frosty / "data/evaluation.txt", "One more line of the text that is measured on.\n")
    with watched(frosty) as seen:
        said = frosty.build()
    assert max(map(len, seen)) <= 2 and set().union(*seen) == set(NAMES)
    for name in NAMES:
        assert f"taken   {quant(name)}" in said and f"cold    {quant(name)}" in said
    assert not there(frosty) and frosty.plan() == set()


def test_what_a_colleague_has_measured_is_taken_and_brings_no_quant_back(frosty, tmp_path):
    colleague = frosty.copy(tmp_path / "colleague")
    for project in (frosty, colleague):
        append(project / "data/evaluation.txt", "One more line of the text that is measured on.\n")
    frosty.build()
    planned = colleague.plan()
    assert f"results/M/evaluation/{NAMES[0]}.json" in planned
    assert not [path for path in planned if "/gguf/" in path]


def test_what_is_asked_for_by_name_comes_back_and_stays_until_a_run_of_everything(frosty):
    assert f"taken   {quant('Q4_0')}" in frosty.build(quant("Q4_0"))
    record = recipes.read(quant("Q4_0"), frosty.path)
    assert sha256(frosty / quant("Q4_0")) == record.sha256
    frosty.build("evaluations")
    assert there(frosty) == {"Q4_0"}
    assert frosty.plan() == {cold.note_of(quant("Q4_0"))}
    assert f"cold    {quant('Q4_0')}" in frosty.build()
    frosty.build("quants")
    assert there(frosty) == set(NAMES)
    frosty.config["reclaim"] = []
    assert frosty.plan() == set()


def test_one_more_quant_is_built_and_the_others_stay_away(frosty):
    frosty.model("M")["gguf"]["quants"].append("Q2_K")
    with watched(frosty) as seen:
        said = frosty.build()
    assert max(map(len, seen)) == 0 and "taken" not in said
    assert "cold    results/M/gguf/M-Q2_K.gguf" in said and frosty.plan() == set()


def test_reclaim_added_to_what_is_built_makes_nothing_stale(warm, tmp_path, monkeypatch):
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    assert project.plan() == {cold.note_of(quant(name)) for name in NAMES}
    said = project.build()
    assert not there(project) and "build   results/M/gguf/M-Q8_0.gguf\n" not in said
    assert project.plan() == set()


# What can go wrong

KILLER = """
import atexit, os, signal, sys
words = sys.orig_argv
verb, when = os.environ.get("KILL_AT", "- -").split()
if len(words) > 2 and words[1].endswith("cool.py") and words[2] == verb:
    die = lambda: os.killpg(0, signal.SIGKILL)
    die() if when == "before" else atexit.register(die)
"""


@pytest.mark.parametrize("moment", ["note before", "note after", "delete before", "delete after"])
def test_a_run_that_is_killed_while_it_deletes_loses_nothing_and_the_next_goes_on(
    warm, tmp_path, monkeypatch, moment
):
    """Before and after the store was looked at, and before and after the file is deleted."""
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "KILL_AT": moment}
    done = subprocess.run(
        project.command(), env=env, start_new_session=True, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done
    gone = set(NAMES) - there(project)
    assert len(gone) <= 2 if moment == "delete after" else not gone
    shop = Store(Settings(str(tmp_path / "store")))
    for name in gone:
        assert shop.look(recipes.read(quant(name), project.path).digest)
    assert project.plan() == {cold.note_of(quant(name)) for name in set(NAMES) - gone}
    project.build()
    assert not there(project) and project.plan() == set()
    assert "every byte is what its entry says" in project.run("store", "--config", "check=true")


PRUNER = """
import os, shutil, sys
if len(sys.orig_argv) > 2 and sys.orig_argv[2] == "delete" and "PRUNED" in os.environ:
    shutil.rmtree(os.environ["PRUNED"], ignore_errors=True)
"""


def test_a_store_that_is_pruned_after_it_was_seen_costs_no_file(warm, tmp_path, monkeypatch):
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    (tmp_path / "sitecustomize.py").write_text(PRUNER)
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PRUNED": str(tmp_path / "store/entries")}
    done = subprocess.run(project.command("-k"), env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode and f"{tmp_path}/store had it, and no longer has" in said
    assert there(project) == set(NAMES)
    project.build()
    assert not there(project) and project.plan() == set()


def content(project: Project, tmp_path: Path, name: str) -> Path:
    """The bytes of a quant in the store."""
    return tmp_path / "store" / content_name(recipes.read(quant(name), project.path).sha256)


def spoil(file: Path) -> None:
    """Change a byte, as a disk does."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_what_its_place_has_lost_or_damaged_is_built_again_with_the_same_bytes(frosty, tmp_path):
    lost, damaged = content(frosty, tmp_path, "Q4_0"), content(frosty, tmp_path, "Q5_0")
    lost.unlink()
    spoil(damaged)
    said = frosty.run("verify", check=False)
    assert f"{quant('Q4_0')}  cold, and in {tmp_path}/store: its bytes are not there" in said
    assert f"{quant('Q5_0')}  cold, and in {tmp_path}/store: it has other bytes" in said
    assert "2 faults" in said and f"snakemake --cores all {quant('Q4_0')} {quant('Q5_0')}" in said
    said = frosty.build(quant("Q4_0"), quant("Q5_0"))
    for name in ("Q4_0", "Q5_0"):
        assert f"built   {quant(name)}" in said
    for name in ("Q4_0", "Q5_0"):
        assert sha256(frosty / quant(name)) == recipes.read(quant(name), frosty.path).sha256
    frosty.build()
    assert not there(frosty) and "faults" not in frosty.run("verify")


def test_what_is_damaged_in_the_store_is_not_a_place_and_is_put_right(warm, tmp_path, monkeypatch):
    """The files here are the only good ones."""
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    project.run("store", "--config", "put=true")
    for name in NAMES:
        spoil(content(project, tmp_path, name))
    project.build()
    assert not there(project)
    for name in NAMES:
        sha = recipes.read(quant(name), project.path).sha256
        assert sha256(content(project, tmp_path, name)) == sha


def test_what_is_damaged_here_is_neither_deleted_nor_put(warm, tmp_path, monkeypatch):
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    spoil(project / quant("Q4_0"))
    said = project.build()
    assert f"kept    {quant('Q4_0')}: it has other bytes than its record says" in said
    assert there(project) == {"Q4_0"} and not content(project, tmp_path, "Q4_0").exists()


def test_where_only_what_is_signed_counts_what_is_not_stays_and_the_run_is_green(
    warm, tmp_path, monkeypatch
):
    private, public = make_pair(tmp_path, "ours")
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    project.run("store", "--config", "put=true")
    entries = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.json")}
    monkeypatch.setenv("QUANTMILL_STORE_KEY", str(public))
    said = project.build()
    assert f"kept    {quant('Q4_0')}: {tmp_path}/store has it, but is not signed" in said
    assert there(project) == set(NAMES)
    assert {path: path.read_bytes() for path in entries} == entries
    monkeypatch.setenv("QUANTMILL_STORE_SIGN", str(private))
    project.build()
    assert not there(project)


def test_a_store_that_takes_nothing_and_what_was_accepted_keep_files_in_one_line(
    warm, tmp_path, monkeypatch
):
    project = warm.copy(tmp_path / "project")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/content").write_text("no directory")
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    said = project.build()
    (line,) = (line for line in said.splitlines() if f"kept    {quant('Q4_0')}" in line)
    assert f"{tmp_path}/store: " in line and there(project) == set(NAMES)
    (tmp_path / "store/content").unlink()
    monkeypatch.chdir(project.path)
    record = recipes.read(quant("Q4_0"))
    record.accepted = [{"digest": record.digest, "by": "me", "at": "now", "differs": ["code"]}]
    record.digest = "0" * 64
    recipes.write(record)
    assert f"kept    {quant('Q4_0')}: what was accepted" in project.build()
    assert there(project) == {"Q4_0"} and project.plan() == set()


# What is asked


def test_questions_tell_cold_from_missing_and_nothing_of_it_is_an_orphan(frosty, tmp_path):
    assert "6/6*" in frosty.run("status")
    assert "Nothing is stale" in frosty.run("why")
    said = frosty.run("why", "--config", f"target={quant('Q4_0')}")
    assert "it is cold" in said and f"again: snakemake --cores all {quant('Q4_0')}" in said
    assert "faults" not in frosty.run("verify")
    frosty.config["reclaim"] = []
    assert "cold.json" not in frosty.run("orphans")
    frosty.config["reclaim"] = ["quants"]
    del frosty.model("M")["gguf"]["quants"][0]
    assert "M-Q8_0.gguf.cold.json" in frosty.run("orphans")


def test_pruning_leaves_what_is_cold_here(frosty, tmp_path):
    frosty.run("store", "--config", "size=0G", "yes=true")
    kept = {path for path in (tmp_path / "store/entries").rglob("*.json")}
    digests = {recipes.read(quant(name), frosty.path).digest for name in NAMES}
    assert kept == {tmp_path / "store" / entry_name(digest) for digest in digests}
    assert "faults" not in frosty.run("verify")


def test_the_forecast_counts_two_quants_at_the_fullest(start, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    peaks = {}
    for store in ("", str(tmp_path / "store")):
        monkeypatch.setenv("QUANTMILL_STORE", store)
        session = Planned.open(config())
        building = session.taking.builds(chosen(session))
        outlook = forecast(session.graph, building, Machine(2), cooling=session.cooling)
        sizes = {up.rule: [] for up in building}
        for up in building:
            sizes[up.rule].append(outlook.sizes[up.path].bytes)
        peaks[bool(store)] = outlook.course.bytes
    saved = sum(sorted(sizes["quantize"])[:-2])
    assert peaks[False] - peaks[True] >= 0.9 * saved


# Labelled copies, shards, a bucket


def test_labelled_copies_and_shards_go_with_their_quant_and_come_back(start, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path / "project")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    more = {"quants": ["Q8_0", "Q4_0"], "metadata": {"general.license": "mit"}}
    project = Project(tmp_path / "project", config(split_max_size="1M", **more))
    said = project.build()
    left = {path.name for path in (project / "results/M").rglob("*.gguf") if path.exists()}
    assert left == {"M-BF16.gguf"}, said
    assert project.plan() == set()
    sharded, linked = "results/M/shards/Q8_0", "results/M/shards/Q4_0"
    assert not (project / sharded).exists() and (project / linked).is_dir()
    said = project.build(sharded, linked)
    assert f"taken   {sharded}" in said and "taken   results/M/labelled/M-Q4_0.gguf" in said
    assert len(list((project / sharded).glob("*.gguf"))) == 2
    (link,) = (project / linked).glob("*.gguf")
    assert link.exists()
    project.build()
    assert not (project / sharded).exists() and not link.exists() and project.plan() == set()


def test_s3_what_a_bucket_has_need_not_lie_here(bucket, warm, tmp_path, monkeypatch):  # noqa: F811
    project = warm.copy(tmp_path / "project")
    monkeypatch.setenv("QUANTMILL_STORE", f"{bucket}/cold")
    hashes = {name: sha256(project / quant(name)) for name in NAMES}
    project.build()
    assert not there(project) and "faults" not in project.run("verify")
    assert f"taken   {quant('Q4_0')}" in project.build(quant("Q4_0"))
    assert sha256(project / quant("Q4_0")) == hashes["Q4_0"]
    for path in project.path.rglob("*"):
        assert not path.is_file() or b"quite-secret" not in path.read_bytes(), path
