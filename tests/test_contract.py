"""The staleness contract of the design, a case for each row: what a change makes stale.

Each row changes a copy of a project that was built with the real tools, and compares the jobs of a
dry run with the exact set. Rows marked `builds` are built too: afterwards there is nothing to be
done, and no other file was touched.
"""

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import lib.planning.graph
import lib.record.code
import lib.stages.merge
import lib.stages.shared
import lib.stages.similarity
from lib.record.tools import CONVERTER, LLAMA_TOOLS
from lib.stages import environments
from lib.studies import grid, lock
from project import (
    EVERYTHING,
    FORMS,
    ROOT,
    Planned,
    Project,
    append,
    evaluations,
    everything,
    lie_about_mtimes,
    of,
    owner,
    shards,
)
from task_texts import make_tasks
from tiny_models import make_adapter

NOTHING: set[str] = set()
CARDS = of("Mix", "report", "card") | of("Two", "report", "card") | of("Plain", "report", "card")
Row = Callable[[Project], set[str]]
ROWS: list = []


def row(*arguments: str, builds: bool = False) -> Callable[[Row], Row]:
    """A case: a function that makes a change and returns the paths that must be built.

    `arguments` are Snakemake's.
    """

    def add(change: Row) -> Row:
        ROWS.append(pytest.param(change, arguments, builds, id=change.__name__))
        return change

    return add


@pytest.mark.parametrize(("change", "arguments", "builds"), ROWS)
def test_exactly_what_a_change_makes_stale_is_built(project, change, arguments, builds):
    expected = change(project)
    assert project.plan(*arguments) == expected
    if builds:
        rebuilt_exactly(project, expected, *arguments)


def rebuilt_exactly(project: Project, expected: set[str], *arguments: str) -> None:
    """Build: only the expected artifacts change, each has a new record, and all is fresh."""
    before = project.files()
    project.build(*arguments)
    after = project.files()
    touched = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {path for path in touched if owner(path, expected) is None} == set()
    assert {
        path.removesuffix(".recipe.json") for path in touched if path.endswith(".recipe.json")
    } >= expected
    assert project.plan() == NOTHING


# What the config says


@row()
def nothing_was_changed(p):
    return NOTHING


@row()
def a_quant_added(p):
    p.quants.append("Q5_K_M")
    return of("Mix", "Q5_K_M", "Q5_K_M/shards", "base", "Q5_K_M/evaluation", "report", "card")


@row(builds=True)
def a_quant_removed(p):
    p.quants.remove("Q8_0")
    return of("Mix", "report", "card")


@row()
def a_quant_removed_and_brought_back(p):
    p.quants.remove("Q8_0")
    p.plan()
    p.quants.insert(0, "Q8_0")
    return NOTHING


@row()
def a_quant_renamed(p):
    p.quants[2]["name"] = "plain"
    return of("Mix", "plain", "plain/shards", "base", "plain/evaluation", "report", "card")


@row()
def another_type_under_the_same_name(p):
    p.quants[2]["type"] = "Q5_0"
    return of("Mix", "static", "static/shards", "base", "static/evaluation", "report", "card")


@row()
def two_options_of_a_quant_swapped(p):
    quant = p.quants[1]
    quant["token_embedding_type"], quant["output_tensor_type"] = "q5_0", "q8_0"
    return of("Mix", "mixed", "mixed/shards", "base", "mixed/evaluation", "report", "card")


@row()
def an_option_set_to_what_another_has(p):
    p.quants[1]["output_tensor_type"] = p.quants[1]["token_embedding_type"]
    return of("Mix", "mixed", "mixed/shards", "base", "mixed/evaluation", "report", "card")


@row()
def two_quants_swapped_under_their_names(p):
    p.quants[1], p.quants[2] = {**p.quants[2], "name": "mixed"}, {**p.quants[1], "name": "static"}
    forms = ("mixed", "static")
    made = of("Mix", *forms, *(f"{form}/evaluation" for form in forms), "base", "report", "card")
    return made | shards("Mix", *forms)


@row(builds=True)
def a_further_text(p):
    p.model("Mix")["evaluate"]["also"] = ["calibration"]
    names = ["base.kld", *(f"{form}.json" for form in ["BF16", *FORMS["Mix"]])]
    made = {f"results/Mix/evaluation/calibration/{name}" for name in names}
    return made | of("Mix", "report", "card")


@row(builds=True)
def tasks_added(p):
    make_tasks(p / "data")
    arc = {"kind": "multiple_choice", "file": "data/arc.bin", "count": 8}
    p.model("Mix")["evaluate"]["tasks"] = {"hellaswag": "data/hellaswag.txt", "arc": arc}
    return scores("hellaswag", "arc") | of("Mix", "report", "card")


@row()
def a_merge_weight(p):
    p.model("Mix")["merge"]["models"][0]["parameters"]["weight"] = 0.5
    return everything("Mix") | everything("Two")


@row()
def two_merge_weights_swapped(p):
    first, second = (m["parameters"] for m in p.model("Mix")["merge"]["models"])
    first["weight"], second["weight"] = second["weight"], first["weight"]
    return everything("Mix") | everything("Two")


@row()
def two_models_of_a_merge_swapped(p):
    p.model("Mix")["merge"]["models"].reverse()
    return everything("Mix") | everything("Two")


@row()
def a_merge_of_a_merge(p):
    p.model("Two")["merge"]["parameters"]["t"] = 0.5
    return everything("Two")


@row()
def the_seed_of_a_method_that_draws(p):
    p.model("Mix")["random_seed"] = 43
    return everything("Mix") | everything("Two")


@row()
def the_seed_of_a_method_that_does_not_draw(p):
    """The card shows the command with its seed; no weight depends on it."""
    p.model("Two")["random_seed"] = 43
    return of("Two", "card")


@row()
def split_max_size(p):
    p.model("Mix")["gguf"]["split_max_size"] = "2M"
    return shards()


@row()
def a_split_max_size_that_every_quant_fits(p):
    """What lies there are shards; links to the whole files take their place."""
    p.model("Mix")["gguf"]["split_max_size"] = "50G"
    return shards()


def scores(*tasks: str) -> set[str]:
    """What each form of Mix solves of the tasks."""
    forms = ["BF16", *FORMS["Mix"]]
    return {f"results/Mix/evaluation/tasks/{t}/{form}.json" for t in tasks for form in forms}


def put_merge_into_a_file(p: Project, file: str = "merges/mix.yaml") -> Path:
    path = p / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(p.model("Mix")["merge"], sort_keys=False))
    p.model("Mix")["merge"] = file
    return path


@row()
def a_merge_put_into_a_file(p):
    put_merge_into_a_file(p)
    return NOTHING


@row()
def a_merges_file_elsewhere_with_another_date_and_a_comment(p):
    path = put_merge_into_a_file(p, "elsewhere.yml")
    path.write_text(f"# mine\n{path.read_text()}")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    p.model("Mix")["merge"] = "./elsewhere.yml"
    return NOTHING


@row()
def a_weight_in_a_merges_file_with_the_old_date(p):
    path = put_merge_into_a_file(p)
    stat = path.stat()
    path.write_text(path.read_text().replace("weight: 0.6", "weight: 0.7"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return everything("Mix") | everything("Two")


@row()
def the_chunks_of_the_imatrix(p):
    p.model("Mix")["gguf"]["imatrix"]["chunks"] = 3
    return of("Mix", "imatrix", "Q8_0", "mixed") | shards("Mix", "Q8_0", "mixed") | with_imatrix()


def with_imatrix() -> set[str]:
    return of("Mix", "base", "Q8_0/evaluation", "mixed/evaluation", "report", "card")


@row()
def the_context_of_the_evaluation(p):
    p.model("Mix")["evaluate"]["context"] = 256
    return evaluations()


@row()
def the_outtype(p):
    p.model("Plain")["gguf"]["outtype"] = "f16"
    return of("Plain", "F16", "Q4_0", "report", "card")


@row()
def two_edits_at_once(p):
    p.quants.append("Q5_K_M")
    p.model("Mix")["gguf"]["split_max_size"] = "2M"
    new = of("Mix", "Q5_K_M", "Q5_K_M/shards", "Q5_K_M/evaluation", "base", "report", "card")
    return new | shards()


@row()
def a_model_added(p):
    p.config["models"]["More"] = copy.deepcopy(p.model("Two"))
    return of("More", "merge", "BF16", "Q8_0", "report", "card")


@row()
def a_model_removed(p):
    del p.config["models"]["Two"]
    return NOTHING


@row()
def the_same_said_otherwise(p):
    """Another order of keys and quants, comments, flow style, 4.0 for 4, "1M" for 1M, ./a for a."""
    mix = p.model("Mix")
    mix["gguf"]["imatrix"]["chunks"] = 4.0
    mix["merge"]["models"][0]["parameters"] = {"density": 0.50, "weight": 6e-1}
    p.quants.reverse()
    p.config["corpora"]["calibration"]["path"] = "./data/calibration.txt"
    p.config["models"] = dict(reversed(p.config["models"].items()))
    p.text = "# mine\n" + yaml.safe_dump(
        p.config, default_flow_style=True, sort_keys=True, width=40
    )
    p.text = p.text.replace("split_max_size: 1M", 'split_max_size: "1M"')
    assert '"1M"' in p.text
    return NOTHING


@row()
def publish_settings(p):
    p.model("Mix")["publish"] = {"gguf": "org/Mix-GGUF", "private": True}
    return NOTHING


@row()
def a_config_in_two_files(p):
    more = {"models": {"Mix": {"gguf": {"quants": [*p.quants, "Q5_K_M"]}}}}
    (p / "second.yaml").write_text(yaml.safe_dump(more))
    p.more_configs.append("second.yaml")
    return of("Mix", "Q5_K_M", "Q5_K_M/shards", "base", "Q5_K_M/evaluation", "report", "card")


@row("--config", "models={Mix: {gguf: {split_max_size: 2M}}}")
def one_key_on_the_command_line(p):
    return shards()


@row("--config", "model=Two")
def one_model_alone(p):
    p.model("Mix")["gguf"]["split_max_size"] = "2M"
    p.model("Two")["gguf"]["quants"].append("Q4_0")
    return of("Two", "Q4_0", "report", "card")


@row("--cores", "1", "--set-threads", "quantize=2", "--set-resources", "evaluate:mem_mb=9000")
def cores_threads_and_memory(p):
    return NOTHING


@row("--profile", str(ROOT / "profiles/gpu"))
def another_profile(p):
    return NOTHING


# What comes from outside


def change(path: Path, at: int = -200) -> None:
    """Another content of the same size and mtime, as by an editor that keeps times."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def calibrated() -> set[str]:
    made = of("Mix", "imatrix", "Q8_0", "mixed") | shards("Mix", "Q8_0", "mixed") | with_imatrix()
    return made | {"resources/corpora/calibration.txt"}


@row()
def the_calibration_text(p):
    change(p / "data/calibration.txt")
    return calibrated()


@row()
def the_evaluation_text(p):
    change(p / "data/evaluation.txt")
    return evaluations() | {"resources/corpora/evaluation.txt"}


@row()
def the_calibration_text_with_an_older_mtime(p):
    (p / "data/calibration.txt").write_text("Old text of another length.\n" * 500)
    os.utime(p / "data/calibration.txt", (1_000_000_000, 1_000_000_000))
    return calibrated()


def links(p: Project, name: str) -> str:
    """The directory of links to a source."""
    (found,) = (p / "resources/models").glob(f"m--{name}-??????")
    return found.relative_to(p.path).as_posix()


@row()
def a_source_with_an_older_mtime(p):
    """As `cp -p` and `rsync -t` leave it."""
    change(p / "m/code/model.safetensors")
    os.utime(p / "m/code/model.safetensors", (1_000_000_000, 1_000_000_000))
    return everything("Mix") | everything("Two") | {links(p, "code")}


@row()
def a_source_that_several_models_use(p):
    change(p / "m/prose/model.safetensors")
    return everything("Mix") | everything("Two") | everything("Plain") | {links(p, "prose")}


def as_rsync(source: Path, to: Path) -> None:
    """As `rsync -rt`: where size or mtime differ, a copy with the mtime, renamed into place."""
    for path in source.iterdir():
        old, stat = (to / path.name).stat(), path.stat()
        if (old.st_size, int(old.st_mtime)) != (stat.st_size, int(stat.st_mtime)):
            part = shutil.copyfile(path, to / f".{path.name}.part")
            os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            part.replace(to / path.name)


def rsync(source: Path, to: Path) -> None:
    subprocess.run(["rsync", "-rt", f"{source}/", to], check=True)


def a_file_is_brought(p: Project, bring: Callable[[Path, Path], None]) -> set[str]:
    other = p / "other"
    shutil.copytree(p / "m/code", other)
    (other / "config.json").write_text(
        (p / "m/code/config.json").read_text().replace("1024", "2048")
    )
    os.utime(other / "config.json", (1_000_000_000, 1_000_000_000))
    inode = (p / "m/code/config.json").stat().st_ino
    bring(other, p / "m/code")
    assert (p / "m/code/config.json").stat().st_mtime == 1_000_000_000
    assert (p / "m/code/config.json").stat().st_ino != inode
    return everything("Mix") | everything("Two") | {links(p, "code")}


@row()
def a_file_brought_as_rsync_does(p):
    return a_file_is_brought(p, as_rsync)


@row()
def a_file_that_rsync_brought(p):
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed: apt-get install rsync")
    return a_file_is_brought(p, rsync)


@row()
def a_card_or_a_stray_file_beside_a_source(p):
    (p / "m/code/README.md").write_text("# Read me\n")
    (p / "m/code/old.bin").write_bytes(b"old")
    return NOTHING


@row()
def sources_touched(p):
    for path in [*(p / "data").iterdir(), *(p / "m").rglob("*")]:
        os.utime(path)
    return NOTHING


@row()
def sources_copied(p):
    for name in ("m", "data"):
        shutil.copytree(p / name, p / f"{name}2", copy_function=shutil.copyfile)
        shutil.rmtree(p / name)
        (p / f"{name}2").rename(p / name)
    return NOTHING


@row()
def the_working_directory_moved_through_tar_and_every_mtime_lost(p):
    archive = p.path.with_suffix(".tar")
    subprocess.run(["tar", "-C", p.path, "--mtime=2001-01-01", "-cf", archive, "."], check=True)
    p.path = p.path.with_name("unpacked")
    p.path.mkdir()
    subprocess.run(["tar", "-C", p.path, "-xmf", archive], check=True)
    lie_about_mtimes(p.path)
    return NOTHING


@row()
def copied_to_another_machine_without_the_sources_of_links(p):
    """Links lead to the first directory's models; broken, they are made again only if needed."""
    for path in (p / "resources/models").glob("*/*"):
        if path.is_symlink():
            path.unlink()
            path.symlink_to(f"/nowhere/{path.name}")
    return NOTHING


# What lies in the working directory


@row()
def dot_snakemake_deleted(p):
    shutil.rmtree(p / ".snakemake")
    return NOTHING


@row(builds=True)
def dot_snakemake_deleted_and_an_option_changed(p):
    shutil.rmtree(p / ".snakemake")
    p.quants[2]["type"] = "Q5_0"
    return of("Mix", "static", "static/shards", "base", "static/evaluation", "report", "card")


@row()
def logs_benchmarks_and_remembered_digests_deleted(p):
    for name in ("logs", "benchmarks"):
        shutil.rmtree(p / name)
    (p / "resources/contents.json").unlink()
    return NOTHING


def delete(p: Project, *artifacts: str) -> None:
    """Delete what was made; records stay, as reclaiming leaves them."""
    for name in (
        set().union(*artifacts) if artifacts and isinstance(artifacts[0], set) else artifacts
    ):
        path = p / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@row()
def intermediates_deleted(p):
    delete(p, of("Mix", "merge", "BF16", "base") | of("Two", "merge", "BF16") | of("Plain", "BF16"))
    return NOTHING


@row()
def intermediates_deleted_and_a_quant_added(p):
    delete(p, of("Mix", "merge", "BF16") | of("Two", "merge", "BF16"))
    p.model("Two")["gguf"]["quants"].append("Q4_0")
    return of("Mix", "merge") | of("Two", "merge", "BF16", "Q4_0", "report", "card")


@row(builds=True)
def reclaimed_and_a_quant_added(p):
    p.config["reclaim"] = ["safetensors", "bf16"]
    delete(p, of("Mix", "merge", "BF16", "base") | of("Two", "merge", "BF16") | of("Plain", "BF16"))
    assert p.plan() == NOTHING
    p.quants.append("Q5_K_M")
    new = of("Mix", "Q5_K_M", "Q5_K_M/shards", "Q5_K_M/evaluation", "base", "report", "card")
    return new | of("Mix", "merge", "BF16")


@row()
def reclaim_was_turned_on(p):
    p.config["reclaim"] = ["safetensors", "bf16"]
    return NOTHING


@row()
def a_reclaimed_intermediate_whose_recipe_changed(p):
    """Nothing needs it but what is made from it, and all of that is stale."""
    p.config["reclaim"] = ["safetensors", "bf16"]
    delete(p, of("Mix", "merge", "BF16") | of("Two", "merge", "BF16"))
    p.model("Two")["merge"]["parameters"]["t"] = 0.5
    return everything("Two") | of("Mix", "merge")


@row(builds=True)
def a_finished_quant_deleted(p):
    delete(p, *of("Mix", "static"))
    return of("Mix", "static")


@row()
def a_finished_quant_and_its_recipe_deleted(p):
    delete(p, *of("Mix", "static"))
    (p / "results/Mix/gguf/Mix-static.gguf.recipe.json").unlink()
    return of("Mix", "static")


@row()
def the_imatrix_deleted(p):
    delete(p, *of("Mix", "imatrix"))
    return of("Mix", "imatrix")


@row()
def a_page_of_the_report_deleted(p):
    (p / "results/Mix/report/quality.html").unlink()
    return of("Mix", "report")


@row(builds=True)
def a_shard_deleted(p):
    (p / "results/Mix/shards/Q8_0/Mix-Q8_0-00002-of-00002.gguf").unlink()
    return shards("Mix", "Q8_0")


@row()
def a_file_of_a_merge_deleted(p):
    (p / "results/Two/safetensors/tokenizer.model").unlink()
    return everything("Two")


@row(builds=True)
def a_quant_truncated(p):
    path = p / "results/Mix/gguf/Mix-static.gguf"
    os.truncate(path, path.stat().st_size - 1)
    return of("Mix", "static", "static/shards", "base", "static/evaluation", "report", "card")


@row()
def a_quant_that_grew(p):
    with (p / "results/Plain/gguf/Plain-Q4_0.gguf").open("ab") as file:
        file.write(b"x")
    return of("Plain", "Q4_0", "report", "card")


@row()
def a_truncated_merge_spoils_what_is_made_from_it(p):
    os.truncate(p / "results/Mix/safetensors/model.safetensors", 1000)
    return everything("Mix") | everything("Two")


@row()
def a_page_of_the_report_truncated(p):
    os.truncate(p / "results/Mix/report/quality.svg", 10)
    return of("Mix", "report", "card")


@row()
def bits_flipped_in_place(p):
    """Only `verify` reads every byte."""
    change(p / "results/Mix/gguf/Mix-Q8_0.gguf")
    return NOTHING


# Recipes


def record(p: Project, artifact: str) -> Path:
    return p / f"{artifact}.recipe.json"


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@row(builds=True)
def a_recipe_missing(p):
    record(p, *of("Mix", "imatrix")).unlink()
    return of("Mix", "imatrix")


@row()
def a_recipe_empty(p):
    os.truncate(record(p, *of("Mix", "merge")), 0)
    return of("Mix", "merge")


@row()
def a_recipe_half_written(p):
    half(record(p, *shards("Mix", "Q8_0")))
    return shards("Mix", "Q8_0")


@row()
def a_recipe_that_is_no_recipe(p):
    record(p, *of("Mix", "card")).write_text("[1, 2]\n")
    return of("Mix", "card")


@row()
def a_recipe_of_another_artifact(p):
    shutil.copy(record(p, *of("Mix", "Q8_0")), record(p, *of("Mix", "static")))
    return of("Mix", "static")


@row()
def a_recipe_of_the_same_quant_of_another_model(p):
    shutil.copy(record(p, *of("Two", "Q8_0")), record(p, *of("Mix", "Q8_0")))
    return of("Mix", "Q8_0")


@row()
def a_recipe_of_a_later_schema(p):
    path = record(p, *of("Plain", "Q4_0"))
    path.write_text(path.read_text().replace('"quantmill": 1', '"quantmill": 2'))
    return of("Plain", "Q4_0")


@row()
def the_recipe_of_a_source_missing(p):
    record(p, links(p, "code")).unlink()
    return NOTHING


@row()
def a_recipe_of_one_page_of_the_report_missing(p):
    record(p, "results/Mix/report/quality.html").unlink()
    return of("Mix", "report")


@row()
def an_artifact_built_again_with_other_bytes(p):
    """What is made from it is judged by the bytes that it was made from."""
    path = record(p, *of("Mix", "static"))
    data = json.loads(path.read_text())
    data["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    return of("Mix", "static/shards", "base", "static/evaluation", "report", "card")


def test_what_was_made_from_a_swapped_file_follows_when_its_recipe_is_lost(project):
    """That the new quant's bytes differ is seen after it is built: the run asks for another one."""
    for name in (*of("Plain", "report"), *of("Plain", "card")):
        path = record(project, name)
        data = json.loads(path.read_text())
        data["inputs"]["form Q4_0"] = "0" * 64
        path.write_text(json.dumps(data))
    record(project, *of("Plain", "Q4_0")).unlink()
    assert project.plan() == of("Plain", "Q4_0")
    assert "2 artifacts are not up to date" in project.build()
    assert project.plan() == of("Plain", "report", "card")
    assert "not up to date" not in project.build()
    assert project.plan() == NOTHING


# What is asked for


@row("results/Mix/gguf/Mix-Q6_K.gguf")
def one_file_alone(p):
    p.quants.extend(["Q6_K", "Q5_K_M"])
    return of("Mix", "Q6_K")


@row("results/Mix/gguf/Mix-Q8_0.gguf")
def one_file_alone_that_is_fresh(p):
    p.quants.append("Q6_K")
    return NOTHING


@row("results/Mix/report/quality.html")
def a_page_alone(p):
    p.quants.append("Q6_K")
    return of("Mix", "Q6_K", "base", "Q6_K/evaluation", "report")


@row("results/Mix/README.md")
def a_card_alone(p):
    """It links to the report's plot, and does not wait for it."""
    p.quants.append("Q6_K")
    return of("Mix", "Q6_K", "base", "Q6_K/evaluation", "card")


@row("--until", "quantize")
def until_a_rule(p):
    p.quants.append("Q6_K")
    return of("Mix", "Q6_K")


@row("quants")
def a_target(p):
    p.quants.append("Q6_K")
    p.model("Mix")["gguf"]["split_max_size"] = "2M"
    return of("Mix", "Q6_K")


@row("gguf")
def a_target_of_reclaimed_intermediates(p):
    p.config["reclaim"] = ["safetensors", "bf16"]
    delete(p, of("Mix", "merge", "BF16") | of("Two", "merge", "BF16"))
    return of("Mix", "merge", "BF16") | of("Two", "merge", "BF16")


@row("--forcerun", "imatrix")
def forcerun_of_a_rule(p):
    return of("Mix", "imatrix", "Q8_0", "mixed") | shards("Mix", "Q8_0", "mixed") | with_imatrix()


@row("--forcerun", "results/Mix/gguf/Mix-static.gguf")
def forcerun_of_a_file(p):
    return of("Mix", "static", "static/shards", "base", "static/evaluation", "report", "card")


@row("-R", "quantize")
def forcerun_with_reclaimed_intermediates(p):
    p.config["reclaim"] = ["safetensors", "bf16"]
    made = of("Mix", "merge", "BF16") | of("Two", "merge", "BF16") | of("Plain", "BF16")
    delete(p, made)
    quants = set().union(*(of(model, *forms) for model, forms in FORMS.items()))
    return made | quants | CARDS | shards() | evaluations() - of("Mix", "BF16/evaluation")


@row("--forceall")
def forceall(p):
    made = everything("Mix") | everything("Two") | everything("Plain")
    corpora = {f"resources/corpora/{name}.txt" for name in ("calibration", "evaluation")}
    sources = {links(p, name) for name in ("base", "code", "prose")}
    return made | corpora | sources | {"resources/llama.cpp"}


@row()
def speed_was_measured_on_another_machine(p):
    (p / "results/Mix/speed").mkdir()
    (p / "results/Mix/speed/elsewhere.json").write_text("{}")
    return NOTHING


@row("--force", "results/Plain/gguf/Plain-Q4_0.gguf")
def force_of_a_target(p):
    return of("Plain", "Q4_0")


@row("--forceall", "results/Plain/gguf/Plain-Q4_0.gguf")
def forceall_of_a_target(p):
    return of("Plain", "BF16", "Q4_0") | {links(p, "prose"), "resources/llama.cpp"}


def test_texts_that_git_checks_out_again(project, git):
    """git dates what it checks out now: only another content makes artifacts stale."""
    git(project.path, "init", "--quiet")
    git(project.path, "add", "data", "m")
    git(project.path, "commit", "--quiet", "--message", "as built")
    append(project / "data/evaluation.txt", "Another line.\n")
    git(project.path, "commit", "--quiet", "--all", "--message", "another text")
    git(project.path, "checkout", "--quiet", "HEAD~1")
    assert project.plan() == NOTHING
    git(project.path, "checkout", "--quiet", "-")
    assert project.plan() == evaluations() | {"resources/corpora/evaluation.txt"}


# Cold forms


def notes(*artifacts: str) -> set[str]:
    """The notes with which these are deleted here."""
    return {f"{path}.cold.json" for path in artifacts}


def test_cold_reclaiming_quants_deletes_them_and_they_come_back_for_what_is_stale_alone(
    project, tmp_path, monkeypatch
):
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "store"))
    project.config["reclaim"] = ["quants"]
    said = {path: json.loads(record(project, path).read_text()) for path in shards()}
    links = {path for path in said if said[path].get("notes", {}).get("link")}
    mix = of("Mix", *FORMS["Mix"])
    assert project.plan() == notes(*quantized(), *(shards() - links))
    project.build()
    assert project.plan() == NOTHING
    assert not [path for path in quantized() if (project / path).exists()]
    text = (project / "data/evaluation.txt").read_text()
    append(project / "data/evaluation.txt", "Another line.\n")
    again = evaluations() | {"resources/corpora/evaluation.txt"}
    assert project.plan() == again | mix | notes(*mix)
    (project / "data/evaluation.txt").write_text(text)
    assert project.plan() == NOTHING
    project.quants.append("Q5_K_M")
    new = of("Mix", "Q5_K_M", "Q5_K_M/shards")
    told = of("Mix", "base", "Q5_K_M/evaluation", "report", "card")
    assert project.plan() == new | notes(*new) | told
    assert project.plan("quants") == of("Mix", "Q5_K_M") | quantized()
    project.config["reclaim"] = []
    assert project.plan() == new | told


# The code


def quantized() -> set[str]:
    """Every quant."""
    return set().union(*(of(model, *forms) for model, forms in FORMS.items()))


def judged(*models: str) -> set[str]:
    return set().union(*(of(model, "report", "card") for model in models))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(None, NOTHING, id="a clone elsewhere"),
        pytest.param("scripts/evaluate.py", evaluations() - of("Mix", "base"), id="a program"),
        pytest.param("scripts/lib/formats/exllamav2.py", NOTHING, id="a module of something else"),
        pytest.param(
            "scripts/lib/report/judge.py", judged(*FORMS), id="a module that programs import"
        ),
        pytest.param(
            "scripts/lib/flags/quantize.py",
            quantized()
            | (evaluations() - of("Mix", "BF16/evaluation"))
            | judged(*FORMS)
            | shards(),
            id="what spells llama-quantize's options",
        ),
        pytest.param(
            "scripts/templates/card.md.j2",
            set().union(*(of(m, "card") for m in FORMS)),
            id="a template",
        ),
        pytest.param("scripts/check_gguf.py", NOTHING, id="a program that only judges"),
        pytest.param("scripts/lib/planning/graph.py", NOTHING, id="the planner"),
        pytest.param("rules/split.txt", NOTHING, id="a stray file"),
    ],
)
def test_an_edit_of_the_code_makes_stale_what_it_makes(edited, file, expected):
    """tests/test_code.py has every file and rule; here a real dry run is asked about some."""
    if file:
        append(edited.repository / file, "\nadded = 1\n")
    base = of("Mix", "base") if any("/evaluation/" in path for path in expected) else NOTHING
    assert edited.plan() == expected | base


def test_an_edit_of_a_shell_block_makes_stale_what_it_makes(edited):
    path = edited.repository / "rules/quantize.smk"
    path.write_text(
        path.read_text().replace(
            "llama-gguf-split --split --split", "llama-gguf-split  --split -v --split"
        )
    )
    assert edited.plan() == shards()


def test_layout_and_resources_of_a_rule_make_nothing_stale(edited):
    path = edited.repository / "rules/quantize.smk"
    text = path.read_text()
    assert "    threads: QUANT.threads" in text
    path.write_text(
        text.replace("    threads: QUANT.threads", "    threads: 1").replace(
            " \\\n            ", " \\\n    "
        )
    )
    assert edited.plan() == NOTHING


# Rows that only concern planning: no GPU, no other version of a tool is at hand

EXL2 = {
    "merge": {
        "merge_method": "linear",
        "models": [
            {"model": f"./m/{name}", "parameters": {"weight": 0.5}} for name in ("code", "prose")
        ],
        "dtype": "bfloat16",
    },
    "exl2": {"bits": [3, 5.0]},
    "evaluate": {},
}


@pytest.fixture
def planned(built: Project, tmp_path, monkeypatch) -> Callable[[dict], Planned]:
    """Make a Planned of one model, in a directory with the built project's sources."""
    monkeypatch.chdir(tmp_path)
    for name in ("m", "data"):
        (tmp_path / name).symlink_to(built / name)
    corpora = copy.deepcopy(built.config["corpora"])
    return lambda model, **more: Planned(
        copy.deepcopy({"corpora": corpora, "models": {"M": model}, **more})
    )


def exl2(*names: str) -> set[str]:
    return {f"results/M/{name}" for name in names}


SHOWN = ("report/quality.csv", "README.md")


def test_exl2_a_bits_value_added_needs_no_measurement(planned):
    p = planned(EXL2)
    assert p.plan() == NOTHING
    p.config["models"]["M"]["exl2"]["bits"] = [3.0, 4.25, 5]
    assert p.plan() == exl2("exl2/4.25bpw", "evaluation/4.25bpw.json", *SHOWN)


def test_exl2_after_the_merge_was_reclaimed_it_comes_back_for_one_bits_value(planned):
    p = planned(EXL2)
    p.config["reclaim"] = ["safetensors"]
    shutil.rmtree("results/M/safetensors")
    assert p.plan() == NOTHING
    p.config["models"]["M"]["exl2"]["bits"].append(6)
    assert p.plan() == exl2("safetensors", "exl2/6.0bpw", "evaluation/6.0bpw.json", *SHOWN)


def test_exl2_the_head_of_the_quants_is_no_part_of_the_measurement(planned):
    p = planned(EXL2)
    p.config["models"]["M"]["exl2"]["head_bits"] = 8
    forms = ("3.0bpw", "5.0bpw")
    made = [f"exl2/{form}" for form in forms] + [f"evaluation/{form}.json" for form in forms]
    assert p.plan() == exl2(*made, *SHOWN)


def test_exl2_a_lost_measurement_never_comes_out_the_same_twice(planned):
    p = planned(EXL2)
    Path("results/M/exl2/measurement.json").unlink()
    forms = ("3.0bpw", "5.0bpw")
    made = [f"exl2/{form}" for form in forms] + [f"evaluation/{form}.json" for form in forms]
    assert p.plan() == exl2("exl2/measurement.json", *made, *SHOWN)


COMPRESSED = {
    "source": "./m/prose",
    "compressed_tensors": {"schemes": ["FP8_DYNAMIC", {"scheme": "NVFP4", "rows": 4}]},
    "evaluate": {"chunks": 2},
}


def test_compressed_tensors_a_scheme_added_is_built_and_measured_alone(planned):
    p = planned(COMPRESSED)
    assert p.plan() == NOTHING
    p.config["models"]["M"]["compressed_tensors"]["schemes"].append("W4A16")
    made = ("compressed-tensors/W4A16", "evaluation/W4A16.json")
    assert p.plan() == exl2(*made, *SHOWN)


def test_compressed_tensors_the_calibration_text_concerns_what_is_calibrated_alone(planned, built):
    p = planned(COMPRESSED)
    Path("text.txt").write_text("Another text. " * 1000)
    p.config["corpora"]["calibration"]["path"] = "./text.txt"
    made = ("compressed-tensors/NVFP4", "evaluation/NVFP4.json")
    assert p.plan() == exl2(*made, *SHOWN) | {"resources/corpora/calibration.txt"}


def test_compressed_tensors_the_evaluation_text_concerns_no_weights(planned):
    p = planned(COMPRESSED)
    p.config["models"]["M"]["evaluate"]["chunks"] = 3
    forms = ("FP8_DYNAMIC", "NVFP4", "transformers")
    made = ("evaluation/base.kld", *(f"evaluation/{form}.json" for form in forms))
    assert p.plan() == exl2(*made, *SHOWN)


def test_compressed_tensors_without_gguf_its_figures_are_those_with_it(planned):
    """A gguf section, or --config skip=gguf, makes no figure stale."""
    p = planned(COMPRESSED)
    p.config["models"]["M"]["gguf"] = {"quants": ["Q8_0"]}
    made = ("gguf/M-Q8_0.gguf", "evaluation/BF16.json", "evaluation/Q8_0.json")
    assert p.plan() == exl2(*made, *SHOWN)


@pytest.fixture
def own(built: Project, tmp_path) -> Path:
    """A directory with files of the user's own; they are of the model Plain."""
    (tmp_path / "own").mkdir()
    for file in ("Plain/gguf/Plain-BF16.gguf", "Mix/imatrix.dat"):
        shutil.copy(built / "results" / file, tmp_path / "own")
    (tmp_path / "own/measurement.json").write_text(json.dumps({"measurement": {"x": " " * 200}}))
    return tmp_path / "own"


def touched_and_copied(path: Path) -> None:
    """The same content in another inode, with another date."""
    path.rename(path.with_name("old"))
    shutil.copyfile(path.with_name("old"), path)
    os.utime(path, (1_000_000_000, 1_000_000_000))


def test_only_the_content_of_an_imatrix_of_ones_own_decides(planned, own):
    model = {"source": "./m/prose", "evaluate": {}}
    quants = ["Q8_0", {"name": "static", "type": "Q4_0", "imatrix": False}]
    imatrix = {"file": "./own/imatrix.dat"}
    p = planned(model | {"gguf": {"imatrix": imatrix, "quants": quants, "split_max_size": "1M"}})
    assert p.plan() == NOTHING
    touched_and_copied(own / "imatrix.dat")
    assert p.plan() == NOTHING
    (own / "imatrix.dat").rename(own / "renamed.dat")
    p.config["models"]["M"]["gguf"]["imatrix"]["file"] = "own/renamed.dat"
    assert p.plan() == NOTHING
    change(own / "renamed.dat")
    made = ("imatrix.dat", "gguf/M-Q8_0.gguf", "shards/Q8_0", "evaluation/Q8_0.json")
    assert p.plan() == exl2(*made, *SHOWN)


def test_only_the_content_of_a_gguf_source_decides(planned, own):
    gguf = {"imatrix": {"chunks": 4}, "quants": ["Q8_0", "Q4_0"], "split_max_size": "1M"}
    p = planned({"source": "./own/Plain-BF16.gguf", "gguf": gguf, "evaluate": {}})
    made = {made.path for made in p.session().graph}
    assert p.plan() == NOTHING
    touched_and_copied(own / "Plain-BF16.gguf")
    assert p.plan() == NOTHING
    (own / "Plain-BF16.gguf").rename(own / "renamed.gguf")
    p.config["models"]["M"]["source"] = "./own/renamed.gguf"
    assert p.plan() == exl2("README.md")  # the card says what the model is made from
    change(own / "renamed.gguf")
    assert p.plan() == made


def test_a_link_to_a_gguf_source_that_leads_nowhere_is_made_again_when_something_needs_it(
    planned, own
):
    p = planned({"source": "./own/Plain-BF16.gguf", "gguf": {"quants": ["Q8_0"]}})
    link = Path("results/M/gguf/M-BF16.gguf")
    link.unlink()
    link.symlink_to("/nowhere/M-BF16.gguf")
    assert p.plan() == NOTHING
    p.config["models"]["M"]["gguf"]["quants"].append("Q4_0")
    assert p.plan() == exl2("gguf/M-BF16.gguf", "gguf/M-Q4_0.gguf", *SHOWN)


def test_only_the_content_of_an_exl2_measurement_of_ones_own_decides(planned, own):
    exl2_section = {"bits": [3, 5.0], "measurement": "./own/measurement.json"}
    p = planned({**EXL2, "exl2": exl2_section})
    assert p.plan() == NOTHING
    touched_and_copied(own / "measurement.json")
    assert p.plan() == NOTHING
    forms = ("3.0bpw", "5.0bpw")
    made = [f"exl2/{form}" for form in forms] + [f"evaluation/{form}.json" for form in forms]
    change(own / "measurement.json", -50)
    assert p.plan() == exl2("exl2/measurement.json", *made, *SHOWN)


def test_the_documents_of_mergekit_multi_are_stale_one_by_one(planned, tmp_path):
    first = {"name": "first", **EXL2["merge"]}
    last = {"merge_method": "slerp", "base_model": "first", "parameters": {"t": 0.5}}
    last["models"] = [{"model": "first"}, {"model": "./m/prose"}]

    def write() -> None:
        (tmp_path / "multi.yaml").write_text(f"{json.dumps(first)}\n---\n{json.dumps(last)}\n")

    write()
    p = planned({"merge": "multi.yaml", "gguf": {"quants": ["Q8_0"]}})
    assert p.plan() == NOTHING
    last["parameters"] = {"t": 0.4}
    write()
    ours = exl2("safetensors", "gguf/M-BF16.gguf", "gguf/M-Q8_0.gguf", *SHOWN)
    assert p.plan() == ours
    first["models"].reverse()
    write()
    assert p.plan() == ours | {f"results/first/{name}" for name in ("safetensors", *SHOWN)}


MOE = {
    "moe": {
        "base_model": "./m/code",
        "gate_mode": "cheap_embed",
        "experts": [
            {"source_model": f"./m/{name}", "positive_prompts": [name]}
            for name in ("code", "prose")
        ],
    },
    "random_seed": 7,
    "gguf": {"quants": ["Q8_0"]},
    "evaluate": {},
}
OF_MOE = (
    *("safetensors", "gguf/M-BF16.gguf", "gguf/M-Q8_0.gguf", "evaluation/base.kld"),
    *("evaluation/BF16.json", "evaluation/Q8_0.json", *SHOWN),
)


def test_moe_a_prompt_makes_the_mixture_stale_and_all_that_follows(planned):
    p = planned(MOE)
    assert p.plan() == NOTHING
    p.config["models"]["M"]["moe"]["experts"][1]["positive_prompts"].append("another")
    assert p.plan() == exl2(*OF_MOE)


def test_moe_the_seed_counts_where_something_is_drawn_alone(planned):
    p = planned(MOE)
    p.config["models"]["M"]["random_seed"] = 8
    assert p.plan() == exl2("README.md")  # the card says the seed
    p.config["models"]["M"]["moe"]["experts"][0]["noise_scale"] = 0.01
    assert p.plan() == exl2(*OF_MOE)


def test_moe_a_comment_another_order_of_keys_or_the_place_of_the_file_concern_nothing(
    planned, tmp_path
):
    p = planned(MOE)
    moe = dict(reversed(MOE["moe"].items()))
    (tmp_path / "moe.yml").write_text(f"# A comment\n{yaml.safe_dump(moe, sort_keys=False)}")
    p.config["models"]["M"]["moe"] = "moe.yml"
    assert p.plan() == NOTHING


GGUF = {
    "source": "./m/code",
    "gguf": {"imatrix": {"chunks": 4}, "quants": ["Q8_0"], "split_max_size": "1M"},
    "evaluate": {},
}
BY_LLAMA_CPP = (
    *("gguf/M-BF16.gguf", "imatrix.dat", "gguf/M-Q8_0.gguf", "shards/Q8_0", "evaluation/base.kld"),
    *("evaluation/BF16.json", "evaluation/Q8_0.json", *SHOWN),
)


def test_another_version_of_llama_cpp_makes_stale_what_it_makes(planned, monkeypatch):
    p = planned(GGUF)
    assert p.plan() == NOTHING
    monkeypatch.setattr(lib.stages.shared, "llama_version", lambda path, contents: "b99999")
    assert p.plan() == exl2(*BY_LLAMA_CPP) | {"resources/llama.cpp"}


def test_another_version_of_mergekit_makes_stale_the_merge_and_what_is_made_from_it(
    planned, monkeypatch
):
    p = planned({"merge": EXL2["merge"], "gguf": {"quants": ["Q8_0"], "imatrix": False}})
    version = lib.stages.merge.package_version
    monkeypatch.setattr(
        lib.stages.merge,
        "package_version",
        lambda name: "9.9" if name == "mergekit" else version(name),
    )
    assert p.plan() == exl2("safetensors", "gguf/M-BF16.gguf", "gguf/M-Q8_0.gguf", *SHOWN)


def test_another_version_of_matplotlib_makes_stale_the_reports(planned, monkeypatch):
    p = planned(GGUF)
    version = lib.planning.graph.package_version
    monkeypatch.setattr(
        lib.planning.graph,
        "package_version",
        lambda name: "9.9" if name == "matplotlib" else version(name),
    )
    assert p.plan() == exl2(*SHOWN)


def test_a_file_of_tasks_makes_stale_its_scores_alone_and_only_by_its_content(planned):
    Path("tasks").mkdir()
    make_tasks(Path("tasks"))
    tasks = {"hellaswag": "tasks/hellaswag.txt", "winogrande": "tasks/winogrande.csv"}
    p = planned(GGUF | {"evaluate": {"tasks": tasks, "harness": True}})
    section = p.config["models"]["M"]["evaluate"]

    def scores(task: str) -> set[str]:
        places = (f"evaluation/tasks/{task}/BF16.json", f"evaluation/tasks/{task}/Q8_0.json")
        return exl2(*places, f"harness/{task}.json", *SHOWN)

    assert p.plan() == NOTHING
    text = Path("tasks/hellaswag.txt").read_text()
    Path("tasks/hellaswag.txt").write_text(text * 2)
    assert p.plan() == scores("hellaswag")
    Path("tasks/again.txt").write_text(text)
    section["tasks"]["hellaswag"] = "tasks/again.txt"  # the same content elsewhere
    assert p.plan() == NOTHING
    section["tasks"]["winogrande"] = {"file": "tasks/winogrande.csv", "count": 4}
    assert p.plan() == scores("winogrande")
    del section["tasks"]["winogrande"], section["harness"]
    assert p.plan() == exl2(*SHOWN)


MLX = {"source": "./m/code", "mlx": {"forms": [4, "mxfp4"]}, "evaluate": {}}


def mlx(*forms: str) -> set[str]:
    """These forms of MLX, their evaluations, and what shows them."""
    places = [place for form in forms for place in (f"mlx/{form}", f"evaluation/{form}.json")]
    return exl2(*places, *SHOWN)


def test_mlx_a_form_is_added_and_its_options_changed_alone(planned):
    p = planned(MLX)
    forms = p.config["models"]["M"]["mlx"]["forms"]
    assert p.plan() == NOTHING
    forms[0] = {"bits": 4, "group_size": 64}  # the same, in more words
    assert p.plan() == NOTHING
    forms.append(8)
    assert p.plan() == mlx("8bit")
    forms[0] = {"name": "4bit", "bits": 4, "group_size": 32}
    assert p.plan() == mlx("8bit", "4bit")


def test_mlx_the_evaluation_text_makes_stale_evaluations_and_no_weights(planned):
    p = planned(MLX)
    p.config["corpora"]["evaluation"] = p.config["corpora"]["calibration"]
    stale = [f"evaluation/{name}" for name in ("base.kld", "mlx.json", "4bit.json", "mxfp4.json")]
    assert p.plan() == exl2(*stale, *SHOWN) | {"resources/corpora/evaluation.txt"}


def test_mlx_without_gguf_in_a_run_its_forms_are_measured_all_the_same(planned):
    p = planned(MLX | {"gguf": {"quants": ["Q8_0"]}})
    p.config["skip"] = ["gguf"]
    p.config["models"]["M"]["mlx"]["forms"].append(8)
    assert p.plan() == mlx("8bit")


@pytest.fixture
def repinned(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """A function that changes the version behind a `pin` such as `mlx-lm==` in envs/NAME.txt."""

    def repin(name: str, pin: str) -> None:
        shutil.copytree(environments.FILES, tmp_path / "envs")
        pins = tmp_path / f"envs/{name}.txt"
        pins.write_text(pins.read_text().replace(pin, f"{pin}9."))
        monkeypatch.setattr(environments, "FILES", tmp_path / "envs")

    return repin


@pytest.mark.parametrize(("pin", "is_stale"), [("mlx-lm==", True), ("tqdm==", False)])
def test_mlx_a_pin_of_the_tool_makes_stale_what_it_makes(planned, repinned, pin, is_stale):
    p = planned(MLX)
    repinned("mlx", pin)
    stale = mlx("4bit", "mxfp4") | exl2("evaluation/mlx.json") | {"resources/environments/mlx"}
    assert p.plan() == (stale if is_stale else NOTHING)


SEEING = {"source": "./m/seeing", "gguf": {"quants": ["Q8_0"], "mmproj": True}, "evaluate": {}}


def beside(*files: str) -> set[str]:
    """These GGUF files of model M, and what shows them."""
    return exl2(*(f"gguf/{file}.gguf" for file in files), *SHOWN)


def test_a_projector_is_added_alone_and_stale_by_its_model_alone(planned):
    p = planned(SEEING)
    gguf = p.config["models"]["M"]["gguf"]
    assert p.plan() == NOTHING
    gguf["mmproj"] = ["F16", "bf16"]  # the same, and another
    assert p.plan() == beside("mmproj-M-BF16")
    gguf["mmproj"], gguf["quants"] = "f16", ["Q8_0", "Q4_0"]
    assert p.plan() == beside("M-Q4_0") | exl2("evaluation/Q4_0.json")
    gguf["mmproj"], gguf["quants"] = False, ["Q8_0"]
    assert p.plan() == exl2(*SHOWN)


def test_what_prepares_images_makes_stale_the_projector(planned):
    shutil.copytree("m/seeing", "seeing")
    p = planned(SEEING | {"source": "./seeing"})
    append(Path("seeing/preprocessor_config.json"), " ")
    assert set(beside("mmproj-M-F16")) < p.plan()


def test_a_draft_makes_stale_itself_and_no_quant(planned):
    shutil.copytree("m/code", "code")
    config = json.loads(Path("code/config.json").read_text()) | {"num_nextn_predict_layers": 1}
    Path("code/config.json").write_text(json.dumps(config))
    p = planned(SEEING | {"source": "./code", "gguf": {"quants": ["Q8_0"]}})
    gguf = p.config["models"]["M"]["gguf"]
    gguf["mtp"] = True
    assert p.plan() == beside("mtp-M-Q8_0")
    p.mark(p.session().find("results/M/gguf/mtp-M-Q8_0.gguf"))
    assert p.plan() == exl2(*SHOWN)
    gguf["mtp"] = "f16"
    assert p.plan() == beside("mtp-M-F16")


def test_an_adapter_makes_stale_itself_and_no_quant(planned):
    shutil.copytree("m/poet", "poet")
    p = planned(SEEING | {"source": "./m/code", "gguf": {"quants": ["Q8_0"]}})
    gguf, path = p.config["models"]["M"]["gguf"], "results/M/gguf/M.lora-poet.gguf"
    gguf["lora"] = {"poet": "./poet"}
    made = p.session().find(path)
    source = {made.inputs["adapter"].path}
    assert p.plan() == beside("M.lora-poet") | source
    p.mark(made)
    assert p.plan() == exl2(*SHOWN)
    make_adapter(Path("poet"), seed=1)  # as if trained on
    assert p.plan() == beside("M.lora-poet") | source
    gguf["lora"] = {"other": "./poet"}
    assert p.plan() == beside("M.lora-other") | source


EXL3 = {"source": "./m/code", "exl3": {"bits": [3, 4.5]}, "evaluate": {}}


def exl3(*bits: str) -> set[str]:
    """These bits values of EXL3, their evaluations, and what shows them."""
    places = [f"exl3/{number}bpw" for number in bits]
    return exl2(*places, *(f"evaluation/{number}bpw-exl3.json" for number in bits), *SHOWN)


def test_exl3_a_bits_value_is_added_alone_and_the_head_concerns_all(planned):
    p = planned(EXL3)
    section = p.config["models"]["M"]["exl3"]
    assert p.plan() == NOTHING
    section["bits"] = [3.0, 4.5, 6]
    assert p.plan() == exl3("6.0")
    section |= {"bits": [3, 4.5], "head_bits": 8}
    assert p.plan() == exl3("3.0", "4.5")


def test_exl3_its_calibration_text_concerns_it_alone_and_the_evaluation_text_no_weights(planned):
    p = planned(EXL3 | {"gguf": {"imatrix": False, "quants": ["Q8_0"]}, "exl2": {"bits": 3}})
    p.config["models"]["M"]["exl3"]["corpus"] = "calibration"
    assert p.plan() == exl3("3.0", "4.5") | {"resources/corpora/calibration.txt"}
    p = planned(EXL3)
    p.config["corpora"]["evaluation"] = p.config["corpora"]["calibration"]
    forms = ("exllamav3", "3.0bpw-exl3", "4.5bpw-exl3")
    stale = ["evaluation/base.kld", *(f"evaluation/{form}.json" for form in forms)]
    assert p.plan() == exl2(*stale, *SHOWN) | {"resources/corpora/evaluation.txt"}


@pytest.mark.parametrize(("pin", "is_stale"), [("exllamav3==", True), ("rich==", False)])
def test_exl3_a_pin_of_the_tool_makes_stale_what_it_makes(planned, repinned, pin, is_stale):
    p = planned(EXL3)
    repinned("exllamav3", pin)
    tools = {f"resources/{kind}/exllamav3" for kind in ("environments", "extensions")}
    stale = exl3("3.0", "4.5") | exl2("evaluation/exllamav3.json") | tools
    assert p.plan() == (stale if is_stale else NOTHING)


def test_exl2_another_torch_in_its_environment_makes_nothing_stale(planned, repinned):
    p = planned(EXL2)
    repinned("exllamav2", "torch==")
    assert p.plan() == NOTHING


STUDY = {
    **EVERYTHING["studies"]["Grid"],
    "measure": {"perplexity": ["calibration", "evaluation"], "chunks": 2},
}
TABLE = "results/studies/Which/study.csv"


def candidate(name: str, *texts: str) -> set[str]:
    """A candidate's merge and conversion, and its perplexities on texts."""
    here = f"results/studies/Which/candidates/{name}"
    measured = {f"{here}/perplexity/1/{text}.json" for text in texts}
    return {f"{here}/safetensors", f"{here}/gguf/{name}-BF16.gguf", *measured}


@pytest.fixture
def studied(planned) -> Planned:
    """A study with all measured and nothing kept, and a model that has taken its winner."""
    merge = json.loads(json.dumps(STUDY["merge"]).replace('"$w"', "0.3"))
    lock.write({"Which": lock.Chosen([], lock.Winner("0.3", {"w": 0.3}, 0, merge))})
    p = planned(
        {"merge": {"study": "Which"}, "gguf": {"quants": ["Q8_0"]}}, studies={"Which": STUDY}
    )
    for made in p.session().graph:
        if made.temporary:
            path = Path(made.path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert p.plan() == NOTHING
    return p


def test_a_candidate_is_added_to_a_study_alone_and_the_model_keeps_the_winner(studied):
    study = studied.config["studies"]["Which"]
    study["vary"]["w"].append(0.7)
    assert studied.plan() == candidate("0.7", "calibration", "evaluation") | {TABLE}
    study["vary"]["w"] = [0.5, 0.7]  # the winner is none of it any more
    assert studied.plan() == candidate("0.7", "calibration", "evaluation") | {TABLE}


def test_candidates_that_were_deleted_come_back_for_another_text_and_measure_no_other(studied):
    text = Path("other.txt")
    text.write_text(Path("data/evaluation.txt").read_text() + " More.")
    studied.config["corpora"]["evaluation"]["path"] = str(text)
    parents = {
        f"results/studies/Which/parents/{name}/{file}"
        for name in (grid.word("./m/code"), grid.word("./m/prose"))
        for file in (f"gguf/{name}-BF16.gguf", "perplexity/1/evaluation.json")
    }
    candidates = candidate("0.3", "evaluation") | candidate("0.5", "evaluation")
    texts = {"resources/corpora/evaluation.txt"}
    assert studied.plan() == candidates | parents | texts | {TABLE}


def test_a_parameter_of_a_study_is_called_otherwise_and_its_table_alone_is_made_again(studied):
    study = studied.config["studies"]["Which"]
    study["merge"] = json.loads(json.dumps(study["merge"]).replace("$w", "$share"))
    study["vary"] = {"share": study["vary"]["w"]}
    assert studied.plan() == {TABLE}


def test_another_rule_to_choose_by_and_fewer_on_the_disk_measure_nothing(studied):
    study = studied.config["studies"]["Which"]
    study["choose"] = {"minimise": ["perplexity.evaluation"], "by": "pareto"}
    assert studied.plan() == {TABLE}
    study["at_once"] = 1
    del study["choose"]
    assert studied.plan() == NOTHING


def test_another_winner_in_the_lock_makes_stale_the_model_that_takes_it_and_not_the_study(studied):
    chosen = lock.read()
    chosen["Which"].winner.merge["models"][0]["parameters"]["weight"] = 0.5
    lock.write(chosen)
    made = ("safetensors", "gguf/M-BF16.gguf", "gguf/M-Q8_0.gguf", *SHOWN)
    assert studied.plan() == exl2(*made)


COMPARED = {
    "merge": {
        "merge_method": "ties",
        "base_model": "./m/base",
        "models": [{"model": f"./m/{n}", "parameters": {"weight": 0.5}} for n in ("code", "prose")],
        "dtype": "bfloat16",
    },
    "similarity": {},
}
SIMILARITY = exl2("similarity/similarity.csv", "similarity/similarity.svg")


def test_similarity_is_left_alone_by_all_parameters_of_the_merge(planned):
    """It is made before the merge, of the models alone."""
    p = planned(COMPARED)
    model = p.config["models"]["M"]
    assert p.plan() == NOTHING
    merge, merged = model["merge"], exl2("safetensors", *SHOWN)
    merge["models"][0]["parameters"]["weight"] = 0.7
    assert p.plan() == merged
    merge["models"].reverse()
    assert p.plan() == merged
    merge |= {"merge_method": "dare_ties", "dtype": "float16", "parameters": {"density": 0.5}}
    model["random_seed"] = 7
    assert p.plan() == merged
    model["similarity"] = {"base": "./m/base"}  # the same, in words
    assert p.plan() == merged


def test_similarity_is_made_again_when_a_model_is_added_or_a_fine_tune_or_the_base_changes(planned):
    for name in ("base", "code", "prose"):
        shutil.copytree(f"m/{name}", f"n/{name}")
    text = json.dumps(COMPARED).replace("./m/", "./n/")
    p = planned(json.loads(text))
    merged = exl2("safetensors", *SHOWN)
    for name in ("base", "code"):
        assert p.plan() == NOTHING
        change(Path(f"n/{name}/model.safetensors"))
        source = {next(Path("resources/models").glob(f"n--{name}-??????")).as_posix()}
        assert p.plan() == SIMILARITY | merged | source
        change(Path(f"n/{name}/model.safetensors"))
    p.config["models"]["M"]["merge"]["models"].append({"model": "./m/code"})
    added = {p.session().find("results/M/safetensors").inputs["model ./m/code"].path}
    assert p.plan() == SIMILARITY | merged | added


def test_similarity_added_or_removed_makes_nothing_else_stale(planned):
    p = planned({key: COMPARED[key] for key in ("merge",)})
    p.config["models"]["M"]["similarity"] = {}
    assert p.plan() == SIMILARITY
    p = planned(COMPARED)
    del p.config["models"]["M"]["similarity"]
    assert p.plan() == NOTHING


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("similarity.py", "# a comment\n", NOTHING),
        ("similarity.py", "added = 1\n", SIMILARITY),
        ("lib/formats/task_vectors.py", "added = 1\n", SIMILARITY),
        ("lib/stages/similarity.py", "added = 1\n", NOTHING),
        ("templates/similarity.html.j2", "more", exl2("similarity/similarity.svg")),
        ("lib/report/heat_maps.py", "added = 1\n", exl2("similarity/similarity.svg")),
    ],
)
def test_similarity_is_read_again_for_its_own_code_and_a_page_for_its_look(
    planned, monkeypatch, tmp_path, file, text, expected
):
    """Hours of reading are not repeated for a page's words."""
    p = planned(COMPARED)
    repository = tmp_path / "repository"
    for name in ("scripts", "rules"):
        shutil.copytree(ROOT / name, repository / name)
    append(repository / "scripts" / file, text)
    code = lib.record.code.Code(repository)
    monkeypatch.setattr(lib.record.code, "_own", lambda: code)
    assert p.plan() == expected


def test_similarity_another_version_of_numpy_makes_it_again(planned, monkeypatch):
    p = planned(COMPARED)
    version = lib.stages.similarity.package_version
    monkeypatch.setattr(lib.stages.similarity, "package_version", lambda name: f"{version(name)}.1")
    assert p.plan() == SIMILARITY


def own_tools(directory: Path, version: str) -> str:
    """A directory of tools that say one version and do nothing."""
    directory.mkdir()
    for name in (*LLAMA_TOOLS, CONVERTER):
        (directory / name).write_text(f"#!/bin/sh\necho 'version: {version}'\n")
        (directory / name).chmod(0o755)
    return str(directory)


def test_own_tools_elsewhere_make_nothing_stale_and_a_new_version_does(planned, tmp_path):
    p = planned(GGUF)
    p.config["llama_cpp"] = {"path": own_tools(tmp_path / "a", "10605 (abc)")}
    shutil.rmtree("results")
    shutil.rmtree("resources")
    p = Planned(p.config)
    assert p.plan() == NOTHING
    p.config["llama_cpp"]["path"] = own_tools(tmp_path / "b", "10605 (abc)")
    assert p.plan() == NOTHING
    own_tools(tmp_path / "c", "10606 (def)")
    for name in LLAMA_TOOLS:
        os.replace(tmp_path / "c" / name, tmp_path / "b" / name)
    assert p.plan() == exl2(*BY_LLAMA_CPP) | {"resources/llama.cpp"}
