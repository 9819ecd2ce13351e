"""`tiny_gpt.train` and `tiny_gpt.plan`: the commands of the same names, for a Python program or a notebook."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tiny_gpt.api.run import Callback, PendingTraining, Run
from tiny_gpt.api.settings import Source, config_for
from tiny_gpt.config import RunConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.planning.types import Forecast, Plan
from tiny_gpt.run.folders import find_model, folder_for
from tiny_gpt.run.planned_run import measure_run
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.plan_report import plan_report
from tiny_gpt.ui.preparation import with_progress


def train(
    source: Source,
    *,
    hours: float | None = None,
    recipe: str = "auto",
    wait: bool = True,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a model on `source`: a file, a folder, a pattern, a URL, a dataset, or several of them.

    `hours` is how long; without it and without steps=, epochs=, tokens=, for_= or until=, five minutes. What you don't
    set is chosen as `tiny-gpt train` chooses it; `settings` are its flags with underscores: n_layer=4, out_dir="story".
    Every call begins its own run, in runs/NAME unless out_dir says otherwise. All of it happens in this process,
    without a watchdog.

    Waits for the end and returns the run; Ctrl+C (in a notebook: interrupt) evaluates, saves and returns earlier. With
    `wait=False` nothing is trained until you iterate over the run or call its wait(). `callbacks` get every event
    (tiny_gpt.run.events); with `progress` there is a display in a notebook and lines in a terminal.

    Raises the children of TinyGPTError: UsageError for a setting, BadInputError for a text.
    """
    config = config_for(source, hours, recipe, settings, "train()")
    if config.train.devices != "1":
        message = (
            "train(): devices= takes several processes, and this is one; use the command: tiny-gpt train --devices"
        )
        raise UsageError(message, code="devices-in-one-process")
    if start_from := config.train.start_from:
        config = replace(config, train=replace(config.train, start_from=str(find_model(start_from))))
    config = replace(config, train=replace(config.train, out_dir=str(folder_for(config, is_new=True))))
    run = Run.of(PendingTraining(config, False, RunRequest(), list(callbacks), progress))
    return run.wait() if wait else run


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will be and what is expected of it. `print(plan)` shows it as `tiny-gpt plan` does."""

    config: RunConfig
    """With a value for every setting that was left open."""
    plan: Plan
    """Steps, seconds, tokens, memory and the forecast."""
    report: str

    @property
    def forecast(self) -> Forecast:
        """Expected bits per byte of the validation text, and the interval that 8 of 10 runs end in."""
        return self.plan.forecast

    def __str__(self) -> str:
        return self.report


def plan(source: Source, *, hours: float | None = None, recipe: str = "auto", **settings: Any) -> TrainingPlan:
    """What `train` with the same arguments would do, without training: reads the text and measures this machine.

    Raises what `train` raises.
    """
    config = config_for(source, hours, recipe, settings, "plan()")
    if start_from := config.train.start_from:
        config = replace(config, train=replace(config.train, start_from=str(find_model(start_from))))
    planned = with_progress(measure_run(config))
    chosen, expected = planned.planner.plan(planned.config)
    return TrainingPlan(chosen, expected, "\n".join(plan_report(planned)))
