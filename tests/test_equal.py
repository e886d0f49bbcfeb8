"""The same bytes: in another directory, and by hand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from project import CONFIG, FORMS, Project, sha256

MIX = "results/Mix/gguf/Mix-BF16.gguf"
BY_HAND = {
    "results/Mix/gguf/Mix-Q8_0.gguf": ["--imatrix", "results/Mix/imatrix.dat", MIX, "OUT", "Q8_0"],
    "results/Mix/gguf/Mix-mixed.gguf": [
        *("--imatrix", "results/Mix/imatrix.dat"),
        *("--token-embedding-type", "q8_0", "--output-tensor-type", "q5_0"),
        *(MIX, "OUT", "Q4_K_M"),
    ],
    "results/Mix/gguf/Mix-static.gguf": [MIX, "OUT", "Q4_0"],
    "results/Two/gguf/Two-Q8_0.gguf": ["results/Two/gguf/Two-BF16.gguf", "OUT", "Q8_0"],
    "results/Plain/gguf/Plain-Q4_0.gguf": ["results/Plain/gguf/Plain-BF16.gguf", "OUT", "Q4_0"],
}


def tool(project: Project, name: str, *arguments: object) -> str:
    """Run one of llama.cpp's tools in the project's directory; its standard output."""
    command = [project / "resources/llama.cpp/bin" / name, *map(str, arguments)]
    done = subprocess.run(command, cwd=project.path, check=True, capture_output=True)
    return done.stdout.decode(errors="replace")


@pytest.mark.slow
def test_two_builds_in_two_directories_give_the_same_bytes(built, tmp_path):
    other = Project(tmp_path / "elsewhere", CONFIG)
    for name in ("m", "data"):
        shutil.copytree(built / name, other / name, copy_function=shutil.copyfile)
    other.build()
    digests = built.digests()
    assert len(digests) >= 15
    assert other.digests() == digests
    for path in built.path.glob("results/*/evaluation/*.json"):
        if not path.name.endswith(".recipe.json"):
            name = path.relative_to(built.path).as_posix()
            assert (other / name).read_bytes() == path.read_bytes(), name


def test_all_quants_are_compared_by_hand():
    quants = {f"results/{m}/gguf/{m}-{form}.gguf" for m, forms in FORMS.items() for form in forms}
    assert quants == set(BY_HAND)


@pytest.mark.parametrize("quant", BY_HAND)
def test_a_quant_equals_llama_quantizes_by_hand(built, tmp_path, quant):
    out = tmp_path / "byhand.gguf"
    words = [out if word == "OUT" else word for word in BY_HAND[quant]]
    tool(built, "llama-quantize", *words, 1)
    assert sha256(out) == sha256(built / quant)


def test_the_imatrix_equals_llama_imatrixs_by_hand(built, tmp_path):
    out = tmp_path / "byhand.dat"
    text = ("-f", "resources/corpora/calibration.txt", "--chunks", 4, "-c", 128)
    tool(built, "llama-imatrix", "-m", MIX, *text, "-t", 1, "--output-format", "dat", "-o", out)
    assert sha256(out) == sha256(built / "results/Mix/imatrix.dat")


def test_shards_equal_llama_gguf_splits_by_hand(built, tmp_path):
    whole = "results/Mix/gguf/Mix-Q8_0.gguf"
    tool(
        built, "llama-gguf-split", "--split", "--split-max-size", "1M", whole, tmp_path / "Mix-Q8_0"
    )
    made = {path.name: sha256(path) for path in built.path.glob("results/Mix/shards/Q8_0/*.gguf")}
    assert len(made) > 1
    assert {path.name: sha256(path) for path in tmp_path.glob("*.gguf")} == made


@pytest.fixture(scope="module")
def base_logits(built, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("by-hand") / "base.kld"
    text = ("-f", "resources/corpora/evaluation.txt", "--chunks", 3, "-c", 128)
    tool(built, "llama-perplexity", "-m", MIX, *text, "-t", 1, "--kl-divergence-base", out)
    return out


@pytest.mark.parametrize("form", ["BF16", *FORMS["Mix"]])
def test_a_kld_equals_llama_perplexitys_by_hand(built, base_logits, form):
    model = f"results/Mix/gguf/Mix-{form}.gguf"
    report = ""
    for _ in range(20):  # its output can be cut off (b10605)
        report = tool(
            built,
            "llama-perplexity",
            *(
                "-m",
                model,
                "-c",
                128,
                "-t",
                1,
                "--kl-divergence-base",
                base_logits,
                "--kl-divergence",
            ),
        )
        if "Same top p:" in report and report.rstrip().endswith("%"):
            break
    measured = json.loads((built / f"results/Mix/evaluation/{form}.json").read_text())
    number = r"\s*:\s*(-?[\d.]+)"
    for name, value in (
        ("Mean    KLD", measured["kld"]["mean"]),
        ("Maximum KLD", measured["kld"]["max"]),
        ("Median  KLD", measured["kld"]["median"]),
        (r"Mean PPL\(Q\)", measured["perplexity"]["mean"]),
    ):
        printed = float(re.search(name + number, report)[1])
        assert value == pytest.approx(printed, rel=1e-4, abs=3e-5), name
    same = float(re.search(r"Same top p" + number, report)[1])
    assert same / 100 == pytest.approx(measured["same_top"]["mean"], abs=1e-5)
