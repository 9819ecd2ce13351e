"""What `tiny-gpt data` prints: the figures of a text, what they mean for a training, and the built-in datasets."""

import textwrap
from collections.abc import Iterator

from tiny_gpt.data.choose_tokenizer import auto_tokenizer
from tiny_gpt.data.overlap import MIN_PASSAGE_CHARACTERS
from tiny_gpt.data.readers.registry import supported_formats
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.data.sources.fetch import is_downloaded
from tiny_gpt.data.stats import CorpusSummary
from tiny_gpt.data.token_shards.describe import ShardsSummary
from tiny_gpt.files import quoted

# A script with fewer of the letters is left out: 0.1% would be shown as more than there is.
MIN_SCRIPT_SHARE = 0.001
MAX_KINDS = 8
# Columns of the list of datasets and formats.
MAX_WIDTH = 80


def summary_lines(summary: CorpusSummary, sources: tuple[str, ...]) -> Iterator[str]:
    """The report on a text; `sources` is how the user named it."""
    yield from _figures(summary)
    yield ""
    yield f"{'tokenizer':<11}{'vocabulary':>11}{'tokens':>15}{'bytes/token':>15}"
    for count in summary.tokens:
        yield (f"{count.tokenizer:<11}{count.vocab_size:>11,}{count.train_tokens:>15,}{count.bytes_per_token:>15.2f}")
    yield ""
    yield from _advice(summary, sources)


def corpus_lines(summary: ShardsSummary) -> Iterator[str]:
    """The report on a corpus in shards."""
    yield summary.location
    yield ""
    size = f"{_size(summary.n_shard_bytes)}; {_size(summary.n_bytes)} of text"
    yield _row("shards", f"{summary.n_shards:,} to train on, {summary.n_val_shards:,} for validation: {size}")
    yield _row("tokens", f"{summary.train_tokens:,} to train on, {summary.val_tokens:,} for validation")
    yield _row("tokenizer", f"{summary.tokenizer}, {summary.vocab_size:,} tokens")
    texts = f", in {summary.n_texts:,} texts that were added one after the other" if summary.n_texts > 1 else ""
    yield _row("documents", f"{summary.n_documents:,}{texts}")
    yield from (_row("", line) for line in summary.notes)
    if summary.missing:
        missing = ", ".join(summary.missing[:3]) + (", ..." if len(summary.missing) > 3 else "")
        yield _row("missing", f"{len(summary.missing):,} shards are not there or incomplete: {missing}")
    yield ""
    yield f"Train on it with: tiny-gpt train {quoted(summary.location)}"


def dataset_lines() -> Iterator[str]:
    """What `tiny-gpt data list` prints."""
    for name, dataset in DATASETS.items():
        sizes = [remote.n_bytes for remote in dataset.files]
        size = f"{sum(n for n in sizes if n) / 1e6:,.0f} MB to download" if all(sizes) else "to download"
        where = "on this machine" if is_downloaded(name) else size
        yield f"{name:<16}{dataset.text_size:>7}  {dataset.license:<26}{where}"
        yield from textwrap.wrap(dataset.description, MAX_WIDTH, initial_indent="    ", subsequent_indent="    ")
        yield from (f"    {remote.urls[0]}" for remote in dataset.files)
    yield ""
    yield "Train on one with: tiny-gpt train wikitext-2"
    for line in supported_formats():
        yield from textwrap.wrap(line, MAX_WIDTH, subsequent_indent="    ")


def _figures(summary: CorpusSummary) -> Iterator[str]:
    yield ", ".join(summary.sources)
    yield ""
    files = f"{summary.n_files:,} files, " if summary.n_files > 1 else ""
    yield _row("size", f"{files}{_size(summary.n_source_bytes)}; {_size(summary.n_bytes)} of text")
    yield _row("characters", f"{summary.n_characters:,}")
    documents = f"{summary.n_documents:,}"
    if summary.n_documents > 1:
        documents += (
            f" (median {_size(summary.median_document_bytes)}, longest {_size(summary.longest_document_bytes)})"
        )
    yield _row("documents", documents)
    yield from _kinds(summary)
    frequent = [item for item in summary.scripts.items() if item[1] >= MIN_SCRIPT_SHARE]
    scripts = [f"{name} {fraction:.1%}" for name, fraction in frequent[:6]]
    yield _row("letters", ", ".join(scripts) or "none")
    yield _row("validation", f"{_size(summary.val_bytes)} held out; {_size(summary.train_bytes)} to train on")
    repeated = _fraction(summary.repeated_share, "of the passages occurred earlier in the text")
    leaked = _fraction(summary.val_also_in_train, "of the validation passages are also in the training text")
    yield _row("repeated", repeated)
    yield _row("leaked", leaked)
    yield from (_row("", line) for line in summary.skipped)


def _kinds(summary: CorpusSummary) -> Iterator[str]:
    """Files by kind, if there are several or if they don't look like prose."""
    kinds = list(summary.kinds.items())
    if len(kinds) < 2 and not any(kind.looks_like for _, kind in kinds):
        return
    n_bytes = max(1, sum(kind.n_bytes for _, kind in kinds))
    for index, (suffix, kind) in enumerate(kinds[:MAX_KINDS]):
        files = f"{kind.n_files:,} file{'s' * (kind.n_files > 1)}"
        looks = "".join(f"; {n:,} of them look{'s' * (n == 1)} like {what}" for what, n in kind.looks_like.items())
        text = f"{suffix}: {files}, {_size(kind.n_bytes)} of text ({kind.n_bytes / n_bytes:.1%}){looks}"
        yield _row("" if index else "made of", text)
    if len(kinds) > MAX_KINDS:
        yield _row("", f"and {len(kinds) - MAX_KINDS:,} more kinds of files")


def _fraction(fraction: float | None, of_what: str) -> str:
    if fraction is None:
        return f"cannot tell: no line or sentence has {MIN_PASSAGE_CHARACTERS} characters, so nothing was compared"
    return f"{fraction:.1%} {of_what}"


def _advice(summary: CorpusSummary, sources: tuple[str, ...]) -> Iterator[str]:
    if auto_tokenizer(summary.train_bytes) == "bpe":
        yield "bpe suits this text: with subword tokens a model reads more of it in the same time."
        yield "  tiny-gpt train uses it by default; with train.py, give --tokenizer bpe"
    else:
        yield "char suits this text: in a small text each subword token is too rare to be learned."
        yield "  tiny-gpt train and train.py use it by default"
    yield f"To predict a training on it: tiny-gpt plan {' '.join(map(quoted, sources))}"


def _row(label: str, text: str) -> str:
    return f"{label:<12}{text}"


def _size(n_bytes: int) -> str:
    """1234567 -> 1.2 MB."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError
