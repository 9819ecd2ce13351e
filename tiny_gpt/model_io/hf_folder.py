"""Opens a model folder in Hugging Face's format: one of our architectures, with weights in safetensors.

`tiny-gpt export --to hf` writes such folders, and people share them. They are untrusted: sizes are checked before
memory is allocated, no code in them runs, and a model that our network would compute differently is rejected.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tiny_gpt.config import CONFIG_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.hub import repository_name
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.bounded_json import read_object, shown
from tiny_gpt.model_io.finite import require_finite
from tiny_gpt.model_io.hf_config import HFConfig, read_config
from tiny_gpt.model_io.hf_tokenizer import read_tokenizer
from tiny_gpt.model_io.hf_weights import INDEX_FILE, PICKLES, WEIGHTS_FILE, HFWeights, open_weights, padding_notes
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress, require_no_adapter

MAX_CONFIG_BYTES = 1 << 20


def is_folder(path: Path) -> bool:
    """Whether `path` is such a folder, and not that of a run, whose config.json has no model_type."""
    if not any((path / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE, *PICKLES)):
        return False
    try:
        return "model_type" in read_object(path / CONFIG_FILE, MAX_CONFIG_BYTES)
    except BadInputError:
        return False


def read_folder(path: Path, device: torch.device, compute_dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model of a folder, ready to generate on `device`; its run_config tells where it came from.

    Raises BadInputError saying why when it is damaged, or of a kind that tiny_gpt does not compute.
    """
    require_no_adapter(path)
    if not path.is_dir():
        raise BadInputError(
            f"{shown(path)} is no folder; name one that has a {CONFIG_FILE} and a {WEIGHTS_FILE}",
            code="not-a-model-folder",
        )
    values = read_object(path / CONFIG_FILE, MAX_CONFIG_BYTES)
    hf = read_config(values, shown(path / CONFIG_FILE))
    with open_weights(path, hf.model.architecture) as weights:
        weights.check(hf)
        tokenizer, notes, n_added = read_tokenizer(path)
        notes += padding_notes(path, hf, tokenizer.vocab_size, n_added)
        model = GPT(hf.model, tokenizer.vocab_size, compute_dtype)
        _copy(weights, model, hf, path)
    for name, weight in model.state_dict().items():
        require_finite(name, weight.float().numpy(), shown(path))
    run_config: dict[str, Any] = {
        "imported_from": shown(repository_name(path) or path.resolve().name),
        "imported_model_type": values["model_type"],
        "import_notes": tuple(notes),
    }
    return LoadedModel(model.to(device).eval(), tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), run_config)


def _copy(weights: HFWeights, model: GPT, hf: HFConfig, path: Path) -> None:
    try:
        weights.copy_into(model, hf)
    except (OSError, SafetensorError) as error:
        raise BadInputError(
            f"{shown(path)}: the weights cannot be read ({shown(error)}); fetch it anew", code="weights-unreadable"
        ) from error
