"""Token ids on disk, memory-mapped: a folder with train.bin, val.bin and, written last, manifest.json.

The folder's name is a hash of the sources and of how they become tokens, so a later run of the same text finds it
without reading the text, and a changed text gets a new one. A store is built beside and renamed: it is whole or it
is not there. Encoding takes all processors, one chunk of text each at a time.
"""

import hashlib
import json
import mmap
import os
import platform
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tiny_gpt.data.encoding import encode_chunks
from tiny_gpt.data.progress import PreparationEvent, StageProgress
from tiny_gpt.data.text_file import TextSplit
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import CACHE_REMEDY, sha256_of_json, sync_folder, sync_to_disk, write_error
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

FORMAT_VERSION = 2
# Hashed apart, so that all processors can check a large store.
HASHED_BYTES = 64 << 20
# What reading a store that is not there, or damaged, raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, BadInputError)


@dataclass(frozen=True)
class Tokens:
    """The ids of one split, and the UTF-8 bytes that they stand for."""

    ids: NDArray[np.unsignedinteger]
    n_bytes: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenStore:
    """Everything about a text that training needs."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    about: dict[str, Any]
    """What was learned about the text while it was read; plain JSON types."""
    sha256: str
    """Of the ids of both splits."""


@dataclass(frozen=True)
class _Part:
    n_tokens: int
    n_bytes: int
    sha256: list[str]
    """Of each HASHED_BYTES of the file."""


def store_folder(parent: Path, *identity: Any) -> Path:
    """Where the store of this text under this tokenizer is or would be; `identity` is JSON."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, *identity]).encode())
    return parent / digest.hexdigest()[:32]


@contextmanager
def temporary_build_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to build in; gone afterwards unless it was given its name.

    What a killed build has left there is removed first. Raises OutOfResourcesError.
    """
    mine = f".{platform.node()}-{{}}-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(mine.format("*") + "*"):
            process = left.name.removeprefix(mine.split("{")[0]).split("-")[0]
            if process.isdecimal() and not psutil.pid_exists(int(process)):
                shutil.rmtree(left, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=mine.format(os.getpid()), dir=folder.parent))
    except OSError as error:
        raise write_error(folder, error, CACHE_REMEDY) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def open_store(folder: Path) -> TokenStore | None:
    """The store in `folder`, every byte checked; None if there is none or it is damaged."""
    try:
        manifest = _read_manifest(folder)
        dtype = np.dtype(manifest["dtype"])
        train, val = (_open_part(folder / f"{name}.bin", dtype, _Part(**manifest[name])) for name in ("train", "val"))
        sha256 = sha256_of_json([manifest[name]["sha256"] for name in ("train", "val")])
        return TokenStore(tokenizer_from_dict(manifest["tokenizer"]), train, val, manifest["about"], sha256)
    except UNREADABLE:
        return None


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of the store in `folder`, its tokens left alone; None if there is none or it is damaged."""
    try:
        return tokenizer_from_dict(_read_manifest(folder)["tokenizer"])
    except UNREADABLE:
        return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What stands in the manifest; raises one of UNREADABLE."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.pop("sha256") != sha256_of_json(manifest):
        raise ValueError(f"the manifest in {folder} is damaged")
    return manifest


def build_store(
    place: Path, folder: Path, train: TextSplit, val: TextSplit, tokenizer: Tokenizer, about: dict[str, Any]
) -> Generator[PreparationEvent, None, None]:
    """Encode both parts in `place`, then give it the name `folder`. Raises OutOfResourcesError."""
    dtype = np.dtype(np.min_scalar_type(tokenizer.vocab_size - 1))
    total = train.n_bytes + val.n_bytes
    try:
        parts = {}
        done = 0
        for name, part in (("train", train), ("val", val)):
            for written in _write_part(place / f"{name}.bin", encode_chunks(part, tokenizer, dtype)):
                yield StageProgress("encoding", done + written.n_bytes, total)
            done += written.n_bytes
            parts[name] = asdict(written)
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "tokenizer": tokenizer.to_dict(),
            "about": about,
            **parts,
        }
        manifest["sha256"] = sha256_of_json(manifest)
        for text in (train.path, val.path):
            text.unlink(missing_ok=True)
        (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        _give_name(place, folder)
    except OSError as error:
        raise write_error(folder, error, CACHE_REMEDY) from error


def encode_to_file(path: Path, part: TextSplit, tokenizer: Tokenizer) -> Generator[PreparationEvent, None, Tokens]:
    """The ids of `part` in the new file `path`, memory-mapped. Raises OutOfResourcesError."""
    dtype = np.dtype(np.min_scalar_type(tokenizer.vocab_size - 1))
    written = _Part(0, 0, [])
    try:
        for written in _write_part(path, encode_chunks(part, tokenizer, dtype)):
            yield StageProgress("encoding", written.n_bytes, part.n_bytes)
        return _open_part(path, dtype, written)
    except OSError as error:
        raise write_error(path, error, CACHE_REMEDY) from error


def _write_part(path: Path, chunks: Iterable[tuple[bytes, int, int]]) -> Iterator[_Part]:
    """Write encoded chunks; yields what has been written so far, in the end all of it."""
    n_tokens = n_bytes = n_written = 0
    hashes: list[str] = []
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for ids, n_ids, n_text_bytes in chunks:
            file.write(ids)
            n_tokens, n_bytes = n_tokens + n_ids, n_bytes + n_text_bytes
            while n_written + len(ids) >= HASHED_BYTES:
                room = HASHED_BYTES - n_written
                digest.update(ids[:room])
                hashes.append(digest.hexdigest())
                digest, ids, n_written = hashlib.sha256(), ids[room:], 0
            digest.update(ids)
            n_written += len(ids)
            yield _Part(n_tokens, n_bytes, [])
        file.flush()
        sync_to_disk(file.fileno())
    yield _Part(n_tokens, n_bytes, [*hashes, digest.hexdigest()])


def _open_part(path: Path, dtype: np.dtype, part: _Part) -> Tokens:
    n_file_bytes = part.n_tokens * dtype.itemsize
    if path.stat().st_size != n_file_bytes or len(part.sha256) != n_file_bytes // HASHED_BYTES + 1:
        raise ValueError(f"{path} is damaged")
    with ThreadPoolExecutor() as pool:
        if list(pool.map(lambda i: _hash_of_part(path, i), range(len(part.sha256)))) != part.sha256:
            raise ValueError(f"{path} is damaged")
    if part.n_tokens == 0:
        return Tokens(np.zeros(0, dtype=dtype), 0)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # BatchLoader come from all over the text: reading ahead made a step on a cold 10 GB store 20% slower.
        mapped.madvise(mmap.MADV_RANDOM)
    return Tokens(np.frombuffer(mapped, dtype=dtype), part.n_bytes)


def _hash_of_part(path: Path, number: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(number * HASHED_BYTES)
        for _ in range(HASHED_BYTES // (1 << 20)):
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _give_name(place: Path, folder: Path) -> None:
    """Rename `place` to `folder`, unless another run has built the same store there meanwhile."""
    try:
        os.rename(place, folder)
    except OSError:  # something stands there
        if open_store(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(place, folder)
    sync_folder(folder.parent)
