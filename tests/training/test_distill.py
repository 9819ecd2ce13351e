import numpy as np
import pytest
import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training import distill
from tiny_gpt.training.distill import TopTokens, Windows, mean_prediction, predict, prediction_bytes, windows_of

VOCAB_SIZE, BLOCK_SIZE = 48, 16
CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 100).astype(np.uint16)


def make_model(seed: int) -> GPT:
    torch.manual_seed(seed)
    return GPT(ModelConfig(n_layer=2, n_head=2, d_model=32, block_size=BLOCK_SIZE, dropout=0.0), VOCAB_SIZE).eval()


def dense(top: TopTokens) -> np.ndarray:
    """(P, V) probabilities."""
    probabilities_PV = np.zeros((len(top.ids_PN), VOCAB_SIZE))
    np.put_along_axis(probabilities_PV, top.ids_PN.astype(np.int64), top.probabilities_PN, axis=1)
    return probabilities_PV


@torch.no_grad()
def reference(model: GPT, position: int, n_before: int) -> np.ndarray:
    """The model's probabilities of the token at `position` after the `n_before` tokens before it."""
    ids = torch.from_numpy(TOKENS[position - n_before : position].astype(np.int64))[None]
    return torch.softmax(model(ids)[0, -1].float(), dim=-1).numpy()


def batches_of(n_tokens: int) -> list[Windows]:
    return windows_of(n_tokens, BLOCK_SIZE, VOCAB_SIZE, CPU)


def test_predictions_are_those_of_the_tokens_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "N_KEPT", VOCAB_SIZE)
    monkeypatch.setattr(distill, "CPU_LOGITS", 3 * BLOCK_SIZE * VOCAB_SIZE)  # three windows at a time
    model, batches = make_model(1), batches_of(len(TOKENS))
    assert [len(windows.starts_W) for windows in batches] == [3, 3, 3, 3]  # which overlap by half
    found_PV = np.concatenate([dense(predict(model, TOKENS, windows)) for windows in batches])
    assert len(found_PV) == len(TOKENS) - 1
    stride = BLOCK_SIZE // 2
    for position in range(1, len(TOKENS)):
        n_before = position
        if position > BLOCK_SIZE:
            n_before = stride + 1 + (position - BLOCK_SIZE - 1) % stride
        if position >= 97:  # the last window begins 16 tokens before the last prediction, not at a multiple of 8
            n_before = BLOCK_SIZE - 99 + position
        np.testing.assert_allclose(found_PV[position - 1], reference(model, position, n_before), atol=1e-3)


@pytest.mark.parametrize("n_tokens", [BLOCK_SIZE + 1, BLOCK_SIZE + 2, 24, 25, 26, 40, 41, 100])
def test_windows_predict_each_token_once(n_tokens: int) -> None:
    predicted = [
        start + 1 + t
        for batch in batches_of(n_tokens)
        for start, n_known in zip(*batch, strict=True)
        for t in range(n_known, BLOCK_SIZE)
    ]
    assert predicted == list(range(1, n_tokens))


def test_the_mean_of_predictions() -> None:
    (windows,) = batches_of(len(TOKENS))
    alone = [predict(make_model(seed), TOKENS, windows) for seed in range(3)]
    found_PV = dense(mean_prediction(alone, VOCAB_SIZE))
    expected_PV = np.mean([dense(top) for top in alone], axis=0)
    ranked_PV = -np.sort(-expected_PV, axis=1)
    expected_PV /= ranked_PV[:, : distill.N_KEPT].sum(axis=1, keepdims=True)
    is_kept_PV = found_PV > 0
    assert (is_kept_PV.sum(axis=1) == distill.N_KEPT).all()
    np.testing.assert_allclose(found_PV[is_kept_PV], expected_PV[is_kept_PV], rtol=2e-3)
    np.testing.assert_allclose(found_PV.max(axis=1), expected_PV.max(axis=1), rtol=2e-3)


def test_the_mean_of_one_is_itself() -> None:
    top = predict(make_model(1), TOKENS, batches_of(len(TOKENS))[0])
    assert mean_prediction([top], VOCAB_SIZE) is top


@pytest.mark.parametrize("vocab_size", [20, 512, 100_000])
def test_the_memory_of_predictions(vocab_size: int) -> None:
    assert prediction_bytes(1000, vocab_size) == sum(array.nbytes for array in TopTokens.zeros(1000, vocab_size))
