"""Cross-entropy against distributions: torch's own as reference, and the fused backend against the eager one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support import MODEL, VOCAB_SIZE, random_model
from tiny_gpt.backends import BACKENDS
from tiny_gpt.data.predictions import Predictions
from tiny_gpt.model.soft_targets import SoftTargets, soft_cross_entropy

V = VOCAB_SIZE


def dense(targets):
    """(B, T, V)."""
    result = torch.zeros(*targets.ids_BTN.shape[:2], V)
    return result.scatter_add_(-1, targets.ids_BTN.clamp(min=0), targets.weights_BTN)


def random_targets(b, t, n=5):
    generator = torch.manual_seed(3)
    ids_BTN = torch.rand(b, t, V, generator=generator).argsort(-1)[..., :n]
    weights_BTN = torch.rand(b, t, n, generator=generator)
    ids_BTN[..., 0] = torch.where(torch.rand(b, t, generator=generator) < 0.5, -1, ids_BTN[..., 0])
    weights_BTN[ids_BTN < 0] = 0
    return SoftTargets(ids_BTN, weights_BTN / weights_BTN.sum(-1, keepdim=True))


def test_soft_cross_entropy_is_torchs():
    targets, logits_BTV = random_targets(3, 7), torch.randn(3, 7, V)
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), dense(targets).flatten(0, 1), reduction="none")
    assert torch.allclose(soft_cross_entropy(logits_BTV, targets).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_fused_soft_loss_and_gradients_are_the_eager_ones(precision):
    model = random_model(replace(MODEL, dropout=0.0))
    model.compute_dtype = precision
    ids_BT, targets = torch.randint(V, (3, MODEL.block_size)), random_targets(3, MODEL.block_size)
    results = []
    for name in ("eager", "fused"):
        model.zero_grad()
        loss = BACKENDS[name].soft_loss(model, ids_BT, targets)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (eager, eager_grad), (fused, fused_grad) = results
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    assert fused == pytest.approx(eager, rel=tolerance)
    assert (fused_grad - eager_grad).norm() <= tolerance * eager_grad.norm()


def test_targets_mix_predictions_with_the_text():
    predictions = Predictions(
        np.array([[0, 1], [7, 8], [9, 3]], np.uint16), np.array([[0, 0], [0.75, 0.25], [0.5, 0.5]], np.float16), 0.8
    )
    targets = predictions.soft_targets(np.array([[0, 1, 2]]), torch.tensor([[5, 8, 2]]))
    expected = torch.zeros(3, V)
    expected[0, 5] = 1.0  # no prediction: the text alone
    expected[1, 7], expected[1, 8] = 0.6, 0.4
    expected[2, 9], expected[2, 3], expected[2, 2] = 0.4, 0.4, 0.2
    assert torch.allclose(dense(targets)[0], expected, atol=1e-6)
