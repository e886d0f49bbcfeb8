"""What programs that measure the speed of one form share (lib/stages/family.py, Speedometer)."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path


def speed_parser(doc: str) -> argparse.ArgumentParser:
    """Their options. doc: what the program does."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("form", type=Path, help="the file or directory that people load")
    numbers = {
        "prompt-tokens": "tokens of the prompt",
        "text-tokens": "tokens of the text, one after the other and without a prompt",
        "repetitions": "how often each is measured, after a run that is not counted",
        "threads": "threads on the CPU",
        "gpus": "GPUs that can be seen; 0: the CPU does all",
    }
    for name, text in numbers.items():
        parser.add_argument(f"--{name}", type=int, required=True, help=text)
    return parser


def cuda_figures(
    run: Callable[[int, int], None], arguments: argparse.Namespace
) -> dict[str, object]:
    """The JSON of a program that measures an engine for CUDA (Speedometer).

    run(parts, length): sends so many times so many tokens through the model, from an empty cache.
    arguments: of `speed_parser`.
    """
    prompt, text, times = arguments.prompt_tokens, arguments.text_tokens, arguments.repetitions
    return {
        "backend": "CUDA",
        "prompt": rates(prompt, times, lambda: run(1, prompt)),
        "text": rates(text, times, lambda: run(text, 1)),
    }


def rates(tokens: int, repetitions: int, run: Callable[[], None]) -> list[float]:
    """Tokens a second in each repetition of a run of so many tokens, after one without a clock."""
    run()
    found = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        run()
        found.append(tokens / (time.perf_counter() - begin))
    return found
