"""Atomic operations on int64 counters that several threads share, and the system's yield.

numba offers none for CPUs, so each is an intrinsic: a Python function that emits LLVM instructions. All are
sequentially consistent (seq_cst): every thread sees them in one common order, and what a thread wrote before one of
them is visible to whoever sees its result. threads.py relies on both.
"""

import ctypes
import os
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _register_yield() -> None:
    """Make the system's "give the core to another thread" callable from compiled code under one name."""
    library = ctypes.CDLL("kernel32" if os.name == "nt" else None)
    function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    llvmlite.binding.add_symbol("tiny_gpt_yield", address)


_register_yield()
# By name, not by address: cached machine code must run in a later process, where the address is another.
sched_yield = types.ExternalFunction("tiny_gpt_yield", types.int32())


@intrinsic
def atomic_add(typing_context, counters, index, amount):
    """counters[index] += amount; returns the value before."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def atomic_exchange(typing_context, counters, index, value):
    """counters[index] = value; returns the value before."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("xchg", pointer, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def atomic_load(typing_context, counters, index):
    """counters[index] as it is now. A plain read in a waiting loop would be moved out of the loop by LLVM."""

    def generate(context, builder, signature, arguments):
        # 8: aligned to its 8 bytes, as every int64 array is.
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(counters, types.int64), generate


def _pointer(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    # No check of bounds, and no index counted from the end.
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [arguments[1]], wraparound=False)
