"""Losses of logits that are computed in chunks, against torch's cross_entropy of all of them."""

import pytest
import torch
from torch.nn import functional as F

from tiny_gpt.model import token_losses
from tiny_gpt.model.layers import Linear

D, VOCAB_SIZE = 12, 50
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def results(x_BTD, head, targets_BT, grad_BT):
    """Losses, and the gradients of `x_BTD` and of the head's weight."""
    x_BTD = x_BTD.detach().requires_grad_()
    head.weight.grad = None
    losses_BT = token_losses.token_losses(x_BTD, head, targets_BT)
    losses_BT.backward(grad_BT)
    return losses_BT.detach(), x_BTD.grad, head.weight.grad


@pytest.mark.parametrize("n_rows", [1, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(monkeypatch, n_rows, dtype):
    head = Linear(D, VOCAB_SIZE, bias=False)
    x_BTD, targets_BT, grad_BT = torch.randn(3, 5, D).to(dtype), torch.randint(VOCAB_SIZE, (3, 5)), torch.rand(3, 5)
    targets_BT[1, 3:] = token_losses.IGNORED
    whole = results(x_BTD, head, targets_BT, grad_BT)
    monkeypatch.setattr(token_losses, "LOGITS_PER_PRODUCT", n_rows * VOCAB_SIZE)
    chunks = results(x_BTD, head, targets_BT, grad_BT)
    for found, expected in zip(chunks, whole, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS[dtype])
    assert not chunks[0][1, 3:].any() and not chunks[1][1, 3:].any()


def test_frozen_head_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(token_losses, "LOGITS_PER_PRODUCT", VOCAB_SIZE)
    head = Linear(D, VOCAB_SIZE, bias=False).requires_grad_(False)
    x_BTD, targets_BT = torch.randn(2, 4, D), torch.randint(VOCAB_SIZE, (2, 4))
    losses, _, weight_grad = results(x_BTD, head, targets_BT, torch.ones(2, 4))
    assert weight_grad is None
    expected = F.cross_entropy((x_BTD @ head.weight.t()).flatten(0, 1), targets_BT.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected)
