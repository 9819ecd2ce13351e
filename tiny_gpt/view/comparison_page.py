"""Runs side by side as a page: the verdict, one chart with all validation losses, and the tables."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from tiny_gpt.duration import format_duration
from tiny_gpt.run.comparison import Comparison
from tiny_gpt.run.summary import read_rows
from tiny_gpt.view.axes import Values, duration_axis, log_axis
from tiny_gpt.view.chart import Chart, Frame
from tiny_gpt.view.page import standalone_page
from tiny_gpt.view.parts import render
from tiny_gpt.view.run_charts import TICK_WIDTH

# page.css has a color for each; more runs than that share them.
N_COLORS = 4
FRAMES = {"wide": Frame(1232, 420, left=40, top=22), "narrow": Frame(360, 340, left=34, right=8, top=22)}
MAX_COMPARED_DOTS = 150


def comparison_page(
    comparison: Comparison,
    names: Sequence[str],
    sentences: Sequence[str],
    results: Sequence[Sequence[str]],
    settings: Sequence[Sequence[str]],
) -> str:
    """The page as HTML. `names` are those of the runs, `results` and `settings` rows of text with a cell per run."""
    headline, *others = sentences
    verdict = render("comparison_verdict", headline=headline, sentences=others)
    sections = [("verdict", "", verdict)]
    rows = [list(read_rows(Path(run.folder))) for run in comparison.runs]
    curves = [(np.array([row["elapsed_s"] for row in run]), _losses(run)) for run in rows]
    if any(len(times) for times, _ in curves):
        charts = {size: _chart(curves, names, size) for size in FRAMES}
        legend = [(name, i % N_COLORS) for i, name in enumerate(names)]
        sections.append(("loss", "Validation loss", render("comparison_chart", charts=charts, legend=legend)))
    sections.append(("results", "Results", render("comparison_table", names=names, rows=results)))
    if settings:
        sections.append(("settings", "Settings that differ", render("comparison_table", names=names, rows=settings)))
    return standalone_page("Comparison of runs", ", ".join(names), time.time(), sections)


def _losses(rows: Sequence[dict[str, float]]) -> Values:
    return np.array([row["val_bits_per_byte"] for row in rows])


def _chart(curves: Sequence[tuple[Values, Values]], names: Sequence[str], size: str) -> Markup:
    """Bits per byte over the time that each run has trained."""
    frame = FRAMES[size]
    losses = np.concatenate([values for _, values in curves])
    losses = losses[losses > 0]
    longest_s = max(float(times.max()) for times, _ in curves if len(times))
    low, high = (float(losses.min()), min(float(losses.max()), 100.0)) if len(losses) else (1.0, 8.0)
    x = duration_axis(0.0, 1.01 * longest_s, frame.plot_width // TICK_WIDTH[size])
    chart = Chart(frame, x, log_axis(low / 1.04, high * 1.04, 6), f"comparison-{size}")
    for i, (times, values) in enumerate(curves):
        kind = f"series-{i % N_COLORS}"
        chart.line(times, values, kind)
        rows = np.unique(np.linspace(0, len(times) - 1, min(len(times), MAX_COMPARED_DOTS)).astype(int))
        notes = [f"{names[i]} · {format_duration(times[row])} · {values[row]:.3f}" for row in rows]
        chart.dots(times[rows], values[rows], np.full(len(rows), np.nan), kind, notes, rows)
    title = "Validation loss of each run over its training time, in bits per byte"
    return chart.render(title, "The figures are in the table below the chart.", "bits per byte, lower is better")
