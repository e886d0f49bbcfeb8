"""llama.cpp: compiled once a machine, or the user's own; else one clear line of error."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import install_llama_cpp
from lib.config.load import load
from lib.errors import UserError
from lib.record.contents import Contents
from lib.record.tools import CONVERTER, LLAMA_TOOLS, bundled_tree, bundled_version, llama_version
from project import leave_wanted


@pytest.fixture
def own(tmp_path: Path, llama_bin: Path) -> Path:
    """A llama.cpp as a user has it: a checkout with its tools in build/bin."""
    (tmp_path / "own/build/bin").mkdir(parents=True)
    for tool in LLAMA_TOOLS:
        (tmp_path / "own/build/bin" / tool).symlink_to((llama_bin / tool).resolve())
    for name in install_llama_cpp.CONVERTER_PARTS:
        (tmp_path / "own" / name).symlink_to(bundled_tree() / name)
    return tmp_path / "own"


def test_the_bundled_tools_are_those_whose_version_stands_in_recipes(llama_bin: Path) -> None:
    said = subprocess.run(
        [llama_bin / "llama-imatrix", "--version"], capture_output=True, text=True
    )
    assert bundled_version().removeprefix("b") in said.stdout + said.stderr


def test_a_second_working_directory_does_not_compile_again(
    toolchain: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(
        install_llama_cpp, "compile_tools", lambda *_: pytest.fail("it compiles again")
    )
    options = {"path": None, "cuda": "off", "portable": False}
    home = install_llama_cpp.compiled(options, bundled_version(), jobs=1)
    assert (toolchain / "bin/llama-quantize").resolve() == (home / "bin/llama-quantize").resolve()


def test_objects_are_kept_for_other_tools_unless_a_compiler_was_stopped_or_has_other_sources(
    tmp_path: Path, monkeypatch
) -> None:
    def compile_there() -> list[str]:
        """What is there already."""
        with install_llama_cpp.objects(tmp_path) as work:
            work.mkdir(exist_ok=True)
            before = [file.name for file in work.iterdir()]
            (work / "ggml.o").touch()
        return before

    assert compile_there() == [] and compile_there() == ["ggml.o"]
    with pytest.raises(KeyboardInterrupt), install_llama_cpp.objects(tmp_path):
        raise KeyboardInterrupt
    assert compile_there() == [] and compile_there() == ["ggml.o"]
    monkeypatch.setattr(install_llama_cpp, "bundled_tree", lambda: tmp_path / "another")
    assert compile_there() == [] and compile_there() == ["ggml.o"]


def test_without_a_compiler_one_line_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(install_llama_cpp, "program_there", lambda name: name != "c++")
    with pytest.raises(UserError) as end:
        install_llama_cpp.compile_tools(tmp_path / "home", [], 1)
    assert "no c++ here; install a C++ compiler" in str(end.value) and "llama_cpp.path" in str(
        end.value
    )


def test_cuda_without_its_compiler_one_line_says_so(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no nvcc on PATH"):
        install_llama_cpp.wants_cuda("on")
    assert not install_llama_cpp.wants_cuda("auto")


def test_a_users_own_build_is_asked_for_its_version_and_used(own: Path, tmp_path: Path) -> None:
    contents = Contents(tmp_path / "contents.json")
    assert llama_version(str(own), contents).startswith(bundled_version())
    options = {"path": str(own), "cuda": "auto", "portable": False}
    wanted = leave_wanted(tmp_path / "wanted.json", {"options": options, "tools": {}})
    command = [sys.executable, install_llama_cpp.__file__, "--recipe", wanted]
    subprocess.run([*map(str, command), "--output", str(tmp_path / "tools")], check=True)
    assert (tmp_path / "tools/bin/llama-quantize").resolve().is_file()
    help_ = subprocess.run(
        [sys.executable, tmp_path / "tools" / CONVERTER, "--help"], capture_output=True, text=True
    )
    assert "--outtype" in help_.stdout


def test_an_own_build_that_lacks_a_tool_is_named_before_anything_runs(own: Path) -> None:
    (own / "build/bin/llama-imatrix").unlink()
    with pytest.raises(UserError) as error:
        load({"llama_cpp": {"path": str(own)}, "models": {}}, own)
    assert f"llama_cpp.path: {own} has no llama-imatrix" in error.value.lines
