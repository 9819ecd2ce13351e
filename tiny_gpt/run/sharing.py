"""How the batches of a run are shared among several devices, and whether that is faster than one device.

A batch is divided into a fixed number of micro-batches, which is part of the run's settings. Every micro-batch has
dropout of its own, keyed by (seed, step, micro-batch); which rank computes it changes nothing. So a run can continue on
another number of devices and learns the same.
"""

import math
import statistics
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.progress import Notice
from tiny_gpt.device import synchronize
from tiny_gpt.distributed.ranks import ALONE, Ranks, current_ranks, leave
from tiny_gpt.errors import UsageError
from tiny_gpt.host.torchrun import n_ranks_here, n_shared_cores
from tiny_gpt.planning.step_benchmark import StepBenchmark

# Each way is timed for about this long, within these numbers of steps.
EACH_WAY_S, MIN_STEPS, MAX_STEPS = 4.0, 3, 100
# More devices must save at least this fraction of a step's time.
MIN_GAIN = 0.03


def share_batches(
    config: RunConfig, vocab_size: int, device: torch.device, is_decided: bool = False
) -> Generator[Notice, None, RunConfig]:
    """`config` with batches that the current ranks can share; or this process alone from here on, if several devices
    are no faster.

    A user who starts torchrun has decided already, and is not asked; nor where the plan has decided (`is_decided`).
    Raises UsageError where a batch has fewer sequences than there are ranks.
    """
    ranks = current_ranks()
    if ranks.is_alone:
        if config.train.shard:
            yield Notice("--shard has no effect: there is one device, which holds the whole model")
        return on_one(config) if is_open(config) and is_decided else config
    shared = with_micro_batches(config, ranks.size)
    if is_open(config) and not is_decided:
        all_s = yield from compare_with_one(config, vocab_size, device)
        if all_s is None:
            end_followers(ranks)
            return on_one(config)
    share_cores()
    return shared


def on_one(config: RunConfig) -> RunConfig:
    """`config` with the choice of one device, which a resumed run keeps."""
    return replace(config, train=replace(config.train, devices="1"))


def compare_with_one(config: RunConfig, vocab_size: int, device: torch.device) -> Generator[Notice, None, float | None]:
    """Seconds of a step of `config`, whose backend is chosen, shared by all ranks; None where that saves less than
    MIN_GAIN of a step on this device."""
    ranks = current_ranks()
    shared = with_micro_batches(config, ranks.size)
    yield Notice(f"measuring {ranks.size} devices against one")
    one_s = measure_alone(config, vocab_size, device)
    all_s = measure_all(shared, vocab_size, device, one_s)
    figures = f"a step takes {1e3 * all_s:.1f} ms on {ranks.size} devices and {1e3 * one_s:.1f} ms on one"
    if all_s > (1 - MIN_GAIN) * one_s:
        yield Notice(f"{figures}: training on one (--force-devices uses all)")
        return None
    yield Notice(f"{figures}: training on {ranks.size}")
    return all_s


def share_again(config: RunConfig, requested: RunConfig) -> RunConfig:
    """What `share_batches` returns, for a run that continues with the settings of `config`: nothing is measured again,
    and a choice of one device stays."""
    ranks = current_ranks()
    if ranks.is_alone:
        return config
    if is_open(requested) and not is_open(config):
        end_followers(ranks)
        return config
    share_cores()
    return with_micro_batches(config, ranks.size)


def is_open(config: RunConfig) -> bool:
    """Whether --devices asks for several devices where one may be as fast."""
    train = config.train
    return train.devices != "1" and not (train.force_devices or train.shard)


def end_followers(ranks: Ranks) -> None:
    """Continue alone."""
    ranks.take_leave()
    leave()
    use_all_cores()


def with_micro_batches(config: RunConfig, n_ranks: int) -> RunConfig:
    """`config` with at least as many micro-batches as ranks. Raises UsageError where that is impossible."""
    train = config.train
    if train.grad_accum_steps >= n_ranks:
        return config
    if train.batch_size < n_ranks:
        raise UsageError(
            f"--devices {n_ranks}: a batch of {train.batch_size} sequences cannot be shared by so many; give at most "
            f"--devices {train.batch_size}, or a larger --batch-size",
            code="more-devices-than-blocks",
        )
    return replace(config, train=replace(train, grad_accum_steps=n_ranks))


# --- measuring ---


def measure_alone(config: RunConfig, vocab_size: int, device: torch.device) -> float:
    """Seconds per step on this device alone, on a CPU with all of its cores."""
    use_all_cores()
    benchmark = StepBenchmark(config, vocab_size, device, ALONE)
    benchmark.warm_up()
    times: list[float] = []
    while len(times) < MIN_STEPS or (sum(times) < EACH_WAY_S and len(times) < MAX_STEPS):
        times.append(time_step(benchmark, device))
    return statistics.median(times)


def measure_all(config: RunConfig, vocab_size: int, device: torch.device, about_s: float = EACH_WAY_S) -> float:
    """Seconds per step on all ranks; `about_s` is what one takes, as far as that is known. For rank 0."""
    ranks = current_ranks()
    n_steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(EACH_WAY_S / about_s)))
    command = {"do": "measure", "config": config.to_flat(), "vocab_size": vocab_size, "n_steps": n_steps}
    with ranks.together(command):
        return measure_together(config, command, ranks, device)


def measure_together(config: RunConfig, command: dict[str, Any], ranks: Ranks, device: torch.device) -> float:
    """Seconds per step on all ranks, which all call this with the same `command`."""
    share_cores()
    benchmark = StepBenchmark(config, command["vocab_size"], device, ranks)
    benchmark.warm_up()
    return statistics.median(time_step(benchmark, device) for _ in range(command["n_steps"]))


def time_step(benchmark: StepBenchmark, device: torch.device) -> float:
    """Seconds of one step."""
    synchronize(device)
    start = time.perf_counter()
    benchmark.step()
    synchronize(device)
    return time.perf_counter() - start


# --- cores ---


def share_cores() -> None:
    """Use this process's part of the machine's cores, unless the user has chosen the number of threads."""
    if cores := n_shared_cores():
        torch.set_num_threads(max(1, cores // n_ranks_here()))


def use_all_cores() -> None:
    """Use every core, while the other processes wait."""
    if cores := n_shared_cores():
        torch.set_num_threads(cores)
