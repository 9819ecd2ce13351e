"""Answers in the shapes of OpenAI's API, whole or in pieces."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiny_gpt.serve.jobs import PromptJob, ScoredToken, Submission, TextJob
from tiny_gpt.serve.parameters import Ask
from tiny_gpt.tokenizer.base import Tokenizer


@dataclass
class Answer:
    """The answer to one request, made from its jobs whenever it is asked for."""

    ask: Ask
    model: str
    tokenizer: Tokenizer
    submission: Submission
    prompt_texts: Sequence[str]
    """Each prompt as the client gave it, for `echo`."""
    n_prompt_tokens: int
    """Of all prompts, also those out of the model's view."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._id = f"{'chatcmpl' if self.ask.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._sent = [_Sent() for _ in range(self.submission.n_texts)]

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed. All texts are complete."""
        choices: list[dict[str, Any]] = []
        for prompt_index, prompt in enumerate(self.submission.prompts):
            for text in best_texts(prompt.texts, self.ask.n):
                index = len(choices)
                choices.append(self._whole_choice(index, prompt, text, self.prompt_texts[prompt_index]))
        return self._envelope("chat.completion" if self.ask.is_chat else "text_completion", choices, self._usage())

    def events(self) -> Iterator[bytes]:
        """What has been added since the last call, as server-sent events."""
        index = -1
        for prompt_index, prompt in enumerate(self.submission.prompts):
            for text in prompt.texts:
                index += 1
                for choice in self._new_pieces(index, prompt, text, self.prompt_texts[prompt_index]):
                    yield self._event([choice])

    def last_events(self) -> Iterator[bytes]:
        """What ends a stream."""
        if self.ask.include_usage:
            yield self._event([], self._usage())
        yield b"data: [DONE]\n\n"

    def _whole_choice(self, index: int, prompt: PromptJob, text: TextJob, prompt_text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": text.finish_reason, "seed": text.text.seed}
        kept = [token for token in text.tokens if token.offset < len(text.text.text) or not text.text.is_stopped]
        if self.ask.is_chat:
            logprobs = self._chat_logprobs(kept) if self.ask.sampling.n_logprobs is not None else None
            return choice | {
                "message": {"role": "assistant", "content": text.text.text, "refusal": None},
                "logprobs": logprobs,
            }
        echoed = prompt_text if self.ask.echo else ""
        logprobs = None
        if self.ask.sampling.n_logprobs is not None:
            logprobs = self._logprobs(prompt.tokens if self.ask.echo else [], kept, len(echoed))
        return choice | {"text": echoed + text.text.text, "logprobs": logprobs}

    def _new_pieces(self, index: int, prompt: PromptJob, text: TextJob, prompt_text: str) -> Iterator[dict[str, Any]]:
        """The choices of the events about one text: what it has grown by."""
        sent = self._sent[index]
        # Read first: what is complete does not change any more.
        finish_reason, written = text.finish_reason, text.text.text
        if sent.is_complete or not (prompt.is_read or finish_reason):
            return
        # A token is reported with the text that it completes.
        n_tokens = sent.n_tokens
        while n_tokens < len(text.tokens) and (
            text.tokens[n_tokens].offset < len(written) or (finish_reason and not text.text.is_stopped)
        ):
            n_tokens += 1
        tokens, piece = text.tokens[sent.n_tokens : n_tokens], written[sent.n_characters :]
        is_first = not sent.has_begun
        if not (piece or tokens or finish_reason or (is_first and (self.ask.is_chat or self.ask.echo))):
            return
        sent.n_tokens, sent.n_characters, sent.has_begun = n_tokens, len(written), True
        sent.is_complete = finish_reason is not None
        if self.ask.is_chat:
            yield from self._chat_pieces(index, piece, tokens, finish_reason, is_first)
            return
        echoed = prompt_text if self.ask.echo and is_first else ""
        logprobs = None
        if self.ask.sampling.n_logprobs is not None:
            scored = prompt.tokens if self.ask.echo and is_first else []
            shift = len(prompt_text) if self.ask.echo else 0
            logprobs = self._logprobs(scored, tokens, shift)
        choice = {"index": index, "text": echoed + piece, "logprobs": logprobs, "finish_reason": finish_reason}
        yield choice | ({"seed": text.text.seed} if is_first else {})

    def _chat_pieces(
        self, index: int, piece: str, tokens: Sequence[ScoredToken], finish_reason: str | None, is_first: bool
    ) -> Iterator[dict[str, Any]]:
        logprobs = self._chat_logprobs(tokens) if self.ask.sampling.n_logprobs is not None else None
        if is_first:
            delta = {"role": "assistant", "content": ""}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if piece or tokens:
            yield {"index": index, "delta": {"content": piece}, "logprobs": logprobs, "finish_reason": None}
        if finish_reason:
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish_reason}

    def _logprobs(
        self, prompt_tokens: Sequence[ScoredToken], tokens: Sequence[ScoredToken], shift: int
    ) -> dict[str, Any]:
        """In the form of /v1/completions; `shift` characters stand before the written text."""
        both = [*prompt_tokens, *tokens]
        offsets = [token.offset for token in prompt_tokens] + [shift + token.offset for token in tokens]
        return {
            "tokens": [self._shown(token.id) for token in both],
            "token_logprobs": [token.logprob for token in both],
            "top_logprobs": [
                None if token.logprob is None else {self._shown(i): logprob for i, logprob in _with_own(token)}
                for token in both
            ],
            "text_offset": offsets,
        }

    def _chat_logprobs(self, tokens: Iterable[ScoredToken]) -> dict[str, Any]:
        return {
            "content": [
                self._chat_token(token.id, token.logprob)
                | {"top_logprobs": [self._chat_token(i, logprob) for i, logprob in token.likeliest]}
                for token in tokens
            ],
            "refusal": None,
        }

    def _chat_token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self._shown(token_id),
            "logprob": logprob,
            "bytes": list(self.tokenizer.decode_bytes([token_id])),
        }

    def _shown(self, token_id: int) -> str:
        """A token as text; one that is no whole character as OpenAI writes it, "bytes:\\xe2\\x80"."""
        raw = self.tokenizer.decode_bytes([token_id])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _event(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.ask.is_chat else "text_completion"
        return to_event(self._envelope(kind, choices, usage, self.ask.include_usage))

    def _envelope(
        self, kind: str, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None, has_usage: bool = True
    ) -> dict[str, Any]:
        envelope = {"id": self._id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return envelope | ({"usage": usage} if has_usage else {})

    def _usage(self) -> dict[str, int]:
        n_written = sum(text.text.n_tokens for prompt in self.submission.prompts for text in prompt.texts)
        return {
            "prompt_tokens": self.n_prompt_tokens,
            "completion_tokens": n_written,
            "total_tokens": self.n_prompt_tokens + n_written,
        }


@dataclass
class _Sent:
    """How much of a text a stream has sent."""

    has_begun: bool = False
    is_complete: bool = False
    n_characters: int = 0
    n_tokens: int = 0


def to_event(values: dict[str, Any]) -> bytes:
    """A server-sent event with a JSON object, in ASCII."""
    return b"data: " + json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


def best_texts(texts: Sequence[TextJob], n: int) -> Sequence[TextJob]:
    """The `n` texts with the highest mean logprob of a token; all, in their order, if there are no more."""
    if len(texts) <= n:
        return texts
    return sorted(texts, key=lambda text: text.logprob_sum / max(1, text.text.n_tokens), reverse=True)[:n]


def _with_own(token: ScoredToken) -> Iterable[tuple[int, float]]:
    """The likeliest tokens, and the token itself if it is not among them."""
    assert token.logprob is not None
    own = (token.id, token.logprob)
    return token.likeliest if own in token.likeliest else (*token.likeliest, own)
