"""Matrix products in the matrix registers of Intel's AMX: 8 registers of 16 rows of 64 bytes.

One instruction, TDPBF16PS, multiplies 16 x 32 by 32 x 16 bf16 numbers and adds the products to 16 x 16 fp32 sums, the
work of 256 vector instructions. The left operand is row-major, the right one in row pairs (layouts.py), both as
`matmul.matmul` has them.

numba knows nothing of matrix registers, so the functions here are written in LLVM's instructions, which name registers
by number. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Rows and columns of the result that `multiply_block` computes, and words along the sum that it takes at a time. With 4
# registers of sums and 2 of each operand, 4 products follow 4 loads; a smaller block would load more often.
BLOCK, WORDS = 32, 16

_SUMS, _LEFT, _RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)
_HALVES = (0, 1)
_ROWS, _BYTES, _WORD_BYTES = 16, 64, 4
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_POINTER = _I8.as_pointer()
# The configuration that LDTILECFG reads: palette 1, 14 reserved bytes, bytes per row of each register (2 bytes each, 16
# entries), rows of each register.
_CONFIGURATION = [1, *[0] * 15, *[_BYTES, 0] * 8, *[0] * 16, *[_ROWS] * 8, *[0] * 8]


def _instruction(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> None:
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}"), arguments)


@intrinsic
def configure(typing_context: Any) -> Any:
    """Make the thread's matrix registers ready. Every caller must call `release` before it returns."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        constant = ir.Constant(ir.ArrayType(_I8, len(_CONFIGURATION)), bytearray(_CONFIGURATION))
        address = cgutils.global_constant(builder.module, "amx_configuration", constant)
        _instruction(builder, "ldtilecfg", builder.bitcast(address, _POINTER))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release(typing_context: Any) -> Any:
    """Empty the matrix registers: the system then need not save their 8 KiB when it switches threads."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _instruction(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply_block(typing_context, a, a_start, a_row, b, b_start, b_row, c, c_start, c_row, n_words, adds):
    """A block of 32 x 32 of the result: c = a @ b, or c += a @ b if `adds`. Starts and row strides count words;
    `n_words` is a multiple of 16."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        n_words, adds = arguments[9:]

        def operand(argument: int) -> tuple[Callable[..., ir.Value], ir.Value]:
            """The address of a row and a byte of it, in a matrix that begins at arguments `argument` and the next one,
            and the bytes from row to row."""
            array = context.make_array(signature.args[argument])(context, builder, arguments[argument])
            start, row_bytes = (builder.mul(arguments[argument + i], _I64(_WORD_BYTES)) for i in (1, 2))
            first = builder.gep(builder.bitcast(array.data, _POINTER), [start])

            def address(row: ir.Value, byte: ir.Value) -> ir.Value:
                return builder.gep(first, [builder.add(builder.mul(row, row_bytes), byte)])

            return address, row_bytes

        (left, left_row), (right, right_row), (result, result_row) = map(operand, (0, 3, 6))
        blocks = [(_I8(_SUMS[2 * i + j]), result(_I64(i * _ROWS), _I64(j * _BYTES))) for i in _HALVES for j in _HALVES]
        with builder.if_else(adds) as (then, otherwise):
            with then:
                for sums, address in blocks:
                    _instruction(builder, "tileloadd64", sums, address, result_row)
            with otherwise:
                for sums, _ in blocks:
                    _instruction(builder, "tilezero", sums)
        with cgutils.for_range(builder, builder.udiv(n_words, _I64(WORDS)), intp=_I64) as loop:
            byte, first_row = builder.mul(loop.index, _I64(_BYTES)), builder.mul(loop.index, _I64(WORDS))
            for i in _HALVES:
                _instruction(builder, "tileloadd64", _I8(_RIGHT[i]), right(first_row, _I64(i * _BYTES)), right_row)
                _instruction(builder, "tileloadd64", _I8(_LEFT[i]), left(_I64(i * _ROWS), byte), left_row)
            for i in _HALVES:
                for j in _HALVES:
                    _instruction(builder, "tdpbf16ps", _I8(_SUMS[2 * i + j]), _I8(_LEFT[i]), _I8(_RIGHT[j]))
        for sums, address in blocks:
            _instruction(builder, "tilestored64", sums, address, result_row)
        return context.get_dummy_value()

    number = types.uint64
    return types.void(a, number, number, b, number, number, c, number, number, number, types.boolean), generate
