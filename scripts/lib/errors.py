"""UserError, the class for a user's mistakes, and `program`, which ends every program.

How a program ends:

- A UserError prints `PROGRAM: message` on stderr, one line for each problem. The status is 1.
- An interrupt (Ctrl-C) prints nothing. The status is 130.
- A reader that closes the pipe (`| head`) prints nothing. The status is 141.
- Any other exception is a bug of Quantmill's and keeps its traceback.

Most OSErrors are bugs too. Two kinds are not, and no code needs to catch them: a full disk, and an
error about a file or directory that the command line names, or about something inside it (it is
missing, unreadable or not writable). They end like a UserError, with the operating system's
message. Code that opens a file which is named elsewhere (in a config, in a recipe) raises a
UserError itself.

How a program ends decides no bytes, so lib/record/code.py does not count this module. Keep code
that decides bytes out of it. It imports lib/units alone; every module may import it.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from lib.units import printable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Secrets in addresses: a user and a password, also where show() has cut off what follows, and the
# values of keys that give access.
IN_ADDRESS = re.compile(
    r"(?<=://)[^/\s'\"]+(?=@| …)"
    r"|(?<=[?&])([\w.-]*(?:token|key|secret|passw(?:or)?d|auth|sig|signature|credential)=)"
    r"[^&\s'\"#]+",
    re.IGNORECASE,
)
# The statuses that a shell reports for a program that SIGINT or SIGPIPE has ended.
INTERRUPTED, READER_GONE = 130, 141


class UserError(Exception):
    """A mistake that the user can repair: in a config, a file, the command line or the machine.

    Each of `lines` is one problem. It names the key or the file, and says what to do. It may quote
    what somebody else has written: signs that would do something to a terminal are spelt out, and
    secrets in addresses are left out.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(shown, "\n".join(lines).split("\n"))))

    @property
    def lines(self) -> list[str]:
        """The problems, one line each."""
        return str(self).splitlines()


def shown(text: str) -> str:
    """A line for a terminal or a log: printable, without secrets in addresses."""
    return printable(IN_ADDRESS.sub(lambda found: f"{found[1] or ''}…", text))


def has_secret(address: str) -> bool:
    """Whether an address has a user, or a key that gives access."""
    return bool(IN_ADDRESS.search(address))


def program(main: Callable[[], int | None], prefix: str | None = None) -> NoReturn:
    """Call `main` and end this process. The status is what `main` returns; None counts as 0.

    prefix: the text before each line of a UserError; by default the program's name and a colon.
    """
    if prefix is None:
        prefix = f"{Path(sys.argv[0]).stem.removeprefix('ask_')}: "
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # so that a UserError comes last, in a log too
    except UserError as error:
        lines = error.lines
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again
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
    """Whether the disk is full, or the command line names the file or a directory above it."""
    if error.errno in DISK_FULL:
        return True
    if not isinstance(error.filename, str | os.PathLike):
        return False
    words = [Path(part) for word in sys.argv[1:] for part in (word, word.partition("=")[2])]
    file = Path(error.filename).absolute()
    return any(file.is_relative_to(word.absolute()) for word in words if word.parts)


def plainly(ask: Callable) -> Callable:
    """Decorate a function that Snakemake calls: a UserError then ends Snakemake with its message,
    and a full disk does.

    Without this, Snakemake (9.27.1) adds the rule's lines or a traceback to the message.
    """

    @wraps(ask)
    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            return ask(*args, **kwargs)
        except UserError as error:
            sys.exit(str(error))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            sys.exit(f"{error.filename or Path.cwd()}: {error.strerror}")

    return asked
