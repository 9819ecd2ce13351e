"""The order of sequences over shards: a function of (seed, step), which visits shards group by group and reads all."""

import numpy as np
import pytest

from tiny_gpt.data.token_shards.order import SHARDS_PER_GROUP, ShardSampler

BLOCK_SIZE, BATCH_SIZE = 8, 5
LENGTHS = (100, 37, 8, 250, 64, 9, 90, 41, 77, 120)  # one is too short for a sequence
ENDS = np.cumsum(LENGTHS)


def sampler(seed=1, lengths=LENGTHS, **settings):
    return ShardSampler(lengths, BLOCK_SIZE, BATCH_SIZE, seed, **settings)


def shards_at(positions):
    return np.searchsorted(ENDS, positions, "right")


def test_order_depends_on_seed_and_step_alone():
    one, other = sampler(), sampler()
    forwards = [one.starts(step).tolist() for step in range(100)]
    backwards = [other.starts(step).tolist() for step in reversed(range(100))][::-1]
    assert forwards == backwards
    assert forwards != [sampler(seed=2).starts(step).tolist() for step in range(100)]


def test_blocks_stay_within_their_shards_and_no_block_is_read_twice_in_a_data_epoch():
    found = sampler()
    n_sequences = sum(max(1, (n - 1) // BLOCK_SIZE - 1) for n in LENGTHS if n > BLOCK_SIZE)
    for epoch in range(5):
        steps = range(epoch * n_sequences // BATCH_SIZE, (epoch + 1) * n_sequences // BATCH_SIZE + 1)
        sequences = np.concatenate([found.starts(step) for step in steps])
        first = epoch * n_sequences - steps[0] * BATCH_SIZE
        sequences = np.sort(sequences[first : first + n_sequences])
        assert (shards_at(sequences) == shards_at(sequences + BLOCK_SIZE)).all()
        assert (np.diff(sequences) >= BLOCK_SIZE).all()
        assert set(shards_at(sequences)) == set(range(len(LENGTHS))) - {2}


def test_every_token_is_read_after_some_data_epochs():
    found = sampler()
    starts = np.concatenate([found.starts(step) for step in range(1000)])
    read = set((starts[:, None] + np.arange(BLOCK_SIZE + 1)).ravel().tolist())
    too_short = set(range(ENDS[1], ENDS[2]))
    assert read == set(range(ENDS[-1])) - too_short


def test_shards_of_a_step_and_of_the_next_group_are_upcoming():
    found = sampler()
    for step in range(200):
        upcoming = found.upcoming(step)
        needed = set(shards_at(found.starts(step)))
        assert needed <= set(upcoming)
        assert len(upcoming) == len(set(upcoming)) <= 3 * SHARDS_PER_GROUP
        # Wherever a later step needs another shard, the step before it knew of that.
        assert set(shards_at(found.starts(step + 1))) <= set(upcoming)


def test_replacements_come_from_the_shards_at_hand():
    found = sampler(token_noise=0.5)
    for step in range(100):
        replaced, positions = found.noise(step)
        assert len(replaced) == len(positions) and (replaced < BATCH_SIZE * BLOCK_SIZE).all()
        assert set(shards_at(positions)) <= set(found.upcoming(step))
    assert len(sampler().noise(3)[0]) == 0


@pytest.mark.parametrize("lengths", [(9,), (1000,), (9, 9), (9,) * 9])
def test_smallest_corpora_have_batches(lengths):
    found = sampler(lengths=lengths)
    for step in range(20):
        assert (found.starts(step) + BLOCK_SIZE < sum(lengths)).all() and found.upcoming(step)
