"""A reader for the pickle inside a model file, safe for untrusted files. Nothing is unpickled.

A pickle is a program for a small stack machine. The standard library's `pickletools` lists its instructions without
running them. This module interprets the two dozen that torch.save writes for dicts, tuples, strings, numbers and
contiguous fp32 tensors, and rejects all others. A pickle also names Python objects to import; the three that occur here
are compared with a list and never imported. Tensors come back as references to their data in the archive.

torch.load(weights_only=True) runs no code either, but it allocates what the file asks for: bytearray(10**10), storages
and sparse tensors of any size, memo slot 2**31, a gigabyte of empty lists.
"""

import math
import pickletools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Each weight takes 28: enough for 680 layers and a long command line. Each takes at most 100 bytes of memory.
MAX_INSTRUCTIONS = 300_000
MAX_DIMENSIONS = 8
FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous fp32 tensor whose content is a member of the archive, of exactly the right size."""

    member: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A Python object that the pickle names, or the result that calling it would have."""

    text: str


_MARK = _Name("MARK")
_TENSOR, _STORAGE, _HOOKS = map(_Name, ("torch._utils _rebuild_tensor_v2", "torch FloatStorage", "no hooks"))
_ORDERED_DICT = _Name("collections OrderedDict")
_NAMES = {name.text: name for name in (_TENSOR, _STORAGE, _ORDERED_DICT)}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(data: bytes, member_bytes: Mapping[str, int]) -> Any:
    """The value that `data` describes. `member_bytes` has the size of each member of the archive.

    Raises ValueError unless it consists of plain values, dicts with string keys, and tensors that the archive holds.
    """
    return interpret(data, StackMachine(member_bytes))


def interpret(data: bytes, machine: "StackMachine") -> Any:
    """The value that the pickle `data` leaves on the stack of `machine`. Raises ValueError if it is not accepted."""
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        require_pickle(number < MAX_INSTRUCTIONS, "its description is too long")
        if opcode.name == "STOP":
            require_pickle(position == len(data) - 1)
            return machine.result()
        if opcode.name == "PROTO":
            require_pickle(argument in machine.PROTOCOLS and position == 0)
        else:
            machine.execute(opcode.name, argument)
    raise AssertionError("genops ends with STOP or raises ValueError")


class StackMachine:
    """The state of a pickle's interpretation: a stack of values, and a memo of those that occur again."""

    PROTOCOLS: Collection[int] = (2,)
    """Versions of the pickle format that are accepted."""

    def __init__(self, member_bytes: Mapping[str, int]) -> None:
        self._stack: list[Any] = []
        self._memo: list[Any] = []
        self._unused = dict(member_bytes)
        """Members of the archive that no tensor has referred to yet, with their sizes."""

    def execute(self, name: str, argument: Any) -> None:
        """One instruction, by pickletools' name for it. Raises ValueError for those that are not accepted."""
        stack, memo = self._stack, self._memo
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            require_pickle(argument == len(memo) and bool(stack))
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            # Tuples and dicts may not be referred to again: they could contain themselves, or one another 2^30 times.
            require_pickle(argument < len(memo) and isinstance(memo[argument], str | _Name))
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _SHORT_TUPLES:
            stack.append(tuple(self._pop(_SHORT_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "SETITEM":
            self._set_items(self._pop(2))
        elif name == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif name == "GLOBAL":
            require_pickle(argument in _NAMES, f"it names {argument[:60]!r}")
            stack.append(_NAMES[argument])
        elif name == "BINPERSID":
            stack.append(self._storage(*self._pop(1)))
        elif name == "REDUCE":
            stack.append(_call(*self._pop(2)))
        else:
            raise ValueError(f"it has the pickle instruction {name}")

    def result(self) -> Any:
        """The only value left. Every tensor of the archive must be part of it."""
        require_pickle(len(self._stack) == 1)
        require_pickle(
            not any(name.startswith("data/") for name in self._unused), "it holds tensors that it does not use"
        )
        return self._stack[0]

    def _pop(self, n: int) -> list[Any]:
        require_pickle(len(self._stack) >= n)
        values = self._stack[-n:]
        del self._stack[-n:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while True:
            require_pickle(bool(self._stack))
            value = self._stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)

    def _set_items(self, items: list[Any]) -> None:
        require_pickle(bool(self._stack) and type(self._stack[-1]) is dict and len(items) % 2 == 0)
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            require_pickle(isinstance(key, str) and key not in target)
            target[key] = value

    def _storage(self, reference: Any) -> "_Storage":
        """What a persistent id such as ("storage", FloatStorage, "7", "cpu", 2056) refers to: the member data/7.

        Each storage belongs to one tensor only.
        """
        require_pickle(type(reference) is tuple and len(reference) == 5)
        kind, storage_type, key, device, n_numbers = reference
        require_pickle(kind == "storage" and storage_type is _STORAGE, "one of its tensors is not fp32")
        require_pickle(isinstance(key, str) and isinstance(device, str) and type(n_numbers) is int)
        member = f"data/{key[:20]}"
        require_pickle(
            self._unused.pop(member, None) == FP32_BYTES * n_numbers,
            "the size of a tensor is wrong",
        )
        return _Storage(member, n_numbers)


@dataclass(frozen=True, slots=True)
class _Storage:
    """The memory of one tensor."""

    member: str
    n_numbers: int


def _call(function: Any, arguments: Any) -> _Name | StoredTensor:
    """The result that a call would have: OrderedDict() is a tensor's empty list of hooks, _rebuild_tensor_v2(...) a
    tensor. Nothing is called."""
    if function is _ORDERED_DICT:
        require_pickle(arguments == ())
        return _HOOKS
    require_pickle(function is _TENSOR and type(arguments) is tuple and len(arguments) == 6)
    storage, offset, shape, strides, requires_grad, hooks = arguments
    require_pickle(isinstance(storage, _Storage) and offset == 0 and requires_grad is False and hooks is _HOOKS)
    require_pickle(type(shape) is tuple and 1 <= len(shape) <= MAX_DIMENSIONS)
    require_pickle(all(type(size) is int and size > 0 for size in shape) and math.prod(shape) == storage.n_numbers)
    require_pickle(strides == _contiguous_strides(shape), "one of its tensors is not contiguous")
    return StoredTensor(storage.member, shape)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def require_pickle(condition: bool, reason: str = "its description is not in the form that torch.save writes") -> None:
    if not condition:
        raise ValueError(reason)
