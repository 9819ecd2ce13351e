"""What a model that is trained further forgets: its loss on a text that the run does not train on, before and after.

The reference text is a part of Python's manual: English, and on every disk. A model that does not know such text has
nothing to forget, and is not measured. Scoring takes a few seconds, the same windows both times.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from tiny_gpt.data.sources.python_docs import NAME, PACKAGE_DOCS, read_manual
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.model.gpt import GPT
from tiny_gpt.tokenizer.base import Tokenizer

# The most of it that is encoded, and scored; in short sequences, so that a slow machine scores several too.
MAX_REFERENCE_CHARACTERS, MAX_REFERENCE_TOKENS, SCORED_BLOCK = 100_000, 8_192, 256
# A model with a higher loss does not know English prose: guessing words by their letters alone gives about 2.5.
MAX_KNOWN_BITS = 2.5
# Each of both times may take this share of a timed run, within limits.
TIME_SHARE, LEAST_S, MOST_S = 0.005, 1.0, 15.0
# In RunDescription.initial.
KNOWN = "known"


@dataclass(frozen=True)
class Known:
    """How well the initial model predicted the reference text."""

    bits_per_byte: float
    n_tokens: int
    """Tokens that were scored."""
    text_sha256: str
    """Of the reference text: another Python has another manual."""
    seconds: float
    """How long scoring takes."""

    @classmethod
    def of(cls, initial: dict[str, Any]) -> Self | None:
        """What is in `RunDescription.initial`; None where nothing was measured."""
        values = initial.get(KNOWN)
        with contextlib.suppress(TypeError):  # another version's
            return cls(**values) if isinstance(values, dict) else None
        return None

    def to_initial(self) -> dict[str, Any]:
        """For `RunDescription.initial`."""
        return {KNOWN: asdict(self)}


def measure_known(model: GPT, tokenizer: Tokenizer, sources: Sequence[str], run_s: float | None) -> Known | None:
    """How well `model` knows the reference text before it is trained on `sources`, in a run of `run_s` seconds.

    None where it does not know it, is about to learn it, or this Python has no manual.
    """
    text = read_manual(MAX_REFERENCE_CHARACTERS)
    if not text or any(name in {NAME, PACKAGE_DOCS} for source in sources for name in source.split("|")):
        return None
    block_size = min(SCORED_BLOCK, model.config.block_size)
    start = time.perf_counter()
    if not _score(model, tokenizer, text, 2 * block_size) <= MAX_KNOWN_BITS:
        return None
    token_s = (time.perf_counter() - start) / (2 * block_size)
    limit_s = min(MOST_S, max(LEAST_S, TIME_SHARE * (run_s or 0.0)))
    n_tokens = int(min(MAX_REFERENCE_TOKENS, max(2 * block_size, limit_s / token_s)))
    bits = _score(model, tokenizer, text, n_tokens)
    return Known(bits, n_tokens, _sha256(text), n_tokens * token_s)


def measure_again(known: Known, model: GPT, tokenizer: Tokenizer) -> float | None:
    """Bits per byte of `model`, which was trained further, on the same windows; None where the text is another now."""
    text = read_manual(MAX_REFERENCE_CHARACTERS)
    return _score(model, tokenizer, text, known.n_tokens) if _sha256(text) == known.text_sha256 else None


def _score(model: GPT, tokenizer: Tokenizer, text: str, n_tokens: int) -> float:
    ids = tokenizer.encode(text)
    # `eager`, since other backends may compile for another shape first.
    loss = FixedWindows(ids, min(SCORED_BLOCK, model.config.block_size), 1, n_tokens).loss(model)
    return bits_per_byte(loss, len(ids), len(text.encode()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
