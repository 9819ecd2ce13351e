"""train.log: all that the console says, with the time before each line. For the morning, and for closed terminals."""

import io
import time
from pathlib import Path

from tiny_gpt.config import RunConfig
from tiny_gpt.run.events import Event, Prepared
from tiny_gpt.ui.console import Console


class LogFile:
    """Consumes a run's events as a console does, into a file that is opened anew for each line."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self._console = Console(config, _StampedLines(path))
        self._is_open = False

    def consume(self, event: Event) -> None:
        """Starts with the first step: what was in the folder before has been put away by then."""
        self._is_open = self._is_open or isinstance(event, Prepared)
        if self._is_open:
            self._console.consume(event)


class _StampedLines(io.StringIO):
    """A text stream onto the end of a file; a line that cannot be written is lost, and nothing else."""

    encoding = "utf-8"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._line = path, ""

    def write(self, text: str, /) -> int:
        *lines, self._line = (self._line + text).split("\n")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{stamp}  {line}\n" for line in lines if line)
        except OSError:
            pass  # a full disk may have room again for the next one
        return len(text)
