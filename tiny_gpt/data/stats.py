"""What a text is like: its size, scripts, repetition, and the number of tokens under each tokenizer.

Bytes, characters, documents and repetition are counted over the whole text; scripts and tokens over a sample drawn
evenly from it, so that a large text takes seconds.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

from tiny_gpt.config import DataConfig
from tiny_gpt.data.choose_tokenizer import default_vocab_size
from tiny_gpt.data.corpus import Corpus, counted_lines, read_splits, skipped_lines
from tiny_gpt.data.kinds import Kind
from tiny_gpt.data.overlap import repeated_fraction, val_overlap
from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.data.token_store import temporary_build_folder
from tiny_gpt.files import cache_folder
from tiny_gpt.tokenizer.base import TOKENIZERS

STATISTICS_SAMPLE_BYTES = 8_000_000
# First words of the names of letters that belong to no script.
NOT_SCRIPTS = {
    "MODIFIER",
    "DOUBLE",
    "SCRIPT",
    "BLACK",
    "TURNED",
    "OHM",
    "KELVIN",
    "ANGSTROM",
    "IDEOGRAPHIC",
    "VERTICAL",
}


@dataclass(frozen=True)
class TokenCount:
    """The tokens of a text under one tokenizer."""

    tokenizer: str
    vocab_size: int
    train_tokens: int
    """Estimated from the sample."""
    bytes_per_token: float


@dataclass(frozen=True)
class CorpusSummary:
    """The figures of a text. Fractions are between 0 and 1."""

    sources: list[str]
    n_files: int
    n_source_bytes: int
    """Size of the files on disk."""
    n_bytes: int
    """UTF-8 bytes of the text in them."""
    n_characters: int
    n_documents: int
    median_document_bytes: int
    longest_document_bytes: int
    scripts: dict[str, float]
    """Script -> fraction of the letters."""
    train_bytes: int
    val_bytes: int
    repeated_share: float | None
    """Fraction of the training passages that occurred before; None if no passage is long enough to compare."""
    val_also_in_train: float | None
    """Fraction of the validation passages that also occur in the training text; None as above."""
    skipped: list[str]
    tokens: list[TokenCount]
    kinds: dict[str, Kind]
    """End of a file's name -> the files of that kind, those with the most text first."""


def summarize(config: DataConfig) -> Preparation[CorpusSummary]:
    """Read the text of `config` and describe it. Raises what `prepare` raises for unusable sources."""
    sources = yield from resolve(config.data)
    if config.val:
        sources.val_files = (yield from resolve(config.val)).files
    with temporary_build_folder(cache_folder() / "tokens" / "summary") as folder:
        corpora, train, val = yield from read_splits(config, sources, folder)
        document_sizes = sorted(int(end - start) for corpus in corpora for start, end in corpus.text.documents)
        n_characters = sum(corpus.text.n_characters for corpus in corpora)
        yield StageProgress("looking for repetition", 0, None)
        repeated = repeated_fraction((chunk.read().decode() for chunk in train.chunks()), n_characters)
        overlap = val_overlap(train, val)
        # Tokenizers are trained on this sample and measured on it: a larger text would take minutes for three of them.
        sample = list(train.sample(STATISTICS_SAMPLE_BYTES))
        token_counts = []
        for name in TOKENIZERS:
            yield StageProgress(f"trying {name}", 0, None)
            token_counts.append(_count_tokens(name, sample, train.n_bytes, config.vocab_size))
        return CorpusSummary(
            sources=sources.specs,
            n_files=len(sources.files) + len(sources.val_files),
            n_source_bytes=sum(corpus.n_source_bytes for corpus in corpora),
            n_bytes=train.n_bytes + val.n_bytes,
            n_characters=n_characters,
            n_documents=len(document_sizes),
            median_document_bytes=document_sizes[len(document_sizes) // 2],
            longest_document_bytes=document_sizes[-1],
            scripts=scripts_of("".join(sample)),
            train_bytes=train.n_bytes,
            val_bytes=val.n_bytes,
            repeated_share=repeated,
            val_also_in_train=overlap,
            skipped=[*skipped_lines(corpora), *counted_lines("skipped", sources.skipped, sources.examples)],
            tokens=token_counts,
            kinds=_joined_kinds(corpora),
        )


def _joined_kinds(corpora: list[Corpus]) -> dict[str, Kind]:
    joined: dict[str, Kind] = {}
    for suffix, kind in (item for corpus in corpora for item in corpus.kinds.by_suffix.items()):
        known = joined.get(suffix, Kind())
        looks_like = known.looks_like + kind.looks_like
        joined[suffix] = Kind(known.n_files + kind.n_files, known.n_bytes + kind.n_bytes, looks_like)
    return dict(sorted(joined.items(), key=lambda item: -item[1].n_bytes))


def _count_tokens(name: str, sample: list[str], n_bytes: int, vocab_size: int) -> TokenCount:
    """Train the tokenizer `name` on `sample`, and estimate how many tokens it makes of `n_bytes` of such text."""
    tokenizer = TOKENIZERS[name].train(sample, vocab_size or default_vocab_size(n_bytes))
    n_tokens = sum(len(tokenizer.encode(text)) for text in sample)
    bytes_per_token = sum(len(text.encode()) for text in sample) / max(1, n_tokens)
    return TokenCount(name, tokenizer.vocab_size, round(n_bytes / bytes_per_token), bytes_per_token)


def scripts_of(text: str) -> dict[str, float]:
    """The fraction of the letters in each script, the most frequent first: {"Latin": 0.98, "Greek": 0.02}.

    The first word of a letter's Unicode name is its script: LATIN SMALL LETTER A. Letters of special forms, such as the
    ª of Spanish ordinals or full-width letters, count as those that they are forms of; NOT_SCRIPTS as "other".
    """
    counts: Counter[str] = Counter()
    for character, n in Counter(text).items():
        if not character.isalpha():
            continue
        plain = unicodedata.normalize("NFKC", character)[0]
        name = unicodedata.name(plain if plain.isalpha() else character, "other")
        script = name.split()[0].split("-")[0]
        script = "other" if script in NOT_SCRIPTS else script if script == "CJK" else script.capitalize()
        counts[script] += n
    return {script: n / counts.total() for script, n in counts.most_common()}
