"""The playground's routes: the page, and what its scripts ask for. The page is in static/."""

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from tiny_gpt.data.choose_tokenizer import tokenizer_sha256
from tiny_gpt.data.copied_spans import CopyIndex
from tiny_gpt.errors import BadInputError
from tiny_gpt.play.inside import MAX_SEEN_TOKENS, inside_view
from tiny_gpt.play.next_token import summarize_logits
from tiny_gpt.play.requests import (
    MAX_ALTERNATIVES,
    MAX_TOKENS,
    ids_of,
    read_body,
    sampling_of,
    snapshot_of,
    text_of,
    whole_number,
)
from tiny_gpt.play.snapshots import MAIN, OpenSnapshot, Snapshots, return_decoder, take_decoder
from tiny_gpt.play.tokens import prompt_ids, score_text, written_tokens
from tiny_gpt.play.training_text import copied_passages, copy_index
from tiny_gpt.web.errors import RefusedError

STATIC = Path(__file__).parent / "static"
# Texts that are written at once; a page writes one, or as many side by side in one stream.
MAX_STREAMS = 4
LARGEST_SEED = 2**63 - 1

Endpoint = Callable[[Request], Awaitable[Response]]


def playground_routes(snapshots: Snapshots, name: str) -> list[BaseRoute]:
    """The page at / and its requests below /play/. `name` is what the page calls the model."""
    playground = _Playground(snapshots, name)
    return [
        Route("/", _page),
        Mount("/play/static", StaticFiles(directory=STATIC)),
        Route("/play/model", playground.model),
        Route("/play/vocabulary", playground.vocabulary),
        *(
            Route(f"/play/{endpoint.__name__.rstrip('_')}", _with_errors(endpoint), methods=["POST"])
            for endpoint in (playground.continue_, playground.next, playground.score, playground.inside)
        ),
    ]


async def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


def _with_errors(endpoint: Endpoint) -> Endpoint:
    """`endpoint`, whose BadInputError becomes an answer that says what is wrong."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except BadInputError as error:
            raise RefusedError(400, str(error), error.code) from error

    return answer


class _Stream(StreamingResponse):
    """Lines that are made in worker threads; `on_end` is called once, also when the client has left."""

    def __init__(self, lines: Iterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(iterate_in_threadpool(lines), media_type="application/x-ndjson")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class _Playground:
    """The endpoints, and what they share."""

    def __init__(self, snapshots: Snapshots, name: str) -> None:
        self.snapshots, self.name = snapshots, name
        self._free_streams = threading.Semaphore(MAX_STREAMS)
        self._index: CopyIndex | None = None
        self._is_indexed = False
        self._index_lock = threading.Lock()

    async def model(self, _: Request) -> Response:
        return JSONResponse(await to_thread.run_sync(self._describe))

    async def vocabulary(self, _: Request) -> Response:
        """Each token's bytes as a string, one character from U+0000 to U+00FF per byte."""
        return JSONResponse(await to_thread.run_sync(self._tokens))

    async def continue_(self, request: Request) -> Response:
        """A stream of JSON lines, one for each token; the last is {"done": true}."""
        body = await read_body(request)
        config, key = sampling_of(body), snapshot_of(body, MAIN)
        n, seed = (
            whole_number(body, "n", 1, MAX_ALTERNATIVES),
            whole_number(body, "seed", 0, LARGEST_SEED - MAX_ALTERNATIVES),
        )
        tokenizer = self.snapshots.main.tokenizer
        if "ids" in body:
            ids = ids_of(body, tokenizer.vocab_size) or prompt_ids(tokenizer, "")
        else:
            ids = await to_thread.run_sync(prompt_ids, tokenizer, text_of(body))
        snapshot = await to_thread.run_sync(self.snapshots.open, key)
        if not self._free_streams.acquire(blocking=False):
            raise RefusedError(
                429, "too many texts are being written; stop one", "too-many-streams", headers={"Retry-After": "2"}
            )
        lines = _lines(snapshot, config, ids, [seed + i for i in range(n)])
        return _Stream(lines, self._free_streams.release)

    async def next(self, request: Request) -> Response:
        """The logits after "ids", as next_token.summarize_logits has them."""
        body = await read_body(request)
        tokenizer = self.snapshots.main.tokenizer
        ids = ids_of(body, tokenizer.vocab_size) or prompt_ids(tokenizer, "")
        return JSONResponse(await to_thread.run_sync(self._next, snapshot_of(body, MAIN), ids))

    async def score(self, request: Request) -> Response:
        """The tokens of "text" with their surprise; with "whole" also the whole text's figures and copied passages."""
        body = await read_body(request)
        whole = body.get("whole") is True
        return JSONResponse(await to_thread.run_sync(self._score, snapshot_of(body, MAIN), text_of(body), whole))

    async def inside(self, request: Request) -> Response:
        """What happens in the network at the last of "ids", as inside.inside_view has it for one layer."""
        body = await read_body(request)
        main = self.snapshots.main
        ids = ids_of(body, main.tokenizer.vocab_size)[-min(MAX_SEEN_TOKENS, main.model.config.block_size) :]
        if not ids:
            raise RefusedError(400, "ids: give at least one token to look at", "no-tokens", "ids")
        layer = whole_number(body, "layer", 0, main.model.config.n_layer - 1)
        snapshot = await to_thread.run_sync(self.snapshots.open, snapshot_of(body, MAIN))
        return JSONResponse(await to_thread.run_sync(inside_view, snapshot.loaded.model, ids, layer))

    # --- in worker threads ---

    def _describe(self) -> dict[str, Any]:
        main = self.snapshots.main
        config = main.model.config
        defaults = sampling_of({})
        return {
            "name": self.name,
            "fingerprint": tokenizer_sha256(main.tokenizer)[:16],
            "architecture": config.architecture,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "block_size": config.block_size,
            "n_parameters": main.model.n_parameters,
            "snapshots": [asdict(snapshot) for snapshot in self.snapshots.list()],
            "defaults": {
                **{name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p", "min_p", "max_tokens")},
                "n": 1,
                "seed": 1,
            },
            "limits": {"max_tokens": MAX_TOKENS},
            "has_training_text": self._copies() is not None,
        }

    def _tokens(self) -> list[str]:
        tokenizer = self.snapshots.main.tokenizer
        return [tokenizer.decode_bytes([token]).decode("latin-1") for token in range(tokenizer.vocab_size)]

    def _next(self, key: str, ids: list[int]) -> dict[str, Any]:
        snapshot, precision = self.snapshots.open(key), sampling_of({}).precision
        decoder = take_decoder(snapshot, 1, precision)
        try:
            return summarize_logits(decoder.read(ids[-snapshot.engine.config.block_size :], 0))
        finally:
            return_decoder(snapshot, 1, precision, decoder)

    def _score(self, key: str, text: str, whole: bool) -> dict[str, Any]:
        scored = asdict(score_text(self.snapshots.open(key).loaded, text, whole))
        index = self._copies() if whole else None
        return scored | {"copied": copied_passages(index, text) if index else []}

    def _copies(self) -> CopyIndex | None:
        """The training text's index, made when it is first asked for."""
        with self._index_lock:
            if not self._is_indexed and self.snapshots.run_folder is not None:
                self._index = copy_index(self.snapshots.run_folder)
            self._is_indexed = True
            return self._index


def _lines(snapshot: OpenSnapshot, config: Any, ids: list[int], seeds: list[int]) -> Iterator[str]:
    decoder = take_decoder(snapshot, len(seeds), config.precision)
    try:
        for event in written_tokens(snapshot.engine, config, ids, seeds, decoder):
            yield json.dumps(event) + "\n"
        yield json.dumps({"done": True}) + "\n"
    except BadInputError as error:  # the answer has begun
        yield json.dumps({"error": {"message": str(error), "code": error.code}}) + "\n"
    finally:
        return_decoder(snapshot, len(seeds), config.precision, decoder)
