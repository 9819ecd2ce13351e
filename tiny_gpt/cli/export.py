"""`tiny-gpt export` and `tiny-gpt import`: models to and from other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import ModelArgument, parse
from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE, ExportFormat
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted, user_path
from tiny_gpt.hub import HUB_PREFIX, repository_name
from tiny_gpt.run.folders import find_model
from tiny_gpt.ui.terminal import printable


@dataclass(frozen=True)
class ExportCommand:
    """Write a trained model as a folder that other tools read."""

    to: ExportFormat
    """hf: for transformers and mlx-lm.
    gguf: for llama.cpp, Ollama and LM Studio.
    safetensors: tiny_gpt's own tensor names, with its config.json."""
    model: ModelArgument = ""
    """A run, model file, exported folder, GGUF file or hf:OWNER/NAME. Without it, the best model of the newest run."""
    out: Annotated[str, arg(metavar="FOLDER"), OPTIONAL] = ""
    """Folder to write; must not exist yet. Without it, NAME-hf, NAME-gguf or NAME-safetensors in this folder."""


@dataclass(frozen=True)
class ImportCommand:
    """Convert another program's model to a model file of tiny_gpt."""

    source: Annotated[Positional[str], arg(metavar="MODEL")]
    """Folder with config.json, model.safetensors and tokenizer.json, a GGUF file, or nanoGPT's ckpt.pt.
    hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf: a model of the Hugging Face hub, downloaded once."""
    tokenizer: Annotated[str, arg(metavar="PATH"), OPTIONAL] = ""
    """For nanoGPT's ckpt.pt: meta.pkl of its text, or a folder with GPT-2's tokenizer.json.
    Without it, what is beside the checkpoint."""
    out: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Model file to write; must not exist yet. Without it, NAME.pt in this folder, named after MODEL."""


def export_model(args: Sequence[str]) -> int:
    """Write a model for other tools: transformers, llama.cpp, Ollama."""
    command = parse(ExportCommand, "tiny-gpt export", args)
    import torch

    from tiny_gpt.export.export import export, refuse_existing
    from tiny_gpt.model_io.open_model import open_path

    path = find_model(command.model)
    target = user_path(command.out) if command.out else Path(f"{model_name(path)}-{command.to}")
    refuse_existing(target)
    notes = export(open_path(path, torch.device("cpu")), command.to, target)
    print(printable(f"Exported {path} to the folder {target}:"))
    for file in sorted(target.iterdir()):
        print(f"  {file.name:<26}{format_size(file.stat().st_size):>10}")
    print("Inside that folder:")
    for note in notes:
        print(f"  {note}")
    return 0


def import_model(args: Sequence[str]) -> int:
    """Convert a model in the format of Hugging Face, GGUF or nanoGPT."""
    command = parse(ImportCommand, "tiny-gpt import", args)
    import torch

    from tiny_gpt.export.export import refuse_existing
    from tiny_gpt.model_io.bounded_json import shown
    from tiny_gpt.model_io.gguf_file import is_gguf
    from tiny_gpt.model_io.gguf_model import read_gguf
    from tiny_gpt.model_io.hf_folder import read_folder
    from tiny_gpt.model_io.model_file import save_loaded
    from tiny_gpt.model_io.nanogpt import is_nanogpt_archive, read_nanogpt

    if not command.source.strip():
        raise BadInputError("the name of the model is empty; name its folder or file", code="model-name-empty")
    source = find_model(command.source) if command.source.startswith(HUB_PREFIX) else user_path(command.source)
    is_nanogpt = is_nanogpt_archive(source)
    name = source.stem if is_gguf(source) or is_nanogpt else repository_name(source) or source.resolve().name
    if is_nanogpt and not command.out:
        name += "-imported"
    target = user_path(command.out) if command.out else Path(f"{name}.pt")
    if not name and not command.out:
        raise BadInputError(
            f"{shown(source)} has no name that the model file could get; name the file with --out",
            code="model-name-missing",
        )
    refuse_existing(target)
    cpu = torch.device("cpu")
    if is_nanogpt:
        loaded = read_nanogpt(source, user_path(command.tokenizer) if command.tokenizer else None, cpu)
    else:
        loaded = (read_gguf if is_gguf(source) else read_folder)(source, cpu)
    save_loaded(target, loaded)
    config = loaded.model.config
    for note in loaded.run_config["import_notes"]:
        print(printable(note))
    print(
        printable(
            f"Imported {command.source} as the model file {target}: {config.architecture}, "
            f"{loaded.model.n_parameters:,} parameters, {loaded.model.vocab_size:,} tokens in the vocabulary, "
            f"context of {config.block_size:,} tokens"
        )
    )
    print(printable(f'Generate text: tiny-gpt generate --checkpoint {quoted(str(target))} --prompt "The"'))
    return 0


def model_name(path: Path) -> str:
    """A short name for a model: its run's if it is in a run's folder, otherwise its own without .pt."""
    absolute = path.resolve()
    if absolute.is_dir():
        return repository_name(absolute) or absolute.name
    is_in_run = path.name in (BEST_FILE, FINAL_FILE) and (absolute.parent / CONFIG_FILE).is_file()
    return absolute.parent.name if is_in_run else path.stem


def format_size(n_bytes: int) -> str:
    """12345678 -> "12.3 MB"."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
