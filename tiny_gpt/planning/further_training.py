"""Training that starts from a trained model (--start-from): how good that model is already, and what it will reach.

Nothing is trained for this. The model is scored on the validation text, which says how well it knows such text, and how
long that takes says how fast it trains here.

    bits per byte = those of the model as it comes * (1 - FURTHER_GAIN * (1 - exp(-epochs / FURTHER_EPOCHS)))

The gain depends on how much the text differs from what the model has learned from, which nobody knows beforehand, so
the interval is wide (scaling_law.py). For a new model, `known_model_helps` says whether to start from a known one.
"""

import time
from collections.abc import Generator
from dataclasses import asdict, replace

import torch

from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.config.training import NO_LORA
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.progress import Notice
from tiny_gpt.data.related_text import MIN_ENGLISH_SHARE
from tiny_gpt.device import PRECISIONS, available_memory_bytes
from tiny_gpt.evaluation import LONGEST_BLOCK, FixedWindows, bits_per_byte
from tiny_gpt.model.gpt import GPT
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.planning.heuristics import tokens_per_step, with_batch
from tiny_gpt.planning.memory import LORA_RANKS, estimate_memory_bytes, may_use_lora
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.throughput import StepTimeModel, step_flops
from tiny_gpt.planning.types import TextStats

# At most this many tokens of the validation text are scored, one sequence after the other.
MAX_SCORED_TOKENS = 8_192
# How much longer a training step takes than scoring its tokens: three times the arithmetic, and the update of the
# weights. Measured with SmolLM2-135M (docs/log/start-from.md).
STEP_COST = 3.2

# A small model that has learned from much more English than a person's own text (2 T tokens; its model card), of the
# size that a laptop can train further, and the bytes of English in one of its tokens.
KNOWN_MODEL, KNOWN_TOKEN_BYTES = "hf:HuggingFaceTB/SmolLM2-135M", 3.6
KNOWN_SHAPE = ModelConfig("llama", n_layer=30, n_head=9, d_model=576, d_ff=1536, block_size=LONGEST_BLOCK, dropout=0.0)
KNOWN_VOCAB_SIZE = 49_152
# Passes over the text that must be possible for it to be worth its download.
MIN_KNOWN_EPOCHS = 0.5


def known_model_helps(config: RunConfig, planner: Planner) -> bool:
    """Whether training KNOWN_MODEL further is likely to beat a new model in the time of `config`: for English, where
    memory and time allow for it. With --tokenizer or --start-from the person has decided otherwise."""
    train, text = config.train, planner.text
    seconds = planner.requested_seconds(train)
    if train.start_from or "batch_size" not in train.auto or text.english_share < MIN_ENGLISH_SHARE or seconds is None:
        return False
    config = replace(config, model=KNOWN_SHAPE, train=replace(train, batch_size=2, optimizer="adamw"))
    token_s = planner.step_time.with_vocab_size(KNOWN_VOCAB_SIZE)(config) / tokens_per_step(config)
    n_epochs = seconds / token_s / (text.train_bytes / KNOWN_TOKEN_BYTES)
    least = replace(config, train=replace(config.train, grad_accum_steps=2, start_from=KNOWN_MODEL))
    if may_use_lora(least):
        least = replace(least, train=replace(least.train, lora=str(LORA_RANKS[-1])))
    needed = estimate_memory_bytes(least, KNOWN_VOCAB_SIZE, planner.device)
    return n_epochs >= MIN_KNOWN_EPOCHS and needed <= available_memory_bytes(planner.device)


def measure_initial_model(
    config: RunConfig, dataset: Dataset, model: GPT, device: torch.device, requested_at: float | None = None
) -> Generator[Notice, None, Planner]:
    """A Planner for training `model`, whose shape `config` has, on the text of `dataset`.

    `requested_at` is when the user started the command, by time.time(). The model is moved to `device`.
    """
    yield Notice("scoring the model that the training starts from: up to a minute")
    vocab_size, val = dataset.tokenizer.vocab_size, dataset.val
    config = with_batch(config, min(len(dataset.train.ids), len(val)))
    candidate = choose_backend(config, vocab_size, device).candidate
    config = replace(config, train=replace(config.train, **asdict(candidate)))
    model.to(device).compute_dtype = PRECISIONS[candidate.precision]
    windows = FixedWindows(val.ids, config.model.block_size, 1, MAX_SCORED_TOKENS, candidate.backend)
    start = time.perf_counter()
    loss = windows.loss(model)
    seconds = time.perf_counter() - start
    bits = bits_per_byte(loss, len(val), val.n_bytes)
    text = TextStats(dataset.train.n_bytes, len(dataset.train), len(val), vocab_size, bits)
    n_scored = len(windows.starts) * config.model.block_size
    step_s = STEP_COST * seconds * tokens_per_step(config) / n_scored
    all_weights = replace(config, train=replace(config.train, lora=NO_LORA))  # what STEP_COST is for
    step_time = StepTimeModel(0.0, step_s / step_flops(all_weights, vocab_size), vocab_size)
    return Planner(text, device, step_time, candidate, requested_at)
