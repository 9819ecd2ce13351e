"""The lower bound of a training step: the time that its matrix products alone take at this machine's own FLOP rate.

Counted are the linear layers including the head (one product in the forward pass, two in the backward pass), attention
without causal masking (scores and weighted sum: two products forward, four backward), and with Muon its products.
Embeddings are lookups.
The FLOP rate is measured at the shapes of the model's own layers, in the faster precision of this machine.
"""

import statistics
import time

import torch

from benchmarks.steps import Task
from tiny_gpt.device import synchronize
from tiny_gpt.model.shapes import block_product_shapes, n_multiplied
from tiny_gpt.planning.throughput import muon_flops

N_MEASUREMENTS = 5
# One product on a GPU takes less time than waiting for it.
GPU_PRODUCTS_PER_MEASUREMENT = 20


class MatrixProducts:
    """Called once per round: measures the FLOP rate again and returns the lower bound in seconds."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.flops = matmul_flops(task)
        """FLOPs in the matrix products of one step."""
        self.gflops_per_s: dict[str, list[float]] = {}
        """The rate at each shape, by the names of its layers, and overall under "all"; one figure per round."""

    def __call__(self, _: int) -> float:
        weights, seconds = 0, 0.0
        for (n_in, n_out), names in linear_layers(self.task).items():
            rate = product_rate(self.task, n_in, n_out)
            self.gflops_per_s.setdefault("/".join(dict.fromkeys(names)), []).append(rate / 1e9)
            weights += len(names) * n_in * n_out
            seconds += 2 * self.task.tokens_per_step * len(names) * n_in * n_out / rate
        rate_of_all = 2 * self.task.tokens_per_step * weights / seconds
        self.gflops_per_s.setdefault("all", []).append(rate_of_all / 1e9)
        return self.flops / rate_of_all


def linear_layers(task: Task) -> dict[tuple[int, int], list[str]]:
    """The names of the model's linear layers by shape: {(256, 768): ["qkv", "qkv", "qkv", "qkv"], ...}."""
    layers: dict[tuple[int, int], list[str]] = {}
    for name, (n_out, n_in) in block_product_shapes(task.model).items():
        layers.setdefault((n_in, n_out), []).extend([name.split(".")[-2]] * task.model.n_layer)
    layers.setdefault((task.model.d_model, task.vocab_size), []).append("head")
    return layers


def matmul_flops(task: Task) -> int:
    """FLOPs in the matrix products of one step; a multiplication and an addition are two."""
    attention = task.model.n_layer * task.model.n_head * task.model.dim_per_head * task.model.block_size
    per_token = 6 * n_multiplied(task.model, task.vocab_size) + 12 * attention
    muon = muon_flops(task.model) if task.optimizer == "muon" else 0
    return per_token * task.tokens_per_step + muon


def product_rate(task: Task, n_in: int, n_out: int) -> float:
    """FLOPs per second of a (tokens, n_in) x (n_in, n_out) product, the median of N_MEASUREMENTS."""
    a, b = (
        torch.randn(*shape, device=task.device).to(task.precision)
        for shape in ((task.tokens_per_step, n_in), (n_in, n_out))
    )
    n_products = 1 if task.device.type == "cpu" else GPU_PRODUCTS_PER_MEASUREMENT
    seconds = []
    for _ in range(N_MEASUREMENTS + 1):  # the first is a warm-up
        start = time.perf_counter()
        for _ in range(n_products):
            a @ b
        synchronize(task.device)
        seconds.append((time.perf_counter() - start) / n_products)
    return 2 * task.tokens_per_step * n_in * n_out / statistics.median(seconds[1:])
