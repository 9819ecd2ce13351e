"""`tiny-gpt runs`: list, compare and remove runs. Needs no torch, so it starts at once."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import parse
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.errors import UsageError
from tiny_gpt.files import atomic_write, user_path
from tiny_gpt.run.folders import RUNS_FOLDER, existing_run, run_folders
from tiny_gpt.ui.terminal import printable

if TYPE_CHECKING:
    from tiny_gpt.run.comparison import Comparison

ACTIONS = ("compare", "remove")


@dataclass(frozen=True)
class RunsCommand:
    """List the runs here: state, loss, time and disk space.

    `tiny-gpt runs compare RUN RUN ...` shows what differs and which run is better.
    `tiny-gpt runs remove RUN ...` deletes runs from the disk.
    """

    action: Annotated[Positional[tuple[str, ...]], arg(metavar="[compare|remove RUN...]"), OPTIONAL] = ()
    """What to do, and with which runs: their folders, or their names in runs/. Without it, list all runs."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""
    html: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Write the comparison as a page with a chart, one HTML file that needs no network."""
    yes: Annotated[bool, OPTIONAL] = False
    """Remove without asking."""


def runs(args: Sequence[str]) -> int:
    """List, compare and remove runs."""
    command = parse(RunsCommand, "tiny-gpt runs", args)
    if not command.action:
        return _list(command.json)
    action, *names = command.action
    if action not in ACTIONS:
        raise UsageError(
            f"tiny-gpt runs {action}: the actions are {' and '.join(ACTIONS)}; without one, runs are listed",
            code="runs-action-unknown",
        )
    n_needed = 2 if action == "compare" else 1
    if len(names) < n_needed:
        raise UsageError(
            f"tiny-gpt runs {action} needs at least {'two runs' if n_needed == 2 else 'one run'}: folders, or names in "
            f"{RUNS_FOLDER}/ (tiny-gpt runs lists them)",
            code="runs-not-named",
        )
    folders = list({existing_run(name).resolve(): existing_run(name) for name in names}.values())
    if len(folders) < n_needed:
        raise UsageError(f"runs compare: {', '.join(names)} are the same run; name two", code="runs-the-same")
    return _compare(folders, command) if action == "compare" else _remove(folders, command.yes)


def _list(as_json: bool) -> int:
    from tiny_gpt.run.summary import is_run, summarize_run
    from tiny_gpt.ui.runs_report import run_table

    folders = run_folders()
    found = [summarize_run(folder) for folder in folders if is_run(folder)]
    found.sort(key=lambda run: (run.state == "running", run.changed_at), reverse=True)
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=2))
        return 0
    if not found:
        print(f"No runs here (looked in {Path.cwd()} and its folder {RUNS_FOLDER}). Train one: tiny-gpt train")
        return 0
    print("\n".join(map(printable, run_table(found, time.time()))))
    others = [folder.name for folder in folders if folder.name and not is_run(folder)]
    if others:
        print(printable(f"\nIn {RUNS_FOLDER}/, but not runs: {', '.join(others[:5])}{', ...' if others[5:] else ''}"))
    if any(run.state in ("stopped", "crashed") for run in found):
        print("\nA stopped or crashed run continues with: tiny-gpt resume RUN")
    return 0


def _compare(folders: list[Path], command: RunsCommand) -> int:
    from tiny_gpt.run.comparison import compare_runs
    from tiny_gpt.ui.runs_report import comparison_lines

    comparison = compare_runs(folders)
    if command.json:
        print(json.dumps(comparison.to_dict(), indent=2))
    else:
        print("\n".join(map(printable, comparison_lines(comparison))))
    if command.html:
        _write_page(comparison, user_path(command.html))
    return 0


def _write_page(comparison: "Comparison", path: Path) -> None:
    """Raises OutOfResourcesError if `path` cannot be written."""
    from tiny_gpt.ui import runs_report
    from tiny_gpt.view.comparison_page import comparison_page  # imports numpy

    page = comparison_page(
        comparison,
        list(runs_report.run_names(comparison).values()),
        list(runs_report.comparison_verdict(comparison)),
        list(runs_report.result_rows(comparison)),
        runs_report.setting_rows(comparison),
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    print(printable(f"Page: {path}"), file=sys.stderr)


def _remove(folders: list[Path], is_confirmed: bool) -> int:
    from tiny_gpt.run.removal import plan_removal
    from tiny_gpt.run.summary import summarize_run
    from tiny_gpt.ui.runs_report import format_bytes

    removals = [plan_removal(folder) for folder in folders]
    if not is_confirmed and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("runs remove: nobody can be asked here; give --yes to remove", code="remove-unconfirmed")
    for removal in removals:
        run = summarize_run(removal.folder)
        best = f", best {run.best_val_bits_per_byte:.3f} bits per byte" if run.best_val_bits_per_byte else ""
        what = f"{removal.folder} ({run.state}{best}, {format_bytes(removal.disk_bytes)})"
        if not is_confirmed and not _is_agreed(f"Remove {what}? It cannot be undone. [y/N]: "):
            print(f"Kept {removal.folder}.")
            continue
        removal.carry_out()
        print(printable(f"Removed {what}."))
        if removal.others:
            names = ", ".join(removal.others[:10]) + (", ..." if removal.others[10:] else "")
            print(printable(f"Kept in {removal.folder}, because tiny_gpt did not write it: {names}"))
    return 0


def _is_agreed(question: str) -> bool:
    return input(printable(question)).strip().lower() in ("y", "yes")
