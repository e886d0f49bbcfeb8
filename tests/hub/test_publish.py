"""Publishing: the plan is what happens, in commits that resume, and only when every gate holds."""

import hashlib
import json

import pytest
from hubtest import ok, refused
from standin import Fault

from lib.record import recipe as recipes

CARD = """---
license: apache-2.0
library_name: gguf
tags: [gguf]
---
# M-GGUF
M-Q4_K_M.gguf, M-Q8_0.gguf
![plot](quality.svg)
"""


class Model:
    """Finished artifacts of a model `M` in a working directory, and a manifest of them."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.main = []
        self.evaluations = {}
        for form in ("Q4_K_M", "Q8_0"):
            self.add(f"gguf/M-{form}.gguf", form.encode() * 1000, f"M-{form}.gguf")
            self.evaluate(form, 0.01)
        self.add("README.md", CARD.encode(), "README.md")
        self.add("report/quality.svg", b"<svg/>", "quality.svg")
        self.repo = {"repo": "acme/M-GGUF", "private": True, "max_file_size": 50_000_000_000}
        self.repo |= {"branches": {"main": self.main}, "recipes": {}, "sign": None}
        self.repo |= {"texts": {"recipes/config.yaml": "models: {}"}}

    def record(self, artifact: str, files: dict[str, bytes] | None = None, **notes: str) -> None:
        path = self.workdir.path / artifact
        known = {}
        if files is None:
            content = path.read_bytes()
            size, sha = len(content), hashlib.sha256(content).hexdigest()
        else:
            known = {n: [len(c), hashlib.sha256(c).hexdigest()] for n, c in files.items()}
            size, sha = sum(len(c) for c in files.values()), recipes.digest(known)
        recipe = {"step": "quantize", "options": {}, "inputs": {}, "sources": {}, "tools": {}}
        recipe |= {"code": "c"}
        data = {"quantmill": recipes.SCHEMA, "artifact": artifact, "recipe": recipe}
        data |= {"digest": recipes.digest(recipe)}
        data |= {"bytes": size, "sha256": sha, "inputs": {}, "files": known, "notes": notes}
        recipes.write_json(self.workdir.path / recipes.path_of(artifact), data)

    def add(self, path: str, content: bytes, name: str) -> None:
        artifact = f"results/M/{path}"
        target = self.workdir.path / artifact
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self.record(artifact)
        if name not in [file["name"] for file in self.main]:
            self.main.append({"artifact": artifact, "name": name})

    def add_directory(self, path: str, files: dict[str, bytes], name: str = "") -> dict:
        artifact = f"results/M/{path}"
        for member, content in files.items():
            target = self.workdir.path / artifact / member
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        self.record(artifact, files)
        return {"artifact": artifact, "name": name}

    def evaluate(self, form: str, kld: float | None, text: str = "def main") -> None:
        path = f"results/M/evaluation/{form}.json"
        (self.workdir.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.workdir.path / path).write_text(json.dumps({"kld": {"mean": kld}}))
        self.record(path, text=text)
        self.evaluations[form] = {"model": "M", "form": form, "evaluation": path, "max_kld": 0.05}

    def publish(self, action: str, token: str = "hf_alice", **env: str):
        manifest = {"repos": [self.repo], "forms": list(self.evaluations.values())}
        manifest |= {"made_from": {}, "bounds": {}}
        path = self.workdir.path / "manifest.json"
        path.write_text(json.dumps(manifest))
        args = ("--manifest", path, "--large", 1_000_000)
        return self.workdir.run("publish.py", action, *args, HF_TOKEN=token, **env)


@pytest.fixture
def model(workdir):
    return Model(workdir)


def writes(hub):
    return hub.requests("^(POST|PUT) ")


def test_plan_writes_nothing_and_push_does_what_it_said(model, hub):
    said = ok(model.publish("plan"))
    assert "acme/M-GGUF (new, private)" in said and said.count("    add ") == 10
    assert not writes(hub)
    ok(model.publish("push"))
    repo = hub.repos["model", "acme/M-GGUF"]
    assert repo.private
    assert repo.files()["M-Q8_0.gguf"] == b"Q8_0" * 1000
    record = json.loads(repo.files()["recipes/M-Q8_0.gguf.recipe.json"])
    assert record["artifact"] == "results/M/gguf/M-Q8_0.gguf"
    hub.log.clear()
    assert "0 files to upload" in ok(model.publish("push"))
    assert not writes(hub), "a second push of the same files wrote something"


def test_only_what_differs_is_replaced_and_strangers_are_left_alone(model, hub):
    ok(model.publish("push"))
    repo = hub.repos["model", "acme/M-GGUF"]
    repo.commit("main", {**repo.files(), "notes.txt": b"mine", "M-Q8_0.gguf": b"by hand"})
    model.add("report/quality.svg", b"<svg></svg>", "quality.svg")
    said = ok(model.publish("plan")).splitlines()
    actions = {tuple(line.split()[i] for i in (0, -1)) for line in said if line.startswith("    ")}
    assert {
        ("replace", "M-Q8_0.gguf"),
        ("replace", "quality.svg"),
        ("left", "notes.txt"),
    } <= actions
    assert ("keep", "M-Q4_K_M.gguf") in actions
    hub.log.clear()
    ok(model.publish("push"))
    assert repo.files()["M-Q8_0.gguf"] == b"Q8_0" * 1000
    assert repo.files()["notes.txt"] == b"mine" and repo.files()["quality.svg"] == b"<svg></svg>"
    assert not hub.requests("PUT /lfs/"), "an object that the hub has went up again"


def test_statements_of_what_is_no_longer_published_go_and_no_other_file_does(model, hub):
    ok(model.publish("push"))
    repo = hub.repos["model", "acme/M-GGUF"]
    gone = "attestations/results/M/gguf/M-Q8_0.gguf.intoto.json"
    assert gone in repo.files()
    model.main[:] = [file for file in model.main if "Q8_0" not in file["name"]]
    del model.evaluations["Q8_0"]
    said = ok(model.publish("plan"))
    assert "1 statement of what is gone" in said and gone in repo.files()
    assert "2 files left: not of this release, as `snakemake audit` will say" in said
    ok(model.publish("push"))
    assert gone not in repo.files()
    assert {"M-Q8_0.gguf", "recipes/M-Q8_0.gguf.recipe.json"} <= set(repo.files())


def test_without_the_key_that_the_config_names_nothing_is_published(model, hub):
    model.repo["sign"] = "none.pem"
    assert "none.pem: No such file or directory" in refused(model.publish("push"))
    assert not writes(hub)


def test_interrupted_push_goes_on_with_what_is_missing(model, hub):
    big = {form: form.encode() * 500_000 for form in ("A_Q4", "B_Q8")}
    for form, content in big.items():
        model.add(f"gguf/{form}.gguf", content, f"{form}.gguf")
    model.add("README.md", CARD.encode() + b"A_Q4.gguf B_Q8.gguf", "README.md")
    hub.multipart_over = 900_000
    first = hashlib.sha256(big["A_Q4"]).hexdigest()
    second = hashlib.sha256(big["B_Q8"]).hexdigest()
    hub.faults.append(Fault(f"PUT /lfs/{second}/2", status=403, times=9))
    said = refused(model.publish("push"))
    assert "acme/M-GGUF" in said and "B_Q8.gguf" in said
    repo = hub.repos["model", "acme/M-GGUF"]
    assert "A_Q4.gguf" in repo.files() and "README.md" not in repo.files()
    hub.faults.clear()
    hub.log.clear()
    ok(model.publish("push"))
    assert repo.files()["B_Q8.gguf"] == big["B_Q8"] and "README.md" in repo.files()
    assert not hub.requests(f"/{first}"), "a finished file went up again"


def test_faults_that_pass_do_not_stop_a_push(model, hub):
    hub.faults += [
        Fault("POST .*/commit/main", status=503),
        Fault("PUT /lfs/", cut=0),
        Fault("POST .*/preupload/", status=429, headers={"Retry-After": "0"}),
    ]
    ok(model.publish("push"))
    names = hub.repos["model", "acme/M-GGUF"].files()
    assert len([name for name in names if not name.startswith("attestations/")]) == 10
    assert all(fault.times == 0 for fault in hub.faults)


def test_exl2_gets_a_branch_for_each_bpw_and_the_measurement_on_main(model, hub):
    model.evaluations.clear()
    card = CARD.replace("M-Q4_K_M.gguf, M-Q8_0.gguf", "branches 5_0 and 6_5").encode()
    model.add("README.md", card, "README.md")
    model.add("exl2/measurement.json", b"{}", "measurement.json")
    main = [f for f in model.main if not f["name"].endswith(".gguf")]
    branches = {
        name: [model.add_directory(f"exl2/{bits}bpw", {"output.safetensors": bits.encode() * 99})]
        for name, bits in (("5_0", "5.0"), ("6_5", "6.5"))
    }
    model.repo |= {"repo": "acme/M-exl2", "branches": {"main": main, **branches}}
    ok(model.publish("push"))
    repo = hub.repos["model", "acme/M-exl2"]
    assert set(repo.branches) == {"main", "5_0", "6_5"}
    assert repo.files("5_0")["output.safetensors"] == b"5.0" * 99
    assert set(repo.files("5_0")) == {
        ".gitattributes", "output.safetensors", "recipes/5.0bpw.recipe.json",
        "attestations/results/M/exl2/5.0bpw.intoto.json", "attestations/release.intoto.json",
    }  # fmt: skip
    assert "measurement.json" in repo.files() and "output.safetensors" not in repo.files()


def test_file_over_the_limit_goes_up_as_its_shards_alone(model, hub):
    model.repo["max_file_size"] = 3500
    said = refused(model.publish("push"))
    assert "M-Q4_K_M.gguf: 6.0 kB is over the limit of 3.5 kB" in said
    assert not writes(hub)
    names = [f"M-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    model.add("README.md", CARD.encode() + b"M-Q4_K_M/", "README.md")
    shards = model.add_directory("shards/Q4_K_M", dict.fromkeys(names, b"half" * 100))
    model.main[0]["shards"] = shards["artifact"]
    model.repo["max_file_size"] = 5000
    ok(model.publish("push"))
    files = hub.repos["model", "acme/M-GGUF"].files()
    assert {f"M-Q4_K_M/{name}" for name in names} <= set(files)
    assert "M-Q4_K_M.gguf" not in files and "M-Q8_0.gguf" in files


def test_of_survivors_a_form_that_a_smaller_one_beats_is_left_out(model, hub):
    """Q4_K_M is the larger file here, of 6 kB."""
    chunks = [0.004 + 0.001 * n for n in range(20)]
    for form, more in (("Q8_0", 0.0), ("Q4_K_M", 0.0002)):
        kld = {"mean": sum(chunks) / 20 + more}
        measured = {"kld": kld, "corpus": "e", "context": 512, "chunks": 20, "engine": "llama.cpp"}
        measured["per_chunk"] = {
            "kld": [c + more * (1 + (-1) ** n / 4) for n, c in enumerate(chunks)]
        }
        path = model.workdir.path / f"results/M/evaluation/{form}.json"
        path.write_text(json.dumps(measured))
        entry = {"family": "gguf", "artifact": f"results/M/gguf/M-{form}.gguf", "survivors": True}
        model.evaluations[form] |= entry
    card = CARD.replace("M-Q4_K_M.gguf, ", "")
    model.add("README.md", card.encode(), "README.md")
    said = ok(model.publish("push"))
    assert "M-Q4_K_M.gguf is beaten by Q8_0, by 0.000200 ± 0.0000" in said
    files = hub.repos["model", "acme/M-GGUF"].files()
    assert "M-Q8_0.gguf" in files and "M-Q4_K_M.gguf" not in files
    assert not any("Q4_K_M" in name for name in files)
    for entry in model.evaluations.values():
        entry["survivors"] = False
    assert "M-Q4_K_M.gguf" in model.publish("plan").stdout


def test_gates_name_every_file_and_value_before_the_first_byte(model, hub):
    model.evaluate("Q4_K_M", 0.2)
    model.evaluate("Q8_0", float("nan"), text=" ")
    model.evaluations["IQ2_M"] = {
        "model": "M",
        "form": "IQ2_M",
        "evaluation": None,
        "max_kld": None,
    }
    card = CARD.replace("license: apache-2.0", "license: other").replace("M-Q8_0.gguf", "")
    model.add("README.md", card.encode(), "README.md")
    path = model.workdir.path / "results/M/gguf/M-Q8_0.gguf"
    path.write_bytes(b"q" + path.read_bytes()[1:])
    said = refused(model.publish("push"))
    for part in (
        "Q4_K_M.json: kld.mean is 0.2, over max_kld 0.05",
        "Q8_0.json: kld.mean is nan",
        "M Q8_0 wrote no text",
        "M IQ2_M: no evaluation",
        "README.md: license is other, but license_name is missing",
        "README.md: does not name M-Q8_0.gguf",
        "M-Q8_0.gguf: sha256 " + hashlib.sha256(path.read_bytes()).hexdigest(),
    ):
        assert part in said, said
    assert not writes(hub)
    assert "M IQ2_M: no evaluation" in model.publish("plan").stderr


def test_unfinished_and_truncated_files_are_not_published(model, hub):
    (model.workdir.path / recipes.path_of("results/M/gguf/M-Q4_K_M.gguf")).unlink()
    path = model.workdir.path / "results/M/gguf/M-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    said = refused(model.publish("push"))
    assert "M-Q4_K_M.gguf: no recipe beside it" in said
    assert "M-Q8_0.gguf: 3999 bytes, but its recipe says 4000" in said
    assert not writes(hub)


def test_without_rights_one_line_says_which_repository_and_login(model, hub):
    said = refused(model.publish("push", token="hf_bob")).strip().splitlines()
    assert len(said) == 1 and "acme/M-GGUF" in said[0] and "logged in as bob" in said[0]
    said = refused(model.publish("push", token=""))
    assert "not logged in" in said
    assert not hub.repos
