"""The pilot run: a small model is trained for 60 steps, the same on every machine, to see how hard a text is.

Its validation loss predicts the loss of long runs far better than how well a compressor packs the text (8% off instead
of 14% with lzma; docs/log/planner.md).
"""

import lzma
from collections.abc import Generator
from dataclasses import replace
from typing import cast

import torch

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.data.copied_spans import decoded_text
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.related_text import english_share
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.device import PRECISIONS
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.model.gpt import GPT
from tiny_gpt.planning.types import TextStats
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import train_step

# The scaling law is fitted to the losses of exactly this run: any change here needs a new fit.
MODEL = ModelConfig("qwen3", n_layer=2, n_head=2, d_model=128, d_ff=352, block_size=64, dropout=0.0)
TRAIN = TrainConfig(
    optimizer="muon",
    steps=60,
    batch_size=32,
    learning_rate=5e-3,
    schedule="wsd",
    cooldown=0.6,
    warmup_steps=3,
    weight_decay=0.1,
    beta2=0.99,
)
SCORED_TOKENS = 20_000
# Uniform guessing costs 8 bits per byte. A model that has memorized a text of a few lines scores worse on the rest.
MIN_BITS, MAX_BITS = 1e-3, 8.0
# What estimate_stats packs at most, and its factor (docs/log/planner.md).
MAX_PACKED_BYTES, MAX_PACKED_VAL_BYTES, PILOT_BITS_PER_LZMA_BIT = 1 << 18, 1 << 16, 1.04


def run_pilot(dataset: Dataset, device: torch.device, backend: str, precision: str) -> TextStats:
    """Train the pilot model on `dataset` and score it. Takes a few seconds; the random state is left untouched."""
    steps = pilot_steps(dataset, device, backend, precision)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return cast(TextStats, stop.value)


def pilot_steps(
    dataset: Dataset, device: torch.device, backend: str, precision: str
) -> Generator[int, None, TextStats]:
    """The same, step by step: yields the number of steps done. Closing it ends the pilot run without a result."""
    model = yield from _train(dataset.train, dataset, device, backend, precision)
    return text_stats(dataset, _bits_per_byte(model, dataset.val, backend))


def distance_steps(
    own: Dataset, other: Dataset, device: torch.device, backend: str, precision: str
) -> Generator[int, None, float]:
    """A pilot run on `other` text: how many times as hard `own` text is to predict after it as the other text itself.

    1 where both are of the same kind. Yields the number of steps done.
    """
    model = yield from _train(other.train, own, device, backend, precision)
    of_own, of_other = (_bits_per_byte(model, text.val, backend) for text in (own, other))
    return of_own / max(MIN_BITS, of_other)


def _train(
    train: Tokens, dataset: Dataset, device: torch.device, backend: str, precision: str
) -> Generator[int, None, GPT]:
    """Train the pilot model on `train`, in the tokens of `dataset`, whose validation text it can score."""
    block_size = min(MODEL.block_size, len(train.ids) - 1, len(dataset.val) - 1)
    config = RunConfig(replace(MODEL, block_size=block_size), train=TRAIN)
    config = config.with_flat({"backend": backend}, "the pilot run")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = GPT(config.model, dataset.tokenizer.vocab_size, PRECISIONS[precision]).to(device).train()
        optimizer = make_optimizer(model, config.train)
        batches = BatchLoader(train.ids, block_size, TRAIN.batch_size, 0, device)
        for step in range(TRAIN.steps):
            train_step(model, optimizer, batches.batch(step), config.train, step, learning_rate_at(step, config.train))
            yield step + 1
    return model


def _bits_per_byte(model: GPT, val: Tokens, backend: str) -> float:
    loss = FixedWindows(val.ids, model.config.block_size, TRAIN.batch_size, SCORED_TOKENS, backend).loss(model)
    return bits_per_byte(loss, len(val), val.n_bytes)


def estimate_stats(dataset: Dataset) -> TextStats:
    """What the pilot run would find, from how well lzma packs validation text after training text: in half a second."""
    train = decoded_text(dataset.tokenizer, dataset.train, MAX_PACKED_BYTES)
    val = decoded_text(dataset.tokenizer, dataset.val, MAX_PACKED_VAL_BYTES)
    n_bytes = len(lzma.compress(train + val, preset=6)) - len(lzma.compress(train, preset=6))
    return text_stats(dataset, PILOT_BITS_PER_LZMA_BIT * 8 * n_bytes / max(1, len(val)), is_estimated=True)


def text_stats(dataset: Dataset, bits: float, is_estimated: bool = False) -> TextStats:
    """`dataset` as the planner knows it, whose pilot run scores `bits` per byte."""
    return TextStats(
        train_bytes=dataset.train.n_bytes,
        train_tokens=len(dataset.train),
        val_tokens=len(dataset.val),
        vocab_size=dataset.tokenizer.vocab_size,
        pilot_bits_per_byte=min(max(MIN_BITS, bits), MAX_BITS),
        is_estimated=is_estimated,
        english_share=english_share(decoded_text(dataset.tokenizer, dataset.train, MAX_PACKED_BYTES)),
    )


def fingerprint() -> str:
    """What a pilot run's result depends on beside the text."""
    return repr((MODEL, TRAIN, SCORED_TOKENS))
