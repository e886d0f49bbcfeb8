"""Sources from the hub: what is locked, what is downloaded, and what happens when it goes wrong."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import yaml
from hubtest import MODEL, SCRIPTS, ok, refused
from standin import Fault

from lib.errors import UserError
from lib.hub import lock
from lib.hub.hubref import HubRef, parse

NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}
WEIGHTS = hashlib.sha256(MODEL["model.safetensors"]).hexdigest()


def test_hub_references_are_told_from_directories_and_models():
    assert parse("org/name") == HubRef("org/name")
    assert parse("org/na.me-1@refs/pr/2") == HubRef("org/na.me-1", "refs/pr/2")
    others = ("./org/name", "/org/name", "../a/b", "~/name", "Demo", "org/name/more", "org/a b")
    for other in others:
        assert parse(other) is None


def test_lock_holds_commit_and_content_of_needed_files_only(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    data = yaml.safe_load((workdir.path / lock.LOCK_FILE).read_text())
    entry = data["models"]["acme/base"]
    assert entry["commit"] == base.branches["main"]
    assert set(entry["files"]) == NEEDED
    for name in NEEDED:
        sha = hashlib.sha256(MODEL[name]).hexdigest()
        assert entry["files"][name] == {"sha256": sha, "size": len(MODEL[name])}
    assert entry["license"] == "apache-2.0" and entry["language"] == ["en"]
    assert not hub.requests("model.safetensors"), "weights were downloaded to write a lock"


def test_same_references_give_the_same_lock_bytes(workdir, hub, base):
    hub.add_repo("acme/other", MODEL)
    ok(workdir.lock("acme/base", "acme/other@main"))
    first = (workdir.path / lock.LOCK_FILE).read_bytes()
    (workdir.path / lock.LOCK_FILE).unlink()
    ok(workdir.lock("acme/other@main", "acme/base"))
    assert (workdir.path / lock.LOCK_FILE).read_bytes() == first


def test_fetch_links_into_the_users_cache_and_copies_nothing(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    ok(workdir.fetch("acme/base"))
    out = workdir.path / "out"
    assert {p.name for p in out.iterdir()} == NEEDED
    for name in NEEDED:
        assert (out / name).is_symlink() and (out / name).read_bytes() == MODEL[name]
        assert (out / name).resolve().is_relative_to(workdir.home)
    assert not hub.requests(r"\.bin|\.pth"), "pickles were asked for"
    hub.log.clear()
    ok(workdir.fetch("acme/base", "again"))
    assert not hub.log, "a full cache still asked the hub"


def test_moved_branch_changes_nothing_until_the_lock_is_renewed(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    before = lock.Lock.read(workdir.path).get("acme/base").identity()
    moved = {**base.files(), "model.safetensors": b"new weights"}
    base.commit("main", moved, "retrained")
    ok(workdir.lock("acme/base"))  # as at every start of the Snakefile
    ok(workdir.fetch("acme/base"))
    assert (workdir.path / "out/model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert lock.Lock.read(workdir.path).get("acme/base").identity() == before


def test_renewing_one_reference_leaves_the_others(workdir, hub, base):
    other = hub.add_repo("acme/other", MODEL)
    ok(workdir.lock("acme/base", "acme/other"))
    old = {
        ref: lock.Lock.read(workdir.path).get(ref).identity() for ref in ("acme/base", "acme/other")
    }
    for repo in (base, other):
        repo.commit("main", {**repo.files(), "model.safetensors": b"new"}, "retrained")
    said = ok(workdir.lock("acme/base", "acme/other", args=("--renew", "--only", "acme/base")))
    now = lock.Lock.read(workdir.path)
    assert now.get("acme/base").identity() != old["acme/base"]
    assert now.get("acme/other").identity() == old["acme/other"]
    assert said.startswith("acme/base: ") and base.branches["main"][:12] in said
    assert "no hub reference" in refused(workdir.lock("acme/base", args=("--only", "acme/none")))


def test_lock_missing_asks_the_hub_once_for_all_and_never_when_all_is_locked(workdir, hub, base):
    hub.add_repo("acme/other", MODEL)
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from lib.hub.lock import HubSource, lock_missing\n"
        "lock_missing([HubSource('acme/base'), HubSource('acme/other')], pathlib.Path())\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(SCRIPTS)]
    for _ in range(2):
        subprocess.run(command, cwd=workdir.path, env=workdir.env, check=True, timeout=60)
        assert len(lock.Lock.read(workdir.path).entries) == 2
        assert len(hub.requests(r"GET .*/tree/")) == 2


def test_every_reference_that_cannot_be_locked_is_reported_at_once(workdir, hub, base):
    hub.add_repo("acme/secret", MODEL, private=True)
    hub.add_repo("acme/gated", MODEL, gated=True)
    hub.add_repo("acme/empty", {"notes.txt": b"x"})
    hub.add_repo("acme/pickles", {k: v for k, v in MODEL.items() if "safetensors" not in k})
    refs = ["acme/base", "acme/secret", "acme/gated", "acme/empty", "acme/none", "acme/base@v9"]
    said = refused(workdir.lock(*refs, "acme/pickles", HF_TOKEN="hf_bob")).splitlines()
    assert len(said) == 6
    assert sum("acme/secret" in line and "logged in as bob" in line for line in said) == 1
    page = f"ask for access at {hub.url}/acme/gated"
    assert sum("acme/gated" in line and page in line for line in said) == 1
    assert sum("acme/empty" in line and "no config.json" in line for line in said) == 1
    assert sum("acme/base" in line and "no such revision" in line for line in said) == 1
    assert sum("acme/pickles" in line and "allow_pickle" in line for line in said) == 1
    assert "hf_bob" not in "".join(said), "a token was printed"
    assert lock.Lock.read(workdir.path).get("acme/base"), "the good reference was not locked"


def test_a_repository_with_a_faulty_index_is_one_line_that_names_it(workdir, hub):
    index = "model.safetensors.index.json"
    hub.add_repo("acme/short", {**MODEL, index: b'{"weight_map": {"a": "b.safetensors"}}'})
    hub.add_repo("acme/odd", {**MODEL, index: b"[]"})
    said = refused(workdir.lock("acme/short", "acme/odd")).splitlines()
    assert said == [
        f"hub_lock: model acme/short: b.safetensors, which {index} names, is not there",
        f"hub_lock: model acme/odd: {index}: not a safetensors index",
    ]


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "not logged in"),
        ("hf_bob", "logged in as bob"),
        ("hf_old", "does not accept this token"),
    ],
)
def test_gated_model_says_which_login_and_where_to_ask(workdir, hub, base, token, words):
    ok(workdir.lock("acme/base"))
    base.gated = True
    said = refused(workdir.fetch("acme/base", HF_TOKEN=token))
    assert "acme/base" in said and words in said and f"{hub.url}/acme/base" in said
    assert not token or token not in said


def test_gated_and_private_models_work_with_the_users_login(workdir, hub):
    hub.add_repo("acme/gated", MODEL, gated=True, readers={"bob"})
    hub.add_repo("acme/secret", MODEL, private=True, readers={"bob"})
    token = workdir.home / "token"  # what `hf auth login` writes
    token.parent.mkdir()
    token.write_text("hf_bob")
    ok(workdir.lock("acme/gated", "acme/secret"))
    ok(workdir.fetch("acme/gated", "a"))
    ok(workdir.fetch("acme/secret", "b", HF_TOKEN="hf_bob"))
    # The stand-in's CDN answers 400 to whoever shows it a token, so it saw none.
    assert hub.requests("GET /cdn/")


def test_offline_with_a_full_cache_everything_is_there(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    missing = refused(workdir.fetch("acme/base", HF_HUB_OFFLINE="1"))
    assert "model.safetensors" in missing and "HF_HUB_OFFLINE" in missing
    ok(workdir.fetch("acme/base"))
    hub.log.clear()
    ok(workdir.fetch("acme/base", "offline", HF_HUB_OFFLINE="1"))
    assert (workdir.path / "offline/model.safetensors").exists() and not hub.log


def test_what_is_not_locked_cannot_be_had_offline_and_that_is_said(workdir, hub, base):
    said = refused(workdir.lock("acme/base", HF_HUB_OFFLINE="1"))
    assert "acme/base" in said and "HF_HUB_OFFLINE is set" in said
    assert "snakemake lock" in refused(workdir.fetch("acme/base"))


def test_wrong_bytes_are_an_error_and_are_not_used(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    hub.faults.append(Fault("GET /cdn/", garble=True))
    said = refused(workdir.fetch("acme/base"))
    assert "model.safetensors" in said and WEIGHTS in said
    assert not (workdir.path / "out").exists()
    blobs = [p for p in workdir.home.rglob("blobs/*") if p.stat().st_size > 100_000]
    assert not blobs, "the bad file is still in the cache"
    ok(workdir.fetch("acme/base"))
    assert (workdir.path / "out/model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_file_damaged_in_the_cache_is_found_and_fetched_anew(workdir, hub, base):
    ok(workdir.lock("acme/base"))
    ok(workdir.fetch("acme/base"))
    blob = (workdir.path / "out/model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert "bytes, but the lock says" in refused(workdir.fetch("acme/base", "second"))
    ok(workdir.fetch("acme/base", "third"))
    assert (workdir.path / "third/model.safetensors").read_bytes() == MODEL["model.safetensors"]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_connection_cut_in_mid_file_is_resumed(workdir, hub, reset):
    step = 10 << 20  # huggingface_hub writes, and so can resume, in steps of 10 MiB
    weights = os.urandom(1 << 20) * 12
    hub.add_repo("acme/large", {**MODEL, "model.safetensors": weights})
    ok(workdir.lock("acme/large"))
    hub.faults.append(Fault("GET /cdn/", cut=step + 1000, reset=reset))
    ok(workdir.fetch("acme/large"))
    assert (workdir.path / "out/model.safetensors").read_bytes() == weights
    if not reset:  # after a reset huggingface_hub drops its partial file, and we start it anew
        assert hub.requests("GET /cdn/")[-1][2].get("Range") == f"bytes={step}-"


def test_busy_hub_is_waited_for(workdir, hub, base):
    hub.faults += [
        Fault("GET /api/models/acme/base", status=503),
        Fault("GET .*/tree/", status=429, headers={"Retry-After": "0"}),
        Fault("GET /cdn/", status=502),
    ]
    ok(workdir.lock("acme/base"))
    ok(workdir.fetch("acme/base"))
    assert all(fault.times == 0 for fault in hub.faults)


def test_long_listing_comes_in_pages(workdir, hub):
    many = {f"docs/{i}.txt": b"x" for i in range(7)}
    hub.add_repo("acme/many", {**MODEL, **many})
    hub.page = 3
    ok(workdir.lock("acme/many"))
    assert set(lock.Lock.read(workdir.path).get("acme/many").files) == NEEDED


def test_sharded_weights_are_those_that_the_index_names(workdir, hub):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    hub.add_repo(
        "acme/shards",
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-00001-of-00002.safetensors": b"1",
            "model-00002-of-00002.safetensors": b"2",
            "consolidated.safetensors": b"12",
        },
    )
    ok(workdir.lock("acme/shards"))
    names = set(lock.Lock.read(workdir.path).get("acme/shards").files)
    assert "consolidated.safetensors" not in names and len(names) == 4


def test_pickles_come_only_when_the_config_allows_them(workdir, hub):
    hub.add_repo("acme/old", {k: v for k, v in MODEL.items() if "safetensors" not in k})
    ok(workdir.lock({"ref": "acme/old", "allow_pickle": True}))
    assert "allow_pickle: true" in refused(workdir.fetch("acme/old"))
    assert not hub.requests("GET /cdn/")
    ok(workdir.fetch("acme/old", "out", "--allow-pickle"))
    assert (workdir.path / "out/pytorch_model.bin").read_bytes() == b"pickled"


def test_corpus_is_one_file_of_a_dataset(workdir, hub):
    repo = hub.add_repo("acme/text", {"a.parquet": b"A" * 999, "b.txt": b"B"}, "dataset")
    ok(workdir.lock({"ref": "acme/text", "kind": "dataset", "file": "a.parquet"}))
    repo.commit("main", {"a.parquet": b"other", "b.txt": b"B2"})
    ok(workdir.lock({"ref": "acme/text", "kind": "dataset", "file": "b.txt"}))
    args = ("--kind", "dataset", "--file")
    ok(workdir.fetch("acme/text", "a.parquet", *args, "a.parquet"))
    ok(workdir.fetch("acme/text", "b.txt", *args, "b.txt"))
    assert (workdir.path / "a.parquet").read_bytes() == b"A" * 999
    assert (workdir.path / "b.txt").read_bytes() == b"B", "a second file came from another commit"
    said = refused(workdir.lock({"ref": "acme/text", "kind": "dataset", "file": "c.txt"}))
    assert "no file c.txt" in said


def test_url_resumes_and_is_used_only_with_the_right_sha256(workdir, hub):
    content = os.urandom(300_000)
    sha = hashlib.sha256(content).hexdigest()
    hub.plain["text.txt"] = content
    url = f"{hub.url}/plain/text.txt"
    hub.faults.append(Fault("GET /plain/", cut=100_000))
    ok(workdir.fetch(url, "text.txt", "--sha256", sha, HF_TOKEN="hf_alice"))
    assert (workdir.path / "text.txt").read_bytes() == content
    assert hub.requests("GET /plain/")[-1][2]["Range"] == "bytes=100000-"
    assert not any("Authorization" in headers for _, _, headers in hub.log)
    said = refused(workdir.fetch(url, "wrong.txt", "--sha256", "0" * 64))
    assert sha in said and not (workdir.path / "wrong.txt").exists()
    assert "404" in refused(workdir.fetch(url + "x", "x.txt", "--sha256", sha[::-1]))
    ok(workdir.fetch(url, "offline.txt", "--sha256", sha, HF_HUB_OFFLINE="1"))


def test_damaged_lock_is_named_and_not_taken_for_an_empty_one(workdir):
    path = workdir.path / lock.LOCK_FILE
    path.parent.mkdir()
    for text in ("models: [", "models: {acme/base: {commit: abc}}", "modls: {}"):
        path.write_text(text)
        with pytest.raises(UserError, match="sources.lock.yaml"):
            lock.Lock.read(workdir.path)
