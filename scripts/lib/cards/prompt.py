"""The format of a model's prompts, by its chat template: a program that somebody else has written.

It runs in a sandbox, in a process of its own that has little time and memory.
"""

import json
import os
import resource
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lib.units import printable

SAMPLE = (("system", "{system_prompt}"), ("user", "{prompt}"))
# Seconds of processor time and bytes of memory for all of a template's work, and characters of what
# it writes: the longest of usual models takes 0.1 s and writes 5,000.
SECONDS, MEMORY, LONGEST = 5, 256 << 20, 50_000


def prompt_format(source: str | None, tokens: dict[str, str]) -> str | None:
    """The chat template `source` applied to a system and a user message.

    tokens: {name: special token}. A template that refuses a system message gets the user message
    alone. None if there is no template, or it cannot be applied within the limits.
    """
    if source is None:
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _write(writing, source, tokens)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or len(text) > LONGEST:
        return None
    return "\n".join(map(printable, text.decode().split("\n")))


def _write(to: int, source: str, tokens: dict[str, str]) -> None:
    """Write the text into a pipe, and end this process: with status 0 if there is one."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_taken() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        text = _rendered(source, tokens)
        if text is not None and len(text) <= LONGEST:
            with os.fdopen(to, "wb") as pipe:
                pipe.write(text.encode())
            status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, there is no text
        pass
    finally:
        os._exit(status)


def _taken() -> int:
    """Bytes of addresses that this process has; without /proc, as many as it may come to."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 64 << 30


def _rendered(source: str, tokens: dict[str, str]) -> str | None:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    # Some templates print the date; the card must be the same every day.
    environment.globals["strftime_now"] = lambda _: "{date}"
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    for first in (0, 1):
        messages = [{"role": role, "content": text} for role, text in SAMPLE[first:]]
        try:
            return environment.from_string(source).render(
                messages=messages, add_generation_prompt=True, **tokens
            )
        except jinja2.TemplateError:
            continue
    return None


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))
