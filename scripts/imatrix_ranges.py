"""Compute one importance matrix on several GPUs: a range of chunks on each, then combined.

A chunk's contribution does not depend on other chunks, so the ranges add up to the whole. Only sums
are rounded in another order (seen on a CPU: values within 3e-5 of a single run's, same counts).
"""

import argparse
import re
import subprocess
import tempfile
from contextlib import ExitStack
from os import environ
from pathlib import Path

from lib.errors import UserError, program

TOTAL = re.compile(rb"computing over (\d+) chunks")
MINIMUM = 2  # llama-imatrix wants at least two chunks of text after those that it skips


def count_chunks(command: list[str]) -> int:
    """The number of chunks in the text, which llama-imatrix prints before it begins.

    It is killed then. Raises UserError if it ends without printing the number.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as tool:
        last = b""
        for line in tool.stdout:
            if found := TOTAL.search(line):
                tool.kill()
                return int(found[1])
            last = line.strip() or last
    raise UserError(f"llama-imatrix does not say how many chunks there are: {last.decode()}")


def ranges(total: int, batch: int, count: int) -> list[tuple[int, int]]:
    """`total` chunks as at most `count` ranges, [(first chunk, number of chunks)].

    Chunks of one batch go through the model together, so ranges begin at multiples of `batch`.
    """
    batches = -(-total // batch)
    cuts = [min(total, batch * (batches * i // count)) for i in range(count + 1)]
    if len(cuts) > 2 and total - cuts[-2] < MINIMUM:
        del cuts[-2]
    return [(a, b - a) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]


def run_all(commands: list[tuple[list[str], str, Path]]) -> None:
    """Run commands in parallel: (command, CUDA device, file for its output).

    Prints all output at the end. Raises UserError, which names the first that fails.
    """
    with ExitStack() as stack:
        running = []
        for command, device, log in commands:
            stream = stack.enter_context(log.open("wb"))
            env = environ | {"CUDA_VISIBLE_DEVICES": device}
            running.append(
                subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=env)
            )
        failed = [log for tool, (_, _, log) in zip(running, commands, strict=True) if tool.wait()]
    for _, _, log in commands:
        print(f"--- {log.stem}\n{log.read_text(errors='replace')}", flush=True)
    if failed:
        raise UserError(f"{failed[0].stem} failed; its output is above")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other options (--model and --file among them) go to llama-imatrix as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("--tool", required=True, help="path of llama-imatrix")
    parser.add_argument("--devices", required=True, help="CUDA devices, 0,1,…: a range for each")
    parser.add_argument("--chunks", type=int, default=-1, help="most chunks to take; -1: all")
    parser.add_argument("--ctx-size", type=int, default=512, help="tokens in a chunk")
    parser.add_argument("--batch-size", type=int, default=2048, help="tokens in a batch")
    parser.add_argument(
        "--output-format", choices=("dat", "gguf"), required=True, help="of the matrix"
    )
    parser.add_argument("--output-file", type=Path, required=True, help="the matrix to write")
    args, rest = parser.parse_known_args()

    sizes = ["--ctx-size", str(args.ctx_size), "--batch-size", str(args.batch_size)]
    base = [args.tool, *rest, *sizes]
    batch = max(1, args.batch_size // args.ctx_size)
    devices = args.devices.split(",")
    with tempfile.TemporaryDirectory(dir=args.output_file.parent) as scratch:
        probe = [*base, "--n-gpu-layers", "0", "--output-file", f"{scratch}/probe"]
        total = count_chunks([*probe, "--chunks", str(args.chunks)])
        parts, commands = [], []
        for device, (first, number) in zip(
            devices, ranges(total, batch, len(devices)), strict=False
        ):
            # Sums are exact only in this format; the legacy one holds means.
            part = Path(scratch) / f"chunks-{first}-{first + number - 1}.gguf"
            command = [*base, "--chunk", str(first), "--chunks", str(number)]
            command += ["--output-format", "gguf", "--output-file", str(part)]
            commands.append((command, device, part.with_suffix(".log")))
            parts += ["--in-file", str(part)]
        run_all(commands)
        combine = [args.tool, "--model", "none", *sizes, *parts]
        combine += ["--output-format", args.output_format]
        if subprocess.run([*combine, "--output-file", str(args.output_file)]).returncode:
            raise UserError("llama-imatrix cannot combine the ranges; its output is above")


if __name__ == "__main__":
    program(main)
