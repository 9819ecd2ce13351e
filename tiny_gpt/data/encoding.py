"""Encode a text on all processors: chunks go out to worker processes, and ids come back in order.

A short text is encoded in this process: starting workers would take longer.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from tiny_gpt.data.text_file import CHUNK_BYTES, Chunk, TextSplit
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

# Up to this size one process is faster than several, which take 0.3 s each to start (bpe, 2 cores).
SINGLE_PROCESS_BYTES = 8 * CHUNK_BYTES


class EncodedChunk(NamedTuple):
    """The token ids of a chunk, as cheap to pass between processes as can be."""

    ids: bytes
    """The array's bytes."""
    n_tokens: int
    n_text_bytes: int
    """UTF-8 bytes that the tokens stand for."""


def encode_chunks(split: TextSplit, tokenizer: Tokenizer, dtype: np.dtype) -> Iterator[EncodedChunk]:
    """The ids of `split`, chunk by chunk, in order. Raises OutOfResourcesError if a worker is killed."""
    n_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if split.n_bytes <= SINGLE_PROCESS_BYTES or n_workers == 1:
        yield from (_encode(chunk, tokenizer, dtype) for chunk in split.chunks())
        return
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("spawn"),  # fork is unsafe with threads, which torch has
        initializer=_start_worker,
        initargs=(tokenizer.to_dict(), dtype),
    )
    try:
        # Enough chunks in flight to keep all workers busy, few enough to bound memory.
        in_flight: deque[Future[EncodedChunk]] = deque()
        for chunk in split.chunks():
            with _without_main_module():
                in_flight.append(pool.submit(_encode_in_worker, chunk))
            if len(in_flight) > 2 * n_workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as error:
        raise OutOfResourcesError(
            "a worker process that encoded text was killed, perhaps because memory ran out; "
            "close other programs and start again",
            code="encoding-worker-killed",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Start worker processes that do not import the main module, of which they need nothing.

    A script that trains without `if __name__ == "__main__"` would start to train in each of them.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    main.__spec__ = None
    main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(hidden)


def _encode(chunk: Chunk, tokenizer: Tokenizer, dtype: np.dtype) -> EncodedChunk:
    utf8 = chunk.read()
    ids = tokenizer.encode_utf8(utf8)
    return EncodedChunk(ids.astype(dtype, copy=False).tobytes(), len(ids), len(utf8))


# What a worker keeps between chunks.
_worker: dict[str, Any] = {}


def _start_worker(tokenizer: dict[str, Any], dtype: np.dtype) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent, which shuts its workers down
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker.update(tokenizer=tokenizer_from_dict(tokenizer), dtype=dtype)


def _exit_with_parent() -> None:
    """Without this, a worker whose parent was killed would wait for chunks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    return _encode(chunk, _worker["tokenizer"], _worker["dtype"])
