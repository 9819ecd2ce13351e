"""A night survives: the short form of `python -m torture`, where real trainings are killed, starved and lied to."""

import json
import os
import subprocess
import sys

import pytest

if os.name == "nt":
    pytest.skip("Windows has neither fork nor these signals", allow_module_level=True)

from tiny_gpt.launch import ROOT
from torture.groups import GROUPS


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """What came of each group that is to be tested. In a process of its own: it forks, which wants a quiet one."""
    names = [item.callspec.params["group"] for item in request.session.items if item.module is request.module]
    file = tmp_path_factory.mktemp("torture") / "outcomes.json"
    command = [sys.executable, "-m", "torture", "--short", "--json", file, "--only", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert file.exists(), done.stderr
    return {outcome["name"]: outcome for outcome in json.loads(file.read_text())}


@pytest.mark.parametrize("group", [name for name, group in GROUPS.items() if group.n_short])
def test_nothing_is_lost(outcomes, group):
    assert outcomes[group]["n_trials"] > 0
    assert not outcomes[group]["failures"], "\n".join(outcomes[group]["failures"])
