"""The training steps that are compared: ours, the textbook's, and that of `transformers`' GPT-2 as its users train it.

Each is built from a `Task` and is called with a step's number, does that step whole (read the batch, update, read the
loss) and returns nothing. None knows of clocks but ours, which keeps how long it spent beside the computation. What
cannot run on this machine raises LeftOutError with the reason.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.textbook import TextbookGPT, textbook_step
from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.data.dataloader import CPU, BatchLoader
from tiny_gpt.device import synchronize
from tiny_gpt.model.gpt import GPT
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.training.cuda_graph import CudaGraphUpdate, make_cuda_graph_update
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import train_step

N_IDS = 200_000
LEARNING_RATE, WEIGHT_DECAY, LONGEST_GRADIENT = 5e-4, 0.01, 1.0

BackendName = Literal["auto", "eager", "fused", "compiled", "cuda_graph"]
Step = Callable[[int], None]


class LeftOutError(Exception):
    """Why a contestant does not take part."""


@dataclass(frozen=True)
class Task:
    """What all of them compute."""

    model: ModelConfig
    vocab_size: int
    batch_size: int
    device: torch.device
    precision: torch.dtype
    """The one that is the faster on this machine."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.model.block_size

    def batches(self, device: torch.device = CPU) -> BatchLoader:
        """The same random ids in the same order each time; every contestant has its own reader, which reads ahead."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        ids = np.random.default_rng(0).integers(self.vocab_size, size=N_IDS).astype(dtype)
        return BatchLoader(ids, self.model.block_size, self.batch_size, 0, device)


@dataclass
class OurStep:
    """A step as tiny_gpt/training/trainer.py does it, its guard included."""

    model: GPT
    optimizer: torch.optim.Optimizer
    batches: BatchLoader
    config: RunConfig
    guard: Guard
    cuda_graph: CudaGraphUpdate | None = None
    beside_s: list[float] = field(default_factory=list)
    """Seconds of each step that went into getting the batch and reading the loss and the guard."""

    def __call__(self, step: int) -> None:
        start = time.perf_counter()
        batch = self.batches.batch(step)
        got_batch = time.perf_counter()
        train = self.config.train
        rate = learning_rate_at(step, train)
        loss, _ = train_step(
            self.model, self.optimizer, batch, train, step, rate, guard=self.guard, cuda_graph=self.cuda_graph
        )
        synchronize(self.model.device)  # else reading would be charged with the computation it waits for
        computed = time.perf_counter()
        loss.item()
        self.guard.needs_rollback()
        self.beside_s.append(got_batch - start + time.perf_counter() - computed)


def our_step(
    config: ModelConfig,
    vocab_size: int,
    batches: BatchLoader,
    device: torch.device,
    precision: torch.dtype,
    backend: BackendName = "auto",
) -> OurStep:
    """The model as tiny_gpt/training/run.py builds it; `auto` is the backend that a run would choose here."""
    run_config = replace(RunConfig(), model=config)
    if backend == "auto":
        train = replace(run_config.train, precision=name_of(precision), batch_size=batches.batch_size)
        backend = choose_backend(replace(run_config, train=train), vocab_size, device).candidate.backend
    run_config = replace(run_config, train=replace(run_config.train, backend=backend))
    torch.manual_seed(run_config.train.seed)
    model = GPT(config, vocab_size, precision).to(device)
    optimizer, guard = make_optimizer(model, run_config.train), Guard(device)
    cuda_graph = make_cuda_graph_update(model, optimizer, run_config.train, guard)
    return OurStep(model, optimizer, batches, run_config, guard, cuda_graph)


def name_of(precision: torch.dtype) -> Literal["bf16", "fp32"]:
    return "bf16" if precision == torch.bfloat16 else "fp32"


def plain_textbook_step(task: Task) -> Step:
    """benchmarks/textbook.py with the optimizer that a learner writes down."""
    model = TextbookGPT(task.model, task.vocab_size).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = task.batches()

    def step(i: int) -> None:
        inputs_BT, targets_BT = batches.batch(i)
        textbook_step(model, optimizer, torch.cat((inputs_BT, targets_BT[:, -1:]), dim=1).to(task.device))

    return step


def transformers_step(task: Task, precision: torch.dtype) -> Step:
    """GPT2LMHeadModel, trained as transformers' own Trainer would: autocast for bf16, fused AdamW, clipping.

    Raises LeftOutError.
    """
    if precision != torch.float32 and precision != task.precision:
        raise LeftOutError("bf16 is not the faster one on this machine, and may take minutes")
    model = gpt2_of_same_shape(task.model, task.vocab_size).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    batches = task.batches()

    def step(i: int) -> None:
        inputs_BT, targets_BT = (ids_BT.to(task.device) for ids_BT in batches.batch(i))
        optimizer.zero_grad()
        with torch.autocast(task.device.type, precision, enabled=precision != torch.float32):
            logits_BTV = model(inputs_BT).logits
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        loss.item()

    return step


def gpt2_of_same_shape(config: ModelConfig, vocab_size: int) -> nn.Module:
    """transformers' GPT-2 with dropout where ours has it and a head of its own. Raises LeftOutError."""
    if config.architecture != "gpt2":
        raise LeftOutError(f"GPT-2 has not the shape of {config.architecture}")
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise LeftOutError("transformers cannot be imported here") from error
    its = GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.d_model,
        n_inner=config.d_ff,
        n_positions=config.block_size,
        vocab_size=vocab_size,
        attn_pdrop=config.dropout,
        resid_pdrop=config.dropout,
        embd_pdrop=0.0,
        tie_word_embeddings=False,
        use_cache=False,  # nothing is written here
        bos_token_id=0,  # the default is an id of GPT-2's own vocabulary
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(its)
    assert isinstance(model, nn.Module)
    return model.train()
