"""The pilot run: a small model is trained for 60 steps, the same on every machine, to see how hard a text is.

Its validation loss predicts the loss of long runs far better than how well a compressor packs the text (8% off instead
of 14% with lzma; docs/log/planner.md).
"""

from dataclasses import replace

import torch

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import Dataset
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


def run_pilot(dataset: Dataset, device: torch.device, backend: str, precision: str) -> TextStats:
    """Train the pilot model on `dataset` and score it. Takes a few seconds; the random state is left untouched."""
    tokenizer, train, val = dataset.tokenizer, dataset.train, dataset.val
    block_size = min(MODEL.block_size, len(train) - 1, len(val) - 1)
    config = RunConfig(replace(MODEL, block_size=block_size), train=TRAIN)
    config = config.with_flat({"backend": backend}, "the pilot run")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = GPT(config.model, tokenizer.vocab_size, PRECISIONS[precision]).to(device).train()
        optimizer = make_optimizer(model, config.train)
        batches = BatchLoader(train.ids, block_size, TRAIN.batch_size, 0, device)
        for step in range(TRAIN.steps):
            train_step(model, optimizer, batches.batch(step), config.train, step, learning_rate_at(step, config.train))
    loss = FixedWindows(val.ids, block_size, TRAIN.batch_size, SCORED_TOKENS, backend).loss(model)
    bits = bits_per_byte(loss, len(val), val.n_bytes)
    return TextStats(
        train_bytes=train.n_bytes,
        train_tokens=len(train),
        val_tokens=len(val),
        vocab_size=tokenizer.vocab_size,
        pilot_bits_per_byte=min(max(MIN_BITS, bits), MAX_BITS),
    )
