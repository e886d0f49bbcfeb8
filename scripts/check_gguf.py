"""Load a GGUF file, check its tensors for NaN and Inf, and generate a few greedy tokens.

Of a conversion, that it holds the weights of its source (lib/formats/of_source.py).

llama-completion does it, with --check-tensors: without that option a NaN that was planted in a
tensor passes generation and even perplexity with exit status 0 (seen in llama.cpp b10605).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.gguf_file import read_gguf
from lib.formats.of_source import check_source

# Enough for prompt and answer. Without it the tool allocates the context that the model was
# trained for, gigabytes for a model of 128k tokens.
CONTEXT = 512
# The tool's logger, through which the text goes too, may be cut off at exit, with any status (of a
# tiny model 20 in 40 runs of llama.cpp b10605, and 20 in a row have been seen): a run that did not
# print its times at the end, or no text, is made again. Where the tool and its logger share one
# processor the logger is hardly ever late (1 in 40), so the later tries do; but it is where others
# use that processor too (20 in a row again), so each try also writes a text longer than the last.
TRIES, FREE_TRIES = 20, 5
LAST_LINES = re.compile(r"perf\w*: +total time")
INVALID = re.compile(r"tensor '([^']+)' has invalid data")


def complete(model: Path, tool: Path, prompt: str, tokens: int, threads: int | None = None) -> str:
    """The text of `tokens` greedy tokens after `prompt`; the tool has checked all tensors.

    tool: llama-completion. The tool prints text and log from two threads, so the end of the text
    can be missing even where the log is whole (seen once in a hundred runs).

    Raises UserError if the tool fails, a tensor holds NaN or Inf, or no text was written.
    """
    command = [
        *(tool, "--model", model, "--prompt", prompt),
        *("--ctx-size", str(CONTEXT), "--temp", "0", "--seed", "1"),
        *("--no-conversation", "--no-warmup", "--simple-io", "--no-display-prompt"),
        *("--ignore-eos", "--check-tensors"),
    ]
    if threads is not None:
        command += ["--threads", str(threads)]
    for number in range(TRIES):
        wanted = ["--n-predict", str(min(tokens * (number + 1), CONTEXT))]
        done = _run([*command, *wanted], on_one_processor=number >= FREE_TRIES)
        sys.stdout.write(done.stderr)
        invalid = INVALID.findall(done.stderr)
        if invalid:
            more = f" and {len(invalid) - 1} more" if len(invalid) > 1 else ""
            raise UserError(f"{model}: NaN or Inf in its tensor {invalid[0]}{more}")
        if done.returncode != 0 and (reason := _reason(done.stderr)):
            raise UserError(f"{model}: {tool.name} cannot load or run it: {reason}")
        text = done.stdout.removesuffix("\n\n")  # the tool's own; a model may write newlines alone
        if done.returncode == 0 and LAST_LINES.search(done.stderr) and text:
            break
    if done.returncode != 0:
        raise UserError(f"{model}: {tool.name} ends with status {done.returncode}")
    if not text:
        raise UserError(f"{model}: it wrote no text in {tokens} tokens after {prompt!r}")
    return text


def _run(command: list, on_one_processor: bool) -> subprocess.CompletedProcess:
    pin = _pin if on_one_processor and hasattr(os, "sched_setaffinity") else None
    try:
        return subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            preexec_fn=pin,
        )
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be run: {error.strerror}") from None


def _pin() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _reason(log: str) -> str | None:
    """The first line of a failed run's log that speaks of an error, without its time."""
    lines = [re.sub(r"^[\d.]+ [A-Z] ", "", line).strip() for line in log.splitlines()]
    speaking = re.compile(r"error|failed|invalid|missing|unknown", re.IGNORECASE)
    return next(filter(speaking.search, lines), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the GGUF file, or its first shard")
    parser.add_argument(
        "--completion-tool", type=Path, required=True, help="path of llama-completion"
    )
    parser.add_argument("--prompt", default="def main():", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to write")
    parser.add_argument("--threads", type=int, help="default: the tool's own")
    parser.add_argument(
        "--json", type=Path, help="file to write: {parameters, name, architecture, prompt, text}"
    )
    parser.add_argument("--source", type=Path, help="the model directory that it was made from")
    args = parser.parse_args()
    file = read_gguf(args.model)
    if args.source:
        found, compared = check_source(file, args.source)
        print(f"{args.model}: {found} of {compared} matrices are as in {args.source}")
    text = complete(args.model, args.completion_tool, args.prompt, args.tokens, args.threads)
    found = {
        "parameters": sum(t.elements for t in file.tensors),
        "name": file.metadata.get("general.name"),
        "architecture": file.metadata.get("general.architecture"),
        "prompt": args.prompt,
        "text": text,
    }
    print(f"{args.model}: {found['parameters']:,} parameters; {args.prompt!r} goes on as {text!r}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    program(main)
