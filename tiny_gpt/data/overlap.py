"""Text that stands twice: passages that repeat, and validation text that a model has already been trained on.

A passage is a line, and of long lines a sentence, of at least MIN_CHARACTERS: shorter ones recur by nature.
"""

from collections.abc import Iterable, Iterator

from tiny_gpt.data.text_file import TextSplit

MIN_CHARACTERS = 40
LONG_LINE = 1000
SENTENCE_ENDS = (". ", "! ", "? ", "。", "！", "？", "। ")


def passages(text: str) -> Iterator[str]:
    """The passages of `text`, without white space around them."""
    for line in text.split("\n"):
        if len(line) < MIN_CHARACTERS:
            continue
        if len(line) <= LONG_LINE:
            yield line.strip()
            continue
        for end in SENTENCE_ENDS:
            line = line.replace(end, end + "\n")
        yield from (sentence.strip() for sentence in line.split("\n") if len(sentence) >= MIN_CHARACTERS)


def share_also_in_training(train: TextSplit, val: TextSplit) -> float:
    """The share of the validation text's passages, by characters, that also stand in the training text."""
    sought = set(passages(_text(val)))
    n_characters = sum(map(len, sought))
    found: set[str] = set()
    for chunk in train.chunks():
        found |= sought.intersection(passages(chunk.read().decode()))
    return sum(map(len, found)) / n_characters if n_characters else 0.0


def share_repeated(texts: Iterable[str], n_characters: int, max_passages: int = 1_000_000) -> float:
    """The share of the passages, by characters, that stood earlier in `texts`.

    Of a long text only those passages are looked at whose hash falls into a part of all hashes, which bounds memory
    and still finds both places of each.
    """
    one_in = n_characters // (max_passages * 80) + 1
    seen: set[int] = set()
    n_seen = n_repeated = 0
    for text in texts:
        for passage in passages(text):
            key = hash(passage)
            if key % one_in:
                continue
            n_seen += len(passage)
            if key in seen:
                n_repeated += len(passage)
            else:
                seen.add(key)
    return n_repeated / n_seen if n_seen else 0.0


def _text(part: TextSplit) -> str:
    return "".join(chunk.read().decode() for chunk in part.chunks())
