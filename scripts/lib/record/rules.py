"""Reads rules files as text: what each rule runs to make its output, and the code of its params.

Snakemake's own parser turns a whole workflow into Python, and its internals may change. snakefmt
keeps our rules in one shape, and this module reads that shape: `rule NAME:` at the beginning of a
line, and its sections indented by four columns.
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# A line of a shell text that begins with one of these decides no bytes. step.sh and gpus.sh define
# them.
NO_BYTES = {"begin", "commit", "gpus", "inside", "check", "beside", "fetch", "same"}

_BLOCK = re.compile(
    r"^(?:use )?([a-z_]+)\b([^\n]*):[^\n]*\n?((?:[ \t]+\S[^\n]*\n|[ \t]*\n)*)", re.M
)
_SECTION = re.compile(r"^    (\w+):(.*?)(?=^    \w+:|\Z)", re.M | re.S)
# Words at the beginning of a line that are Snakemake's and not Python's.
_SNAKEMAKE = {"rule", "checkpoint", "include", "localrules", "ruleorder", "report", "configfile"}
_SNAKEMAKE |= {"wildcard_constraints", "onstart", "onsuccess", "onerror", "envvars", "module"}


class CodeError(Exception):
    """The code behind an artifact cannot be followed, because of a rule, a program or an import."""


@dataclass
class Rules:
    """A rules file.

    bodies: {rule: the text of its body}. defined: {name: the Python statement that defines it}.
    """

    file: Path
    bodies: dict[str, str] = field(default_factory=dict)
    defined: dict[str, ast.stmt] = field(default_factory=dict)


@dataclass
class Rule:
    """A rule, as far as it decides bytes.

    shell: the commands that make the output, one on each line. params: {name: its expression}.
    defined: {name: the Python statement that defines it}, in the rule's file and in common.smk.
    """

    name: str
    file: Path
    shell: str
    params: dict[str, ast.expr]
    defined: dict[str, ast.stmt]


class Rulebook:
    """All rules files (*.smk) of a directory. What common.smk defines is known in all of them."""

    def __init__(self, directory: Path):
        self.directory = directory

    @cached_property
    def _files(self) -> list[Rules]:
        return [_read(file) for file in sorted(self.directory.glob("*.smk"))]

    def names(self) -> list[str]:
        """The names of the rules that have an output."""
        bodies = {name: body for rules in self._files for name, body in rules.bodies.items()}
        return [name for name, body in bodies.items() if "output" in dict(_SECTION.findall(body))]

    def rule(self, name: str) -> Rule:
        """The rule of this name. Raises CodeError if there is none, or it has no shell text."""
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
    """A section of a rule, parsed as the arguments of a call. Raises CodeError."""
    try:
        return ast.parse(f"section({section.strip()}\n)", mode="eval").body
    except SyntaxError as error:
        raise CodeError(f"rule {rule}: cannot be read ({error.msg})") from None


def _making(shell: str) -> str:
    """A shell text without the lines that decide no bytes.

    Each command is on one line, and each run of white space is one blank. Where a number of threads
    comes from decides nothing.
    """
    shell = shell.replace("{resources.tool_threads}", "{threads}")
    lines = (" ".join(line.split()) for line in shell.replace("\\\n", " ").splitlines())
    return "\n".join(
        line for line in lines if line and line[0] != "#" and line.split()[0] not in NO_BYTES
    )
