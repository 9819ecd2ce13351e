"""How Python functions of this folder become machine code: by numba, once for each machine, and kept.

numba keeps the code under the name of a function's own file and does not notice when another file that it calls has
changed, so here the place has a name that changes with any file of this folder.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from tiny_gpt.files import cache_folder

# Products and sums may become one instruction; nothing may be added up in another order.
OPTIONS: dict[str, Any] = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code for the types that it is first called with; it runs without Python's lock."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_PLACE)
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(**OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before


def is_kept(name: str) -> bool:
    """Whether the machine code of the function called `name` is there from an earlier process."""
    return any(_PLACE.rglob(f"*.{name}-*.nbi"))


def forget_older() -> None:
    """Delete what was kept of earlier versions of this folder."""
    for older in _PLACE.parent.glob("compiled-*"):
        if older != _PLACE:
            shutil.rmtree(older, ignore_errors=True)


def _place() -> Path:
    """Beside the code as Python's own, or in the user's cache where the code may not be written to."""
    here = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))
    name = f"compiled-{hashlib.sha256(sources).hexdigest()[:16]}"
    beside = here / "__pycache__"
    return (beside if os.access(beside if beside.exists() else here, os.W_OK) else cache_folder()) / name


_PLACE = _place()
