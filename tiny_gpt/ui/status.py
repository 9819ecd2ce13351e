"""Keeps status.json: written when a training begins, every few seconds, and when it ends."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from tiny_gpt.errors import RestartRequestedError, TinyGPTError
from tiny_gpt.host.heartbeat import is_watched
from tiny_gpt.run.events import Evaluated, Event, Finished, Prepared, StepDone, ThroughputMeasured
from tiny_gpt.run.status import RunStatus, this_process, write_status

# A write takes 0.1 ms.
INTERVAL_S = 5.0


class StatusFile:
    """Consumes a run's events. A status that cannot be written is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status: RunStatus | None = None
        self._written_at = 0.0

    def consume(self, event: Event) -> None:
        if isinstance(event, Prepared):
            identity = this_process(is_watched())
            facts = _facts_of(event)
            self._status = RunStatus("training", time.time(), step=event.steps_done, facts=facts, **identity)
            self._write()
        if self._status is None:
            return
        match event:
            case StepDone():
                self._status = replace(
                    self._status, step=event.step, progress=event.progress, left_s=_finite(event.left_s)
                )
                if time.monotonic() - self._written_at >= INTERVAL_S:
                    self._write()
            case ThroughputMeasured() | Evaluated():
                self._status = replace(self._status, tokens_per_s=event.tokens_per_s)
                self._write()
            case Finished():
                state = "finished" if event.stopped_by is None else "stopped"
                self._status = replace(
                    self._status, state=state, left_s=None, facts=self._status.facts | _results_of(event)
                )
                self._write()

    def fail(self, failure: BaseException) -> None:
        """Record why the run ended without `Finished`, unless the watchdog will continue it."""
        if self._status is None or self._status.state != "training" or isinstance(failure, RestartRequestedError):
            return
        if isinstance(failure, KeyboardInterrupt):
            self._status = replace(self._status, state="stopped")
        else:
            code = failure.code if isinstance(failure, TinyGPTError) else type(failure).__name__
            self._status = replace(self._status, state="failed", error=str(failure)[:2000], error_code=code)
        self._write()

    def _write(self) -> None:
        assert self._status is not None, "the run is prepared"
        self._written_at = time.monotonic()
        self._status = replace(self._status, updated=time.time())
        with contextlib.suppress(OSError):  # a full disk may have room again in a few seconds
            write_status(self.path, self._status)


def _facts_of(event: Prepared) -> dict[str, object]:
    names = ["device", "precision", "backend", "sources", "n_characters", "n_documents", "tokenizer", "vocab_size"]
    names += ["train_tokens", "val_tokens", "val_tokens_scored", "n_parameters", "tokens_per_step", "total_steps"]
    return {name: getattr(event, name) for name in names}


def _results_of(event: Finished) -> dict[str, object]:
    names = ["best_step", "best_val_loss", "best_val_bits_per_byte", "scored_tokens", "last_step", "elapsed_s"]
    names += ["eval_share", "save_share", "peak_memory_bytes", "incidents"]
    if event.forgetting:
        names += ["known_before", "known_after"]
    return {name: getattr(event, name) for name in names}


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or abs(seconds) == float("inf") else seconds
