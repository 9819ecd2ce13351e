"""What resumes a run exactly: weights, the optimizer's moments, how far it was, and every evaluation so far.

Tensors are safetensors files, written tensor by tensor (https://huggingface.co/docs/safetensors: eight bytes of
header length, a JSON header, the raw bytes) so that saving takes no second copy of them; the library reads them.
The rest is JSON. No random state is kept: batches and dropout are functions of (seed, step).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.shapes import check_dimensions
from tiny_gpt.model_io.safetensors_file import write_tensors
from tiny_gpt.run.checkpoint_store import (
    MAX_STATE_BYTES,
    STATE_FILE,
    Checkpoint,
    DamagedError,
    read_bounded,
)
from tiny_gpt.run.events import Evaluated

MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
HISTORY_FILE = "metrics.jsonl"
MAX_HISTORY_BYTES, MAX_HEADER_BYTES = 1 << 28, 1 << 23


# Fields of RunState that earlier versions wrote under another name.
_FORMER_STATE_NAMES = {"n_parts": "n_micro_batches"}


@dataclass
class RunState:
    """How far a run is and what has happened to it. Plain types, saved with each checkpoint."""

    step: int = 0
    """Steps done."""
    n_micro_batches: int = 1
    """Micro-batches that a batch is computed in, at least; doubled when memory runs out."""
    rate_factor: float = 1.0
    """Multiplies the scheduled learning rate; halved when the run steps back from trouble."""
    batch_offset: int = 0
    """How many batches were left out for good; step s reads batch s + batch_offset."""
    lowest_val_loss: float = 1e9
    """Of all evaluations, also of those that a step back has taken out of the history."""
    n_rollbacks: int = 0
    """Times stepped back since that was last improved."""
    rolled_back_to: int | None = None
    """Where the last of them led."""
    train_s: float = 0.0
    eval_s: float = 0.0
    save_s: float = 0.0
    pause_s: float = 0.0
    """Seconds so far."""
    rate_share: float = 0.0
    """The last step's learning rate as a part of the peak, before rate_factor; 0 also where it is not known."""
    budget: dict[str, Any] = field(default_factory=dict)
    """Where a run that a clock ends stands."""
    incidents: list[str] = field(default_factory=list)
    """What a person should read in the morning."""
    guard: dict[str, Any] = field(default_factory=dict)
    """The guard's own state."""

    @classmethod
    def from_dict(cls, values: Any) -> "RunState":
        """The inverse of `asdict`, where what an older tiny_gpt did not write is its default; raises DamagedError."""
        defaults = asdict(cls())
        if isinstance(values, dict):
            values = {_FORMER_STATE_NAMES.get(name, name): value for name, value in values.items()}
        if not isinstance(values, dict) or not values.keys() <= defaults.keys():
            raise DamagedError("its state has other fields")
        for name, value in values.items():
            wanted: tuple[type, ...] = (type(defaults[name]),)
            if name == "rolled_back_to":
                wanted = (int, type(None))
            elif wanted == (float,):
                wanted = (int, float)
            is_odd = isinstance(value, bool) or not isinstance(value, wanted)
            if is_odd or (isinstance(value, int | float) and not 0 <= value < 1e15):
                raise DamagedError(f"its {name} is {str(value)[:40]!r}")
        if not all(isinstance(line, str) for line in values.get("incidents", [])):
            raise DamagedError("its incidents are no texts")
        return cls(**values)


def checkpoint_files(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], history: list[Evaluated]
) -> dict[str, Any]:
    """File name to what writes its content, for `CheckpointStore.write`."""
    return {
        MODEL_FILE: lambda sink: write_tensors(sink, model.state_dict()),
        OPTIMIZER_FILE: lambda sink: write_tensors(sink, optimizer_tensors(model, optimizer)),
        STATE_FILE: lambda sink: sink.write(json.dumps(state, indent=1).encode()),
        HISTORY_FILE: lambda sink: sink.write("".join(evaluated.to_json_line() for evaluated in history).encode()),
    }


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON that was saved as `state`; raises DamagedError."""
    try:
        state = json.loads(read_bounded(checkpoint.path / STATE_FILE, MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{STATE_FILE} cannot be read") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{STATE_FILE} holds no object")
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

    Names and shapes are compared before a single one is read.
    """
    targets = {MODEL_FILE: model.state_dict(), OPTIMIZER_FILE: optimizer_tensors(model, optimizer)}
    with torch.no_grad():
        for name, tensors in targets.items():
            read_tensors(checkpoint.path / name, tensors)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's own tensors by name, such as "head.weight.exp_avg"; the same memory, not copies."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state[parameter].items())
    }


def check_model(checkpoint: Checkpoint, config: ModelConfig, vocab_size: int) -> None:
    """Raise DamagedError unless the weights are those of this very model, before memory is taken for it."""
    path = checkpoint.path / MODEL_FILE
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as found:
            shapes = {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118
        check_dimensions(config, vocab_size, shapes, path.stat().st_size)
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"{path.name}: {str(error)[:200]}") from error


def _check_header(path: Path) -> None:
    """The library reads a header of any size into memory; ours are small. Raises DamagedError or OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
    n_header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or n_header_bytes > MAX_HEADER_BYTES:
        raise DamagedError(f"{path.name} has a header of {n_header_bytes:,} bytes")


def read_tensors(path: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of a safetensors file into those of the same names; raises DamagedError if any differ."""
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as found:
            slices = {name: found.get_slice(name) for name in found.keys()}  # noqa: SIM118
            kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            expected = {name: ("F32", tuple(tensor.shape)) for name, tensor in into.items()}
            if kinds != expected:
                odd = sorted(name for name in kinds | expected if kinds.get(name) != expected.get(name))
                raise DamagedError(f"{path.name} does not fit the model ({', '.join(odd[:3])})")
            for name, tensor in into.items():
                tensor.copy_(found.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
