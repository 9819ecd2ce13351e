"""Posts a message to an address: a chat, a phone, or any program that takes JSON.

Which form the message has is seen from the address:

| address                                 | form                                     |
|-----------------------------------------|------------------------------------------|
| https://ntfy.sh/TOPIC                   | ntfy: a notification on a phone          |
| https://hooks.slack.com/...             | Slack's incoming webhook                 |
| https://discord.com/api/webhooks/...    | Discord's webhook                        |
| any other                               | a JSON object with the facts and a text  |
| ntfy+https://, slack+https://, ...      | that form, on a server of one's own      |

An address is a secret: whoever knows it can post. So only its host is ever printed.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

CONNECT_S, READ_S = 5.0, 10.0
# Waits between attempts, and the time for all of them: the last one may take CONNECT_S + READ_S.
RETRY_S = (1.0, 4.0, 15.0)
DEADLINE_S = 60.0
MAX_DISCORD_CHARACTERS = 2000


@dataclass(frozen=True)
class Message:
    """What happened to a run."""

    title: str
    text: str
    is_alarm: bool
    """Whether somebody should look."""
    facts: dict[str, Any]
    """For programs, in plain JSON types."""


def _webhook(message: Message, url: str) -> tuple[str, dict[str, Any]]:
    return url, {"title": message.title, "text": message.text} | message.facts


def _ntfy(message: Message, url: str) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    base, _, topic = parts.path.rstrip("/").rpartition("/")
    body: dict[str, Any] = {"topic": topic, "title": message.title, "message": message.text}
    body |= {"tags": ["warning"], "priority": 4} if message.is_alarm else {"tags": ["white_check_mark"]}
    return urlunsplit(parts._replace(path=f"{base}/")), body


def _slack(message: Message, url: str) -> tuple[str, dict[str, Any]]:
    text = f"{message.title}\n{message.text}"
    return url, {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(message: Message, url: str) -> tuple[str, dict[str, Any]]:
    text = f"{message.title}\n{message.text}"[:MAX_DISCORD_CHARACTERS]
    return url, {"content": text, "allowed_mentions": {"parse": []}}


# From a message and an address to the address to post to and the JSON to post.
FORMS: dict[str, Callable[[Message, str], tuple[str, dict[str, Any]]]] = {
    "webhook": _webhook,
    "ntfy": _ntfy,
    "slack": _slack,
    "discord": _discord,
}


def host_of(address: str) -> str:
    """What may be printed of an address."""
    return _split(address)[1].hostname or "?"


def fault_of(address: str) -> str:
    """Why nothing can be posted to `address`; "" if it can be tried."""
    try:
        form, parts = _split(address)
        _ = parts.port
    except ValueError:
        return "is not an address"
    if form not in FORMS:
        return f"has the form {form!r}; known are {', '.join(FORMS)}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is not an address that begins with https://"
    if form == "ntfy" and not parts.path.strip("/"):
        return "lacks the topic, as in https://ntfy.sh/my_topic"
    return ""


def post_to_all(addresses: Sequence[str], message: Message, deadline_s: float = DEADLINE_S) -> list[str]:
    """Post to all addresses at once; returns a line per address that says how it went. Takes `deadline_s` at most."""
    results = [f"could not notify {host_of(address)}: it did not answer in {deadline_s:.0f} s" for address in addresses]

    def post_one(index: int) -> None:
        results[index] = _post(addresses[index], message, time.monotonic() + deadline_s)

    # Daemons: a server that sends a byte from time to time must not keep this process alive.
    threads = [threading.Thread(target=post_one, args=(i,), daemon=True) for i in range(len(addresses))]
    end = time.monotonic() + deadline_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(results)


def _post(address: str, message: Message, end: float) -> str:
    import requests  # takes 0.1 s to import

    form, parts = _split(address)
    url, body = FORMS[form](message, urlunsplit(parts))
    problem = ""
    for wait_s in (0.0, *RETRY_S):
        if time.monotonic() + wait_s >= end:
            break
        time.sleep(wait_s * random.uniform(0.75, 1.25) if wait_s else 0.0)
        try:
            # Not the exception's own text: it has the address.
            with requests.post(
                url, json=body, timeout=(CONNECT_S, READ_S), allow_redirects=False, stream=True
            ) as response:
                status = response.status_code
        except requests.Timeout:
            problem = "it did not answer in time"
        except requests.exceptions.SSLError:
            problem = "its certificate is not trusted"
        except requests.ConnectionError:
            problem = "no connection"
        except requests.RequestException as failure:
            problem = type(failure).__name__
        else:
            if status < 300:
                return f"notified {host_of(address)}"
            problem = f"it answered {status}"
            if status < 500 and status != 429:  # it would answer the same again
                break
    return f"could not notify {host_of(address)}: {problem}"


def _split(address: str) -> tuple[str, SplitResult]:
    """The form and the URL of an address; raises ValueError."""
    scheme, separator, rest = address.strip().partition("://")
    form, plus, transport = scheme.lower().rpartition("+")
    parts = urlsplit(f"{transport}{separator}{rest}")
    if plus:
        return form, parts
    host = (parts.hostname or "").lower()
    if host == "ntfy.sh":
        return "ntfy", parts
    if host == "hooks.slack.com":
        return "slack", parts
    if host in ("discord.com", "discordapp.com") and parts.path.startswith("/api/webhooks/"):
        return "discord", parts
    return "webhook", parts
