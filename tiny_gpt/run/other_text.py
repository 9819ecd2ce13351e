"""Other text that a run reads before its own: which one is available, and both in the tokens of one tokenizer."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from tiny_gpt.config import NO_FIRST, DataConfig, RunConfig
from tiny_gpt.config.training import TEACHERS_OR_FIRST
from tiny_gpt.data.copied_spans import decoded_text
from tiny_gpt.data.overlap import HeldOut, overlap_of_tokens
from tiny_gpt.data.prepare import MIN_REPORTED_OVERLAP, Dataset, prepare, shared_tokenizer_of
from tiny_gpt.data.progress import Notice, Preparation, PreparationEvent
from tiny_gpt.data.related_text import ARTICLES, PROSE_GAIN, related_texts
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.data.token_shards.opened import sole_corpus
from tiny_gpt.errors import BadInputError, OutOfResourcesError, UsageError
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.measurement import measure_machine_and_text
from tiny_gpt.planning.planner import Planner, may_begin_with_related
from tiny_gpt.planning.types import OtherText
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.training.budget import requested_seconds

# How much of a text tells what it is related to.
SAMPLE_BYTES = 1 << 18
# Other text is not validated on: as little as possible is held out.
OTHER_VAL_FRACTION = 0.01
# The shortest run for which a large text is downloaded and prepared, which takes minutes.
LONG_RUN_S = 2 * 3600
# Tokenizers that are trained: with other text, they are trained on both.
TRAINED_TOKENIZERS = ("auto", "bpe")


@dataclass(frozen=True)
class SharedTexts:
    """A run's own text and other text, in the tokens of one tokenizer."""

    own: Dataset
    other: Dataset


@dataclass(frozen=True)
class RunTexts:
    """The texts that a run may be trained on."""

    own: Dataset
    """With the tokenizer of this text alone."""
    first: tuple[str, ...] = ()
    """The sources of the other text: of --first, or chosen here for a plan to choose or not."""
    shared: SharedTexts | None = None

    @property
    def other_text(self) -> OtherText | None:
        """What a planner knows of the other text."""
        if self.shared is None:
            return None
        own, other = self.shared.own, self.shared.other
        return OtherText(self.first, len(own.train), len(own.val), own.tokenizer.vocab_size, len(other.train))

    def chosen_by(self, config: RunConfig) -> tuple[Dataset, Dataset | None]:
        """The own text, and the other one or none, that `config` is trained on, which a plan has completed."""
        if self.shared is None or config.data.first != self.first:
            return self.own, None
        return self.shared.own, self.shared.other


def prepare_texts(config: RunConfig, own: Dataset, any_time: bool = False) -> Preparation[RunTexts]:
    """`own`, the text of `config`, with that of --first, or with one that a plan may choose to begin with.

    `any_time`: whether the plan is for other lengths of the run than that of `config` too. Raises UsageError and
    BadInputError.
    """
    if begins_with_named_text(config):
        return RunTexts(own, config.data.first, (yield from _prepare_named(config, own)))
    if may_begin_with_related_text(config, own, any_time):
        sample = decoded_text(own.tokenizer, own.train, SAMPLE_BYTES)
        seconds = requested_seconds(config.train, time.time(), time.time())
        for sources in related_texts(sample, is_long=seconds is not None and seconds >= LONG_RUN_S):
            if shared := (yield from _prepare_related(config, own, sources)):
                return RunTexts(own, sources, shared)
    return RunTexts(own)


def may_begin_with_related_text(config: RunConfig, own: Dataset, any_time: bool) -> bool:
    """Whether a plan for `config` may choose other text."""
    train, seconds = config.train, requested_seconds(config.train, time.time(), time.time())
    is_open = config.data.first == () and "teachers" in train.auto and not (train.start_from or train.shard)
    is_long = any_time or may_begin_with_related(seconds, own.train.n_bytes)
    return is_open and is_long and own.train.shards is None


def begins_with_named_text(config: RunConfig) -> bool:
    """Whether the user has named a text with --first."""
    return config.data.first not in ((), (NO_FIRST,))


def refuse_conflicts_with_first(config: RunConfig) -> None:
    """Raise UsageError for settings that --first does not go together with."""
    if not begins_with_named_text(config):
        return
    if config.train.start_from:
        message = "--first and --start-from: give only one of them; a model that has been trained needs no pretraining"
        raise UsageError(message, code="first-and-start-from")
    if config.train.teachers:
        message = f"--first and --teachers {config.train.teachers}: {TEACHERS_OR_FIRST}"
        raise UsageError(message, code="teachers-and-first")
    if config.train.shard:
        message = "--first and --shard: give only one of them; a sharded model is trained in one stage"
        raise UsageError(message, code="first-and-shard")


def _prepare_named(config: RunConfig, own: Dataset) -> Preparation[SharedTexts]:
    texts = yield from _prepare_shared(config, own)
    if overlap := _overlap(texts):
        message = "of the validation text also occurs in the text of --first: val_loss will look too good"
        yield Notice(f"{overlap:.0%} {message}")
    return texts


def _prepare_related(config: RunConfig, own: Dataset, sources: tuple[str, ...]) -> Preparation[SharedTexts | None]:
    """None where the text is unavailable, is the run's own, or holds what is validated on."""
    if set(sources) & set(config.data.data):
        return None
    try:
        texts = yield from _prepare_shared(replace(config, data=replace(config.data, first=sources)), own)
    except (BadInputError, OutOfResourcesError) as error:  # no network, no space, a Python without documentation
        reason = str(error).split(";")[0]
        gain = f". {PROSE_GAIN}" if ARTICLES in sources else ""
        yield Notice(f"the run cannot begin with {' and '.join(sources)}: {reason}{gain}")
        return None
    return None if _overlap(texts) else texts


def measure_for_plan(
    config: RunConfig, texts: RunTexts, device: torch.device, requested_at: float | None = None
) -> Generator[PreparationEvent, None, Planner]:
    """A Planner for `config` on one of `texts`. `requested_at` is when the user started the command, by time.time()."""
    shared = (texts.shared.own, texts.shared.other) if texts.shared else None
    return (yield from measure_machine_and_text(config, texts.own, device, requested_at, texts.other_text, shared))


def prepare_other(config: RunConfig, own: Dataset) -> Preparation[Dataset]:
    """The text of --first in the tokens of the run's `own` text, without what is validated on. Raises BadInputError."""
    held_out = HeldOut(decoded_text(own.tokenizer, own.val).decode("utf-8", "replace"))
    other = yield from prepare(_other_data(config), 1, own.tokenizer, held_out)
    if (n_tokens := len(other.train)) <= (least := min_block_size(config)):
        raise BadInputError(
            f"the text of --first is too short: {n_tokens:,} tokens, and a sequence takes {least + 1:,}; give more",
            code="first-too-short",
        )
    return other


def _other_data(config: RunConfig) -> DataConfig:
    """How to read the text of --first: as the own one, but for built-in datasets, whose form is known."""
    first = config.data.first
    data = replace(config.data, data=first, first=(), val=(), val_fraction=OTHER_VAL_FRACTION)
    return replace(data, text_field="text", encoding="") if set(first) <= DATASETS.keys() else data


def tokenizer_for(config: RunConfig) -> Preparation[Tokenizer | None]:
    """The tokenizer for the run's own text and that of --first; None where the own text decides alone."""
    data = config.data
    if not begins_with_named_text(config) or data.tokenizer not in TRAINED_TOKENIZERS:
        return None
    if sole_corpus(data.data) or sole_corpus(data.first):  # in shards, which have a tokenizer
        return None
    return (yield from shared_tokenizer_of(config.data, _other_data(config)))


def _prepare_shared(config: RunConfig, own: Dataset) -> Preparation[SharedTexts]:
    if tokenizer := (yield from tokenizer_for(config)):
        own = yield from prepare(config.data, min_block_size(config), tokenizer)
    return SharedTexts(own, (yield from prepare_other(config, own)))


def _overlap(texts: SharedTexts) -> float:
    """The fraction of the validation passages that occur in the other text; 0 where that is too little to matter, or no
    more than in the own training text: some passages, such as `return self.value`, occur everywhere."""
    own, other = texts.own, texts.other
    overlap = overlap_of_tokens(own.tokenizer, other.train, own.val)
    if overlap < MIN_REPORTED_OVERLAP or overlap <= overlap_of_tokens(own.tokenizer, own.train, own.val):
        return 0.0
    return overlap
