"""A model as a folder that transformers, and all that is built upon it, loads without code of ours.

`gpt2` becomes a GPT2LMHeadModel, `qwen3` a Qwen3ForCausalLM; both compute the same logits as here. The weights are
kept in fp32. mlx-lm reads the same folder of a `qwen3` model; its GPT-2 has no head of its own.
"""

import json
from pathlib import Path
from typing import Any

from tiny_gpt.config import CONFIG_FILE, SampleConfig
from tiny_gpt.export.model_card import CARD_FILE, card, new_tokens
from tiny_gpt.export.tokenizer_json import tokenizer_json
from tiny_gpt.model_io.hf_architectures import HF_ARCHITECTURES
from tiny_gpt.model_io.hf_config import hf_config
from tiny_gpt.model_io.hf_tokenizer import TOKENIZER_FILE
from tiny_gpt.model_io.hf_weights import WEIGHTS_FILE, hf_weights
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.safetensors_file import write_tensors


def write_hf(loaded: LoadedModel, folder: Path) -> list[str]:
    """Fill the empty `folder`; returns lines that say how to use it. Raises OSError."""
    model, sampling = loaded.model, SampleConfig()
    with open(folder / WEIGHTS_FILE, "wb") as file:
        write_tensors(file, hf_weights(model))
    write_json(folder / CONFIG_FILE, hf_config(model.config, model.vocab_size))
    (folder / TOKENIZER_FILE).write_bytes(tokenizer_json(loaded.tokenizer).encode())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.block_size,
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "max_new_tokens": new_tokens(model.config.block_size),
        },
    )
    (folder / CARD_FILE).write_bytes(card(loaded).encode())
    is_for_mlx = HF_ARCHITECTURES[model.config.architecture].mlx
    in_mlx = ['MLX (pip install mlx-lm): mlx_lm.generate --model . --prompt "The"'] if is_for_mlx else []
    return [
        'transformers: AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        *in_mlx,
        f"{CARD_FILE} is a model card: fill in its licence before you share the folder.",
    ]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable, with a line feed at the end."""
    path.write_bytes((json.dumps(values, indent=2) + "\n").encode())
