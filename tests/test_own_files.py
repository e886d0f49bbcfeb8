"""Files that people have already: they are used as they are, what is made of them is as ever."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gguf_metadata
import publish
from lib.cards.prompt import prompt_format
from lib.formats import chat
from project import CONFIG, ROOT, Project, sha256

MODEL = {
    "source": "./m/prose",
    "gguf": {
        "imatrix": {"chunks": 3, "context": 128},
        "quants": ["Q8_0", "Q4_K_M"],
        "split_max_size": "1M",
    },
    "evaluate": {"context": 128, "chunks": 2},
}
HERE = "results/Plain"
MATRIX = f"{HERE}/imatrix.dat"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Project:
    """One model, built from a directory: somebody may have its conversion and imatrix."""
    p = Project.create(tmp_path_factory.mktemp("plain"))
    p.config = {"corpora": CONFIG["corpora"], "models": {"Plain": MODEL}}
    p.build()
    (p / "own").mkdir()
    shutil.copy(p / HERE / "gguf/Plain-BF16.gguf", p / "own/x.gguf")
    shutil.copy(p / MATRIX, p / "own/mine.dat")
    return p


@pytest.fixture
def p(plain: Project, tmp_path) -> Project:
    return plain.copy(tmp_path / "p")


def model(p: Project, **changes) -> None:
    """Change the keys of Plain, and of its gguf section."""
    gguf = MODEL["gguf"] | changes.pop("gguf", {})
    p.config["models"]["Plain"] = MODEL | {"gguf": gguf} | changes


def quants(p: Project) -> dict[str, str]:
    return {path.name: sha256(path) for path in (p / HERE / "gguf").glob("*-Q*.gguf")}


def split(p: Project) -> dict[str, str]:
    return {path.name: sha256(path) for path in (p / HERE / "shards").glob("*/*.gguf")}


def untouched(path: Path) -> tuple:
    """What changes when somebody writes to a file, dates it, or gives it a second name."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_nlink


def manifest(p: Project) -> tuple[list[str], list[str]]:
    """Names of what `publish` would take, and what stands in its way."""
    code = (
        "import json, publish; "
        "targets, problems = publish.read(json.load(open('.snakemake/quantmill/publish.json'))); "
        "names = [i.name for t in targets for b in t.branches for i in b.items]; "
        "print(json.dumps([names, problems]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(publish.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=p.path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# An importance matrix


@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_an_imatrix_of_ones_own_gives_the_quants_that_the_computed_one_gives(p, kind):
    own = p / f"own/matrix.{kind}"
    if kind == "gguf":
        model(p, gguf={"imatrix": MODEL["gguf"]["imatrix"] | {"format": "gguf"}})
        p.build()
    shutil.copy(p / f"{HERE}/imatrix.{kind}", own)
    before = quants(p), split(p)
    assert len(before[0]) == 2
    model(p, gguf={"imatrix": {"file": f"own/matrix.{kind}"}})
    p.build()
    assert (quants(p), split(p)) == before
    assert sha256(p / f"{HERE}/imatrix.{kind}") == sha256(own)
    assert p.plan() == set()
    assert "are what their records say" in p.run("verify")
    text = (p / HERE / "README.md").read_text()
    assert f"(sha256 `{sha256(own)}`), which was not computed here" in text
    assert "llama-imatrix" not in text


def test_an_imatrix_of_another_model_is_refused_before_the_conversion(p):
    data = (p / "own/mine.dat").read_bytes()
    (p / "own/mine.dat").write_bytes(data.replace(b"blk.1.attn_q", b"blk.7.attn_q"))
    model(p, gguf={"imatrix": {"file": "./own/mine.dat"}}, source="./m/code")
    said = p.run(check=False)
    assert "models.Plain.gguf.imatrix.file  ./own/mine.dat: 14 entries" in said
    assert "3 layers, the model has 2\npreflight: 1 problem\n(--config ignore_pre" in said
    assert said.endswith("(--config ignore_preflight=true builds all the same)\n")
    assert "build   " not in said
    said = p.run("--config", "ignore_preflight=true", check=False)
    assert (
        "check_imatrix: models.Plain.gguf.imatrix.file: ./own/mine.dat: it has an entry "
        "blk.7.attn_q.weight, which the model does not have; not a matrix of "
    ) in said
    assert "build   results/Plain/gguf/Plain-Q8_0.gguf" not in said


def test_what_is_no_imatrix_is_refused_by_key_and_file(p):
    (p / "own/mine.dat").write_text("Some text that is no matrix.\n")
    model(p, gguf={"imatrix": {"file": "./own/mine.dat"}})
    said = p.run(check=False)
    assert "check_imatrix: models.Plain.gguf.imatrix.file: ./own/mine.dat: not an imp" in said


# A GGUF file as a model


def test_a_gguf_source_gives_the_files_that_the_model_directory_gives(p):
    before = quants(p), split(p), sha256(p / MATRIX)
    before_us = untouched(p / "own/x.gguf")
    model(p, source="./own/x.gguf")
    shutil.rmtree(p / "results")
    assert re.search(r"gguf/Plain-BF16\.gguf +source_gguf +link ", p.run("plan"))
    p.build()
    link = p / HERE / "gguf/Plain-BF16.gguf"
    assert link.is_symlink() and link.resolve() == (p / "own/x.gguf").resolve()
    assert (quants(p), split(p), sha256(p / MATRIX)) == before
    assert untouched(p / "own/x.gguf") == before_us
    assert p.plan() == set()
    assert "are what their records say" in p.run("verify")
    rows = (p / HERE / "report/quality.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["Q4_K_M", "Q8_0", "BF16"]
    text = (p / HERE / "README.md").read_text()
    assert "made from ./own/x.gguf" in text and "convert_hf_to_gguf" not in text


def test_the_card_of_a_gguf_source_shows_its_prompt_format(p):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    gguf_metadata.apply(p / "own/x.gguf", p / "own/y.gguf", {"tokenizer.chat_template": template})
    assert (
        prompt_format(*chat.read(p / "own/y.gguf")) == "<s>[system] {system_prompt}[user] {prompt}"
    )
    assert prompt_format(*chat.read(p / "own/x.gguf")) is None


def test_a_gguf_source_is_predicted_as_its_quants_come_out(p):
    model(p, source="./own/x.gguf", gguf={"quants": ["Q8_0", "Q4_K_M", "IQ3_XXS"]})
    shutil.rmtree(p / "results")
    shutil.rmtree(p / "resources/llama.cpp")  # no dry run of llama-quantize tells
    (p / "resources/llama.cpp.recipe.json").unlink()
    p.write()
    code = (
        "import sys, json, yaml; from types import SimpleNamespace as S; "
        "from lib.run.session import Session; from lib.forecast.sizes import Sizes; "
        "ask = lambda: S(forceall=False, forcetargets=False, forcerun=set(), targets=set()); "
        "s = Session(yaml.safe_load(open('c.yaml')), ask, True); "
        "sizes = Sizes(s.graph, s.graph.lock); "
        "print(json.dumps({a.path: sizes.of(a).bytes for a in s.graph}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=p.path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    predicted = json.loads(done.stdout)
    p.build("quants")
    for form in ("Q8_0", "Q4_K_M", "IQ3_XXS"):
        path = f"{HERE}/gguf/Plain-{form}.gguf"
        assert predicted[path] == pytest.approx((p / path).stat().st_size, rel=0.01), form
    assert predicted[MATRIX] == pytest.approx((p / MATRIX).stat().st_size, rel=0.05)


def test_a_kept_gguf_source_is_published_and_split_and_never_deleted(p):
    before_us = untouched(p / "own/x.gguf")
    gguf = {"quants": ["BF16", "Q8_0"], "split_max_size": "50G"}
    model(p, source="./own/x.gguf", gguf=gguf, publish={"gguf": "org/Plain"})
    p.config["reclaim"] = ["bf16"]
    p.build()
    p.run("publish_plan", check=False)  # there is no hub here, but the manifest is made
    names, problems = manifest(p)
    assert {"Plain-BF16.gguf", "Plain-Q8_0.gguf", "recipes/Plain-BF16.gguf.recipe.json"} <= {*names}
    assert not problems and not [name for name in names if name.startswith("Plain-BF16/")]
    record = json.loads((p / HERE / "gguf/Plain-BF16.gguf.recipe.json").read_text())
    assert record["sha256"] == sha256(p / "own/x.gguf")
    assert str(p.path) not in json.dumps(record)
    shard = p / HERE / "shards/BF16/Plain-BF16.gguf"
    assert shard.is_symlink() and shard.samefile(p / "own/x.gguf")
    assert "are what their records say" in p.run("verify")
    p.config["models"] = {"Other": {"source": "./m/base"}}
    p.run("clean_orphans", "--config", "yes=true")
    assert not os.path.lexists(p / HERE / "gguf/Plain-BF16.gguf")
    assert untouched(p / "own/x.gguf") == before_us


def test_a_gguf_source_comes_out_the_same_again(p):
    model(p, source="./own/x.gguf")
    p.build()
    said = p.run("verify_rebuild", "--config", "model=Plain")
    assert "artifacts of Plain came out the same again" in said


@pytest.mark.parametrize("target", [[], ["quants"], [f"{HERE}/gguf/Plain-Q5_0.gguf"]])
def test_a_link_to_a_gguf_source_that_leads_nowhere_is_told_and_mended(p, target):
    model(p, source="./own/x.gguf")
    p.build("quants")
    link = p / HERE / "gguf/Plain-BF16.gguf"
    link.unlink()
    link.symlink_to("/nowhere/x.gguf")
    assert p.plan("quants") == set()
    link.symlink_to("/nowhere/x.gguf")  # the plan has removed it
    assert "Plain-BF16.gguf  missing: the link leads nowhere" in p.run("verify", check=False)
    model(p, source="./own/x.gguf", gguf={"quants": ["Q8_0", "Q4_K_M", "Q5_0"]})
    p.build(*target)
    assert link.samefile(p / "own/x.gguf") and (p / HERE / "gguf/Plain-Q5_0.gguf").exists()


def test_a_gguf_source_with_nan_is_refused_before_its_quants(p):
    from lib.formats.gguf_file import read_gguf

    tensor = next(t for t in read_gguf(p / "own/x.gguf").tensors if t.name == "output.weight")
    with (p / "own/x.gguf").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\x7f" * 8)
    model(p, source="./own/x.gguf")
    said = p.run(check=False)
    assert "NaN or Inf in its tensor output.weight" in said
    assert "build   results/Plain/gguf/Plain-Q8_0.gguf" not in said


# An EXL2 measurement


def measurement(layers: int) -> str:
    """As exllamav2 0.3.2 writes it."""
    tried = [{"accuracy": 0.9, "total_bits": 3}]
    keys = [f"model.layers.{i}.{part}" for i in range(layers) for part in ("self_attn", "mlp")]
    found = dict.fromkeys(keys, tried) | {"model.norm.norm": None}
    return json.dumps({"measurement": found, "last_module_idx": 6})


def test_an_exl2_measurement_of_ones_own_is_taken_as_it_is(p):
    """The bits values that are made from it need a GPU."""
    (p / "own/measurement.json").write_text(measurement(2))
    exl2 = {"bits": [4.0], "measurement": "./own/measurement.json"}
    p.config["models"] = {"Plain": {"source": "./m/prose", "exl2": exl2}}
    made = f"{HERE}/exl2/measurement.json"
    p.build(made, "--config", "ignore_preflight=true")
    assert (p / made).read_bytes() == (p / "own/measurement.json").read_bytes()
    assert p.plan(made) == set()
    assert p.plan() >= {f"{HERE}/exl2/4.0bpw"} and made not in p.plan()


@pytest.mark.parametrize("layers", [1, 3])
def test_an_exl2_measurement_of_another_model_is_refused_before_anything_is_made(p, layers):
    (p / "own/measurement.json").write_text(measurement(layers))
    exl2 = {"bits": [4.0], "measurement": "./own/measurement.json"}
    p.config["models"] = {"Plain": {"source": "./m/prose", "exl2": exl2}}
    said = p.run(check=False)
    assert "models.Plain.exl2.measurement" in said and "own/measurement.json: " in said
    assert "layer 1 of 2 was not measured" in said or "more layers than the model's 2" in said
    assert "build   " not in said
    made = f"{HERE}/exl2/measurement.json"
    said = p.run(made, "--config", "ignore_preflight=true", check=False)
    assert "check_measurement: models.Plain.exl2.measurement: ./own/measurement.json: " in said


# Merges in files


def test_a_file_of_mergekit_multi_is_built_as_models_of_the_config(p):
    first = {
        "name": "first",
        "merge_method": "linear",
        "models": [{"model": f"./m/{m}", "parameters": {"weight": 0.5}} for m in ("code", "prose")],
        "dtype": "bfloat16",
    }
    last = {
        "merge_method": "slerp",
        "base_model": "first",
        "models": [{"model": "first"}, {"model": "./m/prose"}],
        "parameters": {"t": 0.4},
        "dtype": "bfloat16",
    }
    (p / "multi.yaml").write_text(yaml.safe_dump_all([first, last], sort_keys=False))
    p.config["models"] = {"Mix": {"merge": "multi.yaml"}}
    p.build("merges")
    made = {
        name: yaml.safe_load((p / f"results/{name}/safetensors/mergekit_config.yml").read_text())
        for name in ("first", "Mix")
    }
    del first["name"]
    assert made == {"first": first, "Mix": last}
    p.config["models"] = {"Mix": {"merge": last}, "first": {"merge": first}}
    assert p.plan("merges") == set()  # as if it had stood there all the time


# Shards


def test_a_quant_that_fits_one_shard_is_linked_and_not_copied(p):
    model(p, gguf={"split_max_size": "50G"})
    assert re.search(r"shards/Q8_0 +split +link ", p.run("plan"))
    p.build()
    for form in ("Q8_0", "Q4_K_M"):
        whole = p / HERE / f"gguf/Plain-{form}.gguf"
        (shard,) = (p / HERE / f"shards/{form}").glob("*.gguf")
        assert shard.name == whole.name and shard.samefile(whole) and not shard.is_symlink()
    assert p.plan() == set()
    assert "are what their records say" in p.run("verify")
    # It goes as any artifact does, and takes nothing with it.
    model(p, gguf={"split_max_size": None})
    said = p.run("clean_orphans", "--config", "yes=true")
    assert "results/Plain/shards/Q8_0" in said and "Deleted, 0 B." in said
    assert p.plan() == {f"{HERE}/README.md"}  # which said where they are
    assert "are what their records say" in p.run("verify")


def test_a_link_follows_the_quant_that_was_built_anew(p):
    model(p, gguf={"split_max_size": "50G"})
    p.build()
    model(p, gguf={"split_max_size": "50G", "quants": ["Q8_0", {"type": "Q4_K_M", "pure": True}]})
    p.build()
    for form in ("Q8_0", "Q4_K_M"):
        whole = p / HERE / f"gguf/Plain-{form}.gguf"
        assert (p / HERE / f"shards/{form}/Plain-{form}.gguf").samefile(whole)
    assert p.plan() == set()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system is at hand")
def test_where_no_hard_link_can_be_made_the_link_is_relative_and_moves_along(p, tmp_path):
    """The whole files lie in another file system."""
    elsewhere = Path(f"/dev/shm/{tmp_path.name}-{os.getpid()}")
    try:
        shutil.move(p / HERE / "gguf", elsewhere)
        (p / HERE / "gguf").symlink_to(elsewhere)
        model(p, gguf={"split_max_size": "50G"})
        p.build()
        shard = p / HERE / "shards/Q8_0/Plain-Q8_0.gguf"
        assert os.readlink(shard) == "../../gguf/Plain-Q8_0.gguf"
        assert shard.samefile(elsewhere / "Plain-Q8_0.gguf")
        assert not list((p / HERE).glob("shards/.*"))
        assert p.plan() == set()
        p.path = p.path.rename(tmp_path / "moved")
        assert p.plan() == set()
        assert "are what their records say" in p.run("verify")
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)
