"""What a run's figures show: whether it memorizes, is too short, too fast, or had too little text."""

import re
from dataclasses import dataclass

import numpy as np

from tiny_gpt.view.axes import Values
from tiny_gpt.view.run_view import RunView

# The validation loss has turned if it is this much above its minimum, at least, by all of its last rows.
MIN_LOSS_RISE = 0.01
MIN_ROWS_AFTER_BEST = 3
# The training loss below the validation loss, as a fraction of the latter.
SLIGHT_GAP, CLEAR_GAP, LARGE_GAP = 0.04, 0.12, 0.25
# Passes over a text after which a clear gap means that the text is too small for the model and the time.
MANY_EPOCHS = 10
# Nothing can be memorized in fewer passes.
FEW_EPOCHS = 1.5
# A training loss this far above its lowest value so far is a spike.
SPIKE = 0.08
MIN_SPIKES = 2
# So much of the loss gained in the last quarter of a run says that it could have gone on.
STEEP = 0.02
_SKIPPED = re.compile(r"skipped (?:a step|([\d,]{1,15}) steps)")


@dataclass(frozen=True)
class Signs:
    """What stands out in a run."""

    overfits_since: int | None
    """The row of the best model, if the validation loss has risen since while the training loss fell."""
    n_skipped: int
    """Steps that the guard left out."""
    n_rollbacks: int
    n_spikes: int
    is_memorizing: bool
    """Whether the model has memorized much of its text although the validation loss has not risen."""
    is_too_fast: bool
    """Whether the learning rate is probably too high."""
    is_small_text: bool
    is_too_short: bool


def signs_of(view: RunView) -> Signs:
    """The signs in the rows and events of `view`."""
    skips = [_SKIPPED.match(event.text) for event in view.events if event.kind == "skip"]
    n_skipped = sum(int((skip[1] or "1").replace(",", "")) for skip in skips if skip)
    n_rollbacks = sum(event.kind == "rollback" for event in view.events)
    n_spikes = _n_spikes(view.train[view.first_of_stage :])
    diverged = view.status is not None and view.status.error_code == "training-diverged"
    is_too_fast = diverged or n_rollbacks > 0 or n_spikes >= MIN_SPIKES
    overfits_since = None if is_too_fast else _overfits_since(view)
    epochs, gap = view.data_epochs, view.gap
    can_memorize = not is_too_fast and (epochs is None or epochs >= FEW_EPOCHS)
    is_memorizing = can_memorize and overfits_since is None and gap is not None and gap >= LARGE_GAP
    reads_often = gap is not None and gap > CLEAR_GAP and epochs is not None and epochs > MANY_EPOCHS
    is_small_text = overfits_since is not None or is_memorizing or reads_often
    return Signs(
        overfits_since,
        n_skipped,
        n_rollbacks,
        n_spikes,
        is_memorizing,
        is_too_fast,
        is_small_text and not is_too_fast,
        view.state == "finished" and not is_small_text and not is_too_fast and _is_too_short(view),
    )


def gap_in_words(view: RunView) -> str:
    """What the gap between training and validation loss means."""
    gap, epochs = view.gap, view.data_epochs
    if gap is None:
        return "not known yet"
    if gap < SLIGHT_GAP:
        return "no sign of memorizing"
    if gap < CLEAR_GAP:
        return "a small gap, as usual"
    if epochs is not None and epochs < FEW_EPOCHS:
        return "the validation text differs from the rest"
    words = "it is starting to memorize your text" if gap < LARGE_GAP else "it is memorizing your text"
    return words if _overfits_since(view) is not None else f"{words}, which has done no harm so far"


def quality_in_words(bits_per_byte: float) -> str:
    """What text at this loss reads like, on the scale from guessing to fluent."""
    for limit, words in (
        (1.0, "as predictable as it gets: fluent, or very regular text"),
        (1.3, "fluent"),
        (1.7, "mostly whole sentences"),
        (2.2, "words and broken sentences"),
        (3.0, "word-like letters, some words"),
        (5.0, "letters in plausible proportions"),
    ):
        if bits_per_byte < limit:
            return words
    return "close to guessing"


def _overfits_since(view: RunView) -> int | None:
    best, val, train = view.best, view.val, view.train
    if best is None or view.last is None or view.last - best < MIN_ROWS_AFTER_BEST or best < view.first_of_stage:
        return None
    n_after = view.last - best
    recent = val[best + 1 :][-max(MIN_ROWS_AFTER_BEST, n_after // 4) :]
    recent = recent[np.isfinite(recent)]
    # Rows of fast runs are noisy: the rise must exceed twice the scatter of neighbors.
    scatter = float(np.nanstd(np.diff(val))) / np.sqrt(2) if len(val) > 3 else 0.0
    if len(recent) == 0 or float(np.mean(recent)) - val[best] < max(MIN_LOSS_RISE * val[best], 2 * scatter):
        return None
    window = slice(max(0, best - n_after // 4), best + 1)
    falls = float(np.nanmean(train[-max(1, n_after // 4) :])) < float(np.nanmean(train[window])) * 0.995
    return best if falls else None


def _n_spikes(train: Values) -> int:
    """How often the training loss jumped far above its lowest value so far, after the first tenth of the rows."""
    train = train[np.isfinite(train)]
    if len(train) < 8:
        return 0
    lowest = np.minimum.accumulate(train)
    is_high = train > lowest * (1 + SPIKE)
    is_high[: max(3, len(train) // 10)] = False
    return int(np.count_nonzero(is_high[1:] & ~is_high[:-1]))


def _is_too_short(view: RunView) -> bool:
    if view.plan is not None and view.plan.saturation_s > 0:
        return view.plan.saturation_s > 2 * max(view.elapsed_s, 1.0) and (view.gap or 0.0) < CLEAR_GAP
    epochs = view.data_epochs
    val = view.val[np.isfinite(view.val)]
    if len(val) < 8 or (epochs is not None and epochs > MANY_EPOCHS) or (view.gap or 0.0) >= CLEAR_GAP:
        return False
    quarter = len(val) // 4
    return float(val[-quarter - 1] - val[-1]) > STEEP * float(val[-1])
