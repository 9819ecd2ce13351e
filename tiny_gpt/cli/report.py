"""`tiny-gpt report`: a run's page as one file; and the same at the end of every training."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import parse
from tiny_gpt.config import METRICS_FILE
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.files import quoted
from tiny_gpt.run.folders import find_run_to_show
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.ui.terminal import error

RunToShow = Annotated[Positional[str], arg(metavar="[RUN]"), OPTIONAL]


@dataclass(frozen=True)
class ReportCommand:
    """Write a run's report: one HTML file that needs no network, in the run's folder."""

    run: RunToShow = ""
    """Folder of the run, or its name in runs/. Without it, the newest run."""


def report(args: Sequence[str]) -> int:
    """Write a run's page, with a verdict and charts, as one HTML file."""
    command = parse(ReportCommand, "tiny-gpt report", args)
    folder = find_run_to_show(command.run)
    from tiny_gpt.view.report import write_report

    print(write_report(folder, command.run or str(folder)))
    return 0


@contextlib.contextmanager
def report_at_the_end(place: FollowedFolder) -> Iterator[None]:
    """Write the report however the training inside ends, if it evaluated anything, and print where it is.

    Whatever goes wrong here only costs the report.
    """
    before = _state_of(place.path() / METRICS_FILE)
    try:
        yield
    finally:
        folder = place.path()
        with contextlib.suppress(KeyboardInterrupt):
            try:
                if _state_of(folder / METRICS_FILE) != before:
                    from tiny_gpt.view.report import write_report

                    print(f"Report: {write_report(folder, str(folder))}", flush=True)
            except Exception as failure:
                error(f"The report could not be written ({failure}); tiny-gpt report {quoted(str(folder))} writes it.")


def _state_of(path: Path) -> tuple[int, int] | None:
    """(time of the last change, size) of a file; None without one. What is equal before and after was not written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
