"""The formats that a model can be exported to, and the folder that is whole or absent."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tiny_gpt.config import CONFIG_FILE
from tiny_gpt.errors import UsageError
from tiny_gpt.export.huggingface import write_hf, write_json
from tiny_gpt.files import quoted_python, sync_folder, sync_to_disk, write_error
from tiny_gpt.model_io.hf_weights import WEIGHTS_FILE
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.safetensors_file import write_tensors
from tiny_gpt.model_io.stored_model import FORMAT, FORMAT_VERSION


def export(loaded: LoadedModel, to: str, target: Path) -> list[str]:
    """Write the model into the new folder `target` in the format `to`; returns lines that say how to use it.

    The folder takes its name only once it is whole and on the disk. Raises UsageError where `target` exists and
    OutOfResourcesError where it cannot be written; nothing is left then.
    """
    refuse_existing(target)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        notes = EXPORTERS[to](loaded, beside)
        for path in beside.iterdir():
            with open(path, "rb+") as file:
                sync_to_disk(file.fileno())
        sync_folder(beside)
        os.rename(beside, target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_error(target, error, "choose another folder with --out") from error
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or it never came to be
            shutil.rmtree(beside)
    return notes


def refuse_existing(target: Path) -> None:
    """Nothing of a person's is ever replaced. Raises UsageError."""
    if os.path.lexists(target):
        raise UsageError(
            f"{target} is there already; name another place with --out, or move it away", code="output-exists"
        )


def write_safetensors(loaded: LoadedModel, folder: Path) -> list[str]:
    """The weights by our own names, and all that a model file tells beside them as JSON. Raises OSError."""
    with open(folder / WEIGHTS_FILE, "wb") as file:
        write_tensors(file, loaded.model.state_dict())
    write_json(
        folder / CONFIG_FILE,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model_config": asdict(loaded.model.config),
            "tokenizer": loaded.tokenizer.to_dict(),
            "progress": asdict(loaded.progress),
            "run_config": loaded.run_config,
        },
    )
    return [f"{WEIGHTS_FILE} holds the weights by the names in tiny_gpt/model/gpt.py, {CONFIG_FILE} all else."]


def _write_gguf(loaded: LoadedModel, folder: Path) -> list[str]:
    try:
        from tiny_gpt.export.gguf import write_gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise UsageError(
            f"--to gguf takes the package gguf: {quoted_python()} -m pip install gguf", code="gguf-not-installed"
        ) from error
    return write_gguf(loaded, folder)


EXPORTERS: dict[str, Callable[[LoadedModel, Path], list[str]]] = {
    "hf": write_hf,
    "gguf": _write_gguf,
    "safetensors": write_safetensors,
}
