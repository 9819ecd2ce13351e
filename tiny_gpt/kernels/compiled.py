"""How Python functions become machine code: by numba, once for each machine, and kept.

numba keeps the code under the name of a function's own file and does not notice when another file that it calls has
changed, so here the place has a name that changes with any file of the function's folder and of this one.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

from tiny_gpt.files import cache_folder

# Products and sums may become one instruction; nothing may be added up in another order.
OPTIONS: dict[str, Any] = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
# Sums over numbers side by side may be taken 4, 8 or 16 at once: the same machine code always does it the same way.
REORDERING: dict[str, Any] = OPTIONS | dict(fastmath=OPTIONS["fastmath"] | {"reassoc"})

# Loops over many arrays look first whether these overlap, and are not vectorized where that takes more looks than this.
llvmlite.binding.set_option("tiny_gpt", "--runtime-memory-check-threshold=64")


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code for the types that it is first called with; it runs without Python's lock."""
    return _compiled(function, OPTIONS)


def reordered(function: Callable[..., Any]) -> Any:
    """The same for a function whose sums need no particular order."""
    return _compiled(function, REORDERING)


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_place(Path(function.__code__.co_filename).parent))
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before


def is_kept(function: Any) -> bool:
    """Whether the machine code of a compiled function is there from an earlier process."""
    code = function.py_func.__code__
    return any(_place(Path(code.co_filename).parent).rglob(f"*.{code.co_name}-*.nbi"))


def forget_older(folder: Path) -> None:
    """Delete what was kept of earlier versions of the functions in `folder`."""
    place = _place(folder)
    for older in place.parent.glob(place.name.rsplit("-", 1)[0] + "-*"):
        if older != place:
            shutil.rmtree(older, ignore_errors=True)


@functools.cache
def _place(folder: Path) -> Path:
    """Beside the code as Python's own, or in the user's cache where the code may not be written to."""
    files = {*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")}
    sources = b"".join(path.read_bytes() for path in sorted(files))
    name = f"compiled-{folder.parent.name}-{folder.name}-{hashlib.sha256(sources).hexdigest()[:16]}"
    beside = folder / "__pycache__"
    return (beside if os.access(beside if beside.exists() else folder, os.W_OK) else cache_folder()) / name
