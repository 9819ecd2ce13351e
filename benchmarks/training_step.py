"""How fast one training step is, whole: tiny_gpt's beside the textbook's, its own eager fp32 path, `transformers`'
GPT-2 and the time of the matrix products alone; interleaved in one run. `make bench`.

python -m benchmarks.training_step [--rounds 7] [--only NAME ...] [--json FILE] [--vocab-size 256] [any model flag]
python -m benchmarks.training_step --shapes all      # a line for each of 24 shapes

Ratios are taken within a round and then their median, for the machine's speed drifts from round to round.
"""

from tiny_gpt.cli.process import limit_thread_spinning

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
    OurStep,
    Step,
    Task,
    name_of,
    our_step,
    plain_textbook_step,
    transformers_step,
)
from tiny_gpt.config import ModelConfig
from tiny_gpt.device import (
    configure_torch,
    describe_device,
    peak_memory_bytes,
    pick_device,
    pick_precision,
    synchronize,
)
from tiny_gpt.run.description import machine_fingerprint

OURS, PLAIN, TEXTBOOK, CEILING = "tiny_gpt", "plain-fp32", "textbook", "matrix-products"
Name = Literal["tiny_gpt", "plain-fp32", "textbook", "transformers-fp32", "transformers-bf16", "matrix-products"]
# Enough for the memory of a step, and for a path that is compiled or recorded in the first.
STEPS_BEFORE_PEAK = 4

SHAPES = {
    "guide": (ModelConfig(), 64),
    "6x384": (ModelConfig(n_layer=6, n_head=6, d_model=384, d_ff=1536, block_size=256), 16),
    "12x768": (ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072, block_size=512), 2),
}
DROPOUTS = (ModelConfig.dropout, 0.0)
VOCAB_SIZES = (65, 256, 5006, 16384)
ROUNDS, ROUNDS_OF_A_SHAPE = 7, 3


@dataclass(frozen=True)
class Bench:
    """Time training steps in rounds, each contestant once a round, in an order that turns."""

    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 64
    """Blocks in a step."""
    vocab_size: int = 256
    """Token ids."""
    rounds: int = 0
    """Counted rounds, after one that warms up; 0 is 7, with --shapes 3."""
    only: tuple[Name, ...] = typing.get_args(Name)
    """The contestants."""
    backend: BackendName = "auto"
    """How tiny_gpt computes its loss; auto as in training."""
    shapes: tuple[Literal["guide", "6x384", "12x768", "all"], ...] = ()
    """Instead of one table a line for each of these shapes, with and without dropout and with four vocabularies."""
    device: str = "auto"
    """As for training."""
    json: str = "bench.json"
    """File for the figures."""


Contestant = Callable[[int], float]
"""Takes the number of a round; how many seconds it took."""
Seconds = dict[str, list[float]]
"""Of each contestant in each counted round."""


def main(bench: Bench) -> None:
    device = pick_device(bench.device)
    configure_torch(device)
    task = Task(bench.model, bench.vocab_size, bench.batch_size, device, pick_precision("auto", device))
    machine = machine_fingerprint(device)
    print(f"{describe_device(device)}, {machine['processor']}, torch {torch.__version__}")
    figures = sweep(bench, task) if bench.shapes else compare(bench, task)
    figures = {"machine": machine, "flags": asdict(bench), "precision": name_of(task.precision), **figures}
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


# --- one table ---


def compare(bench: Bench, task: Task) -> dict[str, Any]:
    """Print the table; its figures, ready for JSON."""
    contestants: dict[str, Contestant] = {}
    figures: dict[str, Any] = {"tokens_per_step": task.tokens_per_step, "left_out": {}}
    rounds = bench.rounds or ROUNDS
    if OURS in bench.only:  # before the others take memory
        ours = make_ours(task, bench.backend)
        figures |= {"backend": ours.config.train.backend, "peak_memory_bytes": peak_of(ours)}
        contestants[OURS] = timed(ours, task.device)
    for name in typing.get_args(Name):
        try:
            if name in bench.only and name != OURS:
                contestants[name] = make_other(name, task)
        except LeftOutError as reason:
            figures["left_out"][name] = str(reason)
    figures["seconds"] = seconds = race(contestants, rounds)
    figures["ratios"] = {name: ratios(seconds, name) for name in seconds}
    if OURS in contestants:
        figures["beside_seconds"] = ours.beside_s[-rounds:]
    if isinstance(products := contestants.get(CEILING), MatrixProducts):
        rates = {name: rates[-rounds:] for name, rates in products.gflops_per_s.items()}
        figures |= {"flops_per_step": products.flops, "gflops_per_s": rates}
    print_table(task, figures)
    return figures


def make_ours(task: Task, backend: BackendName) -> OurStep:
    return our_step(task.model, task.vocab_size, task.batches(task.device), task.device, task.precision, backend)


def make_other(name: str, task: Task) -> Contestant:
    """Raises LeftOutError."""
    if name == CEILING:
        return MatrixProducts(task)
    make: dict[str, Callable[[], Step]] = {
        PLAIN: lambda: make_ours(replace(task, precision=torch.float32), "eager"),
        TEXTBOOK: lambda: plain_textbook_step(task),
        "transformers-fp32": lambda: transformers_step(task, torch.float32),
        "transformers-bf16": lambda: transformers_step(task, torch.bfloat16),
    }
    return timed(make[name](), task.device)


def timed(step: Step, device: torch.device) -> Contestant:
    def seconds(number: int) -> float:
        start = time.perf_counter()
        step(number)
        synchronize(device)
        return time.perf_counter() - start

    return seconds


def peak_of(ours: OurStep) -> int:
    """Most memory held so far in a process that has done nothing but a few of our steps."""
    for step in range(STEPS_BEFORE_PEAK):
        ours(step)
    return peak_memory_bytes(ours.model.device)


def race(contestants: dict[str, Contestant], rounds: int) -> Seconds:
    """Each once a round after one to warm up, in an order that lets nobody always be first or behind the same one."""
    names = list(contestants)
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if number % 2 else order:
            duration = contestants[name](number)
            if number:
                seconds[name].append(duration)
    return seconds


def ratios(seconds: Seconds, name: str) -> Seconds:
    """How many times as long as `name` each contestant took, in each round."""
    return {other: quotients(theirs, seconds[name]) for other, theirs in seconds.items()}


def quotients(numerators: list[float], denominators: list[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def print_table(task: Task, figures: dict[str, Any]) -> None:
    seconds: Seconds = figures["seconds"]
    print(task.model)
    print(f"vocabulary {task.vocab_size}, batch {task.batch_size}: {task.tokens_per_step:,} tokens a step", end="")
    print(f"; {len(next(iter(seconds.values())))} rounds\n")
    print(f"{'':<18}{'ms/step':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>12}{'times textbook':>23}{'ceiling':>9}")
    for name, times in seconds.items():
        median = statistics.median(times)
        shown = "".join(f"{1e3 * value:>9.1f}" for value in (median, min(times), max(times)))
        against = figures["ratios"][name]
        speed_up = spread(against[TEXTBOOK]) if TEXTBOOK in against else ""
        ceiling = f"{statistics.median(against[CEILING]):.0%}" if CEILING in against else ""
        print(f"{name:<18}{shown}{task.tokens_per_step / median:>12,.0f}{speed_up:>23}{ceiling:>9}")
    print()
    for name, reason in figures["left_out"].items():
        print(f"{name} is left out: {reason}")
    if OURS in seconds:
        print_ours(task, figures)
    if CEILING in seconds:
        rates = {name: statistics.median(values) for name, values in figures["gflops_per_s"].items()}
        print(f"ceiling: the share of a step that its {CEILING} would take, in {name_of(task.precision)} at GFLOP/s of")
        print("  " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))


def print_ours(task: Task, figures: dict[str, Any]) -> None:
    """What the table does not tell of our step."""
    against = figures["ratios"][OURS]
    print(f"{OURS} (in {name_of(task.precision)}, backend {figures['backend']}) is so many times as fast as")
    for name in against:
        if name not in (OURS, CEILING):
            print(f"  {name:<18}{spread(against[name])}")
    beside = statistics.median(quotients(figures["beside_seconds"], figures["seconds"][OURS]))
    print(f"of its step, {beside:.2%} goes into getting the batch and reading the loss", end="; ")
    print(f"peak memory {figures['peak_memory_bytes'] / 1e6:,.0f} MB")


def spread(values: list[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- a line for each shape ---


def sweep(bench: Bench, task: Task) -> dict[str, Any]:
    """Print a line for each shape; its figures, ready for JSON."""
    rounds = bench.rounds or ROUNDS_OF_A_SHAPE
    print(f"ms/step, {OURS} in {name_of(task.precision)}; medians of {rounds} rounds\n")
    print(f"{'shape':<8}{'dropout':>8}{'vocab':>7}{'backend':>10}", end="")
    print(f"{OURS:>10}{TEXTBOOK:>10}{PLAIN:>12}{'x ' + TEXTBOOK:>12}{'x ' + PLAIN:>14}{'ceiling':>9}")
    names = SHAPES if "all" in bench.shapes else [name for name in SHAPES if name in bench.shapes]
    lines = []
    for name in names:
        config, batch_size = SHAPES[name]
        for dropout in DROPOUTS:
            for vocab_size in VOCAB_SIZES:
                model = replace(config, dropout=dropout)
                one = replace(task, model=model, batch_size=batch_size, vocab_size=vocab_size)
                lines.append({"shape": name, **measure_shape(one, bench.backend, rounds)})
                print_line(lines[-1])
    return {"shapes": lines}


def measure_shape(task: Task, backend: BackendName, rounds: int) -> dict[str, Any]:
    ours = make_ours(task, backend)
    others = {name: make_other(name, task) for name in (PLAIN, TEXTBOOK, CEILING)}
    seconds = race({OURS: timed(ours, task.device), **others}, rounds)
    shape = {"model": asdict(task.model), "batch_size": task.batch_size, "vocab_size": task.vocab_size}
    return {**shape, "backend": ours.config.train.backend, "seconds": seconds, "ratios": ratios(seconds, OURS)}


def print_line(line: dict[str, Any]) -> None:
    median = statistics.median
    seconds, against = line["seconds"], line["ratios"]
    print(f"{line['shape']:<8}{line['model']['dropout']:>8}{line['vocab_size']:>7}{line['backend']:>10}", end="")
    print(f"{1e3 * median(seconds[OURS]):>10.1f}{1e3 * median(seconds[TEXTBOOK]):>10.1f}", end="")
    print(f"{1e3 * median(seconds[PLAIN]):>12.1f}{median(against[TEXTBOOK]):>12.2f}", end="")
    print(f"{median(against[PLAIN]):>14.2f}{median(against[CEILING]):>9.0%}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
