"""Check a projector of a multimodal model: its tensors, and that llama.cpp reads with it.

The converter can write a header and no tensors with status 0 (llama.cpp issues 22656, 24235). So
every layer of a tower that the header counts must be there, and something that leads from the tower
into the text model; no tensor may hold NaN or Inf. llama-mtmd-cli then reads an image, or a sound,
with it and the text model. It is none of the tools that make files: it is compiled once a machine,
with llama-bench; a llama.cpp of the user's own may lack it, which is noted.
"""

import json
import re
import struct
import subprocess
import tempfile
import wave
import zlib
from pathlib import Path

from gguf_speed import tool_to_try
from lib.errors import UserError, program
from lib.flags.trial import trial_parser
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.gguf_values import check_finite

TOOL = "llama-mtmd-cli"
TOWERS = {"vision": "v", "audio": "a"}
IN_TOWER = re.compile(r"[va]\.")
# Pixels a side. Towers that take any size want a few patches, whose sides are 14 to 32 pixels.
SIDE = 224


def check_tensors(file: GgufFile) -> list[str]:
    """The towers that a projector has (of TOWERS). Raises UserError for the first fault."""
    facts, names = file.metadata, [tensor.name for tensor in file.tensors]
    if facts.get("general.architecture") != "clip":
        raise UserError(f"{file.path}: this is no projector")
    towers = [tower for tower in TOWERS if facts.get(f"clip.has_{tower}_encoder")]
    if not towers:
        raise UserError(f"{file.path}: its header names neither a vision nor an audio tower")
    for tower in towers:
        letter, count = TOWERS[tower], facts.get(f"clip.{tower}.block_count", 0)
        layers = {
            int(found[1]) for n in names if (found := re.match(rf"{letter}\.blk\.(\d+)\.", n))
        }
        if missing := set(range(count)) - layers:
            said = f"layer {min(missing)} of the {count} of its {tower} tower has no tensor"
            raise UserError(f"{file.path}: {said}, and the file {len(names)} in all")
    if all(map(IN_TOWER.match, names)) and not any("proj" in name for name in names):
        raise UserError(f"{file.path}: nothing in it leads from its tower into the text model")
    return towers


def read_media(file: GgufFile, tower: str, tool: Path, model: Path, threads: int) -> bool:
    """Whether llama-mtmd-cli reads an image or a sound; False of a model that only speaks.

    Raises UserError if it fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        media = Path(directory, "media.png" if tower == "vision" else "media.wav")
        write_image(media) if tower == "vision" else write_sound(media)
        command = [tool, "--model", model, "--mmproj", file.path, "--threads", threads]
        command += [f"--{'image' if tower == 'vision' else 'audio'}", media, "--prompt", "What?"]
        # The towers of some models want a template that their text model lacks.
        command += ["--chat-template", "chatml", "--ctx-size", 8192, "--n-predict", 1, "--temp", 0]
        done = subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    print(done.stderr)
    if "does not support chat mode" in done.stderr:
        return False
    if done.returncode:
        errors = re.findall(r"^[\d.]+ E (.*)", done.stderr, re.MULTILINE)
        why = errors[0] if errors else f"status {done.returncode}"
        raise UserError(f"{file.path}: {TOOL} cannot read {media.name} with it: {why}")
    return True


def write_image(path: Path) -> None:
    """Write a PNG of colours that run into each other."""
    rows = (b"\0" + bytes(v for x in range(SIDE) for v in (x, y, x * y % 256)) for y in range(SIDE))
    header = struct.pack(">2I5B", SIDE, SIDE, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    parts = {b"IHDR": header, b"IDAT": zlib.compress(b"".join(rows)), b"IEND": b""}
    for kind, part in parts.items():
        data += struct.pack(">I", len(part)) + kind + part
        data += struct.pack(">I", zlib.crc32(kind + part))
    path.write_bytes(data)


def write_sound(path: Path) -> None:
    """Write two seconds of a sawtooth, 16,000 samples of 16 bits a second."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"".join(struct.pack("<h", n * 200 % 20000) for n in range(32000)))


def main() -> None:
    words = "mmproj", "projector", "text model", "towers, parameters, read"
    args = trial_parser(__doc__, *words).parse_args()
    file = read_gguf(args.mmproj)
    towers = check_tensors(file)
    check_finite(file)
    tool = tool_to_try(TOOL, args.llama_cpp, args.threads)
    is_read = tool is not None and all(
        read_media(file, tower, tool, args.model, args.threads) for tower in towers
    )
    parameters = sum(tensor.elements for tensor in file.tensors)
    found = {"towers": towers, "parameters": parameters, "read": is_read}
    print(f"{args.mmproj}: {found}")
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
