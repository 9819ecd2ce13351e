"""`tiny-gpt watch`: the live page of a run; and `--watch`, the same beside a training, in its own process."""

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.cli.arguments import parse
from tiny_gpt.cli.report import RunToShow
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.config.web import WebConfig
from tiny_gpt.files import quoted, user_path
from tiny_gpt.run.folders import find_run_to_show
from tiny_gpt.ui.terminal import error

WATCH_PORT = 8760
# Holds the process id of the training that a page is shown beside.
TRAINING_VARIABLE = "TINY_GPT_TRAINING"
# A page that is shown beside a training stays for so long after its end, for those who look in later.
LINGER_S = 600.0
# Behind the training, but not so far that a page takes ten seconds while all cores train, as with 19.
NICENESS = 5
_POLL_S = 1.0


@dataclass(frozen=True)
class WatchCommand:
    """Show a run in the browser, live; it may be in progress, finished or dead."""

    run: RunToShow = ""
    """Folder of the run, or its name in runs/. Without it, the newest run."""
    port: Annotated[int, arg(metavar="INT"), OPTIONAL] = 0
    """Port to listen on. Without it, the first free one from 8760 on."""
    no_browser: Annotated[bool, OPTIONAL] = False
    """Only print the address."""
    share: Annotated[bool, OPTIONAL] = False
    """Let other devices on your network view it, such as a phone.
    They need the link, or the QR code, that is printed; it has a key that is new at each start."""


def watch_run(args: Sequence[str]) -> int:
    """Show a run in the browser, live."""
    command = parse(WatchCommand, "tiny-gpt watch", args)
    training = os.environ.pop(TRAINING_VARIABLE, "")
    folder = user_path(command.run) if training else find_run_to_show(command.run)
    from tiny_gpt.view.live import live_app
    from tiny_gpt.web.access import access_for
    from tiny_gpt.web.browser import open_page
    from tiny_gpt.web.listener import listen, url_of
    from tiny_gpt.web.server import WebServer

    key = secrets.token_urlsafe(18) if command.share else ""
    config = WebConfig(host="0.0.0.0" if command.share else "127.0.0.1", port=command.port, api_key=key)
    access = access_for(config, {})
    listener = listen(config.host, config.port, WATCH_PORT)
    url = url_of(listener) + (f"/?key={key}" if key else "/")
    server = WebServer(live_app(folder, access), listener, grace_s=2.0)
    if training:
        _run_quietly_beside(int(training), server.stop)

    def on_ready() -> None:
        print(f"Watch {folder.resolve().name}: {url}", flush=True)
        if command.share:
            _print_link(url_of(listener, _network_address()) + f"/?key={key}")
        if not command.no_browser:
            open_page(url)
        if training:
            _detach_output()
        else:
            print("Ctrl+C ends the page, not a training.", flush=True)

    server.run(on_ready)
    return 0


def _print_link(link: str) -> None:
    """The link for other devices, and its QR code where the terminal can show one."""
    import segno

    print(f"On other devices in this network: {link}", flush=True)
    with contextlib.suppress(UnicodeEncodeError):
        if sys.stdout.isatty():
            segno.make(link, error="l").terminal(compact=True)


def _network_address() -> str:
    """This machine's address in its network, as other devices see it; "" if it has none."""
    import socket

    import psutil

    found = [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
        and not address.address.startswith(("127.", "169.254."))
        # Bridges of containers and virtual machines are no way in.
        and not name.startswith(("docker", "br-", "veth", "virbr"))
    ]
    return next((address for address in found if address.startswith(("192.168.", "10."))), next(iter(found), ""))


def start_beside_training(folder: Path) -> None:
    """Start `tiny-gpt watch` for the run in `folder`, which this process is about to train; never fails.

    It has its own session, so Ctrl+C ends the training alone, which the page then shows.
    """
    environment = os.environ | {TRAINING_VARIABLE: str(os.getpid())}
    command = [sys.executable, "-m", "tiny_gpt", "watch", str(folder)]
    try:
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, creationflags=flags)
        else:
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as failure:
        error(f"--watch: the page could not be started ({failure}); tiny-gpt watch {quoted(str(folder))} starts it.")


def _detach_output() -> None:
    """Leave the terminal or pipe to the training: whoever reads from it must not wait for this process too."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _run_quietly_beside(training: int, stop: Callable[[], None]) -> None:
    """Leave the processor to the training, and end some time after it."""
    import psutil

    if hasattr(os, "nice"):
        os.nice(NICENESS)

    def wait() -> None:
        gone_at = None
        while gone_at is None or time.monotonic() - gone_at < LINGER_S:
            time.sleep(_POLL_S)
            if gone_at is None and not psutil.pid_exists(training):
                gone_at = time.monotonic()
        stop()

    threading.Thread(target=wait, name="end with the training", daemon=True).start()
