"""`tiny-gpt eval`: the loss of a model on a text, in the units in which models are compared."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import parse, require_sources
from tiny_gpt.config import DataConfig, EvalConfig
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import cache_folder
from tiny_gpt.run.folders import find_model
from tiny_gpt.ui.terminal import error

# Nats per token; the perplexity of a larger loss is infinite. Guessing among a million tokens costs 14.
MAX_LOSS = 700.0


@dataclass(frozen=True)
class EvalCommand:
    """Score a trained model on a text: loss, perplexity and bits per byte."""

    eval: EvalConfig
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A run, model file, exported folder, GGUF file or hf:OWNER/NAME."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE ..."), OPTIONAL]
    """Text to score, given as for `tiny-gpt train`."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""


def evaluate(args: Sequence[str]) -> int:
    """Score a model on a text, in bits per byte and other units."""
    command = parse(EvalCommand, "tiny-gpt eval", args)
    if not command.sources:
        raise UsageError("name a text to score the model on: tiny-gpt eval MODEL my_text.txt", code="text-not-named")
    path = find_model(command.model)
    require_sources(command.sources)
    scores, block_size = score(path, command.sources, command.eval)
    if command.json:
        print(json.dumps({"model": str(path), "sources": list(command.sources), **scores}))
        return 0
    for name, value in scores.items():
        print(f"{name.removeprefix('n_').replace('_', ' '):<20}{value:{',' if isinstance(value, int) else ',.4f'}}")
    print(f"(each sequence of {block_size} tokens is scored separately, as for val_loss)")
    return 0


def score(path: Path, sources: tuple[str, ...], config: EvalConfig) -> tuple[dict[str, float | int], int]:
    """({"nats_per_token": ..., "bits_per_byte": ..., ...}, the block size) for the whole text of `sources`.

    Raises BadInputError for a text of fewer than two tokens.
    """
    # torch takes seconds to import, so --help must not reach these.
    from tiny_gpt.data.corpus import read_corpus, read_options, skipped_lines
    from tiny_gpt.data.sources.resolve import resolve
    from tiny_gpt.data.token_store import encode_to_file, temporary_build_folder
    from tiny_gpt.device import pick_device
    from tiny_gpt.evaluation import LONGEST_BLOCK, MAX_LOGITS_AT_ONCE, FixedWindows, bits_per_byte
    from tiny_gpt.model_io.open_model import open_path
    from tiny_gpt.training.micro_batches import micro_batch_size
    from tiny_gpt.ui.preparation import with_progress

    device = pick_device(config.device)
    loaded = open_path(path, device)
    data = DataConfig(sources, text_field=config.text_field, encoding=config.encoding, max_unpacked=config.max_unpacked)
    with temporary_build_folder(cache_folder() / "tokens" / "eval") as folder:
        files = with_progress(resolve(data.data)).files
        options = read_options(data)
        corpus = with_progress(read_corpus(files, folder / "text", options))
        for line in skipped_lines([corpus]):
            error(line)
        text = corpus.text
        tokens = with_progress(encode_to_file(folder / "ids", text.whole(), loaded.tokenizer))
        if len(tokens) < 2:
            raise BadInputError(
                f"{', '.join(sources)}: a text of one token has nothing to predict; give more text",
                code="text-too-short-to-score",
            )
        block_size = loaded.model.config.block_size
        if "imported_from" in loaded.run_config:  # comparable with what training it further will say
            block_size = min(LONGEST_BLOCK, block_size)
        n_sequences = min(config.batch_size, max(1, MAX_LOGITS_AT_ONCE // (block_size * loaded.tokenizer.vocab_size)))
        n_sequences = micro_batch_size(n_sequences, 1, block_size, device)
        windows = FixedWindows(tokens.ids, block_size, n_sequences, len(tokens))
        loss = windows.loss(loaded.model)
        if not loss < MAX_LOSS:  # nor is NaN
            raise BadInputError(
                f"the loss of {path} on this text is {loss}: the model's weights are numbers, but too large to compute "
                "with; train it again with a lower learning rate",
                code="loss-not-finite",
            )
        scores = {
            "nats_per_token": loss,
            "nats_per_character": loss * len(tokens) / text.n_characters,
            "bits_per_byte": bits_per_byte(loss, len(tokens), tokens.n_bytes),
            "perplexity": math.exp(loss),
            "n_tokens": len(tokens),
            "n_characters": text.n_characters,
            "n_bytes": tokens.n_bytes,
        }
        del tokens, windows  # Windows cannot delete the folder while its files are mapped
    return scores, block_size
