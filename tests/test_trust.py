"""What a stranger's branch may hold, when it is audited: nothing of it is believed or done."""

import argparse
import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import ask_audit
from lib.config.schema import Options
from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.recipe import Record
from lib.run import rederive
from lib.stages import registry  # noqa: F401 - which knows what bytes are bound to
from lib.trust import attest, audit, statements

PATH, FILE = "results/Mix/gguf/Mix-Q4_0.gguf", "Mix-Q4_0.gguf"
CONFIG = b"models: {Mix: {source: org/base, gguf: {quants: [Q4_0]}}}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(path: str, data: bytes, inputs: dict[str, Record], **more) -> Record:
    recipe = {"step": "quantize", "options": {}, "sources": {}, "tools": {}, "code": "0"} | more
    recipe["inputs"] = {role: up.digest for role, up in inputs.items()}
    known = {role: up.sha256 for role, up in inputs.items()}
    digest = recipes.digest(recipe)
    return Record(path, recipe, digest, len(data), sha256(data), {}, known)


def branch(top: Path, path: str = PATH, change=None, release=None, name="Mix-BF16.gguf", **more):
    """A branch that nobody signed, of a quant and the conversion that it is made from; checked.

    path: the quant's when it was made. change, release: change the statement of the conversion,
    and of the release. name: of the conversion's file. more: files, `_` for each dot in a name.
    """
    source = {"model base": {"hub": "org/base", "commit": "0" * 40}}
    bf16 = record("results/Mix/gguf/Mix-BF16.gguf", b"bf16", {}, step="convert", sources=source)
    of_bf16 = statements.provenance(bf16, {}, "anywhere")
    if change:
        change(of_bf16)
        said = of_bf16["predicate"]["buildDefinition"]["internalParameters"]
        bf16.digest = said["recipe"] if isinstance(said["recipe"], str) else "0"
    quant = record(path, b"q4", {"gguf": bf16})
    of_quant = statements.provenance(quant, {"gguf": bf16}, "anywhere")
    files = {FILE: b"q4", name: b"bf16", rederive.CONFIG: CONFIG}
    files |= {file.replace("_", "."): data for file, data in more.items()}
    files[attest.name_of(path)] = json.dumps(of_quant).encode()
    files[attest.name_of(bf16.artifact)] = json.dumps(of_bf16).encode()
    said = statements.release("org/Mix", "main", {n: sha256(d) for n, d in files.items()}, {})
    if release:
        release(said)
    files[attest.RELEASE] = json.dumps(said).encode()
    for file, data in files.items():
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_bytes(data)
    found = ask_audit.directory(top, None, [])
    found.check()
    return found


@pytest.mark.parametrize(
    "path",
    [
        "--default-resources=x=__import__('os').system('id')",  # Snakemake would run it
        FILE,  # lies there already: nothing would be made, and it would be "identical"
        "results/../copy/Mix-Q4_0.gguf",
        "results/Mix/\x1b[2J.gguf",
    ],
)
def test_what_is_to_be_made_lies_where_artifacts_lie(tmp_path, path):
    assert not branch(tmp_path / "good").faults
    assert branch(tmp_path / "bad", path).faults


def built(monkeypatch, tmp_path, found: audit.Branch, words: list[str], makes: dict[str, Record]):
    """What `rederive` says, where a build makes these: {path: record}, of bytes q4 or bf16."""

    def build(arguments, config, directory, scratch, *more, takes):
        for path, made in makes.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(b"q4" if "Q4" in path else b"bf16")
            monkeypatch.chdir(scratch)
            recipes.write(made)
            monkeypatch.chdir(tmp_path)
        return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rederive, "build", build)
    rows = rederive.rederive({"main": found}, words, argparse.Namespace())
    return {row.file: row.text for row in rows}


def test_nothing_is_written_through_a_link_to_what_is_audited(tmp_path, monkeypatch):
    """A published file, or one of the working directory, may be called as a file of the audit."""
    found = branch(tmp_path / "copy", name="audit.json")
    (tmp_path / "audit.json").write_text("mine")
    for words in (["Q4_0"], ["all"]):
        built(monkeypatch, tmp_path, found, words, {})
        assert (tmp_path / "copy/audit.json").read_bytes() == b"bf16"
        assert (tmp_path / "audit.json").read_text() == "mine"


def test_the_same_bytes_of_another_source_are_no_proof_of_the_statement(tmp_path, monkeypatch):
    """The config is published too: it may make the files from something else than is attested."""
    found = branch(tmp_path / "copy")
    said = {"model base": {"hub": "org/base", "commit": "0" * 40}}
    for sources, text in (
        (said, "identical"),
        ({"model base": {"hub": "org/evil", "commit": "0" * 40}}, rederive.OTHERWISE),
    ):
        bf16 = record("results/Mix/gguf/Mix-BF16.gguf", b"", {}, step="convert", sources=sources)
        makes = {bf16.artifact: bf16, PATH: record(PATH, b"", {"gguf": bf16})}
        assert built(monkeypatch, tmp_path, found, ["all"], makes)[FILE] == text


@pytest.mark.parametrize(
    "config",
    [
        b"models: {Mix: &a {source: o/b, gguf: {quants: [Q4_0]}, x: *a}}",
        b"models: {Mix: {source: 2020-01-01, gguf: {quants: [Q4_0]}}}",
        b"models: " + b"[" * 20_000,
        b"models: {Other: {}}",
        b"models: {Mix: {gguf: null}}",
        b"models: {Mix: {gguf: {quants: [5]}}}",
        b"models: {Mix: {gguf: {quants: [Q8_0]}}}",
    ],
)
def test_a_config_that_is_none_is_said_in_a_line(tmp_path, monkeypatch, config):
    found = branch(tmp_path / "copy", **{"recipes/config_yaml": config})
    with pytest.raises(UserError, match=rf"^rederive: {rederive.CONFIG} [^\n]*$"):
        built(monkeypatch, tmp_path, found, ["Q4_0"], {})


def test_a_statement_does_not_excuse_what_comes_out_the_same_anywhere(tmp_path):
    """Whoever writes a lie can write beside it that it cannot be made again."""

    def excuse(said):
        build = said["predicate"]["buildDefinition"]
        build["internalParameters"]["bound"] = "not reproducible"

    bf16 = "results/Mix/gguf/Mix-BF16.gguf"
    assert audit.where_again(bf16, branch(tmp_path, change=excuse).provenances) == ""


def internal(key, value):
    def change(said):
        said["predicate"]["buildDefinition"]["internalParameters"][key] = value

    return change


def identity(value):
    def change(said):
        build = said["predicate"]["buildDefinition"]
        build["resolvedDependencies"][0]["annotations"]["identity"] = value
        build["internalParameters"]["recipe"] = recipes.digest(statements.recipe_of(said))

    return change


ODD = [
    *(internal("machine", value) for value in ("x", [1], {"cpu": 5})),
    *(internal("accepted", value) for value in (5, "x", [5], [{}], [{"digest": []}])),
    internal("recipe", [1]),
    *(identity(value) for value in (5, None, {"hub": "a/b", "commit": 5})),
    lambda said: said["subject"][0].update(annotations=[]),
    lambda said: said["subject"][0].update(annotations={"bytes": float("nan")}),
]


@pytest.mark.parametrize("change", ODD)
def test_a_statement_of_odd_types_is_a_fault(tmp_path, capsys, change):
    found = branch(tmp_path, change=change)
    ask_audit.show({"main": found}, [])
    assert any("is no in-toto statement" in fault.text for fault in found.faults)


@pytest.mark.parametrize("change", [{"predicate": []}, {"predicate": None}, {"x": "\ud800"}])
def test_a_release_of_odd_types_is_a_fault(tmp_path, change):
    found = branch(tmp_path, release=lambda said: said.update(change))
    assert found.release is None and found.faults[0].file == attest.RELEASE


def test_a_release_names_branches_in_a_mapping(tmp_path):
    found = branch(tmp_path, release=lambda said: said["predicate"].update(branches=["x"]))
    assert found.release is None
    assert not list(audit.main_faults(found, {}))


def test_a_record_nested_without_end_is_a_fault(tmp_path):
    found = branch(tmp_path, **{"recipes/x_recipe_json": b"[" * 100_000})
    assert [fault.file for fault in found.faults] == ["recipes/x.recipe.json"]


def test_a_statement_larger_than_memory_is_not_read(tmp_path):
    branch(tmp_path)
    with (tmp_path / attest.RELEASE).open("r+b") as file:
        file.truncate(audit.LARGEST + 1)
    found = ask_audit.directory(tmp_path, None, [])
    found.check()
    assert "is larger" in found.faults[0].text


def run(tmp_path, monkeypatch, capsys, **options):
    """The status of the program, and what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(options))
    session = SimpleNamespace(options=Options.model_validate(options), raw=options)
    monkeypatch.setattr(ask_audit, "open_session", lambda config: session)
    words = ["ask_audit.py", "--config", "config.json", "--snakefile", "none"]
    monkeypatch.setattr("sys.argv", words)
    return ask_audit.main(), capsys.readouterr().out


def test_a_signers_name_is_no_escape_sequence_and_the_release_says_of_what(
    tmp_path, monkeypatch, capsys
):
    branch(tmp_path / "copy")
    release = tmp_path / "copy" / attest.RELEASE
    payload = base64.b64encode(release.read_bytes()).decode()
    signatures = [{"keyid": "\x1b[2J", "sig": ""}]
    release.write_text(json.dumps({"payload": payload, "signatures": signatures}))
    status, said = run(tmp_path, monkeypatch, capsys, dir="copy")
    assert status is None and "\x1b" not in said and " of org/Mix, branch main\n" in said


def test_an_option_without_a_value_is_not_left_out(tmp_path, monkeypatch, capsys):
    """`expect=$DIGEST` of a variable that is not set must not pass for a check."""
    branch(tmp_path / "copy")
    for word in ("expect", "key"):
        with pytest.raises(UserError, match=f"^{word}: nothing stands after {word}=$"):
            run(tmp_path, monkeypatch, capsys, dir="copy", **{word: None})


def test_what_a_walk_would_not_see_is_refused_in_a_directory(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.safetensors").write_bytes(b"evil")
    branch(tmp_path / "copy")
    for target in ("elsewhere", "nothing"):
        (tmp_path / "copy/link").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match="copy/link is a link to a directory or to nothing"):
            ask_audit.directory(tmp_path / "copy", None, [])
        (tmp_path / "copy/link").unlink()
    (tmp_path / "copy" / FILE).rename(tmp_path / "blob")
    (tmp_path / "copy" / FILE).symlink_to(tmp_path / "blob")  # as in the hub's cache
    found = ask_audit.directory(tmp_path / "copy", None, [])
    found.check()
    assert not found.faults


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [("folder", 0, "folder"), ("folder", 0o744, "folder/file"), ("folder/file", 0, "folder/file")],
)
def test_what_may_not_be_read_is_not_passed_over(name, mode, said):
    """Another user may read it, and load what is in it."""
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        branch(Path(top, "copy"))
        Path(top, "copy/folder").mkdir()
        Path(top, "copy/folder/file").write_bytes(b"evil")
        Path(top, "copy", name).chmod(mode)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=f"dir: .*copy/{said}: Permission denied"):
                ask_audit.directory(Path(top, "copy"), None, [])
        finally:
            os.seteuid(0)


def test_on_the_hub_no_folder_is_left_out(tmp_path):
    hashes = {name: sha256(b"x") for name in (".cache/evil.gguf", ".git/x", ".gitattributes")}
    for repo, seen in (("org/Mix", {".cache/evil.gguf", ".git/x"}), (None, {".cache/evil.gguf"})):
        assert audit.Branch(repo, None, dict(hashes), tmp_path.joinpath).hashes.keys() == seen
