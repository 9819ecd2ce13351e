"""Prepare a new run: read the text, choose every setting that the user left open, build the model."""

import time
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

import torch

from tiny_gpt.config import BASE_FILE, CONFIG_FILE, PLAN_FILE, RunConfig, TrainConfig, flag
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.data.progress import Notice, PreparationEvent
from tiny_gpt.device import configure_torch, pick_device, require_memory
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.errors import UsageError
from tiny_gpt.evaluation import LONGEST_BLOCK, LONGEST_FUSED_BLOCK
from tiny_gpt.files import user_path
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import add_adapters
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.model_io.model_file import LoadedModel, save_loaded
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.planning.autotune import backend_candidates, choose_backend
from tiny_gpt.planning.further_training import measure_initial_model
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.measurement import compilation_notices
from tiny_gpt.planning.memory import estimate_memory_bytes, require_memory_for_smallest, with_rank
from tiny_gpt.planning.planner import Planner, unasked_changes
from tiny_gpt.planning.types import BackendChoice, Plan
from tiny_gpt.run.adapters import BASE_SHA256, weights_sha256
from tiny_gpt.run.description import RunDescription, machine_fingerprint
from tiny_gpt.run.events import REFERENCE_TEXT
from tiny_gpt.run.forgetting import measure_known
from tiny_gpt.run.group_plan import plan_for_group
from tiny_gpt.run.other_text import measure_for_plan, prepare_texts, refuse_conflicts_with_first
from tiny_gpt.run.output_folder import archive_earlier_run, write_json_atomically
from tiny_gpt.run.prepared_run import PreparedRun, build_model, prepared_event, with_choices
from tiny_gpt.run.sharing import share_batches
from tiny_gpt.run.state import TrainState
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.training.budget import RunRequest, requested_seconds, resolve_steps
from tiny_gpt.training.stages import FIRST_SHARE


def start_run(requested: RunConfig, request: RunRequest) -> Generator[PreparationEvent, None, PreparedRun]:
    """Prepare a run with the `requested` settings; an earlier run in its folder is archived.

    The settings become complete in three steps: `shaped` has the shape of --start-from's model, `planned` what the
    planner chose for the recipe `auto`, `config` the measured backend and precision too.

    Raises UsageError, BadInputError and OutOfResourcesError before anything in the folder is changed.
    """
    refuse_conflicts_with_first(requested)
    initial = open_initial_model(requested.train.start_from)
    shaped = take_shape(requested, initial) if initial else requested
    device = pick_device(shaped.train.device)
    require_memory_for_smallest(shaped, device)
    backend_candidates(shaped, device)  # refuses an impossible backend before the text is read
    configure_torch(device, shaped.train.deterministic)
    dataset = yield from prepare(shaped.data, min_block_size(shaped), initial.tokenizer if initial else None)
    shaped = for_text(shaped, dataset)
    texts = yield from prepare_texts(shaped, dataset)

    planner: Planner | None = None
    was_alone = current_ranks().is_alone
    if shaped.train.auto and initial:
        planner = yield from measure_initial_model(shaped, dataset, initial.model, device, request.at)
    elif shaped.train.auto:
        planner = yield from measure_for_plan(shaped, texts, device, request.at)
    if planner:
        planner = yield from plan_for_group(shaped, planner, device)
    planned = planner.plan(shaped)[0] if planner else with_rank(shaped, texts.own.tokenizer.vocab_size, device)
    dataset, other = texts.chosen_by(planned)
    vocab_size = dataset.tokenizer.vocab_size
    if other:
        dataset.identity["first_store"] = other.identity["store"]
    planned = yield from _with_share_for(other, planned, shaped)
    if planner:
        yield from map(Notice, unasked_changes(shaped, planned))
    planned = resolve_steps(planned, len(dataset.train))
    if initial:
        needed = planner.memory_bytes(planned) if planner else estimate_memory_bytes(planned, vocab_size, device)
        require_memory_for_training(planned, vocab_size, device, needed)
    yield from compilation_notices(planned, device)
    choice = choose_backend(planned, vocab_size, device)
    config = with_choices(planned, dataset.sources, choice.candidate)
    config = yield from share_batches(config, vocab_size, device, is_decided=not was_alone and planner is not None)
    plan = expected_plan(config, planner, choice) if planner else None

    model = build_model(config, vocab_size, device)
    about = (yield from _take_initial_model(model, initial, dataset, config, request)) if initial else {}
    base = initial if config.train.lora_rank else None
    del initial  # frees its memory before the optimizer allocates the moments
    description = RunDescription(config, requested, dataset.identity, machine_fingerprint(device), about)
    out_dir = user_path(requested.train.out_dir)
    state = TrainState(model, config.train, request, device)
    trainer = Trainer(state, dataset, config, description, out_dir, other.train if other else None)
    earlier_run = archive_earlier_run(out_dir)
    write_json_atomically(out_dir / CONFIG_FILE, config.to_flat())
    if base:
        save_loaded(out_dir / BASE_FILE, base)
    if plan:
        write_json_atomically(out_dir / PLAN_FILE, plan.to_dict())
    return PreparedRun(config, trainer, prepared_event(config, dataset, trainer, choice, plan, earlier_run))


def _with_share_for(
    other: Dataset | None, planned: RunConfig, requested: RunConfig
) -> Generator[Notice, None, RunConfig]:
    """`planned` with a fraction of the run for `other` text. Settings for it may be `requested` without --first, or for
    a text that the plan did not take."""
    names, default = ("first_share", "own_data_epochs", "pretrainings"), TrainConfig()
    given = [name for name in names if getattr(requested.train, name) != getattr(default, name)]
    if given and not other:
        flags = " and ".join(map(flag, given))
        yield Notice(f"{flags}: without effect, as no other text comes first; name one with --first")
    first_share = (planned.train.first_share or FIRST_SHARE) if other else 0.0
    return replace(planned, train=replace(planned.train, first_share=first_share))


def _take_initial_model(
    model: GPT, initial: LoadedModel, dataset: Dataset, config: RunConfig, request: RunRequest
) -> Generator[Notice, None, dict[str, Any]]:
    """Give `model` the weights of --start-from's, and adapters with --lora. Returns `RunDescription.initial`."""
    model.load_state_dict(initial.model.state_dict())
    about: dict[str, Any] = {}
    run_s = requested_seconds(config.train, request.at, time.time())
    if known := measure_known(model, dataset.tokenizer, dataset.sources, run_s):
        yield Notice(
            f"the model has {known.bits_per_byte:.2f} bits per byte on {REFERENCE_TEXT}; the end will say how much of "
            "that it has forgotten"
        )
        about |= known.to_initial()
    if rank := config.train.lora_rank:
        about[BASE_SHA256] = weights_sha256(initial.model.cpu())  # which frees a GPU of it
        add_adapters(model, rank)
    return about


def for_text(config: RunConfig, dataset: Dataset) -> RunConfig:
    """`config` for the text of `dataset`: a corpus in shards has no teachers, which predict all of a text.

    Raises UsageError where the user wants some.
    """
    if dataset.train.shards is None:
        return config
    if config.train.teachers:
        raise UsageError(
            f"--teachers {config.train.teachers}: teachers predict each token of a text, and a corpus in shards is too "
            "large for that; leave out --teachers",
            code="teachers-and-shards",
        )
    auto = tuple(name for name in config.train.auto if name not in ("teachers", "students"))
    return replace(config, train=replace(config.train, auto=auto))


def open_initial_model(start_from: str) -> LoadedModel | None:
    """The model that --start-from names; raises BadInputError if it cannot be read."""
    return open_path(user_path(start_from), torch.device("cpu")) if start_from else None


def take_shape(requested: RunConfig, initial: LoadedModel) -> RunConfig:
    """`requested` with the shape and the tokenizer of the `initial` model, but its own dropout.

    A model with rotary positions may be trained with any block size up to its own.

    Raises UsageError naming the settings that the user changed: those with neither the model's value nor a recipe's;
    and for --lora on several devices.
    """
    if requested.train.uses_lora and not current_ranks().is_alone:
        message = f"--lora {requested.train.lora} trains on one device, and this run was started on several"
        raise UsageError(message, code="lora-on-several-devices")
    tokenizer = initial.tokenizer.to_dict()["type"]
    config, is_open = initial.model.config, False
    if config.traits.positions == "rotary":
        is_open = "block_size" in requested.train.auto  # may become shorter yet, for a short text
        config = replace(config, block_size=_block_size(requested, config.block_size))
    fixed = asdict(config) | {"tokenizer": tokenizer, "vocab_size": initial.tokenizer.vocab_size}
    del fixed["dropout"]
    given = requested.to_flat()
    recipes = [recipe.to_flat() for recipe in RECIPES.values()]
    # Which recipe the user started from is not recorded: the one that explains most settings.
    conflicts = min(
        ([name for name in fixed if given[name] not in (fixed[name], recipe[name])] for recipe in recipes), key=len
    )
    if conflicts:
        differences = "; ".join(f"{flag(name)} {given[name]} (the model has {fixed[name]})" for name in conflicts)
        raise UsageError(
            f"--start-from {requested.train.start_from} keeps its shape and tokenizer, but you gave {differences}.\n"
            "Leave these settings out, or train a new model (without --start-from)",
            code="start-from-shape-conflict",
        )
    model = replace(config, dropout=requested.model.dropout)
    auto = tuple(name for name in requested.train.auto if name not in fixed or (name == "block_size" and is_open))
    train = replace(requested.train, auto=auto)
    return replace(requested, model=model, data=replace(requested.data, tokenizer=tokenizer), train=train)


def _block_size(requested: RunConfig, longest: int) -> int:
    """The block size that the user gave, if the model has it; else the model's, or the longest that is worth its time
    if that is less."""
    given, auto = requested.model.block_size, requested.train.auto
    is_given = "block_size" not in auto and (bool(auto) or given != RECIPES["overnight"].model.block_size)
    if is_given and given <= longest:
        return given
    candidates = backend_candidates(requested, pick_device(requested.train.device))
    is_fused = any(candidate.backend == "fused" for candidate in candidates)
    return min(longest, LONGEST_FUSED_BLOCK if is_fused else LONGEST_BLOCK)


def require_memory_for_training(config: RunConfig, vocab_size: int, device: torch.device, n_bytes: int) -> None:
    """Raise OutOfResourcesError where training --start-from's model as `config` says, which takes `n_bytes`, does not
    fit into memory."""
    require_memory(
        n_bytes,
        f"training {config.train.start_from}, {n_parameters(config.model, vocab_size):,} parameters,",
        device,
        "close other programs, give a smaller --block-size, more --grad-accum-steps or --lora auto, or start from a "
        "smaller model",
    )


def expected_plan(config: RunConfig, planner: Planner, choice: BackendChoice) -> Plan:
    """What to expect of the run."""
    # On a GPU, choose_backend has timed whole training steps of this model, on one device.
    is_timed = planner.device.type != "cpu" and planner.n_devices == 1
    step_s = choice.seconds.get(str(choice.candidate)) if is_timed else None
    planner = planner.for_texts_of(config)
    return planner.plan_of(config, step_s or planner.step_time(config))
