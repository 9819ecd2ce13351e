"""The live page: a small web application that reads the run's folder again whenever a page asks.

    GET /        the page as it is now
    GET /state   JSON: the parts that differ from those that the page has

It keeps nothing between two requests that it could not read again, so a server that is started later, or again, shows
the same; and a page that slept asks for what it missed.
"""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tiny_gpt.data.copied_spans import CopyIndex, decoded_text
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.view.copied import CopySearch
from tiny_gpt.view.page import BEING_SEARCHED, NOT_SEARCHED, live_page, static_file
from tiny_gpt.view.parts import (
    chart_parts,
    copied_part,
    events_part,
    next_part,
    plan_part,
    sample_parts,
    samples_lead,
    samples_note,
    settings_part,
    sizes,
    strip_parts,
    verdict_part,
    words_part,
)
from tiny_gpt.view.run_charts import AXES, available_axes
from tiny_gpt.view.run_folder import RunFolder
from tiny_gpt.view.run_view import RunView
from tiny_gpt.view.text_facts import compute_text_facts, open_training_text, write_text_facts
from tiny_gpt.view.verdict import judge
from tiny_gpt.web.access import Access
from tiny_gpt.web.app import web_app
from tiny_gpt.web.errors import RefusedError

HASH_CHARACTERS = 8


class LiveRun:
    """A run's folder as the server sees it. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self._place = FollowedFolder(folder)
        self._folder = RunFolder(folder)
        self._lock = threading.Lock()
        self._search: CopySearch | None = None
        self._reason = BEING_SEARCHED
        self._searcher: threading.Thread | None = None
        self._drawn: list[tuple[str, str, str]] = []
        self._drawn_for = ""

    def first_page(self) -> str:
        """The page with its charts by clock."""
        with self._lock:
            return live_page(self._view())

    def changes(self, axis: str, size: str, version: str, have: dict[str, str]) -> dict[str, object]:
        """The parts whose hashes differ from those in `have`; none while the run's files are those of `version`."""
        with self._lock:
            view = self._view()
            basis = self._basis(view)
            current = f"{_hash(basis + repr(view.status))}-{axis}-{size}"
            parts = {} if version == current else self._parts(view, f"{basis}-{axis}-{size}", axis, size, have)
            return {"now": view.now, "version": current, "parts": parts}

    def _view(self) -> RunView:
        place = self._place.path()
        if place != self._folder.folder:  # it was moved
            self._folder = RunFolder(place)
        view = self._folder.view()
        if self._searcher is None and view.checkpoint is not None:
            self._searcher = threading.Thread(target=self._find_training_text, name="text facts", daemon=True)
            self._searcher.start()
        return self._folder.view(view.now, self._search.of(view.samples)) if self._search else view

    def _basis(self, view: RunView) -> str:
        """What all parts depend on, except for those that say how far the run is."""
        rows = self._folder.folder, view.metrics.offset, view.state, view.problems, len(view.events), len(view.samples)
        run = view.facts, view.plan, view.status and view.status.facts, sorted(view.config), view.checkpoint
        return repr((*rows, *run, self._search is None, self._reason))

    def _parts(self, view: RunView, key: str, axis: str, size: str, have: dict[str, str]) -> dict[str, dict[str, str]]:
        """The parts that differ. Every few seconds a run's status changes; those that don't show it are drawn once for
        each `key`."""
        if key != self._drawn_for:
            self._drawn = [
                (name, str(html), _hash(html)) for name, html in _lasting_parts(view, axis, size, self._reason)
            ]
            self._drawn_for = key
        moving = [(name, str(html), _hash(html)) for name, html in _moving_parts(view)]
        return {
            name: {"hash": digest, "html": html}
            for name, html, digest in (*moving, *self._drawn)
            if have.get(name) != digest
        }

    def _find_training_text(self) -> None:
        """Prepare what takes seconds: in its own thread, once."""
        try:
            with self._lock:
                view = self._folder.view()
            dataset = open_training_text(view.checkpoint)
            if dataset is None:
                self._reason = NOT_SEARCHED
                return
            index = CopyIndex(decoded_text(dataset.tokenizer, dataset.train))
            if view.facts is None:
                write_text_facts(self._place.path(), compute_text_facts(dataset, index))
            self._search = CopySearch(index)
        except Exception as failure:  # whatever the cache holds: the page works without it
            self._reason = f"The training text could not be searched ({type(failure).__name__})."


def _moving_parts(view: RunView) -> Iterator[tuple[str, Markup]]:
    """(id, HTML) of the parts that say how far the run is."""
    verdict = judge(view)
    yield "verdict", Markup('<div class="{}">{}</div>').format(verdict.tone, verdict_part(view, verdict))
    yield "plan", plan_part(view)
    yield "next", next_part(verdict)


def _lasting_parts(view: RunView, axis: str, size: str, reason: str) -> Iterator[tuple[str, Markup]]:
    """(id, HTML) of the others."""
    if axis in available_axes(view):
        yield from ((name, html) for name, _, _, html in chart_parts(view, [axis], [size]))
        yield from ((name, html) for name, _, _, html in strip_parts(view, [axis], [size]))
    yield "words", words_part(view)
    yield from sample_parts(view)
    yield "samples-lead", escape(samples_lead(view))
    yield "samples-note", escape(samples_note(view))
    yield "copied", copied_part(view, reason)
    yield "events", events_part(view)
    yield "settings", settings_part(view)


def live_app(folder: Path, access: Access) -> ASGIApp:
    """The application for the run in `folder`."""
    run = LiveRun(folder)
    # Many rows take a second to read: begin while the browser is still opening.
    threading.Thread(target=run.first_page, name="first page", daemon=True).start()

    def page(request: Request) -> Response:
        return HTMLResponse(run.first_page(), headers={"Cache-Control": "no-store"})

    def state(request: Request) -> Response:
        query = request.query_params
        axis, size = query.get("axis", AXES[0]), query.get("size", "wide")
        if axis not in AXES or size not in sizes():
            raise RefusedError(400, "unknown axis or size", "unknown-chart")
        have = dict(pair.rpartition(":")[::2] for pair in query.get("have", "").split(",") if ":" in pair)
        return JSONResponse(run.changes(axis, size, query.get("version", ""), have))

    def css(request: Request) -> Response:
        return Response(static_file("page.css"), media_type="text/css")

    def script(request: Request) -> Response:
        return Response(static_file("page.js"), media_type="text/javascript")

    routes = [Route("/", page), Route("/state", state), Route("/page.css", css), Route("/page.js", script)]
    return web_app(routes, access)


def _hash(content: str) -> str:
    return hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=HASH_CHARACTERS // 2).hexdigest()
