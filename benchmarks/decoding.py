"""Generation speed: tiny_gpt's decoder next to a textbook loop, transformers and, where installed, llama.cpp.

All have models of the same shape (transformers and llama.cpp the same weights), interleaved in one run.

python -m benchmarks.decoding [--rounds 5] [--sizes default 10m 124m] [--json FILE]
"""

from tiny_gpt.host.threads import limit_thread_spinning

limit_thread_spinning()

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from gguf import GGMLQuantizationType, LlamaFileType

from benchmarks.textbook import TextbookGPT
from tiny_gpt.config import ModelConfig, SampleConfig
from tiny_gpt.device import configure_torch, describe_device
from tiny_gpt.export.gguf import write_file
from tiny_gpt.export.huggingface import write_hf
from tiny_gpt.inference.engine import make_decoder
from tiny_gpt.inference.sampling import sample
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.byte_char import N_BYTES, CharTokenizer

CPU = torch.device("cpu")
SIZES = {
    "default": (ModelConfig(), 256),
    "10m": (ModelConfig(n_layer=6, n_head=6, d_model=384, d_ff=1536, block_size=256), 256),
    "124m": (ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072, block_size=1024), 50_257),
}
PROMPT = [65, 66, 67, 68]
SAMPLING = SampleConfig(temperature=0.8)


@dataclass(frozen=True)
class Bench:
    """Measure tokens per second in rounds, each contender once per round; ratios are taken within a round."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """Models: default (3.2 M parameters), 10m, 124m."""
    rounds: int = 5
    """Measured rounds, after one warm-up round."""
    batch_size: int = 32
    """Texts per batch in the rows with several texts."""
    json: str = "bench-decoding.json"
    """File for the figures."""


Contender = Callable[[], int]
"""Generates and samples some tokens; returns how many."""


def main(bench: Bench) -> None:
    configure_torch(CPU)
    print(f"{describe_device(CPU)}, torch {torch.__version__}; tokens/s, median of {bench.rounds} rounds")
    figures = {}
    for size in bench.sizes:
        config, vocab_size = SIZES[size]
        torch.manual_seed(0)
        model = GPT(config, vocab_size).eval()
        n_tokens = max(24, min(config.block_size - len(PROMPT), 1_000_000_000 // model.n_parameters))
        figures[size] = measure(make_contenders(model, n_tokens, bench.batch_size), bench.rounds)
        report(size, model, n_tokens, figures[size])
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def make_contenders(model: GPT, n_tokens: int, batch_size: int) -> dict[str, Contender]:
    contenders = {
        "tiny_gpt": make_tiny_gpt(model, 1, n_tokens, "fp16"),
        f"tiny_gpt, {batch_size} texts": make_tiny_gpt(model, batch_size, n_tokens, "fp16"),
        "tiny_gpt fp32": make_tiny_gpt(model, 1, n_tokens, "fp32"),
        f"tiny_gpt fp32, {batch_size} texts": make_tiny_gpt(model, batch_size, n_tokens, "fp32"),
        "textbook": make_textbook(model.config, model.vocab_size, max(8, n_tokens // 16)),
        "transformers": make_transformers(model, max(8, n_tokens // 4)),
    }
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("(llama.cpp is left out: llama-cpp-python is not installed)")
    else:
        contenders["llama.cpp f32"] = make_llama_cpp(model, GGMLQuantizationType.F32, LlamaFileType.ALL_F32, n_tokens)
        contenders["llama.cpp f16"] = make_llama_cpp(
            model, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, n_tokens
        )
    return contenders


def make_tiny_gpt(model: GPT, n_texts: int, n_tokens: int, precision: str) -> Contender:
    decoder = make_decoder(model, n_texts, precision)
    generators = [np.random.Generator(np.random.Philox(seed)) for seed in range(n_texts)]

    def generate() -> int:
        rows = [decoder.read(PROMPT, n_tokens)] * n_texts
        for _ in range(n_tokens):
            ids = [sample(row, SAMPLING, [], generator) for row, generator in zip(rows, generators, strict=True)]
            rows = list(decoder.step(ids, range(n_texts)))
        return n_tokens * n_texts

    return generate


def make_textbook(config: ModelConfig, vocab_size: int, n_tokens: int) -> Contender:
    torch.manual_seed(0)
    model = TextbookGPT(replace(config, dropout=0.0), vocab_size).eval()

    @torch.no_grad()
    def generate() -> int:
        ids_BT = torch.tensor([PROMPT])
        for _ in range(n_tokens):
            logits_BV = model(ids_BT[:, -config.block_size :])[:, -1] / SAMPLING.temperature
            ids_BT = torch.cat([ids_BT, torch.multinomial(logits_BV.softmax(-1), 1)], dim=1)
        return n_tokens

    return generate


def make_transformers(model: GPT, n_tokens: int) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_hf(as_loaded(model), Path(folder))
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate() -> int:
        settings = dict(do_sample=True, temperature=SAMPLING.temperature, top_k=0, pad_token_id=0)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference.generate(torch.tensor([PROMPT]), max_new_tokens=n_tokens, min_new_tokens=n_tokens, **settings)
        return n_tokens

    return generate


def make_llama_cpp(model: GPT, kind: GGMLQuantizationType, file_type: LlamaFileType, n_tokens: int) -> Contender:
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_file(path, as_loaded(model), kind, file_type)
        llama = llama_cpp.Llama(
            str(path), n_ctx=model.config.block_size, n_threads=torch.get_num_threads(), verbose=False
        )

    def generate() -> int:
        """Without sampling: one evaluation per token."""
        llama.reset()
        llama.eval(PROMPT)
        for _ in range(n_tokens):
            llama.eval([65])
        return n_tokens

    return generate


def as_loaded(model: GPT) -> LoadedModel:
    """The model with a character tokenizer of its vocabulary size, for the exporters."""
    characters = "".join(chr(0x10000 + i) for i in range(model.vocab_size - N_BYTES))
    return LoadedModel(model, CharTokenizer(characters), Progress(0, 0, 0.0, 0.0, 0.0), {})


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each contender in each measured round."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, generate in contenders.items():
            start = time.perf_counter()
            n_tokens = generate()
            if number:
                speeds[name].append(n_tokens / (time.perf_counter() - start))
    return speeds


def report(size: str, model: GPT, n_tokens: int, speeds: dict[str, list[float]]) -> None:
    n_parameters = f"{model.n_parameters / 1e6:.1f} M parameters"
    print(f"\n{size}: {n_parameters}, block size {model.config.block_size}, {n_tokens} tokens")
    print(f"{'':<26}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'tiny_gpt is':>14}")
    for name, figures in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds["tiny_gpt"], figures, strict=True))
        speeds_text = f"{statistics.median(figures):>10,.0f}{min(figures):>10,.0f}{max(figures):>10,.0f}"
        print(f"{name:<26}{speeds_text}{ratio:>13.2f}x")


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
