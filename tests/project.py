"""A small project with real tools: two merges, one of them of the other, and a plain model.

Its models are random Llamas of 1.4 million parameters, so that no step takes more than its tool's
start.
"""

import copy
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

import fresh
from lib.planning.staleness import State
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.wanted import WantedRecipe
from lib.run.session import Session
from task_texts import make_tasks
from tiny_models import make_adapter, make_models, make_mtp, make_texts, make_vision

ROOT = Path(__file__).resolve().parent.parent
CONFIG: dict[str, Any] = {
    "corpora": {
        "calibration": {"path": "data/calibration.txt"},
        "evaluation": {"path": "data/evaluation.txt"},
    },
    "models": {
        "Base": {"source": "./m/base"},
        "Mix": {
            "merge": {
                "merge_method": "dare_linear",  # drops weights at random, so that the seed matters
                "base_model": "Base",
                "models": [
                    {"model": "./m/code", "parameters": {"weight": 0.6, "density": 0.5}},
                    {"model": "./m/prose", "parameters": {"weight": 0.4, "density": 0.7}},
                ],
                "dtype": "bfloat16",
            },
            "random_seed": 42,
            "gguf": {
                "imatrix": {"chunks": 4, "context": 128},
                "quants": [
                    "Q8_0",
                    {
                        "name": "mixed",
                        "type": "Q4_K_M",
                        "token_embedding_type": "q8_0",
                        "output_tensor_type": "q5_0",
                    },
                    {"name": "static", "type": "Q4_0", "imatrix": False},
                ],
                "split_max_size": "1M",
            },
            "evaluate": {"context": 128, "chunks": 3},
        },
        "Two": {
            "merge": {
                "merge_method": "slerp",
                "base_model": "Mix",
                "models": [{"model": "Mix"}, {"model": "./m/prose"}],
                "parameters": {"t": 0.4},
                "dtype": "bfloat16",
            },
            "gguf": {"imatrix": False, "quants": ["Q8_0"]},
        },
        "Plain": {"source": "./m/prose", "gguf": {"imatrix": False, "quants": ["Q4_0"]}},
    },
}
FORMS = {"Mix": ["Q8_0", "mixed", "static"], "Two": ["Q8_0"], "Plain": ["Q4_0"]}

# A model of every kind of artifact, for what is only planned.
EVERYTHING: dict[str, Any] = {
    "corpora": {
        **CONFIG["corpora"],
        "demo": {"path": "resources/demo/text/calibration.txt"},
    },
    "models": {
        **CONFIG["models"],
        "All": {
            "merge": {
                "merge_method": "linear",
                "models": [
                    {"model": model, "parameters": {"weight": 0.5}}
                    for model in ("./m/code", "./resources/demo/code")
                ],
                "dtype": "bfloat16",
            },
            "similarity": {"base": "Base"},
            "gguf": {
                "imatrix": {"corpus": "demo"},
                "quants": [
                    "Q8_0",
                    "Q4_K_M",
                    {"name": "Small", "target_bpw": 7},
                    {"name": "Close", "max_kld": 0.5},
                ],
                "mixes": {"chunks": 2, "types": ["q4_0", "q5_0", "q8_0"]},
                "split_max_size": "1M",
                "metadata": {"general.license": "mit"},
                "lora": {"poet": "./m/poet"},
            },
            "exl2": {"bits": [3, 5.0]},
            "exl3": {"bits": [3, 5.0]},
            "compressed_tensors": {
                "schemes": ["FP8_DYNAMIC", {"scheme": "NVFP4", "corpus": "demo"}]
            },
            "mlx": {"forms": [4, "mxfp4"]},
            "evaluate": {"tasks": {"hellaswag": "data/hellaswag.txt"}, "harness": True},
            "publish": {
                "gguf": "a/All-GGUF",
                "exl2": "a/All-exl2",
                "exl3": "a/All-exl3",
                "compressed_tensors": "a/All-{form}",
                "mlx": "a/All-mlx-{form}",
                "safetensors": "a/All",
            },
        },
        "Mixed": {
            "moe": {
                "base_model": "Base",
                "gate_mode": "cheap_embed",
                "dtype": "bfloat16",
                "experts": [
                    {"source_model": "Two", "positive_prompts": ["def"]},
                    {"source_model": "./m/prose", "positive_prompts": ["The library"]},
                ],
            },
            "gguf": {"quants": ["Q4_0"]},
        },
        "Told": {
            "source": "./m/prose",
            "extract_lora": {"base": "Base", "adapters": {"prose": {"rank": 16}}},
        },
        "Seeing": {"source": "./m/seeing", "gguf": {"quants": ["Q8_0"], "mmproj": True}},
        "Guessing": {"source": "./m/guessing", "gguf": {"quants": ["Q8_0"], "mtp": True}},
    },
    "studies": {
        "Grid": {
            "merge": {
                "merge_method": "linear",
                "models": [
                    {"model": "./m/code", "parameters": {"weight": "$w"}},
                    {"model": "./m/prose", "parameters": {"weight": 0.5}},
                ],
                "dtype": "bfloat16",
            },
            "vary": {"w": [0.3, 0.5]},
            "measure": {"perplexity": ["evaluation"], "kld": ["evaluation"]},
        },
    },
}


def of(model: str, *names: str) -> set[str]:
    """Paths of a model's artifacts.

    `Q8_0` is a quant or the conversion, `Q8_0/shards` are its shards, and so on.
    """
    places = {
        "merge": "safetensors",
        "imatrix": "imatrix.dat",
        "base": "evaluation/base.kld",
        "report": "report/quality.csv",
        "card": "README.md",
    }

    def place(name: str) -> str:
        form, _, kind = name.partition("/")
        if kind:
            return f"shards/{form}" if kind == "shards" else f"evaluation/{form}.json"
        return places.get(name) or f"gguf/{model}-{name}.gguf"

    return {f"results/{model}/{place(name)}" for name in names}


def evaluations(model: str = "Mix") -> set[str]:
    """Every evaluation of a model, the base logits, and what shows them."""
    forms = [f"{form}/evaluation" for form in ["BF16", *FORMS[model]]]
    return of(model, "base", *forms, "report", "card")


def shards(model: str = "Mix", *forms: str) -> set[str]:
    return of(model, *(f"{form}/shards" for form in forms or FORMS[model]))


def everything(model: str) -> set[str]:
    """All that is built of a model but its sources."""
    made = of(model, "BF16", *FORMS[model], "report", "card")
    if model != "Plain":
        made |= of(model, "merge")
    if model == "Mix":
        made |= of(model, "imatrix") | evaluations() | shards()
    return made


def copy_workflow(to: Path) -> Path:
    """A copy of the workflow, to edit."""
    for name in ("scripts", "rules", "profiles", "config", "envs", "report"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", to)
    return to


def snakemake(
    directory: Path, *arguments: str, repository: Path = ROOT, timeout: float = 900
) -> subprocess.CompletedProcess:
    """Run Snakemake on two cores; stdout has stderr too."""
    return fresh.snakemake([*words(directory, repository), *arguments], timeout)


def command_line(directory: Path, repository: Path = ROOT) -> list[str]:
    """How Snakemake is called, without a target."""
    return [sys.executable, "-m", "snakemake", *words(directory, repository)]


def words(directory: Path, repository: Path = ROOT) -> list[str]:
    """Snakemake's arguments but for a target."""
    where = ["--snakefile", str(repository / "Snakefile"), "--directory", str(directory)]
    return [*where, "--cores", "2"]


class Project:
    """A working directory with its config, which is written before each run."""

    def __init__(self, path: Path, config: dict[str, Any], repository: Path = ROOT):
        self.path, self.config, self.repository = path, config, repository
        self.text: str | None = None  # the config as it is to be spelt; None: as YAML writes it
        self.more_configs: list[str] = []

    @classmethod
    def create(cls, path: Path) -> "Project":
        """The models and texts, nothing built."""
        make_models(path / "m", "code", "prose")
        make_vision(path / "m/seeing")
        make_mtp(path / "m/guessing")
        make_adapter(path / "m/poet")
        make_texts(path / "data", 100)
        make_tasks(path / "data")
        return cls(path, copy.deepcopy(CONFIG))

    def copy(self, to: Path) -> "Project":
        """All of it elsewhere: attributes kept, as `cp -a` does; other inodes and ctimes."""
        subprocess.run(["cp", "-a", self.path, to], check=True)
        return Project(to, copy.deepcopy(self.config), self.repository)

    def model(self, name: str) -> dict[str, Any]:
        return self.config["models"][name]

    @property
    def quants(self) -> list:
        """Mix's."""
        return self.model("Mix")["gguf"]["quants"]

    def __truediv__(self, path: str) -> Path:
        return self.path / path

    def write(self) -> None:
        (self / "c.yaml").write_text(self.text or yaml.safe_dump(self.config, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        """The command line of a run, with the config written."""
        return [sys.executable, "-m", "snakemake", *self.words(*arguments)]

    def words(self, *arguments: str) -> list[str]:
        """Snakemake's arguments for a run, with the config written."""
        self.write()
        configs = [str(self / name) for name in ("c.yaml", *self.more_configs)]
        return [*words(self.path, self.repository), *arguments, "--configfile", *configs]

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run Snakemake; what it wrote."""
        done = fresh.snakemake(self.words(*arguments))
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def build(self, *arguments: str) -> str:
        return self.run(*arguments)

    def plan(self, *arguments: str) -> set[str]:
        """The artifacts that a run would build: the first output of every job of a dry run."""
        said = self.run("--quiet", "host", "--dry-run", *arguments)
        found = re.findall(r"^ +output: ([^,\n]+)", said, re.M)
        assert len(found) == len(set(found)), said
        return set(found)

    def files(self) -> dict[str, tuple]:
        """{path: (inode, mtime, ctime)} under results and resources; links are not followed.

        Without what is no artifact: the cache of hashes, and the gallery, which each build renews.
        """
        found = {}
        for top in ("results", "resources"):
            for path in (self / top).rglob("*"):
                if not path.is_dir() or path.is_symlink():
                    stat = path.lstat()
                    name = path.relative_to(self.path).as_posix()
                    found[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        for path in ("resources/contents.json", "results/index.html"):
            found.pop(path, None)
        return found

    def digests(self) -> dict[str, str]:
        """{path: sha256} of every weight file, importance matrix and evaluation."""
        suffixes = (".safetensors", ".gguf", ".dat")
        paths = (p for p in (self / "results").rglob("*") if p.suffix in suffixes)
        return {p.relative_to(self.path).as_posix(): sha256(p) for p in sorted(paths)}


class Planned:
    """A working directory in which all artifacts are marked as built by the config's recipes."""

    def __init__(self, config: dict):
        self.config = config
        for made in self.session().graph:
            self.mark(made)

    def session(self) -> Session:
        return self.open(self.config)

    @staticmethod
    def open(config: dict) -> Session:
        """The graph and the plan of a config in the working directory."""
        settings = SimpleNamespace(
            forceall=False, forcetargets=False, forcerun=set(), targets=set()
        )
        return Session(copy.deepcopy(config), lambda: settings, True)

    def mark(self, made: Artifact) -> None:
        """Write stand-ins for an artifact and all that it is made from, with their records."""
        if recipes.read(made.path):
            return
        for up in (*made.inputs.values(), *made.uses.values()):
            self.mark(up)
        inputs = {role: recipes.read(up.path).sha256 for role, up in made.inputs.items()}
        for path in made.outputs:
            files = {}
            if made.directory:
                Path(path).mkdir(parents=True)
                Path(path, "file").write_text(path)
                files = {"file": [len(path), ""]}
            else:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(path)
            content = (path, made.recipe, made.digest, len(path), made.digest, files, inputs)
            recipes.write(recipes.Record(*content))

    def plan(self) -> set[str]:
        """What a run would build: what is stale, and what has to be there for it."""
        session, found = self.session(), set()
        todo = [session.find(path) for path in session.asked()]
        while todo:
            made = todo.pop()
            if made.path not in found:
                found.add(made.path)
                needed = (*made.inputs.values(), *made.uses.values())
                todo += [up for up in needed if session.plan.state(up) is not State.FRESH]
        return found


def owner(path: str, artifacts: set[str]) -> str | None:
    """The artifact of this set to which a file belongs: its content, record or other output."""
    plain = path.removesuffix(".recipe.json")
    for made in artifacts:
        stem = made.removesuffix(".csv") if made.endswith("/quality.csv") else None
        if plain == made or path.startswith(f"{made}/") or (stem and plain.startswith(stem)):
            return made
    return None


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def append(path: Path, line: str) -> None:
    """Add a line to a file."""
    with path.open("a") as file:
        file.write(line)


def lie_about_mtimes(directory: Path) -> None:
    """Give every file another mtime, in an order that has nothing to do with what was made when."""
    for number, path in enumerate(sorted(directory.rglob("*"), key=lambda p: sha_of_name(p))):
        if path.is_file() or path.is_symlink():
            seconds = 1_500_000_000 + number * 100_000
            os.utime(path, (seconds, seconds), follow_symlinks=False)


def leave_wanted(path: Path, recipe: dict, inputs: dict | None = None) -> Path:
    """A wanted recipe of nothing in particular, as the plan leaves one for a step's programs."""
    wanted = WantedRecipe("it", ("it",), False, False, "rule", "digest", recipe, inputs or {})
    path.write_text(wanted.to_json())
    return path


def sha_of_name(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()
