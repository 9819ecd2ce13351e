"""From what a request asks for to jobs for the scheduler: prompts become tokens, and each text gets its seed."""

import codecs
from collections.abc import Callable, Sequence

from tiny_gpt.inference.generate import Text
from tiny_gpt.inference.prompts import START, as_text
from tiny_gpt.serve.jobs import PromptJob, Submission, TextJob
from tiny_gpt.serve.models import ServedModel
from tiny_gpt.serve.parameters import Ask, Prompt
from tiny_gpt.serve.responses import Answer
from tiny_gpt.tokenizer.base import Tokenizer, decode
from tiny_gpt.tokenizer.byte_char import UTF8_ERRORS
from tiny_gpt.web.errors import RefusedError


def begin_answer(ask: Ask, model: ServedModel, notify: Callable[[], None], timeout_s: float) -> Answer:
    """The jobs of a request. Raises RefusedError for token ids that the model does not have, and so on."""
    tokenizer, block_size = model.engine.tokenizer, model.engine.config.block_size
    unknown = [token_id for token_id in ask.sampling.logit_bias if token_id >= tokenizer.vocab_size]
    if unknown:
        raise RefusedError(400, f"logit_bias: the model has no token {unknown[0]}", "no-such-token", "logit_bias")
    prompts = [encode_prompt(prompt, tokenizer) for prompt in ask.prompts]
    is_scored = ask.echo and ask.sampling.n_logprobs is not None
    seeds = iter(range(ask.seed, ask.seed + len(prompts) * ask.best_of))
    jobs = []
    for ids in prompts:
        if is_scored and len(ids) > block_size:
            raise RefusedError(
                400,
                f"the prompt has {len(ids):,} tokens; with echo and logprobs give at most {block_size:,}, what the "
                f"model sees at once",
                "context_length_exceeded",
                "prompt",
            )
        seen = ids[-block_size:]
        texts = [
            TextJob(
                Text(next(seeds), tuple(map(as_text, ask.sampling.config.stop)), tokenizer, list(seen)),
                ask.sampling,
                block_size,
            )
            for _ in range(ask.best_of)
        ]
        n_scored, offsets = (ask.sampling.n_logprobs, offsets_of(tokenizer, seen)) if is_scored else (None, ())
        jobs.append(PromptJob(seen, texts, ask.max_tokens, n_scored, offsets))
    submission = Submission(jobs, notify, ask.stream, timeout_s)
    shown = [
        prompt if isinstance(prompt, str) else decode(tokenizer, prompt) if ask.echo else "" for prompt in ask.prompts
    ]
    return Answer(ask, model.name, tokenizer, submission, shown, sum(map(len, prompts)))


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """A prompt's token ids, as `tiny-gpt generate` has them. Raises RefusedError."""
    if isinstance(prompt, str):
        return tokenizer.encode(as_text(prompt) or START).tolist()
    if max(prompt) >= tokenizer.vocab_size:
        raise RefusedError(
            400,
            f"prompt: the model has no token {max(prompt)}; it has {tokenizer.vocab_size:,}",
            "no-such-token",
            "prompt",
        )
    return prompt


def offsets_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Characters of the decoded text before each token."""
    decoder, offsets, n_characters = codecs.getincrementaldecoder("utf-8")(UTF8_ERRORS), [], 0
    for token_id in ids:
        offsets.append(n_characters)
        n_characters += len(decoder.decode(tokenizer.decode_bytes([token_id])))
    return offsets
