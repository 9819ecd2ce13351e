"""Two processes of one thread against one process of two: what sharing a step among devices costs.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.devices

Both do the same steps on the same cores, in interleaved rounds. Prints the median of the rounds' ratios, one process's
time over that of two, and their range: 1 means that sharing costs nothing.
"""

import os
import statistics
import sys
from dataclasses import replace

import torch

from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.device import configure_torch, synchronize
from tiny_gpt.distributed.ranks import ALONE, Ranks, join_group, leave
from tiny_gpt.planning.step_benchmark import StepBenchmark
from tiny_gpt.run.sharing import time_step

ROUNDS, STEPS, VOCAB_SIZE = 7, 3, 256
CPU = torch.device("cpu")
GUIDE = RECIPES["overnight"]
# Its gradients are 340 MB; a batch of 2,048 tokens is small for them.
LARGE = replace(
    GUIDE,
    model=ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072, block_size=128),
    train=replace(GUIDE.train, batch_size=16),
)
CASES = {"guide": (GUIDE, "fused"), "12x768": (LARGE, "eager")}


def measure(config: RunConfig, ranks: Ranks) -> list[float]:
    """The ratio of each round, on rank 0."""
    together = StepBenchmark(config, VOCAB_SIZE, CPU, ranks)
    alone = StepBenchmark(config, VOCAB_SIZE, CPU, ALONE) if ranks.leads else None
    ratios = []
    for index in range(ROUNDS + 1):  # the first one warms up
        torch.set_num_threads(ranks.size)
        alone_s = statistics.median(time_step(alone, CPU) for _ in range(STEPS)) if alone else 0.0
        ranks.gather("")  # the others wait without computing
        torch.set_num_threads(1)
        together_s = statistics.median(time_step(together, CPU) for _ in range(STEPS))
        synchronize(CPU)
        if index and ranks.leads:
            ratios.append(alone_s / together_s)
            print(f"  {1e3 * alone_s:8.1f} ms in one process, {1e3 * together_s:8.1f} ms in {ranks.size}", flush=True)
    return ratios


def main(names: list[str]) -> None:
    """All of CASES, or those named."""
    configure_torch(CPU)
    ranks = join_group("cpu", 600.0)
    for name in names or CASES:
        config, backend = CASES[name]
        train = replace(config.train, grad_accum_steps=ranks.size, backend=backend, precision="fp32", device="cpu")
        if ranks.leads:
            print(f"{name}, {backend} fp32, load {os.getloadavg()[0]:.1f}", flush=True)
        ratios = measure(replace(config, train=train), ranks)
        if ranks.leads:
            print(f"{name}: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
