"""The candidates of a study: its merge with values in the place of `$name`.

A text that is `$name` and nothing else becomes the value itself: a text, a number, a list or a
mapping. Within a longer text (`./models/$name`) it becomes the value's text. `$$` is a `$`.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib.formats.merge_references import merge_references
from lib.keys.values import show, suggestion

Values = dict[str, Any]  # {name: value}

# Columns of a study's table, which no varied name may have.
COLUMNS = ("candidate", "rank", "score", "wins", "front", "round", "dropped")

# Candidates of a study: to check and plan so many takes some seconds, to measure them days.
MOST = 4000
# A file name has 255 bytes at most. The longest with a candidate's id in it is that of a record
# that is being written: .ID-BF16.gguf.recipe.json.1234567.part
LONGEST, SHORTENED = 219, 80

_NAME = re.compile(r"\$(\$|\w+|\{\w+\})")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Candidate:
    """One merge of a study.

    id: its directory's name: its values, of each a word. values: what stands for each `$name`, in
    the order of the config. merge: a mergekit configuration. random_seed: of the merge.
    """

    id: str
    values: Values
    merge: dict[str, Any]
    random_seed: int

    @property
    def label(self) -> str:
        """Its values in words: `method ties, w 0.3`."""
        return ", ".join(f"{name} {_text(value)}" for name, value in self.values.items())

    def parts(self) -> list[str]:
        """The references that its merge is made from, each once."""
        found = (part for reference in merge_references(self.merge) for part in reference.parts)
        return list(dict.fromkeys(found))


def combinations(vary: Mapping[str, list[Any]], pairs: list[Values]) -> list[Values]:
    """All combinations of the values in `vary`, each with each of `pairs` (if there are any).

    Raises ValueError if they are too many.
    """
    if wrong := excess(vary, pairs):
        raise ValueError(wrong)
    crossed = [dict(zip(vary, row, strict=True)) for row in itertools.product(*vary.values())]
    return [row | pair for row in crossed for pair in pairs or [{}]]


def excess(vary: Mapping[str, list[Any]], pairs: list[Values]) -> str | None:
    """That there are too many combinations, in words; None if there are not."""
    number = math.prod(map(len, [*vary.values(), pairs or [{}]]))
    if number <= MOST:
        return None
    many = f"{number:,}" if number < 10**15 else "more than 10^15"
    return f"makes {many} candidates, and a study has {MOST:,} at most; vary less"


def names_in(template: Any) -> Iterator[str]:
    """Yield the names that stand as `$name` in a merge, each as often as it stands there."""
    if isinstance(template, Mapping):
        for entry in template.values():
            yield from names_in(entry)
    elif isinstance(template, list | tuple):
        for entry in template:
            yield from names_in(entry)
    elif isinstance(template, str):
        yield from (word.strip("{}") for word in _NAME.findall(template) if word != "$")


def filled(template: Any, values: Values) -> Any:
    """A copy of a merge with the values in it. Raises ValueError for a name that has none."""
    if isinstance(template, Mapping):
        return {key: filled(entry, values) for key, entry in template.items()}
    if isinstance(template, list | tuple):
        return [filled(entry, values) for entry in template]
    if not isinstance(template, str):
        return template
    whole = _NAME.fullmatch(template)
    if whole and whole[1] != "$":
        return _value(whole[1], values)

    def within(found: re.Match) -> str:
        return "$" if found[1] == "$" else _text(_value(found[1], values))

    return _NAME.sub(within, template)


def candidates(
    merge: Mapping[str, Any], rows: Iterable[Values], random_seed: int | str
) -> list[Candidate]:
    """The candidate of each row of values.

    random_seed: a number, or `$name`. Raises ValueError for a `$name` without a value, for a value
    that is no plain data, for a seed that is no whole number of 32 bits, and for two rows that are
    the same.
    """
    found: dict[str, Candidate] = {}
    for values in rows:
        name = _fitting("-".join(map(word, values.values())) or "only", values)
        if name in found:
            if found[name].values == values:
                raise ValueError(f"{found[name].label}: twice")
            name = _fitting(f"{name}_{_digest(_text(values))}", values)
        seed = filled(random_seed, values)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"random_seed: {show(seed)} is no whole number from 0 to 4294967295")
        found[name] = Candidate(name, values, filled(dict(merge), values), seed)
    return list(found.values())


def word(value: Any) -> str:
    """A value in a directory's name: as it is, or the end of its text and a digest of all of it."""
    text = _text(value)
    if _PLAIN.fullmatch(text):
        return text
    end = re.sub(r"[^A-Za-z0-9._]+", "_", text)[-20:].strip("._")
    return f"{end}_{_digest(text)}"


def _fitting(name: str, values: Values) -> str:
    """An id of a candidate, as it is if files can be called by it; else its beginning and a digest.

    The digest is of all values, and long enough for thousands of ids with one beginning.
    """
    if len(name) <= LONGEST:
        return name
    return f"{name[:SHORTENED].rstrip('._-')}_{_digest(_text(values), 16)}"


def _value(name: str, values: Values) -> Any:
    name = name.strip("{}")
    if name not in values:
        near = suggestion(name, values)
        raise ValueError(f"${name} has no values under vary or pairs{near}")
    return values[name]


def _text(value: Any) -> str:
    """A value as text. Raises ValueError for what is no plain data, such as YAML's dates."""
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError:
        raise ValueError(f"{show(value)} is no plain data") from None


def _digest(text: str, digits: int = 6) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
