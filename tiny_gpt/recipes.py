"""Complete, named configs to start from; every flag still overrides its part."""

from tiny_gpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig

RECIPES: dict[str, RunConfig] = {
    # The guide's night: what the config's own defaults say.
    "overnight": RunConfig(),
    # A few minutes on a laptop's processor, for a first look.
    "first": RunConfig(
        ModelConfig(n_layer=4, n_head=4, d_model=192, d_ff=768, block_size=128, dropout=0.0),
        DataConfig(data=("python-docs",)),
        TrainConfig(epochs=5, batch_size=16, learning_rate=2e-3, min_learning_rate=1e-4, beta2=0.99),
    ),
}
