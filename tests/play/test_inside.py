"""Attention weights, the logit lens and named patterns, against the network's own results and planted patterns."""

from dataclasses import replace

import pytest
import torch

from tests.support import MODEL, random_model
from tiny_gpt.config import ModelConfig
from tiny_gpt.play.inside import (
    Inside,
    head_patterns,
    inside_view,
    layer_guesses,
    logit_lens,
    look_inside,
    previous_token_share,
    repetition_share,
    start_share,
)

IDS = [5, 17, 200, 5, 17, 42, 5]


@pytest.fixture(params=["gpt2", "qwen3", "llama"])
def model(request):
    return random_model(replace(ModelConfig(request.param), **shape())).eval()


def shape():
    return {name: getattr(MODEL, name) for name in ("n_layer", "n_head", "d_model", "d_ff", "block_size", "dropout")}


def test_weights_are_those_that_the_network_used(model):
    """Weighted by them, the values give what the attention layers computed."""
    outputs = []
    handles = [block.attention.register_forward_hook(lambda *call: outputs.append(call[2])) for block in model.blocks]
    seen = look_inside(model, IDS)
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(model.blocks):
        with torch.no_grad():
            x_TD = block.norm1(seen.residual_LTD[layer])
            qkv = block.attention.qkv(x_TD).unflatten(-1, (3, model.config.n_head, -1))
            mixed = torch.einsum("hts,shk->thk", seen.attention_LHTT[layer], qkv[:, 2])
            expected = block.attention.out(mixed.flatten(1))
        assert torch.allclose(outputs[layer][0], expected, atol=1e-5)


def test_weights_are_causal_and_add_up_to_one(model):
    weights = look_inside(model, IDS).attention_LHTT
    assert weights.shape == (2, 2, len(IDS), len(IDS))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, len(IDS)), atol=1e-5)
    assert not weights.triu(1).any()


def test_the_last_layers_lens_is_the_prediction(model):
    with torch.no_grad():
        expected = model(torch.tensor([IDS]))[0].softmax(-1)
    lens = logit_lens(model, look_inside(model, IDS).residual_LTD)
    assert lens.shape == (3, len(IDS), model.vocab_size)
    assert torch.allclose(lens[-1], expected, atol=1e-6)


def test_guesses_name_the_likeliest_and_the_actual_token(model):
    residual = look_inside(model, IDS).residual_LTD
    lens, guesses = logit_lens(model, residual), layer_guesses(model, residual, IDS)
    assert guesses[1][2].id == int(lens[1, 2].argmax())
    assert guesses[1][2].of_actual == pytest.approx(float(lens[1, 2, IDS[3]]))
    assert guesses[1][-1].of_actual is None


def planted(rows):
    """Attention (1, 1, T, T) in which row i looks at rows[i] with 0.9, and a little at everything before it."""
    weights = torch.zeros(len(rows), len(rows))
    for i, target in enumerate(rows):
        weights[i, : i + 1] = 0.1 / (i + 1)
        weights[i, target] += 0.9
    return weights[None, None]


def test_planted_patterns_have_large_shares_of_their_own():
    n = 12
    previous, start = planted([0, *range(n - 1)]), planted([0] * n)
    repetition = planted([0] * (n // 2) + [i - n // 2 + 1 for i in range(n // 2, n)])
    assert previous_token_share(previous) > 0.9 > 0.3 > previous_token_share(start)
    assert start_share(start) > 0.9 > 0.3 > start_share(previous)
    assert repetition_share(repetition, n // 2) > 0.85 > 0.3 > repetition_share(previous, n // 2)


def test_a_plain_head_is_named(model):
    seen = Inside(planted([0, *range(len(IDS) - 1)]).expand(2, 2, -1, -1), look_inside(model, IDS).residual_LTD)
    assert {head.name for heads in head_patterns(model, seen) for head in heads} == {"previous token"}


def test_heads_of_a_random_model_have_no_pattern(model):
    assert {head.name for heads in head_patterns(model, look_inside(model, IDS)) for head in heads} == {""}


def test_one_token_can_be_looked_into(model):
    view = inside_view(model, [7], 0)
    assert view["ids"] == [7] and len(view["guesses"]) == 3
