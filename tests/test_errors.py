"""A user's mistake is one line that says what to mend; a bug of ours keeps its traceback."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.errors import plainly
from lib.record.wanted import WantedRecipe

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
PROGRAMS = {path.name: path for path in [*SCRIPTS.glob("*.py"), *ROOT.glob("dev/*.py")]}

QUESTION = ("--config nowhere.json", "nowhere.json")
OWN_BUILD = (f"--config nowhere.json --snakefile {ROOT}/Snakefile", "nowhere.json")
WANTED = ("nowhere.json", "nowhere.json")
RECIPE = ("--recipe nowhere.json --output out", "nowhere.json")
LENGTHS = "--prompt-tokens 1 --text-tokens 1 --repetitions 1 --threads 1 --gpus 0"
# {program: a mistake on its command line, what the one line must name}
MISTAKES = {
    "accept.py": OWN_BUILD,
    "ask_audit.py": OWN_BUILD,
    "ask_live.py": None,  # there is nothing to say on its command line
    "ask_orphans.py": QUESTION,
    "ask_plan.py": ("--config nowhere.json --machine [1,[]]", "nowhere.json"),
    "ask_preflight.py": QUESTION,
    "ask_status.py": QUESTION,
    "ask_store.py": QUESTION,
    "ask_verify.py": QUESTION,
    "ask_verify_rebuild.py": OWN_BUILD,
    "ask_why.py": QUESTION,
    "choose.py": QUESTION,
    "perplexity.py": ("--text empty.txt --corpus NAME --output out -- ./nowhere", "nowhere"),
    "study.py": ("nowhere.json --page p --page-script s --csv c --svg s --html h", "nowhere.json"),
    "card.py": ("--forms broken.json --output out", "broken.json"),
    "check_base_logits.py": ("nowhere --context 512", "nowhere"),
    "check_corpus.py": ("empty.txt --corpus NAME", "corpora.NAME"),
    "check_calibration.py": ("model --calibration nowhere --rows 9 --length 9", "nowhere"),
    "check_exl3.py": ("nowhere", "nowhere"),
    "check_extract_lora.py": ("nowhere --base model --model model", "nowhere"),
    "check_gguf.py": ("broken.json --completion-tool tool", "broken.json"),
    "check_imatrix.py": ("--imatrix broken.json --model nowhere", "broken.json"),
    "check_mix.py": ("broken.json --mix nowhere", "broken.json"),
    "check_compressed_tensors.py": ("nowhere", "nowhere"),
    "check_lora.py": ("nowhere --model model", "nowhere"),
    "check_measurement.py": ("--measurement broken.json --model model", "broken.json"),
    "check_moe.py": ("--config nowhere.yaml", "nowhere.yaml"),
    "check_mmproj.py": ("broken.json --model model --llama-cpp {}", "broken.json"),
    "check_mtp.py": ("nowhere --model model --llama-cpp {}", "nowhere"),
    "check_mlx.py": ("nowhere", "nowhere"),
    "check_quant.py": ("broken.json --of model", "broken.json"),
    "check_shards.py": ("--whole nowhere --shards model", "nowhere"),
    "compile_extension.py": ("exllamav2 --output out", "no exllamav2"),
    "compressed_tensors_calibrate.py": (
        "nowhere --scheme NVFP4 --text t --rows 1 --length 8 --output out",
        "nowhere",
    ),
    "compressed_tensors_quantize.py": ("nowhere --scheme FP8_DYNAMIC --output out", "nowhere"),
    "convert.py": ("--threads 1 nowhere model", "nowhere"),
    "cool.py": ("delete nowhere", "nowhere"),
    "copy_file.py": ("broken.json " + RECIPE[0], "nowhere.json"),
    "corpus.py": ("nowhere --type .txt --output out", "nowhere"),
    "count_parameters.py": ("nowhere", "nowhere"),
    "demo_text.py": ("--output broken.json", "broken.json"),
    "demo_train.py": ("base --text nowhere --output out", "nowhere"),
    "describe_card.py": WANTED,
    "describe_forms.py": WANTED,
    "evaluate.py": ("--base nowhere --text t --corpus NAME --output out -- tool", "nowhere"),
    "evaluate_harness.py": (
        "nowhere --kind hellaswag --model model --output out -- tool",
        "nowhere",
    ),
    "evaluate_task.py": ("nowhere --kind hellaswag --model x.gguf --output out -- tool", "nowhere"),
    "evaluate_transformers.py": (
        "model --base nowhere --text t --corpus NAME --output out",
        "nowhere",
    ),
    "exl2_convert.py": (
        "quantize --model nowhere --work work --recipe-digest 0 --measurement nowhere "
        "--bits 4 --output model",
        "model: not empty",
    ),
    "exl3_convert.py": (
        "nowhere --work work --recipe-digest 0 --bits 4 --head-bits 6 --rows 1 --length 8 "
        "--output model",
        "model: not empty",
    ),
    "exl3_evaluate.py": (
        "model --base nowhere --text t --corpus NAME --output out",
        "nowhere",
    ),
    "exl2_speed.py": (f"nowhere {LENGTHS}", "nowhere"),
    "exl2_evaluate.py": (
        "--model nowhere --reference nowhere --text empty.txt --corpus NAME --output out",
        "nowhere",
    ),
    "extract_lora.py": (
        "--model nowhere --base model --base-name a/b --output out",
        "nowhere",
    ),
    "fetch_corpus.py": ("--path nowhere --recipe wanted.json --output out", "nowhere"),
    "exl3_speed.py": (f"nowhere {LENGTHS}", "nowhere"),
    "mlx_speed.py": (f"nowhere {LENGTHS}", "nowhere"),
    "gguf_speed.py": (f'nowhere {LENGTHS} --llama-cpp {{"path":"nowhere"}}', "llama_cpp.path"),
    "gallery.py": QUESTION,
    "gguf_metadata.py": ("broken.json out --set general.name=Name", "broken.json"),
    "hub_fetch.py": ("acme/base --output out", "acme/base"),
    "hub_lock.py": ("--sources nowhere.json", "nowhere.json"),
    "imatrix_ranges.py": (
        "--tool ./nowhere --devices 0 --output-format dat --output-file out",
        "nowhere",
    ),
    "install_environment.py": ("nowhere --output out", "envs/nowhere.txt"),
    "install_llama_cpp.py": RECIPE,
    "link_file.py": ("nowhere out", "nowhere"),
    "merge.py": ("--config nowhere.yaml --output out --seed 1", "nowhere.yaml"),
    "merge_config.py": ("nowhere.json .", "nowhere.json"),
    "lora_view.py": ("broken.json --output out", "broken.json"),
    "mix.py": ("broken.json --sensitivity nowhere --target-size 1 --output out", "broken.json"),
    "mix_by_kld.py": (
        "broken.json --sensitivity nowhere --imatrix nowhere --max-kld 1 --text empty.txt --corpus "
        "NAME --chunks 1 --tools model --threads 1 --output out",
        "broken.json",
    ),
    "mix_type.py": ("nowhere", "nowhere"),
    "mlx_config.py": ("nowhere", "nowhere"),
    "mlx_evaluate.py": ("model --base nowhere --corpus NAME --output out", "nowhere"),
    "moe.py": ("--config nowhere.yaml --output out --seed 1", "nowhere.yaml"),
    "moe_config.py": ("nowhere.json .", "nowhere.json"),
    "model_view.py": ("--source nowhere --output out", "nowhere"),
    "publish.py": ("plan --manifest broken.json", "broken.json"),
    "report.py": (
        "--model NAME --forms broken.json --csv out --svg out --html out",
        "broken.json",
    ),
    "sensitivity.py": (
        "broken.json --imatrix nowhere --text empty.txt --corpus NAME --chunks 1 --types q4_0 "
        "--tools model --threads 1 --work work --recipe-digest 0 --output out",
        "broken.json",
    ),
    "similarity.py": ("--base b nowhere --model m model --output out", "nowhere"),
    "similarity_page.py": (
        "broken.json --model NAME --record nowhere --svg out --html out",
        "broken.json",
    ),
    "source.py": RECIPE,
    "speed.py": (QUESTION[0] + " --cores 1", "nowhere.json"),
    "step.py": ("begin nowhere.json", "nowhere.json"),
}


def test_every_program_is_in_the_table():
    assert sorted(MISTAKES) == sorted(path.name for path in SCRIPTS.glob("*.py"))


@pytest.mark.parametrize("name", [name for name in MISTAKES if MISTAKES[name]])
def test_a_mistake_is_one_line_that_names_what_to_mend(name: str, tmp_path: Path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.txt").write_text("")
    wanted = WantedRecipe("out", ("out",), False, False, "corpus", "", {"sources": {}}, {})
    (tmp_path / "wanted.json").write_text(wanted.to_json())
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"num_hidden_layers": 1}')
    words, named = MISTAKES[name]
    isolated = ["-I"] if name == "step.py" else []
    command = [sys.executable, *isolated, SCRIPTS / name, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    prefix = "FAILED  " if name == "step.py" else f"{name[:-3].removeprefix('ask_')}: "
    (line,) = done.stderr.splitlines()
    assert line.startswith(prefix) and named in line, line


def ended(directory: Path, body: str, *words: str) -> subprocess.CompletedProcess:
    """A program whose main is this, with these words on its command line."""
    file = directory / "ask_me.py"
    file.write_text(
        f"import os, sys\nsys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from lib.errors import UserError, program\n"
        f"def main():\n    print('before')\n    {body}\nprogram(main)\n"
    )
    command = [sys.executable, file, *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise UserError('gguf: is no quant')", "me: gguf: is no quant\n"),
        ("raise UserError('one', 'another')", "me: one\nme: another\n"),
        ("open('named')", "me: named: No such file or directory\n"),
        ("open('folder/in/it')", "me: folder/in/it: No such file or directory\n"),
        ("os.mkdir('folder')", "me: folder: File exists\n"),
        (
            "os.write(os.open('/dev/full', os.O_WRONLY), b'x')",
            "me: [Errno 28] No space left on device\n",
        ),
    ],
)
def test_what_a_user_can_mend_ends_a_program_with_its_name_and_the_message(tmp_path, body, said):
    (tmp_path / "folder").mkdir()
    done = ended(tmp_path, body, "named", "--in=folder")
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", said)


def test_a_disk_that_is_full_when_the_plan_is_made_ends_snakemake_in_a_line(tmp_path, monkeypatch):
    """Its input functions write wanted recipes: their traceback was shown."""
    monkeypatch.chdir(tmp_path)

    @plainly
    def ask() -> None:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    with pytest.raises(SystemExit, match=f"^{tmp_path}: No space left on device$"):
        ask()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("{}['own']", "KeyError: 'own'"),
        ("raise ValueError('own')", "ValueError: own"),
        ("open('forgotten')", "FileNotFoundError: [Errno 2] No such file or directory"),
        ("os.close(999)", "OSError: [Errno 9] Bad file descriptor"),
    ],
)
def test_a_bug_of_ours_keeps_its_traceback(tmp_path, body, error):
    done = ended(tmp_path, body, "named", ".")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and error in done.stderr
    assert body in done.stderr, "the line with the bug is not shown"


@pytest.mark.parametrize(("body", "status"), [("return None", 0), ("return 3", 3)])
def test_what_main_returns_is_the_status(tmp_path, body, status):
    done = ended(tmp_path, body)
    assert (done.returncode, done.stderr) == (status, "")


def test_an_interrupt_and_a_reader_that_has_gone_end_a_program_without_a_word(tmp_path):
    done = ended(tmp_path, f"os.kill(os.getpid(), {signal.SIGINT:d})")
    assert (done.returncode, done.stderr) == (130, "")
    ended(tmp_path, "return None")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, tmp_path / "ask_me.py"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_ends_with_the_handler_and_none_on_its_own(name: str):
    last = ast.parse(PROGRAMS[name].read_text()).body[-1]
    assert isinstance(last, ast.If), name
    assert [ast.unparse(line).partition("(main")[0] for line in last.body] == ["program"]


def test_no_code_ends_a_program_with_a_text_of_its_own():
    """A text that sys.exit is given has no program's name, and nobody above can mend it."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in {*SCRIPTS.rglob("*.py"), *PROGRAMS.values()} - {SCRIPTS / "lib/errors.py"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "sys.exit"
        and not isinstance(node.args[0], ast.Name)
    ]
    assert not found


def test_whatever_we_raise_ourselves_is_a_users_mistake_or_is_told_here():
    """So that a new class does not end a program with a traceback."""
    others = {
        "CodeError": "a rule whose code cannot be followed: ours to mend, seen by the tests",
        "MergeFileError": "pydantic wants a ValueError, and makes of it a line of the config's",
        "NoLocks": "what a file system lacks: both who lock catch it",
        "UserError": "the base class itself",
    }
    found = set()
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
            if any(base.endswith(("Error", "Exception")) and base != "UserError" for base in bases):
                found.add(node.name)
    assert found == set(others)
