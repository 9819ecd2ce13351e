"""When a run's checkpoints are written, and which one a run in trouble returns to."""

import statistics
import time
from collections import deque
from pathlib import Path

from tiny_gpt.device import synchronize
from tiny_gpt.run.checkpoint import checkpoint_files
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore, DamagedError
from tiny_gpt.run.clock import Throttle
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.events import Checkpointed
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState


class CheckpointManager:
    """Writes checkpoints of `state` to `store` and restores them."""

    def __init__(self, state: TrainState, description: RunDescription, store: CheckpointStore, saver: Saver) -> None:
        self.state, self.description, self.store, self.saver = state, description, store, saver
        self._throttle = Throttle()
        self._saved_step: int | None = None
        """Step of the checkpoint that holds the present state."""
        self._last: Checkpoint | None = None
        """The last one written by this process."""
        self._writes_s: deque[float] = deque([0.0], maxlen=3)

    @property
    def write_s(self) -> float:
        """Seconds to write a checkpoint: the median of the last ones, since the machine may sleep during one."""
        return statistics.median(self._writes_s)

    def save_first(self) -> Checkpointed:
        """Show before the first step that the disk takes a checkpoint; raises OutOfResourcesError if it does not."""
        try:
            checkpoint = self._write()
        except (OSError, DamagedError) as failure:
            raise self.saver.as_error(failure) from failure
        self._saved_step = checkpoint.step
        return Checkpointed(checkpoint.step, checkpoint.path)

    def save_anew(self, run_folder: Path | None = None) -> None:
        """Save the present state, in `run_folder` if the run's folder has moved there, even if that was done before."""
        if run_folder is not None:
            self.store.move_to(run_folder)
        self._saved_step = None
        self.save()

    def is_newest_on_disk(self) -> bool:
        """Whether the newest checkpoint in the folder is the last one that this process wrote."""
        steps = self.store.steps()
        if self._last is None or not steps:
            return False
        try:
            return self.store.about(steps[0]) == self._last.about
        except DamagedError:
            return False

    def is_due(self, interval_s: float) -> bool:
        """Whether the last checkpoint is at least `interval_s` old, and saving has not taken too much of the time."""
        return self._throttle.allows(interval_s)

    def save(self) -> Checkpointed | None:
        """Save the present state; None if that is done already, or if it fails."""
        if self.state.step == self._saved_step:
            return None
        synchronize(self.state.model.device)  # the steps in a GPU's queue do not count as saving
        with self.state.clock.count_as("save"), self._throttle.measure():
            checkpoint = self.saver.attempt(self._write)
            if checkpoint is None:
                return None
            self._saved_step = checkpoint.step
            self.store.prune()
        return Checkpointed(checkpoint.step, checkpoint.path)

    def resume(self, checkpoint: Checkpoint, extends: bool = False) -> None:
        """Have the state continue from `checkpoint`; with `extends`, with a new budget, so later ones are deleted.

        Raises DamagedError.
        """
        self.state.resume(checkpoint, extends)
        self._saved_step = None if extends else checkpoint.step
        if extends:
            self.store.forget_after(checkpoint.step)

    def newest_healthy(self, before: int) -> Checkpoint | None:
        """The newest checkpoint before step `before` that verifies and whose last step was not skipped."""
        found, notes = self.store.newest(before, is_wanted=lambda about: bool(about.get("is_calm")))
        for note in notes:
            self.state.warn(note)
        return found

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Have the state return to `checkpoint`; later ones are set aside. Raises DamagedError."""
        for step in self.store.steps():
            if step > checkpoint.step:
                self.store.set_aside(step)
        self.state.roll_back(checkpoint)
        self._saved_step = None  # it continues with other batches and another learning rate

    def _write(self) -> Checkpoint:
        start, state = time.perf_counter(), self.state
        fields = state.to_dict() | self.description.state_fields()
        files = checkpoint_files(state.tensors(), fields, state.history)
        checkpoint = self.store.write(state.step, files, state.summary() | self.description.manifest_fields())
        self._writes_s.append(time.perf_counter() - start)
        self._last = checkpoint
        return checkpoint
