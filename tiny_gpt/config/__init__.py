"""Every setting, its default, its help and its limits: the one place.

Flags, `--help` and the saved `config.json` are generated from the fields below. The defaults are the guide's
overnight recipe. Does not know torch; values in, checked frozen dataclasses out.
"""

import json
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from tyro.conf import Suppress, arg

from tiny_gpt.config.architectures import ARCHITECTURES, Architecture
from tiny_gpt.duration import next_time, seconds_of
from tiny_gpt.errors import BadInputError, UsageError

# What a run leaves in its out_dir.
BEST_FILE = "tiny_gpt_best.pt"
FINAL_FILE = "tiny_gpt_final.pt"
CONFIG_FILE = "config.json"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
SAMPLES_FOLDER = "samples"

# What a model file may hold.
MAX_VOCAB_SIZE = 300_000
TOKENIZER_NAMES = ("auto", "char", "byte", "bpe")
# Width of an attention head where the recipe chooses: what Qwen3's and GPT-2's small models have.
HEAD_WIDTH = 64
# Of settings that are on, whose flag turns them off.
FLAG_OFF = arg(help_behavior_hint="")

# A key of ARCHITECTURES. The choices are only known when the program runs, so mypy takes any text.
if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[tuple(ARCHITECTURES)]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UsageError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{flag(name)} {value}: must be above zero")


def two_budgets(names: Sequence[str]) -> str:
    """What to say to a person who has given these."""
    return f"{' and '.join(map(flag, names))}: give one of them, a run has one budget"


def flag(name: str) -> str:
    """The command line's spelling of a field: n_layer -> --n-layer, and for_, a word of Python's own, -> --for."""
    return "--" + name.rstrip("_").replace("_", "-")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network."""

    architecture: ArchitectureName = "gpt2"
    """Published design that the network follows; every one of them loads in other tools."""
    n_layer: int = 4
    """Transformer blocks, one above the other."""
    n_head: int = 8
    """Attention heads in each block."""
    d_model: int = 256
    """Width: numbers that describe one token inside the network."""
    d_ff: int = 1024
    """Width of the feed-forward layer inside each block."""
    block_size: int = 128
    """Tokens the model sees at once."""
    dropout: float = 0.15
    """Share of attention weights and feed-forward outputs zeroed at random while training."""
    head_dim: int = 0
    """Width of each attention head; 0 is d_model / n_head. gpt2 has no other."""
    rope_theta: float = 10_000.0
    """Base of the angles of rotary positions; models with longer blocks have a larger one. gpt2 has none."""

    def __post_init__(self) -> None:
        _require_positive(self, "n_layer", "n_head", "d_model", "d_ff", "block_size")
        _require(self.head_dim >= 0, f"--head-dim {self.head_dim}: must be 0 (d_model / n_head) or above")
        _require(
            self.head_dim == 0 or self.traits.custom_head_dim,
            f"--head-dim {self.head_dim}: the heads of --architecture {self.architecture} are d_model / n_head wide; "
            "leave it out, or choose another architecture",
        )
        _require(
            self.head_dim > 0 or self.d_model % self.n_head == 0,
            f"--d-model {self.d_model} is not divisible by --n-head {self.n_head}: every head gets an equal "
            f"part of the width; try --d-model {max(1, round(self.d_model / self.n_head)) * self.n_head}",
        )
        given = f"--head-dim {self.head_dim}"
        if self.head_dim == 0:
            given = f"--d-model {self.d_model} with --n-head {self.n_head}"
        _require(
            self.traits.positions != "rotary" or self.dim_per_head % 2 == 0,
            f"{given}: rotary positions (--architecture {self.architecture}) rotate pairs of numbers, so a head's "
            "width (without --head-dim, d_model / n_head) must be even",
        )
        _require(0 <= self.dropout < 1, f"--dropout {self.dropout}: must be at least 0 and below 1")
        _require(0 < self.rope_theta < float("inf"), f"--rope-theta {self.rope_theta}: must be above 0; 10000 is usual")

    @property
    def traits(self) -> Architecture:
        """What distinguishes its architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def dim_per_head(self) -> int:
        """Numbers in each head's queries, keys and values."""
        return self.head_dim or self.d_model // self.n_head


@dataclass(frozen=True)
class DataConfig:
    """The text and how it becomes tokens."""

    data: tuple[str, ...] = ("wikitext-103|python-docs",)
    """Text: files, folders, patterns, - for standard input, https:// addresses, hf:OWNER/NAME, or known texts
    (tiny-gpt data list). A|B is B where A cannot be had."""
    val: tuple[str, ...] = ()
    """Validation text, named like --data; without it a part of the text is held out."""
    val_fraction: float = 0.1
    """Part of the text held out for validation, at most 10 MB: the ends of long documents, every n-th short one."""
    tokenizer: str = "char"
    """char: one token a character; byte: one a byte; bpe: pieces of words; auto: char for a small text, else bpe; or a
    tokenizer.json of your own."""
    vocab_size: int = 0
    """Tokens that bpe has; 0 chooses by the size of the text."""
    text_field: str = "text"
    """Field of .jsonl, column of .csv and .parquet, that holds the text."""
    encoding: str = ""
    """Encoding of text files, such as cp1252; without it UTF-8, or UTF-16 by its byte order mark."""

    def __post_init__(self) -> None:
        _require(len(self.data) > 0, "--data: name at least one text file or folder, or python-docs")
        _require(0 < self.val_fraction < 1, f"--val-fraction {self.val_fraction}: must be above 0 and below 1")
        _require(
            self.tokenizer in TOKENIZER_NAMES or self.tokenizer.endswith(".json"),
            f"--tokenizer {self.tokenizer}: give one of {', '.join(TOKENIZER_NAMES)}, or a tokenizer.json",
        )
        _require(
            self.vocab_size == 0 or self.tokenizer in ("bpe", "auto"),
            f"--vocab-size {self.vocab_size} with --tokenizer {self.tokenizer}: only bpe has a choice",
        )
        _require(
            self.vocab_size == 0 or 256 <= self.vocab_size <= MAX_VOCAB_SIZE,
            f"--vocab-size {self.vocab_size}: give 256 to {MAX_VOCAB_SIZE:,}, or 0 for one that suits the text",
        )


# How long a run may be said to be, the first that is given; the last always is.
BUDGETS = ("for_", "until", "steps", "tokens", "data_epochs", "epochs")
TIMED = ("for_", "until")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how the model learns."""

    epochs: int = 80
    """Epochs; each ends with a validation and, if that improved, a saved model. Or, instead of epochs:"""
    for_: Annotated[str, arg(name="for")] = ""
    """Train for so long, from the first step to the written sample: 90s, 5m, 6h, 1h30m. A number alone is seconds."""
    until: str = ""
    """Train until the clock shows this time: 07:00."""
    steps: int = 0
    """Train for so many optimizer steps."""
    tokens: int = 0
    """Train on so many tokens."""
    data_epochs: float = 0.0
    """Read the text so many times."""
    iters_per_epoch: int = 400
    """Optimizer steps in an epoch."""
    batch_size: int = 64
    """Blocks of text in one optimizer step."""
    grad_accum_steps: int = 1
    """Parts that a batch is computed in, to save memory; the result stays that of the whole batch."""
    learning_rate: float = 5e-4
    """Peak learning rate, reached after the warm-up."""
    min_learning_rate: float = 5e-5
    """Learning rate at the last step of a cosine."""
    schedule: Literal["auto", "cosine", "wsd"] = "auto"
    """How the rate falls after the warm-up: along half a cosine, or not at all and then in a straight line to zero,
    which lets a run be trained further; auto takes that with --for and --until, else the cosine."""
    cooldown: float = 0.6
    """Last part of the budget in which a wsd's rate falls; 1 lets it fall from the start."""
    warmup_steps: int = 200
    """Steps of linear rise to the peak (at most half of the run, or a twentieth of its time)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What moves the weights: adamw; or muon, which needs about half the steps (it takes the matrices inside the
    blocks, AdamW the rest, and likes a learning rate of 2e-3)."""
    weight_decay: float = 0.01
    """The optimizer's decay of all weight matrices, embeddings among them."""
    token_noise: float = 0.0
    """Share of the tokens read in training that random ones of the text stand in for; a text that is read many times
    is not learned by heart then."""
    beta2: float = 0.999
    """AdamW's memory of squared gradients; small batches like a shorter one, such as 0.99."""
    grad_clip: float = 1.0
    """Longest gradient, as its norm over all parameters; 0 turns clipping off."""
    eval_interval: int = 100
    """Steps between two refreshes of train_loss and val_loss; where a clock ends the run, only how much text these are
    of, since they come 40 times then."""
    seed: int = 1337
    """Same seed, same machine: same numbers."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the matrix products; auto takes bf16 where it is faster. Weights are kept in fp32."""
    backend: Literal["auto", "eager", "fused", "compiled", "cuda_graph"] = "auto"
    """How a step is computed: plain (by torch's own kernels), fused (by tiny_gpt's, on a processor), captured (torch's,
    recorded as a CUDA graph) or compiled (by torch.compile); auto measures which is the fastest here."""
    deterministic: bool = False
    """Same numbers on a GPU too, more slowly; a CPU always gives them."""
    start_from: str = ""
    """A model whose weights, shape and tokenizer the training begins with: a run, a model file or an exported
    folder."""
    out_dir: str = ""
    """The run's folder, for its model files, checkpoints and metrics; without it runs/NAME, named after the text."""
    verbose: bool = False
    """Tell more: which paths were measured, and how they did."""
    auto: Annotated[tuple[str, ...], Suppress] = ()
    """Settings whose values are not settled yet: they are chosen by the text, the budget and the machine."""

    def __post_init__(self) -> None:
        self._check_budget()
        _require_positive(
            self,
            "epochs",
            "iters_per_epoch",
            "batch_size",
            "grad_accum_steps",
            "learning_rate",
            "eval_interval",
        )
        _require(
            "batch_size" in self.auto or self.batch_size % self.grad_accum_steps == 0,
            f"--batch-size {self.batch_size} does not divide into --grad-accum-steps {self.grad_accum_steps} parts",
        )
        highest = math.inf if self.schedule_taken == "wsd" else self.learning_rate  # which comes to zero
        _require(
            0 <= self.min_learning_rate <= highest,
            f"--min-learning-rate {self.min_learning_rate}: must be between 0 and --learning-rate {self.learning_rate}",
        )
        _require(0 < self.cooldown <= 1, f"--cooldown {self.cooldown}: must be above 0 and at most 1")
        _require(self.warmup_steps >= 0, f"--warmup-steps {self.warmup_steps}: must not be negative")
        _require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        _require(0 <= self.token_noise < 1, f"--token-noise {self.token_noise}: must be at least 0 and below 1")
        _require(0 <= self.beta2 < 1, f"--beta2 {self.beta2}: must be at least 0 and below 1")
        _require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: must be at least 0 and below 2^63")

    def _check_budget(self) -> None:
        given = [name for name in BUDGETS[:-1] if getattr(self, name)]
        _require(len(given) < 2, two_budgets(given))
        for name in ("steps", "tokens", "data_epochs"):
            value = getattr(self, name)
            _require(0 <= value < 1e15, f"{flag(name)} {value}: must be above zero")
        try:
            if self.for_:
                seconds_of(self.for_)
        except ValueError:
            raise UsageError(f"--for {self.for_}: give a time such as 90s, 5m, 6h or 1h30m, up to a year") from None
        try:
            if self.until:
                next_time(self.until, 0.0)
        except ValueError:
            raise UsageError(f"--until {self.until}: give a time of day from 00:00 to 23:59, such as 07:00") from None

    @property
    def budget(self) -> str:
        """Which of BUDGETS says how long the run is."""
        return next((name for name in BUDGETS if getattr(self, name)), BUDGETS[-1])

    @property
    def is_timed(self) -> bool:
        """Whether a clock ends the run, not a number of steps."""
        return self.budget in TIMED

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 where a clock, or the length of the text, is yet to say."""
        known = {"steps": self.steps, "epochs": self.epochs * self.iters_per_epoch}
        return known.get(self.budget, 0)

    @property
    def schedule_taken(self) -> Literal["cosine", "wsd"]:
        """The schedule that `auto` stands for."""
        if self.schedule == "auto":
            return "wsd" if self.is_timed else "cosine"
        return self.schedule

    def without_budget(self) -> "TrainConfig":
        """This config with no budget but its epochs, for another one to be given.

        A cool-down from the start belongs to its budget: it ends a run, and the next one is to train it further.
        """
        default = TrainConfig()
        cooldown = default.cooldown if self.cooldown == 1 else self.cooldown
        return replace(self, cooldown=cooldown, **{name: getattr(default, name) for name in BUDGETS[:-1]})


@dataclass(frozen=True)
class ReliabilityConfig:
    """What keeps a run safe while nobody watches."""

    checkpoint_minutes: float = 3.0
    """Minutes between two checkpoints, which an epoch's end and a stop make too; more where saving is slow."""
    watchdog: Annotated[bool, FLAG_OFF] = True
    """Without it, the training is started again from its last checkpoint if it crashes, hangs or is killed."""
    keep_awake: Annotated[bool, FLAG_OFF] = True
    """Without it, the machine is kept from falling asleep while it trains; the display may turn off."""

    def __post_init__(self) -> None:
        _require_positive(self, "checkpoint_minutes")


@dataclass(frozen=True)
class SampleConfig:
    """How text is drawn from a trained model."""

    prompt: str = "The"
    """Text to continue; may be empty."""
    max_tokens: int = 200
    """Tokens to write after the prompt."""
    temperature: float = 0.8
    """Below 1 more conservative, above 1 more daring; 0 always takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens only; 0 means all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together hold this probability."""
    min_p: float = 0.0
    """Choose among the tokens at least so many times as likely as the likeliest, such as 0.05."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text already holds become less likely."""
    stop: tuple[str, ...] = ()
    """Texts that end the writing where they would appear; they are left out."""
    num_samples: int = 3
    """Texts to write; the second has the next seed, and so on."""
    seed: int | None = None
    """Same seed, same text; none draws a new one and prints it."""
    device: str = "auto"
    """auto (a small model the cpu, a large one cuda, else mps, else cpu), cpu, mps, cuda or cuda:N."""
    precision: Literal["auto", "fp16", "fp32"] = "auto"
    """On a CPU, fp16 keeps the weights in 16 bits while writing, which is up to twice as fast; auto takes it there."""
    checkpoint: str = ""
    """The model to write with: a run, a model file or an exported folder; without it the best of the newest run."""

    def __post_init__(self) -> None:
        _require_positive(self, "max_tokens", "num_samples")
        _require(
            0 <= self.temperature < float("inf"),
            f"--temperature {self.temperature}: must be 0 or above; 0.5 is conservative, 1.0 creative",
        )
        _require(self.top_k >= 0, f"--top-k {self.top_k}: must be 0 (all tokens) or above")
        _require(0 < self.top_p <= 1, f"--top-p {self.top_p}: must be above 0 and at most 1")
        _require(0 <= self.min_p <= 1, f"--min-p {self.min_p}: must be between 0 and 1; 0.05 is usual")
        _require(
            0 < self.repetition_penalty < float("inf"),
            f"--repetition-penalty {self.repetition_penalty}: must be above 0; 1 changes nothing, 1.1 is mild",
        )
        _require("" not in self.stop, "--stop: an empty text stands everywhere; give at least one character")
        _require(
            self.seed is None or 0 <= self.seed < 2**63,
            f"--seed {self.seed}: must be at least 0 and below 2^63",
        )


@dataclass(frozen=True)
class OutputConfig:
    """Where prompts come from and how texts are shown."""

    prompt_file: str = ""
    """Take the prompt from this file; - is standard input."""
    interactive: bool = False
    """Continue one prompt after the other, as they are typed."""
    no_stream: bool = False
    """Show a text when it is done, not while it is written."""
    json: bool = False
    """Print one line of JSON for each text."""

    def __post_init__(self) -> None:
        _require(
            not (self.interactive and self.prompt_file),
            f"--interactive takes its prompts from what is typed: leave out --prompt-file {self.prompt_file}",
        )


@dataclass(frozen=True)
class EvalConfig:
    """How a model is scored on a text."""

    text_field: str = DataConfig.text_field
    """Field of .jsonl, column of .csv and .parquet, that holds the text."""
    encoding: str = DataConfig.encoding
    """Encoding of text files, such as cp1252; without it UTF-8, or UTF-16 by its byte order mark."""
    batch_size: int = 32
    """Blocks scored at once."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N."""

    def __post_init__(self) -> None:
        _require_positive(self, "batch_size")


@dataclass(frozen=True)
class RunConfig:
    """All that a training run was told. Field names are unique across the sections, so it also reads flat."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)

    def to_flat(self) -> dict[str, Any]:
        """{"n_layer": 4, ..., "epochs": 80, ...}, ready for JSON."""
        return {name: value for section in asdict(self).values() for name, value in section.items()}

    def with_flat(self, values: Mapping[str, Any], source: str) -> Self:
        """This config with the named settings replaced.

        Raises BadInputError, naming `source`, for an unknown name, a value of the wrong type or an impossible one.
        """
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        section_of = {setting.name: name for name, part in sections.items() for setting in fields(part)}
        changes: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for name, value in with_current_names(values).items():
            if name not in section_of:
                raise BadInputError(f"{source}: unknown setting {name!r}; known are {', '.join(sorted(section_of))}")
            part = sections[section_of[name]]
            changes[section_of[name]][name] = checked_value(type(part), name, value, source)
        try:
            return replace(self, **{name: replace(part, **changes[name]) for name, part in sections.items()})
        except UsageError as error:
            raise BadInputError(f"{source}: {error}") from error


def checked_value(section: type, name: str, value: Any, source: str) -> Any:
    """`value` as the type that the field `name` of `section` declares, or BadInputError: JSON has types of its own."""
    wanted = typing.get_type_hints(section)[name]
    if typing.get_origin(wanted) is Literal:
        ok, description = value in typing.get_args(wanted), "one of " + ", ".join(typing.get_args(wanted))
    elif wanted is float:
        ok, description = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        ok = ok and abs(value) <= sys.float_info.max
        value = float(value) if ok else value
    elif wanted is int:
        ok, description = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif wanted is bool:
        ok, description = isinstance(value, bool), "true or false"
    elif wanted is str:
        ok, description = isinstance(value, str), "a text"
    else:
        value = (value,) if isinstance(value, str) else value
        ok = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value, description = tuple(value) if ok else value, "a list of texts"
    if not ok:
        raise BadInputError(f"{source}: {name} must be {description}, but is {value!r}")
    return value


# What files of earlier versions call settings and values.
RENAMED_SETTINGS = {"path": "backend", "val_share": "val_fraction", "repeat": "data_epochs", "head_width": "head_dim"}
RENAMED_VALUES = {
    "architecture": {"classic": "gpt2", "modern": "qwen3"},
    "backend": {"plain": "eager", "captured": "cuda_graph"},
    "schedule": {"trapezoid": "wsd"},
}


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file of any version holds them, under the names and values of this version."""
    current = {RENAMED_SETTINGS.get(name, name): value for name, value in values.items()}
    for name, renamed in RENAMED_VALUES.items():
        if isinstance(value := current.get(name), str):
            current[name] = renamed.get(value, value)
    return current


# Settings that model files of earlier versions lack; their defaults are what those versions did.
ADDED_TO_MODEL = {"head_dim", "rope_theta"}


def model_config_from(values: Mapping[str, Any], source: str) -> ModelConfig:
    """A ModelConfig from a stranger's mapping; raises BadInputError naming `source`."""
    values = with_current_names(values)
    names = {setting.name for setting in fields(ModelConfig)}
    if not names - ADDED_TO_MODEL <= set(values) <= names:
        raise BadInputError(f"{source}: expected the model settings {sorted(names)}, found {sorted(map(str, values))}")
    try:
        return ModelConfig(**{name: checked_value(ModelConfig, name, values[name], source) for name in values})
    except UsageError as error:
        raise BadInputError(f"{source}: {error}") from error


def load_config(path: Path, base: RunConfig) -> RunConfig:
    """`base` with the settings of a saved `config.json`; raises BadInputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInputError(f"{path} is not a config.json: {error}") from error
    if not isinstance(values, dict):
        raise BadInputError(f"{path} is not a config.json: expected an object of settings")
    return base.with_flat(values, str(path))
