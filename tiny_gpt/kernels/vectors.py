"""Sixteen fp32 numbers that a kernel computes with at once: `Vector`.

LLVM vectorizes a plain loop by itself, for the many numbers that it expects. A head has 32 or 64 numbers in a row, and
for those the loop that it made ran number by number (docs/log/training-step.md). With vectors a kernel says what it
wants: `load_lanes`, arithmetic with + - *, `total` and `store_lanes`.

Arrays are flat, with an index, or have two dimensions, with (row, column). Where fewer than LANES numbers are left in a
row, `load_lanes` and `store_lanes` take that many: the other lanes are loaded as zeros and are not stored.

`WordVector` is sixteen 32-bit words, of random bits.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from tiny_gpt.kernels.arithmetic import BFLOAT, EXP2_POLYNOMIAL, ROUNDING_SHIFT
from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.processor import HAS_BF16

# In one register of 512 bits; where registers have 256, LLVM makes two instructions of one.
LANES = 16

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32S, _I32S, _I16S = (ir.VectorType(number, LANES) for number in (ir.FloatType(), _I32, _I16))


class _VectorType(types.Type):
    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        super().__init__(name=name)
        self.llvm_type = llvm_type


Vector, WordVector = _VectorType("Vector", _F32S), _VectorType("WordVector", _I32S)


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _VectorType) -> None:
        super().__init__(manager, vector, vector.llvm_type)


# --- between memory and registers ---


def load_lanes(array, index, n):
    """The next `n` <= LANES numbers of an fp32 or bf16 array, from `index` on."""


def store_lanes(array, index, vector, n):
    """Store the first `n` <= LANES numbers, in the format of the array."""


@overload(load_lanes)
def _load(array, index, n):
    return lambda array, index, n: _load_all(array, index) if n >= LANES else _load_some(array, index, n)


@overload(store_lanes)
def _store(array, index, vector, n):
    def choose(array, index, vector, n):
        if n >= LANES:
            _store_all(array, index, vector)
        else:
            _store_some(array, index, vector, n)

    return choose


@intrinsic
def _load_all(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        stored = _F32S if array.dtype == types.float32 else _I16S
        pointer = builder.bitcast(_pointer(context, builder, signature, arguments), stored.as_pointer())
        return _widen(builder, builder.load(pointer, align=_alignment(array)))

    return Vector(array, index), generate


@intrinsic
def _load_some(typing_context, array, index, n):
    def generate(context, builder, signature, arguments):
        pointer, lanes = _pointer(context, builder, signature, arguments), cgutils.alloca_once(builder, _F32S)
        builder.store(ir.Constant(_F32S, None), lanes)
        with cgutils.for_range(builder, arguments[2], intp=_I64) as loop:
            number = _widen(builder, builder.load(builder.gep(pointer, [loop.index])))
            builder.store(builder.insert_element(builder.load(lanes), number, loop.index), lanes)
        return builder.load(lanes)

    return Vector(array, index, types.uint64), generate


@intrinsic
def _store_all(typing_context, array, index, vector):
    def generate(context, builder, signature, arguments):
        narrow = _narrow(builder, array, arguments[2])
        pointer = builder.bitcast(_pointer(context, builder, signature, arguments), narrow.type.as_pointer())
        builder.store(narrow, pointer, align=_alignment(array))
        return context.get_dummy_value()

    return types.void(array, index, Vector), generate


@intrinsic
def _store_some(typing_context, array, index, vector, n):
    def generate(context, builder, signature, arguments):
        narrow, pointer = _narrow(builder, array, arguments[2]), _pointer(context, builder, signature, arguments)
        with cgutils.for_range(builder, arguments[3], intp=_I64) as loop:
            builder.store(builder.extract_element(narrow, loop.index), builder.gep(pointer, [loop.index]))
        return context.get_dummy_value()

    return types.void(array, index, Vector, types.uint64), generate


def store_pairs(words, index, first, second):
    """Store two rows of a matrix in row pairs (layouts.py): LANES words from `index` on."""


@overload(store_pairs)
def _store_pairs(words, index, first, second):
    return lambda words, index, first, second: _store_all_pairs(words, index, first, second)


@intrinsic
def _store_all_pairs(typing_context, words, index, first, second):
    def generate(context, builder, signature, arguments):
        lower, upper = (builder.zext(_to_bf16(builder, vector), _I32S) for vector in arguments[2:])
        pairs = builder.or_(lower, builder.shl(upper, _words(16)))
        pointer = builder.bitcast(_pointer(context, builder, signature, arguments), _I32S.as_pointer())
        builder.store(pairs, pointer, align=4)
        return context.get_dummy_value()

    return types.void(words, index, Vector, Vector), generate


def _words(*numbers: int) -> ir.Constant:
    """One number for each lane, or one for all."""
    return ir.Constant(_I32S, list(numbers) if len(numbers) == LANES else [*numbers] * LANES)


def _pointer(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    """To the number of the array, argument 0, that the index, argument 1, names."""
    array_type, index_type = signature.args[:2]
    array = context.make_array(array_type)(context, builder, arguments[0])
    is_pair = isinstance(index_type, types.BaseTuple)
    indices = cgutils.unpack_tuple(builder, arguments[1]) if is_pair else [arguments[1]]
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


def _alignment(array: types.Array) -> int:
    """Arrays are only as aligned as their numbers."""
    return 4 if array.dtype == types.float32 else 2


def _widen(builder: ir.IRBuilder, stored: ir.Value) -> ir.Value:
    """Stored numbers, or one, as fp32: bf16 is the upper half of it."""
    is_vector = isinstance(stored.type, ir.VectorType)
    if stored.type in (_F32S, ir.FloatType()):
        return stored
    words = builder.zext(stored, _I32S if is_vector else _I32)
    shifted = builder.shl(words, _words(16) if is_vector else _I32(16))
    return builder.bitcast(shifted, _F32S if is_vector else ir.FloatType())


def _narrow(builder: ir.IRBuilder, array: types.Array, vector: ir.Value) -> ir.Value:
    """The vector in the format of the array, rounded as arithmetic.cast_like does."""
    return vector if array.dtype == types.float32 else _to_bf16(builder, vector)


def _to_bf16(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    if HAS_BF16:
        return builder.bitcast(builder.fptrunc(vector, ir.VectorType(BFLOAT, LANES)), _I16S)
    bits = builder.bitcast(vector, _I32S)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, _words(0x7FFF))), _words(16)), _I16S)


# --- arithmetic ---


def fill(x):
    """A vector with the fp32 number x in every lane."""


@overload(fill)
def _fill(x):
    return lambda x: _broadcast(x)


@intrinsic
def _broadcast(typing_context, x):
    def generate(context, builder, signature, arguments):
        return _broadcast_value(builder, arguments[0])

    return Vector(types.float32), generate


def _broadcast_value(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    # LLVM recognizes this pattern and emits one broadcast.
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(first, undefined, _words(0))


def _binary(operation: Callable[..., ir.Value]) -> Any:
    @intrinsic
    def compute(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            return operation(builder, *arguments)

        return Vector(Vector, Vector), generate

    return compute


def _define_operator(symbol: Callable[..., Any], compute: Any) -> None:
    """Between two vectors, or a vector and a number that stands for a vector of it."""

    @overload(symbol)
    def _operator(a, b):
        if a is Vector and b is Vector:
            return lambda a, b: compute(a, b)
        if a is Vector and b == types.float32:
            return lambda a, b: compute(a, _broadcast(b))
        if a == types.float32 and b is Vector:
            return lambda a, b: compute(_broadcast(a), b)
        return None


_define_operator(operator.add, _binary(ir.IRBuilder.fadd))
_define_operator(operator.iadd, _binary(ir.IRBuilder.fadd))
_define_operator(operator.sub, _binary(ir.IRBuilder.fsub))
_define_operator(operator.mul, _binary(ir.IRBuilder.fmul))


def maximum(a, b):
    """The larger number in each lane."""


@overload(maximum)
def _maximum(a, b):
    return lambda a, b: _larger(a, b)


@intrinsic
def _larger(typing_context, a, b):
    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return Vector(Vector, Vector), generate


@compiled
def exp2_of(vector):
    """arithmetic.exp2 in every lane."""
    # A function of its own: its sums must not be reassociated, and numba sets LLVM's fast-math flags by function.
    return _exp2(vector)


@intrinsic
def _exp2(typing_context, vector):
    def generate(context, builder, signature, arguments):
        x, shift = arguments[0], _numbers(ROUNDING_SHIFT)
        shifted = builder.fadd(x, shift)
        r = builder.fsub(x, builder.fsub(shifted, shift))
        *lower, highest = EXP2_POLYNOMIAL
        polynomial = _numbers(highest)
        for coefficient in reversed(lower):
            polynomial = builder.fadd(builder.fmul(r, polynomial), _numbers(coefficient))
        exponent = builder.shl(builder.bitcast(shifted, _I32S), _words(23))
        power = builder.bitcast(builder.add(builder.bitcast(polynomial, _I32S), exponent), _F32S)
        return builder.select(builder.fcmp_ordered("<", x, _numbers(-126.0)), _numbers(0.0), power)

    return Vector(Vector), generate


def _numbers(number: float) -> ir.Constant:
    return ir.Constant(_F32S, [float(number)] * LANES)


def total(vector):
    """The sum of all lanes."""


@overload(total)
def _total(vector):
    return lambda vector: _add_lanes(vector)


@intrinsic
def _add_lanes(typing_context, vector):
    def generate(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _F32S])
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.vector.reduce.fadd.v{LANES}f32")
        # Halves are added to halves; without `reassoc` it would be one lane after the other.
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(Vector), generate


# --- dropout ---


def random_words(number, seeds):
    """dropout.random_bits of `number` and of the LANES - 1 numbers that follow."""


@overload(random_words)
def _random_words(number, seeds):
    return lambda number, seeds: _hash(number, seeds[0], seeds[1])


@intrinsic
def _hash(typing_context, number, first_seed, second_seed):
    def generate(context, builder, signature, arguments):
        number, first_seed, second_seed = (_broadcast_value(builder, word) for word in arguments)
        x = builder.add(number, _words(*range(LANES)))
        x = builder.xor(builder.mul(x, _words(0x9E3779B1)), first_seed)
        x = builder.xor(x, builder.lshr(x, _words(16)))
        x = builder.add(builder.mul(x, _words(0x85EBCA6B)), second_seed)
        x = builder.xor(x, builder.lshr(x, _words(13)))
        x = builder.mul(x, _words(0xC2B2AE35))
        return builder.xor(x, builder.lshr(x, _words(16)))

    return WordVector(types.uint32, types.uint32, types.uint32), generate


def drop(vector, words, threshold, is_upper):
    """`vector` with zeros where the lower, or upper, 16 bits of a word are less than `threshold`."""


@overload(drop)
def _drop(vector, words, threshold, is_upper):
    return lambda vector, words, threshold, is_upper: _keep(vector, words, threshold, is_upper)


@intrinsic
def _keep(typing_context, vector, words, threshold, is_upper):
    def generate(context, builder, signature, arguments):
        vector, words, threshold, is_upper = arguments
        lower, upper = builder.and_(words, _words(0xFFFF)), builder.lshr(words, _words(16))
        bits = builder.select(is_upper, upper, lower)
        keeps = builder.icmp_unsigned(">=", bits, _broadcast_value(builder, threshold))
        return builder.select(keeps, vector, _numbers(0.0))

    return Vector(Vector, WordVector, types.uint32, types.boolean), generate
