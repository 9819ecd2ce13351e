"""`tiny-gpt serve`: models for other programs, over HTTP."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import parse
from tiny_gpt.config import ServeConfig, WebConfig
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.run.folders import find_model
from tiny_gpt.ui.terminal import error

if TYPE_CHECKING:  # they import starlette and numpy, which --help must not
    from starlette.routing import BaseRoute

    from tiny_gpt.serve.models import ServedModels

SERVE_PORT = 8000
# Texts that are being written when the server is asked to stop have so long.
FINISHING_S = 120.0
# The scheduler's thread waits for Python's lock after each pass through the model; by default up to 5 ms.
SWITCH_INTERVAL_S = 0.001


@dataclass(frozen=True)
class ServeCommand:
    """Serve models to other programs, through an API like OpenAI's."""

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL ...]"), OPTIONAL] = ()
    """Runs, model files or exported folders. Without any, the best model of the newest run."""
    no_playground: Annotated[bool, OPTIONAL] = False
    """Leave out the playground, which is at / for the first model."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    web: WebConfig = field(default_factory=WebConfig)


def serve(args: Sequence[str]) -> int:
    """Serve models to other programs, through an API like OpenAI's."""
    command = parse(ServeCommand, "tiny-gpt serve", args)
    # Starlette takes a while to import, and --help must not reach it.
    from tiny_gpt.serve.endpoints import api_routes
    from tiny_gpt.serve.models import open_models
    from tiny_gpt.web.access import access_for
    from tiny_gpt.web.app import web_app
    from tiny_gpt.web.listener import listen, url_of
    from tiny_gpt.web.server import WebServer

    access = access_for(command.web)
    paths = [find_model(name) for name in command.models or [""]]
    with listen(command.web.host, command.web.port, SERVE_PORT) as listener:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        models = open_models(paths, command.serve, lambda: error("(compiling the decoder for this CPU: only once)"))
        playground = [] if command.no_playground else [_playground(paths[0], command.serve.device)]
        app = web_app([*api_routes(models, command.serve), *playground], access)
        url = url_of(listener)

        def announce() -> None:
            print(f"{', '.join(model.name for model in models)} at {url}/v1 for clients of OpenAI's API")
            if playground:
                print(f"Playground: {url}/{'?key=KEY' if access.api_key else ''}")
            print("Ctrl+C stops.", flush=True)

        try:
            WebServer(app, listener, lambda: _stop(models), FINISHING_S).run(announce)
        finally:
            for model in models:
                model.scheduler.close()
    return 0


def _stop(models: "ServedModels") -> None:
    n_running = sum(model.scheduler.n_running for model in models)
    for model in models:
        model.scheduler.stop()
    if n_running:
        error(f"(finishing {n_running} texts; Ctrl+C again stops at once)")


def _playground(path: Path, device: str) -> "BaseRoute":
    """The playground's routes, made when the first of them is asked for: they load torch and the model once more."""
    import asyncio

    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.routing import Mount, Router
    from starlette.types import Receive, Scope, Send

    lock, routers = asyncio.Lock(), list[Router]()

    def make_router() -> Router:
        from tiny_gpt.play.routes import playground_routes
        from tiny_gpt.play.snapshots import Snapshots, title_of

        return Router(playground_routes(Snapshots(path, device), title_of(path)))

    async def playground(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/" and not scope["path"].startswith("/play/"):
            raise HTTPException(404)
        async with lock:
            if not routers:
                routers.append(await run_in_threadpool(make_router))
        await routers[0](scope, receive, send)

    return Mount("", app=playground)
