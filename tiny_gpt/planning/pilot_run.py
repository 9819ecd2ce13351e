"""How hard a text is: a small model learns it for a few steps, the same ones on every machine, and is scored."""

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


def probe(dataset: Dataset, device: torch.device, backend: str, precision: str) -> TextStats:
    """What there is to know of a text before it is learned; takes the time of 60 small steps."""
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
    # On a few lines that it has learned by heart it is worse than chance, which has 8.
    return TextStats(train.n_bytes, len(train), len(val), tokenizer.vocab_size, min(max(1e-3, bits), 8.0))
