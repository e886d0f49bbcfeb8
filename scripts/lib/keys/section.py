"""The parts of config sections: a pydantic base model, and types that read the values of keys.

A key without a value counts as left out. A section without content has its defaults. Each key has
a description, from which config/schema.json and the tables of config/README.md are made.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator

from lib.formats.quants import TENSOR_BITS
from lib.keys import values

Texts = str | list[str]


def Read(type_: Any, read: Any, written: Any = None) -> Any:
    """The type of a key that a function of values.py reads.

    type_: the type of the value that was read. read: the function.
    written: how the value may be written, for the JSON schema: a type or a JSON schema; None if as
        `type_`.
    """
    if isinstance(written, dict):
        return Annotated[type_, BeforeValidator(read), WithJsonSchema(written)]
    return Annotated[type_, BeforeValidator(read, json_schema_input_type=written or type_)]


def Number(type_: type, low: float, high: float | None = None) -> Any:
    """The type of a key for a finite number from `low` to `high`, both included.

    type_: int for a whole number, or float. high: None for no limit.
    """
    read = partial(values.to_number, low=low, high=high, whole=type_ is int)
    written = {"type": "integer" if type_ is int else "number", "minimum": low}
    return Read(type_, read, written if high is None else {**written, "maximum": high})


def Pattern(pattern: str, read: Any) -> Any:
    """The type of a key for a text. pattern: a regular expression, for the JSON schema alone."""
    return Read(str, read, {"type": "string", "pattern": pattern})


def Choice(literal: Any) -> Any:
    """The type of a key for one of the words of a Literal, in upper or lower case."""
    read = partial(values.to_choice, known=get_args(literal))
    return Read(literal, read, bool | literal if "on" in get_args(literal) else literal)


def repository(by_form: bool, families: list[str]) -> Any:
    """The type of a key for a repository of the hub, org/name.

    by_form: whether {form} may stand in the name, which means a repository for each form.
    families: the families that allow {form}; the message of an error names them.
    """
    if by_form:
        return Pattern("^[^/@{}]+/[^/@]+$", values.to_repository_by_form)
    return Pattern("^[^/@]+/[^/@]+$", partial(values.to_repository, by_form=families))


Text = Read(str, values.to_text)
Flag = Read(bool, values.to_flag)
FileSize = Pattern("^[0-9]+[MG]$", values.to_size)
Sha256 = Pattern("^[0-9a-fA-F]{64}$", values.to_sha256)
TensorType = Read(str, values.to_tensor_type, {"type": "string", "examples": list(TENSOR_BITS)})
Words = Read(list[str], values.to_words, Texts)
TextList = Read(list[Text], values.to_list, Texts)


class Section(BaseModel):
    """A mapping of the config. Unknown keys are errors; a key of null counts as left out."""

    # defer_build: only Config and Options are validated directly. Saves a third of the import time.
    model_config = ConfigDict(extra="forbid", defer_build=True)
    # Keys that hold sections. Without a value they have their defaults.
    sections: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {
                key: {} if entry is None else entry
                for key, entry in value.items()
                if entry is not None or key in cls.sections
            }
        keys = ", ".join(cls.model_fields)
        raise ValueError(f"must be a mapping with keys of {keys}, not {values.show(value)}")


def within(annotation: Any) -> type[Section] | None:
    """The section class in a field's annotation, also inside a list or dict; None if none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = map(within, get_args(annotation))
    return next(filter(None, found), None)
