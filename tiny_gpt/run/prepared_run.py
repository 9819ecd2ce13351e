"""What `start_run` and `resume_run` have in common: a run whose text, settings, model and state are ready."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.device import PRECISIONS, describe_device, reset_peak_memory
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_adapter_parameters, n_parameters
from tiny_gpt.planning.types import BackendChoice, Candidate, Plan
from tiny_gpt.run.events import Prepared
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.training.sharing import is_sharded

# Characters below which a text is too short to learn a style from.
SHORT_TEXT = 10_000


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train."""

    config: RunConfig
    """With a value for every setting that was left open."""
    trainer: Trainer
    event: Prepared


def with_choices(config: RunConfig, sources: tuple[str, ...], candidate: Candidate) -> RunConfig:
    """`config` with the text and the backend that the run uses, so that its config.json reproduces the run."""
    data, train = replace(config.data, data=sources), replace(config.train, **asdict(candidate))
    return replace(config, data=data, train=train)


def build_model(config: RunConfig, vocab_size: int, device: torch.device) -> GPT:
    """The run's model with the initial weights of its seed.

    One that is divided among the devices need not fit into one of them: rank 0 has it in the machine's memory, the
    others without values.
    """
    reset_peak_memory(device)  # measuring the backends does not count
    torch.manual_seed(config.train.seed)
    home, ranks = device, current_ranks()
    if is_sharded(config.train, ranks):
        home = torch.device("cpu" if ranks.leads else "meta")
    with torch.device(home.type if home.type == "meta" else "cpu"):
        model = GPT(config.model, vocab_size, PRECISIONS[config.train.precision])
    model = model if home.type == "meta" else model.to(home)
    model.recomputes = config.train.recompute
    return model


def prepared_event(
    config: RunConfig,
    dataset: Dataset,
    trainer: Trainer,
    choice: BackendChoice,
    plan: Plan | None,
    earlier_run: Path | None = None,
) -> Prepared:
    """What the user is told before the first step."""
    state = trainer.state
    notes = [*choice.notes, *dataset.notes]
    if config.train.start_from and state.step == 0:
        notes.insert(0, f"starting from {config.train.start_from}: its weights, its shape, its tokenizer")
    if rank := config.train.lora_rank:
        n_adapters = n_adapter_parameters(config.model, rank)
        notes.insert(0, f"LoRA: {n_adapters:,} weights of adapters of rank {rank} are trained; the model's own stay")
    if dataset.n_characters < SHORT_TEXT:
        notes.insert(
            0,
            f"a text of {dataset.n_characters:,} characters is very short: the model will memorize it, not learn its "
            "style; a short book has 100,000 or more",
        )
    tokenizer = "auto" if dataset.train.shards else config.data.tokenizer
    return Prepared(
        device=describe_device(state.model.device) + (f" x {state.ranks.size}" if state.ranks.size > 1 else ""),
        precision=config.train.precision,
        backend=config.train.backend,
        backend_reason=str(choice),
        sources=list(dataset.sources),
        n_characters=dataset.n_characters,
        n_documents=dataset.n_documents,
        notes=notes,
        model=config.model,
        train=config.train,
        tokenizer=dataset.tokenizer.to_dict()["type"] if tokenizer == "auto" else tokenizer,
        vocab_size=dataset.tokenizer.vocab_size,
        train_tokens=len(dataset.train),
        val_tokens=len(dataset.val),
        val_tokens_scored=trainer.evaluator.val_windows.n_tokens,
        n_parameters=n_parameters(config.model, dataset.tokenizer.vocab_size),
        tokens_per_step=trainer.tokens_per_step,
        earlier_run=earlier_run,
        steps_done=state.step,
        history=list(state.history),
        total_steps=config.train.total_steps,
        left_s=state.budget.remaining_s(),
        plan=plan,
    )
