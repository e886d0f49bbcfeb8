"""Which code decides which artifacts: all of it, and no more.

The expected files are listed here, or found by the bytecode of the programs.
"""

import re
import shutil
from collections.abc import Callable
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

import lib.record.code
from lib.planning.staleness import State
from lib.record.code import Code, CodeError
from lib.record.contents import Contents
from lib.run.answers import everything
from project import EVERYTHING, ROOT, Planned, Project

# {rule: the programs that make its artifact, the modules that spell its options, templates}
MADE_BY = {
    "llama_cpp": ["install_llama_cpp.py"],
    "demo_text": ["demo_text.py"],
    "demo_base": ["demo_train.py"],
    "demo_finetune": ["demo_train.py"],
    "source": [],  # links: what they lead to is pinned by its sha256
    "source_gguf": [],
    "cool": [],  # a note tells of bytes; the record of the file decides whether it still does
    "imatrix_file": [],
    "exl2_measurement_file": [],
    "corpus": ["corpus.py"],
    "similarity": ["similarity.py", "lib/flags/similarity.py"],
    "similarity_page": ["similarity_page.py", "templates/similarity.html.j2"],
    "merge": ["merge_config.py", "merge.py"],
    "moe": ["moe_config.py", "moe.py"],
    "convert": ["convert.py"],
    "imatrix": ["imatrix_ranges.py", "lib/flags/imatrix.py"],
    "quantize": ["lib/flags/quantize.py"],
    "sensitivity": ["sensitivity.py", "lib/flags/mixes.py"],
    "mix": ["mix.py", "lib/flags/mixes.py"],
    "mix_by_kld": ["mix_by_kld.py", "lib/flags/mixes.py"],
    "quantize_mix": ["mix_type.py"],
    "mmproj": ["convert.py"],
    "mtp": ["convert.py"],
    "lora": ["lora_view.py"],
    "extract_lora": ["extract_lora.py", "lib/flags/extract_lora.py"],
    "label": ["gguf_metadata.py"],
    "split": [],
    "exl2_measure": ["exl2_convert.py"],
    "exl2_quantize": ["exl2_convert.py"],
    "exl3_quantize": ["exl3_convert.py"],
    "exl3_evaluate": ["exl3_evaluate.py"],
    "base_logits": ["lib/flags/context.py"],
    "evaluate": ["evaluate.py", "lib/flags/context.py"],
    "evaluate_task": ["evaluate_task.py", "lib/flags/tasks.py"],
    "evaluate_harness": ["evaluate_harness.py", "lib/flags/tasks.py"],
    "environment": ["install_environment.py"],
    "extension": ["compile_extension.py"],
    "compressed_tensors": ["compressed_tensors_quantize.py"],
    "compressed_tensors_calibrate": ["compressed_tensors_calibrate.py"],
    "evaluate_transformers": ["evaluate_transformers.py"],
    "mlx_convert": ["mlx_config.py", "lib/flags/mlx.py"],
    "mlx_evaluate": ["mlx_evaluate.py"],
    "exl2_evaluate": ["exl2_evaluate.py", "lib/flags/context.py"],
    "report": [
        "describe_forms.py",
        "report.py",
        "templates/quality.html.j2",
        "templates/quality.js",
    ],
    "perplexity": ["perplexity.py", "lib/flags/context.py"],
    "study": ["study.py", "templates/study.html.j2", "templates/study.js"],
    "card": ["describe_forms.py", "describe_card.py", "card.py", "templates/card.md.j2"],
}
WEIGHTS = ("merge", "convert", "imatrix", "quantize", "label", "split", "mmproj", "mtp", "lora")
WEIGHTS += ("quantize_mix", "exl2_measure", "exl2_quantize", "compressed_tensors")
WEIGHTS += ("compressed_tensors_calibrate", "mlx_convert", "exl3_quantize", "moe", "extract_lora")
# What these find is what others are made by.
FOUND = ("sensitivity", "mix", "mix_by_kld")
# How a program ends decides no bytes: whatever is loaded from there is not counted.
ENDS = "lib/errors.py"
# What decides no weights, whatever else it does.
NEVER = ("session", "schema", "checks", "plan", "sizes", "resources", "report", "card", "console")


@cache
def imported(program: str) -> set[str]:
    """The files of scripts/ that a program loads, itself included, by the bytecode of imports."""
    finder = ModuleFinder([str(ROOT / "scripts")], excludes=["lib.errors"])  # as code.py has it
    finder.run_script(str(ROOT / "scripts" / program))
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    return {file.relative_to(ROOT / "scripts").as_posix() for file in files}


@cache
def deciding(rule: str) -> set[str]:
    """The files under scripts/ that decide what a rule makes."""
    files = set()
    for name in MADE_BY[rule]:
        files |= imported(name) if name.endswith(".py") else {name}
        if name.startswith("lib/"):  # not run as a program: its packages are loaded before it
            files |= {f"{parent}/__init__.py" for parent in Path(name).parents if parent.name}
    return files


def has_code(file: str) -> bool:
    return bool((ROOT / "scripts" / file).read_text())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the repository's code."""
    for name in ("scripts", "rules"):
        shutil.copytree(ROOT / name, tmp_path / "repository" / name)
    return tmp_path / "repository"


@pytest.fixture
def planned(tmp_path: Path, monkeypatch) -> Planned:
    """A directory in which an artifact of every rule is marked as built."""
    project = Project.create(tmp_path / "project")
    monkeypatch.chdir(project.path)
    return Planned(EVERYTHING)


def test_the_tables_here_name_every_rule_that_makes_something(planned):
    rules = {made.rule for made in planned.session().graph}
    shared = {"llama_cpp", "demo_text", "demo_base", "demo_finetune", "source", "corpus"}
    shared |= {"environment", "extension"}
    own = {"cool", "source_gguf", "imatrix_file", "exl2_measurement_file"}  # no code decides these
    assert rules | shared | own == set(MADE_BY)
    assert set(Code().rules.names()) == set(MADE_BY)


def test_code_that_decides_bytes_makes_them_stale_and_nothing_else_ever_does(
    planned, copied, monkeypatch
):
    """Over every Python file and template: a statement added, to those that decide nothing at once;
    comments added, to all at once."""
    current: list[Code] = []
    memory = Contents(copied.parent / "memory.json")  # as in a run: what has changed is read again
    monkeypatch.setattr(memory, "save", lambda: None)
    monkeypatch.setattr(lib.record.code, "_own", lambda: current[-1])
    texts = {
        path: path.read_text()
        for path in sorted((copied / "scripts").rglob("*"))
        if path.suffix in (".py", ".j2", ".js") and "__pycache__" not in path.parts
    }
    assert len(texts) > 70

    def stale_with(changed: dict[Path, str]) -> set[str]:
        for path, text in changed.items():
            path.write_text(text)
        current.append(Code(copied, memory))
        found = stale(planned)
        for path in changed:
            path.write_text(texts[path])
        return found

    assert stale_with({}) == set()
    assert stale_with({p: commented(t) for p, t in texts.items() if p.suffix == ".py"}) == set()
    decides = {p: rules_of(p.relative_to(copied / "scripts").as_posix()) for p in texts}
    edited = {path: f"{text}\nadded = 1\n" for path, text in texts.items()}
    assert stale_with({p: t for p, t in edited.items() if not decides[p]}) == set()
    expected = {
        rules: downstream(planned, lambda made, rules=rules: made.rule in rules)
        for rules in set(decides.values())
    }
    wrong = [
        path.name
        for path, rules in decides.items()
        if rules and stale_with({path: edited[path]}) != expected[rules]
    ]
    assert wrong == []


def rules_of(file: str) -> frozenset[str]:
    """The rules whose bytes a file decides."""
    return frozenset(rule for rule in MADE_BY if file in deciding(rule))


def stale(planned: Planned) -> set[str]:
    """All that is not fresh, intermediates too."""
    session = planned.session()
    return {
        made.path for made in everything(session) if session.plan.state(made) is not State.FRESH
    }


def downstream(planned: Planned, changed: Callable) -> set[str]:
    """What was changed, and what is made from it."""
    found: set[str] = set()
    for made in everything(planned.session()):  # each after what it is made from
        if changed(made) or any(up.path in found for up in made.inputs.values()):
            found.add(made.path)
    return found


def commented(text: str) -> str:
    """Python with other comments, another docstring and other white space."""
    text = re.sub(r'^( *""")(?=\w)', r"\1In other words: ", text, flags=re.M)
    text = re.sub(
        r"^( *)((?:def|class) .*:)\n", r"\1\2  # a comment\n\n\1    # another\n", text, flags=re.M
    )
    return f"# the first\n{text}\n\n# the last\n"


@pytest.mark.parametrize("rule", MADE_BY)
def test_the_files_that_decide_are_those_that_the_programs_load(rule):
    found = {path.relative_to(ROOT / "scripts").as_posix() for path in Code().files(rule)}
    assert found == deciding(rule)


@pytest.mark.parametrize("rule", WEIGHTS)
def test_few_files_decide_weights_so_that_few_edits_cost_a_140_gb_rebuild(rule):
    files = [name for name in deciding(rule) if has_code(name)]
    assert len(files) <= 5
    assert not {Path(name).stem for name in files} & set(NEVER)


def test_moving_a_program_or_a_module_changes_nothing(copied):
    """So that rooms can be moved without a rebuild."""
    before = {rule: Code(copied).digest(rule) for rule in MADE_BY}
    scripts, rules = copied / "scripts", copied / "rules"
    (scripts / "steps").mkdir()
    (scripts / "merge.py").rename(scripts / "steps/merging.py")
    (scripts / "lib/steps").mkdir()
    (scripts / "lib/formats/model_files.py").rename(scripts / "lib/steps/model_files.py")
    for path in [*scripts.rglob("*.py"), *rules.glob("*.smk")]:
        text = path.read_text().replace("script merge.py", "script steps/merging.py")
        path.write_text(text.replace("lib.formats.model_files", "lib.steps.model_files"))
    assert {rule: Code(copied).digest(rule) for rule in MADE_BY} == before


@pytest.mark.parametrize(
    ("file", "old", "new", "rules"),
    [
        ("quantize.smk", 'type=QUANT.option("type")', 'type=QUANT.option("name")', {"quantize"}),
        ("quantize.smk", '("--imatrix", path)', '("--imatrix", path + "")', {"quantize"}),
        ("quantize.smk", "--split-max-size", "--split-max-tensors", {"split"}),
        ("gguf.smk", "--outtype {params", "--verbose --outtype {params", {"convert"}),
        ("gguf.smk", "_threads} \\\n            --json", "_threads} --json", set()),  # the check
        ("merge.smk", '"--cuda", ', "", {"merge"}),
        ("quantize.smk", "{resources.tool_threads}", "{threads}", set()),
        ("merge.smk", "threads: MERGE.threads", "threads: 5", set()),
        ("imatrix.smk", "# On several GPUs", "# With several GPUs", set()),
    ],
)
def test_an_edit_of_a_rule_counts_where_it_makes_bytes(copied, file, old, new, rules):
    before = {rule: Code(copied).digest(rule) for rule in MADE_BY}
    path = copied / "rules" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    after = {rule: Code(copied).digest(rule) for rule in MADE_BY}
    assert {rule for rule in MADE_BY if before[rule] != after[rule]} == rules


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("merge.py", "mergekit wrote no tensors", "there are no tensors in it"),
        ("merge.py", "raise UserError(str(error)) from error", "raise UserError('no') from None"),
        ("merge.py", "mergekit YAML, models as", "a YAML file, models as"),
        ("lib/formats/model_files.py", "there is no such directory", "no such directory"),
        ("imatrix_ranges.py", "All other options", "The other options"),
        ("gguf_metadata.py", 'metavar="KEY=TEXT"', 'metavar="KEY=VALUE"'),
        ("exl2_convert.py", "error of each layer", "the error of each layer"),
        (
            "lib/formats/against_base.py",
            "it reads the text as other tokens",
            "its tokens of the text are others",
        ),
        (ENDS, "sys.exit(READER_GONE)", "sys.exit(1)"),
    ],
)
def test_a_message_put_better_builds_nothing_again(copied, file, old, new):
    before = {rule: Code(copied).digest(rule) for rule in MADE_BY}
    path = copied / "scripts" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert {rule: Code(copied).digest(rule) for rule in MADE_BY} == before


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("raise UserError('a')", "raise UserError(f'b {THREADS}') from None", False),
        ("raise UserError('a')", "raise ValueError('a')", True),
        ("raise UserError('a')", "raise", True),
        ("raise UserError('a')", "UserError('a')", True),
        ("if THREADS: raise UserError('a')", "if not THREADS: raise UserError('a')", True),
        ("sys.exit('a')", "sys.exit(f'b {THREADS}')", False),
        ("sys.exit('a')", "sys.exit('b'.join(TOKENIZERS))", False),
        ("sys.exit(1)", "sys.exit(2)", True),
        ("sys.exit(THREADS)", "sys.exit(1)", True),
        ("print('a', file=sys.stderr)", "print('b', THREADS, file=sys.stderr)", False),
        ("print('a')", "print('b')", True),  # standard output may be what is made
        ("print('a', file=OUT)", "print('b', file=OUT)", True),
        ("p.add_argument('--a', help='a')", "p.add_argument('--a', help='b', metavar='A')", False),
        ("argparse.ArgumentParser()", "argparse.ArgumentParser(formatter_class=Raw)", False),
        ("p.add_argument('--a', help='a')", "p.add_argument('--a', type=int, help='a')", True),
        ("p.add_argument('--a', help='a')", "p.add_argument('--b', help='a')", True),
        ("writer(description='a')", "writer(description='b')", True),
        ("class A(UserError): 'a'", "class B(UserError): 'b'", False),
        ("class A(UserError): 'a'", "class A(UserError): a = 1", True),
        ("class A(ValueError): 'a'", "class A(KeyError): 'a'", True),
        ("from lib.errors import UserError", "from lib.errors import UserError, plainly", False),
        ("from lib.units import human", "from lib.units import count", True),
    ],
)
def test_what_only_speaks_counts_nowhere_and_the_code_beside_it_does(copied, old, new, counts):
    path = copied / "scripts/merge.py"
    text = path.read_text()
    path.write_text(f"{text}\n{old}\n")
    before = Code(copied).digest("merge")
    path.write_text(f"{text}\n{new}\n")
    assert (Code(copied).digest("merge") != before) is counts


@pytest.mark.parametrize(
    ("param", "beside", "old", "new"),
    [
        ("FLAGS", "FLAGS = ['--pure']", "--pure", "--keep-split"),
        ("spelt(1)", "def spelt(number):\n    return number", "return number", "return -number"),
    ],
    ids=["a constant", "a function"],
)
def test_what_stands_beside_a_rule_counts_where_a_param_names_it(copied, param, beside, old, new):
    path = copied / "rules/quantize.smk"
    text = path.read_text().replace("QUANT.flags(quantize_flags)", f"lambda wildcards: {param}")
    path.write_text(f"{text}\n\n{beside}\n")
    before = Code(copied).digest("quantize")
    path.write_text(path.read_text().replace(old, new))
    assert Code(copied).digest("quantize") != before


@pytest.mark.parametrize(
    ("rule", "file", "old", "new", "message"),
    [
        ("split", "rules/quantize.smk", "shell:", "params_:", "rule .*: it has no shell text"),
        ("split", "rules/quantize.smk", "rule split:", "rule cut:", "rule split is in no file"),
        ("label", "rules/quantize.smk", "gguf_metadata.py", "metadata.py", "there is no metadata"),
        ("card", "rules/report.smk", "card.md.j2", "README.j2", "there is no templates/README.j2"),
        ("merge", "rules/merge.smk", "seed=", "seeds=", r"\{params.seed\}, params has not"),
        ("quantize", "rules/quantize.smk", "(quantize_flags)", "(flags_of)", "what flags_of is"),
        (
            "merge",
            "scripts/merge.py",
            "from lib.formats.model_files",
            "from .model_files",
            "are absolute",
        ),
        (
            "merge",
            "scripts/merge.py",
            "lib.formats.model_files",
            "lib.models",
            "no module lib.models",
        ),
        ("card", "scripts/card.py", "license as", "licence as", "no module lib.hub.licence"),
        ("label", "scripts/gguf_metadata.py", "import math", "exec('1')", "cannot be followed"),
        (
            "label",
            "scripts/gguf_metadata.py",
            "import math",
            "import importlib\n\nimportlib.import_module('lib.record.recipe')",
            "cannot be followed",
        ),
        (
            "label",
            "scripts/gguf_metadata.py",
            "import math",
            'PROGRAM = "merge.py"',
            "started as a program; import its functions",
        ),
    ],
)
def test_code_that_cannot_be_told_is_an_error_and_no_empty_digest(
    copied, rule, file, old, new, message
):
    path = copied / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CodeError, match=message):
        Code(copied).digest(rule)


def test_a_rule_that_is_used_again_with_other_params_is_an_error(copied):
    path = copied / "rules/merge.smk"
    path.write_text(
        path.read_text().replace(" with:\n", " with:\n    params:\n        seed=1,\n", 1)
    )
    with pytest.raises(CodeError, match="keeps its shell text and params"):
        Code(copied).digest("merge")


def test_what_is_remembered_of_a_file_is_forgotten_when_it_or_its_neighbours_change(
    copied, tmp_path
):
    def digest() -> str:
        return Code(copied, Contents(tmp_path / "code.json")).digest("merge")

    first = digest()
    assert digest() == first == Code(copied).digest("merge")
    path = copied / "scripts/lib/formats/model_files.py"
    path.write_text(path.read_text() + "\nadded = 1\n")
    second = digest()
    assert second == Code(copied).digest("merge") != first
    (copied / "scripts/shutil.py").write_text("ours = True\n")  # merge.py imports it, unchanged
    assert digest() == Code(copied).digest("merge") != second


def test_a_change_that_makes_everybodys_weights_stale_is_seen_in_review():
    """The same with every version of Python: 3.11 and 3.12 were compared."""
    found = "".join(f"{rule} {Code().digest(rule)}\n" for rule in (*WEIGHTS, *FOUND))
    snapshot = ROOT / "tests/snapshots/code.txt"
    assert found == snapshot.read_text(), f"if that is meant: write it to {snapshot.name}:\n{found}"


def test_no_two_rules_share_a_digest():
    digests = [Code().digest(rule) for rule in MADE_BY]
    assert len(set(digests)) == len(digests)
