"""A training step: the optimizer by itself, the whole step against the same model in fp64 on the CPU, and twice."""

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
from tiny_gpt.numerics.probe import FP32_EPS, Deviation, Probe, deviation, distance, exact
from tiny_gpt.numerics.reference import Array
from tiny_gpt.training.optimizer import make_optimizer

VOCAB_SIZE, BATCH_SIZE = 97, 32
# Half the tokens of a step of the guide, in a network small enough for fp64 in less than a second.
CONFIG = ModelConfig(n_layer=2, n_head=2, d_model=64, d_ff=256, block_size=128, dropout=0.0)
# Weights are fp32 in every precision. 1 - 0.999^n loses ten bits there, and an update is a hundredth of a weight.
UPDATE_BOUND = 64 * FP32_EPS
DRIFTS = "the same inputs do not give the same bits twice: a run cannot be repeated exactly here"


def adamw(probe: Probe) -> Iterator[Deviation]:
    """Five updates of a matrix, which decays, and of a vector, by gradients from tiny to large."""
    config, decay = TrainConfig(), 0.1
    betas = (0.9, config.beta2)
    before = [probe.draw(*shape, low=-0.05, high=0.05, dtype=torch.float32) for shape in ((64, 64), (64,))]
    matrix, vector = (nn.Parameter(x.to(probe.device, copy=True)) for x in before)
    groups = [{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    gradients: list[list[Array]] = [[], []]
    for _ in range(5):
        for parameter, seen in zip((matrix, vector), gradients, strict=True):
            sizes = 10 ** probe.draw(*parameter.shape, low=-6, high=0, dtype=torch.float32)
            gradient = sizes * probe.draw(*parameter.shape, dtype=torch.float32).sign()
            parameter.grad = gradient.to(probe.device)
            seen.append(exact(gradient))
        optimizer.step()
    for what, parameter, start, seen, weight_decay in zip(
        ("matrix", "vector"), (matrix, vector), before, gradients, (decay, 0.0), strict=True
    ):
        expected = reference.adamw(exact(start), seen, config.learning_rate, betas, 1e-8, weight_decay)
        yield Deviation(what, deviation(parameter, expected), UPDATE_BOUND)


def training_step(probe: Probe, architecture: str) -> Iterator[Deviation]:
    """Losses and gradients by every path that the device has; clipping and updated weights."""
    model, exact_model = make_models(probe, architecture)
    batch = draw_batch(probe)
    inputs_BT, targets_BT = (ids.to(probe.device) for ids in batch)
    exact_losses_BT = exact_model.losses(*batch)
    exact_losses_BT.backward(torch.full_like(exact_losses_BT, 1 / exact_losses_BT.numel()))
    bound = probe.product_bound(inputs_BT.numel())
    gradients: dict[str, Array] = {}
    for name in ("eager", "fused") if probe.device.type == "cpu" else ("eager",):
        with torch.no_grad():
            losses_BT = BACKENDS[name].losses(model, inputs_BT, targets_BT)
        yield Deviation(f"losses, {name}", deviation(losses_BT, exact(exact_losses_BT)), bound)
        model.zero_grad()
        BACKENDS[name].loss(model, inputs_BT, targets_BT).backward()
        gradients = gradients_of(model)
        for parameter, expected in gradients_of(exact_model).items():
            error = distance(gradients[parameter], expected)
            yield Deviation(f"gradient of {parameter}, {name}", error, bound)
    yield from clip_and_update(model, exact_model, gradients)


def clip_and_update(model: GPT, exact_model: GPT, gradients: Mapping[str, Array]) -> Iterator[Deviation]:
    """The rest of a step, by the device's own gradients: Adam's first step takes only their signs, and a sign of
    next to nothing says little."""
    exact_norm = math.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
    norm = nn.utils.clip_grad_norm_(model.parameters(), exact_norm / 2)
    yield Deviation("gradient norm", deviation(norm, np.asarray(exact_norm)), UPDATE_BOUND)
    for name, clipped in gradients_of(model).items():
        yield Deviation(f"clipped gradient of {name}", distance(clipped, gradients[name] / 2), UPDATE_BOUND)
        exact_model.get_parameter(name).grad = torch.from_numpy(clipped)
    for either in (model, exact_model):
        make_optimizer(either, TrainConfig()).step()
    for name, parameter in model.named_parameters():
        expected = exact(exact_model.get_parameter(name))
        yield Deviation(f"updated {name}", deviation(parameter, expected), UPDATE_BOUND)


def repeated(probe: Probe) -> Iterator[Deviation]:
    """The same step three times: near one another always, equal to the last bit where a run can be repeated."""
    model, _ = make_models(probe, "gpt2")
    inputs_BT, targets_BT = (ids.to(probe.device) for ids in draw_batch(probe))
    bound = probe.product_bound(inputs_BT.numel())
    first: dict[str, Array] = {}
    for _ in range(3):
        model.zero_grad()
        losses_BT = model.losses(inputs_BT, targets_BT)
        losses_BT.mean().backward()
        found = {"losses": exact(losses_BT), **gradients_of(model)}
        first = first or found
        for name, x in found.items():
            error = distance(x, first[name])
            yield Deviation(f"repeated {name}", error, bound)
            yield Deviation(f"repeated {name}", error, 0.0, DRIFTS)


def make_models(probe: Probe, architecture: str) -> tuple[GPT, GPT]:
    """A model on the device and the same in fp64 on the CPU, with weights that the precision can hold.

    Larger ones than a training begins with, so that attention looks somewhere and the losses differ from one another.
    """
    config = replace(CONFIG, architecture=architecture)
    torch.manual_seed(0)
    model, exact_model = GPT(config, VOCAB_SIZE, probe.dtype), GPT(config, VOCAB_SIZE, torch.float64).double()
    with torch.no_grad():
        for parameter in model.parameters():
            start = 0.08 * torch.randn_like(parameter) if parameter.ndim == 2 else parameter
            parameter.copy_((start + 0.02 * probe.draw(*parameter.shape)).to(probe.dtype))
    exact_model.load_state_dict(model.state_dict())
    return model.to(probe.device), exact_model


def draw_batch(probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T), on the CPU; one id is a third of them, as the space is of a text."""
    ids_BT = probe.draw_integers(BATCH_SIZE, CONFIG.block_size + 1, low=0, high=VOCAB_SIZE)
    ids_BT[:, ::3] = 5
    return ids_BT[:, :-1], ids_BT[:, 1:]


def gradients_of(model: GPT) -> dict[str, Array]:
    """Each parameter's gradient by its name."""
    return {name: exact(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}
