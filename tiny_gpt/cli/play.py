"""`tiny-gpt play`: the playground in the browser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.cli.arguments import ModelArgument, parse
from tiny_gpt.config import WebConfig
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.run.folders import find_model
from tiny_gpt.ui.terminal import error

PLAY_PORT = 8770


@dataclass(frozen=True)
class PlayCommand:
    """Write with a trained model in the browser and see how it thinks. Works offline."""

    model: ModelArgument = ""
    """A run, model file, exported folder, GGUF file or hf:OWNER/NAME. Without it, the best model of the newest run."""
    no_browser: Annotated[bool, OPTIONAL] = False
    """Print the address only; don't open a browser."""
    device: Annotated[str, arg(metavar="{auto,cpu,mps,cuda,cuda:N}")] = "auto"
    """Device to compute on. auto: cpu for a small model; for a large one cuda, else mps, else cpu."""
    web: WebConfig = field(default_factory=WebConfig)


def play(args: Sequence[str]) -> int:
    """Write with a trained model in the browser and see how it thinks."""
    command = parse(PlayCommand, "tiny-gpt play", args)
    path = find_model(command.model)
    # Starlette takes a while to import, torch takes seconds, and --help must reach neither.
    from tiny_gpt.play.routes import playground_routes
    from tiny_gpt.play.snapshots import Snapshots, title_of
    from tiny_gpt.web.access import access_for
    from tiny_gpt.web.app import web_app
    from tiny_gpt.web.browser import open_page
    from tiny_gpt.web.listener import listen, url_of
    from tiny_gpt.web.server import WebServer

    access = access_for(command.web)
    with listen(command.web.host, command.web.port, PLAY_PORT) as listener:
        url = url_of(listener)
        snapshots = Snapshots(path, command.device)
        app = web_app(playground_routes(snapshots, title_of(path)), access)
        link = f"{url}/?key={access.api_key}" if access.api_key else url

        def announce() -> None:
            is_opened = not command.no_browser and open_page(link)
            error(f"The playground is at {url} (Ctrl+C ends it)" + ("" if is_opened else "; open it in a browser"))

        WebServer(app, listener, grace_s=1.0).run(announce)
    return 0
