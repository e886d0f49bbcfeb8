"""What the config takes, what it refuses and in which words."""

import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import yaml
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from pyarrow import parquet

from lib.config import merges
from lib.config.load import load
from lib.config.schema import Config, Options
from lib.errors import UserError
from lib.formats.merge_references import merge_references, substitute_references
from lib.stages.gguf import Gguf

ROOT = Path(__file__).parent.parent
EXAMPLES = [ROOT / "config/config.yaml", *sorted((ROOT / "config/examples").glob("*.yaml"))]

NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"  # of a safetensors file
ROOTED = {"peft_type": "LORA", "use_rslora": True, "lora_alpha": 8}
ONE = b"merge_method: linear\nmodels: [{model: a/b}]\n"
MERGE_FILES = {
    "tab.yaml": b"models:\n\t- model: a/b\n",
    "list.yaml": b"- model: a/b\n",
    "empty.yaml": b"# nothing yet\n",
    "weights.yaml": b"\xff\x00",
    "object.yaml": b"!!python/object/apply:os.getcwd []\n",
    "mistakes.yaml": b"merge_method: linear\ndtype: bf16\n"
    b"models: [{modell: x, model: a/b}, {model: ./nowhere}]\n",
    "two-unnamed.yaml": ONE + b"---\n" + ONE,
    "twins.yaml": b"---\n".join([b"name: first\n" + ONE, b"name: first\n" + ONE, ONE]),
    "itself.yaml": b"name: M\n" + ONE + b"---\n" + ONE,
    "multi-mistakes.yaml": b"name: my merge\nmerge_method: lineer\nmodels: [{model: a/b}]\n---\n"
    b"merge_method: linear\nmodels: [{model: a/b}, {model: second}]\n",
}


@cache
def gguf_files() -> dict[str, bytes]:
    """GGUF files of a few bytes: models, and what is none."""

    def written(kind: str, architecture: str = "llama", **fields: int | str) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            writer = GGUFWriter(f"{place}/x", architecture)
            for key, value in fields.items():
                add = writer.add_string if isinstance(value, str) else writer.add_uint32
                add(key.replace("__", "."), value)
            if kind:
                type_ = GGMLQuantizationType[kind]
                block, size = GGML_QUANT_SIZES[type_]
                data = np.zeros((2, 256 // block * size), np.uint8)
                writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=type_)
                writer.add_tensor("output_norm.weight", np.zeros(256, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return Path(place, "x").read_bytes()

    whole = written("BF16", general__file_type=32, llama__expert_count=0)
    return {
        "x.gguf": whole,
        "moe.gguf": written("F16", llama__expert_count=8),
        "q8.gguf": written("Q8_0", general__file_type=7),
        "q4.gguf": written("Q4_K", general__file_type=15),
        "no-type.gguf": written("F32"),
        "cut.gguf": whole[:-100],
        "header.gguf": whole[:60],
        "text.gguf": b"a text that is long enough for a header",
        "shard.gguf": written("BF16", split__count=3, split__no=1),
        "mmproj.gguf": written("F16", "clip"),
        "lora.gguf": written("F16", general__type="adapter"),
        "vocabulary.gguf": written(""),
        "mine.dat": b"\1",
        "measurement.json": b"{}",
    }


def write_parquet(path: Path, **columns: list) -> None:
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A working directory with texts, models and some things that are neither."""
    texts = dict.fromkeys(("calibration.txt", "evaluation.txt", "notes.md", "card.j2"), "text")
    texts |= {"empty.txt": "", "white.txt": "\ufeff" + "\n \t\n" * 50_000, "plain.parquet": "text"}
    (tmp_path / "data").mkdir()
    for name, text in texts.items():
        (tmp_path / "data" / name).write_text(text)
    write_parquet(tmp_path / "data/wiki.parquet", text=["", None, "text"])
    write_parquet(tmp_path / "data/nulls.parquet", text=[None, "", " "], page=["a", "b", "c"])
    write_parquet(tmp_path / "data/numbers.parquet", number=[1, 2])
    models = {
        "dense": {"config.json": {"model_type": "llama", "num_key_value_heads": 2}},
        "experts": {"config.json": {"model_type": "mixtral", "num_local_experts": 8}},
        "lora": {"adapter_config.json": {"peft_type": "LORA"}},
        "dora": {"adapter_config.json": {"peft_type": "LORA", "lora_alpha": 8, "use_dora": True}},
        "rslora": {"adapter_config.json": ROOTED | {"r": 8, "rank_pattern": {"q_proj": 16}}},
        "rankless": {"adapter_config.json": ROOTED},
        "prompts": {"adapter_config.json": {"peft_type": "PROMPT_TUNING"}},
        "modules": {"adapter_config.json": {"peft_type": "LORA", "modules_to_save": ["lm_head"]}},
        "empty": {},
        "org/local": {"config.json": {}},
    }
    for name, files in models.items():
        (tmp_path / name).mkdir(parents=True)
        for file, document in files.items():
            (tmp_path / name / file).write_text(json.dumps(document))
            weights = "adapter_model" if "adapter" in file else "model"
            (tmp_path / name / f"{weights}.safetensors").write_bytes(NO_TENSORS)
    for name, data in gguf_files().items():
        (tmp_path / "own" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "own" / name).write_bytes(data)
    (tmp_path / "merges").mkdir()
    for name, text in MERGE_FILES.items():
        (tmp_path / "merges" / name).write_bytes(text)
    return tmp_path


def read(text: str, workdir: Path) -> tuple[Config, Options]:
    return load(yaml.safe_load(text), workdir)


def problems(text: str, workdir: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(text, workdir)
    return [line.replace(str(workdir), "WORKDIR") for line in caught.value.lines]


def cases(file: str) -> list:
    """(config, lines) of a file of bad configs: paragraphs of YAML, with the lines after `!`."""
    paragraphs = (ROOT / "tests" / file).read_text().split("\n\n")[1:]
    found = []
    for paragraph in paragraphs:
        lines = paragraph.strip("\n").split("\n")
        config = "\n".join(line for line in lines if not line.startswith("! "))
        expected = [line.removeprefix("! ") for line in lines if line.startswith("! ")]
        found.append(pytest.param(config, expected, id=config.replace("\n", " ")[:60]))
    return found


OK = "models: {M: {source: a/b}}\n"
TEXTS = """
corpora:
  calibration: {path: data/calibration.txt}
  evaluation: {path: data/evaluation.txt}
  wiki: {path: data/wiki.parquet}
"""


@pytest.mark.parametrize(("model", "expected"), cases("bad_models.txt"))
def test_a_mistake_in_a_model_is_one_line_that_says_where_and_what(model, expected, workdir):
    indented = "".join(f"    {line}\n" for line in model.splitlines())
    assert problems(f"{TEXTS}models:\n  M:\n{indented}", workdir) == expected


@pytest.mark.parametrize(("text", "expected"), cases("bad_configs.txt"))
def test_a_mistake_outside_models_is_one_line_that_says_where_and_what(text, expected, workdir):
    assert problems(text, workdir) == expected


def test_all_mistakes_come_at_once_in_the_order_of_the_file(workdir):
    text = """
        corpora:
          calibration: {path: nowhere.txt}
        models:
          A:
            merge: {merge_method: sces, base_model: B, models: [{model: C}]}
            gguf: {split_max_size: 50, quants: [Q4_KM, IQ1_S, Q8_0, Q8_0, {type: Q2_K, nam: x}]}
          B:
            merge: {merge_method: linear, models: [{model: A}, {model: ./dense}]}
            exl2: {bits: 9}
          C: {source: ./missing, evaluate: {}}
        unknown: 1
        """
    assert [line.split(": ")[0] for line in problems(text, workdir)] == [
        "corpora.calibration.path",
        "models.A.merge",
        "models.A.merge.merge_method",
        "models.A.gguf.split_max_size",
        "models.A.gguf.quants[0].type",
        "models.A.gguf.quants[1].type",
        "models.A.gguf.quants[3].name",
        "models.A.gguf.quants[4].nam",
        "models.B.exl2.bits",
        "models.C.source",
        "models.C.evaluate",
        "models.C.evaluate.corpus",
        "unknown",
    ]


@pytest.mark.parametrize("nobody", ["", "[]", "{}", "null"])
def test_a_model_without_a_name_is_a_mistake_whatever_asks_for_it(workdir, nobody):
    """`similarity` and mixtures looked for the first part of nothing."""
    merge = f"{{merge_method: linear, models: [{{model: {nobody}}}, {{model: ./dense}}]}}"
    expert = f"{{source_model: {nobody}, positive_prompts: [x]}}"
    moe = f"{{base_model: {nobody}, gate_mode: hidden, experts: [{expert}]}}"
    text = f"models: {{M: {{merge: {merge}, similarity: {{base: ./dense}}}}, N: {{moe: {moe}}}}}"
    found = problems(text, workdir)
    assert found[0] == "models.M.merge.models[0]: model is missing"
    assert "models.N.moe: base_model is missing" in found


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TOO_MUCH = {
    f"{BOMB}models: {{M: {{source: *i}}}}": ": more than 200000 values",
    f"models: {'[' * 60}{']' * 60}": "models: lists and mappings within one another, 40 deep",
    "models: &m {M: *m}": "models: lists and mappings within one another, 40 deep",
    'models: {M: {source: "a\\0b"}}': r"models: no text of a config can have the character '\x00'",
    'models: {"M\\0": {source: a/b}}': r"models: no text of a config can have the character '\x00'",
}


@pytest.mark.parametrize("text", TOO_MUCH)
def test_what_no_config_holds_is_told_before_it_takes_all_memory(workdir, text):
    (line,) = problems(text, workdir)
    assert TOO_MUCH[text] in line
    with pytest.raises(UserError, match=r"character '\\ud800'"):
        load({"models": {"M": {"source": "\ud800"}}}, workdir)
    (workdir / "merges/bomb.yaml").write_text(f"{BOMB}merge_method: linear\nmodels: *i\n")
    (line,) = problems("models: {M: {merge: merges/bomb.yaml}}", workdir)
    assert "models: more than 200000 values" in line


def test_a_study_of_what_is_no_merge_is_a_mistake_whatever_it_is(workdir):
    entry = "{model: %s, parameters: {weight: $w}}"
    study = f"{TEXTS}studies: {{S: {{merge: {{merge_method: %s, models: [{entry}]}}, "
    study += "vary: {w: [1]}, measure: {perplexity: [evaluation]}}}"
    for given, words in ((("{x: 1}", "a/b"), "no merge method"), (("linear", "{}"), "is missing")):
        assert any(words in line for line in problems(study % given, workdir))
    text = "models: {M: {merge: {study: [x]}}}"
    assert "is no study of this config" in problems(text, workdir)[0]


def test_merges_that_go_round_in_a_circle_are_named(workdir):
    merge = "{merge: {merge_method: linear, models: [{model: %s}, {model: a/b}]}}"
    text = "models:\n" + "".join(
        f"  {name}: {merge % parent}\n" for name, parent in ["AB", "BC", "CA", "DA", "EE"]
    )
    assert problems(text, workdir) == [
        "models.A.merge: the merges go round in a circle: A -> B -> C -> A",
        "models.E.merge: the merges go round in a circle: E -> E",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gguf: {split_max_size: 50G}", "gguf: {split_max_size: '050G'}"),
        ("exl2: {bits: [5, 4]}", "exl2: {bits: [5.0, 4.0], head_bits: 6.0}"),
        ("exl2: {bits: 5}", "exl2: {bits: ['5.0'], rows: 100}"),
        ("gguf: {quants: [Q4_K_M]}", "gguf: {quants: [{type: q4_k_m, pure: off}], outtype: BF16}"),
        ("gguf:", "gguf: {}"),
        ("gguf: {imatrix: }", "gguf: {imatrix: {context: 512.0, chunks: null}}"),
        ("gguf: {imatrix: true}", "gguf: {imatrix: {}}"),
        ("random_seed: 0", "random_seed: null"),
        (
            "gguf: {quants: [{type: Q6_K, tensor_types: {attn_v: Q8_0}}]}",
            "gguf: {quants: [{name: Q6_K, type: Q6_K, tensor_types: [attn_v=q8_0]}]}",
        ),
        ("publish: {max_kld: 1}", "publish: {max_kld: {'*': 1.0}}"),
    ],
)
def test_an_equal_value_written_otherwise_rebuilds_nothing(one, other, workdir):
    def model(text: str):
        more = "    gguf: {}\n    evaluate: {}\n" if "publish" in text else ""
        return read(f"{TEXTS}models:\n  M:\n    source: a/b\n{more}    {text}\n", workdir)

    assert model(one) == model(other)
    assert model(one)[0].model_dump_json() == model(other)[0].model_dump_json()


def test_a_weight_of_one_is_a_weight_of_one(workdir):
    def merge(weight: str):
        text = f"parameters: {{weight: {weight}}}"
        text = f"{{merge_method: linear, models: [{{model: a/b, {text}}}]}}"
        return read(f"models: {{M: {{merge: {text}}}}}", workdir)[0].models["M"].merge

    assert json.dumps(merge("1")) == json.dumps(merge("1.0"))
    assert merge("0.3") != merge("0.5")


def test_defaults_are_those_of_the_documentation(workdir):
    text = TEXTS + "models: {M: {source: a/b, gguf: {imatrix: }, exl2: {bits: 4}, evaluate: }}"
    config, options = read(text, workdir)
    model = config.models["M"]
    assert (model.gguf.outtype, model.gguf.quants, model.gguf.split_max_size) == ("bf16", [], None)
    assert model.gguf.imatrix.model_dump() == {
        "file": None,
        "corpus": "calibration",
        "chunks": None,
        "context": 512,
        "format": "dat",
        "process_output": False,
        "parse_special": False,
        "batch_size": None,
    }
    assert (model.exl2.head_bits, model.exl2.rows, model.exl2.corpus) == (6, 100, "default")
    assert (model.evaluate.corpus, model.evaluate.context) == ("evaluation", 512)
    assert model.publish is None and config.reclaim == [] and config.llama_cpp.cuda == "auto"
    assert options.models() is None and options.skip == [] and not options.ignore_disk


def test_options_of_the_command_line_are_no_part_of_the_config(workdir):
    raw = yaml.safe_load("models: {A: {source: a/b}, B: {source: a/b}, C: {source: a/b}}")
    plain, _ = load(raw, workdir)
    config, options = load(
        OrderedDict(raw, model="A, C", skip="exl2", only="org/x", ignore_disk=1), workdir
    )
    assert config == plain
    assert (options.models(), options.skip, options.only) == (["A", "C"], ["exl2"], ["org/x"])
    assert options.ignore_disk is True


def test_yaml_truth_values_are_on_and_off(workdir):
    for written, meant in (("on", "on"), ("off", "off"), ("auto", "auto"), ("'ON'", "on")):
        assert read(f"{OK}llama_cpp: {{cuda: {written}}}", workdir)[0].llama_cpp.cuda == meant


def test_the_conversion_among_the_quants_stands_for_itself(workdir):
    text = "models: {M: {source: a/b, gguf: {outtype: bf16, quants: [%s, Q4_0, F16]}}}"
    read(text % "BF16", workdir)
    [line] = problems(text % "BF16, bf16", workdir)
    assert line.startswith("models.M.gguf.quants[1].name: 'BF16' is the name of the conversion")


def test_options_on_the_conversions_own_type_are_refused_and_not_dropped(workdir):
    text = "models: {M: {source: a/b, gguf: {quants: [{type: BF16, %s}]}}}"
    gguf = read(text % "imatrix: false", workdir)[0].models["M"].gguf
    assert gguf.parted("BF16") == ([], True)
    options = {"pure": True, "output_tensor_type": "q8_0", "prune_layers": [1]}
    for key, value in options.items():
        [line] = problems(text % f"{key}: {value}", workdir)
        assert line.startswith("models.M.gguf.quants[0].name: 'BF16' is the name of the conversion")
        gguf = Gguf.model_validate({"quants": [{"type": "BF16", key: value}]})
        assert gguf.parted("BF16") == (gguf.quants, False)


def test_mxfp4_is_for_mixtures_of_experts_also_by_way_of_merges(workdir):
    text = """
        models:
          parent: {source: ./%s}
          M:
            merge: {merge_method: passthrough, models: [{model: parent}]}
            gguf: {quants: [MXFP4_MOE]}
        """
    read(text % "experts", workdir)
    assert "dense" in problems(text % "dense", workdir)[0]
    read("models: {M: {source: a/b, gguf: {quants: [MXFP4_MOE]}}}", workdir)  # nobody knows


def test_what_the_demo_makes_need_not_exist_yet(workdir):
    config = yaml.safe_load(EXAMPLES[0].read_text())
    load(config, workdir)


def test_a_merge_in_a_file_is_the_merge_as_if_it_stood_in_the_config(workdir):
    (workdir / "merges/m.yml").write_text(MERGE + "---\n")  # and an empty document
    named = "models: {M: {merge: %s, random_seed: 3}, named: {source: ./dense}}"
    merge = json.dumps(yaml.safe_load(MERGE)).replace("./local", "./dense")
    (workdir / "merges/m.yml").write_text(MERGE.replace("./local", "./dense") + "---\n")
    config, _ = read(named % "merges/m.yml", workdir)
    assert config == read(named % merge, workdir)[0]
    (workdir / "merges/m.yml").write_text(
        "name: mine\n" + MERGE.replace("./local", "./dense").lstrip()
    )
    assert config == read(named % "./merges/m.yml", workdir)[0]


def multi(*documents: dict) -> str:
    return "\n---\n".join(map(json.dumps, documents))


def test_the_documents_of_mergekit_multi_become_models_that_others_may_merge(workdir):
    first = {"merge_method": "linear", "models": [{"model": "a/b"}]}
    last = {"merge_method": "slerp", "base_model": "first", "models": [{"model": "first"}]}
    named = {"first": {"merge": first, "random_seed": 3}, "M": {"merge": last, "random_seed": 3}}
    wanted, _ = load({"models": named}, workdir)
    for documents in (
        (
            first | {"name": "first"},
            last,
        ),  # the one without a name is the model, wherever it stands
        (last, first | {"name": "first"}),
        (first | {"name": "first"}, last | {"name": "final"}),  # else the last
    ):
        (workdir / "multi.yaml").write_text(multi(*documents))
        raw = {"models": {"M": {"merge": "multi.yaml", "random_seed": 3}}, "model": "first"}
        config, options = load(raw, workdir)
        assert config == wanted
        assert options.models() == ["first"]


def test_what_the_documents_of_mergekit_multi_call_the_last_one_is_the_model(workdir):
    first = {"merge_method": "linear", "models": [{"model": "final"}], "name": "first"}
    last = {"merge_method": "linear", "models": [{"model": "a/b"}], "name": "final"}
    (workdir / "multi.yaml").write_text(multi(first, last))
    config, _ = read("models: {M: {merge: multi.yaml}}", workdir)
    assert config.models["first"].merge["models"] == [{"model": "M"}]


def test_a_document_of_mergekit_multi_takes_no_other_models_place(workdir):
    first = {"merge_method": "linear", "models": [{"model": "a/b"}], "name": "first"}
    (workdir / "multi.yaml").write_text(multi(first, {**first, "name": "final"}))
    text = "models: {first: {source: c/d}, M: {merge: multi.yaml}, N: {merge: multi.yaml}}"
    taken = "multi.yaml: its document first is named as another model of the config; rename one"
    assert problems(text, workdir) == [
        f"models.M.merge: {taken} of them",
        f"models.N.merge: {taken} of them",
    ]


@pytest.mark.parametrize(
    ("file", "form", "quantized"),
    [
        ("x", "BF16", False),
        ("moe", "F16", False),
        ("no-type", "F32", False),
        ("q8", "Q8_0", True),
        ("q4", "Q4_K_M", True),
    ],
)
def test_a_gguf_source_is_the_form_that_its_header_says(file, form, quantized, workdir):
    text = f"models: {{M: {{source: ./own/{file}.gguf, gguf: {{quants: [{form}]}}}}}}"
    model = read(text, workdir)[0].models["M"]  # and the form may be listed: it is kept
    assert (model.conversion, model.own_gguf.quantized) == (form, quantized)


def test_a_gguf_source_is_read_again_when_it_is_another_file(workdir):
    text = "models: {M: {source: ./own/x.gguf, gguf: {quants: [Q8_0]}}}"
    assert read(text, workdir)[0].models["M"].conversion == "BF16"
    before = (workdir / "resources/contents.json").read_text()
    assert read(text, workdir)[0].models["M"].conversion == "BF16"
    assert (workdir / "resources/contents.json").read_text() == before
    (workdir / "own/x.gguf").write_bytes(gguf_files()["moe.gguf"])
    config, _ = read(text, workdir)
    assert config.models["M"].conversion == "F16"
    assert config.models["M"].own_gguf.experts == 8


def test_a_quantized_gguf_source_is_quantized_again_only_where_that_is_allowed(workdir):
    text = "models: {M: {source: ./own/q8.gguf, gguf: {quants: [{type: Q4_0%s}]}}}"
    [line] = problems(text % "", workdir)
    assert line == (
        "models.M.gguf.quants[0]: source ./own/q8.gguf is quantized already (Q8_0): give the "
        "unquantized file, or set allow_requantize: true"
    )
    read(text % ", allow_requantize: true", workdir)


def test_a_merge_of_a_gguf_source_is_refused_by_name_and_by_file(workdir):
    text = """
        models:
          G: {source: ./own/x.gguf}
          M: {merge: {merge_method: linear, models: [{model: G}, {model: ./own/x.gguf}]}}
        """
    assert problems(text, workdir) == [
        "models.M.merge.models[0].model: 'G' is ./own/x.gguf, a GGUF file, and merges need "
        "safetensors",
        "models.M.merge.models[1].model: './own/x.gguf' is a GGUF file, and merges need "
        "safetensors",
    ]


MERGE = """
merge_method: linear
base_model: org/base@v1.0
slices:
  - sources:
      - {model: ./local+org/adapter, layer_range: [0, 2]}
      - {model: {model: {path: org/other, revision: abc}, lora: org/lora}, layer_range: [0, 2]}
    base_model: named
tokenizer:
  source: union
  tokens:
    <s>: {source: org/base@v1.0}
    </s>: {source: {kind: model_token, model: named, token_id: 2}}
    <pad>: {source: {kind: zero}}
parameters: {weight: 1.0}
dtype: bfloat16
"""


def test_no_model_of_a_merge_is_overlooked():
    from mergekit.config import MergeConfiguration

    def text(path) -> str:
        return f"{path.path}@{path.revision}" if path.revision else path.path

    merge = yaml.safe_load(MERGE)
    found = merge_references(merge)
    assert [reference.parts for reference in found] == [
        ("org/base@v1.0",),
        ("named",),
        ("./local", "org/adapter"),
        ("org/other@abc", "org/lora"),
        ("org/base@v1.0",),
        ("named",),
    ]
    config = MergeConfiguration.model_validate(merge)
    referenced = {
        tuple(text(path) for path in (model.model, model.lora) if path)
        for model in config.referenced_models()
    }
    assert referenced <= {reference.parts for reference in found}
    with_tokenizer = {"merge_method": "linear", "models": [], "tokenizer_source": "a/tokens"}
    assert merge_references(with_tokenizer)[0].parts == ("a/tokens",)
    assert merge_references({**with_tokenizer, "tokenizer_source": "base"}) == []


def test_substitution_leaves_all_else_as_it_was_and_mergekit_reads_the_result():
    from mergekit.config import MergeConfiguration

    merge = yaml.safe_load(MERGE)
    mapping = {"org/base@v1.0": "/cache/base", "named": "./results/named", "org/adapter": "./a"}
    mapping |= {"org/other@abc": "/cache/other"}
    changed = substitute_references(merge, mapping)
    assert merge == yaml.safe_load(MERGE)
    assert changed["slices"][0]["sources"][0]["model"] == "./local+./a"
    assert changed["tokenizer"]["tokens"]["<s>"]["source"] == "/cache/base"
    parts = {part for reference in merge_references(changed) for part in reference.parts}
    assert parts == {"/cache/base", "./results/named", "./local", "./a", "/cache/other", "org/lora"}
    kept = ("parameters", "dtype", "merge_method")
    assert {key: changed[key] for key in kept} == {key: merge[key] for key in kept}
    lora = [
        m.lora.path
        for m in MergeConfiguration.model_validate(changed).referenced_models()
        if m.lora
    ]
    assert sorted(lora) == ["./a", "org/lora"]


def test_no_merge_method_or_key_of_mergekit_is_refused():
    import mergekit.config as theirs
    from mergekit._data import chat_templates
    from mergekit.common import dtype_from_name
    from mergekit.merge_methods.base import BasePolicy
    from mergekit.merge_methods.registry import registered_methods
    from mergekit.tokenizer.config import TokenizerConfig

    policies = {m.spec.name: m.spec.contract.base for m in registered_methods()}
    needs = {name: policy is BasePolicy.REQUIRED for name, policy in policies.items()}
    assert needs == merges.METHODS
    for keys, model in [
        (merges.MERGE_KEYS, theirs.MergeConfiguration),
        (merges.MODEL_KEYS, theirs.InputModelDefinition),
        (merges.SLICE_KEYS, theirs.OutputSliceDefinition),
        (merges.SOURCE_KEYS, theirs.InputSliceDefinition),
        (merges.MODULE_KEYS, theirs.OutputModuleDefinition),
        (merges.TOKENIZER_KEYS, TokenizerConfig),
    ]:
        assert set(keys) == set(model.model_fields), model
    templates = {path.stem for path in Path(chat_templates.__file__).parent.glob("*.jinja")}
    assert templates | {"auto"} == set(merges.CHAT_TEMPLATES)
    for name in merges.DTYPES:
        dtype_from_name(name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted_and_fits_the_schema(path, workdir):
    import jsonschema

    raw = yaml.safe_load(path.read_text())
    config, _ = load(raw, workdir)
    assert config.models
    jsonschema.validate(raw, json.loads((ROOT / "config/schema.json").read_text()))


def test_every_config_in_the_readme_is_accepted(workdir):
    (workdir / "my-finetune").mkdir()
    (workdir / "my-finetune" / "config.json").write_text("{}")
    (workdir / "my-finetune" / "model.safetensors").write_bytes(NO_TENSORS)
    for name in ("my-code", "my-prose", "code-8b"):
        (workdir / name).symlink_to(workdir / "my-finetune")
    (workdir / "Prose-8B-BF16.gguf").write_bytes(gguf_files()["x.gguf"])
    (workdir / "mergekit_config.yaml").write_bytes(ONE)
    for name in ("imatrix.dat", "measurement.json"):
        (workdir / name).touch()
    text = (ROOT / "config/README.md").read_text()
    blocks = re.findall(r"\n\n((?:    .*\n|\n(?=    ))+)", text)
    configs = [block for block in blocks if re.match(r"    (models|corpora):\n", block)]
    assert len(configs) >= 5
    texts = TEXTS
    for block in configs:
        block = re.sub(r"^    ", "", block, flags=re.MULTILINE)
        texts = "" if "corpora:" in block else TEXTS
        read(texts + block + ("" if "models:" in block else OK), workdir)


def test_schema_and_table_of_keys_are_in_step_with_the_models():
    command = [sys.executable, str(ROOT / "dev/config_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_hundred_models_of_thirty_quants_are_read_in_no_time(workdir):
    sweep = yaml.safe_load((ROOT / "config/examples/sweep-8b.yaml").read_text())
    model = next(iter(sweep["models"].values()))
    raw = {**sweep, "models": {f"M{number}": model for number in range(100)}}
    load(raw, workdir)
    gc.collect()
    gc.freeze()  # what other tests have left in memory is not searched for garbage meanwhile
    before = time.process_time()
    load(raw, workdir)
    took = time.process_time() - before
    gc.unfreeze()
    assert took < 0.5
