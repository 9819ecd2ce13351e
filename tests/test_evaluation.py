"""Evaluation against a loss written out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support import MODEL, mean_loss, random_model, random_tokens
from tiny_gpt.evaluation import FixedWindows, bits_per_byte


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("n_tokens", [9, 10, 16, 17, 18, 321, 327])
def test_a_whole_text_counts_every_target_once(n_tokens: int, architecture: Any) -> None:
    model = random_model(replace(MODEL, architecture=architecture)).eval()
    tokens = random_tokens(n_tokens)
    windows = FixedWindows(tokens, MODEL.block_size, batch_size=3, max_tokens=n_tokens)
    assert windows.n_tokens == n_tokens - 1
    assert windows.loss(model) == pytest.approx(mean_loss(model, tokens), rel=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 8, 100, 333, 990])
def test_a_subset_is_evenly_spaced_and_always_the_same(max_tokens: int) -> None:
    tokens = random_tokens(1000)
    windows = FixedWindows(tokens, MODEL.block_size, batch_size=4, max_tokens=max_tokens)
    assert windows.n_tokens == max(1, max_tokens // 8) * 8
    assert len(set(windows.starts)) * 8 == windows.n_tokens
    assert windows.starts[0] == 0 and windows.starts[-1] + 8 < len(tokens)
    if len(windows.starts) > 1:
        gaps = np.diff(windows.starts)
        assert gaps.max() - gaps.min() <= 8 and len(tokens) - windows.starts[-1] <= 24, "evenly, to the end"
    model = random_model().eval()
    expected = [mean_loss(model, tokens[start : start + 9]) for start in windows.starts]
    loss, error = windows.loss_and_error(model)
    assert loss == windows.loss(model) == pytest.approx(np.mean(expected), rel=1e-6)
    if len(expected) > 1:
        assert error == pytest.approx(np.std(expected, ddof=1) / len(expected) ** 0.5, rel=1e-4)
    else:
        assert math.isnan(error)
    again = FixedWindows(tokens, MODEL.block_size, batch_size=4, max_tokens=max_tokens)
    assert again.loss(model) == windows.loss(model)


def test_evaluation_uses_no_dropout_and_restores_the_mode() -> None:
    model = random_model(replace(MODEL, dropout=0.5))
    windows = FixedWindows(random_tokens(100), MODEL.block_size, batch_size=4, max_tokens=100)
    loss = windows.loss(model.eval())
    assert not any(module.training for module in model.modules())
    assert windows.loss(model.train()) == loss
    assert all(module.training for module in model.modules())


def test_bits_per_byte_is_total_bits_over_bytes() -> None:
    # Two bits a token, 30 tokens, 40 bytes: 60 bits in 40 bytes.
    assert bits_per_byte(loss=2 * math.log(2), n_tokens=30, n_bytes=40) == pytest.approx(1.5)
