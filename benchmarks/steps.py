"""The training steps that are compared: tiny_gpt's, the textbook's, and transformers' GPT-2 as its users train it.

Each is built from a `Task` and called with the number of a step: it loads the batch, updates the weights and reads the
loss. What cannot run on this machine raises LeftOutError with the reason.
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
from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.config.training import OptimizerName
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
LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 5e-4, 0.01, 1.0

BackendName = Literal["auto", "eager", "fused", "compiled", "cuda_graph"]
Step = Callable[[int], None]


class LeftOutError(Exception):
    """Why a contender does not take part."""


@dataclass(frozen=True)
class Task:
    """What all contenders compute."""

    model: ModelConfig
    vocab_size: int
    batch_size: int
    device: torch.device
    precision: torch.dtype
    """The faster one on this machine."""
    optimizer: OptimizerName = TrainConfig.optimizer
    """Of tiny_gpt; the others have AdamW."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.model.block_size

    def batches(self, device: torch.device = CPU) -> BatchLoader:
        """A loader of the same random batches for each contender, with its own prefetching."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        ids = np.random.default_rng(0).integers(self.vocab_size, size=N_IDS).astype(dtype)
        return BatchLoader(ids, self.model.block_size, self.batch_size, 0, device)


@dataclass
class TinyGPTStep:
    """A step as tiny_gpt/run/trainer.py does it, including its guard."""

    model: GPT
    optimizer: torch.optim.Optimizer
    batches: BatchLoader
    config: RunConfig
    guard: Guard
    cuda_graph: CudaGraphUpdate | None = None
    overhead_s: list[float] = field(default_factory=list)
    """Seconds of each step spent on loading the batch and reading the loss and the guard."""

    def __call__(self, step: int) -> None:
        start = time.perf_counter()
        batch = self.batches.batch(step)
        loaded = time.perf_counter()
        train = self.config.train
        rate = learning_rate_at(step, train)
        loss, _ = train_step(
            self.model, self.optimizer, batch, train, step, rate, guard=self.guard, cuda_graph=self.cuda_graph
        )
        synchronize(self.model.device)  # otherwise reading the loss would include the computation
        computed = time.perf_counter()
        loss.item()
        self.guard.needs_rollback()
        self.overhead_s.append(loaded - start + time.perf_counter() - computed)


def make_tiny_gpt_step(task: Task, backend: BackendName = "auto") -> TinyGPTStep:
    """The step that a run would do; the backend `auto` is autotuned as for a run."""
    config = replace(RunConfig(), model=task.model, train=replace(RunConfig().train, optimizer=task.optimizer))
    if backend == "auto":
        train = replace(config.train, precision=name_of(task.precision), batch_size=task.batch_size)
        backend = choose_backend(replace(config, train=train), task.vocab_size, task.device).candidate.backend
    config = replace(config, train=replace(config.train, backend=backend))
    torch.manual_seed(config.train.seed)
    model = GPT(task.model, task.vocab_size, task.precision).to(task.device)
    optimizer, guard = make_optimizer(model, config.train), Guard(task.device)
    cuda_graph = make_cuda_graph_update(model, optimizer, config.train, guard)
    return TinyGPTStep(model, optimizer, task.batches(task.device), config, guard, cuda_graph)


def name_of(precision: torch.dtype) -> Literal["bf16", "fp32"]:
    return "bf16" if precision == torch.bfloat16 else "fp32"


def make_textbook_step(task: Task) -> Step:
    """benchmarks/textbook.py with AdamW as in a textbook: not fused."""
    model = TextbookGPT(task.model, task.vocab_size).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = task.batches()

    def step(i: int) -> None:
        inputs_BT, targets_BT, _ = batches.batch(i)
        textbook_step(model, optimizer, torch.cat((inputs_BT, targets_BT[:, -1:]), dim=1).to(task.device))

    return step


def make_transformers_step(task: Task, precision: torch.dtype) -> Step:
    """GPT2LMHeadModel, trained as transformers' Trainer does: autocast for bf16, fused AdamW, gradient clipping.

    Raises LeftOutError.
    """
    if precision != torch.float32 and precision != task.precision:
        raise LeftOutError("bf16 is slower on this machine, and may take minutes")
    model = gpt2_of_same_shape(task.model, task.vocab_size).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    batches = task.batches()

    def step(i: int) -> None:
        inputs_BT, targets_BT = (ids_BT.to(task.device) for ids_BT in batches.batch(i)[:2])
        optimizer.zero_grad()
        with torch.autocast(task.device.type, precision, enabled=precision != torch.float32):
            logits_BTV = model(inputs_BT).logits
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        loss.item()

    return step


def gpt2_of_same_shape(config: ModelConfig, vocab_size: int) -> nn.Module:
    """transformers' GPT-2 with dropout in the same places and an untied head. Raises LeftOutError."""
    if config.architecture != "gpt2":
        raise LeftOutError(f"transformers' GPT-2 has no {config.architecture} architecture")
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise LeftOutError("transformers cannot be imported") from error
    gpt2_config = GPT2Config(
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
        use_cache=False,  # nothing is generated
        bos_token_id=0,  # the default is beyond a small vocabulary
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(gpt2_config)
    assert isinstance(model, nn.Module)
    return model.train()
