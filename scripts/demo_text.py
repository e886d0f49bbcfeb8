"""Write the demo's text: code and prose that every Python installation has.

Code is the standard library's source without docstrings and comments. Prose is these docstrings and
comments, and the language reference that `help()` shows. The same Python gives the same bytes.
Every fifth document (a module, a help topic) is held out of training, and no paragraph is in two
files, so models are never measured on text that they were trained on. Files, UTF-8:

    train-code.txt train-prose.txt       what demo_train.py trains on
    heldout-code.txt heldout-prose.txt   what it measures perplexity on, one domain each
    calibration.txt evaluation.txt       both domains, for the importance matrix and KL divergence
"""

import argparse
import ast
import importlib
import inspect
import io
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from lib.errors import UserError, program

# Left out: tables rather than text, and what distributions ship separately or not at all.
SKIPPED = {"encodings", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "distutils"}
SKIPPED |= {"ensurepip", "venv", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}

HELD_OUT = 5  # one document in so many is never trained on
HELDOUT_CHARS = 64_000  # of each heldout-*.txt
MIXED_CHARS = {"calibration": 36_000, "evaluation": 31_000}  # of each domain
MINIMUM_TRAINING_CHARS = 500_000


def stdlib_sources(root: Path) -> Iterator[tuple[str, str]]:
    """(name relative to `root`, source) of the standard library's modules, sorted by name."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = path.relative_to(root).with_suffix("").parts
        # Other top-level names (site-packages, build configuration) are not Python's own.
        if parts[0] not in sys.stdlib_module_names or SKIPPED.intersection(parts):
            continue
        if parts[0].startswith("_sysconfigdata"):
            continue  # paths of the machine that compiled this Python
        try:
            with tokenize.open(path) as file:
                yield "/".join(parts), file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # deliberately broken, or a dangling link of the distribution


def split_source(source: str) -> tuple[str, list[str]]:
    """(a module's code without docstrings and comment lines, these as a list of texts).

    Raises SyntaxError or tokenize.TokenError for what this Python cannot parse.
    """
    prose: dict[int, str] = {}  # first line -> text
    removed: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not (isinstance(body, list) and body and isinstance(body[0], ast.Expr)):
            continue
        constant = body[0].value
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            prose[constant.lineno] = inspect.cleandoc(constant.value)
            removed.update(range(constant.lineno, (constant.end_lineno or constant.lineno) + 1))

    previous = -1  # line of the comment just seen
    start = -1  # first line of its block
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        removed.add(line)
        text = token.string.lstrip("#").strip()
        if line == previous + 1:
            prose[start] += "\n" + text
        else:
            start = line
            prose[start] = text
        previous = line
    lines = source.splitlines()
    code = [text for number, text in enumerate(lines, 1) if number not in removed]
    return "\n".join(code), [prose[line] for line in sorted(prose)]


def paragraphs(text: str) -> list[str]:
    """The text's paragraphs, which blank lines part: without trailing spaces, with indentation."""
    lines = "\n".join(line.rstrip() for line in text.expandtabs().splitlines())
    return [block.strip("\n") for block in re.split(r"\n{2,}", lines) if block.strip()]


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text, and no table, signature or interpreter session."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return (
        len(paragraph) >= 60
        and letters >= 0.85 * len(paragraph)
        and not paragraph.lstrip().startswith((">>>", "..."))
    )


def documents(root: Path) -> tuple[list[list[str]], list[list[str]]]:
    """(code documents, prose documents), each document a list of paragraphs, in a fixed order."""
    code: list[list[str]] = []
    prose: list[list[str]] = []
    for _, source in stdlib_sources(root):
        try:
            module, remarks = split_source(source)
        except (SyntaxError, ValueError, tokenize.TokenError):
            continue
        code.append(paragraphs(module))
        prose.append(paragraphs("\n\n".join(remarks)))
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # not everywhere; docstrings alone are enough
        topics = {}
    prose += [paragraphs(topics[name]) for name in sorted(topics)]
    return code, [[text for text in document if is_prose(text)] for document in prose]


def divide(documents: list[list[str]], seen: set[str]) -> tuple[list[str], list[str]]:
    """(paragraphs to train on, paragraphs that are held out).

    Licences and boilerplate recur: a paragraph that `seen` has already is dropped. New ones are
    added to `seen`.
    """
    divided: tuple[list[str], list[str]] = ([], [])
    for number, document in enumerate(documents):
        for text in document:
            key = " ".join(text.split())
            if key not in seen:
                seen.add(key)
                divided[number % HELD_OUT == HELD_OUT - 1].append(text)
    return divided


def deal(texts: list[str], sizes: list[int]) -> list[list[str]]:
    """Parts of at least `sizes` characters, filled in turn with runs of about 2,000 characters.

    texts: paragraphs. Raises UserError if they are too few.
    """
    parts: list[list[str]] = [[] for _ in sizes]
    filled = [0 for _ in sizes]
    turn = run = 0
    for text in texts:
        unfinished = [part for part, size in enumerate(sizes) if filled[part] < size]
        if not unfinished:
            return parts
        part = unfinished[turn % len(unfinished)]
        parts[part].append(text)
        filled[part] += len(text) + 2
        run += len(text)
        if run >= 2_000:
            turn, run = turn + 1, 0
    raise UserError(f"held-out text for {sum(filled):,} characters where {sum(sizes):,} are needed")


def alternate(first: list[str], second: list[str]) -> list[str]:
    """The paragraphs of two domains in turn, in runs of about 2,000 characters."""
    mixed: list[str] = []
    queues = [iter(first), iter(second)]
    while queues:
        queue = queues.pop(0)
        run = 0
        for text in queue:
            mixed.append(text)
            run += len(text)
            if run >= 2_000:
                queues.append(queue)
                break
    return mixed


def demo_text(root: Path) -> dict[str, str]:
    """{file name: text}. Raises UserError if the standard library in `root` is too small."""
    seen: set[str] = set()
    code, prose = documents(root)
    files: dict[str, list[str]] = {}
    mixed: dict[str, list[list[str]]] = {name: [] for name in MIXED_CHARS}
    for domain, texts in {"code": code, "prose": prose}.items():
        training, held_out = divide(texts, seen)
        if sum(map(len, training)) < MINIMUM_TRAINING_CHARS:
            raise UserError(f"too little {domain} to train on")
        files[f"train-{domain}"] = training
        heldout, *rest = deal(held_out, [HELDOUT_CHARS, *MIXED_CHARS.values()])
        files[f"heldout-{domain}"] = heldout
        for name, part in zip(MIXED_CHARS, rest, strict=True):
            mixed[name].append(part)
    files |= {name: alternate(*parts) for name, parts in mixed.items()}
    return {f"{name}.txt": "\n\n".join(texts) + "\n" for name, texts in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    output = parser.parse_args().output
    root = Path(sysconfig.get_path("stdlib"))
    output.mkdir(parents=True, exist_ok=True)
    try:
        files = demo_text(root)
    except UserError as error:
        text = f"{root} holds no complete standard library; use a full Python"
        raise UserError(f"{error}: {text}") from None
    for name, text in files.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(text):,} characters")


if __name__ == "__main__":
    program(main)
