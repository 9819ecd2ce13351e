"""The guard: which steps it skips, which it accepts, and when it asks for a rollback."""

import math

import numpy as np
import pytest
import torch

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.guard import MAX_SKIPPED, MAX_STREAK, MIN_HISTORY, SIGMAS, WINDOW, Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.step import train_step

CPU = torch.device("cpu")
NOISE = np.random.default_rng(0).normal(1.5, 0.02, size=2000)


def skips(guard, losses, first_step=0, grad_norm=0.5):
    """Whether each of these losses was skipped."""
    return [
        bool(guard.should_skip(first_step + i, torch.tensor(float(loss)), torch.tensor(grad_norm)))
        for i, loss in enumerate(losses)
    ]


def experienced(losses=NOISE[:200]):
    """A guard that has seen 200 steps, and the number of the next."""
    guard = Guard(CPU)
    assert not any(skips(guard, losses))
    return guard, len(losses)


def test_normal_training_skips_nothing():
    falling = 1.5 + 3.0 * np.exp(-np.arange(2000) / 300) + (NOISE - 1.5)
    for losses in (NOISE, falling, np.full(2000, 0.3), np.linspace(5, 1e-4, 2000)):
        guard = Guard(CPU)
        assert not any(skips(guard, losses))
        assert guard.is_healthy() and not guard.needs_rollback() and guard.total_skipped() == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n_before", [0, 5, 300])
def test_nan_or_infinite_losses_are_skipped_from_the_start(loss, n_before):
    guard, step = experienced(NOISE[:n_before])
    assert skips(guard, [loss, 1.5], step) == [True, False]


def test_nan_or_infinite_gradients_are_skipped():
    guard, step = experienced()
    assert skips(guard, [1.5], step, grad_norm=math.nan) == skips(guard, [1.5], step + 1, math.inf) == [True]


def test_a_spike_is_skipped_exactly_above_its_limit():
    guard, step = experienced()
    known = NOISE[step - WINDOW : step].astype(np.float32)
    limit = known.mean() + max(SIGMAS * known.std(), 0.1 * known.mean())
    assert skips(guard, [limit * 0.999], step) == [False]
    guard, step = experienced()
    assert skips(guard, [limit * 1.001], step) == [True]


def test_no_spike_is_seen_before_enough_losses():
    guard = Guard(CPU)
    assert skips(guard, [*NOISE[: MIN_HISTORY - 1], 9.0])[-1] is False


def test_nan_does_not_enter_the_window():
    guard, step = experienced()
    skips(guard, [math.nan] * 2, step)
    assert skips(guard, [*NOISE[:50], 3.0], step + 2) == [False] * 50 + [True]


def test_a_text_of_uneven_losses_soon_counts_as_normal():
    """One batch in twenty is three times as hard, as of a mixed text with sequences of one kind each."""
    losses = np.where(np.arange(2000) % 20 == 7, 4.5, NOISE)
    guard = Guard(CPU)
    skipped = []
    for step, loss in enumerate(losses):
        skipped += skips(guard, [loss], step)
        assert not guard.needs_rollback()
    assert sum(skipped[:1000]) <= 5 and not any(skipped[1000:])


@pytest.mark.parametrize("loss", [math.nan, 4.0])
def test_a_streak_needs_a_rollback(loss):
    guard, step = experienced()
    skips(guard, [loss] * (MAX_STREAK - 1), step)
    assert not guard.needs_rollback() and not guard.is_healthy()
    skips(guard, [loss], step + MAX_STREAK - 1)
    assert guard.needs_rollback()


def test_a_past_streak_is_reported_once():
    """As on a GPU, where the host reads the counts only now and then."""
    guard, step = experienced()
    skips(guard, [math.nan] * MAX_STREAK + [1.5] * 5, step)
    assert guard.needs_rollback()
    assert not guard.needs_rollback(), "reported once"


def test_many_scattered_skips_need_a_rollback():
    guard, step = experienced()
    for i in range(MAX_SKIPPED):
        assert not guard.needs_rollback()
        skips(guard, [math.nan] + [1.5] * 5, step + 6 * i)
    assert guard.needs_rollback()
    guard.reset_counts()
    assert not guard.needs_rollback()


def test_a_restored_guard_continues_identically():
    guard, step = experienced()
    skips(guard, [1.5, math.nan, 9.0], step)
    restored = Guard(CPU)
    restored.load_dict(guard.to_dict())
    rest = [math.nan, *NOISE[300:400], 1.62, 9.0, 9.0]
    assert skips(restored, rest, step + 3) == skips(guard, rest, step + 3)
    assert restored.to_dict() == guard.to_dict()


@pytest.mark.parametrize("damage", [{}, {"losses": [1.0], "skipped": [], "streak": 0}, {"losses": "x" * WINDOW}])
def test_a_damaged_state_is_refused(damage):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Guard(CPU).load_dict({**Guard(CPU).to_dict(), **damage} if damage else damage)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_changes_neither_weights_nor_moments(monkeypatch, optimizer):
    torch.manual_seed(0)
    config = RunConfig(
        ModelConfig(n_layer=1, n_head=2, d_model=8, d_ff=16, block_size=4, dropout=0.0),
        train=TrainConfig(batch_size=2, warmup_steps=0, optimizer=optimizer),
    )
    model, guard = GPT(config.model, 11), Guard(CPU)
    optimizer = make_optimizer(model, config.train)
    ids = torch.randint(11, (2, 4))
    train_step(model, optimizer, Batch(ids, ids), config.train, 0, 1e-3, guard=guard)

    def state():
        tensors = [*model.state_dict().values(), *(t for s in optimizer.state.values() for t in s.values())]
        return [tensor.clone() for tensor in tensors]

    before = state()
    losses = GPT.losses
    monkeypatch.setattr(GPT, "losses", lambda self, *args: losses(self, *args) * math.nan)
    train_step(model, optimizer, Batch(ids, ids), config.train, 1, 1e-3, guard=guard)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    monkeypatch.setattr(GPT, "losses", losses)
    train_step(model, optimizer, Batch(ids, ids), config.train, 2, 1e-3, guard=guard)
    assert not any(torch.equal(a, b) for a, b in zip(before, state(), strict=True) if a.ndim == 2)
