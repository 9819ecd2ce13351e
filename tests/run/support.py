"""What tests of whole runs share: a tiny config, and runs that are finished or interrupted."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tiny_gpt.config import FINAL_FILE, DataConfig, ModelConfig, ReliabilityConfig, RunConfig, TrainConfig
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.events import Checkpointed, Evaluated, Event, Finished, Prepared, StepDone, Warned
from tiny_gpt.run.run import run
from tiny_gpt.training.budget import RunRequest

CPU = torch.device("cpu")
NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))
TEXT = "the cat sat on a mat and said hello to every dog in town.\n" * 60
FRENCH = "là-bas, l'été, un élève préfère à tout le reste sa forêt rêvée.\n" * 60
SHAPE = ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=24, block_size=8, dropout=0.1, architecture="qwen3")
"""Of the model that runs start from; not the default shape."""


def tiny_config(text: Path, out_dir: Path) -> RunConfig:
    """Three epochs of ten steps, evaluated twice an epoch; a checkpoint as often as one may be written."""
    train = TrainConfig(
        epochs=3,
        iters_per_epoch=10,
        batch_size=8,
        eval_interval=5,
        learning_rate=0.01,
        warmup_steps=3,
        device="cpu",
        precision="fp32",
        backend="eager",
        out_dir=str(out_dir),
    )
    model = ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=8, dropout=0.1)
    reliability = ReliabilityConfig(checkpoint_minutes=1e-9, keep_awake=False)
    return RunConfig(model, DataConfig((str(text),)), train, reliability)


def with_train(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


def with_model(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, model=replace(config.model, **changes))


def with_data(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, data=replace(config.data, **changes))


def out_dir(config: RunConfig) -> Path:
    return Path(config.train.out_dir)


def of(kind: type, events: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def first(kind: type, events: Any) -> Any:
    return next(event for event in events if isinstance(event, kind))


class Outcome(NamedTuple):
    """What a run came to."""

    weights: dict[str, torch.Tensor]
    """Of the last step."""
    rows: list[tuple[float, ...]]
    """All evaluations, without what a clock measures."""
    finished: Finished
    warnings: list[str]


def finish(config: RunConfig, resume: bool = False) -> Outcome:
    """Train to the end."""
    events = list(run(config, resume))
    evaluated = first(Prepared, events).history + of(Evaluated, events)
    measured = dict(tokens_per_s=0, elapsed_s=0, memory_bytes=0, time=0, data_wait_share=0)
    rows = [dataclasses.astuple(replace(row, **measured)) for row in evaluated]
    weights = load_model(out_dir(config) / FINAL_FILE, CPU).model.state_dict()
    finished = events[-1]
    assert isinstance(finished, Finished)
    return Outcome(weights, rows, finished, warnings_in(events))


def interrupt(config: RunConfig, after: int, resume: bool = False) -> None:
    """Abandon a run right after the checkpoint of step `after`, as a kill does."""
    events: Any = run(config, resume)
    for event in events:
        if isinstance(event, Checkpointed) and event.step == after:
            break
    events.close()


def warnings_in(events: list[Event]) -> list[str]:
    return [event.text for event in of(Warned, events)]


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class SimulatedMachine:
    """Time passes only as tests let it: `now` by the clock, `train_s` in steps."""

    def __init__(self) -> None:
        self.now = self.train_s = 0.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.train_s += seconds


def nine_seconds(config: RunConfig) -> RunConfig:
    """A budget of time; evaluated on as much text as the defaults have it."""
    train = TrainConfig()
    return with_train(config, for_="9s", iters_per_epoch=train.iters_per_epoch, eval_interval=train.eval_interval)


def events_of(
    config: RunConfig,
    machine: SimulatedMachine,
    resume: bool = False,
    request: RunRequest | None = None,
    until: Callable[[Event], bool] = lambda event: False,
    step_s: float = 0.1,
    first_s: float = 0.1,
) -> list[Event]:
    """All events, to the end or to the first for which `until` is true; the run is then abandoned, as by a kill."""
    found: list[Event] = []
    events: Any = run(config, resume, request)
    for event in events:
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(first_s if event.step == 1 else step_s)
        if until(event):
            break
    events.close()
    return found


def share(event: StepDone, config: RunConfig) -> float:
    """The learning rate of a step as a fraction of the peak."""
    return event.learning_rate / config.train.learning_rate
