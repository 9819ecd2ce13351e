"""Where a web server listens and who may use it."""

import re
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.config.checks import OPTIONAL, require

API_KEY_VARIABLE = "TINY_GPT_API_KEY"
SHORTEST_API_KEY = 8
# Browsers name a page's origin so; other programs' windows have schemes of their own (app://obsidian.md).
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")


@dataclass(frozen=True)
class WebConfig:
    """Where the server listens and who may use it."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is open to this machine only; 0.0.0.0, all networks, needs --api-key."""
    port: Annotated[int, arg(metavar="INT"), OPTIONAL] = 0
    """Port to listen on. Without it, the first free one from 8000 (serve) or 8770 (play) on."""
    api_key: Annotated[str, arg(metavar="KEY"), OPTIONAL] = ""
    """Key that every request must carry. Without it, that of the environment variable TINY_GPT_API_KEY, if set."""
    allow_origin: Annotated[tuple[str, ...], arg(metavar="ORIGIN ..."), OPTIONAL] = ()
    """Web pages that may use the server from a browser, such as https://example.org. Also allows that host's name."""

    def __post_init__(self) -> None:
        require(bool(self.host), "--host: an empty address; 127.0.0.1 is this machine, 0.0.0.0 all networks", "no-host")
        require(0 <= self.port < 65536, f"--port {self.port}: must be between 1 and 65535", "port-out-of-range")
        require(
            not self.api_key or is_api_key(self.api_key),
            f"--api-key: must have at least {SHORTEST_API_KEY} printable ASCII characters and no spaces",
            "api-key-unusable",
        )
        for origin in self.allow_origin:
            require(
                _ORIGIN.fullmatch(origin) is not None,
                f"--allow-origin {origin}: give scheme and host of one site without a path, such as https://example.org",
                "origin-unusable",
            )


def is_api_key(key: str) -> bool:
    """Whether a header can carry `key` and guessing it would take long."""
    return len(key) >= SHORTEST_API_KEY and all("!" <= character <= "~" for character in key)
