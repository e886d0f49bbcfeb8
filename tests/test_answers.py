"""The questions before and after a run, on copies of a project built with the real tools."""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from lib.forecast.schedule import Job, simulate
from project import ROOT, Project, snakemake
from tiny_models import make_llama


def ask(project: Project, target: str, *arguments: str, fails: bool = False) -> str:
    """What a target prints; the exit status must be as expected, and there is no traceback."""
    done = subprocess.run(
        project.command(target, *arguments), capture_output=True, text=True, timeout=900
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines() or [""])) <= 100, done.stdout
    return done.stdout if not fails else done.stdout + done.stderr


def test_a_working_directorys_own_config_needs_no_option(tmp_path):
    """`--configfile mine.yaml plan` takes `plan` for a second file, so targets come before it."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(
        "models: {Own: {source: ./own, gguf: {quants: [Q8_0]}}}\n"
    )
    make_llama(tmp_path / "own")
    done = snakemake(tmp_path, "plan")
    assert done.returncode == 0, done.stdout
    assert "results/Own" in done.stdout and "gguf/Own-Q8_0.gguf" in done.stdout
    assert "Demo" not in done.stdout


def test_why_names_the_changed_weight_and_what_follows_from_it(project):
    project.model("Mix")["merge"]["models"][0]["parameters"]["weight"] = 0.55
    said = ask(project, "why")
    assert "merge.models[0].parameters.weight 0.6 -> 0.55\n    results/Mix/safetensors\n" in said
    roots, follows = said.split("made from these:")
    assert "Mix-Q8_0.gguf" not in roots
    assert re.search(
        r"results/Mix/gguf/Mix-Q8_0.gguf  from gguf/Mix-BF16.gguf, imatrix.dat\n", follows
    )
    assert "Plain" not in said


def test_why_says_which_text_changed_and_what_is_rebuilt_on_the_way(project):
    with (project / "data/evaluation.txt").open("a") as file:
        file.write("more text\n")
    said = ask(project, "why")
    assert "corpus evaluation: content changed\n    resources/corpora/evaluation.txt" in said
    assert "results/Mix/evaluation/base.kld  for evaluation/BF16.json and 3 more" in said
    assert "gguf/Mix-Q8_0.gguf\n" not in said.split("made from these:")[0]


def test_why_explains_one_file_also_where_it_is_fresh(project):
    (project / "results/Plain/gguf/Plain-Q4_0.gguf").unlink()
    said = ask(project, "why", "--config", "target=results/Plain/gguf/Plain-Q4_0.gguf,imatrix")
    assert "results/Plain/gguf/Plain-Q4_0.gguf  (quantize)\n    stale: it is missing" in said
    assert "results/Mix/imatrix.dat  (imatrix)\n    fresh" in said
    said = ask(project, "why", "--config", "target=results/nosuch", fails=True)
    assert "target: results/nosuch is no model of the config, no rule" in said


def test_why_says_what_mends_what_is_missing_and_what_is_damaged(project):
    missing, cut = "results/Plain/gguf/Plain-Q4_0.gguf", "results/Mix/gguf/Mix-static.gguf"
    (project / missing).unlink()
    said = ask(project, "why")
    assert re.match(r"1 of \d+ artifacts is stale\.\n", said)
    assert "`snakemake --cores all` builds this" in said and "is damaged" not in said
    os.truncate(project / cut, 1000)
    assert "What is damaged is replaced: move it away first" in ask(project, "why")
    said = ask(project, "why", "--config", f"target={missing},{cut},results/Mix/safetensors")
    assert f"    stale: it is missing\n    again: snakemake --cores all {missing}\n" in said
    assert (
        "    what was made from it is stale too; the next run replaces all of it\n"
        f"    again: snakemake --cores all {cut}\n" in said
    )
    shutil.rmtree(project / "results/Mix/safetensors")
    said = ask(project, "why", "--config", "target=results/Mix/safetensors")
    assert "    again: snakemake --cores all results/Mix/safetensors\n" in said


def test_the_plan_lists_what_a_run_builds_with_its_size(project):
    project.quants.append("Q6_K")
    wanted = project.plan()
    said = ask(project, "plan")
    listed, place = set(), ""
    for line in said.split("\n\n")[0].splitlines()[1:]:
        place = line if not line.startswith(" ") else place
        if line.startswith("  "):
            listed.add(place * place.startswith("results") + line.split()[0])
    assert listed == wanted
    predicted = float(re.search(r"gguf/Mix-Q6_K.gguf +quantize +([\d.]+) MB", said)[1])
    assert "it fits" in said
    project.build()
    actual = (project / "results/Mix/gguf/Mix-Q6_K.gguf").stat().st_size
    assert predicted == pytest.approx(actual / 1e6, rel=0.03, abs=0.05)
    assert "Nothing is to be built" in ask(project, "plan")


def test_a_build_that_cannot_fit_is_refused_before_it_starts(tmp_path):
    (tmp_path / "config").mkdir()
    files = {"model.safetensors": {"sha256": "0" * 64, "size": 10**16}}
    lock = {"models": {"org/huge": {"commit": "1" * 40, "files": files}}}
    (tmp_path / "config/sources.lock.yaml").write_text(json.dumps(lock))
    project = Project(
        tmp_path, {"models": {"Huge": {"source": "org/huge", "gguf": {"quants": ["Q8_0"]}}}}
    )
    began = time.monotonic()
    said = ask(project, "all", "--config", "ignore_preflight=true", fails=True)
    assert time.monotonic() - began < 60
    assert "This build does not fit the disk: it needs" in said
    assert "reclaim: [safetensors, bf16]" in said
    assert "build   " not in said
    assert "IT DOES NOT FIT" in ask(project, "plan")


def test_the_plan_names_the_longest_of_many_short_steps(tmp_path):
    (tmp_path / "config").mkdir()
    files = {"model.safetensors": {"sha256": "0" * 64, "size": 10**6}}
    lock = {"models": {"org/free": {"commit": "1" * 40, "files": files}}}
    (tmp_path / "config/sources.lock.yaml").write_text(json.dumps(lock))
    made = {"source": "org/free", "gguf": {"quants": ["Q8_0", "Q4_K_M"]}}
    said = ask(Project(tmp_path, {"models": {f"M{n}": made for n in range(40)}}), "plan")
    decide = said.split("of which, one after the other:")[1]
    assert len(re.findall(r"BF16\.gguf \d+ s", decide)) == 8


def test_the_plan_counts_the_tokens_that_each_engine_runs_a_linked_model_over(tmp_path):
    make_llama(tmp_path / "m")
    (tmp_path / "t.txt").write_text("Some words. " * 100)
    model = {"source": "./m", "gguf": {"quants": ["Q8_0"]}, "evaluate": {"chunks": 100_000}}
    model |= {"compressed_tensors": {"schemes": ["FP8_DYNAMIC"]}, "mlx": {"forms": [4]}}
    project = Project(
        tmp_path, {"corpora": {"evaluation": {"path": "t.txt"}}, "models": {"M": model}}
    )
    said = ask(project, "plan")
    for form in (
        "base.kld +\\*",
        "Q8_0.json",
        "transformers.json",
        "FP8_DYNAMIC.json",
        "4bit.json",
    ):
        line = re.search(rf"evaluation/{form} .*", said)[0]
        assert re.search(r"~\d+ (min|h)", line), line


def test_the_plan_says_where_the_licenses_of_a_merge_are_to_be_judged(tmp_path):
    (tmp_path / "config").mkdir()
    files = {"model.safetensors": {"sha256": "0" * 64, "size": 10**6}}
    licenses = {"org/free": "apache-2.0", "org/bound": "llama3.3"}
    lock = {n: {"commit": "1" * 40, "files": files, "license": lic} for n, lic in licenses.items()}
    (tmp_path / "config/sources.lock.yaml").write_text(json.dumps({"models": lock}))
    merge = {"merge_method": "linear", "dtype": "bfloat16"}
    merge["models"] = [{"model": name, "parameters": {"weight": 1}} for name in licenses]
    models = {"Mix": {"merge": merge}, "Free": {"source": "org/free", "gguf": {}}}
    models["Mine"] = {"source": "org/bound", "gguf": {}}
    said = " ".join(ask(Project(tmp_path, {"models": models}), "plan").split())
    assert (
        "license Mix: other, because its models have different or no licenses "
        "(org/bound: llama3.3, org/free: apache-2.0)"
    ) in said
    assert said.count("license ") == 1


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 255
    path.write_bytes(data)


def test_verify_finds_and_names_every_damage(project):
    assert "are what their records say" in ask(project, "verify")
    gguf = project / "results/Mix/gguf"
    flip(gguf / "Mix-Q8_0.gguf")
    os.truncate(gguf / "Mix-mixed.gguf", 1000)
    (project / "results/Plain/README.md").unlink()
    (project / "results/Mix/notes.txt").write_text("mine")
    (project / "results/Mix/shards/Q8_0/stray").write_text("mine")
    record = project / "results/Two/gguf/Two-Q8_0.gguf.recipe.json"
    record.write_text(record.read_text().replace('"type": "Q8_0"', '"type": "Q6_K"'))
    one, two = (project / f"results/Mix/evaluation/{form}.json" for form in ("mixed", "static"))
    text = one.read_text()
    two_text = two.read_text()
    said = ask(project, "verify", fails=True)
    for path, fault in {
        "results/Mix/gguf/Mix-Q8_0.gguf": "edited: other bytes",
        "results/Mix/gguf/Mix-mixed.gguf": "truncated: 1000 of",
        "results/Mix/shards/mixed/Mix-mixed.gguf": "truncated: 1000 of",  # a link to it
        "results/Plain/README.md": "missing",
        "results/Mix/notes.txt": "unrecorded",
        "results/Mix/shards/Q8_0/stray": "unrecorded",
        "results/Two/gguf/Two-Q8_0.gguf": "record edited",
    }.items():
        assert re.search(rf"{re.escape(path)} +{fault}", said), said
    assert said.startswith("7 faults")
    assert (one.read_text(), two.read_text()) == (text, two_text)


def test_the_commands_that_verify_prints_mend_every_damage(project):
    """Not every fault makes an artifact stale: a run does not see an edit that keeps the size."""
    gguf = project / "results/Mix/gguf"
    project.quants.append("Q5_K_M")
    project.build("results/Mix/gguf/Mix-Q5_K_M.gguf")
    project.quants.pop()
    for damaged in ("Mix-Q8_0.gguf", "Mix-Q5_K_M.gguf"):
        flip(gguf / damaged)
    os.truncate(gguf / "Mix-mixed.gguf", 1000)
    os.truncate(project / "results/Plain/gguf/Plain-Q4_0.gguf.recipe.json", 20)
    (project / "results/Plain/README.md").unlink()
    (project / "results/Mix/imatrix.dat.recipe.json").unlink()
    for stray in ("results/Mix/two words.txt", "results/Mix/shards/Q8_0/stray"):
        (project / stray).write_text("mine")
    next((project / "resources/models").glob("m--code-*/config.json")).unlink()
    record = project / "results/Two/gguf/Two-Q8_0.gguf.recipe.json"
    record.write_text(record.read_text().replace('"type": "Q8_0"', '"type": "Q6_K"'))
    said = ask(project, "verify", fails=True)
    assert said.startswith("11 faults in ")  # one of them seen through a link too
    commands = re.findall(r"^  (?:snakemake|rm) .*", said.replace(" \\\n      ", " "), re.M)
    assert [command.split()[0] for command in commands] == ["snakemake"] * 4 + ["rm"]
    for command in commands:
        program, *words = shlex.split(command)
        if program == "rm":
            subprocess.run([program, *words], cwd=project.path, check=True)
        elif words == ["clean_orphans"]:
            project.build(*words, "--config", "yes=true")
        else:
            assert words[:2] == ["--cores", "all"]
            project.build(*words[2:])
    assert "are what their records say" in ask(project, "verify")
    assert project.plan() == set()


def test_verify_counts_a_single_fault_as_one(project):
    flip(project / "results/Mix/gguf/Mix-Q8_0.gguf")
    said = ask(project, "verify", fails=True)
    assert said.startswith("1 fault in ")
    assert "\n  snakemake --cores all --force results/Mix/gguf/Mix-Q8_0.gguf\n" in said


def test_verify_finds_two_files_that_were_swapped(project):
    shards = sorted(project.path.glob("results/Mix/report/quality.*"))
    a, b = shards[0], project / "results/Two/report/quality.csv"
    first, second = a.read_bytes(), b.read_bytes()
    size = max(len(first), len(second))
    assert size
    a.write_bytes(second), b.write_bytes(first)
    said = ask(project, "verify", fails=True)
    assert "results/Two/report/quality.csv" in said
    assert a.relative_to(project.path).as_posix() in said


@pytest.mark.slow
def test_a_rebuild_gives_the_same_bytes_and_says_where_they_differ(project):
    said = ask(project, "verify_rebuild", "--config", "model=Plain")
    assert re.search(r"results/Plain/gguf/Plain-Q4_0.gguf +identical\n", said)
    assert "came out the same again" in said
    flip(project / "results/Plain/gguf/Plain-Q4_0.gguf")
    said = ask(project, "verify_rebuild", "--config", "model=Plain", fails=True)
    assert re.search(r"results/Plain/gguf/Plain-Q4_0.gguf +different: tensor \S+", said)
    assert re.search(r"results/Plain/gguf/Plain-BF16.gguf +identical\n", said)
    assert "which model?" in ask(project, "verify_rebuild", fails=True)


def test_orphans_are_shown_then_deleted_and_nothing_else(project):
    static = project.quants.pop()
    assert static["name"] == "static"
    mine = project / "results/Mix/shards/static/mine.txt"
    mine.write_text("mine")
    before = project.files()
    said = ask(project, "orphans")
    for path in ("gguf/Mix-static.gguf", "shards/static", "evaluation/static.json"):
        assert f"  results/Mix/{path} " in said
    assert "Two" not in said and "Q8_0" not in said
    assert "Nothing is deleted yet" in ask(project, "clean_orphans")
    assert project.files() == before
    ask(project, "clean_orphans", "--config", "yes=true")
    gone = before.keys() - project.files().keys()
    assert {path.split("static")[0] for path in gone} == {
        "results/Mix/gguf/Mix-",
        "results/Mix/shards/",
        "results/Mix/evaluation/",
    }
    assert mine.read_text() == "mine"
    assert not list(project.path.glob("logs/Mix/*/*static*"))
    # The option that leaves out a form for one run does not make orphans of it.
    assert "No orphans" in ask(project, "orphans", "--config", "skip=exl2", "model=Plain")


def test_a_model_that_is_brought_back_is_as_fresh_as_it_was(project):
    plain = project.config["models"].pop("Plain")
    assert project.plan() == set()
    project.config["models"]["Plain"] = plain
    assert project.plan() == set()


def test_status_counts_what_is_there_and_names_what_is_being_built(project):
    (project / "results/Mix/gguf/Mix-Q8_0.gguf").unlink()
    stage = project / "results/Mix/gguf/.Mix-Q8_0.gguf.building"
    (stage / "host-1").mkdir(parents=True)
    (stage / "host-1/.inputs.json").write_text("{}")
    (stage / "host-1/Mix-Q8_0.gguf").write_bytes(b"0" * 5000)
    with (stage / "hold").open("w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        # A build holds the directory too: asking must be possible all the same.
        with (project / ".snakemake/quantmill/run.hold").open("a") as run:
            fcntl.flock(run, fcntl.LOCK_EX)
            said = ask(project, "status")
    assert re.search(r"^Mix +1/1 +1/1 +1/1 +2/3 ", said, re.M)
    assert re.search(
        r"results/Mix/gguf/Mix-Q8_0.gguf +5.0 kB +\d+ s +logs/Mix/gguf/Mix-Q8_0.gguf.log", said
    )
    assert "being built now" not in ask(project, "status")


def test_the_peak_counts_temporary_files_until_their_last_consumer():
    def model(name: str) -> list[Job]:
        quants = [Job(f"{name}-q{i}", 10, inputs=(f"{name}-bf16",), reads=100) for i in range(3)]
        return [Job(f"{name}-bf16", 100, temporary=True, reads=500), *quants]

    jobs = [*model("a"), *model("b")]
    one = simulate(jobs, cores=1)
    # One model after the other: never two conversions at once.
    assert one.bytes == 3 * 10 + 100 + 3 * 10
    assert one.after == 60
    assert simulate(jobs, cores=8).bytes == 200 + 60
    kept = [Job(j.path, j.bytes, inputs=j.inputs, reads=j.reads) for j in jobs]
    assert simulate(kept, cores=1).bytes == 260


@pytest.mark.slow
def test_under_a_disk_budget_one_model_is_reclaimed_before_the_next_is_converted(project):
    """The prediction above relies on it: the scheduler takes users of temporary files first."""
    project.config["reclaim"] = ["bf16"]
    project.config["models"]["Other"] = {
        "source": "./m/code",
        "gguf": {"imatrix": False, "quants": ["Q4_0", "Q8_0"]},
    }
    project.model("Plain")["gguf"]["quants"] = ["Q5_0", "Q6_K"]
    said = project.build(
        "--cores", "1", "--resources", "disk_mb=150", "--config", "model=Other,Plain"
    )
    order = re.findall(r"^built   results/(\w+)/gguf/\w+-(\w+).gguf", said, re.M)
    # Plain's conversion is there already; neither model is left before it is done.
    models = [model for model, _ in order]
    assert models in (["Other"] * 3 + ["Plain"] * 2, ["Plain"] * 2 + ["Other"] * 3)
    assert not list(project.path.glob("results/Other/gguf/*-BF16.gguf"))


def test_the_benchmark_prints_figures_for_a_small_graph(tmp_path):
    script = [sys.executable, ROOT / "dev/bench_plan.py", tmp_path / "bench"]
    options = ["--models", "3", "--quants", "4", "--repeat", "1", "--tools", "quantmill"]
    done = subprocess.run([*script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Quantmill, nothing to be done +[\d.]+ s CPU +\d+ MB  0 jobs", done.stdout), (
        done.stdout
    )
    assert re.search(r"Quantmill, one quant added +[\d.]+ s CPU +\d+ MB  4 jobs", done.stdout), (
        done.stdout
    )
