"""The guard: what it skips, what it lets pass, and when it gives up skipping."""

import math

import numpy as np
import pytest
import torch

from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.guard import MAX_SKIPPED, MAX_STREAK, MIN_KNOWN, SIGMAS, WINDOW, Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.step import train_step

CPU = torch.device("cpu")
NOISE = np.random.default_rng(0).normal(1.5, 0.02, size=2000)


def judged(guard, losses, first_step=0, grad_norm=0.5):
    """Whether each of these losses was skipped."""
    return [
        bool(guard.judge(first_step + i, torch.tensor(float(loss)), torch.tensor(grad_norm)))
        for i, loss in enumerate(losses)
    ]


def seasoned(losses=NOISE[:200]):
    """A guard that has seen a training, and its next step."""
    guard = Guard(CPU)
    assert not any(judged(guard, losses))
    return guard, len(losses)


def test_an_ordinary_training_is_left_alone():
    falling = 1.5 + 3.0 * np.exp(-np.arange(2000) / 300) + (NOISE - 1.5)
    for losses in (NOISE, falling, np.full(2000, 0.3), np.linspace(5, 1e-4, 2000)):
        guard = Guard(CPU)
        assert not any(judged(guard, losses))
        assert guard.is_calm() and not guard.is_beyond_skipping() and guard.n_skipped_in_all() == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n_before", [0, 5, 300])
def test_a_loss_that_is_no_number_is_skipped_from_the_first_step_on(loss, n_before):
    guard, step = seasoned(NOISE[:n_before])
    assert judged(guard, [loss, 1.5], step) == [True, False]


def test_a_gradient_that_is_no_number_is_skipped():
    guard, step = seasoned()
    assert judged(guard, [1.5], step, grad_norm=math.nan) == judged(guard, [1.5], step + 1, math.inf) == [True]


def test_a_jump_is_skipped_exactly_above_its_limit():
    guard, step = seasoned()
    known = NOISE[step - WINDOW : step].astype(np.float32)
    limit = known.mean() + max(SIGMAS * known.std(), 0.1 * known.mean())
    assert judged(guard, [limit * 0.999], step) == [False]
    guard, step = seasoned()
    assert judged(guard, [limit * 1.001], step) == [True]


def test_no_jump_is_seen_before_enough_is_known():
    guard = Guard(CPU)
    assert judged(guard, [*NOISE[: MIN_KNOWN - 1], 9.0])[-1] is False


def test_a_number_that_is_none_does_not_spoil_the_window():
    guard, step = seasoned()
    judged(guard, [math.nan] * 2, step)
    assert judged(guard, [*NOISE[:50], 3.0], step + 2) == [False] * 50 + [True]


def test_a_text_of_uneven_losses_soon_passes_and_never_counts_as_trouble():
    """One batch in twenty is three times as hard, as of a mixed text with blocks of one kind each."""
    losses = np.where(np.arange(2000) % 20 == 7, 4.5, NOISE)
    guard = Guard(CPU)
    skipped = []
    for step, loss in enumerate(losses):
        skipped += judged(guard, [loss], step)
        assert not guard.is_beyond_skipping()
    assert sum(skipped[:1000]) <= 5 and not any(skipped[1000:])


@pytest.mark.parametrize("loss", [math.nan, 4.0])
def test_a_streak_is_beyond_skipping(loss):
    guard, step = seasoned()
    judged(guard, [loss] * (MAX_STREAK - 1), step)
    assert not guard.is_beyond_skipping() and not guard.is_calm()
    judged(guard, [loss], step + MAX_STREAK - 1)
    assert guard.is_beyond_skipping()


def test_a_streak_between_two_looks_is_seen_though_it_is_over():
    """As on a GPU, where the host looks only now and then."""
    guard, step = seasoned()
    judged(guard, [math.nan] * MAX_STREAK + [1.5] * 5, step)
    assert guard.is_beyond_skipping()
    assert not guard.is_beyond_skipping(), "told once"


def test_many_scattered_ones_are_beyond_skipping_too():
    guard, step = seasoned()
    for i in range(MAX_SKIPPED):
        assert not guard.is_beyond_skipping()
        judged(guard, [math.nan] + [1.5] * 5, step + 6 * i)
    assert guard.is_beyond_skipping()
    guard.calm_down()
    assert not guard.is_beyond_skipping()


def test_a_guard_restored_goes_on_as_if_it_had_never_stopped():
    guard, step = seasoned()
    judged(guard, [1.5, math.nan, 9.0], step)
    twin = Guard(CPU)
    twin.load_dict(guard.to_dict())
    rest = [math.nan, *NOISE[300:400], 1.62, 9.0, 9.0]
    assert judged(twin, rest, step + 3) == judged(guard, rest, step + 3)
    assert twin.to_dict() == guard.to_dict()


@pytest.mark.parametrize("odd", [{}, {"losses": [1.0], "skipped": [], "streak": 0}, {"losses": "x" * WINDOW}])
def test_a_damaged_memory_is_refused(odd):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Guard(CPU).load_dict({**Guard(CPU).to_dict(), **odd} if odd else odd)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_touches_neither_weights_nor_moments(monkeypatch, optimizer):
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
