"""All that changes while a run learns: weights, moments, the guard's memory, how far it is. What a checkpoint holds."""

import dataclasses
from typing import Any

from tiny_gpt.config import RunConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.checkpoint import (
    RunState,
    checkpoint_files,
    from_line,
    load_tensors,
    read_history,
    read_state,
    to_line,
)
from tiny_gpt.training.checkpoint_store import Checkpoint, DamagedError
from tiny_gpt.training.clock import StepClock
from tiny_gpt.training.events import Evaluated
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.step import part_size


class Learner:
    """A model in training. `settings` and `origin` are kept with every checkpoint, for those who resume from it."""

    def __init__(self, model: GPT, config: RunConfig, settings: dict[str, Any], origin: dict[str, Any]) -> None:
        """Plain JSON types: `settings` goes to a checkpoint's state, `origin` (text, machine) to its manifest."""
        self.model, self.config, self.settings, self.origin = model, config, settings, origin
        self.optimizer = make_optimizer(model, config.train)
        self.guard = Guard(model.device)
        self.state = RunState(n_parts=config.train.grad_accum_steps)
        self.history: list[Evaluated] = []
        self.best: Evaluated | None = None
        """The best model that was saved."""
        self.clock = StepClock()

    @property
    def part_size(self) -> int:
        """Blocks that are computed at once."""
        config = self.config
        return part_size(config.train.batch_size, self.state.n_parts, config.model.block_size, self.model.device)

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
        best = to_line(self.best) if self.best else None
        saved = {"run": dataclasses.asdict(state), "best": best, **self.settings}
        return checkpoint_files(self.model, self.optimizer, saved, self.history)

    def summary(self) -> dict[str, Any]:
        """What a checkpoint's manifest tells without opening its files."""
        is_evaluated = bool(self.history) and self.history[-1].step == self.state.step
        return {
            "step": self.state.step,
            "total_steps": self.config.train.total_steps,
            "iters_per_epoch": self.config.train.iters_per_epoch,
            "val_loss": self.history[-1].val_loss if is_evaluated else None,
            "is_calm": self.guard.is_calm(),
            **self.origin,
        }

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
            best = from_line(saved["best"]) if saved["best"] else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError("its state has other fields") from error
        self.state, self.history, self.best = state, history, best

    def resume(self, checkpoint: Checkpoint) -> None:
        """`restore` in a new process: time counts on as well."""
        self.restore(checkpoint)
        state = self.state
        self.clock.go_on(state.step, state.train_s, state.eval_s, state.save_s, state.pause_s)
