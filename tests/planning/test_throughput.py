"""FLOPs of a step, the models of its time, and how it is measured."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.planning.support import AUTO, CPU, auto_with
from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.planning.measurement import TIMED_SIZES_GPU, benchmark_config
from tiny_gpt.planning.throughput import StepTimeModel, measure_step_s, step_flops, step_number

TINY = RunConfig(
    ModelConfig(n_layer=1, n_head=1, d_model=8, d_ff=8, block_size=8),
    train=TrainConfig(batch_size=2, precision="fp32", backend="eager", for_="1h"),
)


class Clock:
    """Advances by the same time whenever it is read."""

    def __init__(self, tick_s):
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self):
        self.now += self.tick_s
        return self.now


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_step_flops_are_those_that_torch_counts(architecture):
    model = ModelConfig(architecture=architecture, n_layer=2, n_head=2, d_model=64, d_ff=96, block_size=32, dropout=0.0)
    config = RunConfig(model, train=TrainConfig(batch_size=4))
    network = GPT(model, 100)
    ids_BT, targets_BT = torch.randint(100, (2, 4, 32))
    with FlopCounterMode(display=False) as counter:
        network.losses(ids_BT, targets_BT).mean().backward()
    assert step_flops(config, 100) == pytest.approx(counter.get_total_flops(), rel=0.06)  # torch counts masked scores


def test_muon_flops_do_not_depend_on_the_vocabulary():
    """Even where d_model or d_ff equals the vocabulary."""
    config = auto_with(n_layer=2, n_head=1, d_model=64, d_ff=128, batch_size=4, block_size=32)
    flops = []
    for vocab_size in (64, 128, 300):
        adamw = replace(config, train=replace(config.train, optimizer="adamw"))
        muon = replace(config, train=replace(config.train, optimizer="muon"))
        flops.append(step_flops(muon, vocab_size) - step_flops(adamw, vocab_size))
    square, wide = 5 * 6 * 64**3, 5 * (4 * 64**2 * 128 + 2 * 64**3)
    assert flops == [2 * (4 * square + 3 * wide)] * 3


def test_a_step_is_timed_and_the_random_state_kept():
    state = torch.get_rng_state()
    assert measure_step_s(TINY, 16, CPU, Clock(0.25)) == pytest.approx(0.25)
    assert torch.equal(torch.get_rng_state(), state)


def test_slow_steps_are_not_measured_for_long():
    clock = Clock(2.0)
    assert measure_step_s(TINY, 16, CPU, clock) == pytest.approx(2.0)
    assert clock.now <= 14, "two steps and their readings of the clock"


def test_cpu_step_times_lie_on_a_line():
    small, large = auto_with(n_layer=2, d_model=64, d_ff=128), auto_with(n_layer=4, d_model=256, d_ff=512)
    middle = auto_with(n_layer=4, d_model=128, d_ff=256)
    true = StepTimeModel(0.01, 3e-12, 300)
    fitted = StepTimeModel.fit_cpu({small: true(small), large: true(large)}, 300)
    assert fitted(middle) == pytest.approx(true(middle))


def test_noisy_cpu_measurements_give_no_negative_times():
    small, large = auto_with(n_layer=2, d_model=64, d_ff=128), auto_with(n_layer=4, d_model=256, d_ff=512)
    middle = auto_with(n_layer=4, d_model=128, d_ff=256)
    fitted = StepTimeModel.fit_cpu({small: 0.5, large: 0.4}, 300)
    assert 0 < fitted(small) <= fitted(middle) <= fitted(large) <= 0.5


def test_gpu_step_times_are_fitted_from_three_models():
    # 0.1 ms to launch a layer's kernels, 500 G elements/s, 300 TFLOP/s.
    true = StepTimeModel(0.0, 1 / 3e14, 512, 1e-4, 1 / 5e11)
    timed = [benchmark_config(AUTO, 10_000, *size) for size in TIMED_SIZES_GPU]
    fitted = StepTimeModel.fit_gpu({config: true(config) for config in timed}, 512)
    for size in [(2, 64, 1), (6, 256, 4), (16, 1024, 16)]:
        config = benchmark_config(AUTO, 10_000, *size)
        assert fitted(config) == pytest.approx(true(config), rel=1e-3)
    noisy = StepTimeModel.fit_gpu(dict(zip(timed, (3e-3, 1e-3, 2e-3), strict=True)), 512)
    assert min(noisy.s_per_flop, noisy.s_per_layer, noisy.s_per_element) >= 0 and noisy(timed[0]) > 0


@pytest.mark.parametrize("setting", [{"recompute": True}, {"exact": True}, {"lora": "8", "start_from": "model.pt"}])
def test_a_measured_step_is_not_that_of_a_run_that_computes_otherwise(setting):
    step_number(TINY, 100, CPU).write(0.5)
    assert step_number(TINY, 100, CPU).read() == 0.5
    assert step_number(replace(TINY, train=replace(TINY.train, **setting)), 100, CPU).read() is None
