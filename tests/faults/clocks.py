"""The clock is set, or the machine sleeps, during a run: the result stays the same, and a sleep is reported."""

import time

from tests.faults.child import Child, before_steps
from tests.faults.trial import Group, Trial, times
from tests.faults.world import KINDS, differences, leftovers
from tiny_gpt.host import monitor
from tiny_gpt.host.clocks import Clocks
from tiny_gpt.host.monitor import MIN_SLEEP_S

HOUR_S = 3600.0
NOON = 1.8e9
"""Some day in 2027."""


STEP_S = 10.0
"""Apparent duration of a step, so that the clocks are checked after each."""


class Moved:
    """Clocks that advance with each step, and that a test can set or suspend."""

    def __init__(self) -> None:
        self.step, self.set_s, self.slept_s = 0, 0.0, 0.0

    def wall(self) -> float:
        return NOON + self.elapsed() + self.set_s

    def elapsed(self) -> float:
        return self.awake() + self.slept_s

    def awake(self) -> float:
        return self.step * STEP_S

    def clocks(self) -> Clocks:
        return Clocks(self.wall, self.elapsed, self.awake)


def clock_jumps(trial: Trial) -> list[str]:
    """Random jumps and sleeps of minutes to hours at random steps; time.time jumps too."""
    rng = trial.rng
    reference = trial.world.reference(rng.choice([*KINDS]))
    events = {
        rng.randint(2, reference.result.step - 2): (
            rng.choice(("set", "slept")),
            rng.uniform(2 * MIN_SLEEP_S, 30 * HOUR_S),
        )
        for _ in range(rng.randint(1, 3))
    }
    events = {step: (what, -s if what == "set" and rng.random() < 0.5 else s) for step, (what, s) in events.items()}
    folder = trial.folder / "run"

    def faults(_: Child) -> None:
        moved = Moved()
        monitor.system_clocks = moved.clocks
        time.time = moved.wall

        def act(step: int) -> None:
            moved.step = step
            what, seconds = events.get(step, ("set", 0.0))
            setattr(moved, f"{what}_s", getattr(moved, f"{what}_s") + seconds)

        before_steps(act)

    ended = Child(trial.world.command(reference.kind, folder), faults).wait()
    trial.note(f"{reference.kind}, {events}: {ended}")
    if ended.code != 0:
        return ["it did not go on to the end"]
    n_sleeps = sum(what == "slept" for what, _ in events.values())
    n_reported = ended.out.count(": the machine slept")
    problems = [] if n_reported == n_sleeps else [f"{n_reported} sleeps reported of {n_sleeps}"]
    return problems + differences(folder, reference) + leftovers(folder)


GROUPS = {
    "clock-jumps": Group(
        "exit 0, result equal to the reference run's, clock changes reported", clock_jumps, times(30), 1
    ),
}
