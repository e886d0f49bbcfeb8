"""Studies in the config: checks of them, and the merges that models take from them."""

from collections.abc import Mapping
from typing import Any

from lib.config.merges import check_merge, check_parameters, check_required, check_values
from lib.formats.merge_references import as_mapping, as_sequence
from lib.keys.values import show, suggestion
from lib.stages import evaluation
from lib.stages.studies import Study, known_figures
from lib.studies import grid
from lib.studies.lock import LOCK_FILE, Chosen

Origins = dict[str, str]


def take_winners(
    models: Any, studies: Any, chosen: Mapping[str, Chosen]
) -> tuple[Any, Origins, dict[str, str]]:
    """Replace `merge: {study: NAME}` in the config's `models` by the merge that was chosen.

    studies: the config's. chosen: the lock. Returns the models, {model: the place of its merge, for
    messages} of those whose study has a winner, and {model: study} of all. A model whose study has
    none yet gets the first candidate's merge, so that all else of it can be checked. If the study
    is not in the config, or the model has a seed beside it, `merge` gets a ValueError as its value.
    """
    if not isinstance(models, Mapping):
        return models, {}, {}
    taken, origins, takes = dict(models), {}, {}
    for name, model in models.items():
        merge = as_mapping(as_mapping(model).get("merge"))
        if "study" not in merge:
            continue
        study = merge["study"]
        if set(merge) != {"study"}:
            error = "a merge is either {study: NAME} alone or a mergekit configuration"
            taken[name] = {**model, "merge": ValueError(error)}
        elif not isinstance(study, str) or study not in as_mapping(studies):
            near = suggestion(study, map(str, as_mapping(studies)))
            error = f"study: {show(study)} is no study of this config{near}"
            taken[name] = {**model, "merge": ValueError(error)}
        elif model.get("random_seed") is not None:
            error = "study: its winner has a seed of its own; leave random_seed out"
            taken[name] = {**model, "merge": ValueError(error)}
        elif winner := chosen.get(study, Chosen()).winner:
            takes[name] = study
            taken[name] = {**model, "merge": winner.merge, "random_seed": winner.random_seed}
            origins[name] = f"models.{name}.merge: {LOCK_FILE}: {study}"
        else:
            takes[name] = study
            taken[name] = {**model, "merge": _first(studies[study])}
    return taken, origins, takes


def _first(study: Any) -> Any:
    """The merge of a study's first candidate, as far as the study is what it should be."""
    study = as_mapping(study)
    varied = as_mapping(study.get("vary")).items()
    vary = {name: (list(as_sequence(v)) or [v])[:1] for name, v in varied}
    pairs = [as_mapping(pair) for pair in as_sequence(study.get("pairs"))[:1]]
    try:
        return grid.filled(study.get("merge"), grid.combinations(vary, pairs)[0])
    except (ValueError, IndexError):
        return {"merge_method": "linear", "models": []}  # the study is reported


def all_waiting(models: Mapping[str, Any], studies: Mapping[str, Study], waiting: dict) -> dict:
    """`waiting`, models whose study has no winner, and what needs one, models and studies."""
    found, more, needs = dict(waiting), True, {}
    for name, entry in (models | studies).items() if waiting else ():
        try:
            needs[name] = entry.needs()
        except ValueError:  # a study that `check` reports
            continue
    while more:
        more = {
            name: found[need]
            for name, needed in needs.items()
            for need in needed
            if name not in found and need in found
        }
        found |= more
    return found


def check(checks: Any, name: str, study: Study) -> None:
    """Report mistakes in a study (lib/config/checks.Checks)."""
    at = ("studies", name)
    for number, pair in enumerate(study.pairs):
        for key in pair.keys() & study.vary.keys():
            checks.add((*at, "pairs", number, key), "is varied under vary already")
        if pair.keys() != study.pairs[0].keys():
            checks.add((*at, "pairs", number), "has other names than the first")
    varied = {*study.vary, *(key for pair in study.pairs for key in pair)}
    used = {*grid.names_in(study.merge), *grid.names_in(study.random_seed)}
    for key in sorted(varied - used, key=str):
        near = suggestion(key, used)
        where = ("vary", key) if key in study.vary else ("pairs",)
        checks.add((*at, *where), f"${key} stands nowhere in merge{near}")
    for key in sorted(varied & {*grid.COLUMNS, *known_figures(study)}, key=str):
        where = ("vary", key) if key in study.vary else ("pairs",)
        checks.add((*at, *where), f"${key} is a column of the study's table; choose another name")
    if not varied:
        checks.add(at, "varies nothing: give names values under vary or pairs")
    _check_measure(checks, at, study)
    odd = [*check_values(study.vary, ("vary",)), *check_values(study.pairs, ("pairs",))]
    for where, message in odd:
        checks.add((*at, *where), message)
    many = grid.excess(study.vary, study.pairs)
    if many:
        checks.add((*at, "vary" if study.vary else "pairs"), many)
    if odd or many:
        return
    try:
        candidates = study.candidates
    except ValueError as error:
        checks.add((*at, "merge"), str(error))
        return
    _check_candidates(checks, at, candidates)


def _check_candidates(checks: Any, at: tuple, candidates: list[grid.Candidate]) -> None:
    """Report the mistakes of all candidates, each once, with the first that has it."""
    found: dict[tuple, list[grid.Candidate]] = {}
    for each in candidates:
        mistakes = [*check_merge(each.merge), *check_parameters(each.merge)]
        mistakes += check_required(each.merge)
        mistakes += checks.reference_mistakes((*at, "merge"), each.merge)
        for mistake in dict.fromkeys(mistakes):
            found.setdefault(mistake, []).append(each)
    for (where, message), those in found.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        which = "" if len(those) == len(candidates) else f", with {those[0].label}{more}"
        checks.add((*at, "merge", *where), message + which)


def _check_measure(checks: Any, at: tuple, study: Study) -> None:
    measure, known = study.measure, list(known_figures(study))
    for key in ("perplexity", "kld"):
        for number, text in enumerate(texts := getattr(measure, key)):
            checks.uses_corpus((*at, "measure", key, number), text)
            if text in texts[:number]:
                checks.add((*at, "measure", key, number), f"{text} is measured already")
    evaluation.check_tasks(checks, (*at, "measure", "tasks"), measure.tasks)
    if not known:
        checks.add((*at, "measure"), "measures nothing: name texts or tasks")
    choose, early = study.choose, len(study.rounds) > 1
    for key in ("minimise", "maximise"):
        for number, figure in enumerate(getattr(choose, key)):
            here = (*at, "choose", key, number)
            if figure not in known:
                near, listed = suggestion(figure, known), ", ".join(known)
                checks.add(here, f"{show(figure)} is not measured{near} (measured: {listed})")
            elif figure.startswith("tasks.") != (key == "maximise"):
                other = "maximise" if key == "minimise" else "minimise"
                checks.add(here, f"{figure} belongs under {other}")
    asked = [*study.minimised, *choose.maximise]
    if known and not asked:
        checks.add((*at, "choose"), f"names no figure to choose by (measured: {', '.join(known)})")
    for figure in choose.weights:
        if figure not in asked:
            near = suggestion(figure, asked)
            checks.add((*at, "choose", "weights", figure), f"is not chosen by{near}")
    if choose.weights and choose.by != "sum":
        checks.add((*at, "choose", "weights"), "belong to by: sum")
    for number, each in enumerate(study.rounds):
        last = number == len(study.rounds) - 1
        if last and each.keep is not None:
            checks.add((*at, "rounds", number, "keep"), "of the last round one is chosen")
        if not last and each.keep is None:
            checks.add((*at, "rounds", number), "keep is missing: how many stay for the next round")
    if early and asked and not any(figure.startswith("perplexity.") for figure in asked):
        text = "need a perplexity to choose by: the others are measured in the last round alone"
        checks.add((*at, "rounds"), text)
