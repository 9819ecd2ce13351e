"""Token ids on disk, memory-mapped: a folder with train.bin, val.bin and manifest.json.

    train.bin, val.bin   ids as unsigned integers of the smallest type that fits, in native byte order, without a header
    manifest.json        type, tokenizer, counts and hashes; written last

The folder's name is a hash of the sources and of everything that their tokens depend on: a later run of the same text
finds it without reading the text, and a changed text gets another folder. A store is built in a temporary folder and
then renamed, so it is complete or absent.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tiny_gpt.data.encoding import EncodedChunk, encode_chunks
from tiny_gpt.data.mapped import map_ids
from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.text_file import TextSplit
from tiny_gpt.data.token_shards.reader import ShardedIds
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import CACHE_REMEDY, sha256_of_json, sync_folder, sync_to_disk, write_error
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
# Each block of this size has a hash of its own, so that all processors can verify a large store.
HASH_BLOCK_BYTES = 64 << 20
# What opening a store raises if it is absent or damaged.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, BadInputError)


@dataclass(frozen=True)
class Tokens:
    """The token ids of one split."""

    ids: NDArray[np.unsignedinteger]
    """All of them, shape (n_tokens,); of a corpus in shards, those of its first shard, which is at hand."""
    n_bytes: int
    """UTF-8 bytes of the text that all of them encode."""
    shards: ShardedIds | None = None
    """The training text of a corpus in shards."""

    def __len__(self) -> int:
        return len(self.all_ids)

    @property
    def all_ids(self) -> NDArray[np.unsignedinteger] | ShardedIds:
        """What training reads."""
        return self.ids if self.shards is None else self.shards


@dataclass(frozen=True)
class TokenStore:
    """A text as token ids, with its tokenizer."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    about: dict[str, Any]
    """What was learned about the text while it was read; plain JSON types."""
    sha256: str
    """Of the ids of both splits."""


@dataclass(frozen=True)
class _TokenFile:
    """What the manifest says about train.bin or val.bin."""

    n_tokens: int
    n_bytes: int
    sha256: list[str]
    """Of each HASH_BLOCK_BYTES of the file."""


def store_folder(parent: Path, *key: Any) -> Path:
    """The folder of the store with this key, whether it exists or not. `key`: everything that its tokens depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, *key]).encode())
    return parent / digest.hexdigest()[:32]


@contextmanager
def temporary_build_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to build it in; deleted afterwards unless it was renamed to `folder`.

    First deletes what builds that were killed on this machine have left there. Raises OutOfResourcesError.
    """
    host = f".{platform.node()}-"  # other machines may share the cache, and their process ids mean nothing here
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{host}*-*"):
            process_id = leftover.name.removeprefix(host).split("-")[0]
            if process_id.isdecimal() and not psutil.pid_exists(int(process_id)):
                shutil.rmtree(leftover, ignore_errors=True)
        build_folder = Path(tempfile.mkdtemp(prefix=f"{host}{os.getpid()}-", dir=folder.parent))
    except OSError as error:
        raise write_error(folder, error, CACHE_REMEDY) from error
    try:
        yield build_folder
    finally:
        shutil.rmtree(build_folder, ignore_errors=True)


def open_store(folder: Path) -> TokenStore | None:
    """The store in `folder`, every byte verified; None if it is absent or damaged."""
    try:
        manifest = _read_manifest(folder)
        dtype = np.dtype(manifest["dtype"])
        train, val = (
            _open_tokens(folder / f"{split}.bin", dtype, _TokenFile(**manifest[split])) for split in ("train", "val")
        )
        sha256 = sha256_of_json([manifest[split]["sha256"] for split in ("train", "val")])
        return TokenStore(tokenizer_from_dict(manifest["tokenizer"]), train, val, manifest["about"], sha256)
    except UNREADABLE:
        return None


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of the store in `folder`, whose tokens are not read; None if it is absent or damaged."""
    try:
        return tokenizer_from_dict(_read_manifest(folder)["tokenizer"])
    except UNREADABLE:
        return None


def build_store(
    build_folder: Path, folder: Path, train: TextSplit, val: TextSplit, tokenizer: Tokenizer, about: dict[str, Any]
) -> Preparation[None]:
    """Encode both splits in `build_folder`, then rename it to `folder`. Raises OutOfResourcesError.

    The text files are deleted: they are in `build_folder` too.
    """
    dtype = _dtype_for(tokenizer)
    total_bytes = train.n_bytes + val.n_bytes
    try:
        manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "tokenizer": tokenizer.to_dict(),
            "about": about,
        }
        done_bytes = 0
        for name, split in (("train", train), ("val", val)):
            for written in _write_tokens(build_folder / f"{name}.bin", encode_chunks(split, tokenizer, dtype)):
                yield StageProgress("encoding", done_bytes + written.n_bytes, total_bytes)
            done_bytes += written.n_bytes
            manifest[name] = asdict(written)
        manifest["sha256"] = sha256_of_json(manifest)
        for text in (train.path, val.path):
            text.unlink(missing_ok=True)
        (build_folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _publish(build_folder, folder)
    except OSError as error:
        raise write_error(folder, error, CACHE_REMEDY) from error


def encode_to_file(path: Path, split: TextSplit, tokenizer: Tokenizer) -> Preparation[Tokens]:
    """Encode `split` into the new file `path`. Returns its ids, memory-mapped. Raises OutOfResourcesError."""
    dtype = _dtype_for(tokenizer)
    written = _TokenFile(0, 0, [])
    try:
        for written in _write_tokens(path, encode_chunks(split, tokenizer, dtype)):
            yield StageProgress("encoding", written.n_bytes, split.n_bytes)
        return _open_tokens(path, dtype, written)
    except OSError as error:
        raise write_error(path, error, CACHE_REMEDY) from error


def _dtype_for(tokenizer: Tokenizer) -> np.dtype:
    """The smallest unsigned integer type for its ids."""
    return np.dtype(np.min_scalar_type(tokenizer.vocab_size - 1))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The verified manifest. Raises one of UNREADABLE."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.pop("sha256") != sha256_of_json(manifest):
        raise ValueError(f"the manifest in {folder} is damaged")
    return manifest


def _write_tokens(path: Path, chunks: Iterable[EncodedChunk]) -> Iterator[_TokenFile]:
    """Write encoded chunks to `path`. Yields what has been written so far; the last one has the hashes too."""
    n_tokens = n_bytes = n_hashed = 0
    hashes: list[str] = []
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for ids, n_chunk_tokens, n_text_bytes in chunks:
            file.write(ids)
            n_tokens, n_bytes = n_tokens + n_chunk_tokens, n_bytes + n_text_bytes
            # A chunk may end one block and begin the next. n_hashed: bytes of the current block.
            while n_hashed + len(ids) >= HASH_BLOCK_BYTES:
                n_missing = HASH_BLOCK_BYTES - n_hashed
                digest.update(ids[:n_missing])
                hashes.append(digest.hexdigest())
                digest, ids, n_hashed = hashlib.sha256(), ids[n_missing:], 0
            digest.update(ids)
            n_hashed += len(ids)
            yield _TokenFile(n_tokens, n_bytes, [])
        file.flush()
        sync_to_disk(file.fileno())
    yield _TokenFile(n_tokens, n_bytes, [*hashes, digest.hexdigest()])


def _open_tokens(path: Path, dtype: np.dtype, info: _TokenFile) -> Tokens:
    """Verify the file and map it into memory. Raises ValueError if it is damaged."""
    n_file_bytes = info.n_tokens * dtype.itemsize
    if path.stat().st_size != n_file_bytes or len(info.sha256) != n_file_bytes // HASH_BLOCK_BYTES + 1:
        raise ValueError(f"{path} is damaged")
    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
        if list(pool.map(lambda i: _hash_block(path, i), range(len(info.sha256)))) != info.sha256:
            raise ValueError(f"{path} is damaged")
    return Tokens(map_ids(path, dtype), info.n_bytes)


def _hash_block(path: Path, number: int) -> str:
    """The hash of one HASH_BLOCK_BYTES of a file, read a megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(number * HASH_BLOCK_BYTES)
        for _ in range(HASH_BLOCK_BYTES // (1 << 20)):
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _publish(build_folder: Path, folder: Path) -> None:
    """Rename `build_folder` to `folder`, unless another process has built the same store there meanwhile."""
    try:
        os.rename(build_folder, folder)
    except OSError:  # `folder` exists
        if open_store(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(build_folder, folder)
    sync_folder(folder.parent)
