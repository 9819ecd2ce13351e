"""The parts of a run's page as HTML, each with an id. A live page replaces those that have changed."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from tiny_gpt.duration import format_duration
from tiny_gpt.run.events import describe_forgetting
from tiny_gpt.view.axes import clock_label, count_label
from tiny_gpt.view.run_charts import LOSS_FRAMES, available_axes, labeled, loss_chart, reference_lines
from tiny_gpt.view.run_files import RunEvent, Sample
from tiny_gpt.view.run_view import RunView
from tiny_gpt.view.signs import gap_in_words, quality_in_words
from tiny_gpt.view.strips import strips
from tiny_gpt.view.verdict import Verdict

MAX_TABLE_ROWS = 60
MAX_EVENTS_SHOWN = 60
# Smaller ones are called none.
MENTIONED_SHARE = 0.0005


@functools.cache
def templates() -> jinja2.Environment:
    """All templates; what is put into them is escaped."""
    loader = jinja2.PackageLoader("tiny_gpt.view", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: Any) -> Markup:
    """A template of this package as HTML."""
    return Markup(templates().get_template(f"{template}.html").render(**values))


def verdict_part(view: RunView, verdict: Verdict) -> Markup:
    """Headline, when it ends, and the tiles."""
    updated = view.status.updated if view.status and not view.is_over else None
    progress = None if view.state == "finished" or not view.progress else f"{100 * view.progress:.1f}"
    return render(
        "verdict_part",
        verdict=verdict,
        age=f"{updated:.0f}" if updated else "",
        age_words=_ago(view.now - updated) if updated else "",
        error=view.status.error if view.status and view.state == "failed" else "",
        progress=progress,
        tiles=list(_tiles(view)),
        problems=view.problems,
    )


def _tiles(view: RunView) -> Iterator[dict[str, str]]:
    if view.best is not None and view.last is not None:
        best, last = float(view.val[view.best]), float(view.val[view.last])
        yield dict(name="Best, bits per byte", value=f"{best:.3f}", note=quality_in_words(best))
        if view.last != view.best and not view.is_over:
            yield dict(name="Now, bits per byte", value=f"{last:.3f}", note=f"{last / best - 1:.1%} above the best")
    if view.left_s is not None:
        yield dict(name="Time left", value=format_duration(view.left_s), note=f"{view.progress:.0%} done")
    if view.elapsed_s:
        yield dict(name="Trained", value=format_duration(view.elapsed_s), note=f"{view.step:,.0f} steps")
    epochs = view.data_epochs
    if epochs is not None:
        value = f"{epochs:,.1f} ×" if epochs >= 0.95 else f"{epochs:.0%}"
        yield dict(name="Passes over the text", value=value, note=f"{count_label(view.fact('train_tokens'))} tokens")
    speeds = view.metrics.column("tokens_per_s")
    if len(speeds) and math.isfinite(speeds[-1]):
        yield dict(name="Tokens per second", value=f"{float(speeds[-1]):,.0f}", note=view.words("device")[:40])
    if parameters := view.fact("n_parameters"):
        yield dict(name="Parameters", value=count_label(parameters), note=str(view.config.get("architecture", ""))[:20])


def chart_parts(view: RunView, axes: Sequence[str], sizes: Sequence[str]) -> Iterator[tuple[str, str, str, Markup]]:
    """(id, axis, size, HTML) of the loss charts."""
    for axis in axes:
        for size in sizes:
            yield f"loss-{axis}-{size}", axis, size, loss_chart(view, axis, size)


def strip_parts(view: RunView, axes: Sequence[str], sizes: Sequence[str]) -> Iterator[tuple[str, str, str, Markup]]:
    """(id, axis, size, HTML) of the small charts."""
    for axis in axes:
        for size in sizes:
            cells = [
                Markup('<div class="strip"><h3>{}<b>{}</b></h3>{}</div>').format(*strip)
                for strip in strips(view, axis, size)
            ]
            if not cells:
                cells = [Markup("<p>From the second evaluation on: learning rate, speed and memory.</p>")]
            yield f"strips-{axis}-{size}", axis, size, Markup('<div class="strip-grid">{}</div>').format(
                Markup("").join(cells)
            )  # fmt: skip


def words_part(view: RunView) -> Markup:
    """What the loss means, in words and as a table."""
    rows = _table_rows(view)
    known = view.last is not None and math.isfinite(view.train[view.last])
    return render(
        "words",
        lines=_lines_in_words(view),
        gap=view.gap if known else None,
        gap_words=gap_in_words(view),
        train=float(view.train[view.last]) if known and view.last is not None else None,
        val=float(view.val[view.last]) if view.last is not None else None,
        over=view.is_over,
        rows=rows,
        n_left_out=view.n_rows - len(rows) if view.n_rows > len(rows) else 0,
    )


def _lines_in_words(view: RunView) -> str:
    lines = [labeled(name, value) for value, name, kind in reference_lines(view) if kind == "baseline"]
    return f"For comparison, on this text: {', '.join(lines)}." if view.facts else ""


def _table_rows(view: RunView) -> list[dict[str, Any]]:
    if view.n_rows == 0:
        return []
    chosen = set(np.linspace(0, view.n_rows - 1, min(view.n_rows, MAX_TABLE_ROWS)).round().astype(int).tolist())
    chosen |= set() if view.best is None else {view.best}
    rates, speeds = view.metrics.column("lr"), view.metrics.column("tokens_per_s")
    elapsed = view.metrics.column("elapsed_s")
    return [
        dict(
            best=row == view.best,
            step=f"{view.steps[row]:,.0f}",
            when=clock_label(float(view.times[row])) if view.times is not None else _duration(elapsed[row]),
            train=_figure(view.train[row]),
            val=_figure(view.val[row]),
            error=_figure(view.errors[row]),
            rate=f"{rates[row]:.2g}" if math.isfinite(rates[row]) else "",
            speed=f"{speeds[row]:,.0f}" if math.isfinite(speeds[row]) else "",
        )
        for row in sorted(chosen)
    ]


def sample_parts(view: RunView) -> list[tuple[str, Markup]]:
    """(id, HTML) of each sample; what it copied is marked."""
    parts = []
    for sample in view.samples:
        spans = view.copied.spans.get(sample.step, ()) if view.copied else ()
        when = " · ".join(filter(None, [_sample_time(sample), f"step {sample.step:,}"]))
        pieces = list(_pieces(sample.text, spans))
        html = render("sample", step=sample.step, when=when, loss=_sample_loss(sample), pieces=pieces)
        parts.append((f"sample-{sample.step}", html))
    return parts


def _sample_time(sample: Sample) -> str:
    if 1e9 < sample.time < 1e11:
        return clock_label(sample.time)
    return _duration(sample.elapsed_s)


def _sample_loss(sample: Sample) -> str:
    value = sample.bits_per_byte
    return f"{value:.3f} bits per byte, {quality_in_words(value)}" if math.isfinite(value) else ""


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """`text` cut at the ends of the copied spans."""
    end = 0
    for start, stop in spans:
        yield dict(text=text[end:start], copied=False)
        yield dict(text=text[start:stop], copied=True)
        end = stop
    yield dict(text=text[end:], copied=False)


def samples_lead(view: RunView) -> str:
    """What the samples are."""
    if not view.samples:
        return "No text yet: the first one comes with the first saved model."
    return "The same beginning, continued by the best model of each moment."


def samples_note(view: RunView) -> str:
    """What marks mean in the samples, and what they cost."""
    if not view.samples:
        return ""
    marked = "Marked: word for word in your text. " if view.copied and any(view.copied.spans.values()) else ""
    cost_s = sum(sample.seconds for sample in view.samples if math.isfinite(sample.seconds))
    share = cost_s / view.elapsed_s if view.elapsed_s else 0.0
    of_run = f"{share:.1%} of the run" if share >= MENTIONED_SHARE else "less than 0.1% of the run"
    return f"{marked}Writing them took {of_run}."


def plan_part(view: RunView) -> Markup:
    """What was planned beside what came."""
    plan = view.plan
    if plan is None:
        return render("plan", rows=[], preparing=view.state == "preparing", forgetting=_forgetting(view))
    tokens, peak = view.step * view.tokens_per_step, view.fact("peak_memory_bytes")
    memory = view.metrics.column("memory_bytes")
    if not peak and np.isfinite(memory).any():
        peak = float(np.nanmax(memory))
    best = float(view.val[view.best]) if view.best is not None else math.nan
    final = view.fact("best_val_bits_per_byte") if view.state == "finished" else 0.0
    forecast = plan.forecast
    expected = f"{forecast.bits_per_byte:.3f} ({forecast.low:.2f} to {forecast.high:.2f})"
    rows = [
        ("Bits per byte", expected, _figure(final or best)),
        ("Steps", f"{plan.steps:,}", f"{view.step:,.0f}"),
        ("Tokens", count_label(plan.tokens), count_label(tokens)),
        ("Passes over the text", f"{plan.data_epochs:,.1f}", _or_dash(view.data_epochs, "{:,.1f}")),
        ("Time", format_duration(plan.seconds), format_duration(view.elapsed_s)),
        ("Memory", f"{plan.memory_bytes / 2**30:.1f} GiB", f"{peak / 2**30:.1f} GiB" if peak else "–"),
    ]
    comment = ""
    if view.state == "finished" and math.isfinite(final or best):
        inside = forecast.low <= (final or best) <= forecast.high
        comment = f"The loss is {'as predicted: within' if inside else 'not as predicted: outside'} the interval"
        comment += " in which 8 of 10 runs were expected to end."
        if final:
            comment += (
                f" At the end, the best model was scored over {view.fact('scored_tokens'):,.0f} validation tokens."
            )
    return render("plan", rows=rows, over=view.is_over, comment=comment, forgetting=_forgetting(view))


def _forgetting(view: RunView) -> str:
    words = describe_forgetting(view.fact("known_before"), view.fact("known_after"))
    return f"What it knew before: the best model is {words}." if words else ""


def copied_part(view: RunView, reason: str) -> Markup:
    """What the samples copied. `reason` says why that is not known, if it is not."""
    copied, facts = view.copied, view.facts
    if not view.samples:
        return render("copied", copied=None, reason="No sample yet.")
    if copied is None or facts is None:
        return render("copied", copied=None, reason=reason)
    if not copied.n_bytes:
        return render("copied", copied=None, reason="No sample yet.")
    rate, usual = copied.sample_rate, facts.held_out_copied
    meaning = (
        "it writes text of its own"
        if rate <= usual + 0.02
        else "more than chance, it repeats parts of your text"
        if rate < 0.3
        else "it recites your text"
    )
    is_part = facts.indexed_bytes < facts.train_bytes
    searched = f" Only the first {count_label(facts.indexed_bytes)}B of the text were searched." if is_part else ""
    what = "stands word for word in your text, in passages of 32 bytes or more"
    sentence = f"{_share(rate)} of the newest samples {what}: {meaning}.{searched}"
    if rate >= MENTIONED_SHARE or usual >= MENTIONED_SHARE:
        sentence += f" Of text that it has not read, {_share(usual).lower()} does."
    return render("copied", copied=copied, sentence=sentence)


def _share(fraction: float) -> str:
    return "Nothing" if fraction < MENTIONED_SHARE else f"{fraction:.1%}"


def next_part(verdict: Verdict) -> Markup:
    """The suggestions."""
    return render("next", suggestions=verdict.suggestions)


def events_part(view: RunView) -> Markup:
    """What happened in the night."""
    shown = view.events[-MAX_EVENTS_SHOWN:]
    n_earlier = len(view.events) - len(shown)
    return render("events", events=[_event_row(event) for event in shown], n_earlier=n_earlier)


def _event_row(event: RunEvent) -> dict[str, str]:
    step = "" if event.step is None else f"{event.step:,}"
    when = f"{clock_label(event.time, 86_400.0)} {clock_label(event.time)}"
    return dict(kind=event.kind, when=when, step=step, text=event.text)


def settings_part(view: RunView) -> Markup:
    """Settings, versions and hashes."""
    settings = [(name, _plain(value)) for name, value in sorted(view.config.items())]
    groups = [dict(title="Settings", rows=settings)]
    if view.checkpoint is not None:
        about = {**view.checkpoint.machine, **view.checkpoint.data}
        groups.append(
            dict(title="Versions, machine and hashes", rows=[(name, _plain(value)) for name, value in about.items()])
        )
    if view.status is not None:
        facts = [(name, _plain(value)) for name, value in view.status.facts.items() if name != "incidents"]
        groups.append(dict(title="Text and model", rows=facts))
    return render("settings", groups=groups)


def axis_choices(view: RunView) -> list[str]:
    """The axes that the page offers."""
    return available_axes(view)


def sizes() -> list[str]:
    """The sizes that charts are drawn in."""
    return list(LOSS_FRAMES)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))[:2000]
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else str(value)[:2000]
    )


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _duration(seconds: float) -> str:
    return format_duration(seconds) if math.isfinite(seconds) else ""


def _ago(seconds: float) -> str:
    return "just now" if seconds < 5 else f"{format_duration(seconds)} ago"


def written_at(now: float) -> str:
    """When a report was written, for its head."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
