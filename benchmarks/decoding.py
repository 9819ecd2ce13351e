"""How fast text is written: tiny_gpt's decoder beside a textbook's loop, transformers' generate and, where
llama-cpp-python is installed, llama.cpp; the same weights in all, interleaved in one run.

python -m benchmarks.decoding [--rounds 5] [--sizes guide 10m 124m] [--json FILE]
"""

from tiny_gpt.cli.process import limit_thread_spinning

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
    "guide": (ModelConfig(), 256),
    "10m": (ModelConfig(n_layer=6, n_head=6, d_model=384, d_ff=1536, block_size=256), 256),
    "124m": (ModelConfig(n_layer=12, n_head=12, d_model=768, d_ff=3072, block_size=1024), 50_257),
}
PROMPT = [65, 66, 67, 68]
SAMPLING = SampleConfig(temperature=0.8)


@dataclass(frozen=True)
class Bench:
    """Time decoding in rounds, each contender once a round; ratios hold even when the machine's speed drifts."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """guide (3.2 M parameters), 10m, 124m."""
    rounds: int = 5
    """Counted rounds, after one that warms up."""
    batch_size: int = 32
    """Texts at once in the row that says so."""
    json: str = "bench-decoding.json"
    """File for the figures."""


Contender = Callable[[], int]
"""Writes some tokens, sampling each; how many."""


def main(bench: Bench) -> None:
    configure_torch(CPU)
    print(f"{describe_device(CPU)}, torch {torch.__version__}; tokens/s, median of {bench.rounds} rounds")
    figures = {}
    for size in bench.sizes:
        config, vocab_size = SIZES[size]
        torch.manual_seed(0)
        model = GPT(config, vocab_size).eval()
        n_tokens = max(24, min(config.block_size - len(PROMPT), 1_000_000_000 // model.n_parameters))
        figures[size] = race(contenders(model, n_tokens, bench.batch_size), bench.rounds)
        report(size, model, n_tokens, figures[size])
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def contenders(model: GPT, n_tokens: int, batch_size: int) -> dict[str, Contender]:
    found = {
        "tiny_gpt": ours(model, 1, n_tokens, in_half=True),
        f"tiny_gpt, {batch_size} texts": ours(model, batch_size, n_tokens, in_half=True),
        "tiny_gpt fp32": ours(model, 1, n_tokens, in_half=False),
        f"tiny_gpt fp32, {batch_size} texts": ours(model, batch_size, n_tokens, in_half=False),
        "textbook": textbook(model.config, model.vocab_size, max(8, n_tokens // 16)),
        "transformers": transformers(model, max(8, n_tokens // 4)),
    }
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("(llama-cpp-python is not installed here: left out)")
    else:
        found["llama.cpp f32"] = llama(model, GGMLQuantizationType.F32, LlamaFileType.ALL_F32, n_tokens)
        found["llama.cpp f16"] = llama(model, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, n_tokens)
    return found


def ours(model: GPT, n_texts: int, n_tokens: int, in_half: bool) -> Contender:
    decoder = make_decoder(model, n_texts, "fp16" if in_half else "fp32")
    generators = [np.random.Generator(np.random.Philox(seed)) for seed in range(n_texts)]

    def write() -> int:
        rows = [decoder.read(PROMPT, n_tokens)] * n_texts
        for _ in range(n_tokens):
            ids = [sample(row, SAMPLING, [], generator) for row, generator in zip(rows, generators, strict=True)]
            rows = list(decoder.step(ids, range(n_texts)))
        return n_tokens * n_texts

    return write


def textbook(config: ModelConfig, vocab_size: int, n_tokens: int) -> Contender:
    torch.manual_seed(0)
    model = TextbookGPT(replace(config, dropout=0.0), vocab_size).eval()

    @torch.no_grad()
    def write() -> int:
        ids_BT = torch.tensor([PROMPT])
        for _ in range(n_tokens):
            logits_BV = model(ids_BT[:, -config.block_size :])[:, -1] / SAMPLING.temperature
            ids_BT = torch.cat([ids_BT, torch.multinomial(logits_BV.softmax(-1), 1)], dim=1)
        return n_tokens

    return write


def transformers(model: GPT, n_tokens: int) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_hf(as_loaded(model), Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def write() -> int:
        settings = dict(do_sample=True, temperature=SAMPLING.temperature, top_k=0, pad_token_id=0)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.generate(torch.tensor([PROMPT]), max_new_tokens=n_tokens, min_new_tokens=n_tokens, **settings)
        return n_tokens

    return write


def llama(model: GPT, kind: GGMLQuantizationType, file_type: LlamaFileType, n_tokens: int) -> Contender:
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_file(path, as_loaded(model), kind, file_type)
        theirs = llama_cpp.Llama(
            str(path), n_ctx=model.config.block_size, n_threads=torch.get_num_threads(), verbose=False
        )

    def write() -> int:
        """Their rate without sampling: one evaluation for each token."""
        theirs.reset()
        theirs.eval(PROMPT)
        for _ in range(n_tokens):
            theirs.eval([65])
        return n_tokens

    return write


def as_loaded(model: GPT) -> LoadedModel:
    """With as many characters as the model has ids."""
    characters = "".join(chr(0x10000 + i) for i in range(model.vocab_size - N_BYTES))
    return LoadedModel(model, CharTokenizer(characters), Progress(0, 0, 0.0, 0.0, 0.0), {})


def race(found: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each contender in each counted round."""
    speeds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, write in found.items():
            start = time.perf_counter()
            n_tokens = write()
            if number:
                speeds[name].append(n_tokens / (time.perf_counter() - start))
    return speeds


def report(size: str, model: GPT, n_tokens: int, speeds: dict[str, list[float]]) -> None:
    print(f"\n{size}: {model.n_parameters / 1e6:.1f} M parameters, block {model.config.block_size}, {n_tokens} tokens")
    print(f"{'':<26}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}{'tiny_gpt is':>14}")
    for name, figures in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds["tiny_gpt"], figures, strict=True))
        shown = f"{statistics.median(figures):>10,.0f}{min(figures):>10,.0f}{max(figures):>10,.0f}{ratio:>13.2f}x"
        print(f"{name:<26}{shown}")


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
