"""Every input is declared: a step that reads another file may be run before that is there."""

import copy
import shutil
from pathlib import Path

import pytest

from lib.record.code import Code
from project import EVERYTHING, Planned, Project
from test_own_files import measurement
from traces import STRACE, Access, steps, traced, undeclared

pytestmark = pytest.mark.skipif(
    STRACE is None, reason="strace is not installed (apt install strace)"
)

# Rules that need a GPU, gigabytes of packages, a tokenizer that the converter knows, a store, or
# minutes of training. The demo's are traced where it is trained (conftest.py).
ELSEWHERE = {"extension", "exl2_measure", "exl2_quantize", "exl2_evaluate", "exl3_quantize"}
ELSEWHERE |= {"exl3_evaluate", "evaluate_harness", "mtp", "cool"}
DEMO = {"demo_text", "demo_base", "demo_finetune"}


def config() -> dict:
    """A model of every kind of artifact that can be made without a GPU."""
    found = copy.deepcopy(EVERYTHING)
    model = found["models"]["All"]
    for family in ("exl2", "exl3"):
        del model[family], model["publish"][family]
    del found["corpora"]["demo"], found["models"]["Guessing"], found["models"]["Two"]
    found["models"]["Mixed"]["moe"]["experts"][0]["source_model"] = "Mix"  # also built here
    model["merge"]["models"][1]["model"] = "./m/prose"
    model["gguf"]["imatrix"] = {"chunks": 4, "context": 128}
    small = {"corpus": "calibration", "rows": 4, "length": 64}
    model["compressed_tensors"]["schemes"][1] |= small
    model["evaluate"] |= {"context": 128, "chunks": 3, "harness": False}
    found["reclaim"] = ["safetensors", "bf16"]
    found["models"]["Plain"]["gguf"]["quants"].append("BF16")  # which keeps it
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory, toolchain) -> tuple[Project, Path]:
    """A traced build of everything, cards of repositories too, then of the user's own files."""
    place = tmp_path_factory.mktemp("traced")
    project = Project.create(place / "project")
    project.config = config()
    cards = [f"results/All/README.{kind}.md" for kind in ("gguf", "safetensors")]
    project.repository = traced(place / "workflow", place / "trace")
    project.build("all", *cards)
    (project / "own").mkdir()
    shutil.copy(project / "results/Plain/gguf/Plain-BF16.gguf", project / "own/x.gguf")
    shutil.copy(project / "results/Mix/imatrix.dat", project / "own/mine.dat")
    (project / "own/measurement.json").write_text(measurement(2))
    gguf = {"imatrix": {"file": "./own/mine.dat"}, "quants": ["Q4_K_M"], "split_max_size": "50G"}
    project.config["models"] |= {
        "Own": {"source": "./own/x.gguf", "gguf": gguf},
        "Measured": {
            "source": "./m/code",
            "exl2": {"bits": 4, "measurement": "./own/measurement.json"},
        },
    }
    made = ["results/Own/README.md", "results/Own/shards/Q4_K_M"]
    made.append("results/Measured/exl2/measurement.json")
    project.build(*made)
    return project, place / "trace"


def test_no_step_reads_or_lists_what_it_has_not_declared(run, monkeypatch):
    project, trace = run
    monkeypatch.chdir(project.path)
    session = Planned.open(project.config)
    wrong, rules = [], set()
    for artifact, accesses in steps(trace, project.path):
        assert accesses, artifact
        rules.add(session.graph.find(artifact).rule)
        wrong += undeclared(session, artifact, accesses)
    assert wrong == []
    assert rules == set(Code().rules.names()) - ELSEWHERE - DEMO


def test_the_steps_of_the_demo_read_what_they_have_declared(demo_trace, monkeypatch):
    top, trace = demo_trace
    monkeypatch.chdir(top)
    sources = [{"model": f"./resources/demo/{name}"} for name in ("code", "prose")]
    merge = {"merge_method": "linear", "models": sources, "dtype": "bfloat16"}
    session = Planned.open({"models": {"M": {"merge": merge}}})
    found = {path: asked for path, asked in steps(trace, top) if "/demo/" in path}
    assert set(found) == {f"resources/demo/{name}" for name in ("text", "base", "code", "prose")}
    assert [line for path in found for line in undeclared(session, path, found[path])] == []


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    """A busy machine gives each of its 32,768 numbers many times in an hour."""
    trace = tmp_path / "trace"
    trace.mkdir()

    def step(at: int, name: str) -> str:
        begin = f"begin .snakemake/quantmill/wanted/results/{name}/{'0' * 16}/recipe.json log"
        lines = [f'execve("/bin/bash", ["bash", "-c", "{begin}"], 0x1 /* 9 vars */) = 0']
        lines += ["clone(child_stack=NULL, flags=SIGCHLD) = 7"]
        return "".join(f"{at + n}.000001 {line}\n" for n, line in enumerate(lines))

    def reads(at: int, name: str) -> str:
        return f'{at}.000002 openat(AT_FDCWD<{tmp_path}>, "results/{name}", O_RDONLY) = 3\n'

    (trace / "pid.5").write_text(step(1, "a"))
    (trace / "pid.6").write_text(step(4, "b"))
    (trace / "pid.7").write_text(reads(3, "of a") + reads(6, "of b"))
    found = {name: {access.path for access in asked} for name, asked in steps(trace, tmp_path)}
    assert found == {"results/a": {"results/of a"}, "results/b": {"results/of b"}}


def test_a_step_that_reads_more_is_caught(run, monkeypatch):
    """Shards that are there by chance, a listing, a reclaimed file: each was a fault once."""
    project, _ = run
    monkeypatch.chdir(project.path)
    session = Planned.open(project.config)
    quant = "results/All/gguf/All-Q8_0.gguf"
    declared = {Access("results/All/gguf/All-BF16.gguf", False), Access("results/All/gguf", False)}
    assert undeclared(session, quant, declared) == []
    for path, listed in (
        ("results/All/shards/Q8_0.recipe.json", False),
        ("results/All/gguf", True),
        ("results/All/safetensors/config.json", False),
        ("resources/contents.json", False),
    ):
        assert len(undeclared(session, quant, {Access(path, listed)})) == 1, path


def test_paragraphs_that_two_texts_share_are_found_whatever_their_line_breaks(tmp_path):
    import pandas

    from lib.formats.corpora import shared

    parts = [
        f"Paragraph {n} of a text, " + "which is long enough to be counted. " * 3 for n in range(8)
    ]
    text, other, rows = (tmp_path / name for name in ("a.txt", "b.txt", "c.parquet"))
    text.write_text("\n\n".join([*parts, "short"]))
    other.write_text(
        "\n \n".join([parts[0].replace(" ", "\n", 4), parts[3], "short", "else " * 30])
    )
    pandas.DataFrame({"text": [parts[1], f"{parts[2]}\n\n{parts[5]}", None]}).to_parquet(rows)
    assert shared(text, [other, rows]) == {"b": 2 / 8, "c": 3 / 8}
    assert shared(rows, [text]) == {"a": 1}
    # Rows are lines of the text that is made of a parquet file; one empty line changes nothing.
    made = tmp_path / "made.txt"
    made.write_text("\n".join(parts[1:3]) + f"\n\n{parts[5]}")
    assert shared(made, [rows]) == {"c": 1}
    text.write_text("short")
    assert shared(text, [other]) == {}
