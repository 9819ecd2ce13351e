"""Learning rate schedules against formulas written out, and against torch's own schedulers."""

import math
from dataclasses import replace

import pytest
import torch

from tiny_gpt.config import TrainConfig
from tiny_gpt.training.schedule import learning_rate_at, schedule_point, sequence_length, sequence_lengths

PEAK = TrainConfig().learning_rate


def rates(config: TrainConfig) -> list[float]:
    return [learning_rate_at(step, config) for step in range(config.total_steps)]


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 50])
def test_rate_rises_to_the_peak_and_falls_to_the_minimum(warmup_steps: int) -> None:
    config = TrainConfig(epochs=10, iters_per_epoch=10, warmup_steps=warmup_steps)
    all_rates = rates(config)
    rise, fall = all_rates[:warmup_steps], all_rates[max(0, warmup_steps - 1) :]
    assert all_rates[0] > 0
    assert max(all_rates) == fall[0] == config.learning_rate
    assert all_rates[-1] == pytest.approx(config.min_learning_rate, rel=1e-12)
    assert rise == sorted(set(rise))
    assert fall == sorted(fall, reverse=True)


def test_warmup_takes_at_most_half_of_the_run() -> None:
    short = TrainConfig(epochs=1, iters_per_epoch=10, warmup_steps=200)
    assert rates(short) == rates(replace(short, warmup_steps=5))


def test_cosine_equals_torch_schedulers() -> None:
    config = TrainConfig(epochs=6, iters_per_epoch=50, warmup_steps=40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 40, total_iters=39)
    expected = []
    for _ in range(40):
        expected += linear.get_last_lr()
        optimizer.step()
        linear.step()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=259, eta_min=config.min_learning_rate)
    for _ in range(260):
        expected += cosine.get_last_lr()
        optimizer.step()
        cosine.step()
    assert rates(config) == pytest.approx(expected, rel=1e-9)


def test_default_rates_equal_the_guides_formula_to_the_bit():
    """Written out as the guide's script has it."""
    train = TrainConfig()
    for step in range(train.total_steps):
        if step < 200:
            expected = 5e-4 * (step + 1) / 200
        else:
            progress = (step - 200) / (32_000 - 1 - 200)
            expected = 5e-5 + (5e-4 - 5e-5) * (1 + math.cos(math.pi * progress)) / 2
        assert learning_rate_at(step, train) == expected


def test_wsd_rises_stays_and_falls_linearly_to_zero():
    train = TrainConfig(steps=110, warmup_steps=10, schedule="wsd", cooldown=0.5)
    fractions = [rate / PEAK for rate in rates(train)]
    assert fractions[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(fractions[10:60]) == {1.0}
    assert fractions[60:] == pytest.approx([(109 - step) / 49.5 for step in range(60, 110)])


@pytest.mark.parametrize(
    ("block_size", "warmup", "expected"),
    [
        (256, 0.8, {64: 400, 128: 400, 256: 200}),
        (512, 0.8, {64: 200, 128: 200, 256: 400, 512: 200}),
        (150, 0.8, {75: 800, 150: 200}),
        (511, 0.8, {511: 1000}),  # odd
        (64, 0.8, {64: 1000}),
        (1024, 0.0, {1024: 1000}),
    ],
)
def test_sequences_grow_to_the_block_size(block_size: int, warmup: float, expected: dict[int, int]) -> None:
    config = TrainConfig(steps=1000, sequence_warmup=warmup)
    points = [schedule_point(step, 1000, 0) for step in range(1000)]
    lengths = [sequence_length(point, config, block_size) for point in points]
    assert lengths == sorted(lengths)
    counts = {length: lengths.count(length) for length in sorted(set(lengths))}
    assert counts == pytest.approx(expected, abs=2)
    shares = sequence_lengths(config, block_size)
    assert {length: 1000 * share for length, share in shares.items()} == pytest.approx(expected)


def test_sequences_are_whole_where_a_trained_model_goes_on() -> None:
    """Its rate begins below the peak."""
    point = replace(schedule_point(0, 1000, 0), peak_fraction=0.5)
    assert sequence_length(point, TrainConfig(sequence_warmup=0.6), 512) == 512
