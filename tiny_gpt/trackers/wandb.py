"""Weights & Biases. Without an account there, the run is written to its folder; `wandb sync` can upload it later."""

import html
import os
import time
from typing import Any

# Neither reports of wandb's own errors nor anything about this machine leaves it, unless the user asks for it.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from tiny_gpt.trackers.base import PROJECT, TrackedRun, TrackedState


def open_run(run: TrackedRun) -> "Wandb":
    """WANDB_PROJECT, WANDB_MODE and the other variables of wandb have the last word."""
    settings = wandb.Settings(
        console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_save_requirements=False
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=run.id,
        resume="allow",
        config=run.config,
        dir=str(run.folder),
        mode=None if "WANDB_MODE" in os.environ or _is_logged_in() else "offline",
        settings=settings,
    )
    # wandb's own count of steps cannot return to an earlier one, as a rollback does.
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")
    return Wandb(opened)


def _is_logged_in() -> bool:
    """Whether wandb knows an account; asks nobody."""
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # versions before 0.31
        return bool(wandb.api.api_key)


class Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log_row(self, step: int, at: float, values: dict[str, float]) -> None:
        self._run.log({"step": step, "time": at} | values)

    def log_sample(self, step: int, at: float, text: str) -> None:
        page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self._run.log({"step": step, "time": at, "sample": wandb.Html(page)})

    def roll_back(self, step: int) -> None:
        """wandb keeps the rows that it has; those after the rollback are added."""

    def flush(self) -> None:
        """wandb writes to the disk from its own process, which outlives this one."""

    def finish(self, state: TrackedState, results: dict[str, float]) -> None:
        self._run.summary.update({f"best/{name}": value for name, value in results.items()})
        self._run.summary["state"] = state
        self._run.summary["finished_at"] = time.time()
        self._run.finish(exit_code=1 if state == "failed" else 0)
