"""The trackers by name. Each is imported when it is used."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tiny_gpt.config import TrackerName
from tiny_gpt.trackers.base import TrackedRun, Tracker


@dataclass(frozen=True)
class TrackerPackage:
    """A tracker's adapter, and the package that it needs."""

    adapter: str
    """Module of this package that has `open_run`."""
    package: str
    """What has to be installed, and is imported."""
    view: str
    """The command that shows its runs; {folder} is the run's trackers/."""


TRACKERS: dict[TrackerName, TrackerPackage] = {
    "tensorboard": TrackerPackage("tiny_gpt.trackers.tensorboard", "tensorboard", "tensorboard --logdir {folder}"),
    "wandb": TrackerPackage(
        "tiny_gpt.trackers.wandb",
        "wandb",
        "wandb sync {folder}/wandb/wandb/offline-run-*, or the address in {folder}/wandb.log if you are logged in",
    ),
    "trackio": TrackerPackage("tiny_gpt.trackers.trackio", "trackio", "trackio show"),
    "mlflow": TrackerPackage("tiny_gpt.trackers.mlflow", "mlflow", "mlflow ui"),
}


def is_installed(name: TrackerName) -> bool:
    """Whether the tracker's package can be imported; does not import it."""
    return importlib.util.find_spec(TRACKERS[name].package) is not None


def open_tracker(name: TrackerName, run: TrackedRun) -> Tracker:
    """The run in the tracker called `name`: a new one, or the same again if it is resumed."""
    open_run = cast(Callable[[TrackedRun], Tracker], importlib.import_module(TRACKERS[name].adapter).open_run)
    return open_run(run)
