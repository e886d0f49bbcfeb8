"""Builds on a real Slurm: as good as local ones, through every death that a cluster has."""

import contextlib
import copy
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from builds import REPOSITORY, snakemake, wrap, write_config
from cluster import Cluster

from lib.forecast import resources
from lib.stages.registry import STAGES

GB = 10**9

SECRET = "hf_S3cretOfTheEnvironment"
PROFILE = REPOSITORY / "profiles/slurm"
pytestmark = pytest.mark.slow


def hashes(here: Path) -> dict[str, str]:
    """sha256 of every model file, imatrix and shard that lies under results/."""
    kinds = {".gguf", ".dat", ".safetensors"}
    return {
        str(path.relative_to(here)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((here / "results").rglob("*"))
        if path.suffix in kinds
    }


def leftovers(here: Path) -> list[str]:
    """Stages of half-made artifacts under results/."""
    return [str(path) for path in (here / "results").rglob(".*.building")]


def quantize_by_hand(here: Path, kind: str) -> str:
    """sha256 of a static quant, from the tool itself."""
    bf16 = here / "results/M/gguf/M-BF16.gguf"
    out = here / f"by-hand-{kind}.gguf"
    tool = os.path.realpath(here / "resources/llama.cpp/bin/llama-quantize")
    subprocess.run([tool, bf16, out, kind, "1"], check=True, capture_output=True, cwd=here)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def static(*kinds: str) -> list[dict]:
    """Quants without imatrix, as the config writes them."""
    return [{"name": kind, "type": kind, "imatrix": False} for kind in kinds]


def trace(here: Path) -> list[list[str]]:
    """The words of each line that wrapped tools wrote into `trace`."""
    path = here / "trace"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def assert_one_writer(here: Path, dead: tuple[str, ...] = ()) -> None:
    """No job begins to write a quant while another does; `dead` jobs ended without saying so."""
    at_work: dict[str, str] = {}
    for verb, quant, job in trace(here):
        if verb == "start":
            assert at_work.get(quant) in (None, *dead), trace(here)
            at_work[quant] = job
        else:
            assert at_work.pop(quant) == job, trace(here)


# Each quantization writes what it does into `trace`; hooks/TYPE may be lines that hurt it, once.
NOTED = """\
quant=$(basename "${@: -3:1}")
mkdir -p hooks
echo "start $quant $SLURM_JOB_ID" >> trace
hook=hooks/$(basename "${@: -2:1}")
if [ -e "$hook" ] && mv "$hook" "$hook.done"; then . "$hook.done"; fi
"""
ENDED = 'echo "end $quant $SLURM_JOB_ID" >> trace'


def hurt(here: Path, **hooks: str) -> None:
    """What shall happen to the first quantization of a type."""
    wrap(here, "llama-quantize", NOTED, ENDED)
    (here / "hooks").mkdir()
    for kind, lines in hooks.items():
        (here / "hooks" / kind).write_text(lines)


def job_of(here: Path, kind: str) -> str:
    """The Slurm job that quantizes to a type now; empty if none does."""
    jobs = [job for verb, quant, job in trace(here) if (verb, quant) == ("start", f"M-{kind}.gguf")]
    return jobs[-1] if jobs else ""


def job_scripts(cluster: Cluster) -> dict[str, str]:
    """{file: text} of the scripts of the jobs that Slurm has now."""
    found = {}
    for script in cluster.base.glob("state/hash.*/job.*/script"):
        with contextlib.suppress(FileNotFoundError):
            found[str(script)] = script.read_text(errors="replace")
    return found


def test_a_build_through_slurm_has_the_bytes_of_a_local_one_and_gpus_are_never_shared(
    run, local, tmp_path
):
    shutil.rmtree(tmp_path / "results")
    for tool in ("llama-imatrix", "llama-perplexity"):
        here = 'gpu=$CUDA_VISIBLE_DEVICES; echo "on gpu${gpu:-none} $$" >> trace; sleep 1'
        wrap(tmp_path, tool, here, 'echo "off gpu${gpu:-none} $$" >> trace')
    wrap(
        tmp_path,
        "llama-quantize",
        'echo "cpu gpu${CUDA_VISIBLE_DEVICES:-none} $SLURM_CPUS_PER_TASK" >> trace; '
        'touch "$TMPDIR/x"',
    )
    busiest = 0
    started = run(
        "--jobs=6",
        "--set-resources",
        "imatrix:gpu=1",
        "base_logits:gpu=1",
        "evaluate:gpu=1",
        "--set-threads",
        "quantize=5",
        variables={"HF_TOKEN": SECRET},
    )
    scripts: dict[str, str] = {}

    def ended() -> bool:
        nonlocal busiest
        scripts.update(job_scripts(started.cluster))
        busiest = max(busiest, len(started.cluster.jobs("PENDING,RUNNING,COMPLETING")))
        return started.process.poll() is not None

    while not ended():
        try:
            started.process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
    assert started.wait() == 0, started.text + started.slurm_logs()
    assert hashes(tmp_path) == hashes(local)
    assert (tmp_path / "results/M/report/quality.csv").exists()
    assert not leftovers(tmp_path)
    assert busiest <= 6
    assert len(scripts) > 5
    said = "\n".join([*scripts.values(), str(started.cluster.jobs()), started.text])
    said += "".join(log.read_text(errors="replace") for log in tmp_path.rglob("*.log"))
    assert SECRET not in said, "a token of the environment is in a job script, a log or the queue"
    taken: set[str] = set()
    used: set[str] = set()
    for verb, gpu, _ in trace(tmp_path):
        if verb == "on":
            assert gpu in ("gpu0", "gpu1") and gpu not in taken, trace(tmp_path)
            taken.add(gpu)
            used.add(gpu)
        elif verb == "off":
            taken.discard(gpu)
    assert used == {"gpu0", "gpu1"}
    assert not list((tmp_path / "scratch").iterdir()), "a job's local scratch was left"
    # A step without a GPU holds none, and the CPUs of a job are not those of the login node.
    assert {tuple(line[1:]) for line in trace(tmp_path) if line[0] == "cpu"} == {("gpunone", "5")}


def test_cancelled_timed_out_and_killed_for_memory_are_each_tried_again(run, tmp_path):
    write_config(tmp_path, [*static("Q5_0", "Q5_1", "Q4_0"), "Q8_0", "Q4_K_M"])
    hog = f'{sys.executable} -c "import time; b = bytearray(2 * 2**30); time.sleep(600)" & wait'
    hurt(tmp_path, Q5_0="exec sleep 600", Q5_1="exec sleep 600", Q4_0=hog)
    started = run(
        *(f"results/M/gguf/M-{kind}.gguf" for kind in ("Q5_0", "Q5_1", "Q4_0")),
        "--set-resources",
        "quantize:mem_mb=1200*attempt",
    )
    started.until(lambda: all(job_of(tmp_path, kind) for kind in ("Q5_0", "Q5_1")), "two jobs")
    cancelled = job_of(tmp_path, "Q5_0")
    started.cluster.call("scancel", cancelled)
    # Its time limit is now; Slurm looks every half minute.
    overdue = job_of(tmp_path, "Q5_1")
    started.cluster.call("scontrol", "update", f"JobId={overdue}", "EndTime=now")
    assert started.wait() == 0, started.text + started.slurm_logs()
    for said in (f"Slurm job {cancelled} failed: it was cancelled", "time limit", "out of memory"):
        assert said in started.text
    made = hashes(tmp_path)
    for kind in ("Q5_0", "Q5_1", "Q4_0"):
        assert made[f"results/M/gguf/M-{kind}.gguf"] == quantize_by_hand(tmp_path, kind)
    assert not leftovers(tmp_path)
    hungry = trace(tmp_path)[[line[1] for line in trace(tmp_path)].index("M-Q4_0.gguf")][2]
    assert_one_writer(tmp_path, dead=(cancelled, overdue, hungry))


def test_a_step_that_always_fails_ends_the_run_with_its_reason_and_the_rest_is_built(run, tmp_path):
    write_config(tmp_path, static("Q5_0", "Q5_1"))
    wrap(tmp_path, "llama-quantize", 'case "$*" in *Q5_0*) echo no such tensor >&2; exit 3;; esac')
    started = run("results/M/gguf/M-Q5_0.gguf", "results/M/gguf/M-Q5_1.gguf", "--retries=1")
    assert started.wait() == 1
    made = hashes(tmp_path)
    assert made["results/M/gguf/M-Q5_1.gguf"] == quantize_by_hand(tmp_path, "Q5_1")
    assert "results/M/gguf/M-Q5_0.gguf" not in made
    assert "logs/slurm/" in started.text
    assert "no such tensor" in started.slurm_logs()
    assert not (tmp_path / "results/M/gguf/M-Q5_0.gguf.recipe.json").exists()


def test_a_killed_slurmd_does_not_stop_the_build_or_let_two_jobs_write_one_file(run, tmp_path):
    write_config(tmp_path, static("Q5_0"))
    hurt(tmp_path, Q5_0="sleep 25")
    started = run("results/M/gguf/M-Q5_0.gguf")
    started.until(lambda: trace(tmp_path), "the quantization")
    node = started.cluster.jobs("RUNNING")[0]["node"]
    started.cluster.kill_node(node)
    assert started.wait() == 0, started.text + started.slurm_logs()
    made = hashes(tmp_path)
    assert made["results/M/gguf/M-Q5_0.gguf"] == quantize_by_hand(tmp_path, "Q5_0")
    assert_one_writer(tmp_path)


def test_a_killed_snakemake_goes_on_beside_the_jobs_that_it_left(run, tmp_path):
    write_config(tmp_path, static("Q5_0", "Q5_1"))
    hurt(tmp_path, Q5_0="sleep 15")
    targets = ["results/M/gguf/M-Q5_0.gguf", "results/M/gguf/M-Q5_1.gguf"]
    first = run(*targets)
    first.until(lambda: any(line[1] == "M-Q5_0.gguf" for line in trace(tmp_path)), "Q5_0")
    first.kill()
    assert first.cluster.jobs("RUNNING"), "no job was left: the test shows nothing"
    second = run(*targets)
    assert second.wait() == 0, second.text + second.slurm_logs()
    made = hashes(tmp_path)
    for kind in ("Q5_0", "Q5_1"):
        assert made[f"results/M/gguf/M-{kind}.gguf"] == quantize_by_hand(tmp_path, kind)
    assert not leftovers(tmp_path)
    assert_one_writer(tmp_path)
    # What the earlier run's job finished is not made again.
    started = [line[1] for line in trace(tmp_path) if line[0] == "start"]
    assert started.count("M-Q5_0.gguf") == 1


def test_twenty_models_of_twenty_quants_do_not_flood_the_queue(run, tmp_path, cluster):
    kinds = "Q8_0 Q6_K Q5_K_M Q5_K_S Q5_0 Q5_1 Q4_K_M Q4_K_S Q4_0 Q4_1 Q3_K_L Q3_K_M Q3_K_S Q2_K"
    quants = static(*kinds.split(), "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ3_M", "TQ1_0", "TQ2_0")
    shutil.rmtree(tmp_path / "results")
    config = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    model = config["models"]["M"]
    model["gguf"] = {"quants": quants, "imatrix": False}
    # Of other weights each, or one would be merged and the others linked to it.
    config["models"] = {}
    for number in range(20):
        config["models"][f"M{number}"] = one = copy.deepcopy(model)
        one["merge"]["models"][0]["parameters"]["weight"] = (number + 1) / 20
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(config))
    cluster.call("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        started = run("--jobs=12", "--seconds-between-status-checks=8")
        started.until(lambda: len(cluster.jobs("PENDING")) == 12, "a full queue")
        # A round of status checks, and then the pause in which Ctrl-C finds all jobs (status.sh).
        polled = tmp_path / ".snakemake/slurm/squeue"
        since = time.time()
        started.until(lambda: polled.exists() and polled.stat().st_mtime > since, "a poll")
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(3)
        assert len(cluster.jobs("PENDING")) == 12
        started.kill(signal.SIGINT)
        assert not cluster.jobs("PENDING,RUNNING"), started.text
    finally:
        cluster.call("scontrol", "update", "PartitionName=cpu", "State=UP")


class TestStatus:
    """profiles/slurm/status.py never says `running` of a job for ever."""

    @pytest.fixture
    def ask(self, cluster, tmp_path):
        (tmp_path / ".snakemake/slurm").mkdir(parents=True)

        def ask(job: str, patience: float = 1800) -> tuple[str, str]:
            env = {**cluster.env, "QUANTMILL_SLURM_PATIENCE": str(patience)}
            command = [sys.executable, str(PROFILE / "status.py"), job]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            return done.stdout.strip(), done.stderr

        yield ask
        cluster.idle()

    def test_a_job_that_slurm_forgot_is_judged_by_the_status_that_it_left(self, ask, tmp_path):
        (tmp_path / ".snakemake/slurm/90001.exit").write_text("0\n")
        assert ask("90001") == ("success", "")

    def test_a_job_that_slurm_forgot_and_that_left_nothing_fails_after_a_minute(
        self, ask, tmp_path
    ):
        assert ask("90002") == ("running", "")
        lost = tmp_path / ".snakemake/slurm/90002.lost"
        lost.write_text(str(float(lost.read_text()) - 61))
        answer, why = ask("90002")
        assert answer == "failed" and "does not know it any more" in why

    def test_a_slurm_that_does_not_answer_is_waited_for_within_bounds(self, ask, cluster):
        cluster.stop_controller()
        try:
            assert ask("90003") == ("running", "")
            answer, why = ask("90003", patience=0.001)
            assert answer == "failed" and "has not answered" in why
        finally:
            cluster.start_controller()

    def test_a_job_that_can_never_start_is_cancelled_and_reported(self, ask, cluster, tmp_path):
        flags = ["--time=9-00:00:00", "--parsable", f"--output={tmp_path}/x", "--wrap=true"]
        job = cluster.call("sbatch", *flags).strip()
        for _ in range(15):
            answer, why = ask(job)
            if answer != "running":
                break
            time.sleep(1)
        assert answer == "failed" and "PartitionTimeLimit" in why
        assert not cluster.jobs("PENDING")


class TestResources:
    """What jobs ask for follows from the model's size."""

    def test_a_merge_of_70b_models_and_a_quant_of_1b_do_not_ask_for_the_same(self):
        merge, quant = (STAGES["merge"], 3 * 140 * GB), (STAGES["quantize"], 2 * GB)
        assert resources.mem_mb(*merge) > 4 * resources.mem_mb(*quant)
        assert resources.runtime_min(*merge) > 8 * resources.runtime_min(*quant)

    @pytest.mark.parametrize("step", STAGES.values(), ids=STAGES)
    def test_a_second_attempt_gets_twice_of_everything_and_a_larger_model_never_less(self, step):
        sizes = [0, 10**7, 10**9, 2 * 10**10, 140 * 10**9, 10**12]
        for size in sizes:
            first, second = (resources.mem_mb(step, size, attempt) for attempt in (1, 2))
            assert first >= 1000 and abs(second - 2 * first) <= 1
            first, second = (resources.runtime_min(step, size, attempt) for attempt in (1, 2))
            assert first >= 10 and abs(second - 2 * first) <= 1
        needs = [resources.mem_mb(step, size) for size in sizes[1:]]
        assert needs == sorted(needs)

    def test_only_steps_that_use_a_gpu_ask_for_one_and_for_enough_of_them(self):
        asked = {step: resources.gpus(stage, 140 * GB) for step, stage in STAGES.items()}
        assert asked["exl2_quantize"] == asked["exl2_measure"] == 1
        assert asked["imatrix"] == 2
        assert not any(asked[step] for step in ("merge", "convert", "quantize", "split", "report"))


def test_a_study_through_slurm_has_the_table_of_a_local_one_and_leaves_no_candidate(run, tmp_path):
    config = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    merge = copy.deepcopy(config["models"]["M"]["merge"])
    merge["models"][0]["parameters"]["weight"] = "$w"
    measure = {"perplexity": ["evaluation"], "context": 128, "chunks": 2}
    study = {"merge": merge, "vary": {"w": [0.3, 0.7]}, "measure": measure, "at_once": 1}
    config |= {"studies": {"Which": study}}
    config["models"] = {}
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(config))
    started = run("--jobs=6")
    assert started.wait() == 0, started.text + started.slurm_logs()
    assert "`snakemake choose` takes" in started.text
    here = tmp_path / "results/studies/Which"
    table = (here / "study.csv").read_bytes()
    assert not [*here.rglob("*.gguf"), *here.rglob("*.safetensors")]
    shutil.rmtree(here)
    subprocess.run([*snakemake(tmp_path), "--cores", "2"], check=True, capture_output=True)
    assert (here / "study.csv").read_bytes() == table


def test_jobs_take_from_the_store_and_ask_for_no_more_than_that_needs(run, local, tmp_path):
    """Another checkout has put it there. The store is the plan's: jobs look at no variable."""
    (tmp_path / "store").mkdir()
    env = os.environ | {"QUANTMILL_STORE": str(tmp_path / "store")}
    put = [*snakemake(tmp_path), "--cores", "2", "store", "--config", "put=true"]
    subprocess.run(put, env=env, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "results")
    made = [
        f"results/M/{name}" for name in ("imatrix.dat", "gguf/M-Q8_0.gguf", "gguf/M-Q4_K_M.gguf")
    ]
    started = run("--jobs=6", *made, variables={"QUANTMILL_STORE": env["QUANTMILL_STORE"]})
    asked: set[str] = set()

    def ended() -> bool:
        seen = ["squeue", "--noheader", "--format=%m"]
        asked.update(
            subprocess.run(
                seen, env=started.cluster.env, capture_output=True, text=True
            ).stdout.split()
        )
        return started.process.poll() is not None

    while not ended():
        time.sleep(0.3)
    assert started.wait() == 0, started.text + started.slurm_logs()
    assert "store: 3 artifacts" in started.text
    for name in made:
        assert (tmp_path / name).read_bytes() == (local / name).read_bytes()
    assert not (tmp_path / "results/M/safetensors").exists()
    assert asked <= {"1000M"}, asked


def test_the_example_of_a_site_is_read_and_a_wrong_key_is_named(tmp_path):
    def read(text: str) -> subprocess.CompletedProcess[str]:
        site = tmp_path / "site.yaml"
        site.write_text(text)
        code = "import sys, submit, pathlib; print(submit.read_site(pathlib.Path(sys.argv[1])))"
        command = [sys.executable, "-c", code, str(site)]
        return subprocess.run(command, cwd=PROFILE, capture_output=True, text=True)

    example = (PROFILE / "site.example.yaml").read_text()
    everything = example.replace("# qos", "qos").replace("# tmpdir", "tmpdir")
    assert "'tmpdir': '/scratch/$USER/$SLURM_JOB_ID'" in read(everything).stdout
    wrong = read("partitions: cpu\n")
    assert (
        wrong.returncode == 1 and "partitions" in wrong.stderr and "gpu_partition" in wrong.stderr
    )


def test_live_shows_what_runs_and_why_the_rest_waits_in_the_queue(run, tmp_path):
    quants = ("Q5_0", "Q5_1", "Q4_0")
    write_config(tmp_path, static(*quants))
    wrap(tmp_path, "llama-quantize", "until [ -e go ]; do sleep 0.2; done")
    files = [f"results/M/gguf/M-{kind}.gguf" for kind in quants]
    started = run(*files, "--set-resources", "quantize:mem_mb=1900000")  # one a node, of two
    active = ["PENDING", "RUNNING", "RUNNING"]  # beside those of other tests, which have ended

    def waits() -> bool:
        states = (job["state"] for job in started.cluster.jobs())
        return sorted(state for state in states if state in active) == active

    started.until(waits, "a job that waits")

    def live() -> str:
        command = [*snakemake(tmp_path), "--cores", "1", "live"]
        env = started.cluster.env
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    started.until(lambda: live().count("M/gguf/M-Q") >= 3, "two steps that run, and one that waits")
    shown = live()
    assert re.search(r"^queue +2 running: 2 \w+; 1 pending: 1 \w+ \(Resources\)", shown, re.M), (
        shown
    )
    assert re.search(r"^waiting +1 quantize", shown, re.M), shown
    (tmp_path / "go").touch()
    assert started.wait() == 0, started.text + started.slurm_logs()
    assert "The build has ended well: 3 of 3 artifacts" in live()
    started.cluster.stop_controller()
    try:
        assert re.search("^queue +squeue", live(), re.M), (
            "a queue that does not answer is waited for"
        )
    finally:
        started.cluster.start_controller()
