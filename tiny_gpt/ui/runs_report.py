"""What `tiny-gpt runs` prints: a table of runs, and a comparison of some of them."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tiny_gpt.config import flag
from tiny_gpt.duration import format_duration
from tiny_gpt.run.comparison import Comparison
from tiny_gpt.run.summary import RunSummary

RUN_COLUMNS = ("run", "state", "last active", "text", "size", "best", "time", "disk")
RIGHT_ALIGNED = {"size", "best", "time", "disk"}
NOTHING = "-"
# Longer texts are cut in a table.
MAX_CELL = 28


def run_table(runs: Sequence[RunSummary], now: float) -> Iterator[str]:
    """A line per run below a line of headings; "best" is in bits per byte. `now` is time.time()."""
    rows = [RUN_COLUMNS, *(_run_row(run, now) for run in runs)]
    return table(rows, [name in RIGHT_ALIGNED for name in RUN_COLUMNS])


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """The runs side by side: results, then the settings that differ, then a sentence with the verdict."""
    runs = comparison.runs
    rows = [("", *run_names(comparison).values()), *result_rows(comparison)]
    if settings := setting_rows(comparison):
        rows += [("", *("" for _ in runs)), *settings]
    yield from table([tuple(map(_cut, row)) for row in rows], [False, *(True for _ in runs)])
    yield ""
    yield from comparison_verdict(comparison)


def comparison_verdict(comparison: Comparison) -> Iterator[str]:
    """Which run is better, and what the comparison does not show."""
    names = run_names(comparison)
    if any(run.text_sha256 is None for run in comparison.runs):
        yield "It is not known which texts all of these runs were trained on, so they are not ranked."
    elif not comparison.same_text:
        yield "The runs were not trained on the same text, so their bits per byte do not say which one is better."
    elif comparison.best is None or comparison.margin is None:
        yield "Not every run has been evaluated yet."
    elif comparison.is_clear:
        yield f"{names[comparison.best]} is better, by {comparison.margin:.3f} bits per byte."
    else:
        yield f"{names[comparison.best]} and {names[_second(comparison)]} are about equal."
        yield (
            f"{names[comparison.best]} has the lowest loss, by {_margin(comparison.margin)} bits per byte; "
            "another seed alone can change it by more."
        )
    if not comparison.settings:
        yield "All their settings are the same."


def _second(comparison: Comparison) -> str:
    """The run that comes closest to the best one."""
    others = [run for run in comparison.runs if run.folder != comparison.best]
    return min(others, key=lambda run: run.best_val_bits_per_byte or math.inf).folder


def _margin(bits_per_byte: float) -> str:
    return f"{bits_per_byte:.3f}" if bits_per_byte >= 0.0005 else "less than 0.001"


def run_names(comparison: Comparison) -> dict[str, str]:
    """{folder: how the run is called here}: by its name, unless another run has the same one."""
    names = [run.name for run in comparison.runs]
    return {run.folder: run.name if names.count(run.name) == 1 else run.folder for run in comparison.runs}


def setting_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The settings that differ: a flag, and its value for each run."""
    settings = {name: values for name, values in comparison.settings.items() if name != "data"}
    return [(flag(name), *map(_setting, values)) for name, values in settings.items()]


def result_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """What came of the runs: a label, and a text for each run."""
    runs = comparison.runs
    yield "state", *(run.state for run in runs)
    yield "best, bits per byte", *(_bits(run.best_val_bits_per_byte) for run in runs)
    yield "at step", *(_count(run.best_step) for run in runs)
    if comparison.same_time_s is not None:
        after = f"best after {format_duration(comparison.same_time_s)}"
        yield after, *(_bits(value) for value in comparison.at_same_time)
    yield "steps", *(_count(run.step) for run in runs)
    yield "time", *(_duration(run.elapsed_s) for run in runs)
    yield "parameters", *(_count(run.n_parameters) for run in runs)
    if not comparison.same_text or "data" in comparison.settings:
        yield "text", *(_text(run.text) for run in runs)


def _run_row(run: RunSummary, now: float) -> tuple[str, ...]:
    return (
        _cut(run.name),
        _state(run),
        "now" if run.state == "running" else _when(run.changed_at, now),
        _cut(_text(run.text)),
        _size(run.n_parameters),
        _bits(run.best_val_bits_per_byte),
        _duration(run.elapsed_s),
        format_bytes(run.disk_bytes),
    )


def _text(sources: Sequence[str]) -> str:
    """The names of files and datasets without their folders."""
    return ", ".join(source.rstrip("/").rsplit("/", 1)[-1] for source in sources) or NOTHING


def _state(run: RunSummary) -> str:
    """running 43%, stopped 43%, finished"""
    is_partial = run.state in ("running", "stopped", "failed", "crashed") and run.progress is not None
    return f"{run.state} {run.progress:.0%}" if is_partial else run.state


def _when(at: float, now: float) -> str:
    """06:58 today, Nov 28 06:58, 2025-11-28"""
    if not 0 < at < now + 366 * 86_400:
        return NOTHING
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("today %H:%M", then)
    return time.strftime("%b %d %H:%M" if then[0] == today[0] else "%Y-%m-%d", then)


def table(rows: Sequence[Sequence[str]], is_right: Sequence[bool]) -> Iterator[str]:
    """Lines with columns as wide as their widest cell; those marked `is_right` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(is_right))]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def format_bytes(n_bytes: int) -> str:
    """1234567890 -> "1.2 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def _bits(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _duration(value: float | None) -> str:
    return NOTHING if value is None else format_duration(value)


def _size(n_parameters: int | None) -> str:
    """1234567 -> "1.2 M"."""
    if n_parameters is None:
        return NOTHING
    return f"{n_parameters / 1e6:.1f} M" if n_parameters >= 1e6 else f"{n_parameters / 1e3:.0f} k"


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or NOTHING
    return NOTHING if value in (None, "") else str(value)
