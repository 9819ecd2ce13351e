"""metrics.jsonl: one line of JSON per evaluation, written as soon as it is known."""

from pathlib import Path

from tiny_gpt.files import atomic_write, sync_to_disk
from tiny_gpt.run.events import Evaluated, Event, Finished, Prepared, RolledBack


class MetricsFile:
    """Consumes a run's events into a file that holds each evaluated step once, also after a resume or a rollback."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._must_rewrite = False

    def consume(self, event: Event) -> None:
        """Raises OSError or OutOfResourcesError for `Finished` only. Lines that a full disk rejected before are written
        again with the next event."""
        match event:
            case Prepared(history=history) | RolledBack(history=history):
                self._lines = [evaluated.to_json_line() for evaluated in history]
                self._must_rewrite = True
            case Evaluated():
                self._lines.append(event.to_json_line())
            case Finished():
                pass
            case _:
                return
        try:
            if self._must_rewrite or not self.path.exists():
                self._rewrite()
            else:
                with open(self.path, "a", encoding="utf-8") as file:
                    if isinstance(event, Finished):
                        sync_to_disk(file.fileno())
                    else:
                        file.write(self._lines[-1])
            self._must_rewrite = False
        except Exception:
            self._must_rewrite = True
            if isinstance(event, Finished):
                raise

    def _rewrite(self) -> None:
        with atomic_write(self.path) as file:
            file.write("".join(self._lines).encode())
