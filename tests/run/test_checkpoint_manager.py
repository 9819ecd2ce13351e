"""When checkpoints are written, and which ones a run returns to."""

import errno

import pytest

from tests.support import MODEL, random_model
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.run import checkpoint_store, clock
from tiny_gpt.run.checkpoint_manager import CheckpointManager
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState

CONFIG = RunConfig(MODEL, train=TrainConfig(steps=100))


@pytest.fixture
def manager(tmp_path):
    state, store = TrainState(random_model(), CONFIG.train), CheckpointStore(tmp_path)
    return CheckpointManager(state, RunDescription(CONFIG, CONFIG, {"a": 1}, {"b": 2}), store, Saver(state, store))


def save(manager, step, is_healthy=True):
    manager.state.counters.step = step
    manager.state.guard.is_healthy = lambda: is_healthy
    return manager.save()


def test_a_state_is_saved_once(manager):
    manager.save_first()
    assert manager.save() is None
    assert save(manager, 1).step == 1 and save(manager, 1) is None
    assert manager.store.steps() == [1, 0]


def test_a_checkpoint_describes_its_run(manager):
    checkpoint = manager.store.verified(manager.save_first().step)
    assert (checkpoint.about["data"], checkpoint.about["machine"], checkpoint.about["total_steps"]) == (
        {"a": 1},
        {"b": 2},
        100,
    )


def test_a_disk_that_takes_no_checkpoint_ends_the_run_at_once(manager, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint_store, "open", fail, raising=False)
    with pytest.raises(OutOfResourcesError, match="Permission denied"):
        manager.save_first()


def test_slow_saving_makes_checkpoints_rare(manager, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(
        CheckpointManager, "_write", lambda self: now.__setitem__(0, now[0] + 2) or self.store.verified(0)
    )
    manager.store.write(0, {}, {})
    save(manager, 1)
    now[0] += 100
    assert not manager.is_due(interval_s=10)
    now[0] += 100
    assert manager.is_due(interval_s=10) and not manager.is_due(interval_s=1000)


def test_the_newest_healthy_checkpoint_is_found(manager):
    for step, is_healthy in ((1, True), (2, True), (3, False), (4, True)):
        save(manager, step, is_healthy)
    assert manager.newest_healthy(before=5).step == 4
    assert manager.newest_healthy(before=4).step == 2
    assert manager.newest_healthy(before=1) is None


def test_a_rollback_sets_later_checkpoints_aside(manager):
    for step in (1, 2, 3):
        save(manager, step)
    manager.roll_back(manager.store.verified(1))
    assert manager.store.steps() == [1] and manager.state.step == 1
    assert (manager.state.counters.batch_offset, manager.state.counters.rate_factor) == (2, 0.5)
    assert len(list((manager.store.folder / "set-aside").iterdir())) == 2
    assert manager.save().step == 1, "it continues differently from here"


def test_a_second_rollback_remembers_the_batches_left_out_by_the_first(manager):
    for step in (1, 2, 3):
        save(manager, step)
    manager.roll_back(manager.store.verified(2))  # batch 3 is left out
    manager.roll_back(manager.store.verified(1))  # and so is batch 2
    assert (manager.state.step, manager.state.counters.batch_offset) == (1, 2)


@pytest.mark.parametrize(("extends", "kept"), [(False, [3, 2, 1]), (True, [2, 1])])
def test_an_extension_deletes_later_checkpoints(manager, extends, kept):
    for step in (1, 2, 3):
        save(manager, step)
    manager.resume(manager.store.verified(2), extends)
    assert manager.store.steps() == kept
