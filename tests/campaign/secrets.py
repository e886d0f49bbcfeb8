"""Secrets of the user's: in none of our files, messages, pages and command lines.

Tokens and keys are planted where people have them: in the environment, in the hub's cache, in
addresses, in files of keys. Then runs plan, lock, check, build, publish and audit against the
stand-in hub, some of which fail. What they printed, every file that they have left (but those in
which a secret was planted), what was published, and the command lines of all their processes
meanwhile are searched.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import yaml

from campaign import Case
from project import ROOT, command_line
from test_keys import make_pair

sys.path.insert(0, str(ROOT / "tests/hub"))
from hubtest import environment  # noqa: E402
from standin import Fault, Hub  # noqa: E402

TEXT = "The quick brown fox reads a book.\n" * 400
ACTIONS: dict[str, tuple[str, ...]] = {
    "a plan": ("plan",),
    "a dry run with commands": ("--dry-run", "--printshellcmds", "--quiet", "progress"),
    "a lock": ("lock",),
    "a preflight": ("preflight",),
    "a build": ("--printshellcmds", "--verbose"),
    "why": ("why",),
    "a plan to publish": ("publish_plan",),
    "a publication": ("publish",),
    "a page of all models": ("gallery",),
    "a look at the store": ("store",),
    "an audit": ("audit", "--config", "repo=acme/M-GGUF"),
}
SECONDS = 240


class Place:
    """A working directory, with the hub and the secrets of one user.

    secrets: {where it is: the secret}.
    """

    def __init__(self, random: Random, hub: Hub, directory: Path, model: dict[str, bytes]):
        self.random, self.hub, self.here = random, hub, directory / "work"
        self.home, self.keys = directory / "hf", directory / "keys"
        for path in (self.here, self.home, self.keys):
            path.mkdir(parents=True)
        self.secrets: dict[str, str] = {}
        self.env = environment(hub, self.home) | {"NO_COLOR": "1"}
        hub.add_repo("acme/base", model, private=True, readers={"alice"})
        hub.plain["text.txt"] = TEXT.encode()
        self.key, _ = make_pair(self.keys, "ours")
        self.secrets["a private key"] = self.key.read_text().splitlines()[1]
        self._login()
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"):
            self.env[name] = self.new(f"{name} in the environment")
        self.corpus = {"path": "text.txt"}
        (self.here / "text.txt").write_text(TEXT)
        (self.here / "other.txt").write_text(TEXT.replace("fox", "hare").replace("book", "map"))

    def new(self, where: str) -> str:
        """A new secret."""
        self.secrets[where] = f"S{self.random.randrange(16**24):024x}"
        return self.secrets[where]

    def _login(self) -> None:
        in_cache = self.random.random() < 0.5
        token = self.new("a token in the cache" if in_cache else "HF_TOKEN")
        self.hub.add_user(token, "alice", orgs=("acme",))
        if in_cache:
            (self.home / "token").write_text(token)
        else:
            self.env["HF_TOKEN"] = token

    def with_addresses(self) -> str | None:
        """Perhaps put secrets into addresses; what about them should be refused."""
        kind = self.random.choice(["none", "user", "query", "endpoint", "store", "proxy", "source"])
        user = f"alice:{self.new(f'an address ({kind})')}@" if kind != "none" else ""
        secret = user[6:-1]
        address = self.hub.url.replace("://", f"://{user}")
        if kind == "user":
            self.corpus = {"url": f"{address}/plain/text.txt", "sha256": "0" * 64}
        elif kind == "query":
            name = self.random.choice(["token", "X-Amz-Signature", "access_token", "sig", "key"])
            url = f"{self.hub.url}/plain/text.txt?download=true&{name}={secret}"
            self.corpus = {"url": url, "sha256": "0" * 64}
        elif kind == "endpoint":
            self.env["HF_ENDPOINT"] = address
        elif kind == "store":
            where = [
                f"s3://{user}bucket/x",
                f"s3://bucket/x?secret={secret}",
                f"alice:{secret}@host",
            ]
            self.env["QUANTMILL_STORE"] = self.random.choice(where)
        elif kind == "proxy":
            self.env |= {"HTTPS_PROXY": f"http://{user}127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
        return kind

    def config(self, kind: str | None) -> dict:
        source = "acme/base"
        if kind == "source":
            source = f"https://alice:{self.secrets['an address (source)']}@huggingface.co/acme/base"
        gguf = {
            "imatrix": {"corpus": "calibration", "chunks": 1, "context": 64},
            "quants": ["Q4_0"],
        }
        publish = {"gguf": "acme/M-GGUF", "license": "mit", "sign": {"key": str(self.key)}}
        model = {"source": source, "gguf": gguf, "publish": publish}
        model["evaluate"] = {"context": 128, "chunks": 3}
        texts = {"calibration": self.corpus, "evaluation": {"path": "other.txt"}}
        return {"corpora": texts, "models": {"M": model}}

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        """(status, what it printed, the command lines of its processes) of Snakemake."""
        (self.here / "c.yaml").write_text(yaml.safe_dump(self.config(self.kind)))
        command = [*command_line(self.here), *arguments, "--configfile", "c.yaml"]
        with (self.here.parent / "output").open("w+b") as file:
            child = subprocess.Popen(
                command, cwd=self.here, env=self.env, stdout=file, stderr=subprocess.STDOUT
            )
            seen: dict[str, None] = {}
            watch = threading.Thread(target=_command_lines, args=(child.pid, seen), daemon=True)
            watch.start()
            try:
                status = child.wait(SECONDS)
            except subprocess.TimeoutExpired:
                child.terminate()
                status = child.wait()
            watch.join()
            file.seek(0)
            return status, file.read().decode(errors="replace"), list(seen)

    kind: str | None = None


def _command_lines(pid: int, seen: dict[str, None]) -> None:
    """Note the command line of a process and of all below it, until it ends."""
    try:
        top = psutil.Process(pid)
        while top.is_running() and top.status() != psutil.STATUS_ZOMBIE:
            for process in (top, *top.children(recursive=True)):
                try:
                    seen[" ".join(process.cmdline())] = None
                except psutil.Error:
                    continue
            time.sleep(0.02)
    except psutil.Error:
        return


def tiny(directory: Path) -> dict[str, bytes]:
    """The files of a model that can be built."""
    code = "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; "
    code += "from tiny_models import *; p = Path(sys.argv[1]); make_sentencepiece(make_llama(p))"
    subprocess.run([sys.executable, "-c", code, directory, ROOT / "tests"], check=True)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def cases(random: Random, work: Path) -> Iterator[Case]:
    """Trials without end: for each run one of each secret that was planted."""
    model = tiny(work / "model")
    number = 0
    while True:
        number += 1
        directory = work / str(number)
        with Hub() as hub:
            place = Place(random, hub, directory, model)
            place.kind = place.with_addresses()
            names = list(ACTIONS)
            chosen = ["a build", "a publication"] if number % 4 == 1 else []
            chosen = [*random.sample(names[:4], 2), *chosen, random.choice(names)]
            for name in chosen:
                if random.random() < 0.2:
                    match, status = (
                        random.choice(["GET", "POST", "acme"]),
                        random.choice([500, 404]),
                    )
                    hub.faults.append(Fault(match, status=status, times=9))
                yield from tried(place, name)
                hub.faults.clear()
        shutil.rmtree(directory, ignore_errors=True)


def tried(place: Place, name: str) -> Iterator[Case]:
    """A run, searched for each secret."""
    status, output, commands = place.run(*ACTIONS[name])
    words = "\n".join(commands).encode(errors="surrogateescape")
    where = {"what it printed": output.encode(), "a command line": words}
    for path in sorted(place.here.rglob("*")):
        if path.is_file() and path.name != "c.yaml" and not path.is_symlink():
            where[str(path.relative_to(place.here))] = path.read_bytes()
    for path in place.home.rglob("*"):
        if path.is_file() and path.name not in ("token", "stored_tokens"):
            where[f"the cache: {path.name}"] = path.read_bytes()
    for (_, repo), published in place.hub.repos.items():
        where |= {f"{repo}: {n}": data for n, data in published.files().items()}
    for planted, secret in place.secrets.items():
        found = [there for there, data in where.items() if secret.encode() in data]
        told = f"{planted} is in {', '.join(found[:4])} after {name}" if found else None
        yield Case(f"{planted}: {name}", told)
    undisturbed = place.kind in ("none", "proxy") and not place.hub.faults
    if status and undisturbed and name in ("a build", "a publication"):
        yield Case(f"words: {name}", f"it failed without a reason: {output[-400:]!r}")
    if "Traceback" in output and "--verbose" not in ACTIONS[name]:
        yield Case(f"words: {name}", f"a traceback ({place.kind}): {output[-400:]!r}")
