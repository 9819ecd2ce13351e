"""What a tracker is to the rest of the program, and how its files in a run's folder are called."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

PROJECT = "tiny_gpt"
# How a run ended for a tracker: "training" where only the tracker's process ends.
TrackedState = Literal["training", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker gets to know it."""

    id: str
    """The same whenever the run is resumed."""
    name: str
    folder: Path
    """For the tracker's own files."""
    config: dict[str, Any]
    """Settings and facts such as the number of parameters: text, numbers, booleans, lists of text."""
    is_resumed: bool
    """Whether the tracker knows this run already."""


class Tracker(Protocol):
    """An open run in a tracker. Every method may raise anything, and may take any time."""

    def log_row(self, step: int, at: float, values: dict[str, float]) -> None:
        """Log an evaluation. `at` is its time as time.time(); `values` have the names of metrics.jsonl."""

    def log_sample(self, step: int, at: float, text: str) -> None:
        """Log a text that the model of `step` wrote."""

    def roll_back(self, step: int) -> None:
        """What was logged for `step` and later is void: the training continues from before it."""

    def flush(self) -> None:
        """Return when all of that is safe from the end of this process."""

    def finish(self, state: TrackedState, results: dict[str, float]) -> None:
        """End the run there. `results` are the best model's step and losses."""
