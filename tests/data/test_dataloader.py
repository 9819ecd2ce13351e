"""A step's batch is a pure function of (seed, step), and a pass reads every block once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import STEPS_PER_TRANSFER, BatchLoader, DeviceBatchReader, HostBatchReader
from tiny_gpt.data.sampler import Sampler, permute
from tiny_gpt.training.step import train_step

BLOCK_SIZE, BATCH_SIZE = 8, 4


def counted(n_tokens):
    """A text in which every token tells its place."""
    return np.arange(n_tokens, dtype=np.uint16)


def batches(n_tokens=1000, block_size=BLOCK_SIZE, batch_size=BATCH_SIZE, seed=1, token_noise=0.0):
    return BatchLoader(counted(n_tokens), block_size, batch_size, seed, token_noise=token_noise)


def starts(source, n_steps):
    return np.concatenate([source.batch(step).inputs_BT[:, 0].numpy() for step in range(n_steps)])


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = batches(), batches()
    forwards = [one.batch(step) for step in range(50)]
    backwards = [other.batch(step) for step in reversed(range(50))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a.inputs_BT, b.inputs_BT) and torch.equal(a.targets_BT, b.targets_BT)


def test_targets_are_the_inputs_one_token_further():
    for step in range(20):
        inputs_BT, targets_BT = batches().batch(step)
        assert inputs_BT.shape == targets_BT.shape == (BATCH_SIZE, BLOCK_SIZE)
        assert inputs_BT.dtype == targets_BT.dtype == torch.int64
        assert torch.equal(targets_BT, inputs_BT + 1)
        assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])


def test_noise_exchanges_that_share_of_the_inputs_for_others_and_no_target():
    clean = [batches(block_size=64).batch(step) for step in range(50)]
    noisy, again = ([batches(block_size=64, token_noise=0.2).batch(step) for step in range(50)] for _ in range(2))
    exchanged = torch.stack([a.inputs_BT != b.inputs_BT for a, b in zip(clean, noisy, strict=True)])
    assert exchanged.float().mean() == pytest.approx(0.2, abs=0.01)
    assert len({each.numpy().tobytes() for each in exchanged}) == 50, "other places in every step"
    for a, b, c in zip(clean, noisy, again, strict=True):
        assert torch.equal(a.targets_BT, b.targets_BT)
        assert torch.equal(b.inputs_BT, c.inputs_BT), "the same whenever a step is done again"
    others = torch.stack([each.inputs_BT for each in noisy])[exchanged]
    assert others.min() < 30 and others.max() >= 970, "from all over the text"


@settings(max_examples=50)
@given(
    n_tokens=st.integers(2, 600),
    block_size=st.integers(1, 70),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_pass_reads_each_of_its_blocks_once_and_nothing_twice(n_tokens, block_size, batch_size, seed):
    n_tokens = max(n_tokens, block_size + 1)
    source = batches(n_tokens, block_size, batch_size, seed)
    n_blocks = max(1, (n_tokens - 1) // block_size - 1)
    n_passes = 3
    read = starts(source, -(-n_blocks * n_passes // batch_size))[: n_blocks * n_passes].reshape(n_passes, n_blocks)
    for first_tokens in np.sort(read):
        assert (np.diff(first_tokens) == block_size).all()
        assert first_tokens[0] >= 0 and first_tokens[-1] + block_size < n_tokens


def test_over_many_passes_every_token_is_read():
    source = batches(n_tokens=100, batch_size=11)
    inputs = np.concatenate([source.batch(step).inputs_BT.numpy().ravel() for step in range(200)])
    assert set(inputs.tolist()) == set(range(99))


def test_passes_and_seeds_differ_in_their_order():
    orders = [starts(batches(seed=seed), 60) for seed in (0, 1, 2, 2**63 - 1)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    n_blocks = 999 // BLOCK_SIZE - 1
    passes = starts(batches(), 100)[: 3 * n_blocks].reshape(3, n_blocks) // BLOCK_SIZE
    assert len({order.tobytes() for order in passes}) == 3


def test_the_order_is_no_longer_that_of_the_text():
    order = starts(batches(n_tokens=100_000, batch_size=500), 20)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("block_size", [1, 2, BLOCK_SIZE])
def test_the_shortest_text_is_a_block_and_its_last_target(block_size):
    source = batches(n_tokens=block_size + 1, block_size=block_size)
    for step in range(3):
        inputs_BT, targets_BT = source.batch(step)
        assert inputs_BT.tolist() == [list(range(block_size))] * BATCH_SIZE
        assert targets_BT.tolist() == [list(range(1, block_size + 1))] * BATCH_SIZE


@given(n=st.integers(1, 5000), keys=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_permute_is_a_bijection(n, keys):
    keys = np.array(keys)
    there = permute(np.arange(n), n, keys)
    assert np.array_equal(np.sort(there), np.arange(n))
    some = np.arange(0, n, 3)
    assert np.array_equal(permute(some, n, keys), there[some])


@pytest.mark.parametrize("n", [2**31 + 11, 2**40])
def test_permute_stays_below_n_where_n_is_large(n):
    there = permute(np.arange(n - 1000, n), n, np.array([1, 2, 3, 4]))
    assert len(np.unique(there)) == 1000 and there.min() >= 0 and there.max() < n
    assert there.max() - there.min() > n / 2


class Recorder(torch.nn.Module):
    """A model that only writes down what it is shown."""

    device, backend = torch.device("cpu"), "eager"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shown = []

    def losses(self, inputs_BT, targets_BT):
        self.shown.append(torch.stack((inputs_BT, targets_BT)))
        return self.weight * inputs_BT


@pytest.mark.parametrize("n_micro_batches", [1, 2, 3, 6])
def test_the_parts_of_a_batch_are_the_batch_however_many_they_are(n_micro_batches):
    batch = batches(batch_size=6).batch(7)
    model = Recorder()
    config = RunConfig().with_flat({"batch_size": 6, "grad_accum_steps": n_micro_batches}, "test")
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, config.train, 7, 1.0)
    assert len(model.shown) == n_micro_batches
    assert torch.equal(torch.cat(model.shown, dim=1), torch.stack(batch))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("token_noise", [0.0, 0.2])
def test_a_device_that_holds_the_text_fetches_the_same_batches(dtype, token_noise):
    ids = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=5_000, dtype=dtype, endpoint=True)
    sampler = Sampler(len(ids), 33, 7, seed=5, token_noise=token_noise)
    held, read = (reader(ids, sampler, torch.device("cpu")) for reader in (DeviceBatchReader, HostBatchReader))
    for step in (0, 1, STEPS_PER_TRANSFER - 1, STEPS_PER_TRANSFER, STEPS_PER_TRANSFER + 1, 3, 300, 17):
        for found, expected in zip(held.batch(step), read.batch(step), strict=True):
            assert torch.equal(found, expected) and found.is_contiguous() and found.dtype == torch.int64
