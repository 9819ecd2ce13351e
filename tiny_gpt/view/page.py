"""A run's page as one HTML document: the report, which needs nothing beside itself, or the live page's first state."""

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from tiny_gpt.view.parts import (
    axis_choices,
    chart_parts,
    copied_part,
    events_part,
    next_part,
    plan_part,
    render,
    sample_parts,
    samples_lead,
    samples_note,
    settings_part,
    sizes,
    strip_parts,
    verdict_part,
    words_part,
    written_at,
)
from tiny_gpt.view.run_charts import AXIS_NAMES
from tiny_gpt.view.run_view import RunView
from tiny_gpt.view.verdict import judge

NOT_SEARCHED = "The training text is no longer in the cache, so copied passages cannot be searched."
BEING_SEARCHED = "The training text is being searched."


@functools.cache
def static_file(name: str) -> str:
    """page.css or page.js."""
    return resources.files("tiny_gpt.view").joinpath("static", name).read_text(encoding="utf-8")


def report_page(view: RunView, run: str) -> str:
    """One file that needs no network; `run` is how commands name the run."""
    css, script = static_file("page.css"), static_file("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(script)}; base-uri 'none'"
    return _page(view, run, axis_choices(view), NOT_SEARCHED, policy=policy, css=Markup(css), script=Markup(script))


def live_page(view: RunView) -> str:
    """The page that a server sends first; page.js keeps it up to date, and asks for other axes when they are chosen."""
    return _page(view, view.name, ["time"], BEING_SEARCHED, policy="", css="", script="")


def standalone_page(title: str, name: str, now: float, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """A page in the same style out of other sections: (id, title, HTML), such as a comparison of runs."""
    css, script = static_file("page.css"), static_file("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(script)}; base-uri 'none'"
    return str(
        render(
            "page",
            title=title,
            name=name,
            written=written_at(now),
            policy=policy,
            css=Markup(css),
            script=Markup(script),
            sections=[dict(id=id_, title=heading, content=content) for id_, heading, content in sections],
        )
    )


def _page(view: RunView, run: str, drawn: list[str], reason: str, policy: str, css: str, script: str) -> str:
    """`drawn` are the axes whose charts are in the page; the others are empty."""
    verdict = judge(view, run)
    axes = axis_choices(view) if policy else list(AXIS_NAMES)
    empty = [
        (f"{kind}-{axis}-{size}", axis, size, Markup(""))
        for kind in ("loss", "strips")
        for axis in axes
        for size in sizes()
        if axis not in drawn
    ]
    charts = [*chart_parts(view, drawn, sizes()), *(part for part in empty if part[0].startswith("loss"))]
    strips = [*strip_parts(view, drawn, sizes()), *(part for part in empty if part[0].startswith("strips"))]
    samples = [dict(id=id_, html=html) for id_, html in sample_parts(view)]
    contents = [
        ("verdict", "", _live("verdict", verdict_part(view, verdict), verdict.tone)),
        (
            "loss",
            "Loss",
            render(
                "loss",
                axes=axes,
                axis_names=AXIS_NAMES,
                charts=[dict(id=id_, axis=axis, size=size, svg=svg) for id_, axis, size, svg in charts],
                has_forecast=view.plan is not None,
                words=words_part(view),
            ),
        ),
        (
            "writes",
            "What it writes",
            render("samples", parts=samples, lead=samples_lead(view), note=samples_note(view)),
        ),
        ("plan", "Plan and result", _live("plan", plan_part(view))),
        ("copied", "What did it copy?", _live("copied", copied_part(view, reason))),
        ("next", "What to do next", _live("next", next_part(verdict))),
        (
            "strips",
            "How it ran",
            render("strips", strips=[dict(id=id_, axis=axis, size=size, html=svg) for id_, axis, size, svg in strips]),
        ),
        ("events", "What happened", _live("events", events_part(view))),
        ("settings", "Settings", _live("settings", settings_part(view))),
    ]
    return str(
        render(
            "page",
            title=f"{view.name}: {verdict.headline}",
            name=view.name,
            live=not policy,
            now=f"{view.now:.3f}",
            written=written_at(view.now),
            policy=policy,
            css=css,
            script=script,
            sections=[dict(id=id_, title=title, content=content) for id_, title, content in contents],
        )
    )


def _live(part: str, html: Markup, kind: str = "") -> Markup:
    return Markup('<div class="{} {}" data-part="{}">{}</div>').format(part, kind, part, html)


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
