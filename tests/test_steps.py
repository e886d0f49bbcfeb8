"""The checks around llama.cpp's tools, and what they read, with the real tools on a tiny Llama."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES

import check_base_logits
import check_gguf
import check_imatrix
import check_quant
import check_shards
from lib.errors import UserError
from lib.formats.gguf_file import read_gguf
from lib.formats.model_files import model_files
from lib.formats.of_source import check_source
from model_view import make_view
from tiny_models import TEXT, make_llama, make_sentencepiece

SCRIPTS = Path(check_gguf.__file__).parent


@pytest.fixture(scope="module")
def tools() -> Path:
    """The directory of llama.cpp's tools: $QUANTMILL_TOOLS, or those that a build has compiled."""
    from lib.record.tools import cache_directory

    places = [Path(p) for p in (os.environ.get("QUANTMILL_TOOLS"),) if p]
    places += [
        mark.parent / "bin" for mark in sorted(cache_directory().glob("llama.cpp-*/complete"))
    ]
    for place in places:
        if (place / "llama-completion").is_file():
            return place
    pytest.skip("llama.cpp's tools are not compiled yet: run snakemake once")


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory) -> Path:
    """A directory as a build makes it: model.gguf, q4.gguf, im.dat, im.gguf, base.kld, shards."""
    from lib.record.tools import bundled_tree

    root = tmp_path_factory.mktemp("made")
    make_sentencepiece(make_llama(root / "model"))
    (root / "text.txt").write_text("\n".join(TEXT * 60))

    def tool(name: str, *arguments: str) -> None:
        subprocess.run([tools / name, *arguments], cwd=root, check=True, capture_output=True)

    convert = [sys.executable, bundled_tree() / "convert_hf_to_gguf.py", "model"]
    name = ["--outfile", "model.gguf", "--outtype", "bf16", "--model-name", "Tiny"]
    subprocess.run([*convert, *name], cwd=root, check=True, capture_output=True)
    model, text = ("-m", "model.gguf"), ("-f", "text.txt", "-c", "128", "-t", "1", "--chunks", "3")
    for kind in ("dat", "gguf"):
        tool("llama-imatrix", *model, *text, "-o", f"im.{kind}", "--output-format", kind)
    tool("llama-quantize", "--imatrix", "im.dat", "model.gguf", "q4.gguf", "Q4_K_M", "1")
    tool("llama-perplexity", *model, *text, "--kl-divergence-base", "base.kld")
    (root / "shards").mkdir()
    tool("llama-gguf-split", "--split-max-size", "1M", "model.gguf", "shards/model")
    return root


def damaged(file: Path, to: Path, tensor: str, at: int, data: bytes) -> Path:
    """A copy of a GGUF with `data` written over `tensor`, `at` bytes after its start."""
    content = bytearray(file.read_bytes())
    start = next(t.offset for t in read_gguf(file).tensors if t.name == tensor) + at
    content[start : start + len(data)] = data
    to.write_bytes(content)
    return to


def fails(script: str, *arguments: object) -> str:
    """The last line that a script that must fail with status 1 leaves on stderr."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done
    return done.stderr.splitlines()[-1]


# The model's files


def a_model(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text("{}")
    return directory


def test_a_card_or_a_stray_file_never_reaches_the_converter(tmp_path):
    wanted = ["added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json"]
    wanted += ["merges.txt", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    wanted += ["tokenizer.model", "tokenizer_config.json", "vocab.json"]
    stray = ["README.md", "model.bin", "pytorch_model.bin", "optimizer.pt", "notes.txt", "code.py"]
    stray += ["model-old.safetensors", ".hidden.json", "trainer_state.json", "LICENSE"]
    source = a_model(tmp_path / "m", *wanted, *stray)
    links = make_view(source, tmp_path / "view", allow_pickle=True)
    assert [link.name for link in links] == wanted
    assert all(link.is_symlink() and link.read_text() == "{}" for link in links)


def test_the_index_decides_which_shards_are_the_models(tmp_path):
    source = a_model(
        tmp_path / "m", "config.json", "a.safetensors", "b.safetensors", "c.safetensors"
    )
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "c.safetensors"}}))
    names = [file.name for file in model_files(source)]
    assert names == ["a.safetensors", "c.safetensors", "config.json", index.name]
    (source / "c.safetensors").unlink()
    with pytest.raises(UserError, match="c.safetensors, which model.safetensors.index.json"):
        model_files(source)


def test_pickles_need_permission_and_the_message_says_which(tmp_path):
    source = a_model(tmp_path / "m", "config.json", "pytorch_model.bin", "training_args.bin")
    with pytest.raises(UserError, match="allow_pickle: true"):
        model_files(source)
    assert [f.name for f in model_files(source, True)] == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.safetensors"], "no config.json"),
        (["config.json", "README.md"], "no weights"),
        (
            ["config.json", "model.safetensors", "model.safetensors.index.json"],
            "not a safetensors index",
        ),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path, names, words):
    source = a_model(tmp_path / "m", *names)
    line = fails("model_view.py", "--source", source, "--output", tmp_path / "view")
    assert words in line
    assert str(source) in line


def test_a_lora_adapter_is_a_model_too(tmp_path):
    source = a_model(
        tmp_path / "m", "adapter_config.json", "adapter_model.safetensors", "README.md"
    )
    assert len(model_files(source)) == 2


# GGUF


def test_the_header_reads_as_ggufs_own_reader_does(made):
    import gguf

    for name in ("model.gguf", "q4.gguf", "im.gguf"):
        reader, file = gguf.GGUFReader(made / name), read_gguf(made / name)
        assert [
            (t.name, tuple(t.shape), t.tensor_type, t.n_bytes, t.data_offset)
            for t in reader.tensors
        ] == [(t.name, t.shape, t.type, t.size, t.offset) for t in file.tensors]
        fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert fields == file.metadata


def test_a_sound_file_gives_text_and_its_facts(made, tools, tmp_path):
    tool = tools / "llama-completion"
    command = [
        sys.executable,
        SCRIPTS / "check_gguf.py",
        made / "q4.gguf",
        "--completion-tool",
        tool,
    ]
    subprocess.run([*command, "--json", tmp_path / "facts.json"], check=True, capture_output=True)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["parameters"] == 1_443_072
    assert (facts["name"], facts["architecture"]) == ("Tiny", "llama")
    assert facts["text"]
    assert "def main" not in facts["text"]


def test_the_text_is_the_same_each_time_though_the_tool_loses_its_end_now_and_then(made, tools):
    arguments = (made / "q4.gguf", tools / "llama-completion", "def main():", 24)
    texts = {check_gguf.complete(*arguments) for _ in range(10)}
    longest = max(texts, key=len)
    assert all(text and longest.startswith(text.rstrip("\ufffd")) for text in texts)


def test_a_nan_is_found_and_its_tensor_named(made, tools, tmp_path):
    nan, name = b"\xc0\x7f", "blk.1.ffn_up.weight"  # bfloat16, little end first
    file = damaged(made / "model.gguf", tmp_path / "nan.gguf", name, 100, nan)
    line = fails("check_gguf.py", file, "--completion-tool", tools / "llama-completion")
    assert line == f"check_gguf: {file}: NaN or Inf in its tensor {name}"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "not a GGUF"), (5000, "header"), (600000, "it ends")]
)
def test_a_cut_off_file_is_refused(made, tmp_path, size, words):
    (tmp_path / "cut.gguf").write_bytes((made / "q4.gguf").read_bytes()[:size])
    with pytest.raises(UserError, match=words):
        read_gguf(tmp_path / "cut.gguf")


def test_a_file_that_llama_cpp_cannot_load_is_explained(made, tools, tmp_path):
    content = (made / "q4.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(content.replace(b"blk.1.ffn_up", b"blk.1.ffn_xp"))
    line = fails(
        "check_gguf.py", tmp_path / "x.gguf", "--completion-tool", tools / "llama-completion"
    )
    assert line.endswith("tensor 'blk.1.ffn_up.weight' not found")


# Importance matrices


@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_an_imatrix_fits_the_model_that_it_was_made_from(made, kind):
    matrix = check_imatrix.read_imatrix(made / f"im.{kind}")
    check_imatrix.check(matrix, model := read_gguf(made / "model.gguf"))
    assert check_imatrix.unreached(matrix, model) is None
    assert (matrix.chunks, len(matrix.entries)) == (3, 14)


def test_both_formats_of_an_imatrix_are_read_to_the_same_importances(made):
    dat, gguf = (check_imatrix.read_imatrix(made / f"im.{kind}") for kind in ("dat", "gguf"))
    for name, entry in gguf.entries.items():
        other = dat.entries[name]
        assert abs(entry.values / entry.counts[0] - other.values / other.counts[0]).max() < 1e-6


def test_another_models_imatrix_is_refused_by_width_and_by_coverage(made):
    matrix, model = (
        check_imatrix.read_imatrix(made / "im.dat"),
        read_gguf(made / "model.gguf"),
    )
    down = next(t for t in model.tensors if t.name == "blk.0.ffn_down.weight")
    rest = tuple(t for t in model.tensors if t is not down)
    wider = model._replace(tensors=(down._replace(shape=(768, 256)), *rest))
    with pytest.raises(UserError, match=r"ffn_down.weight is 512 wide, .* 768"):
        check_imatrix.check(matrix, wider)
    more = tuple(t._replace(name=t.name.replace("blk.1.", "blk.2.")) for t in model.tensors)
    deeper = model._replace(
        tensors=model.tensors + tuple(t for t in more if "blk.2." in t.name),
        metadata=model.metadata | {"llama.block_count": 3},
    )
    with pytest.raises(UserError, match=r"no entry for blk\.2\."):
        check_imatrix.check(matrix, deeper)


def test_an_entry_that_the_model_lacks_is_named(made):
    matrix = check_imatrix.read_imatrix(made / "im.gguf")
    matrix.entries["blk.7.attn_q.weight"] = matrix.entries["blk.0.attn_q.weight"]
    with pytest.raises(UserError, match=r"blk\.7\.attn_q\.weight"):
        check_imatrix.check(matrix, read_gguf(made / "model.gguf"))


@pytest.mark.parametrize(
    ("part", "data", "words"),
    [
        ("in_sum2", b"\0\0\xc0\x7f", "NaN or Inf"),
        ("in_sum2", b"\0\0\x80\xbf", "negative"),
        ("counts", b"\0\0\0\0", "count is 0"),
    ],
)
def test_bad_values_in_an_imatrix_are_found(made, tmp_path, part, data, words):
    tensor = f"blk.1.ffn_up.weight.{part}"
    file = damaged(made / "im.gguf", tmp_path / "im.gguf", tensor, 0, data)
    line = fails("check_imatrix.py", "--imatrix", file, "--model", made / "model.gguf")
    assert words in line
    assert "blk.1.ffn_up.weight" in line


def test_a_cut_off_dat_is_refused(made, tmp_path):
    (tmp_path / "im.dat").write_bytes((made / "im.dat").read_bytes()[:-30])
    with pytest.raises(UserError, match="cut off"):
        check_imatrix.read_imatrix(tmp_path / "im.dat")


def test_more_chunks_than_asked_for_are_refused(made):
    arguments = ("--imatrix", made / "im.dat", "--model", made / "model.gguf", "--chunks", 2)
    assert "computed on 3 chunks" in fails("check_imatrix.py", *arguments)


# Quants


def checked(made: Path, quant: Path, *arguments: object) -> str:
    return fails("check_quant.py", quant, "--of", made / "model.gguf", *arguments)


def test_every_type_is_near_to_what_it_was_made_from(made, tools, tmp_path):
    from lib.formats.quants import QUANT_TYPES
    from lib.stages.quantize import UNREAD

    whole, read = read_gguf(made / "model.gguf"), 0
    for name in QUANT_TYPES.keys() - {UNREAD}:
        command = [tools / "llama-quantize", "--imatrix", made / "im.dat", made / "model.gguf"]
        subprocess.run([*command, tmp_path / "q.gguf", name, "1"], check=True, capture_output=True)
        check_quant.check(read_gguf(tmp_path / "q.gguf"), whole, ())
        read += 1
    assert read == len(QUANT_TYPES) - 1 > 30


def test_a_quant_without_a_layer_is_compared_with_the_layers_that_are_left(made, tools, tmp_path):
    command = [tools / "llama-quantize", "--prune-layers", "1", made / "model.gguf"]
    subprocess.run([*command, tmp_path / "q.gguf", "Q8_0", "1"], check=True, capture_output=True)
    check_quant.check(read_gguf(tmp_path / "q.gguf"), read_gguf(made / "model.gguf"), [1])
    assert "it has no tensor blk.1." in checked(made, tmp_path / "q.gguf")
    # Of a layer before the last b10605 keeps the data, and drops the last one's.
    assert "is not that of" in checked(made, tmp_path / "q.gguf", "--pruned", 0)


def test_that_the_tool_would_keep_the_wrong_layers_is_said_before_anything_is_built(project):
    project.quants.append({"name": "Less", "type": "Q8_0", "prune_layers": [0]})
    before = project.files()
    said = project.run(check=False)
    assert "prune_layers: [0], and llama-quantize b10605 can leave out only the last layers" in said
    assert project.files() == before
    project.quants[-1]["prune_layers"] = [1]
    project.build("results/Mix/gguf/Mix-Less.gguf")


def test_half_a_quant_or_one_with_more_at_its_end_is_refused(made, tmp_path):
    data = (made / "q4.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(data[: len(data) // 2])
    assert "it ends before the data of its tensor" in checked(made, tmp_path / "half.gguf")
    (tmp_path / "long.gguf").write_bytes(data + bytes(64))
    assert "its last tensor ends at" in checked(made, tmp_path / "long.gguf")


def test_a_quant_with_a_hole_is_refused(made, tmp_path):
    """As a file system leaves it that has lost what was written last."""
    data = bytearray((made / "q4.gguf").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (tmp_path / "q.gguf").write_bytes(data)
    assert "is not that of" in checked(made, tmp_path / "q.gguf")


def test_the_quant_of_another_model_of_the_same_shape_is_refused(made, tools, tmp_path):
    from lib.record.tools import bundled_tree

    make_sentencepiece(make_llama(tmp_path / "model", seed=7))
    convert = [sys.executable, bundled_tree() / "convert_hf_to_gguf.py", "model"]
    name = ["--outfile", "other.gguf", "--outtype", "bf16", "--model-name", "Tiny"]
    subprocess.run([*convert, *name], cwd=tmp_path, check=True, capture_output=True)
    command = [tools / "llama-quantize", tmp_path / "other.gguf", tmp_path / "q.gguf", "Q4_K_M"]
    subprocess.run(command, check=True, capture_output=True)
    assert "is not that of" in checked(made, tmp_path / "q.gguf")


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "F32"])
def test_a_nan_in_one_block_of_a_quant_is_found(made, tmp_path, name):
    tensor = next(t for t in read_gguf(made / "q4.gguf").tensors if t.type_name == name)
    elements, size = GGML_QUANT_SIZES[tensor.type]
    nan = b"\x00\x00\xc0\x7f" if name == "F32" else b"\x00\x7e"
    last = (tensor.elements // elements - 1) * size  # of the block, and in it:
    at = {"Q4_K": 2, "Q6_K": 208, "F32": 0}[name]
    path = damaged(made / "q4.gguf", tmp_path / "q.gguf", tensor.name, last + at, nan)
    assert f"NaN or Inf in its tensor {tensor.name}" in checked(made, path)


# Shards


@pytest.fixture
def shards(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "shards", tmp_path / "shards"))


def test_shards_equal_the_whole(made, shards):
    found = check_shards.read_shards(shards)
    assert len(found) > 2
    check_shards.compare(read_gguf(made / "model.gguf"), found)


def test_one_flipped_byte_in_a_shard_is_found(made, shards):
    file = sorted(shards.iterdir())[1]
    tensor = read_gguf(file).tensors[0]
    damaged(file, file, tensor.name, tensor.size - 1, b"\x11")
    line = fails("check_shards.py", "--whole", made / "model.gguf", "--shards", shards)
    assert file.name in line
    assert tensor.name in line


def test_a_lost_shard_is_found(made, shards):
    max(shards.iterdir()).unlink()
    with pytest.raises(UserError, match="expected shard 1 of"):
        check_shards.read_shards(shards)


def test_shards_of_another_file_are_found(made, shards):
    line = fails("check_shards.py", "--whole", made / "q4.gguf", "--shards", shards)
    assert "metadata" in line


# Evaluation


def test_base_logits_that_a_full_disk_cut_off_are_refused(made, tmp_path):
    assert check_base_logits.fault(made / "base.kld", 128) is None
    cut = tmp_path / "base.kld"
    cut.write_bytes((made / "base.kld").read_bytes()[:-1000])
    assert "is the disk full?" in fails("check_base_logits.py", cut, "--context", 128)
    assert "context of 128" in fails("check_base_logits.py", made / "base.kld", "--context", 512)


def test_a_text_too_short_to_score_is_explained(made, tools, tmp_path):
    (tmp_path / "short.txt").write_text(TEXT[0])
    command = [
        tools / "llama-perplexity",
        "-m",
        made / "model.gguf",
        "-f",
        "short.txt",
        "-c",
        "128",
    ]
    command += ["--kl-divergence-base", "base.kld"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)  # its status is 0
    line = fails("check_base_logits.py", tmp_path / "base.kld", "--context", 128)
    assert "shorter than 256 tokens" in line


def test_the_converter_writes_the_same_bytes_when_tensors_are_computed_ahead(made, tmp_path):
    from lib.record.tools import bundled_tree

    converter = bundled_tree() / "convert_hf_to_gguf.py"
    common = ["--outfile", tmp_path / "ahead.gguf", "--outtype", "bf16", "--model-name", "Tiny"]
    command = [sys.executable, SCRIPTS / "convert.py", "--threads", "3", converter, "model"]
    done = subprocess.run([*command, *common], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ahead.gguf").read_bytes() == (made / "model.gguf").read_bytes()


def test_the_converters_own_mistakes_keep_their_message(made, tmp_path):
    from lib.record.tools import bundled_tree

    command = [sys.executable, SCRIPTS / "convert.py", "--threads", "1"]
    command += [bundled_tree() / "convert_hf_to_gguf.py", tmp_path / "none", "--outfile", "x"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert done.returncode != 0
    assert "none" in done.stderr + done.stdout


def lazy_tensors(compute, count):
    """Tensors of 100 bytes for gguf, each computed by compute(its number)."""
    import numpy
    from gguf import LazyNumpyTensor

    meta = LazyNumpyTensor.meta_with_dtype_and_shape(numpy.uint8, (100,))
    return [LazyNumpyTensor(meta=meta, args=(n,), func=compute) for n in range(count)]


def test_only_so_many_bytes_are_computed_ahead(monkeypatch, tmp_path):
    """With all of a large mixture's tensors in memory a machine has none left."""
    import numpy

    import convert

    def compute(number: int) -> numpy.ndarray:
        (tmp_path / str(number)).touch()  # in a process of its own
        return numpy.full(100, number, numpy.uint8)

    monkeypatch.setattr(convert, "AHEAD", 250)
    monkeypatch.setattr(convert, "BATCH", 100)
    data = convert.computed(lazy_tensors(compute, 6), 4)
    assert bytes(next(data)) == bytes([0] * 100)
    assert len(list(tmp_path.iterdir())) <= 2  # of 100 bytes, where 250 may wait
    monkeypatch.setattr(convert, "BATCH", 220)  # two tensors a process from here on
    assert [part[0] for part in data] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("end", "words"),
    [(lambda: os._exit(3), "has failed"), (lambda: os.kill(os.getpid(), 9), "too little memory")],
    ids=["status", "killed"],
)
def test_a_tensor_that_is_not_computed_ends_the_conversion(end, words):
    import convert

    data = convert.computed(lazy_tensors(lambda number: end(), 2), 2)
    with pytest.raises(convert.UserError, match=words):
        next(data)


def test_what_the_converter_writes_is_hashed_meanwhile(made, tmp_path):
    from lib.record.digests import sha256_of
    from lib.record.measured import remembered
    from lib.record.tools import bundled_tree

    out = tmp_path / "model.gguf"
    command = [sys.executable, SCRIPTS / "convert.py", "--threads", "2"]
    command += [bundled_tree() / "convert_hf_to_gguf.py", "model", "--outfile", out]
    environment = {**os.environ, "STAGE": str(tmp_path)}
    subprocess.run(command, cwd=made, check=True, capture_output=True, env=environment)
    assert remembered(tmp_path) == {out: sha256_of(out)}


def test_what_was_hashed_before_is_hashed_again_only_if_it_has_changed(tmp_path):
    from lib.record import measured
    from lib.record.digests import flushed_digests, sha256_of

    made = tmp_path / "made.gguf"
    made.write_bytes(b"as it was checked")
    measured.remember(tmp_path, {made: "f" * 64}, {made: measured.stamp(made)})
    assert flushed_digests([made], measured.remembered(tmp_path)) == {made: "f" * 64}
    made.write_bytes(b"changed afterwards")
    assert flushed_digests([made], measured.remembered(tmp_path)) == {made: sha256_of(made)}
    made.unlink()
    assert measured.remembered(tmp_path) == {}


def test_a_disk_that_does_not_take_the_bytes_fails_the_step(tmp_path, monkeypatch):
    from lib.record import digests

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(digests, "LARGE", 10)
    for size in (5, 50):
        file = tmp_path / "file"
        file.write_bytes(b"0" * size)
        with pytest.raises(OSError, match="No space left"):
            digests.flushed_digests([file], {})


def test_the_sources_of_all_models_are_read_together(tmp_path, monkeypatch):
    from lib.record import contents

    for name in ("a", "b"):
        a_model(tmp_path / name, "config.json", "model.safetensors")
    known = contents.Contents(tmp_path / "contents.json")
    for name in ("a", "b", "gone"):
        known.expect(str(tmp_path / name))
    first = known.directory(str(tmp_path / "a"))
    monkeypatch.setattr(contents, "sha256_of", None)
    assert known.directory(str(tmp_path / "b")).keys() == first.keys()
    with pytest.raises(UserError):
        known.directory(str(tmp_path / "gone"))


@pytest.mark.parametrize("gpus", ["", "0"])
def test_what_is_checked_beside_a_step_decides_whether_it_is_done(tmp_path, gpus):
    """Where there is a GPU, the check runs beside the step, and ends later here."""
    from lib.record.wanted import WantedRecipe

    wanted = tmp_path / ".snakemake/quantmill/wanted/results/M/made.json/0123/recipe.json"
    wanted.parent.mkdir(parents=True)
    artifact = "results/M/made.json"
    recipe = WantedRecipe(artifact, (artifact,), False, False, "evaluate", "f" * 64, {}, {})
    wanted.write_text(recipe.to_json())
    text = tmp_path / "text.txt"
    step = f"""
        set -euo pipefail; QM_PYTHON={sys.executable} QM_SCRIPTS={SCRIPTS}; . {SCRIPTS}/step.sh
        begin {wanted.relative_to(tmp_path)} log
        export CUDA_VISIBLE_DEVICES={gpus}
        beside check_corpus.py {text} --corpus it
        echo measured && echo {{}} >"$OUT"
        echo -n "a line without its end"
        script check_corpus.py {SCRIPTS}/step.sh --corpus steps
        commit
        """
    for content, done in (("", False), ("words " * 100, True)):
        text.write_text(content)
        ran = subprocess.run(["bash", "-c", step], cwd=tmp_path, capture_output=True, text=True)
        assert (ran.returncode == 0) == (tmp_path / artifact).is_file() == done, ran
        log = (tmp_path / "log").read_text()
        assert ("measured" in log) == ("line without its end\n" in log) == bool(gpus or done)
        assert ("what it names" in ran.stderr.splitlines()[-1]) != done
        assert list(tmp_path.glob("results/M/.*")) == []


def test_a_conversion_that_is_of_another_model_or_was_not_written_to_its_end_is_found(
    built, tmp_path
):
    made, source = built / "results/Mix/gguf/Mix-BF16.gguf", built / "results/Mix/safetensors"
    found, compared = check_source(read_gguf(made), source)
    assert 0 < found <= compared
    with pytest.raises(UserError, match="the converter has made another model's file"):
        check_source(read_gguf(made), built / "m/prose")
    half = tmp_path / "half.gguf"
    half.write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    os.truncate(half, made.stat().st_size)
    with pytest.raises(UserError, match="half.gguf: its tensor blk.* is zeros"):
        check_source(read_gguf(half), source)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda made: None, "made no such file"),
        (lambda made: made.touch(), "made an empty file"),
        (lambda made: made.mkdir(), "made an empty directory"),
    ],
    ids=["nothing", "an empty file", "an empty directory"],
)
def test_a_step_that_made_nothing_is_not_done(tmp_path, monkeypatch, make, words):
    import step
    from lib.record.wanted import WantedRecipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGE", str(tmp_path))
    (tmp_path / ".inputs.json").write_text("{}")
    make(tmp_path / "x")
    wanted = WantedRecipe("results/x", ("results/x",), False, False, "rule", "0" * 64, {}, {})
    with pytest.raises(UserError, match=words):
        step.commit(wanted, False, None)
    assert not (tmp_path / "results").exists()
