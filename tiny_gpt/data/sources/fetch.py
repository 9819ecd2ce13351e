"""Datasets and URLs to files in the cache: downloaded once, verified, then used without a network.

A file that the user puts into the folder `downloads` of the cache is used if its hash is right.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tiny_gpt.data.progress import Notice, Preparation
from tiny_gpt.data.sources import python_docs
from tiny_gpt.data.sources.catalog import DATASETS, RemoteFile
from tiny_gpt.data.sources.download import DownloadError, download
from tiny_gpt.data.sources.files import SourceFile
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, cache_folder, sha256_of

# How a server states the encoding of a text.
CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
# The datasets that are read from what is installed.
GENERATED: dict[str, Callable[[], Iterable[str]]] = {
    python_docs.NAME: lambda: python_docs.read_python_docs(),
    python_docs.PACKAGE_DOCS: lambda: python_docs.read_package_docs(),
    python_docs.PACKAGE_SOURCE: lambda: python_docs.read_package_source(),
}


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset on this disk. Without `val`, a part of `train` is held out."""

    train: list[SourceFile]
    val: list[SourceFile]


def downloads_folder() -> Path:
    """Where downloaded files are kept."""
    return cache_folder() / "downloads"


def fetch_dataset(name: str) -> Preparation[DatasetFiles]:
    """The files of a built-in dataset, downloaded on first use. Raises BadInputError."""
    if not DATASETS[name].files:
        return DatasetFiles([SourceFile((yield from _generated_file(name)))], [])
    train: list[SourceFile] = []
    val: list[SourceFile] = []
    for remote in DATASETS[name].files:
        path = downloads_folder() / remote.name
        if path.is_file():
            yield from _verify(name, remote, path)
        else:
            yield from _download(name, remote, path)
        train += [SourceFile(path, remote.train)] if remote.train else []
        val += [SourceFile(path, remote.val)] if remote.val else []
    return DatasetFiles(train, val)


def is_downloaded(name: str) -> bool:
    """Whether a built-in dataset can be used without a network."""
    return all((downloads_folder() / remote.name).is_file() for remote in DATASETS[name].files)


def fetch_url(url: str) -> Preparation[SourceFile]:
    """Download what is at `url`, or find the earlier download. Raises DownloadError and OutOfResourcesError."""
    try:
        address_path = urlsplit(url).path
    except ValueError as error:
        raise DownloadError(f"{url} is not a valid URL ({error})", code="url-malformed") from error
    # A folder per URL, so that files of the same name do not collide and keep the name that messages show.
    folder = downloads_folder() / "web" / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = unquote(address_path).rstrip("/").rsplit("/", 1)[-1].replace("\\", "_") or "page"
    for path in (folder / name, folder / f"{name}.html"):
        if path.is_file():
            return SourceFile(path, declared_encoding=str(_read_record(path).get("charset", "")))
    path = folder / name
    downloaded = yield from download(url, path, name=name)
    if "html" in downloaded.content_type and path.suffix.lower() not in HTML_SUFFIXES:
        path = path.rename(folder / f"{name}.html")  # the suffix chooses the reader
    charset = CHARSET.search(downloaded.content_type)
    if charset:
        with atomic_write(_record_path(path)) as file:
            file.write(json.dumps({"charset": charset[1]}).encode())
    return SourceFile(path, declared_encoding=charset[1] if charset else "")


def _verify(dataset: str, remote: RemoteFile, path: Path) -> Preparation[None]:
    """Check a file that is there against the stated hash, or against that of its first download.

    A file is hashed again only after its size or modification time has changed. Raises BadInputError.
    """
    recorded = _read_record(path)
    state = _state(path)
    expected = remote.sha256 or recorded.get("sha256")
    if recorded.get("state") == state and expected == recorded.get("sha256"):
        return
    sha256 = sha256_of(path)
    if expected is not None and sha256 != expected:
        raise BadInputError(
            f"{path} is not {dataset}: its sha256 is {sha256}, expected {expected}; delete it to download it again",
            code="dataset-file-changed",
        )
    if expected is None:
        yield Notice(f"{dataset}: using {path} unverified, since no public source states its hash")
    _write_record(path, sha256, state)


def _download(dataset: str, remote: RemoteFile, path: Path) -> Preparation[None]:
    """Download a file from the first URL that has it. Raises BadInputError."""
    last_failure = ""
    for url in remote.urls:
        try:
            downloaded = yield from download(url, path, remote.sha256, remote.n_bytes, dataset)
        except DownloadError as error:
            last_failure = str(error)
            continue
        _write_record(path, downloaded.sha256, _state(path))
        return
    available = ", ".join(name for name in DATASETS if is_downloaded(name))
    raise BadInputError(
        f"{last_failure}; available without a network: {available} and files of your own", code="dataset-unavailable"
    )


def _generated_file(name: str) -> Preparation[Path]:
    """The documents of a dataset in GENERATED as JSON lines, written once for the versions that they are of."""
    is_python = name == python_docs.NAME
    packages = [] if is_python else [f"{each} {_version(each)}" for each in python_docs.installed_packages()]
    digest = hashlib.sha256(" ".join([sys.version, *packages]).encode()).hexdigest()[:8]
    path = downloads_folder() / f"{name}-{{}}.{{}}.{{}}-{digest}.jsonl".format(*sys.version_info)
    if not path.is_file():
        if name == python_docs.PACKAGE_DOCS:
            yield Notice("collecting the documentation of installed packages, once; takes about half a minute")
        documents = GENERATED[name]()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines(json.dumps({"text": document}).encode() + b"\n" for document in documents)
    return path


def _version(package: str) -> str:
    """Of an installed package; "" for a folder of that name that was never installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _record_path(path: Path) -> Path:
    """The hash of a download is recorded in a file beside it."""
    return path.with_name(path.name + ".json")


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, sha256: str, state: list[int]) -> None:
    with atomic_write(_record_path(path)) as file:
        file.write(json.dumps({"sha256": sha256, "state": state}).encode())
