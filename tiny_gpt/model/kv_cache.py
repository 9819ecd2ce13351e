"""Keys and values of the tokens read so far, so that each further token costs one step instead of a whole block."""

import torch

from tiny_gpt.config import ModelConfig


class KVCache:
    """Room for `n_positions` of every layer, at most block_size: (n_layer, B, H, T, K) each for keys and values."""

    def __init__(
        self, config: ModelConfig, batch_size: int, n_positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, batch_size, config.n_head, n_positions, config.dim_per_head)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.length = 0

    def append(self, layer: int, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions of one layer and return all so far. `advance` moves on, once for all layers."""
        end = self.length + k_BHTK.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BHTK
        self.values[layer, :, :, self.length : end] = v_BHTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        self.length += n_tokens
