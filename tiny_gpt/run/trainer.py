"""The loop: steps, evaluations, checkpoints, and what to do when one goes wrong. Yields events, prints nothing.

`train` sequences. step.py holds the mathematics, guard.py judges a step, keeper.py saves, monitor.py knows the machine.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import BatchLoader
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.device import is_out_of_memory, peak_memory_bytes, release_memory
from tiny_gpt.errors import DivergedError, RestartRequestedError
from tiny_gpt.evaluation import bits_per_byte
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.checkpoint_manager import Keeper
from tiny_gpt.run.checkpoint_store import Checkpoint
from tiny_gpt.run.evaluator import Examiner
from tiny_gpt.run.events import (
    EpochDone,
    Evaluated,
    Event,
    Finished,
    SpeedMeasured,
    StepDone,
    SteppedBack,
    Stopping,
    Warned,
)
from tiny_gpt.run.state import Learner
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.training.guard import GUARD_INTERVAL
from tiny_gpt.training.schedule import SchedulePoint, is_cooling, learning_rate
from tiny_gpt.training.step import StepResult, train_step
from tiny_gpt.training.timed_budget import TimedBudget

Result = TypeVar("Result")

# A run that a clock ends has checkpoints after such a part of its time, if that is shorter than what is asked for.
CHECKPOINT_SHARE = 0.05
# Writing what the best model says, and all else that comes after the training. A model of three million parameters
# takes 0.5 s on 2 cores of an AMD EPYC.
AFTERWARDS_S = 1.0
# Steps back without a better model in between; more of them do not help.
MAX_ROLLBACKS = 3
MAX_INCIDENTS = 200
# A machine may fall asleep meanwhile.
LONG_S = 600


class Trainer:
    """One training run of `model` on `dataset`, from its first step to its model files in `out_dir`."""

    def __init__(
        self,
        model: GPT,
        dataset: Dataset,
        config: RunConfig,
        out_dir: Path,
        settings: dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        request: RunRequest | None = None,
    ) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.learner = Learner(model, config, settings or {}, origin or {}, request)
        self.keeper = Keeper(self.learner, dataset.tokenizer, out_dir, self.note)
        block_size, train = config.model.block_size, config.train
        self.batches = BatchLoader(
            dataset.train.ids, block_size, train.batch_size, train.seed, model.device, train.token_noise
        )
        self.examiner = Examiner(dataset, config, self.learner)
        self.tokens_per_step = self.examiner.tokens_per_step
        self._noted: list[Warned] = []
        self._n_told_skips = 0
        self._end_takes_time()

    def resume(self, checkpoint: Checkpoint, has_more: bool = False) -> None:
        """Go on from `checkpoint` as if nothing had happened, or with the time that the run is given now.

        Raises DamagedError.
        """
        self.keeper.resume(checkpoint, has_more)
        self.examiner.resume()
        self._end_takes_time()

    def train(self, monitor: HostMonitor) -> Iterator[Event]:
        """Run to the last step, or to the end of the step in which `monitor` asks to stop.

        Raises DivergedError when stepping back does not help any more, OutOfResourcesError when the final model
        cannot be written, RestartRequestedError when the watchdog wants a fresh process.
        """
        learner, train = self.learner, self.config.train
        self.model.train()
        if not self.keeper.store.steps():
            yield self.keeper.first_checkpoint()
        yield from self._told(self.keeper.checkpoint())  # where a new budget has begun
        first_step = learner.state.step
        learner.clock.start_lap(first_step)
        while not learner.budget.is_over(learner.state.step):
            point = learner.budget.begin_step(learner.state.step)
            yield from self._before_cooldown(point)
            scheduled_rate = learning_rate(point, train)
            rate = scheduled_rate * learner.state.rate_factor
            loss, grad_norm = self._step(rate)
            monitor.beat()
            learner.has_done(point, scheduled_rate)
            step = learner.state.step
            yield from self._told(*(Warned(step, line) for line in monitor.notes()))
            if self._is_beyond_skipping(point):
                yield from self._step_back("the loss is no number any more, or far above what it was")
                continue
            stopping = monitor.stop.signal_number
            epoch_ends = not train.is_timed and (step % train.iters_per_epoch == 0 or point.is_last)
            is_regular = epoch_ends or self.examiner.is_due(point)
            if stopping is not None:
                if not is_regular:  # an evaluation that the whole run would not have made is not kept
                    yield from self._told(self.keeper.checkpoint())
                yield Stopping(stopping)
            evaluates = is_regular or stopping is not None
            batch_loss = loss.item() if evaluates or step == 1 else None
            yield StepDone(step, batch_loss, rate, point.progress, learner.budget.remaining_s())
            if (seconds := learner.clock.measure_once(step - first_step, self.model.device)) is not None:
                yield (speed := self._speed(step, seconds))
                if speed.remaining_s > LONG_S and monitor.keep_awake_problem:
                    yield Warned(step, monitor.keep_awake_problem)
                if learner.cuda_graph and learner.cuda_graph.problem:
                    self.note(f"steps cannot be recorded here and take longer: {learner.cuda_graph.problem}")
            if evaluates:
                evaluated = self._evaluate(point, rate, loss.item(), grad_norm.item(), monitor)
                if not math.isfinite(evaluated.train_loss + evaluated.val_loss):
                    yield from self._step_back("the validation loss is no number any more")
                    continue
                yield from self._take(evaluated)
                if line := monitor.throughput_note(evaluated.tokens_per_s):
                    yield Warned(step, line)
            if epoch_ends:
                yield EpochDone(evaluated.epoch, evaluated.train_loss, evaluated.val_loss)
            if stopping is not None:
                break
            yield from self._between_steps(monitor, epoch_ends)
        yield from self._told(self.keeper.catch_up(at_last=True))
        yield from self._told(self.keeper.checkpoint())
        yield from self._told(self.keeper.save_final())
        yield self._finish(monitor)

    # --- one step, one evaluation ---

    def _step(self, rate: float) -> StepResult:
        """One step at this learning rate; where memory runs out, the same step again in smaller micro-batches."""
        learner, state = self.learner, self.learner.state
        batch = self.batches.batch(state.step + state.batch_offset)
        return self._within_memory(
            lambda: train_step(
                self.model,
                learner.optimizer,
                batch,
                self.config.train,
                state.step,
                rate,
                n_micro_batches=state.n_micro_batches,
                guard=learner.guard,
                cuda_graph=learner.cuda_graph,
            )
        )

    def _within_memory(self, compute: Callable[[], Result]) -> Result:
        """What `compute` returns, in parts of half the size as often as memory runs out."""
        learner = self.learner
        while True:
            try:
                return compute()
            except Exception as failure:
                if not is_out_of_memory(failure) or learner.micro_batch_size == 1:
                    raise
            learner.optimizer.zero_grad(set_to_none=True)
            if learner.cuda_graph:
                learner.cuda_graph.forget()
            release_memory(self.model.device)
            before = learner.micro_batch_size
            while learner.micro_batch_size == before:
                learner.state.n_micro_batches *= 2
            self.examiner.fit()
            self.note(
                f"out of memory: {learner.micro_batch_size} instead of {before} blocks are computed at once from here "
                "on; the losses stay those of the whole batch"
            )

    def _evaluate(
        self, point: SchedulePoint, rate: float, batch_loss: float, grad_norm: float, monitor: HostMonitor
    ) -> Evaluated:
        step, clock = self.learner.state.step, self.learner.clock
        n_steps, train_s = clock.lap(step)
        train_loss, val_loss = self.examiner.score(
            point, lambda windows: self._within_memory(lambda: windows.loss(self.model, monitor.beat))
        )
        return Evaluated(
            step=step,
            epoch=math.ceil(step / self.config.train.iters_per_epoch),
            train_loss=train_loss,
            val_loss=val_loss,
            val_bits_per_byte=self._bits_per_byte(val_loss),
            batch_loss=batch_loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_s=n_steps * self.tokens_per_step / train_s,
            elapsed_s=clock.elapsed_s,
        )

    def _take(self, evaluated: Evaluated) -> Iterator[Event]:
        """Add an evaluation to the history; save the model if it is the best so far."""
        learner = self.learner
        if evaluated.val_loss < learner.state.lowest_val_loss:
            learner.state.lowest_val_loss = evaluated.val_loss
            learner.state.n_rollbacks, learner.state.rolled_back_to = 0, None
        learner.history.append(evaluated)
        yield evaluated
        better = self.keeper.is_better(evaluated)
        yield from self._told(self.keeper.save_best(evaluated) if better else self.keeper.catch_up())

    # --- a run that a clock ends ---

    def _end_takes_time(self) -> None:
        """Have a timed budget set the time aside that is needed after the last step."""
        if isinstance(self.learner.budget, TimedBudget):
            self.learner.budget.reserved_s = self._reserved_s

    def _reserved_s(self) -> float:
        """The last evaluation, checkpoint and model files, the best model's last score, a sample."""
        return self.examiner.end_s() + 2 * self.keeper.write_s + AFTERWARDS_S

    def _before_cooldown(self, point: SchedulePoint) -> Iterator[Event]:
        """A checkpoint of the last moment from which the run can be trained further for any time."""
        if is_cooling(point, self.config.train) and not self.learner.is_cooling and self.learner.state.step:
            yield from self._told(self.keeper.checkpoint())

    # --- what keeps a run going ---

    def _between_steps(self, monitor: HostMonitor, epoch_ends: bool) -> Iterator[Event]:
        """A checkpoint where one is due, a pause or a restart where one is asked for."""
        reason, restart = monitor.pause_reason(), monitor.restart_requested
        interval_s = 0 if epoch_ends else 60 * self.config.reliability.checkpoint_minutes
        if isinstance(budget := self.learner.budget, TimedBudget):
            interval_s = min(interval_s, CHECKPOINT_SHARE * budget.state.total_s)
        if restart:
            yield from self._told(self.keeper.catch_up(at_last=True))
        if reason or restart or self.keeper.is_due(interval_s):
            yield from self._told(self.keeper.checkpoint())
        if restart:
            raise RestartRequestedError(f"the watchdog asked for a fresh process at step {self.learner.state.step:,}")
        if reason:
            yield Warned(self.learner.state.step, f"paused: {reason}")
            with self.learner.clock.apart("pause"):
                monitor.wait_out_pause()
            yield Warned(self.learner.state.step, "training goes on")

    def _is_beyond_skipping(self, point: SchedulePoint) -> bool:
        """Look at the guard, where that does not hold up a GPU; tell of the steps that it has skipped."""
        step = self.learner.state.step
        if self.model.device.type != "cpu" and step % GUARD_INTERVAL and not point.is_last:
            return False
        n_skipped = self.learner.guard.total_skipped()
        if n_new := n_skipped - self._n_told_skips:
            self._n_told_skips = n_skipped
            steps = f"{n_new} steps" if n_new > 1 else "a step"
            self.note(f"skipped {steps} up to step {step:,}, whose loss or gradient was out of all bounds")
        return self.learner.guard.needs_rollback()

    def _step_back(self, trouble: str) -> Iterator[Event]:
        """Go back to the last healthy checkpoint, past the batches since then, at half the rate."""
        learner, before = self.learner, self.learner.state
        yield from self._told(self.keeper.catch_up(at_last=True))
        if before.n_rollbacks == MAX_ROLLBACKS:
            raise DivergedError(self._divergence(trouble))
        # Trouble that comes back may have begun before the last checkpoint that looked healthy: an older one then.
        target = self.keeper.healthy_before(before.step if before.rolled_back_to is None else before.rolled_back_to)
        target = target or self.keeper.healthy_before(before.step)
        if target is None:
            raise DivergedError(self._divergence(trouble))
        best = learner.best
        self.keeper.step_back(target)
        after = learner.state
        learner.best = best
        after.batch_offset += before.step - target.step
        after.rate_factor = before.rate_factor / 2
        after.n_rollbacks, after.rolled_back_to = before.n_rollbacks + 1, target.step
        after.lowest_val_loss, after.n_micro_batches, after.incidents = (
            before.lowest_val_loss,
            before.n_micro_batches,
            before.incidents,
        )
        learner.guard.reset_counts()
        learner.clock.start_lap(target.step)
        self.examiner.resume()
        self.note(
            f"{trouble} at step {before.step:,}: back to step {target.step:,} with other batches and half the learning "
            f"rate (time {after.n_rollbacks} of {MAX_ROLLBACKS})"
        )
        yield from self._told()
        yield SteppedBack(target.step, list(learner.history))

    def _divergence(self, trouble: str) -> str:
        state, best = self.learner.state, self.learner.best
        kept = (
            f"The best model so far (val_loss={best.val_loss:.4f}, step {best.step:,}) is whole in "
            f"{self.keeper.best_path}. "
            if best
            else ""
        )
        lower = self.config.train.learning_rate * state.rate_factor
        return (
            f"{trouble} at step {state.step:,}, and stepping back with half the learning rate has not helped "
            f"({state.n_rollbacks} times).\n{kept}Try a lower rate: --learning-rate {lower:.1g}"
        )

    def _finish(self, monitor: HostMonitor) -> Finished:
        """Score the best model file once more, over the whole validation text where the run was long enough.

        A run that was stopped is not made to wait for it.
        """
        learner, last = self.learner, self.learner.history[-1]
        best, path = (learner.best, self.keeper.best_path) if learner.best else (last, self.keeper.final_path)
        val_loss, scored_tokens = best.val_loss, self.examiner.val_windows.n_tokens
        windows = None
        if monitor.stop.signal_number is None:
            left_s = learner.budget.remaining_s()
            windows = self.examiner.final_windows(None if left_s is None else left_s - AFTERWARDS_S)
        if windows is not None:
            try:
                with learner.clock.apart("eval"):
                    model = load_model(path, self.model.device, self.model.compute_dtype).model
                    val_loss, scored_tokens = windows.loss(model, monitor.beat), windows.n_tokens
            except Exception as failure:
                if not is_out_of_memory(failure):  # all is saved, and has a score
                    raise
        elapsed_s = learner.clock.elapsed_s
        return Finished(
            best_path=path,
            best_epoch=best.epoch,
            best_step=best.step,
            best_val_loss=val_loss,
            best_val_bits_per_byte=self._bits_per_byte(val_loss),
            scored_tokens=scored_tokens,
            final_path=self.keeper.final_path,
            last_step=last.step,
            elapsed_s=elapsed_s,
            eval_share=learner.clock.eval_s / elapsed_s,
            save_share=learner.clock.save_s / elapsed_s,
            peak_memory_bytes=peak_memory_bytes(self.model.device),
            stopped_by=monitor.stop.signal_number,
            incidents=[*learner.state.incidents, *monitor.summary()],
            left_s=learner.budget.remaining_s(),
        )

    # --- figures and words ---

    def _speed(self, step: int, seconds_per_step: float) -> SpeedMeasured:
        train = self.config.train
        examiner = self.examiner
        overhead = 1 + examiner.n_tokens / 3 / self.tokens_per_step / examiner.steps_between
        left_s = self.learner.budget.remaining_s()
        if left_s is None:
            left_s = (train.total_steps - step) * seconds_per_step * overhead
        return SpeedMeasured(tokens_per_s=self.tokens_per_step / seconds_per_step, remaining_s=max(0.0, left_s))

    def _bits_per_byte(self, val_loss: float) -> float:
        return bits_per_byte(val_loss, len(self.dataset.val), self.dataset.val.n_bytes)

    def note(self, text: str) -> None:
        """Keep a line for the morning; it is told before the next event."""
        incidents = self.learner.state.incidents
        incidents.append(text)
        if len(incidents) > MAX_INCIDENTS:
            del incidents[MAX_INCIDENTS // 2]
        self._noted.append(Warned(self.learner.state.step, text))

    def _told(self, *more: Event | None) -> Iterator[Event]:
        """Everything noted so far, then `more` but None."""
        noted, self._noted = self._noted, []
        yield from noted
        yield from (event for event in more if event is not None)
