"""Timed budgets on simulated machines: they end on time, with the learning rate fallen to zero."""

import itertools
import json
import random
import time
from dataclasses import replace

import pytest

from tiny_gpt.config import TrainConfig
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.training.schedule import learning_rate
from tiny_gpt.training.timed_budget import TimedBudget, TimedBudgetState, resume_timed_budget, start_timed_budget

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))
PEAK = TrainConfig().learning_rate


class SimulatedMachine:
    """Time passes as its steps, its sleeps and what follows its last step take it."""

    def __init__(self, step_s=0.1, after_s=1.0):
        self.now = self.train_s = 0.0
        self.step_s, self.after_s = step_s, after_s
        self.set_s, self.booted = 0.0, 1e6
        self.random = random.Random(0)

    def budget(self, config, state=None, measure_every=1):
        state = state or start_timed_budget(config, self.request(0), clocks=self.clocks)
        return TimedBudget(config, state, lambda: self.train_s, measure_every, self.clocks)

    @property
    def clocks(self):
        """The time of day is `set_s` ahead of the time that has passed."""
        return Clocks(wall=lambda: NOON + self.now + self.set_s, elapsed=lambda: self.booted + self.now)

    def request(self, now=None, **changes):
        """A command given now, or at `now` seconds."""
        now = self.now if now is None else now
        return RunRequest(NOON + now + self.set_s, self.booted + now, **changes)

    def resumed(self, config, values, request):
        """The budget of another process, from a checkpoint's `values`."""
        state = TimedBudgetState.from_dict(json.loads(json.dumps(values)))
        return self.budget(config, resume_timed_budget(config, state, request, self.clocks))

    def pass_time(self, seconds):
        self.now += seconds
        self.train_s += seconds

    def train(self, config, budget, step=0, before_step=lambda step: None, stop_at=float("inf")):
        """(learning rates as fractions of the peak, the step after the last)"""
        rates = []
        while not budget.is_over(step) and self.now < stop_at:
            point = budget.begin_step(step, self.after_s)
            before_step(step)
            self.pass_time(self.step_s * self.random.uniform(0.9, 1.2))
            if step % 50 == 0:
                self.now += 3 * self.step_s  # an evaluation
            budget.end_step(step)
            step += 1
            rates.append(learning_rate(point, config) / config.learning_rate)
        if budget.is_over(step):
            self.now += self.after_s
        return rates, step


def check_end(machine, rates, total_s):
    assert abs(machine.now - total_s) <= max(10, total_s / 100)
    assert rates[-1] <= 0.01
    peak = rates.index(max(rates))
    falling = rates[peak:]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(falling))
    cooling = [rate for rate in falling if rate < 1]
    assert max(a - b for a, b in zip([1.0, *cooling], cooling, strict=False)) < 0.5, "it falls gradually"


BUDGETS_S = [20, 30, 45, 60, 90, 150, 300, 450, 900, 1200]


@pytest.mark.parametrize("total_s", BUDGETS_S)
@pytest.mark.parametrize("trouble", ["none", "slows", "sleeps", "sleeps late", "begins slowly", "long steps"])
def test_ends_on_time_with_the_rate_at_zero(total_s, trouble):
    config = TrainConfig(for_=f"{total_s}s", cooldown=0.4)
    machine = SimulatedMachine(step_s=total_s / 40 if trouble == "long steps" else 0.05)
    slept = []

    def before_step(step):
        if trouble == "slows" and machine.now > 0.7 * total_s:
            machine.step_s = 0.2
        elif trouble == "begins slowly" and step == 0:
            machine.pass_time(total_s / 4)
        elif trouble.startswith("sleeps") and not slept and machine.now > (0.9 if "late" in trouble else 0.4) * total_s:
            slept.append(machine.pass_time(total_s * (0.09 if "late" in trouble else 1 / 3)))

    rates, _ = machine.train(config, machine.budget(config), before_step=before_step)
    check_end(machine, rates, total_s)
    if trouble in ("none", "sleeps") and total_s >= 60:
        full = sum(rate > 0.999 for rate in rates) / len(rates)
        assert 0.5 < full < 0.62, "the last 0.4 is the cool-down"


@pytest.mark.parametrize(("total_s", "step_s"), [(20, 0.05), (600, 0.05), (60, 1), (60, 2), (120, 3), (300, 5)])
def test_a_gpu_with_a_queue_of_steps_ends_on_time(total_s, step_s):
    """Sixteen steps are queued in no time, then their time passes at once. The first and the last steps are waited for
    one by one; the first ones also compile."""
    config, machine = TrainConfig(for_=f"{total_s}s"), SimulatedMachine(step_s)
    budget, queue, rates, step = machine.budget(config, measure_every=16), 0, [], 0
    while not budget.is_over(step):
        point = budget.begin_step(step, machine.after_s)
        queue += 1
        if budget.is_timed_step(step) or budget.steps_left < 32:
            machine.pass_time(queue * machine.step_s + (step < 3))
            queue = 0
        budget.end_step(step)
        step += 1
        rates.append(learning_rate(point, config) / PEAK)
    machine.now += machine.after_s
    check_end(machine, rates, total_s)
    assert 0.3 < sum(rate < 1 for rate in rates[3:]) / len(rates) < 0.8, "the cool-down has its share"


def test_a_rollback_does_not_delay_the_end():
    config, machine = TrainConfig(for_="100s"), SimulatedMachine()
    budget = machine.budget(config)
    kept, step = {}, 0
    while not budget.is_over(step):
        budget.begin_step(step, machine.after_s)
        machine.pass_time(machine.step_s)
        budget.end_step(step)
        step += 1
        if step == 200:
            kept = budget.to_dict()
        if step == 400 and kept:
            budget.roll_back(kept)
            step, machine.step_s, kept = 200, 1.0, {}
    assert abs(machine.now + machine.after_s - 100) < 5


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_sleeping_past_the_end_leaves_a_short_cooldown(progress):
    total_s, config, machine = 600, TrainConfig(for_="10m"), SimulatedMachine()
    slept = []

    def before_step(step):
        if machine.now > progress * total_s and not slept:
            slept.append(machine.pass_time(total_s))

    rates, _ = machine.train(config, machine.budget(config), before_step=before_step)
    woke = total_s * (1 + progress)
    assert 0 < machine.now - woke < 10
    assert rates[-1] <= 0.01 and sum(0 < rate < 1 for rate in rates) > 10, "no drop"


def test_a_resumed_run_counts_only_its_own_time():
    total_s, config, machine = 200, TrainConfig(for_="200s"), SimulatedMachine()
    budget = machine.budget(config)
    rates, step = machine.train(config, budget, stop_at=150)
    kept = json.loads(json.dumps(budget.to_dict()))
    machine.now += 5000
    again = machine.budget(config, TimedBudgetState.from_dict(kept))
    more, _ = machine.train(config, again, step)
    machine.now -= 5000
    check_end(machine, rates + more, total_s)
    assert abs(rates[-1] - more[0]) < 0.02


@pytest.mark.parametrize("was_restarted", [False, True])
def test_until_names_the_same_instant_after_resuming(was_restarted):
    """Also where the first process of the later command crashed before it saved anything."""
    config, machine = TrainConfig(until="12:05"), SimulatedMachine()
    budget = machine.budget(config)
    rates, step = machine.train(config, budget, stop_at=100)
    machine.now += 60
    request = machine.request(is_restart=was_restarted)
    machine.now += 20
    more, _ = machine.train(config, machine.resumed(config, budget.to_dict(), request), step)
    check_end(machine, rates + more, 300)


SET_S = [86_400, 3600, 90, -90, -3600, -86_400]


@pytest.mark.parametrize("set_s", SET_S)
@pytest.mark.parametrize("settings", [dict(for_="70s"), dict(until="12:01")])
def test_a_changed_system_time_costs_nothing_of_the_budget(settings, set_s):
    """It is set in the middle of a step, then the process is killed and restarted, twice."""
    config, machine = TrainConfig(**settings), SimulatedMachine()
    request = machine.request()
    budget = machine.budget(config)
    rates, step = machine.train(config, budget, stop_at=14)
    machine.set_s += set_s
    more, step = machine.train(config, budget, step, stop_at=16)
    rates += more
    for stop_at in (30, float("inf")):
        kept = budget.to_dict()
        machine.now += 2
        budget = machine.resumed(config, kept, replace(request, is_restart=True))
        more, step = machine.train(config, budget, step, stop_at=stop_at)
        rates += more
    total_s = 70 if config.for_ else 60
    assert abs(machine.now - total_s) < 2 and rates[-1] <= 0.01 and len(rates) > 350


@pytest.mark.parametrize("booted", [1e6, 5.0])
def test_days_before_a_resume_are_not_counted_after_a_crash(booted):
    """The checkpoint is from another command, before a restart of the machine or not; the first process of this one
    crashed after 3 s without saving."""
    config, machine = TrainConfig(for_="200s"), SimulatedMachine()
    budget = machine.budget(config)
    machine.train(config, budget, stop_at=50)
    kept = budget.to_dict()
    machine.now += 3 * 86_400
    machine.booted = booted - machine.now
    request = machine.request(is_restart=True)
    machine.now += 3
    assert machine.resumed(config, kept, request).remaining_s() == pytest.approx(147, abs=1)


def test_until_is_read_in_the_time_zone_of_its_command(monkeypatch):
    """A process that is restarted, or resumed, elsewhere does not read the time anew."""
    config, machine = TrainConfig(until="12:05"), SimulatedMachine()
    request = machine.request()
    kept = machine.budget(config).to_dict()
    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    machine.now += 100
    try:
        again = machine.resumed(config, kept, replace(request, is_restart=True))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert again.remaining_s() == pytest.approx(200)


def test_time_that_a_machine_stood_still_is_not_counted():
    """A virtual machine that was frozen, by its host or as a snapshot: only its time of day jumps."""
    config, machine = TrainConfig(until="12:05"), SimulatedMachine()
    budget = machine.budget(config)
    machine.train(config, budget, stop_at=100)
    machine.set_s += 7 * 86_400
    assert budget.remaining_s() == pytest.approx(200, abs=1)


def test_more_time_starts_at_the_current_rate():
    config = TrainConfig(for_="100s")
    for share, cooldown, first, highest in ((1.0, 0.6, 1.0, 1.0), (0.6, 1.0, 0.6, 0.6), (0.1, 0.6, 0.1, 1.0)):
        machine, train = SimulatedMachine(), replace(config, cooldown=cooldown)
        state = start_timed_budget(train, machine.request(), 900, share, machine.clocks)
        rates, _ = machine.train(train, machine.budget(train, state), step=900)
        assert rates[0] == pytest.approx(first, abs=0.01) and max(rates) == pytest.approx(highest)
        assert rates[-1] == 0
        check = [abs(a - b) for a, b in itertools.pairwise(rates)]
        assert max(check) < 0.1, "no jump"


def test_an_invalid_state_is_refused():
    for values in (dict(progress=-1.0), dict(spent_s=True), dict(peak_fraction="1"), dict(total_s=float("nan"))):
        with pytest.raises(ValueError, match="budget's state"):
            TimedBudgetState.from_dict(values)
    with pytest.raises(TypeError):
        TimedBudgetState.from_dict(dict(unknown=1))


def test_states_of_earlier_versions_are_read():
    former = dict(ordered_at=NOON, asked_s=60.0, warm_at=0.1, start=0.2, top=0.3, spent_s=7.0)
    assert TimedBudgetState.from_dict(former) == TimedBudgetState(
        requested_at=NOON, total_s=60.0, warmup_end=0.1, first_fraction=0.2, peak_fraction=0.3, spent_s=7.0
    )
