"""How a training ended, for those who wait for it: messages and commands."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tiny_gpt.config import BEST_FILE, STATUS_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.host.signals import STOPPED_CODES
from tiny_gpt.run.status import read_status
from tiny_gpt.run.summary import RunSummary, summarize_run


@dataclass(frozen=True)
class Ending:
    """The end of a training, which may not have begun."""

    name: str
    """Of the run."""
    run_dir: Path
    status: Literal["finished", "stopped", "failed"]
    exit_code: int
    reason: str
    """Why it failed, in the words of the error; "" if that is not known."""
    has_begun: bool
    """Whether this training was ready for its first step."""
    summary: RunSummary | None
    """None if the folder holds no run."""

    def facts(self) -> dict[str, Any]:
        """For programs, in plain JSON types. None of them says where the run is on the disk."""
        run = self.summary
        return {
            "status": self.status,
            "run": self.name,
            "machine": platform.node(),
            "exit_code": self.exit_code,
            "reason": self.reason,
            "step": run and run.step,
            "elapsed_s": run and run.elapsed_s,
            "best_step": run and run.best_step,
            "val_loss": run and run.best_val_loss,
            "val_bits_per_byte": run and run.best_val_bits_per_byte,
        }

    def environment(self) -> dict[str, str]:
        """The facts as environment variables, with the run's folder and its best model; "" for what is unknown."""
        facts = self.facts()
        model = self.run_dir / BEST_FILE
        values = {
            "RUN": self.run_dir.resolve(),
            "NAME": self.name,
            "STATUS": self.status,
            "EXIT_CODE": self.exit_code,
            "REASON": self.reason.replace("\0", ""),
            "MODEL": model.resolve() if model.is_file() else "",
            "STEP": facts["step"],
            "ELAPSED_S": facts["elapsed_s"],
            "BEST_STEP": facts["best_step"],
            "VAL_LOSS": facts["val_loss"],
            "VAL_BPB": facts["val_bits_per_byte"],
        }
        return {f"TINY_GPT_{name}": "" if value is None else str(value) for name, value in values.items()}


def ending_of(run_dir: Path, exit_code: int, started_at: float, reason: str = "") -> Ending:
    """The end of the training in `run_dir` that began at `started_at`, as time.time(), with `exit_code`.

    `reason` is used where the run's folder does not know why it failed.
    """
    status = read_status(run_dir / STATUS_FILE)
    has_begun = status is not None and status.started >= started_at
    try:
        summary = summarize_run(run_dir)
    except BadInputError:
        summary = None
    outcome: Literal["finished", "stopped", "failed"] = "failed"
    if exit_code == 0:
        outcome = "finished"
    elif exit_code in STOPPED_CODES:
        outcome = "stopped"
    known = status.error if status and has_begun and outcome == "failed" else ""
    name = run_dir.resolve().name
    return Ending(name, run_dir, outcome, exit_code, known or reason, has_begun, summary)
