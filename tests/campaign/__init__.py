"""Faults, tried at random: `python tests/campaign --help`, and docs/reliability.md for the results.

Each module of FAMILIES tries one kind of fault. It has

    cases(random, work)   yields a Case for each trial, without end; all that is left to chance
                          comes from `random`, all that is written lies under `work`

A trial that holds is a Case with `fault` None. What does not hold is told in `fault`, in one line
from which somebody can repeat it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One trial.

    kind: what was tried, in the words of docs/reliability.md. fault: what did not hold; None if
    all did.
    """

    kind: str
    fault: str | None = None


FAMILIES: dict[str, str] = {
    "configs": "configs of every shape, from the schema and from examples",
    "secrets": "tokens and keys of the user, in what is written and shown",
    "models": "models, adapters and matrices that mean harm",
    "kills": "processes of a build killed, stopped or asked to end",
    "disks": "file systems that fill up, become read-only, or lose what was not flushed",
    "networks": "a network file system with two clients, whose server goes away",
    "memory": "processes that the kernel kills for the memory that they ask for",
    "clocks": "clocks that jump, that differ by host, and time zones",
    "sources": "files from outside that change while a build reads them",
    "hubs": "a hub that moves and fails while a build asks it, and caches with wrong files",
    "lies": "tools that end well and made something else, or ill and made it",
}
"""{module: what it tries}."""
