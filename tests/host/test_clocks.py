"""The system's clocks, and reading two of them at one moment."""

import time

import pytest

from tests.host.machine import SimulatedMachine
from tiny_gpt.host.clocks import Clocks, system_clocks


def test_system_clocks_agree_while_the_machine_is_awake():
    clocks = system_clocks()
    first = [clocks.wall(), *clocks.read()]
    time.sleep(0.02)
    last = [clocks.wall(), *clocks.read()]
    spans = [after - before for before, after in zip(first, last, strict=True)]
    assert spans[1] >= 0.01
    assert max(spans) - min(spans) < 0.05


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_without_system_clocks_one_clock_stands_for_all(error, monkeypatch):
    def broken(_):
        raise error

    monkeypatch.setattr(time, "clock_gettime", broken)
    assert system_clocks() == Clocks()


@pytest.mark.parametrize("asleep", [True, False])
def test_a_gap_between_the_two_readings_is_not_mistaken(asleep):
    machine = SimulatedMachine()
    read_awake = machine.clocks.awake
    gaps = [3600]

    def awake():
        if gaps:
            (machine.sleep if asleep else machine.run)(gaps.pop())
        return read_awake()

    object.__setattr__(machine.clocks, "awake", awake)
    assert len(machine.train(60)) == int(asleep)
