"""A budget of time (--for, --until): from the clock to progress, on which the schedule depends.

How many steps fit is not known beforehand. It is estimated again before every step:

    steps left = (time left - time reserved for what follows the last step) / time per step at present
    progress  += (1 - progress) / steps left

So the remaining steps share the remaining progress. A machine that is slow, or that slept, makes fewer steps; either
way the run ends on time, with its learning rate decayed to zero.

The time of day is read once, when a command is given: --until becomes a number of seconds. From then on a clock counts
that nobody sets, in every process that the command starts; so a changed system time neither ends nor extends a run.

Two rules protect the cool-down, in which the learning rate falls:

- It never starts with a jump. After a sleep before it, progress catches up with the clock, but only up to its start.
- It is never cut off. If too little time is left for it, the run ends late, within the tolerance below.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tiny_gpt.config import TrainConfig
from tiny_gpt.duration import next_time
from tiny_gpt.host.clocks import Clocks, system_clocks
from tiny_gpt.training.budget import RunRequest, requested_seconds
from tiny_gpt.training.schedule import SchedulePoint
from tiny_gpt.training.stages import last_share

# The warm-up takes at most this fraction of the budget, whatever its number of steps.
MAX_WARMUP_FRACTION = 0.05
# The time per step is the median of this many measurements, so that one long step (a sleep, a stop) does not count.
N_STEP_TIMES = 15
# The first steps compile and load. With fewer measurements than this, at least MIN_STEPS_LEFT are assumed to follow.
MIN_STEP_TIMES, MIN_STEPS_LEFT = 3, 10
# The first steps on a GPU compile and record CUDA graphs; their times are dropped.
N_GPU_WARMUP_STEPS = 3
# A step that takes this many times the median is one in which the process was stopped.
STOPPED_FACTOR = 10
# A run may end late by LATE_S seconds or by LATE_FRACTION of its time, whichever is longer.
LATE_S, LATE_FRACTION = 10.0, 0.01
# At most this fraction of the time is reserved for what follows the last step.
MAX_RESERVED_FRACTION = 0.5

# Fields of TimedBudgetState that earlier versions saved under another name.
_FORMER_NAMES = {
    "ordered_at": "requested_at",
    "asked_s": "total_s",
    "warm_at": "warmup_end",
    "start": "first_fraction",
    "top": "peak_fraction",
}
# Fields of earlier versions that are no longer used.
_DROPPED_NAMES = ("saved_at",)


@dataclass
class TimedBudgetState:
    """What checkpoints keep of a timed budget."""

    requested_at: float = 0.0
    """When the user gave the command, by time.time(). It identifies the budget: the same length requested again is
    another one."""
    total_s: float = 0.0
    """Its length."""
    spent_s: float = 0.0
    trained_s: float = 0.0
    """The part of `spent_s` that went into steps, without sleeps and stops."""
    session: float = 0.0
    """`RunRequest.at` of the command whose process saved this: that of the budget, or a later `resume`."""
    saved_elapsed: float = 0.0
    """When this was saved, by the clock `elapsed` of host/clocks.py."""
    progress: float = 0.0
    """That of the last step."""
    warmup_end: float = 0.0
    """The progress at which the warm-up ended."""
    first_step: int = 0
    """The step of the run with which this budget began."""
    first_fraction: float = 0.0
    """The learning rate at its beginning, as a fraction of the peak rate: above 0 where a run is given more time."""
    peak_fraction: float = 1.0
    """The fraction of the peak rate that the warm-up leads to."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TimedBudgetState":
        """The inverse of `asdict`, also of earlier versions. Raises ValueError or TypeError."""
        known = {name: value for name, value in values.items() if name not in _DROPPED_NAMES}
        state = cls(**{_FORMER_NAMES.get(name, name): value for name, value in known.items()})
        if not all(type(value) in (int, float) and 0 <= value < 1e15 for value in asdict(state).values()):
            raise ValueError("a number of the budget's state is negative, NaN, too large or of another type")
        return state


def start_timed_budget(
    config: TrainConfig, request: RunRequest, step: int = 0, rate_fraction: float = 0.0, clocks: Clocks | None = None
) -> TimedBudgetState:
    """A timed budget from now on, for a run at `step` whose last learning rate was `rate_fraction` of the peak.

    It warms up from that rate; where the whole budget is a cool-down (`cooldown=1`), it cools down from there.
    """
    now = request.at + _since_command_s(request, clocks or system_clocks())
    total_s = requested_seconds(config, request.at, now) or 0.0
    peak_fraction = rate_fraction if config.cooldown == 1 and rate_fraction > 0 else 1.0
    return TimedBudgetState(
        request.at,
        total_s,
        session=request.at,
        first_step=step,
        first_fraction=rate_fraction,
        peak_fraction=peak_fraction,
    )


def resume_timed_budget(
    config: TrainConfig, state: TimedBudgetState, request: RunRequest, clocks: Clocks | None = None
) -> TimedBudgetState:
    """The saved `state` as the process of `request` continues it: with the time since then that counts as used.

    After a restart by the watchdog that is all time since the checkpoint; after the user's own `resume` of a run with
    --until, what the time of day leaves of it.
    """
    clocks = clocks or system_clocks()
    since_command_s = _since_command_s(request, clocks)
    spent_s = state.spent_s
    if request.is_restart and state.session == request.at:
        spent_s += max(0.0, clocks.elapsed() - state.saved_elapsed)
    elif config.until:
        left_s = next_time(config.until, state.requested_at) - request.at - since_command_s
        spent_s = max(spent_s, state.total_s - left_s)
    elif request.is_restart:  # the checkpoint is older than this command
        spent_s += since_command_s
    return replace(state, spent_s=spent_s, session=request.at)


def _since_command_s(request: RunRequest, clocks: Clocks) -> float:
    return max(0.0, clocks.elapsed() - request.elapsed)


class TimedBudget:
    """A TrainingBudget that ends at a time."""

    def __init__(
        self,
        config: TrainConfig,
        state: TimedBudgetState,
        train_s: Callable[[], float],
        measure_every: int = 1,
        clocks: Clocks | None = None,
    ) -> None:
        """`train_s` returns the seconds spent in steps so far, without evaluations and saving.

        A GPU works through a queue of steps, so a single one cannot be timed without waiting for the queue: there the
        caller waits only after steps that `is_timed_step` names, `measure_every` apart.
        """
        self.state = state
        self.steps_left = math.inf
        """As estimated when the latest step began, that step included; 1 if it is the last of the run."""
        self._config, self._train_s, self._measure_every = config, train_s, measure_every
        self._clocks = clocks or system_clocks()
        self._spent_before_s, self._start = state.spent_s, self._clocks.elapsed()
        self._step_times: deque[float] = deque(maxlen=N_STEP_TIMES)
        self._n_measured = 0
        self._measured_from: tuple[int, float] | None = None
        """The step, and `train_s`, at which the measurement under way began."""
        self._is_first = state.progress == 0
        cooldown = config.cooldown if config.resolved_schedule == "wsd" else 1.0
        # That of the last stage. Earlier ones have their own, which a sleep may cut short.
        self._cooldown = cooldown * (last_share(config) if state.first_step == 0 else 1.0)

    # --- the interface of TrainingBudget ---

    def begin_step(self, step: int, reserved_s: float = 0.0) -> SchedulePoint:
        if self._measured_from is None:
            self._measured_from = step, self._train_s()
        state = self.state
        steps_left = self.steps_left = self._estimate_steps_left(reserved_s)
        if steps_left == 1:
            state.progress = 1.0
        elif not self._is_first:
            state.progress = max(state.progress + (1 - state.progress) / steps_left, self._caught_up_progress())
        self._is_first = False
        warmup_done, warmup_length = self._warmup(step)
        decay_progress = (state.progress - state.warmup_end) / max(1e-9, 1 - state.warmup_end)
        is_last = steps_left == 1
        return SchedulePoint(state.progress, warmup_done, warmup_length, decay_progress, is_last, state.peak_fraction)

    def end_step(self, step: int) -> None:
        assert self._measured_from is not None, "begin_step comes before end_step"
        first_step, first_s = self._measured_from
        n_steps = step + 1 - first_step
        if self.is_timed_step(step):
            train_s = self._train_s()
            if self._measure_every > 1 and self._n_measured == N_GPU_WARMUP_STEPS:
                self._step_times.clear()
            self._step_times.append((train_s - first_s) / n_steps)
            self._n_measured += 1
            self._measured_from = step + 1, train_s
            if len(self._step_times) >= MIN_STEP_TIMES:
                # A step in which the machine slept counts as one of ten times the usual length.
                longest_s = STOPPED_FACTOR * statistics.median_low(self._step_times)
                self.state.trained_s += n_steps * min(self._step_times[-1], longest_s)

    def is_timed_step(self, step: int) -> bool:
        """Whether the time is taken at the end of `step`, which has begun. The first steps are all measured."""
        assert self._measured_from is not None, "begin_step comes before is_timed_step"
        interval = self._measure_every if self._n_measured >= N_GPU_WARMUP_STEPS + MIN_STEP_TIMES else 1
        return step + 1 - self._measured_from[0] >= interval

    def is_over(self, n_steps: int) -> bool:
        return self.state.progress >= 1

    def progress(self, n_steps: int) -> float:
        return self.state.progress

    def progress_per_step(self) -> float:
        return (1 - self.state.progress) / self.steps_left

    @property
    def is_measured(self) -> bool:
        return len(self._step_times) >= MIN_STEP_TIMES

    @property
    def is_cooldown(self) -> bool:
        return self._config.cooldown == 1 and self.state.first_step > 0

    def remaining_s(self) -> float:
        return self.state.total_s - self._spent_s()

    def roll_back(self, values: dict[str, Any]) -> None:
        """Progress goes back and time does not, so each of the remaining steps makes more progress."""
        earlier = TimedBudgetState.from_dict(values)
        if earlier.requested_at != self.state.requested_at:  # a checkpoint from before this budget began
            earlier = TimedBudgetState()
        self.state.progress, self.state.warmup_end = earlier.progress, earlier.warmup_end
        self._measured_from = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(replace(self.state, spent_s=self._spent_s(), saved_elapsed=self._clocks.elapsed()))

    # --- estimates ---

    @property
    def step_s(self) -> float | None:
        """Seconds per step at present, without evaluations and saving; None before the first measurement."""
        return statistics.median_low(self._step_times) if self._step_times else None

    def _spent_s(self) -> float:
        return self._spent_before_s + self._clocks.elapsed() - self._start

    def _warmup(self, step: int) -> tuple[float, float]:
        """(done, length) of the warm-up, as fractions of the budget's peak rate.

        It ends after `warmup_steps` or at MAX_WARMUP_FRACTION of the progress, whichever comes first, and leads from
        `first_fraction` of the peak rate to `peak_fraction`.
        """
        state = self.state
        n_steps = step + 1 - state.first_step
        done = max(n_steps / max(1, self._config.warmup_steps), state.progress / MAX_WARMUP_FRACTION)
        if done > 1 or state.first_fraction >= state.peak_fraction:
            return 1.0, 0.0
        state.warmup_end = state.progress
        first = state.first_fraction / state.peak_fraction
        return first + (1 - first) * done, 1.0

    def _estimate_steps_left(self, reserved_s: float) -> float:
        """How many more steps fit, with the one about to begin; 1 if that is the last."""
        state, step_s = self.state, self.step_s
        if step_s is None:
            return math.inf
        reserved_s = min(reserved_s, MAX_RESERVED_FRACTION * state.total_s)
        left_s = self.remaining_s() - reserved_s
        cooldown_s = self._min_cooldown_s(state.total_s - reserved_s)
        cooldown_s *= min(1.0, (1 - state.progress) / self._cooldown)
        if left_s < cooldown_s:  # the machine slept or became very slow: only the cool-down is left to do
            state.progress = max(state.progress, 1 - self._cooldown)
            left_s = cooldown_s
        steps_left = left_s / max(step_s, 1e-6)
        if len(self._step_times) < MIN_STEP_TIMES and left_s > cooldown_s:
            steps_left = max(steps_left, MIN_STEPS_LEFT)
        # Rounded: with 1.4 steps left, this is the last one; with 1.6, the run ends a little late.
        return steps_left if steps_left >= 1.5 else 1.0

    def _caught_up_progress(self) -> float:
        """The progress at which the time left has the same share of all training time, at most where the cool-down
        starts: a leap within that would be a drop of the learning rate."""
        trained_s = self.state.trained_s
        return min(trained_s / max(1e-6, trained_s + max(0.0, self.remaining_s())), 1 - self._cooldown)

    def _min_cooldown_s(self, usable_s: float) -> float:
        """Seconds that the cool-down gets even if the run ends late: half the tolerance, and at most a quarter of what
        it would have had without trouble."""
        late_s = max(LATE_S, LATE_FRACTION * self.state.total_s) / 2
        return max(0.0, min(late_s, self._cooldown * usable_s / 4))
