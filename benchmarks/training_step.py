"""How fast one training step is: tiny_gpt's beside the textbook's, interleaved in one run. `make bench`.

python -m benchmarks.training_step [--pairs 7] [--vocab-size 256] [--json FILE] [any model flag]
"""

from tiny_gpt.cli import let_waiting_threads_sleep

let_waiting_threads_sleep()

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.textbook import TextbookGPT, textbook_step
from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.data.batches import Batches
from tiny_gpt.device import configure, describe_device, pick_device, pick_precision, synchronize
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.step import train_step


@dataclass(frozen=True)
class Bench:
    """Time training steps in pairs; the ratio of each pair holds even when the machine's speed drifts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 64
    """Blocks in a step."""
    vocab_size: int = 256
    """Token ids."""
    pairs: int = 7
    """Counted pairs, after one that warms up."""
    device: str = "auto"
    """As for training."""
    json: str = "bench.json"
    """File for the figures."""


def main(bench: Bench) -> None:
    device = pick_device(bench.device)
    configure(device)
    ids = np.random.default_rng(0).integers(bench.vocab_size, size=200_000).astype(np.uint16)
    batches = Batches(ids, bench.model.block_size, bench.batch_size, seed=0)
    ours, textbook = our_step(bench, batches, device), plain_step(bench, batches, device)
    seconds: dict[str, list[float]] = {"tiny_gpt": [], "textbook": []}
    for pair in range(bench.pairs + 1):
        for name, step in (("tiny_gpt", ours), ("textbook", textbook)):
            duration = timed(step, pair, device)
            if pair:
                seconds[name].append(duration)
    report(bench, device, seconds)


def our_step(bench: Bench, batches: Batches, device: torch.device) -> Callable[[int], None]:
    config = replace(RunConfig(), model=bench.model)
    model = GPT(bench.model, bench.vocab_size, pick_precision("auto", device)).to(device)
    optimizer = make_optimizer(model, config.train)
    return lambda step: train_step(model, optimizer, batches.batch(step), config, step)[0].item()


def plain_step(bench: Bench, batches: Batches, device: torch.device) -> Callable[[int], None]:
    model = TextbookGPT(bench.model, bench.vocab_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)

    def step(i: int) -> None:
        inputs_BT, targets_BT = batches.batch(i)
        textbook_step(model, optimizer, torch.cat((inputs_BT, targets_BT[:, -1:]), dim=1).to(device))

    return step


def timed(step: Callable[[int], None], i: int, device: torch.device) -> float:
    start = time.perf_counter()
    step(i)
    synchronize(device)
    return time.perf_counter() - start


def report(bench: Bench, device: torch.device, seconds: dict[str, list[float]]) -> None:
    tokens = bench.batch_size * bench.model.block_size
    print(f"{describe_device(device)}, torch {torch.__version__}, {platform.machine()}")
    print(f"{bench.model}, vocabulary {bench.vocab_size}, {tokens:,} tokens a step, {bench.pairs} pairs")
    print(f"{'':<12}{'ms/step':>10}{'fastest':>10}{'slowest':>10}{'tokens/s':>12}")
    for name, times in seconds.items():
        median = statistics.median(times)
        figures = f"{median * 1e3:>10.0f}{min(times) * 1e3:>10.0f}{max(times) * 1e3:>10.0f}{tokens / median:>12,.0f}"
        print(f"{name:<12}{figures}")
    ratios = sorted(b / a for a, b in zip(seconds["tiny_gpt"], seconds["textbook"], strict=True))
    print(f"tiny_gpt is {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    figures = {"device": describe_device(device), "torch": torch.__version__, "seconds": seconds, "ratios": ratios}
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
