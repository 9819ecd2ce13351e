"""`tiny-gpt data`: the figures of a text in words, and what they mean for a night."""

from collections.abc import Iterator

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import auto_tokenizer
from tiny_gpt.data.sources.catalog import describe
from tiny_gpt.data.stats import Summary
from tiny_gpt.ui.terminal import quoted

# A night that reads its text more often than this learns much of it by heart.
MANY_READINGS = 20


def report(summary: Summary, config: RunConfig) -> Iterator[str]:
    """The lines of the report."""
    yield f"{', '.join(summary.sources)}"
    yield ""
    files = f"{summary.n_files:,} files, " if summary.n_files > 1 else ""
    yield _row("size", f"{files}{_size(summary.n_source_bytes)}; {_size(summary.n_bytes)} of readable text")
    yield _row("characters", f"{summary.n_characters:,}")
    documents = f"{summary.n_documents:,}"
    if summary.n_documents > 1:
        documents += (
            f" (half of them shorter than {_size(summary.median_document_bytes)}, "
            f"the longest {_size(summary.longest_document_bytes)})"
        )
    yield _row("documents", documents)
    scripts = [f"{name} {share:.1%}" for name, share in list(summary.scripts.items())[:6]]
    yield _row("letters", ", ".join(scripts) or "none")
    yield _row("validation", f"{_size(summary.val_bytes)} held out, {_size(summary.train_bytes)} to learn from")
    yield _row("repeated", f"{summary.repeated_share:.1%} of the passages stood earlier in the text")
    yield _row("leaked", f"{summary.val_also_in_train:.1%} of the validation passages also stand in the training text")
    for line in summary.skipped:
        yield _row("", line)
    yield ""
    yield f"{'tokenizer':<11}{'vocabulary':>11}{'tokens':>15}{'bytes a token':>15}{'a night reads it':>21}"
    n_night = config.train.total_steps * config.train.batch_size * config.model.block_size
    for count in summary.tokens:
        times = n_night / max(1, count.train_tokens)
        yield (
            f"{count.tokenizer:<11}{count.vocab_size:>11,}{count.train_tokens:>15,}{count.bytes_per_token:>15.2f}"
            f"{times:>15,.1f} times"
        )
    yield ""
    yield from _advice(summary, n_night, config.data.data)


def _advice(summary: Summary, n_night: int, sources: tuple[str, ...]) -> Iterator[str]:
    of = {count.tokenizer: count for count in summary.tokens}
    if auto_tokenizer(summary.train_bytes) == "bpe":
        yield "bpe suits this text: with pieces of words a model sees more of it in the same time."
        yield "  tiny-gpt train takes it by itself; train.py: --tokenizer bpe"
    else:
        yield "char suits this text: it is small, and pieces of words would each be seen too seldom to be learned."
        yield "  tiny-gpt train and train.py take it by themselves"
    if n_night / max(1, of["char"].train_tokens) > MANY_READINGS:
        yield f"The guide's night ({n_night / 1e6:,.0f} M tokens) reads it so often that the model will know much of it"
        yield "by heart: fewer epochs are enough (--epochs), and more text is better."
    yield f"What a training of it would be on this machine: tiny-gpt plan {' '.join(map(quoted, sources))}"


def catalog_lines() -> Iterator[str]:
    """`tiny-gpt data list`."""
    yield from describe()
    yield ""
    yield "Train on one with: tiny-gpt train wikitext-2"


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
