"""A reader for the pickles of other programs: checkpoints by torch.save, and meta.pkl. Nothing is unpickled.

The same stack machine as safe_pickle.py, which here also accepts what other programs keep beside weights: lists,
numbers as keys, tensors of any type, storages that several tensors share. No code runs, no name is imported, and what
is built takes as much memory as the file is long; a tensor is only a reference.
"""

import math
from collections.abc import Mapping
from typing import Any

from tiny_gpt.model_io.safe_pickle import FP32_BYTES, StackMachine, StoredTensor, interpret, require_pickle

# Storages, and how many bytes a number has. Only those of fp32 become a StoredTensor, any other None.
_STORAGE_BYTES = {"Float": FP32_BYTES, "Half": 2, "BFloat16": 2, "Double": 8, "Long": 8, "Int": 4, "Byte": 1, "Bool": 1}
_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
_NAMES |= {f"torch {name}Storage" for name in _STORAGE_BYTES}
_IGNORED = {"FRAME"}


def read_foreign_pickle(data: bytes, member_bytes: Mapping[str, int]) -> Any:
    """The value that `data` describes: plain values, lists, dicts, and tensors of the archive's members.

    Raises ValueError for anything else.
    """
    return interpret(data, _ForeignMachine(member_bytes))


class _Named(str):
    """The name of a Python object, which is not imported."""


class _ForeignMachine(StackMachine):
    """The machine with more instructions."""

    PROTOCOLS = range(2, 6)

    def __init__(self, member_bytes: Mapping[str, int]) -> None:
        super().__init__(member_bytes)
        self._sizes = dict(member_bytes)

    def execute(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        if name in _IGNORED:
            return
        if name == "SHORT_BINUNICODE":
            stack.append(argument)
        elif name == "MEMOIZE":
            require_pickle(bool(stack))
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            require_pickle(argument < len(memo))
            stack.append(memo[argument])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "APPEND":
            self._extend(self._pop(1))
        elif name == "APPENDS":
            self._extend(self._pop_to_mark())
        elif name == "GLOBAL":
            require_pickle(argument in _NAMES, f"it names {argument[:60]!r}")
            stack.append(_Named(argument))
        elif name == "REDUCE":
            stack.append(self._called(*self._pop(2)))
        elif name == "BUILD":  # attributes of an OrderedDict: the versions of a model's modules
            self._pop(1)
            require_pickle(bool(stack) and type(stack[-1]) is dict)
        else:
            super().execute(name, argument)

    def result(self) -> Any:
        require_pickle(len(self._stack) == 1)
        return self._stack[0]

    def _extend(self, items: list[Any]) -> None:
        require_pickle(bool(self._stack) and type(self._stack[-1]) is list)
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        require_pickle(bool(self._stack) and type(self._stack[-1]) is dict and len(items) % 2 == 0)
        for key, value in zip(items[::2], items[1::2], strict=True):
            require_pickle(type(key) in (str, int))
            self._stack[-1][key] = value

    def _storage(self, reference: Any) -> Any:
        """(member, bytes of a number, numbers) of a persistent id."""
        require_pickle(type(reference) is tuple and len(reference) == 5 and reference[0] == "storage")
        _, kind, key, _, n_numbers = reference
        require_pickle(isinstance(kind, _Named) and isinstance(key, str) and type(n_numbers) is int)
        n_bytes = _STORAGE_BYTES.get(kind.removeprefix("torch ").removesuffix("Storage"), 0)
        member = f"data/{key[:20]}"
        require_pickle(self._sizes.get(member) == n_bytes * n_numbers, "the size of a tensor is wrong")
        return member, kind, n_numbers

    def _called(self, function: Any, arguments: Any) -> Any:
        """An empty dict for OrderedDict(), a reference for a tensor. Nothing is called."""
        if function == "collections OrderedDict":
            require_pickle(arguments == ())
            return {}
        require_pickle(function == "torch._utils _rebuild_tensor_v2" and type(arguments) is tuple)
        require_pickle(len(arguments) == 6 and type(arguments[0]) is tuple and len(arguments[0]) == 3)
        (member, kind, n_numbers), offset, shape, strides = arguments[:4]
        require_pickle(type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape))
        is_whole = offset == 0 and math.prod(shape) == n_numbers
        is_contiguous = strides == tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        is_weight = kind == "torch FloatStorage" and is_whole and is_contiguous
        return StoredTensor(member, shape) if is_weight else None
