"""What a run meets from outside: signals, its watchdog, a machine that sleeps, heats up or runs out of battery."""

import contextlib
import time
from collections.abc import Iterator
from typing import Self

from tiny_gpt.host.heartbeat import heartbeat
from tiny_gpt.host.keep_awake import Awake
from tiny_gpt.host.monitor import MachineWatch
from tiny_gpt.host.signals import StopRequest

PAUSE_POLL_S = 5.0


class Night:
    """A context that keeps the machine awake; its methods are asked after every step."""

    def __init__(self, stop: StopRequest, keep_awake: bool) -> None:
        self.stop = stop
        self.machine = MachineWatch()
        self._awake = Awake(keep_awake)
        self._heartbeat = heartbeat()
        self._told_hang_up = False

    def __enter__(self) -> Self:
        self._awake.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._awake.__exit__(*_)

    @property
    def awake_problem(self) -> str | None:
        """Why the machine may fall asleep while it trains."""
        return self._awake.problem

    def beat(self) -> None:
        """Tell the watchdog that something moves."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    @property
    def restart_requested(self) -> bool:
        return self._heartbeat is not None and self._heartbeat.restart_requested

    def notes(self) -> list[str]:
        """What has happened since this was last asked, a line each."""
        notes = self.machine.check()
        if self.stop.hung_up and not self._told_hang_up:
            self._told_hang_up = True
            notes = [*notes, "the terminal was closed; training goes on, and train.log tells how"]
        return notes

    def must_pause(self) -> str | None:
        """Why training should pause now, if it should."""
        return self.machine.must_pause()

    def wait(self) -> None:
        """Return when training may go on or is asked to stop. Meanwhile the machine may sleep."""
        with self._asleep():
            while not (self.machine.may_continue() or self.stop.signal_number or self.restart_requested):
                self.beat()
                time.sleep(PAUSE_POLL_S)

    @contextlib.contextmanager
    def _asleep(self) -> Iterator[None]:
        self._awake.release()
        try:
            yield
        finally:
            self._awake.renew()
