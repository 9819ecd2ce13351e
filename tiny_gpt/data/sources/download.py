"""A file from the web: goes on where it broke off, is checked, and has its name only once it is whole."""

import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tiny_gpt.data.progress import PreparationEvent, StageProgress
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import CACHE_REMEDY, sha256_of, sync_folder, sync_to_disk, write_error

CONNECT_TIMEOUT_S = 10.0
# Nothing heard for so long is a connection that has broken off.
READ_TIMEOUT_S = 30.0
# Pauses before the tries that follow one that brought nothing.
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_RETRY_AFTER_S = 60.0
PIECE_BYTES = 1 << 18
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Downloaded:
    """What came."""

    sha256: str
    content_type: str
    """As the server calls it; may be empty."""


class DownloadError(BadInputError):
    """A file cannot be had, or is not what it should be."""


def download(
    address: str, path: Path, sha256: str | None = None, n_bytes: int | None = None, name: str = ""
) -> Generator[PreparationEvent, None, Downloaded]:
    """Fetch `address` to `path`; yields how far it is.

    What has come stays in `path`.part, and a later call goes on from there. Raises DownloadError in one line, and
    OutOfResourcesError when the disk does not take it.
    """
    name = name or path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_file(path) as part:
            found = yield from _fetch(address, part, n_bytes, name)
            if sha256 is not None and found != sha256:
                _forget(part)
                raise DownloadError(
                    f"{name}: what {shown(address)} sent has the sha256 {found}, expected {sha256}; "
                    "it was not kept, try later"
                )
            about = _read_about(part)
            os.replace(part, path)
            _about(part).unlink(missing_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error, CACHE_REMEDY) from error
    return Downloaded(found, str(about.get("content_type", "")))


def _fetch(address: str, part: Path, n_bytes: int | None, name: str) -> Generator[PreparationEvent, None, str]:
    """Fill `part` up, over as many connections as it takes; returns its sha256."""
    import requests

    tries = 0
    while True:
        before = _size(part)
        pause = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
        try:
            yield from _fetch_once(address, part, n_bytes, name)
            return sha256_of(part)
        except _NotNow as error:
            reason, pause = str(error), error.pause_s if error.pause_s is not None else pause
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
            raise DownloadError(
                f"{shown(address)} is not an address that can be fetched; it begins with https://"
            ) from None
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"{shown(address)}: the connection is not secure ({_cause(error)})") from error
        except requests.exceptions.RequestException as error:
            reason = _cause(error)
        tries = 0 if _size(part) > before else tries + 1
        if tries >= len(PAUSES_S) or (reason.startswith("no network") and tries > 1):
            raise DownloadError(
                f"{name} cannot be downloaded from {shown(address)} ({reason}); "
                f"the same command goes on where it stopped{'' if _size(part) else ' once the network is there'}"
            )
        yield StageProgress(f"downloading {name}", _size(part), n_bytes)
        time.sleep(pause)


class _NotNow(Exception):
    """The server wants to be asked again later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def _fetch_once(address: str, part: Path, n_bytes: int | None, name: str) -> Generator[PreparationEvent, None, None]:
    import requests

    have, about = _size(part), _read_about(part)
    headers = {"Accept-Encoding": "identity"}
    if have and about.get("address") == address and about.get("validator"):
        headers |= {"Range": f"bytes={have}-", "If-Range": about["validator"]}
    else:
        have = 0
    with requests.get(address, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response:
        if response.status_code == 416:  # what is here does not fit what is there
            _forget(part)
            raise _NotNow("the server has another file now", 0.0)
        if response.status_code in TEMPORARY:
            after = response.headers.get("Retry-After", "")
            pause_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdecimal() else None
            raise _NotNow(f"the server answers {response.status_code}", pause_s)
        if not response.ok:
            raise DownloadError(f"{name}: {shown(address)} answers {response.status_code} {response.reason}")
        if response.status_code != 206:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else n_bytes
        if n_bytes is not None and total is not None and total != n_bytes:
            raise DownloadError(f"{name}: {shown(address)} offers {total:,} bytes, expected {n_bytes:,}")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        content = {
            "address": address,
            "validator": "" if validator.startswith("W/") else validator,
            "content_type": response.headers.get("Content-Type", ""),
        }
        _about(part).write_text(json.dumps(content), encoding="utf-8")
        with open(part, "ab" if have else "wb") as file:
            for piece in response.iter_content(PIECE_BYTES):
                have += len(piece)
                if total is not None and have > total:
                    _forget(part)
                    raise DownloadError(f"{name}: {shown(address)} sends more than the {total:,} bytes it announced")
                file.write(piece)
                yield StageProgress(f"downloading {name}", have, total)
            file.flush()
            sync_to_disk(file.fileno())
        if total is not None and have < total:
            raise _NotNow(f"the connection broke off after {have:,} of {total:,} bytes")


def shown(address: str) -> str:
    """The address without a password that stands in it."""
    parts = urlsplit(address)
    return address.replace(f"{parts.username}:{parts.password}@", "") if parts.password else address


@contextmanager
def _part_file(path: Path) -> Iterator[Path]:
    """The file to fetch into; while another process is at the common one, one of our own."""
    lock = path.with_name(path.name + ".lock")
    try:
        with open(lock, "xb") as file:
            file.write(str(os.getpid()).encode())
    except FileExistsError:
        owner = lock.read_text(encoding="utf-8")
        if owner.isdecimal() and psutil.pid_exists(int(owner)):
            own = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                yield own
            finally:
                _forget(own)
            return
        lock.write_text(str(os.getpid()), encoding="utf-8")  # that process was killed; what it fetched is there
    try:
        yield path.with_name(path.name + ".part")
    finally:
        lock.unlink(missing_ok=True)


def _about(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_about(part: Path) -> dict[str, Any]:
    try:
        values = json.loads(_about(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _about(part).unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """A network library's nested error in a few words."""
    text = str(error)
    for sign, words in {
        "resolve": "no network, or no such server",
        "Name or service": "no network, or no such server",
        "unreachable": "no network",
        "refused": "the server refuses connections",
        "timed out": "no answer in time",
        "Read timed out": "the connection has stalled",
        "IncompleteRead": "the connection broke off",
        "reset": "the connection broke off",
    }.items():
        if sign in text:
            return words
    return text.splitlines()[0][:120] if text else type(error).__name__
