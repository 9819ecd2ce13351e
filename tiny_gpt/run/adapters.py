"""Runs with --lora: the pretrained model, whose weights stay as they are, and the adapters beside it (model/lora.py).

The pretrained model is kept once in the run's folder, as BASE_FILE, so that the run can be resumed without the place
that it came from. A checkpoint holds the adapters, their moments and the pretrained model's hash.
"""

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from tiny_gpt.config import BASE_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted, user_path
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import add_adapters, merged_weights
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.run.checkpoint import MODEL_FILE, read_tensors
from tiny_gpt.run.checkpoint_store import Checkpoint
from tiny_gpt.run.description import RunDescription
from tiny_gpt.training.optimizer import trained_weights
from tiny_gpt.training.sharing import empty_model

# In RunDescription.initial.
BASE_SHA256 = "base_sha256"


def weights_sha256(model: GPT) -> str:
    """The hash of all weights in fp32."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()


def find_base(folder: Path, description: RunDescription) -> GPT:
    """The pretrained model of the run that is described, whose files are in `folder`.

    Raises BadInputError where it is found neither there nor where the run took it from.
    """
    start_from = description.config.train.start_from
    for path in (folder / BASE_FILE, user_path(start_from)):
        with contextlib.suppress(BadInputError):
            base = open_path(path, torch.device("cpu")).model
            if weights_sha256(base) == description.initial.get(BASE_SHA256):
                return base
    raise BadInputError(
        f"this run trains adapters beside the weights of {start_from}, which are neither in {folder / BASE_FILE} nor "
        "there, or are others now.\nRestore one of them, or train the run's best model further: "
        f"tiny-gpt train TEXT --start-from {quoted(str(folder))}",
        code="base-model-missing",
    )


def take_base(model: GPT, folder: Path, description: RunDescription) -> None:
    """Give `model` the pretrained model's weights, and adapters whose values a checkpoint has. Raises BadInputError."""
    model.load_state_dict(find_base(folder, description).state_dict())
    add_adapters(model, description.config.train.lora_rank)


def merged(model: GPT) -> GPT:
    """An adapted model as a plain one, to be saved: the tables of its positions have no values."""
    plain = empty_model(model)
    plain.load_state_dict(merged_weights(model), assign=True)
    return plain


def open_adapted(folder: Path, checkpoint: Checkpoint, description: RunDescription) -> GPT:
    """The model of a checkpoint with adapters, merged. Raises BadInputError and DamagedError."""
    base, config = find_base(folder, description), description.config
    add_adapters(base, config.train.lora_rank)
    with torch.no_grad():
        read_tensors(checkpoint.path / MODEL_FILE, trained_weights(base))
    block_size = min(base.config.block_size, config.model.block_size)
    plain = GPT(replace(base.config, block_size=block_size), base.vocab_size)
    plain.load_state_dict(merged_weights(base))
    return plain
