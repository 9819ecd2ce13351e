"""What a person may say after `tiny-gpt VERB`: for each verb its settings and flags, from which --help is made."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from tiny_gpt.config import BEST_FILE, DataConfig, EvalConfig, OutputConfig, RunConfig, SampleConfig
from tiny_gpt.errors import UsageError


@dataclass(frozen=True)
class Beginning:
    """What becomes of an unfinished run in the same folder; on a terminal you are asked."""

    resume: bool = False
    """Go on with it."""
    new: bool = False
    """Leave it as it is and begin a new run."""

    def __post_init__(self) -> None:
        if self.resume and self.new:
            raise UsageError("--resume and --new: give one of them")


@dataclass(frozen=True)
class StartingPoint(Beginning):
    """Where the settings come from before the flags below change them, and what becomes of an unfinished run."""

    recipe: Literal["auto", "overnight"] | None = None
    """auto, which is taken without one, chooses what you do not say by the text, the time and this machine; overnight
    is the guide's night."""
    config: str | None = None
    """A saved config.json to run again."""


@dataclass(frozen=True)
class ScriptCommand(RunConfig):
    """Train a model as the guide says; the settings at the top of train.py are the defaults."""

    config: str | None = None
    """A saved config.json to run again, instead of the settings in train.py."""
    beginning: Beginning = field(default_factory=Beginning)


@dataclass(frozen=True)
class TrainCommand(RunConfig):
    """Train a model on your text; its folder, runs/NAME, gets tiny_gpt_best.pt and all else."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SOURCE ...]")] = ()
    """Your text: files, folders, patterns, - for standard input, addresses or known texts; the same as --data."""
    start: StartingPoint = field(default_factory=StartingPoint)


@dataclass(frozen=True)
class PlanCommand(RunConfig):
    """Say what a training would be: model, time, memory, and how good it would become. Measures this machine first."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[SOURCE ...]")] = ()
    """Your text, named as for train."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON."""


@dataclass(frozen=True)
class ResumeCommand(RunConfig):
    """Go on with a run that was stopped, from its newest whole checkpoint. Flags change its settings."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """A run's folder, or its name below runs/; without it the unfinished one that was worked on last."""


@dataclass(frozen=True)
class GenerateScript:
    """Write text with a trained model."""

    sample: SampleConfig = field(default_factory=SampleConfig)
    manner: OutputConfig = field(default_factory=OutputConfig)


# What inference.py writes with is what train.py made beside it.
SCRIPT = GenerateScript(SampleConfig(checkpoint=BEST_FILE))


@dataclass(frozen=True)
class GenerateCommand(GenerateScript):
    """Write text with a trained model."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = ""
    """A run, a model file or an exported folder; the same as --checkpoint."""


@dataclass(frozen=True)
class DataCommand:
    """Look at your text before you train on it: size, scripts, repetitions, tokens, and what it means for a night.

    `tiny-gpt data list` shows the known texts.
    """

    data: DataConfig
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE ...")] = ()
    """Your text: files, folders, patterns, - for standard input, addresses or known texts."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON."""


@dataclass(frozen=True)
class EvalCommand:
    """Score a trained model on a text."""

    eval: EvalConfig
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run, a model file or an exported folder."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE ...")]
    """The text, named as for train."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a trained model as a folder that other tools read."""

    to: Literal["hf", "gguf", "safetensors"]
    """hf: transformers and (qwen3) mlx-lm; gguf: llama.cpp, Ollama, LM Studio; safetensors: by our own names."""
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = ""
    """A model file, a run's folder or its name below runs/; without it the newest run's best model."""
    out: str = ""
    """The folder to write, which must not exist; without it NAME-hf, NAME-gguf or NAME-safetensors here."""


@dataclass(frozen=True)
class ImportCommand:
    """Make a model file of a folder in Hugging Face's form: GPT-2's or Qwen3's architecture, in safetensors."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder, with config.json, model.safetensors and tokenizer.json."""
    out: str = ""
    """The model file to write, which must not exist; without it NAME.pt here, after the folder."""


@dataclass(frozen=True)
class DoctorCommand:
    """Hold this machine's arithmetic against exact references before a night is spent on it."""

    device: str = "all"
    """all, auto, cpu, mps, cuda or cuda:N."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON."""


def told_as(config: RunConfig, names: Collection[str], words: str) -> RunConfig:
    """`config` for --help, which tells `words` as the defaults of the settings called `names`."""
    sections = {section.name: getattr(config, section.name) for section in fields(config)}
    return replace(config, **{name: _told_as(section, names, words) for name, section in sections.items()})


def _told_as(section: Any, names: Collection[str], words: str) -> Any:
    kind, hint = type(section), tyro.conf.arg(help_behavior_hint=f"(default: {words})")
    types = get_type_hints(kind, include_extras=True)
    settings = [
        (one.name, Annotated[types[one.name], hint], one.default) for one in fields(section) if one.name in names
    ]
    told = make_dataclass(kind.__name__, settings, bases=(kind,), namespace={"__doc__": kind.__doc__}, frozen=True)
    return told(**{one.name: getattr(section, one.name) for one in fields(section)})
