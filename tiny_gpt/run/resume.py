"""Prepare a run to continue from its newest checkpoint: with its own text, model and backend, or an error saying why
not."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, RunConfig
from tiny_gpt.data.choose_tokenizer import tokenizer_sha256
from tiny_gpt.data.prepare import Dataset, open_stored_dataset, open_stored_tokenizer, prepare
from tiny_gpt.data.progress import PreparationEvent
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.device import candidate_precisions, configure_torch, pick_device
from tiny_gpt.errors import BadInputError, OutOfResourcesError, UsageError
from tiny_gpt.files import quoted, user_path
from tiny_gpt.host.heartbeat import restart_reason
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.planning.measurement import compilation_notices
from tiny_gpt.planning.types import BackendChoice, Plan
from tiny_gpt.run.adapters import take_base
from tiny_gpt.run.checkpoint import read_state
from tiny_gpt.run.checkpoint_store import DamagedError
from tiny_gpt.run.description import RunDescription, machine_fingerprint
from tiny_gpt.run.other_text import prepare_other, tokenizer_for
from tiny_gpt.run.output_folder import write_json_atomically
from tiny_gpt.run.plan_file import read_saved_plan
from tiny_gpt.run.prepared_run import PreparedRun, build_model, prepared_event, with_choices
from tiny_gpt.run.saved_run import SavedRun, find_resume_point, merge_settings
from tiny_gpt.run.sharing import share_again
from tiny_gpt.run.state import TrainState
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.budget import RunRequest, resolve_steps
from tiny_gpt.training.stages import stages_of

# What identifies a text and its tokens: keys of `Dataset.identity` and their names in messages.
COMPARED_DATA = {
    "train_tokens": "training tokens",
    "val_tokens": "validation tokens",
    "vocab_size": "vocabulary size",
    "tokenizer_sha256": "tokenizer's sha256",
    "text_sha256": "text's sha256",
}


def resume_run(requested: RunConfig, request: RunRequest) -> Generator[PreparationEvent, None, PreparedRun]:
    """The run in the folder of `requested`, with the settings that differ from its own taken from there.

    Model, optimizer, tokenizer and text must be the same. Raises UsageError and BadInputError before anything in the
    folder is changed, but for damaged checkpoints, which are set aside.
    """
    out_dir = user_path(requested.train.out_dir)
    saved, extends = find_resume_point(out_dir, requested, request)
    merged, change_notes = merge_settings(saved, requested)
    device = pick_device(merged.train.device)
    configure_torch(device, merged.train.deterministic)
    dataset, data_notes = yield from reopen_data(merged, saved)
    other = yield from reopen_other(merged, saved, dataset)
    vocab_size = dataset.tokenizer.vocab_size

    settled = resolve_steps(merged, len(dataset.train))
    saved.check_model(settled.model, vocab_size)
    yield from compilation_notices(settled, device)
    choice, backend_notes = choose_same_backend(settled, saved, vocab_size, device)
    config = share_again(with_choices(settled, dataset.sources, choice.candidate), requested)
    plan = None if extends else read_plan(out_dir, config)

    model = build_model(config, vocab_size, device)
    machine = machine_fingerprint(device)
    description = RunDescription(config, requested, dataset.identity, machine, saved.description.initial)
    if config.train.lora_rank:
        take_base(model, out_dir, description)
    trainer = Trainer(TrainState(model, config.train, request, device), dataset, config, description, out_dir, other)
    notes = [*saved.notes, *change_notes, *data_notes, *backend_notes, *saved.machine_notes(machine)]
    if reason := restart_reason():
        notes.append(f"restarted: {reason}")
    load_checkpoint(trainer, saved, extends, notes)
    write_json_atomically(out_dir / CONFIG_FILE, config.to_flat())
    return PreparedRun(config, trainer, prepared_event(config, dataset, trainer, choice, plan))


def load_checkpoint(trainer: Trainer, saved: SavedRun, extends: bool, notes: list[str]) -> None:
    """Load the checkpoint, or the one before it where it verifies and still cannot be used; warn of all `notes`.

    Raises BadInputError where none is left.
    """
    checkpoint, store = saved.checkpoint, trainer.checkpoints.store
    while True:
        try:
            trainer.resume(checkpoint, extends)
            break
        except DamagedError as damage:
            notes.append(f"{checkpoint.path} cannot be used ({damage}); {store.set_aside(checkpoint.step)}")
            older, damages = store.newest()
            notes += damages
            if older is None:
                message = "\n".join([*notes, "no checkpoint is left to resume from"])
                raise BadInputError(message, code="no-usable-checkpoint") from damage
            checkpoint = older
    for note in notes:
        trainer.state.warn(note)


def read_plan(out_dir: Path, config: RunConfig) -> Plan | None:
    """The plan that the run started with, where it is still that of `config`."""
    plan = read_saved_plan(out_dir)
    if plan and (config.train.is_timed or plan.steps == config.train.total_steps):
        return plan
    return None


def choose_same_backend(
    config: RunConfig, saved: SavedRun, vocab_size: int, device: torch.device
) -> tuple[BackendChoice, list[str]]:
    """The run's backend and precision, or others where they do not work on this machine, with a line that says so.

    Raises UsageError for a backend or precision that the user asks for now.
    """
    train, own = config.train, saved.description.config.train
    if (train.backend, train.precision) != (own.backend, own.precision):
        return choose_backend(config, vocab_size, device), []
    try:
        is_elsewhere = saved.has_moved(machine_fingerprint(device))
        if train.precision == "bf16" and is_elsewhere and "bf16" not in candidate_precisions("auto", device):
            raise UsageError("--precision bf16: slow here", code="bf16-slow-here")
        return choose_backend(config, vocab_size, device), []
    except UsageError as reason:
        open_choice = replace(config, train=replace(train, backend="auto", precision="auto"))
        choice = choose_backend(open_choice, vocab_size, device)
        return choice, [f"{reason}; this run continues with {choice.candidate}"]


# --- the text ---


def reopen_data(config: RunConfig, saved: SavedRun) -> Generator[PreparationEvent, None, tuple[Dataset, list[str]]]:
    """The run's text, read again, or its stored tokens where that fails; and a line if it does.

    Raises BadInputError naming the difference where the text or the tokenizer has changed.
    """
    used, identity = saved.description.config, saved.description.data
    tokenizer: Tokenizer | None = None
    if used.train.start_from:
        tokenizer = find_tokenizer(config, saved)
    elif used.train.first_share:
        tokenizer = known_tokenizer(config, saved) or (yield from tokenizer_for(used))
    try:
        dataset = yield from prepare(config.data, config.model.block_size, tokenizer)
    except (BadInputError, OutOfResourcesError) as failure:
        stored = open_stored_dataset(used.data, str(identity.get("store"))) if config.data == used.data else None
        if stored is None or any(identity.get(name) != value for name, value in stored.identity.items()):
            if isinstance(failure, BadInputError) and failure.code == "source-not-found":
                raise BadInputError(f"{failure}.\n{_remedies(config)}", code="text-of-run-not-found") from failure
            raise
        return stored, [f"the text cannot be read again ({failure}); using its stored tokens"]
    differences = [
        f"{label} was {identity.get(name)}, is now {value}"
        for name, label in COMPARED_DATA.items()
        if (value := dataset.identity[name]) != identity.get(name)
    ]
    if differences:
        raise BadInputError(
            f"this run cannot continue with another text or tokenizer: {'; '.join(differences)} "
            f"({', '.join(dataset.sources)}).\n{_remedies(config)}",
            code="text-or-tokenizer-changed",
        )
    return dataset, []


def reopen_other(
    config: RunConfig, saved: SavedRun, dataset: Dataset
) -> Generator[PreparationEvent, None, Tokens | None]:
    """The text of --first, in the tokens of the run's own `dataset`; None where it is gone or has changed, and is no
    longer needed.

    Raises BadInputError where a run that is in its last pretraining, or before it, cannot have it.
    """
    if not config.train.first_share:
        return None
    store = dataset.identity["first_store"] = saved.description.data.get("first_store")
    stored = open_stored_dataset(config.data, str(store))
    if stored is not None:
        return stored.train
    try:
        other = yield from prepare_other(config, dataset)
    except (BadInputError, OutOfResourcesError):
        if is_pretraining(saved):
            raise
        return None
    if other.identity["store"] == store:
        return other.train
    if not is_pretraining(saved):
        return None
    raise BadInputError(
        f"the text of --first has changed ({', '.join(other.sources)}), and this run was still learning from it.\n"
        "Restore it, or start a new run (--new)",
        code="first-text-changed",
    )


def is_pretraining(saved: SavedRun) -> bool:
    """Whether the run is in its last pretraining, or before it."""
    run = read_state(saved.checkpoint).get("run")
    kinds = [stage.kind for stage in stages_of(saved.description.config.train)]
    stage = int(run.get("stage") or 0) if isinstance(run, dict) else 0
    return "pretraining" in kinds[stage:]


def _remedies(config: RunConfig) -> str:
    """What to do where the text of a run has changed."""
    folder, sources = quoted(config.train.out_dir), " ".join(map(quoted, config.data.data))
    return (
        f"The text has grown or was edited: tiny-gpt train {sources} --start-from {folder} begins a new run with this "
        f"run's model. It lies in another place: tiny-gpt resume {folder} --data PLACE. Otherwise restore the text "
        "that it was trained on"
    )


def find_tokenizer(config: RunConfig, saved: SavedRun) -> Tokenizer:
    """The tokenizer of the model that the run started from, which may be gone by now. Raises BadInputError."""
    if tokenizer := known_tokenizer(config, saved):
        return tokenizer
    start_from = saved.description.config.train.start_from
    raise BadInputError(
        f"this run needs the tokenizer of {start_from}, which is not found there, with the stored tokens, or in "
        f"{user_path(config.train.out_dir) / BEST_FILE}.\nRestore that model, or start a new run with tiny-gpt train",
        code="tokenizer-missing",
    )


def known_tokenizer(config: RunConfig, saved: SavedRun) -> Tokenizer | None:
    """The run's tokenizer, from where it may have been kept; None if it is in none of these places."""
    sha256 = saved.description.data.get("tokenizer_sha256")
    return next((one for one in _known_tokenizers(config, saved) if tokenizer_sha256(one) == sha256), None)


def _known_tokenizers(config: RunConfig, saved: SavedRun) -> Iterator[Tokenizer]:
    """Of the stored tokens, of the run's best model, and of the model that it started from, as far as they exist."""
    if tokenizer := open_stored_tokenizer(str(saved.description.data.get("store"))):
        yield tokenizer
    for path in (user_path(config.train.out_dir) / BEST_FILE, user_path(saved.description.config.train.start_from)):
        with contextlib.suppress(BadInputError):
            yield open_path(path, torch.device("cpu")).tokenizer
