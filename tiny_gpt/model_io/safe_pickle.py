"""Reads the pickle inside a model file without unpickling: plain values out, and tensors only as where they lie.

A pickle is a program for a small machine with a stack. The standard library's `pickletools` takes it apart without
running it; here are the two dozen instructions that torch.save writes for dicts, tuples, texts, numbers and whole fp32
tensors, and no more. The three names of Python objects that it may hold are compared, never looked up.

torch.load(weights_only=True) would run no code either, but takes memory on the file's word: bytearray(10**10),
storages and sparse tensors of any size, a memo slot 2**31, a gigabyte of empty lists.
"""

import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Each weight takes 28: enough for 680 layers and a long command line. At most 100 bytes of memory each.
MAX_INSTRUCTIONS = 300_000
MAX_DIMENSIONS = 8
FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous fp32 tensor and the member of the archive that is its content, of just the right size."""

    member: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A Python object that the pickle names, or what calling it would make."""

    text: str


_MARK = _Name("MARK")
_TENSOR, _STORAGE, _HOOKS = map(_Name, ("torch._utils _rebuild_tensor_v2", "torch FloatStorage", "no hooks"))
_ORDERED_DICT = _Name("collections OrderedDict")
_NAMES = {name.text: name for name in (_TENSOR, _STORAGE, _ORDERED_DICT)}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_WITH_VALUE = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(data: bytes, member_bytes: Mapping[str, int]) -> Any:
    """The value that `data` describes. `member_bytes`: the size of each member of the archive.

    Dicts have text keys. Raises ValueError for anything but plain values and tensors that are there.
    """
    stack: list[Any] = []
    memo: list[Any] = []
    unused = dict(member_bytes)
    argument: Any
    for number, (opcode, argument, place) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if number >= MAX_INSTRUCTIONS:
            raise ValueError("it describes too many things")
        if name in _WITH_VALUE:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            _require(argument == len(memo) and bool(stack))
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            # Not of tuples and dicts: they could hold one another, or themselves, a billionfold.
            _require(argument < len(memo) and isinstance(memo[argument], str | _Name))
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _SHORT_TUPLES:
            stack.append(tuple(_pop(stack, _SHORT_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "SETITEM":
            _set_items(stack, _pop(stack, 2))
        elif name == "SETITEMS":
            _set_items(stack, _pop_to_mark(stack))
        elif name == "GLOBAL":
            _require(argument in _NAMES, f"it names {argument[:60]!r}")
            stack.append(_NAMES[argument])
        elif name == "BINPERSID":
            stack.append(_storage(_pop(stack, 1)[0], unused))
        elif name == "REDUCE":
            stack.append(_called(*_pop(stack, 2)))
        elif name == "STOP":
            _require(len(stack) == 1 and place == len(data) - 1)
            _require(not any(member.startswith("data/") for member in unused), "it holds tensors that it does not use")
            return stack[0]
        else:
            _require(name == "PROTO" and argument == 2 and place == 0, f"it has the instruction {name}")
    raise AssertionError("genops ends at STOP or raises")


def _require(fits: bool, reason: str = "its description is not as torch.save writes it") -> None:
    if not fits:
        raise ValueError(reason)


def _pop(stack: list[Any], n: int) -> list[Any]:
    _require(len(stack) >= n)
    values = stack[-n:]
    del stack[-n:]
    return values


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while True:
        _require(bool(stack))
        value = stack.pop()
        if value is _MARK:
            return values[::-1]
        values.append(value)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    _require(bool(stack) and type(stack[-1]) is dict and len(items) % 2 == 0)
    target = stack[-1]
    for key, value in zip(items[::2], items[1::2], strict=True):
        _require(isinstance(key, str) and key not in target)
        target[key] = value


@dataclass(frozen=True, slots=True)
class _Storage:
    member: str
    n_numbers: int


def _storage(identity: Any, unused: dict[str, int]) -> _Storage:
    """The storage ("storage", FloatStorage, "7", "cpu", 2056): member data/7, each for one tensor alone."""
    _require(type(identity) is tuple and len(identity) == 5)
    kind, storage_type, key, device, n_numbers = identity
    _require(kind == "storage" and storage_type is _STORAGE, "a tensor in it is not fp32")
    _require(isinstance(key, str) and isinstance(device, str) and type(n_numbers) is int)
    member = f"data/{key[:20]}"
    _require(unused.pop(member, None) == FP32_BYTES * n_numbers, "a tensor in it has not the bytes that it claims")
    return _Storage(member, n_numbers)


def _called(called: Any, arguments: Any) -> _Name | StoredTensor:
    """What calling would give: OrderedDict() is a tensor's list of hooks, the other a whole, contiguous tensor."""
    if called is _ORDERED_DICT:
        _require(arguments == ())
        return _HOOKS
    _require(called is _TENSOR and type(arguments) is tuple and len(arguments) == 6)
    storage, offset, shape, strides, requires_grad, hooks = arguments
    _require(isinstance(storage, _Storage) and offset == 0 and requires_grad is False and hooks is _HOOKS)
    _require(type(shape) is tuple and 1 <= len(shape) <= MAX_DIMENSIONS)
    _require(all(type(size) is int and size > 0 for size in shape) and math.prod(shape) == storage.n_numbers)
    _require(strides == _contiguous_strides(shape), "a tensor in it is not contiguous")
    return StoredTensor(storage.member, shape)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
