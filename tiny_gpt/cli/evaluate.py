"""`tiny-gpt eval`: how well a model does on a text."""

import json
import math
from pathlib import Path

from tiny_gpt.config import DataConfig, EvalConfig
from tiny_gpt.data.corpus import read_corpus
from tiny_gpt.data.readers.base import ReadOptions
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.data.token_store import encode_to_file, temporary_build_folder
from tiny_gpt.device import pick_device
from tiny_gpt.errors import BadInputError
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.files import cache_folder
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.training.step import micro_batch_size
from tiny_gpt.ui.preparation import shown


def score(path: Path, sources: tuple[str, ...], config: EvalConfig, as_json: bool) -> int:
    """Print the loss of a model over a whole text in the units that people compare. Returns the exit code."""
    device = pick_device(config.device)
    loaded = open_path(path, device)
    data = DataConfig(sources, text_field=config.text_field, encoding=config.encoding)
    with temporary_build_folder(cache_folder() / "tokens" / "eval") as place:
        files = shown(resolve(data.data)).files
        text = shown(read_corpus(files, place / "text", ReadOptions(data.text_field, data.encoding or None))).text
        tokens = shown(encode_to_file(place / "ids", text.whole(), loaded.tokenizer))
        if len(tokens) < 2:
            raise BadInputError(f"{', '.join(sources)}: a single token has nothing to predict; give more text")
        block_size = loaded.model.config.block_size
        n_blocks = micro_batch_size(config.batch_size, 1, block_size, device)
        windows = FixedWindows(tokens.ids, block_size, n_blocks, len(tokens))
        loss = windows.loss(loaded.model)
        scores = {
            "nats_per_token": loss,
            "nats_per_character": loss * len(tokens) / text.n_characters,
            "bits_per_byte": bits_per_byte(loss, len(tokens), tokens.n_bytes),
            "perplexity": math.exp(loss),
            "n_tokens": len(tokens),
            "n_characters": text.n_characters,
            "n_bytes": tokens.n_bytes,
        }
        del tokens, windows  # Windows does not delete what is still mapped
    if as_json:
        print(json.dumps({"model": str(path), "sources": list(sources), **scores}))
        return 0
    for name, value in scores.items():
        print(f"{name.removeprefix('n_').replace('_', ' '):<20}{value:{',' if isinstance(value, int) else ',.4f'}}")
    print(f"(each block of {block_size} tokens read anew, as val_loss is)")
    return 0
