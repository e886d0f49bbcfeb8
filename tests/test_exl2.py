"""EXL2 without a GPU: what the converter is given, what it answers, how quality is counted.

What needs CUDA is proven by tests/gpu/.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lib.errors import UserError
from lib.formats.base_logits import Logits
from lib.formats.divergence import Scored, mean_and_error, scored, summary, windows
from lib.formats.exllamav2 import (
    check_measurement,
    exllama_config,
    make_view,
)

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
LAYERS = 2

# Stands in for exllamav2: makes what it makes, and fails as it fails, mostly with status 0.
CONVERTER = """
import argparse, json, os, shutil, struct, sys, time
parser = argparse.ArgumentParser()
for name in ("in_dir", "out_dir", "bits", "output_measurement", "compile_full", "measurement"):
    parser.add_argument("--" + name)
args, rest = parser.parse_known_args()
mode = os.environ.get("CONVERTER", "")
job = os.path.join(args.out_dir, "job_new.json")
resumed = os.path.exists(job)
print(" -- Resuming job" if resumed else " -- Beginning new job", *rest, flush=True)
print("EXLLAMA_NO_SDPA", os.environ.get("EXLLAMA_NO_SDPA"), flush=True)
old = json.load(open(job)) if resumed else {}
state = {"in_dir": args.in_dir, "output_measurement": args.output_measurement,
         "compile_full": args.compile_full, "progress": "quant"} | old
json.dump(state, open(job, "w"))
if mode == "hang":
    time.sleep(60)
if mode == "interrupt":
    sys.exit(0)
if mode == "complain":
    print(" ** Warning: Not enough sample data in calibration.parquet")
    sys.exit(1)

def write(path, names):
    header = {n: {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]}
              for i, n in enumerate(names)}
    text = json.dumps(header).encode()
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + b"\\0" * 4 * len(names))

if out := state["output_measurement"]:
    tried = [{"accuracy": 0.9, "total_bits": 3}]
    keys = [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "mlp")]
    if mode == "short":
        del keys[2:]
    json.dump({"measurement": dict.fromkeys(keys, tried) | {"model.norm.norm": None},
               "last_module_idx": 6}, open(out, "w"))
else:
    out = state["compile_full"]
    os.makedirs(out, exist_ok=True)
    for name in os.listdir(state["in_dir"]):
        if not name.endswith(".safetensors"):
            shutil.copy(os.path.join(state["in_dir"], name), out)
    config = json.load(open(out + "/config.json"))
    config["quantization_config"] = {"quant_method": "exl2", "bits": float(args.bits)}
    json.dump(config, open(out + "/config.json", "w"))
    write(out + "/output-00001-of-00002.safetensors", ["model.layers.0.mlp.q_weight"])
    if mode != "shard":
        write(out + "/output-00002-of-00002.safetensors",
              ["model.layers.1.mlp.q_weight", "lm_head.q_weight"])
    if mode == "cut":
        os.truncate(path := out + "/output-00002-of-00002.safetensors", os.path.getsize(path) - 3)
    if mode == "working":
        write(out + "/output_temp_3.safetensors", ["x"])
"""


@pytest.fixture
def model(tmp_path) -> Path:
    """A model directory as a hub download or a merge leaves it; its weights are never read here."""
    directory = tmp_path / "model"
    directory.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    (directory / "README.md").write_text("a card")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    index = {"weight_map": {"a": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture
def convert(tmp_path, model):
    """Run scripts/exl2_convert.py with the stand-in for exllamav2."""
    package = tmp_path / "packages" / "exllamav2" / "conversion"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "convert_exl2.py").write_text(CONVERTER)

    def run(step: str, *options: str, mode: str = "", digest: str = "d1", wait: bool = True):
        name = "measurement.json" if step == "measure" else "4.0bpw"
        command = [sys.executable, SCRIPTS / "exl2_convert.py", step, "--model", model]
        command += ["--work", tmp_path / "work", "--recipe-digest", digest]
        command += ["--output", tmp_path / name, *options]
        if step == "quantize":
            command += ["--measurement", tmp_path / "measurement.json", "--bits", "4.0"]
        env = os.environ | {"PYTHONPATH": str(package.parent.parent), "CONVERTER": mode}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = subprocess.Popen(command, env=env, text=True, **pipes)
        if not wait:
            return child
        out, error = child.communicate(timeout=60)
        return child.returncode, out, error

    return run


def test_quantized_model_is_complete_and_leaves_no_work(convert, tmp_path, model):
    status, out, error = convert("measure")
    assert status == 0, error
    status, out, error = convert("quantize", "--head-bits", "8", "--rope-alpha", "2.5")
    assert status == 0, error
    assert "--head_bits 8" in out and "--rope_alpha 2.5" in out
    made = {file.name for file in (tmp_path / "4.0bpw").iterdir()}
    assert made == {
        *("config.json", "generation_config.json", "tokenizer.json"),
        *("output-00001-of-00002.safetensors", "output-00002-of-00002.safetensors"),
    }  # neither the card nor an index of shards that are not there
    assert not (tmp_path / "work").exists()


def test_attention_of_the_converter_is_causal(convert):
    """exllamav2 0.3.2 forgets the mask in SDPA; without this, calibration sees the future."""
    assert "EXLLAMA_NO_SDPA 1" in convert("measure")[1]


@pytest.mark.parametrize(
    ("step", "mode", "message"),
    [
        ("measure", "interrupt", "measurement.json: the converter did not write it"),
        ("measure", "complain", "Not enough sample data"),
        ("measure", "short", "layer 1 of 2 was not measured"),
        ("quantize", "interrupt", "the converter wrote nothing there"),
        ("quantize", "shard", "a shard is missing, of 00002 there are 1"),
        ("quantize", "cut", "cut off"),
        ("quantize", "working", "output_temp_3.safetensors is a working file"),
    ],
)
def test_half_a_result_with_status_0_is_a_failure(convert, step, mode, message):
    if step == "quantize":
        assert convert("measure")[0] == 0
    status, _, error = convert(step, mode=mode)
    assert status == 1 and message in error
    assert len(error.splitlines()) == 1, error


def test_interrupted_job_goes_on_only_for_the_same_recipe(convert, tmp_path):
    assert convert("measure", mode="interrupt", digest="one")[0] == 1
    status, out, _ = convert("measure", mode="interrupt", digest="one")
    assert "Resuming job" in out
    status, out, error = convert("measure", digest="two")
    assert status == 0 and "Beginning new job" in out, error


@pytest.mark.parametrize("damage", ['{"progress": "qu', '{"progress": "quant", "invalid": true}'])
def test_damaged_job_begins_anew(convert, tmp_path, damage):
    convert("measure", mode="interrupt")
    (tmp_path / "work" / "job_new.json").write_text(damage)
    assert "Beginning new job" in convert("measure")[1]


def test_resumed_job_writes_to_where_this_run_wants_it(convert, tmp_path):
    """The job file keeps the paths of the killed try, whose staging directory is gone."""
    convert("measure", mode="interrupt")
    job = tmp_path / "work" / "job_new.json"
    old = json.loads(job.read_text()) | {"output_measurement": "/nowhere/measurement.json"}
    job.write_text(json.dumps(old))
    status, _, error = convert("measure")
    assert status == 0, error


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_killed_step_leaves_no_converter_running(convert, tmp_path):
    child = convert("measure", mode="hang", wait=False)
    deadline = time.monotonic() + 20
    while not (tmp_path / "work" / "job_new.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (converter,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.send_signal(signal.SIGKILL)
    child.wait()
    while (stat := Path(f"/proc/{converter}/stat")).exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline, "the converter runs on, into the next try's directory"
        time.sleep(0.05)


def test_measurement_of_another_model_is_refused(convert, tmp_path, model):
    assert convert("measure")[0] == 0
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    status, _, error = convert("quantize")
    assert status == 1 and "another model's" in error


def test_measurement_with_a_nan_is_refused(tmp_path):
    file = tmp_path / "measurement.json"
    file.write_text('{"measurement": {"model.layers.0.mlp": [{"accuracy": NaN}]}}')
    with pytest.raises(UserError, match="not a number"):
        check_measurement(file, 1)


def test_model_without_tokenizer_json_says_so_before_any_work(convert, model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").touch()
    status, out, error = convert("measure")
    assert status == 1 and "no tokenizer.json" in error and "Beginning" not in out


def test_calibration_that_is_no_parquet_says_so(convert, tmp_path):
    text = tmp_path / "text.parquet"
    text.write_text("plain text")
    status, _, error = convert("measure", "--calibration", str(text))
    assert status == 1 and "not a parquet file" in error


def test_rope_of_transformers_5_reaches_exllamav2(model, tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    config = exllama_config({"rope_parameters": rope})
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert "rope_scaling" not in exllama_config(plain)
    (model / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    make_view(model, tmp_path / "view")
    assert json.loads((tmp_path / "view" / "config.json").read_text())["rope_theta"] == 500000.0


ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
IS_EXL2 = {"quantization_config": {"quant_method": "exl2", "bits": 5.0}}


@pytest.mark.parametrize(
    ("config", "own"),
    [
        pytest.param(ROPE, False, id="a plain model of transformers 5"),
        pytest.param(ROPE | IS_EXL2, False, id="EXL2 converted elsewhere"),
        pytest.param(ROPE | IS_EXL2 | {"rope_theta": 500000.0}, True, id="EXL2 converted here"),
        pytest.param(IS_EXL2 | {"rope_theta": 500000.0}, True, id="EXL2 of transformers 4"),
    ],
)
def test_no_model_is_measured_with_another_rope_theta_than_its_own(
    model, tmp_path, monkeypatch, config, own
):
    """exllamav2 0.3.2 takes 10000 without a word where config.json has rope_parameters alone."""
    import exl2_evaluate

    def evaluate(directory: Path, reference: Path, rows) -> dict:
        files = sorted(file.name for file in directory.iterdir())
        read = [json.loads((d / "config.json").read_text()) for d in (directory, reference)]
        return {"thetas": [c["rope_theta"] for c in read], "files": files, "at": str(directory)}

    from demo_train import learn_tokenizer, write_tokenizer
    from tiny_models import TEXT

    write_tokenizer(learn_tokenizer(["\n".join(TEXT * 9)], 400), 64, model)
    (model / "config.json").write_text(json.dumps(ROPE))
    measured = shutil.copytree(model, tmp_path / "measured")
    (measured / "config.json").write_text(json.dumps(config))
    if "quantization_config" in config:
        (measured / "model.safetensors.index.json").unlink()
        (measured / "model.safetensors").rename(measured / "output.safetensors")
    (tmp_path / "text.txt").write_text("some text " * 200)
    monkeypatch.setattr(exl2_evaluate, "evaluate", evaluate)
    arguments = ["--model", measured, "--reference", model, "--text", tmp_path / "text.txt"]
    arguments += ["--corpus", "t", "--ctx-size", 64, "--output", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["exl2_evaluate.py", *map(str, arguments)])
    exl2_evaluate.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["thetas"] == [500000.0, 500000.0]
    assert (found["at"] == str(measured)) == own
    assert "tokenizer.json" in found["files"]
    weights = "output.safetensors" if "quantization_config" in config else "model.safetensors"
    assert [name for name in found["files"] if name.endswith(".safetensors")] == [weights]


@pytest.fixture(scope="module")
def tools() -> Path:
    """llama.cpp's tools of $QUANTMILL_TOOLS, or those that a build has compiled."""
    from lib.record.tools import cache_directory

    places = [Path(os.environ.get("QUANTMILL_TOOLS", "nowhere"))]
    places += [mark.parent / "bin" for mark in cache_directory().glob("llama.cpp-*/complete")]
    found = [place for place in places if (place / "llama-perplexity").is_file()]
    if not found:
        pytest.skip("llama.cpp's tools are not compiled yet: run snakemake once")
    return found[0]


@pytest.fixture(scope="module")
def measured(tools, tmp_path_factory) -> Path:
    """A tiny model, its GGUF and a quant, the logits of both, and the tool's report."""
    from demo_train import learn_tokenizer, write_tokenizer
    from lib.record.tools import bundled_tree
    from tiny_models import TEXT, make_llama

    here = tmp_path_factory.mktemp("measured")
    text = "\n".join(f"{i} {line}" for i in range(40) for line in TEXT) + "\n"
    (here / "text.txt").write_text(text)
    make_llama(here / "model", vocab=400)
    write_tokenizer(learn_tokenizer([text], 400), 64, here / "model")

    def run(*command, **options):
        subprocess.run([str(word) for word in command], check=True, cwd=here, **options)

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    converter = bundled_tree() / "convert_hf_to_gguf.py"
    run(sys.executable, converter, "model", "--outfile", "f32.gguf", "--outtype", "f32", **quiet)
    run(tools / "llama-quantize", "f32.gguf", "q.gguf", "Q2_K", 1, **quiet)
    score = [tools / "llama-perplexity", "--ctx-size", 64, "--threads", 1]
    for form in ("f32", "q"):
        logits = ["--kl-divergence-base", f"{form}.kld", "--file", "text.txt", "--chunks", 30]
        run(*score, "--model", f"{form}.gguf", *logits, **quiet)
    kld = ["--model", "q.gguf", "--kl-divergence-base", "f32.kld", "--kl-divergence"]
    for _ in range(20):  # b10605 can lose the end of its report, the oftener the busier the machine
        with (here / "report.txt").open("w") as report:
            run(*score, *kld, stdout=report, stderr=subprocess.DEVNULL)
        if "\nSame top p" in (here / "report.txt").read_text():  # its last line
            return here
    raise AssertionError("llama-perplexity never wrote a whole report")


def logits_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (chunks, context) and log probabilities (chunks, scored, vocabulary)."""
    with path.open("rb") as file:
        logits = Logits(file)
        log_p = np.array([logits.log_p(row) for row in logits.rows()])
    return logits.tokens, log_p.reshape(len(logits.tokens), -1, logits.vocabulary)


# Lines of llama-perplexity's report, and what they are called here.
REPORT = {
    "Mean PPL(Q)": ("perplexity", "mean"),
    "Mean PPL(base)": ("perplexity", "base"),
    "Cor(ln(PPL(Q)), ln(PPL(base)))": ("perplexity", "correlation"),
    "Mean ln(PPL(Q)/PPL(base))": ("perplexity", "log_ratio"),
    "Mean PPL(Q)/PPL(base)": ("perplexity", "ratio"),
    "Mean PPL(Q)-PPL(base)": ("perplexity", "difference"),
    "Mean KLD": ("kld", "mean"),
    "Maximum KLD": ("kld", "max"),
    "99.9% KLD": ("kld", "p99_9"),
    "99.0% KLD": ("kld", "p99"),
    "Median KLD": ("kld", "median"),
    "1.0% KLD": ("kld", "p1"),
    "Minimum KLD": ("kld", "min"),
    "Mean Δp": ("delta_p", "mean"),
    "Maximum Δp": ("delta_p", "max"),
    "75.0% Δp": ("delta_p", "p75"),
    "5.0% Δp": ("delta_p", "p5"),
    "RMS Δp": ("delta_p", "rms"),
    "Same top p": ("same_top", "mean"),
}


def assert_equal_to_report(found: dict, report: str) -> None:
    """The tool's figures, which it prints with three to six decimals."""
    lines = (line.partition(":") for line in report.splitlines())
    printed = {" ".join(label.split()): value.split()[0] for label, _, value in lines if value}
    for label, (section, key) in REPORT.items():
        text, measured = printed[label], found[section][key]
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        if section in ("delta_p", "same_top"):
            value = float(text.rstrip("%")) / 100
        assert measured == pytest.approx(value, rel=2e-4, abs=3e-5), label


def test_exl2_is_scored_on_the_same_tokens_as_gguf(measured):
    from exl2_evaluate import bos_token, read_text, tokenize

    tokens, log_p = logits_file(measured / "f32.kld")
    bos = bos_token(measured / "model")
    text = read_text(measured / "text.txt")
    ours = windows(tokenize(measured / "model", text, bos), 64, 30, bos)
    assert bos == 1 and (ours[:, 0] == bos).all()  # llama-perplexity puts it there while it runs
    assert (ours[:, 1:] == tokens[:, 1:]).all()
    assert len(range(64)[scored(64)]) == log_p.shape[1]


def test_statistics_are_those_of_llama_perplexity(measured):
    """From the two models' logits, which the tool rounds to 16 bits, to its own report."""
    import torch

    from exl2_evaluate import compare

    tokens, base = logits_file(measured / "f32.kld")
    _, quant = logits_file(measured / "q.kld")
    first = scored(64).start + 1
    parts = [
        [value.numpy() for value in compare(*map(torch.tensor, (q, p, row[first:].astype("i8"))))]
        for q, p, row in zip(quant, base, tokens, strict=True)
    ]
    found = summary(Scored(*(np.stack(arrays) for arrays in zip(*parts, strict=True))))
    assert_equal_to_report(found, (measured / "report.txt").read_text())


@pytest.fixture(scope="module")
def evaluation(measured, tools) -> dict:
    """What scripts/evaluate.py says of the quant."""
    out = measured / "q.json"
    command = [SCRIPTS / "evaluate.py", "--base", measured / "f32.kld", "--corpus", "t"]
    command += ["--text", measured / "text.txt", "--calibration", measured / "text.txt"]
    command += ["--threads", 2, "--output", out, "--", tools / "llama-perplexity", "--model"]
    command += [measured / "q.gguf", "--ctx-size", 64, "--chunks", 30, "--threads", 1]
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return json.loads(out.read_text())


def test_a_gguf_is_measured_as_llama_perplexity_does(measured, evaluation):
    assert (evaluation["chunks"], evaluation["context"], evaluation["engine"]) == (
        *(30, 64),
        "llama.cpp",
    )
    assert evaluation["shared"] == {"text": 1.0}
    assert_equal_to_report(evaluation, (measured / "report.txt").read_text())


def test_what_the_tools_report_lacks_follows_from_the_logits(measured, evaluation):
    """Flips, and means of chunks, by other ways than the program's."""
    tokens, base = logits_file(measured / "f32.kld")
    _, quant = logits_file(measured / "q.kld")
    targets = tokens[:, 33:]
    was, is_ = (logits.argmax(-1) == targets for logits in (base, quant))
    assert evaluation["flips"]["lost"] == pytest.approx((was & ~is_).mean())
    assert evaluation["flips"]["gained"] == pytest.approx((is_ & ~was).mean())
    assert 0 < evaluation["flips"]["lost"] < 1 - evaluation["same_top"]["mean"]
    means = evaluation["per_chunk"]["kld"]
    assert np.mean(means) == pytest.approx(evaluation["kld"]["mean"])
    assert evaluation["kld"]["error"] == pytest.approx(np.std(means, ddof=1) / 30**0.5)
    # llama-perplexity's running means give the same chunks, as far as their five decimals go.
    rows = (line.split("±") for line in (measured / "report.txt").read_text().splitlines())
    running = [float(row[2].split()[-1]) for row in rows if len(row) == 6]
    numbers = np.arange(1, 31)
    theirs = np.diff(numbers * running, prepend=0)
    assert means == pytest.approx(theirs, abs=1e-5 * 31)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("--chunks", 30, 29), "other tokens than the unquantized model"),
        (("--model", "q.gguf", "none.gguf"), "ended with status 1"),
        (("--ctx-size", 64, 32), "other tokens"),
    ],
    ids=["other text", "tool fails", "other context"],
)
def test_an_evaluation_that_does_not_fit_the_base_logits_is_refused(measured, tools, edit, words):
    typed = {"--model": "q.gguf", "--ctx-size": 64, "--chunks": 30}
    typed[edit[0]] = edit[2]
    command = [SCRIPTS / "evaluate.py", "--base", "f32.kld", "--corpus", "t", "--output", "no.json"]
    command += [
        "--text",
        "text.txt",
        "--",
        tools / "llama-perplexity",
        *(w for pair in typed.items() for w in pair),
    ]
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=measured, capture_output=True, text=True
    )
    assert done.returncode == 1 and words in done.stderr
    assert "Traceback" not in done.stderr and not (measured / "no.json").exists()


def test_text_too_short_for_two_windows_is_refused():
    with pytest.raises(UserError, match="too few"):
        windows(np.arange(127), 64, None, 1)


def test_output_that_is_not_finite_is_no_result():
    values = np.ones((2, 100))
    broken = np.where(values.cumsum().reshape(2, 100) == 7, np.nan, values)
    with pytest.raises(UserError, match="not finite"):
        summary(Scored(values, values, broken, values, values, values))


def test_errors_are_between_chunks_whose_tokens_depend_on_each_other():
    """Half of the variance lies between chunks: the tokens' own error is 3.5 times too small."""
    random = np.random.default_rng(1)
    true, found = [], []
    for _ in range(300):
        values = random.normal(size=(20, 1)) + random.normal(size=(20, 25))
        value, error = mean_and_error(values)
        true.append(value), found.append(error)
    assert np.mean(found) == pytest.approx(np.std(true), rel=0.15)
    assert mean_and_error(np.ones((3, 50))) == (1.0, 0.0)  # too few chunks to say


def imatrix(path: Path) -> dict[str, np.ndarray]:
    import gguf

    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def test_imatrix_in_ranges_equals_one_run(measured, tools):
    model = ["--model", measured / "f32.gguf", "--file", measured / "text.txt", "--threads", 1]
    size = ["--ctx-size", 64, "--batch-size", 256, "--chunks", 14, "--output-format", "gguf"]
    single, ranges = measured / "single.gguf", measured / "ranges.gguf"
    script = [sys.executable, SCRIPTS / "imatrix_ranges.py", "--tool", tools / "llama-imatrix"]
    for command in (
        [tools / "llama-imatrix", *model, *size, "--output-file", single],
        [*script, "--devices", "0,1,2", *model, *size, "--output-file", ranges],
    ):
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    one, many = imatrix(single), imatrix(ranges)
    assert one.keys() == many.keys() and len(one) > 10
    for name, values in one.items():
        tolerance = 0 if name.endswith(".counts") else 1e-4
        np.testing.assert_allclose(many[name], values, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("total", "batch", "count", "expected"),
    [
        (20, 4, 3, [(0, 4), (4, 8), (12, 8)]),
        (21, 4, 5, [(0, 4), (4, 4), (8, 4), (12, 4), (16, 5)]),  # one chunk alone is refused
        (9, 4, 2, [(0, 4), (4, 5)]),
        (3, 4, 8, [(0, 3)]),
    ],
)
def test_no_chunk_is_left_out_or_counted_twice(total, batch, count, expected):
    from imatrix_ranges import ranges

    assert ranges(total, batch, count) == expected


def gpus(script: str, **env: str) -> subprocess.CompletedProcess:
    """Run a shell script with scripts/gpus.sh, as a rule does."""
    prelude = f"set -euo pipefail; . {SCRIPTS / 'gpus.sh'}; "
    command = ["bash", "-c", prelude + script]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is of util-linux")
def test_two_steps_never_share_a_gpu():
    names = f"t{os.getpid()}a,t{os.getpid()}b"  # no real GPU is waited for
    step = "(gpus 1; echo $CUDA_VISIBLE_DEVICES; sleep 1) &"
    done = gpus(f"{step} {step} {step} wait", CUDA_VISIBLE_DEVICES=names)
    taken = done.stdout.split()
    assert sorted(taken[:2]) == sorted(names.split(",")) and len(taken) == 3, done.stderr


def test_cpu_step_sees_no_gpu():
    done = gpus('gpus 0; echo "[$CUDA_VISIBLE_DEVICES]"', CUDA_VISIBLE_DEVICES="0,1")
    assert done.stdout == "[]\n"


def test_gpu_step_without_a_gpu_ends_with_one_line():
    done = gpus("gpus 1; echo on", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stdout.startswith("this step needs 1 GPU(s), and 0 can be seen")


def test_a_calibration_text_that_is_too_short_is_told_before_the_converter_begins(tmp_path):
    """The converter measures for minutes before it says `shape '[64, 1024]' is invalid`."""
    import pandas
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"word": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "text.parquet"
    pandas.DataFrame({"text": ["word word"] * 50}).to_parquet(text)

    def check(*numbers: str) -> subprocess.CompletedProcess:
        command = [sys.executable, SCRIPTS / "check_calibration.py", tmp_path]
        command += ["--calibration", text, "--rows", numbers[0], "--length", numbers[1]]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    assert check("10", "10").returncode == 0
    short = check("10", "11")
    assert short.returncode == 1 and short.stderr.count("\n") == 1
    assert "it has 100 tokens, and 10 rows of 11 need 110: name a longer text" in short.stderr
