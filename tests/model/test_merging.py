"""Merged models against the models that they are made of."""

import pytest
import torch

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.merging import merge_models
from tiny_gpt.model.shapes import MAX_MERGED_PARAMETERS, can_merge, max_merged, merged_config, n_parameters

VOCAB_SIZE = 23


def make_model(seed, architecture="llama", scale=1.0, d_model=16):
    """A model with large random weights. `scale`: of its stream, which changes nothing in what it computes."""
    torch.manual_seed(seed)
    model = GPT(ModelConfig(architecture, 2, 2, d_model, 24, 12, 0.0), VOCAB_SIZE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
        model.token_embedding.weight.mul_(scale)
        for block in model.blocks:
            block.attention.out.weight.mul_(scale)
            block.mlp.down.weight.mul_(scale)
    return model.eval()


@pytest.fixture
def ids_BT():
    return torch.randint(VOCAB_SIZE, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_one_model_stays_the_same(architecture, ids_BT):
    model = make_model(1, architecture)
    one = merge_models([model], ids_BT)
    torch.testing.assert_close(one(ids_BT), model(ids_BT))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_copies_of_a_model_are_that_model_whatever_their_scales(architecture, ids_BT):
    copies = [make_model(1, architecture, scale) for scale in (1.0, 2.0, 3.0)]
    one = merge_models(copies, ids_BT)
    assert one.config == merged_config(copies[0].config, 3) and one.config.dim_per_head == copies[0].config.dim_per_head
    torch.testing.assert_close(one(ids_BT), copies[0](ids_BT), rtol=1e-2, atol=1e-2)


def test_logits_are_near_the_mean_of_those_of_different_models(ids_BT):
    models = [make_model(seed, scale=1 + seed, d_model=256) for seed in range(4)]
    mean = sum(model(ids_BT) for model in models) / 4
    error, distance = (
        (x - mean).norm() / mean.norm() for x in (merge_models(models, ids_BT)(ids_BT), models[0](ids_BT))
    )
    assert error < 0.5 < 1 < distance  # random models differ more in scale from token to token than trained ones


def test_as_many_are_merged_as_their_size_allows():
    for d_model, vocab_size in ((64, 512), (128, 512), (192, 2048), (256, 2048)):
        config = ModelConfig("qwen3", 4, d_model // 64, d_model, 3 * d_model, 256)
        n = max_merged(config, vocab_size)
        sizes = [n_parameters(merged_config(config, k), vocab_size) for k in (n, n + 1)]
        assert n == 2 or sizes[0] <= MAX_MERGED_PARAMETERS < sizes[1]
    assert max_merged(ModelConfig("gpt2"), 512) == 1 and max_merged(ModelConfig("qwen3", 12, 12, 768, 2048), 8192) == 2


def test_layer_norm_cannot_be_merged(ids_BT):
    assert not can_merge(ModelConfig("gpt2"))
    with pytest.raises(AssertionError):
        merge_models([GPT(ModelConfig("gpt2", 1, 1, 8, 8, 12), VOCAB_SIZE)], ids_BT)
