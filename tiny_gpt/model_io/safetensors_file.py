"""Writes safetensors files tensor by tensor, without a second copy of them in memory.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header, the raw bytes.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch

from tiny_gpt.files import Writable


def write_tensors(sink: Writable, tensors: Mapping[str, torch.Tensor]) -> None:
    """The safetensors format, fp32 only, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        sink.write(tensor.detach().cpu().contiguous().numpy().reshape(-1).view("uint8").data)
