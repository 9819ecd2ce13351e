"""What the scheduler works on: a submission has prompts, a prompt has texts. And what an answer may say of a token."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import SampleConfig
from tiny_gpt.inference.generate import Text
from tiny_gpt.inference.sampling import add_bias, log_probabilities, penalize_written, sample
from tiny_gpt.web.errors import RefusedError


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn: the settings of `tiny-gpt generate`, and what OpenAI's API has besides."""

    config: SampleConfig
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n_logprobs: int | None = None
    """How many of the likeliest tokens are reported for each token; None: nothing is."""
    is_ranked: bool = False
    """Whether texts are compared by their mean logprob."""


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text, and how likely the model found it."""

    id: int
    offset: int
    """Characters of the text before it."""
    logprob: float | None
    """Natural logarithm of its probability; None for the first token of a prompt, before which there is nothing."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place with their logprobs, the likeliest first."""


@dataclass
class TextJob:
    """A text while it is written. The scheduler's thread changes it; others may look at it at any time."""

    text: Text
    sampling: Sampling
    block_size: int
    tokens: list[ScoredToken] = field(default_factory=list)
    """Those written, if logprobs are reported."""
    logprob_sum: float = 0.0
    """Of the tokens written, if texts are ranked."""
    finish_reason: str | None = None
    """"stop" or "length" once it is complete; set last."""

    def __post_init__(self) -> None:
        self._n_prompt = len(self.text.ids)

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        """Draw the next token; None if it was the last. Raises BadInputError for logits that are not finite."""
        text, sampling = self.text, self.sampling
        next_id = sample(self._adjusted(logits_V), sampling.config, text.ids[-self.block_size :], text.generator)
        offset = text.n_characters
        text.add(next_id, is_last=text.n_tokens + 1 == sampling.config.max_tokens)
        if sampling.n_logprobs is not None:
            self.tokens.append(scored_token(logits_V, next_id, offset, sampling.n_logprobs))
        if sampling.is_ranked:
            self.logprob_sum += float(log_probabilities(logits_V)[next_id])
        if text.is_done:
            self.finish_reason = "stop" if text.is_stopped else "length"
            return None
        return next_id

    def _adjusted(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        sampling = self.sampling
        if sampling.logit_bias:
            logits_V = add_bias(logits_V, sampling.logit_bias)
        if sampling.frequency_penalty or sampling.presence_penalty:
            written = self.text.ids[self._n_prompt :]
            logits_V = penalize_written(logits_V, written, sampling.frequency_penalty, sampling.presence_penalty)
        return logits_V


@dataclass
class PromptJob:
    """A prompt and the texts that continue it."""

    ids: Sequence[int]
    """As the model sees it: at least one token, at most block_size of them."""
    texts: Sequence[TextJob]
    max_tokens: int
    """0 for a prompt that is only scored."""
    n_scored: int | None = None
    """How many of the likeliest tokens are reported for each token of the prompt; None: it is not scored."""
    offsets: Sequence[int] = ()
    """Characters before each token of a scored prompt."""
    tokens: list[ScoredToken] = field(default_factory=list)
    """Those of a scored prompt."""
    is_started: bool = False
    is_read: bool = False

    def __post_init__(self) -> None:
        self.waiting = list(self.texts)
        if self.is_scored:
            self.tokens.append(ScoredToken(self.ids[0], 0, None))

    @property
    def is_scored(self) -> bool:
        return self.n_scored is not None

    @property
    def is_ready(self) -> bool:
        """Whether a text can be begun. The first reads the prompt; the others wait for that, and share it."""
        return bool(self.waiting) and (self.is_read or not self.is_started)

    def add_score(self, position: int, logits_V: NDArray[np.float32]) -> None:
        """Score the prompt's token at `position` by the logits before it."""
        assert self.n_scored is not None
        self.tokens.append(scored_token(logits_V, self.ids[position], self.offsets[position], self.n_scored))


class Submission:
    """The texts of one request."""

    def __init__(
        self,
        prompts: Sequence[PromptJob],
        notify: Callable[[], None] = lambda: None,
        wants_progress: bool = False,
        timeout_s: float = math.inf,
    ) -> None:
        """`notify` is called in the scheduler's thread when all texts are complete or the submission has failed;
        with `wants_progress` also whenever a text has grown."""
        self.prompts, self.notify, self.wants_progress = prompts, notify, wants_progress
        self.deadline = time.monotonic() + timeout_s
        self.n_texts = sum(len(prompt.texts) for prompt in prompts)
        self.n_begun = self.n_finished = 0
        self.is_cancelled = False
        self.error: RefusedError | None = None

    @property
    def is_ended_early(self) -> bool:
        return self.is_cancelled or self.error is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.n_finished == self.n_texts or self.is_ended_early

    @property
    def has_waiting_text(self) -> bool:
        return self.n_begun < self.n_texts

    def ready_prompt(self) -> PromptJob | None:
        """A prompt of which a text can be begun."""
        return next((prompt for prompt in self.prompts if prompt.is_ready), None)


def scored_token(logits_V: NDArray[np.float32], token_id: int, offset: int, n_likeliest: int) -> ScoredToken:
    """How likely the model found `token_id` before it came."""
    logprobs_V = log_probabilities(logits_V)
    n_likeliest = min(n_likeliest, len(logprobs_V))
    ids = np.argpartition(-logprobs_V, n_likeliest - 1)[:n_likeliest].tolist() if n_likeliest else []
    likeliest = sorted(((i, float(logprobs_V[i])) for i in ids), key=lambda pair: (-pair[1], pair[0]))
    return ScoredToken(token_id, offset, float(logprobs_V[token_id]), tuple(likeliest))
