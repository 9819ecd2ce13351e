"""Small matrix products inside a compiled loop, as fast as the machine multiplies.

Operands lie in flat arrays of 32-bit words. For numbers in bf16, where the machine multiplies pairs of them, a word is
such a pair, two neighbours along the dimension that is summed over; otherwise it is one fp32 number. So a matrix has
three forms:

- natural: row by row. The words of a row are its numbers in order.
- transposed: the words of the natural form, column by column.
- stacked: with pairs, two rows at a time, their numbers of one column in one word; otherwise as the natural form.

The left operand is read word by word and may lie in any way; the right one is read 16 words at once, along what are
the columns of the result. Sums are fp32.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tiny_gpt.kernels.arithmetic import BFLOAT, HAS_512_BITS, HAS_BF16, bits_of_bf16
from tiny_gpt.kernels.compiled import compiled, compiled_reassoc

# Rows and columns of a result come in multiples of this; what is added to fill them up is zero.
COLUMNS = 32

_LANES = 16
# What is summed up at once in registers: 16 vectors of 512 bits, or 8 of 256.
_TILE_ROWS, _TILE_VECTORS = (8, 2) if HAS_512_BITS else (4, 1)

_U = np.uint64
_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
_SUMS = ir.VectorType(_F32, _LANES)


@compiled
def product(a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, n_steps, adds):
    """c = a @ b, or c += a @ b where `adds`, summed over `n_steps` words.

    Word (row, step) of a is a[a_start + row * a_row + step * a_step], word (step, column) of b is
    b[b_start + step * b_step + column], number (row, column) of c is c[c_start + row * c_row + column].
    """
    for row in range(_U(0), n_rows, _U(_TILE_ROWS)):
        for column in range(_U(0), n_columns, _U(_TILE_VECTORS * _LANES)):
            _tile(
                a, a_start + row * a_row, a_row, a_step,
                b, b_start + column, b_step,
                c, c_start + row * c_row + column, c_row,
                n_steps, adds,
            )  # fmt: skip


@intrinsic
def _tile(typing_context, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_steps, adds):
    """The part of a product whose sums are kept in registers."""

    def generate(context, builder, signature, arguments):
        a_start, a_row, a_step = (arguments[i] for i in (1, 2, 3))
        b_start, b_step, c_start, c_row, n_steps, adds = (arguments[i] for i in (5, 6, 8, 9, 10, 11))

        def address(argument, *offsets):
            array = context.make_array(signature.args[argument])(context, builder, arguments[argument])
            pointer = array.data
            for offset in offsets:
                pointer = builder.gep(pointer, [offset])
            return pointer

        def vector(pointer, kind, number):
            return builder.bitcast(builder.gep(pointer, [_I64(number * _LANES)]), kind.as_pointer())

        words = ir.VectorType(_I32 if signature.args[0].dtype == types.uint32 else _F32, _LANES)
        rows, vectors = range(_TILE_ROWS), range(_TILE_VECTORS)
        sums = [[cgutils.alloca_once(builder, _SUMS) for _ in vectors] for _ in rows]
        results = [address(7, builder.add(c_start, builder.mul(_I64(row), c_row))) for row in rows]
        with builder.if_else(adds) as (then, otherwise):
            with then:
                for row in rows:
                    for v in vectors:
                        builder.store(builder.load(vector(results[row], _SUMS, v), align=4), sums[row][v])
            with otherwise:
                for row in rows:
                    for v in vectors:
                        builder.store(ir.Constant(_SUMS, [0.0] * _LANES), sums[row][v])
        with cgutils.for_range(builder, n_steps, intp=_I64) as loop:
            b_words = address(4, b_start, builder.mul(loop.index, b_step))
            right = [builder.load(vector(b_words, words, v), align=4) for v in vectors]
            a_words = address(0, a_start, builder.mul(loop.index, a_step))
            for row in rows:
                left = _everywhere(builder, words, builder.load(builder.gep(a_words, [builder.mul(_I64(row), a_row)])))
                for v in vectors:
                    added = _multiply_add(builder, builder.load(sums[row][v]), left, right[v])
                    builder.store(added, sums[row][v])
        for row in rows:
            for v in vectors:
                builder.store(builder.load(sums[row][v]), vector(results[row], _SUMS, v), align=4)
        return context.get_dummy_value()

    numbers = [types.uint64] * 3
    return types.void(a, *numbers, b, *numbers[:2], c, *numbers, types.boolean), generate


def _everywhere(builder: ir.IRBuilder, words: ir.VectorType, word: ir.Value) -> ir.Value:
    undefined = ir.Constant(words, ir.Undefined)
    first = builder.insert_element(undefined, word, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES))


def _multiply_add(builder: ir.IRBuilder, sums: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
    """sums + left * right in every lane, for pairs with both products."""
    if left.type == _SUMS:
        kind, name = ir.FunctionType(_SUMS, [_SUMS] * 3), f"llvm.fma.v{_LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [left, right, sums])
    pairs = ir.VectorType(BFLOAT, 2 * _LANES)
    kind = ir.FunctionType(_SUMS, [_SUMS, pairs, pairs])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [sums, builder.bitcast(left, pairs), builder.bitcast(right, pairs)])


def pair_of(like):
    """Numbers in a word, for operands of the dtype that the array `like` is stored in."""


@overload(pair_of, inline="always")
def _pair_of_for(like):
    return (lambda like: _U(2)) if _in_pairs(like) else (lambda like: _U(1))


def natural(like, n_rows, n_columns):
    """Room for a matrix in its natural form, filled with zeros."""


@overload(natural, inline="always")
def _natural_for(like, n_rows, n_columns):
    kind = np.uint16 if _in_pairs(like) else np.float32
    return lambda like, n_rows, n_columns: np.zeros(n_rows * n_columns, kind)


def words_of(numbers):
    """The words of a matrix in its natural form."""


@overload(words_of, inline="always")
def _words_of_for(numbers):
    return (lambda numbers: numbers.view(np.uint32)) if _in_pairs(numbers) else (lambda numbers: numbers)


@compiled_reassoc
def transpose(words, n_rows, n_words, out):
    """The natural form of rows of `n_words` becomes the transposed one."""
    for word in range(n_words):
        for row in range(n_rows):
            out[word * n_rows + row] = words[row * n_words + word]


def stack(numbers, n_rows, n_columns, out):
    """The natural form becomes the stacked one."""


@overload(stack)
def _stack_for(numbers, n_rows, n_columns, out):
    if not _in_pairs(numbers):

        def copy(numbers, n_rows, n_columns, out):
            for i in range(n_rows * n_columns):
                out[i] = numbers[i]

        return copy

    def stack_pairs(numbers, n_rows, n_columns, out):
        for pair in range(n_rows // _U(2)):
            above = pair * _U(2) * n_columns
            for i in range(n_columns):
                below = np.uint32(np.uint32(numbers[above + n_columns + i]) << np.uint32(16))
                out[pair * n_columns + i] = np.uint32(numbers[above + i]) | below

    return stack_pairs


def put_stacked(words, pair, n_columns, column, first, second):
    """Put the numbers of rows 2 * pair and 2 * pair + 1 in one column into a stacked matrix of `n_columns` columns."""


@overload(put_stacked, inline="always")
def _put_stacked_for(words, pair, n_columns, column, first, second):
    if words.dtype == types.uint32:

        def put_word(words, pair, n_columns, column, first, second):
            above = np.uint32(np.uint32(bits_of_bf16(second)) << np.uint32(16))
            words[pair * n_columns + column] = np.uint32(np.uint32(bits_of_bf16(first)) | above)

        return put_word

    def put_numbers(words, pair, n_columns, column, first, second):
        place = (pair + pair) * n_columns + column
        words[place], words[place + n_columns] = first, second

    return put_numbers


def _in_pairs(array: types.Array) -> bool:
    return HAS_BF16 and array.dtype == types.uint16
