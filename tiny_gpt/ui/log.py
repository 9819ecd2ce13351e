"""train.log: everything that the console prints, each line with its time. It survives a closed terminal."""

import io
import time
from pathlib import Path

from tiny_gpt.config import RunConfig
from tiny_gpt.run.events import Event, Prepared
from tiny_gpt.ui.console import Console


class LogFile:
    """Consumes a run's events like a console and appends the lines to a file, which is reopened for each write."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self._console = Console(config, _StampedLines(path))
        self._has_started = False

    def consume(self, event: Event) -> None:
        """Starts with `Prepared`: by then the files of an earlier run have been moved out of the folder."""
        self._has_started = self._has_started or isinstance(event, Prepared)
        if self._has_started:
            self._console.consume(event)


class _StampedLines(io.StringIO):
    """A text stream that appends to a file; a line that cannot be written is lost without an error."""

    encoding = "utf-8"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._incomplete_line = path, ""

    def write(self, text: str, /) -> int:
        *lines, self._incomplete_line = (self._incomplete_line + text).split("\n")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{stamp}  {line}\n" for line in lines if line)
        except OSError:
            pass  # a full disk may have room again for the next line
        return len(text)
