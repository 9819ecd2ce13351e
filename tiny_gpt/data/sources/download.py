"""Download a file: resumed after an interruption, verified, and under its name only when it is complete.

Written here because no dependency does all of it for any URL: pooch does not resume a partial file, which for a 2 GB
dataset on a home connection is what matters, and huggingface_hub resumes only files of its hub.

While a download is incomplete there are beside `path`: `path`.part with the bytes so far, `path`.part.json with what
it takes to resume it safely, and `path`.lock with the id of the downloading process.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.sources.files import file_size
from tiny_gpt.errors import BadInputError, OutOfResourcesError, first_line
from tiny_gpt.files import CACHE_REMEDY, quoted_python, sha256_of, sync_folder, sync_to_disk, write_error

CONNECT_TIMEOUT_S = 10.0
# A connection that is silent for this long is considered lost.
READ_TIMEOUT_S = 30.0
# Pauses between attempts that bring no new bytes; after as many, give up.
RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_RETRY_AFTER_S = 60.0
PIECE_BYTES = 1 << 18
# A server that sends less than MIN_BYTES_PER_S over SLOW_WINDOW_S is asked again; after SLOW_WINDOWS of them, give up.
# The slowest line of today, 2G, has ten times as much.
MIN_BYTES_PER_S, SLOW_WINDOW_S, SLOW_WINDOWS = 1000, 60.0, 3
# A body whose length the server does not announce may never end.
MAX_UNANNOUNCED_BYTES = 10_000_000_000
# Left free on the disk by a download of announced length.
SPARE_DISK_BYTES = 500_000_000
# HTTP statuses that are worth another attempt: timeout, too early, too many requests, server errors.
TEMPORARY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Downloaded:
    """A complete download."""

    sha256: str
    content_type: str
    """The server's Content-Type; may be empty."""


class DownloadError(BadInputError):
    """A file is unavailable, or not what it should be."""


class _TooSlowError(Exception):
    """A server sends less than MIN_BYTES_PER_S."""


class _TemporaryError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        """`pause_s`: when the server wants to be asked again; None if it does not say."""
        super().__init__(reason)
        self.pause_s = pause_s


def download(
    url: str, path: Path, sha256: str | None = None, n_bytes: int | None = None, name: str = ""
) -> Preparation[Downloaded]:
    """Download `url` to `path`, and verify it where `sha256` and `n_bytes` are given.

    An interrupted download is resumed by the next call. `name` is what messages call the file. Raises DownloadError,
    and OutOfResourcesError if the file cannot be written.
    """
    name = name or path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_file(path) as part:
            yield from _fetch(url, part, n_bytes, name)
            found = sha256_of(part)
            if sha256 is not None and found != sha256:
                _discard(part)
                raise DownloadError(
                    f"{name}: the file from {without_password(url)} has the sha256 {found}, expected {sha256}; "
                    "it was deleted, try again later",
                    code="download-hash-differs",
                )
            content_type = str(_read_response_info(part).get("content_type", ""))
            os.replace(part, path)
            _response_info_path(part).unlink(missing_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error, CACHE_REMEDY) from error
    return Downloaded(found, content_type)


def _fetch(url: str, part: Path, n_bytes: int | None, name: str) -> Preparation[None]:
    """Complete `part`, over as many connections as necessary. Raises DownloadError when they bring nothing new."""
    import requests

    n_failures = n_slow = 0  # failures in a row, without a new byte; windows in which the server was too slow
    while True:
        size_before = file_size(part)
        pause_s = RETRY_PAUSES_S[min(n_failures, len(RETRY_PAUSES_S) - 1)]
        try:
            yield from _fetch_once(url, part, n_bytes, name)
            return
        except _TemporaryError as error:
            reason, pause_s = str(error), error.pause_s if error.pause_s is not None else pause_s
        except _TooSlowError:
            reason, n_slow = f"the server sends less than {MIN_BYTES_PER_S:,} bytes a second", n_slow + 1
        except requests.exceptions.InvalidProxyURL as error:
            raise DownloadError(
                f"the proxy address set on this machine is invalid ({first_line(error)}); set it "
                "anew or unset it: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY",
                code="proxy-invalid",
            ) from error
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            if "SOCKS" in str(error):
                raise DownloadError(
                    "this machine's proxy uses SOCKS, which requires another package: "
                    f"{quoted_python()} -m pip install pysocks, or unset ALL_PROXY and HTTPS_PROXY",
                    code="proxy-needs-socks",
                ) from error
            raise DownloadError(
                f"{without_password(url)} is not a valid URL; it begins with https://", code="url-invalid"
            ) from None
        except requests.exceptions.SSLError as error:
            raise DownloadError(
                f"{without_password(url)}: the connection is not secure ({_short_reason(error)})",
                code="download-not-secure",
            ) from error
        except requests.exceptions.RequestException as error:
            reason = _short_reason(error)
        n_failures = 0 if file_size(part) > size_before else n_failures + 1
        if (
            n_slow >= SLOW_WINDOWS
            or n_failures >= len(RETRY_PAUSES_S)
            or (reason.startswith("no network") and n_failures > 1)
        ):
            remedy = "the same command resumes it" if file_size(part) else "try again when the network is back"
            raise DownloadError(
                f"{name} cannot be downloaded from {without_password(url)} ({reason}); {remedy}",
                code="download-failed",
            )
        yield StageProgress(f"downloading {name}", file_size(part), n_bytes)
        time.sleep(pause_s)


def _fetch_once(url: str, part: Path, n_bytes: int | None, name: str) -> Preparation[None]:
    """One connection: append to `part` until it is complete. Raises _TemporaryError if the connection ends earlier."""
    import requests

    headers = {"Accept-Encoding": "identity"} | _resume_headers(url, part)
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response:
        _require_content(response, part, url, name)
        # 206: the server sends the rest. 200: it sends all of a file that has changed, or knows no ranges.
        n_received = file_size(part) if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = n_received + int(length) if length.isdecimal() else n_bytes
        if n_bytes is not None and total is not None and total != n_bytes:
            raise DownloadError(
                f"{name}: {without_password(url)} offers {total:,} bytes, expected {n_bytes:,}",
                code="download-size-differs",
            )
        _require_space(part, total, n_received, name)
        _write_response_info(part, url, response.headers)
        with open(part, "ab" if n_received else "wb") as file:
            for piece in _pieces(response):
                n_received += len(piece)
                if total is None and n_received > MAX_UNANNOUNCED_BYTES:
                    _discard(part)
                    raise DownloadError(
                        f"{name}: {without_password(url)} announces no length and sends more than "
                        f"{MAX_UNANNOUNCED_BYTES:,} bytes; download it yourself and name the file",
                        code="download-endless",
                    )
                if total is not None and n_received > total:
                    _discard(part)
                    raise DownloadError(
                        f"{name}: {without_password(url)} sends more than the {total:,} bytes it announced",
                        code="download-too-long",
                    )
                file.write(piece)
                yield StageProgress(f"downloading {name}", n_received, total)
            file.flush()
            sync_to_disk(file.fileno())
        if total is not None and n_received < total:
            raise _TemporaryError(f"the connection broke after {n_received:,} of {total:,} bytes")


def _pieces(response: Any) -> Iterator[bytes]:
    """What the server sends, as it comes. Raises _TooSlowError, and what requests raises for a broken connection."""
    import requests
    import urllib3

    window_start, n_window = time.monotonic(), 0
    while True:
        try:
            # Not iter_content: that waits until a piece is full, which at a byte a second takes days.
            piece = response.raw.read1(PIECE_BYTES, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise requests.exceptions.ConnectionError(error) from error
        if not piece:
            return
        yield piece
        n_window += len(piece)
        elapsed_s = time.monotonic() - window_start
        if elapsed_s > SLOW_WINDOW_S:
            if n_window < MIN_BYTES_PER_S * elapsed_s:
                raise _TooSlowError
            window_start, n_window = time.monotonic(), 0


def _require_space(part: Path, total: int | None, n_received: int, name: str) -> None:
    """Raise OutOfResourcesError before a download that the disk has no room for."""
    n_free = shutil.disk_usage(part.parent).free
    if total is not None and total - n_received > n_free - SPARE_DISK_BYTES and total - n_received > SPARE_DISK_BYTES:
        raise OutOfResourcesError(
            f"{name} has {total:,} bytes, and {n_free:,} are free for it in {part.parent}; {CACHE_REMEDY}",
            code="no-space-for-download",
        )


def _resume_headers(url: str, part: Path) -> dict[str, str]:
    """Ask for the bytes after those of `part`, unless the file at `url` has changed (If-Range, RFC 9110, 13.1.5)."""
    info = _read_response_info(part)
    if file_size(part) and info.get("address") == url and info.get("validator"):
        return {"Range": f"bytes={file_size(part)}-", "If-Range": info["validator"]}
    return {}


def _require_content(response: Any, part: Path, url: str, name: str) -> None:
    """Raise _TemporaryError or DownloadError unless the server sends the file."""
    if response.status_code == 416:  # there are no bytes after those of `part`: it belongs to another file
        _discard(part)
        raise _TemporaryError("the server has another file now", 0.0)
    if response.status_code in TEMPORARY_STATUSES:
        retry_after = response.headers.get("Retry-After", "")
        pause_s = min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after.isdecimal() else None
        raise _TemporaryError(f"the server answers {response.status_code}", pause_s)
    if not response.ok:
        raise DownloadError(
            f"{name}: {without_password(url)} answers {response.status_code} {response.reason}",
            code="download-refused",
        )


def without_password(url: str) -> str:
    """The URL without user name and password, if it has both."""
    parts = urlsplit(url)
    return url.replace(f"{parts.username}:{parts.password}@", "") if parts.password else url


@contextmanager
def _part_file(path: Path) -> Iterator[Path]:
    """The file to download into: `path`.part, or one of our own while another process holds the lock."""
    lock = path.with_name(path.name + ".lock")
    try:
        with open(lock, "xb") as file:
            file.write(str(os.getpid()).encode())
    except FileExistsError:
        owner = lock.read_text(encoding="utf-8")
        if owner.isdecimal() and psutil.pid_exists(int(owner)):
            own_part = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                yield own_part
            finally:
                _discard(own_part)
            return
        lock.write_text(str(os.getpid()), encoding="utf-8")  # the owner was killed; its part is resumed
    try:
        yield path.with_name(path.name + ".part")
    finally:
        lock.unlink(missing_ok=True)


def _response_info_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_response_info(part: Path) -> dict[str, Any]:
    """What `_write_response_info` wrote; empty if there is nothing valid."""
    try:
        info = json.loads(_response_info_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _write_response_info(part: Path, url: str, headers: Any) -> None:
    """Record where the bytes of `part` come from, and the server's mark of that version of the file."""
    validator = headers.get("ETag") or headers.get("Last-Modified") or ""
    info = {
        "address": url,
        "validator": "" if validator.startswith("W/") else validator,  # weak: equal marks may mean different bytes
        "content_type": headers.get("Content-Type", ""),
    }
    _response_info_path(part).write_text(json.dumps(info), encoding="utf-8")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _response_info_path(part).unlink(missing_ok=True)


def _short_reason(error: BaseException) -> str:
    """The nested error of a network library in a few words."""
    text = str(error)
    for sign, reason in {
        "resolve": "no network, or no such server",
        "Name or service": "no network, or no such server",
        "unreachable": "no network",
        "refused": "the server refuses connections",
        "timed out": "no answer in time",
        "Read timed out": "the connection stalled",
        "IncompleteRead": "the connection broke",
        "reset": "the connection broke",
    }.items():
        if sign in text:
            return reason
    return first_line(error)[:120]
