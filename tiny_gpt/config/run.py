"""All settings of a training run, and how they are saved and read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from tiny_gpt.config.data import DataConfig
from tiny_gpt.config.model import ModelConfig
from tiny_gpt.config.reliability import ReliabilityConfig
from tiny_gpt.config.saved import checked_value, with_current_names
from tiny_gpt.config.training import TrainConfig
from tiny_gpt.errors import BadInputError, UsageError

# Names in a run's folder.
BEST_FILE = "tiny_gpt_best.pt"
FINAL_FILE = "tiny_gpt_final.pt"
CONFIG_FILE = "config.json"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
SAMPLES_FOLDER = "samples"
SAMPLE_INDEX_FILE = "index.jsonl"
STATUS_FILE = "status.json"
TRACKERS_FOLDER = "trackers"
REPORT_FILE = "report.html"
TEXT_FACTS_FILE = "text_facts.json"
# The model that adapters are trained beside (run/adapters.py).
BASE_FILE = "base.pt"
# What stages before the last leave (run/stages.py).
PRETRAINED_FILE = "pretrained.pt"
TEACHERS_FOLDER = "teachers"
MODELS_FOLDER = "models"
CHECKPOINTS_FOLDER = "checkpoints"
# All that a run writes to its folder, but for the lock and earlier runs.
RUN_FILES = (
    BEST_FILE,
    FINAL_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    PLAN_FILE,
    METRICS_FILE,
    LOG_FILE,
    SAMPLES_FOLDER,
    REPORT_FILE,
    STATUS_FILE,
    TEXT_FACTS_FILE,
    PRETRAINED_FILE,
    TEACHERS_FOLDER,
    MODELS_FOLDER,
    BASE_FILE,
    TRACKERS_FOLDER,
)


def sample_file(step: int) -> str:
    """The name, in SAMPLES_FOLDER, of the sample of the model of `step`."""
    return f"step-{step:08}.txt"


@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run. Field names are unique across the sections, so config.json is one flat object."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)

    def to_flat(self) -> dict[str, Any]:
        """{"n_layer": 4, ..., "epochs": 80, ...}, ready for JSON."""
        return {name: value for section in asdict(self).values() for name, value in section.items()}

    def with_flat(self, values: Mapping[str, Any], source: str) -> Self:
        """This config with the settings in `values` replaced.

        Raises BadInputError, naming `source`, for an unknown name and for an invalid value.
        """
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        section_of = {setting.name: name for name, part in sections.items() for setting in fields(part)}
        changes: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for name, value in with_current_names(values).items():
            if name not in section_of:
                raise BadInputError(
                    f"{source}: unknown setting {name!r}; known are {', '.join(sorted(section_of))}",
                    code="setting-unknown",
                )
            part = sections[section_of[name]]
            changes[section_of[name]][name] = checked_value(type(part), name, value, source)
        try:
            return replace(self, **{name: replace(part, **changes[name]) for name, part in sections.items()})
        except UsageError as error:
            raise BadInputError(f"{source}: {error}", code=error.code) from error


def load_config(path: Path, base: RunConfig) -> RunConfig:
    """`base` with the settings of a saved config.json; raises BadInputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read the config {path}: {error.strerror}"
        raise BadInputError(message, code="config-unreadable") from error
    except ValueError as error:
        raise BadInputError(f"{path} is not a config.json: {error}", code="config-not-json") from error
    if not isinstance(values, dict):
        message = f"{path} is not a config.json: expected an object of settings"
        raise BadInputError(message, code="config-not-an-object")
    return base.with_flat(values, str(path))
