"""Budgets: one notion of progress, runs that end when they were asked to, and more time without a jump.

Clocks are made up here, but for the last two runs, of a few seconds.
"""

import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_gpt.cli import main as cli
from tiny_gpt.config import BUDGETS, FINAL_FILE, DataConfig, ModelConfig, ReliabilityConfig, RunConfig, TrainConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.duration import next_time, parse_duration
from tiny_gpt.errors import UsageError
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.evaluator import Examiner
from tiny_gpt.run.events import Checkpointed, Evaluated, Finished, Prepared, Saved, StepDone
from tiny_gpt.run.start import run
from tiny_gpt.training import timed_budget
from tiny_gpt.training.budget import RunRequest, resolve_steps
from tiny_gpt.training.schedule import learning_rate, schedule_point
from tiny_gpt.training.timed_budget import TimedBudget, TimedBudgetState, start_timed_budget

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))
PEAK = TrainConfig().learning_rate


# --- what a person may type ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("2min", 120),
        ("1h30m", 5400),
        ("9h30", 34200),
        ("1h 30m", 5400),
        ("1.5h", 5400),
    ],
)
def test_a_duration_is_understood_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


def test_a_time_of_day_is_the_next_one():
    assert next_time("12:01", NOON) - NOON == 60
    assert next_time("07:00", NOON) == next_time("7:00", NOON) == NOON + 19 * 3600
    assert next_time("12:00", NOON) == NOON + 24 * 3600


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(for_="banana"), "--for banana: give a duration such as 90s, 5m, 6h or 1h30m"),
        (dict(for_="0"), "--for 0: give a duration"),
        (dict(for_="1h30x"), "--for 1h30x: give a duration"),
        (dict(until="25:00"), "--until 25:00: give a time from 00:00 to 23:59"),
        (dict(for_="6h", until="07:00"), "--for and --until: give only one of them"),
        (dict(steps=10, data_epochs=1.0), "--steps and --data-epochs: give only one of them"),
        (dict(steps=-1), "--steps -1: must be greater than 0"),
        (dict(cooldown=0.0), "--cooldown 0.0: must be greater than 0"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_would_be_one(settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--for", "6h", "--epochs", "80"], "--for and --epochs: give only one of them"),
        (["--steps", "0"], "--steps 0: must be greater than 0"),
        (["--for=0"], "--for 0: must be greater than 0"),
    ],
)
def test_the_command_line_takes_one_budget(words, told, capsys):
    assert cli.main(["train", "text.txt", *words]) == 2
    assert told in capsys.readouterr().err


def test_of_a_saved_config_and_a_flag_the_flag_is_the_budget(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RunConfig(train=TrainConfig(for_="6h")).to_flat()))
    seen = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_: seen.append(config.train) or 0)
    for words in ([], ["--steps", "7"], ["--until", "07:00"], ["--epochs", "3"]):
        assert cli.main(["train", "text.txt", "--config", str(path), *words]) == 0
    assert [(train.budget, getattr(train, train.budget)) for train in seen] == [
        ("for_", "6h"),
        ("steps", 7),
        ("until", "07:00"),
        ("epochs", 3),
    ]


def test_with_no_budget_a_training_takes_five_minutes_and_the_guides_recipe_its_epochs(monkeypatch):
    seen = []
    monkeypatch.setattr("tiny_gpt.cli.train.launch_training", lambda config, *_: seen.append(config.train) or 0)
    for words in ([], ["--recipe", "overnight"], ["--epochs", "80"]):
        assert cli.main(["train", "text.txt", *words]) == 0
    auto = RECIPES["auto"].train
    assert seen == [replace(auto, for_="5m"), TrainConfig(), auto]


def test_tokens_and_readings_are_so_many_steps():
    config = RunConfig(ModelConfig(block_size=128), train=TrainConfig(batch_size=10))
    for settings, steps in (
        (dict(tokens=12_800), 10),
        (dict(data_epochs=2.5), 5),
        (dict(steps=3), 3),
        (dict(tokens=1), 1),
    ):
        found = resolve_steps(replace(config, train=replace(config.train, **settings)), train_tokens=2560)
        assert found.train.budget == "steps" and found.train.total_steps == steps
    assert resolve_steps(config, 2560) == config


# --- schedules ---


def test_the_guides_rates_are_those_of_its_formula_to_the_last_bit():
    """Written out as the guide's script has it."""
    train = TrainConfig()
    for step in range(train.total_steps):
        if step < 200:
            expected = 5e-4 * (step + 1) / 200
        else:
            progress = (step - 200) / (32_000 - 1 - 200)
            expected = 5e-5 + (5e-4 - 5e-5) * (1 + math.cos(math.pi * progress)) / 2
        assert learning_rate(schedule_point(step, 32_000, 200), train) == expected


def test_a_trapezoid_of_steps_rises_stays_and_falls_in_a_line_to_zero():
    train = TrainConfig(steps=110, warmup_steps=10, schedule="wsd", cooldown=0.5)
    rates = [learning_rate(schedule_point(step, 110, 10), train) / PEAK for step in range(110)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(rates[10:60]) == {1.0}
    assert rates[60:] == pytest.approx([(109 - step) / 49.5 for step in range(60, 110)])


# --- a clock that ends the run ---


class Machine:
    """A made-up machine: seconds pass as its steps, its sleeps and its end take them."""

    def __init__(self, step_s=0.1, end_s=1.0):
        self.now = self.train_s = 0.0
        self.step_s, self.end_s = step_s, end_s
        self.random = random.Random(0)

    def budget(self, config, state=None, measure_every=1):
        state = state or start_timed_budget(config, RunRequest(NOON), NOON + self.now)
        clocks = Clocks(wall=lambda: NOON + self.now, elapsed=lambda: 1e6 + self.now)
        budget = TimedBudget(config, state, lambda: self.train_s, measure_every, clocks)
        budget.reserved_s = lambda: self.end_s
        return budget

    def pass_time(self, seconds):
        self.now += seconds
        self.train_s += seconds

    def train(self, config, budget, step=0, before_step=lambda step: None, stop_at=float("inf")):
        """(rates as parts of the peak, the step after the last)"""
        rates = []
        while not budget.is_over(step) and self.now < stop_at:
            point = budget.begin_step(step)
            before_step(step)
            self.pass_time(self.step_s * self.random.uniform(0.9, 1.2))
            if step % 50 == 0:
                self.now += 3 * self.step_s  # an evaluation
            budget.end_step(step)
            step += 1
            rates.append(learning_rate(point, config) / config.learning_rate)
        if budget.is_over(step):
            self.now += self.end_s
        return rates, step


def check_end(machine, rates, asked_s):
    assert abs(machine.now - asked_s) <= max(10, asked_s / 100)
    assert rates[-1] <= 0.01
    peak = rates.index(max(rates))
    falling = rates[peak:]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(falling))
    cooling = [rate for rate in falling if rate < 1]
    assert max(a - b for a, b in zip([1.0, *cooling], cooling, strict=False)) < 0.5, "it falls, it does not drop"


BUDGETS_S = [20, 30, 45, 60, 90, 150, 300, 450, 900, 1200]


@pytest.mark.parametrize("asked_s", BUDGETS_S)
@pytest.mark.parametrize("trouble", ["none", "slows", "sleeps", "sleeps late", "begins slowly", "long steps"])
def test_a_run_ends_on_time_with_its_rate_fallen(asked_s, trouble):
    config = TrainConfig(for_=f"{asked_s}s", cooldown=0.4)
    machine = Machine(step_s=asked_s / 40 if trouble == "long steps" else 0.05)
    slept = []

    def before_step(step):
        if trouble == "slows" and machine.now > 0.7 * asked_s:
            machine.step_s = 0.2
        elif trouble == "begins slowly" and step == 0:
            machine.pass_time(asked_s / 4)
        elif trouble.startswith("sleeps") and not slept and machine.now > (0.9 if "late" in trouble else 0.4) * asked_s:
            slept.append(machine.pass_time(asked_s * (0.09 if "late" in trouble else 1 / 3)))

    rates, _ = machine.train(config, machine.budget(config), before_step=before_step)
    check_end(machine, rates, asked_s)
    if trouble in ("none", "sleeps") and asked_s >= 60:
        full = sum(rate > 0.999 for rate in rates) / len(rates)
        assert 0.5 < full < 0.62, "the last 0.4 of it cools down"


@pytest.mark.parametrize(("asked_s", "step_s"), [(20, 0.05), (600, 0.05), (60, 1), (60, 2), (120, 3), (300, 5)])
def test_a_gpu_that_works_off_its_queue_now_and_then_ends_on_time_too(asked_s, step_s):
    """Sixteen steps seem to take no time, then all of it passes at once; at first each step is waited for, and towards
    the end. The first ones compile."""
    config, machine = TrainConfig(for_=f"{asked_s}s"), Machine(step_s)
    budget, queue, rates, step = machine.budget(config, measure_every=16), 0, [], 0
    while not budget.is_over(step):
        point = budget.begin_step(step)
        queue += 1
        if budget.is_measured(step) or budget.steps_left < 32:
            machine.pass_time(queue * machine.step_s + (step < 3))
            queue = 0
        budget.end_step(step)
        step += 1
        rates.append(learning_rate(point, config) / PEAK)
    machine.now += machine.end_s
    check_end(machine, rates, asked_s)
    assert 0.3 < sum(rate < 1 for rate in rates[3:]) / len(rates) < 0.8, "the cool-down has its share"


def test_a_step_back_is_no_reason_to_end_late():
    config, machine = TrainConfig(for_="100s"), Machine()
    budget = machine.budget(config)
    kept, step = {}, 0
    while not budget.is_over(step):
        budget.begin_step(step)
        machine.pass_time(machine.step_s)
        budget.end_step(step)
        step += 1
        if step == 200:
            kept = budget.to_dict()
        if step == 400 and kept:
            budget.roll_back(kept)
            step, machine.step_s, kept = 200, 1.0, {}
    assert abs(machine.now + machine.end_s - 100) < 5


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_a_machine_that_sleeps_through_the_end_cools_down_shortly_when_it_wakes(progress):
    asked_s, config, machine = 600, TrainConfig(for_="10m"), Machine()
    slept = []

    def before_step(step):
        if machine.now > progress * asked_s and not slept:
            slept.append(machine.pass_time(asked_s))

    rates, _ = machine.train(config, machine.budget(config), before_step=before_step)
    woke = asked_s * (1 + progress)
    assert 0 < machine.now - woke < 10
    assert rates[-1] <= 0.01 and sum(0 < rate < 1 for rate in rates) > 10, "no drop"


def test_a_run_cut_off_goes_on_where_it_was_and_only_its_own_time_counts():
    asked_s, config, machine = 200, TrainConfig(for_="200s"), Machine()
    budget = machine.budget(config)
    rates, step = machine.train(config, budget, stop_at=150)
    kept = json.loads(json.dumps(budget.to_dict()))
    machine.now += 5000
    again = machine.budget(config, TimedBudgetState.from_dict(kept))
    more, _ = machine.train(config, again, step)
    machine.now -= 5000
    check_end(machine, rates + more, asked_s)
    assert abs(rates[-1] - more[0]) < 0.02


def test_until_goes_by_the_clock_on_the_wall_also_for_a_run_cut_off():
    config, machine = TrainConfig(until="12:05"), Machine()
    budget = machine.budget(config)
    rates, step = machine.train(config, budget, stop_at=100)
    machine.now += 80
    more, _ = machine.train(config, machine.budget(config, TimedBudgetState.from_dict(budget.to_dict())), step)
    check_end(machine, rates + more, 300)


def test_more_time_begins_at_the_rate_that_was_and_a_cool_down_from_it():
    config = TrainConfig(for_="100s")
    for share, cooldown, first, highest in ((1.0, 0.6, 1.0, 1.0), (0.6, 1.0, 0.6, 0.6), (0.1, 0.6, 0.1, 1.0)):
        machine, train = Machine(), replace(config, cooldown=cooldown)
        state = start_timed_budget(train, RunRequest(NOON), NOON, step=900, rate_fraction=share)
        rates, _ = machine.train(train, machine.budget(train, state), step=900)
        assert rates[0] == pytest.approx(first, abs=0.01) and max(rates) == pytest.approx(highest)
        assert rates[-1] == 0
        check = [abs(a - b) for a, b in itertools.pairwise(rates)]
        assert max(check) < 0.1, "no jump"


def test_a_budgets_state_from_elsewhere_is_refused():
    for values in (dict(progress=-1.0), dict(spent_s=True), dict(peak_fraction="1"), dict(total_s=float("nan"))):
        with pytest.raises(ValueError, match="budget's state"):
            TimedBudgetState.from_dict(values)
    with pytest.raises(TypeError):
        TimedBudgetState.from_dict(dict(unknown=1))


# --- whole runs ---


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and said hello to every dog in town.\n" * 60)
    return RunConfig(
        ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=8),
        DataConfig((str(text),)),
        TrainConfig(
            for_="9s",
            batch_size=8,
            learning_rate=0.01,
            warmup_steps=3,
            device="cpu",
            precision="fp32",
            backend="eager",
            out_dir=str(tmp_path / "run"),
        ),
        ReliabilityConfig(checkpoint_minutes=1e-9, keep_awake=False),
    )


@pytest.fixture
def made_up(monkeypatch):
    """A clock that a tenth of a second passes on at each step; checkpoints as often as one likes."""
    machine = Machine()
    monkeypatch.setattr(timed_budget, "system_clocks", lambda: Clocks(elapsed=lambda: machine.now))
    monkeypatch.setattr(clock.StepClock, "train_s", property(lambda _: machine.train_s))
    monkeypatch.setattr(clock, "MAX_SHARE", 1e9)
    return machine


def with_train(config, **changes):
    return replace(config, train=replace(config.train, **changes))


def events_of(config, machine, resume=False, request=None, until=lambda event: False):
    """All events, to the end or to the first one that is `until`, after which the run is dropped as a kill does."""
    found, events = [], run(config, resume, request)
    for event in events:
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(0.1)
        if until(event):
            break
    events.close()
    return found


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def share(event, config):
    return event.learning_rate / config.train.learning_rate


def weights(path):
    return (path / "model.safetensors").read_bytes()


def test_a_run_ends_with_all_that_it_leaves_and_keeps_the_state_before_its_cool_down(config, made_up):
    events = events_of(config, made_up)
    steps, finished = of(StepDone, events), events[-1]
    assert isinstance(finished, Finished) and 0 < finished.left_s < 5 and finished.stopped_by is None
    assert [event.progress for event in steps] == sorted(event.progress for event in steps)
    assert steps[-1].progress == 1 and steps[-1].learning_rate == 0
    evaluated = of(Evaluated, events)
    assert evaluated[-1].step == steps[-1].step == load_model(finished.final_path, torch.device("cpu")).progress.step
    assert 1 < len(evaluated) <= 41
    store = CheckpointStore(Path(config.train.out_dir))
    before = max(event.step for event in steps if event.learning_rate == config.train.learning_rate)
    abouts = {step: store.about(step) for step in store.steps()}
    assert abouts[before]["is_cooling"] is False and abouts[steps[-1].step]["is_cooling"] is True
    assert len(store.steps()) > 4 and max(step for step in abouts if not abouts[step]["is_cooling"]) == before


def test_where_saving_takes_too_much_of_the_time_the_best_model_waits_for_the_end(config, made_up, monkeypatch):
    def saved_best(share, **changes):
        monkeypatch.setattr(clock, "MAX_SHARE", share)
        events = events_of(with_train(config, out_dir=f"{config.train.out_dir}-{share}", **changes), made_up)
        best = min(of(Evaluated, events), key=lambda event: event.val_loss)
        assert load_model(events[-1].best_path, torch.device("cpu")).progress.val_loss == best.val_loss
        return [event for event in of(Saved, events) if event.is_best], best

    saved, best = saved_best(1e-9)
    assert len(saved) == 2 and saved[-1].val_loss == best.val_loss
    assert len(saved_best(1e9)[0]) > 5
    assert len(saved_best(1e-8, for_="", epochs=4, iters_per_epoch=20)[0]) > 2, (
        "steps are the same whatever saving takes"
    )


def test_more_time_goes_on_from_there_and_a_crash_in_it_does_not_begin_it_again(config, made_up):
    steps = of(StepDone, events_of(config, made_up))
    before = max(event.step for event in steps if event.learning_rate == config.train.learning_rate)
    store = CheckpointStore(Path(config.train.out_dir))
    state_before = weights(store.verified(before).path)
    request = RunRequest(NOON, adds_time=True)

    states = []

    def is_checkpoint_later(event):
        if isinstance(event, Checkpointed):
            states.append(weights(event.path))
        return len(states) > 20

    events = events_of(config, made_up, True, request, until=is_checkpoint_later)
    assert of(Prepared, events)[0].steps_done == before == of(Checkpointed, events)[0].step
    assert states[0] == state_before != states[-1] and max(store.steps()) == before + 20
    steps = of(StepDone, events)
    assert steps[0].step == before + 1 and {share(event, config) for event in steps} == {1.0}

    events = events_of(config, made_up, True, replace(request, is_restart=True))
    assert of(Prepared, events)[0].steps_done == max(event.step for event in steps)
    again = of(StepDone, events)
    assert share(again[0], config) == 1 and again[-1].learning_rate == 0
    assert len(steps) + len(again) <= 90, "one budget for both"


def test_what_was_stopped_cools_down_from_the_rate_where_it_is(config, made_up):
    config = with_train(config, for_="", epochs=1, iters_per_epoch=50, min_learning_rate=0.0)
    stopped = events_of(config, made_up, until=lambda event: isinstance(event, Checkpointed) and event.step == 30)
    last = of(StepDone, stopped)[-1]
    config = with_train(config, for_="3s", cooldown=1.0)
    events = events_of(config, made_up, True, RunRequest(NOON, adds_time=True))
    steps = of(StepDone, events)
    assert 0.3 < share(last, config) < 0.7 and steps[0].step == 31
    assert share(steps[0], config) == pytest.approx(share(last, config), abs=0.05)
    rates = [event.learning_rate for event in steps]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0 and len(steps) < 30


def test_a_stop_in_an_evaluation_is_not_taken_for_its_time(config, made_up, monkeypatch):
    """Else so much would be set aside for the last one, and the run ended early."""
    loss, calls = FixedWindows.loss, []

    def stopped_once(windows, *args):
        calls.append(windows)
        if len(calls) == 1:
            time.sleep(3)
        return loss(windows, *args)

    monkeypatch.setattr(FixedWindows, "loss", stopped_once)
    assert len(of(StepDone, events_of(config, made_up))) > 60


def test_the_best_models_last_score_is_of_as_much_text_as_there_is_time_for(config, made_up, monkeypatch):
    monkeypatch.setattr(Examiner, "_token_s", lambda _: 1e-7)

    def scored_tokens(late_s):
        def is_slow_at_the_end(event):
            made_up.now += late_s * (isinstance(event, StepDone) and event.progress == 1)
            return False

        short = with_train(config, eval_interval=5, out_dir=f"{config.train.out_dir}-{late_s}")
        return events_of(short, made_up, until=is_slow_at_the_end)[-1].scored_tokens

    whole, some = 347, 48
    assert scored_tokens(late_s=-5) == whole and scored_tokens(late_s=20) == some


def test_a_last_score_that_memory_does_not_suffice_for_loses_nothing(config, made_up, monkeypatch):
    loss, whole = FixedWindows.loss, 347

    def too_large(windows, *args):
        if windows.n_tokens == whole:
            raise torch.OutOfMemoryError("out of memory")
        return loss(windows, *args)

    monkeypatch.setattr(Examiner, "_token_s", lambda _: 1e-7)
    monkeypatch.setattr(FixedWindows, "loss", too_large)
    events = events_of(with_train(config, eval_interval=5), made_up, until=lambda event: _is_early(event, made_up))
    assert isinstance(events[-1], Finished) and events[-1].scored_tokens == 48
    assert events[-1].best_val_loss == min(event.val_loss for event in of(Evaluated, events))


def _is_early(event, machine):
    machine.now -= 5 * (isinstance(event, StepDone) and event.progress == 1)
    return False


def test_a_run_of_an_earlier_version_can_be_given_time(config, made_up):
    """Its checkpoints tell nothing of budgets and rates."""
    config = with_train(config, for_="", epochs=2, iters_per_epoch=5)
    events_of(config, made_up)
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
    assert of(Prepared, events_of(config, made_up, True))[0].steps_done == 10, "finished, as it was"
    longer = with_train(config, epochs=3)
    assert events_of(longer, made_up, True)[-1].last_step == 15
    events = events_of(with_train(config, for_="4s"), made_up, True)
    assert of(StepDone, events)[0].step == 16 and of(StepDone, events)[-1].learning_rate == 0


def test_a_run_of_a_few_seconds_ends_in_time(config):
    began = time.monotonic()
    events = list(run(with_train(config, for_="3s")))
    assert isinstance(events[-1], Finished) and abs(events[-1].left_s) < 10 and time.monotonic() - began < 60
    assert of(StepDone, events)[-1].learning_rate == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows stops no processes")
def test_a_process_that_is_stopped_for_a_third_of_its_time_ends_in_time(config):
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
    assert any("lr=0.0e+00" in line for line in lines) and any("asked      --for 6s" in line for line in lines)
