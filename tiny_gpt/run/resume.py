"""May this run go on? What a checkpoint says of its run, held against what is asked for and what is here now."""

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.config import BEST_FILE, BUDGETS, ModelConfig, RunConfig, flag
from tiny_gpt.data.choose_tokenizer import tokenizer_sha256
from tiny_gpt.data.prepare import Dataset, open_stored_dataset, open_stored_tokenizer, prepare
from tiny_gpt.data.progress import PreparationEvent
from tiny_gpt.device import candidate_precisions, processor_name
from tiny_gpt.errors import BadInputError, OutOfResourcesError, UsageError
from tiny_gpt.files import user_path
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.planning.types import BackendChoice
from tiny_gpt.run.checkpoint import check_model, read_state
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore, DamagedError, is_before_cooldown
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.budget import RunRequest

# Where the run is, how it began and how it is told, not what it is.
_ELSEWHERE = ("out_dir", "start_from", "verbose", "auto")


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint with what was told of its run."""

    checkpoint: Checkpoint
    config: RunConfig
    """As the run resolved it: the text, the path and the precision that it used."""
    asked: RunConfig
    """As a person gave it."""
    data: dict[str, Any]
    machine: dict[str, Any]
    notes: list[str]
    """What was wrong with newer checkpoints, and which settings are others now."""

    def config_with_changes(self, asked: RunConfig) -> RunConfig:
        """The run's config with the settings that `asked` has changed since.

        Raises BadInputError for what its weights and moments are made for: another model, another optimizer.
        """
        before, used, now = self.asked.to_flat(), self.config.to_flat(), asked.to_flat()
        said_now = set(before["auto"]) - set(now["auto"])
        had = before | {name: used[name] for name in before["auto"]}
        changed = {
            name: value
            for name, value in now.items()
            if value != used[name] and (value != before[name] or name in said_now) and name not in _ELSEWHERE
        }
        budget_before, budget_now = self.asked.train.budget, asked.train.budget
        if is_other_budget := any(name in changed for name in BUDGETS):
            changed |= {name: now[name] for name in BUDGETS}
        fixed = [name for name in (*(setting.name for setting in fields(ModelConfig)), "optimizer") if name in changed]
        if self.config.train.start_from:
            fixed += [name for name in ("tokenizer", "vocab_size") if name in changed]
        if fixed:
            differences = "; ".join(f"{flag(name)} was {had[name]}, is now {now[name]}" for name in fixed)
            raise BadInputError(
                f"this run cannot go on with another model or optimizer: {differences}.\n"
                "Go on with the run's own settings (tiny-gpt resume), or start a new run (--new)"
            )
        told = {name: value for name, value in changed.items() if name not in BUDGETS}
        if is_other_budget and budget_before == budget_now:
            told[budget_now] = now[budget_now]
        elif is_other_budget:
            names = flag(budget_before), before[budget_before], flag(budget_now), now[budget_now]
            self.notes.append("the budget was {} {}, is now {} {}".format(*names))
        self.notes.extend(f"{flag(name)} was {had[name]}, is now {value}" for name, value in told.items())
        if now["start_from"] not in ("", before["start_from"]):
            self.notes.append(f"--start-from {now['start_from']} is left alone: the run goes on with its own weights")
        changed |= {"out_dir": asked.train.out_dir, "verbose": asked.train.verbose}
        return self.config.with_flat(changed, str(self.checkpoint.path))

    def has_more(self, asked: RunConfig, request: RunRequest) -> bool:
        """Whether a budget of time begins now, instead of the rest of the one that the run had."""
        if not asked.train.is_timed:
            return False
        had, now = self.asked.train, asked.train
        is_other = any(getattr(had, name) != getattr(now, name) for name in BUDGETS)
        return is_other or (request.extends and self.requested_at != request.at)

    @property
    def requested_at(self) -> float | None:
        """When the timed budget that it is in was asked for."""
        run = read_state(self.checkpoint).get("run")
        budget = run.get("budget") if isinstance(run, dict) else None
        return budget.get("requested_at", budget.get("ordered_at")) if isinstance(budget, dict) else None

    def choose_backend(self, config: RunConfig, vocab_size: int, device: torch.device) -> BackendChoice:
        """The path and the precision that the run had or was told to take now, or others where it finds itself on a
        machine without them, or on one where bf16 is slow for sure. Raises UsageError for what it was told now."""
        train, own = config.train, self.config.train
        if (train.backend, train.precision) != (own.backend, own.precision):
            return choose_backend(config, vocab_size, device)
        anew = replace(config, train=replace(train, backend="auto", precision="auto"))
        now = this_machine(device)
        has_moved = any(self.machine.get(name) != now[name] for name in ("device", "processor"))
        try:
            if train.precision == "bf16" and has_moved and train.precision not in candidate_precisions("auto", device):
                raise UsageError("--precision bf16: slow here")
            return choose_backend(config, vocab_size, device)
        except UsageError as reason:
            choice = choose_backend(anew, vocab_size, device)
            self.notes.append(f"{reason}; this run goes on with {choice.candidate}")
            return choice

    def check_model(self, config: ModelConfig, vocab_size: int) -> None:
        """Raise BadInputError unless the saved weights are those of this model."""
        try:
            check_model(self.checkpoint, config, vocab_size)
        except DamagedError as damage:
            raise BadInputError(f"{self.checkpoint.path} cannot be used: {damage}") from damage

    def machine_differences(self, machine: dict[str, Any]) -> list[str]:
        """What lets the run's numbers differ from here on, in a line; none where they will not."""
        differences = [
            f"{name} {self.machine.get(name)} before, {value} now"
            for name, value in machine.items()
            if value != self.machine.get(name)
        ]
        if not differences:
            return []
        return [f"this run began elsewhere ({'; '.join(differences)}): its losses may differ in their last digits"]


def find_beginning(run_folder: Path, asked: RunConfig, request: RunRequest) -> tuple[SavedRun, bool]:
    """What a run goes on from, and whether it has a new budget of time from there: then that is its last state before
    the rate fell, for its loss not to jump, unless all that is asked for is to cool down from where it is."""
    saved = find_checkpoint(run_folder)
    if not saved.has_more(asked, request):
        return saved, False
    if asked.train.cooldown < 1 and not is_before_cooldown(saved.checkpoint.about):
        earlier, notes = CheckpointStore(run_folder).newest(is_wanted=is_before_cooldown)
        saved.notes.extend(notes)
        if earlier is not None:
            saved.notes.append(f"going on from step {earlier.step:,}, before the learning rate fell")
            saved = _read(earlier, saved.notes)
    return saved, True


def find_checkpoint(run_folder: Path) -> SavedRun:
    """The newest checkpoint of a run that verifies, bad ones set aside.

    Raises BadInputError where there is none, and for a whole one with settings that this tiny_gpt does not know: that
    is no damage, so it stays where it is.
    """
    store = CheckpointStore(run_folder)
    notes: list[str] = []
    while True:
        checkpoint, more = store.newest()
        notes += more
        if checkpoint is None:
            found = "\n".join([*notes, ""]) if notes else ""
            raise BadInputError(
                f"{found}{run_folder} holds no checkpoint to go on from; start the run again with the command that "
                "started it"
            )
        try:
            return _read(checkpoint, notes)
        except DamagedError as damage:
            notes.append(f"{checkpoint.path} cannot be used ({damage}); {store.set_aside(checkpoint.step)}")


def _read(checkpoint: Checkpoint, notes: list[str]) -> SavedRun:
    state, about = read_state(checkpoint), checkpoint.about
    parts = state.get("config"), state.get("asked"), about.get("data"), about.get("machine")
    config, asked, data, machine = ({} if not isinstance(part, dict) else part for part in parts)
    if not (config and asked and data and machine):
        raise DamagedError("a part of what it says of its run is missing")
    source = str(checkpoint.path)
    config = {"backend": "eager"} | config  # runs of earlier versions knew no other
    return SavedRun(
        checkpoint, RunConfig().with_flat(config, source), RunConfig().with_flat(asked, source), data, machine, notes
    )


def prepare_again(config: RunConfig, saved: SavedRun) -> Generator[PreparationEvent, None, Dataset]:
    """The text that the run learns from: read again, or as it was stored where it cannot be.

    Raises BadInputError, naming the difference, where it is another one by now.
    """
    is_same_request = config.data == saved.config.data
    tokenizer = _tokenizer_again(config, saved) if saved.config.train.start_from else None
    try:
        dataset = yield from prepare(config.data, config.model.block_size, tokenizer)
    except (BadInputError, OutOfResourcesError) as failure:
        found = open_stored_dataset(saved.config.data, str(saved.data.get("store"))) if is_same_request else None
        if found is None or found.identity != saved.data:
            raise
        saved.notes.append(f"the text cannot be read again ({failure}); the run goes on with its stored tokens")
        return found
    differences = [
        f"{what} {saved.data.get(name)} before, {value} now"
        for name, what in _TELLING.items()
        if (value := dataset.identity[name]) != saved.data.get(name)
    ]
    if differences:
        raise BadInputError(
            f"this run cannot go on with another text or tokenizer: {'; '.join(differences)} "
            f"({', '.join(dataset.sources)}).\nPut back the text that it learned from, or start a new run (--new)"
        )
    return dataset


def _tokenizer_again(config: RunConfig, saved: SavedRun) -> Tokenizer:
    """The tokenizer of the model that the run began with, which itself need not be there any more.

    Raises BadInputError where nothing has it.
    """
    found = _known_tokenizers(config, saved)
    again = next((each for each in found if tokenizer_sha256(each) == saved.data.get("tokenizer_sha256")), None)
    if again is None:
        raise BadInputError(
            f"this run began with the tokenizer of {saved.config.train.start_from} and cannot go on without it: it is "
            f"neither there any more, nor with the stored tokens, nor in {user_path(config.train.out_dir) / BEST_FILE}."
            "\nPut that model back where it was, or start a new run (--new)"
        )
    return again


def _known_tokenizers(config: RunConfig, saved: SavedRun) -> Iterator[Tokenizer]:
    """Of the stored tokens, of the run's own model file, of the model that it began with; what can be read of them."""
    if tokenizer := open_stored_tokenizer(str(saved.data.get("store"))):
        yield tokenizer
    for path in (user_path(config.train.out_dir) / BEST_FILE, user_path(saved.config.train.start_from)):
        with contextlib.suppress(BadInputError):
            yield open_path(path, torch.device("cpu")).tokenizer


_TELLING = {
    "train_tokens": "tokens to learn from",
    "val_tokens": "tokens for validation",
    "vocab_size": "vocabulary",
    "tokenizer_sha256": "tokenizer's sha256",
    "text_sha256": "text's sha256",
}


def this_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on besides seed and settings."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processor": f"{processor_name()} with {os.cpu_count()} cores",
    }
