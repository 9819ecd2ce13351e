"""Training on a corpus in shards: how long steps wait for it, mapped from a disk and fetched from a slow server.

    python -m benchmarks.shards --gigabytes 20 --folder /tmp/corpus

Makes a corpus of random ids in `--folder`, and trains a small model on it: from the folder, whose files are dropped
from memory first; from a server on this machine that sends `--rates` times as many bytes a second as the run from the
folder read; and from that server without fetching ahead. Prints the share of the steps' time in which they waited,
without the time until the first group of shards is there. The folder is deleted afterwards.
"""

import hashlib
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import tyro

from benchmarks.shard_server import ShardServer
from tiny_gpt.config import DataConfig, ModelConfig, ReliabilityConfig, RunConfig, TrainConfig
from tiny_gpt.data.token_shards.index import CorpusIndex, SplitShards, TokenShard
from tiny_gpt.data.token_shards.order import SHARDS_PER_GROUP, ShardSampler
from tiny_gpt.data.token_shards.places import shard_cache
from tiny_gpt.run.events import Evaluated
from tiny_gpt.run.run import run
from tiny_gpt.tokenizer.base import TOKENIZERS

SAMPLE = Path(__file__).parent.parent / "README.md"
MODEL = ModelConfig("qwen3", n_layer=1, n_head=1, d_model=64, d_ff=128, block_size=128, dropout=0.0)
BATCH_SIZE, VOCAB_SIZE, CACHE_GROUPS = 64, 512, 3


@dataclass(frozen=True)
class ShardsBench:
    """The size of the corpus, and the runs on it."""

    gigabytes: float = 1.0
    shard_kilobytes: int = 1000
    """Small ones, so that a short run on a CPU reads many of them."""
    groups: int = 6
    """Groups of shards that each run reads."""
    rates: tuple[float, ...] = (2.0, 1.2)
    """Bytes that the server sends for each that training reads."""
    folder: str = ""


def make_corpus(folder: Path, n_bytes: float, shard_bytes: int) -> CorpusIndex:
    """Random ids of 2 bytes each, in shards of `shard_bytes`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS["bpe"].train([SAMPLE.read_text(encoding="utf-8")], VOCAB_SIZE)
    assert tokenizer.vocab_size == VOCAB_SIZE
    rng = np.random.default_rng(0)

    def write(name: str, n_tokens: int) -> TokenShard:
        ids = np.frombuffer(rng.bytes(2 * n_tokens), dtype="<u2") & (VOCAB_SIZE - 1)
        (folder / name).write_bytes(ids.tobytes())
        return TokenShard(name, n_tokens, hashlib.sha256(ids.tobytes()).hexdigest())

    train = [write(f"train-{number:06}.bin", shard_bytes // 2) for number in range(int(n_bytes / shard_bytes))]
    n_text_bytes = 2 * len(train) * shard_bytes  # four bytes of text for each token, say
    about = {"n_characters": n_text_bytes, "n_documents": len(train), "notes": []}
    val = SplitShards(1_000_000, (write("val-000000.bin", 250_000),))
    index = CorpusIndex(tokenizer, np.dtype("<u2"), SplitShards(n_text_bytes, tuple(train)), val, about)
    index.write(folder)
    return index


def forget_pages(folder: Path) -> None:
    """Have the system drop the files of `folder` from its memory."""
    os.sync()
    for path in folder.glob("*.bin"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass(frozen=True)
class Figures:
    """What one run took, from its second group of shards on."""

    step_s: float
    wait_share: float
    largest_wait_share: float
    """Of the times between two evaluations."""
    bytes_per_s: float
    """Read by the steps."""
    start_s: float
    """Until the first step was done, and the first evaluation."""
    cache_bytes: int


def train(source: str, n_groups: int, shard_bytes: int, folder: Path) -> Figures:
    """Train on as many groups of shards of `source`, evaluating ten times in each."""
    tokens_per_step = BATCH_SIZE * MODEL.block_size
    steps_per_group = math.ceil(SHARDS_PER_GROUP * shard_bytes / 2 / tokens_per_step)
    interval = max(1, steps_per_group // 10)
    config = RunConfig(
        MODEL,
        DataConfig((source,), shard_cache=str(CACHE_GROUPS * SHARDS_PER_GROUP * shard_bytes)),
        TrainConfig(
            steps=n_groups * steps_per_group,
            batch_size=BATCH_SIZE,
            eval_interval=interval,
            device="cpu",
            precision="fp32",
            backend="fused",
            out_dir=str(folder / "run"),
        ),
        ReliabilityConfig(keep_awake=False),
    )
    start, first_s, rows, cache_bytes = time.perf_counter(), 0.0, list[Evaluated](), 0
    for event in run(config):
        if isinstance(event, Evaluated):
            first_s = first_s or time.perf_counter() - start
            with suppress(FileNotFoundError):  # deleted since it was listed
                cache_bytes = max(cache_bytes, sum(path.stat().st_size for path in shard_cache().glob("*.bin")))
            rows += [event] if event.step > steps_per_group else []
    step_s = [tokens_per_step / row.tokens_per_s for row in rows]
    mean_s = sum(step_s) / len(rows)
    waited = sum(row.data_wait_share * seconds for row, seconds in zip(rows, step_s, strict=True)) / sum(step_s)
    largest = max(row.data_wait_share for row in rows)
    return Figures(mean_s, waited, largest, 2 * tokens_per_step / mean_s, first_s, cache_bytes)


def _serve(folder: Path, bytes_per_s: float, pipe: Connection) -> None:
    server = ShardServer(folder, bytes_per_s)
    pipe.send(server.url)
    server.serve_forever()


@contextmanager
def server_process(folder: Path, bytes_per_s: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, bytes_per_s, theirs), daemon=True)
    process.start()
    try:
        yield str(ours.recv())
    finally:
        process.terminate()
        process.join()


@contextmanager
def no_fetching_ahead() -> Iterator[None]:
    """Shards are fetched when a step needs them."""
    upcoming, ShardSampler.upcoming = ShardSampler.upcoming, lambda self, step: upcoming(self, step)[:SHARDS_PER_GROUP]
    try:
        yield
    finally:
        ShardSampler.upcoming = upcoming


def report(name: str, figures: Figures) -> None:
    """One line."""
    print(
        f"{name:<34}{1e3 * figures.step_s:7.1f} ms/step  {figures.bytes_per_s / 1e6:6.3f} MB/s read  "
        f"waits {figures.wait_share:7.3%} (at most {figures.largest_wait_share:7.3%} in a tenth of a group)  "
        f"first evaluation after {figures.start_s:5.1f} s  cache {figures.cache_bytes / 1e6:5.1f} MB",
        flush=True,
    )


def main(bench: ShardsBench) -> None:
    """Make the corpus, train on it in each way, delete it."""
    base = Path(bench.folder or tempfile.mkdtemp(prefix="shards-"))
    corpus, shard_bytes = base / "corpus", 1000 * bench.shard_kilobytes
    os.environ["TINY_GPT_CACHE"] = str(base / "cache")
    try:
        start = time.perf_counter()
        index = make_corpus(corpus, 1e9 * bench.gigabytes, shard_bytes)
        n_shards, seconds = len(index.train.shards), time.perf_counter() - start
        size = f"{n_shards:,} shards, {index.train.n_tokens:,} tokens of 2 bytes"
        print(f"{size}, made in {seconds:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
        forget_pages(corpus)
        mapped = train(str(corpus), bench.groups, shard_bytes, base)
        report("from the folder", mapped)
        for rate in bench.rates:
            shutil.rmtree(shard_cache(), ignore_errors=True)
            with server_process(corpus, rate * mapped.bytes_per_s) as url:
                report(f"server, {rate} times as fast as read", train(url, bench.groups, shard_bytes, base))
        shutil.rmtree(shard_cache(), ignore_errors=True)
        with server_process(corpus, bench.rates[0] * mapped.bytes_per_s) as url, no_fetching_ahead():
            report(f"the same at {bench.rates[0]}, not ahead", train(url, min(3, bench.groups), shard_bytes, base))
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main(tyro.cli(ShardsBench))
