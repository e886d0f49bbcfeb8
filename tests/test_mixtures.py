"""Mixtures of experts: small Mixtrals with routers bent by hand, built by the real tools."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from check_imatrix import expert_counts
from lib.formats.fallbacks import shape_of
from lib.formats.gguf_file import read_gguf
from lib.formats.imatrix_file import read_imatrix
from lib.formats.mixture import quant_types
from project import Project
from tiny_models import make_mixture, make_texts

NEVER = {0: [2, 3], 1: [6]}
FIRST = {1: [5]}  # an expert that gets the first of a chunk's tokens alone
CHUNKS, CONTEXT = 8, 128
TYPES = ("IQ2_M", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
BOTH = (
    "Of 16 experts the text never reached 3 and gave 1 fewer than 32 tokens. For 32 tokens each it "
    "would take at least 86 chunks (10,923 tokens) in place of 8."
)
NEVER_ALONE = (
    "Of 16 experts the text never reached 3. For 32 tokens each it would take at least 86 chunks "
    "in place of 8."
)


@pytest.fixture(scope="module")
def built_mixtures(tmp_path_factory) -> Project:
    """Bent-gguf and Bent-dat have experts that are never reached, Even has none."""
    config = {
        "source": "./m/bent",
        "gguf": {
            "imatrix": {"chunks": CHUNKS, "context": CONTEXT},
            "quants": ["BF16", "IQ2_M"],
        },
    }
    counted = config["gguf"] | {"imatrix": config["gguf"]["imatrix"] | {"format": "gguf"}}
    project = Project(
        tmp_path_factory.mktemp("mixtures"),
        {
            "corpora": {"calibration": {"path": "data/calibration.txt"}},
            "models": {
                "Bent-dat": config,
                "Bent-gguf": config | {"gguf": counted},
                "Even": config | {"gguf": counted, "source": "./m/even"},
            },
        },
    )
    make_mixture(project / "m/bent", NEVER, FIRST)
    make_mixture(project / "m/even", {}, {})
    make_texts(project / "data", 60)
    project.said = project.run("preflight")
    project.build()
    return project


def matrix_of(project: Project, model: str) -> Path:
    return project / f"results/{model}/imatrix.{'dat' if model == 'Bent-dat' else 'gguf'}"


def counts_of(project: Project, model: str) -> dict[int, np.ndarray]:
    gguf = read_gguf(project / f"results/{model}/gguf/{model}-BF16.gguf")
    return expert_counts(read_imatrix(matrix_of(project, model)), gguf)


def test_tokens_of_each_expert_are_counted(built_mixtures):
    found = counts_of(built_mixtures, "Bent-gguf")
    assert {layer: [*np.flatnonzero(c == 0)] for layer, c in found.items()} == NEVER
    assert found[1][FIRST[1][0]] == CHUNKS
    for counts in (*found.values(), *counts_of(built_mixtures, "Even").values()):
        assert counts.sum() == 2 * CHUNKS * CONTEXT  # each token goes to two
    dat = counts_of(built_mixtures, "Bent-dat")
    assert {layer: [*np.flatnonzero(c == 0)] for layer, c in dat.items()} == NEVER


@pytest.mark.parametrize(
    ("model", "says", "hardly"),
    [("Bent-gguf", BOTH, {"1": "5 (8)"}), ("Bent-dat", NEVER_ALONE, {})],
)
def test_experts_that_the_text_did_not_reach_are_named(built_mixtures, model, says, hardly):
    never = {"0": "2-3", "1": "6"}
    matrix = matrix_of(built_mixtures, model)
    record = json.loads(Path(f"{matrix}.recipe.json").read_text())
    noted = {"says": says, "never": never, "hardly": hardly, "chunks": 86}
    assert record["notes"]["experts"] == noted
    log = (built_mixtures / "logs").rglob(f"*{matrix.name}*")
    (line,) = (line for file in log for line in file.read_text().splitlines() if says in line)
    assert line.startswith(f"{says} Never: layer 0: 2-3; layer 1: 6.")
    assert line.endswith(" Tokens: layer 1: 5 (8)." if hardly else "6.")
    card = (built_mixtures / f"results/{model}/README.md").read_text()
    assert says in card


def test_nothing_is_said_of_a_mixture_whose_experts_were_all_reached(built_mixtures):
    matrix = matrix_of(built_mixtures, "Even")
    record = json.loads(Path(f"{matrix}.recipe.json").read_text())
    assert "notes" not in record
    assert "experts the text" not in (built_mixtures / "results/Even/README.md").read_text()


def test_preflight_says_which_format_counts_experts(built_mixtures):
    (line,) = (line for line in built_mixtures.said.splitlines() if line.startswith("note"))
    assert "models.Bent-dat.gguf.imatrix.format" in line
    assert line.endswith("format: gguf counts the tokens of each expert, dat does not")


def test_an_expert_without_data_is_quantized_as_if_all_its_weights_mattered_alike(
    built_mixtures, llama_bin, tmp_path
):
    """As a type that needs an imatrix, too."""
    ones = Path(shutil.copy(matrix_of(built_mixtures, "Bent-gguf"), tmp_path / "ones.gguf"))
    for tensor in read_gguf(ones).tensors:
        if "_exps" in tensor.name:
            data = np.memmap(ones, "<f4", "r+", tensor.offset, (8, tensor.elements // 8))
            experts = NEVER[int(tensor.name.split(".")[1])]
            assert not data[experts].any()
            data[experts] = 1
            data.flush()
    quants = []
    model = built_mixtures / "results/Bent-gguf/gguf/Bent-gguf-BF16.gguf"
    for matrix in (ones, matrix_of(built_mixtures, "Bent-gguf")):
        quant = tmp_path / "quant.gguf"
        command = [llama_bin / "llama-quantize", "--imatrix", matrix, model, quant, "IQ2_M"]
        subprocess.run(command, check=True, capture_output=True)
        quants.append(quant.read_bytes()[read_gguf(quant).tensors[0].offset :])
    assert quants[0] == quants[1]


@pytest.mark.parametrize("imatrix", [False, True])
def test_the_type_of_each_tensor_of_a_mixture_is_the_tools(built_mixtures, llama_bin, imatrix):
    path = built_mixtures / "results/Even/gguf/Even-BF16.gguf"
    gguf = read_gguf(path)
    shapes = {tensor.name: tensor.shape for tensor in gguf.tensors}
    flags = ["--imatrix", matrix_of(built_mixtures, "Even")] if imatrix else []
    for type_ in TYPES:
        command = [llama_bin / "llama-quantize", "--dry-run", *flags, path, type_]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        output = (done.stdout + done.stderr).lower()
        said = dict.fromkeys(re.findall(r"\] (\S+) +- \[.* type = ", output))
        said |= re.findall(r"\] (\S+) +- \[.*\((\w+)\)$", output, re.M)
        assert quant_types(shapes, shape_of(gguf.metadata), type_, {}, imatrix) == said, type_
