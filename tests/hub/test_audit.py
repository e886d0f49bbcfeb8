"""`snakemake audit` of what was really built and published: each tampering is found and named."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format
from hubtest import environment
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from standin import Hub

import fresh
from lib.record.digests import sha256_of
from lib.trust import audit, keys, statements
from lib.trust.attest import RELEASE
from project import Project, words
from test_keys import make_pair

REPO = "acme/Mix-GGUF"
Q4, Q8, BF16 = "Mix-Q4_0.gguf", "Mix-Q8_0.gguf", "Mix-BF16.gguf"


class Published:
    """A project, the stand-in hub it was published on, and a copy of its repository as files."""

    def __init__(self, project: Project, hub: Hub, key: Path, public: Path, directory: Path):
        self.project, self.hub, self.key, self.public = project, hub, key, public
        self.directory = directory
        self.env = environment(hub, project.path / "hf") | {"HF_TOKEN": "hf_alice"}

    def run(self, *arguments: str, status: int = 0, here: Path | None = None) -> str:
        """Run Snakemake on the project's config, or in another directory without one."""
        given = [*words(here), *arguments] if here else self.project.words(*arguments)
        done = fresh.snakemake(given, environment=self.env)
        assert done.returncode == status, done.stdout
        return done.stdout

    @property
    def repo(self):
        return self.hub.repos["model", REPO]

    def fetch(self) -> None:
        """Write what is published into `directory`."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, content in self.repo.files().items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def published(built, tmp_path_factory):
    top = tmp_path_factory.mktemp("published")
    project = built.copy(top / "project")
    key, public = make_pair(top, "ours")
    mix = project.model("Mix")
    mix["gguf"]["quants"] = ["BF16", "Q8_0", {"name": "Q4_0", "type": "Q4_0", "imatrix": False}]
    mix["gguf"]["quants"].append("IQ4_NL")
    mix["publish"] = {"gguf": REPO, "license": "mit", "sign": {"key": str(key)}}
    with Hub() as hub:
        hub.add_user("hf_alice", "alice", orgs=("acme",))
        found = Published(project, hub, key, public, top / "repository")
        found.said = found.run() + found.run("publish")
        found.fetch()
        yield found


@pytest.fixture
def copied(published, tmp_path) -> Path:
    """A copy of the repository, to tamper with."""
    shutil.copytree(published.directory, tmp_path / "copy")
    return tmp_path / "copy"


def faults(directory: Path, key: Path | None) -> list[str]:
    """What an audit finds, a line each."""
    files = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    hashes = {name: sha256_of(path) for name, path in files.items()}
    branch = audit.Branch(None, None, hashes, lambda name: directory / name, key)
    branch.check()
    return [f"{fault.file}: {fault.text}" for fault in branch.faults]


def rewrite(file: Path, change, key: Path | None) -> None:
    """Change a statement, and sign it again if a key is given."""
    said, _ = statements.read(file.read_bytes(), None)
    change(said)
    data = statements.to_bytes(said)
    file.write_bytes(
        json.dumps(keys.sign(data, statements.MEDIA_TYPE, key)).encode() if key else data
    )


def provenance(directory: Path, path: str) -> Path:
    return directory / f"attestations/{path}.intoto.json"


def test_what_was_published_fits_and_says_who_vouches_for_it(published, tmp_path):
    said = published.run(
        "audit", "--config", f"repo={REPO}", f"key={published.public}", here=tmp_path
    )
    assert "All fits together." in said and "Signed by the key in" in said
    for name, step in ((Q4, "quantize"), (BF16, "convert"), ("imatrix.dat", "imatrix")):
        assert re.search(rf"{name} +by {step} +[0-9a-f]{{12}} +possible", said), said
    assert re.search("corpus calibration +sha256 [0-9a-f]{64}", said), said
    said = published.run("audit", "--config", f"repo={REPO}", here=tmp_path)
    assert "nobody known vouches for it" in said and "somebody unknown" in said
    assert not faults(published.directory, published.public)


def test_others_tools_read_statements_and_signatures(published):
    """in-toto's own library takes each statement, model-signing's command the whole branch."""
    found = list((published.directory / "attestations").rglob("*.json"))
    assert len(found) > 8
    for file in found:
        said = keys.verify(json.loads(file.read_bytes()), statements.MEDIA_TYPE, published.public)
        read = json_format.Parse(said, statement_pb2.Statement())
        Statement.copy_from_pb(read).validate()
    command = [sys.executable, "-m", "model_signing", "verify", "key", published.directory]
    command += ["--signature", published.directory / "model.sig", "--public_key", published.public]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_published_again_nothing_is_signed_or_uploaded_again(published):
    assert "0 files to upload" in published.run("publish_plan")


def test_a_key_leaves_no_trace(published):
    secret = published.key.read_text().splitlines()[1]
    for path in published.project.path.rglob("*"):
        if path.is_file() and not path.is_relative_to(published.project.path / "hf"):
            assert secret.encode() not in path.read_bytes(), path
    for content in published.repo.files().values():
        assert str(published.key).encode() not in content


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", [Q4, "README.md", "quality.svg", "recipes/config.yaml"])
def test_a_byte_of_a_file_is_flipped(published, copied, name):
    flip(copied / name)
    assert f"{name}: has other bytes than those of the release" in faults(copied, published.public)
    assert f"{name}: has other bytes than those of the release" in faults(copied, None)


def test_a_byte_of_a_statement_is_flipped(published, copied):
    name = f"attestations/results/Mix/gguf/{Q4}.intoto.json"
    rewrite(copied / name, lambda said: said["subject"][0].update(name="x"), None)
    found = faults(copied, published.public)
    assert f"{name}: is no signed envelope (DSSE)" in found
    # The same by somebody who makes the whole release anew: the chain does not fit.
    assert any(
        line.startswith(f"{name}: is a statement of another artifact")
        for line in faults(copied, None)
    )


def test_a_recipe_is_changed(published, copied):
    name = f"recipes/{Q4}.recipe.json"
    record = json.loads((copied / name).read_text())
    record["recipe"]["options"]["type"] = "Q8_0"
    (copied / name).write_text(json.dumps(record))
    said = f"{name}: does not say what the statement of its artifact says"
    assert said in faults(copied, published.public) and said in faults(copied, None)


def test_a_statement_is_that_of_another_artifact(published, copied):
    ours, theirs = (provenance(copied, f"results/Mix/gguf/{name}") for name in (Q4, Q8))
    shutil.copy(theirs, ours)
    found = faults(copied, published.public)
    assert any("is a statement of another artifact" in line for line in found)
    assert f"{Q4}: no statement says how it was made" in found


def test_a_source_is_dropped(published, copied):
    (dropped,) = copied.glob("attestations/resources/models/*base*.json")
    dropped.unlink()
    name = dropped.relative_to(copied).as_posix()
    found = faults(copied, published.public)
    assert f"{name}: is of the release, and not there" in found
    assert any("no statement of what it was made from (model Base" in line for line in found)


def test_a_signature_is_stripped(published, copied):
    """All signatures are gone, and all else fits: with a key that is refused, without one said."""
    for file in (copied / "attestations").rglob("*.json"):
        rewrite(file, lambda said: None, None)
    (copied / "model.sig").unlink()
    found = faults(copied, published.public)
    assert f"{RELEASE}: is no signed envelope (DSSE)" in found
    assert "model.sig: is missing: the branch is not signed" in found


def test_somebody_else_has_signed_it(published, copied, tmp_path):
    other, public = make_pair(tmp_path, "theirs")
    for file in (copied / "attestations").rglob("*.json"):
        rewrite(file, lambda said: None, other)
    assert any(
        line.startswith(f"{RELEASE}: is not signed by") for line in faults(copied, published.public)
    )


@pytest.mark.parametrize("signed", [True, False])
def test_one_older_file_is_among_newer_ones(published, copied, signed):
    """With its own statement and recipe, as they were once published and signed."""
    older = {Q4: b"an older file"}
    (copied / Q4).write_bytes(older[Q4])
    name = provenance(copied, f"results/Mix/gguf/{Q4}")
    sha = sha256_of(copied / Q4)
    rewrite(
        name,
        lambda said: said["subject"][0]["digest"].update(sha256=sha),
        published.key if signed else None,
    )
    found = faults(copied, published.public if signed else None)
    assert f"{Q4}: has other bytes than those of the release" in found


def test_files_come_and_go(published, copied):
    (copied / "modeling.py").write_text("print()")
    (copied / Q8).unlink()
    found = faults(copied, published.public)
    assert "modeling.py: is not of the release" in found
    assert "modeling.py: no statement says how it was made" in found
    assert f"{Q8}: is of the release, and not there" in found
    assert any(line.startswith("model.sig: signs other bytes, or other files") for line in found)


def test_no_release_no_statement_nothing_that_is_json(published, copied):
    for content in (None, b"", b"[" * 100_000, b"{}", b'{"payload": "e30=", "signatures": []}'):
        if content is None:
            (copied / RELEASE).unlink()
        else:
            (copied / RELEASE).write_bytes(content)
        for key in (published.public, None):
            assert any(line.startswith(f"{RELEASE}: ") for line in faults(copied, key)), content


def test_an_older_state_is_found_where_a_digest_is_expected(published, tmp_path):
    digest = re.search(
        r"Release ([0-9a-f]{64})", published.run("audit", "--config", f"repo={REPO}", here=tmp_path)
    )[1]
    key = f"key={published.public}"
    published.run("audit", "--config", f"repo={REPO}", key, f"expect={digest}", here=tmp_path)
    said = published.run(
        "audit",
        "--config",
        f"dir={published.directory}",
        key,
        f"expect={'ab' * 32}",
        here=tmp_path,
        status=1,
    )
    assert f"{RELEASE}: is {digest}, not {'ab' * 32}: another state than the expected one" in said
    # Signed, whole, and of another repository.
    branch = published.hub.repos["model", REPO].files()
    published.hub.add_repo("acme/Other", dict(branch))
    said = published.run("audit", "--config", "repo=acme/Other", key, here=tmp_path, status=1)
    assert f"{RELEASE}: is of {REPO}, branch main" in said


def test_quants_are_made_again_of_what_is_published_and_nothing_else(published, tmp_path):
    said = published.run(
        "audit",
        "--config",
        f"repo={REPO}",
        f"key={published.public}",
        "rederive=Q4_0,IQ4_NL",
        here=tmp_path,
    )
    assert re.search(rf"{Q4} +by quantize +[0-9a-f]+ +identical", said), said
    assert re.search(r"Mix-IQ4_NL.gguf +by quantize +[0-9a-f]+ +identical", said), said
    said = published.run(
        "audit", "--config", f"repo={REPO}", "rederive=BF16", here=tmp_path, status=1
    )
    assert "Mix-BF16.gguf is made by convert; `all` makes that again" in said


def test_all_is_made_again_from_the_sources(published, tmp_path):
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(published.project.path / name)
    store = tmp_path.with_name(f"{tmp_path.name}-store")  # of which nothing is taken
    store.mkdir()
    published.env["QUANTMILL_STORE"] = str(store)
    try:
        assert "Put there: " in published.run("store", "--config", "put=true")
        said = published.run("audit", "--config", f"repo={REPO}", "rederive=all", here=tmp_path)
    finally:
        del published.env["QUANTMILL_STORE"]
    assert "taken   " not in said
    for name in (Q4, Q8, BF16, "imatrix.dat"):
        assert re.search(rf"{name} +by \w+ +[0-9a-f]+ +identical", said), said


def test_what_another_kind_of_machine_has_made_is_no_fault_and_what_is_the_same_anywhere_is(
    published, copied
):
    branch = audit.Branch(None, None, {}, lambda name: copied / name)
    for path in ("results/Mix/safetensors", f"results/Mix/gguf/{Q4}", "results/Mix/gguf/" + BF16):
        said, _ = statements.read(provenance(copied, path).read_bytes(), None)
        branch.provenances[path] = said
    merge = branch.provenances["results/Mix/safetensors"]["predicate"]["buildDefinition"]
    assert merge["internalParameters"]["bound"] == "this kind of machine"
    where = functools.partial(audit.where_again, f"results/Mix/gguf/{Q4}", branch.provenances)
    assert where() == where(chain=True) == ""
    merge["internalParameters"]["machine"] = {"cpu": "another"}
    assert where() == "", "from the conversion it comes out the same anywhere"
    assert where(chain=True) == "results/Mix/safetensors was made on another"
    merge["internalParameters"]["bound"] = "anywhere"
    assert where(chain=True) == ""


def test_a_file_that_is_not_what_its_recipe_makes_is_found_by_making_it_again(
    published, copied, tmp_path
):
    """The publisher has signed a lie: only making it again tells."""
    content = (copied / Q8).read_bytes()
    (copied / Q4).write_bytes(content)
    sha = sha256_of(copied / Q4)
    name = provenance(copied, f"results/Mix/gguf/{Q4}")
    rewrite(name, lambda said: said["subject"][0]["digest"].update(sha256=sha), None)
    record = json.loads((copied / f"recipes/{Q4}.recipe.json").read_text())
    record |= {"sha256": sha, "bytes": len(content)}
    (copied / f"recipes/{Q4}.recipe.json").write_text(json.dumps(record))
    (copied / "model.sig").unlink()

    def settle(said: dict) -> None:
        said["subject"] = [each for each in said["subject"] if (copied / each["name"]).exists()]
        for each in said["subject"]:
            each["digest"]["sha256"] = sha256_of(copied / each["name"])

    rewrite(copied / RELEASE, settle, None)
    assert not faults(copied, None)
    said = published.run(
        "audit", "--config", f"dir={copied}", "rederive=Q4_0", here=tmp_path, status=1
    )
    assert f"{Q4}: different" in said
