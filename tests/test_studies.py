"""Studies without a build: which candidates there are, what is refused, and which one is chosen."""

import copy
import itertools
import json
import re
import shutil
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml

import ask_orphans
import choose
import perplexity
from lib.config.load import load
from lib.config.merges import METHODS, PARAMETERS, REQUIRED
from lib.errors import UserError
from lib.forecast.machine import Machine
from lib.forecast.outlook import forecast
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.planning.publishing import again
from lib.record.artifact import Artifact
from lib.record.artifact import in_order as in_build_order
from lib.record.contents import Contents
from lib.record.layout import log_file
from lib.run import studies as run_studies
from lib.run.answers import NOTHING_FORCED, everything
from lib.run.session import Session
from lib.run.studies import notes
from lib.stages.studies import Study, preflight
from lib.studies import grid, lock
from lib.studies.choice import Figure, Rule, decide, in_order, survivors
from lib.studies.lock import Chosen, Winner
from lib.studies.outcome import read_outcome, table
from project import Planned
from tiny_models import make_models, make_texts

MERGE = {
    "merge_method": "$method",
    "base_model": "./m/base",
    "models": [
        {"model": "./m/code", "parameters": {"weight": "$w"}},
        {"model": "./m/prose", "parameters": {"weight": 0.5}},
    ],
    "dtype": "bfloat16",
}
STUDY = {
    "merge": MERGE,
    "vary": {"method": ["ties", "task_arithmetic"], "w": [0.3, 0.5]},
    "measure": {"perplexity": ["evaluation"], "context": 128},
}
CONFIG = {
    "corpora": {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")},
    "models": {"Plain": {"source": "./m/prose", "gguf": {"quants": ["Q8_0"]}}},
    "studies": {"Which": STUDY},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("studies")
    make_models(here / "m", "code", "prose")
    make_texts(here / "data", 20)
    return here


def config(**changes) -> dict:
    """CONFIG, with keys of its study replaced."""
    found = copy.deepcopy(CONFIG)
    found["studies"]["Which"] |= changes
    return found


def graph_of(raw: dict, place) -> Graph:
    settings, _ = load(raw, place)
    return Graph(settings, Contents(place / "no such file"), Lock())


def candidates(raw: dict, place) -> dict[str, grid.Candidate]:
    settings, _ = load(raw, place)
    return {each.id: each for each in settings.studies["Which"].candidates}


# the grid


def test_all_combinations_are_made_and_called_by_their_values(place):
    found = candidates(config(), place)
    assert list(found) == [
        "ties-0.3",
        "ties-0.5",
        "task_arithmetic-0.3",
        "task_arithmetic-0.5",
    ]
    assert found["ties-0.5"].merge == {**MERGE, "merge_method": "ties"} | {
        "models": [
            {"model": "./m/code", "parameters": {"weight": 0.5}},
            {"model": "./m/prose", "parameters": {"weight": 0.5}},
        ]
    }


def test_pairs_make_only_some_combinations(place):
    pairs = [{"method": "sce", "w": 0.3}, {"method": "ties", "w": 0.7}]
    merge = {**MERGE, "models": [{"model": "./m/code"}, {"model": "./m/prose"}]}
    merge["tokenizer_source"] = "$w"
    with pytest.raises(UserError, match="tokenizer_source"):
        load(config(vary={}, pairs=pairs, merge=merge), place)
    found = candidates(config(vary={"w": [0.3, 0.5]}, pairs=[{"method": "ties"}]), place)
    assert list(found) == ["0.3-ties", "0.5-ties"]


def test_values_are_put_in_as_they_are_and_within_texts():
    merge = {"a": "$x", "b": ["./m/$x", "${x}y", "$$x"], "c": {"d": "$list"}}
    values = {"x": "code", "list": [0.1, 0.2]}
    assert grid.filled(merge, values) == {
        "a": "code",
        "b": ["./m/code", "codey", "$x"],
        "c": {"d": [0.1, 0.2]},
    }
    with pytest.raises(ValueError, match=r"\$lost has no values under vary or pairs; did you mean"):
        grid.filled("$lost", {"list": 1})


def test_a_candidate_keeps_its_name_whatever_is_added_beside_it(place):
    paths = {"merge_method": "linear", "models": [{"model": "$m", "parameters": {"weight": 1}}]}
    few = candidates(config(merge=paths, vary={"m": ["./m/code"]}), place)
    many = candidates(config(merge=paths, vary={"m": ["./m/base", "./m/code"]}), place)
    assert set(few) < set(many) and len(many) == 2
    (name,) = few
    assert name.startswith("m_code_") and "/" not in name


def test_two_candidates_never_share_a_directory():
    values = ["a-b", "a", "b", "./x y", "./x_y", 1, "1", 1.5, [1], {"k": 1}, "é", "A" * 90, "a-b-a"]
    rows = [{"x": one, "y": two} for one, two in itertools.product(values, values)]
    made = grid.candidates({"m": "$x$y"}, rows, 0)
    assert len({each.id for each in made}) == len(rows)
    assert all(len(each.id) < 100 for each in made)


LISTS = {f"list{n}": [[n / 7, 0.123456789], [0.5, n]] for n in range(9)}
LONG = {
    "merge_method": "linear",
    "models": [
        {"model": "./m/code", "parameters": {"weight": 1}},
        {"model": "./m/prose", "parameters": {"weight": [{"value": f"${n}"} for n in LISTS]}},
    ],
    "dtype": "bfloat16",
}


def test_files_can_be_called_by_a_candidate_however_many_values_it_has(place):
    graph = graph_of(config(merge=LONG, vary=LISTS), place)
    made = graph.config.studies["Which"].candidates
    assert len({each.id for each in made}) == 2**9
    longest = max((Path(a.path).name for a in graph.artifacts("Which").values()), key=len)
    assert len(f".{longest}.recipe.json.1234567.part") <= 255
    with pytest.raises(ValueError, match="twice"):
        grid.candidates(LONG, [made[0].values, made[0].values], 0)


def test_a_name_that_files_could_be_called_by_stays_as_it_was():
    values = {f"n{number}": "a" * 40 for number in range(5)} | {"last": "b" * 14}
    (made,) = grid.candidates({"m": [f"${name}" for name in values]}, [values], 0)
    assert made.id == "-".join(values.values()) and len(made.id) == 219
    (longer,) = grid.candidates({"m": "$n0"}, [values | {"last": "b" * 15}], 0)
    assert len(longer.id) == 80 + 17 and longer.id.startswith("aaaa")


# what is refused


DAY = date(2020, 1, 1)
MISTAKES = [
    ({"vary": {}}, "studies.Which: varies nothing: give names values under vary or pairs"),
    ({"vary": {"method": ["ties"]}}, "studies.Which.merge: $w has no values under vary or pairs"),
    (
        {"vary": {"method": ["ties"], "w": [1], "v": [2]}},
        "studies.Which.vary.v: $v stands nowhere in merge",
    ),
    ({"vary": {"method": ["ties"], "w": []}}, "studies.Which.vary: w has no values"),
    (
        {"vary": {"method": ["ties"], "w": [0.3, 0.3]}},
        "studies.Which.merge: method ties, w 0.3: twice",
    ),
    (
        {"vary": {"method": ["ties", "sce"], "w": [0.3, 0.5]}},
        "studies.Which.merge.models[0].parameters.weight: sce has no parameter 'weight' (it has: "
        "int8_mask, select_topk), with method sce, w 0.3 and 1 more",
    ),
    (
        {"vary": {"method": ["tiles"], "w": [0.3]}},
        "studies.Which.merge.merge_method: 'tiles' is no merge method of mergekit; did",
    ),
    (
        {"merge": MERGE | {"models": [{"model": "./m/code", "parameters": {"wait": "$w"}}]}},
        "ties has no parameter 'wait'",
    ),
    (
        {"merge": MERGE | {"models": [{"model": "./m/lost", "parameters": {"weight": "$w"}}]}},
        "studies.Which.merge.models[0].model: no directory './m/lost' in ",
    ),
    ({"measure": {}}, "studies.Which.measure: measures nothing: name texts or tasks"),
    (
        {"measure": {"perplexity": ["evalution"]}},
        "studies.Which.measure.perplexity[0]: 'evalution' is not in corpora; did you",
    ),
    (
        {"choose": {"minimise": ["perplexity.evaluation", "perplexity.calibration"]}},
        "studies.Which.choose.minimise[1]: 'perplexity.calibration' is not measured",
    ),
    (
        {"choose": {"maximise": ["perplexity.evaluation"]}},
        "studies.Which.choose.maximise[0]: perplexity.evaluation belongs under minimise",
    ),
    ({"choose": {"by": "rank"}}, "'rank' is not one of ranks, sum, pareto; did you mean ranks?"),
    (
        {"choose": {"weights": {"perplexity.evaluation": 2}}},
        "studies.Which.choose.weights: belong to by: sum",
    ),
    *(
        (
            {"choose": {"by": "sum", "weights": {"perplexity.evaluation": weight}}},
            f"studies.Which.choose.weights: perplexity.evaluation: {weight!r} is not a finite "
            "number above 0",
        )
        for weight in (float("nan"), float("inf"), -1, 0)
    ),
    (
        {"rounds": [{"chunks": 2}, {"chunks": 4}]},
        "studies.Which.rounds[0]: keep is missing: how many stay for the next round",
    ),
    (
        {"rounds": [{"chunks": 2, "keep": "half"}, {"keep": 2}]},
        "studies.Which.rounds[1].keep: of the last round one is chosen",
    ),
    ({"rounds": [{"keep": "most"}]}, "'most' is not a whole number of at least 1"),
    (
        {"vary": {"method": ["ties"], "w": [1], "score": [2]}},
        "studies.Which.vary.score: $score is a column of the study's table; choose another name",
    ),
    (
        {"vary": {"method": ["ties"], "w": [0.3, DAY]}},
        "studies.Which.vary.w[1]: datetime.date(2020, 1, 1) is not text, a finite number, true or",
    ),
    (
        {"vary": {"method": ["ties"]}, "pairs": [{"w": [0.3, DAY]}]},
        "studies.Which.pairs[0].w[1]: datetime.date(2020, 1, 1) is not text",
    ),
    (
        {"vary": {"method": ["ties"], "w": [{DAY: 1}]}},
        "studies.Which.vary.w[0].datetime.date(2020, 1, 1): the key datetime.date(2020, 1, 1) is",
    ),
    (
        {"vary": {"method": ["ties"], "w": list(range(4001))}},
        "studies.Which.vary: makes 4,001 candidates, and a study has 4,000 at most; vary less",
    ),
    (
        {"vary": {}, "pairs": [{"method": "ties", "w": number} for number in range(4001)]},
        "studies.Which.pairs: makes 4,001 candidates, and",
    ),
    ({"random_seed": "$seed"}, "studies.Which.merge: $seed has no values under vary or pairs"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_in_a_study_is_told_in_one_line(place, changes, message):
    with pytest.raises(UserError) as caught:
        load(config(**changes), place)
    assert any(message in line for line in caught.value.args), caught.value.args


@pytest.mark.parametrize("names", [6, 9, 5000])
def test_a_grid_without_bound_is_refused_before_anything_is_made(place, names):
    """Nine names of ten values took all memory. A model that waits for it makes none either."""
    raw = config(vary={f"n{number}": list(range(10)) for number in range(names)})
    raw["studies"]["Which"]["merge"] = LONG | {"chat_template": "".join(f"$n{n}" for n in range(5))}
    raw["models"]["X"] = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}
    began = time.process_time()
    with pytest.raises(UserError, match=r"studies.Which.vary: makes [\w,^ ]+ candidates, and a"):
        load(raw, place)
    assert time.process_time() - began < 5


def test_a_study_and_a_model_cannot_have_one_name(place):
    raw = config()
    raw["models"]["Which"] = raw["models"]["Plain"]
    raw["models"]["studies"] = {"source": "./m/code"}
    with pytest.raises(UserError) as caught:
        load(raw, place)
    lines = "\n".join(caught.value.args)
    assert "studies.Which: is the name of a model too; choose another name" in lines
    assert "models.studies: results/studies has the studies; choose another name" in lines


def test_a_model_can_only_take_the_winner_of_a_study_that_there_is(place):
    raw = config()
    raw["models"]["X"] = {"merge": {"study": "Witch"}, "gguf": {"quants": ["Q8_0"]}}
    with pytest.raises(UserError) as caught:
        load(raw, place)
    assert caught.value.args == (
        "models.X.merge: study: 'Witch' is no study of this config; did you mean Which?",
    )


def test_the_parameters_of_each_method_are_those_of_mergekit():
    from mergekit.merge_methods.registry import registered_methods

    theirs = {method.spec.name: method.spec.parameters for method in registered_methods()}
    assert theirs.keys() == PARAMETERS.keys() == METHODS.keys()
    for method, parameters in theirs.items():
        assert set(PARAMETERS[method]) == {each.name for each in parameters}, method
        needed = [each.name for each in parameters if each.required]
        assert needed == ([REQUIRED[method]] if method in REQUIRED else []), method


# tokenizers


class Tokenizers:
    """An Inspector. of: {reference: its tokenizer}."""

    def __init__(self, **of: str):
        self.of = of

    def clash(self, one: str, other: str) -> str | None:
        return None if self.of[one] == self.of[other] else f"{one} and {other} differ"


def checked(measure: dict, choose: dict, sources: list[str], **of: str) -> list[tuple[str, str]]:
    """What the preflight says of a study of A and B, whose `tokenizer_source` is varied."""
    merge = {"merge_method": "ties", "base_model": "A", "models": [{"model": "B"}]}
    raw = {
        "merge": merge | {"tokenizer_source": "$source"},
        "vary": {"source": sources},
        "measure": measure,
        "choose": choose,
    }
    study = Study.model_validate(raw)
    return [(row.state, row.text) for row in preflight(Tokenizers(**of), "S", study)]


UNLIKE = "perplexities of its candidates are not comparable: A and B differ"
TEXT, TASKS = {"perplexity": ["t"]}, {"tasks": {"hellaswag": {"file": "a.txt"}}}


@pytest.mark.parametrize(
    ("measure", "choose", "sources", "said"),
    [
        (
            TEXT,
            {},
            ["A", "B"],
            ["problem: " + UNLIKE + "; choose by tasks, in one round"],
        ),
        (
            TEXT | TASKS,
            {"maximise": ["tasks.hellaswag"]},
            ["base", "union"],
            ["note: " + UNLIKE],
        ),
        (
            TEXT,
            {},
            ["base", "A"],
            ["note: B is left out where perplexities are compared: B and A differ"],
        ),
        (
            TEXT | {"kld": ["t"]},
            {},
            ["A"],
            ["problem: no KL divergence from B can be measured: B and A differ"],
        ),
        (TASKS, {"maximise": ["tasks.hellaswag"]}, ["A", "B"], []),
    ],
)
def test_the_preflight_says_which_perplexities_are_not_comparable(measure, choose, sources, said):
    found = checked(measure, choose, sources, A="one", B="other")
    assert [f"{state}: {text}" for state, text in found] == said
    assert checked(measure, choose, sources, A="one", B="one") == []


def test_a_text_that_is_cut_otherwise_has_another_digest_and_one_numbered_otherwise_not():
    tokens = np.array([[5, 7, 5], [9, 7, 5]])
    numbered = np.array([[1, 0, 1], [2, 0, 1]])
    cut = np.array([[5, 7, 5], [9, 9, 5]])
    assert perplexity.digest(tokens) == perplexity.digest(numbered) != perplexity.digest(cut)
    assert perplexity.digest(tokens) != perplexity.digest(tokens[:1])


# models that take a winner


def winner(place, **values) -> Winner:
    made = candidates(config(), place)["ties-0.3"]
    return Winner(made.id, made.values, 0, made.merge)


def test_a_model_waits_for_its_study_and_all_else_is_built(place):
    raw = config()
    raw["models"]["X"] = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}
    raw["models"]["Of-X"] = {
        "merge": {
            **MERGE,
            "merge_method": "sce",
            "models": [{"model": "X"}, {"model": "./m/code"}],
        },
        "gguf": {"quants": ["Q8_0"]},
    }
    graph = graph_of(raw, place)
    assert graph.names == ["Plain", "Which"]
    assert graph.config.waiting == {"X": "Which", "Of-X": "Which"}
    assert graph.find("results/X/gguf/X-Q8_0.gguf") is None
    assert graph.waits("results/Of-X/README.md") == (
        "Of-X waits for the study Which: `snakemake --cores all` measures it, then `snakemake "
        "choose` takes its winner"
    )
    assert graph.waits("results/Plain/README.md") is None


@pytest.mark.parametrize("is_chosen", [False, True])
def test_a_seed_beside_the_winner_of_a_study_is_refused(place, tmp_path, is_chosen):
    """It would make another merge than the one that was chosen."""
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    lock.write({"Which": Chosen([], winner(place) if is_chosen else None)}, tmp_path)
    model = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}
    raw = config()
    raw["models"]["X"] = model | {"random_seed": 42}
    with pytest.raises(UserError) as caught:
        load(raw, tmp_path)
    assert caught.value.args == (
        "models.X.merge: study: its winner has a seed of its own; leave random_seed out",
    )
    raw["models"]["X"] = model | {"random_seed": None}  # as if it were left out
    made = winner(place)
    made.random_seed = 7
    lock.write({"Which": Chosen([], made)}, tmp_path)
    assert load(raw, tmp_path)[0].models["X"].random_seed == 7


def notes_of(raw: dict, chosen: Winner) -> list[str]:
    lock.write({"Which": Chosen([], chosen)})
    return notes(Planned.open(raw).plan)


def test_a_chosen_candidate_that_is_made_otherwise_now_is_told(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    raw = config(vary={"method": ["ties", "dare_ties"], "w": [0.3, 0.5]})
    drawn, plain = (candidates(raw, place)[name] for name in ("dare_ties-0.3", "ties-0.3"))
    of = {
        each.id: Winner(each.id, each.values, each.random_seed, each.merge)
        for each in (drawn, plain)
    }
    assert notes_of(raw, of[drawn.id]) == notes_of(raw, of[plain.id]) == []
    raw["studies"]["Which"]["random_seed"] = 1
    said = "study Which: {}, which was {}, is no longer that merge: `snakemake choose{}`."
    assert notes_of(raw, of[drawn.id]) == [said.format(drawn.id, "chosen", "")]
    assert notes_of(raw, of[plain.id]) == [], "ties draws nothing"
    raw["studies"]["Which"]["merge"] = MERGE | {"dtype": "float16"}
    assert notes_of(raw, of[plain.id]) == [said.format(plain.id, "chosen", "")]
    of[plain.id].picked = True  # a plain `choose` would leave it as it is
    again = said.format(plain.id, "picked", " --config model=Which")
    assert notes_of(raw, of[plain.id]) == [again]


ADAPTER = {"rank": 4, "embed_lora": True, "skip_undecomposable": True}
NEEDS = {
    "a lora is extracted against it": {
        "X": {"source": "./m/code", "extract_lora": {"base": "Best", "adapters": {"a": ADAPTER}}}
    },
    "what is merged is compared with it": {
        "X": {
            "merge": {
                "merge_method": "linear",
                "models": [
                    {"model": "./m/code", "parameters": {"weight": 1}},
                    {"model": "./m/prose", "parameters": {"weight": 1}},
                ],
                "dtype": "bfloat16",
            },
            "similarity": {"base": "Best"},
        }
    },
    "its lora is converted": {
        "X": {
            "source": "./m/prose",
            "gguf": {"quants": ["Q8_0"], "lora": {"l": "./results/Best/lora/a"}},
        }
    },
    "the lora of a model that waits is converted": {
        "Y": {"source": "./m/code", "extract_lora": {"base": "Best", "adapters": {"a": ADAPTER}}},
        "X": {
            "source": "./m/prose",
            "gguf": {"quants": ["Q8_0"], "lora": {"l": "./results/Y/lora/a"}},
        },
    },
}


@pytest.mark.parametrize("how", NEEDS)
def test_what_needs_a_model_that_waits_in_any_section_waits_too(place, monkeypatch, how):
    """A run would else stop at it, and never measure the study."""
    monkeypatch.chdir(place)
    raw = config()
    raw["models"]["Best"] = {
        "merge": {"study": "Which"},
        "extract_lora": {"adapters": {"a": ADAPTER}},
    }
    raw["models"] |= NEEDS[how]
    session = Session(raw, lambda: NOTHING_FORCED, True)
    assert session.config.waiting == dict.fromkeys(["Best", *NEEDS[how]], "Which")
    assert session.graph.names == ["Plain", "Which"]
    needed = [up for path in session.asked() for up in session.find(path).inputs.values()]
    assert needed and all(session.find(up.path) is up for up in needed)
    assert any(line.startswith("X waits for the study Which: ") for line in notes(session.plan))


def test_the_config_that_is_published_has_the_model_that_extracts_its_adapter(place):
    raw = config()
    adapters = {"base": "./m/base", "adapters": {"a": ADAPTER}}
    raw["models"]["Told"] = {"source": "./m/code", "extract_lora": adapters}
    lora = {"l": "./results/Told/lora/a"}
    raw["models"]["X"] = {"source": "./m/prose", "gguf": {"quants": ["Q8_0"], "lora": lora}}
    published = yaml.safe_load(again(load(raw, place)[0], Lock(), "X")["recipes/config.yaml"])
    assert list(published["models"]) == ["X", "Told"]
    load(published, place)


def test_what_a_lost_lock_declared_is_no_orphan(place, tmp_path, monkeypatch):
    """On another branch, say: `clean_orphans` would delete finished models."""
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copytree(place / "m/base", "other")
    raw = config(rounds=[{"chunks": 2, "keep": 2}, {"chunks": 4}])
    lora = {"base": "./other", "adapters": {"a": ADAPTER}}
    raw["models"]["Best"] = {"merge": {"study": "Which"}, "extract_lora": lora, "gguf": {}}
    rounds = [{"chunks": 2, "kept": ["ties-0.3", "ties-0.5"]}]
    lock.write({"Which": Chosen(rounds, winner(place))}, tmp_path)
    planned = Planned(raw)
    for made in everything(planned.session()):
        log = Path(log_file(made.path))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    planned.mark(Artifact("results/Gone/x.gguf", "quantize", "Gone", {}))
    Path("results/Best/gguf/.Best-Q8_0.gguf.building").mkdir()
    found = [each.path for each in ask_orphans.find(planned.session())]
    assert found == ["results/Gone/x.gguf", "results/Best/gguf/.Best-Q8_0.gguf.building"]
    lock.LOCK_FILE.unlink()
    session = planned.session()
    late = "results/studies/Which/candidates/ties-0.3/perplexity/2/evaluation.json"
    assert session.graph.find(late) is None and Path(late).exists()
    found = list(ask_orphans.find(session))
    assert [each.path for each in found] == ["results/Gone/x.gguf"]
    said = ask_orphans.shown(found, [], ask_orphans.waiting(session))
    assert said[-2:] == ["  Best waits for the study Which", "  Which has a round to choose"]


def test_a_mistake_in_a_model_that_waits_is_told_at_once(place):
    raw = config()
    raw["models"]["X"] = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q9_0"]}}
    with pytest.raises(UserError, match=r"models.X.gguf.quants\[0\].type: 'Q9_0'"):
        load(raw, place)


def test_a_model_has_the_merge_that_the_lock_says(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = config()
    raw["models"]["X"] = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    lock.write({"Which": Chosen([], winner(place))}, tmp_path)
    settings, _ = load(raw, tmp_path)
    assert settings.waiting == {}
    assert settings.models["X"].merge == candidates(config(), place)["ties-0.3"].merge
    graph = Graph(settings, Contents(tmp_path / "none"), Lock())
    own = graph.find("results/X/safetensors")
    twin = graph.find("results/studies/Which/candidates/ties-0.3/safetensors")
    assert own.recipe["options"] == twin.recipe["options"] and own.digest == twin.digest
    assert twin.uses["same"] is own
    raw["studies"]["Which"]["vary"]["w"] = [0.7]  # changes nothing until choose is asked
    assert load(raw, tmp_path)[0].models["X"].merge == settings.models["X"].merge


@pytest.mark.parametrize("where", ["candidate", "adapter", "base", "other study"])
@pytest.mark.parametrize("is_chosen", [False, True])
def test_a_study_that_merges_its_own_winner_is_a_circle(place, tmp_path, where, is_chosen):
    (tmp_path / "m").symlink_to(place / "m")
    (tmp_path / "data").symlink_to(place / "data")
    raw = config()
    raw["models"]["Best"] = {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}
    merge = raw["studies"]["Which"]["merge"]
    around = "Which -> Best"
    if where == "candidate":
        merge["models"][0]["model"] = "$o"
        raw["studies"]["Which"]["vary"]["o"] = ["./m/code", "Best"]
    elif where == "base":
        merge["base_model"] = "Best"
    elif where == "adapter":
        merge["models"][0]["model"] = "./m/code+Best"
    else:
        around = "Which -> Better -> Other -> Best"
        raw["studies"]["Other"] = config(merge=MERGE | {"base_model": "Best"})["studies"]["Which"]
        raw["models"]["Better"] = {"merge": {"study": "Other"}}
        merge["base_model"] = "Better"
    if is_chosen:
        lock.write({"Which": Chosen([], winner(place))}, tmp_path)
    with pytest.raises(UserError) as caught:
        load(raw, tmp_path)
    (line,) = caught.value.lines
    start, _, circle = line.partition("the merges go round in a circle: ")
    assert start in ("studies.Which.merge: ", "studies.Other.merge: ")
    names, known = circle.split(" -> "), around.split(" -> ")
    assert names[0] == names[-1] and set(names) == set(known) and len(names) == len(known) + 1


def test_choose_says_which_study_waits_for_another(place, monkeypatch):
    """It said that there are no studies."""
    monkeypatch.chdir(place)
    raw = config()
    raw["models"]["Best"] = {"merge": {"study": "Which"}}
    raw["studies"]["Next"] = config(merge=MERGE | {"base_model": "Best"})["studies"]["Which"]
    session = Session(raw | {"model": ["Next"]}, lambda: NOTHING_FORCED, True)
    monkeypatch.setattr(choose, "open_session", lambda config: session)
    monkeypatch.setattr("sys.argv", ["choose.py", "--config", "c.json"])
    with pytest.raises(UserError, match="^Next waits for the study Which: `snakemake --cores all`"):
        choose.main()


ROUNDS = "studies: {Which: {rounds: [%s]}}"
WINNER = "studies: {Which: {winner: {candidate: a, values: {}, random_seed: 0, merge: {}%s}}}"
NINES = (f"&{now} [{', '.join([f'*{old}'] * 9)}]" for old, now in itertools.pairwise("abcdefgh"))
BOMB = f"[&a [x], {', '.join(NINES)}]"
NO_LOCKS = {
    "{": "not YAML",
    "a: 2023-99-99": "not YAML",
    "[" * 5000: "not YAML",
    "[]": "it is no mapping",
    "models: {}": "it has the unknown key 'models'",
    "studies: [1]": "studies is no mapping",
    "studies: {5: {}}": "the name 5 is not text",
    "studies: {Which: 5}": "Which is no mapping",
    "studies: {Which: {won: a}}": "Which has the unknown key 'won'",
    "studies: {Which: {rounds: 5}}": "the rounds of Which are no list",
    ROUNDS % "5": "a round of Which is no mapping",
    ROUNDS % "[chunks, kept]": "a round of Which is no mapping",
    ROUNDS % "{chunks: 1}": "a round of Which has no kept",
    ROUNDS % "{chunks: few, kept: [a]}": "the chunks of a round of Which are 'few'",
    ROUNDS % "{chunks: true, kept: [a]}": "the chunks of a round of Which are True",
    ROUNDS % "{chunks: 1, kept: null}": "kept of a round of Which is no list of candidates",
    ROUNDS % "{chunks: 1, kept: 5}": "kept of a round of Which is no list of candidates",
    ROUNDS % "{chunks: 1, kept: ties-0.3}": "kept of a round of Which is no list of candidates",
    ROUNDS % "{chunks: 1, kept: [[a]]}": "kept of a round of Which is no list of candidates",
    ROUNDS % "{chunks: 1, kept: []}": "kept of a round of Which is no list of candidates",
    "studies: {Which: {winner: {candidate: a}}}": "the winner of Which has no values",
    "studies: {Which: {winner: [a]}}": "the winner of Which is no mapping",
    WINNER % ", candidate: [a]": "candidate of the winner of Which is a list",
    WINNER % ", values: 1": "values of the winner of Which is 1",
    WINNER % ", random_seed: '1'": "random_seed of the winner of Which is '1'",
    WINNER % ", random_seed: true": "random_seed of the winner of Which is True",
    WINNER % ", random_seed: -1": "random_seed of the winner of Which is -1",
    WINNER % ", merge: ties": "merge of the winner of Which is 'ties'",
    WINNER % ", picked: 1": "picked of the winner of Which is 1",
    WINNER % ", won: 1": "the winner of Which has the unknown key 'won'",
    WINNER % ", merge: &m {a: *m}": "studies: lists and mappings within one another, 40 deep",
    WINNER % ', merge: {a: "\\0"}': "studies: no text of a config can have the character '\\x00'",
    WINNER % f", merge: {{a: {BOMB}}}": "studies: more than 200000 values",
}


@pytest.mark.parametrize("text", NO_LOCKS)
def test_a_lock_that_is_none_is_told_in_one_line(tmp_path, text):
    (tmp_path / "config").mkdir()
    (tmp_path / lock.LOCK_FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        lock.read(tmp_path)
    (line,) = caught.value.lines
    assert re.search("studies.lock.yaml: not (YAML|a lock) .*; restore it or delete it$", line)
    assert NO_LOCKS[text] in line


def test_a_lock_is_read_as_it_was_written(tmp_path, place):
    chosen = {"Which": Chosen([{"chunks": None, "kept": ["ties-0.3"]}], winner(place))}
    lock.write(chosen, tmp_path)
    assert lock.read(tmp_path) == chosen
    before = (tmp_path / lock.LOCK_FILE).read_bytes()
    lock.write(lock.read(tmp_path), tmp_path)
    assert (tmp_path / lock.LOCK_FILE).read_bytes() == before


# the disk


def test_not_more_candidates_lie_on_the_disk_than_the_study_allows(place):
    """A merge waits for what is measured of the candidate so many places before."""
    raw = config(vary={"method": ["ties"], "w": [n / 20 for n in range(1, 11)]}, at_once=3)
    study = graph_of(raw, place).shared.study("Which")
    merges = list(study.merges.values())
    for number, merge in enumerate(merges):
        waits = [up.path for role, up in merge.uses.items() if role.startswith("after")]
        before = list(study.merges)[number - 3] if number >= 3 else None
        expected = f"results/studies/Which/candidates/{before}/perplexity/1/evaluation.json"
        if before:
            assert waits == [expected]
        else:
            assert all("/parents/" in path for path in waits)
        assert merge.temporary and merge.intermediate
    kept = graph_of(raw | {"studies": {"Which": raw["studies"]["Which"] | {"keep": True}}}, place)
    assert all(
        not merge.uses and not merge.temporary
        for merge in kept.shared.study("Which").merges.values()
    )


@pytest.mark.parametrize("more", [{}, {"at_once": 1}, {"keep": True}])
def test_candidates_that_are_the_same_merge_are_merged_once(place, monkeypatch, more):
    """The seed of a method that does not draw; they follow each other, so that no disk is taken."""
    monkeypatch.chdir(place)
    vary = {"seed": [1, 2, 3], "method": ["ties", "dare_ties"], "w": [0.5]}
    study = graph_of(config(vary=vary, random_seed="$seed", **more), place).shared.study("Which")
    same = {name: merge.uses.get("same") for name, merge in study.merges.items()}
    ties = [f"{seed}-ties-0.5" for seed in (1, 2, 3)]
    linked = [study.merges[name] if more != {"at_once": 1} else None for name in ties[:2]]
    assert list(same)[:3] == ties and [same.pop(name) for name in ties] == [None, *linked]
    assert len({study.merges[name].digest for name in ties}) == 1
    assert same == {f"{seed}-dare_ties-0.5": None for seed in (1, 2, 3)}


@pytest.mark.parametrize("cores", [2, 64])
def test_the_plan_says_the_disk_of_the_candidates_that_lie_there_at_once(place, monkeypatch, cores):
    """Forty candidates are said to need no more than five, on a large machine too."""
    monkeypatch.chdir(place)
    peaks = []
    for count in (5, 40):
        raw = config(vary={"method": ["ties"], "w": [n / 50 for n in range(1, count + 1)]})
        graph = graph_of(raw, place)
        building = in_build_order(graph.artifacts("Which").values())
        peaks.append(forecast(graph, building, Machine(cores)).course.bytes)
    small = 5_000 * 40  # what was measured stays
    assert peaks[1] < peaks[0] + small, peaks


def test_those_that_stayed_come_first_so_that_only_they_wait_for_each_other(place):
    """Else a candidate of the next round would wait for one that is measured no more."""
    ids = list(candidates(config(), place))
    settings, _ = load(config(rounds=[{"chunks": 2, "keep": 2}, {}]), place)
    settings._chosen = {"Which": Chosen([{"chunks": 2, "kept": [ids[1], ids[3]]}], None)}
    study = Graph(settings, Contents(place / "no such file"), Lock()).shared.study("Which")
    assert list(study.merges) == [ids[1], ids[3], ids[0], ids[2]]
    early = {up.path for name in (ids[1], ids[3]) for up in study.merges[name].uses.values()}
    assert not any(f"/candidates/{name}/" in path for name in (ids[0], ids[2]) for path in early)


# the choice


def figure(name: str, *pieces: list[float]) -> Figure:
    return Figure(name, name.partition(".")[2], np.array(pieces))


def test_ranks_sums_and_fronts_as_by_hand():
    means = {
        "perplexity.a": np.array([1.0, 2.0, 3.0, 2.5]),
        "tasks.t": np.array([0.1, 0.5, 0.4, 0.4]),
    }
    ranks = in_order(means, Rule(["perplexity.a"], ["tasks.t"], "ranks"))
    assert ranks.order == [1, 0, 3, 2]
    assert list(ranks.scores) == [2.5, 1.5, 3.25, 2.75]
    assert ranks.front == [0, 1]
    weights = {"perplexity.a": 1.0, "tasks.t": 10.0}
    sums = in_order(means, Rule(["perplexity.a"], ["tasks.t"], "sum", weights))
    assert sums.order == [1, 3, 2, 0] and np.allclose(sums.scores, [0, -3, -1, -1.5])
    pareto = in_order(means, Rule(["perplexity.a"], ["tasks.t"], "pareto"))
    assert pareto.order[:2] == [1, 0]
    assert survivors(ranks, "half") == [0, 1] and survivors(ranks, 3) == [0, 1, 3]
    assert survivors(in_order({"a": np.arange(5.0)}, Rule(["a"], [], "ranks")), "half") == [0, 1, 2]


def test_the_share_of_draws_is_that_of_a_bootstrap_done_by_hand():
    random = np.random.default_rng(7)
    pieces = random.normal(2.0, 0.3, (3, 40)) + np.array([[0.0], [0.02], [0.3]])
    found = decide([figure("perplexity.a", *pieces)], Rule(["perplexity.a"], [], "ranks"), apart)
    other, wins = np.random.default_rng(99), np.zeros(3)
    for _ in range(20000):
        wins[pieces[:, other.integers(0, 40, 40)].mean(axis=1).argmin()] += 1 / 20000
    assert np.abs(found.wins - wins).max() < 0.03
    assert found.winner == pieces.mean(axis=1).argmin() and abs(found.wins.sum() - 1) < 1e-9
    mean, error = found.lead["perplexity.a"]
    apart_by = pieces[found.second] - pieces[found.winner]
    assert np.isclose(mean, apart_by.mean()) and np.isclose(error, apart_by.std(ddof=1) / 40**0.5)


def apart(index: int) -> list[str]:
    """No candidate has siblings."""
    return []


def test_what_is_the_same_is_undecided_and_what_is_better_is_decided():
    random = np.random.default_rng(1)
    text = random.normal(3.0, 0.5, 50)
    same = figure("perplexity.a", text, text, text)
    assert not decide([same], Rule(["perplexity.a"], [], "ranks"), apart).is_sure
    better = figure("perplexity.a", text, text - 0.02 + random.normal(0, 0.01, 50), text + 0.1)
    found = decide([better], Rule(["perplexity.a"], [], "ranks"), apart)
    assert (found.winner, found.is_sure) == (1, True)
    # Of equal scores the one that wins more draws: b is better on one text, c on the other.
    one, other = text, text + 0.001
    mixed = [figure("perplexity.a", one, other), figure("perplexity.b", other + 0.5, one)]
    names = [each.name for each in mixed]
    tied = decide(mixed, Rule(names, [], "ranks"), apart)
    assert tied.wins[tied.winner] >= tied.wins[tied.second]
    # One piece shows nothing of chance.
    single = figure("perplexity.a", [1.0], [2.0])
    assert not decide([single], Rule(["perplexity.a"], [], "ranks"), apart).is_sure
    # What differs in its seed alone is chance, however far apart the text finds it.
    seeds = decide([better], Rule(["perplexity.a"], [], "ranks"), lambda index: ["other"])
    assert (seeds.winner, seeds.is_sure, seeds.siblings) == (1, False, ["other"])


def test_a_choice_is_the_same_every_time():
    random = np.random.default_rng(3)
    figures = [figure(f"perplexity.{n}", *random.normal(3, 0.1, (5, 20))) for n in "ab"]
    rule = Rule([each.name for each in figures], [], "ranks")
    one, two = (vars(decide(figures, rule, apart)) for _ in range(2))
    assert {**one, "wins": one["wins"].tolist()} == {**two, "wins": two["wins"].tolist()}


def measured(tmp_path, values: dict[str, list[float]]) -> dict[str, str]:
    """{role: file} of perplexities on the text `t`, in round 1 and 2, by `ID ROUND`."""
    found = {}
    for key, nll in values.items():
        name, number = key.split()
        file = tmp_path / f"{name}-{number}.json".replace("/", "_")
        file.write_text(json.dumps({"perplexity": {}, "per_chunk": {"nll": nll}}))
        found[f"round {number} perplexity.t {name}"] = str(file)
    return found


OPTIONS = {
    "study": "S",
    "candidates": {name: {"w": number} for number, name in enumerate("abcd")},
    "parents": {"p": "./m/p"},
    "seed": None,
    "rounds": [{"chunks": 2, "keep": "half"}, {"chunks": None, "keep": None}],
    "kept": [],
    "choose": {"minimise": ["perplexity.t"], "maximise": [], "by": "ranks", "weights": {}},
}


def test_a_round_is_over_once_all_of_it_is_measured_and_the_next_has_who_stayed(tmp_path):
    first = {f"{name} 1": [n, n + 0.1] for n, name in enumerate("abcd", 1)}
    roles = measured(tmp_path, first)
    lacking = roles | {"round 1 perplexity.t d": None}
    assert read_outcome(OPTIONS, lacking).rounds == []
    once = read_outcome(OPTIONS, roles)
    assert once.rounds[0].kept == ["a", "b"] and once.winner is None and not once.last
    second = {"a 2": [1.0] * 12, "b 2": [0.9] * 12, "parents/p 2": [0.5] * 12}
    both = roles | measured(tmp_path, second)
    done = read_outcome(OPTIONS | {"kept": [["a", "b"]]}, both)
    assert done.winner == "b" and done.decision.is_sure
    assert {name: each.number for name, each in done.dropped().items()} == {"c": 1, "d": 1}
    rows = table(done).splitlines()
    assert [row.split(",")[0] for row in rows] == ["candidate", "b", "a", "c", "d", "./m/p"]
    assert rows[3].endswith("place 3 of 4 in round 1")
    assert "0.5" not in rows[1] and rows[-1].split(",")[3] == f"{np.exp(0.5):.7g}"


def test_a_candidate_that_is_called_as_a_parent_is_takes_nothing_of_it(place, tmp_path):
    """Each model has figures of its own, where only a model of the config is varied."""
    entries = {name: {"source": f"./m/{name}"} for name in ("code", "prose")}
    other = [{"model": "./m/base"}, {"model": "$other"}]
    merge = {"merge_method": "task_arithmetic", "base_model": "./m/base", "dtype": "bfloat16"}
    merge["models"] = [each | {"parameters": {"weight": 0.5}} for each in other]
    raw = config(merge=merge, vary={"other": ["code", "prose"]})
    raw["models"] |= {name: each | {"gguf": {"quants": ["Q8_0"]}} for name, each in entries.items()}
    raw["studies"]["Which"] |= {
        "measure": {"kld": ["evaluation"], "perplexity": ["evaluation"]},
        "choose": {"minimise": ["kld.evaluation"]},
    }
    study = graph_of(raw, place).shared.study("Which")
    base = grid.word("./m/base")
    assert set(study.parents) == {base, "code", "prose"}
    names = [*study.parents, *study.merges]
    assert sum("base.kld" in made.path for made in study.artifacts) == len(study.parents)
    assert sum("perplexity" in made.path for made in study.measured.values()) == len(names)
    assert len({made.path for made in study.measured.values()}) == len(study.measured)

    def value(path: str) -> float:
        if "/parents/" in path:
            return 9.0
        return 1.0 if "/candidates/code/" in path else 2.0

    roles = {}
    for number, (role, made) in enumerate(study.measured.items()):
        found = {"per_chunk": {"nll": [value(made.path)] * 3}}
        if made.rule == "evaluate":
            found = {"kld": {}, "per_chunk": {"kld": [value(made.path)] * 3}}
        roles[role] = tmp_path / f"{number}.json"
        roles[role].write_text(json.dumps(found))
    outcome = read_outcome(study.table.options, roles)
    assert outcome.winner == "code"
    assert {name for name, _, _ in outcome.away} == {"code", "prose"}
    own = {values["perplexity.evaluation"][0] for values in outcome.parent_values.values()}
    assert own == {np.exp(9.0)}
    assert outcome.rounds[0].values()["code"]["perplexity.evaluation"][0] == np.exp(1.0)


def chosen_by(
    monkeypatch, raw: dict, measured: dict, *names: str, status: int = 0
) -> dict[str, Chosen]:
    """The lock after `choose`. measured: {study: its outcome}. names: what `model=` says."""
    Path("given.json").write_text(json.dumps(raw | ({"model": list(names)} if names else {})))
    monkeypatch.setattr("sys.argv", ["choose.py", "--config", "given.json"])
    monkeypatch.setattr(choose, "outcome_now", lambda plan, name: measured[name])
    assert choose.main() == status
    return lock.read()


def test_a_picked_winner_stays_until_its_study_is_named(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    raw = config()
    raw["studies"]["Other"] = copy.deepcopy(STUDY)
    values = {name: list(each.values.items()) for name, each in candidates(raw, place).items()}
    options = OPTIONS | {"candidates": list(values.items()), "rounds": OPTIONS["rounds"][1:]}
    nll = measured(tmp_path, {f"{name} 1": [n, n + 0.1] for n, name in enumerate(values)})
    found = {name: read_outcome(options | {"study": name}, nll) for name in ("Which", "Other")}
    picked = winner(place)
    picked.candidate, picked.picked = "task_arithmetic-0.5", True
    lock.write({"Which": Chosen([], picked)})
    stayed = chosen_by(monkeypatch, raw, found)
    assert stayed["Which"].winner == picked and stayed["Other"].winner.candidate == "ties-0.3"
    assert (
        "  task_arithmetic-0.5 was picked and stays the winner; `snakemake choose --config "
        "model=Which` takes ties-0.3.\n"
    ) in capsys.readouterr().out
    assert chosen_by(monkeypatch, raw, found, "Other")["Which"].winner == picked
    assert chosen_by(monkeypatch, raw, found, "Which")["Which"].winner.candidate == "ties-0.3"
    assert "stays the winner" not in capsys.readouterr().out


def test_choose_and_status_say_that_candidates_are_not_comparable(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(place / name)
    values = {name: list(each.values.items()) for name, each in candidates(config(), place).items()}
    options = OPTIONS | {"candidates": list(values.items()), "rounds": OPTIONS["rounds"][1:]}
    nll = measured(tmp_path, {f"{name} 1": [1.0] * (3 + n) for n, name in enumerate(values)})
    found = read_outcome(options, nll)
    assert chosen_by(monkeypatch, config(), {"Which": found}, status=1) == {}
    text = (
        "Perplexity on t is not comparable: the text was cut into other tokens for ties-0.5, "
        "task_arithmetic-0.3, task_arithmetic-0.5 than for the rest. Nothing is chosen: choose by "
        "tasks, in one round, or give all candidates one tokenizer."
    )
    assert capsys.readouterr().out == f"Which: {text}\n"
    monkeypatch.setattr(run_studies, "outcome_now", lambda plan, name: found)
    assert notes(Planned.open(config()).plan) == [f"study Which: {text}"]
    # Few chunks may not tell them apart yet.
    stay = ["ties-0.3", "ties-0.5"]
    later = {"ties-0.3 2": [1.0] * 9, "ties-0.5 2": [1.0] * 8}
    both = measured(tmp_path, {f"{name} 1": [1.0, 2.0] for name in values} | later)
    rounds = OPTIONS["rounds"]
    found = read_outcome(options | {"rounds": rounds, "kept": [stay]}, both)
    given = config(rounds=[{"chunks": 2, "keep": "half"}, {}])
    lasting = chosen_by(monkeypatch, given, {"Which": found}, status=1)["Which"]
    assert lasting == Chosen([{"chunks": 2, "kept": stay}], None)
    said = capsys.readouterr().out
    assert "tokens for ties-0.5 than for the rest. Nothing is chosen" in said
    assert "`snakemake --cores all` measures them" not in said


def test_the_lock_is_yaml_that_people_can_read(tmp_path, place):
    lock.write({"Which": Chosen([], winner(place))}, tmp_path)
    data = yaml.safe_load((tmp_path / lock.LOCK_FILE).read_text())
    assert data["studies"]["Which"]["winner"]["values"] == {"method": "ties", "w": 0.3}
