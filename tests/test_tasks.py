"""HellaSwag, WinoGrande, multiple choice: the scores are the tool's, of the tasks of a file."""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_task
from lib.config.load import load
from lib.errors import UserError
from lib.formats.task_files import Task, read, write_multiple_choice, write_winogrande
from project import Project
from task_texts import make_tasks
from test_memory import lfm2, llama, qwen35, write

FILES = {"hellaswag": "hellaswag.txt", "winogrande": "winogrande.csv", "multiple_choice": "arc.bin"}
GGUF = "results/Mix/gguf/Mix-Q8_0.gguf"
TOOL = "resources/llama.cpp/bin/llama-perplexity"


@pytest.fixture(scope="module")
def tasks(built: Project, tmp_path_factory) -> Path:
    """A directory with files of 40 tasks, a model and the tool."""
    here = tmp_path_factory.mktemp("tasks")
    make_tasks(here)
    for name in (GGUF, TOOL):
        (here / Path(name).name).symlink_to(built / name)
    return here


def measure(here: Path, kind: str, *flags: str, file: str | None = None) -> dict | str:
    """The JSON of evaluate_task.py, or what it says where it fails."""
    command = [sys.executable, evaluate_task.__file__, file or FILES[kind], "--kind", kind]
    command += [*flags, "--model", Path(GGUF).name, "--output", "score.json"]
    command += ["--", "./llama-perplexity", "--threads", "1"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    return done.stderr if done.returncode else json.loads((here / "score.json").read_text())


def by_hand(here: Path, kind: str) -> list[str]:
    """The tool's lines, a task each. It may lose the last ones: then it is asked again."""
    mode = f"--{kind.replace('_', '-')}"
    command = ["./llama-perplexity", "--model", Path(GGUF).name, "--threads", "1", mode]
    command += [f"{mode}-tasks", "1000", "--binary-file", FILES[kind]]
    for _ in range(20):
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        lines = re.findall(r"^\d+\t.*", done.stdout, re.MULTILINE)
        if len(lines) == 40:
            return lines
    raise AssertionError(done.stdout + done.stderr)


@pytest.mark.parametrize("kind", FILES)
def test_a_score_is_the_one_that_the_tool_prints_for_the_same_file(tasks, kind):
    found, lines = measure(tasks, kind), by_hand(tasks, kind)
    assert float(re.match(r"\d+\t([\d.]+)", lines[-1])[1]) == pytest.approx(100 * found["score"])
    assert found["tasks"] == len(found["correct"]) == 40 and found["left_out"] == 0
    assert found["score"] == found["correct"].count("1") / 40
    assert found["chance"] == (0.5 if kind == "winogrande" else 0.25)
    assert found["error"] == pytest.approx((found["score"] * (1 - found["score"]) / 39) ** 0.5)
    if kind == "winogrande":  # the tool says of each task what it chose, and what is right
        assert found["correct"] == "".join("01"[len(set(line.split()[-2:])) == 1] for line in lines)


def test_hellaswag_is_the_same_as_multiple_choice_and_a_count_is_spread_over_the_file(tasks):
    whole = measure(tasks, "hellaswag")
    assert whole["correct"] == measure(tasks, "multiple_choice")["correct"]
    part = measure(tasks, "hellaswag", "--count", "8")
    assert part["correct"] == whole["correct"][::5]


def test_a_task_that_the_tool_cannot_compare_is_left_out_and_counted(tasks):
    found = read(tasks / "arc.bin", "multiple_choice")
    found[3] = Task("How many?", ["1", "10", "100"], 0)
    found[5] = Task("", ["this", "that"], 0)
    (tasks / "some.bin").write_bytes(write_multiple_choice(found))
    part, whole = measure(tasks, "multiple_choice", file="some.bin"), measure(tasks, "hellaswag")
    assert (part["tasks"], part["left_out"]) == (38, 2)
    assert part["correct"] == "".join(
        sign for number, sign in enumerate(whole["correct"]) if number not in (3, 5)
    )


def test_a_model_with_a_state_takes_fewer_choices_together_and_never_fewer_than_a_task_has(
    tmp_path,
):
    four, ten = Task("a", list("bcde"), 0), Task("a", list("bcdefghijk"), 0)
    for model, together in ((llama, 128), (lfm2, 128), (qwen35, 6)):
        write(tmp_path / "x.gguf", *model())
        assert evaluate_task.side_by_side([four], tmp_path / "x.gguf") == together
        assert evaluate_task.side_by_side([four, ten], tmp_path / "x.gguf") == max(10, together)


def test_few_choices_together_find_the_same(tasks, monkeypatch):
    model, command = tasks / Path(GGUF).name, [str(tasks / "llama-perplexity"), "--threads", "1"]
    for kind, file in FILES.items():
        every = read(tasks / file, kind)
        found = []
        for most in (128, 1):
            monkeypatch.setattr(evaluate_task, "SEQUENCES", most)
            found.append(evaluate_task.solved(every, kind, command, model, 2048))
        assert found[0] == found[1]


def test_a_task_that_does_not_fit_ends_with_a_line_that_says_what_to_do(tasks):
    found = read(tasks / "arc.bin", "multiple_choice")
    found[20] = Task("a word " * 400, ["one", "two"], 0)
    (tasks / "long.bin").write_bytes(write_multiple_choice(found))
    said = measure(tasks, "multiple_choice", "--context", "256", file="long.bin")
    # The tool's own line, "task N does not fit", can be lost: it ends before it has printed all.
    assert "of 40 tasks; see above." in said.splitlines()[-1] and "larger `context`" in said
    assert isinstance(measure(tasks, "multiple_choice", file="long.bin"), dict)


def test_sentences_with_quotes_and_commas_are_read_as_the_tool_reads_them(tmp_path):
    lines = [
        '0,He said "no, or _ so" to it,yes,not,1',
        '1,"""No"", he said, _ left",yes,not,2',
        '3,"The last, _ has no end",one,two,2',
    ]
    file = tmp_path / "x.csv"
    file.write_bytes("\n".join(lines).encode())
    found = read(file, "winogrande")
    assert [task.before for task in found] == [
        'He said "no, or ',
        '""No"", he said, ',
        "The last, ",
    ]
    file.write_bytes(write_winogrande(found))
    assert read(file, "winogrande") == found
    file.write_bytes("\r\n".join(lines).encode())
    with pytest.raises(UserError, match="end as on Windows"):
        read(file, "winogrande")


def damaged(content: bytes) -> dict[str, tuple[str, bytes, str]]:
    """{name: (kind, content of a file, what is said of it)}."""
    text = "before\n1\na\nb\nc\nd\n"
    two_right = struct.pack("<6I", 1, 8, 1, ord("q"), 2, 1)[:13] + struct.pack("<I", 2)
    two_right += b"".join(struct.pack("<I", 1) + sign for sign in (b"a", b"b"))
    two_right += struct.pack("<3I", 1, 1, 0)
    return {
        "empty": ("hellaswag", b"", "has no tasks in it"),
        "five": ("hellaswag", text[:-2].encode(), "it has 5 lines, and a task has six"),
        "label": ("hellaswag", text.replace("1", "4").encode(), "line 2 is not the number of an"),
        "binary": ("hellaswag", b"\xff" * 9, "it is not in UTF-8"),
        "comma": ("winogrande", b"0,A cat, _ sat.,a,b,1\n", "line 1 is not number,sentence with _"),
        "answer": ("winogrande", b"0,A cat _ sat.,a,b,3\n", "line 1 is not number,sentence with _"),
        "cut": ("multiple_choice", content[:-1], "it is cut off"),
        "text": ("multiple_choice", text.encode(), "it is cut off"),
        "right": ("multiple_choice", two_right, "task 1 has 2 right answers, not one"),
    }


@pytest.mark.parametrize("name", damaged(b""))
def test_a_file_of_another_kind_is_named_with_its_key_before_anything_is_built(
    built, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built / "data", "data")
    shutil.copytree(built / "m", "m")
    make_tasks(Path("data"))
    kind, content, said = damaged(Path("data/arc.bin").read_bytes())[name]
    config = {"corpora": built.config["corpora"], "models": {"M": {"source": "./m/prose"}}}
    tasks = {kind: f"data/{FILES[kind]}", "mine": {"kind": kind, "file": "data/x"}}
    config["models"]["M"] |= {"gguf": {}, "evaluate": {"tasks": tasks}}
    Path("data/x").write_bytes(content)
    for _ in range(2):  # the second time by the cache
        with pytest.raises(UserError) as caught:
            load(config, tmp_path)
        (line,) = caught.value.lines
        assert line.startswith("models.M.evaluate.tasks.mine.file: 'data/x' ") and said in line


def test_a_text_and_forms_that_are_named_like_tasks_do_not_collide(project):
    make_tasks(project / "data")
    section = project.model("Mix")["evaluate"]
    project.config["corpora"]["tasks"] = {"path": "data/calibration.txt"}
    project.config["corpora"]["hellaswag"] = {"path": "data/calibration.txt"}
    section |= {"also": ["tasks", "hellaswag"], "tasks": {"hellaswag": "data/hellaswag.txt"}}
    project.quants[0] = {"name": "hellaswag", "type": "Q8_0"}
    wanted = {f"results/Mix/evaluation/{text}hellaswag.json" for text in ("tasks/", "hellaswag/")}
    assert project.plan() >= wanted | {"results/Mix/evaluation/tasks/hellaswag/hellaswag.json"}
