"""Events of a small run, and a stream that records what is printed."""

import io
import re
from pathlib import Path

from tiny_gpt.config import RunConfig
from tiny_gpt.run.events import EpochDone, Evaluated, Finished, Prepared, Saved, StepDone

ITERS, EPOCHS = 4, 80
CONFIG = RunConfig().with_flat({"iters_per_epoch": ITERS, "epochs": EPOCHS, "eval_interval": 2}, "test")
LAST_STEP = 42 * ITERS  # of the epoch that the guide shows
PREPARED = Prepared(
    device="cpu (2 threads)",
    precision="fp32",
    backend="fused",
    backend_reason="backends measured: fused fp32 56 ms, eager fp32 71 ms; using fused fp32",
    n_characters=1_115_394,
    n_documents=1,
    sources=["python-docs"],
    notes=[f"skipped 1: reason {i}" for i in range(6)],
    model=CONFIG.model,
    train=CONFIG.train,
    tokenizer="char",
    vocab_size=256,
    train_tokens=1_003_855,
    val_tokens=111_539,
    val_tokens_scored=40_960,
    n_parameters=3_222_784,
    tokens_per_step=8192,
    earlier_run=Path("earlier/2026-01-01"),
    steps_done=0,
    history=[],
)
FINISHED = Finished(
    best_path=Path("tiny_gpt_best.pt"),
    best_epoch=42,
    best_val_loss=1.2456,
    best_val_bits_per_byte=1.797,
    scored_tokens=111_538,
    final_path=Path("tiny_gpt_final.pt"),
    last_step=LAST_STEP,
    elapsed_s=13_500.0,
    eval_share=0.04,
    save_share=0.002,
    peak_memory_bytes=2**30,
    stopped_by=None,
    incidents=[],
)


class Stream(io.TextIOWrapper):
    """A terminal or a file that records what is written."""

    def __init__(self, is_terminal, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace", newline="\n")
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def lines(self):
        """Everything that was printed; each state of a bar is a line of its own."""
        self.flush()
        printed = self.buffer.getvalue().decode(self.encoding)
        return [line.rstrip() for line in re.split(r"[\r\n]", printed.replace("\x1b[A", "")) if line.strip()]


def evaluated(step, **changes):
    values = dict(
        step=step,
        epoch=42,
        train_loss=1.1234,
        val_loss=1.2456,
        val_bits_per_byte=1.797,
        batch_loss=1.11,
        learning_rate=2.5e-4,
        grad_norm=0.5,
        tokens_per_s=20_000.0,
        elapsed_s=100.0,
        val_loss_error=0.01,
        time=1_800_000_000.0,
    )
    return Evaluated(**values | changes)


def epoch_42():
    """The guide's epoch, evaluated twice."""
    for step in range(LAST_STEP - ITERS + 1, LAST_STEP + 1):
        is_evaluated = step % 2 == 0
        yield StepDone(step, 1.11 if is_evaluated else None, 2.5e-4)
        if is_evaluated:
            yield evaluated(step)
            yield Saved(Path("tiny_gpt_best.pt"), is_best=True, val_loss=1.2456)  # printed once, at the epoch's end
    yield EpochDone(42, 1.1234, 1.2456)
