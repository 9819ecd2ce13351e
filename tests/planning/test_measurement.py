"""Measuring before a plan: what is kept, what the progress says, and how much of a run's time it takes."""

import itertools
import random
import string
from dataclasses import replace

import pytest

from tests.planning.support import AUTO, CPU
from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Measuring, Notice, finish
from tiny_gpt.planning import measurement, pilot_run, throughput
from tiny_gpt.planning.measurement import measure_machine_and_text

STEP_S = 0.4


class SlowMachine:
    """Every step takes STEP_S on its clock, whatever it takes here; counts the steps."""

    def __init__(self, monkeypatch):
        self.now, self.n_pilot_steps, self.n_timed = 0.0, 0, 0
        monkeypatch.setattr(throughput, "measure_step_s", self.measure_step)
        monkeypatch.setattr(pilot_run, "train_step", self.pilot_step)
        monkeypatch.setattr(pilot_run, "SCORED_TOKENS", 200)
        monkeypatch.setattr(pilot_run, "TRAIN", replace(pilot_run.TRAIN, steps=60))  # conftest.py shortens it

    def measure_step(self, config, vocab_size, device, limit_s):
        self.n_timed += 1
        self.now += 2 * STEP_S
        return STEP_S

    def pilot_step(self, *_):
        self.n_pilot_steps += 1
        self.now += STEP_S

    def measure(self, dataset, time):
        config = AUTO.with_flat({"backend": "eager"}, "a test")
        config = replace(config, train=replace(config.train, for_=time))
        start, events = self.now, []
        steps = measure_machine_and_text(config, dataset, CPU, clock=lambda: self.now)
        while True:
            try:
                events.append(next(steps))
            except StopIteration as stop:
                return stop.value, events, self.now - start


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"The {n}th lobster of {n * n} went to sea." for n in range(900)))
    return finish(prepare(DataConfig((str(path),), tokenizer="byte"), 16))


def test_second_time_is_immediate(dataset, monkeypatch):
    machine = SlowMachine(monkeypatch)
    first, events, seconds = machine.measure(dataset, "1h")
    assert machine.n_pilot_steps == 60 and seconds > 20
    fractions = [event.fraction for event in events if isinstance(event, Measuring)]
    assert fractions == sorted(fractions) and fractions[-1] <= 1 and len({event.what for event in events}) == 4
    second, _, seconds = machine.measure(dataset, "1h")
    assert seconds == 0 and second.text == first.text and second.step_time == first.step_time


@pytest.mark.parametrize("is_compiled", [False, True])
def test_compiling_is_announced_before_the_measurement_that_waits_for_it(dataset, monkeypatch, is_compiled):
    monkeypatch.setattr(measurement, "must_compile_kernels", lambda config, device: not is_compiled)
    machine = SlowMachine(monkeypatch)
    _, events, _ = machine.measure(dataset, "6h")
    announced = [event for event in events if isinstance(event, Notice) and event.text.startswith("compiling")]
    assert len(announced) == (not is_compiled)
    if announced:
        assert events.index(announced[0]) < next(i for i, event in enumerate(events) if isinstance(event, Measuring))


def test_at_most_a_twentieth_of_the_time_is_measured(dataset, monkeypatch):
    machine = SlowMachine(monkeypatch)
    planner, events, seconds = machine.measure(dataset, "2m")
    assert seconds <= 6 and planner.text.is_estimated and machine.n_pilot_steps < 10
    assert isinstance(events[-1], Notice)
    assert machine.n_timed == 2, "there is time for both sizes, but not for the chosen one"


def test_one_step_is_timed_even_where_there_is_no_time(dataset, monkeypatch):
    machine = SlowMachine(monkeypatch)
    planner, _, seconds = machine.measure(dataset, "1s")
    assert machine.n_timed == 1 and seconds <= 4 * STEP_S and planner.text.is_estimated


def test_estimate_is_of_the_text(dataset, tmp_path):
    (tmp_path / "noise.txt").write_text("".join(random.Random(0).choices(string.ascii_letters, k=20_000)))
    noise = finish(prepare(DataConfig((str(tmp_path / "noise.txt"),), tokenizer="byte"), 16))
    easy, hard = (pilot_run.estimate_stats(each).pilot_bits_per_byte for each in (dataset, noise))
    assert easy < 2.5 < 5 < hard < 8


def test_speeds_are_forgotten_after_a_day(monkeypatch):
    number = measurement.MeasuredNumber(CPU, "test", [1], expires=True)
    number.write(2.5)
    assert number.read() == 2.5
    kept = measurement.MeasuredNumber(CPU, "kept", [1])
    kept.write(3.5)
    times = itertools.repeat(measurement.time.time() + 90_000)
    monkeypatch.setattr(measurement.time, "time", lambda: next(times))
    assert number.read() is None and kept.read() == 3.5
