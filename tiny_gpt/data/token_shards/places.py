"""Where the shards of a corpus are: in a folder, which may be a mounted bucket, or on a web server.

Shards of a server are kept in the cache, named by their hashes, up to a number of bytes; those that were used longest
ago are deleted first. Runs and ranks on one machine share them.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.sources.download import download, without_password
from tiny_gpt.data.sources.files import file_size
from tiny_gpt.data.token_shards.index import (
    MAX_SHARD_INDEX_BYTES,
    SHARD_INDEX,
    CorpusIndex,
    TokenShard,
    is_address,
    parse_index,
)
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import CACHE_REMEDY, cache_folder, sha256_of, write_error

# Shards that are fetched at the same time: as many as a group has.
N_AT_ONCE = 4
# Locks of the cache: two shards share one by chance, which makes them wait for one another.
N_LOCKS = 64


class Place(Protocol):
    """Where shards are."""

    def fetch(self, shard: TokenShard, n_bytes: int, needed: Collection[TokenShard]) -> Preparation[Path]:
        """A file of `n_bytes` with the verified ids of `shard`. Files of `needed` stay where they are.

        Raises BadInputError where it is missing or damaged, DownloadError, and OutOfResourcesError.
        """
        ...


class FolderPlace:
    """A folder: shards are verified when they are first read, and mapped where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[str] = set()

    def fetch(self, shard: TokenShard, n_bytes: int, needed: Collection[TokenShard]) -> Preparation[Path]:
        path = self.folder / shard.name
        if shard.name not in self._verified:
            yield StageProgress(f"checking {shard.name}", 0, n_bytes)
            try:
                is_sound = path.stat().st_size == n_bytes and sha256_of(path) == shard.sha256
            except FileNotFoundError:
                raise BadInputError(
                    f"the shard {shard.name} is missing in {self.folder}; copy it there again", code="shard-missing"
                ) from None
            except OSError as error:
                raise BadInputError(
                    f"the shard {path} cannot be read: {error.strerror or error}", code="shard-unreadable"
                ) from error
            if not is_sound:
                raise BadInputError(
                    f"the shard {path} is damaged or incomplete; copy it there again", code="shard-damaged"
                )
            self._verified.add(shard.name)
        return path


class ServerPlace:
    """A web server: shards are downloaded into the cache, which keeps about `max_bytes` of them."""

    def __init__(self, address: str, max_bytes: int) -> None:
        """`address`: of the index, beside which the shards are."""
        self.address, self.max_bytes, self.folder = address, max_bytes, shard_cache()
        self._verified: set[str] = set()
        self.n_fetched_bytes = 0

    def fetch(self, shard: TokenShard, n_bytes: int, needed: Collection[TokenShard]) -> Preparation[Path]:
        path = self._path(shard)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{int(shard.sha256[:8], 16) % N_LOCKS}.lock"):
                if not self._is_there(path, shard, n_bytes):
                    self._make_room(n_bytes, {self._path(each) for each in needed})
                    address = address_beside(self.address, shard.name)
                    yield from download(address, path, shard.sha256, n_bytes, f"the shard {shard.name}")
                    self.n_fetched_bytes += n_bytes
                os.utime(path)  # was used now
        except OSError as error:
            raise write_error(path, error, CACHE_REMEDY) from error
        self._verified.add(shard.name)
        return path

    def _path(self, shard: TokenShard) -> Path:
        return self.folder / f"{shard.sha256[:32]}.bin"

    def _is_there(self, path: Path, shard: TokenShard, n_bytes: int) -> bool:
        if file_size(path) != n_bytes:
            return False
        return shard.name in self._verified or sha256_of(path) == shard.sha256

    def _make_room(self, n_bytes: int, needed: Collection[Path]) -> None:
        """Delete shards that were used longest ago, until there is room for N_AT_ONCE of `n_bytes`.

        One that is deleted while a process has mapped it stays readable there; Windows does not delete it.
        """
        files = []
        for path in self.folder.glob("*.bin"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        kept = sum(size for _, size, _ in files) + N_AT_ONCE * n_bytes
        for _, size, path in sorted(files):
            if kept <= self.max_bytes:
                return
            if path not in needed:
                with contextlib.suppress(OSError):
                    path.unlink()
                    kept -= size


def shard_cache() -> Path:
    """Where shards of servers are kept."""
    return cache_folder() / "shards"


def place_of(location: str, max_cached_bytes: int) -> FolderPlace | ServerPlace:
    """The place of the corpus at `location`."""
    return ServerPlace(location, max_cached_bytes) if is_address(location) else FolderPlace(Path(location))


def read_index(location: str) -> Preparation[CorpusIndex]:
    """The index of the corpus at `location`, always read anew. Raises BadInputError and OutOfResourcesError."""
    path = Path(location) / SHARD_INDEX
    if is_address(location):
        path = shard_cache() / f"{hashlib.sha256(location.encode()).hexdigest()[:16]}-{os.getpid()}.json"
        yield from download(location, path, name=SHARD_INDEX)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SHARD_INDEX_BYTES)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror or error}", code="shard-index-unreadable") from error
    if is_address(location):
        path.unlink(missing_ok=True)
    return parse_index(content, shown_location(location))


def incomplete_shards(index: CorpusIndex, folder: str) -> list[str]:
    """Names of the shards that are not in `folder`, or have another size."""
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    shards = (*index.train.shards, *index.val.shards)
    return [shard.name for shard in shards if sizes.get(shard.name) != shard.n_tokens * index.dtype.itemsize]


def address_beside(address: str, name: str) -> str:
    """The address of the file `name` in the folder of `address`; what follows a ? stays, as access tokens do."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=parts.path.rsplit("/", 1)[0] + "/" + name))


def shown_location(location: str) -> str:
    """`location` for messages, without a password or access token."""
    return without_password(location).split("?")[0] if is_address(location) else location
