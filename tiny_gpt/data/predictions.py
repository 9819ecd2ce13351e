"""What teachers predict at each position of a text: the most likely tokens and their probabilities.

A student's targets are made of them and of the text itself. Shapes: P positions of the text, N tokens kept for each.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.soft_targets import SoftTargets


@dataclass(frozen=True)
class Predictions:
    """Predictions of every token of a text from those before it."""

    ids_PN: NDArray[np.unsignedinteger]
    probabilities_PN: NDArray[np.float16]
    """Those of a position sum to 1; a position without a prediction has zeros only."""
    weight: float
    """Of the predictions in the targets; the token in the text has the rest."""

    def soft_targets(self, positions_BT: NDArray[np.int64], targets_BT: torch.Tensor) -> SoftTargets:
        """The targets at `positions_BT`, whose tokens in the text are `targets_BT`."""
        ids_BTN = torch.from_numpy(self.ids_PN[positions_BT].astype(np.int64))
        weights_BTN = torch.from_numpy(self.probabilities_PN[positions_BT].astype(np.float32)) * self.weight
        # In float16 they sum to 1 nearly.
        own_BT = 1 - weights_BTN.sum(-1)
        is_target_BTN = ids_BTN == targets_BT[..., None]
        weights_BTN += is_target_BTN * own_BT[..., None]
        # A target that is not among the predictions gets its own entry.
        is_missing_BT = ~is_target_BTN.any(-1)
        extra_ids_BT = torch.where(is_missing_BT, targets_BT, -1)
        extra_weights_BT = torch.where(is_missing_BT, own_BT, 0.0)
        return SoftTargets(
            torch.cat((extra_ids_BT[..., None], ids_BTN), dim=-1),
            torch.cat((extra_weights_BT[..., None], weights_BTN), dim=-1),
        )
