"""status.json: whether somebody still trains a run."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import psutil
import pytest

from tests.ui.support import FINISHED, PREPARED, evaluated
from tiny_gpt.errors import DivergedError, RestartRequestedError
from tiny_gpt.run.events import StepDone
from tiny_gpt.run.status import RunStatus, read_status, this_process
from tiny_gpt.ui.status import StatusFile


@pytest.fixture
def file(tmp_path):
    consumer = StatusFile(tmp_path / "status.json")
    consumer.consume(PREPARED)
    return consumer


def test_status_follows_the_run(file):
    status = read_status(file.path)
    assert (status.state, status.process_id, status.facts["tokenizer"]) == ("training", os.getpid(), "char")
    assert status.has_process() and not status.has_watchdog()
    file.consume(StepDone(7, None, 1e-3, progress=0.25, left_s=90.0))  # a few seconds have not passed yet
    assert read_status(file.path).step == 0
    file.consume(evaluated(7))
    status = read_status(file.path)
    assert (status.step, status.progress, status.left_s, status.tokens_per_s) == (7, 0.25, 90.0, 20_000.0)
    file.consume(FINISHED)
    assert read_status(file.path).state == "finished" and read_status(file.path).facts["best_step"] == 0


@pytest.mark.parametrize(
    ("failure", "state", "code"),
    [
        (DivergedError("it diverged", code="training-diverged"), "failed", "training-diverged"),
        (ZeroDivisionError("1/0"), "failed", "ZeroDivisionError"),
        (KeyboardInterrupt(), "stopped", ""),
        (RestartRequestedError("again", code="restart-requested"), "training", ""),
    ],
)
def test_failures_are_recorded(file, failure, state, code):
    file.fail(failure)
    assert (read_status(file.path).state, read_status(file.path).error_code) == (state, code)


def test_a_killed_process_is_noticed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time()
        status = RunStatus("training", **this_process(False) | dict(process_id=process.pid, process_started=started))
        assert status.has_process() and not replace(status, process_started=started - 60).has_process()
        process.kill()
    assert not status.has_process()
    assert not replace(status, machine="elsewhere").has_process()


@pytest.mark.parametrize(
    "changes",
    [
        dict(state="happy"),
        dict(step="7"),
        dict(progress=None),
        dict(process_id=True),
        dict(facts=[]),
        dict(machine=3),
        dict(left_s="soon"),
        dict(left_s=1e300),
        dict(updated=float("nan")),
    ],
)
def test_a_malformed_status_is_none(tmp_path, changes):
    path = tmp_path / "status.json"
    path.write_text(json.dumps(asdict(RunStatus("training")) | dict(new_field=1)))
    assert read_status(path) == RunStatus("training")
    path.write_text(json.dumps(asdict(RunStatus("training")) | changes))
    assert read_status(path) is None
    path.write_text("{")
    assert read_status(path) is None and read_status(tmp_path / "none") is None
