"""Helpers of the hub's tests: scripts run as builds run them, as programs with an environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

from standin import Hub

from lib.report.looks import Looks
from lib.stages.registry import FAMILIES

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "scripts"
MODEL = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 256}',
    "tokenizer.json": b'{"model": {"vocab": {"a": 0}}}',
    "model.safetensors": bytes(range(256)) * 4000,
    "README.md": b"---\nlicense: apache-2.0\n---\n# Base\n",
    "pytorch_model.bin": b"pickled",
    "original/consolidated.00.pth": b"pickled too",
}


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """That of a program whose hub is the stand-in. home: of its cache."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return keep | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        # The stand-in has no xet storage; only uploads would notice (see docs/hub.md).
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


class Workdir:
    """A working directory with its own Hugging Face cache."""

    def __init__(self, path: Path, hub: Hub) -> None:
        self.path, self.home = path / "work", path / "hf"
        self.path.mkdir()
        self.env = environment(hub, self.home)

    def run(self, script: str, *args: object, stdin: str = "", **env: str):
        """Run scripts/`script`; the finished process, its output as text."""
        command = [sys.executable, str(SCRIPTS / script), *map(str, args)]
        return subprocess.run(
            command, cwd=self.path, env=self.env | env, input=stdin, text=True,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    def card(self, forms: object, about: object, output: str):
        """Run scripts/card.py, with the families as a build leaves them."""
        families = self.path / "families.json"
        families.write_text(Looks.of(FAMILIES.values()).to_json())
        given = ("--forms", forms, "--about", about, "--families", families)
        return self.run("card.py", *given, "--output", output)

    def lock(self, *refs: str | dict, args: tuple = (), **env: str):
        sources = [{"ref": ref} if isinstance(ref, str) else ref for ref in refs]
        return self.run("hub_lock.py", "--sources", "-", *args, stdin=json.dumps(sources), **env)

    def fetch(self, ref: str, output: str = "out", *args: object, **env: str):
        return self.run("hub_fetch.py", ref, *args, "--output", output, **env)


def ok(done) -> str:
    """The output of a process that must have succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(done) -> str:
    """The message of a process that must have refused: its stderr, which holds no traceback."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr
