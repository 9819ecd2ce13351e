"""A run reports what happened to its machine: each sleep and each lasting slow-down, once."""

import itertools
import random
import re
import signal

import pytest

from tests.host.machine import SimulatedMachine
from tiny_gpt.duration import format_duration
from tiny_gpt.host import monitor
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest


def slept(seconds):
    return f"the machine slept for {format_duration(seconds)} (lid closed?); training continues"


# --- sleep ---


@pytest.mark.parametrize("seed", range(40))
def test_sleeps_are_told_from_clock_changes_and_stops(seed):
    rng, machine = random.Random(seed), SimulatedMachine()
    sleeps = []
    for _ in range(12):
        expected = []
        event = rng.choice(["sleep", "clock", "both", "stopped", "nothing", "short"])
        if event in ("sleep", "both"):
            sleeps.append(rng.uniform(31, 40_000))
            machine.sleep(sleeps[-1])
            expected.append(slept(sleeps[-1]))
        if event in ("clock", "both"):
            machine.set_clock(rng.choice([-1, 1]) * rng.uniform(31, 40_000))
        if event == "stopped":
            machine.run(rng.uniform(31, 40_000))
        if event == "short":
            machine.sleep(rng.uniform(0, 29))
            machine.set_clock(rng.uniform(-29, 29))
        assert machine.train(rng.randrange(10, 20)) == expected
    times = "once" if len(sleeps) == 1 else f"{len(sleeps)} times"
    expected = [f"slept {times}, {format_duration(sum(sleeps))} in all"] if sleeps else []
    assert machine.monitor.summary() == expected


def test_sleeps_between_two_checks_are_reported_as_one():
    machine = SimulatedMachine()
    machine.sleep(3600)
    machine.run(2)
    machine.sleep(1200)
    assert machine.monitor.notes() == [slept(4800)]
    assert machine.monitor.summary() == ["slept once, 1 h 20 min in all"]


def test_the_first_step_after_a_sleep_reports_it():
    machine = SimulatedMachine()
    machine.run(1)
    machine.monitor.notes()
    machine.sleep(60)
    assert machine.monitor.notes() == [slept(60)]
    assert machine.monitor.notes() == []


def test_a_sleep_found_at_an_evaluation_is_reported():
    machine = SimulatedMachine()
    machine.sleep(3600)
    assert machine.monitor.throughput_note(1000) is None
    assert machine.monitor.notes() == [slept(3600)]


def test_drifting_clocks_are_no_event():
    machine = SimulatedMachine()
    for _ in range(3600):
        machine.run(10)
        machine.set_clock(0.01)
        machine.sleep(0.01)
        assert machine.monitor.notes() == []
    assert machine.monitor.summary() == []


def test_most_steps_read_one_clock_only():
    machine = SimulatedMachine(80, plugged=True)
    machine.train(60)
    before = dict(machine.n_reads)
    machine.train(3600, step_s=0.05)
    reads = {name: machine.n_reads[name] - before[name] for name in before}
    assert reads["battery"] <= 121
    assert reads["wall"] == 0 and reads["awake"] <= 721
    assert reads["elapsed"] <= 3600 / 0.05 + 2 * reads["awake"]


def test_the_real_machine_reports_nothing():
    assert HostMonitor(StopRequest(), keep_awake=False).notes() == []


def test_without_a_sleep_clock_the_battery_still_counts():
    machine = SimulatedMachine()
    machine.monitor = machine.observe(Clocks(*3 * [lambda: machine.wall]))
    machine.train(60)
    machine.sleep(7200)
    machine.set_clock(-90_000)
    assert machine.train(60) == []
    machine.plug(10, plugged=False)
    machine.train(60)
    assert machine.monitor.pause_reason()


# --- throughput ---


def test_a_lasting_slowdown_and_its_end_are_reported_once():
    machine = SimulatedMachine()
    assert machine.evaluate(*6 * [2000]) == 6 * [None]
    start = machine.time_of_day()
    assert machine.evaluate(1200, 1300, 1250) == [
        None,
        None,
        f"training has been 38% slower since {start}, at 1,250 tokens/s; "
        "heat, power saving or another program may be the cause",
    ]
    assert machine.evaluate(*7 * [1000]) == 7 * [None]
    end = machine.time_of_day()
    assert machine.evaluate(1990, 1950, 1970) == [None, None, f"training is back at 1,950 tokens/s since {end}"]
    assert machine.evaluate(*5 * [2000]) == 5 * [None]
    assert machine.monitor.summary() == [f"46% slower from {start} to {end}"]


def test_a_slowdown_until_the_end_is_in_the_summary():
    machine = SimulatedMachine()
    machine.evaluate(*3 * [1000])
    start = machine.time_of_day()
    machine.evaluate(*3 * [500])
    assert machine.monitor.summary() == [f"50% slower from {start} on"]


@pytest.mark.parametrize(
    "throughputs",
    [
        [100, 1000, 1000, 1000, 1000],  # the first interval warms the device up
        [1000, 1000, 9000, 1000, 1000, 1000],  # one interval at 9000 sets no standard
        [1000, 1000, 1000, 500, 500, 1000, 500, 500, 1000],  # never three in a row
        [1000, 1000, 1000, *10 * [710]],
        [1000, 1000, 1000, float("nan"), 0, -5, float("inf"), 1000],
        [1],
        [],
    ],
)
def test_short_or_small_slowdowns_are_not_reported(throughputs):
    machine = SimulatedMachine()
    assert not any(machine.evaluate(*throughputs))
    assert machine.monitor.summary() == []


def test_a_throughput_wavering_around_the_limit_is_not_noisy():
    rng, machine = random.Random(0), SimulatedMachine()
    machine.evaluate(*3 * [1000])
    notes = [note for note in machine.evaluate(*(rng.uniform(600, 800) for _ in range(200))) if note]
    assert len(notes) < 40
    directions = ["slower" if "slower" in note else "back" for note in notes]
    assert all(a != b for a, b in itertools.pairwise(directions))


@pytest.mark.parametrize("interruption", ["sleep", "pause"])
def test_interrupted_intervals_do_not_count(interruption):
    machine = SimulatedMachine(10, plugged=True)
    machine.evaluate(*3 * [1000])
    machine.evaluate(500, 500)
    if interruption == "sleep":
        machine.sleep(3600)
    else:
        machine.plug(10, plugged=False)
        machine.train(60)
        assert machine.monitor.pause_reason()
        machine.plug(10, plugged=True)
        machine.train(60)
        assert machine.monitor.may_resume()
    assert machine.evaluate(1) == [None]
    assert machine.evaluate(1000, 500, 500) == 3 * [None]
    (note,) = machine.evaluate(500)
    assert "slower" in note


# --- signals and pauses ---


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_is_reported_once():
    with StopRequest() as stop:
        host = HostMonitor(stop, keep_awake=False)
        assert host.notes() == []
        signal.raise_signal(signal.SIGHUP)
        (note,) = host.notes()
        assert "the terminal was closed" in note and "train.log" in note
        assert host.notes() == [] and stop.signal_number is None


@pytest.mark.parametrize("reason", ["resumed", "stopped", "restart requested"])
def test_a_pause_ends_for_each_reason_and_keeps_beating(reason, monkeypatch):
    machine = SimulatedMachine(10, plugged=False)
    machine.train(30)
    assert machine.monitor.pause_reason()
    beats = []

    class Heart:
        restart_requested = False

        def beat(self):
            beats.append(1)

    machine.monitor._heartbeat = Heart()

    def wait(seconds):
        machine.run(seconds)
        if len(beats) == 5:
            if reason == "resumed":
                machine.plug(10, plugged=True)
            elif reason == "stopped":
                machine.monitor.stop.signal_number = signal.SIGINT
            else:
                Heart.restart_requested = True

    monkeypatch.setattr(monitor.time, "sleep", wait)
    machine.monitor.wait_out_pause()
    assert 5 <= len(beats) <= 8
    assert (machine.monitor.pause_reason() is None) == (reason == "resumed")


def test_every_line_is_plain_text():
    machine = SimulatedMachine(10, plugged=False)
    machine.sleep(100)
    machine.set_clock(-100)
    lines = [*machine.train(30), machine.monitor.pause_reason(), *machine.evaluate(*3 * [1000], *4 * [100])]
    lines = [*filter(None, lines), *machine.monitor.summary()]
    assert lines and all(re.fullmatch(r"[ -~]{10,160}", line) for line in lines)
