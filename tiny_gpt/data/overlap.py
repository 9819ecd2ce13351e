"""Duplicate passages: within the training text, and between it and the validation text.

A passage is a line, or a sentence of a long line, of at least MIN_PASSAGE_CHARACTERS: shorter ones recur naturally.
"""

from collections.abc import Iterable, Iterator

from tiny_gpt.data.text_file import TextSplit

MIN_PASSAGE_CHARACTERS = 40
LONG_LINE = 1000
SENTENCE_ENDS = (". ", "! ", "? ", "。", "！", "？", "। ")
# For the estimate of how many passages a text has.
AVERAGE_PASSAGE_CHARACTERS = 80


def passages(text: str) -> Iterator[str]:
    """The passages of `text`, without surrounding white space."""
    for line in text.split("\n"):
        if len(line) < MIN_PASSAGE_CHARACTERS:
            continue
        if len(line) <= LONG_LINE:
            yield line.strip()
            continue
        for end in SENTENCE_ENDS:
            line = line.replace(end, end + "\n")
        yield from (sentence.strip() for sentence in line.split("\n") if len(sentence) >= MIN_PASSAGE_CHARACTERS)


def val_overlap(train: TextSplit, val: TextSplit) -> float | None:
    """The fraction of the validation passages, by characters, that also occur in the training text.

    None if there are no passages to compare: no line or sentence is long enough.
    """
    val_passages = set(passages("".join(chunk.read().decode() for chunk in val.chunks())))
    n_characters = sum(map(len, val_passages))
    found: set[str] = set()
    for chunk in train.chunks():
        found |= val_passages.intersection(passages(chunk.read().decode()))
    return sum(map(len, found)) / n_characters if n_characters else None


def repeated_fraction(texts: Iterable[str], n_characters: int, max_passages: int = 1_000_000) -> float | None:
    """The fraction of the passages, by characters, that occurred earlier in `texts`; None if there are none.

    In a text with more than about `max_passages`, only passages whose hash is a multiple of some number are looked at.
    That bounds memory, and sees either all occurrences of a passage or none.
    """
    one_in = n_characters // (max_passages * AVERAGE_PASSAGE_CHARACTERS) + 1
    seen: set[int] = set()
    n_seen = n_repeated = 0
    for text in texts:
        for passage in passages(text):
            key = hash(passage)  # differs between processes (PYTHONHASHSEED), which sampling does not mind
            if key % one_in:
                continue
            n_seen += len(passage)
            if key in seen:
                n_repeated += len(passage)
            else:
                seen.add(key)
    return n_repeated / n_seen if n_seen else None
