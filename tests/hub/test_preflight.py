"""Preflight: every problem at once, before anything is built."""

import json

import pytest
from hubtest import MODEL, ok, refused

MERGE = {"merge_method": "sce", "base_model": "acme/base", "models": [{"model": "acme/tuned"}]}


def config_json(**over) -> bytes:
    shape = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 4}
    return json.dumps(shape | {"vocab_size": 2} | over).encode()


def tokenizer(*tokens: str) -> bytes:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}).encode()


def model(**over) -> dict:
    empty = dict.fromkeys(("merge", "source", "gguf", "exl2", "evaluate", "publish"))
    return empty | {"allow_pickle": False} | over


@pytest.fixture
def partners(hub):
    """Two models on the hub that fit together."""
    files = MODEL | {"config.json": config_json(), "tokenizer.json": tokenizer("a", "b")}
    return [hub.add_repo(f"acme/{name}", files) for name in ("base", "tuned")]


def preflight(workdir, models: dict, corpora: dict | None = None, token: str = "", **given):
    path = workdir.path / "resolved.json"
    config = {"models": models, "corpora": corpora or {}}
    path.write_text(json.dumps({"config": config, **given}))
    return workdir.run("ask_preflight.py", "--config-json", path, HF_TOKEN=token)


def test_good_config_passes_and_says_what_will_be_fetched(workdir, hub, partners):
    ok(workdir.lock("acme/base", "acme/tuned"))
    models = {"Mix": model(merge=MERGE, gguf={"imatrix": False})}
    models["Mix"]["publish"] = {"gguf": "acme/Mix-GGUF"}
    models["Mix"]["evaluate"] = {"corpus": "text"}
    hub.plain["a.txt"] = b"a"
    corpora = {"text": {"url": f"{hub.url}/plain/a.txt", "sha256": "0" * 64}}
    disk = {"needed": 1e9, "free": 2e9}
    said = ok(preflight(workdir, models, corpora, token="hf_alice", disk=disk))
    for part in (
        "acme/tuned             to be fetched: 0.00 GB",
        "its 2 models fit together",
        "corpus text            to be fetched",
        "LlamaForCausalLM: known to the converter",
        "publish acme/Mix-GGUF  will be made",
        "1.0 GB needed, 2.0 GB free",
    ):
        assert part in said, said


def test_every_problem_is_told_at_once(workdir, hub, partners):
    base, tuned = partners
    files = tuned.files() | {
        "config.json": config_json(hidden_size=512, vocab_size=3),
        "tokenizer.json": tokenizer("a", "b", "c"),
    }
    tuned.commit("main", files)
    base.commit("main", base.files() | {"config.json": config_json(architectures=["NewForLM"])})
    ok(workdir.lock("acme/base", "acme/tuned"))
    base.gated = True
    hub.add_repo("other/taken", {})
    hub.add_repo("acme/text", {"a.txt": b"x"}, "dataset")
    models = {
        "Mix": model(merge=MERGE, gguf={"imatrix": {"corpus": "calibration"}}, exl2={"bits": [4]}),
        "Local": model(source="./none"),
        "New": model(source="acme/unlocked"),
    }
    models["Mix"]["publish"] = {"gguf": "other/taken", "exl2": "other/new-{form}"}
    models["Mix"]["evaluate"] = {"corpus": "evaluation"}
    corpora = {
        "calibration": {"url": f"{hub.url}/plain/none.txt", "sha256": "0" * 64},
        "evaluation": {"hub": "acme/text", "file": "a.txt"},
    }
    given = {"cuda": False, "disk": {"needed": 3e9, "free": 2e9}}
    done = preflight(workdir, models, corpora, token="hf_bob", **given)
    assert "problems" in refused(done)
    for part in (
        "acme/base: gated; logged in as bob",
        "acme/unlocked",
        "none: there is no such directory",
        "hidden_size is 512 in acme/tuned, 256 in acme/base",
        "vocab_size is 3 in acme/tuned, 2 in acme/base; give tokenizer_source",
        "NewForLM: the converter of this llama.cpp does not know it",
        "other/taken: no right to write there; logged in as bob",
        "publish other/new-4.0bpw  no right to make it under other",
        "none.txt: the server says 404",
        "corpus evaluation",
        "EXL2 needs a CUDA GPU",
        "3.0 GB needed, 2.0 GB free",
    ):
        assert part in done.stdout, f"{part!r} is missing\n{done.stdout}"


def test_vocabularies_of_one_size_that_differ_need_a_tokenizer_source(workdir, hub, partners):
    tuned = partners[1]
    tuned.commit("main", tuned.files() | {"tokenizer.json": tokenizer("a", "z")})
    ok(workdir.lock("acme/base", "acme/tuned"))
    done = preflight(workdir, {"Mix": model(merge=MERGE)})
    assert refused(done)
    assert (
        "the vocabularies differ in 1 token: 1 is 'b' in acme/base, 'z' in acme/tuned"
        in done.stdout
    )
    ok(preflight(workdir, {"Mix": model(merge=MERGE | {"tokenizer_source": "base"})}))


def test_merge_of_a_merge_is_judged_by_what_it_is_made_from(workdir, hub, partners):
    files = partners[0].files() | {"config.json": config_json(num_hidden_layers=8)}
    hub.add_repo("acme/deep", files)
    ok(workdir.lock("acme/base", "acme/tuned", "acme/deep"))
    again = {"merge_method": "linear", "models": [{"model": "Mix"}, {"model": "acme/deep"}]}
    done = preflight(workdir, {"Mix": model(merge=MERGE), "Again": model(merge=again)})
    assert refused(done)
    assert "num_hidden_layers is 8 in acme/deep, 4 in Mix" in done.stdout


def test_offline_with_a_full_cache_there_is_no_problem(workdir, hub, partners):
    ok(workdir.lock("acme/base", "acme/tuned"))
    for name in ("base", "tuned"):
        ok(workdir.fetch(f"acme/{name}", name))
    workdir.env["HF_HUB_OFFLINE"] = "1"
    hub.log.clear()
    models = {"Mix": model(merge=MERGE, publish={"gguf": "acme/Mix-GGUF"})}
    said = ok(preflight(workdir, models))
    assert "cached, commit" in said and "not checked: HF_HUB_OFFLINE" in said and not hub.log
