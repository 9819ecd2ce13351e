"""Checks of training steps: AdamW alone, a whole step compared with the same model in fp64, and a repeated step."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.numerics import reference
from tiny_gpt.numerics.harness import FP32_EPS, Array, Deviation, Harness, norm_error, relative_error, to_array
from tiny_gpt.training.optimizer import make_optimizer

VOCAB_SIZE, N_BLOCKS = 97, 32
# Half the tokens of a step of the default model, in a network small enough for a step in fp64 in less than a second.
CONFIG = ModelConfig(n_layer=2, n_head=2, d_model=64, d_ff=256, block_size=128, dropout=0.0)
# Weights are fp32 in every precision. 1 - 0.999^n loses ten bits there, and an update is a hundredth of a weight.
UPDATE_BOUND = 64 * FP32_EPS
NOT_DETERMINISTIC = "the same inputs do not give the same bits twice: a run cannot be repeated exactly here"


def adamw(harness: Harness) -> Iterator[Deviation]:
    """Five updates of a matrix, which decays, and of a vector, by gradients from tiny to large."""
    config, decay = TrainConfig(), 0.1
    betas = (0.9, config.beta2)
    before = [harness.draw(*shape, low=-0.05, high=0.05, dtype=torch.float32) for shape in ((64, 64), (64,))]
    matrix, vector = (nn.Parameter(x.to(harness.device, copy=True)) for x in before)
    groups = [{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    gradients: list[list[torch.Tensor]] = [[], []]
    for _ in range(5):
        for parameter, history in zip((matrix, vector), gradients, strict=True):
            magnitudes = 10 ** harness.draw(*parameter.shape, low=-6, high=0, dtype=torch.float32)
            gradient = magnitudes * harness.draw(*parameter.shape, dtype=torch.float32).sign()
            parameter.grad = gradient.to(harness.device)
            history.append(gradient.double())
        optimizer.step()
    for what, parameter, start, history, weight_decay in zip(
        ("matrix", "vector"), (matrix, vector), before, gradients, (decay, 0.0), strict=True
    ):
        expected = reference.adamw(start.double(), history, config.learning_rate, betas, 1e-8, weight_decay)
        yield Deviation(what, relative_error(parameter, to_array(expected)), UPDATE_BOUND)


def training_step(harness: Harness, architecture: str) -> Iterator[Deviation]:
    """Losses and gradients by every backend of the device; clipping and updated weights."""
    model, exact_model = make_models(harness, architecture)
    batch = draw_batch(harness)
    inputs_BT, targets_BT = (ids.to(harness.device) for ids in batch)
    exact_losses_BT = exact_model.losses(*batch)
    exact_losses_BT.backward(torch.full_like(exact_losses_BT, 1 / exact_losses_BT.numel()))
    bound = harness.product_bound(inputs_BT.numel())
    gradients: dict[str, Array] = {}
    for name in ("eager", "fused") if harness.device.type == "cpu" else ("eager",):
        with torch.no_grad():
            losses_BT = BACKENDS[name].losses(model, inputs_BT, targets_BT)
        yield Deviation(f"losses, {name}", relative_error(losses_BT, to_array(exact_losses_BT)), bound)
        model.zero_grad()
        BACKENDS[name].loss(model, inputs_BT, targets_BT).backward()
        gradients = gradients_of(model)
        for parameter, expected in gradients_of(exact_model).items():
            error = norm_error(gradients[parameter], expected)
            yield Deviation(f"gradient of {parameter}, {name}", error, bound)
    yield from clip_and_update(model, exact_model, gradients)


def clip_and_update(model: GPT, exact_model: GPT, gradients: Mapping[str, Array]) -> Iterator[Deviation]:
    """The rest of a step, with the device's own gradients in both models.

    Adam's first step uses little more than the signs of gradients, and those of tiny ones differ by rounding.
    """
    exact_norm = math.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
    norm = nn.utils.clip_grad_norm_(model.parameters(), exact_norm / 2)
    yield Deviation("gradient norm", relative_error(norm, np.asarray(exact_norm)), UPDATE_BOUND)
    for name, clipped in gradients_of(model).items():
        yield Deviation(f"clipped gradient of {name}", norm_error(clipped, gradients[name] / 2), UPDATE_BOUND)
        exact_model.get_parameter(name).grad = torch.from_numpy(clipped)
    for each in (model, exact_model):
        make_optimizer(each, TrainConfig()).step()
    for name, parameter in model.named_parameters():
        expected = to_array(exact_model.get_parameter(name))
        yield Deviation(f"updated {name}", relative_error(parameter, expected), UPDATE_BOUND)


def repeated(harness: Harness) -> Iterator[Deviation]:
    """The same step three times: always nearly equal, and equal to the bit where runs can be repeated exactly."""
    model, _ = make_models(harness, "gpt2")
    inputs_BT, targets_BT = (ids.to(harness.device) for ids in draw_batch(harness))
    bound = harness.product_bound(inputs_BT.numel())
    first: dict[str, Array] = {}
    for _ in range(3):
        model.zero_grad()
        losses_BT = model.losses(inputs_BT, targets_BT)
        losses_BT.mean().backward()
        results = {"losses": to_array(losses_BT), **gradients_of(model)}
        first = first or results
        for name, x in results.items():
            error = norm_error(x, first[name])
            yield Deviation(f"repeated {name}", error, bound)
            yield Deviation(f"repeated {name}", error, 0.0, NOT_DETERMINISTIC)


def make_models(harness: Harness, architecture: str) -> tuple[GPT, GPT]:
    """A model on the device and the same in fp64 on the CPU, with weights that the precision represents exactly.

    Weights are larger than initial ones, so that attention is not uniform and losses differ from token to token.
    """
    config = replace(CONFIG, architecture=architecture)
    torch.manual_seed(0)
    model, exact_model = GPT(config, VOCAB_SIZE, harness.dtype), GPT(config, VOCAB_SIZE, torch.float64).double()
    with torch.no_grad():
        for parameter in model.parameters():
            start = 0.08 * torch.randn_like(parameter) if parameter.ndim == 2 else parameter
            parameter.copy_((start + 0.02 * harness.draw(*parameter.shape)).to(harness.dtype))
    exact_model.load_state_dict(model.state_dict())
    return model.to(harness.device), exact_model


def draw_batch(harness: Harness) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T) on the CPU; one id makes up a third of them, like the space in a text."""
    ids_BT = harness.draw_integers(N_BLOCKS, CONFIG.block_size + 1, low=0, high=VOCAB_SIZE)
    ids_BT[:, ::3] = 5
    return ids_BT[:, :-1], ids_BT[:, 1:]


def gradients_of(model: GPT) -> dict[str, Array]:
    """Each parameter's gradient by name."""
    return {
        name: to_array(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None
    }
