"""Which file of a repository llama.cpp's -hf takes: asked of the tool itself, with a local hub."""

import re
import subprocess
from pathlib import Path

import pytest
from hubtest import Workdir
from standin import Hub

from lib.cards.gguf import GgufLines

LORA, MMPROJ, MTP = "M.lora-poet.gguf", "mmproj-M-F16.gguf", "mtp-M-Q8_0.gguf"
BESIDE = [LORA, MMPROJ, MTP, "imatrix.dat"]


def taken(tools: Path, hub: Hub, workdir: Workdir, files: list[str], words: str) -> str | None:
    """The model that llama-completion asks the hub for; None if it finds none."""
    hub.add_repo("acme/M-GGUF", {name: name.encode() for name in files})
    command = [tools / "llama-completion", *words.split(), "--prompt", "x"]
    done = subprocess.run(
        command, cwd=workdir.path, env=workdir.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode, "these are no models"
    asked = [re.search(r"/resolve/\w+/(.+)", route) for _, route, *_ in hub.log]
    return next((found[1] for found in asked if found and found[1] != MMPROJ), None)


@pytest.mark.parametrize(
    ("quants", "tag", "file"),
    [
        (["M-IQ3_XXS.gguf"], "F16", None),  # and not the adapter, whose tensors are of F16
        (["M-IQ3_XXS.gguf"], "Q8_0", None),  # nor the draft
        (["M-static.gguf"], "", "M-static.gguf"),
        (["M-IQ3_XXS.gguf", "M-q4_0.gguf"], "", "M-IQ3_XXS.gguf"),
        (["M-Q8_0.gguf", "M-BF16.gguf"], "", "M-Q8_0.gguf"),
    ],
)
def test_an_adapter_or_projector_is_never_taken_for_the_model(
    toolchain, hub, workdir, quants, tag, file
):
    words = "-hf acme/M-GGUF" + f":{tag}" * bool(tag)
    assert taken(toolchain / "bin", hub, workdir, quants + BESIDE, words) == file


@pytest.mark.parametrize(
    ("form", "quants"),
    [
        ("Q4_K_M", ["M-Q4_K_M.gguf", "M-Q8_0.gguf"]),
        ("F16", ["M-BF16.gguf", "M-F16.gguf"]),
        ("Q4_K_M", ["M-Q4_K_M-mix.gguf", "M-Q4_K_M.gguf"]),
        ("Best-4.8", ["M-Best-4.8.gguf", "M-Q8_0.gguf"]),
    ],
)
def test_the_command_on_a_card_takes_the_file_that_it_is_about(
    toolchain, hub, workdir, form, quants
):
    row = {"form": type("Form", (), {"name": form}), "name": f"M-{form}.gguf", "files": quants}
    row |= {"whole": True, "path": f"M-{form}.gguf"}
    about = {"bases": [], "model": "M", "repos": {}}
    command = GgufLines().run(row, "acme/M-GGUF", about)[1]
    words = command.removeprefix("llama-cli ")
    assert taken(toolchain / "bin", hub, workdir, quants + BESIDE, words) == f"M-{form}.gguf"
