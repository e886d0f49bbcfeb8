"""The same bytes on every machine, or the kind of machine that they are bound to."""

import ctypes
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

import ask_verify_rebuild
import install_llama_cpp as install
from lib.formats.quants import PURE
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.bound import Bound, kind_of_machine
from lib.record.tools import bundled_version
from lib.stages.registry import STAGES
from project import ROOT, Planned, Project

# {tensor type: sha256 of `rows` in it}, as gcc 12 and clang 14 make it on x86-64 with and without
# AVX, and gcc 12 on Arm (docs/bytes.md). `PYTHONPATH=scripts python tests/test_bytes.py LIBRARY`
# prints them, for a llama.cpp that quantizes in another way.
KNOWN = ROOT / "tests/snapshots/quants.json"
FUSING = "-ffp-contract=fast" + " -mfma" * (os.uname().machine == "x86_64")


def rows() -> tuple[numpy.ndarray, numpy.ndarray]:
    """(64 rows of 1024 weights, a weight of importance for each column), float32.

    Of whole numbers and powers of two alone, so that they are the same with every library.
    """
    drawn = numpy.random.PCG64(1).random_raw(64 * 1024)
    parts = [(drawn >> (16 * part)).astype(numpy.uint16).astype(numpy.int64) for part in range(4)]
    weights = (sum(parts) - 2 * 65535).astype(numpy.float32) / numpy.float32(2**20)
    importance = (drawn[:1024] >> 40).astype(numpy.float32) / numpy.float32(2**20)
    return weights.reshape(64, 1024), importance + numpy.float32(2**-10)


def quantized(library: Path) -> dict[str, str]:
    """{tensor type: sha256 (hex) of `rows` in it}. library: libggml-base."""
    ggml, (weights, importance) = ctypes.CDLL(str(library)), rows()
    pointer, wide = ctypes.POINTER(ctypes.c_float), ctypes.c_int64
    quantize = ggml.ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, pointer, ctypes.c_void_p, wide, wide, wide, pointer]
    quantize.restype = ctypes.c_size_t
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_row_size.argtypes, ggml.ggml_row_size.restype = [ctypes.c_int, wide], ctypes.c_size_t
    kinds: dict[str, int] = {}
    for kind in itertools.takewhile(lambda _: PURE.keys() - kinds, itertools.count()):
        kinds[ggml.ggml_type_name(kind).decode().lower()] = kind
    count, width = weights.shape
    found = {}
    for name in PURE:
        out = (ctypes.c_uint8 * (count * ggml.ggml_row_size(kinds[name], width)))()
        source, beside = (array.ctypes.data_as(pointer) for array in (weights, importance))
        assert quantize(kinds[name], source, out, 0, count, width, beside) == len(out), name
        found[name] = hashlib.sha256(bytes(out)).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_quants_are_the_same_by_a_compiler_that_may_fuse_products_and_sums(compiler, tmp_path):
    """As compilers do on Arm. The flag that hinders it must come after the user's own flags."""
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler} here")
    flags = [*install.build_flags(False, True, bundled_version()), "BUILD_SHARED_LIBS=ON"]
    flags += [f"CMAKE_C_COMPILER={compiler}", f"CMAKE_C_FLAGS={FUSING}", "GGML_CPU=OFF"]
    install.cmake(tmp_path, flags, ["ggml-base"], jobs=2)
    # In a process of its own: it keeps what it is loaded with.
    command = [sys.executable, __file__, tmp_path / "bin/libggml-base.so"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(KNOWN.read_text())


OTHER = {"cpu": "x86-64-v2 SomebodyElse"}
MERGE, QUANT = "results/Two/safetensors", "results/Two/gguf/Two-Q8_0.gguf"


def change(path: Path, byte: int) -> None:
    """Change a bit in a byte."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 64
    path.write_bytes(data)


def built_elsewhere(project: Project) -> None:
    """Make a merge as another kind of machine might have made it, and all that is made from it."""
    change(project / MERGE / "model.safetensors", -2)
    record = recipes.read(MERGE)
    data = (project / MERGE / "model.safetensors").read_bytes()
    record.files["model.safetensors"][1] = hashlib.sha256(data).hexdigest()
    record.sha256, record.machine = recipes.digest(record.files), OTHER
    recipes.write(record)
    for path in (project / "results/Two/gguf").iterdir():
        path.unlink()
    project.build(QUANT)


@pytest.mark.slow
def test_what_another_kind_of_machine_made_is_told_apart_from_what_is_broken(project, monkeypatch):
    monkeypatch.chdir(project.path)
    built_elsewhere(project)
    quant = (project / QUANT).read_bytes()
    change(project / QUANT, -2)
    asked = ("verify_rebuild", "--config", "model=Two")
    said = project.run(*asked, check=False)
    assert f"{MERGE}  " in said and "bound to this kind of machine; it was built on another" in said
    assert "built on x86-64-v2 SomebodyElse\n" in said
    assert f"this is  {kind_of_machine()['cpu']}\n" in said
    assert re.search(rf"{QUANT} +different: tensor ", said)  # nothing excuses a damaged file
    assert "Different: 1 of" in said
    # As on one kind of machine: then another merge is a fault.
    record, scratch = recipes.read(MERGE), Path(".snakemake/quantmill/verify/Two")
    artifact = Planned.open(project.config).graph.artifacts("Two")[MERGE]
    assert ask_verify_rebuild.verdict(artifact, MERGE, record, scratch).startswith("bound to")
    recipes.write(replace(record, machine=recipes.read(MERGE, scratch).machine))
    told = ask_verify_rebuild.verdict(artifact, MERGE, recipes.read(MERGE), scratch)
    assert told.startswith("different: tensor ")
    recipes.write(record)
    (project / QUANT).write_bytes(quant)
    said = project.run(*asked)
    assert re.search(rf"{QUANT} +not comparable here: Two-BF16.gguf has other bytes", said)
    assert re.search(r"The other \d artifacts? of Two came out the same again", said)


def test_records_tell_the_kind_of_machine_where_bytes_depend_on_it_and_no_name_of_it(project):
    """Who cannot make the merge again then knows why, and learns nothing of the builder."""
    for path in (MERGE, "results/Mix/imatrix.dat", "results/Mix/evaluation/Q8_0.json"):
        assert recipes.read(path, project.path).machine == kind_of_machine(), path
    for path in (QUANT, "results/Two/gguf/Two-BF16.gguf", "results/Mix/shards/Q8_0"):
        assert recipes.read(path, project.path).machine == {}, path
    told = json.dumps(kind_of_machine())
    assert os.uname().nodename not in told and "/" not in told


def test_records_of_before_that_tell_no_machine_stay_valid(project, monkeypatch):
    monkeypatch.chdir(project.path)
    recipes.write(replace(recipes.read(MERGE), machine={}))
    assert '"machine"' not in Path(recipes.path_of(MERGE)).read_text()
    assert project.plan() == set()


def test_what_bytes_are_bound_to_is_in_no_recipe(tmp_path, monkeypatch):
    """A better measurement of what depends on machines must not cost a rebuild."""
    monkeypatch.chdir(tmp_path)
    made = [Artifact("a", "merge", None, {}, bound=bound) for bound in (None, *Bound)]
    assert len({artifact.digest for artifact in made}) == 1
    assert [artifact.bound for artifact in made] == [Bound.MACHINE, *Bound]
    assert [artifact.reproducible for artifact in made] == [True, True, True, False]


def test_what_never_comes_out_the_same_is_not_taken_for_reproducible():
    assert {rule for rule in STAGES if not Artifact("a", rule, None, {}).reproducible} == {
        *("exl2_measure", "exl2_quantize", "exl3_quantize"),
    }


def test_no_stage_promises_other_than_docs_bytes_says_was_measured():
    text = (ROOT / "docs/bytes.md").read_text()
    told = {}
    words = "|".join(bound.value for bound in Bound)
    for rules, bound in re.findall(rf"^\| (`.*?) \| ({words}) \|", text, re.M):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", rules), bound)
    assert told == {rule: stage.bound.value for rule, stage in STAGES.items()}


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu sse2", "x86-64 GenuineIntel"),
        ("sse4_1 sse4_2 ssse3 cx16 popcnt lahf_lm", "x86-64-v2 GenuineIntel"),
        ("sse4_1 sse4_2 ssse3 cx16 popcnt avx avx2 fma", "x86-64 GenuineIntel"),  # no lahf_lm
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="levels are those of x86-64")
def test_processors_that_compute_otherwise_are_of_another_kind(flags, kind, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    one = f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: X\nflags\t\t: {flags}\n"
    cpuinfo.write_text(f"{one}\n{one}")
    assert kind_of_machine(cpuinfo) == {"cpu": kind}
    cpuinfo.write_text(one.replace("\nflags", "\nmicrocode\t: 0x1\nflags") + "\n")
    assert kind_of_machine(cpuinfo) == {"cpu": kind}
    cpuinfo.write_text(f"{one.rstrip()} avx512_bf16\n")
    assert kind_of_machine(cpuinfo) == {"cpu": f"{kind} avx512_bf16"}


def test_a_step_on_a_gpu_is_of_another_kind_than_one_on_processors(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as `gpus 0` sets it
    on_processors = kind_of_machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert on_processors.keys() == {"cpu"} and kind_of_machine().keys() == {"cpu", "gpu"}


def test_the_card_says_what_a_downloader_can_make_again_and_where(project):
    card = " ".join((project / "results/Mix/README.md").read_text().split())
    assert (
        "Made again from the same inputs by its recipe, a file has the same bytes: GGUF on every "
        "machine; the merge, the importance matrix on the kind of machine that its recipe names."
    ) in card


if __name__ == "__main__":
    print(json.dumps(quantized(Path(sys.argv[1])), indent=1))
