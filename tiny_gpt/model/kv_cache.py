"""Keys and values of the positions so far, kept while generating so that each new token costs one position of work."""

import torch

from tiny_gpt.config import ModelConfig


class KVCache:
    """Keys and values of all layers, each (n_layer, B, H, n_positions, K). `n_positions` is at most block_size."""

    def __init__(
        self, config: ModelConfig, batch_size: int, n_positions: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, batch_size, config.n_head, n_positions, config.dim_per_head)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.length = 0
        """Positions filled so far."""

    def append(self, layer: int, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions of one layer. Returns the layer's keys and values of all positions so far.

        `length` does not change until `advance`, so that every layer writes to the same positions.
        """
        end = self.length + k_BHTK.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BHTK
        self.values[layer, :, :, self.length : end] = v_BHTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` positions as filled, after the last layer."""
        self.length += n_tokens
