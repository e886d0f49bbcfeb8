"""The page, the plot and the sentences of a study, from what was measured of its candidates."""

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from browsing import open_page
from lib.report import gallery, study_charts, study_page, study_views
from lib.report.charts import Scale, short, spread, told_apart
from lib.report.looks import Looks
from lib.run.console import summary
from lib.stages.registry import FAMILIES
from lib.studies import grid, words
from lib.studies.choice import Figure, Rule, decide, in_order
from lib.studies.outcome import Outcome, Round, read_outcome, table
from project import Planned, Project

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "scripts/templates/study.html.j2"
HOSTILE = "<script>window.broken = 1</script>&\"'</style>"
PARENTS = {"m_base_e6": "./m/base", "m_code_13": "./m/code"}
TEXTS = ("code", "prose")


class Study:
    """A study whose measured files are written by hand.

    worse(candidate's values, figure): by how much its pieces are worse than those of others; of a
    text in nats. cut(values): how its texts are cut into tokens. noise: of a piece. rounds:
    [(chunks, keep)]. done: rounds that are measured.
    """

    def __init__(self, folder: Path, vary: dict[str, list], **more: Any):
        self.folder, self.random = folder, np.random.default_rng(7)
        given = {"texts": TEXTS, "tasks": (), "klds": (), "parents": PARENTS, "name": "Which"}
        given |= {"rounds": [(30, None)], "done": None, "seed": None, "by": "ranks", "noise": 0.01}
        given |= {"worse": lambda values, figure: 0.0, "cut": lambda values: "one"} | more
        self.given = given
        rows = grid.combinations(vary, [])
        self.candidates = {c.id: c.values for c in grid.candidates({}, rows, 0)}
        self.measured: dict[str, str] = {}
        self.kept: list[list[str]] = []
        done = given["done"] or len(given["rounds"])
        taking = list(self.candidates)
        longest = max(chunks for chunks, _ in given["rounds"])
        hard = {text: self.random.normal(2, 0.4, longest) for text in given["texts"]}
        for number, (chunks, keep) in enumerate(given["rounds"][:done], 1):
            self._measure(number, chunks, taking, hard)
            if keep is not None and number < done:
                taking = read_outcome(self.options, self.measured).rounds[-1].kept
                self.kept.append(taking)
        if done < len(given["rounds"]):
            self._measure(len(given["rounds"]), longest, [], hard)

    def _measure(self, number: int, chunks: int, taking: list[str], hard: dict) -> None:
        given, is_last = self.given, number == len(self.given["rounds"])
        parents = [f"parents/{name}" for name in given["parents"] if is_last]
        for name in [*taking, *parents]:
            values = self.candidates.get(name, {"parent": name.removeprefix("parents/")})
            cut = {"tokens": given["cut"](values)}
            for text in given["texts"]:
                nll = hard[text][:chunks] + given["worse"](values, text)
                nll = nll + self.random.normal(0, given["noise"], chunks)
                self._put(
                    f"round {number} perplexity.{text} {name}", cut | {"per_chunk": {"nll": [*nll]}}
                )
            for task in given["tasks"] if is_last else ():
                solved = self.random.random(150) > 0.4 + given["worse"](values, task)
                self._put(f"round {number} tasks.{task} {name}", {"correct": [*map(int, solved)]})
            pairs = itertools.product(given["klds"], given["parents"])
            for text, parent in pairs if is_last and name in self.candidates else ():
                kld = {"kld": [*np.abs(self.random.normal(0.1, 0.02, chunks))]}
                found = {"kld": {"mean": 0.1}, "per_chunk": kld}
                self._put(f"round {number} kld.{text} {parent} {name}", found)

    def _put(self, role: str, found: dict) -> None:
        path = self.folder / f"{len(self.measured)}.json"
        path.write_text(json.dumps(found))
        self.measured[role] = str(path)

    @property
    def options(self) -> dict[str, Any]:
        """Those of the recipe (lib/stages/studies.py), through JSON as a recipe is."""
        given = self.given
        choose = {
            "minimise": given.get("minimise", [f"perplexity.{text}" for text in given["texts"]]),
            "maximise": [f"tasks.{task}" for task in given["tasks"]],
            "by": given["by"],
            "weights": {},
        }
        options = {
            "study": given["name"],
            "candidates": [[c, [*v.items()]] for c, v in self.candidates.items()],
            "parents": [*given["parents"].items()],
            "seed": given["seed"],
            "rounds": [{"chunks": chunks, "keep": keep} for chunks, keep in given["rounds"]],
            "kept": self.kept,
            "choose": choose,
        }
        return json.loads(json.dumps(options, sort_keys=True))

    @property
    def outcome(self) -> Outcome:
        return read_outcome(self.options, self.measured)

    def write(self) -> Path:
        """The page's path, beside it plot and table."""
        page = self.folder / "study.html"
        page.write_text(study_page.page(self.outcome, TEMPLATE, TEMPLATE.with_name("study.js")))
        study_page.write_plot(self.outcome, page.with_suffix(".svg"))
        page.with_suffix(".csv").write_text(table(self.outcome))
        return page


def weight(values: dict[str, Any], figure: str) -> float:
    """0.3 is the best weight, by far more than chance; parents are worse."""
    return 0.3 if "parent" in values else abs(values["w"] - 0.3)


def method_and_weight(values: dict[str, Any], figure: str) -> float:
    """On prose more weight is better, on code less: a front."""
    w = values.get("w", 0.5)
    return 0.2 * (w if figure == "code" else 1 - w) + 0.1 * (values.get("method") == "sce")


GRID = {"method": ["ties", "dare_ties", "sce"], "w": [0.2, 0.3, 0.5, 0.7]}


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> Path:
    """12 candidates in two rounds, of which 6 stay."""
    folder = tmp_path_factory.mktemp("twelve")
    rounds = [(4, "half"), (30, None)]
    return Study(folder, GRID, rounds=rounds, worse=method_and_weight, klds=("code",)).write()


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> Path:
    """40 candidates of three names, with a figure of tasks."""
    folder = tmp_path_factory.mktemp("forty")
    vary = {"method": ["ties", "dare_ties", "sce", "linear", "task_arithmetic"]}
    vary |= {"w": [0.2, 0.3, 0.5, 0.7], "density": [0.4, 0.8]}
    return Study(folder, vary, tasks=("hellaswag",), worse=method_and_weight).write()


# What it says ----------------------------------------------------------------------------------


def said(study: Study) -> dict[str, str]:
    return dict(words.answers(study.outcome))


def test_a_winner_far_ahead_is_called_decided(tmp_path):
    found = said(Study(tmp_path, {"w": [0.1, 0.3, 0.9]}, worse=weight))
    assert re.fullmatch(
        r"0\.3 wins of 3 candidates \(w 0\.3\): perplexity [\d.]+ ± [\d.]+ on code, "
        r"[\d.]+ ± [\d.]+ on prose\.",
        found["Winner"],
    )
    assert found["How sure"] == (
        "Decided: it wins in 100% of 2,000 random draws of the measured chunks."
    )
    # exp(0.2) is 22% more.
    percent = re.search(
        r"Against it the second, 0\.1, has perplexity ([\d.]+) ± ", found["By how much"]
    )
    assert float(percent[1]) == pytest.approx(100 * np.expm1(0.2), abs=1)
    assert "on code" in found["By how much"] and "higher" in found["By how much"]
    assert "The winner is better than all of them" in found["Merged models"]
    assert "./m/base has perplexity " in found["Merged models"]
    assert "Dropped" not in found


def test_a_parent_that_is_better_than_every_candidate_is_named(tmp_path):
    def worse(values: dict, figure: str) -> float:
        return 0.0 if values.get("parent") == "m_code_13" else 0.2

    found = said(Study(tmp_path, {"w": [0.1, 0.3]}, worse=worse))
    assert found["Merged models"].endswith(
        "Better than the winner, by more than two standard errors of the difference: ./m/code in "
        "perplexity on code and perplexity on prose."
    )


def test_candidates_that_only_chance_tells_apart_are_undecided(tmp_path):
    found = said(Study(tmp_path, {"w": [0.1, 0.3, 0.9]}))
    assert found["How sure"].startswith("Undecided: it wins in ")
    assert found["How sure"].endswith("More chunks may tell them apart.")
    assert "None of them is better than the winner" in found["Merged models"]


def test_a_winner_by_seed_alone_is_undecided_however_far_ahead(tmp_path):
    def worse(values: dict, figure: str) -> float:
        return 0.0 if values.get("seed") == 2 else 0.2

    study = Study(tmp_path, {"seed": [1, 2, 3]}, seed="seed", worse=worse)
    assert study.outcome.winner == "2"
    assert re.fullmatch(
        "Undecided: [13], the second, differs from it in the seed alone, so which of the two is "
        "ahead is chance.",
        said(study)["How sure"],
    )


@pytest.mark.parametrize("rounds", [[(30, None)], [(4, 2), (30, None)]])
def test_a_winner_whose_other_seed_is_behind_the_second_is_undecided(tmp_path, rounds):
    """sce lies between two seeds of ties: it may be dropped in a round, the seeds say no less."""
    by = {("ties", 1): 0.0, ("sce", 1): 0.1, ("ties", 2): 0.2, ("sce", 2): 0.3}

    def worse(values: dict, figure: str) -> float:
        return by.get((values.get("method"), values.get("seed")), 0.5)

    vary = {"method": ["ties", "sce"], "seed": [1, 2]}
    study = Study(tmp_path, vary, seed="seed", worse=worse, rounds=rounds)
    assert study.outcome.winner == "ties-1" and not study.outcome.decision.is_sure
    assert said(study)["How sure"] == (
        "Undecided: ties-2 differs from it in the seed alone and is behind sce-1, the second, so a "
        "seed does more than what sets the first two apart."
    )


def test_a_parent_of_another_tokenizer_is_compared_with_none(tmp_path):
    def cut(values: dict) -> str:
        return "other" if values.get("parent") == "m_code_13" else "one"

    study = Study(tmp_path, {"w": [0.1, 0.3]}, worse=weight, cut=cut)
    merged = said(study)["Merged models"]
    assert merged.startswith("Unmerged, ./m/base has perplexity ") and "./m/code has" not in merged
    assert "The winner is better than all of them" in merged
    assert merged.endswith(
        "The text was cut into other tokens for ./m/code than for the candidates: its perplexity "
        "on code and perplexity on prose is left out."
    )
    rows = list(csv.DictReader(io.StringIO(study.write().with_suffix(".csv").read_text())))
    assert {row["candidate"]: bool(row["perplexity.code"]) for row in rows} == {
        **{"0.1": True, "0.3": True, "./m/base": True},
        "./m/code": False,
    }


def test_a_parent_with_another_number_of_chunks_breaks_nothing(tmp_path):
    study = Study(tmp_path, {"w": [0.1, 0.3]}, worse=weight, cut=lambda values: "")
    for role, path in study.measured.items():
        if role.endswith("parents/m_base_e6"):
            nll = json.loads(Path(path).read_text())["per_chunk"]["nll"]
            Path(path).write_text(json.dumps({"per_chunk": {"nll": nll[:-2]}}))
    assert "for ./m/base than for the candidates" in said(study)["Merged models"]
    study.write()


@pytest.mark.parametrize("chunks", [30, 28])
def test_candidates_of_different_tokenizers_are_not_compared_by_perplexity(tmp_path, chunks):
    """Neither where they happen to have as many chunks."""
    study = Study(tmp_path, {"w": [0.1, 0.3]}, cut=lambda values: str(values.get("w", 0.1)))
    for role, path in study.measured.items():
        if role.endswith(" 0.3"):
            found = json.loads(Path(path).read_text())
            found["per_chunk"]["nll"] = found["per_chunk"]["nll"][:chunks]
            Path(path).write_text(json.dumps(found))
    text = (
        "Perplexity on code is not comparable: the text was cut into other tokens for 0.3 than for "
        "the rest; perplexity on prose is not comparable: the text was cut into other tokens for "
        "0.3 than for the rest. Nothing is chosen: choose by tasks, in one round, or give "
        "all candidates one tokenizer."
    )
    assert study.outcome.winner is None and study.outcome.is_stuck
    assert words.sentences(study.outcome) == [text]
    assert "is not comparable" in study.write().read_text()


def test_candidates_of_different_tokenizers_are_chosen_by_tasks(tmp_path):
    study = Study(
        tmp_path,
        {"w": [0.1, 0.3]},
        tasks=("arc",),
        minimise=[],
        cut=lambda values: str(values.get("w", 0.1)),
        worse=lambda values, figure: 0.3 * (values.get("w") == 0.1),
    )
    assert study.outcome.winner == "0.3"
    assert said(study)["Not compared"].endswith("other tokens for 0.3 than for the rest.")
    study.write()


def test_a_single_candidate_is_compared_with_none(tmp_path):
    found = said(Study(tmp_path, {"w": [0.3]}))
    assert found["Winner"].startswith("0.3 is the only candidate (w 0.3): ")
    assert found["How sure"] == "There is no other to compare it with."
    assert "By how much" not in found


def test_one_chunk_tells_nothing_of_chance(tmp_path):
    found = said(Study(tmp_path, {"w": [0.1, 0.3]}, rounds=[(1, None)], worse=weight))
    assert found["How sure"].startswith("Unknown: ")
    assert "nan" not in " ".join(found.values())


def test_after_the_first_round_nobody_has_won(tmp_path):
    found = said(Study(tmp_path, GRID, rounds=[(4, "half"), (30, None)], done=1, worse=weight))
    assert found["So far"].startswith(
        "Round 1 is measured (4 chunks of each text), and 6 of 12 candidates stay for the next "
        "round. "
    )
    assert "Winner" not in found
    assert "not comparable with this one" in found["Merged models"]


def test_figures_that_only_parents_have_yet_break_nothing(tmp_path):
    """In the last round tasks are measured too, of the parents from the first run on."""
    study = Study(
        tmp_path,
        GRID,
        tasks=("hellaswag",),
        rounds=[(4, "half"), (30, None)],
        done=1,
        worse=lambda values, figure: 0.0,
    )
    assert "hellaswag" in study.write().read_text()


def test_who_was_dropped_is_said(tmp_path):
    few = Study(tmp_path, {"w": [0.1, 0.3, 0.9]}, rounds=[(4, 2), (30, None)], worse=weight)
    assert said(few)["Dropped"] == "Dropped after round 1 (4 chunks of each text) 0.9."
    many = Study(tmp_path, GRID, rounds=[(4, 2), (30, None)], worse=weight)
    assert "10 of 12 candidates, the best of them " in said(many)["Dropped"]


def test_nothing_measured_is_said(tmp_path):
    study = Study(tmp_path, {"w": [0.1, 0.3]}, parents={})
    study.measured = {}
    assert words.sentences(study.outcome) == ["Nothing is measured yet."]
    page = study.write().read_text()
    assert "Nothing is measured yet." in page and ">0.1</button>" in page
    assert "Nothing is measured yet." in (tmp_path / "study.svg").read_text()


def test_tasks_are_told_in_percent_and_divergence_in_nats(tmp_path):
    study = Study(tmp_path, {"w": [0.1, 0.3]}, texts=(), tasks=("arc",), klds=("code",))
    winner = said(study)["Winner"]
    assert re.search(r": tasks solved [\d.]+ ± [\d.]+% in arc\.$", winner)
    assert "random draws of the measured tasks" in said(study)["How sure"]
    titles = [column.title for column in study_page.table_of(study.outcome)[0]]
    assert titles == [
        *("Rank", "w", "arc, % solved", "KLD, code, nats", "KLD to base on code, nats"),
        *("KLD to code on code, nats", "Score", "Wins, %", "Front"),
    ]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (725.5098, 12.6, "726 ± 13"),
        (7.18342, 0.0237, "7.183 ± 0.024"),
        (0.00123, 0.00021, "0.00123 ± 0.00021"),
        (7.18342, float("nan"), "7.18"),
        (0.0, 0.0, "0"),
    ],
)
def test_a_sentence_has_no_more_digits_than_the_error_bears(value, error, shown):
    assert words.figure(value, error) == shown


def test_equals_are_decided_by_the_config_and_not_by_their_names(tmp_path):
    """A recipe sorts the keys of a mapping; the page and `choose` must not differ."""
    study = Study(tmp_path, {"w": ["b", "a"]}, noise=0.0)
    assert study.outcome.winner == "b"
    assert "the one that the config names first was taken" in said(study)["By how much"]


def test_a_share_below_the_limit_is_not_rounded_up_to_it():
    shares = {0.9499: "94%", 0.95: "95%", 0.9996: "99%", 1.0: "100%", 0.405: "40%", 0.407: "41%"}
    assert {share: words._share(share) for share in shares} == shares


# The table -------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """Reads the rows of the table of candidates: {name: [data-value of each cell]}."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self.kinds: dict[str, str] = {}
        self.scripts = 0
        self._row: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.scripts += tag == "script"
        if tag == "tr" and "data-name" in named:
            self._row = self.rows.setdefault(named["data-name"] or "", [])
            self.kinds[named["data-name"] or ""] = named["class"] or ""
        elif tag == "td" and self._row is not None and "data-value" in named:
            self._row.append(named["data-value"] or "")
        elif tag == "table":
            self._row = None


def cells_of(page: Path) -> Cells:
    found = Cells()
    found.feed(page.read_text())
    return found


@pytest.mark.parametrize("name", ["twelve", "forty"])
def test_the_cells_are_those_of_the_csv(name, request):
    page = request.getfixturevalue(name)
    found = cells_of(page)
    lines = list(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text())))
    assert [line["candidate"] for line in lines] == sorted(
        found.rows, key=[line["candidate"] for line in lines].index
    )
    shown = [key for key in lines[0] if not key.endswith("_error")]
    shown = [key for key in shown if key not in ("candidate", "round")]
    if not any(line["dropped"] for line in lines):
        shown.remove("dropped")
    for line in lines:
        assert found.rows[line["candidate"]] == [line[key] for key in shown]


def test_dropped_ones_and_parents_are_rows_of_other_kinds(twelve):
    kinds = list(cells_of(twelve).kinds.values())
    assert sorted(kinds) == [
        *(["candidate"] * 5 + ["candidate winner"] + ["dropped"] * 6 + ["parent"] * 2),
    ]


def test_the_digits_tell_candidates_apart_that_had_the_same_chunks(tmp_path):
    """Their own errors, of how hard the chunks are, would leave none."""
    columns, rows = study_page.table_of(Study(tmp_path, {"w": [0.3, 0.31]}, worse=weight).outcome)
    place = [column.key for column in columns].index("perplexity.code")
    assert len({row.cells[place].text for row in rows[:2]}) == 2
    assert rows[1].cells[place].told.endswith("% higher than the winner")


# Its charts ------------------------------------------------------------------------------------


def charts_in(page: Path) -> list[str]:
    return re.findall(r'<svg class="chart" [^>]*aria-label="([^"]*)"', page.read_text())


def test_every_figure_is_drawn_against_everything_varied(forty):
    labels = charts_in(forty)
    names = ("method", "w", "density")
    for title in ("Perplexity on code", "Perplexity on prose", "hellaswag, % solved"):
        assert [f"{title} against {name}" in labels for name in names] == [True] * 3
    assert "What was varied, and what came of it" in labels
    assert "Perplexity on prose against Perplexity on code" in labels
    assert 'class="heat"' not in forty.read_text()


def test_two_names_make_a_heat_map(twelve):
    text = twelve.read_text()
    last = text.rpartition("<section")[2]
    assert last.count('<table class="heat">') == 3  # two texts and the divergence
    assert "What was varied" not in last
    assert last.count('class="best"') == 3


def test_parents_are_drawn_in_where_they_were_measured_on_the_same(twelve):
    first, last = (
        part.partition("</section>")[0] for part in twelve.read_text().split("<section")[1:]
    )
    assert 'class="parent"' in last and ">base<" in last
    assert 'class="parent"' not in first


def test_a_dot_is_where_its_figure_is(tmp_path):
    study = Study(tmp_path, {"w": [0.1, 0.3, 0.9]}, worse=weight)
    view = study_views.views(study.outcome)[-1]
    column, parameter = view.columns[0], view.parameters[0]
    drawing = study_charts.against(view, column, parameter)
    scale = column.scale(190, 12)
    for number in (0, 2):
        circle = drawing.root.find(f".//g[@data-c='{number}']/circle")
        assert float(circle.get("cy")) == pytest.approx(scale(column.values[number]), abs=0.1)
    assert drawing.root.find(".//g[@data-c='1']").get("class") == "dot on-front winner"


def test_bars_are_errors_of_differences_by_the_same_pieces(tmp_path):
    study = Study(tmp_path, {"w": [0.1, 0.3, 0.9]}, worse=weight)
    each = study.outcome.rounds[-1]
    pieces = next(f.pieces for f in each.figures if f.name == "perplexity.code")
    column = study_views.views(study.outcome)[-1].columns[0]
    apart = pieces[0] - pieces[1]
    expected = np.exp(pieces[0].mean()) * apart.std(ddof=1) / 30**0.5
    assert column.errors[0] == pytest.approx(expected)
    assert column.errors[1] == 0  # the winner's
    assert column.errors[0] < 0.1 * pieces[0].std() * np.exp(pieces[0].mean()) / 30**0.5


def test_one_candidate_far_off_does_not_squeeze_all_others(tmp_path):
    def worse(values: dict, figure: str) -> float:
        return 8.0 if values.get("w") == 0.9 else 0.01 * values.get("w", 1)

    outcome = Study(tmp_path, {"w": [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]}, worse=worse).outcome
    column = study_views.views(outcome)[-1].columns[0]
    scale = column.scale(0, 100)
    assert not scale.has(column.values[5]) and scale(column.values[5]) == 100
    assert abs(scale(column.values[0]) - scale(column.values[4])) > 10


def test_a_winner_far_ahead_of_all_others_is_on_the_scale(tmp_path):
    def worse(values: dict, figure: str) -> float:
        return 0.0 if values.get("w") == 0.9 else 3.0

    outcome = Study(tmp_path, {"w": [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]}, worse=worse).outcome
    column = study_views.views(outcome)[-1].columns[0]
    assert column.scale(0, 100).has(column.values[5])


@pytest.mark.parametrize(
    "values",
    [[1, 1.0], [1, float("inf")], [True, False], [[1, 2], {"a": 1}], [None, "a"], [0.001, 1, 50]],
)
def test_any_values_can_be_varied(tmp_path, values):
    page = Study(tmp_path, {"w": values, "v": [1, 2], "u": ["x", "y"]}).write()
    assert "Perplexity on code against w" in charts_in(page)


@pytest.mark.parametrize("method", ["ranks", "sum", "pareto"])
@pytest.mark.parametrize("worse", [0.0, 25.0])
def test_equal_and_broken_candidates_are_drawn(tmp_path, method, worse):
    study = Study(
        tmp_path,
        GRID,
        by=method,
        noise=0.0,
        worse=lambda values, figure: worse * (values.get("method") == "sce"),
    )
    assert "nan" not in study.write().read_text().partition("<script>")[0].lower()


def test_a_parent_off_the_scale_says_where_it_is(tmp_path):
    def worse(values: dict, figure: str) -> float:
        far = {"m_base_e6": 2.0, "m_code_13": -1.5}
        return far[values["parent"]] if "parent" in values else 0.1 * values["w"]

    plot = study_page.plot(Study(tmp_path, {"w": [0.1, 0.3]}, worse=worse).outcome)
    assert ">base →↑<" in plot and ">code ←↓<" in plot


def test_ticks_are_round_and_within():
    assert [text for _, text in Scale(688.1, 694.6, 0, 300).ticks(40)] == [
        *("689", "690", "691", "692", "693", "694"),
    ]
    assert [text for _, text in Scale(0.9, 1100, 0, 300, log=True).ticks(40)] == [
        *("1", "3", "10", "30", "100", "300", "1,000"),
    ]


def test_long_names_are_cut_to_what_tells_them_apart():
    names = [f"org/a-very-long-name-{n}-Instruct" for n in (3, 14)]
    assert told_apart(names, 12) == {names[0]: "…name-3…", names[1]: "…name-14…"}
    assert told_apart(["ties", "sce"], 12) == {"ties": "ties", "sce": "sce"}
    assert short("abcdefghij", 5) == "ab…ij"
    assert spread([5, 6, 30], 10, 0, 40) == [5, 15, 30]


# The plot --------------------------------------------------------------------------------------

DRAW = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from test_study_page import GRID, Study, method_and_weight
from lib.report import study_page
study = Study(Path(sys.argv[1]), GRID, worse=method_and_weight)
study_page.write_plot(study.outcome, Path(sys.argv[2]))
"""


def test_the_plot_has_the_same_bytes_every_time(tmp_path):
    plots = []
    for seed in ("1", "2"):
        paths = (str(tmp_path), str(tmp_path / f"{seed}.svg"), str(ROOT / "tests"))
        command = [sys.executable, "-c", DRAW, *paths, str(ROOT / "scripts")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        plots.append((tmp_path / f"{seed}.svg").read_bytes())
    assert plots[0] == plots[1]
    assert b"date" not in plots[0].lower() and str(tmp_path).encode() not in plots[0]


def test_the_plot_is_the_front_of_two_figures_or_all_in_order(tmp_path):
    two = study_page.plot(Study(tmp_path, GRID, worse=method_and_weight).outcome)
    assert "front-line" in two and ">base<" in two
    one = study_page.plot(Study(tmp_path, GRID, texts=("code",), worse=weight).outcome)
    root = ElementTree.fromstring(one)
    svg = "{http://www.w3.org/2000/svg}"
    written = [text.text for text in root.iter(f"{svg}text")]
    assert {"ties-0.3", "sce-0.7", "base", "code"} <= set(written)
    assert "wins of 12" in one
    assert len(root.findall(f".//{svg}g[@class='dot on-front winner']")) == 1


@pytest.mark.parametrize("texts", [TEXTS, ("code",)])
def test_the_plot_of_200_candidates_fits(tmp_path, texts):
    vary = {"w": [n / 50 for n in range(50)], "method": ["ties", "sce", "linear", "della"]}
    study = Study(tmp_path, vary, texts=texts, worse=lambda values, figure: values.get("w", 0) / 9)
    root = ElementTree.fromstring(study_page.plot(study.outcome))
    assert float(root.get("height")) < 900
    if texts != TEXTS:
        assert "and 170 more" in study_page.plot(study.outcome)


# In a browser ----------------------------------------------------------------------------------

SHOWN = """
const place = [...document.querySelectorAll('#candidates thead th')]
  .findIndex(header => header.textContent.trim() === arguments[0]);
return [...document.querySelectorAll('#candidates tbody')]
  .map(body => [...body.rows].map(row => row.cells[place].dataset.value));
"""


def header(browser, title: str):
    script = (
        "return [...document.querySelectorAll('#candidates thead th')]"
        ".find(header => header.textContent.trim() === arguments[0])"
    )
    cell = browser.execute_script(script, title)
    return cell, cell.find_element("css selector", "button")


def test_a_heading_sorts_by_number_and_again_the_other_way(browser, twelve):
    open_page(browser, twelve)
    cell, button = header(browser, "Perplexity, code")
    for order, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert cell.get_attribute("aria-sort") == order
        together, dropped = browser.execute_script(SHOWN, "Perplexity, code")
        assert len(together) == 8 and len(dropped) == 6  # the parents among the candidates
        for group in (together, dropped):
            assert group == sorted(group, key=lambda value: sign * float(value))


def test_the_keyboard_sorts_too_and_what_has_no_value_stays_at_the_end(browser, twelve):
    open_page(browser, twelve)
    cell, button = header(browser, "w")
    browser.execute_script("arguments[0].focus()", button)
    for order in ("ascending", "descending"):
        browser.switch_to.active_element.send_keys("\ue007")  # Enter
        assert cell.get_attribute("aria-sort") == order
        assert browser.execute_script(SHOWN, "w")[0][-2:] == ["", ""]  # parents


LIT = "return [...new Set([...document.querySelectorAll('.lit')].map(e => e.dataset.c))]"


def test_a_row_lights_its_candidate_in_every_chart(browser, forty):
    open_page(browser, forty)
    row = browser.find_element("css selector", "#candidates tbody tr:nth-child(3)")
    button = row.find_element("css selector", "button")
    browser.execute_script("arguments[0].focus()", button)
    assert browser.execute_script(LIT) == [row.get_attribute("data-c")]
    charts = browser.execute_script("return document.querySelectorAll('section .chart').length")
    legend = browser.execute_script("return document.querySelectorAll('.legend .chart').length")
    lit = browser.execute_script("return document.querySelectorAll('.chart .lit').length")
    assert lit == charts - legend
    button.click()  # keeps it lit
    browser.execute_script("arguments[0].blur()", button)
    assert browser.execute_script(LIT) == [row.get_attribute("data-c")]


def test_a_dot_tells_its_figures_and_the_difference_from_the_winner(browser, forty):
    open_page(browser, forty)
    script = (
        "const dot = document.querySelector('.multiples .dot:not(.winner)');"
        "dot.dispatchEvent(new MouseEvent('mouseenter')); return dot.dataset.c"
    )
    number = browser.execute_script(script)
    tip = browser.find_element("css selector", "#tip").text
    row = browser.find_element("css selector", f"tr[data-c='{number}']")
    assert tip.splitlines()[0] == row.get_attribute("data-name")
    assert "than the winner" in tip and "hellaswag, % solved" in tip


def test_charts_of_an_earlier_round_can_be_seen(browser, twelve):
    open_page(browser, twelve)
    script = (
        "return [...document.querySelectorAll('section')].filter(s => !s.hidden)"
        ".map(s => new Set([...s.querySelectorAll('[data-c]')].map(e => e.dataset.c)).size)"
    )
    assert browser.execute_script(script) == [6]
    browser.find_element("css selector", "input[value='1']").click()
    assert browser.execute_script(script) == [12]


def requests(browser) -> list[str]:
    asked = []
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            asked.append(event["params"]["request"]["url"])
    return asked


def test_hostile_names_stay_text_and_the_page_asks_nobody(browser, tmp_path):
    study = Study(
        tmp_path,
        {HOSTILE: [HOSTILE, "b\x01"], "w": [0.1, 0.2], "v": [1, 2]},
        texts=("t<b>", "u&"),
        tasks=("<i>",),
        klds=("t<b>",),
        parents={"p": HOSTILE, "q": "</script><img src=x onerror=alert(1)>"},
        name=HOSTILE,
    )
    page = study.write()
    ElementTree.parse(page.with_suffix(".svg"))
    assert cells_of(page).scripts == 1
    for log in ("browser", "performance"):
        browser.get_log(log)
    open_page(browser, page)
    header(browser, "Rank")[1].click()
    assert browser.execute_script("return window.broken") is None
    assert browser.find_element("css selector", "h1").text == HOSTILE
    assert browser.execute_script("return document.images.length") == 0
    asked = requests(browser)
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []
    assert browser.get_log("browser") == []


# Labels that cover each other, of each chart that can be seen; those that are turned aside.
OVERLAPS = """
const clashes = [];
let count = 0;
for (const chart of document.querySelectorAll(arguments[0])) {
  const boxes = [...chart.querySelectorAll('text:not([transform])')]
    .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
  count += boxes.length;
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    // The box of a text includes its line spacing; 3 px of that may touch.
    if (p.left < q.right && q.left < p.right && p.top + 3 < q.bottom && q.top + 3 < p.bottom)
      clashes.push(a + ' / ' + b);
  }));
}
return [count, clashes];
"""
SIZES = {
    4: {"method": ["ties", "sce"], "w": [0.3, 0.5]},
    12: GRID,
    40: {
        "model": [f"org/a-rather-long-name-of-a-model-{n}-Instruct" for n in range(20)],
        "w": [0, 1],
    },
    200: {"w": [n / 20 for n in range(20)], "method": ["ties", "sce"], "v": [1, 2, 3, 4, 5]},
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", SIZES)
def test_any_number_of_candidates_fits_the_screen(browser, tmp_path, count, dark):
    study = Study(tmp_path, SIZES[count], worse=method_and_weight)
    assert len(study.candidates) == count
    page = study.write()
    for width in (390, 1280):
        open_page(browser, page, width, dark)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for charts in (".heads .chart", ".multiples .chart"):
            labels, clashes = browser.execute_script(OVERLAPS, charts)
            assert labels > 10 and clashes == []
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", paper).group()) < 60) is dark


# Where else it is seen -------------------------------------------------------------------------

LOOKS = Looks.of(FAMILIES.values())


def test_the_gallery_has_the_studies_after_the_models(browser, tmp_path):
    folder = tmp_path / "studies/Which"
    folder.mkdir(parents=True)
    study = Study(folder, GRID, worse=method_and_weight)
    study.write()
    gallery.write(["X"], LOOKS, tmp_path / "index.html", ["Which", "Later"])
    open_page(browser, tmp_path / "index.html")
    cards = [card.text.splitlines() for card in browser.find_elements("css selector", "li")]
    assert [card[0] for card in cards] == ["X", "Which", "Later"]
    assert words.sentences(study.outcome)[0] in cards[1]
    assert "A study, not measured yet." in cards[2]
    assert browser.find_element("css selector", "h1").text == "Models and studies"
    shown = "return document.querySelector('img').naturalWidth"
    assert browser.execute_script(shown) == study_page.WIDTH
    link = browser.find_element("css selector", ".study a").get_attribute("href")
    assert link == (folder / "study.html").as_uri()


def test_the_gallery_of_studies_alone_shows_them(tmp_path):
    gallery.write([], LOOKS, tmp_path / "index.html", ["Which"])
    text = (tmp_path / "index.html").read_text()
    assert "<h1>Studies</h1>" in text and ">Which</h2>" in text


def test_the_summary_of_a_run_names_the_page(tmp_path, monkeypatch):
    project = Project.create(tmp_path / "project")
    monkeypatch.chdir(project.path)
    merge = {
        "merge_method": "linear",
        "models": [
            {"model": "./m/code", "parameters": {"weight": "$w"}},
            {"model": "./m/prose", "parameters": {"weight": 0.5}},
        ],
        "dtype": "bfloat16",
    }
    study = {"merge": merge, "vary": {"w": [0.3, 0.5]}, "measure": {"perplexity": ["evaluation"]}}
    corpora = {"evaluation": {"path": "data/evaluation.txt"}}
    session = Planned.open({"corpora": corpora, "models": {}, "studies": {"Which": study}})
    page = Path("results/studies/Which/study.html")
    assert summary(session.graph) == ""
    page.parent.mkdir(parents=True)
    page.touch()
    assert summary(session.graph).splitlines()[2:] == ["  Which: a study", f"    {page}"]


# The numbers, found in another way --------------------------------------------------------------


def test_the_share_of_wins_is_that_of_another_bootstrap():
    random = np.random.default_rng(3)
    hard = random.normal(2, 0.4, 40)
    pieces = hard + np.array([[0.0], [0.004], [0.05]]) + random.normal(0, 0.02, (3, 40))
    rule = Rule(["perplexity.a"], [], "ranks")
    decision = decide([Figure("perplexity.a", "a", pieces)], rule, lambda index: [])
    drawn = random.integers(0, 40, (4000, 40))
    best = pieces[:, drawn].mean(axis=2).argmin(axis=0)
    assert decision.wins == pytest.approx(np.bincount(best, minlength=3) / 4000, abs=0.03)


def test_sentences_of_an_outcome_that_python_builds():
    pieces = np.array([[2.0, 2.2, 2.1], [2.3, 2.5, 2.4]])
    figure, rule = Figure("perplexity.a", "a", pieces), Rule(["perplexity.a"], [], "sum")
    order = in_order({"perplexity.a": pieces.mean(axis=1)}, rule)
    decision = decide([figure], rule, lambda index: [])
    each = Round(1, None, ["x", "y"], [figure], order, [], decision)
    values = {"x": {"w": 1}, "y": {"w": 2}}
    outcome = Outcome("S", values, {}, rule, [each], {}, {}, True, None)
    assert words.sentences(outcome)[:2] == [
        "x wins of 2 candidates (w 1): perplexity 8.17 ± 0.47 on a.",
        "Against it the second, y, has perplexity 35.0% higher on a. All had the same chunks, so a "
        "difference is known better than the figures.",
    ]
    assert words.rule(outcome) == (
        "The lowest weighted sum wins, by perplexity on a (weight 1, its logarithm)"
    )
