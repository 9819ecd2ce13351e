"""A whole run from its config: prepare the text, build the model, train. The one door into this folder."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE, METRICS_FILE, RunConfig
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.device import configure, describe_device, pick_device, pick_precision
from tiny_gpt.files import atomic_write, cannot_write, user_path, writable_folder
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.events import Event, Prepared
from tiny_gpt.training.stop import StopRequest
from tiny_gpt.training.trainer import Trainer

EARLIER_FOLDER = "earlier"


def run(config: RunConfig) -> Iterator[Event]:
    """Train as `config` says, into its out_dir: first the steps of preparing the text, then Prepared, Finished last.

    From the first step on, Ctrl+C and SIGTERM end the run in good order. Raises the TinyGPTError that tells what is
    wrong, before anything in out_dir is touched where that is possible.
    """
    out_dir = writable_folder(user_path(config.train.out_dir), "--out-dir")
    device = pick_device(config.train.device)
    dtype = pick_precision(config.train.precision, device)
    configure(device)
    dataset = yield from prepare(config.data, config.model.block_size)
    # Saved as resolved: a rerun of config.json computes in the same precision.
    config = replace(
        config,
        data=replace(config.data, data=dataset.words),
        train=replace(config.train, precision="bf16" if dtype == torch.bfloat16 else "fp32"),
    )
    torch.manual_seed(config.train.seed)
    model = GPT(config.model, dataset.tokenizer.vocab_size, dtype).to(device)
    trainer = Trainer(model, dataset, config, out_dir)
    earlier = set_aside_earlier_run(out_dir)
    with atomic_write(out_dir / CONFIG_FILE) as file:
        file.write(json.dumps(config.to_flat(), indent=2).encode() + b"\n")
    yield _prepared(config, dataset, trainer, earlier)
    with StopRequest() as stop:
        yield from trainer.train(stop)


def set_aside_earlier_run(out_dir: Path) -> Path | None:
    """Move the files of a run that is already in `out_dir` to earlier/DATE, so that no night is overwritten."""
    names = [name for name in (BEST_FILE, FINAL_FILE, CONFIG_FILE, METRICS_FILE) if (out_dir / name).exists()]
    if BEST_FILE not in names and FINAL_FILE not in names:
        return None
    written = time.localtime(max((out_dir / name).stat().st_mtime for name in names))
    folder = out_dir / EARLIER_FOLDER / time.strftime("%Y-%m-%d_%H-%M-%S", written)
    while folder.exists():  # two runs within a second
        folder = folder.with_name(folder.name + "_")
    try:
        folder.mkdir(parents=True)
        for name in names:
            shutil.move(out_dir / name, folder / name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _prepared(config: RunConfig, dataset: Dataset, trainer: Trainer, earlier: Path | None) -> Prepared:
    return Prepared(
        device=describe_device(trainer.model.device),
        precision=config.train.precision,
        sources=list(dataset.words),
        n_characters=dataset.n_characters,
        n_documents=dataset.n_documents,
        notes=dataset.notes,
        tokenizer=config.data.tokenizer,
        vocab_size=dataset.tokenizer.vocab_size,
        train_tokens=len(dataset.train),
        val_tokens=len(dataset.val),
        val_tokens_scored=trainer.val_windows.n_tokens,
        n_parameters=trainer.model.n_parameters,
        tokens_per_step=trainer.tokens_per_step,
        earlier_run=earlier,
    )
