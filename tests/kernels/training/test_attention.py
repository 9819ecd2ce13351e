"""Attention's kernels against plain attention in fp64, and the statistics of its dropout."""

import math

import numpy as np
import pytest
import torch

from tiny_gpt.kernels.training.attention import Inputs, Shape, attention_forward
from tiny_gpt.kernels.training.attention_backward import attention_backward
from tiny_gpt.kernels.training.dropout import Dropout
from tiny_gpt.kernels.training.heads import QkvGradients
from tiny_gpt.kernels.training.tasks import run_tasks
from tiny_gpt.model.attention import attention_by_definition
from tiny_gpt.model.dropout import LEVELS, inverse_keep_probability, n_dropped


def attend(q_BHTK, k_BHTK, v_BHTK, p, seed=3):
    """(arguments of both kernels, y, logsum)"""
    B, H, T, K = q_BHTK.shape
    qkv_RN = torch.stack((q_BHTK, k_BHTK, v_BHTK)).permute(1, 3, 0, 2, 4).reshape(B * T, 3 * H * K).contiguous()
    y_RA, logsum_BHT = torch.empty(B * T, H * K), torch.empty(B, H, T)
    dropout = Dropout(np.uint32(n_dropped(p)), inverse_keep_probability(p), np.uint64(seed))
    arguments = Shape(H, T, heads_per_task=1), Inputs(qkv_RN, None, None, None), dropout
    run_tasks(attention_forward, B * H, *arguments, y_RA, logsum_BHT)
    return arguments, y_RA, logsum_BHT


def kept_elements(B, H, T, p, seed=3):
    """(B, H, T, T) of True where a weight was kept: values that are the rows of a unit matrix show each weight."""
    q_BHTK, k_BHTK = torch.zeros(B, H, T, T), torch.zeros(B, H, T, T)
    v_BHTK = torch.eye(T).expand(B, H, T, T)
    y_RA = attend(q_BHTK, k_BHTK, v_BHTK, p, seed)[1]
    return y_RA.view(B, T, H, T).transpose(1, 2) != 0


class TestAttention:
    def test_equals_attention_by_definition_with_the_same_mask(self):
        B, H, T, p = 2, 3, 70, 0.2
        q, k, v, grad = (torch.randn(B, H, T, T) for _ in range(4))
        kept = kept_elements(B, H, T, p) * inverse_keep_probability(p)
        inputs = [x.double().requires_grad_() for x in (q, k, v)]
        scores = inputs[0] @ inputs[1].transpose(-2, -1) / math.sqrt(T)
        weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        expected = (weights * kept) @ inputs[2]
        expected.backward(grad.double())
        arguments, y_RA, logsum_BHT = attend(q, k, v, p)
        torch.testing.assert_close(y_RA.view(B, T, H, T).transpose(1, 2).double(), expected, rtol=1e-4, atol=1e-5)
        grad_RD = grad.transpose(1, 2).reshape(B * T, H * T).contiguous()
        grad_qkv_RN, grad_bias_BN = torch.empty(B * T, 3 * H * T), torch.empty(B, 3 * H * T)
        gradients = QkvGradients(grad_qkv_RN, grad_bias_BN, None)
        run_tasks(attention_backward, B * H, *arguments, y_RA, logsum_BHT, grad_RD, gradients)
        grad_3BHTK = grad_qkv_RN.view(B, T, 3, H, T).permute(2, 0, 3, 1, 4)
        for found, input_ in zip(grad_3BHTK, inputs, strict=True):
            torch.testing.assert_close(found.double(), input_.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad_bias_BN.sum(0), grad_qkv_RN.sum(0), rtol=1e-4, atol=1e-4)

    def test_equals_attention_by_definition_over_many_strips(self):
        q, k, v = (torch.randn(1, 2, 200, 24) for _ in range(3))
        expected = attention_by_definition(q.double(), k.double(), v.double())
        y_RA = attend(q, k, v, 0.0)[1]
        torch.testing.assert_close(y_RA.view(1, 200, 2, 24).transpose(1, 2).double(), expected, rtol=1e-4, atol=1e-5)

    def test_bits_do_not_depend_on_the_number_of_threads(self):
        q, k, v = (torch.randn(4, 3, 50, 16) for _ in range(3))
        n_threads = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                results.append(attend(q, k, v, 0.2)[1])
        finally:
            torch.set_num_threads(n_threads)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])

    def test_the_future_is_not_seen(self):
        kept = kept_elements(1, 1, 96, 0.0)
        assert torch.equal(kept[0, 0], torch.ones(96, 96).tril().bool())

    @pytest.mark.parametrize("p", [0.1, 0.15, 0.5])
    def test_weights_are_dropped_at_the_rate_independently(self, p):
        T = 128
        past_TT = torch.ones(T, T).tril().bool()
        kept = kept_elements(8, 16, T, p)[..., past_TT].flatten(0, 1).double()
        n_heads, n = kept.shape
        sigma = math.sqrt(p * (1 - p))
        assert kept.mean().item() == pytest.approx(1 - n_dropped(p) / LEVELS, abs=4 * sigma / math.sqrt(n_heads * n))
        # How often each place is kept over the heads has the variance of independent draws.
        assert kept.mean(0).var().item() == pytest.approx(sigma**2 / n_heads, rel=0.1)
        assert kept.mean(1).var().item() == pytest.approx(sigma**2 / n, rel=0.5)
        correlations = torch.corrcoef(kept) - torch.eye(n_heads)
        assert correlations.abs().max() < 6 / math.sqrt(n)
        another = kept_elements(8, 16, T, p, seed=4)[..., past_TT].flatten().double()
        assert torch.corrcoef(torch.stack((kept.flatten(), another)))[0, 1].abs() < 5 / math.sqrt(n_heads * n)

    @pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (1, 1), (16, 0), (0, 16), (32, 0), (2, -1)])
    def test_neighbors_are_dropped_independently(self, down, right):
        kept = kept_elements(8, 16, 128, 0.3).double()
        shifted = torch.roll(kept, (-down, -right), (2, 3))
        inside = (torch.ones(128, 128).tril() * torch.roll(torch.ones(128, 128).tril(), (-down, -right), (0, 1))).bool()
        inside[128 - max(down, 1) :] = False
        inside[:, 128 - max(right, 1) :] = False
        inside[:, : max(-right, 0)] = False
        pair = torch.stack((kept[..., inside].flatten(), shifted[..., inside].flatten()))
        assert torch.corrcoef(pair)[0, 1].abs() < 5 / math.sqrt(pair.shape[1])
