"""A run survives faults: the short form of `python -m tests.faults` kills, starves and corrupts real trainings."""

import json
import os

import pytest

if os.name == "nt":
    pytest.skip("Windows has neither fork nor these signals", allow_module_level=True)

from tests.faults.groups import GROUPS


@pytest.fixture(scope="module")
def outcomes(fault_injection):
    """The outcome of each group."""
    process, file = fault_injection
    _, errors = process.communicate()
    assert process.returncode in (0, 1) and file.exists(), errors
    return {outcome["name"]: outcome for outcome in json.loads(file.read_text())}


@pytest.mark.parametrize("group", [name for name, group in GROUPS.items() if group.n_short])
def test_nothing_is_lost(outcomes, group):
    assert outcomes[group]["n_trials"] > 0
    assert not outcomes[group]["failures"], "\n".join(outcomes[group]["failures"])
