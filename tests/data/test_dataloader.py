"""A step's batch depends on seed and step alone, wherever the text is kept and however the batch is divided."""

import numpy as np
import pytest
import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import STEPS_PER_TRANSFER, BatchLoader, DeviceBatchReader, HostBatchReader
from tiny_gpt.data.sampler import Sampler
from tiny_gpt.model.soft_targets import SoftTargets
from tiny_gpt.training.step import train_step

BLOCK_SIZE, BATCH_SIZE = 8, 4


def loader(n_tokens=1000, block_size=BLOCK_SIZE, batch_size=BATCH_SIZE, seed=1, token_noise=0.0):
    """Batches of a text in which every token is its own position."""
    return BatchLoader(np.arange(n_tokens, dtype=np.uint16), block_size, batch_size, seed, token_noise=token_noise)


def test_batch_depends_on_seed_and_step_alone():
    one, other = loader(), loader()
    forwards = [one.batch(step) for step in range(50)]
    backwards = [other.batch(step) for step in reversed(range(50))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a.inputs_BT, b.inputs_BT) and torch.equal(a.targets_BT, b.targets_BT)


def test_targets_are_the_inputs_one_token_further():
    for step in range(20):
        inputs_BT, targets_BT, _ = loader().batch(step)
        assert inputs_BT.shape == targets_BT.shape == (BATCH_SIZE, BLOCK_SIZE)
        assert inputs_BT.dtype == targets_BT.dtype == torch.int64
        assert torch.equal(targets_BT, inputs_BT + 1)
        assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])


def test_a_batch_cut_into_shorter_sequences_has_the_same_tokens_and_targets():
    soft = SoftTargets(torch.arange(96).reshape(4, 8, 3), torch.rand(4, 8, 3))
    whole = loader().batch(0)._replace(soft_targets=soft)
    cut = whole.cut(2)
    assert cut.inputs_BT.shape == (16, 2) and torch.equal(cut.targets_BT, cut.inputs_BT + 1)
    assert torch.equal(cut.inputs_BT.flatten(), whole.inputs_BT.flatten())
    for ours, theirs in zip(cut.soft_targets, soft, strict=True):
        assert ours.shape == (16, 2, 3) and torch.equal(ours.flatten(), theirs.flatten())
    assert whole.cut(BLOCK_SIZE) is whole


def test_blocks_are_those_of_the_sampler():
    sampler = Sampler(1000, BLOCK_SIZE, BATCH_SIZE, seed=1)
    for step in range(20):
        assert loader().batch(step).inputs_BT[:, 0].tolist() == sampler.starts(step).tolist()


def test_noise_changes_inputs_and_no_target():
    clean = [loader(block_size=64).batch(step) for step in range(50)]
    noisy, again = ([loader(block_size=64, token_noise=0.2).batch(step) for step in range(50)] for _ in range(2))
    is_replaced = torch.stack([a.inputs_BT != b.inputs_BT for a, b in zip(clean, noisy, strict=True)])
    assert is_replaced.float().mean() == pytest.approx(0.2, abs=0.01)
    for a, b, c in zip(clean, noisy, again, strict=True):
        assert torch.equal(a.targets_BT, b.targets_BT)
        assert torch.equal(b.inputs_BT, c.inputs_BT), "the same whenever a step is repeated"
    replacements = torch.stack([batch.inputs_BT for batch in noisy])[is_replaced]
    assert replacements.min() < 30 and replacements.max() >= 970, "from the whole text"


def test_every_token_is_read_after_some_data_epochs():
    batches = loader(n_tokens=100, batch_size=11)
    inputs = np.concatenate([batches.batch(step).inputs_BT.numpy().ravel() for step in range(200)])
    assert set(inputs.tolist()) == set(range(99))


@pytest.mark.parametrize("block_size", [1, 2, BLOCK_SIZE])
def test_shortest_text_is_one_block_and_its_last_target(block_size):
    batches = loader(n_tokens=block_size + 1, block_size=block_size)
    for step in range(3):
        inputs_BT, targets_BT, _ = batches.batch(step)
        assert inputs_BT.tolist() == [list(range(block_size))] * BATCH_SIZE
        assert targets_BT.tolist() == [list(range(1, block_size + 1))] * BATCH_SIZE


class Recorder(torch.nn.Module):
    """A model that only records its batches."""

    device, backend = torch.device("cpu"), "eager"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def losses(self, inputs_BT, targets_BT):
        self.batches.append(torch.stack((inputs_BT, targets_BT)))
        return self.weight * inputs_BT


@pytest.mark.parametrize("n_micro_batches", [1, 2, 3, 6])
def test_micro_batches_together_are_the_batch(n_micro_batches):
    batch = loader(batch_size=6).batch(7)
    model = Recorder()
    config = RunConfig().with_flat({"batch_size": 6, "grad_accum_steps": n_micro_batches}, "test")
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, config.train, 7, 1.0)
    assert len(model.batches) == n_micro_batches
    assert torch.equal(torch.cat(model.batches, dim=1), torch.stack(batch[:2]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("token_noise", [0.0, 0.2])
def test_text_on_the_device_gives_the_same_batches(dtype, token_noise):
    ids = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=5_000, dtype=dtype, endpoint=True)
    sampler = Sampler(len(ids), 33, 7, seed=5, token_noise=token_noise)
    device, host = (reader(ids, sampler, torch.device("cpu")) for reader in (DeviceBatchReader, HostBatchReader))
    n = STEPS_PER_TRANSFER
    for step in (0, 1, n - 1, n, n + 1, 3, 300, 17):
        for found, expected in zip(device.batch(step)[:2], host.batch(step)[:2], strict=True):
            assert torch.equal(found, expected) and found.is_contiguous() and found.dtype == torch.int64
