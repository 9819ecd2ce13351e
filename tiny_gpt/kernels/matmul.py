"""The two matrix products of the kernels. Large products between them are torch's.

`matmul` is for training's attention: small matrices that lie in a core's own cache, so that arithmetic is the limit. It
keeps a tile of the result in registers and uses the processor's bf16 instructions, or its matrix registers (amx.py),
where it has them.

`matmul_few_rows` is for decoding: one or a few rows times a large weight matrix. With one row, reading the weights is
the limit. They are stored in exactly the order in which they are read, in 16 bits where wanted, and each result is
added up in the same order however many rows there are.

R rows of the left operand, K inputs (the numbers of a row, which the sum runs over), N outputs; a weight is stored as L
layers, T tiles of J outputs each.

One function for both would be slower at either: a register tile of 4 to 8 rows is mostly empty when one row is decoded,
and decoding's order of sums, which makes results independent of the number of rows, has no place for pairs.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from tiny_gpt.kernels import amx
from tiny_gpt.kernels.arithmetic import BFLOAT, to_f32
from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.processor import HAS_512_BITS, HAS_AMX

_U = np.uint64

# --- matmul: a tile of the result in registers ---

# Words in a vector of 512 bits; where registers have 256, LLVM makes two instructions of one.
_LANES = 16
# Sums in registers: 8 rows of 2 vectors are 16 of the 32 registers of 512 bits, the others hold operands; 4 rows of 1
# vector are 8 of the 16 registers of 256 bits. Each word of the left operand is used 2 * 16 (1 * 16) times after one
# load, each vector of the right one 8 (4) times, so that multiply-adds outnumber loads.
_TILE_ROWS, _TILE_VECTORS = (8, 2) if HAS_512_BITS else (4, 1)

_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
_SUMS = ir.VectorType(_F32, _LANES)


@compiled
def matmul(left, right, result, n_rows, n_columns, n_words, accumulate):
    """result = left @ right, or result += left @ right; sums over `n_words` words, in fp32. All are layouts.Words.

    `n_rows` and `n_columns` are multiples of layouts.COLUMNS; `n_words` as well, or half of one where a word is a pair.
    """
    _matmul(left, right, result, n_rows, n_columns, n_words, accumulate)


def _matmul(left, right, result, n_rows, n_columns, n_words, accumulate):
    """One of the two below, by the type of the words."""


@overload(_matmul)
def _choose_matmul(left, right, result, n_rows, n_columns, n_words, accumulate):
    chosen = _matmul_by_amx if HAS_AMX and left[0].dtype == types.uint32 else _matmul_by_vectors

    def choose(left, right, result, n_rows, n_columns, n_words, accumulate):
        chosen(left, right, result, n_rows, n_columns, n_words, accumulate)

    return choose


@compiled
def _matmul_by_amx(left, right, result, n_rows, n_columns, n_words, accumulate):
    a, a_start, a_row = left
    b, b_start, b_row = right
    c, c_start, c_row = result
    amx.configure()
    for row in range(_U(0), n_rows, _U(amx.BLOCK)):
        for column in range(_U(0), n_columns, _U(amx.BLOCK)):
            amx.multiply_block(
                a, a_start + row * a_row, a_row,
                b, b_start + column, b_row,
                c, c_start + row * c_row + column, c_row,
                n_words, accumulate,
            )  # fmt: skip
    amx.release()


@compiled
def _matmul_by_vectors(left, right, result, n_rows, n_columns, n_words, accumulate):
    # Unpacked once: in the loop each field would be taken out of its tuple again.
    a, a_start, a_row = left
    b, b_start, b_row = right
    c, c_start, c_row = result
    for row in range(_U(0), n_rows, _U(_TILE_ROWS)):
        # Columns inside: the tile's rows of `left` stay in the first-level cache, while `right` passes by.
        for column in range(_U(0), n_columns, _U(_TILE_VECTORS * _LANES)):
            _multiply_tile(
                a, a_start + row * a_row, a_row,
                b, b_start + column, b_row,
                c, c_start + row * c_row + column, c_row,
                n_words, accumulate,
            )  # fmt: skip


@intrinsic
def _multiply_tile(typing_context, a, a_start, a_row, b, b_start, b_row, c, c_start, c_row, n_words, adds):
    """One tile of the result, written in LLVM's own instructions: numba has no vector types, and LLVM's vectorizer does
    not find this tiling by itself.

    For each word along the sum: load 1 or 2 vectors of the right operand; for each row broadcast a word of the left one
    and multiply-add. This is the outer-product form of the BLIS micro-kernel (Van Zee and van de Geijn 2015).
    """

    # Loops in Python over rows and vectors unroll: what they emit are separate instructions.
    def generate(context, builder, signature, arguments):
        a_start, a_row, b_start, b_row = (arguments[i] for i in (1, 2, 4, 5))
        c_start, c_row, n_words, adds = (arguments[i] for i in (7, 8, 9, 10))

        def address(argument, *offsets):
            array = context.make_array(signature.args[argument])(context, builder, arguments[argument])
            pointer = array.data
            for offset in offsets:
                pointer = builder.gep(pointer, [offset])
            return pointer

        def vector(pointer, vector_type, number):
            return builder.bitcast(builder.gep(pointer, [_I64(number * _LANES)]), vector_type.as_pointer())

        word_type = _I32 if signature.args[0].dtype == types.uint32 else _F32
        word_vector = ir.VectorType(word_type, _LANES)
        rows, vectors = range(_TILE_ROWS), range(_TILE_VECTORS)
        # Stack slots that LLVM turns into registers.
        sums = [[cgutils.alloca_once(builder, _SUMS) for _ in vectors] for _ in rows]
        results = [address(6, builder.add(c_start, builder.mul(_I64(row), c_row))) for row in rows]
        # Start from the result as it is, or from zero.
        with builder.if_else(adds) as (then, otherwise):
            with then:
                for row in rows:
                    for v in vectors:
                        builder.store(builder.load(vector(results[row], _SUMS, v), align=4), sums[row][v])
            with otherwise:
                for row in rows:
                    for v in vectors:
                        builder.store(ir.Constant(_SUMS, [0.0] * _LANES), sums[row][v])
        # The loop along the sum. Arrays are only as aligned as their numbers (align=4).
        with cgutils.for_range(builder, n_words, intp=_I64) as loop:
            b_words = address(3, b_start, builder.mul(loop.index, b_row))
            right = [builder.load(vector(b_words, word_vector, v), align=4) for v in vectors]
            a_words = address(0, a_start, loop.index)
            for row in rows:
                a_word = builder.load(builder.gep(a_words, [builder.mul(_I64(row), a_row)]))
                left = _broadcast(builder, word_vector, a_word)
                for v in vectors:
                    added = _multiply_add(builder, builder.load(sums[row][v]), left, right[v])
                    builder.store(added, sums[row][v])
        # Each sum is written to memory once.
        for row in rows:
            for v in vectors:
                builder.store(builder.load(sums[row][v]), vector(results[row], _SUMS, v), align=4)
        return context.get_dummy_value()

    number = types.uint64
    return types.void(a, number, number, b, number, number, c, number, number, number, types.boolean), generate


def _broadcast(builder: ir.IRBuilder, vector_type: ir.VectorType, word: ir.Value) -> ir.Value:
    """A vector with `word` in every lane."""
    # LLVM recognizes this pattern and emits one broadcast.
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, word, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES))


def _multiply_add(builder: ir.IRBuilder, sums: ir.Value, left: ir.Value, right: ir.Value) -> ir.Value:
    """sums + left * right in every lane; for pairs, both products of a lane are added to its sum."""
    if left.type == _SUMS:
        function_type, name = ir.FunctionType(_SUMS, [_SUMS] * 3), f"llvm.fma.v{_LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [left, right, sums])
    # llvmlite has no function for this instruction (VDPBF16PS); it is called by its name in LLVM.
    pairs = ir.VectorType(BFLOAT, 2 * _LANES)
    function_type = ir.FunctionType(_SUMS, [_SUMS, pairs, pairs])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [sums, builder.bitcast(left, pairs), builder.bitcast(right, pairs)])


# --- matmul_few_rows: weights in the order in which they are read ---

# Columns of the result that are added up together, 256 bytes in fp32. Sums of one or two rows, four rows of weights and
# the inputs stay in the first-level cache (32 KiB or more), where sums are read and written for every four inputs.
TILE = 64
# Sums in registers, as above: 8 rows of 2 vectors, or 4 rows of all 4 vectors of a tile, which converts weights more
# often; where registers have 256 bits, 4 rows of 1 vector for both.
_MANY_ROWS, _FEW_VECTORS = _TILE_ROWS, _TILE_VECTORS
_SOME_ROWS, _SOME_VECTORS = (4, 4) if HAS_512_BITS else (4, 1)


def tile_weights(weight_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight matrix as `matmul_few_rows` reads it: (N / TILE rounded up, K, TILE), padded with zeros.

    [tile, k, j] is the weight of output tile * TILE + j and input k.
    """
    n, k = weight_NK.shape
    n_tiles = -(-n // TILE)
    padded = np.zeros((n_tiles * TILE, k), dtype=np.float32)
    padded[:n] = weight_NK
    return np.ascontiguousarray(padded.reshape(n_tiles, TILE, k).transpose(0, 2, 1))


@compiled
def matmul_few_rows(weight_LTKJ, layer, x_RK, y_RN, n_rows, first_tile, end_tile):
    """y += x @ weight.T for the outputs of some tiles of one layer. L layers, T tiles of J = TILE outputs, K inputs.

    Several rows are taken at a time, so that a weight is read and converted once for them. Each output is added up
    input by input in the same order whichever of the functions below computes its row: a text is the same to the bit,
    whatever is generated beside it.
    """
    layer, n_rows = _U(layer), _U(n_rows)
    # A tile of weights at a time, all rows with it: it is read from memory once and then from the cache.
    for t in range(_U(first_tile), _U(end_tile)):
        row = _U(0)
        n_inputs = _U(weight_LTKJ.shape[2]) // _U(4) * _U(4)
        while row + _U(_MANY_ROWS) <= n_rows:
            for column in range(_U(0), _U(TILE), _U(_FEW_VECTORS * _LANES)):
                _add_many_rows(weight_LTKJ, layer, t, column, x_RK, y_RN, row, n_inputs)
            row += _U(_MANY_ROWS)
        while row + _U(_SOME_ROWS) <= n_rows:
            for column in range(_U(0), _U(TILE), _U(_SOME_VECTORS * _LANES)):
                _add_some_rows(weight_LTKJ, layer, t, column, x_RK, y_RN, row, n_inputs)
            row += _U(_SOME_ROWS)
        while row + _U(2) <= n_rows:
            _add_two_rows(weight_LTKJ, layer, t, x_RK, y_RN, row)
            row += _U(2)
        if row < n_rows:
            _add_one_row(weight_LTKJ, layer, t, x_RK, y_RN, row)
        _add_last_inputs(weight_LTKJ, layer, t, x_RK, y_RN, n_rows)


def _register_tile(n_rows: int, n_vectors: int) -> Any:
    """A function that adds to `n_rows` rows and `n_vectors` vectors of columns of a tile, from `column` of tile `t` on.

    Sums stay in registers over all inputs, and a vector of weights is read and converted once for all rows. In LLVM's
    own instructions, like `_multiply_tile`. Each sum is y, then one fused multiply-add for each input, in their order.
    """

    @intrinsic
    def add(typing_context, weight_LTKJ, layer, t, column, x_RK, y_RN, row, n_inputs):
        def generate(context, builder, signature, arguments):
            layer, t, column, row, n_inputs = (arguments[i] for i in (1, 2, 3, 6, 7))

            def pointer(argument, *indices):
                array_type = signature.args[argument]
                array = context.make_array(array_type)(context, builder, arguments[argument])
                return cgutils.get_item_pointer(context, builder, array_type, array, indices)

            def vector(start, vector_type, number):
                return builder.bitcast(builder.gep(start, [_I64(number * _LANES)]), vector_type.as_pointer())

            def weights(start, number):
                if signature.args[0].dtype == types.int16:
                    halves = builder.load(vector(start, ir.VectorType(ir.HalfType(), _LANES), number), align=2)
                    return builder.fpext(halves, _SUMS)
                return builder.load(vector(start, _SUMS, number), align=4)

            rows, vectors, zero = range(n_rows), range(n_vectors), _I64(0)
            row_numbers = [builder.add(row, _I64(r)) for r in rows]
            first_output = builder.add(builder.mul(t, _I64(TILE)), column)
            sums = [[cgutils.alloca_once(builder, _SUMS) for _ in vectors] for _ in rows]
            results = [pointer(5, number, first_output) for number in row_numbers]
            inputs = [pointer(4, number, zero) for number in row_numbers]
            for r in rows:
                for v in vectors:
                    builder.store(builder.load(vector(results[r], _SUMS, v), align=4), sums[r][v])
            tile = pointer(0, layer, t, zero, column)
            with cgutils.for_range(builder, n_inputs, intp=_I64) as loop:
                start = builder.gep(tile, [builder.mul(loop.index, _I64(TILE))])
                right = [weights(start, v) for v in vectors]
                for r in rows:
                    left = _broadcast(builder, _SUMS, builder.load(builder.gep(inputs[r], [loop.index])))
                    for v in vectors:
                        builder.store(_multiply_add(builder, builder.load(sums[r][v]), left, right[v]), sums[r][v])
            for r in rows:
                for v in vectors:
                    builder.store(builder.load(sums[r][v]), vector(results[r], _SUMS, v), align=4)
            return context.get_dummy_value()

        numbers = [types.uint64] * 3
        return types.void(weight_LTKJ, *numbers, x_RK, y_RN, types.uint64, types.uint64), generate

    return add


_add_many_rows, _add_some_rows = _register_tile(_MANY_ROWS, _FEW_VECTORS), _register_tile(_SOME_ROWS, _SOME_VECTORS)


# The two functions below are one loop, written out for 2 and 1 rows, whose innermost loop runs over a tile's outputs.
# Four inputs are taken at a time, so that y is read and written a quarter as often. The inputs are variables, which
# LLVM keeps in registers; a small array of them would live in memory. Each line is four fused multiply-adds from left
# to right, starting from y, the same order in both; with `y += ...` the four products would be added up first.


@compiled
def _add_two_rows(weight_LTKJ, layer, t, x_RK, y_RN, r):
    one, two, three, four, tile = _U(1), _U(2), _U(3), _U(4), _U(TILE)
    r1, start = r + one, t * tile
    for i in range(_U(weight_LTKJ.shape[2]) // four):
        k = i * four
        k1, k2, k3 = k + one, k + two, k + three
        a, a1, a2, a3 = x_RK[r, k], x_RK[r, k1], x_RK[r, k2], x_RK[r, k3]
        b, b1, b2, b3 = x_RK[r1, k], x_RK[r1, k1], x_RK[r1, k2], x_RK[r1, k3]
        for j in range(tile):
            n = start + j
            w, w1 = to_f32(weight_LTKJ[layer, t, k, j]), to_f32(weight_LTKJ[layer, t, k1, j])
            w2, w3 = to_f32(weight_LTKJ[layer, t, k2, j]), to_f32(weight_LTKJ[layer, t, k3, j])
            y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3
            y_RN[r1, n] = y_RN[r1, n] + b * w + b1 * w1 + b2 * w2 + b3 * w3


@compiled
def _add_one_row(weight_LTKJ, layer, t, x_RK, y_RN, r):
    one, two, three, four, tile = _U(1), _U(2), _U(3), _U(4), _U(TILE)
    start = t * tile
    for i in range(_U(weight_LTKJ.shape[2]) // four):
        k = i * four
        k1, k2, k3 = k + one, k + two, k + three
        a, a1, a2, a3 = x_RK[r, k], x_RK[r, k1], x_RK[r, k2], x_RK[r, k3]
        for j in range(tile):
            n = start + j
            w, w1 = to_f32(weight_LTKJ[layer, t, k, j]), to_f32(weight_LTKJ[layer, t, k1, j])
            w2, w3 = to_f32(weight_LTKJ[layer, t, k2, j]), to_f32(weight_LTKJ[layer, t, k3, j])
            y_RN[r, n] = y_RN[r, n] + a * w + a1 * w1 + a2 * w2 + a3 * w3


@compiled
def _add_last_inputs(weight_LTKJ, layer, t, x_RK, y_RN, n_rows):
    """The up to three inputs that are left over, for all rows."""
    n_inputs, tile = _U(weight_LTKJ.shape[2]), _U(TILE)
    start = t * tile
    for k in range(n_inputs // _U(4) * _U(4), n_inputs):
        for row in range(n_rows):
            a = x_RK[row, k]
            for j in range(tile):
                y_RN[row, start + j] = y_RN[row, start + j] + a * to_f32(weight_LTKJ[layer, t, k, j])
