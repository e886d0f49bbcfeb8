"""`snakemake speed`: measured by the real llama-bench, kept as long as it is true, read by nothing.

llama-bench is compiled once a machine, which takes minutes on two cores.
"""

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import speed
from gguf_speed import extra_tool
from lib.errors import UserError
from lib.report.speed import Conditions
from lib.stages.registry import FAMILIES
from project import FORMS, Project
from test_answers import ask

pytestmark = pytest.mark.slow
MIX, STATIC = ("Q8_0", "mixed", "static", "BF16"), "results/Mix/gguf/Mix-static.gguf"


def measured(project: Project, model: str = "Mix") -> dict[str, dict]:
    """What this host has measured: {form: its entry}."""
    (file,) = (project / f"results/{model}/speed").glob("*.json")
    return json.loads(file.read_text())["forms"]


def undisturbed(project: Project, model: str = "Mix", **busy: float) -> dict[str, dict]:
    """As `measured`, after writing there what others used of the cores: nothing, or `busy`."""
    (file,) = (project / f"results/{model}/speed").glob("*.json")
    host = json.loads(file.read_text())
    for name, form in host["forms"].items():
        form["busy"] = busy.get(name, 0.0)
    file.write_text(json.dumps(host))
    return host["forms"]


def test_every_form_is_measured_once_and_nothing_becomes_stale_by_it(project):
    before = project.files()
    said = ask(project, "speed")
    for model, quants in FORMS.items():
        forms = measured(project, model)
        assert forms.keys() == {"BF16", *quants}
        page = (project / f"results/{model}/speed/speed.html").read_text()
        for name, form in forms.items():
            for kind in ("prompt", "text"):
                assert form[kind]["mean"] > 0 and form[kind]["error"] >= 0
            assert f'<th scope="row">{name}</th>' in page and f"  {name} " in said
            assert (project / form["file"]).stat().st_size == form["bytes"]
    assert project.plan() == set()
    assert before.items() <= project.files().items()
    assert "Mix/speed/speed.html" in (project / "results/index.html").read_text()
    assert "No orphans" in (orphans := ask(project, "orphans")) and "speed" not in orphans
    assert "are what their records say" in ask(project, "verify")

    once = undisturbed(project)
    assert ask(project, "speed").count(" ± ") == 2 * sum(len(q) + 1 for q in FORMS.values())
    assert measured(project) == once
    ask(project, "speed", "--config", "target=static", "--force")
    again = measured(project)
    assert again.pop("static") != once.pop("static") and again == once


def test_what_was_disturbed_or_has_another_engine_is_measured_again(project):
    ask(project, "speed", "--config", "target=Plain")
    once = undisturbed(project, "Plain", Q4_0=0.5)
    ask(project, "speed", "--config", "target=Plain,BF16")
    assert measured(project, "Plain") == once
    page = (project / "results/Plain/speed/speed.html").read_text()
    assert "Q4_0 is too low: others used 50% of the cores." in page
    ask(project, "speed", "--config", "target=Plain")
    now = measured(project, "Plain")
    assert now["BF16"] == once["BF16"] and now["Q4_0"]["text"] != once["Q4_0"]["text"]

    once = undisturbed(project, "Plain")
    project.config["llama_cpp"] = {"cuda": "off"}
    ask(project, "speed", "--config", "target=Plain,BF16")
    now = measured(project, "Plain")
    assert now["Q4_0"] == once["Q4_0"] and now["BF16"]["text"] != once["BF16"]["text"]
    before, command = (form["BF16"]["conditions"]["command"][-1] for form in (once, now))
    assert json.loads(command) == json.loads(before) | {"cuda": "off"}


def test_the_cpu_of_a_machine_with_gpus_is_a_host_of_its_own(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 0, GPU-a, 0\necho 1, GPU-b, 1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    name = socket.gethostname()
    for visible, host in (("0,1", name), ("", f"{name}-cpu"), ("GPU-b", f"{name}-gpu1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert speed.this_machine().host == host
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert speed.this_machine().host == name


def test_what_was_measured_of_a_model_that_is_gone_is_an_orphan(project):
    ask(project, "speed", "--config", "target=Plain,Q4_0")
    del project.config["models"]["Plain"]
    mine = project / "results/Plain/speed/mine.txt"
    mine.write_text("mine")
    assert "  results/Plain/speed " in ask(project, "orphans")
    ask(project, "clean_orphans", "--config", "yes=true")
    assert list(mine.parent.iterdir()) == [mine]
    assert "results/Plain/speed" not in ask(project, "orphans").split("without a record")[0]


def test_a_changed_file_is_measured_again_and_what_is_not_there_is_named(project):
    ask(project, "speed", "--config", "target=Mix")
    once = undisturbed(project)
    project.quants[1]["output_tensor_type"] = "q8_0"
    (project / STATIC).unlink()
    said = ask(project, "speed", "--config", "target=Mix")
    assert f"  static  is not there, or stale; build it first: {STATIC}\n" in said
    assert "  mixed   is not there, or stale; " in said
    assert measured(project) == once, "the files that were measured have not changed yet"
    project.build()
    said = ask(project, "speed", "--config", "target=Q8_0,mixed,results/Mix/gguf/Mix-static.gguf")
    now = measured(project)
    assert now.pop("mixed")["sha256"] != once.pop("mixed")["sha256"] and now == once
    assert not (project / "results/Plain/speed").exists()
    ask(project, "speed", "--config", "target=Two,Q8_0,results/Plain/gguf/Plain-Q4_0.gguf")
    assert measured(project, "Two").keys() == {"Q8_0"}
    assert measured(project, "Plain").keys() == {"Q4_0"}
    said = ask(project, "speed", "--config", "target=Q8_0,nosuch", fails=True)
    assert "speed: target: nosuch is no model and no form of one" in said
    said = ask(project, "speed", "--config", "target=Two,mixed", fails=True)
    assert "speed: target: mixed is no model and no form of Two" in said


def test_what_another_machine_has_measured_is_shown_beside_as_long_as_it_is_of_this_file(project):
    ask(project, "speed", "--config", "target=Plain")
    folder = project / "results/Plain/speed"
    (own,) = folder.glob("*.json")
    other = json.loads(own.read_text()) | {"host": "elsewhere"}
    other["forms"]["BF16"]["sha256"] = "0" * 64
    (folder / "elsewhere.json").write_text(json.dumps(other))
    ask(project, "speed", "--config", "target=Plain")
    page = (folder / "speed.html").read_text()
    assert page.count("<h2>") == 2 and "<h2>elsewhere</h2>" in page
    assert page.count('<td class="muted">–</td>') == 2
    assert project.plan() == set() and "elsewhere" not in ask(project, "orphans")
    (folder / "elsewhere.json").write_text("{}")
    said = ask(project, "speed", "--config", "target=Plain", fails=True)
    assert "speed/elsewhere.json: `snakemake speed` did not write it; move it away" in said


def test_nothing_is_measured_beside_a_build(project):
    with (project / ".snakemake/quantmill/run.hold").open("a") as run:
        fcntl.flock(run, fcntl.LOCK_EX)
        assert "Another run is at work in " in ask(project, "speed", fails=True)
    assert not list(project.path.glob("results/*/speed"))


def test_a_form_that_its_engine_cannot_run_is_said_and_the_others_are_kept(project):
    with (project / STATIC).open("r+b") as file:
        file.write(b"NONE")  # in place of GGUF
    said = ask(project, "speed", "--config", "target=Mix", fails=True)
    assert f"gguf_speed: {STATIC}: llama-bench ended with status 1" in said
    assert "  static  could not be measured; see above\n" in said
    assert measured(project).keys() == {*MIX} - {"static"}


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_a_family_that_needs_a_gpu_is_said_to_need_one(project):
    project.model("Plain")["exl2"] = {"bits": 4}
    said = ask(project, "speed", "--config", "target=4.0bpw")
    assert "  4.0bpw  EXL2 needs a CUDA GPU, and there is none here\n" in said


def test_a_users_own_llama_cpp_is_measured_by_its_own_tool(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    with pytest.raises(UserError, match="has no llama-bench; build this target there too"):
        extra_tool("llama-bench", {"path": str(tmp_path)}, 1)
    tool = Path(shutil.copy("/bin/true", tmp_path / "bin/llama-bench"))
    assert extra_tool("llama-bench", {"path": str(tmp_path)}, 1) == tool
    built = SimpleNamespace(options={"path": str(tmp_path)})
    os.utime(tool, (0, 0))  # when it was built decides too, since its version may stay the same
    meter = FAMILIES["gguf"].speedometer(SimpleNamespace(llama_version="b1", llama_cpp=built))
    assert meter.engine == "llama.cpp b1, own build of 1970-01-01T00:00:00+00:00"


def test_an_engine_finds_its_extension_and_what_the_user_has_put_beside_his_python(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", "/site")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    found = json.dumps({"backend": "PLACES", "prompt": [1, 2], "text": [1, 2]})
    python.write_text(f"#!/bin/sh\necho '{found}' | sed \"s-PLACES-$PYTHONPATH-\"\n")
    python.chmod(0o755)
    places = {"environment": str(tmp_path), "extension": "extension"}
    meter = SimpleNamespace(
        command=["x.py"], uses={role: SimpleNamespace(path=path) for role, path in places.items()}
    )
    form = SimpleNamespace(
        artifact=SimpleNamespace(path="m"), record=SimpleNamespace(bytes=1, sha256="0")
    )
    conditions = Conditions(engine="e", command=[], cpu="c", gpus=[], threads=1, **speed.LENGTHS)
    assert speed.measure(form, meter, conditions).backend == "extension:/site"
