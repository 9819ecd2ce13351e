"""Model files: one file with all that generating text takes. tiny_gpt_best.pt and tiny_gpt_final.pt are such.

A torch archive of plain types and tensors, read with `weights_only=True` alone: nothing in it can run code.
Does not resume a training; that takes the optimizer too.
"""

import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.config import BEST_FILE, ModelConfig, RunConfig, model_config_from
from tiny_gpt.data.tokenizer import Tokenizer, tokenizer_from_dict
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write
from tiny_gpt.model.gpt import GPT

FORMAT = "tiny_gpt model"
FORMAT_VERSION = 1
PARTS = ("model_config", "run_config", "tokenizer", "progress", "weights")


@dataclass(frozen=True)
class Progress:
    """How far the weights had been trained. Losses in nats per token over the run's fixed windows."""

    step: int
    epoch: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float


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
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_config": asdict(model.config),
        "run_config": config.to_flat(),
        "tokenizer": tokenizer.to_dict(),
        "progress": asdict(progress),
        "weights": {name: weight.detach().cpu() for name, weight in model.state_dict().items()},
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

    Raises BadInputError saying why when it is missing, cut short, no model file, or from a newer tiny_gpt.
    """
    content = _read(path)
    config = model_config_from(content["model_config"], str(path))
    try:
        tokenizer = tokenizer_from_dict(content["tokenizer"])
        progress = Progress(**content["progress"])
        model = _build(config, tokenizer.vocab_size, compute_dtype, content["weights"])
    except (TypeError, ValueError, RuntimeError, BadInputError) as error:
        raise BadInputError(f"{path} is damaged: {error}") from error
    return LoadedModel(model.to(device).eval(), tokenizer, progress, content["run_config"])


def _read(path: Path) -> dict[str, Any]:
    """The file's content as plain types; raises BadInputError."""
    if not path.exists():
        raise BadInputError(
            f"no model file {path}: train one first (python3 train.py or tiny-gpt train), or name one with --checkpoint"
        )
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name the model file in it, such as {path / BEST_FILE}")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at the checksums that torch.save writes
                raise ValueError(f"checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other kinds of torch archives get advice that is not for us
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # foreign bytes make the readers raise nearly every kind there is
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise BadInputError(
            f"{path} is not a tiny_gpt model file, or was cut short or damaged: it cannot be opened as one; "
            "name a file that tiny_gpt wrote, or train again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInputError(f"{path} was not written by tiny_gpt; name a file such as {BEST_FILE}")
    if content.get("format_version") != FORMAT_VERSION:
        raise BadInputError(
            f"{path} has format version {content.get('format_version')}, this tiny_gpt reads {FORMAT_VERSION}; "
            "use the tiny_gpt that wrote it, or a newer one"
        )
    damaged_parts = [name for name in PARTS if not isinstance(content.get(name), dict)]
    if damaged_parts:
        raise BadInputError(f"{path} is damaged: it lacks {', '.join(damaged_parts)}")
    return content


def _build(config: ModelConfig, vocab_size: int, dtype: torch.dtype, weights: dict[str, torch.Tensor]) -> GPT:
    """A GPT that takes over `weights`. Shapes are compared before memory is taken; raises ValueError."""
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in GPT(config, vocab_size).state_dict().items()}
    found = {name: getattr(weight, "shape", None) for name, weight in weights.items()}
    if found != expected:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"its weights do not fit its settings ({', '.join(odd[:3])})")
    model = GPT(config, vocab_size, dtype)
    model.load_state_dict(weights)
    return model
