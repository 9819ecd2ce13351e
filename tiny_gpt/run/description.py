"""How a run came to be: its settings, its text and its machine. Kept with every checkpoint for those who resume it."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.device import processor_name
from tiny_gpt.run.checkpoint import read_state
from tiny_gpt.run.checkpoint_store import Checkpoint, DamagedError


@dataclass(frozen=True)
class RunDescription:
    """`data` and `machine` are plain JSON types."""

    config: RunConfig
    """With the text, the backend, the precision and all hyperparameters that the run uses."""
    requested: RunConfig
    """As the user gave it."""
    data: dict[str, Any]
    """`Dataset.identity`."""
    machine: dict[str, Any]
    """`machine_fingerprint()`."""
    initial: dict[str, Any] = field(default_factory=dict)
    """What was measured of --start-from's model: its hash with --lora, what it knew (forgetting.py)."""

    def state_fields(self) -> dict[str, Any]:
        """What goes into a checkpoint's state."""
        return {"config": self.config.to_flat(), "asked": self.requested.to_flat()}

    def manifest_fields(self) -> dict[str, Any]:
        """What goes into a checkpoint's manifest."""
        initial = {"initial": self.initial} if self.initial else {}
        return {"data": self.data, "machine": self.machine, **initial}


def read_description(checkpoint: Checkpoint) -> RunDescription:
    """The description in a checkpoint. Raises DamagedError, or BadInputError for settings of another version."""
    state, about = read_state(checkpoint), checkpoint.about
    fields = state.get("config"), state.get("asked"), about.get("data"), about.get("machine")
    config, requested, data, machine = (field if isinstance(field, dict) else {} for field in fields)
    if not (config and requested and data and machine):
        raise DamagedError("its description of the run is incomplete")
    source, initial = str(checkpoint.path), about.get("initial")
    config = {"backend": "eager"} | config  # the first versions had no other
    return RunDescription(
        RunConfig().with_flat(config, source),
        RunConfig().with_flat(requested, source),
        data,
        machine,
        initial if isinstance(initial, dict) else {},
    )


def machine_fingerprint(device: torch.device) -> dict[str, Any]:
    """What the exact losses depend on besides seed and settings."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processor": f"{processor_name()} with {os.cpu_count()} cores",
    }
