"""The rules of a repository as text: what each runs to make its output, and how its params are spelt.

Snakemake's own parser makes Python of a whole workflow and promises nothing of its inside. snakefmt keeps our rules in
one shape, which this reads: `rule NAME:` at the beginning of a line, its sections four columns further in.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# The first words of lines of a shell text that decide no bytes. step.sh and gpus.sh define them.
NO_BYTES = {"begin", "commit", "gpus", "check", "fetch"}

_BLOCK = re.compile(
    r"^(?:use )?([a-z_]+)\b([^\n]*):[^\n]*\n?((?:[ \t]+\S[^\n]*\n|[ \t]*\n)*)", re.M
)
_SECTION = re.compile(r"^    (\w+):(.*?)(?=^    \w+:|\Z)", re.M | re.S)
# What rules files have beside Python, at the beginning of a line.
_SNAKEMAKE = {"rule", "checkpoint", "include", "localrules", "ruleorder", "report", "configfile"}
_SNAKEMAKE |= {"wildcard_constraints", "onstart", "onsuccess", "onerror", "envvars", "module"}


class CodeError(Exception):
    """A rule, a program or an import from which the code of an artifact cannot be told."""


@dataclass
class Rules:
    """A rules file: the bodies of its rules, and what it defines beside them, both by name."""

    file: Path
    bodies: dict[str, str] = field(default_factory=dict)
    defined: dict[str, ast.stmt] = field(default_factory=dict)


@dataclass
class Rule:
    """shell: the commands that make the output, one a line. params: what the rule's params are, by name."""

    name: str
    file: Path
    shell: str
    params: dict[str, ast.expr]
    defined: dict[str, ast.stmt]


class Rulebook:
    """All rules files of a directory. What common.smk defines is known in all of them."""

    def __init__(self, directory: Path):
        self.directory = directory

    @cached_property
    def _files(self) -> list[Rules]:
        return [_read(file) for file in sorted(self.directory.glob("*.smk"))]

    def names(self) -> list[str]:
        """The rules that make something."""
        bodies = {name: body for rules in self._files for name, body in rules.bodies.items()}
        return [name for name, body in bodies.items() if "output" in dict(_SECTION.findall(body))]

    def rule(self, name: str) -> Rule:
        """A rule. Raises CodeError where there is none, or none with a shell text."""
        home = next((rules for rules in self._files if name in rules.bodies), None)
        if home is None:
            raise CodeError(f"rule {name} is in no file of {self.directory}")
        sections = dict(_SECTION.findall(home.bodies[name]))
        shell = _arguments(sections.get("shell", ""), name).args
        if len(shell) != 1 or not isinstance(getattr(shell[0], "value", None), str):
            raise CodeError(f"rule {name}: it has no shell text, a plain string")
        params = _arguments(sections.get("params", ""), name).keywords
        common = next((rules.defined for rules in self._files if rules.file.stem == "common"), {})
        return Rule(
            name,
            home.file,
            _making(shell[0].value),
            {param.arg: param.value for param in params},
            {**common, **home.defined},
        )


def _read(file: Path) -> Rules:
    found = Rules(file)

    def take(block: re.Match) -> str:
        keyword, name, body = block[1], block[2].strip(), block[3]
        if keyword not in _SNAKEMAKE:
            return block[0]
        if " as " in name and {"shell", "params"} & dict(_SECTION.findall(body)).keys():
            raise CodeError(
                f"{file}: {name}: a rule that is used again keeps its shell text and params"
            )
        if keyword == "rule" and " as " not in name:
            found.bodies[name] = body
        return ""

    text = _BLOCK.sub(take, file.read_text(encoding="utf-8"))
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise CodeError(f"{file}: cannot be read beside its rules ({error.msg})") from None
    for node in statements:
        if isinstance(node, ast.FunctionDef):
            found.defined[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.defined |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign):
            found.defined |= {name.id: node for name in node.targets if isinstance(name, ast.Name)}
    return found


def _arguments(section: str, rule: str) -> ast.Call:
    """The arguments of a section of a rule."""
    try:
        return ast.parse(f"section({section.strip()}\n)", mode="eval").body
    except SyntaxError as error:
        raise CodeError(f"rule {rule}: cannot be read ({error.msg})") from None


def _making(shell: str) -> str:
    """A shell text without the lines that decide no bytes, one command a line, white space folded."""
    lines = (" ".join(line.split()) for line in shell.replace("\\\n", " ").splitlines())
    return "\n".join(
        line for line in lines if line and line[0] != "#" and line.split()[0] not in NO_BYTES
    )
