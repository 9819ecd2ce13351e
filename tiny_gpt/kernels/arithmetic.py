"""Arithmetic of compiled loops: numbers as they are stored and as they are computed with, and 2^x.

A tensor in bf16 comes as the array of its bits (uint16), one in fp32 as what it is. Loops compute in fp32.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from tiny_gpt.kernels.compiled import compiled

_FEATURES = cpu_target.target_context.codegen()._tm_features.split(",")
# Whether this machine multiplies pairs of bf16 numbers in one instruction, and whether its registers have 512 bits.
HAS_BF16, HAS_512_BITS = "+avx512bf16" in _FEATURES, "+avx512f" in _FEATURES
LOG2_E = np.float32(math.log2(math.e))
LN_2 = np.float32(math.log(2))

# The polynomial of degree 5 that is nearest to 2^r for |r| <= 1/2, by its largest relative error.
_SERIES = (1.0, 0.69314696, 0.24022120, 0.055507133, 0.0096755413, 0.0013276472)

_F = np.float32
_W = np.uint32


class _BFloat(ir.types._BaseFloatType):
    """The type of a bf16 number in LLVM, which llvmlite leaves out."""

    null, intrinsic_name = "0.0", "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
BFLOAT = _BFloat()


@intrinsic
def prefetch(typing_context, array, row, column):
    """Have the machine fetch a number of a matrix, and those in the same cache line, before it is needed."""

    def generate(context, builder, signature, arguments):
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = cgutils.get_item_pointer(
            context, builder, signature.args[0], matrix, [arguments[1], arguments[2]], wraparound=False
        )
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.bitcast(place, byte), i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


def wide(x):
    """A stored number as fp32."""


@overload(wide, inline="always")
def _wide_for(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def stored(like, x):
    """The fp32 number x as the array `like` stores it."""


@overload(stored, inline="always")
def _stored_for(like, x):
    if like.dtype == types.uint16:
        return lambda like, x: bits_of_bf16(x)
    return lambda like, x: x


def restored(like, number):
    """A stored number as the array `like` stores it."""


@overload(restored, inline="always")
def _restored_for(like, number):
    if like.dtype == number:
        return lambda like, number: number
    return lambda like, number: stored(like, wide(number))


def bits_of_bf16(x):
    """The bits of x in bf16, rounded to nearest even."""


@overload(bits_of_bf16, inline="always")
def _bits_of_bf16_for(x):
    return (lambda x: _narrow(x)) if HAS_BF16 else (lambda x: _rounded(x))


@intrinsic
def _narrow(typing_context, x):
    """The machine's instruction for it."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], BFLOAT), ir.IntType(16))

    return types.uint16(types.float32), generate


@compiled
def _rounded(x):
    """The same on any machine."""
    bits = _F(x).view(np.uint32)
    odd = _W(_W(bits >> _W(16)) & _W(1))
    return np.uint16(_W(_W(bits + _W(odd + _W(0x7FFF))) >> _W(16)))


@compiled
def exp2(x):
    """2^x for x <= 127, to within 2e-7 of itself, without a table or a branch; 0 stands for what is below 2^-126."""
    # 1.5 * 2^23: added, it rounds to whole numbers and leaves them in the lowest bits. Here sums must keep their order.
    magic = _F(12582912.0)
    shifted = x + magic
    r = x - (shifted - magic)
    a, b, c, d, e, f = _SERIES
    series = _F(a) + r * (_F(b) + r * (_F(c) + r * (_F(d) + r * (_F(e) + r * _F(f)))))
    exponent = np.uint32(_F(shifted).view(np.uint32) << np.uint32(23))
    power = np.uint32(_F(series).view(np.uint32) + exponent).view(np.float32)
    return _F(0.0) if x < _F(-126.0) else power  # what is no number stays none
