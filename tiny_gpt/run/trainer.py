"""The training loop: steps, evaluations, checkpoints, and what happens when one goes wrong.

`Trainer.train` decides what happens when and yields events; it prints nothing. The mathematics of a step is in
training/step.py.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tiny_gpt.config import RunConfig
from tiny_gpt.data.dataloader import Batch
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.device import memory_bytes
from tiny_gpt.errors import BadInputError, RestartRequestedError
from tiny_gpt.host.monitor import HostMonitor
from tiny_gpt.host.signals import Stopped
from tiny_gpt.run.checkpoint_manager import CheckpointManager
from tiny_gpt.run.checkpoint_store import Checkpoint, CheckpointStore
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.divergence import Divergence
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import (
    EpochDone,
    Evaluated,
    Event,
    RolledBack,
    StageBegun,
    StepDone,
    Stopping,
    ThroughputMeasured,
    Warned,
)
from tiny_gpt.run.final_score import SAMPLE_S, finished
from tiny_gpt.run.forgetting import Known
from tiny_gpt.run.merged_stages import StageMerger
from tiny_gpt.run.model_files import ModelFiles
from tiny_gpt.run.out_of_memory import retry_out_of_memory
from tiny_gpt.run.saver import Saver
from tiny_gpt.run.stages import StageRunner
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.schedule import SchedulePoint, is_cooling, learning_rate, sequence_length
from tiny_gpt.training.step import StepResult, train_step
from tiny_gpt.training.timed_budget import TimedBudget

Result = TypeVar("Result")

# A timed run writes a checkpoint at least once in this fraction of its time.
CHECKPOINT_SHARE = 0.05
# A run shorter than this ends before the machine falls asleep.
LONG_S = 600
# Seconds between two checks for signals and the end of the budget while a step waits for the text, and seconds after
# which the wait is reported.
WAIT_S, LONG_WAIT_S = 1.0, 60.0


@dataclass(frozen=True)
class DoneStep:
    """A finished step; its loss and gradient norm are still on the device."""

    point: SchedulePoint
    learning_rate: float
    result: StepResult


class Trainer:
    """Trains the model of `state` on `dataset`, from its first step to the model files in `out_dir`."""

    def __init__(
        self,
        state: TrainState,
        dataset: Dataset,
        config: RunConfig,
        description: RunDescription,
        out_dir: Path,
        other: Tokens | None = None,
    ) -> None:
        """`other` is the text of --first."""
        self.state, self.dataset, self.config = state, dataset, config
        store = CheckpointStore(out_dir)
        saver = Saver(state, store)
        self.checkpoints = CheckpointManager(state, description, store, saver)
        self.model_files = ModelFiles(state, config, dataset.tokenizer, out_dir, store, saver)
        self.evaluator = Evaluator(state, dataset)
        self.stages = StageRunner(state, config, dataset, other, out_dir, saver)
        self.divergence = Divergence(state, config.train, self.checkpoints, self.model_files)
        self.tokens_per_step = self.evaluator.tokens_per_step
        self.merger = StageMerger(self.stages, self.evaluator, self.model_files)
        self.known = Known.of(description.initial)

    def resume(self, checkpoint: Checkpoint, extends: bool = False) -> None:
        """Continue from `checkpoint` exactly, or with `extends` with a new budget. Raises DamagedError."""
        self.checkpoints.resume(checkpoint, extends)
        best = self.model_files.resume()
        self.evaluator.resume()
        if best:
            self.evaluator.expect_best(best)

    def train(self, monitor: HostMonitor) -> Iterator[Event]:
        """Train to the last step, or to the end of the step in which `monitor` is asked to stop.

        Raises DivergedError when rolling back no longer helps, OutOfResourcesError when the first checkpoint or the
        final model cannot be saved, or memory ran out in an update; RestartRequestedError when the watchdog wants a
        fresh process; Stopped or BadInputError when the first shards of the text do not come.
        """
        state, budget = self.state, self.state.budget
        state.model.train()
        yield from self._save_first_checkpoint()
        state.clock.start_lap(state.step)
        while not budget.is_over(state.step):
            trained = budget.progress(state.step)
            point = budget.begin_step(state.step, self._reserved_s())
            point = yield from self._enter_stage(point, trained, monitor.beat)
            yield from self._checkpoint_before_cooldown(point)
            if not (yield from self._wait_for_text(monitor)):
                yield from self._stop_waiting(monitor)
                break
            done = self._train_one_step(point)
            monitor.beat()
            yield from self._report(*(Warned(state.step, line) for line in monitor.notes()))
            if self.divergence.must_roll_back(point):
                yield from self._roll_back("the loss became NaN or infinite, or spiked")
                continue
            monitor.stop.hear(state.ranks.stop_signal_of_all)
            stop_signal = monitor.stop.signal_number
            is_epoch_end = self._is_epoch_end(point)
            is_due = is_epoch_end or self.stages.is_last_step(point)
            is_due = is_due or self.evaluator.is_due(point, self.stages.eval_progress())
            if stop_signal is not None:
                if not is_due:  # an uninterrupted run would not evaluate here: save without this evaluation
                    yield from self._report(self.checkpoints.save())
                yield Stopping(stop_signal)
            evaluates = is_due or stop_signal is not None
            # Reading the loss waits for a GPU's queue of steps, so most steps are reported without it.
            batch_loss = done.result.loss.item() if evaluates or state.step == 1 else None
            yield StepDone(state.step, batch_loss, done.learning_rate, point.progress, budget.remaining_s())
            yield from self._measure_throughput(monitor)
            if evaluates:
                evaluated = self._evaluate(done, monitor)
                if not math.isfinite(evaluated.train_loss + evaluated.val_loss):
                    yield from self._roll_back("the validation loss became NaN or infinite")
                    continue
                yield from self._record(evaluated, is_due)
                if line := monitor.throughput_note(evaluated.tokens_per_s):
                    yield Warned(state.step, line)
                if is_epoch_end:
                    yield EpochDone(evaluated.epoch, evaluated.train_loss, evaluated.val_loss)
            if stop_signal is not None:
                break
            yield from self._between_steps(monitor, is_epoch_end)
        may_merge = self.stages.end(budget.is_over(state.step))
        yield from self._report(self.model_files.save_pending(force=True))
        yield from self._report(self.checkpoints.save())
        yield from self._report(self.model_files.save_final())
        if may_merge:
            yield from self._report(*self.merger.merge(monitor.beat))
            yield from self._report(self.model_files.save_pending(force=True))
        yield finished(state, self.evaluator, self.model_files, monitor, self.known)

    # --- stages ---

    def _enter_stage(
        self, point: SchedulePoint, trained: float, beat: Callable[[], None]
    ) -> Generator[Event, None, SchedulePoint]:
        """Begin another stage if `point` is in one; returns `point` as seen from its stage. `trained`: see
        StageRunner.begin."""
        stages = self.stages
        if stages.must_begin(point):
            if stages.begin(point, trained, beat):
                yield from self._report(*self.merger.merge(beat))
            yield from self._report(StageBegun(self.state.step, stages.describe(), str(stages.stage)))
        stages.prepare(beat)
        return stages.point(point)

    # --- steps ---

    def _wait_for_text(self, monitor: HostMonitor) -> Generator[Event, None, bool]:
        """Wait until the next batch is in memory; False if a signal or the end of the time comes first.

        Shards of a corpus may be on a server or drive that is slower than training, or away for some minutes.
        """
        state, start, is_told = self.state, time.perf_counter(), False
        with state.clock.count_wait():
            while not self.stages.batches.is_read(state.step + state.counters.batch_offset, WAIT_S):
                monitor.beat()
                left_s = state.budget.remaining_s()
                is_over = left_s is not None and left_s <= self._reserved_s()
                if is_over or monitor.stop.signal_number is not None:
                    return False
                if time.perf_counter() - start > LONG_WAIT_S and not is_told:
                    state.warn("training waits for shards of the text: they come more slowly than it reads them")
                    yield from self._report()
                    is_told = True
        return True

    def _stop_waiting(self, monitor: HostMonitor) -> Iterator[Event]:
        """Save what there is. Raises Stopped or BadInputError where there is no model yet."""
        yield from self._report(self.checkpoints.save())
        if not self.state.history:
            if monitor.stop.signal_number is not None:
                raise Stopped(monitor.stop.signal_number)
            raise BadInputError(
                "the first shards of the text did not come within the time of the run; give more time, or smaller "
                "shards (--shard-size)",
                code="shards-too-late",
            )
        if monitor.stop.signal_number is not None:
            yield Stopping(monitor.stop.signal_number)

    def _train_one_step(self, point: SchedulePoint) -> DoneStep:
        """Do the step at `point`, in smaller micro-batches if memory runs out."""
        state, counters, train = self.state, self.state.counters, self.config.train
        number = state.step + counters.batch_offset
        batch = self.stages.batches.batch(number)
        batch = batch.cut(sequence_length(point, train, state.model.config.block_size))
        scheduled_rate = learning_rate(point, train)
        rate = scheduled_rate * counters.rate_factor
        result = retry_out_of_memory(state, self.evaluator, lambda: self._compute(batch, number, rate))
        state.finish_step(point, scheduled_rate)
        return DoneStep(point, rate, result)

    def _compute(self, batch: Batch, number: int, rate: float) -> StepResult:
        """The step on `batch`, which has this `number`, on all devices."""
        state, step, n_micro_batches = self.state, self.state.step, self.state.counters.n_micro_batches
        length = batch.inputs_BT.shape[1]
        figures = {
            "batch": number,
            "length": length,
            "step": step,
            "rate": rate,
            "n_micro_batches": n_micro_batches,
        }
        return state.leader.step(
            state.model,
            state.optimizer,
            state.guard,
            figures,
            lambda: train_step(
                state.model,
                state.optimizer,
                batch,
                self.config.train,
                state.step,
                rate,
                n_micro_batches=n_micro_batches,
                guard=state.guard,
                gradient_sum=state.gradient_sum,
                ranks=state.ranks,
                cuda_graph=state.cuda_graph,
            ),
        )

    def _is_epoch_end(self, point: SchedulePoint) -> bool:
        train = self.config.train
        return not train.is_timed and (self.state.step % train.iters_per_epoch == 0 or point.is_last)

    def _measure_throughput(self, monitor: HostMonitor) -> Iterator[Event]:
        """Once, after the first few steps of this process: tokens per second, and what may slow the run down."""
        state = self.state
        step_s = state.clock.measure_step_once(state.model.device)
        if step_s is None:
            return
        remaining_s = state.budget.remaining_s()
        if remaining_s is None:
            # Scoring a token takes a third of the time of training on it: there is no backward pass.
            overhead = 1 + self.evaluator.n_tokens / 3 / self.tokens_per_step / self.evaluator.steps_between
            remaining_s = (self.config.train.total_steps - state.step) * step_s * overhead
        remaining_s = max(0.0, remaining_s)
        yield ThroughputMeasured(self.tokens_per_step / step_s, remaining_s)
        if remaining_s > LONG_S and monitor.keep_awake_problem:
            yield Warned(state.step, monitor.keep_awake_problem)
        if state.cuda_graph and state.cuda_graph.problem:
            state.warn(f"steps cannot be recorded as a CUDA graph here and take longer: {state.cuda_graph.problem}")

    # --- evaluations ---

    def _evaluate(self, done: DoneStep, monitor: HostMonitor) -> Evaluated:
        step, clock = self.state.step, self.state.clock
        n_steps, train_s, wait_s = clock.lap(step)
        train_loss, val_loss, error = retry_out_of_memory(
            self.state, self.evaluator, lambda: self.evaluator.score(done.point, monitor.beat)
        )
        return Evaluated(
            step=step,
            epoch=math.ceil(step / self.config.train.iters_per_epoch),
            train_loss=train_loss,
            val_loss=val_loss,
            val_bits_per_byte=self.evaluator.bits_per_byte(val_loss),
            batch_loss=done.result.loss.item(),
            learning_rate=done.learning_rate,
            grad_norm=done.result.grad_norm.item(),
            tokens_per_s=n_steps * self.tokens_per_step / train_s,
            elapsed_s=clock.elapsed_s,
            val_loss_error=error,
            memory_bytes=memory_bytes(self.state.model.device),
            time=time.time(),
            data_wait_share=wait_s / train_s,
            **monitor.sensors.read(self.state.model.device),
        )

    def _record(self, evaluated: Evaluated, is_due: bool) -> Iterator[Event]:
        """Add an evaluation to the history; save the model if it is the best so far, or that of its stage, unless an
        uninterrupted run would not have evaluated here."""
        self.state.record(evaluated)
        if is_due:
            self.stages.keep_best(evaluated)
        if self.model_files.is_better(evaluated):
            self.evaluator.expect_best(self.state.model)
        yield evaluated
        yield from self._report(self.model_files.record(evaluated))

    # --- checkpoints ---

    def _save_first_checkpoint(self) -> Iterator[Event]:
        """Save step 0, which shows that the disk works, or the step at which a new budget begins."""
        if not self.checkpoints.store.steps():
            yield self.checkpoints.save_first()
        yield from self._report(self.checkpoints.save())

    def _checkpoint_before_cooldown(self, point: SchedulePoint) -> Iterator[Event]:
        """Save the last state from which the run can be extended without a jump of the loss."""
        if is_cooling(point, self.config.train) and not self.state.is_cooling and self.state.step:
            yield from self._report(self.checkpoints.save())

    def _between_steps(self, monitor: HostMonitor, is_epoch_end: bool) -> Iterator[Event]:
        """Save a checkpoint if one is due; pause or restart if the machine requires it."""
        state = self.state
        pause_reason, restart = monitor.pause_reason(), monitor.restart_requested
        interval_s = 0 if is_epoch_end else 60 * self.config.reliability.checkpoint_minutes
        if isinstance(budget := state.budget, TimedBudget):
            interval_s = min(interval_s, CHECKPOINT_SHARE * budget.state.total_s)
        if restart:
            yield from self._report(self.model_files.save_pending(force=True))
        if pause_reason or restart or self.checkpoints.is_due(interval_s):
            yield from self._report(self.checkpoints.save())
        if restart:
            raise RestartRequestedError(
                f"the watchdog asked for a fresh process at step {state.step:,}", code="restart-requested"
            )
        if pause_reason:
            yield Warned(state.step, f"paused: {pause_reason}")
            with state.clock.count_as("pause"):
                monitor.wait_out_pause()
            if not (monitor.stop.signal_number or monitor.restart_requested):
                yield Warned(state.step, "training continues")

    def _reserved_s(self) -> float:
        """Seconds that a timed run needs after its last step: to evaluate, merge, save, score the best, and sample."""
        if not self.config.train.is_timed:
            return 0.0
        known_s = self.known.seconds if self.known else 0.0
        return self.evaluator.final_s() + self.merger.final_s() + 2 * self.checkpoints.write_s + SAMPLE_S + known_s

    def _roll_back(self, trouble: str) -> Iterator[Event]:
        """Return to a healthy checkpoint. Raises DivergedError where that has not helped before."""
        yield from self._report(self.model_files.save_pending(force=True))
        step = self.divergence.roll_back(trouble)
        self.stages.teachers.forget()
        self.evaluator.resume()
        yield from self._report()
        yield RolledBack(step, list(self.state.history))

    def _report(self, *events: Event | None) -> Iterator[Event]:
        """The warnings since the last report, then those of `events` that are not None."""
        yield from self.state.take_warnings()
        yield from (event for event in events if event is not None)
