"""Header fields of finished GGUF files: changed without touching a tensor."""

import json

import numpy
import pytest
from gguf import GGUFReader, GGUFWriter
from hubtest import ok, refused


@pytest.fixture
def file(workdir):
    """A small GGUF with a header of every kind, on an alignment of its own."""
    writer = GGUFWriter(workdir.path / "in.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_name("Old")
    writer.add_chat_template("old template")
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_uint32("llama.context_length", 512)
    writer.add_array("general.tags", ["a", "b"])
    for index in range(3):
        writer.add_tensor(f"t{index}", numpy.arange(33 + index, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return workdir.path / "in.gguf"


def apply(workdir, fields: dict, *args: str):
    return workdir.run(
        "gguf_metadata.py", "in.gguf", "out.gguf", "--json", json.dumps(fields), *args
    )


def header(path) -> dict:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def test_fields_are_set_and_tensors_stay_byte_for_byte(workdir, file):
    new = {
        "general.name": "New",
        "general.license": "apache-2.0",
        "general.tags": ["merge", "x"],
        "general.languages": ["en"],
        "llama.rope.freq_base": 500000,
        "llama.context_length": 4096,
    }
    ok(apply(workdir, new, "--set", "tokenizer.chat_template={{ new }}"))
    out = workdir.path / "out.gguf"
    found = header(out)
    assert {key: found[key] for key in new} == new
    assert found["tokenizer.chat_template"] == "{{ new }}"
    before, after = GGUFReader(file), GGUFReader(out)
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert one.data.tobytes() == other.data.tobytes()
        assert other.data_offset % 64 == 0
    first = out.read_bytes()
    ok(apply(workdir, dict(reversed(new.items())), "--set", "tokenizer.chat_template={{ new }}"))
    assert out.read_bytes() == first


def test_null_removes_a_field(workdir, file):
    ok(apply(workdir, {"general.tags": None}))
    assert "general.tags" not in header(workdir.path / "out.gguf")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"general.architecture": "qwen2"}, "not to be changed"),
        ({"llama.context_length": "many"}, "holds uint32 there, not str"),
        ({"general.tags": "a"}, "holds a list there"),
        ({"general.x": ["a", 1]}, "neither text"),
    ],
)
def test_what_would_break_the_file_is_refused(workdir, file, field, words):
    assert words in refused(apply(workdir, field))
