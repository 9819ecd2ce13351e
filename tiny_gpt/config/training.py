"""How long and how a model is trained."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from tyro.conf import Suppress, arg

from tiny_gpt.config.checks import OPTIONAL, flag, require, require_positive
from tiny_gpt.config.choices import BackendName, OptimizerName, PrecisionName, ScheduleName
from tiny_gpt.duration import next_time, parse_duration
from tiny_gpt.errors import UsageError

# The settings that give the length of a run: at most one of them, or else the last, which always has a value.
BUDGETS = ("for_", "until", "steps", "tokens", "data_epochs", "epochs")
TIMED_BUDGETS = ("for_", "until")
# What is wrong with a run that is given both.
TEACHERS_OR_FIRST = "a run either trains teachers or begins with other text; give only one of them"
ALL_DEVICES, MAX_DEVICES = "all", 1024
# Values of --lora besides a rank.
NO_LORA, AUTO_RANK, MAX_RANK = "0", "auto", 1024


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, optimization and hardware."""

    epochs: int = 80
    """Length of the run in epochs. An epoch is --iters-per-epoch steps, however long the text is.
    Use --for, --until, --steps, --tokens or --data-epochs instead to set it in another unit."""
    for_: Annotated[str, arg(name="for", metavar="TIME"), OPTIONAL] = ""
    """Length of the run in time, including evaluation and saving: 90s, 5m, 6h, 1h30m, 6 hours."""
    until: Annotated[str, arg(metavar="HH:MM"), OPTIONAL] = ""
    """Train until this local time, such as 07:00 or 7am."""
    steps: Annotated[int, OPTIONAL] = 0
    """Length of the run in optimizer steps."""
    tokens: Annotated[int, OPTIONAL] = 0
    """Length of the run in tokens."""
    data_epochs: Annotated[float, OPTIONAL] = 0.0
    """Length of the run in passes over the training text."""
    iters_per_epoch: int = 400
    """Optimizer steps per epoch. Each epoch ends with an evaluation, which saves the model if it improved."""
    batch_size: int = 64
    """Sequences of --block-size tokens per optimizer step."""
    grad_accum_steps: int = 1
    """Micro-batches that each batch is split into; more need less memory. The result is that of the whole batch."""
    learning_rate: float = 5e-4
    """Peak learning rate, reached at the end of the warm-up."""
    min_learning_rate: float = 5e-5
    """Learning rate at the last step of the cosine schedule."""
    schedule: Literal["auto", ScheduleName] = "auto"
    """Learning rate schedule after the warm-up.
    cosine: half a cosine down to --min-learning-rate.
    wsd (warmup-stable-decay): constant, then linear to zero. Such a run can be trained further later.
    auto: wsd with --for or --until, otherwise cosine."""
    cooldown: float = 0.6
    """Last fraction of what follows the warm-up, in which wsd decays the learning rate; 1 decays it from the start."""
    warmup_steps: int = 200
    """Steps of linear warm-up; at most half of the run, or 5% of the time with --for or --until."""
    sequence_warmup: float = 0.0
    """Fraction of the run over which the sequence length grows from 64 tokens to --block-size; 0 for no growth.
    Short sequences take less time per token and are enough for the model to learn short-range patterns."""
    optimizer: OptimizerName = "adamw"
    """adamw: AdamW for all weights.
    muon: Muon for the matrices inside the transformer blocks, AdamW for the rest. Needs about half as many steps.
    Use a larger learning rate with it, such as 2e-3."""
    weight_decay: float = 0.01
    """Weight decay of all matrices, including the embeddings."""
    token_noise: float = 0.0
    """Fraction of input tokens replaced by random ones in training; reduces overfitting on text read many times."""
    teachers: Annotated[int, OPTIONAL] = 0
    """Models to train one after the other, from different random weights.
    They are merged into one model, and students learn from their mean prediction.
    They share the length of the run. Worth it where one model cannot use all of the time: on small texts, overnight."""
    students: Annotated[int, OPTIONAL] = 1
    """Models that learn from the teachers, one after the other, each also from the last ones before it; 0 for none.
    The best model is kept."""
    teacher_weight: Annotated[float, OPTIONAL] = 0.7
    """How much a student's targets follow the teachers; the rest is the text itself."""
    first_share: Annotated[float, OPTIONAL] = 0.0
    """Fraction of the run for the text of --first. Without it, chosen in a timed run, otherwise a half."""
    pretrainings: Annotated[int, OPTIONAL] = 1
    """With --first: number of models to train one after the other, each on other text and then on yours.
    They start from different initial weights and share the run's time. At the end they are merged into one model."""
    own_data_epochs: Annotated[float, OPTIONAL] = 0.0
    """With --first: passes over your own text after the pretraining, which gets the rest of the time.
    Overrides --first-share.
    In a timed run, the number of passes stays the same if steps are faster or slower than planned."""
    beta2: float = 0.999
    """Decay rate of AdamW's average of squared gradients. Small batches need a lower one, such as 0.99."""
    grad_clip: float = 1.0
    """Maximum norm of the gradient over all parameters; 0 turns clipping off."""
    eval_interval: int = 100
    """Steps between evaluations. Timed runs always evaluate about 40 times; this then sets only the evaluation size."""
    seed: int = 1337
    """Random seed. The same seed gives the same numbers on the same machine."""
    device: Annotated[str, arg(metavar="{auto,cpu,mps,cuda,cuda:N}")] = "auto"
    """Device to train on. auto: cuda, else mps, else cpu."""
    devices: Annotated[str, arg(metavar="{1,2,...,all}")] = "1"
    """GPUs of this machine to train on, or processes on its CPU; each computes a part of every batch."""
    force_devices: Annotated[bool, OPTIONAL] = False
    """Use all of --devices. Otherwise a step is timed first, and a single device is used if several are not faster."""
    exact: Annotated[bool, OPTIONAL] = False
    """The same result to the bit for any number of devices; costs some speed. Without it, sums round differently."""
    shard: Annotated[bool, OPTIONAL] = False
    """Divide weights, gradients and moments among the devices, for models that do not fit into one.
    With the backend eager; implies --force-devices."""
    precision: Literal["auto", PrecisionName] = "auto"
    """Precision of matrix products. auto: bf16 if it is faster, otherwise fp32. Weights are always kept in fp32."""
    backend: Literal["auto", BackendName] = "auto"
    """How a training step is computed.
    eager: PyTorch operations.
    fused: tiny_gpt's own kernels (CPU only).
    compiled: torch.compile.
    cuda_graph: PyTorch operations recorded as a CUDA graph.
    auto: measures those that this machine supports and uses the fastest."""
    recompute: Annotated[bool, OPTIONAL] = False
    """Compute the activations again in the backward pass: less memory, a third more arithmetic.
    The result is the same. With the backends eager and compiled."""
    deterministic: Annotated[bool, OPTIONAL] = False
    """Reproducible results on GPUs too, at some cost in speed. On CPUs they always are."""
    start_from: Annotated[str, arg(metavar="MODEL"), OPTIONAL] = ""
    """Start from a trained model's weights, architecture and tokenizer.
    It is a run, a model file, an exported folder, a GGUF file, or hf:OWNER/NAME of the Hugging Face hub."""
    lora: Annotated[str, arg(metavar="{0,auto,RANK}"), OPTIONAL] = NO_LORA
    """With --start-from, train matrices of this rank beside the model's own weights, which stay as they are (LoRA).
    It needs no memory for gradients and moments of those.
    The model files are ordinary ones, with these matrices merged into the weights.
    auto: the largest rank that fits into memory, up to 32. 0: train all weights."""
    out_dir: Annotated[str, arg(metavar="FOLDER"), OPTIONAL] = ""
    """Folder for models, checkpoints and metrics. Without it, runs/NAME, named after the text."""
    verbose: Annotated[bool, OPTIONAL] = False
    """Also print the backends that were measured and their speed."""
    auto: Annotated[tuple[str, ...], Suppress] = ()
    """Settings still to be chosen, from the text, the budget and the machine."""

    def __post_init__(self) -> None:
        self._check_budget()
        positive = ("epochs", "iters_per_epoch", "batch_size", "grad_accum_steps", "learning_rate", "eval_interval")
        require_positive(self, *positive)
        require(
            "batch_size" in self.auto or self.grad_accum_steps <= self.batch_size,
            f"--grad-accum-steps {self.grad_accum_steps}: a batch of {self.batch_size} sequences (--batch-size) cannot "
            f"be split into so many; give at most {self.batch_size}",
            "more-micro-batches-than-blocks",
        )
        self._check_optimization()
        message = (
            "--shard and --exact: give only one of them; the sums of a sharded model depend on the devices' number"
        )
        require(not (self.shard and self.exact), message, "shard-and-exact")
        message = (
            f"--shard and --teachers {self.teachers}: give only one of them; a sharded model is trained in one stage"
        )
        require(not (self.shard and self.teachers), message, "shard-and-teachers")
        require(0 <= self.teachers <= 64, f"--teachers {self.teachers}: must be from 0 to 64", "teachers-out-of-range")
        require(0 <= self.students <= 64, f"--students {self.students}: must be from 0 to 64", "students-out-of-range")
        message = f"--own-data-epochs {self.own_data_epochs}: must be at least 0 and below 10^6"
        require(0 <= self.own_data_epochs < 1e6, message, "own-data-epochs-out-of-range")
        message = f"--pretrainings {self.pretrainings}: must be from 1 to 64"
        require(1 <= self.pretrainings <= 64, message, "pretrainings-out-of-range")
        for_first = {
            "own_data_epochs": self.own_data_epochs > 0,
            "pretrainings": self.pretrainings > 1,
        }
        given = " and ".join(flag(name) for name, is_given in for_first.items() if is_given)
        message = f"--teachers {self.teachers} and {given}: {TEACHERS_OR_FIRST}"
        require(not (self.teachers and given), message, "teachers-and-pretraining")
        for name in ("teacher_weight", "first_share"):
            value = getattr(self, name)
            message = f"{flag(name)} {value}: must be at least 0 and below 1"
            require(0 <= value < 1, message, "share-out-of-range")
        message = f"--devices {self.devices}: give a number from 1 to {MAX_DEVICES}, or all"
        is_number = self.devices.isdecimal() and 1 <= int(self.devices) <= MAX_DEVICES
        require(is_number or self.devices == ALL_DEVICES, message, "devices-invalid")
        self._check_lora()
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must be at least 0 and below 2^63", "seed-out-of-range")

    def _check_budget(self) -> None:
        given = [name for name in BUDGETS[:-1] if getattr(self, name)]
        require(len(given) < 2, more_than_one_budget(given), "several-budgets")
        for name in ("steps", "tokens", "data_epochs"):
            value = getattr(self, name)
            limit = "must be greater than 0" if not value >= 0 else "must be below 10^15"
            require(0 <= value < 1e15, f"{flag(name)} {value}: {limit}", "budget-out-of-range")
        try:
            if self.for_:
                parse_duration(self.for_)
        except ValueError:
            message = f"--for {self.for_}: give a duration such as 90s, 5m, 6h, 1h30m or 6 hours, up to one year"
            raise UsageError(message, code="duration-invalid") from None
        try:
            if self.until:
                next_time(self.until, 0.0)
        except ValueError:
            message = f"--until {self.until}: give a time of day such as 07:00, 7am or 7:30pm"
            raise UsageError(message, code="time-of-day-invalid") from None

    def _check_lora(self) -> None:
        """LoRA trains a pretrained model, in one stage, on one device, with AdamW: what it was measured with."""
        is_rank = self.lora.isdecimal() and len(self.lora) < 6 and int(self.lora) <= MAX_RANK
        message = f"--lora {self.lora}: give auto, 0, or a rank from 1 to {MAX_RANK}"
        require(is_rank or self.lora == AUTO_RANK, message, "lora-rank-invalid")
        if not self.uses_lora:
            return
        message = f"--lora {self.lora} needs a model to train further: --start-from MODEL"
        require(bool(self.start_from), message, "lora-without-model")
        conflicts = {
            "--optimizer muon": self.optimizer == "muon",
            "--shard": self.shard,
            f"--devices {self.devices}": self.devices != "1",
            f"--teachers {self.teachers}": bool(self.teachers),
        }
        given = [name for name, is_given in conflicts.items() if is_given]
        message = f"--lora {self.lora} and {', '.join(given)}: LoRA trains one model on one device, with AdamW"
        require(not given, message, "lora-conflict")

    @property
    def uses_lora(self) -> bool:
        """Whether adapters are trained instead of all weights, of whatever rank."""
        return self.lora_rank > 0 or self.lora == AUTO_RANK

    @property
    def lora_rank(self) -> int:
        """The rank of the adapters; 0 without them, and for `auto` until the plan has chosen one."""
        return 0 if self.lora == AUTO_RANK else int(self.lora)

    def _check_optimization(self) -> None:
        # wsd ends at zero and ignores min_learning_rate, so any value is fine there.
        highest = math.inf if self.resolved_schedule == "wsd" else self.learning_rate
        require(
            0 <= self.min_learning_rate <= highest,
            f"--min-learning-rate {self.min_learning_rate}: must be between 0 and --learning-rate {self.learning_rate}",
            "min-learning-rate-out-of-range",
        )
        require(
            0 < self.cooldown <= 1,
            f"--cooldown {self.cooldown}: must be greater than 0 and at most 1",
            "cooldown-out-of-range",
        )
        for name in ("warmup_steps", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(value >= 0, f"{flag(name)} {value}: must be at least 0", "value-negative")
        require(
            self.weight_decay < math.inf, f"--weight-decay {self.weight_decay}: must be finite", "weight-decay-infinite"
        )
        for name in ("token_noise", "sequence_warmup", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{flag(name)} {value}: must be at least 0 and below 1", "fraction-out-of-range")

    @property
    def budget(self) -> str:
        """Which of BUDGETS gives the length of the run."""
        return next((name for name in BUDGETS if getattr(self, name)), BUDGETS[-1])

    @property
    def is_timed(self) -> bool:
        """Whether the run ends at a time instead of after a number of steps."""
        return self.budget in TIMED_BUDGETS

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 if they depend on the clock or on the size of the text."""
        known = {"steps": self.steps, "epochs": self.epochs * self.iters_per_epoch}
        return known.get(self.budget, 0)

    @property
    def resolved_schedule(self) -> ScheduleName:
        """The schedule, with `auto` resolved."""
        if self.schedule == "auto":
            return "wsd" if self.is_timed else "cosine"
        return self.schedule

    def without_budget(self) -> "TrainConfig":
        """This config with only `epochs` as its budget, so that another one can be set.

        A cool-down of the whole run (`cooldown=1`) ends a run early and belongs to that budget, so it is reset too.
        """
        default = TrainConfig()
        cooldown = default.cooldown if self.cooldown == 1 else self.cooldown
        return replace(self, cooldown=cooldown, **{name: getattr(default, name) for name in BUDGETS[:-1]})


def more_than_one_budget(names: list[str]) -> str:
    """The message for a user who gave several of BUDGETS."""
    return f"{' and '.join(map(flag, names))}: give only one of them, as a run has one length"
