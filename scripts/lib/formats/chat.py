"""Reads the chat template and the special tokens of a GGUF file or of a model directory."""

from pathlib import Path
from typing import Any

from lib.formats.gguf_bounds import read_careful
from lib.formats.soundness import document

# {a special token's name in chat templates: its key in GGUF headers}
TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def read(place: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template (None if there is none) and {name: text} of the special tokens in TOKENS.

    place: a GGUF file or a model directory. A token that the model does not have is "".
    Raises UserError for a damaged file, and OSError.
    """
    return _of_directory(place) if place.is_dir() else _of_gguf(place)


def _of_gguf(file: Path) -> tuple[str | None, dict[str, str]]:
    header = read_careful(file).metadata
    texts = header.get("tokenizer.ggml.tokens") or []
    numbers = {name: header.get(key, -1) for name, key in TOKENS.items()}
    known = {name: n for name, n in numbers.items() if isinstance(n, int) and 0 <= n < len(texts)}
    tokens = {name: texts[known[name]] if name in known else "" for name in TOKENS}
    return _texts(header.get("tokenizer.chat_template"), tokens)


def _of_directory(directory: Path) -> tuple[str | None, dict[str, str]]:
    facts = _json(directory / "tokenizer_config.json")
    template = facts.get("chat_template")
    if isinstance(template, list):  # several templates, each with a name
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = (entry for entry in entries if entry.get("name") == "default")
        template = next(named, {}).get("template")
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        template = plain.read_text(encoding="utf-8", errors="replace")
    facts = _json(directory / "special_tokens_map.json") | facts
    values = {name: facts.get(name) for name in TOKENS}
    found = {n: v.get("content") if isinstance(v, dict) else v for n, v in values.items()}
    return _texts(template, found)


def _texts(template: Any, tokens: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """As `read`, of what a file says, whatever that is."""
    plain = {name: token if isinstance(token, str) else "" for name, token in tokens.items()}
    return template if isinstance(template, str) else None, plain


def _json(path: Path) -> dict[str, Any]:
    found = document(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
