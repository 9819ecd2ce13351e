"""Known texts by name: where they are, how large, whose; fetched once into the user's cache.

A file that a person puts into the cache's folder `downloads` by hand is taken when its hash is right.
"""

import hashlib
import json
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tiny_gpt.data.progress import Notice, PreparationEvent
from tiny_gpt.data.sources import python_docs
from tiny_gpt.data.sources.download import Downloaded, DownloadError, download
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, cache_folder, sha256_of


@dataclass(frozen=True)
class RemoteFile:
    """A file of a known text."""

    name: str
    addresses: tuple[str, ...]
    """Tried in this order."""
    n_bytes: int | None
    sha256: str | None
    """None where no public source states it: then that of the first download is kept."""
    train: str | None = "*"
    """Of an archive, the files to learn from; None: this file has none."""
    val: str | None = None
    """Of an archive, the files to validate on."""


@dataclass(frozen=True)
class DatasetInfo:
    """A text that has a name."""

    about: str
    licence: str
    text_size: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class File:
    """A file on this disk, and which members if it is an archive."""

    path: Path
    members: str = "*"


@dataclass(frozen=True)
class Fetched:
    """The files of a text; without `val` a part is held out."""

    train: tuple[File, ...]
    val: tuple[File, ...]


def downloads_folder() -> Path:
    """Where fetched files are kept."""
    return cache_folder() / "downloads"


def fetch(name: str) -> Generator[PreparationEvent, None, Fetched]:
    """The files of a known text, fetched if they are not here. Raises BadInputError."""
    if name == python_docs.NAME:
        return Fetched((File(_python_docs_file()),), ())
    train: list[File] = []
    val: list[File] = []
    for remote in DATASETS[name].files:
        path = downloads_folder() / remote.name
        yield from _have(name, remote, path)
        train += [File(path, remote.train)] if remote.train else []
        val += [File(path, remote.val)] if remote.val else []
    return Fetched(tuple(train), tuple(val))


def fetch_address(address: str) -> Generator[PreparationEvent, None, Path]:
    """What is at an address, kept so that later runs need no network."""
    place = urlsplit(address)
    folder = downloads_folder() / "web" / hashlib.sha256(address.encode()).hexdigest()[:16]
    name = unquote(place.path).rstrip("/").rsplit("/", 1)[-1].replace("\\", "_") or "page"
    for path in (folder / name, folder / f"{name}.html"):
        if path.is_file():
            return path
    path = folder / name
    downloaded = yield from download(address, path, name=name)
    if "html" in downloaded.content_type and path.suffix.lower() not in (".html", ".htm", ".xhtml"):
        path = path.rename(folder / f"{name}.html")
    return path


def describe() -> list[str]:
    """The lines of `tiny-gpt data list`."""
    lines = []
    for name, text in DATASETS.items():
        here = all((downloads_folder() / remote.name).is_file() for remote in text.files)
        sizes = [remote.n_bytes for remote in text.files]
        size = f"{sum(n for n in sizes if n) / 1e6:,.0f} MB to download" if all(sizes) else "to download"
        lines.append(f"{name:<16}{text.text_size:>7}  {text.licence:<26}{'on this machine' if here else size}")
        lines.append(f"    {text.about}")
        lines += [f"    {remote.addresses[0]}" for remote in text.files]
    return lines


def _have(name: str, remote: RemoteFile, path: Path) -> Generator[PreparationEvent, None, None]:
    """Make sure that `path` is the right file."""
    sidecar = path.with_name(path.name + ".json")
    if path.is_file():
        known = _read(sidecar)
        state = [path.stat().st_size, path.stat().st_mtime_ns]
        expected = remote.sha256 or known.get("sha256")
        if known.get("state") == state and expected == known.get("sha256"):
            return
        found = sha256_of(path)
        if expected is not None and found != expected:
            raise BadInputError(
                f"{path} is not {name}: its sha256 is {found}, expected {expected}; delete it to download it again"
            )
        if expected is None:
            yield Notice(f"{name}: taking {path} as it is, since no public source states its hash")
        _write(sidecar, {"sha256": found, "state": state})
        return
    failures = []
    for address in remote.addresses:
        try:
            downloaded: Downloaded = yield from download(address, path, remote.sha256, remote.n_bytes, name)
        except DownloadError as error:
            failures.append(str(error))
            continue
        _write(sidecar, {"sha256": downloaded.sha256, "state": [path.stat().st_size, path.stat().st_mtime_ns]})
        return
    raise BadInputError(f"{failures[-1]}; without a network there are {', '.join(_here())} and files of your own")


def _here() -> list[str]:
    """The known texts that need no network."""
    return [name for name, text in DATASETS.items() if all((downloads_folder() / f.name).is_file() for f in text.files)]


def _python_docs_file() -> Path:
    """The documents as JSON lines, written once for each Python."""
    version = "{}.{}.{}".format(*sys.version_info) + "-" + hashlib.sha256(sys.version.encode()).hexdigest()[:8]
    path = downloads_folder() / f"{python_docs.NAME}-{version}.jsonl"
    if not path.is_file():
        documents = python_docs.read_python_docs()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines(json.dumps({"text": document}).encode() + b"\n" for document in documents)
    return path


def _read(sidecar: Path) -> dict:
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(sidecar: Path, values: dict) -> None:
    with atomic_write(sidecar) as file:
        file.write(json.dumps(values).encode())


DATASETS: dict[str, DatasetInfo] = {
    python_docs.NAME: DatasetInfo(
        "the manual and the docstrings of your own Python; needs no network", "PSF", "2 MB", ()
    ),
    "tinyshakespeare": DatasetInfo(
        "plays of Shakespeare, the smallest common benchmark",
        "public domain",
        "1.1 MB",
        (
            RemoteFile(
                "tinyshakespeare.txt",
                ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
                1_115_394,
                # stated in many pinned data sets, such as Hugging Face's tiny_shakespeare
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    # sizes and hashes: the download_checksums in Hugging Face's first data card of wikitext; s3.amazonaws.com, the
    # first address, is gone
    "wikitext-2": DatasetInfo(
        "good articles of Wikipedia, a small selection, with its own validation text",
        "CC BY-SA 3.0",
        "11 MB",
        (
            RemoteFile(
                "wikitext-2-raw-v1.zip",
                (
                    "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
                    "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
                ),
                4_721_645,
                "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
                train="*/wiki.train.raw",
                val="*/wiki.valid.raw",
            ),
        ),
    ),
    "wikitext-103": DatasetInfo(
        "good articles of Wikipedia, with its own validation text: the guide's text",
        "CC BY-SA 3.0",
        "540 MB",
        (
            RemoteFile(
                "wikitext-103-raw-v1.zip",
                (
                    "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
                    "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/main/wikitext-103-raw-v1.zip",
                ),
                191_984_949,
                "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
                train="*/wiki.train.raw",
                val="*/wiki.valid.raw",
            ),
        ),
    ),
    "tinystories": DatasetInfo(
        "short stories for small children, written by GPT-4 (Eldan and Li, 2023)",
        "CDLA-Sharing-1.0",
        "2.2 GB",
        (
            RemoteFile(
                "TinyStoriesV2-GPT4-train.txt",
                ("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt",),
                None,
                None,
            ),
            RemoteFile(
                "TinyStoriesV2-GPT4-valid.txt",
                ("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt",),
                None,
                None,
                train=None,
                val="*",
            ),
        ),
    ),
    # sizes and hashes of both: mattmahoney.net/dc/textdata.html and the many programs that pin them
    "enwik8": DatasetInfo(
        "the first 100 MB of Wikipedia's XML, the benchmark of compressors",
        "CC BY-SA 3.0",
        "100 MB",
        (
            RemoteFile(
                "enwik8.zip",
                ("https://mattmahoney.net/dc/enwik8.zip",),
                36_445_475,
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            ),
        ),
    ),
    "text8": DatasetInfo(
        "the same cleaned to 26 letters and spaces",
        "CC BY-SA 3.0",
        "100 MB",
        (
            RemoteFile(
                "text8.zip",
                ("https://mattmahoney.net/dc/text8.zip",),
                None,
                "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            ),
        ),
    ),
}
