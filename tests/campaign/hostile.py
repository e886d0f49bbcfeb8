"""Files of models, each changed in one place by somebody who means harm.

`CHANGES` has {file of a good model: its changes}. A change gets a Random and the directory of a
copy, makes it hostile, and says in words what it did.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

TITLE = "\x1b]0;owned\x07\x1b[2J"  # sets the title of a terminal, and clears it
MARKUP = "<img src=x onerror=planted()>"
DEEP, HUGE, ENDLESS = "@deep@", "@huge@", "@endless@"
SPELT = {
    DEEP: "[" * 100_000 + "]" * 100_000,
    HUGE: "9" * 5000,
    ENDLESS: "1e999",
}
ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 1.5, -(2**63), 2**31, 2**53, 2**63, 2**64, 1e308, float("nan")),
    *("", "x", "a\nb", TITLE, MARKUP, "\ud800", "\u202egpj", "../../../etc/passwd", "/etc/passwd"),
    *("x" * 100_000, [], [[]], [None], [-1], [2**62, 2**62], [1.5], ["x"], list(range(5000))),
    *({}, {"x": {}}, {"": [1]}, {TITLE: TITLE}, DEEP, HUGE, ENDLESS, f"{TITLE}\n{MARKUP}"),
]
NAMES = ["../up", "/etc/passwd", "a\nb", TITLE, MARKUP, "\ud800", "n" * 1_000_000, "", "%s{x}$(id)"]
TERA = 1 << 42
Change = Callable[[Random, Path], str]


def spell(document: Any) -> bytes:
    """A document as JSON, with what no document of Python's can be."""
    text = json.dumps(document)
    for word, meant in SPELT.items():
        text = text.replace(json.dumps(word), meant)
    return text.encode()


def said(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)} characters)"


# documents of JSON


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a document; of a long list or mapping some."""
    found = [path]
    pairs = document.items() if isinstance(document, dict) else ()
    pairs = enumerate(document) if isinstance(document, list) else pairs
    for key, value in list(pairs)[:40]:
        found += places(value, (*path, key))
    return found


def put(document: Any, path: tuple, value: Any) -> Any:
    """The document with another value at a path."""
    if not path:
        return value
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def odd_value(file: str, *keys: str) -> Change:
    """A value of a JSON file becomes an odd one; keys: some that it may not have, and read."""

    def change(random: Random, model: Path) -> str:
        document = json.loads((model / file).read_bytes())
        path = random.choice(places(document)[1:] + [(key,) for key in keys])
        value = random.choice(ODD)
        (model / file).write_bytes(spell(put(document, path, value)))
        return f"{file}: {'.'.join(map(str, path))} is {said(value)}"

    return change


def odd_document(file: str) -> Change:
    """All of a JSON file is something else."""

    def change(random: Random, model: Path) -> str:
        value = random.choice(
            [*map(spell, ODD), b"", b"\xff\xfe\0", b"\0" * 64, b"{", b"\x1f\x8b\x08"]
        )
        (model / file).write_bytes(value)
        return f"{file} is {said(value)}"

    return change


def twice(file: str) -> Change:
    """A key of a JSON file is there twice."""

    def change(random: Random, model: Path) -> str:
        text, value = (model / file).read_text(), random.choice(ODD)
        key = random.choice(list(json.loads(text)))
        more = spell({key: value}).decode()[1:-1]
        (model / file).write_text(f"{text.rstrip()[:-1]}, {more}}}")
        return f"{file}: {key} twice, then {said(value)}"

    return change


def flipped(file: str, most: int = 4096) -> Change:
    """Some bytes of a file's beginning are others."""

    def change(random: Random, model: Path) -> str:
        data = bytearray((model / file).read_bytes())
        at = [random.randrange(min(len(data), most)) for _ in range(random.choice([1, 1, 2, 30]))]
        for place in at:
            data[place] = random.choice([0, 0x1B, 0xFF, ord('"'), ord("]"), random.randrange(256)])
        (model / file).write_bytes(data)
        return f"{file}: other bytes at {at[:3]}"

    return change


def cut(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        size = random.randrange((model / file).stat().st_size)
        os.truncate(model / file, size)
        return f"{file}: cut off after {size} bytes"

    return change


def grown(file: str) -> Change:
    """A file ends in a hole of terabytes."""

    def change(random: Random, model: Path) -> str:
        os.truncate(model / file, TERA)
        return f"{file}: followed by 4 TB of zeros"

    return change


def no_file(file: str) -> Change:
    """In place of a file stands something that is none, or not here."""

    def change(random: Random, model: Path) -> str:
        place = model / file
        place.unlink(missing_ok=True)
        kind = random.choice(["fifo", "directory", "zero", "itself", "nowhere", "secret"])
        if kind == "fifo":
            os.mkfifo(place)
        elif kind == "directory":
            place.mkdir()
        else:
            leads = {"zero": "/dev/zero", "itself": file, "nowhere": "nowhere"}
            place.symlink_to(leads.get(kind, "../../secret"))
        return f"{file} is a {kind}"

    return change


# safetensors


def any_tensor(random: Random, header: dict) -> str:
    """The name of a tensor of a safetensors header."""
    return random.choice([name for name in header if name != "__metadata__"])


def opened(file: Path) -> tuple[dict, bytes]:
    """The header of a safetensors file, and what comes after it."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def closed(file: Path, header: bytes, rest: bytes, length: int | None = None) -> None:
    told = len(header) if length is None else length
    file.write_bytes(struct.pack("<Q", told) + header + rest)


def header_length(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        size = (model / file).stat().st_size
        lengths = [0, 1, size - 8, size, size + 1, 2**31, 2**40, 2**63, 2**64 - 1]
        length = random.choice(lengths)
        closed(model / file, spell(header), rest, length)
        hole = random.random() < 0.5
        if hole:
            os.truncate(model / file, TERA)
        return f"{file}: a header of {length} bytes{' in a file of 4 TB' * hole}"

    return change


def odd_header(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        path, value = random.choice(places(header)), random.choice(ODD)
        closed(model / file, spell(put(header, path, value)), rest)
        return f"{file}: {said(path)} is {said(value)}"

    return change


def offsets(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        name = any_tensor(random, header)
        first, end = header[name]["data_offsets"]
        size = len(rest)
        given = random.choice(
            [[end, first], [0, end], [first, size], [-8, end], [first, 2**63], [2**62, 2**62 + 8],
             [first], [first, end, end], [float(first), end], [first + 1, end + 1], [0, 0]]
        )  # fmt: skip
        header[name]["data_offsets"] = given
        closed(model / file, spell(header), rest)
        return f"{file}: {name} is at {given} of {size}"

    return change


def shape(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        name = any_tensor(random, header)
        given = random.choice(
            [[], [0], [-1, -4096], [2**62, 4], [2**32, 2**32], [1] * 1000, [1.5, 2], ["x"], "12",
             {"0": 1}, [[64]], [10**30], [3, 7], [True, 64], [None]]
        )  # fmt: skip
        header[name]["shape"] = given
        if random.random() < 0.3:
            header[name]["dtype"] = random.choice(
                ["F4", "BF16 ", TITLE, 7, None, "F64", "I8", "U8"]
            )
        closed(model / file, spell(header), rest)
        return f"{file}: {name} has the shape {said(given)}, {header[name]['dtype']!a}"

    return change


def named(file: str) -> Change:
    """Further tensors, or one by another name."""

    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        name, empty = random.choice(NAMES), {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        if random.random() < 0.3:
            header |= {f"{name[:50]}{number}": empty for number in range(200_000)}
            closed(model / file, spell(header), rest)
            return f"{file}: 200,000 further tensors of no size, {said(name)}…"
        old = any_tensor(random, header)
        header[name] = header.pop(old)
        closed(model / file, spell(header), rest)
        return f"{file}: {old} is called {said(name)}"

    return change


def tensor_twice(file: str) -> Change:
    def change(random: Random, model: Path) -> str:
        header, rest = opened(model / file)
        name = any_tensor(random, header)
        more = spell({name: header[name] | {"shape": [2**40]}})[1:-1]
        closed(model / file, spell(header)[:-1] + b", " + more + b"}", rest)
        return f"{file}: {name} twice"

    return change


def index(random: Random, model: Path) -> str:
    """An index that leads elsewhere, or is none."""
    shard = random.choice(
        ["../../secret", "/etc/passwd", "../m/model.safetensors", "model.safetensors", "",
         ".", "..", "a\nb", TITLE, MARKUP, "\ud800", "x" * 5000, "a\0b", *ODD]
    )  # fmt: skip
    document = {"metadata": {"total_size": random.choice(ODD)}, "weight_map": {"a": shard}}
    if random.random() < 0.2:
        document["weight_map"] |= {f"t{n}": f"model-{n}.safetensors" for n in range(100_000)}
    if random.random() < 0.2:
        document = random.choice(ODD)
    (model / "model.safetensors.index.json").write_bytes(spell(document))
    return f"an index that leads to {said(shard)}"


class Harm:
    """An object that makes a file where it is loaded from a pickle."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def pickled(random: Random, model: Path) -> str:
    """Weights that run code when they are loaded."""
    name = random.choice(
        ["pytorch_model.bin", "adapter_model.bin", "x.pt", "x.ckpt", "tokenizer.model"]
    )
    (model / name).write_bytes(pickle.dumps(Harm(model.parent.parent / "executed")))
    alone = random.random() < 0.5
    if alone:
        (model / "model.safetensors").unlink(missing_ok=True)
    return f"{name}, a pickle{' alone' * alone}"


def own_code(random: Random, model: Path) -> str:
    """Code of the model's own, as transformers runs it where it is trusted."""
    document = json.loads((model / "config.json").read_bytes())
    document["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}
    document["model_type"] = random.choice(["own", "llama"])
    (model / "config.json").write_bytes(spell(document))
    text = f"import os; os.mkdir({str(model.parent.parent / 'executed')!r})\nclass C: pass\n"
    for name in ("code.py", "conversion.py", "conftest.py", "sitecustomize.py"):
        (model / name).write_text(text)
    return "code of its own, named in auto_map"


# cards, templates


def card(random: Random, model: Path) -> str:
    """A card whose front matter is hostile."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    front = random.choice(
        [f"license: {json.dumps(value)}" for value in ODD if not isinstance(value, float)]
        + [f"language: {json.dumps(value)}" for value in ODD if not isinstance(value, float)]
        + [f"license: other\nlicense_name: {json.dumps(text)}\nlicense_link: {json.dumps(text)}"
           for text in (TITLE, MARKUP, "a\nb", "\u202egpj", "](javascript:alert(1))", "x" * 9999)]
        + [f"{bomb}license: *i", f"{bomb}license: {{x: *i}}", "license: 2023-99-99",
           "? [a, {b: c}]\n: x", "license: 2023-01-01",
           "license: !!python/object/apply:os.system [id]", "a: &a [*a]\nlicense: *a",
           "license: " + "[" * 5000, "license: " + "9" * 5000, "<<: [1, 2]", "license: \x1b[2J",
           "license: " + "a " * 200_000, "? " * 3000 + "x", "- a\n- b", "a: b: c",
           "license: 0x" + "f" * 9999]
    )  # fmt: skip
    text = f"---\n{front}\n---\n# x\n"
    (model / "README.md").write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"a card with {said(front)}"


def template(random: Random, model: Path) -> str:
    """A chat template that takes all memory or time, breaks out, or is none."""
    many = "range(99999)"
    loop = f"{{% for i in {many} %}}{{% for j in {many} %}}{{% endfor %}}{{% endfor %}}"
    text = random.choice(
        [loop, loop.replace("{% endfor %}", "x{% endfor %}", 1), "{{ 'x' * 10**10 }}",
         "{{ [0] * 10**10 }}", "{{ 9 ** 9 ** 9 }}", "{{ '%1000000000000d' % 1 }}", "{{ 1 // 0 }}",
         "{{ ''.__class__.__mro__[1].__subclasses__() }}",
         "{{ cycler.__init__.__globals__.os.mkdir('executed') }}",
         "{{ self.__init__.__globals__ }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
         "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ messages[0].nothing.more }}",
         "{{ undefined() }}", "{{ messages | map('x') | list }}", "{{ 'x' | format(1, 2) }}", "{{",
         "{{ messages[99].role }}", "{{ messages + 1 }}", "{{ messages | tojson(indent=10**9) }}",
         f"{TITLE}", f"```\n{MARKUP}\n```", f"~~~~\n</code>{MARKUP}", "{{ '\\x1b[2J' }}",
         "\u202egpj", "{{ raise_exception(messages) }}", "{{ strftime_now() }}", "{" * 50_000,
         "{{ " + "(" * 5000 + " }}", "{{ " + "-" * 20_000 + "1 }}", "{% if x %}" * 3000,
         "{{ lipsum(n=10**9) }}", "{{ 'a' | center(10**11) }}",
         "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
         "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
         "{{ dict(messages) }}", "{{ bos_token + 1 }}", "{{ '\\ud800' }}", "{{ messages | sum }}",
         "{{ range(10**12) | list }}", "x" * 3_000_000]
    )  # fmt: skip
    if random.random() < 0.5:
        (model / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"the template {said(text)}"
    facts = json.loads((model / "tokenizer_config.json").read_bytes())
    value: Any = random.choice([text, [{"name": "default", "template": text}], *ODD])
    facts["chat_template"] = value
    (model / "tokenizer_config.json").write_bytes(spell(facts))
    return f"the template {said(value)} in tokenizer_config.json"


def tokens(random: Random, model: Path) -> str:
    """Special tokens that are none."""
    name = random.choice(["bos_token", "eos_token", "unk_token", "pad_token"])
    value = random.choice([*ODD, {"content": random.choice(ODD)}])
    (model / "special_tokens_map.json").write_bytes(spell({name: value}))
    facts = json.loads((model / "tokenizer_config.json").read_bytes())
    facts.pop(name, None)
    (model / "tokenizer_config.json").write_bytes(spell(facts))
    return f"the special token {name} is {said(value)}"


# GGUF


def number(random: Random, *usual: int) -> int:
    return random.choice([*usual, 0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1])


def text(words: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(words) if length is None else length) + words


SIZES = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11, "d": 12}


def field(key: str, value: Any) -> bytes:
    """A key of a GGUF header. value: a text, or (letter of struct, number), or a list of texts."""
    head = text(key.encode())
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + text(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        many = b"".join(text(word.encode()) for word in value)
        return head + struct.pack("<IIQ", 9, 8, len(value)) + many
    if isinstance(value, bytes):
        return head + value
    letter, told = value
    return head + struct.pack(f"<I{letter}", SIZES[letter], told)


FIELDS = {
    "general.architecture": "llama",
    "general.name": "x",
    "llama.block_count": ("I", 1),
    "llama.context_length": ("I", 512),
    "llama.embedding_length": ("I", 64),
    "llama.feed_forward_length": ("I", 64),
    "llama.attention.head_count": ("I", 4),
    "llama.attention.head_count_kv": ("I", 2),
    "llama.attention.layer_norm_rms_epsilon": ("f", 1e-5),
    "llama.vocab_size": ("I", 64),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(64)],
    "general.file_type": ("I", 1),
}
MORE = ["general.alignment", "split.count", "split.no", "llama.expert_count", "general.type"]
MORE += ["llama.attention.sliding_window", "llama.nextn_predict_layers", "llama.rope.freq_base"]
MORE += ["llama.full_attention_interval", "llama.attention.key_length", "llama.ssm.state_size"]
MORE += ["tokenizer.ggml.bos_token_id", "tokenizer.chat_template", "imatrix.chunk_count"]
TENSORS = {
    "token_embd.weight": ((64, 64), 1),
    "blk.0.attn_q.weight": ((64, 64), 1),
    "blk.0.attn_k.weight": ((64, 32), 1),
    "output_norm.weight": ((64,), 0),
}


def infos(tensors: dict[str, tuple[tuple[int, ...], int]]) -> list[bytes]:
    """The entries of tensors in a GGUF header."""
    found, at = [], 0
    for name, (dims, kind) in tensors.items():
        found.append(
            text(name.encode("utf-8", "surrogatepass"))
            + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
        )
        size = (2 if kind == 1 else 4) * (dims[0] * (dims[1] if len(dims) > 1 else 1))
        at += -(-size // 32) * 32
    return found


def whole(fields: list[bytes], entries: list[bytes], *counts: int, version: int = 3) -> bytes:
    """A GGUF file. counts: of tensors and keys, where they lie."""
    told = counts or (len(entries), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, *told) + b"".join(fields) + b"".join(entries)
    return head + b"\0" * (-len(head) % 32 + 64 * 1024)


def gguf_file(fields: dict[str, Any] | None = None) -> bytes:
    """A GGUF file as it should be."""
    return whole([field(*pair) for pair in (fields or FIELDS).items()], infos(TENSORS))


def gguf(name: str, base: dict[str, Any] | None = None) -> Change:
    """A GGUF file with something wrong in its header."""

    def change(random: Random, model: Path) -> str:
        fields = [field(*pair) for pair in (base or FIELDS).items()]
        entries, counts, version, hole = infos(TENSORS), (), 3, random.random() < 0.25
        kinds = ["counts", "value", "array", "string", "tensor", "nested", "version", "many"]
        kind = random.choice([*kinds, "value", "value", "array", "tensor", "tensor"])
        what = kind
        if kind == "counts":
            counts = (number(random, len(entries)), number(random, len(fields)))
            what = f"{counts[0]} tensors and {counts[1]} keys"
        elif kind == "value":
            key = random.choice([*(base or FIELDS), *MORE])
            letter = random.choice("BbHhIiQq")
            bits = struct.calcsize(f"<{letter}") * 8
            low, high = (
                (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if letter.islower() else (0, 2**bits - 1)
            )
            value: Any = random.choice(
                [(letter, random.choice([low, high, 0, 1, 3])), ("f", float("nan")), ("d", 1e300),
                 ("?", True), "", TITLE, MARKUP, "\ud800", ["x"], [], "x" * 100_000]
            )  # fmt: skip
            index = list(base or FIELDS).index(key) if key in (base or FIELDS) else len(fields)
            fields[index : index + 1] = [field(key, value)]
            what = f"{key} is {said(value)}"
        elif kind == "array":
            inner, size = random.choice([0, 4, 7, 8, 9, 12, 13, 99]), number(random, 100)
            key = random.choice(["x.y", "tokenizer.ggml.tokens", "llama.attention.head_count"])
            fields.append(field(key, struct.pack("<IIQ", 9, inner, size) + b"\0" * 64))
            what = f"{key}, an array of {size} values of type {inner}"
        elif kind == "nested":
            depth = random.choice([10, 2000, 100_000])
            fields.append(text(b"x.y") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth)
            what = f"arrays in arrays, {depth} deep"
        elif kind == "string":
            fields.append(
                text(b"x.y", number(random)) + struct.pack("<I", 8) + text(b"x", number(random))
            )
            what = "a text that is longer than the file"
        elif kind == "tensor":
            dims = random.choice(
                [
                    (),
                    (2**63, 2),
                    (2**32, 2**32),
                    (0,),
                    (1,) * 5,
                    (64,) * 4,
                    (63,),
                    (64, 2**60),
                    (1,) * 1000,
                ]
            )
            type_, at = number(random, 1, 12, 30), number(random, 0, 7)
            named = random.choice([*NAMES, "token_embd.weight"]).encode("utf-8", "surrogatepass")
            entries.append(
                text(named) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_ % 2**32, at)
            )
            what = f"a tensor {said(named)}, {said(dims)}, of type {type_}, at {at}"
        elif kind == "version":
            version = number(random, 1, 2, 4) % 2**32
            what = f"version {version}"
        else:
            fields += [field(f"x.y{n}", ("I", n)) for n in range(200_000)]
            what = "200,000 keys"
        (model / name).write_bytes(whole(fields, entries, *counts, version=version))
        if hole:
            os.truncate(model / name, TERA)
        return f"{name}: {what}{', in a file of 4 TB' * hole}"

    return change


def dat(random: Random, model: Path) -> str:
    """An importance matrix in the older format."""

    def whole_number(*usual: int) -> bytes:
        return struct.pack("<i", random.choice([*usual, -1, 0, 2**31 - 1, -(2**31)]))

    name = random.choice([b"blk.0.attn_q.weight", TITLE.encode(), b"\xff", b"blk.", b"blk"])
    data = whole_number(1, 1, 1) + struct.pack("<i", len(name)) + name + whole_number(4)
    data += whole_number(64, 64) + struct.pack("<64f", *[random.choice([1.0, float("nan")])] * 64)
    data += whole_number(4) + whole_number(3) + b"a.t"
    (model / "imatrix.dat").write_bytes(data)
    hole = random.random() < 0.3
    if hole:
        os.truncate(model / "imatrix.dat", TERA)
    return f"imatrix.dat: {said(data[:40])}{', in a file of 4 TB' * hole}"


def of_safetensors(file: str) -> list[Change]:
    changes = (header_length, odd_header, odd_header, offsets, shape, named, tensor_twice, flipped)
    return [change(file) for change in (*changes, cut, grown, no_file)]


def of_json(file: str, *keys: str) -> list[Change]:
    return [odd_value(file, *keys)] * 4 + [
        *(odd_document(file), twice(file), flipped(file), cut(file), grown(file), no_file(file))
    ]


CONFIG_KEYS = ("num_local_experts", "text_config", "vision_config", "sliding_window", "layer_types")
CONFIG_KEYS += (
    "quantization_config",
    "mtp_num_hidden_layers",
    "rope_parameters",
    "n_layer",
    "n_layers",
)
CONFIG_KEYS += ("num_experts", "moe_num_experts", "n_routed_experts", "rope_scaling")
ADAPTER_KEYS = ("use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_dora")
CHANGES: dict[str, list[Change]] = {
    "safetensors": of_safetensors("model.safetensors"),
    "index": [index],
    "config.json": of_json("config.json", *CONFIG_KEYS),
    "tokenizer": [
        *of_json("tokenizer.json", "added_tokens"),
        *of_json("tokenizer_config.json", "chat_template", "added_tokens_decoder"),
        tokens,
    ],
    "code and pickles": [pickled, pickled, own_code],
    "card": [card],
    "chat template": [template],
    "adapter": of_safetensors("adapter_model.safetensors")
    + of_json("adapter_config.json", *ADAPTER_KEYS),
    "GGUF": [*[gguf("x.gguf")] * 12, flipped("x.gguf"), cut("x.gguf"), no_file("x.gguf")],
    "importance matrix": [
        gguf("imatrix.gguf", FIELDS | {"general.type": "imatrix"}),
        dat,
        cut("imatrix.gguf"),
        no_file("imatrix.dat"),
    ],  # fmt: skip
}
