"""Training pauses on a low battery and resumes when it is plugged in; broken sensors never pause it."""

import random
from types import SimpleNamespace

import psutil
import pytest

from tests.host.machine import SimulatedMachine
from tiny_gpt.host import battery
from tiny_gpt.host.battery import system_battery
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest


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
def test_only_a_low_discharging_battery_pauses(reading):
    machine = SimulatedMachine()
    machine.reading = reading
    assert machine.train(3600) == []
    assert machine.monitor.pause_reason() is None
    assert machine.monitor.may_resume()
    assert machine.monitor.summary() == []


def test_pauses_below_20_percent():
    machine = SimulatedMachine(20, plugged=False)
    machine.train(60)
    assert machine.monitor.pause_reason() is None
    machine.plug(19.4, plugged=False)
    machine.train(40)
    reason = machine.monitor.pause_reason()
    assert reason == "battery at 19%; training resumes when it is plugged in or above 25%"
    assert not machine.monitor.may_resume()


def test_a_battery_low_from_the_start_pauses_within_seconds():
    machine = SimulatedMachine(7, plugged=False)
    machine.train(11)
    assert machine.monitor.pause_reason()


@pytest.mark.parametrize(
    ("percent", "plugged", "resumes"),
    [(12, False, False), (25, False, False), (26, False, True), (12, True, True), (12, None, True), (None, None, True)],
)
def test_resumes_when_plugged_in_or_charged(percent, plugged, resumes):
    machine = SimulatedMachine(10, plugged=False)
    machine.train(30)
    assert machine.monitor.pause_reason()
    machine.plug(percent, plugged)
    machine.train(30)
    assert machine.monitor.may_resume() == resumes
    assert (machine.monitor.pause_reason() is None) == resumes


def test_waiting_needs_only_may_resume():
    machine = SimulatedMachine(10, plugged=False)
    machine.train(30)
    assert machine.monitor.pause_reason()
    for _ in range(10):
        machine.run(5)
        assert not machine.monitor.may_resume()
    machine.plug(10, plugged=True)
    n_waits = 0
    while not machine.monitor.may_resume():
        machine.run(5)
        n_waits += 1
    assert n_waits <= 3


@pytest.mark.parametrize("reading", [None, OSError()])
def test_a_battery_that_disappears_ends_the_pause(reading):
    machine = SimulatedMachine(10, plugged=False)
    machine.train(30)
    assert machine.monitor.pause_reason()
    machine.reading = reading
    machine.train(30)
    assert machine.monitor.may_resume()


def test_a_single_false_reading_changes_nothing():
    machine = SimulatedMachine(90, plugged=False)
    for _ in range(20):
        machine.train(60)
        machine.plug(0, plugged=False)
        before = machine.n_reads["battery"]
        while machine.n_reads["battery"] == before:
            machine.train(1)
        assert machine.monitor.pause_reason() is None
        machine.plug(90, plugged=False)
        machine.train(10)
        assert machine.monitor.pause_reason() is None


def test_a_battery_wavering_around_20_percent_pauses_once():
    rng, machine = random.Random(0), SimulatedMachine(20, plugged=False)
    paused = []
    for _ in range(3600):
        machine.plug(rng.uniform(18, 22), plugged=False)
        machine.train(1)
        paused.append(machine.monitor.pause_reason() is not None)
    assert paused == sorted(paused)
    assert paused[-1]


def test_pauses_and_the_sleep_in_them_are_summed_up():
    machine = SimulatedMachine(10, plugged=False)
    machine.train(30)
    for sleep_s in (0, 3000):
        assert machine.monitor.pause_reason()
        assert machine.monitor.pause_reason()
        machine.run(600)
        machine.sleep(sleep_s)
        machine.plug(10, plugged=True)
        machine.train(10)
        assert machine.monitor.may_resume()
        assert machine.monitor.may_resume()
        machine.train(100)
        machine.plug(10, plugged=False)
        machine.train(60)
    assert machine.monitor.pause_reason()
    machine.run(60)
    assert machine.monitor.summary() == [
        "slept once, 50 min 00 s in all",
        "paused 3 times on a low battery, 1 h 11 min in all",  # 600, 3610, 60 and 3 x 10 seconds at most
    ]


def test_a_wireless_mouse_is_not_the_battery_of_a_desktop(tmp_path, monkeypatch):
    def supply(name, scope=None):
        (tmp_path / name).mkdir()
        if scope:
            (tmp_path / name / "scope").write_text(f"{scope}\n")

    only_peripherals = battery._only_peripherals_have_batteries
    assert not only_peripherals(str(tmp_path / "missing"))
    assert not only_peripherals(str(tmp_path))
    supply("AC")
    supply("macsmc-battery", "System")
    assert not only_peripherals(str(tmp_path))
    supply("hidpp_battery_0", "Device")
    assert only_peripherals(str(tmp_path))
    monkeypatch.setattr(battery.sys, "platform", "linux")
    monkeypatch.setattr(battery, "_only_peripherals_have_batteries", lambda: True)
    assert system_battery() is None
    supply("BAT0")
    assert not only_peripherals(str(tmp_path))


def test_a_system_without_battery_sensors_keeps_training(monkeypatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    machine = SimulatedMachine()
    monitor = HostMonitor(StopRequest(), keep_awake=False, clocks=Clocks(*3 * [lambda: machine.wall]))
    for _ in range(10):
        machine.run(30)
        assert monitor.notes() == []
    assert monitor.pause_reason() is None
