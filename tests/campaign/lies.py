"""Tools that do not tell the truth: they end well and made nothing, or a half, or something else.

In a built project one artifact is deleted, and the tool that makes it lies. The run must fail, name
the artifact and leave nothing of it; with the true tool back, the same command must give the bytes
that were there before.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import fresh
from campaign import Case
from campaign.builds import last_line
from lib.record.layout import building_directory
from project import EVERYTHING, Project, copy_workflow, sha256

# {artifact of the project: the tool that makes it}.
MADE = {
    "results/Mix/gguf/Mix-mixed.gguf": "llama-quantize",
    "results/Mix/imatrix.dat": "llama-imatrix",
    "results/Mix/shards/Q8_0": "llama-gguf-split",
    "results/Mix/evaluation/mixed.json": "llama-perplexity",
    "results/Mix/gguf/Mix-BF16.gguf": "convert.py",
    "results/Two/safetensors": "merge.py",
}
# Those of further models, which are built once each lie was told of the former.
MORE = {
    "results/Seeing/gguf/mmproj-Seeing-F16.gguf": "convert.py",
    "results/Plain/gguf/Plain.lora-poet.gguf": "convert_lora_to_gguf.py",
    "results/Mixed/safetensors": "moe.py",
    "results/Told/lora/prose": "extract_lora.py",
}
ANOTHER = "results/Plain/gguf/Plain-BF16.gguf"
# What is done once the tool has ended well; $out is the largest file that it made.
OF_FILES = {
    "status 0 and no file": 'rm -rf "$OUT"',
    "status 0 and an empty file": ': >"$out"',
    "status 0 and half of the file": 'truncate --size=$((size / 2)) "$out"',
    "status 0 and the last bytes missing": 'truncate --size=-100 "$out"',
    "status 0 and a half that was never written": (
        'truncate --size=$((size / 2)) "$out"; truncate --size=$size "$out"'
    ),
    "status 0 and NaN": (
        "tr '\\0' '\\377' </dev/zero | head -c 4096 |"
        'dd of="$out" bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null'
    ),
    "status 0, and more output afterwards": '(sleep 6; printf x) >>"$out" 2>/dev/null &',
}
OF_ALL = {"status 1 and a good file": "exit 1", "killed after a good file": "kill -9 $$"}
EARLY = "status 0 in the middle"
OTHER = "status 0 and another model's file"
# What cannot be told from what a tool may well have made: sums of squares and weights may be 0.
UNKNOWN = {
    (tool, "status 0 and a half that was never written") for tool in ("llama-imatrix", "merge.py")
}
CONVERTED = "results/Mix/gguf/Mix-BF16.gguf"


def cases(random: Random, work: Path) -> Iterator[Case]:
    project = Project.create(work / "project")
    project.repository = copy_workflow(work / "workflow")
    lie = work / "lie.sh"
    lie.write_text("")
    wrap(project, lie)
    project.build()
    yield from each(random, project, lie, MADE)
    for name in ("Mixed", "Told", "Seeing"):
        project.config["models"][name] = EVERYTHING["models"][name]
    project.model("Plain")["gguf"] |= {"lora": {"poet": "./m/poet"}}
    project.build()
    yield from each(random, project, lie, MORE)
    while True:
        yield from each(random, project, lie, MADE | MORE)


def each(random: Random, project: Project, lie: Path, tools: dict[str, str]) -> Iterator[Case]:
    """Each lie about each of these artifacts, in any order. tools: {artifact: its tool}."""
    todo = [(made, kind) for made, tool in tools.items() for kind in kinds(made, tool)]
    random.shuffle(todo)
    for made, kind in todo:
        yield Case(f"{tools[made]}: {kind}", told(project, lie, made, tools[made], kind))


def kinds(made: str, tool: str) -> list[str]:
    """The lies that a tool can tell of an artifact."""
    if tool == "llama-perplexity":  # what it writes is read as it comes
        return [EARLY, *OF_ALL]
    found = [kind for kind in (*OF_FILES, *OF_ALL) if (tool, kind) not in UNKNOWN]
    return [*found, OTHER] if made == CONVERTED else found


def wrap(project: Project, lie: Path) -> None:
    """Put a wrapper before each tool, which runs `lie` afterwards: a shell script, empty for now.

    $tool is the tool's name there, $OUT what the step is to make.
    """
    frame = project.repository / "scripts/step.sh"
    old = '\n    "$QM_PYTHON" "$QM_SCRIPTS/$1" "${@:2}"\n'
    new = f'{old.rstrip()} || return $?\n    tool=$1 bash "{lie}"\n'
    assert old in (text := frame.read_text())
    frame.write_text(text.replace(old, new))
    project.build("resources/llama.cpp")
    for path in (project / "resources/llama.cpp/bin").iterdir():
        real = path.resolve()
        path.unlink()
        lines = [f'case "$*" in *--dry-run*) exec "{real}" "$@";; esac']
        lines += [f'if [ -s "{lie}" ] && grep -q early "{lie}"; then']
        lines += [f'    "{real}" "$@" & sleep 0.5; kill -9 $! && exit 0', "fi"]
        lines += [f'"{real}" "$@" || exit $?', f'tool={path.name} exec bash "{lie}"']
        path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        path.chmod(0o755)
    converter = project / "resources/llama.cpp/convert_lora_to_gguf.py"
    real = converter.resolve()
    converter.unlink()
    converter.write_text(
        "import os, subprocess, sys\n"
        f"status = subprocess.call([sys.executable, {str(real)!r}, *sys.argv[1:]])\n"
        f"os.environ['tool'] = {converter.name!r}\n"
        f"sys.exit(status or subprocess.call(['bash', {str(lie)!r}]) % 256)\n"
    )


def told(project: Project, lie: Path, made: str, tool: str, kind: str) -> str | None:
    """One lie about one artifact; what does not hold."""
    artifact = project / made
    before = bytes_of(artifact)
    shutil.rmtree(artifact) if artifact.is_dir() else artifact.unlink()
    where = building_directory(made)
    about = f'[ "$tool" = {tool} ] && [ "${{OUT%/*/*}}" = {where} ] || exit 0'
    largest = """find "$OUT" -type f -printf '%s %p\\n' | sort -rn | head -1 | cut -d' ' -f2-"""
    size = '[ -z "$out" ] || size=$(stat -c %s "$out")'
    special = {EARLY: "# early", OTHER: f'cp "{project / ANOTHER}" "$out"'}
    what = {**special, **OF_FILES, **OF_ALL}[kind]
    lie.write_text("\n".join([about, f"out=$({largest})", size, what, ""]))
    try:
        done = fresh.snakemake(project.words(made))
    finally:
        lie.write_text("")
    output = done.stdout
    if not done.returncode:
        return f"it was believed: {last_line(output)}"
    if f"FAILED  {made}" not in output:
        return f"the artifact is not named: {last_line(output)}"
    if "Traceback" in output and "mergekit" not in output:
        return f"a traceback: {last_line(output)}"
    if artifact.exists():
        return "the artifact is there"
    again = fresh.snakemake(project.words(made))
    if again.returncode:
        return f"the next run does not go on: {last_line(again.stdout)}"
    if bytes_of(artifact) != before:
        return "the next run makes other bytes"
    return None


def bytes_of(artifact: Path) -> dict[str, str]:
    """{file of an artifact: its sha256}."""
    files = artifact.rglob("*") if artifact.is_dir() else [artifact]
    return {p.name: sha256(p) for p in files if p.is_file() and not p.name.startswith(".")}
