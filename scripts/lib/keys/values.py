"""Reads single values of the config.

Each function `to_…` takes a value as YAML gives it and returns it in its normal form. It raises
ValueError, which names the value and what is allowed, if the value is not as the docstring says.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lib.formats.quants import QUANT_TYPES, TENSOR_BITS, canonical

Scalar = bool | int | float | str
# For all keys that hold a path. A config must mean the same to everybody who runs it.
TILDE = "~ is not expanded here; write the path in full"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def show(value: Any) -> str:
    """A value of the config as text, shortened to fit on one line."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} …{text[0]}"


def suggestion(got: Any, known: Iterable[str]) -> str:
    """`; did you mean X?`, with the one known word that is near to `got`; "" if there is none."""
    by_lower = {word.lower(): word for word in known}
    wanted = str(got).lower()
    near = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.7)
    near = near or [word for word in by_lower if wanted and word.startswith(wanted)]
    return f"; did you mean {by_lower[near[0]]}?" if len(near) == 1 else ""


def to_text(value: Any) -> str:
    """One line of text that is not blank."""
    if isinstance(value, str):
        if "\n" in value or not value.strip():
            raise ValueError(f"{show(value)} must be one line of text")
        return value
    hint = "; put it in quotes" if isinstance(value, int | float) else ""
    raise ValueError(f"{show(value)} is not text{hint}")


def to_number(value: Any, low: float, high: float | None, whole: bool) -> float | int:
    """A finite number from `low` to `high` (None: no limit), or a text of one, such as "1e-3".

    whole: it must be a whole number, and an int is returned; else a float.
    """
    kind = "a whole number" if whole else "a number"
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    problem = ValueError(f"{show(value)} is not {kind} {limits}")
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise problem from None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise problem
    in_range = low <= number <= (2**63 - 1 if high is None else high)  # not NaN, not infinity
    if not in_range or (whole and number != int(number)):
        raise problem
    return int(number) if whole else float(number)


def to_choice(value: Any, known: tuple[str, ...]) -> str:
    """A word of `known`, in lower case. If "on" is known, true and false mean on and off."""
    word = ("on" if value else "off") if isinstance(value, bool) and "on" in known else value
    if isinstance(word, str) and word.lower() in known:
        return word.lower()
    raise ValueError(f"{show(value)} is not one of {', '.join(known)}{suggestion(value, known)}")


def to_flag(value: Any) -> bool:
    """True or false, also written as yes, on, 1 and no, off, 0, in upper or lower case."""
    if str(value).lower() in ("true", "yes", "on", "1"):
        return True
    if str(value).lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{show(value)} is neither true nor false")


def to_list(value: Any) -> Any:
    """A list. Any other value, except a mapping, becomes a list of one."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, Mapping):
        return [value]
    raise ValueError("must be a list, not a mapping")


def to_words(value: Any) -> list[str]:
    """A list of words, from a list or from one text with commas (`--config key=a,b`)."""
    if isinstance(value, str):
        value = value.split(",")
    return [str(word).strip() for word in to_list(value) if str(word).strip()]


def to_size(value: Any) -> str:
    """A size as llama-gguf-split reads it, such as 500M or 50G. Zeros in front are left out."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,8})([MG])", str(value))
    if not found:
        raise ValueError(
            f"{show(value)} is not a size as llama-gguf-split takes it: a whole number and M or G, "
            "such as 500M or 50G"
        )
    return found[1] + found[2]


def bytes_of(size: str) -> int:
    """Bytes of a size from `to_size`. M is 10**6 bytes, G is 10**9."""
    return int(size[:-1]) * {"M": 10**6, "G": 10**9}[size[-1]]


def to_sha256(value: Any) -> str:
    """A sha256 of 64 hexadecimal digits, in lower case."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return value.lower()
    raise ValueError(f"{show(value)} is not a sha256: 64 hexadecimal digits")


def to_repository(value: Any, by_form: Iterable[str] = ()) -> str:
    """A repository on the hub, org/name.

    by_form: the families that allow {form} in the name; only the error's message names them.
    """
    if isinstance(value, str) and REPOSITORY.fullmatch(value):
        return value
    allowed = f"; {{form}} is for {' and '.join(by_form)} alone"
    hint = allowed if by_form and "{form}" in str(value) else ""
    raise ValueError(f"{show(value)} is not a repository on the hub: org/name{hint}")


def to_repository_by_form(value: Any) -> str:
    """A repository on the hub. `{form}` in its name means one repository for each form."""
    if not isinstance(value, str):
        return to_repository(value)
    for word in re.findall(r"\{[^{}]*\}|[{}]", value):
        if word != "{form}":
            raise ValueError(f"{show(value)}: only {{form}} may stand there, not {word}")
    if not REPOSITORY.fullmatch(value.replace("{form}", "form")):
        raise ValueError(f"{show(value)} is not a repository on the hub: org/name")
    if "{form}" in value.partition("/")[0]:
        raise ValueError(f"{show(value)}: {{form}} belongs into the name, after the /")
    return value


def to_quant_type(value: Any) -> str:
    """A name of QUANT_TYPES, in upper case; an alias becomes the main name."""
    if isinstance(value, str) and (found := canonical(value)):
        return found
    near = suggestion(value, QUANT_TYPES)
    raise ValueError(f"{show(value)} is not a quant type of llama-quantize{near}")


def to_tensor_type(value: Any) -> str:
    """A name of TENSOR_BITS, in lower case."""
    if isinstance(value, str) and value.lower() in TENSOR_BITS:
        return value.lower()
    near = suggestion(value, TENSOR_BITS)
    raise ValueError(f"{show(value)} is not a tensor type of ggml{near}")


def to_tensor_types(value: Any) -> list[str]:
    """A list of PATTERN=TYPE texts, from texts or mappings {PATTERN: TYPE}.

    PATTERN is a regular expression for names of tensors. TYPE is a name of TENSOR_BITS.
    """
    pairs = []
    for entry in [value] if isinstance(value, Mapping) else to_list(value):
        if isinstance(entry, Mapping):
            pairs += entry.items()
        elif isinstance(entry, str) and "=" in entry:
            pairs.append(entry.split("=", 1))
        else:
            raise ValueError(f"{show(entry)} is not PATTERN=TYPE, such as attn_v=q8_0")
    overrides = []
    for pattern, type_ in pairs:
        pattern = str(pattern)
        if not pattern or "=" in pattern or re.search(r"\s", pattern):
            raise ValueError(f"{show(pattern)} is not a pattern: no '=' and no blanks in it")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{show(pattern)} is not a regular expression: {error}") from None
        overrides.append(f"{pattern}={to_tensor_type(type_)}")
    return overrides


def to_override_kv(value: Any) -> list[str]:
    """A list of KEY=TYPE:VALUE texts, as llama-quantize's string_parse_kv_override reads them."""
    form = r"[^=\s]{1,127}=(int:-?\d+|float:[-+.\deE]+|bool:(true|false)|str:.{0,127})"
    overrides = to_list(value)
    for entry in overrides:
        if not isinstance(entry, str) or not re.fullmatch(form, entry):
            raise ValueError(
                f"{show(entry)} is not KEY=TYPE:VALUE with a type of int, float, bool or str"
            )
    return overrides


def to_layers(value: Any) -> list[int]:
    """Numbers of layers, from 0; sorted, each once."""
    return sorted({to_number(entry, 0, None, whole=True) for entry in to_list(value)})


def to_max_kld(value: Any) -> dict[str, float]:
    """{form: the highest mean KL divergence that it may have, in nats}; "*" is all other forms.

    A single number becomes {"*": number}.
    """
    limits = value if isinstance(value, Mapping) else {"*": value}
    return {str(form): to_number(limit, 0, None, whole=False) for form, limit in limits.items()}


# Header fields that describe the tensors. Only the tools may write them.
RESERVED_METADATA = re.compile(
    r"general\.(architecture|file_type|quantization_version|alignment)|(split|quantize)\..*|GGUF\..*"
)


def to_metadata(value: Any) -> dict[str, Any]:
    """{field of a GGUF header: value}. A value is a text, a finite number, a bool, or a list.

    The entries of a list are all of one type.
    """
    for key, entry in to_mapping(value).items():
        if not isinstance(key, str) or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", key, re.ASCII):
            raise ValueError(f"{show(key)} is not a header field, such as general.license")
        if RESERVED_METADATA.fullmatch(key):
            raise ValueError(f"{key} belongs to the tools that write the file")
        values = entry if isinstance(entry, list) else [entry]
        if not all(map(_is_scalar, values)):
            kinds = "text, a finite number, true or false, or a list of those"
            raise ValueError(f"{key} is {show(entry)}, not {kinds}")
        if len({type(single) for single in values}) != 1:
            raise ValueError(f"{key} must be a list whose entries are all of one type")
    return dict(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Scalar) and not (isinstance(value, float) and not math.isfinite(value))


def to_imatrix(value: Any) -> Any:
    """The options of an imatrix, a mapping. True and null become {}; false stays False."""
    if value is None or value is True:
        return {}
    if value is False or isinstance(value, Mapping):
        return value
    raise ValueError(f"{show(value)} must be true, false or a mapping such as {{chunks: 100}}")


def to_quant(value: Any) -> Any:
    """The options of a quant, a mapping. A text, such as Q4_K_M, becomes {"type": text}."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str):
        return {"type": value}
    raise ValueError(f"{show(value)} is neither a quant type nor a mapping with a type")


def to_mapping(value: Any) -> Any:
    """A mapping, which is returned as it is."""
    if isinstance(value, Mapping):
        return value
    raise ValueError(f"must be a mapping, not {show(value)}")


def to_merge(value: Any) -> Any:
    """A mergekit configuration as plain dicts and lists. 1.0 becomes 1, its equal in mergekit.

    If the config names a file, the caller passes the file's content, or a ValueError that tells
    what is wrong with the file; that error is raised.
    """
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping or the name of a mergekit file, not {show(value)}")
    return plain(value)


def plain(value: Any) -> Any:
    """A value in dicts and lists, with 1 for 1.0."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
