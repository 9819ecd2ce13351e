"""Complete, named configs to start from; every flag still overrides its part."""

from tiny_gpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig

# What `auto` chooses by the text, the budget and the machine, as training/plan/choices.py has it.
CHOSEN = (
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
)

RECIPES: dict[str, RunConfig] = {
    # The best by morning.
    "auto": RunConfig(
        ModelConfig(architecture="qwen3", n_head=1),  # which divides every width
        DataConfig(tokenizer="auto"),
        TrainConfig(schedule="wsd", min_learning_rate=0.0, beta2=0.99, auto=CHOSEN),
    ),
    # The guide's night: what the config's own defaults say.
    "overnight": RunConfig(),
}
