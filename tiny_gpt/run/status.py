"""status.json: what the process that trains a run last said of it, so that others can see whether it is still there.

Who reads it compares the process id and its start with the processes of this machine: a process that was killed can no
longer say so. Resuming does not need the file.
"""

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from tiny_gpt.run.checkpoint_store import DamagedError, read_bounded

STATES = ("training", "finished", "stopped", "failed")
MAX_STATUS_BYTES = 1 << 20
# On another machine's folder, a status this old is that of a process that has ended.
SILENT_S = 900.0


@dataclass(frozen=True)
class RunStatus:
    """Of one training process."""

    state: str
    """One of STATES."""
    started: float = 0.0
    """When this process was ready for its first step, as time.time()."""
    updated: float = 0.0
    """When this was written, as time.time()."""
    step: int = 0
    """Steps done."""
    progress: float = 0.0
    """0 to 1 of the run's budget."""
    left_s: float | None = None
    """Seconds until a timed run ends, as of `updated`."""
    tokens_per_s: float = 0.0
    process_id: int = 0
    process_started: float = 0.0
    watchdog_id: int = 0
    """Process id of the watchdog; 0 without one."""
    machine: str = ""
    error: str = ""
    """Why the run failed."""
    error_code: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """The run's text, model and results, in plain JSON types."""

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `asdict`. Raises ValueError for values of another type or state."""
        types = {field.name: type(getattr(_EXAMPLE, field.name)) for field in fields(cls)}
        if not isinstance(values, dict) or values.get("state") not in STATES:
            raise ValueError("unknown state")
        known = {name: value for name, value in values.items() if name in types}
        for name, value in known.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_right = isinstance(value, types[name])
            if types[name] in (int, float):
                is_right = is_number and abs(value) < 1e15  # so that dates and sums stay in range
            if not is_right and not (name == "left_s" and value is None):
                raise ValueError(f"{name} has the wrong type")
        return cls(**known)

    def has_process(self) -> bool:
        """Whether the process that wrote this still runs; on another machine, whether it has spoken lately."""
        if self.machine != platform.node():
            return time.time() - self.updated < SILENT_S
        return _is_process(self.process_id, self.process_started)

    def has_watchdog(self) -> bool:
        """Whether the watchdog is there, which restarts a training process that ended."""
        import psutil  # here and below: it takes long to import, and --help imports this module

        return self.watchdog_id > 0 and self.machine == platform.node() and psutil.pid_exists(self.watchdog_id)


_EXAMPLE = RunStatus("training", left_s=0.0)


def this_process(watchdog: bool) -> dict[str, Any]:
    """The fields of a RunStatus that identify this process."""
    import psutil

    return {
        "process_id": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "watchdog_id": os.getppid() if watchdog else 0,
        "machine": platform.node(),
    }


def read_status(path: Path) -> RunStatus | None:
    """The status at `path`; None if there is none or it cannot be read."""
    try:
        return RunStatus.from_dict(json.loads(read_bounded(path, MAX_STATUS_BYTES)))
    except (OSError, ValueError, TypeError, DamagedError, RecursionError):
        return None


def write_status(path: Path, status: RunStatus) -> None:
    """Replace the file at once. It is not flushed to the disk: after a power failure nobody trains. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(asdict(status)), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _is_process(process_id: int, started: float) -> bool:
    """Whether that process runs; another one may have got its id since."""
    import psutil

    try:
        process = psutil.Process(process_id)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False
