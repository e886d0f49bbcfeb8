"""The quality report: its figures, its rules, and its page in a real browser."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

import pandas
import pytest

from browsing import open_page
from lib.formats.memory import CONTEXTS
from lib.report import judge, mixes, quality_plot
from lib.report.figures import decimal, places
from lib.report.judge import Figure, Form
from lib.report.looks import Looks
from lib.stages.registry import FAMILIES
from report import MINUS

LOOKS = Looks.of(FAMILIES.values())
SCRIPT = Path(__file__).parents[1] / "scripts" / "report.py"
COLUMNS = (
    *("form", "file", "bytes", "bits_per_weight", "kld", "kld_error"),
    *("perplexity", "perplexity_error", "same_top", "same_top_error"),
    *("kld_p999", "kld_vs_best", "kld_vs_best_error", "memory_16k"),
    *("kld_p99", "kld_max", "top_lost", "top_gained"),
)
HOSTILE = "<script>alert('x')</script>&\"'</style>"
# (size in GB, KLD) of a real family's order; many are close neighbours.
SWEEP = {
    "IQ1_S": (2.02, 1.35), "IQ1_M": (2.16, 0.98), "IQ2_XXS": (2.40, 0.62), "IQ2_XS": (2.61, 0.45),
    "IQ2_S": (2.76, 0.38), "IQ2_M": (2.95, 0.285), "Q2_K_S": (2.99, 0.40), "Q2_K": (3.18, 0.30),
    "IQ3_XXS": (3.27, 0.165), "IQ3_XS": (3.52, 0.13), "Q3_K_S": (3.66, 0.15),
    "IQ3_S": (3.68, 0.108), "IQ3_M": (3.78, 0.101), "Q3_K_M": (4.02, 0.083),
    "Q3_K_L": (4.32, 0.074), "IQ4_XS": (4.45, 0.0378), "IQ4_NL": (4.68, 0.0372),
    "Q4_0": (4.66, 0.049), "Q4_K_S": (4.69, 0.0355), "Q4_K_M": (4.92, 0.0312),
    "Q4_K_L": (5.31, 0.0291), "Q4_1": (5.13, 0.0385), "Q5_K_S": (5.60, 0.0121),
    "Q5_K_M": (5.73, 0.0107), "Q6_K": (6.60, 0.00545), "Q8_0": (8.54, 0.00135),
    "Q4_K_M-static": (4.92, 0.0365), "3.0bpw": (3.70, 0.144), "4.25bpw": (4.85, 0.0296),
    "5.0bpw": (5.55, 0.0131), "BF16": (16.07, -0.000001),
}  # fmt: skip


def form(name: str, size: float, kld: float | None = None, quantized: bool = True, **more) -> Form:
    return Form(
        name,
        LOOKS["gguf"],
        quantized,
        f"results/M/gguf/M-{name}.gguf",
        int(size),
        parameters=more.pop("parameters", 1000),
        kld=Figure(kld, None if kld is None else abs(kld) / 50),
        **more,
    )


def names(found: list[Form]) -> list[str]:
    return [each.name for each in found]


def write_inputs(folder: Path, sizes: dict[str, tuple[float, float | None]], model: str = "M"):
    """forms.json and the evaluations of `sizes`, {name: (size in GB, KLD or None)}, in folder."""
    entries = []
    for number, (name, (size, kld)) in enumerate(sizes.items()):
        family = "exl2" if name.endswith("bpw") else "gguf"
        evaluation = None
        if kld is not None:
            evaluation = f"{number}.json"
            figures = {
                "kld": {"mean": kld, "error": abs(kld) / 50, "median": kld / 2, "p99": kld * 9},
                "perplexity": {"mean": round(6.2 + kld, 4), "error": 0.04},
                "same_top": {"mean": round(0.99 - abs(kld) / 10, 6), "error": 0.0006},
                "corpus": "evaluation",
                "context": 512,
                "chunks": 40,
                "engine": "exllamav2 0.3.2" if family == "exl2" else "llama.cpp",
            }
            (folder / evaluation).write_text(json.dumps(figures))
        entries.append(
            {
                "form": name,
                "family": family,
                "quantized": name != "BF16",
                "file": f"results/{model}/gguf/{model}-{name}.gguf",
                "bytes": round(size * 1e9),
                "evaluation": evaluation,
                "imatrix": "static" not in name,
                "type": name,
            }
        )
    document = {
        "model": model,
        "parameters": 8_030_000_000,
        "reference": "llama.cpp b10605",
        "corpus": "evaluation",
        "context": 512,
        "forms": entries,
    }
    (folder / "forms.json").write_text(json.dumps(document))


def run(folder: Path, model: str = "M") -> subprocess.CompletedProcess:
    (folder / "families.json").write_text(LOOKS.to_json())
    command = [sys.executable, SCRIPT, "--model", model, "--forms", "forms.json"]
    command += ["--families", "families.json"]
    command += ["--csv", "quality.csv", "--svg", "quality.svg", "--html", "quality.html"]
    # Another hash seed each time: the order of a set must not reach the bytes.
    environment = {**os.environ, "PYTHONHASHSEED": str(len(folder.name) + 1)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def report(folder: Path, sizes: dict[str, tuple[float, float | None]], model: str = "M") -> Path:
    write_inputs(folder, sizes, model)
    done = run(folder, model)
    assert done.returncode == 0, done.stderr
    return folder


# A form is measured on 20 chunks, each as hard for the one as for the other.
HARD = [
    0.4,
    2.1,
    0.2,
    1.3,
    0.9,
    0.1,
    1.7,
    0.6,
    1.1,
    0.5,
    2.4,
    0.3,
    1.0,
    0.8,
    1.5,
    0.7,
    1.2,
    0.6,
    1.9,
]
HARD.append(20 - sum(HARD))


def chunked(name: str, size: float, kld: float, wobble: float = 0.0, **more) -> Form:
    """A form of the mean KLD `kld`; `wobble` is what two forms' chunks do not have in common."""
    signs = [1, -1, -1, 1] * 5
    parts = tuple(kld * hard + wobble * sign for hard, sign in zip(HARD, signs, strict=True))
    conditions = more.pop("conditions", ("llama.cpp", "evaluation", 512, 20))
    return form(name, size, kld, per_chunk=parts, conditions=conditions, **more)


def test_the_error_of_a_difference_is_that_of_what_two_forms_do_not_share():
    smaller, larger = chunked("small", 1, 0.100), chunked("large", 2, 0.103, wobble=0.002)
    value, error = judge.difference(larger, smaller)
    # The errors of each, from the same chunks, are 0.014: they could not be told apart.
    assert value == pytest.approx(0.003) and 0.0004 < error < 0.0007
    assert judge.difference(smaller, larger) == Figure(-value, pytest.approx(error))


def test_a_form_is_beaten_only_beyond_the_error_of_the_difference():
    small = chunked("small", 1, 0.100)
    forms = [small, chunked("worse", 2, 0.103, 0.002), chunked("unclear", 3, 0.1005, 0.002)]
    forms += [chunked("better", 4, 0.09, 0.002), chunked("elsewhere", 5, 0.2, 0.002)]
    forms[-1] = chunked("elsewhere", 5, 0.2, conditions=("llama.cpp", "another", 512, 20))
    forms += [form("plain", 6, 0.3), form("unmeasured", 7)]
    rivals = judge.rivals(forms)
    assert [name for name, rival in rivals.items() if rival.beats] == ["worse"]
    assert rivals["worse"].form is small and rivals["elsewhere"].form.name == "better"
    assert "small" not in rivals and "unmeasured" not in rivals
    assert names(judge.survivors(forms)) == [f.name for f in forms if f.name != "worse"]


def test_the_page_says_in_words_which_larger_file_is_worse(tmp_path):
    """As of a real model of width 576, whose Q6_K falls back to other types: 138 MB and 112 MB."""
    write_inputs(tmp_path, {"Q5_K_M": (0.112, 0.064), "Q6_K": (0.138, 0.071)})
    for number, form in enumerate((chunked("a", 1, 0.064), chunked("b", 2, 0.071, 0.001))):
        file = tmp_path / f"{number}.json"
        measured = {**json.loads(file.read_text()), "per_chunk": {"kld": form.per_chunk}}
        file.write_text(json.dumps(measured))
    assert run(tmp_path).returncode == 0
    page = " ".join((tmp_path / "quality.html").read_text().split())
    told = "<strong>Q6_K</strong> (138.0 MB) has a higher KLD than Q5_K_M (112.0 MB), by 0.00700 ±"
    assert "Larger than another and no better: " + told in page
    assert page.count('title="Beaten by ') == 1
    row = pandas.read_csv(tmp_path / "quality.csv").set_index("form").loc["Q6_K"]
    assert row.kld_vs_best == pytest.approx(0.007) and 0 < row.kld_vs_best_error < 0.001


MIX = {"file": "results/M/mixes/Mixed.txt", "corpus": "calibration"}


def mixed(kld: float, size: float = 40, found: dict | None = None, wobble: float = 0.0) -> Form:
    told = judge.Mix(**MIX, target={}, found={"expected": kld, **(found or {})}, types={})
    return chunked("Mixed", size * 1e6, kld, wobble, mix=told)


def preset(name: str, size: float, kld: float, wobble: float = 0.0) -> Form:
    return chunked(name, size * 1e6, kld, wobble, preset=True)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (mixed(0.050), "loses 38% less than Q3 (30.00 MB), the best preset"),
        (mixed(0.090, wobble=0.002), "is worse than Q3 (30.00 MB), the best preset"),
        (mixed(0.0805, wobble=0.003), "is not better than Q3"),
        (mixed(0.0795, wobble=0.003), "KLD lower by 0.00050 ± 0.00071, within 2 errors"),
        (mixed(0.050, 15), "has nothing to be compared with"),
        (
            mixed(0.050, 15, {"preset": {"name": "IQ2_S", "expected": 0.4}}),
            "(IQ2_S would be the best, with an expected KLD of 0.400)",
        ),
        (replace(mixed(0.050), per_chunk=()), "cannot be told from Q3"),
        (replace(mixed(0.050), kld=Figure()), "was not measured"),
        (
            replace(mixed(0.050), conditions=("llama.cpp", "another", 512, 20)),
            "has nothing to be compared with",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Form) else value[:20],
)
def test_a_mix_that_is_no_better_than_a_preset_says_so(mix, said):
    """Another mix, an own mixture and a larger preset do not count, however good they are.

    mixed and preset take sizes in MB.
    """
    forms = [preset("Q2", 20, 0.3), preset("Q3", 30, 0.08), preset("Q4", 45, 0.03), mix]
    forms += [chunked("own", 25e6, 0.01), replace(mixed(0.001, 10), name="Other")]
    assert said in mixes.verdict(mix, forms)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"target_size": 4_700_000_000}, "at most 4.7 GB"),
        ({"target_bpw": 4.5}, "at most 4.5 bits a weight"),
        (
            {"max_kld": 0.01, "corpus": "calibration", "half": True},
            "the smallest with a KLD of at most 0.01 on calibration, its second half",
        ),
        ({"memory": 24.0}, "fits 24 GB with 8,192 tokens of f16 cache"),
        (
            {"memory": 24.0, "context": 4096, "cache_type": "q8_0"},
            "fits 24 GB with 4,096 tokens of q8_0 cache",
        ),
    ],
)
def test_what_a_mix_was_to_meet_is_said_in_words(target, said):
    assert mixes.target_text(target, trained=8192) == said


def test_the_map_of_a_mix_has_every_layer_of_every_kind():
    types = {f"blk.{layer}.ffn_up_exps.weight": "q4_k" for layer in range(2, 60)}
    types |= {"blk.0.attn_k.weight": "q6_k", "blk.59.ffn_up_exps.weight": "q6_k"}
    found = mixes.heat_map({**types, "token_embd.weight": "q8_0"})
    assert found.layers == 60 and found.others == {"token_embd": "q8_0"}
    assert found.kinds["ffn_up_exps"] == [(None, 0, 2), ("q4_k", 2, 57), ("q6_k", 59, 1)]
    assert found.kinds["attn_k"] == [("q6_k", 0, 1), (None, 1, 59)]
    assert found.ticks[1] == (10, 10)


@pytest.fixture(scope="module")
def with_mixes(tmp_path_factory) -> Path:
    """The report of presets, a mix of 80 layers that is good, and one that is bad."""
    folder = tmp_path_factory.mktemp("mixes")
    write_inputs(
        folder,
        {"IQ3_M": (30, 0.1), "Q4_K_M": (40, 0.04), "Good": (42, 0.03), "Bad": (44, 0.05)}
        | {"Q6_K": (60, 0.005), "4.25bpw": (41, 0.035)},
    )
    document = json.loads((folder / "forms.json").read_text())
    layers, kinds = range(80), ("attn_k", "ffn_up", "ffn_down_exps")
    types = {f"blk.{n}.{kind}.weight": ("q4_k", "q6_k")[n % 2] for n in layers for kind in kinds}
    tried = {"bytes": 42e9, "expected": 0.0222, "kld": 0.0288, "error": 0.001}
    for entry in document["forms"]:
        name = entry["form"]
        kld = {"IQ3_M": 0.1, "Q4_K_M": 0.04, "Good": 0.03, "Bad": 0.05}.get(name)
        entry["preset"] = "Q" in name
        if name in ("Good", "Bad"):
            found = {"expected": 0.0222, "tries": [tried], "validation": "calibration"}
            target = {"max_kld": 0.03, "corpus": "calibration", "half": True}
            every = types | {"output.weight": "q8_0"}
            entry["mix"] = MIX | {"target": target, "found": found, "types": every}
        if kld:
            measured = json.loads((folder / entry["evaluation"]).read_text())
            measured["per_chunk"] = {"kld": chunked(name, 1, kld, 0.001).per_chunk}
            (folder / entry["evaluation"]).write_text(json.dumps(measured))
    (folder / "forms.json").write_text(json.dumps(document))
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_page_tells_of_each_mix_what_was_expected_and_what_came_of_it(with_mixes):
    page = " ".join((with_mixes / "quality.html").read_text().split())
    assert "<strong>Good</strong> (42.00 GB) loses 25% less than Q4_K_M (40.00 GB)" in page
    assert "<strong>Bad</strong> (44.00 GB) is worse than Q4_K_M (40.00 GB)" in page
    assert page.count('<td class="number">0.0222</td><td class="number">0.0288 ± 0.0010</td>') == 2
    assert 'title="ffn_down_exps, layer 79: q6_k, 6.5625 bits"' in page
    svg = (with_mixes / "quality.svg").read_text()
    assert "presets' front" in svg and "presets-line" in svg


def test_a_model_without_mixes_has_no_word_of_them(sweep):
    for file in ("quality.html", "quality.svg"):
        text = (sweep / file).read_text()
        assert "heat" not in text.replace("--heat", "") and 'class="presets-line"' not in text


@pytest.mark.parametrize("width", [390, 1280])
def test_the_map_of_80_layers_fits_the_screen(browser, with_mixes, width):
    open_page(browser, with_mixes / "quality.html", width)
    wide = "return Math.max(...[...document.querySelectorAll('details table')]" \
           ".map(table => table.getBoundingClientRect().right))"  # fmt: skip
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(wide) <= width - 28  # within its frame
    cells = "return [...document.querySelectorAll('details[open] td[title]')]" \
            ".map(cell => cell.getBoundingClientRect().width)"  # fmt: skip
    found = browser.execute_script(cells)
    assert len(found) == 3 * 80 and min(found) > 1


def test_the_presets_front_goes_with_its_family(browser, with_mixes):
    open_page(browser, with_mixes / "quality.html")
    line = "return document.querySelector('.presets-line').getBoundingClientRect().width > 0"
    assert browser.execute_script(line)
    browser.find_element("css selector", "[data-family=gguf]").click()
    assert not browser.execute_script(line)


def test_further_texts_have_columns_and_the_worst_is_named(tmp_path):
    write_inputs(tmp_path, {"Q8_0": (8.5, 0.001), "Q4_K_M": (4.9, 0.03), "BF16": (16.0, 0.0)})
    document = json.loads((tmp_path / "forms.json").read_text())
    for number, (code, chat) in enumerate([(0.002, 0.0005), (0.02, None), (0.0, 0.0)]):
        also = {text: kld for text, kld in (("code", code), ("chat", chat)) if kld is not None}
        for text, kld in also.items():
            measured = {"kld": {"mean": kld, "error": kld / 10}}
            measured |= {"shared": {"all": 0.123}} if text == "code" else {}
            (tmp_path / f"{text}{number}.json").write_text(json.dumps(measured))
        document["forms"][number]["also"] = {text: f"{text}{number}.json" for text in also}
    (tmp_path / "forms.json").write_text(json.dumps(document))
    assert run(tmp_path).returncode == 0
    table = pandas.read_csv(tmp_path / "quality.csv").set_index("form")
    added = [f"{key}_on_{t}" for t in ("code", "chat") for key in ("kld", "kld_error")]
    added.append("worst_text")
    assert list(table.columns)[-5:] == added
    assert list(table.loc["Q8_0", added]) == [0.002, 0.0002, 0.0005, 0.00005, "code"]
    assert table.loc["Q4_K_M", "worst_text"] == "evaluation"
    assert table.loc[["Q4_K_M"], "kld_on_chat"].isna().all()
    assert table.loc[["BF16"], "worst_text"].isna().all()
    page = (tmp_path / "quality.html").read_text()
    assert "“code” is no unseen text" in page and "12% of its paragraphs" in page


def test_what_forms_solve_of_tasks_has_columns_at_the_end(tmp_path):
    write_inputs(tmp_path, {"Q4_K_M": (4.9, 0.02), "Q8_0": (8.5, 0.001), "5.0bpw": (5.2, 0.01)})
    document = json.loads((tmp_path / "forms.json").read_text())
    for number, score in enumerate((0.5, 2 / 3)):
        (tmp_path / f"task{number}.json").write_text(json.dumps({"score": score, "error": 0.01}))
        document["forms"][number]["tasks"] = {"arc": f"task{number}.json"}
    document["harness"] = {"arc": "task0.json", "unmeasured": "task1.json"}
    (tmp_path / "forms.json").write_text(json.dumps(document))
    assert run(tmp_path).returncode == 0
    table = pandas.read_csv(tmp_path / "quality.csv").set_index("form")
    assert list(table.columns)[-2:] == ["task_arc", "task_arc_error"]
    assert list(table.loc["Q8_0", ["task_arc", "task_arc_error"]]) == [0.666667, 0.01]
    assert table.loc[["5.0bpw"], "task_arc"].isna().all()
    page = (tmp_path / "quality.html").read_text()
    assert "<button>arc, %</button>" in page and "66.7" in page
    (own,) = re.findall("Tasks that the model’s own weights.*?</p>", page, re.S)
    assert "arc <span>50.0" in own and "unmeasured <span>66.7" in own
    (tmp_path / "task0.json").write_text(json.dumps({"score": "half"}))
    done = run(tmp_path)
    assert done.returncode == 1 and "task0.json: score is 'half'" in done.stderr


def test_few_chunks_tell_nothing_of_an_error():
    few = [chunked(name, size, kld) for name, size, kld in (("a", 1, 0.1), ("b", 2, 0.9))]
    few = [replace(one, per_chunk=one.per_chunk[:9]) for one in few]
    assert judge.difference(few[1], few[0]) == Figure(pytest.approx(0.8))
    assert names(judge.survivors(few)) == ["a", "b"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """The report of a 31-form sweep, EXL2 and the unquantized model in it."""
    return report(tmp_path_factory.mktemp("sweep"), SWEEP)


# The figures -------------------------------------------------------------------------------------


def test_csv_holds_what_was_measured_and_leaves_the_rest_empty(tmp_path):
    report(tmp_path, {"Q8_0": (8.03, 0.001), "Q4_K_M": (4.015, None)})
    lines = (tmp_path / "quality.csv").read_text().splitlines()
    assert lines == [
        ",".join(COLUMNS),
        "Q4_K_M,results/M/gguf/M-Q4_K_M.gguf,4015000000,4.0,,,,,,,,,,,,,,",
        "Q8_0,results/M/gguf/M-Q8_0.gguf,8030000000,8.0,0.001,2e-05,6.201,0.04,0.9899,0.0006"
        ",,,,,0.009,,,",
    ]


def test_csv_lists_every_form_once(sweep):
    assert set(pandas.read_csv(sweep / "quality.csv").form) == set(SWEEP)


def test_csv_has_no_digits_that_one_engine_alone_would_give(tmp_path):
    """llama-perplexity prints six decimals; exllamav2's figures come with all that a float has."""
    write_inputs(tmp_path, {"Q8_0": (8.03, 0.001), "4.0bpw": (4.015, 0.0123456789012345)})
    measured = json.loads((tmp_path / "1.json").read_text())
    measured["perplexity"] |= {"mean": 6.2123456789012345, "error": 0.0412345678901234}
    (tmp_path / "1.json").write_text(json.dumps(measured))
    assert run(tmp_path).returncode == 0
    header, *rows = (tmp_path / "quality.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert ",0.012346,0.000247,6.212346,0.041235," in rows[0]
    assert max(len(cell.partition(".")[2]) for row in rows for cell in row.split(",")[3:]) <= 6


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([(0.0313, 0.00031), (0.0012, 0.000012)], ["0.03130", "0.00120"]),
        ([(0.3013, 0.0045), (0.0012, 0.000012)], ["0.3013", "0.00120"]),
        ([(98.282, 0.203), (99.461, 0.115), (100.0, 0.0)], ["98.28", "99.46", "100.00"]),
        ([(0.000023, 0.0), (0.000638, 0.000022)], ["0.000023", "0.000638"]),
        ([(None, None), (-0.0000001, 0.00001)], [None, "0.000000"]),
    ],
)
def test_a_column_has_as_many_places_as_the_errors_bear_and_the_same_where_they_can(column, shown):
    figures = [Figure(*pair) for pair in column]
    written = [
        None if figure.value is None else decimal(figure.value, digits)
        for figure, digits in zip(figures, places(figures, 6), strict=True)
    ]
    assert written == shown


def test_same_input_gives_the_same_bytes(sweep, tmp_path):
    report(tmp_path, dict(reversed(SWEEP.items())))
    for name in ("quality.csv", "quality.svg", "quality.html"):
        assert (tmp_path / name).read_bytes() == (sweep / name).read_bytes()


def test_a_figure_that_is_not_finite_is_an_error_that_names_its_file(tmp_path):
    write_inputs(tmp_path, {"Q8_0": (8, 0.001)})
    broken = json.loads((tmp_path / "0.json").read_text())
    broken["kld"]["mean"] = float("nan")
    (tmp_path / "0.json").write_text(json.dumps(broken))
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "report: 0.json: kld.mean is nan, not a finite number; measure it again\n"
    )
    assert not (tmp_path / "quality.csv").exists()


@pytest.mark.parametrize("text", ['{"kld": {"mean": 0.', '["kld"]', None])
def test_a_damaged_evaluation_is_an_error_that_names_its_file(tmp_path, text):
    write_inputs(tmp_path, {"Q8_0": (8, 0.001)})
    (tmp_path / "0.json").write_text(text) if text else (tmp_path / "0.json").unlink()
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("report: 0.json: ") and done.stderr.count("\n") == 1


# The rules ---------------------------------------------------------------------------------------


def test_pareto_front_keeps_equals_and_leaves_out_the_beaten_and_the_unmeasured():
    found = [
        form("a", 10, 0.5),
        form("a-twin", 10, 0.5),
        form("same-size-worse", 10, 0.6),
        form("same-kld-larger", 11, 0.5),
        form("b", 20, 0.1),
        form("unmeasured", 5),
        form("noise-above-b", 25, 0.1001),
    ]
    assert names(judge.pareto_front(found)) == ["a", "a-twin", "b"]


def test_a_slightly_negative_kld_is_no_better_than_zero():
    found = [form("F16", 10, 0.0), form("BF16", 12, -1e-6, False)]
    assert names(judge.pareto_front(found)) == ["F16"]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(8, "Q6_K"), (12, "Q8_0"), (16, "Q8_0"), (24, "BF16"), (80, "BF16")],
)
def test_the_lowest_kld_that_fits_is_recommended(memory, expected):
    found = [form(n, size * 1e9, kld) for n, (size, kld) in SWEEP.items() if "bpw" not in n]
    assert judge.recommend(found, memory).name == expected


def test_cache_and_buffers_of_the_context_must_fit_too():
    room = judge.room(8)
    assert room == 7 * 2**30
    fits = form("fits", 5e9, memory={4096: room, 16384: room + 1})
    assert judge.recommend([fits], 8, 4096).name == "fits"
    assert judge.recommend([fits], 8, 16384) is None
    # Where no memory is known, a tenth of the file is added.
    assert judge.recommend([form("unknown", room / 1.11)], 8).name == "unknown"
    assert judge.recommend([form("unknown", room / 1.09)], 8) is None


def test_a_longer_context_leaves_room_for_a_smaller_form():
    def one(name, size, kld):
        return form(name, size, kld, memory={c: size + 130_000 * c for c in CONTEXTS})

    found = [one("Q4", 4.9e9, 0.03), one("Q6", 6.6e9, 0.005), one("Q8", 8.5e9, 0.001)]
    contexts, rows = judge.by_memory(found, trained=32768)
    assert list(map(judge.context_text, contexts)) == ["4k", "16k", "32k"]
    picked = [(judge.memory_text(sizes), [pick and pick.name for pick in picks])
              for sizes, picks in rows]  # fmt: skip
    assert picked == [
        ("8 GB", ["Q6", "Q4", None]),
        ("12 GB", ["Q8", "Q8", "Q6"]),
        ("16 GB and more", ["Q8", "Q8", "Q8"]),
    ]
    # A model that was trained on less has no such context.
    contexts, rows = judge.by_memory(found, trained=4096)
    assert list(map(judge.context_text, contexts)) == ["4k"]
    # Contexts with the same answers are one column.
    contexts, rows = judge.by_memory([replace(one("Q2", 1e8, 0.1))], trained=None)
    assert list(map(judge.context_text, contexts)) == ["4k to 32k", "128k"]


def test_of_equal_kld_the_smaller_is_recommended():
    found = [form("large", 5e9, 0.01), form("small", 4e9, 0.01)]
    assert judge.recommend(found, 8).name == "small"


def test_measured_forms_go_before_larger_unmeasured_ones():
    found = [form("measured", 4e9, 0.01), form("unmeasured", 6e9)]
    assert judge.recommend(found, 8).name == "measured"


def test_without_measurements_the_largest_that_fits_is_recommended():
    found = [form("a", 4e9), form("b", 6e9), form("c", 60e9)]
    assert [judge.recommend(found, m).name for m in (8, 80)] == ["b", "c"]


def test_sizes_of_memory_with_the_same_answer_are_one_line():
    found = [form("Q4", 4e9, 0.03), form("Q8", 8e9, 0.001), form("BF16", 16e9, 0.0, False)]
    lines = [
        (judge.memory_text(sizes), pick.name)
        for sizes, (pick,) in judge.by_memory(found, None).rows
    ]
    assert lines == [("8 GB", "Q4"), ("12 to 16 GB", "Q8"), ("24 GB and more", "BF16")]


def test_choices_of_a_sweep():
    found = [
        form(n, size * 1e9, kld, parameters=8_030_000_000)
        for n, (size, kld) in SWEEP.items()
        if n != "BF16"
    ]
    picked = {choice.title: choice.form.name for choice in judge.choices(found)}
    assert picked == {"Small": "IQ3_M", "Balanced": "IQ4_XS", "Nearly lossless": "Q6_K"}


def test_a_form_that_answers_two_questions_is_given_once():
    (small, lossless) = judge.choices([form("Q4", 600, 0.02), form("Q8", 1100, 0.001)])
    assert (small.form.name, small.title, small.also) == ("Q4", "Small", ["Balanced"])
    assert (lossless.form.name, lossless.title) == ("Q8", "Nearly lossless")


def test_a_poor_best_form_is_not_called_nearly_lossless():
    titles = [choice.title for choice in judge.choices([form("Q2", 300, 0.4)])]
    assert "Nearly lossless" not in titles


@pytest.mark.parametrize(
    "found",
    [
        [],
        [form("BF16", 2000, -1e-6, False)],
        [form("Q8", 1000), form("Q4", 600)],
        [form("twin", 500, 0.1), form("other-twin", 500, 0.1)],
        [form("lossless", 1000, 0.0), form("BF16", 2000, 0.0, False)],
    ],
    ids=["no forms", "unquantized alone", "unmeasured", "twins", "no loss at all"],
)
def test_odd_cases_are_drawn_and_answered(found):
    judge.choices(found)
    for standalone, width in ((True, 960), (False, 390)):
        drawn = quality_plot.draw("M", found, width, 600, standalone)
        ElementTree.fromstring(drawn)
        assert "nan" not in drawn and "inf" not in drawn


# The plot ----------------------------------------------------------------------------------------


def test_plot_without_measurements_says_so(tmp_path):
    report(tmp_path, {"Q8_0": (8, None), "Q4_K_M": (4, None)})
    assert "No KL divergence was measured" in (tmp_path / "quality.svg").read_text()


def test_plot_says_the_name_of_every_form(sweep):
    root = ElementTree.parse(sweep / "quality.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in SWEEP:
        shown = f"EXL2 {name}" if name.endswith("bpw") else name
        assert any(text == shown or text.startswith(f"{shown},") for text in texts), name


def test_plot_has_neither_date_nor_path(sweep):
    for name in ("quality.svg", "quality.html"):
        text = (sweep / name).read_text()
        assert str(sweep) not in text
        assert not re.search(r"20\d\d-\d\d-\d\d", text)


# The page ----------------------------------------------------------------------------------------


def test_hostile_names_are_escaped_everywhere(tmp_path):
    report(tmp_path, {HOSTILE: (4, 0.1), "b\x00\x1b": (5, 0.05)}, model=HOSTILE)
    ElementTree.parse(tmp_path / "quality.svg")
    for name in ("quality.svg", "quality.html"):
        text = (tmp_path / name).read_text()
        assert "<script>alert" not in text
        assert text.count("</style>") == 1
    page = (tmp_path / "quality.html").read_text()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page


def test_page_says_who_was_the_reference_and_on_which_text(sweep):
    page = (sweep / "quality.html").read_text()
    said = re.sub(r"\s+", " ", page)
    for engine in ("llama.cpp b10605", "exllamav2 0.3.2"):
        assert f"Against the unquantized model in {engine}, on the text “evaluation”, 40" in said
    assert "40 chunks of 512 tokens" in said


def test_page_warns_when_forms_were_measured_differently(tmp_path):
    write_inputs(tmp_path, {"Q8_0": (8, 0.001), "Q4_K_M": (4, 0.01)})
    other = json.loads((tmp_path / "1.json").read_text())
    (tmp_path / "1.json").write_text(json.dumps({**other, "corpus": "another"}))
    assert run(tmp_path).returncode == 0
    assert "Not all forms were measured on the same text" in (tmp_path / "quality.html").read_text()


def test_of_a_tiny_model_memory_decides_nothing(tmp_path):
    report(tmp_path, {"Q8_0": (0.0045, 0.00004), "BF16": (0.0084, 0.0)})
    page = (tmp_path / "quality.html").read_text()
    assert "Every form fits into 8 GB" in page and "8 GB and more" not in page


# The page in a browser ---------------------------------------------------------------------------


def shown(browser, column: int) -> list[str]:
    """The values of a column of the table, from top to bottom."""
    script = (
        "return [...document.querySelectorAll('#forms tbody tr')]"
        ".map(row => row.cells[arguments[0]].dataset.value)"
    )
    return browser.execute_script(script, column)


def header(browser, text: str):
    """A heading's place, cell and button."""
    cells = browser.find_elements("css selector", "#forms thead th")
    for place, cell in enumerate(cells):
        button = cell.find_element("css selector", "button")
        if button.text.startswith(text):
            return place, cell, button
    raise AssertionError(f"no heading {text}")


@pytest.mark.parametrize("heading", ["Size", "KLD", "KLD, 99%", "Same top", "Perplexity", "Bits"])
def test_a_heading_sorts_by_number_and_again_the_other_way(browser, sweep, heading):
    open_page(browser, sweep / "quality.html")
    place, cell, button = header(browser, heading)
    if cell.get_attribute("aria-sort") != "ascending":
        button.click()
    numbers = [float(value) for value in shown(browser, place)]
    assert cell.get_attribute("aria-sort") == "ascending"
    assert numbers == sorted(numbers) and len(set(numbers)) > 20
    button.click()
    assert cell.get_attribute("aria-sort") == "descending"
    numbers = [float(value) for value in shown(browser, place)]
    assert numbers == sorted(numbers, reverse=True)
    assert len(browser.find_elements("css selector", "[aria-sort]")) == 1


def test_the_keyboard_sorts_too(browser, sweep):
    open_page(browser, sweep / "quality.html")
    place, cell, button = header(browser, "Form")
    browser.execute_script("arguments[0].focus()", button)
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    assert cell.get_attribute("aria-sort") == "ascending"
    first = shown(browser, place)
    assert first.index("3.0bpw") < first.index("5.0bpw") < first.index("Q2_K") < first.index("Q8_0")


def test_what_was_not_measured_stays_at_the_end(browser, tmp_path):
    report(tmp_path, {"a": (4, None), "b": (5, 0.1), "c": (6, 0.05)})
    open_page(browser, tmp_path / "quality.html")
    place, _, button = header(browser, "KLD")
    for _ in range(2):
        button.click()
        assert shown(browser, place)[-1] == ""
        assert shown(browser, 0)[-1] == "a"


def test_the_page_asks_nobody_for_anything_and_logs_no_error(browser, sweep, tmp_path):
    report(tmp_path, {HOSTILE: (4, 0.1), "b": (5, 0.05)}, model=HOSTILE)
    for log in ("browser", "performance"):
        browser.get_log(log)
    asked = []
    for folder in (sweep, tmp_path):
        open_page(browser, folder / "quality.html")
        header(browser, "KLD")[2].click()
        for entry in browser.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                asked.append(event["params"]["request"]["url"])
    own = {(folder / "quality.html").as_uri() for folder in (sweep, tmp_path)}
    assert own <= set(asked)
    assert [url for url in asked if url not in own and not url.startswith("data:")] == []
    assert browser.get_log("browser") == []


OVERLAPS = """
const boxes = [...document.querySelectorAll(arguments[0] + ' .label text')]
  .map(text => [text.textContent, text.getBoundingClientRect()])
  .filter(([, box]) => box.width);
const clashes = [];
boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
  // The box of a text includes its line spacing; 2 px of that may touch.
  if (p.left < q.right && q.left < p.right && p.top + 2 < q.bottom && q.top + 2 < p.bottom)
    clashes.push(a + ' / ' + b);
}));
return [boxes.length, clashes];
"""


@pytest.mark.parametrize(
    ("width", "scale", "least"),
    [(1280, "log", len(SWEEP) - 2), (1280, "linear", 20), (390, "log", 12), (390, "linear", 10)],
)
def test_labels_in_the_plot_do_not_overlap(browser, sweep, width, scale, least):
    open_page(browser, sweep / "quality.html", width)
    browser.find_element("css selector", f"input[value={scale}]").click()
    count, clashes = browser.execute_script(OVERLAPS, ".wide" if width > 600 else ".narrow")
    assert clashes == []
    assert count >= least


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_and_follows_its_colours(browser, sweep, width, dark):
    open_page(browser, sweep / "quality.html", width, dark)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = browser.execute_script(script, "body", "backgroundColor")
    plot = browser.execute_script(script, ".quality-plot path", "fill")
    for colour in (paper, plot):
        red = int(re.search(r"\d+", colour).group())
        assert (red < 60) if dark else (red > 200)


def seen(browser, selector: str) -> set[str]:
    """The forms of the elements that can be seen."""
    script = "return [...document.querySelectorAll(arguments[0])]" \
             ".filter(e => e.getBoundingClientRect().width).map(e => e.dataset.form)"  # fmt: skip
    return set(browser.execute_script(script, selector))


def test_a_family_switched_off_leaves_plot_table_and_front(browser, sweep):
    open_page(browser, sweep / "quality.html")
    exl2 = {name for name in SWEEP if "bpw" in name}
    assert seen(browser, ".point") == set(SWEEP)
    line = "return document.querySelector('.front-line path').getAttribute('d').split(' L ').length"
    before = browser.execute_script(line)
    browser.find_element("css selector", "[data-family=exl2]").click()
    assert seen(browser, ".point") == seen(browser, "tbody tr[data-form]") == set(SWEEP) - exl2
    # 4.25bpw was on the front and stood before Q4_K_M, which takes its place; so does 5.0bpw.
    assert browser.execute_script(line) == before - 1
    assert "Q4_K_M" in seen(browser, ".point.front")
    browser.find_element("css selector", "[data-family=exl2]").click()
    assert browser.execute_script(line) == before
    assert seen(browser, ".point") == set(SWEEP) and "Q4_K_M" not in seen(browser, ".point.front")


def test_a_point_tells_its_figures(browser, sweep):
    from selenium.webdriver import ActionChains

    open_page(browser, sweep / "quality.html")
    tip = browser.find_element("css selector", "#tip")
    assert not tip.is_displayed()
    point = browser.find_element("css selector", ".wide .point[data-form=Q8_0]")
    ActionChains(browser).move_to_element(point).perform()
    assert tip.text.splitlines()[:5] == ["Q8_0", "Size", "8.54 GB", "KLD", "0.00135 ± 0.00003"]
    box = browser.execute_script("return arguments[0].getBoundingClientRect().right", tip)
    assert box <= 1280


def test_a_form_is_compared_with_the_others_on_the_same_tokens(browser, tmp_path):
    """The error of the difference is that of the chunks' differences, as in quality.csv."""
    write_inputs(tmp_path, {"Q4_0": (4.66, 0.05), "Q4_K_M": (4.92, 0.031), "Q8_0": (8.5, None)})
    for number, scale in ((0, 0.05), (1, 0.031)):
        measured = json.loads((tmp_path / f"{number}.json").read_text())
        measured["per_chunk"] = {"kld": [scale * hard for hard in HARD]}
        measured["kld"]["mean"] = scale * mean(HARD)
        (tmp_path / f"{number}.json").write_text(json.dumps(measured))
    assert run(tmp_path).returncode == 0
    table = pandas.read_csv(tmp_path / "quality.csv").set_index("form")
    value, error = table.loc["Q4_K_M", ["kld_vs_best", "kld_vs_best_error"]]
    open_page(browser, tmp_path / "quality.html")
    browser.find_element("xpath", "//button[text()='Q4_0']").click()
    assert "KLD less Q4_0’s" in browser.find_element("css selector", "#forms thead").text
    cells = [cell.text for cell in browser.find_elements("css selector", "#forms .versus")][2:]
    digits = 1 - math.floor(math.log10(error))
    assert cells == [
        *("0", "0 GB"),
        *(f"{MINUS}{-value:.{digits}f} ± {error:.{digits}f}", "+0.26 GB"),
        *("–", "+3.84 GB"),
    ]
    assert browser.find_element("css selector", "#forms .versus strong").text == cells[2]
    # The same again takes it back.
    browser.find_element("xpath", "//button[text()='Q4_0']").click()
    assert not browser.find_element("css selector", "#forms .versus").is_displayed()


def test_families_off_and_on_leave_the_page_as_it_was(browser, tmp_path):
    """Also with two forms that are equal, which are on the front together."""
    sizes = {
        "Q4_K_M": (4.9, 0.03),
        "Q4_K_L": (4.9, 0.03),
        "Q8_0": (8.5, 0.001),
        "4.0bpw": (4.5, 0.05),
    }
    report(tmp_path, sizes)
    open_page(browser, tmp_path / "quality.html")
    before = seen(browser, ".point.front")
    assert before == set(sizes)
    for _ in range(2):
        browser.find_element("css selector", "[data-family=exl2]").click()
    assert seen(browser, ".point.front") == before
    # After "back" the browser keeps what was chosen, and the page shows that.
    browser.find_element("css selector", "[data-family=exl2]").click()
    browser.find_element("css selector", "input[value=linear]").click()
    browser.get("about:blank")
    browser.back()
    off = not browser.find_element("css selector", "[data-family=exl2]").is_selected()
    assert ("4.0bpw" not in seen(browser, ".point")) == off
    linear = browser.find_element("css selector", "input[value=linear]").is_selected()
    assert browser.find_element("css selector", ".linear").is_displayed() == linear


def test_a_new_comparison_is_in_order_again(browser, sweep):
    open_page(browser, sweep / "quality.html")

    def pick(form: str) -> None:
        button = browser.find_element("xpath", f"//tbody//button[text()='{form}']")
        browser.execute_script("arguments[0].click()", button)

    pick("Q8_0")
    place, cell, button = header(browser, "KLD less Q8_0’s")
    button.click()
    pick("Q4_K_M")
    numbers = [float(value) for value in shown(browser, place)]
    assert numbers == sorted(numbers) and cell.get_attribute("aria-sort") == "ascending"
    pick("Q4_K_M")  # none any more
    assert [float(value) for value in shown(browser, 1)] == sorted(
        round(size * 1e9) for size, _ in SWEEP.values()
    )


def test_forms_measured_on_other_texts_have_no_difference(browser, tmp_path):
    write_inputs(tmp_path, {"Q4_0": (4.66, 0.05), "4.0bpw": (4.7, 0.04)})
    measured = json.loads((tmp_path / "1.json").read_text())
    (tmp_path / "1.json").write_text(json.dumps(measured | {"corpus": "another"}))
    assert run(tmp_path).returncode == 0
    table = pandas.read_csv(tmp_path / "quality.csv").set_index("form")
    assert table.loc[["4.0bpw"], "kld_vs_best"].isna().all()
    open_page(browser, tmp_path / "quality.html")
    browser.find_element("xpath", "//tbody//button[text()='Q4_0']").click()
    cells = [cell.text for cell in browser.find_elements("css selector", "tbody .versus")]
    assert cells == ["0", "0 GB", "–", "+0.04 GB"]
