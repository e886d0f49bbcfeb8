"""Measure a model for EXL2, or quantize it to EXL2, with exllamav2's own converter.

The converter resumes any job that it finds in its work directory, and exits with status 0 on many
errors (seen in 0.3.2). So a work directory belongs to one recipe, and this program checks the files
that were written instead of the status. To be run in resources/environments/exllamav2.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.exllamav2 import (
    ENVIRONMENT,
    check_measurement,
    check_quantized,
    layer_count,
    make_view,
)

JOB = "job_new.json"
DIGEST = "recipe-digest"
# How the converter marks an error, and how Python does.
COMPLAINT = re.compile(r" (##|\*\*) |[\w.]*(Error|Exception)\b")


def open_work(work: Path, digest: str, paths: dict[str, str | None]) -> bool:
    """Make the directory `work` ready for the recipe `digest`; whether a job in it can be resumed.

    Only an interrupted job of the same recipe can be. Its paths are replaced by `paths`, {key of
    the job file: path}. Anything else in the directory is deleted.
    """
    try:
        same = (work / DIGEST).read_text(encoding="utf-8") == digest
        job = json.loads((work / JOB).read_text(encoding="utf-8"))
        # "invalid": killed while its checkpoint was replaced. "finished": it would write nothing.
        going_on = same and "invalid" not in job and job["progress"] != "finished"
    except (OSError, ValueError, KeyError, TypeError):
        going_on = False
    if going_on:
        shutil.rmtree(work / "model", ignore_errors=True)
        if "cal_filename" in job:
            paths = paths | {"cal_filename": str(work / "cal_data.safetensors")}
        (work / JOB).write_text(json.dumps(job | paths), encoding="utf-8")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / DIGEST).write_text(digest, encoding="utf-8")
    return going_on


def check_parquet(file: Path) -> None:
    """Raises UserError unless `file` begins and ends with the magic bytes of a parquet file."""
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
            stream.seek(-4, os.SEEK_END)
            if (magic, stream.read(4)) == (b"PAR1", b"PAR1"):
                return
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    raise UserError(f"{file}: not a parquet file, or cut off")


def convert(arguments: list[str]) -> str:
    """Run exllamav2's converter and print its output; the last error that it printed, or ""."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "exllamav2.conversion.convert_exl2", *arguments],
        stdin=subprocess.DEVNULL,  # on an interrupt it asks what to do
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | ENVIRONMENT,
        preexec_fn=_die_with_parent,
    )
    complaint = ""
    for line in child.stdout:
        print(line, end="", flush=True)
        if COMPLAINT.match(line):
            complaint = line.strip(" #*\n")
    status = child.wait()
    return complaint or (f"it ended with status {status}" if status else "")


def _die_with_parent() -> None:
    """Let the converter end with this process, or it would write into the next try's directory.

    Linux only.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def options(args: argparse.Namespace) -> list[str]:
    """The converter's command line options that change the result."""
    flags = {
        "--measurement_rows": args.measurement_rows,
        "--measurement_length": args.measurement_length,
        "--rope_scale": args.rope_scale,
        "--rope_alpha": args.rope_alpha,
    }
    if args.step == "quantize":
        flags |= {
            "--bits": args.bits,
            "--head_bits": args.head_bits,
            "--dataset_rows": args.rows,
            "--length": args.length,
            "--shard_size": args.shard_size,
            "--measurement": args.measurement,
        }
    return [
        str(word) for flag, value in flags.items() if value is not None for word in (flag, value)
    ]


def run(args: argparse.Namespace) -> None:
    """Measure or quantize, and check what was written. Raises UserError, OSError."""
    view, work, output = args.work / "model", args.work, str(args.output)
    measuring = args.step == "measure"
    if not measuring and args.output.is_dir() and any(args.output.iterdir()):
        raise UserError(f"{output}: not empty; the converter would write between the files there")
    if importlib.util.find_spec("exllamav2") is None:
        raise UserError("this Python has no exllamav2; run it by resources/environments/exllamav2")
    going_on = open_work(
        work,
        args.recipe_digest,
        {
            "in_dir": str(view),
            "cal_dataset": str(args.calibration) if args.calibration else None,
            "output_measurement": output if measuring else None,
            "compile_full": None if measuring else output,
        },
    )
    make_view(args.model, view)
    layers = layer_count(json.loads((view / "config.json").read_text(encoding="utf-8")))
    if not measuring:
        check_measurement(args.measurement, layers)
    command = ["--in_dir", str(view), "--out_dir", str(work), *options(args)]
    command += ["--output_measurement" if measuring else "--compile_full", output]
    if args.calibration:
        check_parquet(args.calibration)
        command += ["--cal_dataset", str(args.calibration)]
    print(
        f"exl2_convert: {'going on with the interrupted job' if going_on else 'a new job'}",
        flush=True,
    )

    complaint = convert(command)
    try:
        if measuring:
            check_measurement(args.output, layers)
        else:
            check_quantized(args.output, view, args.bits)
    except UserError as error:
        raise UserError(
            f"{error}; exllamav2's converter said: {complaint or 'nothing of an error'}"
        ) from None
    shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", type=Path, required=True, help="model directory: safetensors, tokenizer.json"
    )
    common.add_argument(
        "--work", type=Path, required=True, help="work directory that no other step uses"
    )
    common.add_argument(
        "--recipe-digest",
        required=True,
        help="any text that names the recipe; an interrupted job of the same is resumed",
    )
    common.add_argument(
        "--calibration",
        type=Path,
        help="calibration text, .parquet with a column of text (default: exllamav2's own set)",
    )
    common.add_argument(
        "--measurement-rows",
        type=int,
        help="rows to measure on; exllamav2's own set has its own number",
    )
    common.add_argument("--measurement-length", type=int, help="tokens in a row to measure on")
    common.add_argument("--rope-scale", type=float, help="factor of linear RoPE scaling")
    common.add_argument("--rope-alpha", type=float, help="alpha of NTK RoPE scaling")

    measure = steps.add_parser(
        "measure", parents=[common], help="measure the error of each layer at each precision"
    )
    measure.add_argument("--output", type=Path, required=True, help="measurement.json to write")

    quantize = steps.add_parser("quantize", parents=[common], help="make a model directory in EXL2")
    quantize.add_argument("--output", type=Path, required=True, help="directory to make")
    quantize.add_argument(
        "--measurement", type=Path, required=True, help="measurement.json that `measure` wrote"
    )
    quantize.add_argument("--bits", type=float, required=True, help="bits per weight, 2 to 8")
    quantize.add_argument(
        "--head-bits", type=int, choices=(2, 3, 4, 5, 6, 8), help="bits of the output tensor"
    )
    quantize.add_argument(
        "--rows", type=int, help="calibration rows; exllamav2's own set has its own number"
    )
    quantize.add_argument("--length", type=int, help="tokens in a calibration row")
    quantize.add_argument("--shard-size", type=float, help="largest shard in MiB; 0: one file")
    args = parser.parse_args()
    run(args)


if __name__ == "__main__":
    program(main)
