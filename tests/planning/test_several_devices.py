"""The model of several devices: what it must do where the answer is known."""

from dataclasses import replace

import pytest
import torch

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.planning.memory import estimate_memory_bytes
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.several_devices import Network, SharedStepTime, compare_devices, worthwhile_devices
from tiny_gpt.planning.throughput import StepTimeModel
from tiny_gpt.planning.types import Candidate, TextStats

CPU = torch.device("cpu")
ONE = StepTimeModel(fixed_s=0.0, s_per_flop=1e-12, vocab_size=256)
FAST, SLOW = Network(1e15, 0.0), Network(1e6, 0.0)
CONFIG = RunConfig(ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072), train=TrainConfig(batch_size=64))


def test_a_network_that_costs_nothing_divides_the_time() -> None:
    times = dict(compare_devices(CONFIG, ONE, FAST))
    assert [*times] == [1, 2, 4, 8, 16, 32, 64]
    for n, seconds in times.items():
        assert seconds == pytest.approx(times[1] / n, rel=1e-3)
    assert worthwhile_devices(times) == 64


def test_a_slow_network_makes_several_devices_useless() -> None:
    assert worthwhile_devices(dict(compare_devices(CONFIG, ONE, SLOW))) == 1


@pytest.mark.parametrize(("parts", "n", "share"), [(1, 4, 1 / 4), (6, 4, 2 / 6), (8, 4, 1 / 4)])
def test_the_slowest_device_counts(parts: int, n: int, share: float) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, grad_accum_steps=parts))
    assert SharedStepTime(ONE, n, FAST)(config) == pytest.approx(share * ONE(config), rel=1e-3)


def test_what_the_backward_pass_does_not_hide_is_added() -> None:
    shared = SharedStepTime(ONE, 8, Network(1e8, 1e-5))
    step_s, sum_s = shared(CONFIG), shared.sum_s
    exposed = sum_s(4 * (n_parameters(CONFIG.model, 256) + 1)) - 2 / 3 * ONE(CONFIG) / 8
    assert exposed > 0 and step_s == pytest.approx(ONE(CONFIG) / 8 + exposed)


def planner(memory: int, monkeypatch: pytest.MonkeyPatch, n_devices: int) -> Planner:
    monkeypatch.setattr("tiny_gpt.planning.stage_planner.available_memory_bytes", lambda _: memory)
    text = TextStats(10**8, 10**7, 10**6, 256, 2.0)
    return Planner(text, CPU, ONE, Candidate("eager", "fp32")).on_devices(n_devices, FAST)


def test_memory_switches_on_recomputing_and_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    # So many blocks that activations, not the models that rank 0 reads and saves, take the most memory.
    config = replace(CONFIG, train=replace(CONFIG.train, precision="fp32", batch_size=512))

    def needed(**train: bool) -> int:
        sparing = replace(config, train=replace(config.train, backend="eager", **train))
        return estimate_memory_bytes(sparing, 256, CPU, n_devices=8)

    levels = [needed(), needed(recompute=True), needed(recompute=True, shard=True)]
    assert levels == sorted(levels, reverse=True)
    found = [planner(memory, monkeypatch, 8).plan(config)[0].train for memory in levels]
    assert [(train.recompute, train.shard) for train in found] == [(False, False), (True, False), (True, True)]
    assert not planner(levels[-1], monkeypatch, 1).plan(config)[0].train.shard
