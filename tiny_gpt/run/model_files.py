"""The two model files that a run leaves: the best model, and that of the last step."""

import contextlib
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.config import BEST_FILE, FINAL_FILE, RunConfig
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import is_adapted, with_own_adapters
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.run.adapters import merged
from tiny_gpt.run.checkpoint import load_tensors
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.clock import Throttle
from tiny_gpt.run.events import Evaluated, Saved
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.state import TrainState
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.sharing import empty_model


class ModelFiles:
    """Saves the model of `state` in `out_dir`. Needs the checkpoints in `store` only to replace a lost best model."""

    def __init__(
        self,
        state: TrainState,
        config: RunConfig,
        tokenizer: Tokenizer,
        out_dir: Path,
        store: CheckpointStore,
        saver: Saver,
    ) -> None:
        self.state, self.config, self.tokenizer, self.store, self.saver = state, config, tokenizer, store, saver
        self.best_path, self.final_path = out_dir / BEST_FILE, out_dir / FINAL_FILE
        self._throttle = Throttle()
        self._pending: tuple[Evaluated, GPT] | None = None
        """A best model that could not be saved, or whose saving would have taken too much of the time."""

    def is_better(self, evaluated: Evaluated) -> bool:
        """Whether this evaluation is better than that of the best model, saved or pending."""
        best = self._pending[0] if self._pending else self.state.best
        return best is None or evaluated.val_loss < best.val_loss

    def save_best(self, evaluated: Evaluated, merged: GPT | None = None) -> Saved | None:
        """Save the present model, or one that was `merged` from several, as the best; None if that fails or, in a timed
        run, would take too much of the time.

        A copy in memory is then kept for `save_pending`.
        """
        self._pending = None  # no longer the best; frees its memory
        model = merged or self.state.whole_model()
        saved = None if self._must_wait() else self._save_best(evaluated, model)
        if not saved:
            self._pending = evaluated, _copy_to_cpu(model) if model is self.state.model else model
        return saved

    def record(self, evaluated: Evaluated) -> Saved | None:
        """Save the model that was `evaluated` if it is the best so far; else one that waits to be saved."""
        return self.save_best(evaluated) if self.is_better(evaluated) else self.save_pending()

    def save_pending(self, force: bool = False) -> Saved | None:
        """Save the best model if its file is missing; None if it is not, if that fails, or must wait unless `force`."""
        if self._pending is not None:
            if self._must_wait() and not force:
                return None
            saved = self._save_best(*self._pending)
            self._pending = None if saved else self._pending
            return saved
        if self.state.best is not None and not self.best_path.exists():
            self.state.warn(f"{self.best_path} is missing; {self._rebuild_best()}")
        return None

    def save_final(self) -> Saved:
        """Save the model of the last step; raises OutOfResourcesError if that fails."""
        last = self.state.history[-1]
        with self.state.clock.count_as("save"):
            saved = self.saver.attempt(lambda: self._save(self.final_path, last, self.state.whole_model()))
        if saved is None:
            newest = next(iter(self.store.steps()), None)
            kept = "No checkpoint is left" if newest is None else f"The newest checkpoint is that of step {newest:,}"
            raise OutOfResourcesError(
                f"{self.saver.problem}.\n{kept}; once this is fixed, tiny-gpt resume continues from it",
                code="final-model-not-saved",
            )
        return saved

    def resume(self) -> GPT | None:
        """The state continues from a checkpoint: remove a final model, which says that a run is finished, and check the
        best model's file against the state. Returns that model, if there is one.

        A run that was killed may have saved a better model after its last checkpoint; a damaged file is replaced.
        """
        with contextlib.suppress(OSError):
            self.final_path.unlink()
        known = self.state.best
        try:
            best = load_model(self.best_path, torch.device("cpu"))
        except BadInputError as failure:
            if known is not None:
                self.state.warn(f"{failure}; {self._rebuild_best()}")
            return None
        if known is None or best.progress.val_loss < known.val_loss:
            unknown: dict[str, Any] = {field.name: math.nan for field in dataclasses.fields(Evaluated)}
            self.state.best = Evaluated(**unknown | dataclasses.asdict(best.progress))
        return best.model

    def _save_best(self, evaluated: Evaluated, model: GPT) -> Saved | None:
        with self.state.clock.count_as("save"), self._throttle.measure():
            saved = self.saver.attempt(lambda: self._save(self.best_path, evaluated, model))
        if saved:
            self.state.best = evaluated
        return saved

    def _must_wait(self) -> bool:
        """Whether a timed run should not spend time on a best model now."""
        return self.config.train.is_timed and not self._throttle.allows()

    def _save(self, path: Path, evaluated: Evaluated, model: GPT) -> Saved:
        progress = Progress(
            evaluated.step, evaluated.epoch, evaluated.train_loss, evaluated.val_loss, evaluated.val_bits_per_byte
        )
        save_model(path, model, self.tokenizer, self.config, progress)
        return Saved(path, path == self.best_path, evaluated.val_loss)

    def _rebuild_best(self) -> str:
        """Write the best model's file from the checkpoint with the lowest loss; says what came of it."""
        by_step = {evaluated.step: evaluated for evaluated in self.state.history}
        self.state.best = None
        evaluated_steps = [step for step in self.store.steps() if step in by_step]
        for step in sorted(evaluated_steps, key=lambda step: by_step[step].val_loss):
            present = self.state.model
            is_lora = is_adapted(present)
            model = with_own_adapters(present) if is_lora else GPT(present.config, present.vocab_size)
            try:
                load_tensors(self.store.verified(step), model, make_optimizer(model, self.config.train))
            except DamagedError:
                continue
            model = merged(model) if is_lora else model
            if self.saver.attempt(functools.partial(self._save, self.best_path, by_step[step], model)):
                self.state.best = by_step[step]
                return f"rebuilt from the checkpoint of step {step:,}"
        return "the next evaluation writes it again"


def _copy_to_cpu(model: GPT) -> GPT:
    """A copy of the weights for saving them later."""
    copy = empty_model(model)
    weights = {name: weight.detach().to("cpu", copy=True) for name, weight in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy
