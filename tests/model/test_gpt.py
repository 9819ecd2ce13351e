"""The network compared with transformers' classes; its initialization, dropout and bf16.

All parameters of the models below are random, biases and norm weights too, so that none can be left out unnoticed.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.model.reference import as_hf, hf_copy, hf_model
from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.layers import embed_by_product

VOCAB_SIZE = 67
LOGITS_BOUND = 2e-5  # five times what was measured; a norm's other epsilon or GELU's other form is far above it
SIZES: dict[str, dict[str, Any]] = {
    "one layer": dict(n_layer=1, n_head=1, d_model=8, d_ff=20, block_size=5),
    "odd numbers": dict(n_layer=3, n_head=3, d_model=18, d_ff=50, block_size=37),
    "guide's heads": dict(n_layer=2, n_head=4, d_model=128, d_ff=512, block_size=96),
}
ROTARY: dict[str, Any] = dict(head_dim=10, rope_theta=1e6)  # neither is the default

all_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)
all_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))


def random_model(config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, VOCAB_SIZE, compute_dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_ids(config: ModelConfig, batch_size: int = 3) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (batch_size, config.block_size), generator=torch.Generator().manual_seed(1))


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@all_architectures
@all_sizes
def test_logits_equal_those_of_transformers(architecture: str, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **size)
    model = random_model(config)
    ids_BT = random_ids(config)
    expected = hf_copy(model)(ids_BT).logits.detach()
    assert expected.std() > 0.1
    with torch.no_grad():
        evaluated = model.eval()(ids_BT)
    trained = model.train()(ids_BT)
    assert (evaluated - expected).abs().max() <= LOGITS_BOUND
    assert (trained - expected).abs().max() <= LOGITS_BOUND


@all_architectures
@all_sizes
def test_loss_and_gradients_equal_those_of_transformers(architecture: str, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **size)
    model = random_model(config).train()
    reference = hf_copy(model)
    ids_BT = random_ids(config)
    loss = model.losses(ids_BT[:, :-1], ids_BT[:, 1:]).mean()
    expected = reference(ids_BT, labels=ids_BT).loss  # shifts the labels itself
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    loss.backward()
    expected.backward()
    expected_of = {name: gradient_of(parameter) for name, parameter in reference.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected_of.values())
    for ours, parameter in model.named_parameters():
        for name, gradient in as_hf(ours, gradient_of(parameter), architecture):
            torch.testing.assert_close(gradient, expected_of[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


@all_sizes
@pytest.mark.parametrize("architecture", [name for name, traits in ARCHITECTURES.items() if traits.custom_head_dim])
def test_head_dim_and_rope_theta_are_those_of_transformers(architecture: str, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture, dropout=0.0, **size | ROTARY)
    model = random_model(config)
    ids_BT = random_ids(config)
    with torch.no_grad():
        assert (model(ids_BT) - hf_copy(model)(ids_BT).logits).abs().max() <= LOGITS_BOUND
        other_theta = GPT(replace(config, rope_theta=10_000.0), VOCAB_SIZE)
        other_theta.load_state_dict(model.state_dict())
        assert (model(ids_BT) - other_theta(ids_BT)).abs().max() > 100 * LOGITS_BOUND


@all_architectures
def test_losses_are_nats_per_target(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["odd numbers"])
    model = random_model(config).eval()
    ids_BT = random_ids(config)
    losses_BT = model.losses(ids_BT[:, :-1], ids_BT[:, 1:])
    log_probabilities_BTV = model(ids_BT[:, :-1]).double().log_softmax(-1)
    expected_BT = -log_probabilities_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    assert losses_BT.dtype == torch.float32
    torch.testing.assert_close(losses_BT.double(), expected_BT, rtol=1e-5, atol=1e-5)


@all_architectures
def test_no_position_sees_later_ones(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["odd numbers"])
    model = random_model(config)
    ids_BT = random_ids(config)
    for n_seen in (1, 7, 36):
        changed_BT = ids_BT.clone()
        changed_BT[:, n_seen:] = (changed_BT[:, n_seen:] + 1) % VOCAB_SIZE
        before, after = model(ids_BT), model(changed_BT)
        assert (before[:, :n_seen] - after[:, :n_seen]).abs().max() <= 1e-6
        assert (before[:, n_seen:] - after[:, n_seen:]).abs().max() > 0.1


@all_architectures
def test_bf16_stays_close_to_fp32(architecture: str) -> None:
    """Logits within 3% of their spread (root mean square); every weight's gradient within 6%."""
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["guide's heads"])
    ids_BT = random_ids(config)
    logits, gradients = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(config, dtype)
        logits[dtype] = model(ids_BT).float().detach()
        model.losses(ids_BT[:, :-1], ids_BT[:, 1:]).mean().backward()
        assert all(parameter.dtype == gradient_of(parameter).dtype == torch.float32 for parameter in model.parameters())
        gradients[dtype] = {name: gradient_of(parameter) for name, parameter in model.named_parameters()}
    difference = logits[torch.bfloat16] - logits[torch.float32]
    assert 0 < difference.square().mean().sqrt() < 0.03 * logits[torch.float32].std()
    for name, expected in gradients[torch.float32].items():
        error = (gradients[torch.bfloat16][name] - expected).norm() / expected.norm()
        assert error < 0.06, name


@all_architectures
def test_initial_weights_have_the_documented_spread(architecture: str) -> None:
    """GPT-2's: normal with std 0.02, divided by sqrt(2 n_layer) where outputs add up in the residual stream.
    zero_output: zeros there and in the head, std 0.5 / sqrt(d_model) in the blocks' other matrices."""
    is_gpt2 = ARCHITECTURES[architecture].initialization == "gpt2"
    config = ModelConfig(architecture=architecture, **SIZES["guide's heads"])
    torch.manual_seed(0)
    for name, parameter in GPT(config, VOCAB_SIZE).named_parameters():
        (hf_name, value), *_ = as_hf(name, parameter.detach(), architecture)
        if value.ndim == 2:
            std = 0.02
            if hf_name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight")):
                std = 0.02 / math.sqrt(2 * config.n_layer) if is_gpt2 else 0.0
            elif not is_gpt2 and hf_name != "model.embed_tokens.weight":
                std = 0.0 if hf_name == "lm_head.weight" else 0.5 / math.sqrt(config.d_model)
            n = parameter.numel()
            assert parameter.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name
            assert abs(parameter.mean().item()) <= 5 * std / math.sqrt(n), name
        else:
            assert (value == (0.0 if name.endswith("bias") else 1.0)).all(), name


@all_architectures
def test_untrained_loss_is_that_of_a_uniform_guess(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, **SIZES["guide's heads"])
    torch.manual_seed(0)
    ids_BT = random_ids(config)
    losses_BT = GPT(config, VOCAB_SIZE).eval().losses(ids_BT[:, :-1], ids_BT[:, 1:])
    assert losses_BT.mean().item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)


@all_architectures
@all_sizes
def test_n_parameters_is_that_of_transformers(architecture: str, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, **size)
    with torch.device("meta"):
        assert GPT(config, VOCAB_SIZE).n_parameters == hf_model(config, VOCAB_SIZE).num_parameters()


@all_architectures
@pytest.mark.parametrize("silenced", ["attention.out", "mlp.down"])
def test_dropout_acts_on_each_branch_in_training_only(architecture: str, silenced: str) -> None:
    """With the output of one branch at zero, the other still varies in training, and neither does in evaluation."""
    config = ModelConfig(architecture=architecture, dropout=0.5, **SIZES["one layer"])
    model = random_model(config)
    ids_BT = random_ids(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if silenced in name:
                parameter.zero_()
    assert not torch.equal(model.train()(ids_BT), model(ids_BT))
    assert torch.equal(model.eval()(ids_BT), model(ids_BT))
    without = GPT(ModelConfig(architecture=architecture, dropout=0.0, **SIZES["one layer"]), VOCAB_SIZE)
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids_BT), without(ids_BT))


@all_architectures
def test_gradients_with_dropout_equal_finite_differences(architecture: str) -> None:
    """Along each weight's gradient the loss rises as fast as the gradient is long (within 1%), with the same seed."""
    config = ModelConfig(architecture=architecture, dropout=0.3, n_layer=2, n_head=2, d_model=16, d_ff=24, block_size=9)
    model = random_model(config).train()
    ids_BT = random_ids(config, batch_size=4)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        logits_BTV = model(ids_BT[:, :-1]).double()
        return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())

    loss().backward()
    step, n_tested = 1e-2, 0
    for name, parameter in model.named_parameters():
        gradient = gradient_of(parameter)
        if (length := gradient.norm()) < 1e-3:
            continue
        n_tested += 1
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(gradient / length, alpha=sign * step)
            losses.append(loss().item())
            with torch.no_grad():
                parameter.sub_(gradient / length, alpha=sign * step)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(length.item(), rel=0.01), name
    assert n_tested > 15


def test_the_deterministic_embedding_equals_the_lookup() -> None:
    torch.manual_seed(0)
    embedding, ids_BT = torch.nn.Embedding(7, 5), torch.randint(7, (3, 11))
    found = []
    for embed in (embedding, lambda ids_BT: embed_by_product(embedding, ids_BT)):
        embedding.zero_grad()
        out_BTD = embed(ids_BT)
        (out_BTD * torch.arange(out_BTD.numel()).view_as(out_BTD)).sum().backward()
        assert embedding.weight.grad is not None
        found.append((out_BTD.detach(), embedding.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
