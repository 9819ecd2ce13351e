"""A loss that diverges: back to a healthy checkpoint, and the end of the run where that does not help."""

from pathlib import Path

from tiny_gpt.config import TrainConfig
from tiny_gpt.errors import DivergedError
from tiny_gpt.run.checkpoint_manager import CheckpointManager
from tiny_gpt.run.checkpoint_store import Checkpoint
from tiny_gpt.run.model_files import ModelFiles
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.guard import GUARD_INTERVAL
from tiny_gpt.training.schedule import SchedulePoint

# After this many rollbacks without a better evaluation in between, the run gives up.
MAX_ROLLBACKS = 3


class Divergence:
    """Notices that the loss of `state` diverges, and returns to a checkpoint from before."""

    def __init__(
        self, state: TrainState, train: TrainConfig, checkpoints: CheckpointManager, model_files: ModelFiles
    ) -> None:
        self.state, self.train, self.checkpoints, self.model_files = state, train, checkpoints, model_files
        self._n_reported_skips = 0

    def must_roll_back(self, point: SchedulePoint) -> bool:
        """Ask the guard, on a GPU only every GUARD_INTERVAL steps, and warn of the steps that it skipped."""
        state = self.state
        if state.model.device.type != "cpu" and state.step % GUARD_INTERVAL and not point.is_last:
            return False
        n_skipped = state.guard.total_skipped()
        if n_new := n_skipped - self._n_reported_skips:
            self._n_reported_skips = n_skipped
            steps = f"{n_new} steps" if n_new > 1 else "a step"
            state.warn(f"skipped {steps} up to step {state.step:,}: loss or gradient NaN, infinite or far too large")
        return state.guard.needs_rollback()

    def roll_back(self, trouble: str) -> int:
        """Return to the last healthy checkpoint: its step. Raises DivergedError where that has not helped before."""
        state, before = self.state, self.state.counters
        target = None if before.n_rollbacks == MAX_ROLLBACKS else self._target()
        if target is None:
            raise diverged(state, self.train, self.model_files.best_path, trouble)
        self.checkpoints.roll_back(target)
        state.warn(
            f"{trouble} at step {before.step:,}: rolled back to step {target.step:,}, with other batches and half the "
            f"learning rate (rollback {state.counters.n_rollbacks} of {MAX_ROLLBACKS})"
        )
        return target.step

    def _target(self) -> Checkpoint | None:
        """The newest healthy checkpoint; after a rollback that did not help, one from before its target.

        The divergence may have begun before the last checkpoint that looked healthy.
        """
        counters = self.state.counters
        newest = counters.step if counters.rolled_back_to is None else counters.rolled_back_to
        return self.checkpoints.newest_healthy(newest) or self.checkpoints.newest_healthy(counters.step)


def diverged(state: TrainState, train: TrainConfig, best_path: Path, trouble: str) -> DivergedError:
    """The error for the user: what happened, what is kept, and a learning rate to try."""
    counters, best = state.counters, state.best
    lower = min(train.learning_rate * counters.rate_factor, TrainConfig().learning_rate / 2)
    kept = ""
    if best:
        kept = f"The best model so far (val_loss={best.val_loss:.4f}, step {best.step:,}) is in {best_path}. "
    return DivergedError(
        f"{trouble} at step {counters.step:,}; rolling back to half the learning rate did not help "
        f"({counters.n_rollbacks} times).\n{kept}Try a lower learning rate: --learning-rate {lower:.1g}",
        code="training-diverged",
    )
