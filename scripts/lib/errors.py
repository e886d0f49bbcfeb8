"""A user's mistake, and the one handler with which every program ends.

A UserError ends a program with `PROGRAM: message` on stderr, a line a problem, and status 1. An
interrupt (Ctrl-C) ends it with status 130, a reader that has gone (`| head`) with 141, both without
a word. Everything else is a bug of ours and keeps its traceback.

So does an OSError, for most mean that the program lost its way; but not two kinds: one about a file
or directory that the command line names, or something in it (missing, unreadable, not to be
written: nobody knows better than the operating system, and no place that opens a file need say it
again), and a full disk. A file that is named elsewhere, in a config or a recipe, is turned into a
UserError by the place that opens it.

How a program ends decides no bytes: lib/record/code.py leaves this module out of what it counts, so
nothing that decides belongs here. Standard library only; all other rooms may import it.
"""

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# As a shell tells of a program that was ended by SIGINT or SIGPIPE.
INTERRUPTED, READER_GONE = 130, 141


class UserError(Exception):
    """Something that the user can mend: in a config, in a file, on the command line, on the machine.

    The message says which key or file and what to do, in one line; several problems are a line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))

    @property
    def lines(self) -> list[str]:
        """The problems, a line each."""
        return str(self).splitlines()


def program(main: Callable[[], int | None], prefix: str | None = None) -> NoReturn:
    """Run a program and end this process: with what `main` returns as its status, nothing being 0.

    prefix: what a line about a mistake begins with; the program's name where it is left out.
    """
    if prefix is None:
        prefix = f"{Path(sys.argv[0]).stem.removeprefix('ask_')}: "
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # what is told of a mistake stands last, in a log too
    except UserError as error:
        lines = error.lines
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        sys.exit(READER_GONE)
    except OSError as error:
        if not _is_the_users(error):
            raise
        lines = [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    else:
        sys.exit(status)
    print("\n".join(f"{prefix}{line}" for line in lines), file=sys.stderr)
    sys.exit(1)


def _is_the_users(error: OSError) -> bool:
    """Whether it is about a full disk, or about what the command line names or what lies in that."""
    if error.errno in DISK_FULL:
        return True
    if not isinstance(error.filename, str | os.PathLike):
        return False
    words = [Path(part) for word in sys.argv[1:] for part in (word, word.partition("=")[2])]
    file = Path(error.filename).absolute()
    return any(file.is_relative_to(word.absolute()) for word in words if word.parts)


def plainly(ask: Callable) -> Callable:
    """For what Snakemake calls: a user's mistake ends it with the message alone.

    Snakemake (9.27.1) shows any other exception with the rule's lines or with a traceback.
    """

    @wraps(ask)
    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            return ask(*args, **kwargs)
        except UserError as error:
            sys.exit(str(error))

    return asked
