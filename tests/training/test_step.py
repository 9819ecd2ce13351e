"""One training step against its definition: gradients, micro-batches, clipping, dropout; the same as CUDA graphs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support import MODEL, random_model, random_tokens
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.data.dataloader import Batch, BatchLoader
from tiny_gpt.training import cuda_graph
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.micro_batches import micro_batch_size
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import freeze_next_step, train_step

CPU = torch.device("cpu")
# A step that changes weights by the gradient itself: no warm-up, no clipping.
PLAIN = TrainConfig(batch_size=8, learning_rate=1024.0, min_learning_rate=1024.0, warmup_steps=0, grad_clip=0.0)


def update(config: RunConfig, step: int = 0) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, gradient norm, and what one step of plain gradient descent adds to each weight, per learning rate."""
    model = random_model(config.model).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = BatchLoader(random_tokens(500), MODEL.block_size, config.train.batch_size, seed=3).batch(step)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9)  # the step sets the schedule's rate
    loss, grad_norm = train_step(model, optimizer, batch, config.train, step, learning_rate_at(step, config.train))
    rate = learning_rate_at(step, config.train)
    changes = {name: (parameter.detach() - before[name]) / rate for name, parameter in model.named_parameters()}
    return loss.item(), grad_norm.item(), changes


def length(changes: dict[str, torch.Tensor]) -> float:
    return torch.cat([change.flatten() for change in changes.values()]).double().norm().item()


def test_a_step_follows_the_gradient_of_the_mean_loss() -> None:
    model = random_model()
    batch = BatchLoader(random_tokens(500), MODEL.block_size, 8, seed=3).batch(0)
    expected = torch.nn.functional.cross_entropy(model(batch.inputs_BT).flatten(0, 1), batch.targets_BT.flatten())
    expected.backward()
    loss, grad_norm, changes = update(RunConfig(MODEL, train=PLAIN))
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert grad_norm == pytest.approx(length(changes), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(changes[name], -parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("n_micro_batches", [2, 3, 5, 8])
def test_micro_batches_change_nothing(n_micro_batches: int) -> None:
    """Gradients within 1e-6 of the largest."""
    whole = update(RunConfig(MODEL, train=PLAIN))
    split = update(RunConfig(MODEL, train=replace(PLAIN, grad_accum_steps=n_micro_batches)))
    assert split[:2] == pytest.approx(whole[:2], rel=1e-6)
    largest = max(change.abs().max().item() for change in whole[2].values())
    for name, change in whole[2].items():
        torch.testing.assert_close(split[2][name], change, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize(
    ("batch_size", "n_micro_batches", "block_size", "size"),
    [
        (64, 1, 128, 64),
        (64, 1, 512, 64),
        (64, 1, 513, 32),
        (64, 1, 2048, 16),
        (6, 1, 8192, 3),
        (7, 1, 8192, 1),
        (10, 4, 128, 2),
        (64, 1, 40_000, 1),
        (3, 5, 128, 1),
    ],
)
def test_a_mac_computes_equal_micro_batches_within_its_limit(
    batch_size: int, n_micro_batches: int, block_size: int, size: int
) -> None:
    assert micro_batch_size(batch_size, n_micro_batches, block_size, torch.device("mps")) == size
    assert batch_size % size == 0 and (size * block_size <= 32_768 or size == 1)
    assert micro_batch_size(batch_size, n_micro_batches, block_size, CPU) == math.ceil(batch_size / n_micro_batches)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("n_micro_batches", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-1)])
def test_the_cuda_graph_form_equals_the_eager_one(
    monkeypatch: pytest.MonkeyPatch, optimizer_name: Any, n_micro_batches: int, dtype: torch.dtype, tolerance: float
) -> None:
    """The work that a GPU records, run eagerly on the CPU. AdamW's first steps follow the sign of a gradient, so that
    rounding in bf16 moves the norm of a bias by up to 6%, depending on the processor."""
    monkeypatch.setattr(cuda_graph.CudaGraph, "__call__", lambda graph: graph._work())
    train = replace(PLAIN, optimizer=optimizer_name, learning_rate=1e-2, min_learning_rate=0.0, grad_clip=1.0)
    architecture: Any = "qwen3" if optimizer_name == "muon" else "gpt2"
    config = RunConfig(replace(MODEL, dropout=0.3, architecture=architecture), train=train)
    batches = BatchLoader(random_tokens(500), MODEL.block_size, PLAIN.batch_size, seed=3)
    figures = []
    for is_graph in (False, True):
        model = random_model(config.model).train()
        model.compute_dtype = dtype
        optimizer, guard = make_optimizer(model, config.train), Guard(model.device)
        updates = cuda_graph.CudaGraphUpdate(model, optimizer, train, guard) if is_graph else None
        losses = []
        for step in range(6):
            result = train_step(
                model,
                optimizer,
                batches.batch(step),
                train,
                step,
                learning_rate_at(step, train),
                n_micro_batches=n_micro_batches,
                guard=guard,
                cuda_graph=updates,
            )
            losses += [figure.item() for figure in result]
            if updates and step == 3:
                updates.forget()
        figures.append([*losses, *(parameter.norm().item() for parameter in model.parameters())])
    assert figures[1] == pytest.approx(figures[0], rel=tolerance)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("skips", [0.0, 1.0])
def test_freezing_a_step_equals_found_inf(skips: float, optimizer_name: Any) -> None:
    def weights(*, with_found_inf: bool) -> list[torch.Tensor]:
        model = random_model()
        optimizer = make_optimizer(model, TrainConfig(weight_decay=0.5, optimizer=optimizer_name))
        for step in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if skips and step == 1 else 0.1 * (step + 1))
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            if with_found_inf:
                optimizer.found_inf = torch.tensor(skips if step == 1 else 0.0)  # type: ignore[attr-defined]
            else:
                freeze_next_step(optimizer, torch.tensor(skips if step == 1 else 0.0))
            before = [parameter.detach().clone() for parameter in model.parameters()]
            optimizer.step()
            moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
            assert all(moved) if not (skips and step == 1) else not any(moved)
        return list(model.parameters())

    for held, expected in zip(weights(with_found_inf=False), weights(with_found_inf=True), strict=True):
        torch.testing.assert_close(held, expected, rtol=0, atol=0.01 if skips else 0)  # a step at most


def test_gradients_are_clipped_unless_the_limit_is_zero() -> None:
    _, grad_norm, changes = update(RunConfig(MODEL, train=replace(PLAIN, grad_clip=0.01)))
    assert grad_norm > 0.1
    assert length(changes) == pytest.approx(0.01, rel=1e-3)
    _, loose_norm, loose_changes = update(RunConfig(MODEL, train=replace(PLAIN, grad_clip=100.0)))
    _, unclipped_norm, unclipped_changes = update(RunConfig(MODEL, train=PLAIN))
    assert length(loose_changes) == length(unclipped_changes) == pytest.approx(grad_norm, rel=1e-5)
    assert loose_norm == unclipped_norm == grad_norm


@pytest.mark.parametrize("n_micro_batches", [1, 2])
def test_dropout_depends_on_seed_and_step_only(n_micro_batches: int) -> None:
    config = RunConfig(replace(MODEL, dropout=0.5), train=replace(PLAIN, grad_accum_steps=n_micro_batches))
    one_row = Batch(*(ids_BT[:1].repeat(8, 1) for ids_BT in BatchLoader(random_tokens(500), 8, 1, seed=0).batch(0)[:2]))

    def loss(step: int, config: RunConfig, earlier_seed: int) -> float:
        model = random_model(config.model).train()
        torch.manual_seed(earlier_seed)
        return train_step(model, torch.optim.SGD(model.parameters()), one_row, config.train, step, 1e-3)[0].item()

    assert loss(5, config, earlier_seed=1) == loss(5, config, earlier_seed=2)
    other_seed = replace(config, train=replace(config.train, seed=config.train.seed + 1))
    assert len({loss(5, config, 1), loss(6, config, 1), loss(5, other_seed, 1)}) == 3


def test_each_micro_batch_draws_its_own_dropout() -> None:
    """Two micro-batches of the same tokens: with the same mask, the loss of one would be that of both."""
    row = BatchLoader(random_tokens(500), 8, 1, seed=0).batch(0)[:2]
    config = RunConfig(replace(MODEL, dropout=0.5), train=replace(PLAIN, batch_size=2, grad_accum_steps=2))
    alone = replace(config, train=replace(config.train, grad_accum_steps=1))

    def loss(config: RunConfig, n_rows: int) -> float:
        model = random_model(config.model).train()
        batch = Batch(*(ids_BT.repeat(n_rows, 1) for ids_BT in row))
        return train_step(model, torch.optim.SGD(model.parameters()), batch, config.train, 0, 1e-3)[0].item()

    assert loss(config, n_rows=2) != pytest.approx(loss(alone, n_rows=1), rel=1e-6)
