"""The container of a GGUF file: its metadata and where its tensors lie, read from an untrusted file.

Every size that the file claims is checked against the file, and against a limit, before memory is allocated. The gguf
package turns the numbers of a tensor, quantized or not, into fp32; its own reader is for trusted files: it follows
counts beyond the end of the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted_python
from tiny_gpt.model_io.bounded_json import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Metadata and the list of tensors; a vocabulary of 256,000 tokens with merges takes 12 MB.
MAX_GGUF_HEADER_BYTES = 64 << 20
# Elements of all arrays: tokens, their types and scores, merges.
MAX_ELEMENTS = 4_000_000
MAX_KEYS, MAX_TENSORS, MAX_TENSOR_DIMENSIONS, MAX_NAME_BYTES = 10_000, 100_000, 4, 256
MAX_ALIGNMENT, DEFAULT_ALIGNMENT = 1 << 16, 32

# Numbers of the types of metadata, and how struct reads them.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, STRING, ARRAY = 6, 8, 9

# Types of tensors that are read, by the names that the gguf package has for them.
TENSOR_TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies."""

    type_name: str
    shape: tuple[int, ...]
    """As numpy has it: the last dimension is contiguous."""
    start: int
    n_bytes: int


class GGUFFile:
    """A GGUF file, open for reading."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        """Raises BadInputError for a file that is damaged or of another kind, and where gguf is not installed."""
        self.path, self._file = path, file
        self._quants, constants = _gguf()
        self._types = {constants.GGMLQuantizationType[name].value: name for name in TENSOR_TYPES}
        self._sizes = {
            name: constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[name]] for name in self._types.values()
        }
        self._type_of = constants.GGMLQuantizationType
        n_file_bytes = file.seek(0, 2)
        file.seek(0)
        header = _Header(file.read(min(n_file_bytes, MAX_GGUF_HEADER_BYTES)))
        try:
            n_tensors = header.start()
            self.metadata: dict[str, Any] = dict(header.metadata())
            self.tensors = self._tensors(header, n_tensors, n_file_bytes)
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise BadInputError(
                f"{shown(path)} is not a GGUF file that tiny_gpt can read, or is cut short or damaged "
                f"({shown(error)}); download it again",
                code="gguf-damaged",
            ) from error

    def _tensors(self, header: "_Header", n_tensors: int, n_file_bytes: int) -> dict[str, TensorInfo]:
        infos = list(header.tensors(n_tensors))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
            raise ValueError(f"its alignment is {alignment}")
        data_start = -(-header.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, type_number, offset in infos:
            if name in tensors:
                raise ValueError(f"the tensor {name} occurs twice")
            if type_number not in self._types:
                raise ValueError(f"the tensor {name} has type {type_number}; supported are {', '.join(TENSOR_TYPES)}")
            type_name = self._types[type_number]
            block, block_bytes = self._sizes[type_name]
            if shape[-1] % block:
                raise ValueError(f"the rows of {name} are no multiple of {block} numbers")
            n_bytes = math.prod(shape) // block * block_bytes
            start = data_start + offset
            if start + n_bytes > n_file_bytes:
                raise ValueError(f"the tensor {name} ends beyond the file")
            tensors[name] = TensorInfo(type_name, shape, start, n_bytes)
        return tensors

    def read(self, name: str) -> NDArray[np.float32]:
        """The numbers of a tensor in fp32. Raises OSError where the file has become shorter."""
        info = self.tensors[name]
        self._file.seek(info.start)
        content = bytearray(info.n_bytes)  # writable, as torch wants it
        if self._file.readinto(content) < info.n_bytes:
            raise OSError("the file has become shorter")
        raw = np.frombuffer(content, dtype=np.uint8).reshape(*info.shape[:-1], -1)
        with np.errstate(all="ignore"):  # of a damaged file, infinite scales; the caller looks for them
            values = self._quants.dequantize(raw, self._type_of[info.type_name])
        result: NDArray[np.float32] = values.reshape(info.shape).astype(np.float32, copy=False)
        return result


class _Header:
    """Reads the fields of a header one after the other. Raises struct.error at its end, and ValueError."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._n_elements = 0
        self.position = 0

    def start(self) -> int:
        """Magic number and version; returns the number of tensors."""
        if self._content[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.position = len(MAGIC)
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, not {' or '.join(map(str, VERSIONS))}")
        n_tensors, self._n_keys = self._number("Q"), self._number("Q")
        if n_tensors > MAX_TENSORS or self._n_keys > MAX_KEYS:
            raise ValueError("it has too many tensors or keys")
        return int(n_tensors)

    def metadata(self) -> Iterator[tuple[str, Any]]:
        """Keys and values. A later value of the same key would win; such files do not exist."""
        for _ in range(self._n_keys):
            key = self._text(MAX_NAME_BYTES)
            yield key, self._value(self._number("I"))

    def tensors(self, n_tensors: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """(name, shape, number of the type, offset) of each tensor."""
        for _ in range(n_tensors):
            name = self._text(MAX_NAME_BYTES)
            n_dimensions = self._number("I")
            if not 0 < n_dimensions <= MAX_TENSOR_DIMENSIONS:
                raise ValueError(f"the tensor {name} has {n_dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(n_dimensions))[::-1]
            if not all(0 < size < 1 << 40 for size in shape):
                raise ValueError(f"the tensor {name} has the shape {shape}")
            yield name, shape, self._number("I"), self._number("Q")

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._content, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def _text(self, max_bytes: int = MAX_GGUF_HEADER_BYTES) -> str:
        n_bytes = self._number("Q")
        end = self.position + n_bytes
        if n_bytes > max_bytes or end > len(self._content):
            raise ValueError(f"a text of {n_bytes} bytes is longer than the header")
        text = self._content[self.position : end].decode("utf-8")
        self.position = end
        return text

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind == FLOAT32:  # the shortest decimal that is rounded to it: 1e-05, not 9.999999747378752e-06
            return float(str(np.float32(self._number("f"))))
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"its metadata has a value of type {kind}")
        inner, n = self._number("I"), self._number("Q")
        self._n_elements += n
        if self._n_elements > MAX_ELEMENTS:
            raise ValueError(f"its arrays have more than {MAX_ELEMENTS:,} elements")
        if inner == STRING:
            return [self._text() for _ in range(n)]
        if inner not in SCALARS:
            raise ValueError(f"its metadata has an array of type {inner}")
        values = struct.unpack_from(f"<{n}{SCALARS[inner]}", self._content, self.position)
        self.position += struct.calcsize(f"<{n}{SCALARS[inner]}")
        return list(values)


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as GGUF files do."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _gguf() -> tuple[ModuleType, ModuleType]:
    try:
        from gguf import constants, quants
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise BadInputError(
            f"reading a GGUF file takes the package gguf: {quoted_python()} -m pip install gguf, then the same command "
            "again",
            code="gguf-package-missing",
        ) from error
    return quants, constants
