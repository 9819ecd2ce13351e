"""Trackio: a database on this machine. `trackio show` opens its page."""

import os
import time
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import trackio

from tiny_gpt.trackers.base import PROJECT, TrackedRun, TrackedState

# Trackio writes from a thread, twice a second, and has no call that waits for it.
WRITING_S = 1.0


def open_run(run: TrackedRun) -> "Trackio":
    """TRACKIO_PROJECT, TRACKIO_DIR, TRACKIO_SPACE_ID and the other variables of trackio have the last word."""
    opened = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        # It identifies runs by their name, which another run on the same text may have too.
        name=f"{run.name}-{run.id}",
        config=run.config,
        resume="allow",
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    return Trackio(opened)


class Trackio:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log_row(self, step: int, at: float, values: dict[str, float]) -> None:
        trackio.log(dict(values), step=step)

    def log_sample(self, step: int, at: float, text: str) -> None:
        trackio.log({"sample": trackio.Markdown("".join(f"    {line}\n" for line in text.splitlines()))}, step=step)

    def roll_back(self, step: int) -> None:
        """Trackio keeps the rows that it has; those after the rollback are added."""

    def flush(self) -> None:
        time.sleep(WRITING_S)

    def finish(self, state: TrackedState, results: dict[str, float]) -> None:
        if results:
            trackio.log({f"best/{name}": value for name, value in results.items()}, step=int(results["step"]))
        trackio.finish()
