"""`tiny-gpt export` and `tiny-gpt import`: the way to other tools and from them."""

from pathlib import Path

import torch

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.export import export, refuse_existing
from tiny_gpt.files import user_path
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.hf_folder import read_folder
from tiny_gpt.model_io.model_file import save_loaded
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.run.folders import find_model
from tiny_gpt.ui.terminal import printable, quoted

CPU = torch.device("cpu")


def export_model(name: str, to: str, out: str) -> int:
    """Write the model called `name` as a folder in the format `to`, and tell how to use it. Returns the exit code."""
    path = find_model(name)
    target = user_path(out) if out else Path(f"{name_of(path)}-{to}")
    refuse_existing(target)
    notes = export(open_path(path, CPU), to, target)
    print(f"{path} is now also the folder {target}, with")
    for file in sorted(target.iterdir()):
        print(f"  {file.name:<26}{size_text(file.stat().st_size):>10}")
    print("Inside that folder:")
    for note in notes:
        print(f"  {note}")
    return 0


def name_of(path: Path) -> str:
    """A short name for a model: its run's if it lies in a run's folder, else its own without .pt."""
    whole = path.resolve()
    if whole.is_dir():
        return whole.name
    is_of_a_run = path.name in (BEST_FILE, FINAL_FILE) and (whole.parent / CONFIG_FILE).is_file()
    return whole.parent.name if is_of_a_run else path.stem


def import_model(folder: str, out: str) -> int:
    """Make a model file of a folder in Hugging Face's form. Returns the exit code."""
    source = user_path(folder)
    name = source.resolve().name
    target = user_path(out) if out else Path(f"{name}.pt")
    if not name and not out:
        raise BadInputError(f"{shown(source)} has no name to call the model file by; give one with --out")
    refuse_existing(target)
    loaded = read_folder(source, CPU)
    save_loaded(target, loaded)
    config = loaded.model.config
    for note in loaded.run_config["import_notes"]:
        print(printable(note))
    print(
        printable(
            f"{source} is now also the model file {target}: {config.architecture}, {loaded.model.n_parameters:,} "
            f"parameters, {loaded.model.vocab_size:,} tokens, {config.block_size:,} seen at once"
        )
    )
    print(printable(f'Write with it: tiny-gpt generate --checkpoint {quoted(str(target))} --prompt "The"'))
    return 0


def size_text(n_bytes: int) -> str:
    """12345678 -> "12.3 MB"."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
