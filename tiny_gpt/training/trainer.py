"""The loop: `train` sequences, `train_step` holds the mathematics. Yields events, prints nothing, saves model files."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tiny_gpt.config import BEST_FILE, FINAL_FILE, RunConfig
from tiny_gpt.data.batches import Batch, Batches
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.device import peak_memory_bytes
from tiny_gpt.errors import DivergedError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_file import Progress, load_model, save_model
from tiny_gpt.training.clock import StepClock
from tiny_gpt.training.evaluate import FixedWindows, affordable_tokens, bits_per_byte
from tiny_gpt.training.events import (
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Saved,
    SpeedMeasured,
    StepDone,
    Stopping,
)
from tiny_gpt.training.optimizer import make_optimizer
from tiny_gpt.training.schedule import learning_rate
from tiny_gpt.training.stop import StopRequest

# Shares of the time that evaluations may take.
VAL_SHARE = 0.05
TRAIN_SHARE = 0.0125


def train_step(
    model: GPT, optimizer: torch.optim.Optimizer, batch: Batch, config: RunConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer update with the mean loss over `batch`: (loss, gradient norm before clipping), on the device.

    The batch is computed in `grad_accum_steps` parts whose gradients add up to that of the whole.
    """
    optimizer.zero_grad(set_to_none=True)
    n_parts = config.train.grad_accum_steps
    loss = torch.zeros((), device=model.device)
    parts = zip(batch.inputs_BT.chunk(n_parts), batch.targets_BT.chunk(n_parts), strict=True)
    for part, (inputs_BT, targets_BT) in enumerate(parts):
        seed_dropout(config.train.seed, step, part)
        part_loss = model.losses(inputs_BT.to(model.device), targets_BT.to(model.device)).mean() / n_parts
        part_loss.backward()
        loss += part_loss.detach()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config.train)
    optimizer.step()
    return loss, grad_norm


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Make one part of one step draw the same random numbers whatever came before, so that none need saving."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class Trainer:
    """One training run of `model` on `dataset`, from its first step to its model files in `out_dir`."""

    def __init__(self, model: GPT, dataset: Dataset, config: RunConfig, out_dir: Path) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.best_path, self.final_path = out_dir / BEST_FILE, out_dir / FINAL_FILE
        self.optimizer = make_optimizer(model, config.train)
        block_size, train = config.model.block_size, config.train
        self.batches = Batches(dataset.train.ids, block_size, train.batch_size, train.seed)
        self.tokens_per_step = train.batch_size * block_size
        tokens_between = self.tokens_per_step * min(train.eval_interval, train.iters_per_epoch)
        self.val_windows = self._windows(dataset.val, tokens_between, VAL_SHARE)
        self.train_windows = self._windows(dataset.train, tokens_between, TRAIN_SHARE)
        self.best: Evaluated | None = None
        self.clock = StepClock()

    def train(self, stop: StopRequest) -> Iterator[Event]:
        """Run to the last step, or to the end of the step in which `stop` is asked for.

        Raises DivergedError when the loss is no number any more, OutOfResourcesError when a file cannot be written.
        """
        train = self.config.train
        self.model.train()
        for step in range(1, train.total_steps + 1):
            loss, grad_norm = train_step(
                self.model, self.optimizer, self.batches.batch(step - 1), self.config, step - 1
            )
            stopping = stop.signal_number is not None
            if stop.signal_number is not None:
                yield Stopping(stop.signal_number)
            epoch_ends = step % train.iters_per_epoch == 0
            evaluates = epoch_ends or stopping or step % train.iters_per_epoch % train.eval_interval == 0
            yield StepDone(step, loss.item() if evaluates or step == 1 else None, learning_rate(step - 1, train))
            if (seconds_per_step := self.clock.measure_once(step, self.model.device)) is not None:
                yield self._speed(step, seconds_per_step)
            if evaluates:
                evaluated = self._evaluate(step, loss.item(), grad_norm.item())
                yield evaluated
                if self.best is None or evaluated.val_loss < self.best.val_loss:
                    self.best = evaluated
                    yield self._save(self.best_path, evaluated)
            if epoch_ends:
                yield EpochDone(evaluated.epoch, evaluated.train_loss, evaluated.val_loss)
            if stopping:
                break
        yield self._save(self.final_path, evaluated)
        yield self._finish(evaluated, stop)

    def _windows(self, tokens: Tokens, tokens_trained: int, share: float) -> FixedWindows:
        """As much of `tokens` as can be scored in `share` of the time that training on `tokens_trained` takes."""
        config = self.config
        limit = affordable_tokens(tokens_trained, share)
        return FixedWindows(tokens.ids, config.model.block_size, config.train.micro_batch_size, limit)

    def _speed(self, step: int, seconds_per_step: float) -> SpeedMeasured:
        train = self.config.train
        eval_tokens = (self.val_windows.n_tokens + self.train_windows.n_tokens) / 3
        evals_per_step = 1 / min(train.eval_interval, train.iters_per_epoch)
        overhead = 1 + evals_per_step * eval_tokens / self.tokens_per_step
        return SpeedMeasured(
            tokens_per_s=self.tokens_per_step / seconds_per_step,
            remaining_s=(train.total_steps - step) * seconds_per_step * overhead,
        )

    def _evaluate(self, step: int, batch_loss: float, grad_norm: float) -> Evaluated:
        n_steps, train_s = self.clock.lap(step)
        with self.clock.evaluating():
            train_loss, val_loss = self.train_windows.loss(self.model), self.val_windows.loss(self.model)
        if not math.isfinite(batch_loss + train_loss + val_loss):
            raise DivergedError(self._divergence(step))
        return Evaluated(
            step=step,
            epoch=math.ceil(step / self.config.train.iters_per_epoch),
            train_loss=train_loss,
            val_loss=val_loss,
            val_bits_per_byte=self._bits_per_byte(val_loss),
            batch_loss=batch_loss,
            learning_rate=learning_rate(step - 1, self.config.train),
            grad_norm=grad_norm,
            tokens_per_s=n_steps * self.tokens_per_step / train_s,
            elapsed_s=self.clock.elapsed_s,
        )

    def _divergence(self, step: int) -> str:
        kept = (
            f"the best model so far (val_loss={self.best.val_loss:.4f}) is whole in {self.best_path}; "
            if self.best
            else ""
        )
        lower = self.config.train.learning_rate / 3
        return f"the loss is no number any more at step {step:,}; {kept}try a lower rate: --learning-rate {lower:.1g}"

    def _bits_per_byte(self, val_loss: float) -> float:
        return bits_per_byte(val_loss, len(self.dataset.val), self.dataset.val.n_bytes)

    def _save(self, path: Path, at: Evaluated) -> Saved:
        progress = Progress(at.step, at.epoch, at.train_loss, at.val_loss, at.val_bits_per_byte)
        save_model(path, self.model, self.dataset.tokenizer, self.config, progress)
        return Saved(path, path == self.best_path, at.val_loss)

    def _finish(self, last: Evaluated, stop: StopRequest) -> Finished:
        """Score the best model file once more, over the whole validation text where the run was long enough."""
        best = load_model(self.best_path, self.model.device, self.model.compute_dtype)
        windows = self._windows(self.dataset.val, last.step * self.tokens_per_step, VAL_SHARE)
        with self.clock.evaluating():
            val_loss = windows.loss(best.model)
        return Finished(
            best_path=self.best_path,
            best_epoch=best.progress.epoch,
            best_val_loss=val_loss,
            best_val_bits_per_byte=self._bits_per_byte(val_loss),
            scored_tokens=windows.n_tokens,
            final_path=self.final_path,
            last_step=last.step,
            elapsed_s=self.clock.elapsed_s,
            eval_share=self.clock.eval_s / self.clock.elapsed_s,
            peak_memory_bytes=peak_memory_bytes(self.model.device),
            stopped_by=stop.signal_number,
        )
