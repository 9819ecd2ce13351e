"""The README.md of an exported model: what it is, what it learned from, how good it is, what it writes, how to use it.

The contents of a model file are untrusted, and a card is made to be published: texts are quoted as code on one line,
and only the last part of a path on this machine is shown.
"""

import re
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

from tiny_gpt.config import SampleConfig, TrainConfig
from tiny_gpt.inference.engine import engine_for
from tiny_gpt.inference.generate import stream
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.hf_architectures import HF_ARCHITECTURES
from tiny_gpt.model_io.model_file import LoadedModel

CARD_FILE = "README.md"
SAMPLE_TOKENS, SAMPLE_SEED = 300, 1
MAX_SOURCES = 20
# Settings of the training that say nothing of the model, or where it lay.
_UNTOLD = {"device", "out_dir"}


def card(loaded: LoadedModel) -> str:
    """The whole text, with a sample that is written now."""
    model, progress, sampling = loaded.model, loaded.progress, SampleConfig(max_tokens=SAMPLE_TOKENS)
    hf = HF_ARCHITECTURES[model.config.architecture]
    sample = sampling.prompt + "".join(stream(engine_for(loaded), sampling, SAMPLE_SEED))
    in_mlx = _MLX.format(sampling=sampling) if hf.mlx else ""
    return f"""\
---
license: other  # to be filled in by the owner: https://huggingface.co/docs/hub/repositories-licenses
library_name: transformers
pipeline_tag: text-generation
tags:
- tiny_gpt
---

# A small language model

Trained with tiny_gpt. It continues text; it follows no instructions, and what it says need not be true. **License: not
chosen yet.** Its owner fills in the first lines of this file; the texts that it learned from have a say in that.

| | |
| --- | --- |
| Class | {hf.model_class}, {model.config.architecture} in tiny_gpt |
| Parameters | {model.n_parameters:,} |
| Tokens | {model.vocab_size:,} (`{loaded.tokenizer.to_dict()["type"]}`), {model.config.block_size:,} seen at once |
{_result(loaded)}

## Text

{_sources(loaded.run_config)}

## Recipe

{_settings(loaded)}

## What it writes

Prompt {_code(sampling.prompt)}, temperature {sampling.temperature}, seed {SAMPLE_SEED}, {SAMPLE_TOKENS} tokens:

{_fenced(sample)}

## How to use it

With transformers (no code of its own is run):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("{sampling.prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens={new_tokens(model.config.block_size)})[0]))
```

{in_mlx}It has learned from at most {model.config.block_size:,} tokens at once; what is longer, prompt included, it has
never seen.{" It has no token that ends a text." if progress.step else ""}
"""


_MLX = """\
On a Mac with mlx-lm:

```bash
mlx_lm.generate --model . --prompt "{sampling.prompt}" --temp {sampling.temperature}
```

"""


def _result(loaded: LoadedModel) -> str:
    progress = loaded.progress
    if not progress.step:
        origin = loaded.run_config.get("imported_from", "another tool")
        return f"| Training | elsewhere; imported from {_code(origin)} |"
    return (
        f"| Training | {progress.step:,} steps |\n"
        f"| Validation loss | {progress.val_loss:.4f} nats per token |\n"
        f"| Bits per byte | {progress.val_bits_per_byte:.4f} of the validation text |"
    )


def _sources(run_config: dict[str, Any]) -> str:
    data = run_config.get("data", ())
    sources = [data] if isinstance(data, str) else data if isinstance(data, list | tuple) else []
    if not sources:
        return "Not known."
    lines = [f"- {_code(_public(str(source)))}" for source in sources[:MAX_SOURCES]]
    return "\n".join(lines) + (f"\n- and {len(sources) - MAX_SOURCES} more" if len(sources) > MAX_SOURCES else "")


def _public(source: str) -> str:
    """What may be told of a source: "/home/me/diary.txt" -> "diary.txt"; an address without its query or password."""
    if "|" in source:  # the second is used if the first is unavailable
        return " or ".join(map(_public, source.split("|")))
    if source.startswith(("http://", "https://")):
        try:
            parts = urlsplit(source)
        except ValueError:
            return "an address"
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    if source.startswith("hf:"):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def _settings(loaded: LoadedModel) -> str:
    """A table of the network's settings and of the training's, as far as they are known."""
    config = loaded.model.config
    rows = {field.name: getattr(config, field.name) for field in fields(config)}
    for field in fields(TrainConfig):
        value = loaded.run_config.get(field.name, "")
        if value != "" and field.name not in _UNTOLD:
            rows[field.name] = _public(value) if isinstance(value, str) else value
    return "\n".join(
        ["| Setting | Value |", "| --- | --- |", *(f"| {name} | {_code(v)} |" for name, v in rows.items())]
    )


def new_tokens(block_size: int) -> int:
    """Tokens to write unless told otherwise: beyond block_size, with the prompt, other tools fail."""
    return max(1, min(SampleConfig().max_tokens, block_size // 2))


def _code(value: object) -> str:
    """As code on one line; nothing in it can end the code, or the table around it."""
    return f"`{shown(value).replace('`', chr(39)).replace('|', '¦').strip() or ' '}`"


def _fenced(text: str) -> str:
    """As a block of code that nothing in `text` can end."""
    clean = "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text.replace("\r", "")
    )
    longest = max((len(run) for run in re.findall("`+", clean)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{clean}\n{fence}"
