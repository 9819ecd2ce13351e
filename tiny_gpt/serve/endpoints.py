"""The server's addresses: what comes in, what goes out, and who is notified when a text has grown."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from tiny_gpt.config import ServeConfig
from tiny_gpt.inference.prompts import START
from tiny_gpt.serve.jobs import Submission
from tiny_gpt.serve.metrics import CONTENT_TYPE, Metrics
from tiny_gpt.serve.models import ServedModel, ServedModels
from tiny_gpt.serve.parameters import (
    Ask,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_json,
    parse_tokenize,
)
from tiny_gpt.serve.prompts import begin_answer, encode_prompt
from tiny_gpt.serve.responses import Answer, to_event
from tiny_gpt.tokenizer.base import decode
from tiny_gpt.web.errors import RefusedError, json_response

# A stream sends what has come together since its last event, but not more often than this. A fast model writes a token
# every millisecond, and an event for each would take longer than the token.
SEND_INTERVAL_S = 0.02
# The status that is counted, as nginx does, for clients that left before their answer was complete.
CLIENT_LEFT = 499


def api_routes(models: ServedModels, config: ServeConfig) -> list[BaseRoute]:
    """The routes of the API."""
    api = _Api(models, config)
    return [
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name}", api.show_model),
        Route("/v1/completions", partial(api.complete, parse=parse_completion), methods=["POST"]),
        Route("/v1/chat/completions", partial(api.complete, parse=parse_chat), methods=["POST"]),
        # As vLLM has them; lm-eval counts tokens with them.
        Route("/tokenizer_info", api.show_tokenizer),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
        Route("/health", api.health),
        Route("/metrics", api.show_metrics),
    ]


class _Api:
    def __init__(self, models: ServedModels, config: ServeConfig) -> None:
        self._models, self._config, self._metrics = models, config, Metrics(models)

    async def list_models(self, _: Request) -> Response:
        return json_response({"object": "list", "data": [_description(model) for model in self._models]})

    async def show_model(self, request: Request) -> Response:
        return json_response(_description(self._models.find(request.path_params["name"])))

    async def show_tokenizer(self, _: Request) -> Response:
        # No token ends a text; a line break is what an empty prompt starts from.
        return json_response(
            {"tokenizer_class": type(self._models.find("").engine.tokenizer).__name__, "eos_token": START}
        )

    async def tokenize(self, request: Request) -> Response:
        name, text = parse_tokenize(parse_json(await request.body()))
        model = self._models.find(name)
        ids = await run_in_threadpool(lambda: model.engine.tokenizer.encode(text).tolist())
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": model.engine.config.block_size})

    async def detokenize(self, request: Request) -> Response:
        name, ids = parse_detokenize(parse_json(await request.body()))
        tokenizer = self._models.find(name).engine.tokenizer
        return json_response({"prompt": decode(tokenizer, encode_prompt(ids, tokenizer))})

    async def health(self, _: Request) -> Response:
        is_stopping = any(model.scheduler.is_stopping for model in self._models)
        return json_response({"status": "stopping" if is_stopping else "ok"}, 503 if is_stopping else 200)

    async def show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def complete(self, request: Request, parse: Callable[[dict[str, Any], ServeConfig], Ask]) -> Response:
        """/v1/completions and /v1/chat/completions."""
        start = time.monotonic()
        try:
            ask = parse(parse_json(await request.body()), self._config)
            model, waker = self._models.find(ask.model), _Waker()
            # In another thread: a long prompt takes a while.
            answer = await run_in_threadpool(begin_answer, ask, model, waker, self._config.request_timeout)
            waker.submission = answer.submission
            model.scheduler.submit(answer.submission)
        except RefusedError as error:
            self._count(error.status)
            raise
        if ask.stream:
            return _EventStream(self._stream(answer, waker, start), partial(self._end, answer, model))
        return await self._wait(request, answer, model, waker, start)

    async def _wait(
        self, request: Request, answer: Answer, model: ServedModel, waker: "_Waker", start: float
    ) -> Response:
        """The whole answer, once all texts are complete, unless the client leaves before."""
        submission = answer.submission
        gone = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            while not submission.is_over and not gone.done():
                done = asyncio.ensure_future(waker.wait())
                await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
                done.cancel()
        finally:
            gone.cancel()
            if not submission.is_over:
                model.scheduler.cancel(submission)
        if submission.error is not None:
            self._count(submission.error.status)
            raise submission.error
        if submission.n_finished < submission.n_texts:
            self._count(CLIENT_LEFT)
            return Response(status_code=400)
        self._metrics.request_s.observe(time.monotonic() - start)
        self._count(200)
        return await run_in_threadpool(lambda: json_response(answer.whole()))

    async def _stream(self, answer: Answer, waker: "_Waker", start: float) -> AsyncIterator[bytes]:
        """Events while the texts grow."""
        submission, is_first, is_over = answer.submission, True, False
        while not is_over:
            await waker.wait()
            is_over = submission.is_over  # read first: the events then hold everything
            if events := b"".join(answer.events()):
                if is_first:
                    self._metrics.first_token_s.observe(time.monotonic() - start)
                    is_first = False
                yield events
            if not is_over:
                await waker.pause(SEND_INTERVAL_S)
        if submission.error is not None:
            yield to_event(submission.error.body())
        else:
            self._metrics.request_s.observe(time.monotonic() - start)
            yield b"".join(answer.last_events())

    def _end(self, answer: Answer, model: ServedModel) -> None:
        """After a stream, however it ended."""
        submission = answer.submission
        status = submission.error.status if submission.error else 200 if submission.is_over else CLIENT_LEFT
        if not submission.is_over:
            model.scheduler.cancel(submission)
        self._count(status)

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(str(status)).inc()


class _EventStream(StreamingResponse):
    """Calls `on_end` at its end, also if the client leaves before the first event is asked for."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


class _Waker:
    """Wakes a coroutine from another thread when a submission has grown or is over; many calls before it has run cost
    no more than one."""

    def __init__(self) -> None:
        self.submission: Submission | None = None
        self._loop, self._is_called = asyncio.get_running_loop(), False
        self._event, self._end = asyncio.Event(), asyncio.Event()

    def __call__(self) -> None:
        if self.submission and self.submission.is_over:
            self._soon(self._end.set)
        if not self._is_called:
            self._is_called = True
            self._soon(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()
        # Before the caller looks at what has changed: a later change then calls again.
        self._is_called = False

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the submission."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._end.wait()

    def _soon(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(action)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _description(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tiny_gpt",
        "max_model_len": model.engine.config.block_size,
    }
