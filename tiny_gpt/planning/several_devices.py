"""How long a step takes on several devices: a model of what they compute and what they send.

    step_s = share of the micro-batches * one_s + what of the messages is not hidden behind arithmetic
    sum_s  = 2 (W - 1) / W * bytes / bandwidth + 2 (W - 1) * latency        a ring of W devices (arXiv 1802.05799)

Data parallel: one sum of all gradients in a step, hidden behind the backward pass, two thirds of the arithmetic. With
--shard: for each micro-batch the weights are collected twice and the gradients are sent once, each half a sum, hidden
behind all of the arithmetic. Left out: devices that wait for one another, and the update of the weights, which does not
become shorter with more devices.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tiny_gpt.config import RunConfig
from tiny_gpt.distributed.gradients import BUCKET_BYTES
from tiny_gpt.distributed.network import NetworkSpeed
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.planning.throughput import StepTimeModel

BACKWARD_SHARE = 2 / 3
FP32_BYTES, BF16_BYTES = 4, 2
# Another device pays where doubling their number saves at least this fraction of a step.
MIN_SAVING = 0.1
MAX_DEVICES_COMPARED = 64


class Network(NamedTuple):
    """What connects the devices."""

    bytes_per_s: float
    latency_s: float
    """Of a message from one device to the next."""
    is_measured: bool = False

    @classmethod
    def measured(cls, speed: NetworkSpeed, n_devices: int) -> "Network":
        """As it was measured between so many devices."""
        return cls(speed.bytes_per_s, speed.small_sum_s / (2 * (n_devices - 1)), is_measured=True)


@dataclass(frozen=True)
class SharedStepTime:
    """Predicts the seconds of a step on `n_devices` that are each like the one that `one` was measured on."""

    one: StepTimeModel
    n_devices: int
    network: Network

    def __call__(self, config: RunConfig) -> float:
        one_s, n = self.one(config), self.n_devices
        if n == 1:
            return one_s
        n_parts = max(n, config.train.grad_accum_steps)
        n_rounds = math.ceil(n_parts / n)
        computed_s = one_s * n_rounds / n_parts
        if config.train.shard:
            return max(computed_s, n_rounds * self._shard_s(config))
        n_bytes = gradient_bytes(config, self.one.vocab_size)
        # The last bucket is complete only when the backward pass is over.
        last_s = self.sum_s(min(n_bytes, BUCKET_BYTES))
        hidden_s = 0.0 if config.train.exact else BACKWARD_SHARE * computed_s
        return computed_s + max(last_s, self.sum_s(n_bytes) - hidden_s)

    def sum_s(self, n_bytes: float) -> float:
        """Seconds to add up `n_bytes` over all devices."""
        ahead = 2 * (self.n_devices - 1)
        return ahead / self.n_devices * n_bytes / self.network.bytes_per_s + ahead * self.network.latency_s

    def _shard_s(self, config: RunConfig) -> float:
        weight_bytes = BF16_BYTES if config.train.precision == "bf16" else FP32_BYTES
        n_weights = n_parameters(config.model, self.one.vocab_size)
        collected_s = self.sum_s(n_weights * weight_bytes) / 2
        return 2 * collected_s + self.sum_s(n_weights * FP32_BYTES) / 2

    def scaled(self, factor: float) -> "SharedStepTime":
        """The same for devices that take `factor` times as long."""
        return replace(self, one=self.one.scaled(factor))

    def with_vocab_size(self, vocab_size: int) -> "SharedStepTime":
        """The same for models with another vocabulary."""
        return replace(self, one=self.one.with_vocab_size(vocab_size))


def gradient_bytes(config: RunConfig, vocab_size: int) -> int:
    """Bytes that each device adds to a step's sum: all gradients and the loss, with --exact in 64 bits."""
    return (n_parameters(config.model, vocab_size) + 1) * FP32_BYTES * (2 if config.train.exact else 1)


def compare_devices(config: RunConfig, one: StepTimeModel, network: Network) -> Iterator[tuple[int, float]]:
    """(number of devices, seconds of a step) for 1, 2, 4 and so on, as far as the batch can be divided."""
    n = 1
    while n <= min(MAX_DEVICES_COMPARED, config.train.batch_size):
        yield n, SharedStepTime(one, n, network)(config)
        n *= 2


def worthwhile_devices(step_s: dict[int, float]) -> int:
    """The number of devices from which twice as many save less than MIN_SAVING of a step."""
    for n, seconds in step_s.items():
        if step_s.get(2 * n, math.inf) > (1 - MIN_SAVING) * seconds:
            return n
    return max(step_s)
