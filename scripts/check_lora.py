"""Check a LoRA adapter: what llama.cpp could not apply, and what the finished file does.

Without --lora only the adapter's own directory is judged, by what its config asks for and by the
shapes of the model's tensors. With it, the GGUF that was made of the adapter: no tensor may hold
NaN or Inf, and llama-perplexity, which compares all shapes as it loads it, must find other logits
for a text than without it.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.formats import lora_adapter
from lib.formats.gguf_file import read_gguf
from lib.formats.gguf_values import check_finite
from lib.formats.json_file import read_json
from lib.formats.weights import read_weights

TEXT = "An adapter changes what a model finds probable, and so its logits for this text. " * 40


def check_adapter(adapter: Path, model: Path) -> None:
    """Raise UserError if llama.cpp cannot apply an adapter, or if it is for another model.

    model: its directory.
    """
    wrong = lora_adapter.fault(adapter)
    if wrong := wrong or lora_adapter.misfit(adapter, read_weights(model).tensors):
        raise UserError(f"{adapter} {wrong}")


def logits(tool: Path, gguf: Path, lora: list[Path], threads: int) -> bytes:
    """The logits of TEXT as llama-perplexity stores them. Raises UserError if it fails."""
    with tempfile.TemporaryDirectory() as directory:
        text, found = Path(directory, "text"), Path(directory, "logits")
        text.write_text(TEXT)
        command = [tool, "--model", gguf, "--file", text, "--ctx-size", 64, "--chunks", 1]
        command += ["--kl-divergence-base", found, "--threads", threads]
        command += [word for path in lora for word in ("--lora", path)]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, encoding="utf-8", errors="replace"
        )
        print(done.stderr)
        if done.returncode or not found.is_file():
            lines = [line for line in done.stderr.splitlines() if "lora" in line or "error" in line]
            why = lines[-1] if lines else f"status {done.returncode}"
            raise UserError(f"{(lora or [gguf])[0]}: {tool.name} fails: {why}")
        return found.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="directory of the adapter, as peft saves it")
    parser.add_argument("--model", type=Path, required=True, help="the model's directory")
    parser.add_argument("--lora", type=Path, help="GGUF made of the adapter")
    parser.add_argument("--gguf", type=Path, help="the model's unquantized GGUF")
    parser.add_argument("--perplexity-tool", type=Path, help="path of llama-perplexity")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write: {tensors, parameters}, and of an rsLoRA alpha: that of the GGUF",
    )
    args = parser.parse_args()
    check_adapter(args.adapter, args.model)
    if args.lora is None:
        return
    file = read_gguf(args.lora)
    check_finite(file)
    with_it, without = (
        logits(args.perplexity_tool, args.gguf, lora, args.threads) for lora in ([args.lora], [])
    )
    if with_it == without:
        raise UserError(f"{args.adapter} changes nothing: all logits are those of the model alone")
    parameters = sum(tensor.elements for tensor in file.tensors)
    found = {"tensors": len(file.tensors), "parameters": parameters}
    if read_json(args.adapter / lora_adapter.CONFIG).get("use_rslora"):
        found["alpha"] = file.metadata["adapter.lora.alpha"]
    print(f"{args.lora}: {found}")
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
