"""Models that mean harm: planned, checked before a build, described in a card, and built.

Each trial takes a good model, changes one thing (hostile.py), and asks programs of ours about it:
in forks that are watched (watched.py), some by a real build. Nothing may be written outside the
working directory, and nothing of the model be executed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import ask_plan
import ask_preflight
import card
from campaign import Case, hostile
from campaign.watched import CONTROL, listing, watched, wrong
from lib.errors import program
from lib.hub.lock import Lock
from lib.planning.publishing import base
from project import command_line

MACHINE = "[2, [], null, null]"
BUILT = 0.03
"""The share of trials that are built too."""
BUILD_S = 300
# What a model may be asked for, beside its GGUF.
SECTIONS: list[dict[str, Any]] = [
    {"gguf": {"quants": ["Q8_0", "Q4_K_M"]}},
    {"gguf": {"quants": [{"name": "Small", "target_bpw": 7}], "mmproj": True, "mtp": True}},
    {"mlx": {"forms": [4]}, "gguf": {"quants": ["BF16"]}},
    {"exl2": {"bits": 4}},
    {"compressed_tensors": {"schemes": ["FP8_DYNAMIC"]}, "exl3": {"bits": 3}},
]  # fmt: skip
TEXTS = {"corpora": {"evaluation": {"path": "text.txt"}, "calibration": {"path": "text.txt"}}}


def good(place: Path) -> Path:
    """A model with tokenizer and template, an adapter of it, a GGUF, an importance matrix.

    They are made in another process, since torch would be loaded into all forks.
    """
    code = "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; "
    code += "from tiny_models import *; p = Path(sys.argv[1]); "
    code += "make_llama(p / 'm', vocab=300, hidden=64, ffn=64); make_bpe(p / 'm', vocab=300); "
    code += "make_adapter(p / 'a', hidden=64)"
    tests = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code, place, tests], check=True)
    facts = json.loads((place / "m/tokenizer_config.json").read_text())
    facts["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (place / "m/tokenizer_config.json").write_text(json.dumps(facts))
    (place / "m/README.md").write_text("---\nlicense: mit\n---\n# x\n")
    (place / "g").mkdir()
    (place / "g/x.gguf").write_bytes(hostile.gguf_file())
    matrix = hostile.gguf_file(hostile.FIELDS | {"general.type": "imatrix"})
    (place / "g/imatrix.gguf").write_bytes(matrix)
    (place / "text.txt").write_text("a text\n" * 100)
    return place


def config(random: Random, kind: str) -> dict[str, Any]:
    """A config that reads what was changed."""
    if kind == "GGUF":
        section = random.choice(SECTIONS[:1]) | random.choice([{}, {"evaluate": {}}])
        return {**TEXTS, "models": {"M": {"source": "./g/x.gguf", **section}}}
    if kind == "importance matrix":
        file = random.choice(["./g/imatrix.gguf", "./g/imatrix.dat"])
        section = {"gguf": {"imatrix": {"file": file}, "quants": ["Q4_K_M"]}}
        return {**TEXTS, "models": {"M": {"source": "./m", **section}}}
    section = random.choice(SECTIONS)
    if kind == "adapter" and random.random() < 0.7:
        section = {"gguf": {"quants": ["Q8_0"], "lora": {"poet": "./a"}}}
        return {**TEXTS, "models": {"M": {"source": "./m", **section}}}
    second = "./good+./a" if kind == "adapter" else "./good"
    merge = {"merge_method": random.choice(["linear", "slerp", "ties"]), "dtype": "bfloat16"}
    merge |= {"models": [{"model": "./m"}, {"model": second}], "base_model": "./good"}
    merge["parameters"] = {"weight": 0.5, "density": 0.5, "t": 0.5}
    experts = [{"source_model": name, "positive_prompts": ["x"]} for name in ("./m", "./good")]
    moe = {"base_model": "./good", "gate_mode": "random", "dtype": "bfloat16", "experts": experts}
    made: dict[str, Any] = random.choice([{"source": "./m"}] * 3 + [{"merge": merge}, {"moe": moe}])
    if "merge" in made and kind != "adapter" and random.random() < 0.5:
        made |= {"similarity": {"base": "./good"}}
    if "source" in made and random.random() < 0.3:
        made |= {"extract_lora": {"base": "./good", "adapters": {"x": {"rank": 4}}}}
    if random.random() < 0.3:
        made |= {"allow_pickle": True}
    return {**TEXTS, "models": {"M": made | section}}


def asked(name: str, main: Callable[[], Any], *words: str) -> Callable[[], None]:
    """A program of ours, with a command line."""

    def call() -> None:
        sys.argv = [f"{name}.py", *words]
        program(main)

    return call


def questions(project: Path, tokenizer: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, the call) of what is asked about a config, which lies there as JSON."""
    given = ("--config", str(project / "c.json"))
    yield "plan", asked("ask_plan", ask_plan.main, *given, "--machine", MACHINE)
    yield "preflight", asked("ask_preflight", ask_preflight.main, *given, "--no-publish")
    words = ("--forms", "forms.json", "--about", "about.json", "--output", "README.md")

    def described() -> None:
        about = {"model": "M", "families": ["gguf"], "tokenizer": tokenizer}
        told = json.dumps(about | {"bases": [base("m", Lock())]})
        (project / "about.json").write_text(told)
        (project / "forms.json").write_text(json.dumps({"model": "M", "forms": []}))
        asked("card", card.main, *words)()

    yield "card", described


class Planted(HTMLParser):
    """Whether a page has the element that a model has tried to plant."""

    found = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= any("planted" in (value or "") for name, value in attrs if name == "onerror")


def shown(project: Path) -> str | None:
    """What of cards, pages and tables would do harm where it is shown."""
    ours = [project / "README.md", *(project / "results").rglob("*")]
    for path in ours:
        if path.suffix not in (".md", ".html", ".svg", ".csv") or not path.is_file():
            continue
        text = path.read_text(errors="backslashreplace")
        if found := CONTROL.search(text):
            return f"{path.name} has {found[0]!r}"
        page = Planted()
        page.feed(outside_code(text) if path.suffix == ".md" else text)
        if page.found:
            return f"{path.name} has an element of the model's"
    return None


def outside_code(text: str) -> str:
    """Where Markdown can have elements: no front matter, no blocks of code, nothing escaped."""
    kept, fence = [], ""
    text = re.sub(r"(?s)\A---\n.*?\n---\n", "", text)
    for line in text.splitlines():
        mark = line.lstrip()[: len(line.lstrip()) - len(line.lstrip().lstrip("`~"))]
        if not fence and len(mark) >= 3:
            fence = mark
        elif fence and line.strip() == mark and mark.startswith(fence):
            fence = ""
        elif not fence:
            kept.append(line)
    return re.sub(r"\\.", "", "\n".join(kept))


def built(project: Path) -> str | None:
    """What was wrong with a build, which may fail, but in words of ours or of a tool."""
    command = [*command_line(project), "--configfile", str(project / "c.json"), "--config"]
    command += ["ignore_preflight=true"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_S, cwd=project
        )
    except subprocess.TimeoutExpired:
        return f"a build of more than {BUILD_S} s"
    output = done.stdout.decode(errors="backslashreplace")
    if found := CONTROL.search(output):
        at = output[max(0, found.start() - 80) : found.end() + 20]
        return f"a build sends {found[0]!r} to a terminal: {at!r}"
    frames = output.split("Traceback")[1:]
    if any("site-packages" not in frame and "llama.cpp" not in frame for frame in frames):
        return f"a build ends in a traceback of ours: {output[-600:]!r}"
    return None


def cases(random: Random, work: Path) -> Iterator[Case]:
    """Trials without end."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    whole = good(work / "base")
    kinds, number = list(hostile.CHANGES), 0
    while True:
        for kind in kinds:
            number += 1
            place = work / str(number)
            yield trial(random, kind, whole, place)
            shutil.rmtree(place, ignore_errors=True)


def trial(random: Random, kind: str, whole: Path, place: Path) -> Case:
    project = place / "project"
    project.mkdir(parents=True)
    for name in ("m", "a", "g", "text.txt"):
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        copy(whole / name, project / name)
    shutil.copytree(whole / "m", project / "good")
    (place / "secret").write_text('{"a": "the secret"}')
    where = {"adapter": "a", "GGUF": "g", "importance matrix": "g"}.get(kind, "m")
    did = random.choice(hostile.CHANGES[kind])(random, project / where)
    given = config(random, kind)
    (project / "c.json").write_text(json.dumps(given))
    before = listing(place, *(project / name for name in OURS))
    tokenizer = "g/x.gguf" if kind == "GGUF" else "m"
    found = []
    for name, call in questions(project, tokenizer):
        ended = watched(call, project)
        if fault := wrong(ended):
            found.append(f"{name} {fault}")
        elif "the secret" in ended.output:
            found.append(f"{name} tells what lies outside")
        if name == "preflight" and ended.status:  # nothing is built then, and no card written
            break
    if random.random() < BUILT and not found:
        found += [fault] if (fault := built(project)) else []
    found += [fault] if (fault := shown(project)) else []
    after = listing(place, *(project / name for name in OURS))
    if after != before:
        changed = [
            name for name in after.keys() | before.keys() if after.get(name) != before.get(name)
        ]
        found.append(f"writes {changed[:3]}")
    told = f"{did}; {json.dumps(given['models'])[:200]}: {'; '.join(found)}" if found else None
    return Case(f"a hostile {kind}" if kind[0].islower() else f"hostile {kind}", told)


# What a run may write in the working directory.
OURS = (".snakemake", "resources", "results", "logs", "benchmarks", "about.json", "forms.json")
OURS += ("README.md",)
