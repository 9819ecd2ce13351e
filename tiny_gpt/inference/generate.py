"""Text from a model: one prompt continued in several ways at once, piece by piece as it is written."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tiny_gpt.config import SampleConfig
from tiny_gpt.inference.decoder import Decoder
from tiny_gpt.inference.engine import Engine
from tiny_gpt.inference.prompts import PendingTokens, as_text, prepare_prompt
from tiny_gpt.inference.sampling import sample
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.byte_char import UTF8_ERRORS


@dataclass
class Text:
    """One continuation of the prompt while it is written."""

    seed: int
    stop: tuple[str, ...]
    tokenizer: Tokenizer
    ids: list[int]
    """Of the prompt, as far as the model sees it, and what was written after it."""
    text: str = ""
    """What was written, as far as it is certain that no stop text begins in it."""
    n_tokens: int = 0
    is_done: bool = False
    is_stopped: bool = False
    """Whether a stop text, or the token with which an imported model ends a text, ended it; that is left out."""
    pending: bytes = b""
    """The end of the prompt that is still to be written anew; no part of `text`."""
    _held: str = ""
    _n_taken: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(UTF8_ERRORS), repr=False
    )

    def __post_init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(self.seed))

    def add(self, token_id: int, is_last: bool) -> None:
        """Take one more token; `text` grows by what it completes."""
        self.ids.append(token_id)
        self.n_tokens += 1
        if token_id in self.tokenizer.end_ids:
            self.text, self._held = self.text + self._held, ""
            self.is_done = self.is_stopped = True
            return
        written = self.tokenizer.decode_bytes([token_id])
        written, self.pending = written[len(self.pending) :], self.pending[len(written) :]
        self._held += self._decoder.decode(written, final=is_last)
        places = [place for place in (self._held.find(stop) for stop in self.stop) if place >= 0]
        if places:
            self.text += self._held[: min(places)]
            self.is_done = self.is_stopped = True
            return
        n_held = 0 if is_last else max((_overlap(self._held, stop) for stop in self.stop), default=0)
        n_certain = len(self._held) - n_held
        self.text, self._held = self.text + self._held[:n_certain], self._held[n_certain:]
        self.is_done = is_last

    @property
    def n_characters(self) -> int:
        """Characters that the tokens so far have completed, also where a stop text may begin in them."""
        return len(self.text) + len(self._held)

    def take(self) -> str:
        """What `text` has grown by since this was last called."""
        piece = self.text[self._n_taken :]
        self._n_taken += len(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` may begin."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def write(
    writer: Engine, config: SampleConfig, seeds: Sequence[int], decoder: Decoder | None = None
) -> Iterator[list[Text]]:
    """Continue `config.prompt` once for each seed; yields the texts after each token, the same objects every time.

    A text depends on its own seed alone, not on the others (on a CPU with numba to the last token; elsewhere a number
    may round otherwise).
    """
    prompt = prepare_prompt(writer.tokenizer, config.prompt)
    yield from continue_ids(writer, config, prompt.ids, seeds, decoder, prompt.pending)


def continue_ids(
    writer: Engine,
    config: SampleConfig,
    ids: Sequence[int],
    seeds: Sequence[int],
    decoder: Decoder | None = None,
    pending: bytes = b"",
) -> Iterator[list[Text]]:
    """The same for a prompt that is already encoded, of at least one token; `config.prompt` is not used.

    `pending`: the end of the prompt that is to be written anew (prompts.py).
    """
    block_size = writer.config.block_size
    prompt_ids = list(ids[-block_size:])
    stop = tuple(map(as_text, config.stop))
    texts = [Text(seed, stop, writer.tokenizer, prompt_ids.copy(), pending=pending) for seed in seeds]
    fitting = PendingTokens(writer.tokenizer) if pending else None
    decoder = decoder or writer.make_decoder(len(texts), config.precision)
    logits_V = decoder.read(prompt_ids, config.max_tokens)
    logits = np.broadcast_to(logits_V, (len(texts), len(logits_V)))
    growing = list(range(len(texts)))
    for n_left in range(config.max_tokens, 0, -1):
        for row, number in enumerate(growing):
            text = texts[number]
            text_logits = fitting.masked(logits[row], text.pending) if fitting and text.pending else logits[row]
            next_id = sample(text_logits, config, text.ids[-block_size:], text.generator)
            text.add(next_id, is_last=n_left == 1)
        yield texts
        growing = [number for number in growing if not texts[number].is_done]
        if not growing:
            return
        logits = decoder.step([texts[number].ids[-1] for number in growing], growing)


def stream(writer: Engine, config: SampleConfig, seed: int) -> Iterator[str]:
    """The continuation of `config.prompt`, piece by piece, at most `config.max_tokens` tokens long."""
    for (text,) in write(writer, config, [seed]):
        if piece := text.take():
            yield piece
