"""Files of tasks, as llama-perplexity takes them: read, and written anew.

    hellaswag        text, six lines a task: what comes before, the number of the right ending (0 to
                     3), the four endings
    winogrande       CSV without a head: number, sentence with a _ in it, two words for the _, the
                     number of the right one (1 or 2). Only a sentence with commas is in quotes
    multiple_choice  binary: the number of tasks, where each begins, the tasks: a question, its
                     answers with a label each (1: right), and a second such list, which is not
                     used. Numbers have 32 bits, little-endian; texts are UTF-8 after their length

The layouts are those of tools/perplexity/perplexity.cpp in llama.cpp b10605.
"""

import hashlib
import io
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import UserError

MOST_CHOICES = 100  # as many as the tool reads


class Task(NamedTuple):
    """Of `choices`, a model should find one the most probable, between two texts.

    before, after: the texts. right: the index of the right choice.
    """

    before: str
    choices: list[str]
    right: int
    after: str = ""

    @property
    def is_comparable(self) -> bool:
        """Whether the tool can compare the choices.

        It looks for the first token in which they differ, past the end of a choice with which all
        others begin (1, 10, 100). With an empty text it stops.
        """
        ends = [choice + self.after for choice in self.choices]
        alike = all(end.startswith(min(ends, key=len)) for end in ends)
        return bool(self.before.strip()) and all(self.choices) and not alike


def read(path: Path, kind: str) -> list[Task]:
    """The tasks of a file. kind: a key of READERS. Raises UserError."""
    if wrong := fault(path, kind):
        raise UserError(f"{path} {wrong}")
    return READERS[kind](path.read_bytes())


def fault(path: Path, kind: str) -> str:
    """Why a file holds no tasks of a kind, in words ("is no file of …"); empty if it holds some."""
    try:
        tasks = READERS[kind](path.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return f"is no file of {kind} tasks: it is not in UTF-8"
    except ValueError as error:
        return f"is no file of {kind} tasks: {error}"
    return "" if any(task.is_comparable for task in tasks) else "has no tasks in it"


def _lines(content: bytes) -> list[str]:
    text = content.decode()
    if text.partition("\n")[0].endswith("\r"):
        raise ValueError("its lines end as on Windows, and models would see that (dos2unix)")
    return text.removesuffix("\n").split("\n") if text else []


def _hellaswag(content: bytes) -> list[Task]:
    lines, tasks = _lines(content), []
    if len(lines) % 6:
        raise ValueError(f"it has {len(lines)} lines, and a task has six")
    for start in range(0, len(lines), 6):
        before, right, *endings = lines[start : start + 6]
        if right not in ("0", "1", "2", "3"):
            raise ValueError(f"line {start + 2} is not the number of an ending, 0 to 3")
        tasks.append(Task(before, endings, int(right)))
    return tasks


def _winogrande(content: bytes) -> list[Task]:
    tasks = []
    for number, line in enumerate(_lines(content), 1):
        # As the tool divides it: quotes only keep commas, and no sign is written twice.
        parts, quoted = [""], False
        for sign in line:
            quoted ^= sign == '"'
            if sign == "," and not quoted and len(parts) < 5:
                parts.append("")
            else:
                parts[-1] += sign
        if len(parts) != 5 or parts[4].strip() not in ("1", "2") or "_" not in parts[1]:
            wanted = "number,sentence with _,first word,second word,1 or 2"
            raise ValueError(f"line {number} is not {wanted}")
        sentence = parts[1][1:-1] if parts[1].startswith('"') else parts[1]
        before, _, after = sentence.partition("_")
        tasks.append(Task(before, parts[2:4], int(parts[4]) - 1, after))
    return tasks


def _multiple_choice(content: bytes) -> list[Task]:
    stream = io.BytesIO(content)

    def whole(count: int = 1) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", taken(4 * count))

    def taken(size: int) -> bytes:
        if len(content) - stream.tell() < size:
            raise ValueError("it is cut off")
        return stream.read(size)

    def text() -> str:
        return taken(*whole()).decode()

    def answers() -> tuple[list[str], list[int]]:
        (count,) = whole()
        if count > MOST_CHOICES:
            raise ValueError(f"a question with {count} answers; the tool reads {MOST_CHOICES}")
        return [text() for _ in range(count)], list(whole(count))

    (count,), tasks = whole(), []
    whole(count)  # where each begins
    for number in range(1, count + 1):
        question, (choices, labels), _ = text(), answers(), answers()
        if labels.count(1) != 1:
            raise ValueError(f"task {number} has {labels.count(1)} right answers, not one")
        tasks.append(Task(question, choices, labels.index(1)))
    return tasks


READERS = {
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "multiple_choice": _multiple_choice,
}


def write_winogrande(tasks: Iterable[Task]) -> bytes:
    """The CSV of the tasks."""

    def line(task: Task) -> str:
        sentence = f"{task.before}_{task.after}"
        if sentence.startswith('"') or "," in "".join(sentence.split('"')[::2]):
            sentence = f'"{sentence}"'
        return f"0,{sentence},{','.join(task.choices)},{task.right + 1}\n"

    return "".join(map(line, tasks)).encode()


def write_multiple_choice(tasks: Iterable[Task]) -> bytes:
    """The binary file of the tasks."""

    def text(words: str) -> bytes:
        return struct.pack("<I", len(words.encode())) + words.encode()

    def entry(task: Task) -> bytes:
        count = len(task.choices)
        labels = struct.pack(f"<{count}I", *(index == task.right for index in range(count)))
        answers = struct.pack("<I", count) + b"".join(map(text, task.choices)) + labels
        return text(task.before) + answers + struct.pack("<I", 0)

    entries = [entry(task) for task in tasks]
    place, places = 4 + 4 * len(entries), []
    for written in entries:
        places.append(place)
        place += len(written)
    return struct.pack(f"<{len(entries) + 1}I", len(entries), *places) + b"".join(entries)


def chosen(tasks: list[Task], count: int | None) -> list[Task]:
    """So many tasks, spread evenly over all of them; all if None."""
    if count is None or count >= len(tasks):
        return tasks
    return [tasks[index * len(tasks) // count] for index in range(count)]


def measured(
    path: Path, kind: str, count: int | None, solved: Callable[[list[Task]], list[bool]]
) -> dict[str, Any]:
    """What a program that measures so many tasks of a file (None: all) says of them, for its JSON:

        score, error  the share of tasks solved, and its standard error by their number
        tasks         how many were measured
        left_out      how many of the file cannot be (Task.is_comparable)
        chance        the score of one that guesses
        correct       a sign a task, in the order of the file: 1 solved, 0 not
        kind, sha256  of the file

    kind: a key of READERS. solved(tasks): whether each is solved.
    """
    every = read(path, kind)
    usable = [task for task in every if task.is_comparable]
    tasks = chosen(usable, count)
    correct = solved(tasks)
    score = sum(correct) / len(tasks)
    return {
        "score": score,
        "error": math.sqrt(score * (1 - score) / max(1, len(tasks) - 1)),
        "tasks": len(tasks),
        "left_out": len(every) - len(usable),
        "chance": sum(1 / len(task.choices) for task in tasks) / len(tasks),
        "correct": "".join("01"[right] for right in correct),
        "kind": kind,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
