"""A short part of the campaign, with the same seed each time (docs/reliability.md)."""

import pytest

from campaign import FAMILIES
from campaign.__main__ import run


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_lost(family, tmp_path):
    tried, faults = run(family, seed=1, seconds=10, work=tmp_path)
    assert not faults
    if family in ("disks", "networks", "memory") and not tried:
        pytest.skip("only root can mount, and limit the memory of others; networks need sshfs")
    assert tried.total() > 0
