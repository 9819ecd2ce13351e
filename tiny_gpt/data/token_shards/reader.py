"""All ids of a corpus in shards, read by position like one array. A few shards are open at a time.

The reader of batches says which shards come next; they are fetched and verified in the background, in that order. A
position in a shard that is not there yet is waited for. A server or a mounted bucket that does not answer is asked
again for OUTAGE_S: a run need not end because the network is away for some minutes.
"""

import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.data.mapped import map_ids
from tiny_gpt.data.progress import Preparation, finish
from tiny_gpt.data.token_shards.index import SplitShards, TokenShard
from tiny_gpt.data.token_shards.places import N_AT_ONCE, Place
from tiny_gpt.errors import BadInputError

OUTAGE_S, SHARD_RETRY_S = 3600.0, 10.0
# What may be different a little later.
RETRIED_CODES = ("download-failed", "download-hash-differs", "shard-unreadable")


class ShardedIds:
    """The ids of all shards of one split, one after the other."""

    def __init__(self, split: SplitShards, dtype: np.dtype, vocab_size: int, place: Place) -> None:
        self.shards, self.dtype, self.place = split.shards, dtype, place
        self.lengths = tuple(shard.n_tokens for shard in split.shards)
        self._vocab_size = vocab_size
        self._ends = np.cumsum(self.lengths)
        self._changed = threading.Condition()
        self._wanted: list[int] = []
        """Numbers of shards, those that are needed first at the front."""
        self._open: dict[int, NDArray[np.unsignedinteger] | Exception] = {}
        self._loading: set[int] = set()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """The ids at `positions`, an array of any shape. Raises what `first` raises, after OUTAGE_S."""
        ids = np.empty(positions.shape, dtype=self.dtype)
        numbers = np.searchsorted(self._ends, positions, "right")
        for number in np.unique(numbers).tolist():
            is_in_shard = numbers == number
            shard = self._wait_for(number)
            ids[is_in_shard] = shard[positions[is_in_shard] - (int(self._ends[number]) - len(shard))]
        return ids

    def want(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, in this order; close all others."""
        with self._changed:
            self._wanted = list(numbers)
            for number in self._open.keys() - set(numbers):
                del self._open[number]
            self._load_wanted()

    def first(self) -> Preparation[NDArray[np.unsignedinteger]]:
        """The ids of the first shard.

        Raises BadInputError where it is missing, damaged or cannot be downloaded, and OutOfResourcesError.
        """
        return (yield from self._fetch(self.shards[0]))

    def _fetch(self, shard: TokenShard) -> Preparation[NDArray[np.unsignedinteger]]:
        needed = [self.shards[number] for number in self._wanted]
        path = yield from self.place.fetch(shard, shard.n_tokens * self.dtype.itemsize, needed)
        ids = map_ids(path, self.dtype)
        if int(ids.max()) >= self._vocab_size:
            raise BadInputError(
                f"the shard {shard.name} has ids that its tokenizer lacks; write the shards again",
                code="shard-ids-unknown",
            )
        return ids

    def _wait_for(self, number: int) -> NDArray[np.unsignedinteger]:
        with self._changed:
            while number not in self._open:
                if number not in self._wanted:
                    self._wanted.insert(0, number)
                    self._load_wanted()
                self._changed.wait()
            found = self._open[number]
            if isinstance(found, Exception):
                del self._open[number]
                raise found
            return found

    def _load_wanted(self) -> None:
        """Start threads for shards that are wanted; the caller holds the lock. They end with the process: a download
        that is interrupted is resumed by the next run."""
        for number in self._wanted:
            if len(self._loading) >= N_AT_ONCE:
                return
            if number not in self._open and number not in self._loading:
                self._loading.add(number)
                threading.Thread(target=self._load, args=(number,), daemon=True, name=f"shard {number}").start()

    def _load(self, number: int) -> None:
        found: NDArray[np.unsignedinteger] | Exception
        try:
            found = self._fetch_patiently(number)
        except Exception as failure:
            found = failure
        with self._changed:
            self._loading.discard(number)
            if number in self._wanted:
                self._open[number] = found
            self._load_wanted()
            self._changed.notify_all()

    def _fetch_patiently(self, number: int) -> NDArray[np.unsignedinteger]:
        gives_up_at = time.monotonic() + OUTAGE_S
        while True:
            try:
                return finish(self._fetch(self.shards[number]))
            except BadInputError as failure:
                if failure.code not in RETRIED_CODES or time.monotonic() > gives_up_at or number not in self._wanted:
                    raise
            time.sleep(SHARD_RETRY_S)
