"""What training in bf16 costs: validation losses of pairs of training runs that differ in precision only.

python -m benchmarks.precision --data FILE [--seeds 3] [--steps 2000] [--batch-size 16] [any model flag]
"""

from tiny_gpt.host.threads import limit_thread_spinning

limit_thread_spinning()

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro

from tiny_gpt.config import DataConfig, ModelConfig, TrainConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.device import PRECISIONS, configure_torch, describe_device, pick_device
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import train_step


@dataclass(frozen=True)
class Bench:
    """Train in bf16 and in fp32 from the same weights, with the same batches and dropout masks."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: tuple[str, ...] = ("python-docs",)
    """Text, as for `tiny-gpt train`."""
    backend: str = "fused"
    """As for `tiny-gpt train`."""
    device: str = "auto"
    """As for `tiny-gpt train`."""
    seeds: int = 3
    """Number of pairs."""
    steps: int = 2000
    """Steps of each run, over which the learning rate decays."""
    batch_size: int = 16
    """Sequences per step."""
    json: str = "precision.json"
    """File for the figures."""


def main(bench: Bench) -> None:
    device = pick_device(bench.device)
    configure_torch(device)
    dataset = finish(prepare(DataConfig(data=bench.data), bench.model.block_size))
    print(f"{describe_device(device)}, torch {torch.__version__}, backend {bench.backend}")
    print(f"{bench.model}, {bench.steps} steps of {bench.batch_size} sequences; val_loss on the whole validation text")
    print(f"{'seed':>4}{'bf16':>10}{'fp32':>10}{'difference':>12}")
    rows = []
    for seed in range(bench.seeds):
        losses = {name: train(bench, dataset, device, name, seed) for name in ("bf16", "fp32")}
        rows.append({"seed": seed, **losses})
        difference = losses["bf16"] - losses["fp32"]
        print(f"{seed:>4}{losses['bf16']:>10.4f}{losses['fp32']:>10.4f}{difference:>+12.4f}", flush=True)
        Path(bench.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    mean = sum(row["bf16"] - row["fp32"] for row in rows) / len(rows)
    print(f"mean difference {mean:+.4f} nats per token")


def train(bench: Bench, dataset: Dataset, device: torch.device, precision: str, seed: int) -> float:
    """The validation loss after one training run, in nats per token."""
    config = replace(
        TrainConfig(),
        epochs=1,
        iters_per_epoch=bench.steps,
        backend=bench.backend,
        batch_size=bench.batch_size,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = GPT(bench.model, dataset.tokenizer.vocab_size, PRECISIONS[precision]).to(device)
    optimizer = make_optimizer(model, config)
    batches = BatchLoader(dataset.train.ids, bench.model.block_size, bench.batch_size, seed, device)
    model.train()
    start = time.perf_counter()
    for step in range(bench.steps):
        train_step(model, optimizer, batches.batch(step), config, step, learning_rate_at(step, config))
    seconds = time.perf_counter() - start
    windows = FixedWindows(dataset.val.ids, bench.model.block_size, bench.batch_size, len(dataset.val), bench.backend)
    loss = windows.loss(model)
    print(f"     {precision}: {loss:.4f} after {seconds:,.0f} s", flush=True)
    return loss


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
