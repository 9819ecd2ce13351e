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

from tests.run.support import CPU, FRENCH, of, with_data, with_train
from tiny_gpt.config import BUDGETS, FINAL_FILE, MODELS_FOLDER, PRETRAINED_FILE, TEACHERS_FOLDER, TrainConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish as prepared
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock, kept_models, stages
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Checkpointed, Evaluated, Finished, Prepared, Saved, StageBegun, StepDone, Warned
from tiny_gpt.run.other_text import tokenizer_for
from tiny_gpt.run.run import run
from tiny_gpt.training import timed_budget
from tiny_gpt.training.budget import RunRequest

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))


class SimulatedMachine:
    """Time passes only as tests let it: `now` by the clock, `train_s` in steps."""

    def __init__(self):
        self.now = self.train_s = 0.0

    def pass_time(self, seconds):
        self.now += seconds
        self.train_s += seconds


@pytest.fixture
def config(config):
    """Nine seconds; evaluated on as much text as the defaults have it."""
    train = TrainConfig()
    return with_train(config, for_="9s", iters_per_epoch=train.iters_per_epoch, eval_interval=train.eval_interval)


@pytest.fixture
def machine(monkeypatch, save_at_every_step):
    """Each step takes 0.1 s; checkpoints may take any share of the time."""
    machine = SimulatedMachine()
    monkeypatch.setattr(timed_budget, "system_clocks", lambda: Clocks(elapsed=lambda: machine.now))
    monkeypatch.setattr(clock.RunClock, "train_s", property(lambda _: machine.train_s))
    return machine


def events_of(config, machine, resume=False, request=None, until=lambda event: False, step_s=0.1, first_s=0.1):
    """All events, to the end or to the first for which `until` is true; the run is then abandoned, as by a kill."""
    found, events = [], run(config, resume, request)
    for event in events:
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(first_s if event.step == 1 else step_s)
        if until(event):
            break
    events.close()
    return found


def share(event, config):
    return event.learning_rate / config.train.learning_rate


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


def staged_events(config, machine, slept_after, sleep_s):
    """All events of a run; once its progress is `slept_after`, the machine sleeps for `sleep_s`."""
    found = []
    for event in run(config):
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(0.1)
            if slept_after is not None and event.progress >= slept_after:
                machine.now, slept_after = machine.now + sleep_s, None
    return found


@pytest.mark.parametrize(("slept_after", "kept"), [(0.15, ["2.pt"]), (None, ["1.pt", "2.pt"])])
def test_a_teacher_that_a_sleep_cut_short_is_not_used(config, machine, monkeypatch, slept_after, kept):
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)  # so it is evaluated as often as it may be
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 100.0)
    config = with_train(config, for_="20s", teachers=2, schedule="wsd", min_learning_rate=0.0)
    events = staged_events(config, machine, slept_after, sleep_s=12)
    begun = of(StageBegun, events)
    assert [event.name for event in begun] == ["teacher 1 of 2", "teacher 2 of 2", "student"]
    assert sorted(path.name for path in (Path(config.train.out_dir) / TEACHERS_FOLDER).iterdir()) == kept
    assert ("a teacher," in begun[-1].description) == (slept_after is not None)
    assert sum("cut short" in event.text for event in of(Warned, events)) == (slept_after is not None)


@pytest.fixture
def own_text_last(config, tmp_path, monkeypatch):
    """Twenty seconds that begin with French: by the plan, half of them; the own text then gets 30 steps."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)
    (tmp_path / "french.txt").write_text(FRENCH)
    config = with_data(config, first=(str(tmp_path / "french.txt"),))
    n_tokens = len(prepared(prepare(config.data, 8, prepared(tokenizer_for(config)))).train)
    own_data_epochs = 30 * config.train.batch_size * config.model.block_size / n_tokens
    schedule = dict(schedule="wsd", min_learning_rate=0.0)
    return with_train(config, for_="20s", first_share=0.5, own_data_epochs=own_data_epochs, **schedule)


def own_steps(events):
    """The first and the last step on the own text."""
    (begun,) = (event.step for event in of(StageBegun, events) if event.name == "your text")
    return begun + 1, of(StepDone, events)[-1].step


@pytest.mark.parametrize("step_s", [0.05, 0.2])
def test_passes_over_the_own_text_do_not_depend_on_the_speed(own_text_last, machine, step_s):
    events = events_of(own_text_last, machine, step_s=step_s)
    first, last = own_steps(events)
    assert last - first + 1 == pytest.approx(30, abs=3) and last > 80
    steps = {event.step: event for event in of(StepDone, events)}
    assert share(steps[first - 1], own_text_last) < 0.1, "the pretraining has its own cool-down"
    assert share(steps[first + 5], own_text_last) > 0.4 and steps[last].learning_rate == 0
    n_evaluations = sum(event.step >= first for event in of(Evaluated, events))
    assert n_evaluations >= stages.MIN_FINE_TUNING_EVALS - 1


def test_a_slow_first_step_does_not_end_the_pretraining(own_text_last, machine):
    """It compiles; with its time, the own text would take longer than the run."""
    first, last = own_steps(events_of(own_text_last, machine, step_s=0.05, first_s=5.0))
    assert last - first + 1 == pytest.approx(30, abs=3) and first > 150


def test_a_stopped_run_with_stages_cools_down_in_its_stage(config, machine):
    config = with_train(config, for_="20s", teachers=2, schedule="wsd", min_learning_rate=0.0)

    stopped = events_of(config, machine, until=lambda event: isinstance(event, StepDone) and event.progress > 0.4)
    last = of(StepDone, stopped)[-1]
    longer = with_train(config, for_="3s", cooldown=1.0)
    events = events_of(longer, machine, True, RunRequest(NOON, extends=True))
    rates = [share(event, config) for event in of(StepDone, events)]
    assert not of(StageBegun, events) and len(rates) > 10
    assert rates[0] == pytest.approx(share(last, config), rel=0.2)
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0


def test_several_models_have_equally_much_time(own_text_last, machine):
    """The own text gets 30 steps of each, at any speed."""
    events = events_of(with_train(own_text_last, pretrainings=2), machine, step_s=0.05)
    begun = [event.step for event in of(StageBegun, events)]
    last = of(StepDone, events)[-1].step
    assert [event.name for event in of(StageBegun, events)][1::2] == ["your text 1 of 2", "your text 2 of 2"]
    assert begun[2] == pytest.approx(last / 2, abs=3)
    assert [begun[2] - begun[1], last - begun[3]] == pytest.approx([30, 30], abs=3)


def test_a_model_that_was_pretrained_before_a_long_sleep_learns_the_own_text_after_it(own_text_last, machine):
    """Which it slept through, and a part of the next pretraining."""
    config = with_train(own_text_last, pretrainings=2)
    events = staged_events(config, machine, slept_after=0.42, sleep_s=3)
    own_1, own_2 = [event.step for event in of(StageBegun, events) if event.name.startswith("your text")]
    next_one = next(event.step for event in of(StageBegun, events) if event.name == "pretraining 2 of 2")
    assert 5 < next_one - own_1 < 40 and own_2 > next_one


def test_after_such_a_sleep_a_killed_process_continues_with_the_own_text(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    found, slept_after = [], 0.42
    events = run(config)
    for event in events:
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(0.1)
            if slept_after is not None and event.progress >= slept_after:
                machine.now, slept_after = machine.now + 3, None
            if event.step > 3 + max((begun.step for begun in of(StageBegun, found)), default=0) and slept_after is None:
                break
    events.close()
    assert of(StageBegun, found)[-1].name == "your text 1 of 2"
    n_before = found[-1].step
    rest = events_of(config, machine, resume=True)
    next_one = next(event.step for event in of(StageBegun, rest) if event.name == "pretraining 2 of 2")
    assert next_one - n_before > 3


def test_both_models_of_such_a_run_are_kept(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    staged_events(config, machine, slept_after=0.42, sleep_s=3)
    assert all((Path(config.train.out_dir) / MODELS_FOLDER / f"{number}.pt").exists() for number in (1, 2))


def test_more_time_goes_to_the_last_of_several_pretrainings(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    before = of(StageBegun, events_of(config, machine))[3].step
    events = events_of(config, machine, True, RunRequest(NOON, 0.0, extends=True))
    steps = of(StepDone, events)
    assert before - 50 < steps[0].step < before and share(steps[9], config) == 1
    (begun,) = of(StageBegun, events)
    assert begun.name == "your text 2 of 2" and steps[-1].step - begun.step == pytest.approx(30, abs=3)


def test_more_time_goes_to_the_pretraining(own_text_last, machine):
    """From before its learning rate decayed; then the own text is read as often as in the run itself."""
    before, _ = own_steps(events_of(own_text_last, machine))
    events = events_of(own_text_last, machine, True, RunRequest(NOON, 0.0, extends=True))
    steps, (first, last) = of(StepDone, events), own_steps(events)
    assert steps[0].step < before - 50 and share(steps[9], own_text_last) == 1
    assert first - steps[0].step == pytest.approx(last - steps[0].step - 30, abs=3) and last - steps[0].step > 170


@pytest.mark.parametrize(("slept_after", "sleep_s", "is_kept"), [(0.2, 12, True), (0.0, 30, False)])
def test_a_pretraining_that_a_sleep_cut_short_is_used_once_it_was_evaluated(
    config, machine, tmp_path, monkeypatch, slept_after, sleep_s, is_kept
):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)  # so it is evaluated as often as it may be
    (tmp_path / "french.txt").write_text(FRENCH)
    config = with_train(config, for_="20s", first_share=0.4, schedule="wsd", min_learning_rate=0.0)
    config = with_data(config, first=(str(tmp_path / "french.txt"),))
    events = staged_events(config, machine, slept_after, sleep_s)
    assert [event.name for event in of(StageBegun, events)] == ["pretraining", "your text"]
    assert (Path(config.train.out_dir) / PRETRAINED_FILE).exists() == is_kept
    assert any("training: pretraining" in event.text for event in of(Warned, events))


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
