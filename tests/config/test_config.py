"""Settings: one default in one place, every limit named by its flag, strangers' JSON checked."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli.arguments import SCRIPT
from tiny_gpt.config import (
    DataConfig,
    ModelConfig,
    ReliabilityConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    flag,
    load_config,
    model_config_from,
)
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.errors import BadInputError, UsageError

# Copied by hand from the overnight training guide and from the script that it describes.
GUIDE = dict(
    epochs=80,
    iters_per_epoch=400,
    batch_size=64,
    block_size=128,
    n_layer=4,
    n_head=8,
    d_model=256,
    d_ff=1024,
    dropout=0.15,
    weight_decay=0.01,
    grad_clip=1.0,
    warmup_steps=200,
    learning_rate=0.0005,
    min_learning_rate=0.00005,
    tokenizer="char",
)


def train_py_settings():
    spec = importlib.util.spec_from_file_location("train_py", Path(ROOT) / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SETTINGS


def test_the_defaults_are_the_guides_numbers():
    flat = RunConfig().to_flat()
    assert {name: flat[name] for name in GUIDE} == GUIDE
    assert flat["eval_interval"] == 100  # "Show progress every 100 iterations"
    assert flat["architecture"] == "gpt2" and flat["out_dir"] == "" and flat["grad_accum_steps"] == 1


def test_the_settings_in_train_py_are_the_defaults():
    settings = train_py_settings()
    assert settings.keys() >= GUIDE.keys()
    assert settings.pop("out_dir") == ".", "the guide's model files appear beside train.py, not in runs/"
    assert RunConfig().with_flat(settings, "train.py") == RunConfig() == RECIPES["overnight"]


def test_inference_starts_as_the_guide_says():
    sample = SCRIPT.sample
    assert (sample.checkpoint, sample.prompt, sample.temperature) == ("tiny_gpt_best.pt", "The", 0.8)
    assert (sample.max_tokens, sample.num_samples) == (200, 3)


def test_every_setting_has_a_name_of_its_own_and_a_help_text():
    names = [
        setting.name
        for section in (ModelConfig, DataConfig, TrainConfig, ReliabilityConfig)
        for setting in fields(section)
    ]
    assert len(names) == len(set(names)) == len(RunConfig().to_flat())


CHANGED = dict(n_layer=2, dropout=0.0, data=("a.txt", "b"), tokenizer="byte", epochs=3, seed=2**63 - 1, device="cpu")


@pytest.mark.parametrize("config", [*RECIPES.values(), RunConfig().with_flat(CHANGED, "test")])
def test_a_config_saved_as_json_and_read_again_is_the_same(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_flat()))
    assert load_config(path, RunConfig()) == config
    assert RunConfig().with_flat(config.to_flat(), "test") == config


def test_settings_that_are_not_named_stay(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"n_layer": 7, "learning_rate": 1, "data": "one.txt"}')
    expected = RECIPES["auto"].to_flat() | {"n_layer": 7, "learning_rate": 1.0, "data": ("one.txt",)}
    assert load_config(path, RECIPES["auto"]).to_flat() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", "4"),
        ("n_layer", 4.0),
        ("n_layer", True),
        ("n_layer", None),
        ("n_layer", [4]),
        ("epochs", False),
        ("learning_rate", "5e-4"),
        ("learning_rate", True),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 10**400),
        ("architecture", "gpt5"),
        ("architecture", ["gpt2"]),
        ("tokenizer", None),
        ("device", 0),
        ("data", [1]),
        ("data", {"a": 1}),
        ("data", 7),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name_and_file(tmp_path, name, value):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({name: value}))
    with pytest.raises(BadInputError) as caught:
        load_config(path, RunConfig())
    assert str(caught.value).startswith(f"{path}: {name} must be ")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(BadInputError, match=r"mine: unknown setting 'n_layers'; known are .*n_layer"):
        RunConfig().with_flat({"n_layers": 4}, "mine")


def test_an_impossible_value_is_refused_with_the_name_of_its_file():
    with pytest.raises(BadInputError, match=r"^train\.py: --batch-size 0: must be above zero"):
        RunConfig().with_flat({"batch_size": 0}, "train.py")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'"n_layer"', b"\xff\xfe", b"PK\3\4"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"config\.json is not a config\.json"):
        load_config(path, RunConfig())


def test_a_missing_config_is_told():
    with pytest.raises(BadInputError, match=r"cannot read the config nosuch\.json: No such file"):
        load_config(Path("nosuch.json"), RunConfig())


NAN = float("nan")
LIMITS = [
    *(
        (ModelConfig, name, value)
        for name in ("n_layer", "n_head", "d_model", "d_ff", "block_size")
        for value in (0, -1)
    ),
    *((ModelConfig, "dropout", value) for value in (-0.1, 1.0, NAN)),
    (DataConfig, "data", ()),
    *((TrainConfig, name, 0) for name in ("epochs", "iters_per_epoch", "batch_size", "grad_accum_steps")),
    *((TrainConfig, name, 0) for name in ("learning_rate", "eval_interval")),
    (TrainConfig, "learning_rate", NAN),
    (TrainConfig, "grad_accum_steps", 7),
    *((TrainConfig, "min_learning_rate", value) for value in (-1e-9, 1.0, NAN)),
    *((TrainConfig, name, -1) for name in ("warmup_steps", "weight_decay", "grad_clip", "seed")),
    *((TrainConfig, name, NAN) for name in ("weight_decay", "grad_clip")),
    *((TrainConfig, "beta2", value) for value in (-0.1, 1.0, NAN)),
    (TrainConfig, "seed", 2**63),
    *((SampleConfig, name, 0) for name in ("max_tokens", "num_samples", "top_p")),
    *((SampleConfig, name, -1) for name in ("temperature", "top_k", "seed")),
    *((SampleConfig, "temperature", value) for value in (NAN, float("inf"))),
    *((SampleConfig, "top_p", value) for value in (1.1, NAN)),
    (SampleConfig, "seed", 2**63),
]


@pytest.mark.parametrize(("section", "name", "value"), LIMITS)
def test_every_limit_names_its_flag_and_what_was_given(section, name, value):
    with pytest.raises(UsageError) as caught:
        section(**{name: value})
    message = str(caught.value)
    assert flag(name) in message and (value == () or str(value) in message)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (ModelConfig, dict(n_layer=1, n_head=1, d_model=1, d_ff=1, block_size=1, dropout=0.0)),
        (TrainConfig, dict(epochs=1, iters_per_epoch=1, batch_size=1, warmup_steps=0, weight_decay=0.0, grad_clip=0.0)),
        (TrainConfig, dict(min_learning_rate=0.0, beta2=0.0, seed=0)),
        (TrainConfig, dict(min_learning_rate=1e-3, learning_rate=1e-3, seed=2**63 - 1)),
        (SampleConfig, dict(max_tokens=1, temperature=0.0, top_k=0, top_p=1.0, num_samples=1, seed=0, prompt="")),
    ],
)
def test_the_limits_themselves_are_allowed(section, values):
    section(**values)


@pytest.mark.parametrize(("d_model", "n_head"), [(10, 8), (3, 8), (250, 8), (257, 16), (7, 3)])
def test_a_width_that_does_not_divide_is_refused_with_one_that_does(d_model, n_head):
    with pytest.raises(UsageError, match=f"--d-model {d_model} is not divisible by --n-head {n_head}") as caught:
        ModelConfig(d_model=d_model, n_head=n_head)
    advised = int(str(caught.value).rsplit(" ", 1)[1])
    assert ModelConfig(d_model=advised, n_head=n_head).d_model % n_head == 0
    assert abs(advised - d_model) <= n_head


def test_rotary_positions_need_an_even_head_width():
    with pytest.raises(UsageError, match=r"--d-model 24 with --n-head 8.*must be even"):
        ModelConfig(architecture="qwen3", d_model=24, n_head=8)
    ModelConfig(architecture="gpt2", d_model=24, n_head=8)


WHOLE = {setting.name: setting.default for setting in fields(ModelConfig)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        WHOLE | {"n_layer": 0},
        WHOLE | {"n_layer": "4"},
        WHOLE | {"more": 1},
        {name: value for name, value in WHOLE.items() if name != "d_ff"},
        WHOLE | {"d_model": 100, "n_head": 8},
        {1: 2},
    ],
)
def test_a_strangers_model_config_is_refused_by_its_file(values):
    assert model_config_from(WHOLE, "model.pt") == ModelConfig()
    with pytest.raises(BadInputError, match=r"^model\.pt: "):
        model_config_from(values, "model.pt")


def test_a_rate_that_falls_to_zero_does_not_mind_a_cosines_end():
    assert TrainConfig(schedule="wsd", learning_rate=1e-4, min_learning_rate=5e-4).min_learning_rate == 5e-4
    with pytest.raises(UsageError, match="--min-learning-rate"):
        TrainConfig(schedule="cosine", learning_rate=1e-4, min_learning_rate=5e-4)
