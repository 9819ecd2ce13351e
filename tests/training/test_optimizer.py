"""The optimizers against their definitions, and against torch's own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.muon import orthogonalize
from tiny_gpt.training.optimizer import make_optimizer

# Matrices of all kinds: square, tall and wide, queries, keys and values with more rows than columns each.
MODEL = ModelConfig("qwen3", n_layer=2, n_head=2, d_model=16, d_ff=40, head_dim=12, block_size=8)
GPT2 = ModelConfig("gpt2", n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=8)
MUON = TrainConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.5, beta2=0.95)
N_STEPS = 3


def random_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, 23, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def draw_gradients(model: GPT) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def is_hidden(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("blocks.") and parameter.ndim == 2


def test_adamw_follows_its_definition() -> None:
    model = random_model(GPT2)
    expected = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    means = {name: torch.zeros_like(value) for name, value in expected.items()}
    squares = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = make_optimizer(model, replace(MUON, optimizer="adamw"))
    for step in range(1, N_STEPS + 1):
        draw_gradients(model)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.95 * squares[name] + 0.05 * gradient.square()
            mean, square = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.95**step)
            expected[name] *= 1 - 0.01 * (0.5 if parameter.ndim == 2 else 0.0)
            expected[name] -= 0.01 * mean / (square.sqrt() + 1e-8)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("config", [GPT2, MODEL], ids=["gpt2", "qwen3"])
def test_muon_equals_torch_muon_plus_adamw(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon computes in fp32 here instead of bf16. Queries, keys and values are three matrices."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    model = random_model(config)
    hidden: dict[str, list[nn.Parameter]] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if is_hidden(name, parameter):
            parts = parameter.detach().clone().chunk(3 if "qkv" in name else 1)
            hidden[name] = [nn.Parameter(part) for part in parts]
        else:
            rest[name] = nn.Parameter(parameter.detach().clone())
    theirs = [
        torch.optim.Muon(
            [part for parts in hidden.values() for part in parts],
            lr=MUON.learning_rate,
            weight_decay=MUON.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        *(
            torch.optim.AdamW(
                [parameter for parameter in rest.values() if (parameter.ndim == 2) == decays],
                lr=MUON.learning_rate,
                betas=(0.9, MUON.beta2),
                weight_decay=MUON.weight_decay if decays else 0.0,
                fused=True,
            )
            for decays in (True, False)
        ),
    ]
    ours = make_optimizer(model, MUON)
    for step in range(N_STEPS):
        draw_gradients(model)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            twins = hidden.get(name) or [rest[name]]
            for twin, part in zip(twins, parameter.grad.chunk(len(twins)), strict=True):
                twin.grad = part.clone()
        for optimizer in (ours, *theirs):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            optimizer.step()
    for name, parameter in model.named_parameters():
        if name in rest:
            assert torch.equal(parameter, rest[name]), name
        else:
            torch.testing.assert_close(parameter, torch.cat(hidden[name]), rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_orthogonalize_sets_singular_values_to_about_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = min(shape)
    left_N, right_N = (torch.linalg.qr(torch.randn(2, size, n))[0] for size in shape)
    x_NRC = left_N @ torch.diag(torch.logspace(-1.5, 1, n)) @ right_N.mT
    found_NRC = orthogonalize(x_NRC, dtype)
    assert found_NRC.dtype == dtype and found_NRC.shape == x_NRC.shape
    own = left_N.mT @ found_NRC.float() @ right_N
    assert own.diagonal(dim1=1, dim2=2).min() > 0.6 and own.diagonal(dim1=1, dim2=2).max() < 1.25
    own.diagonal(dim1=1, dim2=2).zero_()
    assert own.abs().max() < (1e-4 if dtype == torch.float32 else 0.1), "singular vectors stay"
    torch.testing.assert_close(orthogonalize(1e6 * x_NRC, dtype), found_NRC, rtol=0, atol=1e-4)
    assert not orthogonalize(torch.zeros_like(x_NRC), dtype).any()
