"""What a text is like, before a night is spent on it: size, scripts, repetitions, tokens under each tokenizer.

Bytes, characters, documents and repetitions are counted over the whole text; scripts and tokens over a sample drawn
evenly from all of it, so that a large text takes seconds.
"""

import unicodedata
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass

from tiny_gpt.config import DataConfig
from tiny_gpt.data.overlap import share_also_in_training, share_repeated
from tiny_gpt.data.prepare import default_vocab_size, read_text, skipped_lines
from tiny_gpt.data.progress import PreparationEvent, StageProgress
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.data.token_store import temporary_build_folder
from tiny_gpt.files import cache_folder
from tiny_gpt.tokenizer.base import TOKENIZERS

SAMPLE_BYTES = 8_000_000


@dataclass(frozen=True)
class TokenCount:
    """A text under one tokenizer."""

    tokenizer: str
    vocab_size: int
    train_tokens: int
    bytes_per_token: float


@dataclass(frozen=True)
class Summary:
    """The figures of a text. Shares are between 0 and 1."""

    sources: list[str]
    n_files: int
    n_source_bytes: int
    n_bytes: int
    """UTF-8 bytes of the readable text."""
    n_characters: int
    n_documents: int
    median_document_bytes: int
    longest_document_bytes: int
    scripts: dict[str, float]
    """Share of the letters."""
    train_bytes: int
    val_bytes: int
    repeated_share: float
    val_also_in_train: float
    skipped: list[str]
    tokens: list[TokenCount]


def summarize(config: DataConfig) -> Generator[PreparationEvent, None, Summary]:
    """Read the text of `config` and describe it. Raises what `prepare` raises."""
    sources = yield from resolve(config.data)
    if config.val:
        sources.val_files = (yield from resolve(config.val)).files
    with temporary_build_folder(cache_folder() / "tokens" / "summary") as place:
        corpora, train, val = yield from read_text(config, sources, place)
        sizes = sorted(int(end - start) for corpus in corpora for start, end in corpus.text.documents)
        n_characters = sum(corpus.text.n_characters for corpus in corpora)
        yield StageProgress("looking for repetitions", 0, None)
        repeated = share_repeated((chunk.read().decode() for chunk in train.chunks()), n_characters)
        overlap = share_also_in_training(train, val)
        sample = list(train.sample(SAMPLE_BYTES))
        n_sample_bytes = sum(len(text.encode()) for text in sample)
        counts = []
        for name, kind in TOKENIZERS.items():
            yield StageProgress(f"trying {name}", 0, None)
            tokenizer = kind.train(sample, config.vocab_size or default_vocab_size(train.n_bytes))
            bytes_per_token = n_sample_bytes / max(1, sum(len(tokenizer.encode(text)) for text in sample))
            counts.append(
                TokenCount(name, tokenizer.vocab_size, round(train.n_bytes / bytes_per_token), bytes_per_token)
            )
        return Summary(
            sources=sources.specs,
            n_files=len(sources.files) + len(sources.val_files),
            n_source_bytes=sum(corpus.n_source_bytes for corpus in corpora),
            n_bytes=train.n_bytes + val.n_bytes,
            n_characters=n_characters,
            n_documents=len(sizes),
            median_document_bytes=sizes[len(sizes) // 2],
            longest_document_bytes=sizes[-1],
            scripts=scripts_of("".join(sample)),
            train_bytes=train.n_bytes,
            val_bytes=val.n_bytes,
            repeated_share=repeated,
            val_also_in_train=overlap,
            skipped=[*skipped_lines(corpora), *(f"skipped {n:,}: {reason}" for reason, n in sources.skipped.items())],
            tokens=counts,
        )


def scripts_of(text: str) -> dict[str, float]:
    """Share of the letters in each script, the most frequent first: {"Latin": 0.98, "Greek": 0.02}.

    A letter's Unicode name begins with its script: LATIN SMALL LETTER A.
    """
    counts: Counter[str] = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            name = unicodedata.name(character, "other").split()[0].split("-")[0]
            counts["CJK" if name == "CJK" else name.capitalize()] += n
    return {script: n / counts.total() for script, n in counts.most_common()}
