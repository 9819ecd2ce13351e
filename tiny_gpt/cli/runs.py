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


@dataclass(frozen=True)
class RunsCommand:
    """List the runs here: state, loss, time and disk space.

    Use `tiny-gpt runs compare RUN RUN ...` to see what differs and which is better.

    Use `tiny-gpt runs remove RUN ...` to delete runs from the disk.
    """

    action: Annotated[Positional[tuple[str, ...]], arg(metavar="[compare|remove RUN...]"), OPTIONAL] = ()
    """What to do, and with which runs. Without it, list all runs."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""


@dataclass(frozen=True)
class CompareCommand:
    """Show what differs between runs and which one is better.

    For example: tiny-gpt runs compare diary diary-2
    """

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN RUN..."), OPTIONAL] = ()
    """Two or more runs: their folders, or their names in runs/."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""
    html: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Also write the comparison as a page with a chart, one HTML file that needs no network."""


@dataclass(frozen=True)
class RemoveCommand:
    """Delete runs from the disk, with their models and checkpoints. Asks before each."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN..."), OPTIONAL] = ()
    """Folders of runs, or their names in runs/."""
    yes: Annotated[bool, OPTIONAL] = False
    """Remove without asking."""


def runs(args: Sequence[str]) -> int:
    """List, compare and remove runs."""
    action = next((arg for arg in args if arg in ACTIONS), "")
    if action:
        at = args.index(action)
        return ACTIONS[action]([*args[:at], *args[at + 1 :]])
    command = parse(RunsCommand, "tiny-gpt runs", args)
    if command.action:
        raise UsageError(
            f"tiny-gpt runs {command.action[0]}: the actions are {' and '.join(ACTIONS)}; without one, runs are listed",
            code="runs-action-unknown",
        )
    return _list(command.json)


def _compare(args: Sequence[str]) -> int:
    command = parse(CompareCommand, "tiny-gpt runs compare", args)
    folders = _folders_of(command.names, "compare", 2)
    if len(folders) < 2:
        raise UsageError(
            f"runs compare: {' and '.join(command.names)} are the same run; name two different ones",
            code="runs-the-same",
        )
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


def _remove(args: Sequence[str]) -> int:
    command = parse(RemoveCommand, "tiny-gpt runs remove", args)
    folders = _folders_of(command.names, "remove", 1)
    from tiny_gpt.run.removal import plan_removal
    from tiny_gpt.run.summary import summarize_run
    from tiny_gpt.ui.runs_report import format_bytes

    removals = [plan_removal(folder) for folder in folders]
    if not command.yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("runs remove: nobody can be asked here; give --yes to remove", code="remove-unconfirmed")
    for removal in removals:
        run = summarize_run(removal.folder)
        best = f", best {run.best_val_bits_per_byte:.3f} bits per byte" if run.best_val_bits_per_byte else ""
        what = f"{removal.folder} ({run.state}{best}, {format_bytes(removal.disk_bytes)})"
        if not command.yes and not _is_agreed(f"Remove {what}? It cannot be undone. [y/N]: "):
            print(f"Kept {removal.folder}.")
            continue
        removal.carry_out()
        print(printable(f"Removed {what}."))
        if removal.others:
            names = ", ".join(removal.others[:10]) + (", ..." if removal.others[10:] else "")
            print(printable(f"Kept in {removal.folder}, because tiny_gpt did not write it: {names}"))
    return 0


ACTIONS = {"compare": _compare, "remove": _remove}


def _folders_of(names: Sequence[str], action: str, n_needed: int) -> list[Path]:
    """The folders of the runs called `names`, each once. Raises UsageError for fewer than `n_needed` names."""
    if len(names) < n_needed:
        raise UsageError(
            f"tiny-gpt runs {action} needs at least {'two runs' if n_needed == 2 else 'one run'}: folders, or names in "
            f"{RUNS_FOLDER}/ (tiny-gpt runs lists them)",
            code="runs-not-named",
        )
    return list({existing_run(name).resolve(): existing_run(name) for name in names}.values())


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


def _is_agreed(question: str) -> bool:
    return input(printable(question)).strip().lower() in ("y", "yes")
