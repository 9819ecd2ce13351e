"""A model as GGUF files, which llama.cpp reads and all that is built upon it: Ollama, LM Studio, koboldcpp.

`gpt2` is their architecture gpt2, `qwen3` their qwen3. Matrices are stored in 16 bits (F16) and once more in 8
(Q8_0: a scale for each 32 numbers), norms, biases and positions in 32. How the text becomes ids: gguf_tokenizer.py.

llama.cpp rounds its context up to 256 tokens and aborts where a gpt2 model, read further than its block_size, has no
positions left; llama-server, and so Ollama, stops before. A qwen3 one merely writes worse from there on.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig, SampleConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.gguf_tokenizer import add_tokenizer
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.gguf_architectures import GGUF_ARCHITECTURES, NAMES
from tiny_gpt.model_io.model_file import LoadedModel

F16_FILE, Q8_0_FILE, MODELFILE = "model-f16.gguf", "model-q8_0.gguf", "Modelfile"
Q8_0_BLOCK = 32
F16_MAX = 65504


def write_gguf(loaded: LoadedModel, folder: Path) -> list[str]:
    """Write the model into `folder` as F16, as Q8_0 if its widths allow that, and a Modelfile for Ollama.

    Returns lines that say how to use them. Raises BadInputError for a model that GGUF cannot hold, and OSError.
    """
    config = loaded.model.config
    write_file(folder / F16_FILE, loaded, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16)
    widths = config.d_model, config.d_ff, config.n_head * config.dim_per_head
    if all(width % Q8_0_BLOCK == 0 for width in widths):
        write_file(folder / Q8_0_FILE, loaded, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0)
        note = f"{Q8_0_FILE} is half as large as {F16_FILE}, and a little less exact."
    else:
        note = f"No {Q8_0_FILE}: that takes widths that are divisible by {Q8_0_BLOCK}."
    (folder / MODELFILE).write_text(_modelfile(config), encoding="utf-8")
    return [
        note,
        f'llama.cpp: llama-completion -m {F16_FILE} -no-cnv -p "The" -n 100 (prompt and new tokens: at most '
        f"{config.block_size} together)",
        f"Ollama, 0.30 or newer: ollama create NAME -f {MODELFILE}, then ollama run NAME",
    ]


def write_file(path: Path, loaded: LoadedModel, quantization: GGMLQuantizationType, file_type: LlamaFileType) -> None:
    """One GGUF file with matrices of one kind. Raises BadInputError and OSError."""
    config = loaded.model.config
    writer = GGUFWriter(path, GGUF_ARCHITECTURES[config.architecture].name)
    try:
        writer.add_name("tiny_gpt")
        writer.add_file_type(file_type)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_dimensions(writer, config)
        add_tokenizer(writer, loaded.tokenizer)
        for name, values in tensors(loaded.model):
            is_matrix = values.ndim == 2 and name != "position_embd.weight"
            kind = quantization if is_matrix else GGMLQuantizationType.F32
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is None:  # numpy tells merely how much it could write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    finally:
        writer.close()


def _add_dimensions(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.block_size)
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head)
    if config.traits.norm == "layernorm":
        writer.add_layer_norm_eps(config.traits.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.traits.norm_eps)
    if config.traits.positions == "rotary":
        writer.add_key_length(config.dim_per_head)
        writer.add_value_length(config.dim_per_head)
        writer.add_rope_freq_base(config.rope_theta)


def tensors(model: GPT) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every weight by llama.cpp's name for it. Raises BadInputError."""
    architecture = GGUF_ARCHITECTURES[model.config.architecture]
    for our_name, weight in model.state_dict().items():
        part, kind = our_name.rsplit(".", 1)
        block = ""
        if part.startswith("blocks."):
            _, layer, part = part.split(".", 2)
            block = f"blk.{layer}."
        values = weight.float().cpu().numpy()
        if not np.abs(values).max() <= F16_MAX:  # of NaN it does not hold either
            raise BadInputError(
                f"the model's weight {our_name} is NaN, or too large for 16 bits; export hf instead",
                code="weight-not-finite-in-fp16",
            )
        if part == "attention.qkv" and architecture.splits_qkv:
            for letter, third in zip("qkv", np.split(values, 3), strict=True):
                is_rotated = architecture.rotates_neighbors and letter in "qk"
                rows = _pair_neighbors(third, model.config.n_head) if is_rotated else third
                yield f"{block}attn_{letter}.{kind}", rows
        else:
            yield f"{block}{NAMES[part]}.{kind}", values


def _pair_neighbors(weight_ND: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """Reorder the rows (H K, D) of queries or keys so that the two halves of each head alternate.

    What our network rotates as (k, k + K/2) is then rotated as (2k, 2k + 1). Both queries and keys are reordered, so
    their products stay. convert_hf_to_gguf.py of llama.cpp calls this `permute`.
    """
    by_half_H2KD = weight_ND.reshape(n_head, 2, -1, weight_ND.shape[1])
    return by_half_H2KD.swapaxes(1, 2).reshape(weight_ND.shape)


def _modelfile(config: ModelConfig) -> str:
    """How Ollama is to use the model: no chat, and our way to draw tokens instead of its own."""
    sampling = SampleConfig()
    return f"""\
FROM ./{F16_FILE}
TEMPLATE {{{{ .Prompt }}}}
PARAMETER num_ctx {config.block_size}
PARAMETER num_predict {sampling.max_tokens}
PARAMETER temperature {sampling.temperature}
PARAMETER top_k {sampling.top_k}
PARAMETER top_p {sampling.top_p}
PARAMETER min_p 0
PARAMETER repeat_penalty 1
"""
