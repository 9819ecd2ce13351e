"""Token ids in a file, mapped into memory."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def map_ids(path: Path, dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    """The ids in a file without a header, shape (n_tokens,). Raises OSError."""
    with open(path, "rb") as file:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Blocks are read from all over the text: with read-ahead, a step on a 10 GB store not yet in memory took 20%
        # longer.
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=dtype)
