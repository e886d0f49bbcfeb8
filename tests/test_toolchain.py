"""llama.cpp: compiled once a machine, or the user's own; else one clear line of error."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
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


def test_objects_are_kept_for_other_tools_unless_they_failed_or_are_of_other_sources(
    tmp_path: Path, monkeypatch
) -> None:
    def compile_there() -> bool:
        """Whether what was compiled is there already."""
        with install_llama_cpp.objects(tmp_path / "home") as work:
            before = (work / "ggml.o").exists()
            (work / "ggml.o").touch()
        return before

    assert not compile_there() and compile_there()
    with pytest.raises(UserError), install_llama_cpp.objects(tmp_path / "home"):
        raise UserError("cmake ended")
    assert not compile_there() and compile_there()
    monkeypatch.setattr(install_llama_cpp, "bundled_tree", lambda: tmp_path / "another")
    assert not compile_there() and compile_there()


# A compiler that tells what it compiles, and stops for ever in the middle of slow.c.
COMPILER = """#!/bin/sh
echo "$@" >> {here}/said
case "$*" in *slow.c.o*)
    if [ -e {here}/stop ]; then
        while [ "$1" != -o ]; do shift; done
        echo half > "$2"
        sleep 600
    fi
esac
exec cc "$@"
"""


def test_a_compile_that_was_killed_goes_on_and_takes_no_half_file(
    tmp_path: Path, monkeypatch
) -> None:
    tree, compiler = tmp_path / "tree", tmp_path / "compiler"
    tree.mkdir()
    lines = ("cmake_minimum_required(VERSION 3.14)", "project(ggml C)")
    (tree / "CMakeLists.txt").write_text(
        "\n".join((*lines, "add_executable(ggml-base quick.c slow.c)"))
    )
    (tree / "quick.c").write_text("int quick(void) { return 7; }")
    (tree / "slow.c").write_text("int quick(void); int main(void) { return quick(); }")
    compiler.write_text(COMPILER.format(here=tmp_path))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(install_llama_cpp, "bundled_tree", lambda: tree)

    def build() -> Path:
        with install_llama_cpp.objects(tmp_path / "home") as work:
            install_llama_cpp.cmake(work, [], ["ggml-base"], 2)
        return work

    def text(file: Path) -> str:
        return file.read_text() if file.exists() else ""

    (tmp_path / "stop").touch()
    child = multiprocessing.get_context("fork").Process(target=lambda: os.setsid() or build())
    child.start()
    objects = tmp_path / "home.objects/CMakeFiles/ggml-base.dir"
    log = tmp_path / "home.objects/.ninja_log"
    try:
        end = time.monotonic() + 60
        while text(objects / "slow.c.o") != "half\n" or "quick.c.o" not in text(log):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    assert text(objects / "slow.c.o") == "half\n"
    (tmp_path / "stop").unlink()
    assert subprocess.run([build() / "ggml-base"]).returncode == 7
    assert (tmp_path / "said").read_text().count("quick.c.o -c") == 1


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
