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


@pytest.fixture
def partners(hub):
    """Two models on the hub that fit together."""
    files = MODEL | {"config.json": config_json(), "tokenizer.json": tokenizer("a", "b")}
    return [hub.add_repo(f"acme/{name}", files) for name in ("base", "tuned")]


def preflight(workdir, models: dict, *flags: str, corpora: dict | None = None, token="", **given):
    """Run it on a machine without a GPU. given: options, as `--config` has them."""
    path = workdir.path / "config.json"
    path.write_text(json.dumps({"models": models, "corpora": corpora or {}, **given}))
    command = ("ask_preflight.py", "--config", path, *flags)
    return workdir.run(*command, HF_TOKEN=token, PATH=str(workdir.home))


def test_good_config_passes_and_says_what_will_be_fetched(workdir, hub, partners):
    ok(workdir.lock("acme/base", "acme/tuned"))
    mix = {"merge": MERGE, "gguf": {"imatrix": False}, "evaluate": {"corpus": "text"}}
    mix["publish"] = {"gguf": "acme/Mix-GGUF"}
    hub.plain["a.txt"] = b"a"
    corpora = {"text": {"url": f"{hub.url}/plain/a.txt", "sha256": "0" * 64}}
    said = ok(preflight(workdir, {"Mix": mix}, corpora=corpora, token="hf_alice"))
    for part in (
        "acme/tuned             to be fetched: 0.00 GB",
        "its 2 models fit together",
        "corpus text            to be fetched",
        "LlamaForCausalLM: known to the converter",
        "publish acme/Mix-GGUF  will be made",
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
    text = hub.add_repo("acme/text", {"a.parquet": b"x"}, "dataset")
    dataset = {"ref": "acme/text", "kind": "dataset", "file": "a.parquet"}
    ok(workdir.lock("acme/base", "acme/tuned", dataset))
    base.gated = text.gated = True
    hub.add_repo("other/taken", {})
    mix = {"merge": MERGE, "gguf": {"imatrix": {"corpus": "calibration"}}, "exl2": {"bits": [4]}}
    mix["publish"] = {"gguf": "other/taken", "exl2": "other/new-{form}"}
    mix["evaluate"] = {"corpus": "evaluation"}
    corpora = {
        "calibration": {"url": f"{hub.url}/plain/none.txt", "sha256": "0" * 64},
        "evaluation": {"hub": "acme/text", "file": "a.parquet"},
    }
    done = preflight(workdir, {"Mix": mix}, corpora=corpora, token="hf_bob")
    assert refused(done) == "preflight: 9 problems\n"
    for part in (
        "acme/base: gated; logged in as bob",
        "hidden_size is 512 in acme/tuned, 256 in acme/base",
        "vocab_size is 3 in acme/tuned, 2 in acme/base; give tokenizer_source",
        "NewForLM: the converter of this llama.cpp does not know it",
        "other/taken: no right to write there; logged in as bob",
        "publish other/new-4.0bpw  no right to make it under other",
        "none.txt: the server says 404",
        "corpus evaluation         dataset acme/text: gated",
        "EXL2 needs a CUDA GPU",
    ):
        assert part in done.stdout, f"{part!r} is missing\n{done.stdout}"
    assert "EXL2" not in preflight(workdir, {"Mix": mix}, "--cluster", corpora=corpora).stdout


@pytest.mark.parametrize(("source", "words"), [("./none", "no directory"), ("a/none", "not there")])
def test_a_source_that_is_nowhere_is_named_before_the_rest_is_looked_at(workdir, source, words):
    said = refused(preflight(workdir, {"New": {"source": source, "gguf": {}}}))
    assert source in said and words in said


def test_vocabularies_of_one_size_that_differ_need_a_tokenizer_source(workdir, hub, partners):
    tuned = partners[1]
    tuned.commit("main", tuned.files() | {"tokenizer.json": tokenizer("a", "z")})
    ok(workdir.lock("acme/base", "acme/tuned"))
    done = preflight(workdir, {"Mix": {"merge": MERGE}})
    assert refused(done)
    assert (
        "the vocabularies differ in 1 token: 1 is 'b' in acme/base, 'z' in acme/tuned"
        in done.stdout
    )
    ok(preflight(workdir, {"Mix": {"merge": MERGE | {"tokenizer_source": "base"}}}))


def test_merge_of_a_merge_is_judged_by_what_it_is_made_from(workdir, hub, partners):
    files = partners[0].files() | {"config.json": config_json(num_hidden_layers=8)}
    hub.add_repo("acme/deep", files)
    ok(workdir.lock("acme/base", "acme/tuned", "acme/deep"))
    again = {"merge_method": "linear", "models": [{"model": "Mix"}, {"model": "acme/deep"}]}
    done = preflight(workdir, {"Mix": {"merge": MERGE}, "Again": {"merge": again}})
    assert refused(done)
    assert "num_hidden_layers is 8 in acme/deep, 4 in Mix" in done.stdout


def test_of_a_model_that_only_a_merge_needs_no_text_is_asked_for(workdir, hub, partners):
    ok(workdir.lock("acme/base", "acme/tuned"))
    mix = {"merge": MERGE, "gguf": {"imatrix": {"corpus": "far"}, "quants": ["Q8_0"]}}
    again = {"merge_method": "linear", "models": [{"model": "Mix"}, {"model": "acme/base"}]}
    models, corpora = (
        {"Mix": mix, "Again": {"merge": again}},
        {"far": {"hub": "a/b", "file": "c.txt"}},
    )
    flags = ("--models", "Again,Mix")
    said = ok(preflight(workdir, models, *flags, corpora=corpora, model="Again"))
    assert said.count("its 2 models fit together") == 2 and "far" not in said


def test_offline_with_a_full_cache_there_is_no_problem(workdir, hub, partners):
    ok(workdir.lock("acme/base", "acme/tuned"))
    for name in ("base", "tuned"):
        ok(workdir.fetch(f"acme/{name}", name))
    workdir.env["HF_HUB_OFFLINE"] = "1"
    hub.log.clear()
    mix = {"merge": MERGE, "gguf": {}, "publish": {"gguf": "acme/Mix-GGUF"}}
    said = ok(preflight(workdir, {"Mix": mix}))
    assert "cached, commit" in said and "not checked: HF_HUB_OFFLINE" in said and not hub.log
