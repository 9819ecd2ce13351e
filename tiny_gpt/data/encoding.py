"""Text to ids on all processors: chunks go out to processes and come back in order.

A short text is encoded right here: starting processes would take longer.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from tiny_gpt.data.text_file import CHUNK_BYTES, Chunk, TextSplit
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

Encoded = tuple[bytes, int, int]
"""The ids as the bytes of an array, how many they are, and the UTF-8 bytes that they stand for."""

# Up to here one process is faster than starting several: 0.3 s each, measured with bpe on 2 cores.
ALONE_BYTES = 8 * CHUNK_BYTES


def encode_chunks(part: TextSplit, tokenizer: Tokenizer, dtype: np.dtype) -> Iterator[Encoded]:
    """The ids of `part`, chunk by chunk, in order. Raises OutOfResourcesError when a process is killed."""
    n_processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if part.n_bytes <= ALONE_BYTES or n_processes == 1:
        yield from (_encode(chunk, tokenizer, dtype) for chunk in part.chunks())
        return
    pool = ProcessPoolExecutor(
        n_processes,
        mp_context=multiprocessing.get_context("spawn"),  # fork and threads, which torch has, do not go together
        initializer=_prepare_process,
        initargs=(tokenizer.to_dict(), dtype),
    )
    try:
        waiting: deque[Future[Encoded]] = deque()
        for chunk in part.chunks():
            waiting.append(pool.submit(_encode_in_process, chunk))
            if len(waiting) > 2 * n_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OutOfResourcesError(
            "a process that encoded text was ended from outside, perhaps for want of memory; "
            "close other programs and start again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(chunk: Chunk, tokenizer: Tokenizer, dtype: np.dtype) -> Encoded:
    utf8 = chunk.read()
    ids = tokenizer.encode_utf8(utf8)
    return ids.astype(dtype, copy=False).tobytes(), len(ids), len(utf8)


# What a process keeps between chunks.
_own: dict[str, Any] = {}


def _prepare_process(tokenizer: dict[str, Any], dtype: np.dtype) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program, which ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own.update(tokenizer=tokenizer_from_dict(tokenizer), dtype=dtype)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for chunks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_process(chunk: Chunk) -> Encoded:
    return _encode(chunk, _own["tokenizer"], _own["dtype"])
