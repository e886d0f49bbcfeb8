"""Headers of safetensors: a file that is cut off must not be built from."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lib.errors import UserError
from lib.formats.safetensors import read_header
from lib.formats.weights import read_weights
from model_view import make_view
from project import ROOT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a file of weights that the format's own library wrote."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    arrays = {"x": np.arange(15, dtype=np.float16).reshape(3, 5), "y": np.ones(2, np.float32)}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_tensor_is_where_the_header_says(model):
    file = model / "model.safetensors"
    header = read_header(file)
    assert header.metadata == {"format": "pt"}
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        "x": (3, 5),
        "y": (2,),
    }
    x = header.tensors["x"]
    data = file.read_bytes()[header.start + x.first : header.start + x.end]
    assert x.dtype == "F16"
    assert data == np.arange(15, dtype=np.float16).tobytes()


BROKEN = {
    "a byte short": lambda data: data[:-1],
    "a byte long": lambda data: data + b"\0",
    "cut off in its header": lambda data: data[:40],
    "cut off in its first bytes": lambda data: data[:5],
    "empty": lambda data: b"",
    "a pickle": lambda data: b"PK\3\4" + data,
    "a pointer of Git LFS": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    "a list": lambda data: struct.pack("<Q", 2) + b"[]",
    "without offsets": lambda data: struct.pack("<Q", 8) + b'{"x":{}}',
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_not_whole_is_one_line_with_its_own_name(model, how):
    file = model / "model.safetensors"
    file.write_bytes(BROKEN[how](file.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors: .*(cut off|not a safetens)"):
        read_header(file)
    with pytest.raises(UserError):
        read_weights(model)
    view = make_view(model, model / "view")[0].parent  # of links, as a source's directory is one
    program = [sys.executable, ROOT / "scripts/count_parameters.py", view]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"count_parameters: {file}: ")
    assert done.stderr.count("\n") == 1


def test_a_stray_file_beside_the_weights_is_not_counted_as_the_models(model):
    index = {"weight_map": {"x": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "old.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-3])
    weights = read_weights(model)
    assert weights.parameters == 17
    assert weights.bytes_per_weight * 17 == 38
