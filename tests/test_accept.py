"""Upgrading without building again: what differs in code or tools alone may be accepted."""

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import lib.stages.shared
from lib.planning.acceptance import Acceptance, adopt, judge
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from project import FORMS, Planned, Project, append, evaluations, everything, of, shards

MERGED = everything("Mix") | everything("Two")


def upgrade(project: Project) -> None:
    """A new version of Quantmill, in which merges are made by other code."""
    append(project.repository / "scripts/merge.py", "\nadded = 1\n")


def record(project: Project, path: str) -> recipes.Record:
    found = recipes.read(path, project.path)
    assert found is not None, path
    return found


def test_a_new_version_is_accepted_in_one_command_and_nothing_is_built(edited):
    upgrade(edited)
    before = edited.digests()
    assert edited.plan() == MERGED
    assert "17 of these differ in code or tools alone" in edited.run("why")
    output = edited.run("accept", "--config", "target=all")
    assert "the code that makes it changed" in output and "artifacts accepted" in output
    assert edited.plan() == set()
    assert edited.digests() == before
    assert "Nothing to be done" in edited.build()


def test_records_why_and_verify_rebuild_say_how_it_was_really_made_and_who_accepted_it(edited):
    path = "results/Two/safetensors"
    made = record(edited, path)
    upgrade(edited)
    edited.run("accept", "--config", "target=Two")
    now = record(edited, path)
    assert (now.recipe, now.digest, now.sha256) == (made.recipe, made.digest, made.sha256)
    (entry,) = now.accepted
    assert entry["differs"][0] == "the code that makes it changed"
    assert entry["by"] and entry["at"].endswith("Z")
    said = edited.run("why", "--config", f"target={path}")
    assert f"accepted by {entry['by']} on {entry['at']}, although:" in said
    again = edited.run("verify_rebuild", "--config", "model=Two")
    assert (
        f"identical (accepted by {entry['by']}, although: the code that makes it changed" in again
    )
    assert "All " in again and "came out the same again" in again


def test_the_reports_and_cards_are_made_anew_so_that_they_can_say_it(edited):
    upgrade(edited)
    card = edited / "results/Two/README.md"
    before = card.stat().st_mtime_ns
    edited.run("accept", "--config", "target=Two")
    assert card.stat().st_mtime_ns > before
    assert not record(edited, "results/Two/README.md").accepted
    by = record(edited, "results/Two/safetensors").accepted[0]["by"]
    assert f"\nthe merge: taken as it is by {by} on " in card.read_text()
    assert "although the code that makes it changed." in card.read_text()
    assert "\nBF16, Q8_0: taken as they are by" in card.read_text()


def test_what_was_accepted_of_a_cold_file_comes_back_with_its_record(tmp_path, monkeypatch):
    """Snakemake deletes the record of what a failed step should have brought back."""
    monkeypatch.chdir(tmp_path)
    made, recipe = "results/M/gguf/M-Q8_0.gguf", {"step": "quantize"}
    note = cold.note_of(made)
    Path(note).parent.mkdir(parents=True)
    Path(note).write_text("{}")
    record = recipes.Record(made, recipe, recipes.digest(recipe), 1, "0" * 64)
    facts = {"place": {"store": "/store"}, "record": asdict(record)}
    inputs = {cold.MADE: record.sha256}
    recipes.write(
        recipes.Record(note, {}, recipes.digest({}), 2, "1" * 64, inputs=inputs, notes=facts)
    )
    recipes.write(record)
    wanted = Artifact(made, "quantize", "M", {})
    wanted.recipe = recipe | {"code": "newer"}
    adopt(Acceptance([(wanted, ["code"])]))
    Path(recipes.path_of(made)).unlink()
    cold.restore(made)
    assert recipes.read(made).fits(wanted.digest)


def test_a_file_is_accepted_with_what_it_is_made_from_and_nothing_else(edited):
    upgrade(edited)
    edited.run("accept", "--config", "target=results/Mix/gguf/Mix-Q8_0.gguf")
    accepted = of("Mix", "merge", "BF16", "imatrix", "Q8_0")
    rest = everything("Mix") - accepted | everything("Two")
    assert edited.plan() == rest


def test_a_rule_is_accepted_where_it_is_named(edited):
    upgrade(edited)
    edited.run("accept", "--config", "target=imatrix")
    assert edited.plan() == MERGED - of("Mix", "merge", "BF16", "imatrix")


def test_without_a_target_it_only_shows_what_could_be_accepted(edited):
    upgrade(edited)
    output = edited.run("accept")
    assert "could be accepted. Say which: --config target=" in output
    assert edited.plan() == MERGED
    assert not record(edited, "results/Mix/safetensors").accepted


def test_an_option_is_never_accepted_and_neither_is_what_follows_from_it(edited):
    upgrade(edited)
    edited.model("Mix")["gguf"]["imatrix"]["chunks"] = 3
    output = edited.run("accept", "--config", "target=Mix")
    refused = output.partition("Not accepted:")[2]
    assert "chunks 4 -> 3" in refused
    assert "results/Mix/imatrix.dat, from which it is made, is not acceptable" in refused
    stale = of("Mix", "imatrix", "Q8_0", "mixed", "base", "report", "card")
    stale |= of("Mix", "Q8_0/evaluation", "mixed/evaluation") | shards("Mix", "Q8_0", "mixed")
    assert edited.plan() == stale | everything("Two")


def test_a_source_is_never_accepted(edited):
    upgrade(edited)
    append(edited / "data/evaluation.txt", "Another line.\n")
    output = edited.run("accept", "--config", "target=all")
    assert "sources.corpus evaluation.sha256" in output.partition("Not accepted:")[2]
    assert edited.plan() == evaluations() | {"resources/corpora/evaluation.txt"}


def test_an_input_that_was_made_anew_with_other_bytes_is_never_accepted(edited):
    """An input is lost and built again by the new version: others were made from the old one."""
    upgrade(edited)
    merged = edited / "results/Two/safetensors"
    shutil.rmtree(merged)
    edited.build("results/Two/safetensors")
    path = Path(f"{merged}.recipe.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    output = edited.run("accept", "--config", "target=Two")
    assert "results/Two/safetensors is not the one from which this was made" in output
    assert of("Two", "BF16", "Q8_0") <= edited.plan()


def test_what_is_damaged_or_missing_is_not_accepted(edited):
    upgrade(edited)
    os.truncate(edited / "results/Mix/gguf/Mix-static.gguf", 1000)
    (edited / "results/Mix/gguf/Mix-mixed.gguf").unlink()
    output = edited.run("accept", "--config", "target=Mix")
    assert "Mix-static.gguf has 1000 bytes" in output and "it is missing" in output
    assert of("Mix", "static", "mixed") <= edited.plan()
    done = edited.run("accept", "--config", "target=results/Mix/gguf/Mix-static.gguf", check=False)
    assert "it is missing" not in done and "has 1000 bytes" in done


def test_what_is_made_from_something_damaged_is_not_accepted(edited):
    os.truncate(edited / "results/Two/safetensors/model.safetensors", 1000)
    (edited / "results/Mix/gguf/Mix-static.gguf").unlink()
    assert "in code or tools alone" not in edited.run("why")
    before = edited.plan()
    assert everything("Two") <= before
    edited.run("accept", "--config", "target=all")
    assert edited.plan() == before
    upgrade(edited)
    edited.run("accept", "--config", "target=Two")
    assert everything("Two") <= edited.plan()


def test_reclaimed_intermediates_are_accepted_by_their_records(edited):
    upgrade(edited)
    shutil.rmtree(edited / "results/Two/safetensors")
    (edited / "results/Two/gguf/Two-BF16.gguf").unlink()
    edited.run("accept", "--config", "target=Two")
    assert edited.plan() == everything("Mix") - of("Mix", "merge")


def test_an_accepted_artifact_is_stale_again_by_the_next_change(edited):
    upgrade(edited)
    edited.run("accept", "--config", "target=all")
    upgrade(edited)
    assert edited.plan() == MERGED
    edited.run("accept", "--config", "target=all")
    assert len(record(edited, "results/Mix/safetensors").accepted) == 2
    assert edited.plan() == set()


def test_what_is_built_from_accepted_artifacts_is_fresh(edited):
    upgrade(edited)
    edited.run("accept", "--config", "target=all")
    edited.quants.append("Q5_K_M")
    new = of("Mix", "Q5_K_M", "Q5_K_M/shards", "Q5_K_M/evaluation", "base", "report", "card")
    assert edited.plan() == new
    edited.build()
    assert edited.plan() == set()


def test_another_version_of_a_tool_is_accepted_and_named(tmp_path, monkeypatch):
    project = Project.create(tmp_path / "project")
    monkeypatch.chdir(project.path)
    planned = Planned(project.config)
    monkeypatch.setattr(lib.stages.shared, "llama_version", lambda path, contents: "b99999-new")
    session = planned.session()
    answer = judge(session.plan, session.graph)
    assert answer.refused == [] and len(answer.adopted) == 17
    quant = dict((made.path, lines) for made, lines in answer.adopted)[
        "results/Mix/gguf/Mix-Q8_0.gguf"
    ]
    assert any(line.startswith("tool llama.cpp b") and "b99999-new" in line for line in quant)
    adopt(answer)
    session = planned.session()
    left = {made.path for made in session.plan.stale(session.graph)}
    assert left == {made.path for made in answer.retold}


def test_nothing_is_accepted_while_a_run_is_at_work(edited):
    upgrade(edited)
    with open(edited / ".snakemake/quantmill/run.hold", "a") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        output = edited.run("accept", "--config", "target=all", check=False)
    assert "Another run is at work" in output
    assert edited.plan() == MERGED


def test_a_word_that_names_nothing_is_said(edited):
    output = edited.run("accept", "--config", "target=Mixx", check=False)
    assert "target: Mixx is no model of the config, no rule that makes something" in output
    assert set(FORMS) == {"Mix", "Two", "Plain"}
