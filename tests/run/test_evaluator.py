"""When evaluations are due. Their losses are tested in tests/test_evaluation.py, timed runs in test_timed_runs.py."""

import pytest

from tests.run.support import with_train
from tests.support import MODEL
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.schedule import schedule_point


@pytest.fixture
def evaluator_of(config):
    """`evaluator_of(**settings)`: for a run of the tiny config with these training settings."""
    dataset = finish(prepare(config.data, MODEL.block_size))

    def make(**settings):
        train = with_train(config, **settings).train
        return Evaluator(TrainState(GPT(MODEL, dataset.tokenizer.vocab_size), train), dataset)

    return make


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (dict(epochs=2, iters_per_epoch=10, eval_interval=4), [4, 8, 10, 14, 18, 20]),
        (dict(epochs=2, iters_per_epoch=10, eval_interval=50), [10, 20]),
        (dict(steps=7, iters_per_epoch=10, eval_interval=3), [3, 6, 7]),
    ],
)
def test_step_budgets_are_evaluated_at_fixed_steps(evaluator_of, settings, steps):
    evaluator, due = evaluator_of(**settings), []
    total_steps = evaluator.state.total_steps
    for step in range(total_steps):
        evaluator.state.counters.step = step + 1
        if evaluator.is_due(schedule_point(step, total_steps, 0)):
            due.append(step + 1)
    assert due == steps


def test_an_evaluation_costs_a_fixed_share_of_the_training(evaluator_of):
    evaluator = evaluator_of(eval_interval=10, iters_per_epoch=10)
    trained = 10 * evaluator.tokens_per_step
    assert evaluator.val_windows.n_tokens <= 3 * VAL_SHARE * trained
    assert evaluator.train_windows.n_tokens <= 3 * TRAIN_SHARE * trained
    assert evaluator.n_tokens == evaluator.val_windows.n_tokens + evaluator.train_windows.n_tokens


def test_the_batch_size_follows_the_micro_batches(evaluator_of):
    evaluator = evaluator_of(batch_size=8)
    evaluator.state.shrink_micro_batches()
    evaluator.fit_batch_size()
    assert evaluator.val_windows.batch_size == evaluator.train_windows.batch_size == 4


def test_the_final_score_needs_more_text_than_an_evaluation(evaluator_of):
    evaluator = evaluator_of(eval_interval=3)
    assert evaluator.final_windows(left_s=None) is None, "no step is done"
    evaluator.state.counters.step = 10_000
    assert evaluator.final_windows(left_s=None).n_tokens == len(evaluator.dataset.val) - 1


def test_the_time_for_merged_models_is_measured_where_some_were_merged(evaluator_of, monkeypatch):
    evaluator = evaluator_of(eval_interval=3)
    n_val, n_train = evaluator.val_windows.n_tokens, evaluator.train_windows.n_tokens
    monkeypatch.setattr(Evaluator, "_token_s", lambda _: 1e-4)
    one = n_multiplied(MODEL, evaluator.dataset.tokenizer.vocab_size)
    assert evaluator.merged_s(10 * one, 3) == pytest.approx(10 * 1e-4 * (3 * n_val + n_train))
    # Wider models take less time for each weight.
    evaluator.record_merging_time(10 * 0.4e-4 * 2 * n_val, 10 * one * 2 * n_val)
    expected = pytest.approx(10 * 0.4e-4 * (3 * n_val + n_train))
    assert evaluator.merged_s(10 * one, 3) == expected
    evaluator.record_merging_time(3600.0, 10 * one * 2 * n_val)  # the machine slept
    assert evaluator.merged_s(10 * one, 3) == expected
