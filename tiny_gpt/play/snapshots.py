"""The models of one run in the order in which they were trained: milestones, the best and the last.

A run keeps its best and its final model file, and of its checkpoints the newest, the best and some milestones. For a
model that belongs to no run there is one snapshot, the model itself.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from tiny_gpt.config import BEST_FILE, FINAL_FILE
from tiny_gpt.device import pick_device
from tiny_gpt.errors import BadInputError
from tiny_gpt.inference.decoder import Decoder
from tiny_gpt.inference.engine import SMALL, Engine, engine_for
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.model_io.stored_model import Progress, open_model_file
from tiny_gpt.run.adapters import open_adapted
from tiny_gpt.run.checkpoint import MODEL_FILE, check_model, read_history, read_tensors
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore, DamagedError
from tiny_gpt.run.description import read_description

# Models in memory at once, beside the main one.
MAX_LOADED = 4
MAIN = "main"


@dataclass(frozen=True)
class Snapshot:
    """A model from the course of a run."""

    key: str
    """Names it in requests: "main", "final", or "step-N" for a checkpoint."""
    kind: str
    """What it is, for a person: "best", "final" or "checkpoint"; "model" if it belongs to no run."""
    step: int
    progress: float | None
    """Fraction of the run, 0 to 1."""
    val_bits_per_byte: float | None


@dataclass
class OpenSnapshot:
    """A snapshot in memory, with decoders that are not in use."""

    loaded: LoadedModel
    engine: Engine
    idle_decoders: dict[tuple[int, str], Decoder]


class Snapshots:
    """All snapshots of the model at `path`, opened when they are first used. Safe to use from several threads."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Opens the model itself; raises BadInputError and UsageError as `open_path` does."""
        self.path = path
        loaded = open_path(path, torch.device("cpu"))
        # As `tiny-gpt generate` chooses, so that the same seed gives the same text.
        is_small = device == "auto" and loaded.model.n_parameters <= SMALL
        self._device = torch.device("cpu") if is_small else pick_device(device)
        loaded.model.to(self._device)
        self._main = _opened(loaded)
        self._others: OrderedDict[str, OpenSnapshot] = OrderedDict()
        self._lock = threading.Lock()
        self.run_folder = _run_folder_of(path)
        """The run that the model belongs to; None for any other model."""

    @property
    def main(self) -> LoadedModel:
        return self._main.loaded

    def list(self) -> list[Snapshot]:
        """From the first step to the last; read anew each time, since the run may still be training."""
        progress = self.main.progress
        if self.run_folder is None:
            return [Snapshot(MAIN, "model", progress.step, None, progress.val_bits_per_byte)]
        found = list(_checkpoints(self.run_folder))
        total = max([progress.step, *(snapshot.step for snapshot in found)])
        kind = "final" if self.path.name == FINAL_FILE else "best"
        for key, name, kind_of_file in ((MAIN, "", kind), ("best", BEST_FILE, "best"), ("final", FINAL_FILE, "final")):
            about = progress if not name else _progress_of(self.run_folder / name)
            if about is None or (name and kind_of_file == kind):
                continue
            fraction = about.step / total if total else None
            found.append(Snapshot(key, kind_of_file, about.step, fraction, about.val_bits_per_byte))
        return _one_per_step(found)

    def open(self, key: str) -> OpenSnapshot:
        """The snapshot called `key`. Raises BadInputError where there is none or it is damaged."""
        if key == MAIN:
            return self._main
        with self._lock:
            if key not in self._others:
                self._others[key] = _opened(self._load(key))
                while len(self._others) > MAX_LOADED:
                    self._others.popitem(last=False)
            self._others.move_to_end(key)
            return self._others[key]

    def _load(self, key: str) -> LoadedModel:
        folder = self.run_folder
        if folder is not None and key in ("best", "final"):
            return open_path(folder / (BEST_FILE if key == "best" else FINAL_FILE), self._device)
        number = key.removeprefix("step-")
        if folder is None or not key.startswith("step-") or not number.isdecimal():
            raise BadInputError(f"no snapshot {key[:40]!r} of this model; reload the page", code="snapshot-unknown")
        try:
            return self._load_checkpoint(CheckpointStore(folder), int(number))
        except DamagedError as damage:
            raise BadInputError(
                f"the checkpoint of step {number} cannot be used ({damage}); choose another snapshot",
                code="snapshot-damaged",
            ) from damage

    def _load_checkpoint(self, store: CheckpointStore, step: int) -> LoadedModel:
        checkpoint = store.verified(step)
        description, tokenizer = read_description(checkpoint), self.main.tokenizer
        config = description.config
        if config.train.uses_lora:
            model = open_adapted(store.folder.parent, checkpoint, description)
        else:
            check_model(checkpoint, config.model, tokenizer.vocab_size)
            model = GPT(config.model, tokenizer.vocab_size)
            with torch.no_grad():
                read_tensors(checkpoint.path / MODEL_FILE, model.state_dict())
        last = read_history(checkpoint)[-1:]
        progress = (
            Progress(step, last[0].epoch, last[0].train_loss, last[0].val_loss, last[0].val_bits_per_byte)
            if last
            else Progress(step, 0, 0.0, 0.0, 0.0)
        )
        return LoadedModel(model.to(self._device).eval(), tokenizer, progress, config.to_flat())


def take_decoder(snapshot: OpenSnapshot, n_texts: int, precision: str) -> Decoder:
    """A decoder for so many texts, one that was used before if it is free. Hand it back with `return_decoder`."""
    idle = snapshot.idle_decoders.pop((n_texts, precision), None)
    return idle or snapshot.engine.make_decoder(n_texts, precision)


def return_decoder(snapshot: OpenSnapshot, n_texts: int, precision: str, decoder: Decoder) -> None:
    """Keep a decoder for the next request; it is not in use any more."""
    snapshot.idle_decoders[n_texts, precision] = decoder


def title_of(path: Path) -> str:
    """What a person calls the model at `path`: its run's name, or that of its file or folder."""
    named = path.resolve()
    return named.parent.name if named.name in (BEST_FILE, FINAL_FILE) else named.name.removesuffix(".pt")


def _opened(loaded: LoadedModel) -> OpenSnapshot:
    return OpenSnapshot(loaded, engine_for(loaded), {})


def _run_folder_of(path: Path) -> Path | None:
    """The folder of the run that `path`, its folder or one of its model files, belongs to."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in (BEST_FILE, FINAL_FILE):
        return None
    has_run = (folder / BEST_FILE).is_file() or bool(CheckpointStore(folder).steps())
    return folder if has_run else None


def _checkpoints(run_folder: Path) -> list[Snapshot]:
    """Every checkpoint that can be read, with the loss of the last evaluation up to it."""
    store, found = CheckpointStore(run_folder), []
    for step in sorted(store.steps()):
        try:
            about = store.about(step)
            history = read_history(Checkpoint(store.folder / f"step-{step:08}", step, about))
        except (DamagedError, BadInputError):
            continue
        progress = about.get("progress")
        found.append(
            Snapshot(
                f"step-{step}",
                "checkpoint",
                step,
                float(progress) if isinstance(progress, int | float) else None,
                history[-1].val_bits_per_byte if history else None,
            )
        )
    return found


def _progress_of(path: Path) -> Progress | None:
    """How far the model in a file was trained; None if there is no such file, or it cannot be read."""
    try:
        with open_model_file(path) as stored:
            return stored.progress
    except BadInputError:
        return None


def _one_per_step(snapshots: list[Snapshot]) -> list[Snapshot]:
    """In the order of their steps; of several of one step the best, then the final, then the checkpoint."""
    rank = {"model": 0, "best": 1, "final": 2, "checkpoint": 3}
    by_step: dict[int, Snapshot] = {}
    for snapshot in sorted(snapshots, key=lambda each: rank[each.kind], reverse=True):
        by_step[snapshot.step] = snapshot
    return [by_step[step] for step in sorted(by_step)]
