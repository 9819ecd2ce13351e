"""The training loop against a loop written out by hand, and what it does when training goes wrong."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.run.support import CPU, with_train
from tests.support import MODEL, VOCAB_SIZE, mean_loss, random_model
from tiny_gpt.config import BEST_FILE, FINAL_FILE, DataConfig, RunConfig, TrainConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Notice, StageProgress, finish
from tiny_gpt.errors import DivergedError
from tiny_gpt.evaluation import FixedWindows
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.events import (
    Checkpointed,
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Prepared,
    RolledBack,
    Saved,
    StepDone,
    Stopping,
)
from tiny_gpt.run.run import run
from tiny_gpt.run.state import TrainState
from tiny_gpt.run.trainer import Trainer
from tiny_gpt.training.optimizer import OPTIMIZERS
from tiny_gpt.training.schedule import learning_rate_at

LEARNABLE = "abcdefghijklmnopqrstuvwxyz\n" * 55
# Validation, the last tenth, shares no character with what is learned: its loss only rises.
MISLEADING = "abcd" * 450 + "WXYZ" * 50


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


def figures(events: list[Event]) -> list[tuple[float, ...]]:
    """All that a run reports and that no clock measures."""
    steps = [astuple(event) for event in events if isinstance(event, StepDone)]
    unclocked = dict(tokens_per_s=0, elapsed_s=0, memory_bytes=0, time=0, data_wait_share=0)
    evaluated = [astuple(replace(event, **unclocked)) for event in events if isinstance(event, Evaluated)]
    return steps + evaluated


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize(
    ("path", "precision"),
    [("eager", "fp32"), ("eager", "bf16"), ("fused", "fp32"), pytest.param("fused", "bf16", marks=pytest.mark.slow)],
)
def test_the_same_seed_gives_the_same_bits(
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
def test_a_run_equals_a_hand_written_loop(config: RunConfig, token_noise: float) -> None:
    """Losses of the steps' batches within 1e-4, though 24 steps of Adam magnify every rounding."""
    train = replace(config.train, token_noise=token_noise)
    config = replace(config, model=replace(config.model, dropout=0.0), train=train)
    with_loss = [event for event in run(config) if isinstance(event, StepDone) and event.batch_loss is not None]
    assert [event.step for event in with_loss] == [1, *range(3, 25, 3)]

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
        inputs_BT, targets_BT, _ = batches.batch(step)
        loss = torch.nn.functional.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, train)
        optimizer.step()
        losses.append(loss.item())
    assert [event.batch_loss for event in with_loss] == pytest.approx([losses[e.step - 1] for e in with_loss], rel=1e-4)


def test_a_run_trains_with_dropout(config: RunConfig, tmp_path: Path) -> None:
    def first_loss(dropout: float) -> float:
        events = run(with_train(replace(config, model=replace(config.model, dropout=dropout)), epochs=1))
        return next(event.batch_loss for event in events if isinstance(event, StepDone) and event.batch_loss)

    assert first_loss(0.0) != pytest.approx(first_loss(0.5), rel=1e-6)


def test_micro_batches_do_not_change_a_run(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, model=replace(config.model, dropout=0.0))
    losses = []
    for n_micro_batches in (1, 2, 4):
        divided = with_train(config, grad_accum_steps=n_micro_batches, out_dir=str(tmp_path / str(n_micro_batches)))
        losses.append([e.batch_loss for e in run(divided) if isinstance(e, Evaluated)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_events_are_in_order_and_saved_files_complete(config: RunConfig) -> None:
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
    assert rates_told == [learning_rate_at(step, config.train) for step in range(config.train.total_steps)]


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
    for path, expected in ((finished.best_path, lowest), (finished.final_path, evaluated[-1])):
        loaded = load_model(path, CPU)
        assert (loaded.progress.step, loaded.progress.val_loss) == (expected.step, expected.val_loss)
        n_scored = next(event for event in events if isinstance(event, Prepared)).val_tokens_scored
        windows = FixedWindows(val.ids, config.model.block_size, 8, n_scored)
        assert windows.loss(loaded.model) == pytest.approx(expected.val_loss, rel=1e-6)
    best = load_model(finished.best_path, CPU).model
    assert finished.scored_tokens == len(val) - 1, "in the end the whole validation text is affordable"
    assert finished.best_val_loss == pytest.approx(mean_loss(best, np.asarray(val.ids)), rel=1e-6)


def trainer(config: RunConfig) -> Trainer:
    out_dir = Path(config.train.out_dir)
    out_dir.mkdir()
    dataset = finish(prepare(config.data, config.model.block_size))
    state = TrainState(random_model(config.model), config.train)
    return Trainer(state, dataset, config, RunDescription(config, config, {}, {}), out_dir)


def monitor(stop: StopRequest | None = None) -> HostMonitor:
    return HostMonitor(stop or StopRequest(), keep_awake=False)


def until_saved(events: Iterator[Event]) -> None:
    assert any(isinstance(event, Saved) for event in events)


def test_nan_weights_are_rolled_back(config: RunConfig) -> None:
    training = trainer(config)
    events = training.train(monitor())
    until_saved(events)
    with torch.no_grad():
        training.state.model.head.weight[0, 0] = math.nan
    *rest, finished = events
    assert isinstance(finished, Finished) and finished.last_step == config.train.total_steps
    assert any("with other batches and half the learning rate" in line for line in finished.incidents)
    assert any(isinstance(event, RolledBack) for event in rest)
    for path in (finished.best_path, finished.final_path):
        assert all(weight.isfinite().all() for weight in load_model(path, CPU).model.state_dict().values())


def test_a_rollback_halves_the_rate_and_skips_batches(config: RunConfig) -> None:
    training = trainer(config)
    training.checkpoints.is_due = lambda interval_s: False  # type: ignore[method-assign]
    events = training.train(monitor())
    next(event for event in events if isinstance(event, StepDone) and event.step == 8)
    training.checkpoints.save()
    training.state.guard.is_healthy = lambda: False  # type: ignore[method-assign]
    next(event for event in events if isinstance(event, StepDone) and event.step == 10)
    training.checkpoints.save()
    del training.state.guard.is_healthy
    assert training.checkpoints.store.steps() == [10, 8, 0]
    with torch.no_grad():
        training.state.model.head.weight[0, 0] = math.nan
    back = next(event for event in events if isinstance(event, RolledBack))
    assert back.step == training.state.counters.step == 8, "step 10 was not healthy"
    assert training.checkpoints.store.steps() == [8, 0]
    assert [path.name for path in (training.checkpoints.store.folder / "set-aside").iterdir()] == ["step-00000010"]
    state = training.state.counters
    assert (state.rate_factor, state.n_rollbacks, state.rolled_back_to) == (0.5, 1, 8)
    read: list[int] = []
    batch = training.stages.batches.batch
    training.stages.batches.batch = lambda index: (read.append(index), batch(index))[1]  # type: ignore[method-assign]
    done = next(event for event in events if isinstance(event, StepDone))
    assert done.step == 9 and done.learning_rate == learning_rate_at(8, config.train) / 2
    assert read == [12], "the bad steps 11 and 12, where the evaluation noticed, had batches 10 and 11"


def test_lasting_divergence_keeps_the_best_model(config: RunConfig) -> None:
    training = trainer(config)
    events = training.train(monitor())
    until_saved(events)
    saved = load_model(training.model_files.best_path, CPU).model.state_dict()
    training.state.model.head.register_forward_hook(lambda *args: args[-1] * math.nan)
    with pytest.raises(DivergedError, match=f"(?s)3 times.*{BEST_FILE}.*--learning-rate"):
        list(events)
    kept = load_model(training.model_files.best_path, CPU).model.state_dict()
    assert all(torch.equal(weight, kept[name]) and weight.isfinite().all() for name, weight in saved.items())
    assert not training.model_files.final_path.exists()


def test_immediate_divergence_saves_nothing(config: RunConfig, tmp_path: Path) -> None:
    config = with_train(config, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DivergedError, match="--learning-rate") as error:
        list(run(config))
    assert error.value.code == "training-diverged"
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("stop_after", [1, 3, 6, 8])
def test_a_stop_finishes_the_step_and_saves(config: RunConfig, stop_after: int) -> None:
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


def test_a_device_limit_on_sequences_changes_no_loss(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, model=replace(config.model, dropout=0.0))
    expected = [e for e in run(with_train(config, out_dir=str(tmp_path / "reference"))) if isinstance(e, Evaluated)]
    losses, shapes = GPT.losses, set()

    def seen(model: GPT, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(ids_BT.shape))
        return losses(model, ids_BT, targets_BT)

    monkeypatch.setattr("tiny_gpt.training.micro_batches.max_sequences_at_once", lambda block_size, device: 3)
    monkeypatch.setattr(GPT, "losses", seen)
    found = [e for e in run(config) if isinstance(e, Evaluated)]
    assert shapes == {(2, MODEL.block_size)}, "equal parts, in training and in evaluation"
    for one, other in zip(found, expected, strict=True):
        figures = [(e.train_loss, e.val_loss, e.batch_loss, e.grad_norm) for e in (one, other)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-4)
