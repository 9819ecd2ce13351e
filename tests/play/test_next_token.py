"""The summary of the next token's logits."""

import base64
import math

import numpy as np
import pytest

from tiny_gpt.play.next_token import N_TOP, summarize_logits, surprise_bits


def random_logits(n, seed=0):
    return (4 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def test_the_likeliest_are_exact_and_in_order():
    logits_V = random_logits(5000)
    found = summarize_logits(logits_V)
    ids = np.frombuffer(base64.b64decode(found["ids"]), dtype="<u4")
    logits = np.frombuffer(base64.b64decode(found["logits"]), dtype="<f4")
    assert len(ids) == N_TOP and ids.tolist() == np.argsort(-logits_V, kind="stable")[:N_TOP].tolist()
    assert logits.tolist() == logits_V[ids].tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_rest_keeps_its_weight_at_any_temperature(temperature):
    logits_V = random_logits(50_000).astype(np.float64)
    rest = np.sort(logits_V)[:-N_TOP]
    bins = summarize_logits(logits_V.astype(np.float32))["rest"]
    weight = sum(count * math.exp(logit / temperature) for logit, count in bins)
    assert weight == pytest.approx(np.exp(rest / temperature).sum(), rel=0.02)
    assert sum(count for _, count in bins) == len(rest)


def test_small_vocabularies_have_no_rest():
    assert summarize_logits(random_logits(N_TOP))["rest"] == []


def test_surprise_is_the_negative_logarithm_of_the_probability():
    logits_V = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    assert [surprise_bits(logits_V, i) for i in range(3)] == pytest.approx([1, 2, 2])
