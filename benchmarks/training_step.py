"""Speed of a training step: tiny_gpt's next to the textbook's, its own eager fp32 backend, transformers' GPT-2, and the
time that the matrix products alone take; interleaved in one run. `make bench`.

python -m benchmarks.training_step [--rounds 7] [--only NAME ...] [--json FILE] [--vocab-size 256] [any model flag]
python -m benchmarks.training_step --shapes all      # a line for each of 24 shapes

Ratios are computed within a round before their median is taken, since the machine's speed drifts from round to round.
"""

from tiny_gpt.host.threads import limit_thread_spinning

limit_thread_spinning()

import json
import statistics
import time
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.matrix_products import MatrixProducts
from benchmarks.steps import (
    BackendName,
    LeftOutError,
    Step,
    Task,
    TinyGPTStep,
    make_textbook_step,
    make_tiny_gpt_step,
    make_transformers_step,
    name_of,
)
from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.config.training import OptimizerName
from tiny_gpt.device import (
    configure_torch,
    describe_device,
    peak_memory_bytes,
    pick_device,
    pick_precision,
    synchronize,
)
from tiny_gpt.run.description import machine_fingerprint

TINY_GPT, EAGER, TEXTBOOK, PRODUCTS = "tiny_gpt", "eager-fp32", "textbook", "matrix-products"
Name = Literal["tiny_gpt", "eager-fp32", "textbook", "transformers-fp32", "transformers-bf16", "matrix-products"]
# Enough for the peak memory of a step, including what is compiled or recorded in the first ones.
STEPS_BEFORE_PEAK = 4

SHAPES = {
    "default": (ModelConfig(), 64),
    "6x384": (ModelConfig(n_layer=6, n_head=6, d_model=384, d_ff=1536, block_size=256), 16),
    "12x768": (ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072, block_size=512), 2),
}
DROPOUTS = (ModelConfig.dropout, 0.0)
VOCAB_SIZES = (65, 256, 5006, 16384)
ROUNDS, ROUNDS_PER_SHAPE = 7, 3


@dataclass(frozen=True)
class Bench:
    """Time training steps in rounds, each contender once per round, in alternating order."""

    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 64
    """Blocks per step."""
    vocab_size: int = 256
    """Number of token ids."""
    rounds: int = 0
    """Measured rounds, after one warm-up round; 0 is 7, with --shapes 3."""
    only: tuple[Name, ...] = typing.get_args(Name)
    """The contenders."""
    backend: BackendName = "auto"
    """The backend of tiny_gpt, as for `tiny-gpt train`."""
    shapes: tuple[Literal["default", "6x384", "12x768", "all"], ...] = ()
    """Instead of one table, a line for each of these shapes with and without dropout and four vocabulary sizes."""
    optimizer: OptimizerName = TrainConfig.optimizer
    """Of tiny_gpt, whose products count among the matrix products."""
    device: str = "auto"
    """As for `tiny-gpt train`."""
    json: str = "bench.json"
    """File for the figures."""


Contender = Callable[[int], float]
"""Does the step with this number; returns the seconds that it took."""
Seconds = dict[str, list[float]]
"""Of each contender in each measured round."""


def main(bench: Bench) -> None:
    device = pick_device(bench.device)
    configure_torch(device)
    precision = pick_precision("auto", device)
    task = Task(bench.model, bench.vocab_size, bench.batch_size, device, precision, bench.optimizer)
    machine = machine_fingerprint(device)
    print(f"{describe_device(device)}, {machine['processor']}, torch {torch.__version__}")
    figures = sweep(bench, task) if bench.shapes else compare(bench, task)
    figures = {"machine": machine, "flags": asdict(bench), "precision": name_of(task.precision), **figures}
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


# --- one table ---


def compare(bench: Bench, task: Task) -> dict[str, Any]:
    """Print the table; return its figures as JSON values."""
    contenders: dict[str, Contender] = {}
    figures: dict[str, Any] = {"tokens_per_step": task.tokens_per_step, "left_out": {}}
    rounds = bench.rounds or ROUNDS
    if TINY_GPT in bench.only:  # first, so that its peak memory includes no other
        ours = make_tiny_gpt_step(task, bench.backend)
        figures |= {"backend": ours.config.train.backend, "peak_memory_bytes": peak_memory_of(ours)}
        contenders[TINY_GPT] = timed(ours, task.device)
    for name in typing.get_args(Name):
        try:
            if name in bench.only and name != TINY_GPT:
                contenders[name] = make_other(name, task)
        except LeftOutError as reason:
            figures["left_out"][name] = str(reason)
    figures["seconds"] = seconds = measure(contenders, rounds)
    figures["ratios"] = {name: ratios(seconds, name) for name in seconds}
    if TINY_GPT in contenders:
        figures["overhead_seconds"] = ours.overhead_s[-rounds:]
    if isinstance(products := contenders.get(PRODUCTS), MatrixProducts):
        rates = {name: rates[-rounds:] for name, rates in products.gflops_per_s.items()}
        figures |= {"flops_per_step": products.flops, "gflops_per_s": rates}
    print_table(task, figures)
    return figures


def make_other(name: str, task: Task) -> Contender:
    """Any contender but tiny_gpt; raises LeftOutError."""
    if name == PRODUCTS:
        return MatrixProducts(task)
    make: dict[str, Callable[[], Step]] = {
        EAGER: lambda: make_tiny_gpt_step(replace(task, precision=torch.float32), "eager"),
        TEXTBOOK: lambda: make_textbook_step(task),
        "transformers-fp32": lambda: make_transformers_step(task, torch.float32),
        "transformers-bf16": lambda: make_transformers_step(task, torch.bfloat16),
    }
    return timed(make[name](), task.device)


def timed(step: Step, device: torch.device) -> Contender:
    def seconds(number: int) -> float:
        start = time.perf_counter()
        step(number)
        synchronize(device)
        return time.perf_counter() - start

    return seconds


def peak_memory_of(ours: TinyGPTStep) -> int:
    """Peak memory of a process that has done nothing but a few steps of tiny_gpt."""
    for step in range(STEPS_BEFORE_PEAK):
        ours(step)
    return peak_memory_bytes(ours.model.device)


def measure(contenders: dict[str, Contender], rounds: int) -> Seconds:
    """Time each contender once per round, after a warm-up round.

    The order rotates and alternates, so that none is always first or always behind the same one.
    """
    names = list(contenders)
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if number % 2 else order:
            duration = contenders[name](number)
            if number:
                seconds[name].append(duration)
    return seconds


def ratios(seconds: Seconds, name: str) -> Seconds:
    """Each contender's time relative to that of `name`, in each round."""
    return {other: quotients(theirs, seconds[name]) for other, theirs in seconds.items()}


def quotients(numerators: list[float], denominators: list[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def print_table(task: Task, figures: dict[str, Any]) -> None:
    seconds: Seconds = figures["seconds"]
    print(task.model)
    print(f"vocabulary {task.vocab_size}, batch {task.batch_size}: {task.tokens_per_step:,} tokens per step", end="")
    print(f"; {len(next(iter(seconds.values())))} rounds\n")
    print(f"{'':<18}{'ms/step':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>12}{'x textbook':>23}{'products':>10}")
    for name, times in seconds.items():
        median = statistics.median(times)
        milliseconds = "".join(f"{1e3 * value:>9.1f}" for value in (median, min(times), max(times)))
        against = figures["ratios"][name]
        speed_up = spread(against[TEXTBOOK]) if TEXTBOOK in against else ""
        share = f"{statistics.median(against[PRODUCTS]):.0%}" if PRODUCTS in against else ""
        print(f"{name:<18}{milliseconds}{task.tokens_per_step / median:>12,.0f}{speed_up:>23}{share:>10}")
    print()
    for name, reason in figures["left_out"].items():
        print(f"{name} is left out: {reason}")
    if TINY_GPT in seconds:
        print_details(task, figures)
    if PRODUCTS in seconds:
        rates = {name: statistics.median(values) for name, values in figures["gflops_per_s"].items()}
        print(f"products: matrix products alone as a share of the step, in {name_of(task.precision)} at these GFLOP/s:")
        print("  " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))


def print_details(task: Task, figures: dict[str, Any]) -> None:
    """Details of tiny_gpt's step."""
    against = figures["ratios"][TINY_GPT]
    print(f"speedup of {TINY_GPT} ({name_of(task.precision)}, backend {figures['backend']}) over")
    for name in against:
        if name not in (TINY_GPT, PRODUCTS):
            print(f"  {name:<18}{spread(against[name])}")
    overhead = statistics.median(quotients(figures["overhead_seconds"], figures["seconds"][TINY_GPT]))
    print(f"loading the batch and reading the loss take {overhead:.2%} of its step", end="; ")
    print(f"peak memory {figures['peak_memory_bytes'] / 1e6:,.0f} MB")


def spread(values: list[float]) -> str:
    """1.42 (1.39 to 1.51): median, minimum and maximum."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- a line for each shape ---


def sweep(bench: Bench, task: Task) -> dict[str, Any]:
    """Print a line for each shape; return the figures as JSON values."""
    rounds = bench.rounds or ROUNDS_PER_SHAPE
    print(f"ms/step, {TINY_GPT} in {name_of(task.precision)}; medians of {rounds} rounds\n")
    print(f"{'shape':<8}{'dropout':>8}{'vocab':>7}{'backend':>10}", end="")
    print(f"{TINY_GPT:>10}{TEXTBOOK:>10}{EAGER:>12}{'x ' + TEXTBOOK:>12}{'x ' + EAGER:>14}{'products':>10}")
    names = SHAPES if "all" in bench.shapes else [name for name in SHAPES if name in bench.shapes]
    lines = []
    for name in names:
        config, batch_size = SHAPES[name]
        for dropout in DROPOUTS:
            for vocab_size in VOCAB_SIZES:
                model = replace(config, dropout=dropout)
                shaped = replace(task, model=model, batch_size=batch_size, vocab_size=vocab_size)
                lines.append({"shape": name, **measure_shape(shaped, bench.backend, rounds)})
                print_line(lines[-1])
    return {"shapes": lines}


def measure_shape(task: Task, backend: BackendName, rounds: int) -> dict[str, Any]:
    ours = make_tiny_gpt_step(task, backend)
    others = {name: make_other(name, task) for name in (EAGER, TEXTBOOK, PRODUCTS)}
    seconds = measure({TINY_GPT: timed(ours, task.device), **others}, rounds)
    shape = {"model": asdict(task.model), "batch_size": task.batch_size, "vocab_size": task.vocab_size}
    return {**shape, "backend": ours.config.train.backend, "seconds": seconds, "ratios": ratios(seconds, TINY_GPT)}


def print_line(line: dict[str, Any]) -> None:
    median = statistics.median
    seconds, against = line["seconds"], line["ratios"]
    print(f"{line['shape']:<8}{line['model']['dropout']:>8}{line['vocab_size']:>7}{line['backend']:>10}", end="")
    print(f"{1e3 * median(seconds[TINY_GPT]):>10.1f}{1e3 * median(seconds[TEXTBOOK]):>10.1f}", end="")
    print(f"{1e3 * median(seconds[EAGER]):>12.1f}{median(against[TEXTBOOK]):>12.2f}", end="")
    print(f"{median(against[EAGER]):>14.2f}{median(against[PRODUCTS]):>10.0%}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
