"""`tiny-gpt serve`: models for other programs, over HTTP."""

import sys
from collections.abc import Callable, Sequence
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
    """Serve models to other programs, in the form of OpenAI's API."""

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL ...]"), OPTIONAL] = ()
    """Runs, model files or exported folders. Without any, the best model of the newest run."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    web: WebConfig = field(default_factory=WebConfig)


def serve(args: Sequence[str]) -> int:
    """Serve models to other programs, in the form of OpenAI's API."""
    command = parse(ServeCommand, "tiny-gpt serve", args)
    paths = [find_model(name) for name in command.models or [""]]
    return serve_models(paths, command.serve, command.web)


def serve_models(
    paths: Sequence[Path],
    config: ServeConfig,
    web: WebConfig,
    make_routes: "Callable[[ServedModels], Sequence[BaseRoute]]" = lambda _: (),
    on_ready: Callable[[str], None] = lambda _: None,
) -> int:
    """Serve the models at `paths` until a signal. `make_routes` may add pages; `on_ready` gets the server's URL."""
    from tiny_gpt.serve.endpoints import api_routes
    from tiny_gpt.serve.models import open_models
    from tiny_gpt.web.access import access_for
    from tiny_gpt.web.app import web_app
    from tiny_gpt.web.listener import listen, url_of
    from tiny_gpt.web.server import WebServer

    access = access_for(web)
    with listen(web.host, web.port, SERVE_PORT) as listener:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        models = open_models(paths, config, lambda: error("(compiling the decoder for this CPU: only once)"))
        app = web_app([*api_routes(models, config), *make_routes(models)], access)
        url = url_of(listener)

        def announce() -> None:
            print(f"{', '.join(model.name for model in models)}: {url}  (for clients of OpenAI's API: {url}/v1)")
            print("Ctrl+C stops.", flush=True)
            on_ready(url)

        def stop() -> None:
            n_running = sum(model.scheduler.n_running for model in models)
            for model in models:
                model.scheduler.stop()
            if n_running:
                error(f"(finishing {n_running} texts; Ctrl+C again stops at once)")

        try:
            WebServer(app, listener, stop, FINISHING_S).run(announce)
        finally:
            for model in models:
                model.scheduler.close()
    return 0
