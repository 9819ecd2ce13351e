"""Whole runs that meet trouble: too little memory, a low battery, a watchdog that wants a restart."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.run.support import (
    CPU,
    finish,
    interrupt,
    out_dir,
    same_weights,
    warnings_in,
    with_model,
    with_train,
)
from tiny_gpt.cli import process
from tiny_gpt.config import (
    FINAL_FILE,
)
from tiny_gpt.device import is_out_of_memory
from tiny_gpt.errors import (
    OutOfResourcesError,
    RestartRequestedError,
)
from tiny_gpt.host import monitor as host_monitor
from tiny_gpt.host.battery import Battery
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock, out_of_memory
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import (
    Checkpointed,
    Warned,
)
from tiny_gpt.run.run import run
from tiny_gpt.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("save_at_every_step")


def out_of_memory_above(monkeypatch, n_sequences, failure):
    """From the 7th step on, more than `n_sequences` sequences do not fit."""
    losses, n_calls = GPT.losses, [0]

    def limited(self, ids_BT, targets_BT):
        n_calls[0] += torch.is_grad_enabled()
        if n_calls[0] > 6 and len(ids_BT) > n_sequences:
            raise failure
        return losses(self, ids_BT, targets_BT)

    monkeypatch.setattr(GPT, "losses", limited)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB, max allowed: 9.07 GB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cpu", "python"],
)
def test_every_device_is_understood_when_it_is_out_of_memory(failure):
    assert is_out_of_memory(failure) and not is_out_of_memory(RuntimeError("shape mismatch"))


def test_out_of_memory_shrinks_the_micro_batches(config, tmp_path, monkeypatch):
    failure = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    config = with_model(config, dropout=0.0)
    rows = finish(with_train(config, out_dir=str(tmp_path / "reference"))).rows
    out_of_memory_above(monkeypatch, 3, failure)
    _, rows_again, finished, _ = finish(config)
    for row, again in zip(rows, rows_again, strict=True):
        assert row == pytest.approx(again, rel=1e-4, nan_ok=True)
    assert sum("4 sequences are computed at once instead of 8" in line for line in finished.incidents) == 1
    assert sum("2 sequences are computed at once instead of 4" in line for line in finished.incidents) == 1
    interrupt(with_train(config, out_dir=str(tmp_path / "third")), after=12)
    monkeypatch.undo()
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)
    state = CheckpointStore(tmp_path / "third").newest()[0].path / "state.json"
    assert json.loads(state.read_text())["run"]["n_micro_batches"] == 4, "a resumed run does not try in vain"


def test_out_of_memory_with_one_sequence_ends_the_run(config, monkeypatch):
    out_of_memory_above(monkeypatch, 0, MemoryError())
    with pytest.raises(MemoryError):
        list(run(config))
    assert isinstance(process.to_known_error(MemoryError()), OutOfResourcesError)


@pytest.mark.parametrize("is_watched", [False, True])
def test_an_update_that_ran_out_of_memory_is_not_repeated(config, tmp_path, monkeypatch, is_watched):
    """The run ends with the state of the last checkpoint, and continues from there to the bit."""
    weights = finish(with_train(config, out_dir=str(tmp_path / "reference"))).weights
    update, n_calls = AdamW.step, [0]

    def fail_half_way(self, *args):
        n_calls[0] += 1
        if n_calls[0] == 7:
            self.param_groups[0]["params"][0].data.add_(1.0)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return update(self, *args)

    monkeypatch.setattr(AdamW, "step", fail_half_way)
    monkeypatch.setattr(out_of_memory, "is_watched", lambda: is_watched)
    with pytest.raises(RestartRequestedError if is_watched else OutOfResourcesError) as ended:
        list(run(config))
    assert ended.value.code == "out-of-memory-in-update" and "step 7" in str(ended.value)
    assert same_weights(weights, finish(config, resume=True).weights)


def test_a_low_battery_pauses_the_run(config, tmp_path, monkeypatch):
    weights = finish(with_train(config, out_dir=str(tmp_path / "reference"))).weights
    batteries = iter([(True, 90)] * 8 + [(False, 15)] * 6 + [(True, 15)] * 1000)

    def battery():
        power_plugged, percent = next(batteries)
        return SimpleNamespace(power_plugged=power_plugged, percent=percent)

    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(host_monitor, "BATTERY_INTERVAL_S", 0.0)
    monkeypatch.setattr(host_monitor, "Battery", lambda _: Battery(battery))
    monkeypatch.setattr(host_monitor, "PAUSE_POLL_S", 0.01)
    events = list(run(config))
    lines = warnings_in(events)
    paused = next(i for i, event in enumerate(events) if isinstance(event, Warned) and "paused" in event.text)
    assert "battery at 15%" in events[paused].text
    assert isinstance(events[paused - 1], Checkpointed) and events[paused - 1].step == events[paused].step
    assert "training continues" in lines
    assert any(line.startswith("paused once on a low battery") for line in events[-1].incidents)
    assert same_weights(weights, load_model(out_dir(config) / FINAL_FILE, CPU).model.state_dict())


def test_a_run_that_is_stopped_in_a_pause_does_not_say_that_it_continues(config, monkeypatch):
    battery = SimpleNamespace(power_plugged=False, percent=15)
    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(host_monitor, "BATTERY_INTERVAL_S", 0.0)
    monkeypatch.setattr(host_monitor, "Battery", lambda _: Battery(lambda: battery))
    monkeypatch.setattr(host_monitor.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    events = list(run(config))
    assert events[-1].stopped_by == signal.SIGTERM
    assert any("paused" in line for line in warnings_in(events)) and "training continues" not in warnings_in(events)


def test_a_restart_request_saves_and_exits(config, tmp_path, monkeypatch):
    weights = finish(with_train(config, out_dir=str(tmp_path / "reference"))).weights
    heart = SimpleNamespace(n_beats=0, restart_requested=False)

    def beat():
        heart.n_beats += 1
        heart.restart_requested = heart.n_beats > 40

    heart.beat = beat
    monkeypatch.setattr(host_monitor, "heartbeat", lambda: heart)
    with pytest.raises(RestartRequestedError) as asked:
        list(run(config))
    assert asked.value.exit_code == 75
    heart.n_beats = -1000
    monkeypatch.setenv("TINY_GPT_RESTART_REASON", "the training process grew from 1.0 to 3.0 GB of memory")
    again, _, finished, _ = finish(config, resume=True)
    assert same_weights(weights, again)
    assert finished.incidents == ["restarted: the training process grew from 1.0 to 3.0 GB of memory"]
