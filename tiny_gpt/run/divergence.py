"""The end of a run whose loss diverged and that rolling back did not help."""

from pathlib import Path

from tiny_gpt.config import TrainConfig
from tiny_gpt.errors import DivergedError
from tiny_gpt.run.state import TrainState


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
