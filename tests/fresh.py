"""Snakemake in a process that knows nothing of the tests, without the second that its import takes.

A server of the standard library's has imported it, and forks itself for each run.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

TESTS = Path(__file__).parent


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """The server, started. What it imports is what Snakemake imports before it reads a workflow."""
    context = multiprocessing.get_context("forkserver")
    # smart_open is Snakemake's, and no requirement of ours, so tests/imported.py cannot import it.
    context.set_forkserver_preload(["imported", "smart_open"])
    with patch.dict(os.environ, PYTHONPATH=str(TESTS)):
        forkserver.ensure_running()
    return context


def snakemake(
    arguments: list[str],
    timeout: float = 1800,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Run `python -m snakemake ARGUMENTS`; stdout has stderr too.

    timeout: seconds. directory, environment: by default those of this process. Raises
    subprocess.TimeoutExpired after the timeout.
    """
    with tempfile.NamedTemporaryFile("r") as file:
        told = (arguments, dict(environment or os.environ), directory or os.getcwd(), file.name)
        process = _server().Process(target=_main, args=told)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout, file.read())
        return subprocess.CompletedProcess(arguments, process.exitcode, file.read())


def _main(
    arguments: list[str], environment: dict[str, str], directory: str | Path, output: str
) -> None:
    import snakemake.cli

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path = [os.getcwd(), *(place for place in sys.path if not _of_tests(place))]
    sys.argv = [str(Path(snakemake.cli.__file__).with_name("__main__.py")), *arguments]
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)
    try:
        snakemake.cli.main(arguments)
    finally:
        atexit._run_exitfuncs()  # the server's children end without


def _of_tests(place: str) -> bool:
    """Whether an entry of sys.path is one that the tests have added."""
    return Path(place) == TESTS.parent / "scripts" or Path(place).is_relative_to(TESTS)
