"""The memory of a training beside what the plan predicts: python -m benchmarks.memory 12x768 --recompute

Trains two steps of a model with all that a run does: evaluations, checkpoints, model files, samples, and the best
model's final score. Prints the peak of the process.
On several ranks, each in a process of its own:

    torchrun --standalone --nproc-per-node 2 -m benchmarks.memory 12x768 --shard
"""

import argparse
import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tiny_gpt.config import DataConfig, ModelConfig, RunConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.device import configure_torch, peak_memory_bytes, pick_device
from tiny_gpt.distributed.ranks import Ranks, join_group
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.model_io.model_file import save_model
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.planning.memory import estimate_memory_bytes
from tiny_gpt.run.events import Prepared
from tiny_gpt.run.follower import follow
from tiny_gpt.tokenizer.byte_char import CharTokenizer
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.consumers import RecordedRun

# Two evaluations, so that the best model is then scored over more text than each of them.
STEPS, EVAL_INTERVAL = 2, 1
TEXT = "the cat sat on a mat and said hello to every dog in town.\n" * 5000
GUIDE = RECIPES["overnight"]


def with_shape(n_layer: int, d_model: int, batch_size: int, block_size: int, architecture: str = "gpt2") -> RunConfig:
    """The guide's settings for a model with heads of 64."""
    d_ff = 4 * d_model if ARCHITECTURES[architecture].mlp == "gelu" else 8 * d_model // 3
    model = ModelConfig(architecture, n_layer, d_model // 64, d_model, d_ff, block_size)
    return replace(GUIDE, model=model, train=replace(GUIDE.train, batch_size=batch_size))


CASES = {
    "guide": GUIDE,
    "4x256": with_shape(4, 256, 64, 256),
    # Few tokens, so that a slow machine is soon done; weights and moments take the most.
    "12x768": with_shape(12, 768, 4, 256),
    "24x256": with_shape(24, 256, 16, 256),
    "24x1024": with_shape(24, 1024, 1, 256),
    "qwen3": with_shape(6, 384, 16, 256, "qwen3"),
}


def case(options: argparse.Namespace, folder: Path) -> RunConfig:
    """The run that `options` ask for, into `folder`."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    config = CASES[options.name]
    if options.dropout is not None:
        config = replace(config, model=replace(config.model, dropout=options.dropout))
    known = folder / "known.pt"
    if options.lora != "0":  # in another process, whose peak is not that of this one
        maker = multiprocessing.get_context("spawn").Process(target=save_random_model, args=(config, known))
        maker.start()
        maker.join()
    train = replace(
        config.train,
        epochs=1,
        iters_per_epoch=STEPS,
        eval_interval=EVAL_INTERVAL,
        backend=options.backend,
        precision=options.precision,
        optimizer=options.optimizer,
        recompute=options.recompute,
        shard=options.shard,
        lora=options.lora,
        start_from=str(known) if options.lora != "0" else "",
        force_devices=True,
        out_dir=str(folder / "run"),
    )
    reliability = replace(config.reliability, keep_awake=False)
    return replace(config, data=DataConfig((str(text),)), train=train, reliability=reliability)


def save_random_model(config: RunConfig, path: Path) -> None:
    """A model of this shape with random weights, to train further."""
    tokenizer = CharTokenizer()
    save_model(path, GPT(config.model, tokenizer.vocab_size), tokenizer, config, Progress(1, 1, 1.0, 1.0, 1.0))


def measure(config: RunConfig, ranks: Ranks) -> None:
    """Train, and print this rank's peak; rank 0 also prints what is predicted."""
    device = pick_device("auto")
    configure_torch(device)
    words = f"rank {ranks.rank}:"
    if ranks.leads:
        for event in RecordedRun(config).train(False, RunRequest()):
            if isinstance(event, Prepared):
                config = replace(config, model=event.model, train=event.train)
                predicted = estimate_memory_bytes(config, event.vocab_size, device, ranks.size)
                words += f" {n_parameters(event.model, event.vocab_size) / 1e6:.1f} M parameters, predicted"
                words += f" {predicted / 2**20:,.0f} MiB,"
    else:
        follow(ranks)
    print(f"{words} measured {peak_memory_bytes(device) / 2**20:,.0f} MiB", flush=True)


def main() -> None:
    """One case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lora", default="0")
    parser.add_argument("--dropout", type=float)
    options = parser.parse_args()
    ranks = join_group("cpu" if not torch.cuda.is_available() else "auto", 600.0)
    with tempfile.TemporaryDirectory() as folder:
        measure(case(options, Path(folder)), ranks)


if __name__ == "__main__":
    main()
