"""Working directories of tiny models, and runs of `snakemake --profile profiles/slurm` in them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {
    "corpora": {
        "calibration": {"path": "models/calibration.txt"},
        "evaluation": {"path": "models/evaluation.txt"},
    },
    "models": {
        "M": {
            "merge": {
                "merge_method": "linear",
                "models": [
                    {"model": "./models/a", "parameters": {"weight": 0.5}},
                    {"model": "./models/b", "parameters": {"weight": 0.5}},
                ],
                "dtype": "bfloat16",
            },
            "gguf": {
                "imatrix": {"chunks": 2},
                "quants": ["Q8_0", "Q4_K_M"],
                "split_max_size": "1M",
            },
            "evaluate": {"chunks": 2},
        }
    },
}
TOOLS = "resources/llama.cpp/bin"
# Runs a tool's real program after the test's own lines, which see the arguments and may end it. The
# plan asks the tools for sizes on the login node.
WRAPPER = """\
#!/bin/bash
[ -n "$SLURM_JOB_ID" ] || exec {real} "$@"
{before}
{real} "$@"
status=$?
{after}
exit $status
"""


def write_config(here: Path, quants: list | None = None) -> None:
    """The config of the working directory, with other quants if they are given."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    if quants is not None:
        config["models"]["M"]["gguf"]["quants"] = quants
    (here / "config").mkdir(exist_ok=True)
    (here / "config/config.yaml").write_text(yaml.safe_dump(config))


def snakemake(here: Path) -> list[str]:
    """The command that builds in a working directory by its own config/config.yaml."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    return [*command, "--directory", str(here)]


class Run:
    """One `snakemake --profile profiles/slurm` in a working directory. Every wait has a bound."""

    def __init__(
        self,
        cluster: Cluster,
        here: Path,
        *arguments: str,
        patience: int = 60,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster, self.here = cluster, here
        site = here / "site.yaml"
        site.write_text(
            "partition: cpu\ngpu_partition: gpu\ngpu_model: h200\n"
            f"tmpdir: {here}/scratch/$SLURM_JOB_ID\n"
        )
        env = {
            **cluster.env,
            **(variables or {}),
            "QUANTMILL_SLURM_SITE": str(site),
            "QUANTMILL_SLURM_PATIENCE": str(patience),
            "PATH": f"{Path(sys.executable).parent}:{cluster.env['PATH']}",
        }
        self.log = here / f"run-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *snakemake(here),
                    "--profile",
                    str(REPOSITORY / "profiles/slurm"),
                    "--seconds-between-status-checks=1",
                    "--latency-wait=5",
                    *arguments,
                ],
                stdout=log,
                stderr=log,
                env=env,
            )

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def until(self, met: Callable[[], object], what: str, seconds: float = 90) -> None:
        """Wait until something is true; fail when the run ends before, or at the bound."""
        end = time.monotonic() + seconds
        while not met():
            if time.monotonic() > end or self.process.poll() is not None:
                jobs = "\n".join(map(str, self.cluster.jobs()))
                pytest.fail(f"{what} did not come about\n{self.text}\n{jobs}\n{self.slurm_logs()}")
            time.sleep(0.2)

    def wait(self, seconds: float = 240) -> int:
        """Its exit status; a run that has not ended by then hangs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            jobs = "\n".join(map(str, self.cluster.jobs()))
            pytest.fail(f"still running after {seconds} s\n{self.text}\n{jobs}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        self.process.wait(60)

    def slurm_logs(self) -> str:
        """What the jobs that failed left behind."""
        logs = sorted((self.here / "logs/slurm").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in logs)


def wrap(here: Path, tool: str, before: str = "", after: str = "") -> None:
    """Put lines of shell around a tool of this directory, whose recipes do not notice it."""
    link = here / TOOLS / tool
    real = os.path.realpath(link)
    link.unlink()
    link.write_text(WRAPPER.format(real=real, before=before, after=after))
    link.chmod(0o755)
