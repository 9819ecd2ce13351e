"""Planted runs: folders as a training leaves them, with known faults."""

import json
import math
import random
import re
import time
from dataclasses import asdict, replace

from tiny_gpt.planning.types import Forecast, Plan
from tiny_gpt.run.status import RunStatus, this_process

BATCH, BLOCK, TRAIN_TOKENS = 8, 64, 500_000
NATS_PER_BIT = math.log(2)
PLAN = Plan(1_200_000, 4000, 0.2, 4000 * 512, 4.0, 900.0, 10**9, Forecast(1.45, 1.3, 1.6), saturation_s=1200.0)
FACTS = dict(
    sources=["book.txt"],
    tokenizer="char",
    vocab_size=256,
    train_tokens=TRAIN_TOKENS,
    val_tokens=50_000,
    n_parameters=1_200_000,
    tokens_per_step=BATCH * BLOCK,
    total_steps=0,
    device="cpu (2 threads)",
)


def losses(kind, progress, noise):
    """(training, validation) in bits per byte at 0 to 1 of a run."""
    base = 1.35 + 3 * math.exp(-40 * progress) + 0.5 * math.exp(-4 * progress)
    train, val = base - 0.02 * progress, base + 0.02
    if kind == "overfitted":
        train, val = base - 0.7 * progress, base + 1.2 * max(0.0, progress - 0.4)
    if kind == "too fast":
        jump = 0.5 if int(progress * 40) % 9 == 5 else 0.0
        train, val = train + jump, val + jump
    if kind == "diverged" and progress > 0.7:
        train, val = train + 8 * (progress - 0.7), val + 8 * (progress - 0.7)
    if kind == "small text":
        train, val = base - 0.35 * progress, base + 0.02
    return train + noise, val + noise / 2


def rows(kind="good", n=40, until=1.0, step=100, seconds=900.0, start=None, seed=0):
    """The rows of metrics.jsonl."""
    rng = random.Random(seed)
    start = time.time() - seconds * until if start is None else start
    for i in range(n):
        progress = until * (i + 1) / n
        train, val = losses(kind, progress, rng.gauss(0, 0.004))
        yield dict(
            step=(i + 1) * step,
            epoch=1,
            train_loss=train * NATS_PER_BIT,
            val_loss=val * NATS_PER_BIT,
            val_bits_per_byte=val,
            batch_loss=train * NATS_PER_BIT + rng.gauss(0, 0.05),
            lr=2e-3 * (0.5 + 0.5 * math.cos(math.pi * progress)),
            grad_norm=0.5 + rng.gauss(0, 0.05),
            tokens_per_s=2000.0 + rng.gauss(0, 30),
            elapsed_s=seconds * progress,
            val_loss_error=0.008,
            memory_bytes=7e8 + 1e7 * progress,
            time=start + seconds * progress,
            temperature_c=58.0 + 14.0 * min(1.0, 8 * progress) + rng.gauss(0, 0.7),
            battery_percent=None,
            data_wait_share=0.001,
        )


def plant(folder, kind="good", state="finished", plan=PLAN, config=None, log=(), samples=None, **options):
    """A run's folder. `state` is that of status.json; None writes none. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(rows(kind, **options))
    write_rows(folder, found)
    settings = dict(batch_size=BATCH, block_size=BLOCK, learning_rate=2e-3, data=["book.txt"], architecture="qwen3")
    (folder / "config.json").write_text(json.dumps(settings | (config or {})))
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    if state is not None:
        last = found[-1] if found else dict(step=0, elapsed_s=0.0)
        status = RunStatus(
            state,
            started=time.time() - last["elapsed_s"],
            updated=time.time(),
            step=last["step"],
            progress=options.get("until", 1.0),
            left_s=600.0 if state == "training" else None,
            tokens_per_s=2000.0,
            facts=FACTS,
            **this_process(False),
        )
        write_state(folder, status)
    (folder / "train.log").write_text("".join(f"{stamp(-60)}  {line}\n" for line in log))
    for step, text in (samples or {}).items():
        write_sample(folder, step, text)
    return folder


def write_rows(folder, found, mode="w"):
    with open(folder / "metrics.jsonl", mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in found)


def write_state(folder, status, **changes):
    (folder / "status.json").write_text(json.dumps(asdict(replace(status, **changes))))


def write_sample(folder, step, text):
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    (samples / f"step-{step:08}.txt").write_text(text + "\n", encoding="utf-8")
    line = dict(step=step, elapsed_s=step / 10, time=time.time(), val_loss=1.0, val_bits_per_byte=1.5, seconds=0.3)
    with open(samples / "index.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def stamp(seconds_from_now):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + seconds_from_now))


def figures_of(page):
    """The evaluations in a page's table: step, training and validation loss, its standard error, rate, tokens/s."""
    row = r'<th scope="row">([\d,]+)</th><td>[^<]*</td>' + 5 * "<td>(.*?)</td>"
    return [tuple(cell.replace(",", "") for cell in found) for found in re.findall(row, page)]


def figures_of_metrics(folder):
    """The same from the run's files, for a run of at most as many evaluations as the table has; losses in bits."""
    path = folder / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    facts, status = folder / "text_facts.json", json.loads((folder / "status.json").read_text()) if found else {}
    train_bits = None
    if facts.exists():
        train_bits = status["facts"]["train_tokens"] / json.loads(facts.read_text())["train_bytes"] / NATS_PER_BIT
    return [
        (
            str(row["step"]),
            f"{row['train_loss'] * (train_bits or row['val_bits_per_byte'] / row['val_loss']):.3f}",
            f"{row['val_bits_per_byte']:.3f}",
            "–" if error is None else f"{error * row['val_bits_per_byte'] / row['val_loss']:.3f}",
            f"{row['lr']:.2g}",
            f"{row['tokens_per_s']:.0f}",
        )
        for row in found
        for error in [row["val_loss_error"]]
    ]
