"""Everything that changes while a model trains: weights, moments, counters, history. A checkpoint is a copy of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tiny_gpt.config import TrainConfig
from tiny_gpt.device import release_memory, synchronize
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import is_adapted
from tiny_gpt.run.adapters import merged
from tiny_gpt.run.checkpoint import StateTensors, load_tensors, optimizer_tensors, read_history, read_state
from tiny_gpt.run.checkpoint_store import Checkpoint, DamagedError
from tiny_gpt.run.clock import RunClock
from tiny_gpt.run.events import Evaluated, Warned
from tiny_gpt.run.leader import Leader
from tiny_gpt.run.sharded_state import ShardedState, in_model
from tiny_gpt.training.budget import RunRequest, StepBudget, TrainingBudget
from tiny_gpt.training.cuda_graph import make_cuda_graph_update
from tiny_gpt.training.guard import GUARD_INTERVAL, Guard
from tiny_gpt.training.micro_batches import micro_batch_size
from tiny_gpt.training.optimizer import trained_weights
from tiny_gpt.training.schedule import SchedulePoint, is_cooling
from tiny_gpt.training.sharing import empty_model, own_part
from tiny_gpt.training.timed_budget import TimedBudget, TimedBudgetState, resume_timed_budget, start_timed_budget

# Of more warnings than this, those in the middle are dropped: the first and the last ones are the most useful.
MAX_INCIDENTS = 200
# Names of counters in the checkpoints of earlier versions.
RENAMED_COUNTERS = {"n_parts": "n_micro_batches"}


@dataclass
class RunCounters:
    """How far a run is and what has happened to it, in plain JSON types."""

    step: int = 0
    """Steps done."""
    n_micro_batches: int = 1
    """Micro-batches per batch, at least; doubled when memory runs out."""
    rate_factor: float = 1.0
    """Multiplies the scheduled learning rate; halved by each rollback."""
    stage: int = 0
    """Index of the stage (training/stages.py) that the run is in."""
    stage_start: float = 0.0
    """The run's progress (0 to 1) when that stage began."""
    stage_end: float = 0.0
    """The progress at which it was to end then; 0 where it has been the first one."""
    batch_offset: int = 0
    """Batches left out by rollbacks: step s reads batch s + batch_offset."""
    lowest_val_loss: float = 1e9
    """Of all evaluations, including those that a rollback removed from the history."""
    n_rollbacks: int = 0
    """Rollbacks since `lowest_val_loss` last improved."""
    rolled_back_to: int | None = None
    """Step of the checkpoint that the last of them restored."""
    train_s: float = 0.0
    eval_s: float = 0.0
    save_s: float = 0.0
    pause_s: float = 0.0
    """Seconds so far, by activity."""
    rate_share: float = 0.0
    """The last step's scheduled learning rate as a fraction of the peak; 0 also where it is unknown."""
    budget: dict[str, Any] = field(default_factory=dict)
    """State of a timed budget."""
    incidents: list[str] = field(default_factory=list)
    """Warnings for the user to read when the run is over."""
    guard: dict[str, Any] = field(default_factory=dict)
    """State of the guard."""

    @classmethod
    def from_dict(cls, values: Any) -> "RunCounters":
        """The inverse of `asdict`; fields that an earlier version did not write get defaults. Raises DamagedError."""
        defaults = asdict(cls())
        if isinstance(values, dict):
            values = {RENAMED_COUNTERS.get(name, name): value for name, value in values.items()}
        if not isinstance(values, dict) or not values.keys() <= defaults.keys():
            raise DamagedError("its state has unknown fields")
        for name, value in values.items():
            expected: tuple[type, ...] = (type(defaults[name]),)
            if name == "rolled_back_to":
                expected = (int, type(None))
            elif expected == (float,):
                expected = (int, float)
            is_wrong = isinstance(value, bool) or not isinstance(value, expected)
            if is_wrong or (isinstance(value, int | float) and not 0 <= value < 1e15):
                raise DamagedError(f"its {name} is {str(value)[:40]!r}")
        if not all(isinstance(line, str) for line in values.get("incidents", [])):
            raise DamagedError("its incidents are not strings")
        return cls(**values)


class TrainState:
    """A model in training. The trainer changes it; evaluator, checkpoints and model files read it."""

    def __init__(
        self, model: GPT, config: TrainConfig, request: RunRequest | None = None, device: torch.device | None = None
    ) -> None:
        """A timed budget counts from the time of the `request`. `device`: to train on, if not that of `model`."""
        self.config, self.request = config, request or RunRequest()
        self.ranks, device = current_ranks(), device or model.device
        self.leader = Leader(self.ranks)
        self.model, self.optimizer, self.gradient_sum, shards = own_part(model, config, self.ranks, device)
        self.sharded: ShardedState | None = None
        if shards:
            self.sharded = ShardedState(self.model, shards, self.optimizer)
            self.leader.lead_shards(self.sharded, in_model(model))
        self.guard = Guard(device)
        self.cuda_graph = make_cuda_graph_update(self.model, self.optimizer, config, self.guard)
        self.counters = RunCounters(n_micro_batches=config.grad_accum_steps)
        self.history: list[Evaluated] = []
        self.best: Evaluated | None = None
        """The evaluation of the best model that was saved."""
        self.clock = RunClock()
        self.budget = self._new_budget()
        self.is_cooling = config.resolved_schedule != "wsd"
        """Whether the learning rate has begun to decay: from a state before that, training can be extended freely."""
        self._unreported: list[Warned] = []

    # --- steps ---

    @property
    def step(self) -> int:
        """Steps done."""
        return self.counters.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; of a timed one, an estimate."""
        if not self.config.is_timed:
            return self.config.total_steps
        step, progress = self.step, self.budget.progress(self.step)
        return step if progress >= 1 else max(step + 1, round(step / max(progress, 1e-3)))

    @property
    def micro_batch_size(self) -> int:
        """Sequences in the largest micro-batch."""
        n_micro_batches, block_size = self.counters.n_micro_batches, self.model.config.block_size
        return micro_batch_size(self.config.batch_size, n_micro_batches, block_size, self.model.device)

    def finish_step(self, point: SchedulePoint, scheduled_rate: float) -> None:
        """Count a step that is done. `scheduled_rate` is its learning rate before `rate_factor`.

        A timed budget waits for the device after the steps that it times, and in its last steps: a GPU's queue of steps
        would make the run late.
        """
        budget, counters = self.budget, self.counters
        if isinstance(budget, TimedBudget) and (
            budget.is_timed_step(counters.step) or budget.steps_left < 2 * GUARD_INTERVAL
        ):
            synchronize(self.model.device)
        budget.end_step(counters.step)
        counters.step += 1
        counters.rate_share = scheduled_rate / self.config.learning_rate
        self.is_cooling = is_cooling(point, self.config)

    def forget_moments(self) -> None:
        """Have the optimizer and the guard begin anew, for other weights."""
        with torch.no_grad():
            for moments in self.optimizer.state.values():
                for tensor in moments.values():
                    tensor.zero_()
        self.guard.load_dict(Guard(self.model.device).to_dict())
        self.leader.state_changed()

    def shrink_micro_batches(self) -> None:
        """Compute fewer sequences at once, after memory ran out, and free what the failed attempt left."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.cuda_graph:
            self.cuda_graph.forget()
        release_memory(self.model.device)
        before = self.micro_batch_size
        while self.micro_batch_size == before:
            self.counters.n_micro_batches *= 2

    # --- evaluations and warnings ---

    def record(self, evaluated: Evaluated) -> None:
        """Add an evaluation to the history; a new lowest loss resets the count of rollbacks."""
        if evaluated.val_loss < self.counters.lowest_val_loss:
            self.counters.lowest_val_loss = evaluated.val_loss
            self.counters.n_rollbacks, self.counters.rolled_back_to = 0, None
        self.history.append(evaluated)

    def warn(self, text: str) -> None:
        """Keep a line for the end of the run; `take_warnings` reports it before that."""
        incidents = self.counters.incidents
        incidents.append(text)
        if len(incidents) > MAX_INCIDENTS:
            del incidents[MAX_INCIDENTS // 2]
        self._unreported.append(Warned(self.step, text))

    def take_warnings(self) -> list[Warned]:
        """The warnings since the last call."""
        warnings, self._unreported = self._unreported, []
        return warnings

    # --- checkpoints ---

    @property
    def home(self) -> torch.device:
        """Where whole models are: on the device, or beside it if the model need not fit into it."""
        return torch.device("cpu") if self.sharded else self.model.device

    def tensors(self) -> StateTensors:
        """Trained weights and moments, whole."""
        if self.sharded is None:
            weights = trained_weights(self.model)
            return StateTensors(weights, optimizer_tensors(weights, self.optimizer))
        self.leader.share_state(self.model, self.optimizer, self.guard)
        return StateTensors(self.sharded.weights, self.sharded.moments, self.leader.gather)

    def whole_model(self) -> GPT:
        """The model in training; where it is sharded or has adapters, a copy on the CPU, whole or merged, to save."""
        if is_adapted(self.model):
            return merged(self.model)
        tensors = self.tensors()
        if tensors.read is None:
            return self.model
        copy = empty_model(self.model)
        weights = {name: tensors.read(name).to("cpu", copy=True) for name in tensors.weights}
        copy.load_state_dict(weights, assign=True)
        return copy

    def to_dict(self) -> dict[str, Any]:
        """All of a checkpoint but tensors and history, in plain JSON types."""
        counters, clock = self.counters, self.clock
        counters.train_s, counters.eval_s = clock.train_s, clock.eval_s
        counters.save_s, counters.pause_s = clock.save_s, clock.pause_s
        counters.guard, counters.budget = self.guard.to_dict(), self.budget.to_dict()
        return {"run": asdict(counters), "best": self.best.to_json_line() if self.best else None}

    def summary(self) -> dict[str, Any]:
        """What a checkpoint's manifest says about it, readable without loading its other files."""
        is_evaluated = bool(self.history) and self.history[-1].step == self.step
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "progress": self.budget.progress(self.step),
            "is_timed": self.config.is_timed,
            "is_cooling": self.is_cooling,
            "iters_per_epoch": self.config.iters_per_epoch,
            "val_loss": self.history[-1].val_loss if is_evaluated else None,
            "is_calm": self.guard.is_healthy(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become the state that `checkpoint` holds, but for time and budget.

        Raises DamagedError, and has then changed nothing but weights and moments.
        """
        saved = read_state(checkpoint)
        counters = RunCounters.from_dict(saved.get("run"))
        if counters.step != checkpoint.step:
            raise DamagedError(f"its state is that of step {counters.step}")
        history = read_history(checkpoint)
        if self.sharded is None:
            load_tensors(checkpoint, self.model, self.optimizer)
        else:
            self.leader.lead_shards(self.sharded, self.sharded.in_checkpoint(checkpoint))
        try:
            best = Evaluated.from_json_line(saved["best"]) if saved["best"] else None
            self.guard.load_dict(counters.guard)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError("its state has unknown fields") from error
        self.counters, self.history, self.best = counters, history, best
        self.leader.state_changed()
        self.is_cooling = checkpoint.about.get("is_cooling") is not False

    def resume(self, checkpoint: Checkpoint, extends: bool = False) -> None:
        """`restore` in a new process, and continue the count of its time.

        The budget is that of the checkpoint, or with `extends` a new one that begins here. Raises DamagedError.
        """
        self.restore(checkpoint)
        counters = self.counters
        try:
            self.budget = self._new_budget() if extends or not counters.budget else self._saved_budget()
        except (ValueError, TypeError) as error:
            raise DamagedError("the state of its budget has unknown fields") from error
        self.clock.resume(counters.step, counters.train_s, counters.eval_s, counters.save_s, counters.pause_s)

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Return to an earlier checkpoint, and from there train at half the rate, on other batches than before.

        Time, warnings, best model and micro-batches stay as they are. Raises DamagedError.
        """
        before, best = self.counters, self.best
        self.restore(checkpoint)
        after, self.best = self.counters, best
        self.budget.roll_back(after.budget)
        # From the counters before: the checkpoint's own do not know of batches that an earlier rollback left out.
        after.batch_offset = before.batch_offset + before.step - checkpoint.step
        after.rate_factor = before.rate_factor / 2
        after.n_rollbacks, after.rolled_back_to = before.n_rollbacks + 1, checkpoint.step
        after.lowest_val_loss, after.incidents = before.lowest_val_loss, before.incidents
        after.n_micro_batches = before.n_micro_batches
        self.guard.reset_counts()
        self.clock.roll_back(checkpoint.step)

    # --- budgets ---

    def _new_budget(self) -> TrainingBudget:
        if not self.config.is_timed:
            return StepBudget(self.config.total_steps, self.config.warmup_steps)
        rate_share = min(1.0, self.counters.rate_share)
        return self._timed_budget(start_timed_budget(self.config, self.request, self.step, rate_share))

    def _saved_budget(self) -> TrainingBudget:
        """The checkpoint's, with the time since then that counts as used."""
        if not self.config.is_timed:
            return self._new_budget()
        budget = TimedBudgetState.from_dict(self.counters.budget)
        return self._timed_budget(resume_timed_budget(self.config, budget, self.request))

    def _timed_budget(self, budget: TimedBudgetState) -> TrainingBudget:
        measure_every = 1 if self.model.device.type == "cpu" else GUARD_INTERVAL
        return TimedBudget(self.config, budget, lambda: self.clock.train_s, measure_every)
