"""What the recipe `auto` chooses for a text, a budget and a machine."""

from dataclasses import replace

import pytest
import torch

from tests.planning.support import (
    AUTO,
    CPU,
    FIVE_MINUTES,
    LARGE_TEXT,
    SMALL_TEXT,
    auto_with,
    choose,
    make_planner,
    step_time,
)
from tiny_gpt.config.recipes import AUTO_SETTINGS
from tiny_gpt.errors import UsageError
from tiny_gpt.planning import stage_planner
from tiny_gpt.planning.heuristics import (
    ComputeBudget,
    choose_settings,
    min_block_size,
    size_candidates,
    steps_for,
    tokens_per_step,
)
from tiny_gpt.planning.memory import estimate_memory_bytes
from tiny_gpt.planning.scaling_law import reducible_loss
from tiny_gpt.planning.throughput import StepTimeModel, step_flops
from tiny_gpt.planning.types import TextStats


@pytest.mark.parametrize("text", [SMALL_TEXT, LARGE_TEXT])
def test_more_time_never_means_a_smaller_model(text):
    found = [choose(text=text, seconds=seconds) for seconds in (5, 30, 300, 3600, 6 * 3600, 86_400)]
    sizes = [(config.model.n_layer * config.model.d_model**2) for config in found]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    rates = [config.train.learning_rate for config in found]
    assert rates[0] > rates[-1]
    assert all(config.train.auto == () for config in found), "nothing is left open"


def test_many_data_epochs_bring_dropout_and_token_noise():
    few, many = choose(text=LARGE_TEXT, seconds=600), choose(text=SMALL_TEXT, seconds=3600)
    assert few.model.dropout == 0 < many.model.dropout
    assert few.train.token_noise == 0 < many.train.token_noise


@pytest.mark.parametrize(
    ("text", "steps", "block_size", "warmup"),
    [
        (LARGE_TEXT, 200, 64, 0.8),
        (LARGE_TEXT, 1000, 256, 0.8),
        (LARGE_TEXT, 10_000, 512, 0.8),  # 20 M tokens
        (SMALL_TEXT, 500, 256, 0.8),
        (SMALL_TEXT, 1000, 256, 0.0),  # four passes
        (SMALL_TEXT, 10_000, 256, 0.0),
    ],
)
def test_longer_runs_have_longer_sequences_that_grow(text, steps, block_size, warmup):
    config = choose(text=text, budget=ComputeBudget(None, None, steps))
    assert (config.model.block_size, config.train.sequence_warmup) == (block_size, warmup)


def test_sequences_that_do_not_grow_are_long_in_very_long_runs_only():
    learned = auto_with(architecture="gpt2", optimizer="muon")
    for config in (learned, auto_with(sequence_warmup=0.0)):
        found = [choose(config, budget=ComputeBudget(None, None, steps)) for steps in (10_000, 100_000)]
        assert [each.model.block_size for each in found] == [256, 512]
        assert all(each.train.sequence_warmup == 0 for each in found)


def test_sequences_do_not_grow_on_a_gpu(monkeypatch):
    monkeypatch.setattr(stage_planner, "available_memory_bytes", lambda device: 1 << 40)
    config, _ = make_planner()._replace(device=torch.device("mps"), text=LARGE_TEXT).plan(FIVE_MINUTES)
    assert config.train.sequence_warmup == 0
    given = replace(FIVE_MINUTES, train=replace(FIVE_MINUTES.train, sequence_warmup=0.5))
    given = replace(given, train=replace(given.train, auto=tuple(set(given.train.auto) - {"sequence_warmup"})))
    config, _ = make_planner()._replace(device=torch.device("mps")).plan(given)
    assert config.train.sequence_warmup == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        dict(n_layer=5),
        dict(d_model=320),
        dict(d_model=250),
        dict(n_layer=3, d_model=96, n_head=3),
        dict(n_head=7, d_model=448),
        dict(n_head=7),
        dict(d_ff=100, block_size=33, batch_size=3, dropout=0.4, learning_rate=1e-3),
        dict(architecture="gpt2", optimizer="adamw"),
    ],
)
def test_given_settings_are_kept(settings):
    config = choose(auto_with(**settings))
    assert settings.items() <= config.to_flat().items()
    assert config.model.dim_per_head % 2 == 0 and config.model.d_model % config.model.n_head == 0
    assert config.train.auto == ()


def test_width_adapts_to_given_layers():
    deep, shallow = choose(auto_with(n_layer=12)), choose(auto_with(n_layer=2))
    assert deep.model.d_model < shallow.model.d_model


def test_a_complete_config_is_left_alone():
    complete = choose(auto_with(**{name: AUTO.to_flat()[name] for name in AUTO_SETTINGS}))
    assert complete == replace(AUTO, train=replace(AUTO.train, auto=()))


def test_the_block_fits_into_a_short_text():
    config = choose(text=replace(SMALL_TEXT, train_tokens=900, val_tokens=100))
    assert config.model.block_size < 100
    assert min_block_size(AUTO) < 100 and min_block_size(auto_with(block_size=77)) == 77


def test_the_batch_divides_into_given_micro_batches():
    for n_micro_batches in (1, 3, 16):
        assert choose(auto_with(grad_accum_steps=n_micro_batches)).train.batch_size % n_micro_batches == 0
    with pytest.raises(UsageError, match=r"--grad-accum-steps 9.*--batch-size"):
        auto_with(grad_accum_steps=9, batch_size=8)


def test_a_tiny_text_gets_more_than_the_smallest_model():
    tiny = TextStats(40_000, 36_000, 4_000, 256, 2.9)
    assert (choose(text=tiny).model.n_layer, choose(text=tiny).model.d_model) == (3, 128)


def test_counted_budgets_choose_a_size():
    def flops_per_token(config):
        return step_flops(config, 256) / tokens_per_step(config)

    sizes = [flops_per_token(choose(budget=ComputeBudget(None, tokens=n))) for n in (10**6, 10**8, 10**9)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    budget = ComputeBudget(None, steps=1000)
    assert steps_for(choose(budget=budget), budget, step_time) == 1000


def test_models_beyond_the_available_memory_are_not_chosen():
    budget, largest = ComputeBudget(86_400), choose(seconds=86_400)
    limit = estimate_memory_bytes(largest, 8192, CPU) - 1

    def fits(config):
        return estimate_memory_bytes(config, 8192, CPU) <= limit

    assert fits(choose_settings(AUTO, LARGE_TEXT, budget, step_time, fits))
    with pytest.raises(UsageError, match="--d-model") as error:
        choose_settings(AUTO, LARGE_TEXT, budget, step_time, lambda _: False)
    assert error.value.code == "no-model-fits-memory"


def test_all_size_candidates_are_complete():
    for config in size_candidates(AUTO, LARGE_TEXT, ComputeBudget(60), step_time):
        assert config.train.batch_size > 0 and 0 < config.train.learning_rate < 1


def test_larger_batches_are_used_where_they_cost_little():
    budget = ComputeBudget(60.0)
    slow_launches = StepTimeModel(0.0, 1 / 3e14, 512, 2e-3, 1 / 5e11)
    usual, larger = (
        choose_settings(AUTO, LARGE_TEXT, budget, slow_launches, lambda _: True, try_larger_batches)
        for try_larger_batches in (False, True)
    )
    assert tokens_per_step(usual) < tokens_per_step(larger)
    losses = [
        reducible_loss(config, LARGE_TEXT, steps_for(config, budget, slow_launches)) for config in (larger, usual)
    ]
    assert losses[0] < losses[1]
