"""Budgets of steps, and other units converted to them."""

import time
from dataclasses import replace

import pytest

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.training.budget import StepBudget, requested_seconds, resolve_steps
from tiny_gpt.training.schedule import schedule_point

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [(dict(tokens=12_800), 10), (dict(data_epochs=2.5), 5), (dict(steps=3), 3), (dict(tokens=1), 1)],
)
def test_tokens_and_data_epochs_become_steps(settings, steps):
    config = RunConfig(ModelConfig(block_size=128), train=TrainConfig(batch_size=10, **settings))
    resolved = resolve_steps(config, train_tokens=2560)
    assert resolved.train.budget == "steps" and resolved.train.total_steps == steps


@pytest.mark.parametrize("train", [TrainConfig(), TrainConfig(for_="6h")])
def test_epochs_and_time_stay_as_they_are(train):
    config = RunConfig(train=replace(train, batch_size=10))
    assert resolve_steps(config, 2560) == config


def test_a_step_budget_is_a_function_of_the_step():
    budget = StepBudget(total_steps=10, warmup_steps=2)
    for step in (7, 0, 9):
        assert budget.begin_step(step) == schedule_point(step, 10, 2)
        budget.end_step(step)
    assert [budget.is_over(n_steps) for n_steps in (9, 10)] == [False, True]
    assert [budget.progress(n_steps) for n_steps in (0, 5, 12)] == [0.0, 0.5, 1.0]
    assert budget.remaining_s() is None and budget.to_dict() == {}


@pytest.mark.parametrize(
    ("settings", "seconds"), [(dict(for_="90s"), 90), (dict(until="12:30"), 1200), (dict(steps=5), None)]
)
def test_requested_seconds_count_from_now(settings, seconds):
    assert requested_seconds(TrainConfig(**settings), requested_at=NOON, now=NOON + 600) == seconds
