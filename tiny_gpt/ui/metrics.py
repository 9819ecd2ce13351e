"""metrics.jsonl: one line of JSON for each evaluation, on the disk as soon as it is known."""

from pathlib import Path

from tiny_gpt.files import atomic_write, sync_to_disk
from tiny_gpt.run.events import Evaluated, Event, Finished, Prepared, RolledBack


class MetricsFile:
    """Consumes a run's events into a file that holds each evaluated step once, also after a resume or a step back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._is_behind = False

    def consume(self, event: Event) -> None:
        """Raises OSError or OutOfResourcesError only at the end: until then a full disk may have room again."""
        match event:
            case Prepared(history=history) | RolledBack(history=history):
                self._lines = [evaluated.to_json_line() for evaluated in history]
                self._is_behind = True
            case Evaluated():
                self._lines.append(event.to_json_line())
            case Finished():
                pass
            case _:
                return
        try:
            if self._is_behind or not self.path.exists():
                self._write_all()
            else:
                with open(self.path, "a", encoding="utf-8") as file:
                    if isinstance(event, Finished):
                        sync_to_disk(file.fileno())
                    else:
                        file.write(self._lines[-1])
            self._is_behind = False
        except Exception:
            self._is_behind = True
            if isinstance(event, Finished):
                raise

    def _write_all(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            file.write("".join(self._lines).encode())
