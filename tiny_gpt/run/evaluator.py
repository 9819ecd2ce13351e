"""When a run is evaluated, on which windows of the text, and how much of the time that may take.

A run of so many steps is evaluated at steps that are known beforehand; one that a clock ends by its progress, where the
time that evaluating takes is measured.
"""

from collections.abc import Callable

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE, FixedWindows, affordable_tokens
from tiny_gpt.run.state import Learner
from tiny_gpt.training.schedule import SchedulePoint
from tiny_gpt.training.timed_budget import LATE_S, TimedBudget

# An evaluation that takes so many times what its arithmetic does was stopped in between, by a sleep or the like.
STOPPED_TIMES = 5
# A run that a clock ends is evaluated after so much of its progress, or later where that takes too much of the time.
EVAL_PROGRESS = 0.025
# A GPU scores so many times the blocks at once that it learns from, as far as their logits are no more than so many.
TIMES_AT_ONCE, MOST_LOGITS = 4, 1 << 27
# Part of such a run that scoring the best model over more text at its end may take.
FINAL_SHARE = 0.01


class Examiner:
    """Scores what `learner` has learned of `dataset`."""

    def __init__(self, dataset: Dataset, config: RunConfig, learner: Learner) -> None:
        self.dataset, self.config, self.learner = dataset, config, learner
        train = config.train
        self.tokens_per_step = train.batch_size * config.model.block_size
        self.steps_between = min(train.eval_interval, train.iters_per_epoch)
        tokens_between = self.tokens_per_step * self.steps_between
        self.val_windows = self._windows(dataset.val, affordable_tokens(tokens_between, VAL_SHARE))
        self.train_windows = self._windows(dataset.train, affordable_tokens(tokens_between, TRAIN_SHARE))
        self._measured_token_s: float | None = None
        self._last_progress, self._last_train_s = 0.0, 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens that an evaluation scores."""
        return self.train_windows.n_tokens + self.val_windows.n_tokens

    def fit(self) -> None:
        """Score as many blocks at once as go with what the learner computes at once."""
        self.val_windows.batch_size = self.train_windows.batch_size = self._n_at_once()

    def resume(self) -> None:
        """The learner goes on from a checkpoint."""
        self.fit()
        self._last_progress = self.learner.budget.progress(self.learner.state.step)
        self._last_train_s = self.learner.clock.train_s

    def is_due(self, point: SchedulePoint) -> bool:
        """Whether an evaluation follows the step at `point`, which is done; always after the last, and where a clock
        ends the run never shortly before."""
        train, step = self.config.train, self.learner.state.step
        if not train.is_timed:
            return point.is_last or step % train.iters_per_epoch % train.eval_interval == 0
        train_s = self.learner.clock.train_s - self._last_train_s
        is_affordable = train_s >= self.eval_s() / (VAL_SHARE + TRAIN_SHARE)
        is_time = self._last_progress + EVAL_PROGRESS <= point.progress <= 1 - EVAL_PROGRESS
        return point.is_last or (is_time and is_affordable)

    def score(self, point: SchedulePoint, loss: Callable[[FixedWindows], float]) -> tuple[float, float]:
        """Training and validation loss, each computed by `loss`, after the step at `point`."""
        clock = self.learner.clock
        before_s = clock.eval_s
        with clock.apart("eval"):
            losses = loss(self.train_windows), loss(self.val_windows)
        token_s = (clock.eval_s - before_s) / self.n_tokens
        if not 0 < STOPPED_TIMES * self._arithmetic_s() < token_s:
            self._measured_token_s = token_s
        self._last_progress, self._last_train_s = point.progress, clock.train_s
        return losses

    def final_windows(self, left_s: float | None) -> FixedWindows | None:
        """For the best model's score at the end, where the run was long enough for more than the evaluations have.

        Where a clock ends the run in `left_s` seconds, as much of the text as there is still time for: the machine may
        have become faster or slower since the time for it was set aside.
        """
        n_tokens = self._final_tokens()
        if left_s is not None and (token_s := self._token_s()) > 0:
            in_time, at_latest = left_s / token_s, (left_s + LATE_S / 2) / token_s
            n_tokens = self._if_more(int(min(max(n_tokens, in_time), at_latest)))
        return self._windows(self.dataset.val, n_tokens, "eager") if n_tokens else None

    def eval_s(self) -> float:
        """Seconds that an evaluation takes."""
        return self.n_tokens * self._token_s()

    def end_s(self) -> float:
        """Seconds that the last evaluation and the best model's score take."""
        return self.eval_s() + self._final_tokens() * self._token_s()

    def _final_tokens(self) -> int:
        tokens_trained = self.learner.state.step * self.tokens_per_step
        if not self.config.train.is_timed:
            return self._if_more(affordable_tokens(tokens_trained, VAL_SHARE))
        return self._if_more(affordable_tokens(tokens_trained, FINAL_SHARE))

    def _if_more(self, n_tokens: int) -> int:
        """So many of the validation text's tokens, if those are more than an evaluation scores; else none."""
        n_tokens = min(len(self.dataset.val) - 1, n_tokens)
        return n_tokens if n_tokens > self.val_windows.n_tokens else 0

    def _token_s(self) -> float:
        """Seconds to score a token: as in the last evaluation, else by arithmetic, which is a third of a step's."""
        return self._arithmetic_s() if self._measured_token_s is None else self._measured_token_s

    def _arithmetic_s(self) -> float:
        """0 where the time of a step is not known."""
        budget = self.learner.budget
        step_s = budget.step_s if isinstance(budget, TimedBudget) else None
        return (step_s or 0.0) / (3 * self.tokens_per_step)

    def _windows(self, tokens: Tokens, max_tokens: int, backend: str = "") -> FixedWindows:
        block_size, backend = self.config.model.block_size, backend or self.config.train.backend
        return FixedWindows(tokens.ids, block_size, self._n_at_once(), max_tokens, backend)

    def _n_at_once(self) -> int:
        """Blocks; a CUDA GPU, which keeps nothing for a way back here, gets more of them than it learns from."""
        n_blocks = self.learner.micro_batch_size
        if self.learner.model.device.type != "cuda":
            return n_blocks
        most = MOST_LOGITS // (self.config.model.block_size * self.dataset.tokenizer.vocab_size)
        return max(n_blocks, min(TIMES_AT_ONCE * n_blocks, most))
