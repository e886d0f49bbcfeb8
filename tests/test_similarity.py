"""Task vectors: compared with an independent computation, by hand-made cases, and as artifacts."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from browsing import open_page
from lib.config.load import load
from lib.formats.task_vectors import compare
from lib.hub.references import hub_sources
from project import ROOT, Project
from similarity import effective_rank
from tiny_models import make_adapter, make_bpe, make_llama, make_models, make_vision

NUMBERS = ("cosine", "sign_conflict", "changed_both", "changed_a", "changed_b", "norm_a", "norm_b")


def run(base: Path, *models: Path, processes: int = 2) -> subprocess.CompletedProcess:
    """Compare models, which are called by their directories' names, into DIRECTORY/t.csv."""
    command = [sys.executable, ROOT / "scripts/similarity.py", "--base", base.name, base]
    for model in models:
        command += ["--model", model.name, model]
    out = base.parent / "t.csv"
    command += ["--output", out, "--notes", base.parent / "t.json", "--processes", processes]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def compared(base: Path, *models: Path, processes: int = 2) -> list[dict[str, str]]:
    """The rows of the table."""
    done = run(base, *models, processes=processes)
    assert done.returncode == 0, done.stderr
    with (base.parent / "t.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def all_of(rows: list[dict[str, str]]) -> dict[str, str]:
    """The row of all tensors of the only pair."""
    (row,) = (row for row in rows if row["scope"] == "all")
    return row


def notes(directory: Path) -> list[str]:
    return json.loads((directory / "t.json").read_text())["left"]


def write(directory: Path, **tensors: torch.Tensor) -> Path:
    """A model directory of these tensors; `__` in a name is a dot."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(named, directory / "model.safetensors")
    return directory


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(model: Path) -> dict[str, torch.Tensor]:
    files = model.glob("*.safetensors")
    return {n: t.double() for file in files for n, t in load_file(file).items()}


def figures(parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """The figures of a pair, by its tensors (base, a, b) joined to one vector each."""
    base, a, b = (torch.cat([part[i].flatten() for part in parts]) for i in range(3))
    da, db = a - base, b - base
    both = (da != 0) & (db != 0)
    return {
        "weights": len(base),
        "cosine": float(da @ db / (da.norm() * db.norm())),
        "sign_conflict": float((da.sign() != db.sign())[both].double().mean()),
        "changed_both": float(both.double().mean()),
        "changed_a": float((da != 0).double().mean()),
        "changed_b": float((db != 0).double().mean()),
        "norm_a": float(da.norm()),
        "norm_b": float(db.norm()),
        "base_norm": float(base.norm()),
    }


def check_against_torch(base: Path, *models: Path) -> int:
    """Compare every row with torch's figures; the number of rows."""
    rows = compared(base, *models)
    loaded = {path.name: weights(path) for path in (base, *models)}
    names = loaded[base.name]
    for row in rows:
        layer, kind = row["layer"], row["kind"]
        if row["scope"] == "tensor":
            chosen = [row["tensor"]]
        elif row["scope"] == "layer":
            chosen = [n for n in names if f"layers.{layer}." in n]
        elif row["scope"] == "kind":
            chosen = [n for n in names if n.endswith(f"{kind}.weight") and _whole(n, kind)]
        else:
            chosen = list(names)
        assert chosen, row
        wanted = figures(
            [
                tuple(loaded[m][n] for m in (base.name, row["model_a"], row["model_b"]))
                for n in chosen
            ]
        )
        assert int(row["weights"]) == wanted["weights"]
        for key in (*NUMBERS, "base_norm"):
            assert float(row[key]) == pytest.approx(wanted[key], rel=2e-5, abs=2e-6), (row, key)
    return len(rows)


def _whole(name: str, kind: str) -> bool:
    return name.removesuffix(f"{kind}.weight").endswith(("", ".")[1]) or name == f"{kind}.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A base and two fine-tunes of 1.4 million parameters."""
    here = tmp_path_factory.mktemp("tiny")
    make_models(here, "code", "prose")
    return here


def test_every_figure_is_that_of_an_independent_computation(demo):
    """Of the demo's models, which were really trained: another program, in another way."""
    rows = check_against_torch(*(demo / name for name in ("base", "code", "prose")))
    assert rows > 50


def test_every_figure_of_three_pairs_is_that_of_an_independent_computation(tiny, tmp_path):
    for name in ("base", "code", "prose"):
        (tmp_path / name).symlink_to(tiny / name)
    make_llama(tmp_path / "third", seed=9, near=tmp_path / "base")
    models = [tmp_path / name for name in ("base", "code", "prose", "third")]
    assert check_against_torch(*models) == 3 * (1 + 12 + 2 + 21)


def test_other_types_of_numbers_and_shards_make_no_difference_but_rounding(tiny, tmp_path):
    """F16, F32 and F64 beside BF16; and the order of the files decides nothing."""
    wanted = compared(tiny / "base", tiny / "code", tiny / "prose")
    for name, dtype in (("base", torch.float32), ("code", torch.float64), ("prose", None)):
        tensors = load_file(tiny / name / "model.safetensors")
        tensors = {n: t.to(dtype or t.dtype) for n, t in tensors.items()}
        shards: list[dict] = [{}, {}]
        for number, tensor in enumerate(reversed(tensors)):
            shards[number % 2][tensor] = tensors[tensor]
        (tmp_path / name).mkdir()
        shutil.copy(tiny / name / "config.json", tmp_path / name)
        for number, shard in enumerate(shards):
            save_file(shard, tmp_path / name / f"{number}.safetensors")
    assert compared(*(tmp_path / name for name in ("base", "code", "prose"))) == wanted
    half = load_file(tiny / "code/model.safetensors")
    base = write(tmp_path / "f16/base", a__weight=half["lm_head.weight"].to(torch.float16))
    one, other = (
        write(tmp_path / f"f16/{i}", a__weight=drawn(512, 256, seed=i).half()) for i in (1, 2)
    )
    check_against_torch(base, one, other)


def test_the_same_models_give_the_same_bytes_on_any_number_of_processes(tiny, tmp_path):
    """Large enough for several segments of 8 MiB."""
    for name in ("base", "one", "two"):
        make_llama(
            tmp_path / name, seed=len(name) + ord(name[0]), hidden=512, ffn=4096, vocab=20_000
        )
    models = [tmp_path / name for name in ("base", "one", "two")]
    found = set()
    for processes in (1, 2, 7):
        compared(*models, processes=processes)
        found.add((tmp_path / "t.csv").read_bytes())
    assert len(found) == 1
    check_against_torch(*models)


def test_identical_fine_tunes_have_cosine_1_and_no_conflict(tmp_path):
    base = write(tmp_path / "base", w__weight=drawn(40, 30))
    one, other = (write(tmp_path / n, w__weight=drawn(40, 30, seed=1)) for n in ("one", "other"))
    row = all_of(compared(base, one, other))
    assert (row["cosine"], row["sign_conflict"]) == ("1.000000", "0")
    assert row["norm_a"] == row["norm_b"] and row["changed_both"] == "1"


def test_opposite_fine_tunes_have_cosine_minus_1_and_conflict_everywhere(tmp_path):
    base, change = drawn(40, 30).double(), drawn(40, 30, seed=1).double()
    change = (change * 64).round() / 64
    base = (base * 64).round() / 64  # sums are exact
    models = {"base": base, "up": base + change, "down": base - change}
    row = all_of(compared(*(write(tmp_path / n, w__weight=w) for n, w in models.items())))
    assert (row["cosine"], row["sign_conflict"]) == ("-1.000000", "1")


def test_one_equal_to_its_base_has_no_direction_and_its_cells_are_empty(tmp_path):
    tensor = drawn(40, 30)
    base, same = (write(tmp_path / n, w__weight=tensor) for n in ("base", "same"))
    other = write(tmp_path / "other", w__weight=drawn(40, 30, seed=1))
    rows = compared(base, same, other)
    for row in rows:
        assert (row["cosine"], row["sign_conflict"], row["norm_a"]) == ("", "", "0")
        assert row["effective_rank_a"] == "" and float(row["norm_b"]) > 0
    assert "nan" not in (tmp_path / "t.csv").read_text().lower()


def test_signs_count_only_where_both_have_changed(tmp_path):
    base = torch.zeros(1, 8)
    one = torch.tensor([[1.0, 1, 1, 0, 0, -1, -1, 0]])
    two = torch.tensor([[1.0, -1, 0, 1, 0, -2, 3, 0]])
    models = {"base": base, "one": one, "two": two}
    row = all_of(compared(*(write(tmp_path / n, w__weight=w) for n, w in models.items())))
    assert (row["sign_conflict"], row["changed_both"]) == ("0.5", "0.5")
    assert (row["changed_a"], row["changed_b"]) == ("0.625", "0.625")


def test_the_effective_rank_is_near_the_true_one_and_exact_for_rank_1(tmp_path):
    """Of each matrix to about 13%, which are independent of each other."""
    shape, count = (90, 120), 24
    for rank in (1, 8, 90):
        names = [f"w{number}__weight" for number in range(count)]
        ones, twos = (
            {
                n: drawn(90, rank, seed=s + i).double() @ drawn(rank, 120, seed=s - i).double()
                for i, n in enumerate(names)
            }
            for s in (100, 1000)
        )
        models = {"base": {n: torch.zeros(shape).double() for n in names}, "one": ones, "two": twos}
        here = tmp_path / str(rank)
        rows = compared(*(write(here / n, **tensors) for n, tensors in models.items()))
        ratios = []
        for row in (row for row in rows if row["scope"] == "tensor"):
            for letter, changes in (("a", ones), ("b", twos)):
                squares = torch.linalg.svdvals(changes[row["tensor"].replace(".", "__")]) ** 2
                true = float(squares.sum() ** 2 / (squares**2).sum())
                ratios.append(float(row[f"effective_rank_{letter}"]) / true)
        if rank == 1:
            assert ratios == pytest.approx([1] * 2 * count, rel=1e-3)
        else:
            assert 0.08 < np.std(ratios) < 0.2 and abs(np.mean(ratios) - 1) < 0.08, rank


def test_the_error_of_the_effective_rank_is_what_its_page_says():
    """13%, over many matrices of rank 50."""
    draw, found = np.random.default_rng(0), []
    for _ in range(300):
        images = draw.standard_normal((50, 16))  # of random vectors, by a matrix of 50 equal values
        found.append(effective_rank(images.T @ images) / 50)
    assert 0.09 < np.std(found) < 0.16 and abs(np.mean(found) - 1) < 0.05


def test_rows_that_only_some_have_are_left_out_and_said(tmp_path):
    """Padded embeddings: those for tokens that all have are compared."""
    base = drawn(100, 16)
    more = torch.cat([drawn(100, 16, seed=1), drawn(28, 16, seed=2)])
    less = drawn(96, 16, seed=3)
    name = "model__embed_tokens__weight"
    models = [
        write(tmp_path / n, **{name: w}) for n, w in (("base", base), ("pad", more), ("cut", less))
    ]
    row = all_of(compared(*models))
    wanted = figures([(base[:96].double(), more[:96].double(), less[:96].double())])
    assert int(row["weights"]) == 96 * 16
    assert float(row["cosine"]) == pytest.approx(wanted["cosine"], abs=1e-6)
    (note,) = notes(tmp_path)
    assert note.endswith(
        "has rows for 100 in base, 128 in pad, 96 in cut: the first 96 are compared"
    )


def test_embeddings_of_other_tokenizers_are_compared_token_by_token(tmp_path):
    """As mergekit aligns them, and not row by row."""
    name, tokens = "model__embed_tokens__weight", [f"t{i}" for i in range(50)]
    order = np.random.default_rng(0).permutation(50)
    base, one, two = (drawn(60, 8, seed=seed) for seed in range(3))
    moved = two.clone()
    moved[torch.tensor(order)] = two[:50]  # token i is in row order[i]
    vocabularies = {
        "base": {t: i for i, t in enumerate(tokens)},
        "one": {t: i for i, t in enumerate([*tokens, "new"])},
        "two": {t: int(order[i]) for i, t in enumerate(tokens)},
    }
    for model, tensor in (("base", base), ("one", one), ("two", moved)):
        write(tmp_path / model, **{name: tensor})
        document = {"model": {"vocab": vocabularies[model]}, "added_tokens": []}
        (tmp_path / model / "tokenizer.json").write_text(json.dumps(document))
    row = all_of(compared(*(tmp_path / n for n in ("base", "one", "two"))))
    wanted = figures([(base[:50].double(), one[:50].double(), two[:50].double())])
    assert int(row["weights"]) == 400
    for key in NUMBERS:
        assert float(row[key]) == pytest.approx(wanted[key], rel=1e-5, abs=1e-6)
    moved_tokens = sum(order[i] != i for i in range(50))
    assert notes(tmp_path) == [
        f"the tokenizers differ in {moved_tokens} tokens of base and two: embeddings are compared "
        "token by token"
    ]


def test_embeddings_whose_tokens_are_not_known_are_left_out(tiny, tmp_path):
    for name in ("base", "code", "prose"):
        shutil.copytree(tiny / name, tmp_path / name)
    (tmp_path / "prose/tokenizer.model").write_bytes(b"another")
    rows = compared(*(tmp_path / name for name in ("base", "code", "prose")))
    assert not {"embed_tokens", "lm_head"} & {row["kind"] for row in rows}
    assert notes(tmp_path) == [
        "prose has another tokenizer than base, and which tokens differ is not told",
        "lm_head.weight and 1 more: not compared, which rows stand for the same token is not known",
    ]
    (tmp_path / "prose/tokenizer.model").unlink()
    rows = compared(*(tmp_path / name for name in ("base", "code", "prose")))
    assert {"embed_tokens", "lm_head"} < {row["kind"] for row in rows}
    assert notes(tmp_path)[0].startswith("prose has no tokenizer")


def test_tensors_that_cannot_be_compared_are_named_and_the_others_compared(tmp_path):
    numbers = torch.arange(4)
    kept = {"a__weight": drawn(4, 4), "ids": numbers, "empty": torch.zeros(0, 4)}
    base = write(tmp_path / "base", **kept, lm_head__weight=drawn(4, 4))
    one = write(tmp_path / "one", **kept, extra=drawn(3))
    two = write(tmp_path / "two", **kept | {"a__weight": drawn(4, 4, seed=1)})
    assert {row["kind"] for row in compared(base, one, two)} == {"", "a"}
    assert sorted(notes(tmp_path)) == [
        "extra: not compared, base and two lack it",
        "ids: not compared, its numbers are I64",
        "lm_head.weight: not compared, one and two lack it",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a__weight": drawn(4, 5)}, "a.weight is 4 x 5 in two, 4 x 4 in base: two was not made"),
        ({"b__weight": drawn(4, 4)}, "base has no tensor in common with one, two: it is not their"),
        ({"a__weight": torch.full((4, 4), torch.nan)}, "NaN or infinity in a.weight of two"),
        ({"a__weight": torch.full((4, 4), torch.inf)}, "NaN or infinity in a.weight of two"),
    ],
)
def test_what_does_not_fit_is_one_line_before_or_while_it_is_read(tmp_path, change, said):
    base, one = (
        write(tmp_path / n, a__weight=drawn(4, 4, seed=ord(n[0]))) for n in ("base", "one")
    )
    done = run(base, one, write(tmp_path / "two", **change))
    assert done.returncode == 1 and done.stderr.startswith(f"similarity: {said}"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "t.csv").exists()


def test_a_model_without_safetensors_and_a_file_that_is_cut_off_are_one_line(tmp_path):
    base, one = (write(tmp_path / n, a__weight=drawn(4, 4)) for n in ("base", "one"))
    (tmp_path / "two").mkdir()
    (tmp_path / "two/config.json").write_text("{}")
    (tmp_path / "two/pytorch_model.bin").write_bytes(b"x")
    assert "two has no safetensors files" in run(base, one, tmp_path / "two").stderr
    file = write(tmp_path / "two", a__weight=drawn(4, 4)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "cut off or changed, get it anew" in run(base, one, tmp_path / "two").stderr


def test_layers_of_a_tower_are_not_those_of_the_text_and_experts_are_one_kind(tmp_path):
    for number, name in enumerate(("base", "one", "two")):
        make_vision(tmp_path / "see" / name, seed=number)
        make_llama(tmp_path / "moe" / name, seed=number, experts=4)
    rows = compared(*(tmp_path / "see" / name for name in ("base", "one", "two")))
    tower = {row["kind"] for row in rows if "vision" in row["kind"]}
    assert "vision_model.encoder.layers.mlp.fc1" in tower
    assert all(not row["layer"] for row in rows if row["kind"] in tower)
    rows = compared(*(tmp_path / "moe" / name for name in ("base", "one", "two")))
    experts = [r for r in rows if r["kind"] == "block_sparse_moe.experts.w1"]
    assert [row["scope"] for row in experts] == ["kind", *["tensor"] * 8]


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """dev/bench_similarity.py measures models with the shapes of an 8B."""
    peaks = []
    for layers in (2, 30):
        models = [tmp_path / f"{layers}/{name}" for name in ("base", "one", "two")]
        for number, model in enumerate(models):
            make_llama(model, seed=number, hidden=512, ffn=1536, layers=layers)
        program = (
            "import multiprocessing, resource, runpy, sys; sys.path.insert(0, sys.argv[1])\n"
            "sys.argv = sys.argv[2:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "for child in multiprocessing.active_children(): child.join()\n"
            "print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
            "print(open('/proc/self/status').read())"
        )
        script = ROOT / "scripts/similarity.py"
        words = [script.parent, script, "--base", "base", models[0]]
        words += ["--model", "one", models[1], "--model", "two", models[2]]
        words += ["--output", tmp_path / "t.csv"]
        command = [sys.executable, "-c", program, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = (re.search(rf"{key}\s+(\d+)", done.stdout) for key in ("KiB", "VmHWM:"))
        peaks.append([int(each[1]) / 1024 for each in found])  # of a worker, of the program
        shutil.rmtree(tmp_path / str(layers))
    read = 3 * 28 * 2 * (2.5 * 512 * 512 + 3 * 512 * 1536) / 2**20
    assert read > 450 and all(b - a < 12 for a, b in zip(*peaks, strict=True)), peaks


def test_a_process_that_is_killed_is_one_line_and_none_is_left(tmp_path):
    """As the system does when memory is short, or Snakemake with the program."""
    for name in ("base", "one", "two"):
        make_llama(tmp_path / name, seed=ord(name[0]), hidden=1024, ffn=8192, layers=3)
    for kill_worker in (True, False):
        words = ["--base", "base", tmp_path / "base", "--output", tmp_path / "t.csv"]
        for name in ("one", "two"):
            words += ["--model", name, tmp_path / name]
        command = [sys.executable, ROOT / "scripts/similarity.py", *words]
        program = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
        deadline = time.monotonic() + 30
        while len(found := children.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(int(found[0]) if kill_worker else program.pid, signal.SIGKILL)
        _, said = program.communicate(timeout=60)
        if kill_worker:
            assert said.startswith("similarity: a process of it was ended by signal 9"), said
            assert len(said.splitlines()) == 1
        while any(alive(int(child)) for child in found) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(alive(int(child)) for child in found)
        assert not (tmp_path / "t.csv").exists()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# As artifacts


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    """A merge of two fine-tunes and of a model that is another merge, compared; nothing merged."""
    path = tmp_path_factory.mktemp("similarity")
    make_models(path / "m", "code", "prose")
    make_adapter(path / "m/poet")
    ties = {"merge_method": "ties", "base_model": "Base", "dtype": "bfloat16"}
    half = {"weight": 0.5, "density": 0.5}
    first = [{"model": "./m/code", "parameters": half}, {"model": "./m/prose", "parameters": half}]
    models = {
        "Base": {"source": "./m/base"},
        "Poet": {
            "merge": {
                "merge_method": "passthrough",
                "models": [{"model": "./m/code+./m/poet"}],
                "dtype": "bfloat16",
            }
        },
        "Mix": {"merge": ties | {"models": [*first, {"model": "Poet"}]}, "similarity": {}},
        "Two": {
            "merge": {
                "merge_method": "slerp",
                "base_model": "./m/code",
                "models": [{"model": "./m/code"}, {"model": "./m/prose"}],
                "parameters": {"t": 0.5},
                "dtype": "bfloat16",
            },
            "similarity": {"base": "./m/base"},
        },
    }
    project = Project(path, {"models": models})
    project.build("similarities")
    return project


def test_it_is_made_before_the_merge_and_of_its_sources_alone(made):
    places = {"svg", "html", "csv"}
    for model in ("Mix", "Two"):
        folder = made / f"results/{model}/similarity"
        assert {f.suffix[1:] for f in folder.iterdir() if f.suffix != ".json"} == places
        assert not (made / f"results/{model}/safetensors").exists()
    assert (made / "results/Poet/safetensors").exists(), "a source that is a merge is made first"
    with (made / "results/Mix/similarity/similarity.csv").open() as file:
        pairs = {(row["model_a"], row["model_b"]) for row in csv.DictReader(file)}
    assert pairs == set(itertools.combinations(["./m/code", "./m/prose", "Poet"], 2))


def test_an_adapter_as_a_merge_of_its_own_is_compared_by_the_rank_of_what_it_added(made):
    """Poet is code with an adapter of rank 4: what it has beside code's changes."""
    recipe = json.loads((made / "results/Mix/similarity/similarity.csv.recipe.json").read_text())
    assert recipe["recipe"]["options"] == {
        "base": "Base",
        "models": ["./m/code", "./m/prose", "Poet"],
    }
    assert recipe["notes"]["base"] == "Base" and recipe["notes"]["left"] == []
    with (made / "results/Mix/similarity/similarity.csv").open() as file:
        rows = [
            r for r in csv.DictReader(file) if r["model_b"] == "Poet" and "code" in r["model_a"]
        ]
    same = next(r for r in rows if r["tensor"].endswith("1.mlp.up_proj.weight"))
    assert same["cosine"] == "1.000000", "the adapter leaves it alone"
    changed = next(r for r in rows if r["tensor"].endswith("1.self_attn.q_proj.weight"))
    assert float(changed["effective_rank_b"]) < 0.2 * float(changed["effective_rank_a"])


def test_it_is_in_the_plan_in_status_and_in_the_gallery(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    said = project.run("status")
    assert re.search(r"^Mix +2/2 +0/1", said, re.M), said
    for name in ("svg", "csv"):
        (project / f"results/Mix/similarity/similarity.{name}").unlink()
    said = project.run("plan")
    assert "similarity/similarity.csv" in said and "similarity/similarity.svg" in said
    said = project.run("gallery", "--quiet", "host")
    assert "Mix/similarity/similarity.html" in (project / "results/index.html").read_text()


def test_what_does_not_fit_is_said_by_preflight(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    said = project.run("preflight", check=False)
    assert "models.Two.similarity  ./m/code, ./m/prose by what they changed of ./m/base" in said
    make_llama(project / "wide", hidden=512)
    for name, word in (("base", "first"), ("code", "second")):
        make_bpe(project / f"m/{name}", extra=(word,))
    project.model("Two")["similarity"]["base"] = "./wide"
    said = project.run("preflight", check=False)
    assert "hidden_size is 256 in ./m/code, 512 in ./wide: it was not made from that" in said
    project.model("Two")["similarity"]["base"] = "./m/base"
    said = project.run("preflight", check=False)
    assert "511 is 'first' in ./m/base, 'second' in ./m/code; embeddings are compared token" in said


def test_a_base_on_the_hub_is_locked_with_the_models(tmp_path):
    merge = {"merge_method": "linear", "models": [{"model": "a/b"}, {"model": "Own"}]}
    models = {
        "M": {"merge": merge, "similarity": {"base": "Root"}},
        "Own": {"source": "c/d"},
        "Root": {"source": "e/f@main"},
    }
    config = load({"models": models}, tmp_path)[0]
    assert {source.ref for source in hub_sources(config, ["M"])} == {"a/b", "c/d", "e/f@main"}


# The page


def test_the_page_says_in_its_first_lines_what_was_found(tmp_path):
    """Which two are nearest, which conflict most, and where."""
    shape = (32, 32)
    base = {f"model__layers__{n}__mlp__up_proj__weight": drawn(*shape, seed=n) for n in range(4)}
    shared = {name: drawn(*shape, seed=10 + n) for n, name in enumerate(base)}
    tunes = {"near": 1.0, "nearer": 1.1, "against": -1.0}
    models = [write(tmp_path / "base", **base)]
    for seed, (name, sign) in enumerate(tunes.items()):
        last = 3 if name == "against" else 0  # it pulls hardest in the last layer
        tensors = {
            key: tensor
            + sign * shared[key] * (1 + last * key.endswith("3__mlp__up_proj__weight"))
            + 0.5 * drawn(*shape, seed=20 + seed)
            for key, tensor in base.items()
        }
        models.append(write(tmp_path / name, **tensors))
    page = shown(tmp_path, *models)
    first = re.sub(r"<[^>]+>|\s+", " ", page[page.index("<h1>") : page.index("<h2")])
    first = " ".join(first.split())
    assert "What 3 fine-tunes changed of base, by 4,096 weights." in first
    assert "Nearest near and nearer Cosine 0.8" in first, first
    assert "they pull against each other" in first
    assert re.search(r"Most conflict (near|nearer) and against", first), first
    assert "Where layer 3" in first
    assert "Changed most against" in first


def shown(directory: Path, *models: Path) -> str:
    """The page of a comparison, s.html; the plot is s.svg."""
    compared(*models)
    record = {"notes": json.loads((directory / "t.json").read_text())}
    (directory / "record.json").write_text(json.dumps(record))
    command = [sys.executable, ROOT / "scripts/similarity_page.py", directory / "t.csv"]
    command += ["--model", "M", "--record", directory / "record.json"]
    command += ["--svg", directory / "s.svg", "--html", directory / "s.html"]
    subprocess.run([*map(str, command)], check=True)
    return (directory / "s.html").read_text()


def test_a_fine_tune_that_is_its_base_is_called_so_on_the_page(tmp_path):
    name = "model__layers__0__mlp__up_proj__weight"
    models = [write(tmp_path / n, **{name: drawn(8, 8)}) for n in ("base", "same")]
    models.append(write(tmp_path / "other", **{name: drawn(8, 8, seed=1)}))
    page = shown(tmp_path, *models)
    assert "The base itself</span>" in page and "<strong>same</strong>" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower()


def test_names_that_would_end_the_markup_are_shown_as_they_are(tmp_path, browser):
    base = write(tmp_path / "base", a__weight=drawn(8, 8))
    hostile = tmp_path / "<img src=x onerror=alert(1)>"
    models = [
        write(path, a__weight=drawn(8, 8, seed=n))
        for n, path in enumerate((hostile, tmp_path / "two"), 1)
    ]
    shown(tmp_path, base, *models)
    open_page(browser, tmp_path / "s.html")
    assert browser.find_elements("css selector", "img") == []
    assert hostile.name in browser.find_element("css selector", "main").text


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("count", [2, 6])
def test_the_page_fits_the_screen_and_asks_nobody_for_anything(tmp_path, browser, width, count):
    make_llama(tmp_path / "base", hidden=64, ffn=64, layers=12)
    for seed in range(count):
        make_llama(
            tmp_path / f"a-fine-tune-with-a-long-name-{seed}",
            seed=seed,
            near=tmp_path / "base",
            hidden=64,
            ffn=64,
            layers=12,
        )
    shown(tmp_path, tmp_path / "base", *sorted(tmp_path.glob("a-fine*")))
    browser.get_log("performance")
    for name in ("s.html", "s.svg"):
        open_page(browser, tmp_path / name, width, dark=count == 2)
        events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
        asked = {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert all(url.startswith(("file:", "data:")) for url in asked), asked
        assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    open_page(browser, tmp_path / "s.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    names = browser.find_elements("css selector", ".similarity-plot")
    assert len(names) == 2 + count * (count - 1)


def test_what_can_be_compared_is_known_from_headers_alone(tiny):
    found = compare([(name, tiny / name) for name in ("base", "code", "prose")])
    assert sum(tensor.weights for tensor in found.tensors) == found.base_weights == 1_443_072
