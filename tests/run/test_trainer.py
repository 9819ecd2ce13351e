"""Learning-rate schedule, evaluation and the training loop, each against a hand-written reference."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_gpt.config import BEST_FILE, FINAL_FILE, DataConfig, ModelConfig, RunConfig, TrainConfig
from tiny_gpt.data.dataloader import Batch, BatchLoader
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Notice, StageProgress, finish
from tiny_gpt.errors import DivergedError
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.events import (
    Checkpointed,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Prepared,
    Saved,
    StepDone,
    SteppedBack,
    Stopping,
)
from tiny_gpt.run.start import run
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.training import cuda_graph
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import freeze_next_step, micro_batch_size, train_step

CPU = torch.device("cpu")
VOCAB_SIZE = 256
MODEL = ModelConfig(n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=8, dropout=0.0)
# A step that changes weights by the gradient itself: no warm-up, no clipping.
PLAIN = TrainConfig(batch_size=8, learning_rate=1024.0, min_learning_rate=1024.0, warmup_steps=0, grad_clip=0.0)

LEARNABLE = "abcdefghijklmnopqrstuvwxyz\n" * 55
# Validation, the last tenth, shares no character with what is learned: its loss only rises.
MISLEADING = "abcd" * 450 + "WXYZ" * 50


def random_model(config: ModelConfig = MODEL) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_tokens(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(VOCAB_SIZE, size=n).astype(np.uint8)


# --- schedule ---


def rates(config: TrainConfig) -> list[float]:
    return [learning_rate_at(step, config) for step in range(config.total_steps)]


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 50])
def test_rate_rises_to_the_peak_and_falls_to_the_minimum(warmup_steps: int) -> None:
    config = TrainConfig(epochs=10, iters_per_epoch=10, warmup_steps=warmup_steps)
    all_rates = rates(config)
    rise, fall = all_rates[:warmup_steps], all_rates[max(0, warmup_steps - 1) :]
    assert all_rates[0] > 0
    assert max(all_rates) == fall[0] == config.learning_rate
    assert all_rates[-1] == pytest.approx(config.min_learning_rate, rel=1e-12)
    assert rise == sorted(set(rise))
    assert fall == sorted(fall, reverse=True)


def test_warmup_takes_at_most_half_of_the_run() -> None:
    short = TrainConfig(epochs=1, iters_per_epoch=10, warmup_steps=200)
    assert rates(short) == rates(replace(short, warmup_steps=5))


def test_rate_equals_torch_schedulers() -> None:
    config = TrainConfig(epochs=6, iters_per_epoch=50, warmup_steps=40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 40, total_iters=39)
    expected = []
    for _ in range(40):
        expected += linear.get_last_lr()
        optimizer.step()
        linear.step()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=259, eta_min=config.min_learning_rate)
    for _ in range(260):
        expected += cosine.get_last_lr()
        optimizer.step()
        cosine.step()
    assert rates(config) == pytest.approx(expected, rel=1e-9)


# --- evaluation ---


def mean_loss(model: GPT, tokens: np.ndarray) -> float:
    """Every target once, each seen from the start of its block, summed in fp64."""
    ids, block_size = torch.from_numpy(tokens.astype(np.int64)), model.config.block_size
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, block_size):
            window = ids[start : start + block_size + 1]
            log_probabilities_TV = model(window[None, :-1])[0].double().log_softmax(-1)
            total -= log_probabilities_TV[torch.arange(len(window) - 1), window[1:]].sum().item()
    return total / (len(ids) - 1)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("n_tokens", [9, 10, 16, 17, 18, 321, 327])
def test_loss_over_the_whole_text_counts_every_target_once(n_tokens: int, architecture: Any) -> None:
    model = random_model(replace(MODEL, architecture=architecture)).eval()
    tokens = random_tokens(n_tokens)
    windows = FixedWindows(tokens, MODEL.block_size, batch_size=3, max_tokens=n_tokens)
    assert windows.n_tokens == n_tokens - 1
    assert windows.loss(model) == pytest.approx(mean_loss(model, tokens), rel=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 8, 100, 333, 990])
def test_a_subset_is_evenly_spaced_within_the_limit_and_always_the_same(max_tokens: int) -> None:
    tokens = random_tokens(1000)
    windows = FixedWindows(tokens, MODEL.block_size, batch_size=4, max_tokens=max_tokens)
    assert windows.n_tokens == max(1, max_tokens // 8) * 8
    assert len(set(windows.starts)) * 8 == windows.n_tokens
    assert windows.starts[0] == 0 and windows.starts[-1] + 8 < len(tokens)
    if len(windows.starts) > 1:
        gaps = np.diff(windows.starts)
        assert gaps.max() - gaps.min() <= 8 and len(tokens) - windows.starts[-1] <= 24, "to within a block, to the end"
    model = random_model().eval()
    expected = [mean_loss(model, tokens[start : start + 9]) for start in windows.starts]
    assert windows.loss(model) == pytest.approx(np.mean(expected), rel=1e-6)
    again = FixedWindows(tokens, MODEL.block_size, batch_size=4, max_tokens=max_tokens)
    assert again.loss(model) == windows.loss(model)


def test_evaluation_uses_no_dropout_and_restores_the_mode() -> None:
    model = random_model(replace(MODEL, dropout=0.5))
    windows = FixedWindows(random_tokens(100), MODEL.block_size, batch_size=4, max_tokens=100)
    loss = windows.loss(model.eval())
    assert not any(module.training for module in model.modules())
    assert windows.loss(model.train()) == loss
    assert all(module.training for module in model.modules())


def test_bits_per_byte_is_total_bits_over_bytes() -> None:
    # Two bits a token, 30 tokens, 40 bytes: 60 bits in 40 bytes.
    assert bits_per_byte(loss=2 * math.log(2), n_tokens=30, n_bytes=40) == pytest.approx(1.5)


# --- one step ---


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


def test_a_step_goes_down_the_gradient_of_the_batchs_mean_loss() -> None:
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


@pytest.mark.parametrize("n_micro_batches", [2, 4, 8])
def test_computing_a_batch_in_parts_changes_nothing(n_micro_batches: int) -> None:
    """Gradients within 1e-6 of the largest."""
    whole = update(RunConfig(MODEL, train=PLAIN))
    parts = update(RunConfig(MODEL, train=replace(PLAIN, grad_accum_steps=n_micro_batches)))
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-6)
    largest = max(change.abs().max().item() for change in whole[2].values())
    for name, change in whole[2].items():
        torch.testing.assert_close(parts[2][name], change, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize(
    ("batch_size", "n_micro_batches", "block_size", "n_blocks"),
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
def test_a_mac_computes_equal_parts_of_at_most_32768_tokens(
    batch_size: int, n_micro_batches: int, block_size: int, n_blocks: int
) -> None:
    assert micro_batch_size(batch_size, n_micro_batches, block_size, torch.device("mps")) == n_blocks
    assert batch_size % n_blocks == 0 and (n_blocks * block_size <= 32_768 or n_blocks == 1)
    assert micro_batch_size(batch_size, n_micro_batches, block_size, CPU) == math.ceil(batch_size / n_micro_batches)


def test_a_run_on_a_device_with_a_limit_keeps_to_it_and_its_losses_stay(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, model=replace(config.model, dropout=0.0))
    expected = [e for e in run(with_train(config, out_dir=str(tmp_path / "twin"))) if isinstance(e, Evaluated)]
    losses, shapes = GPT.losses, set()

    def seen(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(ids_BT.shape))
        return losses(model, ids_BT, targets_BT)

    monkeypatch.setattr("tiny_gpt.training.step.max_blocks_at_once", lambda block_size, device: 3)
    monkeypatch.setattr(GPT, "losses", seen)
    found = [e for e in run(config) if isinstance(e, Evaluated)]
    assert shapes == {(2, MODEL.block_size)}, "equal parts, in training and in evaluation"
    for one, other in zip(found, expected, strict=True):
        figures = [(e.train_loss, e.val_loss, e.batch_loss, e.grad_norm) for e in (one, other)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-4)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("n_micro_batches", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_updates_in_memory_that_stays_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, optimizer_name: Any, n_micro_batches: int, dtype: torch.dtype, tolerance: float
) -> None:
    """What a GPU records, without the recording."""
    monkeypatch.setattr(cuda_graph.CudaGraph, "__call__", lambda graph: graph._work())
    train = replace(PLAIN, optimizer=optimizer_name, learning_rate=1e-2, min_learning_rate=0.0, grad_clip=1.0)
    architecture: Any = "qwen3" if optimizer_name == "muon" else "gpt2"
    config = RunConfig(replace(MODEL, dropout=0.3, architecture=architecture), train=train)
    batches = BatchLoader(random_tokens(500), MODEL.block_size, PLAIN.batch_size, seed=3)
    figures = []
    for stays in (False, True):
        model = random_model(config.model).train()
        model.compute_dtype = dtype
        optimizer, guard = make_optimizer(model, config.train), Guard(model.device)
        updates = cuda_graph.CudaGraphUpdate(model, optimizer, train, guard) if stays else None
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
def test_where_an_optimizer_cannot_skip_a_step_its_weights_are_left_alone_all_the_same(
    skips: float, optimizer_name: Any
) -> None:
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


def test_gradients_are_clipped_to_the_given_length_and_not_at_all_for_zero() -> None:
    _, grad_norm, changes = update(RunConfig(MODEL, train=replace(PLAIN, grad_clip=0.01)))
    assert grad_norm > 0.1
    assert length(changes) == pytest.approx(0.01, rel=1e-3)
    _, loose_norm, loose_changes = update(RunConfig(MODEL, train=replace(PLAIN, grad_clip=100.0)))
    _, unclipped_norm, unclipped_changes = update(RunConfig(MODEL, train=PLAIN))
    assert length(loose_changes) == length(unclipped_changes) == pytest.approx(grad_norm, rel=1e-5)
    assert loose_norm == unclipped_norm == grad_norm


@pytest.mark.parametrize("n_micro_batches", [1, 2])
def test_dropout_of_a_step_depends_on_seed_and_step_alone(n_micro_batches: int) -> None:
    config = RunConfig(replace(MODEL, dropout=0.5), train=replace(PLAIN, grad_accum_steps=n_micro_batches))
    one_row = Batch(*(ids_BT[:1].repeat(8, 1) for ids_BT in BatchLoader(random_tokens(500), 8, 1, seed=0).batch(0)))

    def loss(step: int, config: RunConfig, earlier_seed: int) -> float:
        model = random_model(config.model).train()
        torch.manual_seed(earlier_seed)
        return train_step(model, torch.optim.SGD(model.parameters()), one_row, config.train, step, 1e-3)[0].item()

    assert loss(5, config, earlier_seed=1) == loss(5, config, earlier_seed=2)
    other_seed = replace(config, train=replace(config.train, seed=config.train.seed + 1))
    assert len({loss(5, config, 1), loss(6, config, 1), loss(5, other_seed, 1)}) == 3


def test_every_part_of_a_step_draws_its_own_dropout() -> None:
    """Two parts with the same tokens: were the masks the same, one part's loss would be that of both."""
    row = BatchLoader(random_tokens(500), 8, 1, seed=0).batch(0)
    config = RunConfig(replace(MODEL, dropout=0.5), train=replace(PLAIN, batch_size=2, grad_accum_steps=2))
    alone = replace(config, train=replace(config.train, grad_accum_steps=1))

    def loss(config: RunConfig, n_rows: int) -> float:
        model = random_model(config.model).train()
        batch = Batch(*(ids_BT.repeat(n_rows, 1) for ids_BT in row))
        return train_step(model, torch.optim.SGD(model.parameters()), batch, config.train, 0, 1e-3)[0].item()

    assert loss(config, n_rows=2) != pytest.approx(loss(alone, n_rows=1), rel=1e-6)


# --- whole runs ---


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Four epochs of six steps on a text that takes moments to learn, evaluated twice an epoch."""
    text = tmp_path / "text.txt"
    text.write_text(LEARNABLE, encoding="utf-8")
    train = TrainConfig(
        epochs=4,
        iters_per_epoch=6,
        batch_size=8,
        learning_rate=0.01,
        min_learning_rate=0.001,
        warmup_steps=3,
        eval_interval=3,
        device="cpu",
        precision="fp32",
        backend="eager",
        out_dir=str(tmp_path / "out"),
    )
    return RunConfig(replace(MODEL, dropout=0.2), DataConfig((str(text),)), train)


def with_train(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


def figures(events: list[Event]) -> list[tuple[float, ...]]:
    """All that a run reports and that no clock measures."""
    steps = [astuple(event) for event in events if isinstance(event, StepDone)]
    evaluated = [astuple(replace(e, tokens_per_s=0, elapsed_s=0)) for e in events if isinstance(e, Evaluated)]
    return steps + evaluated


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("path", ["eager", "fused"])
def test_same_seed_gives_the_same_bits_and_another_seed_others(
    config: RunConfig, tmp_path: Path, architecture: Any, precision: Any, path: Any
) -> None:
    config = with_train(config, epochs=2, backend=path, precision=precision, grad_accum_steps=2)
    config = replace(config, model=replace(config.model, architecture=architecture))
    found, weights = [], []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        found.append(figures(list(run(with_train(config, seed=seed, out_dir=str(tmp_path / name))))))
        weights.append(load_model(tmp_path / name / FINAL_FILE, CPU).model.state_dict())
        torch.rand(7)  # whatever else uses the generator must not matter
    assert found[0] == found[1] != found[2]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not any(torch.equal(weight, weights[2][name]) for name, weight in weights[0].items() if weight.ndim == 2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learns_a_learnable_text(config: RunConfig, optimizer: str) -> None:
    config = with_train(config, optimizer=optimizer, epochs=3, iters_per_epoch=50, eval_interval=50, warmup_steps=10)
    *_, finished = run(config)
    assert isinstance(finished, Finished)
    assert finished.best_val_loss < 0.5 < math.log(VOCAB_SIZE)
    assert finished.best_val_bits_per_byte == pytest.approx(finished.best_val_loss / math.log(2), rel=0.01)


@pytest.mark.parametrize("token_noise", [0.0, 0.3])
def test_a_run_equals_a_loop_written_out_by_hand(config: RunConfig, token_noise: float) -> None:
    """Losses of the steps' batches within 1e-4, though 24 steps of Adam magnify every rounding."""
    train = replace(config.train, token_noise=token_noise)
    config = replace(config, model=replace(config.model, dropout=0.0), train=train)
    told = [event for event in run(config) if isinstance(event, StepDone) and event.batch_loss is not None]
    assert [event.step for event in told] == [1, *range(3, 25, 3)]

    dataset = finish(prepare(config.data, MODEL.block_size))
    torch.manual_seed(train.seed)
    model = GPT(config.model, dataset.tokenizer.vocab_size)
    batches = BatchLoader(dataset.train.ids, MODEL.block_size, train.batch_size, train.seed, token_noise=token_noise)
    groups: list[dict[str, Any]] = [{"params": [p]} for p in model.parameters()]
    for group in groups:
        group["weight_decay"] = train.weight_decay if group["params"][0].ndim == 2 else 0.0
    optimizer = torch.optim.AdamW(groups, betas=(0.9, train.beta2))
    losses = []
    for step in range(train.total_steps):
        inputs_BT, targets_BT = batches.batch(step)
        loss = torch.nn.functional.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, train)
        optimizer.step()
        losses.append(loss.item())
    assert [event.batch_loss for event in told] == pytest.approx([losses[e.step - 1] for e in told], rel=1e-4)


def test_a_run_trains_with_dropout(config: RunConfig, tmp_path: Path) -> None:
    def first_loss(dropout: float) -> float:
        events = run(with_train(replace(config, model=replace(config.model, dropout=dropout)), epochs=1))
        return next(event.batch_loss for event in events if isinstance(event, StepDone) and event.batch_loss)

    assert first_loss(0.0) != pytest.approx(first_loss(0.5), rel=1e-6)


def test_how_a_batch_is_divided_does_not_change_a_run(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, model=replace(config.model, dropout=0.0))
    losses = []
    for n_micro_batches in (1, 2, 4):
        divided = with_train(config, grad_accum_steps=n_micro_batches, out_dir=str(tmp_path / str(n_micro_batches)))
        losses.append([e.batch_loss for e in run(divided) if isinstance(e, Evaluated)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_events_come_in_order_and_files_are_whole_when_announced(config: RunConfig) -> None:
    events, best_so_far = [], math.inf
    for event in run(config):
        if isinstance(event, StageProgress | Notice):
            assert not events, "the text is prepared first"
            continue
        events.append(event)
        if isinstance(event, Saved):
            assert load_model(event.path, CPU).progress.val_loss == event.val_loss
    kinds = [type(event) for event in events]
    assert kinds[0] is Prepared and kinds[-1] is Finished
    assert kinds.count(Prepared) == kinds.count(Finished) == 1

    expected: list[Any] = []
    losses = iter([event for event in events if isinstance(event, Evaluated)])
    for step in range(1, 25):
        expected.append((StepDone, step))
        if step % 3 == 0:
            evaluated = next(losses)
            expected.append((Evaluated, step, math.ceil(step / 6)))
            if evaluated.val_loss < best_so_far:
                best_so_far = evaluated.val_loss
                expected.append((Saved, BEST_FILE, best_so_far))
        if step % 6 == 0:
            expected.append((EpochDone, step // 6, evaluated.train_loss, evaluated.val_loss))
    expected.append((Saved, FINAL_FILE, evaluated.val_loss))
    assert [summary(event) for event in events[1:-1] if not isinstance(event, Checkpointed)] == expected
    assert isinstance(events[1], Checkpointed), "before the first step it shows that the disk takes a checkpoint"
    assert [event.step for event in events if isinstance(event, Checkpointed)][-1] == 24
    rates_told = [event.learning_rate for event in events if isinstance(event, StepDone)]
    assert rates_told == rates(config.train)


def summary(event: Event) -> tuple[Any, ...]:
    match event:
        case StepDone(step=step):
            return StepDone, step
        case Evaluated(step=step, epoch=epoch):
            return Evaluated, step, epoch
        case EpochDone(epoch=epoch, train_loss=train_loss, val_loss=val_loss):
            return EpochDone, epoch, train_loss, val_loss
        case Saved(path=path, is_best=is_best, val_loss=val_loss):
            assert is_best == (path.name == BEST_FILE)
            return Saved, path.name, val_loss
    return (type(event),)


def test_the_best_file_keeps_the_lowest_validation_loss(config: RunConfig) -> None:
    Path(config.data.data[0]).write_text(MISLEADING, encoding="utf-8")
    events = [event for event in run(config) if not isinstance(event, StageProgress | Notice)]
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    lowest = min(evaluated, key=lambda event: event.val_loss)
    assert lowest.epoch < 4, "the text must mislead for this test to show anything"
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_epoch == lowest.epoch
    val = finish(prepare(config.data, config.model.block_size)).val
    for path, told in ((finished.best_path, lowest), (finished.final_path, evaluated[-1])):
        loaded = load_model(path, CPU)
        assert (loaded.progress.step, loaded.progress.val_loss) == (told.step, told.val_loss)
        n_scored = next(event for event in events if isinstance(event, Prepared)).val_tokens_scored
        windows = FixedWindows(val.ids, config.model.block_size, 8, n_scored)
        assert windows.loss(loaded.model) == pytest.approx(told.val_loss, rel=1e-6)
    best = load_model(finished.best_path, CPU).model
    assert finished.scored_tokens == len(val) - 1, "in the end the whole validation text is affordable"
    assert finished.best_val_loss == pytest.approx(mean_loss(best, np.asarray(val.ids)), rel=1e-6)


def trainer(config: RunConfig) -> Trainer:
    out_dir = Path(config.train.out_dir)
    out_dir.mkdir()
    return Trainer(random_model(config.model), finish(prepare(config.data, config.model.block_size)), config, out_dir)


def monitor(stop: StopRequest | None = None) -> HostMonitor:
    return HostMonitor(stop or StopRequest(), keep_awake=False)


def until_saved(events: Iterator[Event]) -> None:
    assert any(isinstance(event, Saved) for event in events)


def test_weights_that_became_no_numbers_are_those_of_the_last_checkpoint_again(config: RunConfig) -> None:
    training = trainer(config)
    events = training.train(monitor())
    until_saved(events)
    with torch.no_grad():
        training.model.head.weight[0, 0] = math.nan
    *rest, finished = events
    assert isinstance(finished, Finished) and finished.last_step == config.train.total_steps
    assert any("with other batches and half the learning rate" in line for line in finished.incidents)
    assert any(isinstance(event, SteppedBack) for event in rest)
    for path in (finished.best_path, finished.final_path):
        assert all(weight.isfinite().all() for weight in load_model(path, CPU).model.state_dict().values())


def test_a_step_back_halves_the_rate_takes_other_batches_and_sets_later_checkpoints_aside(config: RunConfig) -> None:
    training = trainer(config)
    training.keeper.is_due = lambda interval_s: False  # type: ignore[method-assign]
    events = training.train(monitor())
    next(event for event in events if isinstance(event, StepDone) and event.step == 8)
    training.keeper.checkpoint()
    training.learner.guard.is_calm = lambda: False  # type: ignore[method-assign]
    next(event for event in events if isinstance(event, StepDone) and event.step == 10)
    training.keeper.checkpoint()
    del training.learner.guard.is_calm
    assert training.keeper.store.steps() == [10, 8, 0]
    with torch.no_grad():
        training.model.head.weight[0, 0] = math.nan
    back = next(event for event in events if isinstance(event, SteppedBack))
    assert back.step == training.learner.state.step == 8, "step 10 was not healthy"
    assert training.keeper.store.steps() == [8, 0]
    assert [path.name for path in (training.keeper.store.folder / "set-aside").iterdir()] == ["step-00000010"]
    state = training.learner.state
    assert (state.rate_factor, state.n_rollbacks, state.rolled_back_to) == (0.5, 1, 8)
    read: list[int] = []
    batch = training.batches.batch
    training.batches.batch = lambda index: (read.append(index), batch(index))[1]  # type: ignore[method-assign]
    done = next(event for event in events if isinstance(event, StepDone))
    assert done.step == 9 and done.learning_rate == learning_rate_at(8, config.train) / 2
    assert read == [12], "the bad steps 11 and 12, where the evaluation noticed, had batches 10 and 11"


def test_trouble_that_stays_ends_the_run_and_leaves_the_best_file(config: RunConfig) -> None:
    training = trainer(config)
    events = training.train(monitor())
    until_saved(events)
    saved = load_model(training.keeper.best_path, CPU).model.state_dict()
    training.model.head.register_forward_hook(lambda *args: args[-1] * math.nan)
    with pytest.raises(DivergedError, match=f"(?s)3 times.*{BEST_FILE}.*--learning-rate"):
        list(events)
    kept = load_model(training.keeper.best_path, CPU).model.state_dict()
    assert all(torch.equal(weight, kept[name]) and weight.isfinite().all() for name, weight in saved.items())
    assert not training.keeper.final_path.exists()


def test_a_run_that_diverges_at_once_says_so_and_saves_nothing(config: RunConfig, tmp_path: Path) -> None:
    config = with_train(config, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DivergedError, match="--learning-rate"):
        list(run(config))
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("stop_after", [1, 3, 6, 8])
def test_a_run_asked_to_stop_ends_the_step_evaluates_and_saves(config: RunConfig, stop_after: int) -> None:
    training, stop = trainer(config), StopRequest()
    events: list[Event] = []
    for event in training.train(monitor(stop)):
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_after:
            stop.signal_number = 15
    last_step = max(event.step for event in events if isinstance(event, StepDone))
    assert last_step <= stop_after + 1
    after = list(itertools.dropwhile(lambda event: not isinstance(event, Stopping), events))
    assert [type(event) for event in after if not isinstance(event, EpochDone | Saved | Checkpointed)] == [
        Stopping,
        StepDone,
        Evaluated,
        Finished,
    ]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.last_step, finished.stopped_by) == (last_step, 15)
    assert load_model(finished.final_path, CPU).progress.step == last_step
    assert load_model(finished.best_path, CPU).progress.step <= last_step
