"""The digest of the code that decides an artifact's bytes. The artifact's rule tells which code:

- the rule's shell text, without the lines that frame the step (begin, commit, gpus, inside), that
  only judge or describe (check, beside), or that download what the recipe pins by sha256 (fetch);
- the programs (`script NAME`) and other files ("$QM_SCRIPTS/NAME") that the shell text names, and
  the modules that they import;
- the params that the shell text uses: their expressions, the definitions in the rules file that
  these name, and the modules of the functions that they call.

The digest is of the code, not of its text. Comments, docstrings and white space do not change it.
The place of a file does not change it either, so modules can be moved. Code that only speaks to
people is left out (see _Silent), and so is how a program ends (lib/errors.py). Code that cannot be
followed raises CodeError, which tests/test_code.py finds before a user does.
"""

import ast
import builtins
import hashlib
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lib.record.contents import Contents
from lib.record.layout import RUN_STATE
from lib.record.rules import CodeError, Rulebook

REPOSITORY = Path(__file__).resolve().parents[3]
MEMORY = RUN_STATE / "code.json"
# Calls that run code which reading the source does not show. `eval` and `exec` count too, but only
# as plain names: a PyTorch model has a method `eval`.
UNSEEN = {"__import__", "import_module", "run_module", "run_path"}
# The module that tells how programs end.
ENDS = "lib/errors.py"

_PROGRAM = re.compile(r"\bscript ([\w./-]+)")
_FILE = re.compile(r'"\$QM_SCRIPTS/([^"]+)"')
_PARAM = re.compile(r"{params\.(\w+)")


class Code:
    """The rules and programs of a repository, read from its source and never run."""

    def __init__(self, repository: Path = REPOSITORY, memory: Contents | None = None):
        """memory: a cache of what was read from files, valid until they change; None for none."""
        self.scripts = repository / "scripts"
        self.rules = Rulebook(repository / "rules")
        self.digest = cache(self._digest)
        self._memory = memory
        self._rule = cache(self.rules.rule)
        self._params = cache(self._params_of)
        self._facts = cache(self._facts_of)

    def _digest(self, rule: str) -> str:
        """sha256 (hex) of the code that decides the bytes of `rule`'s output. Raises CodeError."""
        text = _FILE.sub('"$QM_SCRIPTS"', _PROGRAM.sub("script", self._rule(rule).shell))
        params, _ = self._params(rule)
        files = sorted(code for file in self.files(rule) if (code := self._facts(file)[0]))
        if self._memory:
            self._memory.save()
        return hashlib.sha256("\0".join([rule, text, *params, *files]).encode()).hexdigest()

    def files(self, rule: str) -> list[Path]:
        """The files under scripts/ whose code decides the bytes of `rule`'s output, sorted.

        Raises CodeError if there is no such rule or its code cannot be followed.
        """
        shell = self._rule(rule).shell
        named = _PROGRAM.findall(shell) + _FILE.findall(shell)
        todo = [self.scripts / name for name in named] + self._params(rule)[1]
        seen: set[Path] = set()
        while todo:
            file = todo.pop()
            if not file.is_file():
                raise CodeError(f"rule {rule}: there is no {file.relative_to(self.scripts)}")
            if file not in seen and file != self.scripts / ENDS:
                seen.add(file)
                todo += [self.scripts / name for name in self._facts(file)[1]]
        return sorted(seen)

    def _params_of(self, name: str) -> tuple[list[str], list[Path]]:
        """The code of the params in a rule's shell text, and the modules of their functions."""
        rule = self._rule(name)
        params, modules, seen = [], [], set()

        def follow(code: ast.AST, where: str) -> None:
            params.append(f"{where}={_dump(code)}")
            names = [node for node in ast.walk(code) if isinstance(node, ast.Name)]
            bound = {node.arg for node in ast.walk(code) if isinstance(node, ast.arg)}
            bound |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
            for name in dict.fromkeys(name.id for name in names):
                if name in bound or name in seen or hasattr(builtins, name):
                    continue
                seen.add(name)
                definition = rule.defined.get(name)
                if isinstance(definition, ast.Import | ast.ImportFrom):
                    modules.extend(self._resolved(definition, str(rule.file)))
                elif isinstance(definition, ast.FunctionDef):
                    follow(definition, name)
                elif isinstance(definition, ast.Assign):
                    # The value of a call (a pattern, the session) enters the recipe as options;
                    # it is not code.
                    if not isinstance(definition.value, ast.Call):
                        follow(definition.value, name)
                elif name not in ("session", "workflow", "config"):
                    raise CodeError(f"{rule.file}: rule {rule.name}: it is not said what {name} is")

        for param in dict.fromkeys(_PARAM.findall(rule.shell)):
            if param not in rule.params:
                raise CodeError(
                    f"{rule.file}: rule {rule.name}: its shell text has {{params.{param}}}, "
                    "params has not"
                )
            follow(rule.params[param], param)
        return params, modules

    def _facts_of(self, file: Path) -> tuple[str, list[str]]:
        """The digest of a file's code, and the paths of its imports, relative to scripts/."""

        def read() -> tuple[str, list[str]]:
            imports = self._imports_of(file) if file.suffix == ".py" else []
            return self._code_of(file), [
                path.relative_to(self.scripts).as_posix() for path in imports
            ]

        return self._memory.remembered(str(file), self._names, read) if self._memory else read()

    @cached_property
    def _names(self) -> str:
        """The key of cached facts. It changes with the modules' names and with this module."""
        names = sorted(str(path) for path in self.scripts.rglob("*.py"))
        known = "|".join([*names, Path(__file__).read_text("utf-8")])
        return f"code {hashlib.sha256(known.encode()).hexdigest()[:16]}"

    def _code_of(self, file: Path) -> str:
        """sha256 (hex) of a file's code; "" if it has none."""
        if file.suffix != ".py":
            return hashlib.sha256(file.read_bytes()).hexdigest()
        body = _Silent().visit(_parsed(file)).body
        # Of imports of our own modules, names count. Order depends on where modules lie, so it
        # does not count.
        ours = [node for node in body if _is_import(node) and self._resolved(node, str(file))]
        code = sorted(_dump(alias) for node in ours for alias in node.names)
        code += [_dump(node) for node in _undocumented(body) if node not in ours]
        return hashlib.sha256("\0".join(code).encode()).hexdigest() if code else ""

    def _imports_of(self, file: Path) -> list[Path]:
        """The files under scripts/ that a module imports, anywhere in it. Raises CodeError."""
        found = []
        for node in ast.walk(_parsed(file)):
            if _is_import(node):
                found += self._resolved(node, str(file))
            elif isinstance(node, ast.Call) and self._is_unseen(node):
                raise CodeError(f"{file}:{node.lineno}: what this runs cannot be followed")
            elif isinstance(node, ast.Constant) and self._is_program(node.value):
                raise CodeError(
                    f"{file}:{node.lineno}: {node.value} is started as a program; "
                    "import its functions instead"
                )
        return found

    def _is_unseen(self, call: ast.Call) -> bool:
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        if name in ("eval", "exec"):
            return isinstance(call.func, ast.Name)
        if name not in UNSEEN:
            return False
        told = getattr(call.args[0], "value", None) if call.args else None
        return not isinstance(told, str) or bool(self._module(told))  # else a module from outside

    def _is_program(self, value: Any) -> bool:
        return isinstance(value, str) and value.endswith(".py") and (self.scripts / value).is_file()

    def _resolved(self, node: ast.Import | ast.ImportFrom, where: str) -> list[Path]:
        """The files under scripts/ that an import reads; empty for a module from outside.

        Raises CodeError for a relative import, and if a module is missing.
        """
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise CodeError(f"{where}: imports are absolute here, as in `from lib.x import y`")
            package = (self.scripts / node.module.replace(".", "/")).is_dir()
            names = [f"{node.module}.{name}" for name in names] if package else [node.module]
        found = []
        for name in names:
            files = self._module(name)
            if not files and (self.scripts / name.split(".")[0]).is_dir():
                raise CodeError(f"{where}: there is no module {name}")
            found += files
        return found

    def _module(self, name: str) -> list[Path]:
        """The files of a module under scripts/, its packages' first; empty if there is none."""
        *packages, last = name.split(".")
        places = [
            self.scripts.joinpath(*packages[: n + 1], "__init__.py") for n in range(len(packages))
        ]
        within = self.scripts.joinpath(*packages)
        own = next(
            filter(Path.is_file, (within / f"{last}.py", within / last / "__init__.py")), None
        )
        return [*filter(Path.is_file, places), own] if own else []


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


class _Silent(ast.NodeTransformer):
    """Removes code that only speaks to people. It decides no bytes, so its words may be improved:

    - the message and the cause of `raise CLASS(message) from cause`. CLASS stays, because code may
      catch it by name and act on it. So a new name for a class changes the digest of the code that
      raises it; and no exception may carry data that decides bytes.
    - a text that `sys.exit` gets (a number stays), and `print(…, file=sys.stderr)`
    - what argparse shows: help, description, epilog, metavar, formatter_class
    - a subclass of UserError that has only a name, and all imports from lib/errors.py
    """

    SHOWN = {"help", "description", "epilog", "metavar", "formatter_class"}
    SHOWS = {"ArgumentParser", "add_argument", "add_parser", "add_subparsers"}
    SHOWS |= {"add_argument_group"}

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        return ast.Raise(getattr(node.exc, "func", node.exc))

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Call) and _dotted(node.value.func) == "print":
            given = {word.arg: _dotted(word.value) for word in node.value.keywords}
            if given.get("file") == "sys.stderr":
                return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _dotted(node.func) == "sys.exit":
            node.args = [word for word in node.args if not _is_text(word)]
        elif getattr(node.func, "attr", None) in self.SHOWS:
            node.keywords = [word for word in node.keywords if word.arg not in self.SHOWN]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef | None:
        only_named = not _undocumented(node.body) and not node.decorator_list
        if only_named and [*map(_dotted, node.bases)] == ["UserError"]:
            return None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "lib.errors" else node


def _dotted(node: ast.expr) -> str:
    """`name` or `module.name`, as written; "" for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return getattr(node, "id", "")


def _is_text(node: ast.expr) -> bool:
    """Whether an expression surely gives a text: a literal, an f-string, str(…), "…".join(…)."""
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", getattr(node.func, "attr", "")) in ("str", "join")
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _undocumented(body: list[ast.stmt]) -> list[ast.stmt]:
    """A body without its docstring, and without those of its attributes."""
    return [node for node in body if not _is_docstring(node)]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _dump(node: Any) -> str:
    """The code of a node as text, the same in every version of Python that can parse it.

    ast.dump also shows empty fields, and new versions of Python add such fields; this omits them.
    """
    if isinstance(node, ast.AST):
        fields = dict(ast.iter_fields(node))
        if isinstance(fields.get("body"), list):
            fields["body"] = _undocumented(fields["body"])
        if str(fields.get("module")).split(".")[0] == "lib":
            # The place of our own modules does not count; their code counts by itself.
            del fields["module"]
        parts = (
            f"{name}={_dump(value)}"
            for name, value in fields.items()
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
        )
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(map(_dump, node))}]"
    return repr(node)


@cache
def _own() -> Code:
    return Code(memory=Contents(MEMORY))


def code_digest(rule: str) -> str:
    """sha256 (hex) of this repository's code that decides the bytes of `rule`'s output.

    Raises CodeError.
    """
    return _own().digest(rule)
