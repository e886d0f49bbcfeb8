"""Check a draft: the layers of a model for multi-token prediction (MTP), in a GGUF of their own.

Every such layer that the header counts must have tensors, and something that leads into them; no
tensor may hold NaN or Inf. llama-server then writes a text with the model and the draft, and the
draft must have guessed tokens of it: how many were right is no matter of the file. llama-server is
none of the tools that make files: it is compiled once a machine, with llama-bench; a llama.cpp of
the user's own may lack it, which is noted.
"""

import json
import re
import socket
import subprocess
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

from gguf_speed import tool_to_try
from lib.errors import UserError, program
from lib.flags.trial import trial_parser
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.gguf_values import check_finite

TOOL = "llama-server"
GUESSED = re.compile(r"draft acceptance = .*?(\d+) accepted / +(\d+) generated")
ASKED = {"prompt": "def main():", "n_predict": 32, "temperature": 0, "cache_prompt": False}


def check_tensors(file: GgufFile) -> int:
    """The number of MTP layers in a draft. Raises UserError for the first fault."""
    facts, names = file.metadata, [tensor.name for tensor in file.tensors]
    kind = facts.get("general.architecture")
    layers = facts.get(f"{kind}.nextn_predict_layers", 0)
    if not layers:
        raise UserError(f"{file.path}: its header counts no layers for multi-token prediction")
    last = facts[f"{kind}.block_count"]
    there = {int(found[1]) for name in names if (found := re.match(r"blk\.(\d+)\.", name))}
    if missing := set(range(last - layers, last)) - there:
        said = f"layer {min(missing)}, of {layers} for multi-token prediction, has no tensor"
        raise UserError(f"{file.path}: {said}")
    if not any("nextn.eh_proj" in name for name in names):
        raise UserError(f"{file.path}: nothing in it leads from the model into its layers")
    return layers


def guessed(draft: Path, tool: Path, model: Path, threads: int) -> tuple[int, int]:
    """Tokens that llama-server guessed by the draft, and how many of them the model would write.

    Raises UserError if it fails, or guesses none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tool, "--model", model, "--spec-draft-model", draft, "--spec-type", "draft-mtp"]
    command += ["--host", "127.0.0.1", "--port", port, "--ctx-size", 512, "--parallel", 1]
    command += ["--threads", threads, "--no-warmup"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        server = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while server.poll() is None and not answers(port, "GET", "/health"):
                time.sleep(0.2)
            # Whether the text is words, is no matter of the draft.
            answers(port, "POST", "/completion", json.dumps(ASKED))
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        said = log.read()
    print(said)
    found = GUESSED.findall(said)
    if not found or not int(found[-1][1]):
        errors = re.findall(r"^[\d.]+ E (.*)", said, re.MULTILINE)
        why = errors[0] if errors else "it guesses no token"
        raise UserError(f"{draft}: {TOOL} cannot use it as the draft of {model.name}: {why}")
    right, made = map(int, found[-1])
    return made, right


def answers(port: int, method: str, path: str, body: str | None = None) -> bool:
    """Whether a server answers that all is well."""
    try:
        asked = HTTPConnection("127.0.0.1", port)
        asked.request(method, path, body, {"Content-Type": "application/json"})
        return asked.getresponse().status == 200
    except OSError:
        return False


def main() -> None:
    words = "draft", "draft", "model", "layers, parameters, guessed, right"
    args = trial_parser(__doc__, *words).parse_args()
    file = read_gguf(args.draft)
    layers = check_tensors(file)
    check_finite(file)
    tokens = None, None
    if tool := tool_to_try(TOOL, args.llama_cpp, args.threads):
        tokens = guessed(args.draft, tool, args.model, args.threads)
    found = {"layers": layers, "parameters": sum(tensor.elements for tensor in file.tensors)}
    found |= dict(zip(("guessed", "right"), tokens, strict=True))
    print(f"{args.draft}: {found}")
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
