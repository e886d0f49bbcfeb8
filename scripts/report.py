"""Write the quality report of a model: a table (CSV), a plot (SVG) and a page (HTML).

It has size, bits per weight, KL divergence, perplexity and top-token agreement of every form, the
Pareto front, and which form fits into how much memory. The same input gives the same bytes.

The CSV has a row for each form: bytes, bits_per_weight, kld in nats per token, perplexity, same_top
as a fraction; X_error is the standard error of X. kld_vs_best is its KLD less that of the best form
that is no larger, chunk by chunk. memory_16k is the bytes of memory that it takes with a context of
16,384 tokens: weights, cache of 16 bits a value, buffers. top_lost and top_gained are the shares of
tokens of the text that the unquantized model finds the most probable and the form does not, and the
other way round. A cell is empty if it was not measured.
"""

import argparse
import csv
import gc
import json
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lib.errors import UserError, program
from lib.formats import fallbacks
from lib.formats.divergence import ENOUGH
from lib.report import judge, mixes, quality_plot
from lib.report.figures import decimal, places, scaled, size_range, size_text, size_unit
from lib.report.judge import Figure, Form, ModelForms
from lib.report.looks import Looks
from lib.report.pages import render

TEMPLATES = Path(__file__).parent / "templates"
COLUMNS = (
    *("form", "file", "bytes", "bits_per_weight", "kld", "kld_error"),
    *("perplexity", "perplexity_error", "same_top", "same_top_error"),
    *("kld_p999", "kld_vs_best", "kld_vs_best_error", "memory_16k"),
    *("kld_p99", "kld_max", "top_lost", "top_gained"),
)
# How bad the bad moments are: attribute of a form without kld_, title, meaning.
TAILS = (
    ("p99", "KLD, 99%", "One token in a hundred diverges more than this."),
    ("p999", "KLD, 99.9%", "One token in a thousand diverges more than this."),
    ("max", "KLD, most", "The token that diverges most."),
)
WIDE, NARROW = (960, 600), (390, 520)
# Keeps the decimal points of a right-aligned column under each other; as wide as a digit.
FIGURE_SPACE = "\u2007"
MINUS = "\u2212"


def further(forms: list[Form]) -> list[str]:
    """The further texts on which forms were measured."""
    return list(dict.fromkeys(text for form in forms for text in form.also))


def task_names(forms: list[Form]) -> list[str]:
    """The files of tasks on which forms were measured."""
    return list(dict.fromkeys(task for form in forms for task in form.tasks))


def table(forms: list[Form]) -> list[list[Any]]:
    """The names of COLUMNS, then a row for each form; None if not measured.

    For further texts there are columns kld_on_TEXT and kld_error_on_TEXT, and worst_text; for files
    of tasks task_NAME and task_NAME_error, last. Bytes, bits per weight, nats per token, fractions.
    Measured figures have six decimals, because that is what base logits of 16 bits are good for.
    """
    rivals, none = judge.rivals(forms), Figure()
    texts, tasks = further(forms), task_names(forms)
    columns = [*COLUMNS, *(f"{key}_on_{text}" for text in texts for key in ("kld", "kld_error"))]
    columns += ["worst_text"] if texts else []
    columns += [f"task_{task}{part}" for task in tasks for part in ("", "_error")]
    rows = [
        (
            *(form.name, form.file, form.bytes),
            form.bits_per_weight and round(form.bits_per_weight, 4),
            *(*form.kld, *form.perplexity, *form.same_top, form.kld_p999),
            *(rivals[form.name].difference if form.name in rivals else none),
            form.memory.get(judge.TABLE_CONTEXT),
            *(form.kld_p99, form.kld_max, form.lost.value, form.gained.value),
            *(part for text in texts for part in form.also.get(text, none)),
            *([judge.worst_text(form)] if texts else []),
            *(part for task in tasks for part in form.tasks.get(task, none)),
        )
        for form in forms
    ]
    # + 0.0: no -0.0
    return [columns] + [[round(c, 6) + 0.0 if isinstance(c, float) else c for c in r] for r in rows]


def column(figures: list[Figure], most: int, factor: float = 1.0) -> list[dict[str, str] | None]:
    """A column's cells, {value, error, pad}, with the decimal points under each other.

    most: the most decimals. factor: what values and errors are multiplied by. None for a figure
    that was not measured.
    """
    shown = [scaled(figure, factor) for figure in figures]
    digits = places(shown, most)
    widest = max(
        (n for figure, n in zip(shown, digits, strict=True) if figure.value is not None), default=0
    )

    def cell(figure: Figure, n: int) -> dict[str, str] | None:
        if figure.value is None:
            return None
        value = decimal(figure.value, n).replace("-", MINUS)
        error = "" if figure.error is None else decimal(figure.error, n)
        return {"value": value, "error": error, "pad": FIGURE_SPACE * (widest - n)}

    return list(map(cell, shown, digits))


def kld_bars(forms: list[Form]) -> list[float | None]:
    """The length of each form's KLD bar in percent, on a log scale from 4 to 100.

    None for a form without a KLD above 0.
    """
    positive = [form.loss for form in forms if form.loss]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    span = math.log(high / low) or 1.0
    return [
        None if not form.loss else round(4 + 96 * math.log(form.loss / low) / span, 1)
        for form in forms
    ]


def kld_text(form: Form) -> str:
    """A form's KLD in words, as "KLD 0.0313 ± 0.0002"."""
    if form.kld.value is None:
        return "KLD not measured"
    if not form.quantized:
        return "the reference itself"
    digits = places([form.kld], 6)[0]
    error = "" if form.kld.error is None else f" ±\u00a0{decimal(form.kld.error, digits)}"
    return f"KLD {decimal(form.kld.value, digits)}{error}"


def parameters_text(count: int | None) -> str:
    """A number of parameters in words, as "8.03 billion"; empty if it is not known."""
    if not count:
        return ""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)


def _rows(forms: list[Form]) -> list[dict[str, Any]]:
    front, rivals = judge.pareto_front(forms), judge.rivals(forms)
    columns = {
        "kld": column([form.kld for form in forms], 6),
        "p99": column([Figure(form.kld_p99) for form in forms], 6),
        "p999": column([Figure(form.kld_p999) for form in forms], 6),
        "max": column([Figure(form.kld_max) for form in forms], 3),
        "lost": column([form.lost for form in forms], 2, 100),
        "gained": column([form.gained for form in forms], 2, 100),
        "same_top": column([form.same_top for form in forms], 2, 100),
        "perplexity": column([form.perplexity for form in forms], 3),
    }
    also = {t: column([form.also.get(t, Figure()) for form in forms], 6) for t in further(forms)}
    tasks = {
        task: column([form.tasks.get(task, Figure()) for form in forms], 1, 100)
        for task in task_names(forms)
    }
    return [
        {
            "form": form,
            "size": size_text(form.bytes, forms),
            "bytes_of_memory": (memory := form.memory.get(judge.TABLE_CONTEXT)),
            "memory": size_text(memory, forms) if memory else "",
            "front": form in front,
            "also": {text: cells[index] for text, cells in also.items()},
            "tasks": {task: cells[index] for task, cells in tasks.items()},
            "worst": judge.worst_text(form),
            "beaten_by": _beaten_by(rivals.get(form.name), forms),
            "bar": bar,
            **{name: cells[index] for name, cells in columns.items()},
        }
        for index, (form, bar) in enumerate(zip(forms, kld_bars(forms), strict=True))
    ]


def _beaten_by(rival: judge.Rival | None, forms: list[Form]) -> str:
    """By which smaller form, and by how much; empty if none beats it."""
    if rival is None or not rival.beats:
        return ""
    value, error = rival.difference
    digits = places([rival.difference], 6)[0]
    size = size_text(rival.form.bytes, forms)
    return (
        f"{rival.form.name} ({size}), by {decimal(value, digits)} ±\u00a0{decimal(error, digits)}"
    )


def _answers(forms: list[Form]) -> list[dict[str, Any]]:
    """The lines of the page's summary: {title, form, why, facts: size, KLD, agreement in words}."""
    whole = max((form.bytes for form in forms if not form.quantized), default=None)
    answers = []
    for choice in judge.choices(forms):
        form = choice.form
        facts = [size_text(form.bytes, forms)]
        if whole:
            facts[0] += f", {form.bytes / whole:.0%} of the unquantized file"
        facts.append(kld_text(form))
        if form.same_top.value is not None:
            facts.append(f"the same top token {form.same_top.value:.1%} of the time")
        title = " · ".join([choice.title, *choice.also])
        answers.append({"title": title, "form": form, "why": choice.why, "facts": facts})
    return answers


def _memory(model: ModelForms) -> list[dict[str, Any]]:
    """A table for each family: which of its forms fits into which memory, with which context."""
    forms, tables = model.forms, []
    for look in quality_plot.looks_of(forms):
        fitting = judge.by_memory([f for f in forms if f.look == look], model.trained)
        if not any(any(picks) for _, picks in fitting.rows):
            continue
        # How much memory its longest context of the column takes.
        lines = [
            {
                "label": judge.memory_text(sizes),
                "cells": [
                    pick
                    and (pick, size_text(judge.needed(pick, max(contexts, default=None)), forms))
                    for pick, contexts in zip(picks, fitting.contexts, strict=True)
                ],
            }
            for sizes, picks in fitting.rows
        ]
        contexts = list(map(judge.context_text, fitting.contexts))
        tables.append({"look": look, "contexts": contexts, "lines": lines})
    return tables


def _mixes(model: ModelForms) -> dict[str, Any]:
    """What the page shows of mixes: each with its map; the texts; the types and their shades."""
    found = [form for form in model.forms if form.mix]
    measured = [form for form in found if form.kld.value is not None]
    return {
        "forms": [
            {
                "form": form,
                "target": mixes.target_text(form.mix.target, model.trained),
                "size": size_text(form.bytes, model.forms),
                "expected": mixes.kld(form.mix.found["expected"]),
                "kld": mixes.kld(*form.kld) if form in measured else "",
                "verdict": mixes.verdict(form, model.forms),
                "map": mixes.heat_map(form.mix.types),
                "tries": [
                    (
                        size_text(t["bytes"], model.forms),
                        mixes.kld(t["expected"]),
                        mixes.kld(t["kld"], t["error"]),
                    )
                    for t in form.mix.found.get("tries", [])
                ],
            }
            for form in found
        ],
        "corpus": next((form.mix.corpus for form in found), None),
        "measured_on": list(dict.fromkeys(form.conditions[1] for form in measured)),
        "shades": mixes.shades({kind for form in found for kind in form.mix.types.values()}),
    }


def _conditions(model: ModelForms) -> list[dict[str, Any]]:
    """How forms were measured: an entry for each combination of engine, text, context, chunks."""
    titles: dict[tuple, list[str]] = {}
    for form in model.forms:
        if form.conditions:
            titles.setdefault((*form.conditions, form.floor), []).append(form.look.title)
    return [
        {
            "count": len(kinds),
            "kinds": sorted(set(kinds)),
            # An evaluation names the engine, the model's entry its version too.
            "engine": model.reference if model.reference.startswith(engine) else engine,
            "corpus": corpus,
            "context": context,
            "chunks": chunks,
            "reference": model.reference,
            "floor": column([floor], 6)[0],
        }
        for (engine, corpus, context, chunks, floor), kinds in titles.items()
    ]


def _figures(forms: list[Form]) -> str:
    """What the page's script compares forms by, as JSON: {form: {bytes, kld, chunks, text}}.

    chunks: the KLD of each chunk. text: on what it was measured; chunks of other texts do not
    compare.
    """
    unit, name = size_unit(forms) if forms else (1, "")
    found = {
        form.name: {
            "bytes": form.bytes,
            "kld": form.kld.value,
            "chunks": [float(f"{kld:.6g}") for kld in form.per_chunk],
            "text": form.conditions and form.conditions[1:],
        }
        for form in forms
    }
    told = {"forms": found, "unit": unit, "unitName": name, "enough": ENOUGH, "sure": judge.SURE}
    # A name must not end the script element that holds this.
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")


def drawn(model: ModelForms) -> tuple[str, dict[str, list[str]]]:
    """The plot as a file of its own, and for the page: {scale of the axes: [wide, narrow]}, SVG.

    Each is drawn by a process of its own: with 31 forms one takes 0.35 s.
    """
    gc.freeze()  # what is loaded stays: no process's garbage collector need go through it
    with ProcessPoolExecutor(5, get_context("fork")) as pool:
        draw = partial(pool.submit, quality_plot.draw, model.name, model.forms)
        plot = draw(*WIDE, standalone=True)
        plots = {
            scale: [draw(*size, standalone=False, scale=scale) for size in (WIDE, NARROW)]
            for scale in ("log", "linear")
        }
        return plot.result(), {scale: [p.result() for p in plots[scale]] for scale in plots}


def page(model: ModelForms, template: str, script: str, plots: dict[str, list[str]]) -> str:
    """The report as one HTML page that loads nothing from elsewhere.

    template: a jinja2 template. script: JavaScript that is put into the page. plots: as `drawn`
    gives them.
    """
    forms, conditions, rows = model.forms, _conditions(model), _rows(model.forms)
    return render(
        template,
        script,
        model=model.name,
        parameters=parameters_text(model.parameters),
        count=len(forms),
        measured=sum(form.loss is not None for form in forms),
        sizes=size_range(forms),
        answers=_answers(forms),
        lossless=judge.nearly_lossless(forms),
        unquantized=next((form for form in forms if not form.quantized), None),
        memory=_memory(model),
        first_memory=judge.MEMORY_SIZES[0],
        all_fit=judge.all_fit(forms, model.trained),
        longest=judge.longest_context(forms, model.trained),
        rows=rows,
        beaten=[row for row in rows if row["beaten_by"]],
        mixes=_mixes(model),
        presets=quality_plot.presets_front(forms),
        texts=further(forms),
        tasks=task_names(forms),
        harness=dict(zip(model.harness, column([*model.harness.values()], 1, 100), strict=True)),
        shared=model.shared,
        tails=[tail for tail in TAILS if any(row[tail[0]] for row in rows)],
        has_flips=any(form.lost.value is not None for form in forms),
        shown=quality_plot.looks_of(forms),
        fallbacks=fallbacks.sentence({form.name: form.fallbacks for form in forms}),
        twins=judge.twin_lines(forms),
        beside=[f"{Path(b.file).name} ({size_text(b.bytes, forms)})" for b in model.beside],
        conditions=conditions,
        same_text=len({(c["corpus"], c["context"], c["chunks"]) for c in conditions}) <= 1,
        sure=judge.SURE,
        small_bits=judge.SMALL_BITS,
        lossless_kld=judge.LOSSLESS_KLD,
        lossless_ratio=judge.LOSSLESS_RATIO,
        plots={scale: list(map(Markup, drawn)) for scale, drawn in plots.items()},
        figures=Markup(_figures(forms)),
        has_memory=any(row["memory"] for row in rows),
        plot_style=Markup(quality_plot.style(quality_plot.looks_of(forms))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", required=True, help="the model's name, for which --forms must be"
    )
    parser.add_argument(
        "--forms",
        type=Path,
        required=True,
        help="JSON object, which describe_forms.py prints: {model, parameters, trained, reference, "
        "corpus, context, chunks, forms: [{form, family, quantized, file, bytes, sha256, type, "
        "imatrix, fallbacks: {count, tensors, types, block} or null, preset, mix: {file, target, "
        "found, corpus, types} or null, memory: {context in tokens: bytes}, "
        "evaluation: path or null, also: {text: "
        "path}, tasks: {task: path}}], harness: {task: path}, beside: [{what, "
        "file, bytes}]}. An evaluation is JSON: {kld: {mean, "
        "error, p99, p99_9, max}, perplexity: {mean, error}, same_top: {mean, error}, flips: "
        "{lost, lost_error, gained, gained_error}, per_chunk: {kld: [nats a token]}, shared: "
        "{calibration text: share}, engine, corpus, context, chunks}, as evaluate.py writes it; "
        "that of a task is {score, error}, as evaluate_task.py writes it",
    )
    parser.add_argument(
        "--families",
        type=Path,
        help="JSON list, which a build leaves as .snakemake/quantmill/families.json: [{name, "
        "title, order, phrase, library, tags, note, tag, colours, diamond, has_quants}]; without "
        "it families are called by their keys",
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=TEMPLATES / "quality.html.j2",
        help="the page's jinja2 template",
    )
    parser.add_argument(
        "--page-script", type=Path, default=TEMPLATES / "quality.js", help="the page's JavaScript"
    )
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--svg", type=Path, required=True, help="plot to write")
    parser.add_argument("--html", type=Path, required=True, help="page to write")
    args = parser.parse_args()
    model = judge.read(args.forms, Looks.read(args.families))
    if model.name != args.model:
        raise UserError(f"{args.forms}: is of model {model.name!r}, not {args.model!r}")
    plot, plots = drawn(model)
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table(model.forms))
    args.svg.write_text(plot, encoding="utf-8")
    template, script = (path.read_text(encoding="utf-8") for path in (args.page, args.page_script))
    args.html.write_text(page(model, template, script, plots), encoding="utf-8")


if __name__ == "__main__":
    program(main)
