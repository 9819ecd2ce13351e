"""What the samples of a run copy from its training text, beside what held-out text of the same kind shares with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tiny_gpt.data.copied_spans import CopiedSpan, CopyIndex
from tiny_gpt.view.run_files import Sample

MAX_PASSAGES = 5
_CONTEXT_BYTES = 60


@dataclass(frozen=True)
class Passage:
    """A passage of a sample that the training text has too."""

    step: int
    """Of the sample."""
    text: str
    before: str
    """What precedes it in the training text."""
    after: str
    line: int
    """In the training text, counted from 1."""


@dataclass(frozen=True)
class CopiedText:
    """Of all samples of a run."""

    passages: tuple[Passage, ...]
    """The longest ones, each once."""
    sample_rate: float
    """The fraction of the newest samples' text in copied passages."""
    n_bytes: int
    """Of that text."""
    spans: dict[int, tuple[tuple[int, int], ...]]
    """By a sample's step: its copied passages, from character to character."""


class CopySearch:
    """Finds what samples copy; each sample is searched once."""

    # The rate is that of the last samples together: those of the first minutes copy nothing, for they know nothing.
    N_RATED = 10

    def __init__(self, index: CopyIndex) -> None:
        self._index = index
        self._found: dict[tuple[int, str], list[CopiedSpan]] = {}

    def of(self, samples: Sequence[Sample]) -> CopiedText:
        found = [(sample, sample.text.encode("utf-8", "replace"), self._spans(sample)) for sample in samples]
        rated = found[-self.N_RATED :]
        n_bytes = sum(len(text) for _, text, _ in rated)
        n_copied = sum(span.n_bytes for _, _, spans in rated for span in spans)
        longest = sorted(
            ((span, text, sample.step) for sample, text, spans in found for span in spans),
            key=lambda each: -each[0].n_bytes,
        )
        passages: dict[str, Passage] = {}
        for span, text, step in longest:
            passage = self._passage(span, text, step)
            if len(passages) < MAX_PASSAGES and not any(passage.text in other for other in passages):
                passages[passage.text] = passage
        characters = {
            sample.step: tuple((_length(text[: span.start]), _length(text[: span.end])) for span in spans)
            for sample, text, spans in found
        }
        return CopiedText(tuple(passages.values()), n_copied / max(1, n_bytes), n_bytes, characters)

    def _spans(self, sample: Sample) -> list[CopiedSpan]:
        key = sample.step, sample.text
        if key not in self._found:
            self._found[key] = self._index.find(sample.text.encode("utf-8", "replace"))
        return self._found[key]

    def _passage(self, span: CopiedSpan, text: bytes, step: int) -> Passage:
        source, end = self._index.text, span.position + span.n_bytes
        before = source[max(0, span.position - _CONTEXT_BYTES) : span.position]
        return Passage(
            step,
            _decoded(text[span.start : span.end]),
            _decoded(before),
            _decoded(source[end : end + _CONTEXT_BYTES]),
            self._index.line_of(span.position),
        )


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "ignore")


def _length(text: bytes) -> int:
    return len(text.decode("utf-8", "ignore"))
