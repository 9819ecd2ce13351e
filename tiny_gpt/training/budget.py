"""How far a run is along its budget: steps or seconds in, progress from 0 to 1 out, which every schedule goes by.

A number of steps is a pure function of the step. A clock is not: how many steps fit is found while they are made.
After every step the seconds that are left, less what the end itself takes, are divided by what a step takes at
present; that many steps share the progress that is left. So a slow machine makes fewer steps, a machine that slept
makes fewer, and each run comes to its end with its rate fallen.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.duration import next_time, parse_duration
from tiny_gpt.host.clocks import Clocks, system_clocks
from tiny_gpt.training.schedule import SchedulePoint, schedule_point

# A warm-up takes at most such a part of a timed budget, whatever its steps.
MAX_WARMUP = 0.05
# The pace is the median of so many measurements: one long step, such as one in which the machine slept, is none.
PACE_MEASUREMENTS = 15
# The first steps compile and fetch; until there are more measurements, so many steps at least are thought to follow.
FEWEST_MEASUREMENTS, FEWEST_STEPS = 3, 10
# So many steps of a GPU compile and record: what they took is forgotten.
WARM_STEPS = 3
# A step that takes so many times what is usual was stopped in between.
STOPPED_TIMES = 10
# A run may end late by so many seconds, or such a part of its time.
LATE_S, LATE_SHARE = 10.0, 0.01
# What follows the last step takes at most such a part of the time, as far as the steps make room for it.
MAX_END_SHARE = 0.5


class TrainingBudget(Protocol):
    """The way through a budget, step after step."""

    def begin(self, step: int) -> SchedulePoint:
        """Where `step`, counted from 0 over the whole run, stands. Ask once for each step, in order."""
        ...

    def end(self, step: int) -> None:
        """`step` is done."""
        ...

    def is_over(self, n_steps: int) -> bool:
        """Whether the budget is used up after `n_steps` of the whole run."""
        ...

    def progress(self, n_steps: int) -> float:
        """0 to 1, the share of the budget that `n_steps` have used."""
        ...

    def left_s(self) -> float | None:
        """Seconds until the run ends, where a clock says when."""
        ...

    def roll_back(self, values: dict[str, Any]) -> None:
        """The run has stepped back to where `to_dict` gave `values`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain JSON types."""
        ...


@dataclass(frozen=True)
class StepBudget:
    """A known number of steps: the point of each is a function of its number alone."""

    total_steps: int
    warmup_steps: int

    def begin(self, step: int) -> SchedulePoint:
        return schedule_point(step, self.total_steps, self.warmup_steps)

    def end(self, step: int) -> None:
        pass

    def is_over(self, n_steps: int) -> bool:
        return n_steps >= self.total_steps

    def progress(self, n_steps: int) -> float:
        return min(1.0, n_steps / self.total_steps)

    def left_s(self) -> None:
        return None

    def roll_back(self, values: dict[str, Any]) -> None:
        pass

    def to_dict(self) -> dict[str, Any]:
        return {}


@dataclass
class TimedBudgetState:
    """What a run keeps of its way through a timed budget. Instants are those of time.time()."""

    ordered_at: float = 0.0
    """When a person asked for it: another instant is another budget, though it be as long."""
    asked_s: float = 0.0
    """How long it is."""
    spent_s: float = 0.0
    trained_s: float = 0.0
    """What of that went into steps, and not into a sleep or a stop."""
    saved_at: float = 0.0
    progress: float = 0.0
    """That of the last step."""
    warm_at: float = 0.0
    """The progress at which the warm-up was over."""
    first_step: int = 0
    start: float = 0.0
    """The part of the peak rate that it began with."""
    top: float = 1.0
    """The part of the peak rate that it rises to."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TimedBudgetState":
        """The inverse of `asdict`; raises ValueError or TypeError."""
        state = cls(**values)
        if not all(type(value) in (int, float) and 0 <= value < 1e15 for value in asdict(state).values()):
            raise ValueError("the state of its budget has odd numbers")
        return state


@dataclass(frozen=True)
class RunRequest:
    """The command that a person gave, once, however often it is started again."""

    at: float = field(default_factory=time.time)
    """When they gave it, by time.time()."""
    is_more: bool = False
    """Whether its time is to come on top of what a run has had: `tiny-gpt resume RUN --for 3h`."""
    is_restart: bool = False
    """The same command again, after a crash: the time since the last checkpoint counts."""


def requested_seconds(train: TrainConfig, ordered_at: float, now: float) -> float | None:
    """Seconds from `now` on that a budget has which a clock ends and a person gave at `ordered_at`; else None."""
    if train.until:
        return max(0.0, next_time(train.until, ordered_at) - now)
    return parse_duration(train.for_) if train.for_ else None


def begin_budget(
    config: TrainConfig, request: RunRequest, now: float, step: int = 0, share: float = 0.0
) -> TimedBudgetState:
    """The timed budget of `config` from `now` on, for a run at `step` whose last rate was that `share` of the peak.

    One that cools down from its beginning does so from the rate where it is.
    """
    asked_s = requested_seconds(config, request.at, now) or 0.0
    top = share if config.cooldown == 1 and share > 0 else 1.0
    return TimedBudgetState(request.at, asked_s, first_step=step, start=share, top=top)


class TimedBudget:
    """A budget that a clock ends. `end_s` tells, from the seconds of a step, how long all after the last one takes."""

    def __init__(
        self,
        config: TrainConfig,
        state: TimedBudgetState,
        train_s: Callable[[], float],
        steps_at_once: int = 1,
        clocks: Clocks | None = None,
    ) -> None:
        """`train_s` counts the seconds of steps alone. A GPU, which has a queue of them, is waited for at the end of
        those that `is_measured` says, `steps_at_once` apart."""
        self.end_s: Callable[[float], float] = lambda step_s: 0.0
        self.state = state
        self._config, self._train_s, self._steps_at_once = config, train_s, steps_at_once
        self._clocks = clocks or system_clocks()
        self._spent_before_s, self._start = state.spent_s, self._clocks.elapsed()
        self.steps_left = math.inf
        """As it looked when the last step began."""
        self._measured: deque[float] = deque(maxlen=PACE_MEASUREMENTS)
        self._n_measured = 0
        self._mark: tuple[int, float] | None = None
        self._is_first = state.progress == 0
        self._cooldown = config.cooldown if config.resolved_schedule == "wsd" else 1.0

    # --- as TrainingBudget has it ---

    def begin(self, step: int) -> SchedulePoint:
        if self._mark is None:
            self._mark = step, self._train_s()
        state = self.state
        left = self.steps_left = self._count_steps_left()
        if left == 1:
            state.progress = 1.0
        elif not self._is_first:
            state.progress = max(state.progress + (1 - state.progress) / left, self._caught_up())
        self._is_first = False
        warm = max((step + 1 - state.first_step) / max(1, self._config.warmup_steps), state.progress / MAX_WARMUP)
        rise = (1.0, 0.0)
        if warm <= 1 and state.start < state.top:
            start = state.start / state.top
            rise = (start + (1 - start) * warm, 1.0)
            state.warm_at = state.progress
        fall = (state.progress - state.warm_at) / max(1e-9, 1 - state.warm_at)
        return SchedulePoint(state.progress, rise, fall, left == 1, state.top)

    def end(self, step: int) -> None:
        assert self._mark is not None, "a step that ends has begun"
        first_step, first_s = self._mark
        n_steps = step + 1 - first_step
        if self.is_measured(step):
            train_s = self._train_s()
            if self._steps_at_once > 1 and self._n_measured == WARM_STEPS:
                self._measured.clear()
            self._measured.append((train_s - first_s) / n_steps)
            self._n_measured += 1
            self._mark = step + 1, train_s
            if len(self._measured) >= FEWEST_MEASUREMENTS:
                usual_s = STOPPED_TIMES * statistics.median_low(self._measured)
                self.state.trained_s += n_steps * min(self._measured[-1], usual_s)

    def is_measured(self, step: int) -> bool:
        """Whether the time is taken at the end of `step`, which has begun: of each at first."""
        assert self._mark is not None, "a step that ends has begun"
        at_once = self._steps_at_once if self._n_measured >= WARM_STEPS + FEWEST_MEASUREMENTS else 1
        return step + 1 - self._mark[0] >= at_once

    def is_over(self, n_steps: int) -> bool:
        return self.state.progress >= 1

    def progress(self, n_steps: int) -> float:
        return self.state.progress

    def left_s(self) -> float:
        state = self.state
        if self._config.until:
            return next_time(self._config.until, state.ordered_at) - self._clocks.wall()
        return state.asked_s - self._spent_s()

    def roll_back(self, values: dict[str, Any]) -> None:
        """Less progress, and no more time: what is left is gone through faster."""
        is_earlier = values.get("ordered_at") == self.state.ordered_at  # else of the budget before this one
        earlier = TimedBudgetState.from_dict(values) if is_earlier else TimedBudgetState()
        self.state.progress, self.state.warm_at = earlier.progress, earlier.warm_at
        self._mark = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(replace(self.state, spent_s=self._spent_s(), saved_at=self._clocks.wall()))

    # --- the pace ---

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes at present, evaluations and saving left out; None before the first one."""
        return statistics.median_low(self._measured) if self._measured else None

    def _spent_s(self) -> float:
        return self._spent_before_s + self._clocks.elapsed() - self._start

    def _count_steps_left(self) -> float:
        """How many more steps fit, with the one that is about to begin; 1 if it is the last."""
        state, step_s = self.state, self.step_s
        if step_s is None:
            return math.inf
        end_s = min(self.end_s(step_s), MAX_END_SHARE * state.asked_s)
        left_s, whole_s = self.left_s() - end_s, state.asked_s - end_s
        cooling_s = self._shortest_cooldown_s(whole_s) * min(1.0, (1 - state.progress) / self._cooldown)
        if left_s < cooling_s:  # the machine slept, or has become very slow: nothing but the cool-down is left to do
            state.progress = max(state.progress, 1 - self._cooldown)
            left_s = cooling_s
        left = left_s / max(step_s, 1e-6)
        if len(self._measured) < FEWEST_MEASUREMENTS and left_s > cooling_s:
            left = max(left, FEWEST_STEPS)
        return left if left >= 1.5 else 1.0

    def _caught_up(self) -> float:
        """The progress after a sleep, for the cool-down to have its share of what is left. It ends where that begins:
        from there on a leap would be a drop of the rate."""
        trained_s = self.state.trained_s
        return min(trained_s / max(1e-6, trained_s + max(0.0, self.left_s())), 1 - self._cooldown)

    def _shortest_cooldown_s(self, whole_s: float) -> float:
        """Seconds that a cool-down has in any case, though the run ends half as late for it as it may. On a regular
        way it has four times as many."""
        late_s = max(LATE_S, LATE_SHARE * self.state.asked_s) / 2
        return max(0.0, min(late_s, self._cooldown * whole_s / 4))


def resolved(config: RunConfig, train_tokens: int) -> RunConfig:
    """`config` with a budget of tokens, or of times through a text of `train_tokens`, as the steps that it takes."""
    train = config.train
    tokens = {"tokens": train.tokens, "data_epochs": train.data_epochs * train_tokens}.get(train.budget)
    if tokens is None:
        return config
    steps = max(1, round(tokens / (train.batch_size * config.model.block_size)))
    return replace(config, train=replace(train, tokens=0, data_epochs=0.0, steps=steps))
