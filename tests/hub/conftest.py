"""A stand-in hub and a working directory for each test."""

import sys
from pathlib import Path

import pytest

for place in (Path(__file__).parents[2] / "scripts", Path(__file__).parent):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from hubtest import MODEL, Workdir  # noqa: E402
from standin import Hub  # noqa: E402


@pytest.fixture
def hub():
    with Hub() as standin:
        standin.add_user("hf_alice", "alice", orgs=("acme",))
        standin.add_user("hf_bob", "bob")
        yield standin


@pytest.fixture
def base(hub):
    """A public model on the stand-in hub."""
    return hub.add_repo("acme/base", MODEL, card={"license": "apache-2.0", "language": ["en"]})


@pytest.fixture
def workdir(tmp_path, hub):
    return Workdir(tmp_path, hub)
