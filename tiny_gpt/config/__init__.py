"""Every setting with its default, its help text and its limits, in one place.

Flags, `--help` and the saved config.json are generated from the fields of these frozen dataclasses, and their values
are checked when they are made. The defaults are those of the guide's overnight training. Imports no torch.

A field's docstring is its help text. Line breaks in it appear in `--help`, so they stand only between sentences.
"""

from tiny_gpt.config.architectures import ARCHITECTURES, Architecture
from tiny_gpt.config.checks import flag
from tiny_gpt.config.choices import (
    TOKENIZER_SETTINGS,
    BackendName,
    ExportFormat,
    OptimizerName,
    PrecisionName,
    RecipeName,
    ScheduleName,
    TokenizerName,
    TrackerName,
)
from tiny_gpt.config.data import MAX_VOCAB_SIZE, NO_FIRST, DataConfig
from tiny_gpt.config.model import DEFAULT_HEAD_DIM, ArchitectureName, ModelConfig
from tiny_gpt.config.reliability import ReliabilityConfig
from tiny_gpt.config.reporting import ReportingConfig
from tiny_gpt.config.run import (
    BASE_FILE,
    BEST_FILE,
    CONFIG_FILE,
    FINAL_FILE,
    LOG_FILE,
    METRICS_FILE,
    MODELS_FOLDER,
    PLAN_FILE,
    PRETRAINED_FILE,
    REPORT_FILE,
    SAMPLE_INDEX_FILE,
    SAMPLES_FOLDER,
    STATUS_FILE,
    TEACHERS_FOLDER,
    TEXT_FACTS_FILE,
    TRACKERS_FOLDER,
    RunConfig,
    load_config,
    sample_file,
)
from tiny_gpt.config.sampling import EvalConfig, OutputConfig, SampleConfig
from tiny_gpt.config.saved import model_config_from
from tiny_gpt.config.serve import ServeConfig
from tiny_gpt.config.training import BUDGETS, TrainConfig
from tiny_gpt.config.web import WebConfig

__all__ = [
    "ARCHITECTURES",
    "BASE_FILE",
    "BEST_FILE",
    "BUDGETS",
    "CONFIG_FILE",
    "DEFAULT_HEAD_DIM",
    "FINAL_FILE",
    "LOG_FILE",
    "MAX_VOCAB_SIZE",
    "METRICS_FILE",
    "MODELS_FOLDER",
    "NO_FIRST",
    "PLAN_FILE",
    "PRETRAINED_FILE",
    "REPORT_FILE",
    "SAMPLES_FOLDER",
    "SAMPLE_INDEX_FILE",
    "STATUS_FILE",
    "TEACHERS_FOLDER",
    "TEXT_FACTS_FILE",
    "TOKENIZER_SETTINGS",
    "TRACKERS_FOLDER",
    "Architecture",
    "ArchitectureName",
    "BackendName",
    "DataConfig",
    "EvalConfig",
    "ExportFormat",
    "ModelConfig",
    "OptimizerName",
    "OutputConfig",
    "PrecisionName",
    "RecipeName",
    "ReliabilityConfig",
    "ReportingConfig",
    "RunConfig",
    "SampleConfig",
    "ScheduleName",
    "ServeConfig",
    "TokenizerName",
    "TrackerName",
    "TrainConfig",
    "WebConfig",
    "flag",
    "load_config",
    "model_config_from",
    "sample_file",
]
