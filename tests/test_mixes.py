"""Mixes: never over the budget, exactly what the file says, and no worse than can be had."""

import copy
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lib.formats.fallbacks import shape_of
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.imatrix_file import read_imatrix
from lib.formats.memory import room
from lib.formats.memory import shape_of as memory_of
from lib.mixes.candidates import DEFAULT, RESERVE, candidates, has_data, overhead
from lib.mixes.choice import best_within, smallest_within, total
from lib.mixes.files import called, read_mix, write_mix
from lib.mixes.measuring import Bench, Machine, halves
from lib.mixes.parts import Parts
from lib.mixes.quantizing import quantize_mix
from lib.mixes.sensitivity import (
    Sensitivity,
    begins_at,
    biased_kinds,
    document,
    groups_of,
    kinds_of,
    most_biased,
    read,
    smallest_of_layers,
)
from project import ROOT, Project, of
from test_contract import rebuilt_exactly

SCRIPTS = ROOT / "scripts"
TYPES = ["q4_0", "q5_0", "q8_0"]
QUANTS = [
    "Q8_0",
    {"name": "Small", "target_bpw": 7},
    {"name": "Sized", "target_size": 1_200_000},
    {"name": "Close", "max_kld": 0.0003},
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Project:
    """A built model with mixes of three kinds."""
    project = Project.create(tmp_path_factory.mktemp("mixed") / "project")
    gguf = {"imatrix": {"chunks": 4, "context": 128}, "quants": QUANTS}
    gguf["mixes"] = {"chunks": 2, "types": TYPES}
    model = {"source": "./m/code", "gguf": gguf, "evaluate": {"context": 128, "chunks": 3}}
    project.config["models"] = {"Best": model}
    (project / "data/other.txt").write_text((project / "data/calibration.txt").read_text()[::-1])
    project.config["corpora"]["other"] = {"path": "data/other.txt"}
    project.build()
    return project


@pytest.fixture
def copied(mixed: Project, tmp_path: Path) -> Project:
    return mixed.copy(tmp_path / "project")


def gguf(project: Project, form: str) -> GgufFile:
    return read_gguf(project / f"results/Best/gguf/Best-{form}.gguf")


def notes(project: Project, name: str) -> dict:
    record = project / f"results/Best/mixes/{name}.txt.recipe.json"
    return json.loads(record.read_text())["notes"]


def made(*names: str) -> set[str]:
    """What is built of mixes: with each its quant, its evaluation, the report and the card."""
    paths = {f"results/Best/mixes/{name}.txt" for name in names}
    return paths | of("Best", *names, *(f"{name}/evaluation" for name in names), *SHOWN)


SHOWN = ("base", "report", "card")
ALL = ("Small", "Sized", "Close")


# What is built


@pytest.mark.parametrize("name", ALL)
def test_a_file_has_the_types_that_its_mix_says_and_no_byte_more_than_was_asked(mixed, name):
    file, mix = gguf(mixed, name), read_mix(mixed / f"results/Best/mixes/{name}.txt")
    stored = {tensor.name: tensor.type_name.lower() for tensor in file.tensors}
    assert {tensor: stored[tensor] for tensor in mix} == mix
    assert len(set(mix.values())) > 1
    size, said = file.path.stat().st_size, notes(mixed, name)
    assert said["bytes"] - RESERVE <= size <= said["bytes"]
    weights = sum(tensor.elements for tensor in file.tensors)
    if name == "Small":
        assert size * 8 / weights <= 7 < (size + 100_000) * 8 / weights
    if name == "Sized":
        assert size <= 1_200_000


def test_a_mix_of_a_measured_kld_keeps_to_it_and_says_what_was_tried(mixed):
    said = notes(mixed, "Close")
    assert said["kld"] <= 0.0003 and 1 <= len(said["tries"]) <= 4
    assert said["kld"] == min(t["kld"] for t in said["tries"] if t["bytes"] == said["bytes"])
    assert said["validation"] == "calibration"


def test_a_check_after_quantizing_finds_another_type_and_a_byte_too_many(mixed, tmp_path):
    def check(mix: Path, record: Path) -> str:
        model = gguf(mixed, "Small").path
        command = [sys.executable, SCRIPTS / "check_mix.py", model, "--mix", mix]
        done = subprocess.run([*command, "--record", record], capture_output=True, text=True)
        return done.stderr

    mix = mixed / "results/Best/mixes/Small.txt"
    record = tmp_path / "record"
    record.write_text(json.dumps({"notes": {"budget": 10}}))
    assert "bytes, and at most 10 were asked for" in check(mix, record)
    record.write_text(json.dumps({"notes": {}}))
    assert not check(mix, record)
    other = tmp_path / "mix.txt"
    other.write_text(re.sub(r"(token_embd.weight)=\w+", r"\1=f16", mix.read_text()))
    assert "token_embd.weight is q" in check(other, record)


# What becomes stale


def test_a_mix_added_leaves_what_was_measured_and_every_other_form(copied):
    copied.model("Best")["gguf"]["quants"].append({"name": "More", "target_bpw": 8})
    assert copied.plan() == made("More")
    rebuilt_exactly(copied, made("More"))


def test_another_target_makes_its_own_mix_stale(copied):
    copied.model("Best")["gguf"]["quants"][1]["target_bpw"] = 7.5
    assert copied.plan() == made("Small")


def test_another_calibration_text_leaves_static_quants(copied):
    quants = copied.model("Best")["gguf"]["quants"]
    quants[0] = {"type": "Q8_0", "imatrix": False}
    copied.build()
    text = copied / "data/calibration.txt"
    text.write_text(text.read_text() + "One line more.\n")
    built = made(*ALL) | {"results/Best/sensitivity.json", "resources/corpora/calibration.txt"}
    forms = ("BF16/evaluation", "Q8_0/evaluation")  # what they share with the calibration text
    found = copied.plan()
    assert built | of("Best", "imatrix") <= found
    assert found - built - of("Best", "imatrix") <= of("Best", *forms)


def test_another_evaluation_text_makes_no_file_of_weights_stale(copied):
    text = copied / "data/evaluation.txt"
    text.write_text(text.read_text() + "One line more.\n")
    forms = ("BF16", "Q8_0", *ALL)
    measured = of("Best", *(f"{form}/evaluation" for form in forms), *SHOWN)
    assert copied.plan() == measured | {"resources/corpora/evaluation.txt"}


def test_another_validation_text_makes_the_mixes_of_a_measured_kld_stale(copied):
    copied.model("Best")["gguf"]["mixes"]["validation"] = "other"
    text = {"resources/corpora/other.txt"}
    assert copied.plan() == made("Close") | text
    copied.build()
    (copied / "data/other.txt").write_text((copied / "data/other.txt").read_text() + "More.\n")
    assert copied.plan() == made("Close") | text


def test_an_impossible_target_ends_the_run_before_anything_is_built(copied):
    quants = copied.model("Best")["gguf"]["quants"]
    quants += [{"name": "None", "target_size": "100M"}, {"name": "Tiny", "target_size": "0.1M"}]
    quants += [{"name": "Low", "target_bpw": 2}, {"name": "Box", "memory": "1GB"}]
    before = copied.files()
    said = copied.run(check=False)
    assert "mixes/Tiny.txt: target_size: 100.0 kB are left for the file, and the smallest" in said
    assert "mixes/Low.txt: target_bpw: " in said and "mixes/Box.txt: memory: 0 B are left" in said
    assert "mixes/None.txt: " not in said and "Traceback" not in said
    assert copied.files() == before


def test_a_memory_that_is_too_small_is_refused_before_there_is_anything(mixed, tmp_path):
    project = Project(tmp_path / "new", {})
    (tmp_path / "new").mkdir()
    for name in ("m", "data"):
        (project / name).symlink_to(mixed / name)
    project.config = copy.deepcopy(mixed.config)
    quants = project.model("Best")["gguf"]["quants"]
    quants.append({"name": "Box", "memory": 1.001, "context": 4096})
    said = project.run(check=False)
    assert "mixes/Box.txt: memory: 0 B are left for the file, and the smallest possible" in said
    assert not (project / "results").exists()


def test_a_mix_for_a_memory_fits_with_its_cache(copied):
    quants = copied.model("Best")["gguf"]["quants"]
    quants.append({"name": "Box", "memory": "1.02GB", "context": 512, "cache_type": "q8_0"})
    copied.build("results/Best/gguf/Best-Box.gguf")
    file = gguf(copied, "Box").path
    beside = memory_of(file).beside_weights(512, 8.5 / 8)
    assert file.stat().st_size + beside <= room(1.02)
    assert notes(copied, "Box")["budget"] == room(1.02) - beside


# What is measured


def sensitivity(project: Project, here: Path, *options: str) -> list[str]:
    """The command of sensitivity.py for the built model; it writes HERE/found.json."""
    command = [sys.executable, SCRIPTS / "sensitivity.py", gguf(project, "BF16").path]
    command += ["--imatrix", project / "results/Best/imatrix.dat"]
    command += ["--text", project / "data/calibration.txt", "--corpus", "calibration"]
    command += ["--chunks", "2", "--types", ",".join(TYPES), "--work", here / "work"]
    command += ["--tools", project / "resources/llama.cpp/bin", "--recipe-digest", "one"]
    return [*map(str, command), "--output", str(here / "found.json"), *options]


def test_how_many_measurements_run_at_once_decides_no_byte(mixed, tmp_path):
    known = (mixed / "results/Best/sensitivity.json").read_bytes()
    for options in (("--threads", "1"), ("--threads", "2", "--side-by-side", "2")):
        subprocess.run(sensitivity(mixed, tmp_path, *options), check=True, capture_output=True)
        assert (tmp_path / "found.json").read_bytes() == known
        assert not (tmp_path / "work").exists()


def test_a_killed_measurement_goes_on_where_it_was(mixed, tmp_path):
    command = sensitivity(mixed, tmp_path, "--threads", "1")
    state = tmp_path / "work/state.json"

    def known() -> list[str]:
        return list(json.loads(state.read_text())["groups"]) if state.exists() else []

    log = (tmp_path / "log").open("w")
    with subprocess.Popen(command, stdout=log, stderr=log) as running:
        while len(known()) < 4 and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    kept = known()
    assert 4 <= len(kept) < 15
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = re.findall(r"sensitivity: groups (\d+) of", done.stdout)
    assert int(measured[0]) == len(kept) + 1  # none of those before is measured again
    assert "llama_quantize:" not in done.stderr + done.stdout  # nor is anything quantized
    assert (tmp_path / "found.json").read_bytes() == (
        mixed / "results/Best/sensitivity.json"
    ).read_bytes()


def test_what_another_recipe_left_is_not_taken(mixed, tmp_path):
    (tmp_path / "work").mkdir()
    left = {"digest": "another", "types": {}, "pure": {}, "groups": {"token_embd.weight": 100.0}}
    (tmp_path / "work/state.json").write_text(json.dumps(left))
    (tmp_path / "work/base.kld").write_text("nonsense")
    command = sensitivity(mixed, tmp_path, "--threads", "2")
    subprocess.run(command, check=True, capture_output=True)
    known = (mixed / "results/Best/sensitivity.json").read_bytes()
    assert (tmp_path / "found.json").read_bytes() == known


def test_a_mix_of_parts_computes_what_the_quantized_file_computes(mixed, tmp_path):
    """Otherwise the measurements were of something else than what people load."""
    base, types = gguf(mixed, "BF16"), read_mix(mixed / "results/Best/mixes/Small.txt")
    machine = Machine(mixed / "resources/llama.cpp/bin", threads=2)
    halves(mixed / "data/calibration.txt", tmp_path / "text", tmp_path / "rest")
    bench = Bench(machine, base.path, tmp_path / "text", 2, tmp_path / "base.kld")
    file, parts = gguf(mixed, "Small"), Parts(tmp_path / "parts", base)
    parts.add(base)
    parts.add(file)
    of_parts = bench.scored(parts.link(types, tmp_path / "linked"))
    of_file = bench.scored(file.path)
    assert of_file.kld.mean() > 0
    assert all((a == b).all() for a, b in zip(of_parts, of_file, strict=True))
    assert bench.kld(parts.link({}, tmp_path / "linked")) == 0


def test_the_halves_of_a_text_share_nothing_and_lose_nothing(tmp_path):
    text = tmp_path / "text"
    for content in ("one\ntwo\nthree\nfour\n", "äöü " * 100, "a\n\nb"):
        text.write_text(content)
        halves(text, tmp_path / "1", tmp_path / "2")
        parts = [(tmp_path / name).read_text() for name in ("1", "2")]
        assert "".join(parts) == content and all(parts)


def test_groups_are_neighbours_of_one_kind_and_all_tensors_are_in_one():
    kinds = ("attn_q", "attn_k", "ffn_down_exps")
    names = [f"blk.{layer}.{kind}.weight" for layer in range(240) for kind in kinds]
    names.append("token_embd.weight")
    groups = groups_of(names)
    assert sorted(itertools.chain.from_iterable(groups.values())) == sorted(names)
    assert len(groups) <= 300 and groups["token_embd.weight"] == ["token_embd.weight"]
    assert groups["attn_q 0-2"] == [f"blk.{layer}.attn_q.weight" for layer in range(3)]
    few = groups_of(name for name in names if re.search(r"\.\d\.|token", name))
    assert all(len(group) == 1 for group in few.values())


def test_other_roundings_are_measured_where_groups_begin_and_are_no_damage_of_a_tensor():
    names = [f"blk.{n}.{kind}.weight" for n in range(4) for kind in ("ffn_up", "attn_k")]
    groups = {
        "ffn_up 0-1": names[0:4:2],
        "ffn_up 2-3": names[4:8:2],
        "attn_k 2": [names[5]],
        "token_embd.weight": ["token_embd.weight"],
        "output.weight": ["output.weight"],
    }
    sizes = {name: 10 if "attn_k" in name else 20 for name in names}
    assert [begins_at(group) for group in groups.values()] == [0, 2, 2, 0, None]
    assert smallest_of_layers(groups, sizes) == {0: "blk.0.ffn_up.weight", 2: "blk.2.attn_k.weight"}
    every = list(itertools.chain.from_iterable(groups.values()))
    changes = {"q4_k": (0.01, 1e-5), "q8_0": (0.001, 1e-6)}
    found = document(
        {name: {"q4_k": 1, "q8_0": 2} for name in every},
        {kind: {name: (kind, *change) for name in every} for kind, change in changes.items()},
        groups,
        "q4_k",
        {name: 5e-4 for name in groups} | {"attn_k 2": 1e-4},
        {},
        {0: 3e-4, 2: 1e-4},
        {},
    )
    damages = {name: found["tensors"][name]["q4_k"][-1] for name in every}
    assert damages["blk.0.ffn_up.weight"] == pytest.approx(1e-4)  # half of what its group has left
    assert damages["blk.2.ffn_up.weight"] == pytest.approx(2e-4)
    assert damages["blk.2.attn_k.weight"] == pytest.approx(0.05 * 1e-4)  # not told from roundings
    assert damages["token_embd.weight"] == pytest.approx(2e-4)
    assert damages["output.weight"] == pytest.approx(5e-4)
    assert found["tensors"]["output.weight"]["q8_0"][-1] == pytest.approx(5e-5)
    assert found["groups"]["ffn_up 2-3"]["rounding"] == 1e-4
    assert found["biased"] is None and not found["kinds"]


def test_a_bias_costs_what_the_type_tells_that_has_most_of_it():
    """Of each kind of tensor; more than its share of the error, or nothing more."""
    names = [f"blk.{n}.{kind}.weight" for n in range(2) for kind in ("ffn_up", "attn_k")]
    of_types = {"q4_k": (0.004, 0.0), "iq3_s": (0.016, 4e-4), "q2_k": (0.04, 8e-4)}
    changes = {kind: {name: (kind, *of) for name in names} for kind, of in of_types.items()}
    assert biased_kinds(changes, "q4_k") == kinds_of(names) and most_biased(changes) == "iq3_s"
    fallen_back = {
        name: ("iq4_nl", 0.003, 0.0) if "attn" in name else of
        for name, of in changes["iq3_s"].items()
    }
    assert [*biased_kinds(changes | {"iq3_s": fallen_back}, "q4_k")] == ["ffn_up"]
    found = document(
        {name: {"q4_k": 3, "iq3_s": 2, "q2_k": 1} for name in names},
        changes,
        {name: [name] for name in names},
        "q4_k",
        {name: 1e-5 for name in names},
        # Of the error alone 2 * 4e-5 are expected.
        {"ffn_up": 18e-5, "attn_k": 7e-5},
        {},
        {"iq3_s": 3e-4},
    )
    assert found["biased"] == "iq3_s"
    assert found["kinds"]["ffn_up"]["gain"] == pytest.approx(50)
    assert found["kinds"]["attn_k"]["gain"] == 0
    damages = {n: [entry[-1] for entry in found["tensors"][n].values()] for n in names}
    assert damages[names[0]] == pytest.approx([1e-5, 9e-5, 2e-4])
    assert damages[names[1]] == pytest.approx([1e-5, 4e-5, 1e-4])
    assert found["pure"]["iq3_s"]["damage"] == pytest.approx(26e-5)


def test_a_widened_tensor_has_the_same_weights(mixed, tmp_path):
    base = gguf(mixed, "BF16")
    parts, name = Parts(tmp_path, base), "blk.1.attn_k.weight"
    parts.add(base)
    parts.widen(name)
    (wide,) = read_gguf(tmp_path / f"{name}.f32").tensors
    (narrow,) = read_gguf(tmp_path / f"{name}.bf16").tensors
    assert (wide.name, wide.shape, wide.type_name) == (name, narrow.shape, "F32")
    bits = np.fromfile(tmp_path / f"{name}.f32", "<u4", narrow.elements, offset=wide.offset)
    half = np.fromfile(tmp_path / f"{name}.bf16", "<u2", narrow.elements, offset=narrow.offset)
    assert half.any() and (bits == half.astype("<u4") << 16).all()


def test_what_is_expected_of_models_in_one_type_is_what_was_measured(mixed):
    known = read(mixed / "results/Best/sensitivity.json")
    assert len(known.pure) == len(TYPES)
    for damage, kld in known.pure:
        assert known.expected(damage) == pytest.approx(kld)
    (low, first), *_, (high, last) = known.pure
    assert first < known.expected((low * high) ** 0.5) < last
    assert known.expected(low / 10) == pytest.approx(first / 10)
    assert known.expected(high * 10) == pytest.approx(last * 10)
    assert known.expected(0) == 0 and Sensitivity({}, [(1.0, 2.0)]).expected(3.0) == 6.0


# What is chosen


def cases(count: int):
    """Small problems of random numbers: {tensor: {type: (bytes, damage)}}."""
    draw = random.Random(1)
    for _ in range(count):
        yield {
            f"t{tensor}": {
                f"k{kind}": (draw.randint(1, 10**6), draw.random() * 10 ** draw.randint(-9, 0))
                for kind in range(draw.randint(1, 4))
            }
            for tensor in range(draw.randint(1, 5))
        }


@pytest.mark.parametrize("choices", list(cases(60)))
def test_the_solver_finds_what_trying_all_finds(choices):
    mixes = [
        dict(zip(choices, kinds, strict=True)) for kinds in itertools.product(*choices.values())
    ]
    sums = [total(choices, mix) for mix in mixes]
    for budget in (0, *sorted(size for size, _ in sums)[:: max(1, len(sums) // 8)]):
        fitting = [damage for size, damage in sums if size <= budget]
        mix = best_within(choices, budget)
        if mix is None:
            assert not fitting
            continue
        size, damage = total(choices, mix)
        assert size <= budget and damage <= min(fitting) * (1 + 1e-5) + 1e-12
    for limit in sorted(damage for _, damage in sums)[:: max(1, len(sums) // 8)]:
        limit *= 1 + 1e-5  # sums of floats are equal only in one order
        mix = smallest_within(choices, limit)
        fitting = [size for size, damage in sums if damage <= limit]
        size, damage = total(choices, mix)
        assert damage <= limit and size <= min(fitting) * (1 + 1e-5)


def test_a_name_within_another_gets_its_own_type(mixed, tmp_path):
    """llama-quantize looks for a name anywhere: output.weight is in attn_output.weight."""
    base = gguf(mixed, "BF16")
    mix = {t.name: "q5_0" for t in base.tensors if t.type_name == "BF16"}
    assert "output.weight" in mix and any("attn_output.weight" in name for name in mix)
    mix["output.weight"] = "q8_0"
    quantize_mix(
        Machine(mixed / "resources/llama.cpp/bin", threads=2),
        base,
        mixed / "results/Best/imatrix.dat",
        mix,
        tmp_path / "made.gguf",
    )
    stored = {t.name: t.type_name.lower() for t in read_gguf(tmp_path / "made.gguf").tensors}
    assert {name: stored[name] for name in mix} == mix


def test_sizes_and_rules_are_those_of_llama_quantize_for_every_type(mixed, tmp_path):
    base, imatrix = gguf(mixed, "BF16"), mixed / "results/Best/imatrix.dat"
    tensors, entries = {t.name: t.shape for t in base.tensors}, read_imatrix(imatrix).entries
    found = candidates(tensors, shape_of(base.metadata), DEFAULT, entries)
    machine = Machine(mixed / "resources/llama.cpp/bin", threads=2)
    for kind in {kind for kinds in found.values() for kind in kinds}:
        mix = {name: kind if kind in kinds else min(kinds) for name, kinds in found.items()}
        file = tmp_path / f"{kind}.gguf"
        quantize_mix(machine, base, imatrix, mix, file)
        stored = {t.name: t.type_name.lower() for t in read_gguf(file).tensors}
        assert {name: stored[name] for name in mix} == mix
        most = overhead(base, found) + sum(found[name][kind] for name, kind in mix.items())
        assert most - RESERVE <= file.stat().st_size <= most


def test_types_that_need_data_are_for_tensors_that_have_some():
    assert has_data("blk.0.ffn_up.weight", "iq2_xs", {"blk.0.ffn_up.weight"})
    assert not has_data("blk.0.ffn_up.weight", "iq2_xs", set())
    assert has_data("blk.0.ffn_up.weight", "q2_k", set())
    assert not has_data("token_embd.weight", "iq2_xs", None)
    assert has_data("token_embd.weight", "iq3_xxs", None)


def test_a_mix_is_written_and_read_and_called_by_most_of_its_tensors(mixed, tmp_path):
    base = gguf(mixed, "BF16")
    mix = {t.name: "q4_k" for t in base.tensors if t.type_name == "BF16"}
    mix["output.weight"] = "q6_k"
    write_mix(tmp_path / "mix.txt", mix)
    assert read_mix(tmp_path / "mix.txt") == mix
    assert called(mix) == "Q4_K_M"
