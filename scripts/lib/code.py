"""The code that decides an artifact's bytes, as a digest. It follows from the rule that makes the artifact:

- its shell text, but for the lines that frame the step (begin, commit, gpus), only judge or describe what was made
  (check), or bring what the recipe pins by its sha256 (fetch);
- the programs (`script NAME`) and other files ("$QM_SCRIPTS/NAME") that this text names, and what they import;
- the params that this text uses: their expressions, the functions that these name, and the modules of those.

What counts is the code and not its text: comments, docstrings and white space change nothing, nor does the place of a
file, so that rooms can be moved. Whatever cannot be followed is a CodeError: tests/test_code.py meets it, no user does.
"""

import ast
import builtins
import hashlib
import re
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# The first words of lines of a shell text that decide no bytes. step.sh and gpus.sh define them.
NO_BYTES = {"begin", "commit", "gpus", "check", "fetch"}
# Ways to run code that reading the source does not show.
UNSEEN = {"__import__", "import_module", "run_module", "run_path"}

_BLOCK = re.compile(
    r"^(?:use )?([a-z_]+)\b([^\n]*):[^\n]*\n?((?:[ \t]+\S[^\n]*\n|[ \t]*\n)*)", re.M
)
_SECTION = re.compile(r"^    (\w+):(.*?)(?=^    \w+:|\Z)", re.M | re.S)
_PROGRAM = re.compile(r"\bscript ([\w./-]+)")
_FILE = re.compile(r'"\$QM_SCRIPTS/([^"]+)"')
_PARAM = re.compile(r"{params\.(\w+)")
# What .smk files have beside Python, at the beginning of a line.
_SNAKEMAKE = {"rule", "checkpoint", "include", "localrules", "ruleorder", "report", "configfile"}
_SNAKEMAKE |= {"wildcard_constraints", "onstart", "onsuccess", "onerror", "envvars", "module"}


class CodeError(Exception):
    """A rule, a program or an import from which the code of an artifact cannot be told."""


class Code:
    """The rules and programs of a repository, read from its source and never run."""

    def __init__(self, repository: Path = REPOSITORY):
        self.scripts, self.rules = repository / "scripts", repository / "rules"
        self.digest = cache(self._digest)
        self._code = cache(self._code_of)

    def _digest(self, rule: str) -> str:
        """sha256 (hex) over the code that decides the bytes of what `rule` makes. Raises CodeError."""
        shell, params, _ = self._rule(rule)
        text = _FILE.sub('"$QM_SCRIPTS"', _PROGRAM.sub("script", shell))
        codes = sorted(code for file in self.files(rule) if (code := self._code(file)))
        return hashlib.sha256("\0".join([rule, text, *params, *codes]).encode()).hexdigest()

    def files(self, rule: str) -> list[Path]:
        """The files under scripts/ whose code decides the bytes of what `rule` makes, sorted. Raises CodeError."""
        shell, _, modules = self._rule(rule)
        todo = [self.scripts / name for name in _PROGRAM.findall(shell) + _FILE.findall(shell)]
        todo += modules
        seen: set[Path] = set()
        while todo:
            file = todo.pop()
            if file in seen:
                continue
            if not file.is_file():
                raise CodeError(f"rule {rule}: there is no {file.relative_to(self.scripts)}")
            seen.add(file)
            todo += self._imports(file) if file.suffix == ".py" else []
        return sorted(seen)

    # rules

    @cached_property
    def _books(self) -> dict[str, tuple[dict[str, str], dict[str, ast.stmt]]]:
        """{name of a rules file: (its rules' bodies, what it defines at its top level)}."""
        return {file.stem: _read(file) for file in sorted(self.rules.glob("*.smk"))}

    def _rule(self, rule: str) -> tuple[str, list[str], list[Path]]:
        """What decides: the shell text, the code of its params, and the modules that spell these."""
        name = next((name for name, (bodies, _) in self._books.items() if rule in bodies), None)
        if name is None:
            raise CodeError(f"rule {rule} is in no file of {self.rules}")
        bodies, own = self._books[name]
        sections = dict(_SECTION.findall(bodies[rule]))
        shell = _deciding(_literal(sections.get("shell"), f"rule {rule}"))
        given = {
            keyword.arg: keyword.value
            for keyword in _call(sections.get("params", ""), f"params of rule {rule}").keywords
        }
        known = {**self._books["common"][1], **own} if "common" in self._books else own
        params, modules = [], []
        for param in dict.fromkeys(_PARAM.findall(shell)):
            if param not in given:
                raise CodeError(
                    f"rule {rule}: its shell text has {{params.{param}}}, params has not"
                )
            params.append(f"{param}={_dump(given[param])}")
            self._follow(given[param], known, f"{name}.smk, params.{param}", params, modules, set())
        return shell, params, modules

    def _follow(
        self,
        code: ast.AST,
        known: dict[str, ast.stmt],
        where: str,
        params: list[str],
        modules: list[Path],
        seen: set[str],
    ) -> None:
        """Add what the names in a piece of a rules file stand for: functions beside it, modules of functions."""
        bound = {node.arg for node in ast.walk(code) if isinstance(node, ast.arg)}
        bound |= {n.id for n in ast.walk(code) if isinstance(n, ast.Name) and _stored(n)}
        for node in ast.walk(code):
            if (
                not isinstance(node, ast.Name)
                or node.id in bound | seen
                or hasattr(builtins, node.id)
            ):
                continue
            seen.add(node.id)
            definition = known.get(node.id)
            if isinstance(definition, ast.Import | ast.ImportFrom):
                modules += self._resolved(definition, self.scripts, where)
            elif isinstance(definition, ast.FunctionDef):
                params.append(_dump(definition))
                self._follow(definition, known, where, params, modules, seen)
            elif definition is None and node.id not in ("session", "workflow", "config"):
                raise CodeError(f"{where}: it is not said what {node.id} is")
            # Else a pattern, which gives options of the recipe, or the session.

    # programs and modules

    def _code_of(self, file: Path) -> str:
        """sha256 (hex) of a file's code; nothing where it has none."""
        if file.suffix != ".py":
            return hashlib.sha256(file.read_bytes()).hexdigest()
        tree = _parse(file)
        local = [node for node in tree.body if self._is_local(node, file)]
        names = sorted(_dump(name) for node in local for name in node.names)
        body = [_dump(node) for node in tree.body if node not in local]
        body = body[1:] if _is_docstring(tree.body) else body
        return hashlib.sha256("\0".join(names + body).encode()).hexdigest() if names + body else ""

    def _imports(self, file: Path) -> list[Path]:
        """The files under scripts/ that a module imports, anywhere in it."""
        found = []
        for node in ast.walk(_parse(file)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += self._resolved(node, file.parent, str(file))
            elif isinstance(node, ast.Call) and _hides(node, lambda name: bool(self._module(name))):
                raise CodeError(f"{file}:{node.lineno}: what this runs cannot be followed")
            elif isinstance(node, ast.Constant) and self._is_program(node.value):
                text = "it is started as a program; import its functions instead"
                raise CodeError(f"{file}:{node.lineno}: {node.value}: {text}")
        return found

    def _is_program(self, value: Any) -> bool:
        named = isinstance(value, str) and value.endswith(".py")
        return named and (self.scripts / value).is_file()

    def _is_local(self, node: ast.stmt, file: Path) -> bool:
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        return imports and bool(self._resolved(node, file.parent, str(file)))

    def _resolved(self, node: ast.Import | ast.ImportFrom, beside: Path, where: str) -> list[Path]:
        """The files under scripts/ that an import reads; none for what is not ours. Raises CodeError."""
        if isinstance(node, ast.Import):
            asked = [name.name for name in node.names]
            found = [self._module(name) for name in asked]
        else:
            package = node.module or ""
            if node.level:
                places = beside.relative_to(self.scripts).parts
                package = ".".join(
                    [*places[: len(places) - node.level + 1], *filter(None, [package])]
                )
            asked = [package]
            found = [self._module(package)]
            inside = self.scripts / package.replace(".", "/")
            if inside.is_dir() and package:
                defined = self._defined(inside / "__init__.py")
                for name in node.names:
                    if name.name not in defined:
                        asked.append(f"{package}.{name.name}")
                        found.append(self._module(asked[-1]))
        for name, files in zip(asked, found, strict=True):
            if not files and (self.scripts / name.split(".")[0]).is_dir() and name:
                raise CodeError(f"{where}: there is no module {name}")
        return [file for files in found for file in files]

    def _module(self, name: str) -> list[Path]:
        """The file of a module of ours, after those of the packages that it is in; empty if it is none."""
        *packages, last = name.split(".")
        place = self.scripts
        found = []
        for package in packages:
            place /= package
            found.append(place / "__init__.py")
        own = [
            path for path in (place / f"{last}.py", place / last / "__init__.py") if path.is_file()
        ]
        if not own and not (place / last).is_dir():
            return []
        return [path for path in [*found, *own[:1]] if path.is_file()]

    def _defined(self, file: Path) -> set[str]:
        """The names that a package itself defines."""
        if not file.is_file():
            return set()
        nodes = list(ast.walk(_parse(file)))
        names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        return names | {n.id for n in nodes if isinstance(n, ast.Name) and _stored(n)}


def _read(file: Path) -> tuple[dict[str, str], dict[str, ast.stmt]]:
    """The bodies of the rules of a rules file, and what it defines at its top level, by name."""
    rules: dict[str, str] = {}

    def take(block: re.Match) -> str:
        keyword, name, body = block[1], block[2].strip(), block[3]
        if keyword not in _SNAKEMAKE:
            return block[0]
        if keyword in ("rule", "checkpoint") and " as " not in name:
            rules[name] = body
        return ""

    text = _BLOCK.sub(take, file.read_text())
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise CodeError(f"{file}: cannot be read beside its rules ({error.msg})") from None
    defined: dict[str, ast.stmt] = {}
    for node in statements:
        if isinstance(node, ast.FunctionDef):
            defined[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(name.asname or name.name).split(".")[0]: node for name in node.names}
        elif isinstance(node, ast.Assign):
            names = (
                n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)
            )
            defined |= dict.fromkeys(names, node)
    return rules, defined


def _deciding(shell: str) -> str:
    """A shell text without what decides no bytes, one command a line, white space folded."""
    lines = (" ".join(line.split()) for line in shell.replace("\\\n", " ").splitlines())
    return "\n".join(
        line for line in lines if line and line[0] != "#" and line.split()[0] not in NO_BYTES
    )


def _call(text: str, where: str) -> ast.Call:
    """The arguments of a section of a rule."""
    try:
        return ast.parse(f"section({text.strip()}\n)", mode="eval").body
    except SyntaxError as error:
        raise CodeError(f"{where}: cannot be read ({error.msg})") from None


def _literal(text: str | None, where: str) -> str:
    """The shell text of a rule's section."""
    arguments = _call(text, where).args if text else []
    if len(arguments) != 1 or not isinstance(getattr(arguments[0], "value", None), str):
        raise CodeError(f"{where}: it has no shell text, a plain string")
    return arguments[0].value


@cache
def _parsed(file: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _parse(file: Path) -> ast.Module:
    stat = file.stat()
    return _parsed(file, (stat.st_mtime_ns, stat.st_size))


def _dump(node: Any) -> str:
    """The code of a piece of Python, the same for every version of Python that can read it.

    ast.dump would do but for the fields that versions add: what is empty is left out here.
    """
    if isinstance(node, ast.AST):
        body = getattr(node, "body", None)
        bare = isinstance(body, list) and _is_docstring(body)
        parts = [
            f"{name}={_dump(value[1:] if bare and name == 'body' else value)}"
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
            # Where a module of ours lies is no matter: its code counts by itself.
            if not (name == "module" and str(value).split(".")[0] == "lib")
        ]
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    return repr(node)


def _is_docstring(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _hides(call: ast.Call, is_ours: Callable[[str], bool]) -> bool:
    """Whether a call runs code that reading the source does not show; a module from outside, by name, does not."""
    name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
    if name in ("eval", "exec"):
        return isinstance(call.func, ast.Name)  # a model has a method of that name
    told = getattr(call.args[0], "value", None) if call.args else None
    return name in UNSEEN and not (isinstance(told, str) and not is_ours(told))


@cache
def _own() -> Code:
    return Code()


def code_digest(rule: str) -> str:
    """sha256 (hex) over the code of this repository that decides the bytes of what `rule` makes."""
    return _own().digest(rule)
