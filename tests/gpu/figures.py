"""The figures of the proofs: imatrix on GPU and CPU, wall time by step, engines, forms."""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def run_imatrix(work: Path, model: Path, chunks: int, gpu: bool) -> tuple[Path, float]:
    """An importance matrix by the workflow's own tool; the file, and the seconds it took.

    On the first GPU alone, or on none. `chunks` -1 is the whole text.
    """
    made = work / f"imatrix-{'gpu' if gpu else 'cpu'}.gguf"
    (gguf,) = (work / model / "gguf").glob("*-BF16.gguf")
    command = [work / "resources/llama.cpp/bin/llama-imatrix", "--model", gguf]
    command += ["--file", work / "resources/corpora/calibration.txt", "--chunks", chunks]
    command += ["--ctx-size", 512, "--n-gpu-layers", 99 if gpu else 0, "--no-ppl"]
    command += ["--threads", os.cpu_count(), "--output-format", "gguf", "--output-file", made]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "0" if gpu else ""}
    begin = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, env=env, capture_output=True)
    return made, time.monotonic() - begin


def differences(one: Path, other: Path) -> list[float]:
    """How far the values of two matrices are apart, for each tensor: a part of their sum."""
    import gguf

    values, others = (
        {t.name: np.array(t.data) for t in gguf.GGUFReader(file).tensors} for file in (one, other)
    )
    assert values.keys() == others.keys()
    for name in values:
        assert not name.endswith(".counts") or np.array_equal(values[name], others[name]), name
    return [
        float(np.abs(a - others[name]).sum() / np.abs(others[name]).sum())
        for name, a in values.items()
        if name.endswith(".in_sum2")
    ]


def compare_ranges(work: Path, model: Path) -> dict[str, float]:
    """The workflow's matrix, made in ranges on all GPUs, and one made in one run on one GPU."""
    made = work / model / "imatrix.gguf"
    alone, seconds = run_imatrix(work, model, -1, gpu=True)
    apart = differences(made, alone)
    return {
        "one_gpu_seconds": round(seconds, 1),
        "mean_difference": float(np.mean(apart)),
        "largest_difference": float(np.max(apart)),
    }


def compare_imatrix(work: Path, model: Path, chunks: int) -> dict[str, float]:
    """Seconds of both (model loading included), and how far the values are apart."""
    gpu, gpu_seconds = run_imatrix(work, model, chunks, gpu=True)
    cpu, cpu_seconds = run_imatrix(work, model, chunks, gpu=False)
    apart = differences(gpu, cpu)
    return {
        "chunks": chunks,
        "gpu_seconds": round(gpu_seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "cores": os.cpu_count(),
        "mean_difference": float(np.mean(apart)),
        "largest_difference": float(np.max(apart)),
    }


def agree(reference: Path, text: Path) -> dict[str, float]:
    """The unquantized model's perplexity through exllamav2 and through transformers.

    Raises AssertionError where they differ by more than 1%: exllamav2 0.3.2 without flash-attn
    and without the workaround of scripts/lib/formats/exllamav2.py was 9% off on such a model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    scripts = Path(__file__).resolve().parents[2] / "scripts"
    sys.path.insert(0, str(scripts))
    from exl2_evaluate import bos_token, read_text, tokenize
    from lib.formats.divergence import scored, windows

    answer = text.with_name("agree.json")
    command = [sys.executable, scripts / "exl2_evaluate.py", "--model", reference]
    command += ["--reference", reference, "--text", text, "--corpus", "evaluation"]
    command += ["--ctx-size", "512", "--smoke", "64", "--output", answer]
    subprocess.run([str(word) for word in command], check=True)
    result = json.loads(answer.read_text())

    bos = bos_token(reference)
    rows = windows(tokenize(reference, read_text(text), bos), 512, None, bos)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).cuda()
    losses = []
    with torch.inference_mode():
        for row in torch.from_numpy(rows).cuda():
            logits = model(row[None]).logits[0, scored(512)]
            losses.append(torch.nn.functional.cross_entropy(logits, row[257:]).item())
    found = {
        "exllamav2": result["perplexity"]["mean"],
        "transformers": float(np.exp(np.mean(losses))),
        "tokens_per_second": result["smoke"]["tokens_per_second"],
    }
    print(found)
    assert abs(found["exllamav2"] / found["transformers"] - 1) < 0.01, "the engines disagree"
    return found


def steps(work: Path) -> list[tuple[str, float, float]]:
    """(artifact, wall seconds, largest resident memory in MB) of every step that was run."""
    found = []
    for file in sorted((work / "benchmarks").rglob("*.tsv")):
        with file.open() as lines:
            row = list(csv.DictReader(lines, delimiter="\t"))[-1]
        name = str(file.relative_to(work / "benchmarks")).removesuffix(".tsv")
        memory = float(row["max_rss"]) if row["max_rss"] not in ("-", "NA") else 0.0
        found.append((name, float(row["s"]), memory))
    return found


def table(work: Path, model: Path, imatrix: dict, agreed: dict) -> str:
    """The figures as Markdown."""
    seconds = steps(work)
    lines = [
        "## Wall time by step",
        "",
        "| artifact | seconds | memory, MB |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {s:.1f} | {memory:.0f} |" for name, s, memory in seconds]

    took = dict((name, s) for name, s, _ in seconds)
    name = model.name
    measure = took[f"{name}/exl2/measurement.json"]
    bits = [took[f"{name}/exl2/{b}bpw"] for b in ("3.0", "4.0", "5.0")]
    shared, apart = measure + sum(bits), 3 * measure + sum(bits)
    each = ", ".join(f"{s:.0f} s" for s in bits)
    lines += [
        *("", "## Three bits values", ""),
        f"One measurement ({measure:.0f} s) and three conversions ({each}): {shared:.0f} s. Three "
        f"conversions that each measure first would take {apart:.0f} s (the same times added up, "
        f"not run): {apart / shared:.2f} times as long.",
        *("", "## imatrix on the GPU and on the CPU", ""),
        f"{imatrix['chunks']} chunks of 512 tokens: {imatrix['gpu_seconds']} s with all layers on "
        f"the GPU, {imatrix['cpu_seconds']} s on {imatrix['cores']} cores (both with loading the "
        f"model). The values of a tensor differ by {imatrix['mean_difference']:.2e} of their sum "
        f"on average, {imatrix['largest_difference']:.2e} at most.",
    ]

    here = work / model / "evaluation"
    results = {file.stem: json.loads(file.read_text()) for file in sorted(here.glob("*.json"))}
    results = {form: result for form, result in results.items() if "kld" in result}
    bases = {r["engine"]: r["perplexity"]["base"] for r in results.values()}
    lines += ["", "## The unquantized model's perplexity", ""]
    lines += [f"- {engine}, the merge: {value:.4f}" for engine, value in bases.items()]
    lines += [
        f"- exllamav2 {agreed['exllamav2']:.4f} and transformers (float32) "
        f"{agreed['transformers']:.4f}: a model of the merge"
    ]
    lines += [
        "",
        "## EXL2",
        "",
        "| form | KLD | perplexity | same top | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for form, r in results.items():
        if "smoke" in r:
            kld, top = r["kld"], r["same_top"]
            speed, ppl = r["smoke"]["tokens_per_second"], r["perplexity"]["mean"]
            lines.append(
                f"| {form} | {kld['mean']:.3g} ± {kld['error']:.1g} | {ppl:.3f} "
                f"| {top['mean']:.4f} ± {top['error']:.4f} | {speed:.0f} |"
            )
    return "\n".join(lines) + "\n"


def forms(work: Path, model: Path) -> str:
    """A Markdown table of the forms and what each lost, and one of the steps."""
    with (work / model / "report/quality.csv").open() as lines:
        sizes = {row["form"]: row["bytes"] for row in csv.DictReader(lines)}
    lines = ["| form | bytes | KLD | same top | floor |", "| --- | ---: | ---: | ---: | ---: |"]
    for file in sorted((work / model / "evaluation").glob("*.json")):
        found = json.loads(file.read_text())
        if "kld" not in found:
            continue  # a recipe
        kld, top = found["kld"], found["same_top"]["mean"]
        floor = f"{found['floor']['mean']:.6f}" if "floor" in found else ""
        kld = f"{kld['mean']:.6f} ± {kld['error']:.6f}"
        lines.append(f"| {file.stem} | {sizes.get(file.stem, '')} | {kld} | {top:.4f} | {floor} |")
    lines += ["", "| artifact | seconds | memory, MB |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {s:.1f} | {memory:.0f} |" for name, s, memory in steps(work)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("agree", "forms", "imatrix", "ranges", "table"))
    parser.add_argument("--reference", type=Path, help="agree: model directory")
    parser.add_argument("--text", type=Path, help="agree: evaluation text")
    parser.add_argument("--work", type=Path, help="working directory of the build")
    parser.add_argument("--model", type=Path, help="results/MODEL")
    parser.add_argument("--chunks", type=int, help="imatrix: chunks of the calibration text")
    parser.add_argument("--imatrix", type=Path, help="table: what imatrix wrote")
    parser.add_argument("--agree", type=Path, help="table: what agree wrote")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "agree":
        args.output.write_text(json.dumps(agree(args.reference, args.text)))
    elif args.what == "ranges":
        result = compare_ranges(args.work, args.model)
        print(result)
        args.output.write_text(json.dumps(result))
    elif args.what == "forms":
        args.output.write_text(forms(args.work, args.model))
    elif args.what == "imatrix":
        result = compare_imatrix(args.work, args.model, args.chunks)
        print(result)
        args.output.write_text(json.dumps(result))
    else:
        parts = (json.loads(file.read_text()) for file in (args.imatrix, args.agree))
        args.output.write_text(table(args.work, args.model, *parts))


if __name__ == "__main__":
    main()
