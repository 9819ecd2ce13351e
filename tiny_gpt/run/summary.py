"""A run in a few figures, read from its folder alone, within milliseconds and without torch.

So it is the same for a run that is being trained, one that ended, and one whose process died. Files in the folder are
untrusted: what cannot be read counts as missing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE, METRICS_FILE, STATUS_FILE, RunConfig
from tiny_gpt.config.run import CHECKPOINTS_FOLDER, LOG_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError, read_bounded
from tiny_gpt.run.folders import unfinished
from tiny_gpt.run.status import RunStatus, read_status

RunState = Literal["running", "finished", "stopped", "failed", "crashed", "model only"]
MAX_SAVED_CONFIG_BYTES = 1 << 22
# Only the end of a longer metrics.jsonl is read: a hundred thousand evaluations fit.
MAX_METRICS_BYTES = 64 << 20


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run; None where the folder does not say."""

    name: str
    """The folder's name; "." is the working folder, where train.py trains."""
    folder: str
    state: RunState
    """crashed: its process died, or the machine did, and no watchdog has restarted it. model only: there is a model
    file, but no training."""
    reason: str
    """Why it failed."""
    changed_at: float
    """When it ended or last wrote something, as time.time()."""
    text: list[str]
    """The sources of the training text."""
    text_sha256: str | None
    architecture: str | None
    n_parameters: int | None
    step: int | None
    total_steps: int | None
    """None for a timed run."""
    progress: float | None
    """0 to 1 of its steps or its time."""
    best_step: int | None
    best_val_loss: float | None
    """Nats per token."""
    best_val_bits_per_byte: float | None
    known_before: float | None
    known_after: float | None
    """Bits per byte of a reference text, of the model that the run started from and of its best one: what it forgot."""
    elapsed_s: float | None
    """Seconds of training, over all its restarts."""
    disk_bytes: int


def is_run(folder: Path) -> bool:
    """Whether tiny_gpt has trained in `folder`, or put a model there."""
    names = (BEST_FILE, FINAL_FILE, METRICS_FILE)
    return any((folder / name).is_file() for name in names) or CheckpointStore(folder).folder.is_dir()


def summarize_run(folder: Path) -> RunSummary:
    """The run in `folder`. Raises BadInputError if there is none."""
    if not is_run(folder):
        raise BadInputError(
            f"{folder} holds no run: no metrics.jsonl, no checkpoints and no model file", code="not-a-run"
        )
    config, status, about = saved_config(folder), read_status(folder / STATUS_FILE), newest_about(folder)
    results = status.facts if status and status.state in ("finished", "stopped") else {}
    rows = [] if _number(results.get("best_val_bits_per_byte")) else list(read_rows(folder))
    best = min(rows, key=lambda row: row["val_loss"], default={})
    last = rows[-1] if rows else {}
    state = _state(folder, status, is_trained=bool(about or rows))
    is_timed = about.get("is_timed") is True
    return RunSummary(
        name=folder.name or ".",
        folder=str(folder),
        state=state,
        reason=status.error if status and state == "failed" else "",
        changed_at=status.updated if status else _newest_mtime(folder),
        text=list(config.data.data) if config else [],
        text_sha256=_text(_dict(about.get("data")).get("text_sha256")),
        architecture=config.model.architecture if config else None,
        n_parameters=_first_int(_n_parameters(config, about), status and status.facts.get("n_parameters")),
        step=_first_int(results.get("last_step"), status and status.step, last.get("step"), about.get("step")),
        total_steps=None if is_timed else _first_int(about.get("total_steps")),
        progress=1.0 if state == "finished" else _first_number(status and status.progress, about.get("progress")),
        best_step=_first_int(results.get("best_step"), best.get("step")),
        best_val_loss=_first_number(results.get("best_val_loss"), best.get("val_loss")),
        best_val_bits_per_byte=_first_number(results.get("best_val_bits_per_byte"), best.get("val_bits_per_byte")),
        known_before=_first_number(results.get("known_before")),
        known_after=_first_number(results.get("known_after")),
        elapsed_s=_first_number(results.get("elapsed_s"), last.get("elapsed_s")),
        disk_bytes=sum(size for _, size in files_below(folder)),
    )


def is_running(status: RunStatus | None) -> bool:
    """Whether a process trains the run now, or its watchdog is about to start one."""
    return status is not None and status.state == "training" and (status.has_process() or status.has_watchdog())


def _state(folder: Path, status: RunStatus | None, is_trained: bool) -> RunState:
    if is_running(status):
        return "running"
    if status is not None and status.state != "training":
        return cast(RunState, status.state)
    if not is_trained:
        return "model only"
    # Earlier versions wrote no status.json.
    has_ended = status is None and (folder / FINAL_FILE).is_file() and unfinished(folder) is None
    return "finished" if has_ended else "crashed"


def saved_config(folder: Path) -> RunConfig | None:
    """The settings that the run in `folder` uses; None where config.json cannot be read."""
    try:
        values = json.loads(read_bounded(folder / CONFIG_FILE, MAX_SAVED_CONFIG_BYTES))
        return RunConfig().with_flat(values, CONFIG_FILE)
    except (BadInputError, DamagedError, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def newest_about(folder: Path) -> dict[str, Any]:
    """What the newest readable checkpoint says of itself; {} without one."""
    store = CheckpointStore(folder)
    for step in store.steps():
        try:
            return store.about(step)
        except (DamagedError, BadInputError):
            continue
    return {}


def read_rows(folder: Path) -> Iterator[dict[str, float]]:
    """The evaluations in metrics.jsonl as {"step": ..., "val_loss": ..., ...}, without NaN values.

    Lines that are incomplete or lack a step, a validation loss or a time are skipped.
    """
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_METRICS_BYTES:
                file.seek(size - MAX_METRICS_BYTES)
                file.readline()
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            numbers = {name: value for name, value in row.items() if _number(value) is not None}
            if numbers.keys() >= {"step", "val_loss", "val_bits_per_byte", "elapsed_s"}:
                yield numbers


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file in `folder` and below; links are not followed."""
    pending = [str(folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry.path, entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue


def _newest_mtime(folder: Path) -> float:
    names = (METRICS_FILE, BEST_FILE, FINAL_FILE, CHECKPOINTS_FOLDER, LOG_FILE)
    return max((path.stat().st_mtime for name in names if (path := folder / name).exists()), default=0.0)


def _n_parameters(config: RunConfig | None, about: dict[str, Any]) -> int | None:
    vocab_size = _dict(about.get("data")).get("vocab_size")
    return n_parameters(config.model, vocab_size) if config and type(vocab_size) is int else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and abs(value) < float("inf") else None


def _first_number(*values: Any) -> float | None:
    return next((value for value in values if _number(value) is not None), None)


def _first_int(*values: Any) -> int | None:
    return next((int(value) for value in values if _number(value) is not None), None)
