"""Who may use a server: which names it answers to, which pages may call it, which key a request carries.

A server on the loopback address is still reached by every web page that its user opens. Three checks keep them out:

- Host. In DNS rebinding a page's own domain name is made to point to 127.0.0.1, and the browser takes our server for
  the page's. The Host header then has that domain, and we answer only to addresses and to this machine's names.
- Origin. Browsers name the page that a request comes from; it must be our own, or one that the user allowed.
- Sec-Fetch-Site. Requests for scripts and images carry no Origin, but this header says that another site made them.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers

from tiny_gpt.config.web import API_KEY_VARIABLE, SHORTEST_API_KEY, WebConfig, is_api_key
from tiny_gpt.errors import UsageError
from tiny_gpt.web.errors import RefusedError

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]*)?", re.ASCII)


@dataclass(frozen=True)
class Access:
    """The rules of one server."""

    names: frozenset[str]
    """Host names that it answers to, besides addresses."""
    origins: frozenset[str] = frozenset()
    """Of other pages that may call it."""
    api_key: str = ""
    """"" means that everyone who reaches it may use it."""
    loopback_only: bool = True
    """Whether only loopback addresses are its own."""

    def check_page(self, headers: Headers) -> None:
        """Raise RefusedError if a page that is not allowed made the request, or if it is for another server."""
        host = headers.get("host", "")
        name = _name_of(host)
        if not self._is_ours(name):
            raise RefusedError(
                403,
                f"this server does not answer to the name {name[:100]!r}; use its address, or allow the name with "
                f"--allow-origin http://NAME",
                "foreign-host",
            )
        origin = headers.get("origin")
        if origin in self.origins:
            return
        if origin is not None:
            # A page of this server: the same host and port.
            if origin.partition("://")[2].lower() != host.lower():
                raise RefusedError(
                    403,
                    f"pages of {origin[:100]} may not use this server; allow them with --allow-origin",
                    "foreign-origin",
                )
        elif headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            headers.get("sec-fetch-mode") != "navigate"
        ):
            raise RefusedError(403, "another site's page may not load parts of this server", "foreign-page")

    def check_key(self, headers: Headers) -> None:
        """Raise RefusedError unless the request carries the key: as a bearer token, or as the cookie of a page."""
        if not self.api_key:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _is_same(given.strip(), self.api_key):
            return
        if _is_same(_cookie(headers, self.cookie_name), self.cookie_value):
            return
        raise RefusedError(
            401,
            "wrong API key" if given else "this server needs its API key, in a header: Authorization: Bearer KEY",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def is_key(self, given: str) -> bool:
        """Whether `given` is the key of a server that has one."""
        return bool(self.api_key) and _is_same(given, self.api_key)

    @property
    def cookie_name(self) -> str:
        """Different for different keys: all ports of a host share their cookies, and with them all its servers."""
        return f"tiny_gpt_{self.cookie_value[:8]}"

    @property
    def cookie_value(self) -> str:
        """What a browser keeps in place of the key."""
        return hashlib.sha256(f"tiny_gpt {self.api_key}".encode()).hexdigest()

    def _is_ours(self, name: str) -> bool:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names or name.endswith(".localhost")
        return address.is_loopback or not self.loopback_only


def access_for(config: WebConfig, environment: Mapping[str, str] = os.environ) -> Access:
    """The rules that `config` asks for. Raises UsageError if other machines could use the server without a key."""
    key = config.api_key or environment.get(API_KEY_VARIABLE, "")
    if key and not is_api_key(key):
        raise UsageError(
            f"{API_KEY_VARIABLE}: must have at least {SHORTEST_API_KEY} printable ASCII characters and no spaces",
            code="api-key-variable-unusable",
        )
    loopback_only = is_loopback(config.host)
    if not loopback_only and not key:
        raise UsageError(
            f"--host {config.host} can be reached from other machines: add --api-key KEY (or set {API_KEY_VARIABLE}), "
            f"or use 127.0.0.1",
            code="no-api-key",
        )
    names = {
        "localhost",
        config.host.lower(),
        *(_name_of(origin.partition("://")[2]) for origin in config.allow_origin),
    }
    if not loopback_only:
        own = socket.gethostname().lower()
        names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
    return Access(frozenset(names), frozenset(config.allow_origin), key, loopback_only)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets: "[::1]:80" -> "::1"; "" if it is malformed."""
    found = _HOST.fullmatch(host.lower())
    return found[1].strip("[]").removesuffix(".") if found else ""


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_same(given: str, expected: str) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
