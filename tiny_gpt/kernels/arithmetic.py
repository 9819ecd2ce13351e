"""Scalar arithmetic inside kernels: 16-bit number formats, 2^x and e^x.

numba has no bf16 and no fp16 numbers on a CPU. Arrays of them reach kernels as arrays of their bits, and the integer
type tells which format they are in: uint16 is bf16, int16 is fp16. Kernels load with `to_f32`, compute in fp32 and
store with `cast_like`.

    fp32  1 sign bit, 8 exponent bits, 23 mantissa bits
    bf16  1 sign bit, 8 exponent bits,  7 mantissa bits: the upper half of an fp32 number
    fp16  1 sign bit, 5 exponent bits, 10 mantissa bits: more precise, but its largest number is 65504

Constants in kernels are written `np.float32(1.0)`: numba takes a plain 1.0 for fp64 and would widen a whole expression.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.processor import HAS_BF16

LOG2_E = np.float32(math.log2(math.e))
LN_2 = np.float32(math.log(2))

# Short names, since kernels cast often: an fp32 number, and a 32-bit word.
_F = np.float32
_W = np.uint32


class _BFloat(ir.types._BaseFloatType):
    """LLVM's type of a bf16 number, which llvmlite does not define."""

    null, intrinsic_name = "0.0", "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()
BFLOAT = _BFloat()


# --- number formats ---
# A Python function with an @overload is resolved while numba compiles, by the types of its arguments: a branch here
# costs nothing at run time. inline="always" puts the result into the calling loop, which can then be vectorized.


def to_f32(x):
    """A number of any storage format as fp32."""


@overload(to_f32, inline="always")
def _to_f32(x):
    if x == types.uint16:  # bf16: the missing lower half of the fp32 number is zeros
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    if x == types.int16:
        return lambda x: _fp16_to_f32(x)
    return lambda x: x


@intrinsic
def _fp16_to_f32(typing_context, bits):
    """LLVM's conversion from fp16: one instruction for a whole vector (x86: F16C)."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


def cast_like(array, x):
    """The fp32 number x in the storage format of `array` (fp32 or bf16)."""


@overload(cast_like, inline="always")
def _cast_like(array, x):
    if array.dtype == types.uint16:
        return lambda array, x: f32_to_bf16(x)
    return lambda array, x: x


def f32_to_bf16(x):
    """The bits of x rounded to bf16, ties to even."""


@overload(f32_to_bf16, inline="always")
def _f32_to_bf16(x):
    return (lambda x: _round_to_bf16_by_instruction(x)) if HAS_BF16 else (lambda x: _round_to_bf16(x))


@intrinsic
def _round_to_bf16_by_instruction(typing_context, x):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], BFLOAT), ir.IntType(16))

    return types.uint16(types.float32), generate


@compiled
def _round_to_bf16(x):
    """The same in integers, for other processors: add just under half a unit of the last place that stays, or exactly
    half if that place is odd; a carry into the exponent is right too. Then cut off the lower half."""
    bits = _F(x).view(np.uint32)
    odd = _W(_W(bits >> _W(16)) & _W(1))
    return np.uint16(_W(_W(bits + _W(odd + _W(0x7FFF))) >> _W(16)))


# --- exponentials ---
# libm's exp is a call per number, which a loop cannot vectorize. Both functions here are branch-free: split x into a
# whole number n and a rest r, evaluate a polynomial in r, and put n into the exponent bits. Training works in base 2
# throughout (scores are scaled by log2 e once, sums of weights are kept as log2), which saves a multiplication per
# number. Decoding has an e^x of higher accuracy.

# Adding 1.5 * 2^23 moves an fp32 number to where neighbors are 1 apart: it is rounded to a whole number, which then
# stands in the lowest mantissa bits. Subtracting it again gives that number, so these sums must not be reassociated.
ROUNDING_SHIFT = _F(12582912.0)

# The minimax polynomial of degree 5 for 2^r, |r| <= 1/2: its largest relative error is the least possible.
EXP2_POLYNOMIAL = (1.0, 0.69314696, 0.24022120, 0.055507133, 0.0096755413, 0.0013276472)


@compiled
def exp2(x):
    """2^x for x <= 127, relative error below 2e-7; 0 for x < -126 (no denormals). NaN stays NaN."""
    shifted = x + ROUNDING_SHIFT
    r = x - (shifted - ROUNDING_SHIFT)  # exact: both terms are near each other
    a, b, c, d, e, f = EXP2_POLYNOMIAL
    polynomial = _F(a) + r * (_F(b) + r * (_F(c) + r * (_F(d) + r * (_F(e) + r * _F(f)))))  # Horner's scheme
    # The integer n, moved to the exponent bits (23 and up) and added there, multiplies by 2^n.
    exponent = np.uint32(_F(shifted).view(np.uint32) << np.uint32(23))
    power = np.uint32(_F(polynomial).view(np.uint32) + exponent).view(np.float32)
    # Below 2^-126, the smallest normal number, the sum above would wrap around in the exponent bits. -inf, a masked
    # score, comes here too: its r is NaN, but the comparison still gives 0. The choice is a blend, not a branch.
    return _F(0.0) if x < _F(-126.0) else power


@compiled
def exp(x):
    """e^x to within two units in the last place, for -87 <= x <= 88; beyond them it stays at its end values."""
    # Beyond these ends the exponent would leave its 8 bits.
    x = min(max(x, _F(-87.0)), _F(88.0))
    shifted = x * LOG2_E + ROUNDING_SHIFT
    n = shifted - ROUNDING_SHIFT
    # r = x - n ln 2, with ln 2 in two parts so that nothing is lost (Cody and Waite): the first has so few bits that
    # its product with n is exact.
    r = x - n * _F(0.693359375) + n * _F(2.12194440e-4)
    # The Taylor series, |r| <= ln(2) / 2.
    series = _F(1.0) + r * (
        _F(1.0)
        + r * (_F(0.5) + r * (_F(1 / 6) + r * (_F(1 / 24) + r * (_F(1 / 120) + r * (_F(1 / 720) + r * _F(1 / 5040))))))
    )
    # 0x4B400000 are the bits of the shift, 127 is the exponent's bias.
    bits = np.uint32((_F(shifted).view(np.uint32) - np.uint32(0x4B400000) + np.uint32(127)) << np.uint32(23))
    return series * bits.view(np.float32)
