"""Run folders: which one a new run gets, which run is unfinished, which model is the newest. Does not import torch."""

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE, LOG_FILE, METRICS_FILE, STATUS_FILE, RunConfig
from tiny_gpt.config.run import CHECKPOINTS_FOLDER
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted, user_path
from tiny_gpt.hub import HUB_PREFIX, fetch_model
from tiny_gpt.run.checkpoint_store import (
    MAX_STATE_BYTES,
    STATE_FILE,
    CheckpointStore,
    DamagedError,
    read_bounded,
)
from tiny_gpt.run.output_folder import is_in_use

RUNS_FOLDER = "runs"
# Each of them shows that a folder is that of a run.
FILES_OF_A_RUN = (CONFIG_FILE, METRICS_FILE, LOG_FILE, STATUS_FILE, BEST_FILE, FINAL_FILE, CHECKPOINTS_FOLDER)


@dataclass(frozen=True)
class Unfinished:
    """A run that has steps left, according to its newest readable checkpoint."""

    folder: Path
    step: int
    total_steps: int
    iters_per_epoch: int
    progress: float | None = None
    """0 to 1, for a timed run."""

    def __str__(self) -> str:
        if self.progress is not None:
            return f"{self.folder} holds an unfinished run: {self.progress:.0%} of its time, step {self.step:,}"
        epoch = self.step // self.iters_per_epoch + 1
        n_epochs = math.ceil(self.total_steps / self.iters_per_epoch)
        return (
            f"{self.folder} holds an unfinished run: epoch {min(epoch, n_epochs)} of {n_epochs}, "
            f"step {self.step:,} of {self.total_steps:,}"
        )


def unfinished(folder: Path, total_steps: int = 0) -> Unfinished | None:
    """The run in `folder` if it has steps left, up to its own total or to `total_steps` if that is more."""
    store = CheckpointStore(folder)
    for step in store.steps():
        try:
            about = store.about(step)
            total_steps = max(total_steps, int(about["total_steps"]))
            progress = float(about["progress"]) if about.get("is_timed") else None
            found = Unfinished(folder, step, total_steps, max(1, int(about["iters_per_epoch"])), progress)
        except (DamagedError, BadInputError, KeyError, TypeError, ValueError):
            continue
        is_finished = found.step >= found.total_steps and (folder / FINAL_FILE).exists()
        return None if is_finished else found
    return None


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint by its name; -1 without one."""
    return next(iter(CheckpointStore(folder).steps()), -1)


def folder_for(config: RunConfig, is_new: bool = False, is_resumed: bool = False) -> Path:
    """The folder for a run of `config`: its out_dir, else runs/NAME, named after the text.

    A number is appended while a finished run has that name, or with `is_new` while any run has it. With `is_resumed`:
    where all are finished, the last of them.
    """
    if config.train.out_dir:
        return user_path(config.train.out_dir)
    base = Path(RUNS_FOLDER) / name_for(config.data.data)
    number, folder, last = 1, base, base
    while _is_taken(folder) and (is_new or not unfinished(folder)):
        number, last = number + 1, folder
        folder = base.with_name(f"{base.name}-{number}")
    return last if is_resumed and not _is_taken(folder) else folder


def name_for(sources: tuple[str, ...]) -> str:
    """A run's name from its text: ("books/my book.txt", "b.txt") -> "my-book-and-1-more", ("a|b",) -> "a-or-b"."""
    more = f"-and-{len(sources) - 1}-more" if len(sources) > 1 else ""
    return ("-or-".join(filter(None, map(_stem, sources[0].split("|")))) or "run")[:60] + more


def _stem(source: str) -> str:
    stem = re.split(r"[/\\:]", source.rstrip("/\\"))[-1].split("?")[0]
    while "." in stem.strip("."):
        stem = stem.rpartition(".")[0]
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.")


def find_run(name: str) -> Path:
    """The folder of the run `name`, a path or a name below runs/; "" is the most recent unfinished run.

    Raises BadInputError.
    """
    if name:
        return existing_run(name)
    found = [folder for folder in run_folders() if unfinished(folder)]
    candidates = [folder for folder in found if not is_in_use(folder)]
    if not candidates:
        remedy = f"; {', '.join(map(str, found))} is being trained right now" if found else ""
        if not found and (model := newest_model()) and newest_step(model.parent) >= 0:
            remedy = f"; to train a finished one further: tiny-gpt resume {_typed(model.parent)} --for 1h"
        raise BadInputError(
            f"no unfinished run here (looked in {Path.cwd()} and its folder {RUNS_FOLDER}){remedy}",
            code="no-unfinished-run",
        )
    return max(candidates, key=lambda folder: CheckpointStore(folder).folder.stat().st_mtime)


def existing_run(name: str) -> Path:
    """The folder `name`: a path, or a name below runs/. Raises BadInputError if neither exists."""
    for folder in (user_path(name), Path(RUNS_FOLDER) / name):
        if folder.is_dir():
            return folder
    raise BadInputError(
        f"no run {name}: neither that folder nor {Path(RUNS_FOLDER) / name} exists{_meant(name)}", code="run-not-found"
    )


def find_run_to_show(name: str) -> Path:
    """The folder of the run `name`, a path or a name below runs/; "" is the newest run.

    Raises BadInputError, also for a folder that holds nothing of a run.
    """
    if name:
        folder = existing_run(name)
        if not any((folder / file).exists() for file in FILES_OF_A_RUN):
            raise BadInputError(
                f"{folder} holds no run; name the folder of one{_all_known()}", code="folder-without-run"
            )
        return folder
    written = {
        folder: (folder / file).stat().st_mtime
        for folder in run_folders()
        for file in (CONFIG_FILE, METRICS_FILE)
        if (folder / file).is_file()
    }
    if not written:
        raise BadInputError(
            f"no run here (looked in {Path.cwd()} and its folder {RUNS_FOLDER}): train one first, or name its folder",
            code="no-run-to-show",
        )
    return max(written, key=lambda folder: written[folder])


def find_model(name: str) -> Path:
    """The model `name`: a path, a run's name below runs/, or hf:OWNER/NAME; "" is the newest run's best model.

    Raises BadInputError if it does not exist. Whether it is a model is checked when it is opened.
    """
    if name.startswith(HUB_PREFIX) and not user_path(name).exists():
        return fetch_model(name.removeprefix(HUB_PREFIX))
    if not name and (newest := newest_model()):
        return newest
    path, run = user_path(name), Path(RUNS_FOLDER) / name
    if name and (path.exists() or run.is_dir()):
        return path if path.exists() else run / BEST_FILE
    what = f"no model {name}" if name else f"no model here (looked in {Path.cwd()} and its folder {RUNS_FOLDER})"
    names = ", ".join(model.parent.name for model in _best_models() if model.parent.name)[:200]
    if names:
        raise BadInputError(f"{what}: give a model file, or one of the runs {names}", code="model-not-found")
    raise BadInputError(f"{what}: train one first (tiny-gpt train, or python3 train.py)", code="no-model-yet")


def newest_model() -> Path | None:
    """The best model of the most recent run; None where there is no run here."""
    return max(_best_models(), key=lambda path: path.stat().st_mtime, default=None)


def _best_models() -> list[Path]:
    return [folder / BEST_FILE for folder in run_folders() if (folder / BEST_FILE).is_file()]


def config_of(folder: Path) -> RunConfig:
    """The settings that the user gave for the run in `folder`, from its newest checkpoint that verifies.

    Raises BadInputError where none does, or where this version does not know its settings.
    """
    store = CheckpointStore(folder)
    for step in store.steps():
        try:
            state = json.loads(read_bounded(store.verified(step).path / STATE_FILE, MAX_STATE_BYTES))
            return RunConfig().with_flat(state["asked"], str(folder))
        except (DamagedError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    raise BadInputError(
        f"{folder} holds no intact checkpoint to resume from; start the run again with the command that started it",
        code="no-intact-checkpoint",
    )


def run_folders() -> list[Path]:
    """The working folder, where train.py trains, and every folder in runs/; not all of them hold a run."""
    here = Path()
    below = sorted(path for path in Path(RUNS_FOLDER).glob("*") if path.is_dir())
    return [here, *below]


def _is_taken(folder: Path) -> bool:
    return CheckpointStore(folder).folder.exists() or (folder / BEST_FILE).exists() or (folder / FINAL_FILE).exists()


def _typed(folder: Path) -> str:
    """`folder` as it has to be typed to name its run."""
    return quoted(folder.name if folder.parent == Path(RUNS_FOLDER) else str(folder))


def _all_known() -> str:
    names = [str(folder) for folder in run_folders() if (folder / CONFIG_FILE).is_file()]
    return f", such as {', '.join(names[-5:])}" if names else ""


def _meant(name: str) -> str:
    """The run that the user may have meant by `name`, or the runs to choose from."""
    folders = [folder for folder in run_folders() if any((folder / file).exists() for file in FILES_OF_A_RUN)]
    if similar := difflib.get_close_matches(Path(name).name, [folder.name for folder in folders], 1, 0.7):
        return f"; did you mean {quoted(similar[0])}?"
    if names := [str(folder) for folder in folders if unfinished(folder) and not is_in_use(folder)]:
        return f"; unfinished: {', '.join(names[:5])}"
    if names := [str(folder) for folder in folders]:
        return f"; runs here: {', '.join(names[-5:])}"
    return f"; there are no runs here (looked in {Path.cwd()} and its folder {RUNS_FOLDER})"
