"""Reads the chat template and the special tokens of a GGUF file or of a model directory."""

import json
from pathlib import Path
from typing import Any

from lib.formats.gguf_file import read_gguf

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
    Raises UserError for a damaged GGUF file, ValueError for a file that is not JSON, and OSError.
    """
    return _of_directory(place) if place.is_dir() else _of_gguf(place)


def _of_gguf(file: Path) -> tuple[str | None, dict[str, str]]:
    header = read_gguf(file).metadata
    texts = header.get("tokenizer.ggml.tokens") or []
    numbers = {name: header.get(key, -1) for name, key in TOKENS.items()}
    tokens = {name: texts[n] if 0 <= n < len(texts) else "" for name, n in numbers.items()}
    return header.get("tokenizer.chat_template"), tokens


def _of_directory(directory: Path) -> tuple[str | None, dict[str, str]]:
    facts = _json(directory / "tokenizer_config.json")
    template = facts.get("chat_template")
    if isinstance(template, list):  # several templates, each with a name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        template = plain.read_text(encoding="utf-8")
    facts = _json(directory / "special_tokens_map.json") | facts
    values = {name: facts.get(name) or "" for name in TOKENS}
    return template, {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
