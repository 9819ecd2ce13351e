"""Keeps a run on a disk that may be full, broken, read-only or gone: checkpoints and the two model files.

A night's work is worth more than any single file. A save that fails is tried once more, then with more room, then it
is told and left for the next occasion, and the training goes on.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from tiny_gpt.config import BEST_FILE, FINAL_FILE
from tiny_gpt.device import synchronize
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.files import write_error
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.run.checkpoint import load_tensors
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore, DamagedError
from tiny_gpt.run.clock import Pace
from tiny_gpt.run.events import Checkpointed, Evaluated, Saved
from tiny_gpt.run.state import Learner
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.optimizer import make_optimizer

Result = TypeVar("Result")


class Keeper:
    """Saves `learner` in `out_dir`. `tell` is given a line about whatever a person should know."""

    def __init__(self, learner: Learner, tokenizer: Tokenizer, out_dir: Path, tell: Callable[[str], None]) -> None:
        self.learner, self.tokenizer, self.tell = learner, tokenizer, tell
        self.store = CheckpointStore(out_dir)
        self.best_path, self.final_path = out_dir / BEST_FILE, out_dir / FINAL_FILE
        self._pace = Pace()
        self._trouble = ""
        """Why the last save failed; empty if it did not."""
        self._unsaved_best: tuple[Evaluated, GPT] | None = None
        """What a disk in trouble has not taken yet, or what saving would have taken too much of the time for."""
        self._best_pace = Pace()
        self._safe_step: int | None = None
        """Step of the checkpoint that holds the learner as it is now."""
        self._writes_s: deque[float] = deque([0.0], maxlen=3)

    # --- checkpoints ---

    def first_checkpoint(self) -> Checkpointed:
        """Fails before the night where the disk does not take what the night must save: OutOfResourcesError."""
        try:
            checkpoint = self._write()
        except (OSError, DamagedError) as failure:
            raise self._in_words(failure) from failure
        self._safe_step = checkpoint.step
        return Checkpointed(checkpoint.step, checkpoint.path)

    def is_due(self, interval_s: float) -> bool:
        """Whether the last checkpoint is that old, and saving has not taken too large a share of the time."""
        return self._pace.allows(interval_s)

    def checkpoint(self) -> Checkpointed | None:
        """Save the learner as it is, unless that is done already; None also where it cannot be done now."""
        if self.learner.state.step == self._safe_step:
            return None
        synchronize(self.learner.model.device)  # what is in a GPU's queue is no saving
        with self.learner.clock.apart("save"), self._pace.spending():
            checkpoint = self._attempt(self._write)
            if checkpoint is None:
                return None
            self._safe_step = checkpoint.step
            self.store.prune()
        return Checkpointed(checkpoint.step, checkpoint.path)

    def resume(self, checkpoint: Checkpoint, has_more: bool = False) -> None:
        """Have the learner go on from `checkpoint` as if nothing had happened, or with the time that it is given now.

        Raises DamagedError.
        """
        self.learner.resume(checkpoint, has_more)
        self._safe_step = None if has_more else checkpoint.step
        if has_more:
            self.store.forget_after(checkpoint.step)
        with contextlib.suppress(OSError):
            self.final_path.unlink()  # of when the run was stopped: only the last step's says that it is finished
        self._mend_best_model()

    def healthy_before(self, step: int) -> Checkpoint | None:
        """The newest checkpoint before `step` that verifies and was made while all was well."""
        while True:
            found, notes = self.store.newest(before=step)
            for note in notes:
                self.tell(note)
            if found is None or found.about.get("is_calm"):
                return found
            step = found.step

    def step_back(self, checkpoint: Checkpoint) -> None:
        """Have the learner become what `checkpoint` holds, and set aside those that came later."""
        for step in self.store.steps():
            if step > checkpoint.step:
                self.store.set_aside(step)
        self.learner.step_back(checkpoint)
        self._safe_step = None  # whoever steps back goes on differently

    def _write(self) -> Checkpoint:
        start = time.perf_counter()
        checkpoint = self.store.write(self.learner.state.step, self.learner.files(), self.learner.summary())
        self._writes_s.append(time.perf_counter() - start)
        return checkpoint

    @property
    def write_s(self) -> float:
        """Seconds that a checkpoint takes; a single one in which the machine slept does not count."""
        return statistics.median(self._writes_s)

    # --- model files ---

    def save_best(self, evaluated: Evaluated) -> Saved | None:
        """Save the model as the best; where that cannot be done now, or a clock ends the run and it would take too much
        of the time, keep a copy of it for later."""
        saved = None if self._saves_time() else self._save_best(evaluated, self.learner.model)
        self._unsaved_best = None if saved else (evaluated, _copy(self.learner.model))
        return saved

    def catch_up(self, at_last: bool = False) -> Saved | None:
        """Save the best model if it is not on the disk yet, or not any more; None where there is nothing to do, or not
        yet, if not `at_last`."""
        if self._unsaved_best is not None:
            if self._saves_time() and not at_last:
                return None
            saved = self._save_best(*self._unsaved_best)
            self._unsaved_best = None if saved else self._unsaved_best
            return saved
        if self.learner.best is not None and not self.best_path.exists():
            self.tell(f"{self.best_path} is gone; {self._best_from_checkpoints()}")
        return None

    def _save_best(self, evaluated: Evaluated, model: GPT) -> Saved | None:
        with self.learner.clock.apart("save"), self._best_pace.spending():
            saved = self._attempt(lambda: self._save(self.best_path, evaluated, model))
        if saved:
            self.learner.best = evaluated
        return saved

    def _saves_time(self) -> bool:
        """Whether a best model is not to be written now for the time that it would take."""
        return self.learner.config.train.is_timed and not self._best_pace.allows()

    def is_better(self, evaluated: Evaluated) -> bool:
        """Whether this evaluation is better than that of the best model, saved or not."""
        best = self._unsaved_best[0] if self._unsaved_best else self.learner.best
        return best is None or evaluated.val_loss < best.val_loss

    def save_final(self) -> Saved:
        """The model of the last step; raises OutOfResourcesError where not even this can be saved."""
        last = self.learner.history[-1]
        with self.learner.clock.apart("save"):
            saved = self._attempt(lambda: self._save(self.final_path, last, self.learner.model))
        if saved is None:
            newest = next(iter(self.store.steps()), None)
            kept = f"The newest whole checkpoint is that of step {newest:,}" if newest is not None else "None is left"
            raise OutOfResourcesError(f"{self._trouble}.\n{kept}: when that is mended, tiny-gpt resume goes on from it")
        return saved

    def _save(self, path: Path, at: Evaluated, model: GPT) -> Saved:
        progress = Progress(at.step, at.epoch, at.train_loss, at.val_loss, at.val_bits_per_byte)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, model, self.tokenizer, self.learner.config, progress)
        return Saved(path, path == self.best_path, at.val_loss)

    def _mend_best_model(self) -> None:
        """Hold what is known of the best model against its file, and make the file anew if need be."""
        known = self.learner.best
        try:
            found = load_model(self.best_path, torch.device("cpu")).progress
        except BadInputError as failure:
            if known is not None:
                self.tell(f"{failure}; {self._best_from_checkpoints()}")
            return
        # A run that was killed may have saved a better model since its last checkpoint.
        if known is None or found.val_loss < known.val_loss:
            others: dict[str, Any] = {field.name: math.nan for field in dataclasses.fields(Evaluated)}
            self.learner.best = Evaluated(**others | dataclasses.asdict(found))

    def _best_from_checkpoints(self) -> str:
        """Write the best model file again from the checkpoint with the lowest loss; says what came of it."""
        by_step = {evaluated.step: evaluated for evaluated in self.learner.history}
        self.learner.best = None
        for step in sorted((s for s in self.store.steps() if s in by_step), key=lambda s: by_step[s].val_loss):
            twin = GPT(self.learner.model.config, self.learner.model.vocab_size)
            try:
                load_tensors(self.store.verified(step), twin, make_optimizer(twin, self.learner.config.train))
            except DamagedError:
                continue
            if self._attempt(functools.partial(self._save, self.best_path, by_step[step], twin)):
                self.learner.best = by_step[step]
                return f"made it anew from the checkpoint of step {step:,}"
        return "the next evaluation makes it anew"

    # --- the disk ---

    def _attempt(self, save: Callable[[], Result]) -> Result | None:
        """What `save` returns, or None if it cannot be done now.

        While the disk is full the oldest checkpoints make room, all but the newest. Anything else is tried once more:
        an fsync that failed says nothing about another file.
        """
        is_second_try = False
        while True:
            try:
                result = save()
            except (OSError, OutOfResourcesError, DamagedError) as failure:
                if is_full(failure):
                    if self.store.make_room():
                        continue
                elif not is_second_try:
                    is_second_try = True
                    continue
                self._fail(failure)
                return None
            if self._trouble:
                self.tell("saving works again")
                self._trouble = ""
            return result

    def _fail(self, failure: Exception) -> None:
        had_trouble, self._trouble = self._trouble, str(self._in_words(failure))
        if not had_trouble:
            self.tell(f"{self._trouble}; training goes on, and saving is tried again and again")

    def _in_words(self, failure: Exception) -> OutOfResourcesError:
        if isinstance(failure, OutOfResourcesError):
            return failure
        if isinstance(failure, OSError):
            return write_error(self.store.folder, failure)
        return OutOfResourcesError(f"{self.store.folder} does not hold what was just written ({failure})")


def _copy(model: GPT) -> GPT:
    """The same weights, on the CPU, for saving them."""
    with torch.device("meta"):  # takes neither memory nor random numbers
        copy = GPT(model.config, model.vocab_size)
    weights = {name: weight.detach().to("cpu", copy=True) for name, weight in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy


def is_full(failure: BaseException) -> bool:
    """Whether a save failed for want of room."""
    cause = failure if isinstance(failure, OSError) else failure.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
