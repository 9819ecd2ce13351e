"""A whole run from its config: prepare the text, build the model, train. The one door into this folder."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
    FINAL_FILE,
    LOG_FILE,
    METRICS_FILE,
    PLAN_FILE,
    SAMPLES_FOLDER,
    RunConfig,
    flag,
)
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.data.progress import Notice
from tiny_gpt.device import PRECISIONS, configure_torch, describe_device, pick_device, reset_peak_memory
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import atomic_write, ensure_writable_folder, remove_partial_files, user_path, write_error
from tiny_gpt.host.heartbeat import restart_reason
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.planning.autotune import (
    backend_candidates,
    choose_backend,
    must_compile_kernels,
    uses_torch_compile,
)
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.planner import Planner, measure_machine_and_text
from tiny_gpt.planning.types import BackendChoice, Plan
from tiny_gpt.run.checkpoint_store import CHECKPOINTS_FOLDER, CheckpointStore, DamagedError
from tiny_gpt.run.events import Event, Prepared
from tiny_gpt.run.resume import SavedRun, find_beginning, prepare_again, this_machine
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.training.budget import RunRequest, resolve_steps

EARLIER_FOLDER = "earlier"
LOCK_FILE = ".lock"


def run(config: RunConfig, resume: bool = False, request: RunRequest | None = None) -> Iterator[Event]:
    """Train as `config` says, into its out_dir: first the steps of preparing the text, then Prepared, Finished last.

    With `resume`, go on from the newest checkpoint there that verifies; settings that differ from those of that run
    are taken over, but not another model, tokenizer or text. Where `request` adds time, go on from the last state
    before the learning rate fell. The model that a run starts from is read when it begins and not needed to go on.
    From the first step on, Ctrl+C and SIGTERM end the run in good order; a closed terminal ends nothing. Raises the
    TinyGPTError that tells what is wrong, before anything in out_dir is touched where that is possible.
    """
    out_dir, request = user_path(config.train.out_dir), request or RunRequest()
    with only_one(out_dir), StopRequest() as stop:
        saved, has_more = find_beginning(out_dir, config, request) if resume else (None, False)
        asked, start = config, None
        if saved:
            config = saved.config_with_changes(config)
        elif config.train.start_from:
            start = open_path(user_path(config.train.start_from), torch.device("cpu"))
            config = take_over(config, start)
        device = pick_device(config.train.device)
        if saved is None:
            backend_candidates(config, device)  # raises what is wrong with the settings before the text is read
        configure_torch(device, config.train.deterministic)
        if saved:
            dataset = yield from prepare_again(config, saved)
        else:
            tokenizer = start.tokenizer if start else None
            dataset = yield from prepare(config.data, min_block_size(config), tokenizer)
        planner: Planner | None = None
        if saved is None and config.train.auto:
            planner = yield from measure_machine_and_text(config, dataset, device, request.at)
            config, _ = planner.plan(config)
        config = resolve_steps(config, len(dataset.train))
        config, choice = yield from _resolve(config, dataset, device, saved)
        plan = _plan(out_dir, config, planner, choice, is_same=saved is not None and not has_more)
        reset_peak_memory(device)  # that of what was tried
        torch.manual_seed(config.train.seed)
        model = GPT(config.model, dataset.tokenizer.vocab_size, PRECISIONS[config.train.precision]).to(device)
        if start:
            model.load_state_dict(start.model.state_dict())
        del start  # it would take its memory all night
        settings = {"config": config.to_flat(), "asked": asked.to_flat()}
        origin = {"data": dataset.identity, "machine": this_machine(device)}
        trainer = Trainer(model, dataset, config, out_dir, settings, origin, request)
        earlier = None if saved else set_aside_earlier_run(out_dir)
        if saved:
            _go_on(trainer, saved, origin["machine"], has_more)
        with atomic_write(out_dir / CONFIG_FILE) as file:
            file.write(json.dumps(config.to_flat(), indent=2).encode() + b"\n")
        if plan and not saved:
            with atomic_write(out_dir / PLAN_FILE) as file:
                file.write(json.dumps(plan.to_dict(), indent=2).encode() + b"\n")
        yield _prepared(config, dataset, trainer, earlier, choice, plan)
        stop.listen()
        with HostMonitor(stop, config.reliability.keep_awake) as monitor:
            yield from trainer.train(monitor)


def _resolve(
    config: RunConfig, dataset: Dataset, device: torch.device, saved: SavedRun | None
) -> Generator[Notice, None, tuple[RunConfig, BackendChoice]]:
    """`config` with the text, the path and the precision that are used, as it is saved: a rerun of config.json
    computes in the same way."""
    vocab_size = dataset.tokenizer.vocab_size
    if saved:
        saved.check_model(config.model, vocab_size)
    if uses_torch_compile(config, device):
        yield Notice("finding the fastest way to compute a step: torch's compiler takes about a minute")
    elif must_compile_kernels(config, device):
        yield Notice("compiling the training step for this processor: about 20 seconds, once")
    choice = (saved.choose_backend if saved else choose_backend)(config, vocab_size, device)
    data, train = replace(config.data, data=dataset.sources), replace(config.train, **asdict(choice.candidate))
    return replace(config, data=data, train=train), choice


def _plan(
    out_dir: Path, config: RunConfig, planner: Planner | None, choice: BackendChoice, is_same: bool
) -> Plan | None:
    """What to expect of the run, where the recipe has said so; a run that goes on within the budget that it was made
    for has it beside it."""
    if config.train.start_from:  # what that model knows already is not
        return None
    if planner is not None:
        # On a GPU whole steps were tried.
        step_s = choice.seconds.get(str(choice.candidate)) if planner.device.type != "cpu" else None
        return planner.plan_of(config, step_s or planner.step_time(config))
    if is_same:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            plan = Plan.from_dict(json.loads((out_dir / PLAN_FILE).read_bytes()))
            return plan if config.train.is_timed or plan.steps == config.train.total_steps else None
    return None


def take_over(config: RunConfig, start: LoadedModel) -> RunConfig:
    """`config` with the shape and the kind of tokenizer of `start`; dropout, which is no part of a model, stays.

    Raises UsageError naming what a person has asked for otherwise: settings that are neither a recipe's nor the
    model's.
    """
    kind = start.tokenizer.to_dict()["type"]
    its = asdict(start.model.config) | {"tokenizer": kind, "vocab_size": start.tokenizer.vocab_size}
    del its["dropout"]
    ours = config.to_flat()
    recipes = [recipe.to_flat() for recipe in RECIPES.values()]
    others = [[name for name in its if ours[name] not in (its[name], recipe[name])] for recipe in recipes]
    if asked := min(others, key=len):
        differences = "; ".join(f"{flag(name)} {ours[name]} is not its {its[name]}" for name in asked)
        raise UsageError(
            f"{config.train.start_from} keeps its shape and tokenizer when it is trained further: {differences}.\n"
            "Leave these settings out, or train a new model (without --start-from)"
        )
    model = replace(start.model.config, dropout=config.model.dropout)
    auto = tuple(name for name in config.train.auto if name not in its)
    train = replace(config.train, auto=auto)
    return replace(config, model=model, data=replace(config.data, tokenizer=kind), train=train)


@contextlib.contextmanager
def only_one(out_dir: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for this process; the system frees it on a kill.

    Raises UsageError while another process trains there, OutOfResourcesError where nobody may write. A folder that was
    made for a run which then did not begin is gone afterwards.
    """
    made = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    lock = filelock.FileLock(ensure_writable_folder(out_dir, "--out-dir") / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as held:
        raise UsageError(
            f"{out_dir} is being trained by another process right now; wait for it or stop it, or name another "
            "folder with --out-dir"
        ) from held
    except (OSError, NotImplementedError):
        pass  # a drive without locks
    remove_partial_files(out_dir)
    CheckpointStore(out_dir).sweep()
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            if made and os.listdir(out_dir) == [LOCK_FILE]:
                (out_dir / LOCK_FILE).unlink()
            for folder in made:
                folder.rmdir()


def _go_on(trainer: Trainer, saved: SavedRun, machine: dict[str, Any], has_more: bool) -> None:
    """Load the checkpoint; one that verifies and still cannot be used makes way for the one before it."""
    notes = [*saved.notes, *saved.machine_differences(machine)]
    if reason := restart_reason():
        notes.append(f"started again: {reason}")
    checkpoint = saved.checkpoint
    while True:
        try:
            trainer.resume(checkpoint, has_more)
            break
        except DamagedError as damage:
            store = trainer.keeper.store
            notes.append(f"{checkpoint.path} cannot be used ({damage}); {store.set_aside(checkpoint.step)}")
            older, more = store.newest()
            notes += more
            if older is None:
                raise BadInputError("\n".join([*notes, "no checkpoint is left to go on from"])) from damage
            checkpoint = older
    for note in notes:
        trainer.note(note)


def set_aside_earlier_run(out_dir: Path) -> Path | None:
    """Move the files of a run that is already in `out_dir` to earlier/DATE, so that no night is overwritten."""
    worth_keeping = (BEST_FILE, FINAL_FILE, CHECKPOINTS_FOLDER)
    others = (CONFIG_FILE, PLAN_FILE, METRICS_FILE, LOG_FILE, SAMPLES_FOLDER)
    names = [name for name in (*worth_keeping, *others) if (out_dir / name).exists()]
    if not set(names) & set(worth_keeping):
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
        raise write_error(folder, error) from error
    return folder


def _prepared(
    config: RunConfig,
    dataset: Dataset,
    trainer: Trainer,
    earlier: Path | None,
    choice: BackendChoice,
    plan: Plan | None,
) -> Prepared:
    notes, kind = [*choice.notes, *dataset.notes], dataset.tokenizer.to_dict()["type"]
    if config.train.start_from and trainer.learner.state.step == 0:
        notes.insert(0, f"starting from {config.train.start_from}: its weights, its shape, its tokenizer")
    return Prepared(
        device=describe_device(trainer.model.device),
        precision=config.train.precision,
        backend=config.train.backend,
        why=str(choice),
        sources=list(dataset.sources),
        n_characters=dataset.n_characters,
        n_documents=dataset.n_documents,
        notes=notes,
        model=config.model,
        train=config.train,
        tokenizer=kind if config.data.tokenizer == "auto" else config.data.tokenizer,
        vocab_size=dataset.tokenizer.vocab_size,
        train_tokens=len(dataset.train),
        val_tokens=len(dataset.val),
        val_tokens_scored=trainer.examiner.val_windows.n_tokens,
        n_parameters=trainer.model.n_parameters,
        tokens_per_step=trainer.tokens_per_step,
        earlier_run=earlier,
        steps_done=trainer.learner.state.step,
        history=list(trainer.learner.history),
        total_steps=config.train.total_steps,
        left_s=trainer.learner.budget.remaining_s(),
        plan=plan,
    )
