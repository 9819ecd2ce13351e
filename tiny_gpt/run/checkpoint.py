"""The files of a checkpoint: weights, the optimizer's moments, the state, and every evaluation so far.

Tensors are safetensors files (https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header, the
raw bytes). They are written tensor by tensor, so that saving needs no second copy of them; the library reads them. The
rest is JSON. No random state is saved: batches and dropout are functions of (seed, step).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.shapes import check_dimensions
from tiny_gpt.model_io.safetensors_file import open_tensors, write_tensors
from tiny_gpt.run.checkpoint_store import (
    MAX_STATE_BYTES,
    STATE_FILE,
    Checkpoint,
    DamagedError,
    read_bounded,
)
from tiny_gpt.run.events import Evaluated
from tiny_gpt.training.optimizer import trained_weights

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
HISTORY_FILE = "metrics.jsonl"
MAX_HISTORY_BYTES, MAX_TENSOR_HEADER_BYTES = 1 << 28, 1 << 23


class StateTensors(NamedTuple):
    """The tensors of a state by name."""

    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    read: Callable[[str], torch.Tensor] | None = None
    """Returns the values of the tensor of this name, whole; None where all of them have their values already."""


def checkpoint_files(tensors: StateTensors, state: Mapping[str, Any], history: list[Evaluated]) -> dict[str, Any]:
    """For `CheckpointStore.write`: the name of each file and the function that writes its content."""
    return {
        MODEL_FILE: lambda sink: write_tensors(sink, tensors.weights, tensors.read),
        OPTIMIZER_FILE: lambda sink: write_tensors(sink, tensors.moments, tensors.read),
        STATE_FILE: lambda sink: sink.write(json.dumps(state, indent=1).encode()),
        HISTORY_FILE: lambda sink: sink.write("".join(row.to_json_line() for row in history).encode()),
    }


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON object that was saved as `state`; raises DamagedError."""
    try:
        state = json.loads(read_bounded(checkpoint.path / STATE_FILE, MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{STATE_FILE} cannot be read") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{STATE_FILE} is not a JSON object")
    return state


def read_history(checkpoint: Checkpoint) -> list[Evaluated]:
    """Every evaluation up to the checkpoint; raises DamagedError."""
    try:
        lines = read_bounded(checkpoint.path / HISTORY_FILE, MAX_HISTORY_BYTES).decode().splitlines()
        return [Evaluated.from_json_line(line) for line in lines]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{HISTORY_FILE} cannot be read") from error


def load_tensors(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy the checkpoint's weights and moments into `model` and `optimizer`; raises DamagedError.

    Names and shapes of a file are compared before its first tensor is read.
    """
    weights = trained_weights(model)
    targets: dict[str, Mapping[str, torch.Tensor]] = {
        MODEL_FILE: weights,
        OPTIMIZER_FILE: optimizer_tensors(weights, optimizer),
    }
    with torch.no_grad():
        for name, tensors in targets.items():
            read_tensors(checkpoint.path / name, tensors)


def optimizer_tensors(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors by name, such as "head.weight.exp_avg". They share its memory, they are not copies."""
    return {
        f"{name}.{key}": value
        for name, parameter in weights.items()
        for key, value in sorted(optimizer.state[parameter].items())
    }


def check_model(checkpoint: Checkpoint, config: ModelConfig, vocab_size: int) -> None:
    """Raise DamagedError unless the weights are those of this model; before memory is allocated for it."""
    path = checkpoint.path / MODEL_FILE
    try:
        _check_header(path)
        with open_tensors(path) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        check_dimensions(config, vocab_size, shapes, path.stat().st_size)
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"{path.name}: {str(error)[:200]}") from error


def _check_header(path: Path) -> None:
    """Refuse a huge header, which the library would read into memory whole. Raises DamagedError or OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
    n_header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or n_header_bytes > MAX_TENSOR_HEADER_BYTES:
        raise DamagedError(f"{path.name} has a header of {n_header_bytes:,} bytes")


def read_tensors(path: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of a safetensors file into those of the same names; raises DamagedError if any differ."""
    check_tensors(path, into)
    try:
        with open_tensors(path) as file:
            for name, tensor in into.items():
                tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error


def check_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise DamagedError unless a safetensors file holds tensors of these names and shapes."""
    try:
        _check_header(path)
        with open_tensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
    expected = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        raise DamagedError(f"{path.name} does not fit the model ({', '.join(wrong[:3])})")
