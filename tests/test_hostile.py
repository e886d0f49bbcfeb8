"""Models of somebody who means harm: each ends in one line, within seconds, and nothing is run."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf import GGUFWriter

from campaign import hostile
from campaign.hostile import DEEP, TITLE, field, spell, text, whole
from lib.cards.prompt import prompt_format
from lib.config.load import load
from lib.errors import UserError
from lib.formats import chat, gguf_bounds, lora_adapter, soundness
from lib.formats.gguf_source import describe
from lib.formats.weights import read_weights
from lib.hub.license import card_facts, front_matter, of_facts
from lib.hub.lock import Lock
from lib.planning.publishing import base
from lib.store.store import Settings
from project import ROOT, Project
from tiny_models import make_bpe, make_llama

TERA = 1 << 42
NAME = "model.safetensors"
COMMIT = "a" * 40
GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
GOOD["b"] = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two tensors that is as it should be."""
    place = tmp_path / "m"
    place.mkdir()
    write(place / NAME, GOOD)
    (place / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": 2}))
    (place / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    assert len(soundness.check(place)) == 3
    return place


def write(file: Path, header: object, data: bytes = bytes(16)) -> None:
    told = spell(header)
    file.write_bytes(struct.pack("<Q", len(told)) + told + data)


def tensor(**other: object) -> dict:
    return {**GOOD, "b": GOOD["b"] | other}


HEADERS = {
    "a shape that is a mapping": tensor(shape={"0": 1}),
    "a shape with text": tensor(shape=["2", "2"]),
    "a shape of another size": tensor(shape=[4, 4]),
    "a shape below nothing": tensor(shape=[-2, -2]),
    "a type that is none": tensor(dtype=7),
    "another type": tensor(dtype="F64"),
    "offsets that are no numbers": tensor(data_offsets=[8.0, 16.0]),
    "tensors over one another": {**GOOD, "a": GOOD["a"] | {"data_offsets": [8, 16]}},
    "a hole": tensor(shape=[2], data_offsets=[12, 16]),
    "a name that clears a terminal": {TITLE: GOOD["a"], "b": GOOD["b"]},
    "lists without end": tensor(shape=DEEP),
    "tensors without end": GOOD | {f"x{n}": GOOD["a"] | {"shape": [0]} for n in range(150_000)},
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_refused_before_anything_is_made_of_it(model, what):
    write(model / NAME, HEADERS[what])
    refused(model, NAME)


def refused(model: Path, name: str) -> None:
    """The model is refused by the config and by its step, in plain lines that name the file."""
    config = {"models": {"M": {"source": "./m", "gguf": {"quants": ["Q8_0"]}}}}
    for ask in (lambda: soundness.check(model), lambda: load(config, model.parent)):
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            ask()
        assert all(line.isprintable() and len(line) < 400 for line in caught.value.lines)


def test_a_header_that_fills_the_memory_is_not_read(model):
    with (model / NAME).open("wb") as file:
        file.write(struct.pack("<Q", TERA - 8))
        file.truncate(TERA)
    refused(model, NAME)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt"])
def test_a_file_beside_the_weights_of_terabytes_is_neither_read_nor_hashed(model, name):
    (model / name).touch()
    os.truncate(model / name, TERA)
    began = time.process_time()
    refused(model, name)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("document", [DEEP, [], "x", {"weight_map": {"a": 1}}, {"weight_map": []}])
def test_an_index_that_is_none_is_refused(model, document):
    (model / f"{NAME}.index.json").write_bytes(spell(document))
    refused(model, "index.json")


CONFIGS = [DEEP, [], {"text_config": 7}, {"hidden_size": [None, "x"]}, {"vocab_size": "many"}]
CONFIGS += [{"num_hidden_layers": 2**31}, {"architectures": [TITLE]}, {"model_type": ["llama"]}]
CONFIGS += [{"num_attention_heads": -1}, {"text_config": {"n_layer": 1e9}}, {"head_dim": 2**80}]


@pytest.mark.parametrize("document", CONFIGS)
def test_a_config_that_no_model_can_have_is_refused(model, document):
    (model / "config.json").write_bytes(spell(document))
    refused(model, "config.json")


def test_numbers_for_each_layer_are_no_lie(model):
    """OpenELM and the like."""
    config = {
        "num_key_value_heads": [3, 4],
        "intermediate_size": [5, 6],
        "num_attention_heads": None,
    }
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    soundness.check(model)
    assert read_weights(model).shape.layers == 2


def test_a_link_that_leads_nowhere_is_no_part_of_a_plan(model):
    (model / "generation_config.json").symlink_to("nowhere")
    assert read_weights(model).side_files > 0


def test_an_adapter_that_lies_is_told_in_words(tmp_path):
    config = {"peft_type": "LORA", "lora_alpha": 8, "r": 4}
    (tmp_path / lora_adapter.CONFIG).write_text(json.dumps(config))
    name = "base_model.model.x.lora_A.weight"
    write(
        tmp_path / lora_adapter.WEIGHTS,
        {name: {"dtype": "F32", "shape": {"x": 1}, "data_offsets": [0, 16]}},
    )
    assert "damaged weights" in lora_adapter.fault(tmp_path)
    scalars = {name.replace("_A", f"_{part}"): GOOD["a"] | {"shape": [2]} for part in "A"}
    scalars[name.replace("_A", "_B")] = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    write(tmp_path / lora_adapter.WEIGHTS, scalars)
    assert lora_adapter.fault(tmp_path) is None
    assert "no matrices" in lora_adapter.misfit(tmp_path, {"x.weight": (2, 2)})
    (tmp_path / lora_adapter.CONFIG).write_bytes(spell(DEEP))
    assert "not JSON" in lora_adapter.fault(tmp_path)


def counted(tensors: int, keys: int) -> bytes:
    return whole([field(*pair) for pair in hostile.FIELDS.items()], [], tensors, keys)


def with_field(key: str, value: object) -> bytes:
    return hostile.gguf_file(hostile.FIELDS | {key: value})


GGUFS = {
    "keys without end": (counted(0, 2**63), True),
    "tensors without end": (counted(2**63, len(hostile.FIELDS)), True),
    "an array without end": (with_field("x.y", struct.pack("<IIQ", 9, 0, 2**41)), True),
    "texts without end": (with_field("x.y", struct.pack("<IIQ", 9, 8, 2**38)), True),
    "a text without end": (with_field("x.y", struct.pack("<I", 8) + text(b"", 2**41)), True),
    "arrays within arrays": (
        with_field("x.y", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000),
        False,
    ),
    "no alignment": (with_field("general.alignment", ("I", 0)), False),
    "an alignment in words": (with_field("general.alignment", "x"), False),
    "a tensor of nothing": (
        whole([field(*pair) for pair in hostile.FIELDS.items()], hostile.infos({"x": ((0, 5), 0)})),
        False,
    ),
    "layers without end": (with_field("llama.block_count", ("I", 2**32 - 1)), False),
    "heads that are no number": (with_field("llama.attention.head_count", "x"), False),
    "an endless width": (with_field("llama.embedding_length", ("f", float("inf"))), False),
    "an architecture that clears a terminal": (with_field("general.architecture", TITLE), False),
    "a template that is none": (with_field("tokenizer.chat_template", ("I", 7)), False),
    "terabytes after its tensors": (hostile.gguf_file(), True),
}


@pytest.mark.parametrize("what", GGUFS)
def test_a_gguf_that_lies_is_refused_in_a_line_within_seconds(tmp_path, what):
    content, hole = GGUFS[what]
    file = tmp_path / "x.gguf"
    file.write_bytes(hostile.gguf_file())
    describe(file)
    file.write_bytes(content)
    if hole:
        os.truncate(file, TERA)
    began = time.process_time()
    with pytest.raises(UserError, match=r"x\.gguf: ") as caught:
        describe(file)
    assert time.process_time() - began < 5 and caught.value.lines[0].isprintable()


def test_a_matrix_of_terabytes_is_refused_with_the_config(tmp_path):
    (tmp_path / "x.gguf").write_bytes(hostile.gguf_file())
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 1))
    os.truncate(tmp_path / "i.dat", TERA)
    gguf = {"imatrix": {"file": "./i.dat"}, "quants": ["Q4_K_M"]}
    with pytest.raises(UserError, match=r"imatrix.file: ./i.dat: larger"):
        load({"models": {"M": {"source": "./x.gguf", "gguf": gguf}}}, tmp_path)
    nested = with_field("x.y", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000)
    (tmp_path / "i.gguf").write_bytes(nested)
    with pytest.raises(UserError, match="arrays within arrays"):
        gguf_bounds.check_imatrix(tmp_path / "i.gguf")


def test_what_others_wrote_does_nothing_to_a_terminal():
    (line,) = UserError(f"x: {TITLE}\u202e\ud800").lines
    assert line == r"x: \x1b]0;owned\x07\x1b[2J\u202e\ud800"
    assert UserError("a\nb", "c").lines == ["a", "b", "c"]


def test_tokens_that_clear_a_terminal_are_spelt_in_the_preflight(tmp_path):
    for name, token in (("one", TITLE), ("two", "x")):
        place = tmp_path / name
        place.mkdir()
        write(place / NAME, GOOD)
        (place / "config.json").write_text('{"model_type": "llama", "vocab_size": 1}')
        (place / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 0}}}))
    merge = {"merge_method": "linear", "models": [{"model": "./one"}, {"model": "./two"}]}
    merge["parameters"] = {"weight": 0.5}
    config = {"models": {"M": {"merge": merge, "gguf": {"quants": ["Q8_0"]}}}}
    (tmp_path / "c.json").write_text(json.dumps(config))

    def said() -> str:
        command = [sys.executable, ROOT / "scripts/ask_preflight.py", "--config", "c.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr and done.returncode == 1, done.stderr
        return done.stdout

    found = said()
    assert "vocabularies differ in 1 token" in found and "\x1b" not in found
    for hostile_one in ({"model": {"vocab": [1, 2]}}, {"model": []}, {"added_tokens": [7]}):
        (tmp_path / "one/tokenizer.json").write_text(json.dumps(hostile_one))
        assert "fit together" in said()


def test_a_matrix_that_clears_a_terminal_is_spelt_in_the_preflight(tmp_path):
    fields = hostile.FIELDS | {"general.type": "imatrix", "imatrix.chunk_count": TITLE}
    data = whole([field(*pair) for pair in fields.items()], [])
    (tmp_path / "i.gguf").write_bytes(data)
    (tmp_path / "x.gguf").write_bytes(hostile.gguf_file())
    gguf = {"imatrix": {"file": "./i.gguf"}, "quants": ["Q4_K_M"]}
    config = {"models": {"M": {"source": "./x.gguf", "gguf": gguf}}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    command = [sys.executable, ROOT / "scripts/ask_preflight.py", "--config", "c.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert r"entries from \x1b]0;owned" in done.stdout and "\x1b" not in done.stdout


TEMPLATES = {
    "a loop without end": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "all memory": "{{ 'x' * 10**10 }}",
    "a text that grows": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "macros without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a sum of words": "{{ bos_token + 1 }}",
    "nothing divided": "{{ 1 // 0 }}",
    "a long text": "x" * 3_000_000,
    "other people's files": "{% include '/etc/passwd' %}",
    "deep brackets": "{{ " + "(" * 5000 + " }}",
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_takes_neither_all_time_nor_all_memory(what):
    began = time.monotonic()
    assert prompt_format(TEMPLATES[what], {"bos_token": "<s>"}) is None
    assert time.monotonic() - began < 30


def test_a_template_executes_nothing_and_moves_no_cursor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "{{ cycler.__init__.__globals__.os.mkdir('executed') }}"
    assert prompt_format(source, {}) is None and not Path("executed").exists()
    assert (
        prompt_format(f"{TITLE}\n{{{{ bos_token }}}}", {"bos_token": "<s>"}).isprintable() is False
    )
    assert "\x1b" not in prompt_format(TITLE, {})
    assert prompt_format("a\n{{ messages[1].content }}", {}) == "a\n{prompt}"


@pytest.mark.parametrize(
    "value", [7, float("nan"), ["x"], [1.5], {"": 1}, [{"name": "default"}], True]
)
def test_a_template_that_is_none_is_none(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"x": 1}, "eos_token": 7}')
    template, tokens = chat.read(tmp_path)
    assert template is None and set(tokens.values()) == {""}
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not JSON"):
        chat.read(tmp_path)


def test_a_gguf_whose_tokens_are_none_has_none(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_string("tokenizer.ggml.bos_token_id", "x")
    writer.add_chat_template("x")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert chat.read(tmp_path / "x.gguf")[1]["bos_token"] == ""


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
FRONTS = [
    f"{BOMB}license: *k",
    "license: 2023-99-99",
    f"license: {'[' * 900_000}",
    f"license: {'9' * 5000}",
]
FRONTS += ["license: !!python/object/apply:os.system [id]", "? [a, {b: c}]\n: x"]


@pytest.mark.parametrize("front", FRONTS)
def test_a_card_that_cannot_be_read_is_no_card(front):
    began = time.process_time()
    assert front_matter(f"---\n{front}\n---\n") == {}
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("front", "known"),
    [
        ("license: 2023-01-01", {"license": "2023-01-01"}),
        ("license: {x: 1}\nlanguage: [en, {de: 1}]", {"language": ["en"]}),
        ('license: "\\e]0;x\\a"', {"license": r"\x1b]0;x\x07"}),
        (f"license: {'x' * 5000}", {"license": "x" * 200}),
        ("license: mit\nlanguage: en", {"license": "mit", "language": "en"}),
    ],
)
def test_what_a_card_says_of_its_license_is_plain_and_short(tmp_path, front, known):
    assert card_facts(front_matter(f"---\n{front}\n---\n")) == known
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    said = base(str(tmp_path), Lock())
    assert said == {"reference": str(tmp_path), "hub": None, "commit": None, **known}
    json.dumps(said)
    of_facts(said)


def test_a_license_and_a_prompt_plant_no_element_in_a_card(tmp_path):
    (tmp_path / "m").mkdir()
    told = {"chat_template": "```\n<img>\n```\n\n\n\nx"}
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(told))
    planted = {"license": "other", "license_name": "<img src=x>", "license_link": "](javascript:x)"}
    leaf = {"reference": "a/b", **planted}
    about = {"model": "M", "families": ["gguf"], "tokenizer": "m", "bases": [leaf]}
    (tmp_path / "about.json").write_text(json.dumps(about))
    (tmp_path / "forms.json").write_text(json.dumps({"model": "M", "forms": []}))
    command = [sys.executable, ROOT / "scripts/card.py", "--forms", "forms.json"]
    command += ["--about", "about.json", "--output", "README.md"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, front, card = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert "license_name: <img src=x>" in front  # which the hub reads as text
    assert "````\n```\n<img>\n```\n\n\n\nx\n````" in card
    outside = card.replace("````\n```\n<img>\n```\n\n\n\nx\n````", "")
    assert r"\<img src=x\>" in outside and r"(\](javascript:x))" in outside
    assert not re.search(r"(?<!\\)<", outside)


def test_the_end_of_a_log_moves_no_cursor(tmp_path):
    """A converter prints what a model says of itself."""
    (tmp_path / "log").write_text(f"one \x1b[31mred\x1b[0m\r{TITLE}\nC1: \x9b2J\n\tärger 模型\n")
    script = (
        f". {ROOT}/scripts/step.sh; exec 8>&2; STAGE=none/x; QM_WANTED=x QM_LOG=log; false; _ended"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True)
    said = done.stderr.decode()
    assert "one red" in said and "\tärger 模型" in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


SECRET = "Ssecret123"
ADDRESSES = {
    f"https://alice:{SECRET}@host.org/a.txt": "https://…@host.org/a.txt",
    f"https://{SECRET}@host.org/a.txt": "https://…@host.org/a.txt",
    f"https://a:b@{SECRET}@host.org/a.txt": "https://…@host.org/a.txt",
    f"http://h/a.txt?x=1&token={SECRET}&y=2": "http://h/a.txt?x=1&token=…&y=2",
    f"http://h/a.txt?X-Amz-Signature={SECRET}": "http://h/a.txt?X-Amz-Signature=…",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_secret_is_refused_and_not_shown(tmp_path, monkeypatch, address):
    """It would be in the config that is published, in recipes and in the list of processes."""
    assert UserError(f"x {address} y").lines == [f"x {ADDRESSES[address]} y"]
    corpora = {"calibration": {"url": address, "sha256": "0" * 64}}
    with pytest.raises(
        UserError, match="corpora.calibration.url: its address has a secret"
    ) as told:
        load({"corpora": corpora, "models": {"M": {"source": address}}}, tmp_path)
    assert SECRET not in str(told.value) and "models.M.source" in str(told.value)
    monkeypatch.setenv("QUANTMILL_STORE", address)
    with pytest.raises(UserError, match="a URL with credentials") as told:
        Settings.of_environment()
    assert SECRET not in str(told.value)


def test_a_long_secret_that_is_cut_off_is_not_shown_either(tmp_path):
    for address in (f"ftp://alice:{SECRET * 9}@host/a.txt", f"ftp://h/a.txt?token={SECRET * 9}"):
        corpora = {"calibration": {"url": address, "sha256": "0" * 64}}
        with pytest.raises(UserError) as told:
            load({"corpora": corpora, "models": {"M": {"source": address}}}, tmp_path)
        assert SECRET not in str(told.value)


def test_addresses_without_secrets_are_taken_and_shown_whole(tmp_path):
    for address in ("https://host.org:8080/a.txt?download=true", "http://h/a.txt?revision=main#x"):
        corpora = {"calibration": {"url": address, "sha256": "0" * 64}}
        load({"corpora": corpora, "models": {"M": {"source": "a/b"}}}, tmp_path)
        assert UserError(address).lines == [address]


def test_code_that_a_tokenizer_names_is_not_run(tmp_path, monkeypatch):
    """The converter trusts it (trust_remote_code), and finds another repository's in the cache."""
    p = Project.create(tmp_path / "p")
    make_bpe(make_llama(p / "m/named"))
    config, tokenizer = (p / "m/named" / name for name in ("config.json", "tokenizer_config.json"))
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"architectures": ["DreamModel"]})
    )
    named = {"auto_map": {"AutoTokenizer": ["any/one--code.Tokenizer", None]}}
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | named))
    cached = tmp_path / "hub/models--any--one"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(COMMIT)
    mark = tmp_path / "ran"
    (cached / "snapshots" / COMMIT / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_MODULES_CACHE", raising=False)
    p.config["models"] = {"Named": {"source": "./m/named", "gguf": {"imatrix": False}}}
    said = p.run("results/Named/gguf/Named-BF16.gguf", check=False)
    assert not mark.exists(), said
    assert "/dev/null/no code that a model brings is run" in said
