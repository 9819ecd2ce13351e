"""What tests of the playground share: a short run on a text with accents, in bytes, and its server."""

import json
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from tests.run.support import FRENCH, tiny_config, with_train
from tests.web.support import LOOPBACK
from tiny_gpt.config import DataConfig
from tiny_gpt.play.routes import playground_routes
from tiny_gpt.run import clock
from tiny_gpt.run.run import run
from tiny_gpt.web.app import web_app


def train_run(folder):
    """Train a tiny model on FRENCH in `folder`/run, with a checkpoint at every evaluation; returns that folder."""
    text = folder / "french.txt"
    text.write_text(FRENCH, encoding="utf-8")
    config = with_train(tiny_config(text, folder / "run"), epochs=4, learning_rate=0.03)
    model = replace(config.model, n_layer=2, block_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "MAX_OVERHEAD", 1e9)
        list(run(replace(config, model=model, data=DataConfig((str(text),), tokenizer="byte"))))
    return folder / "run"


def app_for(snapshots, name="french"):
    return web_app(playground_routes(snapshots, name), LOOPBACK)


CHUNK_BYTES = 23


class InSmallChunks:
    """An ASGI application that sends the model's tokens in chunks that end anywhere: within a number, within a line."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_chunks(message):
            body = message.get("body", b"")
            for start in range(0, max(1, len(body) - CHUNK_BYTES), CHUNK_BYTES):
                if start + CHUNK_BYTES < len(body):
                    chunk = body[start : start + CHUNK_BYTES]
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    message = message | {"body": body[start + CHUNK_BYTES :]}
            await send(message)

        await self.app(scope, receive, send_chunks if scope.get("path") == "/play/continue" else send)


def post(url, body):
    """(status, parsed lines of the answer) of a JSON request; `body` may also be bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, [json.loads(line) for line in answer.read().splitlines()]
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, [json.loads(refused.read())]
