"""Judges every step before it touches the weights: a loss or gradient that is no number, or a jump, is skipped.

The judgement is made of tensors on the training device, so that a GPU need not wait for the host; the host reads the
counts when it likes. A jump is a loss more than SIGMAS standard deviations above the mean of the last WINDOW steps, as
OLMo and Levanter have it, and at least MIN_RISE above that mean: where a text is nearly known by heart the deviation
is next to nothing. A value that is no number never enters the window; a jump does, so that a text whose losses are
that uneven soon stops being taken for trouble.
"""

import math
from typing import Any

import torch

WINDOW = 128
MIN_KNOWN = 32
SIGMAS = 6.0
MIN_RISE = 0.1
# Trouble that skipping does not cure.
MAX_STREAK = 3
MAX_SKIPPED, SKIPPED_WITHIN = 10, 200
# Steps between two looks at the guard on a GPU, where each look waits for all queued work.
GUARD_INTERVAL = 16


class Guard:
    """What the last steps were like."""

    def __init__(self, device: torch.device) -> None:
        self._losses = torch.full((WINDOW,), math.nan, device=device)
        self._skipped = torch.zeros(SKIPPED_WITHIN, device=device)
        self._places, self._skip_places = (torch.arange(n, device=device) for n in (WINDOW, SKIPPED_WITHIN))
        self._streak = torch.zeros((), device=device)
        self._longest_streak = torch.zeros((), device=device)
        self._n_skipped = torch.zeros((), device=device)

    def judge(self, step: int | torch.Tensor, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """1.0 if `step` is to be skipped, else 0.0; a tensor with one element on the device.

        All that is remembered stays in the same memory, so that this can be recorded (cuda_graph.py).
        """
        known = self._losses.isfinite()
        mean = self._losses.nanmean()
        deviation = (self._losses - mean).square().nanmean().sqrt()
        limit = torch.maximum(mean + SIGMAS * deviation, mean + MIN_RISE * mean.abs())
        is_number = loss.isfinite() & grad_norm.isfinite()
        jumps = (known.sum() >= MIN_KNOWN) & (loss > limit)
        skips = (~is_number | jumps).float()
        is_place = self._places == step % WINDOW
        self._losses.copy_(torch.where(is_place & loss.isfinite(), loss, self._losses))
        is_place = self._skip_places == step % SKIPPED_WITHIN
        self._skipped.copy_(torch.where(is_place, skips, self._skipped))
        self._n_skipped += skips
        self._streak.add_(1).mul_(skips)
        self._longest_streak.copy_(torch.maximum(self._longest_streak, self._streak))
        return skips

    def is_beyond_skipping(self) -> bool:
        """Whether the steps since this was last asked hold trouble that skipping does not cure.

        Waits for the device, as all that follows.
        """
        worst, n_skipped = self._longest_streak.item(), self._skipped.sum().item()
        self._longest_streak.copy_(self._streak)
        return worst >= MAX_STREAK or n_skipped >= MAX_SKIPPED

    def n_skipped_in_all(self) -> int:
        """How many steps were skipped since this guard was made."""
        return int(self._n_skipped.item())

    def is_calm(self) -> bool:
        """Whether the last step was taken: a checkpoint made now is worth stepping back to."""
        return self._streak.item() == 0

    def calm_down(self) -> None:
        """Forget the troubles, after stepping back from them."""
        self._skipped.zero_()
        self._streak.zero_()
        self._longest_streak.zero_()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; unknown losses are None."""
        losses = [loss if math.isfinite(loss) else None for loss in self._losses.tolist()]
        return {"losses": losses, "skipped": self._skipped.tolist(), "streak": self._streak.item()}

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take over what `to_dict` gave; raises ValueError, TypeError or KeyError for anything else."""
        losses = [math.nan if loss is None else float(loss) for loss in values["losses"]]
        skipped = [float(skip) for skip in values["skipped"]]
        if len(losses) != WINDOW or len(skipped) != SKIPPED_WITHIN:
            raise ValueError("the guard's window has another length")
        self._losses.copy_(torch.tensor(losses))
        self._skipped.copy_(torch.tensor(skipped))
        self._streak.fill_(float(values["streak"]))
        self._longest_streak.fill_(float(values["streak"]))
