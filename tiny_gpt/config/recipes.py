"""Complete, named configs to start from; every flag overrides its setting."""

from tiny_gpt.config.data import DataConfig
from tiny_gpt.config.model import ModelConfig
from tiny_gpt.config.run import RunConfig
from tiny_gpt.config.training import TrainConfig

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
    "weight_decay",
    "token_noise",
    "teachers",
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
