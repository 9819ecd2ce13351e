"""metrics.jsonl: one line of JSON for each evaluation, on the disk as soon as it is known."""

import json
from pathlib import Path

from tiny_gpt.training.events import Evaluated, Event, Prepared


class MetricsFile:
    """Consumes a run's events into a new file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def consume(self, event: Event) -> None:
        if isinstance(event, Prepared):
            self.path.write_text("", encoding="utf-8")
        if not isinstance(event, Evaluated):
            return
        row = {
            "step": event.step,
            "epoch": event.epoch,
            "train_loss": event.train_loss,
            "val_loss": event.val_loss,
            "val_bits_per_byte": event.val_bits_per_byte,
            "batch_loss": event.batch_loss,
            "lr": event.learning_rate,
            "grad_norm": event.grad_norm,
            "tokens_per_s": event.tokens_per_s,
            "elapsed_s": event.elapsed_s,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
