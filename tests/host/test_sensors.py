"""Sensors of temperature and battery, also broken and missing ones."""

import math
from types import SimpleNamespace

import psutil
import pytest
import torch

from tiny_gpt.host import sensors
from tiny_gpt.host.sensors import Sensors

CPU = torch.device("cpu")


def chip(*values):
    return [SimpleNamespace(current=value) for value in values]


@pytest.fixture
def chips(monkeypatch):
    """The machine's chips with temperature sensors, by name; none at first."""
    found = {}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
    return found


def read(battery=lambda: None):
    return Sensors(battery).read(CPU)


def test_a_machine_without_sensors(chips):
    found = read()
    assert math.isnan(found["temperature_c"]) and math.isnan(found["battery_percent"])


@pytest.mark.parametrize(
    "found, expected",
    [
        ({"nvme": chip(60), "coretemp": chip(71, 64)}, 71),
        ({"acpitz": chip(40), "k10temp": chip(52)}, 52),
        ({"coretemp": chip(0.0, 255.0, 48)}, 48),
        ({"nvme": chip(60)}, math.nan),
        ({"coretemp": chip(None)}, math.nan),
    ],
)
def test_the_hottest_part_of_the_processor_counts(chips, found, expected):
    chips |= found
    assert read()["temperature_c"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("percent, expected", [(73, 73), (-1, math.nan), (400, math.nan), ("low", math.nan)])
def test_battery(chips, percent, expected):
    found = read(lambda: SimpleNamespace(percent=percent))
    assert found["battery_percent"] == pytest.approx(expected, nan_ok=True)


def test_slow_sensors_are_not_read_at_every_evaluation(chips, monkeypatch):
    now, reads = [100.0], []
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watched = Sensors(lambda: reads.append(now[0]) or SimpleNamespace(percent=50))
    for now[0] in (100.0, 101.0, 119.0, 121.0):
        assert watched.read(CPU)["battery_percent"] == 50
    assert reads == [100.0, 121.0]
