"""Configs of every shape: made from the schema, and whole ones with something changed in them.

Some trials change the lock of studies beside a whole config instead. Most are read, checked and
planned in a fork of this process; some by `snakemake --dry-run`. Each must be taken, or refused in
lines that name the key: no traceback, no file made outside .snakemake, nothing for a terminal to
obey, within seconds and some memory.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import snakemake.cli
import yaml
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError

from campaign import Case
from campaign.hostile import MARKUP, ODD, TITLE, gguf_file, said
from campaign.watched import Ended, listing, watched, wrong
from lib.config.load import load
from lib.errors import UserError, program
from lib.hub.lock import File, Lock, Locked, write
from lib.hub.references import hub_sources
from lib.run.session import Session
from lib.studies import grid
from lib.studies.lock import LOCK_FILE
from project import EVERYTHING, ROOT, command_line

SCHEMA = json.loads((ROOT / "config/schema.json").read_text())
EXAMPLES = sorted((ROOT / "config/examples").glob("*.yaml"))
WHOLE = [EVERYTHING, *(yaml.safe_load(file.read_text()) for file in EXAMPLES)]
DRY_RUNS = 0.06
"""The share of trials by Snakemake itself."""
STRANGE = 0.04
"""How often a value of a config from the schema is not what the schema says."""
# What the directories of a trial hold, and words that other keys take.
WORDS = ["./m/base", "./m/code", "./m/prose", "./m/poet", "./x.gguf", "data/text.txt", "a/b@main"]
WORDS += ["data/evaluation.txt", "data/calibration.txt", "calibration", "evaluation", "Base", "Mix"]
WORDS += ["Q8_0", "Q4_K_M", "IQ2_M", "bfloat16", "linear", "slerp", "q8_0", "$w", "{form}", "org/M"]
WORDS += ["org/{form}", "*", "auto", "mit", "50G", "24GB", "attn_v=q8_0", "merges/m.yaml", "on"]
NAMES = ["M", "Base", "calibration", "../up", "a b", "a'b", 'a"b', "a\nb", TITLE, "{x}", "{model}"]
NAMES += [
    "Ｍ",
    "М",
    "\u202egpj",
    "n" * 300,
    "",
    ".",
    "..",
    ".hidden",
    "-rf",
    "CON",
    "studies",
    MARKUP,
]
NAMES += ["$(id)", "`id`", "a;b", "a/b", "x.json", "all", "null", "~", "M.recipe", "\ud800", "\0"]
STRANGE_VALUES = [*ODD, *NAMES, *WORDS, 10**400, 0.1 + 0.2, "1e400", "0x10", "1_000", "-0", ".inf"]
STRANGE_VALUES += [f"./{name}{end}" for name in NAMES for end in ("", ".txt", ".gguf")]
STRANGE_VALUES += [
    f"{'n' * 5000}/x.parquet",
    "./m/base+",
    "+",
    "./x.gguf/x",
    "/dev/zero",
    "(" * 300,
]
STRANGE_VALUES += ["(a+)+$", "a{1000000}{1000000}", "[", "x=(" * 99 + "=q8_0"]
STRANGE_VALUES += [date(2020, 1, 1), datetime(2020, 1, 1), b"\0\xff", {date(2020, 1, 1): 1}, {"x"}]
LOCKS = 0.15
"""The share of trials that change the lock of studies."""
# A config with a model that takes a winner of a study in two rounds, and the lock that has it.
TAKING = copy.deepcopy(EVERYTHING)
TAKING["models"]["Best"] = {"merge": {"study": "Grid"}, "gguf": {"quants": ["Q8_0"]}}
TAKING["studies"]["Grid"]["rounds"] = [{"chunks": 2, "keep": 2}, {"chunks": 4}]
CHOSEN = {
    "studies": {
        "Grid": {
            "rounds": [{"chunks": 2, "kept": ["0.3", "0.5"]}],
            "winner": {
                "candidate": "0.3",
                "values": {"w": 0.3},
                "random_seed": 0,
                "merge": grid.filled(TAKING["studies"]["Grid"]["merge"], {"w": 0.3}),
            },
        }
    }
}
SETTINGS = SimpleNamespace(forceall=False, forcetargets=False, forcerun=set(), targets=set())


def project(place: Path) -> Path:
    """Models, texts, a GGUF, and a lock, in a directory: all whole configs can be planned there."""
    code = "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; "
    code += "from project import Project; Project.create(Path(sys.argv[1]))"
    paths = (ROOT / "tests", ROOT / "scripts")
    subprocess.run([sys.executable, "-c", code, place, *paths], check=True)
    lock = Lock()
    for document in WHOLE[1:]:
        config, _ = load(document, place)
        for source in hub_sources(config, list(config.entries)):
            names = [source.file] if source.file else ["config.json", "model.safetensors"]
            files = {name: File("0" * 64, 1000) for name in names}
            known = lock.entries.get((source.kind, source.ref))
            files |= known.files if known else {}
            lock.entries[source.kind, source.ref] = Locked(source.ref, source.kind, "0" * 40, files)
    write(place, lock)
    (place / "x.gguf").write_bytes(gguf_file())
    (place / "merges").mkdir()
    merge = {"merge_method": "linear", "models": [{"model": "./m/code"}], "dtype": "bfloat16"}
    (place / "merges/m.yaml").write_text(yaml.safe_dump(merge))
    return place


# shapes


def from_schema(random: Random, schema: dict[str, Any], depth: int = 0) -> Any:
    """A value as the schema says; sometimes another."""
    if depth and random.random() < STRANGE:
        return strange(random)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return from_schema(random, SCHEMA["$defs"][name], depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return from_schema(random, random.choice(schema[key]), depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return random.choice(schema["enum"])
    kind = schema.get("type")
    kind = random.choice(kind) if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        return mapping(random, schema, depth)
    if kind == "array":
        many = random.choice([0, 1, 1, 2, 3])
        return [from_schema(random, schema.get("items", {}), depth + 1) for _ in range(many)]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 10)
        number = random.choice([low, high, random.uniform(low, high)])
        return int(number) if kind == "integer" else number
    if kind == "boolean":
        return random.random() < 0.5
    if kind == "null":
        return None
    return random.choice(WORDS)


def mapping(random: Random, schema: dict[str, Any], depth: int) -> dict[Any, Any]:
    found = {}
    required = schema.get("required", ())
    share = 0.6 if depth < 2 else 0.3
    for key, inner in schema.get("properties", {}).items():
        if key in required or random.random() < share:
            found[key] = from_schema(random, inner, depth + 1)
    if isinstance(more := schema.get("additionalProperties"), dict):
        for _ in range(random.choice([1, 1, 2])):
            usual = random.random() < 1 - STRANGE
            name = random.choice(["M", "calibration", "evaluation"] if usual else NAMES)
            found[name] = from_schema(random, more, depth + 1)
    if random.random() < STRANGE:
        found[random.choice([*NAMES, 7, None, True, 1.5])] = strange(random)
    return found


def strange(random: Random) -> Any:
    value = copy.deepcopy(random.choice(STRANGE_VALUES))
    if random.random() < 0.1:
        for _ in range(random.choice([5, 50, 400])):
            value = [value] if random.random() < 0.5 else {"a": value}
    return value


def all_places(document: Any, path: tuple = ()) -> list[tuple]:
    pairs = document.items() if isinstance(document, dict) and len(path) < 50 else ()
    pairs = enumerate(document) if isinstance(document, list) and len(path) < 50 else pairs
    return [path, *(found for key, value in pairs for found in all_places(value, (*path, key)))]


def at(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


def mutated(random: Random) -> tuple[str, Any]:
    """How, and a whole config with something changed."""
    number = random.choices(range(len(WHOLE)), [6] + [1] * len(EXAMPLES))[0]
    did, document = changed(random, WHOLE[number])
    return f"config {number}; {did}", document


def changed(random: Random, document: Any) -> tuple[str, Any]:
    """How, and a document with some values changed, moved, taken away or called otherwise."""
    document, did = copy.deepcopy(document), []
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        *above, key = random.choice(
            all_places(document)[1:] or [(next(iter(SCHEMA["properties"])),)]
        )
        inside = at(document, tuple(above))
        how = random.choice(["strange", "strange", "moved", "gone", "called", "schema"])
        if how == "strange":
            inside[key] = strange(random)
        elif how == "moved":
            inside[key] = copy.deepcopy(at(document, random.choice(all_places(document))))
        elif how == "gone":
            inside.pop(key, None) if isinstance(inside, dict) else inside.pop(key)
        elif how == "called" and isinstance(inside, dict):
            inside[random.choice([*NAMES, *WORDS, 7])] = inside.pop(key, None)
        else:
            inside[key] = from_schema(random, random.choice(list(SCHEMA["$defs"].values())))
        now = inside[key] if isinstance(inside, list) and key < len(inside) else None
        now = inside.get(key) if isinstance(inside, dict) else now
        did.append(f"{'.'.join(map(str, [*above, key]))} {how}: {said(now)}")
    return "; ".join(did), document


# spellings

BOMB = "bomb: &a [x, x]\n" + "".join(
    f"bomb{letter}: &{letter} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, letter in zip("abcdefghi", "bcdefghij", strict=True)
)


AT_KEY = "".join(
    f", &{letter} [{', '.join([f'*{before}'] * 9)}]"
    for before, letter in zip("abcdefghi", "bcdefghij", strict=True)
)


class Dumper(yaml.SafeDumper):
    """Writes a list or mapping that is there twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def spelt(random: Random, document: Any) -> tuple[str, bytes]:
    """(how, the bytes) of a config in YAML, or what is nearly that."""
    try:
        text = yaml.dump(document, Dumper=Dumper, sort_keys=False)
    except (yaml.YAMLError, ValueError, RecursionError):
        return "as JSON", json.dumps(document, skipkeys=True, default=str).encode()
    lines = text.splitlines(keepends=True) or ["\n"]
    line = random.randrange(len(lines))
    how = random.choice(
        ["as it is"] * 12
        + [
            "bomb",
            "bomb in it",
            "bomb at a key",
            "itself at a key",
            "merge key",
            "twice",
            "tag",
            "bytes",
            "deep",
            "tab",
            "itself",
        ]
        + ["cut", "flipped", "documents", "number", "date", "directive", "nul", "bom", "colon"]
    )
    if how == "bomb":
        text = BOMB + text
    elif how == "bomb in it":
        text = BOMB + "models: {M: {source: *j, merge: *j, gguf: {quants: *j}}}\ncorpora: *j\n"
    elif how.endswith("at a key"):
        value = f"[&a [x, x]{AT_KEY}]" if how.startswith("bomb") else "&m {a: *m}"
        lines[line] = re.sub(": .*", f": {value}", lines[line])
        text = "".join(lines)
    elif how == "merge key":
        text = f"<<: {random.choice(['[]', '7', '{x: 1}', '*nowhere', '[{a: 1}, 7]'])}\n" + text
    elif how == "twice":
        text += "".join(lines[: line + 1])
    elif how == "tag":
        tag = random.choice(
            ["!!python/object/apply:os.system", "!!binary", "!x", "!!set", "!!omap"]
        )
        lines[line] = lines[line].replace(": ", f": {tag} ", 1)
        text = "".join(lines)
    elif how in ("bytes", "nul", "tab", "colon"):
        sign = {"bytes": "\udcff", "nul": "\0", "tab": "\t", "colon": ":"}[how]
        lines[line] = sign + lines[line]
        text = "".join(lines)
    elif how == "deep":
        depth = random.choice([50, 900, 20_000])
        text = f"models: {'[' * depth}{']' * depth}\n"
    elif how == "itself":
        text = "models: &m\n  M: *m\n" if random.random() < 0.5 else "corpora: &c [*c]\n" + text
    elif how == "cut":
        text = text[: random.randrange(len(text) + 1)]
    elif how == "flipped":
        place = random.randrange(len(text))
        text = text[:place] + random.choice("{}[]&*!|>'\"%@`,#?-: \n") + text[place + 1 :]
    elif how == "documents":
        text += "---\n" + text
    elif how == "number":
        text += f"store: {'9' * 5000}\n"
    elif how == "date":
        text += "store: 2023-99-99\n"
    elif how == "directive":
        text = f"%YAML {random.choice(['9.9', '1.2', 'x'])}\n---\n" + text
    elif how == "bom":
        text = "\ufeff" + text
    return how, text.encode("utf-8", "surrogateescape")


# trials


def planned(file: Path) -> None:
    """Read, check and plan a config, as Snakemake's main process does."""

    def ask() -> None:
        try:
            raw = load_configfile(file)
        except (WorkflowError, yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"Snakemake: {type(error).__name__}") from None
        session = Session(raw, lambda: SETTINGS, True)
        session.asked()

    sys.argv = ["plan.py"]
    program(ask, prefix="")


def dry_run() -> None:
    """`snakemake --dry-run` of config/config.yaml."""
    command = [*command_line(Path.cwd()), "--dry-run", "--quiet", "rules"]
    snakemake.cli.main(command[3:])


def cases(random: Random, work: Path) -> Iterator[Case]:
    """Trials without end."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    place = work / "place"
    here = project(place / "project")
    before = Path.cwd()
    os.chdir(here)
    for document in WHOLE:  # what is loaded for a plan need not be loaded in each fork
        session = Session(document, lambda: SETTINGS, True)
        assert session.asked()
    os.chdir(before)
    pristine = listing(place, *(here / name for name in OURS))
    while True:
        if random.random() < LOCKS:
            kind, text = "a lock of studies with changes", yaml.dump(TAKING).encode()
            did, document = changed(random, CHOSEN)
            how, locked = spelt(random, document)
            (here / LOCK_FILE).write_bytes(locked)
        elif random.random() < 0.4:
            kind, did = "made from the schema", ""
            how, text = spelt(random, from_schema(random, SCHEMA))
        else:
            kind = "a config with changes"
            did, document = mutated(random)
            how, text = spelt(random, document)
        kind = kind if how == "as it is" else f"{kind}, spelt otherwise"
        by_snakemake = random.random() < DRY_RUNS
        if by_snakemake:
            (here / "config").mkdir(exist_ok=True)
            (here / "config/config.yaml").write_bytes(text)
            ended = watched(dry_run, here)
            kind = f"snakemake --dry-run: {kind}"
        else:
            (work / "c.yaml").write_bytes(text)
            ended = watched(lambda: planned(work / "c.yaml"), here)
        found = fault(ended, by_snakemake) or written(place, pristine)
        if found:
            found = f"{found}: {how}, {did or ascii(text)}"
        yield Case(kind, found)
        for name in OURS:
            shutil.rmtree(here / name, ignore_errors=True)
        for file in TRIALS:
            (here / file).unlink(missing_ok=True)


def fault(ended: Ended, by_snakemake: bool) -> str | None:
    if by_snakemake and ended.status and "Traceback" in ended.output:
        return f"a traceback: {ended.output[-300:]}"
    return wrong(ended)


# What a dry run may write; the config and the lock are the trial's own.
OURS = (".snakemake", "resources")
TRIALS = ("config/config.yaml", str(LOCK_FILE))


def written(place: Path, pristine: dict[str, tuple]) -> str | None:
    here = place / "project"
    found = listing(place, here / ".snakemake", here / "resources/contents.json")
    for name in ("resources", *TRIALS):
        found.pop(f"project/{name}", None)
    changed = [n for n in found.keys() | pristine.keys() if found.get(n) != pristine.get(n)]
    return f"writes {changed[:3]}" if changed else None
