"""Complete, named configs to start from; every flag overrides its setting."""

from collections.abc import Collection
from dataclasses import replace

from tiny_gpt.config.data import DataConfig
from tiny_gpt.config.model import DEFAULT_HEAD_DIM, ModelConfig
from tiny_gpt.config.run import RunConfig
from tiny_gpt.config.training import TrainConfig

# Length of a run for which the user gave none: enough for a first impression; `resume RUN --for 8h` extends it.
DEFAULT_DURATION = "5m"

# The settings that the recipe `auto` chooses from the text, the budget and the machine (planning/heuristics.py).
AUTO_SETTINGS = (
    "n_layer",
    "n_head",
    "d_model",
    "d_ff",
    "block_size",
    "dropout",
    "optimizer",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "sequence_warmup",
    "weight_decay",
    "token_noise",
    "teachers",
    "students",
    "pretrainings",
    "lora",
)

RECIPES: dict[str, RunConfig] = {
    # The best model for the given text, time and machine.
    "auto": RunConfig(
        ModelConfig(architecture="qwen3", n_head=1),  # one head divides every width until both are chosen
        DataConfig(tokenizer="auto"),
        TrainConfig(schedule="wsd", min_learning_rate=0.0, beta2=0.99, auto=AUTO_SETTINGS),
    ),
    # The overnight training of the guide: the defaults of the config classes.
    "overnight": RunConfig(),
}


def without_choices(config: RunConfig, given: Collection[str], n_head: int = 0) -> RunConfig:
    """`config` with the settings called `given` removed from `train.auto`, so that they are not chosen.

    `n_head` is the number of heads, if that is given.
    """
    auto = tuple(name for name in config.train.auto if name not in given)
    model = config.model
    if n_head > 0 and "d_model" in auto:
        # A width that this many heads divide, so that the config is valid until a width is chosen.
        model = replace(model, d_model=DEFAULT_HEAD_DIM * n_head)
    return replace(config, model=model, train=replace(config.train, auto=auto))
