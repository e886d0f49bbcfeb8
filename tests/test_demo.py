"""The embedded demo: its text, its tokenizer, its models."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import demo_text
from lib.errors import UserError

SCRIPTS = Path(demo_text.__file__).parent
TEXTS = {"train-code.txt", "train-prose.txt", "heldout-code.txt", "heldout-prose.txt"}
TEXTS |= {"calibration.txt", "evaluation.txt"}


def run(script: str, *arguments: object, **environment: str) -> str:
    """Run a script of the workflow by hand and return its standard output."""
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "text"
    run("demo_text.py", "--output", output, PYTHONHASHSEED="1")
    return output


def test_text_is_the_same_twice_so_the_demo_is_not_trained_again(text: Path, tmp_path: Path):
    again = tmp_path / "elsewhere"
    run("demo_text.py", "--output", again, PYTHONHASHSEED="2")
    assert contents(text) == contents(again)
    assert set(contents(text)) == TEXTS


def test_held_out_text_was_never_trained_on(text: Path):
    def paragraphs(name: str) -> set[str]:
        blocks = demo_text.paragraphs((text / name).read_text(encoding="utf-8"))
        return {" ".join(block.split()) for block in blocks}

    trained = paragraphs("train-code.txt") | paragraphs("train-prose.txt")
    held_out = {name: paragraphs(name) for name in TEXTS if not name.startswith("train")}
    for name, blocks in held_out.items():
        assert len(blocks) > 100, name
        assert not blocks & trained, name
        for other in held_out.keys() - {name}:
            assert not blocks & held_out[other], (name, other)


def test_text_names_no_directory_of_the_machine(text: Path):
    for name, content in contents(text).items():
        assert sys.base_prefix.encode() + b"/lib" not in content, name


def test_a_distribution_without_some_modules_still_makes_the_demo(tmp_path: Path):
    """Debian splits its Python; a module may be missing, broken or a dangling link."""
    root = tmp_path / "python"
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        root,
        ignore=shutil.ignore_patterns("site-packages", "test", "*.so", "*.pyc", "config-*"),
    )
    for name in ("idlelib", "lib2to3", "xmlrpc"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "ast.py").write_text("def broken(:\n")
    (root / "bdb.py").write_bytes(b"# coding: latin-99\n")
    (root / "cmd.py").unlink()
    (root / "cmd.py").symlink_to(tmp_path / "nowhere")
    (root / "mine.py").write_text("mine = 'no part of Python'\n")

    texts = demo_text.demo_text(root)

    assert set(texts) == TEXTS
    assert "no part of Python" not in "".join(texts.values())


def test_an_installation_without_sources_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="too little code"):
        demo_text.demo_text(tmp_path)


def test_both_tokenizers_agree(text: Path, tmp_path: Path):
    """llama.cpp reads tokenizer.model, ExLlama tokenizer.json: their KLD must be of equal ids."""
    import sentencepiece
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    import demo_train

    texts = [(text / f"train-{domain}.txt").read_text() for domain in demo_train.DOMAINS]
    model = demo_train.learn_tokenizer(texts, 2048)
    assert model == demo_train.learn_tokenizer(texts, 2048)
    demo_train.write_tokenizer(model, 512, tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path)

    evaluation = (text / "evaluation.txt").read_text(encoding="utf-8")
    samples = ["", " ", "a", "  two  spaces ", "\n\n\tdef f(x):\n        return x", "12345 0x1F"]
    samples += ["naïve “quotes” 日本語 🙂", "\x00\x7f", "aaaaaaaaaaaaaaaa", evaluation]
    for sample in samples:
        wanted = reference.encode(sample)
        assert fast.encode(sample, add_special_tokens=False).ids == wanted
        assert auto.encode(sample) == [demo_train.BOS, *wanted]
        assert fast.decode(wanted) == sample
    assert len(reference.encode(evaluation)) / 512 > 40
    assert auto.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


@pytest.mark.slow
def test_training_is_the_same_twice_whatever_the_machine_is_doing(text: Path, tmp_path: Path):
    """Otherwise every file that is made from the demo would differ between two builds."""
    first, second, tuned = (tmp_path / name for name in ("first", "second", "tuned"))
    arguments = ("--text", text, "--steps", 4)
    run("demo_train.py", "base", *arguments, "--output", first, PYTHONHASHSEED="1")
    settings = {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "1"}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # inherited by the child
    try:
        run("demo_train.py", "base", *arguments, "--output", second, **settings)
    finally:
        os.sched_setaffinity(0, cores)
    assert contents(first) == contents(second)

    options = ("--base", first, "--domain", "prose")
    run("demo_train.py", "finetune", *arguments, *options, "--output", tuned)
    before, after = contents(first), contents(tuned)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.safetensors"}


@pytest.mark.slow
def test_demo_models_know_something_so_that_merges_and_kld_mean_something(demo: Path):
    import torch
    from transformers import LlamaForCausalLM

    import demo_train

    vocabulary = (demo / "base" / "tokenizer.model").read_bytes()
    held_out = {
        domain: demo_train.encode(
            vocabulary, (demo / "text" / f"heldout-{domain}.txt").read_text(encoding="utf-8")
        )
        for domain in demo_train.DOMAINS
    }
    perplexity: dict[str, dict[str, float]] = {}
    for name in ("base", *demo_train.DOMAINS):
        model = LlamaForCausalLM.from_pretrained(demo / name, dtype=torch.float32)
        perplexity[name] = {
            domain: demo_train.perplexity(model, tokens, 512) for domain, tokens in held_out.items()
        }
        assert (demo / name / "tokenizer.model").read_bytes() == vocabulary
    for domain in demo_train.DOMAINS:
        assert perplexity["base"][domain] < model.config.vocab_size / 5
        assert perplexity[domain][domain] < 0.99 * perplexity["base"][domain]
