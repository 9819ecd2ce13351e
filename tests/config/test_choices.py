"""Names that settings choose from: each has exactly one implementation, is shown by --help and is accepted."""

import contextlib
import io
import re
from typing import get_args, get_type_hints

import pytest

from tiny_gpt.backends import BACKENDS
from tiny_gpt.cli.main import main
from tiny_gpt.config import (
    ARCHITECTURES,
    TOKENIZER_SETTINGS,
    ArchitectureName,
    BackendName,
    DataConfig,
    ExportFormat,
    ModelConfig,
    OptimizerName,
    PrecisionName,
    RecipeName,
    ScheduleName,
    TokenizerName,
    TrackerName,
    TrainConfig,
)
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.device import PRECISIONS
from tiny_gpt.errors import UsageError
from tiny_gpt.export.export import EXPORTERS
from tiny_gpt.tokenizer.base import TOKENIZERS
from tiny_gpt.trackers.registry import TRACKERS
from tiny_gpt.training.optimizer import OPTIMIZERS
from tiny_gpt.training.schedule import SCHEDULES

# (names in config, their implementations, command and flag that chooses one, other values of the flag)
KINDS = {
    "architecture": (ArchitectureName, ARCHITECTURES, "train --architecture", ()),
    "tokenizer": (TokenizerName, TOKENIZERS, "train --tokenizer", ("auto",)),
    "optimizer": (OptimizerName, OPTIMIZERS, "train --optimizer", ()),
    "schedule": (ScheduleName, SCHEDULES, "train --schedule", ("auto",)),
    "backend": (BackendName, BACKENDS, "train --backend", ("auto",)),
    "precision": (PrecisionName, PRECISIONS, "train --precision", ("auto",)),
    "export format": (ExportFormat, EXPORTERS, "export --to", ()),
    "tracker": (TrackerName, TRACKERS, "train --track", ()),
    "recipe": (RecipeName, RECIPES, "train --recipe", ()),
}
all_kinds = pytest.mark.parametrize(("names", "table", "flag", "others"), KINDS.values(), ids=KINDS)


@all_kinds
def test_every_name_has_one_implementation(names, table, flag, others):
    assert sorted(get_args(names)) == sorted(table)


@all_kinds
def test_help_shows_every_name(names, table, flag, others, monkeypatch):
    command, flag = flag.split()
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([command, "--help"]) == 0
    shown = re.search(rf"{flag} {{(.*?)}}", out.getvalue())
    assert shown and {*get_args(names), *others} == set(shown[1].split(","))


@pytest.mark.parametrize("field", ["optimizer", "schedule", "backend", "precision"])
def test_train_config_accepts_every_name(field):
    for name in get_args(get_type_hints(TrainConfig)[field]):
        assert getattr(TrainConfig(**{field: name}), field) == name


def test_model_config_accepts_every_architecture():
    for name in ARCHITECTURES:
        assert ModelConfig(architecture=name).traits is ARCHITECTURES[name]


def test_data_config_accepts_every_tokenizer_and_no_other():
    for name in (*TOKENIZER_SETTINGS, "my/tokenizer.json"):
        DataConfig(tokenizer=name)
    with pytest.raises(UsageError, match="--tokenizer words") as error:
        DataConfig(tokenizer="words")
    assert error.value.code == "tokenizer-unknown"
    assert all(name in str(error.value) for name in TOKENIZER_SETTINGS)
