"""Memory layouts of the small matrices that `matmul.matmul` multiplies.

Operands lie in flat arrays of 32-bit words. For bf16 numbers, where the processor multiplies pairs of them, a word
holds such a pair: two neighbors along the dimension that is summed over, the first in the lower half. Otherwise a
word is one fp32 number. For a matrix whose rows are a, b, c, d, in pairs:

    row-major    a0 a1 | a2 a3   each row's words side by side: the sum runs along the row
                 b0 b1 | b2 b3
                 ...
    transposed   a0 a1 | b0 b1   the row-major words, column by column
                 a2 a3 | b2 b3
    row pairs    a0 b0 | a1 b1 | a2 b2 | a3 b3    two rows in one row of words: the sum runs down the column
                 c0 d0 | c1 d1 | c2 d2 | c3 d3

Without pairs, "row pairs" is the same as row-major.

A product's left operand is row-major: a word is followed by the next one along the sum. Its right operand is transposed
or in row pairs, which is the same seen from the result: a word is followed by the one for the result's next column.

So the layout follows from the sum. In scores = k @ q.T it runs over a head's width: k is row-major, q transposed. In
y.T = v.T @ weights it runs over the keys, the columns of v.T: v.T is row-major, that is, v in row pairs is transposed.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from tiny_gpt.kernels.compiled import compiled_reassoc
from tiny_gpt.kernels.processor import HAS_512_BITS, HAS_BF16
from tiny_gpt.kernels.vectors import LANES, store_lanes, store_pairs

_U = np.uint64

# Matrices are padded with zeros to a multiple of this many rows and columns, a whole number of tiles.
COLUMNS = 32


class Words(NamedTuple):
    """A matrix, or a part of one, in a flat array: word (i, j) is array[start + i * row_stride + j].

    All numbers are unsigned (np.uint64), which spares numba the question whether an index is negative.
    """

    array: NDArray[Any]
    start: np.uint64
    row_stride: np.uint64


def _is_paired(array: types.Array) -> bool:
    return HAS_BF16 and array.dtype == types.uint16


def numbers_per_word(like):
    """1, or 2 where numbers stored as those of the array `like` are multiplied in pairs."""


@overload(numbers_per_word, inline="always")
def _numbers_per_word(like):
    return (lambda like: _U(2)) if _is_paired(like) else (lambda like: _U(1))


def zeros_row_major(like, n_rows, n_columns):
    """A row-major matrix of zeros for numbers stored as those of the array `like`, flat. Not words yet: see
    `as_words`."""


@overload(zeros_row_major, inline="always")
def _zeros_row_major(like, n_rows, n_columns):
    # Without the pair instruction, bf16 numbers become fp32 once, when they are loaded.
    dtype = np.uint16 if _is_paired(like) else np.float32
    return lambda like, n_rows, n_columns: np.zeros(n_rows * n_columns, dtype)


def as_words(numbers):
    """The words of a row-major matrix, in the same memory."""


@overload(as_words, inline="always")
def _as_words(numbers):
    return (lambda numbers: numbers.view(np.uint32)) if _is_paired(numbers) else (lambda numbers: numbers)


# Rows and columns of a square of words that is transposed in registers, a vector of words in each.
_SQUARE = 16 if HAS_512_BITS else 8


@compiled_reassoc
def transpose(words, n_rows, n_words, out):
    """Row-major words, or numbers of 32 bits, become transposed ones: out[word, row] = words[row, word].

    Rows and words are multiples of 16.
    """
    for row in range(_U(0), n_rows, _U(_SQUARE)):
        for word in range(_U(0), n_words, _U(_SQUARE)):
            _transpose_square(words, row * n_words + word, n_words, out, word * n_rows + row, n_rows)


@intrinsic
def _transpose_square(typing_context, words, start, row_stride, out, out_start, out_row_stride):
    """A square of words, transposed in log2(_SQUARE) rounds: one with 1 x 1 blocks, which exchanges the off-diagonal
    words of each 2 x 2, then with 2 x 2 blocks, 4 x 4 and so on. (Word by word, each read would be of another line.)"""
    word, lane = ir.IntType(32), ir.IntType(32)
    vector, numbers = ir.VectorType(word, _SQUARE), range(_SQUARE)

    def generate(context, builder, signature, arguments):
        def rows(argument):
            array = context.make_array(signature.args[argument])(context, builder, arguments[argument])
            start, stride = arguments[argument + 1 : argument + 3]
            offsets = [builder.add(start, builder.mul(stride.type(number), stride)) for number in numbers]
            return [builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer()) for offset in offsets]

        square = [builder.load(address, align=4) for address in rows(0)]
        for size in (1 << round for round in range(_SQUARE.bit_length() - 1)):
            # Lanes of the second operand count from _SQUARE on.
            upper = [i if not i & size else i - size + _SQUARE for i in numbers]
            lower = [i + size if not i & size else i + _SQUARE for i in numbers]
            for first in (i for i in numbers if not i & size):
                pair = square[first], square[first + size]
                for row, lanes in ((first, upper), (first + size, lower)):
                    mask = ir.Constant(ir.VectorType(lane, _SQUARE), lanes)
                    square[row] = builder.shuffle_vector(*pair, mask)
        for row, address in zip(square, rows(3), strict=True):
            builder.store(row, address, align=4)
        return context.get_dummy_value()

    numbers_types = types.uint64, types.uint64
    return types.void(words, *numbers_types, out, *numbers_types), generate


def pack_row_pairs(numbers, n_rows, n_columns, out):
    """A row-major matrix becomes words in row pairs."""


@overload(pack_row_pairs)
def _pack_row_pairs(numbers, n_rows, n_columns, out):
    # Without pairs both layouts are the same; a copy keeps the callers alike.
    if not _is_paired(numbers):

        def copy(numbers, n_rows, n_columns, out):
            for i in range(n_rows * n_columns):
                out[i] = numbers[i]

        return copy

    def pack(numbers, n_rows, n_columns, out):
        # The first row's number goes into the lower half of a word, the second's into the upper half.
        for pair in range(n_rows // _U(2)):
            first = pair * _U(2) * n_columns
            for i in range(n_columns):
                second = np.uint32(np.uint32(numbers[first + n_columns + i]) << np.uint32(16))
                out[pair * n_columns + i] = np.uint32(numbers[first + i]) | second

    return pack


def store_row_pair(words, pair, n_columns, column, first, second):
    """Store vectors of the fp32 numbers of rows 2 * pair and 2 * pair + 1, from one column on, of a matrix in row
    pairs."""


@overload(store_row_pair)
def _store_row_pair(words, pair, n_columns, column, first, second):
    # The dtype of the words tells which layout it is.
    if words.dtype == types.uint32:

        def store_words(words, pair, n_columns, column, first, second):
            store_pairs(words, pair * n_columns + column, first, second)

        return store_words

    def store_numbers(words, pair, n_columns, column, first, second):
        index = (pair + pair) * n_columns + column
        store_lanes(words, index, first, LANES)
        store_lanes(words, index + n_columns, second, LANES)

    return store_numbers
