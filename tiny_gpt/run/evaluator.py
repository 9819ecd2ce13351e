"""When a run is evaluated, on which windows of the text, and how much of the time that may take.

A run with a known number of steps is evaluated at fixed steps. A timed run is evaluated by its progress, and the time
that an evaluation takes is measured.
"""

from collections.abc import Callable

from tiny_gpt.data.prepare import Dataset
from tiny_gpt.data.token_store import Tokens
from tiny_gpt.evaluation import TRAIN_SHARE, VAL_SHARE, FixedWindows, affordable_tokens, bits_per_byte
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.run.state import TrainState
from tiny_gpt.training.schedule import SchedulePoint
from tiny_gpt.training.timed_budget import LATE_S, TimedBudget

# An evaluation this many times slower than its arithmetic was interrupted, by the machine's sleep for example.
INTERRUPTED_FACTOR = 5
# Progress between two evaluations of a timed run, at least: slow evaluations are further apart.
EVAL_PROGRESS = 0.025
# Scoring keeps no activations, so a CUDA GPU scores this many micro-batches at once, up to a number of logits.
MAX_MICRO_BATCHES, MAX_LOGITS = 4, 1 << 27
# Share of a timed run's time for scoring the best model over more text at its end.
FINAL_SHARE = 0.01


class Evaluator:
    """Scores the model of `state` on fixed windows of the training and the validation text."""

    def __init__(self, state: TrainState, dataset: Dataset) -> None:
        self.state, self.dataset = state, dataset
        train = state.config
        self.tokens_per_step = train.batch_size * state.model.config.block_size
        self.steps_between = min(train.eval_interval, train.iters_per_epoch)
        tokens_between = self.tokens_per_step * self.steps_between
        self.val_windows = self._windows(dataset.val, affordable_tokens(tokens_between, VAL_SHARE))
        self.train_windows = self._windows(dataset.train, affordable_tokens(tokens_between, TRAIN_SHARE))
        self._n_weights = n_multiplied(state.model.config, state.model.vocab_size)
        self._n_weights_of_merged_best = 0
        self._measured_token_s: float | None = None
        self._measured_weight_s: float | None = None
        """Seconds to score a token with a merged model, for each of its multiplied weights."""
        self._last_progress, self._last_train_s = 0.0, 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens that an evaluation scores."""
        return self.train_windows.n_tokens + self.val_windows.n_tokens

    def bits_per_byte(self, val_loss: float) -> float:
        """A validation loss in nats per token as bits per byte of the validation text."""
        return bits_per_byte(val_loss, len(self.dataset.val), self.dataset.val.n_bytes)

    def fit_batch_size(self) -> None:
        """Adjust the windows per batch to the size of the micro-batches, after it has changed."""
        self.val_windows.batch_size = self.train_windows.batch_size = self._batch_size()

    def resume(self) -> None:
        """Count progress and time since the last evaluation from the restored state on."""
        self.fit_batch_size()
        self._last_progress = self.state.budget.progress(self.state.step)
        self._last_train_s = self.state.clock.train_s

    def is_due(self, point: SchedulePoint, eval_progress: float = EVAL_PROGRESS) -> bool:
        """Whether to evaluate after the step at `point`: always after the last step, and in a timed run not shortly
        before it, with at least `eval_progress` between two evaluations."""
        train = self.state.config
        if not train.is_timed:
            return point.is_last or self.state.step % train.iters_per_epoch % train.eval_interval == 0
        train_s = self.state.clock.train_s - self._last_train_s
        is_affordable = train_s >= self.eval_s() / (VAL_SHARE + TRAIN_SHARE)
        is_time = self._last_progress + eval_progress <= point.progress <= 1 - eval_progress
        return point.is_last or (is_time and is_affordable)

    def score(self, point: SchedulePoint, beat: Callable[[], None]) -> tuple[float, float, float]:
        """Training loss, validation loss and its standard error, after the step at `point`.

        `beat` is called after each batch.
        """
        model, clock = self.state.model, self.state.clock
        before_s = clock.eval_s
        with clock.count_as("eval"):
            self.state.leader.share_state(model, self.state.optimizer, self.state.guard)
            score = self.state.leader.score
            train_loss, _ = score(self.train_windows, "train", model, beat)
            losses = train_loss, *score(self.val_windows, "val", model, beat)
        token_s = (clock.eval_s - before_s) / self.n_tokens
        if not 0 < INTERRUPTED_FACTOR * self._estimated_token_s() < token_s:
            self._measured_token_s = token_s
        self._last_progress, self._last_train_s = point.progress, clock.train_s
        return losses

    def expect_best(self, model: GPT) -> None:
        """Reserve time for `model`, the best one so far, to be scored at the end: a merged one takes longer."""
        is_merged = self._is_merged(model)
        self._n_weights_of_merged_best = n_multiplied(model.config, model.vocab_size) if is_merged else 0

    def _is_merged(self, model: GPT) -> bool:
        return model.config.d_model != self.state.model.config.d_model

    def final_windows(self, left_s: float | None) -> FixedWindows | None:
        """More windows of the validation text, for the best model's final score; None if a run was too short for more.

        A timed run, which ends in `left_s` seconds, scores as much as there is time for: the machine may have become
        faster or slower since the time was reserved.
        """
        n_tokens = self._final_tokens()
        if left_s is not None and (token_s := self._best_token_s()) > 0:
            in_time, at_latest = left_s / token_s, (left_s + LATE_S / 2) / token_s
            n_tokens = self._if_more(int(min(max(n_tokens, in_time), at_latest)))
        return self._windows(self.dataset.val, n_tokens, "eager") if n_tokens else None

    def score_best(self, windows: FixedWindows, model: GPT, beat: Callable[[], None]) -> float:
        """The loss over `windows` of the validation text of a `model` that is not the one in training."""
        if self._is_merged(model):  # other ranks have no place for it
            return windows.loss(model, beat)
        return self.state.leader.score(windows, "val", model, beat, is_other_model=True)[0]

    def score_merged(self, model: GPT, beat: Callable[[], None], is_val: bool = True) -> float:
        """The validation loss, or else the training loss, of a `model` that is not the one in training, over the same
        windows."""
        backend = "fused" if self.state.config.backend == "fused" else "eager"
        windows, tokens = self.train_windows, self.dataset.train
        if is_val:
            windows, tokens = self.val_windows, self.dataset.val
        return self.score_best(self._windows(tokens, windows.max_tokens, backend), model, beat)

    def record_merging_time(self, seconds: float, n_weight_tokens: float) -> None:
        """Note how long merging and scoring took. `n_weight_tokens`: multiplied weights of each merged model, times the
        tokens that it scored, summed over the models."""
        weight_s = seconds / n_weight_tokens
        if self._measured_weight_s is None or weight_s <= INTERRUPTED_FACTOR * self._measured_weight_s:
            self._measured_weight_s = weight_s

    def merged_s(self, n_weights: int, n_models: float) -> float:
        """Seconds to score `n_models` merged models on the validation text, and one of them on the training text; each
        has `n_weights` multiplied weights."""
        n_tokens = n_models * self.val_windows.n_tokens + self.train_windows.n_tokens
        return n_tokens * self._merged_token_s(n_weights)

    def eval_s(self) -> float:
        """Seconds that an evaluation takes."""
        return self.n_tokens * self._token_s()

    def final_s(self) -> float:
        """Seconds that the last evaluation and the best model's final score take."""
        return self.eval_s() + self._final_tokens() * self._best_token_s()

    def _final_tokens(self) -> int:
        tokens_trained = self.state.step * self.tokens_per_step
        if not self.state.config.is_timed:
            return self._if_more(affordable_tokens(tokens_trained, VAL_SHARE))
        return self._if_more(affordable_tokens(tokens_trained, FINAL_SHARE))

    def _if_more(self, n_tokens: int) -> int:
        """`n_tokens` of the validation text, or all of it; 0 if that is no more than an evaluation scores."""
        n_tokens = min(len(self.dataset.val) - 1, n_tokens)
        return n_tokens if n_tokens > self.val_windows.n_tokens else 0

    def _token_s(self) -> float:
        """Seconds to score a token, as in the last evaluation."""
        return self._estimated_token_s() if self._measured_token_s is None else self._measured_token_s

    def _best_token_s(self) -> float:
        """Seconds to score a token with the best model so far."""
        n_weights = self._n_weights_of_merged_best
        return self._merged_token_s(n_weights) if n_weights else self._token_s()

    def _merged_token_s(self, n_weights: int) -> float:
        """Seconds to score a token with a merged model of `n_weights` multiplied weights.

        Estimated from the model in training until one was merged; a wide model usually takes less time per weight. Rank
        0 scores merged models alone, whereas all ranks share an evaluation.
        """
        if self._measured_weight_s is not None:
            return n_weights * self._measured_weight_s
        return n_weights / self._n_weights * self.state.ranks.size * self._token_s()

    def _estimated_token_s(self) -> float:
        """A third of a step's seconds per token, as a forward pass has a third of its arithmetic; 0 if unknown."""
        budget = self.state.budget
        step_s = budget.step_s if isinstance(budget, TimedBudget) else None
        return (step_s or 0.0) / (3 * self.tokens_per_step)

    def _windows(self, tokens: Tokens, max_tokens: int, backend: str = "") -> FixedWindows:
        block_size, backend = self.state.model.config.block_size, backend or self.state.config.backend
        return FixedWindows(tokens.ids, block_size, self._batch_size(), max_tokens, backend)

    def _batch_size(self) -> int:
        """Sequences that are scored at once."""
        n_sequences, model = self.state.micro_batch_size, self.state.model
        if model.device.type != "cuda":
            return n_sequences
        max_sequences = MAX_LOGITS // (model.config.block_size * model.vocab_size)
        return max(n_sequences, min(MAX_MICRO_BATCHES * n_sequences, max_sequences))
