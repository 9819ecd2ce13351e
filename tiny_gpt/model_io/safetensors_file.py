"""Writes safetensors files tensor by tensor, without a second copy of them in memory; opens them whatever their path.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header, the raw bytes.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tiny_gpt.files import Writable


def write_tensors(
    sink: Writable, tensors: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor] | None = None
) -> None:
    """The safetensors format, fp32 only. With `read`, which returns the tensor of a name, `tensors` need no values, and
    one of them is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for name, tensor in tensors.items():
        tensor = read(name) if read else tensor
        sink.write(tensor.detach().cpu().contiguous().numpy().reshape(-1).view("uint8").data)


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """The file at `path` as the library reads it. Raises OSError and SafetensorError.

    The library takes only paths that are valid UTF-8. Any other, which Linux allows, is opened here and passed on as
    the name of its descriptor.
    """
    if os.name == "nt" or is_unicode(path):
        with safe_open(path, framework="pt") as file:
            yield file
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with safe_open(f"/dev/fd/{descriptor}", framework="pt") as file:
            yield file
    finally:
        os.close(descriptor)


def is_unicode(path: Path) -> bool:
    """Whether the bytes of `path` are valid text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
