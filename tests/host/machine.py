"""A simulated machine: hours pass in microseconds."""

import time
from types import SimpleNamespace

import psutil

from tiny_gpt.host.clocks import Clocks
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest


class SimulatedMachine:
    """A machine that tests put to sleep, charge and slow down. `monitor` observes it."""

    def __init__(self, percent=None, plugged=None):
        self.wall, self.elapsed, self.awake = 1.7e9, 5000.0, 3000.0
        self.n_reads = dict(wall=0, elapsed=0, awake=0, battery=0)
        self.plug(percent, plugged)
        self.clocks = Clocks(*(self._clock(name) for name in ("wall", "elapsed", "awake")))
        self.monitor = self.observe(self.clocks)

    def observe(self, clocks):
        """A monitor with these clocks and the battery of this machine."""
        return HostMonitor(StopRequest(), keep_awake=False, clocks=clocks, read_battery=self._read_battery)

    def _clock(self, name):
        def read():
            self.n_reads[name] += 1
            return getattr(self, name)

        return read

    def _read_battery(self):
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
        """Run, and read the notes after every step; returns all notes."""
        notes = []
        for _ in range(round(seconds / step_s)):
            self.run(step_s)
            notes += self.monitor.notes()
        return notes

    def evaluate(self, *throughputs, interval_s=600.0):
        """Evaluations after intervals of training at the given tokens/s; returns the note after each."""
        notes = []
        for tokens_per_s in throughputs:
            self.run(interval_s)
            notes.append(self.monitor.throughput_note(tokens_per_s))
        return notes

    def time_of_day(self):
        return time.strftime("%H:%M", time.localtime(self.wall))
