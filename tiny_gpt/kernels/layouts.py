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

Without pairs, "row pairs" is the same as row-major. The left operand is read one word at a time and may lie in any way.
The right one is read 16 words at a time along the columns of the result, so those must be neighbors.

The layout follows from the sum: in scores = q @ k.T it runs over a head's width, so one operand is row-major and the
other transposed; in y = weights @ v it runs over the keys, so v lies in row pairs.
"""

import numpy as np
from numba import types
from numba.extending import overload

from tiny_gpt.kernels.arithmetic import HAS_BF16, f32_to_bf16
from tiny_gpt.kernels.compiled import compiled_reassoc

_U = np.uint64

# Matrices are padded with zeros to a multiple of this many rows and columns, a whole number of tiles.
COLUMNS = 32


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


@compiled_reassoc
def transpose(words, n_rows, n_words, out):
    """Row-major words become transposed ones: out[word, row] = words[row, word]. Writes are in order, reads jump."""
    for word in range(n_words):
        for row in range(n_rows):
            out[word * n_rows + row] = words[row * n_words + word]


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
    """Store the fp32 numbers of rows 2 * pair and 2 * pair + 1 in one column of a matrix in row pairs."""


@overload(store_row_pair, inline="always")
def _store_row_pair(words, pair, n_columns, column, first, second):
    # The dtype of the words tells which layout it is.
    if words.dtype == types.uint32:

        def store_word(words, pair, n_columns, column, first, second):
            upper = np.uint32(np.uint32(f32_to_bf16(second)) << np.uint32(16))
            words[pair * n_columns + column] = np.uint32(np.uint32(f32_to_bf16(first)) | upper)

        return store_word

    def store_numbers(words, pair, n_columns, column, first, second):
        index = (pair + pair) * n_columns + column
        words[index], words[index + n_columns] = first, second

    return store_numbers
