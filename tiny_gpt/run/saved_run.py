"""A run that stopped: what its checkpoint says, held against the settings that the user requests now."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tiny_gpt.config import BUDGETS, NO_FIRST, ModelConfig, RunConfig, flag
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted
from tiny_gpt.run.checkpoint import check_model, read_state
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore, DamagedError, is_before_cooldown
from tiny_gpt.run.description import RunDescription, read_description
from tiny_gpt.training.budget import RunRequest

# Settings that say where a run is, how it started and what it prints, not how it trains.
_NOT_COMPARED = ("out_dir", "start_from", "verbose", "auto")


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint to resume from."""

    checkpoint: Checkpoint
    description: RunDescription
    notes: list[str]
    """What was wrong with newer checkpoints, a line each."""

    def check_model(self, config: ModelConfig, vocab_size: int) -> None:
        """Raise BadInputError unless the saved weights are those of this model. Adapters are checked when they are
        read."""
        if self.description.config.train.uses_lora:
            return
        try:
            check_model(self.checkpoint, config, vocab_size)
        except DamagedError as damage:
            raise BadInputError(
                f"{self.checkpoint.path} cannot be used: {damage}", code="checkpoint-of-another-model"
            ) from damage

    def has_moved(self, machine: dict[str, Any]) -> bool:
        """Whether `machine` computes with another device or processor than the run did."""
        return any(self.description.machine.get(name) != machine[name] for name in ("device", "processor"))

    def machine_notes(self, machine: dict[str, Any]) -> list[str]:
        """A line if the losses may differ slightly from here on, else none."""
        before = self.description.machine
        differences = [
            f"{name} was {before.get(name)}, is now {now}" for name, now in machine.items() if now != before.get(name)
        ]
        if not differences:
            return []
        return [f"this run started on another machine ({'; '.join(differences)}): losses may differ in the last digits"]


def find_checkpoint(out_dir: Path) -> SavedRun:
    """The newest checkpoint of the run in `out_dir` that verifies; damaged ones are set aside.

    Raises BadInputError where there is none, and for a whole one with settings that this version does not know: that
    is not damage, so it stays where it is.
    """
    store = CheckpointStore(out_dir)
    notes: list[str] = []
    while True:
        checkpoint, damages = store.newest()
        notes += damages
        if checkpoint is None:
            remedy = (
                f"{out_dir} holds no checkpoint to resume from; start the run again with the command that started it"
            )
            raise BadInputError("\n".join([*notes, remedy]), code="no-checkpoint")
        try:
            return SavedRun(checkpoint, read_description(checkpoint), notes)
        except DamagedError as damage:
            notes.append(f"{checkpoint.path} cannot be used ({damage}); {store.set_aside(checkpoint.step)}")


def find_resume_point(out_dir: Path, requested: RunConfig, request: RunRequest) -> tuple[SavedRun, bool]:
    """The checkpoint to resume from, and whether a new time budget extends the run from there.

    A run is extended from its last state before the learning rate decayed, so that the loss does not jump; unless it
    is to cool down only, from where it is.
    """
    saved = find_checkpoint(out_dir)
    if not _is_extended(saved, requested, request):
        return saved, False
    if requested.train.cooldown < 1 and not is_before_cooldown(saved.checkpoint.about):
        earlier, damages = CheckpointStore(out_dir).newest(is_wanted=is_before_cooldown)
        saved.notes.extend(damages)
        if earlier is not None:
            saved.notes.append(f"continuing from step {earlier.step:,}, before the learning rate decayed")
            saved = SavedRun(earlier, read_description(earlier), saved.notes)
    return saved, True


def _is_extended(saved: SavedRun, requested: RunConfig, request: RunRequest) -> bool:
    """Whether a time budget begins now, instead of the rest of the one that the run had."""
    before, now = saved.description.requested.train, requested.train
    if not now.is_timed:
        return False
    is_other_budget = any(getattr(before, name) != getattr(now, name) for name in BUDGETS)
    return is_other_budget or (request.extends and _budget_requested_at(saved.checkpoint) != request.at)


def _budget_requested_at(checkpoint: Checkpoint) -> float | None:
    """When the user asked for the timed budget that the run was in; it identifies that budget."""
    run = read_state(checkpoint).get("run")
    budget = run.get("budget") if isinstance(run, dict) else None
    return budget.get("requested_at", budget.get("ordered_at")) if isinstance(budget, dict) else None


def merge_settings(saved: SavedRun, requested: RunConfig) -> tuple[RunConfig, list[str]]:
    """The run's config with the settings that the user has changed since, and a line for each of them.

    Raises BadInputError for settings that its weights and moments depend on: the model, the optimizer and the stages.
    """
    before, used = saved.description.requested, saved.description.config
    _require_present_stages(used)
    changes = _changed_settings(before, used, requested)
    old = before.to_flat() | {name: used.to_flat()[name] for name in before.train.auto}
    _require_same_model(used, old, changes)
    notes = _change_notes(before, requested, old, changes)
    now = requested.train
    if now.start_from not in ("", before.train.start_from):
        notes.append(f"--start-from {now.start_from} is ignored: the run continues with its own weights")
    changes |= {"out_dir": now.out_dir, "verbose": now.verbose}
    return used.with_flat(changes, str(saved.checkpoint.path)), notes


def _changed_settings(before: RunConfig, used: RunConfig, requested: RunConfig) -> dict[str, Any]:
    """The settings that `requested` changes, with all of the budget if any part of it changes.

    A setting counts that differs both from what the run used and from what the user gave `before`: the run may have
    chosen the former itself. Settings once left to the recipe and given now count too.
    """
    old, in_use, new = before.to_flat(), used.to_flat(), requested.to_flat()
    newly_given = set(old["auto"]) - set(new["auto"])
    changes = {
        name: value
        for name, value in new.items()
        if value != in_use[name] and (value != old[name] or name in newly_given) and name not in _NOT_COMPARED
    }
    if any(name in changes for name in BUDGETS):
        changes |= {name: new[name] for name in BUDGETS}
    return changes


def _require_present_stages(used: RunConfig) -> None:
    """Raise BadInputError for a run of an earlier version, which pretrained its teachers."""
    if used.train.teachers and used.train.first_share and used.data.first:
        raise BadInputError(
            "this run has teachers that start from a pretraining, which this version no longer trains. Its best model "
            f"remains: tiny-gpt train TEXT --start-from {quoted(used.train.out_dir)} trains it further",
            code="stages-of-earlier-version",
        )


def _require_same_model(used: RunConfig, old: dict[str, Any], changes: dict[str, Any]) -> None:
    fixed = [
        *(setting.name for setting in fields(ModelConfig)),
        "optimizer",
        "lora",
        "teachers",
        "students",
        "pretrainings",
    ]
    if used.train.start_from:
        fixed += ["tokenizer", "vocab_size"]
    if not used.train.first_share and changes.get("first") != (NO_FIRST,):
        fixed += ["first", "first_share", "own_data_epochs"]
    differences = [f"{flag(name)} was {old[name]}, is now {changes[name]}" for name in fixed if name in changes]
    if differences:
        raise BadInputError(
            f"this run cannot continue with another model, optimizer, or other stages: {'; '.join(differences)}.\n"
            "Keep the run's own settings, or start a new run with tiny-gpt train",
            code="model-or-optimizer-changed",
        )


def _change_notes(before: RunConfig, requested: RunConfig, old: dict[str, Any], changes: dict[str, Any]) -> list[str]:
    notes = []
    shown = {name: value for name, value in changes.items() if name not in BUDGETS}
    if any(name in changes for name in BUDGETS):
        old_budget, new_budget = before.train.budget, requested.train.budget
        if old_budget == new_budget:
            shown[new_budget] = changes[new_budget]
        else:
            was = f"{flag(old_budget)} {old[old_budget]}"
            notes.append(f"the budget was {was}, is now {flag(new_budget)} {changes[new_budget]}")
    return [*notes, *(f"{flag(name)} was {old[name]}, is now {value}" for name, value in shown.items())]
