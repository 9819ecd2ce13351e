"""What happens to a machine at night is noticed, told as what it was, and once; a laptop never runs its battery flat.

Nights are simulated: hours pass in microseconds.
"""

import itertools
import random
import re
import time
from types import SimpleNamespace

import psutil
import pytest

from tiny_gpt.duration import format_duration
from tiny_gpt.host import battery as battery_module
from tiny_gpt.host.battery import system_battery
from tiny_gpt.host.monitor import Clocks, MachineWatch, system_clocks


class Machine:
    """A machine that one can put to sleep. `watch` looks at it."""

    def __init__(self, percent=None, plugged=None):
        self.wall, self.elapsed, self.awake = 1.7e9, 5000.0, 3000.0
        self.n_reads = dict(wall=0, elapsed=0, awake=0, battery=0)
        self.plug(percent, plugged)
        self.watch = MachineWatch(Clocks(*(self._clock(name) for name in ("wall", "elapsed", "awake"))), self._sense)

    def _clock(self, name):
        def read():
            self.n_reads[name] += 1
            return getattr(self, name)

        return read

    def _sense(self):
        self.n_reads["battery"] += 1
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    def plug(self, percent, plugged=None):
        self.reading = SimpleNamespace(percent=percent, secsleft=psutil.POWER_TIME_UNKNOWN, power_plugged=plugged)

    def run(self, seconds):
        self.wall, self.elapsed, self.awake = self.wall + seconds, self.elapsed + seconds, self.awake + seconds

    def sleep(self, seconds):
        self.wall, self.elapsed = self.wall + seconds, self.elapsed + seconds

    def set_clock(self, seconds):
        self.wall += seconds

    def train(self, seconds, step_s=1.0):
        """Run and check after every step; returns all notes."""
        notes = []
        for _ in range(round(seconds / step_s)):
            self.run(step_s)
            notes += self.watch.check()
        return notes

    def report(self, *speeds, interval_s=600.0):
        """Evaluations after so much training at so many tokens/s; returns what each was told."""
        told = []
        for speed in speeds:
            self.run(interval_s)
            told.append(self.watch.speed(speed))
        return told

    def time_of_day(self):
        return time.strftime("%H:%M", time.localtime(self.wall))


def slept(seconds):
    return (
        f"the machine slept for {format_duration(seconds)} (closing the lid does that); training goes on where it was"
    )


def was_set(seconds):
    direction = "forward" if seconds > 0 else "back"
    return f"the clock was set {direction} by {format_duration(abs(seconds))}; training does not go by it"


# --- sleep and the clock ---


@pytest.mark.parametrize("seed", range(40))
def test_random_sleeps_changes_of_the_clock_and_stalls_are_told_as_what_they_were(seed):
    rng, machine = random.Random(seed), Machine()
    sleeps, changes = [], []
    for _ in range(12):
        expected = []
        kind = rng.choice(["sleep", "clock", "both", "stall", "nothing", "short"])
        if kind in ("sleep", "both"):
            sleeps.append(rng.uniform(31, 40_000))
            machine.sleep(sleeps[-1])
            expected.append(slept(sleeps[-1]))
        if kind in ("clock", "both"):
            change = rng.choice([-1, 1]) * rng.uniform(31, 40_000)
            machine.set_clock(change)
            changes.append(change)
            expected += [was_set(change)] if len(changes) <= 3 else []
        if kind == "stall":
            machine.run(rng.uniform(31, 40_000))
        if kind == "short":
            machine.sleep(rng.uniform(0, 29))
            machine.set_clock(rng.uniform(-29, 29))
        assert machine.train(rng.randrange(10, 20)) == expected
    assert machine.watch.slept_s == pytest.approx(sum(sleeps), abs=1e-3)
    summary = machine.watch.summary()
    times = "once" if len(sleeps) == 1 else f"{len(sleeps)} times"
    assert [line for line in summary if "slept" in line] == (
        [f"slept {times}, {format_duration(sum(sleeps))} in all"] if sleeps else []
    )
    told = [line for line in summary if "clock" in line]
    if len(changes) > 3:
        assert told == [f"the clock was set {len(changes)} times"]
    else:
        assert told == [was_set(change).partition(";")[0] for change in changes]


def test_several_sleeps_between_two_looks_are_told_as_their_sum():
    machine = Machine()
    machine.sleep(3600)
    machine.run(2)
    machine.sleep(1200)
    assert machine.watch.check() == [slept(4800)]
    assert machine.watch.summary() == ["slept once, 1 h 20 min in all"]


def test_a_sleep_is_told_by_the_first_step_after_it():
    machine = Machine()
    machine.run(1)
    machine.watch.check()
    machine.sleep(60)
    assert machine.watch.check() == [slept(60)]
    assert machine.watch.check() == []


def test_clocks_that_drift_apart_are_no_event():
    machine = Machine()
    for _ in range(3600):
        machine.run(10)
        machine.set_clock(0.01)
        machine.sleep(0.01)
        assert machine.watch.check() == []
    assert machine.watch.summary() == []


@pytest.mark.parametrize("asleep", [True, False])
def test_standing_still_between_the_readings_of_two_clocks_is_told_as_what_it_was(asleep):
    machine = Machine()
    read_wall = machine.watch._clocks.wall
    to_come = [3600]

    def wall():
        if to_come:
            (machine.sleep if asleep else machine.run)(to_come.pop())
        return read_wall()

    object.__setattr__(machine.watch._clocks, "wall", wall)
    assert machine.train(60) == ([slept(3600)] if asleep else [])


def test_checking_reads_one_clock_nearly_always():
    machine = Machine(80, plugged=True)
    machine.train(60)
    before = dict(machine.n_reads)
    machine.train(3600, step_s=0.05)
    reads = {name: machine.n_reads[name] - before[name] for name in before}
    assert reads["battery"] <= 121
    assert reads["wall"] == reads["awake"] <= 721
    assert reads["elapsed"] <= 3600 / 0.05 + 2 * reads["wall"]


def test_the_clocks_of_this_system_agree_while_it_is_awake():
    clocks = system_clocks()
    first = clocks.read()
    time.sleep(0.02)
    last = clocks.read()
    spans = [after - before for before, after in zip(first, last, strict=True)]
    assert spans[1] >= 0.01
    assert max(spans) - min(spans) < 0.05
    assert MachineWatch().check() == []


@pytest.mark.parametrize("missing", ["AttributeError", "OSError"])
def test_a_system_without_such_clocks_is_not_watched_for_sleep(missing, monkeypatch):
    def broken(_):
        raise {"AttributeError": AttributeError, "OSError": OSError}[missing]

    monkeypatch.setattr(time, "clock_gettime", broken)
    clocks = system_clocks()
    assert clocks == Clocks()
    machine = Machine()
    machine.watch = MachineWatch(Clocks(*3 * [lambda: machine.wall]), machine._sense)
    machine.train(60)
    machine.sleep(7200)
    machine.set_clock(-90_000)
    assert machine.train(60) == []
    machine.plug(10, plugged=False)
    machine.train(60)
    assert machine.watch.must_pause()


# --- the battery ---


@pytest.mark.parametrize(
    "reading",
    [
        None,
        OSError("no such sensor"),
        SimpleNamespace(),
        SimpleNamespace(percent=None, power_plugged=False),
        SimpleNamespace(percent=float("nan"), power_plugged=False),
        SimpleNamespace(percent=-1, power_plugged=False),
        SimpleNamespace(percent=5, power_plugged=None),
        SimpleNamespace(percent=5, power_plugged=True),
        SimpleNamespace(percent=20, power_plugged=False),
        SimpleNamespace(percent=103, power_plugged=False),
    ],
)
def test_nothing_but_a_low_battery_that_discharges_pauses_training(reading):
    machine = Machine()
    machine.reading = reading
    assert machine.train(3600) == []
    assert machine.watch.must_pause() is None
    assert machine.watch.may_continue()
    assert machine.watch.summary() == []


def test_a_battery_below_20_percent_pauses_training():
    machine = Machine(20, plugged=False)
    machine.train(60)
    assert machine.watch.must_pause() is None
    machine.plug(19.4, plugged=False)
    machine.train(40)
    assert machine.watch.must_pause() == ("the battery is at 19%; training goes on when it is plugged in, or above 25%")
    assert not machine.watch.may_continue()


def test_a_battery_that_is_low_from_the_start_pauses_training_within_seconds():
    machine = Machine(7, plugged=False)
    machine.train(11)
    assert machine.watch.must_pause()


@pytest.mark.parametrize(
    ("percent", "plugged", "continues"),
    [(12, False, False), (25, False, False), (26, False, True), (12, True, True), (12, None, True), (None, None, True)],
)
def test_training_goes_on_when_plugged_in_or_charged(percent, plugged, continues):
    machine = Machine(10, plugged=False)
    machine.train(30)
    assert machine.watch.must_pause()
    machine.plug(percent, plugged)
    machine.train(30)
    assert machine.watch.may_continue() == continues
    assert (machine.watch.must_pause() is None) == continues


def test_waiting_needs_nothing_but_may_continue():
    machine = Machine(10, plugged=False)
    machine.train(30)
    assert machine.watch.must_pause()
    for _ in range(10):
        machine.run(5)
        assert not machine.watch.may_continue()
    machine.plug(10, plugged=True)
    waits = 0
    while not machine.watch.may_continue():
        machine.run(5)
        waits += 1
    assert waits <= 3


def test_a_battery_that_is_taken_out_or_falls_silent_does_not_hold_training_up():
    for reading in (None, OSError()):
        machine = Machine(10, plugged=False)
        machine.train(30)
        assert machine.watch.must_pause()
        machine.reading = reading
        machine.train(30)
        assert machine.watch.may_continue()


def test_a_single_false_reading_changes_nothing():
    machine = Machine(90, plugged=False)
    for _ in range(20):
        machine.train(60)
        machine.plug(0, plugged=False)
        before = machine.n_reads["battery"]
        while machine.n_reads["battery"] == before:
            machine.train(1)
        assert machine.watch.must_pause() is None
        machine.plug(90, plugged=False)
        machine.train(10)
        assert machine.watch.must_pause() is None


def test_a_battery_that_flaps_around_20_percent_pauses_training_once():
    rng, machine = random.Random(0), Machine(20, plugged=False)
    paused = []
    for _ in range(3600):
        machine.plug(rng.uniform(18, 22), plugged=False)
        machine.train(1)
        paused.append(machine.watch.must_pause() is not None)
    assert paused == sorted(paused)
    assert paused[-1]


def test_pauses_are_counted_and_summed_up_with_the_sleep_in_them():
    machine = Machine(10, plugged=False)
    machine.train(30)
    for sleep_s in (0, 3000):
        assert machine.watch.must_pause()
        assert machine.watch.must_pause()
        machine.run(600)
        machine.sleep(sleep_s)
        machine.plug(10, plugged=True)
        machine.train(10)
        assert machine.watch.may_continue()
        assert machine.watch.may_continue()
        machine.train(100)
        machine.plug(10, plugged=False)
        machine.train(60)
    assert machine.watch.paused_s == 600 + 3610 + 10
    assert machine.watch.slept_s == 3000
    assert machine.watch.must_pause()
    machine.run(60)
    assert machine.watch.summary() == [
        "slept once, 50 min 00 s in all",
        "paused 3 times on a low battery, 1 h 11 min in all",
    ]


def test_a_wireless_mouse_is_not_the_battery_of_a_desktop(tmp_path, monkeypatch):
    def supply(name, scope=None):
        (tmp_path / name).mkdir()
        if scope:
            (tmp_path / name / "scope").write_text(f"{scope}\n")

    only_devices = battery_module._only_devices_have_batteries
    assert not only_devices(str(tmp_path / "missing"))
    assert not only_devices(str(tmp_path))
    supply("AC")
    supply("macsmc-battery", "System")
    assert not only_devices(str(tmp_path))
    supply("hidpp_battery_0", "Device")
    assert only_devices(str(tmp_path))
    monkeypatch.setattr(battery_module.sys, "platform", "linux")
    monkeypatch.setattr(battery_module, "_only_devices_have_batteries", lambda: True)
    assert system_battery() is None
    supply("BAT0")
    assert not only_devices(str(tmp_path))


def test_a_system_without_a_battery_sensor_is_no_trouble(monkeypatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    machine = Machine()
    watch = MachineWatch(Clocks(*3 * [lambda: machine.wall]))
    for _ in range(10):
        machine.run(30)
        assert watch.check() == []
    assert watch.must_pause() is None


# --- speed ---


def test_a_lasting_slow_down_is_told_once_and_its_end_once():
    machine = Machine()
    assert machine.report(*6 * [2000]) == 6 * [None]
    start = machine.time_of_day()
    assert machine.report(1200, 1300, 1250) == [
        None,
        None,
        f"training has been 38% slower since {start}, at 1,250 tokens/s: "
        "heat, power saving or another program may be why",
    ]
    assert machine.report(*7 * [1000]) == 7 * [None]
    end = machine.time_of_day()
    assert machine.report(1990, 1950, 1970) == [None, None, f"training is back at 1,950 tokens/s since {end}"]
    assert machine.report(*5 * [2000]) == 5 * [None]
    assert machine.watch.summary() == [f"46% slower from {start} to {end}"]


def test_a_slow_down_that_lasts_until_morning_is_told():
    machine = Machine()
    machine.report(*3 * [1000])
    start = machine.time_of_day()
    machine.report(*3 * [500])
    assert machine.watch.summary() == [f"50% slower from {start} on"]


@pytest.mark.parametrize(
    "speeds",
    [
        [100, 1000, 1000, 1000, 1000],  # the first interval warms the device up
        [1000, 1000, 9000, 1000, 1000, 1000],  # one report is not held
        [1000, 1000, 1000, 500, 500, 1000, 500, 500, 1000],  # never three in a row
        [1000, 1000, 1000, *10 * [710]],
        [1000, 1000, 1000, float("nan"), 0, -5, float("inf"), 1000],
        [1],
        [],
    ],
)
def test_what_is_no_lasting_slow_down_is_not_told(speeds):
    machine = Machine()
    assert not any(machine.report(*speeds))
    assert machine.watch.summary() == []


def test_speeds_that_flap_around_the_limit_do_not_flood_the_night():
    rng, machine = random.Random(0), Machine()
    machine.report(*3 * [1000])
    told = [note for note in machine.report(*(rng.uniform(600, 800) for _ in range(200))) if note]
    assert len(told) < 40
    kinds = ["slower" if "slower" in note else "back" for note in told]
    assert all(a != b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("spoilt_by", ["sleep", "pause"])
def test_an_interval_with_a_sleep_or_a_pause_in_it_does_not_count(spoilt_by):
    machine = Machine(10, plugged=True)
    machine.report(*3 * [1000])
    machine.report(500, 500)
    if spoilt_by == "sleep":
        machine.sleep(3600)
    else:
        machine.plug(10, plugged=False)
        machine.train(60)
        assert machine.watch.must_pause()
        machine.plug(10, plugged=True)
        machine.train(60)
        assert machine.watch.may_continue()
    assert machine.report(1) == [None]
    assert machine.report(1000, 500, 500) == 3 * [None]
    (note,) = machine.report(500)
    assert "slower" in note


def test_a_sleep_that_speed_comes_upon_is_still_told_by_check():
    machine = Machine()
    machine.sleep(3600)
    assert machine.watch.speed(1000) is None
    assert machine.watch.check() == [slept(3600)]


def test_every_line_is_plain():
    machine = Machine(10, plugged=False)
    machine.sleep(100)
    machine.set_clock(-100)
    lines = [*machine.train(30), machine.watch.must_pause(), *machine.report(*3 * [1000], *4 * [100])]
    for line in [*filter(None, lines), *machine.watch.summary()]:
        assert re.fullmatch(r"[ -~]{10,160}", line)
