"""The code that makes an artifact, as a digest: a script with all it imports from here, and a rule's shell text."""

import hashlib
import re
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
RULES = SCRIPTS.parent / "rules"

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(lib(?:\.\w+)*)[ \t]+import[ \t]+(\(?[^#\n]*)|import[ \t]+(lib(?:\.\w+)+))",
    re.M,
)
_RULE = re.compile(r"^(?:rule|checkpoint)[ \t]+(\w+):(.*?)(?=^\S|\Z)", re.M | re.S)
_SHELL = re.compile(r'^[ \t]+shell:\s*r?(?:f?)("""|\'\'\')(.*?)\1', re.M | re.S)


@cache
def files(script: str) -> tuple[Path, ...]:
    """A script (relative to scripts/) and, transitively, the modules of scripts/ that it imports, sorted."""
    seen: set[Path] = set()
    todo = [SCRIPTS / script]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".py":
            todo += _imported(path.read_text())
    return tuple(sorted(seen))


def _imported(text: str) -> list[Path]:
    modules: set[str] = set()
    for package, names, plain in _IMPORT.findall(text):
        modules.add(plain or package)
        if package == "lib":
            modules.update(f"lib.{name}" for name in re.findall(r"\w+", names))
    paths = (SCRIPTS / (module.replace(".", "/") + ".py") for module in modules)
    return [path for path in paths if path.is_file()]


@cache
def shell_texts() -> dict[str, str]:
    """{rule: its shell block, white space folded} over rules/*.smk."""
    texts = {}
    for path in sorted(RULES.glob("*.smk")):
        for name, body in _RULE.findall(path.read_text()):
            if found := _SHELL.search(body):
                texts[name] = " ".join(found.group(2).split())
    return texts


@cache
def code_digest(rule: str, scripts: tuple[str, ...]) -> str:
    """sha256 (hex) over a rule's shell text and the scripts that make its output."""
    total = hashlib.sha256(shell_texts().get(rule, "").encode())
    for path in sorted({path for script in scripts for path in files(script)}):
        name = path.relative_to(SCRIPTS).as_posix()
        total.update(f"\0{name}\0".encode() + path.read_bytes())
    return total.hexdigest()
