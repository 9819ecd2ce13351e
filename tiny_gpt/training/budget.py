"""How long a run trains: a budget turns steps or time into progress from 0 to 1, on which the schedules depend.

A budget of tokens, epochs or data epochs is converted to a number of steps. For a budget of time see timed_budget.py.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.duration import next_time, parse_duration
from tiny_gpt.host.clocks import system_clocks
from tiny_gpt.training.schedule import SchedulePoint, schedule_point


class TrainingBudget(Protocol):
    """Called around every step of a run."""

    def begin_step(self, step: int, reserved_s: float = 0.0) -> SchedulePoint:
        """The schedule point of `step`, counted from 0 over the whole run. Call it once before each step, in order.

        A timed budget leaves `reserved_s` seconds for all that follows the last step.
        """
        ...

    def end_step(self, step: int) -> None:
        """Call it after each step."""
        ...

    def is_over(self, n_steps: int) -> bool:
        """Whether the budget is used up after `n_steps` of the whole run."""
        ...

    def progress(self, n_steps: int) -> float:
        """The fraction of the budget, 0 to 1, that `n_steps` have used."""
        ...

    def progress_per_step(self) -> float:
        """By how much the progress grows from one step to the next, as far as is known."""
        ...

    @property
    def is_measured(self) -> bool:
        """Whether `progress_per_step` is known well: at the start of a process, the time of a step is not."""
        ...

    @property
    def is_cooldown(self) -> bool:
        """Whether all of the budget is a cool-down of a run that was stopped."""
        ...

    def remaining_s(self) -> float | None:
        """Seconds until the run ends; None unless its budget is a time."""
        ...

    def roll_back(self, values: dict[str, Any]) -> None:
        """Return to the state in which `to_dict` returned `values`. Time that has passed since stays used."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON types."""
        ...


@dataclass(frozen=True)
class StepBudget:
    """A known number of steps. It keeps no state: the point of each step is a function of its number."""

    total_steps: int
    warmup_steps: int

    def begin_step(self, step: int, reserved_s: float = 0.0) -> SchedulePoint:
        return schedule_point(step, self.total_steps, self.warmup_steps)

    def end_step(self, step: int) -> None:
        pass

    def is_over(self, n_steps: int) -> bool:
        return n_steps >= self.total_steps

    def progress(self, n_steps: int) -> float:
        return min(1.0, n_steps / self.total_steps)

    def progress_per_step(self) -> float:
        return 1 / max(1, self.total_steps - 1)

    @property
    def is_measured(self) -> bool:
        return True

    @property
    def is_cooldown(self) -> bool:
        return False

    def remaining_s(self) -> None:
        return None

    def roll_back(self, values: dict[str, Any]) -> None:
        pass

    def to_dict(self) -> dict[str, Any]:
        return {}


def resolve_steps(config: RunConfig, train_tokens: int) -> RunConfig:
    """`config` with a budget of tokens, or of passes over a text of `train_tokens`, converted to steps."""
    train = config.train
    tokens = {"tokens": train.tokens, "data_epochs": train.data_epochs * train_tokens}.get(train.budget)
    if tokens is None:
        return config
    steps = max(1, round(tokens / (train.batch_size * config.model.block_size)))
    return replace(config, train=replace(train, tokens=0, data_epochs=0.0, steps=steps))


# --- time ---


@dataclass(frozen=True)
class RunRequest:
    """The command that the user gave, which stays the same however often the watchdog restarts its process."""

    at: float = field(default_factory=time.time)
    """When they gave it, by time.time(). It also tells commands apart."""
    elapsed: float = field(default_factory=lambda: system_clocks().elapsed())
    """The same moment by the clock `elapsed` of host/clocks.py, which nobody sets. All processes of a command read the
    same one: they run between two starts of the machine."""
    extends: bool = False
    """Whether its time comes on top of what the run has had: `tiny-gpt resume RUN --for 3h`."""
    is_restart: bool = False
    """Whether this is the same command again after a crash: the time since the last checkpoint then counts as used."""


def requested_seconds(train: TrainConfig, requested_at: float, now: float) -> float | None:
    """Seconds from `now` on that a command given at `requested_at` asks for; None unless the budget is a time."""
    if train.until:
        return max(0.0, next_time(train.until, requested_at) - now)
    return parse_duration(train.for_) if train.for_ else None
