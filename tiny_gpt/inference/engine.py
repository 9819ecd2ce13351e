"""What writes text: a tokenizer and the fastest decoder for a model where it is. Opens a model without torch if it can.

On a processor the compiled decoder gives the same logits whatever the number of texts and threads, and can keep the
matrices in 16 bits: most of a token's time goes into reading them. Where numba has no release for this Python or
processor, and on GPUs, torch does the work.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import BEST_FILE, ModelConfig
from tiny_gpt.inference.decoder import BatchDecoder, Decoder
from tiny_gpt.model_io.gguf_file import is_gguf
from tiny_gpt.model_io.stored_model import open_model_file
from tiny_gpt.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from tiny_gpt.model.gpt import GPT
    from tiny_gpt.model_io.model_file import LoadedModel

# Up to so many weights a processor is not slower than a GPU that is told each small operation by Python.
SMALL = 30_000_000


@dataclass(frozen=True)
class Engine:
    """All that it takes to write text."""

    tokenizer: Tokenizer
    config: ModelConfig
    make_decoder: Callable[[int, str], Decoder]
    """For so many texts, in a precision as SampleConfig has it."""
    make_batch_decoder: Callable[[int, str], BatchDecoder]
    """The same for texts that come and go."""
    must_compile: bool = False
    """Whether the first decoder will take some seconds, as it does once on each machine."""


def engine_for(loaded: LoadedModel) -> Engine:
    """An engine for a model that torch holds."""
    config = loaded.model.config
    make, make_batch = partial(make_decoder, loaded.model), partial(make_batch_decoder, loaded.model)
    return Engine(loaded.tokenizer, config, make, make_batch, must_compile(config))


def open_engine(path: Path, device: str) -> Engine:
    """An engine for the model at `path`: a model file, a run's folder, an exported folder or GGUF file.

    `device` "auto" is the processor for a small model, else the best there is. Raises BadInputError and UsageError.
    """
    file = path / BEST_FILE if (path / BEST_FILE).is_file() else path
    if device in ("auto", "cpu") and not file.is_dir() and not is_gguf(file) and _has_numba():
        with open_model_file(file) as stored:
            if device == "cpu" or stored.n_weights <= SMALL:
                weights = stored.weights()
                make = partial(_compiled_decoder, stored.config, weights)
                make_batch = partial(_compiled_batch_decoder, stored.config, weights)
                return Engine(stored.tokenizer, stored.config, make, make_batch, must_compile(stored.config))
    from tiny_gpt.device import pick_device
    from tiny_gpt.model_io.open_model import open_path

    return engine_for(open_path(path, pick_device(device)))


def make_decoder(model: GPT, n_texts: int, precision: str = "fp32") -> Decoder:
    """The fastest decoder on the device of `model`."""
    if _is_compiled(model):
        return _compiled_decoder(model.config, _weights(model), n_texts, precision)
    from tiny_gpt.inference.torch_decoder import TorchDecoder

    return TorchDecoder(model, n_texts)


def make_batch_decoder(model: GPT, n_texts: int, precision: str = "fp32") -> BatchDecoder:
    """The fastest decoder for texts that come and go, on the device of `model`."""
    if _is_compiled(model):
        return _compiled_batch_decoder(model.config, _weights(model), n_texts, precision)
    from tiny_gpt.inference.torch_decoder import TorchBatchDecoder

    return TorchBatchDecoder(model, n_texts)


def _is_compiled(model: GPT) -> bool:
    return model.device.type == "cpu" and _has_numba()


def _weights(model: GPT) -> dict[str, NDArray[np.float32]]:
    return {name: weight.detach().float().numpy() for name, weight in model.state_dict().items()}


def _compiled_decoder(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]], n_texts: int, precision: str
) -> Decoder:
    from tiny_gpt.kernels.decoding.decoder import CompiledDecoder

    return CompiledDecoder(config, weights, n_texts, _in_half(precision))


def _compiled_batch_decoder(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]], n_texts: int, precision: str
) -> BatchDecoder:
    from tiny_gpt.kernels.decoding.batch_decoder import CompiledBatchDecoder

    return CompiledBatchDecoder(config, weights, n_texts, _in_half(precision))


def _in_half(precision: str) -> bool:
    return precision != "fp32"


def _has_numba() -> bool:
    is_switched_off = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")  # kernels are no valid Python then
    return not is_switched_off and importlib.util.find_spec("numba") is not None


def compile_engine(config: ModelConfig, precision: str) -> None:
    """Have what a processor writes with such a model in such a precision compiled, where `must_compile` says so."""
    from tiny_gpt.kernels.precompile import compile_decoder

    compile_decoder(config.architecture, _in_half(precision))


def must_compile(config: ModelConfig) -> bool:
    """Whether a processor's first decoder for such a model takes some seconds, as it does once on each machine."""
    if not _has_numba():
        return False
    from tiny_gpt.kernels.precompile import is_decoder_compiled

    return not is_decoder_compiled(config.architecture)
