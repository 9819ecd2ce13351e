"""How Python functions become machine code: numba compiles each once per machine and caches it on disk.

numba keys its cache by a function's own file and does not notice that another file, whose functions it calls, has
changed. So each package's cache folder here carries a hash of that package's sources and of this package's. It also
carries whether AMX may be used: numba keeps code for one processor apart from that for another, but a process that may
not use AMX runs on the same processor.

No kernel uses numba's `parallel=True`, `prange` or full `fastmath`: threads.py shares work in a fixed way, so that
results do not depend on the number of threads, and the fast-math flags below keep NaN and infinity intact.
"""

import contextlib
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
from tiny_gpt.kernels.processor import HAS_AMX

# LLVM's fast-math flags (https://llvm.org/docs/LangRef.html#fast-math-flags). A product and a sum may become one fused
# multiply-add (contract), the sign of zero may change (nsz), a division may become a multiplication by the reciprocal
# (arcp). Left out are `nnan` and `ninf`, which would hide a diverged loss, and `reassoc`.
# nogil: threads run kernels side by side. error_model="numpy": x / 0 is infinite and needs no check, hence no branch.
OPTIONS: dict[str, Any] = dict(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
# A sum may be split into 4, 8 or 16 partial sums, one for each vector lane. The order differs between processors, but
# the same machine code always adds in the same order.
REASSOC_OPTIONS: dict[str, Any] = OPTIONS | dict(fastmath=OPTIONS["fastmath"] | {"reassoc"})

# There is no Python in a kernel at run time: `njit` refuses to compile what it cannot type.

# Before a vectorized loop LLVM checks at run time that its arrays do not overlap. By default it gives up beyond 8
# checks; the kernels' loops read and write many arrays.
llvmlite.binding.set_option("tiny_gpt", "--runtime-memory-check-threshold=64")


def compiled(function: Callable[..., Any]) -> Any:
    """Decorator: compile `function` for the argument types of each first call; it runs without Python's GIL."""
    return _compile(function, OPTIONS)


def compiled_reassoc(function: Callable[..., Any]) -> Any:
    """Like `compiled`, and sums may be reassociated, which vectorizes loops that add up one number."""
    return _compile(function, REASSOC_OPTIONS)


def inline_reassoc(function: Callable[..., Any]) -> Any:
    """Like `compiled_reassoc`, for a part of a kernel: its source becomes a part of the function that calls it.

    Calling a small function costs nothing either way, since LLVM inlines it. But LLVM optimizes a function once by
    itself and once more where it is inlined, and may reassociate its sums differently: an inlined part rounds exactly
    as if it stood in the kernel.
    """
    return numba.njit(inline="always", **REASSOC_OPTIONS)(function)


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    # numba reads CACHE_DIR when the function is decorated, not when it is compiled.
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_cache_dir(Path(function.__code__.co_filename).parent))
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder: compile anew in each process
        return numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = previous


def is_cached(function: Any) -> bool:
    """Whether machine code of a compiled function, for any argument types, is in the disk cache."""
    code = function.py_func.__code__
    return any(_cache_dir(Path(code.co_filename).parent).rglob(f"*.{code.co_name}-*.nbi"))


def add_stamp(package: Path, name: str) -> None:
    """Note in the disk cache of a package that what `name` stands for has been compiled.

    For functions of which several variants are compiled, for different argument types: `is_cached` knows only whether
    there is one.
    """
    stamp = _cache_dir(package) / f"{name}.stamp"
    with contextlib.suppress(OSError):
        if not stamp.exists():
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()


def has_stamp(package: Path, name: str) -> bool:
    """Whether `add_stamp` was called for these sources, by any process."""
    return (_cache_dir(package) / f"{name}.stamp").exists()


def delete_stale_caches(package: Path) -> None:
    """Delete the disk caches of earlier versions of the sources in the folder `package`."""
    current = _cache_dir(package)
    for cache in current.parent.glob(current.name.rsplit("-", 1)[0] + "-*"):
        if cache != current:
            shutil.rmtree(cache, ignore_errors=True)


@functools.cache
def _cache_dir(package: Path) -> Path:
    """In the package's __pycache__, or in the user's cache where that is not writable."""
    files = {*package.glob("*.py"), *Path(__file__).parent.glob("*.py")}
    sources = b"".join(path.read_bytes() for path in sorted(files)) + str(HAS_AMX).encode()
    name = f"compiled-{package.parent.name}-{package.name}-{hashlib.sha256(sources).hexdigest()[:16]}"
    pycache = package / "__pycache__"
    is_writable = os.access(pycache if pycache.exists() else package, os.W_OK)
    return (pycache if is_writable else cache_folder()) / name
