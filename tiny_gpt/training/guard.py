"""Skips steps that would damage the weights: a NaN or infinite loss or gradient, and spikes of the loss.

A spike is a loss more than SIGMAS standard deviations above the mean of the last WINDOW losses, as in OLMo-core and
Levanter (window 128, 6 sigma), and above that mean by more than the fraction MIN_RISE of it.

All state lies in tensors on the training device. So the host need not wait for a GPU to decide, and a CUDA graph can
record the decision; the host reads the counts of a GPU only every GUARD_INTERVAL steps.
"""

import math
from typing import Any

import torch

WINDOW = 128
# Losses in the window before spikes are looked for: fewer make a poor estimate of the deviation.
MIN_HISTORY = 32
# For normally distributed losses a false alarm has a probability of 1e-9 per step, so none in a run. Real spikes, from
# a broken batch or a loss that diverges, lie far above.
SIGMAS = 6.0
# Where the model has nearly memorized the text the losses barely scatter, and 6 sigma is next to nothing. There a loss
# must also exceed the mean by this fraction of it.
MIN_RISE = 0.1
# The run rolls back, since skipping does not help, after MAX_STREAK skipped steps in a row or MAX_SKIPPED of the last
# SKIPS_WINDOW steps.
MAX_STREAK = 3
MAX_SKIPPED, SKIPS_WINDOW = 10, 200
# Steps between two reads of the counts on a GPU, where each read waits for all queued work.
GUARD_INTERVAL = 16


class Guard:
    """The losses of the last steps, and which of them were skipped."""

    def __init__(self, device: torch.device) -> None:
        # Ring buffers, indexed by step modulo their length; NaN is a loss that is not known.
        self._losses = torch.full((WINDOW,), math.nan, device=device)
        self._skipped = torch.zeros(SKIPS_WINDOW, device=device)
        self._loss_slots, self._skip_slots = (torch.arange(n, device=device) for n in (WINDOW, SKIPS_WINDOW))
        self._streak = torch.zeros((), device=device)
        """Skipped steps in a row, up to the last step."""
        self._longest_streak = torch.zeros((), device=device)
        """The longest since `needs_rollback` was last called: the host does not look after every step."""
        self._n_skipped = torch.zeros((), device=device)

    def should_skip(self, step: int | torch.Tensor, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """1.0 if `step` must not change the weights, else 0.0; a scalar on the device.

        The state is updated in place, never replaced, so that this can be recorded as a CUDA graph.
        """
        known = self._losses.isfinite()
        mean = self._losses.nanmean()
        deviation = (self._losses - mean).square().nanmean().sqrt()
        limit = torch.maximum(mean + SIGMAS * deviation, mean + MIN_RISE * mean.abs())
        is_finite = loss.isfinite() & grad_norm.isfinite()
        is_spike = (known.sum() >= MIN_HISTORY) & (loss > limit)
        skips = (~is_finite | is_spike).float()
        # A spike enters the window, so that a text whose losses scatter that much soon counts as normal. NaN does not.
        is_slot = self._loss_slots == step % WINDOW
        self._losses.copy_(torch.where(is_slot & loss.isfinite(), loss, self._losses))
        is_slot = self._skip_slots == step % SKIPS_WINDOW
        self._skipped.copy_(torch.where(is_slot, skips, self._skipped))
        self._n_skipped += skips
        self._streak.add_(1).mul_(skips)  # 0 after a step that was not skipped
        self._longest_streak.copy_(torch.maximum(self._longest_streak, self._streak))
        return skips

    # --- for the host; all of these wait for the device ---

    def needs_rollback(self) -> bool:
        """Whether skipping has not helped in the steps since the last call."""
        longest, n_skipped = self._longest_streak.item(), self._skipped.sum().item()
        self._longest_streak.copy_(self._streak)
        return longest >= MAX_STREAK or n_skipped >= MAX_SKIPPED

    def total_skipped(self) -> int:
        """How many steps were skipped since this guard was made."""
        return int(self._n_skipped.item())

    def is_healthy(self) -> bool:
        """Whether the last step was not skipped: only then is a checkpoint worth rolling back to."""
        return self._streak.item() == 0

    def reset_counts(self) -> None:
        """Forget the skipped steps, after rolling back from them; the losses stay."""
        self._skipped.zero_()
        self._streak.zero_()
        self._longest_streak.zero_()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; unknown losses are None."""
        losses = [loss if math.isfinite(loss) else None for loss in self._losses.tolist()]
        return {"losses": losses, "skipped": self._skipped.tolist(), "streak": self._streak.item()}

    def load_dict(self, values: dict[str, Any]) -> None:
        """Restore what `to_dict` returned. Raises ValueError, TypeError or KeyError for anything else."""
        losses = [math.nan if loss is None else float(loss) for loss in values["losses"]]
        skipped = [float(skip) for skip in values["skipped"]]
        if len(losses) != WINDOW or len(skipped) != SKIPS_WINDOW:
            raise ValueError("the guard's windows have other lengths")
        self._losses.copy_(torch.tensor(losses))
        self._skipped.copy_(torch.tensor(skipped))
        self._streak.fill_(float(values["streak"]))
        self._longest_streak.fill_(float(values["streak"]))
