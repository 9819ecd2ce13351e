"""Saving on a disk in trouble: retried, made room for, or reported and left for the next time."""

import errno

import pytest

from tests.support import random_model
from tiny_gpt.config import TrainConfig
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState

FULL, BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")


@pytest.fixture
def saver(tmp_path):
    """Three checkpoints are there."""
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.write(step, {"a.bin": lambda sink: sink.write(b"0123456789")}, {})
    return Saver(TrainState(random_model(), TrainConfig()), store)


def failing(failures):
    """A function that raises `failures` one after the other, then returns "saved"."""

    def save():
        if failures:
            raise failures.pop(0)
        return "saved"

    return save


def warnings(saver):
    return [warning.text for warning in saver.state.take_warnings()]


@pytest.mark.parametrize("failure", [BROKEN, DamagedError("lost"), OutOfResourcesError("cannot write")])
def test_a_failed_save_is_repeated_once(saver, failure):
    assert saver.attempt(failing([failure])) == "saved" and warnings(saver) == []
    assert saver.attempt(failing([failure, failure])) is None


def test_a_full_disk_costs_the_oldest_checkpoints_but_the_last(saver):
    assert saver.attempt(failing([FULL])) == "saved" and saver.store.steps() == [3, 2]
    assert saver.attempt(failing([FULL] * 9)) is None and saver.store.steps() == [3]
    assert "no space left" in saver.problem


def test_trouble_and_recovery_are_reported_once(saver):
    assert saver.attempt(failing([BROKEN] * 2)) is None and saver.attempt(failing([BROKEN] * 2)) is None
    assert len(warnings(saver)) == 1 and "Input/output error" in saver.problem
    assert saver.attempt(failing([])) == "saved" and saver.attempt(failing([])) == "saved"
    assert warnings(saver) == ["saving works again"] and saver.problem == ""


def test_other_errors_are_not_hidden(saver):
    with pytest.raises(ValueError, match="a bug"):
        saver.attempt(failing([ValueError("a bug")]))
