"""A trained model from wherever it lies: a model file, the folder of a run, an exported folder, or a GGUF file.

Names of runs are `runs.find_model`'s business, which turns them into the paths that are opened here:
`open_path(find_model(name), device)`.
"""

from pathlib import Path

import torch

from tiny_gpt.config import BEST_FILE
from tiny_gpt.model_io.gguf_file import is_gguf
from tiny_gpt.model_io.gguf_model import read_gguf
from tiny_gpt.model_io.hf_folder import is_folder, read_folder
from tiny_gpt.model_io.model_file import LoadedModel, load_model


def open_path(path: Path, device: torch.device, compute_dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model at `path`, ready to generate on `device`; of a run's folder its best.

    Raises BadInputError saying why when there is none, or when it is damaged, foreign, or from a newer tiny_gpt.
    """
    if is_gguf(path):
        return read_gguf(path, device, compute_dtype)
    if is_folder(path):
        return read_folder(path, device, compute_dtype)
    if (path / BEST_FILE).is_file():
        path = path / BEST_FILE
    return load_model(path, device, compute_dtype)
