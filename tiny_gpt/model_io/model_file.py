"""Model files: one file with all that generating text takes. tiny_gpt_best.pt and tiny_gpt_final.pt are such.

A torch archive of plain types and tensors: anyone can open it by torch.load(weights_only=True). Here it is read by
stored_model.py. Does not resume a training; that takes the optimizer too.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.files import atomic_write
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.memory import require_memory_for_weights
from tiny_gpt.model_io.stored_model import FORMAT, FORMAT_VERSION, Progress, open_model_file
from tiny_gpt.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """What a model file held."""

    model: GPT
    tokenizer: Tokenizer
    progress: Progress
    run_config: dict[str, Any]
    """The settings of the run that made it, flat, as in config.json."""


def save_model(path: Path, model: GPT, tokenizer: Tokenizer, config: RunConfig, progress: Progress) -> None:
    """Write a model file, whole or not at all. Raises OutOfResourcesError; an older file at `path` stays then."""
    save_loaded(path, LoadedModel(model, tokenizer, progress, config.to_flat()))


def save_loaded(path: Path, loaded: LoadedModel) -> None:
    """The same for a model that was read, such as an imported one."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_config": asdict(loaded.model.config),
        "run_config": loaded.run_config,
        "tokenizer": loaded.tokenizer.to_dict(),
        "progress": asdict(loaded.progress),
        "weights": {name: weight.detach().cpu() for name, weight in loaded.model.state_dict().items()},
    }
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            cause = error.__context__  # torch covers a full disk or Ctrl+C with a complaint about positions
            if isinstance(cause, OSError | KeyboardInterrupt):
                raise cause from None
            raise


def load_model(path: Path, device: torch.device, compute_dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Read a model file, ready to generate on `device`.

    Raises BadInputError saying why when it is missing, cut short, no model file, or from a newer tiny_gpt, and
    OutOfResourcesError where its weights do not fit into memory.
    """
    with open_model_file(path) as stored:
        require_memory_for_weights(stored.config, stored.tokenizer.vocab_size, shown(path))
        model = GPT(stored.config, stored.tokenizer.vocab_size, compute_dtype)
        for name, weight in model.state_dict().items():
            stored.read_into(name, memoryview(weight.numpy()).cast("B"))
    return LoadedModel(model.to(device).eval(), stored.tokenizer, stored.progress, stored.run_config)
