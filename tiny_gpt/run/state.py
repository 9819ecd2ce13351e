"""All that changes while a run learns: weights, moments, the guard's memory, how far it is. What a checkpoint holds."""

import dataclasses
import time
from typing import Any

from tiny_gpt.config import RunConfig
from tiny_gpt.device import synchronize
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.checkpoint import (
    RunState,
    checkpoint_files,
    load_tensors,
    read_history,
    read_state,
)
from tiny_gpt.run.checkpoint_store import Checkpoint, DamagedError
from tiny_gpt.run.clock import StepClock
from tiny_gpt.run.events import Evaluated
from tiny_gpt.training.budget import RunRequest, StepBudget, TrainingBudget
from tiny_gpt.training.cuda_graph import make_cuda_graph_update
from tiny_gpt.training.guard import GUARD_INTERVAL, Guard
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.schedule import SchedulePoint, is_cooling
from tiny_gpt.training.step import micro_batch_size
from tiny_gpt.training.timed_budget import TimedBudget, TimedBudgetState, start_timed_budget


class Learner:
    """A model in training. `settings` and `origin` are kept with every checkpoint, for those who resume from it."""

    def __init__(
        self,
        model: GPT,
        config: RunConfig,
        settings: dict[str, Any],
        origin: dict[str, Any],
        request: RunRequest | None = None,
    ) -> None:
        """Plain JSON types: `settings` goes to a checkpoint's state, `origin` (text, machine) to its manifest."""
        self.model, self.config, self.settings, self.origin = model, config, settings, origin
        self.optimizer = make_optimizer(model, config.train)
        self.guard = Guard(model.device)
        self.cuda_graph = make_cuda_graph_update(model, self.optimizer, config.train, self.guard)
        self.state = RunState(n_micro_batches=config.train.grad_accum_steps)
        self.history: list[Evaluated] = []
        self.best: Evaluated | None = None
        """The best model that was saved."""
        self.clock = StepClock()
        self.request = request or RunRequest()
        self.budget = self._new_budget()
        self.is_cooling = config.train.resolved_schedule != "wsd"
        """Whether the rate has begun to fall: what was before that can be trained further for any time."""

    @property
    def micro_batch_size(self) -> int:
        """Blocks that are computed at once."""
        config = self.config
        return micro_batch_size(
            config.train.batch_size, self.state.n_micro_batches, config.model.block_size, self.model.device
        )

    def has_done(self, point: SchedulePoint, scheduled_rate: float) -> None:
        """Count a step that is done. `scheduled_rate` is its learning rate before `rate_factor`.

        A timed budget waits for the device where it takes the time, and in its last steps: a GPU's queue of steps would
        make the run late.
        """
        budget = self.budget
        if isinstance(budget, TimedBudget) and (
            budget.is_measured(self.state.step) or budget.steps_left < 2 * GUARD_INTERVAL
        ):
            synchronize(self.model.device)
        budget.end_step(self.state.step)
        self.state.step += 1
        self.state.rate_share = scheduled_rate / self.config.train.learning_rate
        self.is_cooling = is_cooling(point, self.config.train)

    def files(self) -> dict[str, Any]:
        """What a checkpoint of this moment holds, for `CheckpointStore.write`."""
        state, clock = self.state, self.clock
        state.train_s, state.eval_s, state.save_s, state.pause_s = (
            clock.train_s,
            clock.eval_s,
            clock.save_s,
            clock.pause_s,
        )
        state.guard = self.guard.to_dict()
        state.budget = self.budget.to_dict()
        best = self.best.to_json_line() if self.best else None
        saved = {"run": dataclasses.asdict(state), "best": best, **self.settings}
        return checkpoint_files(self.model, self.optimizer, saved, self.history)

    def summary(self) -> dict[str, Any]:
        """What a checkpoint's manifest tells without opening its files."""
        step = self.state.step
        is_evaluated = bool(self.history) and self.history[-1].step == step
        return {
            "step": step,
            "total_steps": self.total_steps,
            "progress": self.budget.progress(step),
            "is_timed": self.config.train.is_timed,
            "is_cooling": self.is_cooling,
            "iters_per_epoch": self.config.train.iters_per_epoch,
            "val_loss": self.history[-1].val_loss if is_evaluated else None,
            "is_calm": self.guard.is_healthy(),
            **self.origin,
        }

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; where a clock ends it, as it looks from here."""
        step, progress = self.state.step, self.budget.progress(self.state.step)
        if not self.config.train.is_timed:
            return self.config.train.total_steps
        return step if progress >= 1 else max(step + 1, round(step / max(progress, 1e-3)))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what `checkpoint` was made of. Raises DamagedError, and has changed nothing but weights then."""
        saved = read_state(checkpoint)
        state = RunState.from_dict(saved.get("run"))
        if state.step != checkpoint.step:
            raise DamagedError(f"its state is that of step {state.step}")
        history = read_history(checkpoint)
        load_tensors(checkpoint, self.model, self.optimizer)
        try:
            self.guard.load_dict(state.guard)
            best = Evaluated.from_json_line(saved["best"]) if saved["best"] else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError("its state has other fields") from error
        self.state, self.history, self.best = state, history, best
        self.is_cooling = checkpoint.about.get("is_cooling") is not False

    def step_back(self, checkpoint: Checkpoint) -> None:
        """`restore` in the course of a run, whose time goes on. Raises DamagedError."""
        self.restore(checkpoint)
        self.budget.roll_back(self.state.budget)

    def resume(self, checkpoint: Checkpoint, has_more: bool = False) -> None:
        """`restore` in a new process: time counts on as well. `has_more`: with a timed budget that begins here."""
        self.restore(checkpoint)
        state = self.state
        try:
            self.budget = self._new_budget() if has_more or not state.budget else self._saved_budget()
        except (ValueError, TypeError) as error:
            raise DamagedError("the state of its budget has other fields") from error
        self.clock.go_on(state.step, state.train_s, state.eval_s, state.save_s, state.pause_s)

    def _new_budget(self) -> TrainingBudget:
        train, state = self.config.train, self.state
        if not train.is_timed:
            return StepBudget(train.total_steps, train.warmup_steps)
        return self._timed(start_timed_budget(train, self.request, time.time(), state.step, min(1.0, state.rate_share)))

    def _saved_budget(self) -> TrainingBudget:
        """The budget of the checkpoint. After a crash the same command has gone on, and so has its time."""
        if not self.config.train.is_timed:
            return self._new_budget()
        budget = TimedBudgetState.from_dict(self.state.budget)
        if self.request.is_restart:
            budget.spent_s += max(0.0, time.time() - budget.saved_at)
        return self._timed(budget)

    def _timed(self, budget: TimedBudgetState) -> TrainingBudget:
        measure_every = 1 if self.model.device.type == "cpu" else GUARD_INTERVAL
        return TimedBudget(self.config.train, budget, lambda: self.clock.train_s, measure_every)
