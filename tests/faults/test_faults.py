"""A run survives faults: the short form of `python -m tests.faults` kills, starves and corrupts real trainings."""

import json
import os
import subprocess
import sys

import pytest

if os.name == "nt":
    pytest.skip("Windows has neither fork nor these signals", allow_module_level=True)

from tests.faults.groups import GROUPS
from tiny_gpt.bootstrap import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """The outcome of each group that is asked for. They run in a process of their own, which forks for each trial."""
    groups = [item.callspec.params["group"] for item in request.session.items if item.path == request.path]
    file = tmp_path_factory.mktemp("faults") / "outcomes.json"
    command = [sys.executable, "-m", "tests.faults", "--short", "--json", file, "--only", *groups]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and file.exists(), done.stderr
    return {outcome["name"]: outcome for outcome in json.loads(file.read_text())}


@pytest.mark.parametrize("group", [name for name, group in GROUPS.items() if group.n_short])
def test_nothing_is_lost(outcomes, group):
    assert outcomes[group]["n_trials"] > 0
    assert not outcomes[group]["failures"], "\n".join(outcomes[group]["failures"])
