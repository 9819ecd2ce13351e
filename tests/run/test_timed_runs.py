"""Whole runs with a budget of time: when they end, what they keep, and more time without a jump.

The clock is simulated, except in the last two tests, which take a few seconds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.run.support import CPU, NOON, events_of, nine_seconds, of, share, with_train
from tiny_gpt.config import BUDGETS, FINAL_FILE
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Checkpointed, Evaluated, Finished, Prepared, Saved, StepDone
from tiny_gpt.run.run import run
from tiny_gpt.training.budget import RunRequest


@pytest.fixture
def config(config):
    return nine_seconds(config)


def weights(path):
    return (path / "model.safetensors").read_bytes()


def test_keeps_a_checkpoint_from_before_the_cooldown(config, machine):
    events = events_of(config, machine)
    steps, finished = of(StepDone, events), events[-1]
    assert isinstance(finished, Finished) and 0 < finished.left_s < 5 and finished.stopped_by is None
    assert [event.progress for event in steps] == sorted(event.progress for event in steps)
    assert steps[-1].progress == 1 and steps[-1].learning_rate == 0
    evaluated = of(Evaluated, events)
    assert evaluated[-1].step == steps[-1].step == load_model(finished.final_path, CPU).progress.step
    assert 1 < len(evaluated) <= 41
    store = CheckpointStore(Path(config.train.out_dir))
    before = max(event.step for event in steps if event.learning_rate == config.train.learning_rate)
    abouts = {step: store.about(step) for step in store.steps()}
    assert abouts[before]["is_cooling"] is False and abouts[steps[-1].step]["is_cooling"] is True
    assert len(store.steps()) > 4 and max(step for step in abouts if not abouts[step]["is_cooling"]) == before


@pytest.mark.slow
def test_slow_saving_postpones_the_best_model_to_the_end(config, machine, monkeypatch):
    def saved_best(share, **changes):
        monkeypatch.setattr(clock, "MAX_OVERHEAD", share)
        events = events_of(with_train(config, out_dir=f"{config.train.out_dir}-{share}", **changes), machine)
        best = min(of(Evaluated, events), key=lambda event: event.val_loss)
        assert load_model(events[-1].best_path, CPU).progress.val_loss == best.val_loss
        return [event for event in of(Saved, events) if event.is_best], best

    saved, best = saved_best(1e-9)
    assert len(saved) == 2 and saved[-1].val_loss == best.val_loss
    assert len(saved_best(1e9)[0]) > 2
    assert len(saved_best(1e-8, for_="", epochs=4, iters_per_epoch=20)[0]) > 2, (
        "a budget of steps does not depend on the time that saving takes"
    )


def test_more_time_survives_a_crash_and_counts_once(config, machine):
    steps = of(StepDone, events_of(config, machine))
    before = max(event.step for event in steps if event.learning_rate == config.train.learning_rate)
    store = CheckpointStore(Path(config.train.out_dir))
    state_before = weights(store.verified(before).path)
    request = RunRequest(NOON, 0.0, extends=True)

    states = []

    def is_checkpoint_later(event):
        if isinstance(event, Checkpointed):
            states.append(weights(event.path))
        return len(states) > 20

    events = events_of(config, machine, True, request, until=is_checkpoint_later)
    assert of(Prepared, events)[0].steps_done == before == of(Checkpointed, events)[0].step
    assert states[0] == state_before != states[-1] and max(store.steps()) == before + 20
    steps = of(StepDone, events)
    assert steps[0].step == before + 1 and {share(event, config) for event in steps} == {1.0}

    events = events_of(config, machine, True, replace(request, is_restart=True))
    assert of(Prepared, events)[0].steps_done == max(event.step for event in steps)
    again = of(StepDone, events)
    assert share(again[0], config) == 1 and again[-1].learning_rate == 0
    assert len(steps) + len(again) <= 90, "one budget for both"


def test_a_stopped_run_cools_down_from_its_current_rate(config, machine):
    config = with_train(config, for_="", epochs=1, iters_per_epoch=50, min_learning_rate=0.0)
    stopped = events_of(config, machine, until=lambda event: isinstance(event, Checkpointed) and event.step == 30)
    last = of(StepDone, stopped)[-1]
    config = with_train(config, for_="3s", cooldown=1.0)
    events = events_of(config, machine, True, RunRequest(NOON, extends=True))
    steps = of(StepDone, events)
    assert 0.3 < share(last, config) < 0.7 and steps[0].step == 31
    assert share(steps[0], config) == pytest.approx(share(last, config), abs=0.05)
    rates = [event.learning_rate for event in steps]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0 and len(steps) < 30


@pytest.mark.slow
def test_a_stop_during_an_evaluation_does_not_reserve_time(config, machine, monkeypatch):
    """Otherwise so much time would be reserved for the last one that the run ended early."""
    loss, calls = FixedWindows.loss, []

    def stopped_once(windows, *args):
        calls.append(windows)
        if len(calls) == 1:
            time.sleep(3)
        return loss(windows, *args)

    monkeypatch.setattr(FixedWindows, "loss", stopped_once)
    assert len(of(StepDone, events_of(config, machine))) > 60


def test_the_final_score_covers_as_much_text_as_time_allows(config, machine, monkeypatch):
    monkeypatch.setattr(Evaluator, "_token_s", lambda _: 1e-7)

    def scored_tokens(late_s):
        def is_slow_at_the_end(event):
            machine.now += late_s * (isinstance(event, StepDone) and event.progress == 1)
            return False

        short = with_train(config, eval_interval=5, out_dir=f"{config.train.out_dir}-{late_s}")
        return events_of(short, machine, until=is_slow_at_the_end)[-1].scored_tokens

    whole, some = 347, 48
    assert scored_tokens(late_s=-5) == whole and scored_tokens(late_s=20) == some


def test_out_of_memory_in_the_final_score_loses_nothing(config, machine, monkeypatch):
    score, whole = FixedWindows.loss_and_error, 347

    def too_large(windows, *args):
        if windows.n_tokens == whole:
            raise torch.OutOfMemoryError("out of memory")
        return score(windows, *args)

    monkeypatch.setattr(Evaluator, "_token_s", lambda _: 1e-7)
    monkeypatch.setattr(FixedWindows, "loss_and_error", too_large)
    events = events_of(with_train(config, eval_interval=5), machine, until=lambda event: _is_early(event, machine))
    assert isinstance(events[-1], Finished) and events[-1].scored_tokens == 48
    assert events[-1].best_val_loss == min(event.val_loss for event in of(Evaluated, events))


def _is_early(event, machine):
    machine.now -= 5 * (isinstance(event, StepDone) and event.progress == 1)
    return False


def test_a_run_of_an_earlier_version_can_be_extended(config, machine):
    """Its checkpoints hold neither budgets nor learning rates."""
    config = with_train(config, for_="", epochs=2, iters_per_epoch=5)
    events_of(config, machine)
    folder = Path(config.train.out_dir) / "checkpoints" / "step-00000010"
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    for name in ("budget", "rate_share"):
        del state["run"][name]
    for name in (*BUDGETS[:-1], "schedule", "cooldown"):
        del state["config"][name], state["asked"][name]
    for name in ("progress", "is_timed", "is_cooling"):
        del manifest["about"][name]
    store = CheckpointStore(Path(config.train.out_dir))
    files = {name: (folder / name).read_bytes() for name in manifest["files"]} | {
        "state.json": json.dumps(state).encode()
    }
    store.write(10, {name: lambda sink, b=content: sink.write(b) for name, content in files.items()}, manifest["about"])
    assert of(Prepared, events_of(config, machine, True))[0].steps_done == 10, "finished, as it was"
    longer = with_train(config, epochs=3)
    assert events_of(longer, machine, True)[-1].last_step == 15
    events = events_of(with_train(config, for_="4s"), machine, True)
    assert of(StepDone, events)[0].step == 16 and of(StepDone, events)[-1].learning_rate == 0


def test_a_run_of_a_few_seconds_ends_on_time(config):
    began = time.monotonic()
    events = list(run(with_train(config, for_="3s")))
    assert isinstance(events[-1], Finished) and abs(events[-1].left_s) < 10 and time.monotonic() - began < 60
    assert of(StepDone, events)[-1].learning_rate == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
@pytest.mark.slow
def test_a_process_stopped_for_a_third_of_its_time_ends_on_time(config):
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in dict(
        n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=8, device="cpu", backend="eager", precision="fp32"
    ).items()]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "tiny_gpt",
        "train",
        *config.data.data,
        "--recipe",
        "overnight",
        "--for",
        "6s",
        *settings,
    ]
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        [*command, "--no-watchdog", "--no-keep-awake", "--out-dir", config.train.out_dir],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if "%, step" in line:
                break
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        lines += process.stdout
    assert process.returncode == 0 and time.monotonic() - began < 120
    assert (Path(config.train.out_dir) / FINAL_FILE).exists()
    assert any("lr=0.0e+00" in line for line in lines) and any("budget     --for 6s" in line for line in lines)
