"""Which sequences a step reads: a pure function of (seed, step) that reads every sequence once per data epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_gpt.data.sampler import Sampler, permute

BLOCK_SIZE = 8


def sampler(n_tokens=1000, block_size=BLOCK_SIZE, batch_size=4, seed=1, token_noise=0.0):
    return Sampler(n_tokens, block_size, batch_size, seed, token_noise)


@settings(max_examples=50)
@given(
    n_tokens=st.integers(2, 600),
    block_size=st.integers(1, 70),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_data_epoch_reads_every_block_once(n_tokens, block_size, batch_size, seed):
    n_tokens = max(n_tokens, block_size + 1)
    n_sequences = max(1, (n_tokens - 1) // block_size - 1)
    n_epochs = 3
    n_steps = -(-n_sequences * n_epochs // batch_size)
    starts = sampler(n_tokens, block_size, batch_size, seed).starts(0, n_steps)[: n_sequences * n_epochs]
    for epoch_starts in np.sort(starts.reshape(n_epochs, n_sequences)):
        assert (np.diff(epoch_starts) == block_size).all()
        assert epoch_starts[0] >= 0 and epoch_starts[-1] + block_size < n_tokens


@pytest.mark.parametrize("n_tokens", [20, 1000])
def test_many_steps_at_once_are_the_same_as_one_by_one(n_tokens):
    one_by_one = np.concatenate([sampler(n_tokens).starts(step) for step in range(7, 40)])
    assert np.array_equal(sampler(n_tokens).starts(7, 33), one_by_one)


def test_starts_are_stable():
    """A run that is resumed by a later version reads on in the same order."""
    noisy = sampler(100_000, 64, 3, seed=1337, token_noise=0.02)
    assert noisy.starts(1000).tolist() == [63422, 42238, 28286]
    replaced, replacements = noisy.noise(1000)
    assert replaced.tolist() == [91, 166, 175] and replacements.tolist() == [48871, 49408, 77673]


def test_data_epochs_and_seeds_differ_in_order():
    orders = [sampler(seed=seed).starts(0, 60) for seed in (0, 1, 2, 2**63 - 1)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    n_sequences = 999 // BLOCK_SIZE - 1
    epochs = sampler().starts(0, 100)[: 3 * n_sequences].reshape(3, n_sequences) // BLOCK_SIZE
    assert len({order.tobytes() for order in epochs}) == 3


def test_consecutive_blocks_are_uncorrelated():
    starts = sampler(n_tokens=100_000, batch_size=500).starts(0, 20)
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.05


def test_noise_draws_replacements_from_the_whole_text():
    noise = [sampler(block_size=64, token_noise=0.2).noise(step) for step in range(50)]
    indices = np.concatenate([replaced for replaced, _ in noise])
    positions = np.concatenate([replacements for _, replacements in noise])
    assert len(indices) / (50 * 4 * 64) == pytest.approx(0.2, abs=0.01) and indices.max() < 4 * 64
    assert positions.min() < 30 and positions.max() >= 970
    assert len({replaced.tobytes() for replaced, _ in noise}) == 50, "other inputs in every step"


@given(n=st.integers(1, 5000), keys=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_permute_is_a_bijection(n, keys):
    keys = np.array(keys)
    permuted = permute(np.arange(n), n, keys)
    assert np.array_equal(np.sort(permuted), np.arange(n))
    some = np.arange(0, n, 3)
    assert np.array_equal(permute(some, n, keys), permuted[some])


@pytest.mark.parametrize("n", [2**31 + 11, 2**40])
def test_permute_of_a_large_range_stays_in_it(n):
    permuted = permute(np.arange(n - 1000, n), n, np.array([1, 2, 3, 4]))
    assert len(np.unique(permuted)) == 1000 and permuted.min() >= 0 and permuted.max() < n
    assert permuted.max() - permuted.min() > n / 2
