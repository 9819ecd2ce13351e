"""Settings: one default in one place, every limit names its flag, saved values are checked."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli.generate import SCRIPT_DEFAULTS
from tiny_gpt.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OutputConfig,
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
SECTIONS = (ModelConfig, DataConfig, TrainConfig, ReliabilityConfig)


def train_py_settings():
    spec = importlib.util.spec_from_file_location("train_py", Path(ROOT) / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SETTINGS


class TestDefaults:
    def test_are_the_guides_values(self):
        flat = RunConfig().to_flat()
        assert {name: flat[name] for name in GUIDE} == GUIDE
        assert flat["eval_interval"] == 100  # "Show progress every 100 iterations"
        assert flat["architecture"] == "gpt2" and flat["out_dir"] == "" and flat["grad_accum_steps"] == 1

    def test_train_py_repeats_them(self):
        settings = train_py_settings()
        assert settings.keys() >= GUIDE.keys()
        assert settings.pop("out_dir") == ".", "the guide's model files appear beside train.py, not in runs/"
        assert RunConfig().with_flat(settings, "train.py") == RunConfig() == RECIPES["overnight"]

    def test_inference_py_has_the_guides_values(self):
        sample = SCRIPT_DEFAULTS.sampling
        assert (sample.checkpoint, sample.prompt, sample.temperature) == ("tiny_gpt_best.pt", "The", 0.8)
        assert (sample.max_tokens, sample.num_samples) == (200, 3)

    def test_setting_names_are_unique(self):
        names = [setting.name for section in SECTIONS for setting in fields(section)]
        assert len(names) == len(set(names)) == len(RunConfig().to_flat())


class TestSavedConfig:
    @pytest.mark.parametrize(
        "config",
        [
            *RECIPES.values(),
            RunConfig().with_flat(
                dict(n_layer=2, dropout=0.0, data=("a.txt", "b"), tokenizer="byte", epochs=3, seed=2**63 - 1), "test"
            ),
        ],
    )
    def test_round_trip_is_exact(self, tmp_path, config):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config.to_flat()))
        assert load_config(path, RunConfig()) == config
        assert RunConfig().with_flat(config.to_flat(), "test") == config

    def test_unnamed_settings_keep_the_base_value(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text('{"n_layer": 7, "learning_rate": 1, "data": "one.txt"}')
        expected = RECIPES["auto"].to_flat() | {"n_layer": 7, "learning_rate": 1.0, "data": ("one.txt",)}
        assert load_config(path, RECIPES["auto"]).to_flat() == expected

    def test_names_of_earlier_versions_are_translated(self):
        old = dict(
            path="captured", val_share=0.2, repeat=3.0, head_width=16, architecture="modern", schedule="trapezoid"
        )
        flat = RunConfig().with_flat(old, "test").to_flat()
        expected = dict(
            backend="cuda_graph", val_fraction=0.2, data_epochs=3.0, head_dim=16, architecture="qwen3", schedule="wsd"
        )
        assert expected.items() <= flat.items()

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
    def test_wrong_type_names_setting_and_file(self, tmp_path, name, value):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({name: value}))
        with pytest.raises(BadInputError) as error:
            load_config(path, RunConfig())
        assert error.value.code == "setting-wrong-type"
        assert str(error.value).startswith(f"{path}: {name} ")

    def test_unknown_setting_lists_known_ones(self):
        with pytest.raises(BadInputError, match=r"mine: .*'n_layers'.*n_layer") as error:
            RunConfig().with_flat({"n_layers": 4}, "mine")
        assert error.value.code == "setting-unknown"

    def test_invalid_value_names_file_and_flag(self):
        with pytest.raises(BadInputError, match=r"^train\.py: --batch-size 0: ") as error:
            RunConfig().with_flat({"batch_size": 0}, "train.py")
        assert error.value.code == "value-not-positive"

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            *((content, "config-not-json") for content in (b"", b"{", b"\xff\xfe", b"PK\3\4")),
            *((content, "config-not-an-object") for content in (b"[1]", b"null", b'"n_layer"')),
        ],
    )
    def test_other_files_are_refused_by_name(self, tmp_path, content, code):
        path = tmp_path / "config.json"
        path.write_bytes(content)
        with pytest.raises(BadInputError) as error:
            load_config(path, RunConfig())
        assert error.value.code == code and str(path) in str(error.value)

    def test_missing_file_gives_the_reason(self):
        with pytest.raises(BadInputError, match=r"nosuch\.json: No such file") as error:
            load_config(Path("nosuch.json"), RunConfig())
        assert error.value.code == "config-unreadable"


NAN, INFINITE = float("nan"), float("inf")
OUT_OF_RANGE = [
    *(
        (ModelConfig, name, value)
        for name in ("n_layer", "n_head", "d_model", "d_ff", "block_size")
        for value in (0, -1)
    ),
    *((ModelConfig, "dropout", value) for value in (-0.1, 1.0, NAN)),
    (ModelConfig, "head_dim", -1),
    *((ModelConfig, "rope_theta", value) for value in (0.0, NAN, INFINITE)),
    (DataConfig, "data", ()),
    *((DataConfig, "val_fraction", value) for value in (0.0, 1.0, NAN)),
    *((TrainConfig, name, 0) for name in ("epochs", "iters_per_epoch", "batch_size", "grad_accum_steps")),
    *((TrainConfig, name, 0) for name in ("learning_rate", "eval_interval")),
    (TrainConfig, "learning_rate", NAN),
    (TrainConfig, "grad_accum_steps", 65),
    *((TrainConfig, "min_learning_rate", value) for value in (-1e-9, 1.0, NAN)),
    *((TrainConfig, name, -1) for name in ("warmup_steps", "weight_decay", "grad_clip", "seed")),
    *((TrainConfig, name, NAN) for name in ("weight_decay", "grad_clip")),
    *((TrainConfig, name, value) for name in ("beta2", "token_noise") for value in (-0.1, 1.0, NAN)),
    *((TrainConfig, "cooldown", value) for value in (0.0, 1.1, NAN)),
    (TrainConfig, "seed", 2**63),
    *((ReliabilityConfig, "checkpoint_minutes", value) for value in (0.0, NAN)),
    *((SampleConfig, name, 0) for name in ("max_tokens", "num_samples", "top_p")),
    *((SampleConfig, name, -1) for name in ("temperature", "top_k", "seed")),
    *((SampleConfig, "temperature", value) for value in (NAN, INFINITE)),
    *((SampleConfig, "top_p", value) for value in (1.1, NAN)),
    *((SampleConfig, "min_p", value) for value in (-0.1, 1.1, NAN)),
    *((SampleConfig, "repetition_penalty", value) for value in (0.0, NAN, INFINITE)),
    (SampleConfig, "seed", 2**63),
    (EvalConfig, "batch_size", 0),
]


class TestLimits:
    @pytest.mark.parametrize(("section", "name", "value"), OUT_OF_RANGE)
    def test_error_names_flag_and_value(self, section, name, value):
        with pytest.raises(UsageError) as error:
            section(**{name: value})
        assert flag(name) in str(error.value) and (value == () or str(value) in str(error.value))
        assert error.value.code

    @pytest.mark.parametrize(
        ("section", "values"),
        [
            (ModelConfig, dict(n_layer=1, n_head=1, d_model=1, d_ff=1, block_size=1, dropout=0.0)),
            (TrainConfig, dict(epochs=1, iters_per_epoch=1, batch_size=1, warmup_steps=0, weight_decay=0.0)),
            (TrainConfig, dict(min_learning_rate=0.0, beta2=0.0, seed=0, grad_clip=0.0)),
            (TrainConfig, dict(min_learning_rate=1e-3, learning_rate=1e-3, seed=2**63 - 1)),
            (SampleConfig, dict(max_tokens=1, temperature=0.0, top_k=0, top_p=1.0, num_samples=1, seed=0, prompt="")),
        ],
    )
    def test_extreme_values_are_allowed(self, section, values):
        section(**values)

    @pytest.mark.parametrize(("d_model", "n_head"), [(10, 8), (3, 8), (250, 8), (257, 16), (7, 3)])
    def test_indivisible_width_suggests_a_divisible_one(self, d_model, n_head):
        with pytest.raises(UsageError, match=f"--d-model {d_model} .*--n-head {n_head}") as error:
            ModelConfig(d_model=d_model, n_head=n_head)
        assert error.value.code == "d-model-not-divisible"
        suggested = int(str(error.value).rsplit(" ", 1)[1])
        assert ModelConfig(d_model=suggested, n_head=n_head).d_model % n_head == 0
        assert abs(suggested - d_model) <= n_head

    def test_rotary_positions_need_an_even_head_width(self):
        with pytest.raises(UsageError, match=r"--d-model 24 with --n-head 8") as error:
            ModelConfig(architecture="qwen3", d_model=24, n_head=8)
        assert error.value.code == "head-dim-odd"
        ModelConfig(architecture="gpt2", d_model=24, n_head=8)

    def test_only_qwen3_has_a_head_dim(self):
        with pytest.raises(UsageError, match="--head-dim 32") as error:
            ModelConfig(architecture="gpt2", head_dim=32)
        assert error.value.code == "head-dim-unsupported"

    def test_wsd_ignores_the_minimum_learning_rate(self):
        assert TrainConfig(schedule="wsd", learning_rate=1e-4, min_learning_rate=5e-4).min_learning_rate == 5e-4
        with pytest.raises(UsageError) as error:
            TrainConfig(schedule="cosine", learning_rate=1e-4, min_learning_rate=5e-4)
        assert error.value.code == "min-learning-rate-out-of-range"

    @pytest.mark.parametrize(
        ("values", "code"),
        [
            (dict(tokenizer="words"), "tokenizer-unknown"),
            (dict(tokenizer="char", vocab_size=512), "vocab-size-unsupported"),
            (dict(tokenizer="bpe", vocab_size=255), "vocab-size-out-of-range"),
            (dict(tokenizer="bpe", vocab_size=300_001), "vocab-size-out-of-range"),
        ],
    )
    def test_tokenizer_and_vocabulary_must_fit(self, values, code):
        with pytest.raises(UsageError) as error:
            DataConfig(**values)
        assert error.value.code == code

    def test_interactive_refuses_a_prompt_file(self):
        with pytest.raises(UsageError, match=r"--prompt-file a\.txt") as error:
            OutputConfig(interactive=True, prompt_file="a.txt")
        assert error.value.code == "interactive-with-prompt-file"


COMPLETE = {setting.name: setting.default for setting in fields(ModelConfig)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        COMPLETE | {"n_layer": 0},
        COMPLETE | {"n_layer": "4"},
        COMPLETE | {"more": 1},
        {name: value for name, value in COMPLETE.items() if name != "d_ff"},
        COMPLETE | {"d_model": 100, "n_head": 8},
        {1: 2},
    ],
)
def test_untrusted_model_config_is_checked(values):
    assert model_config_from(COMPLETE, "model.pt") == ModelConfig()
    with pytest.raises(BadInputError, match=r"^model\.pt: ") as error:
        model_config_from(values, "model.pt")
    assert error.value.code
