"""A run's folder, as a training would write it, and a tracker that remembers."""

import json
from dataclasses import replace

from tests.ui.support import CONFIG, PREPARED, evaluated
from tiny_gpt.config import CONFIG_FILE, METRICS_FILE, SAMPLES_FOLDER, STATUS_FILE
from tiny_gpt.run.status import RunStatus, this_process, write_status

SAMPLE_TEXT = "The <b>cat</b> sat\n\n# on a *mat*"


class WrittenRun:
    """The files of a run that a test is training."""

    def __init__(self, folder):
        self.folder = folder
        (folder / SAMPLES_FOLDER).mkdir(parents=True)
        (folder / CONFIG_FILE).write_text(json.dumps(CONFIG.to_flat() | {"n_layer": 3, "data": ["my text.txt"]}))
        self.set_state("training")

    def set_state(self, state, started=1.0):
        facts = {"n_parameters": PREPARED.n_parameters, "incidents": [], "best_step": 200}
        facts |= {"best_val_loss": 1.2, "best_val_bits_per_byte": 1.7, "last_step": 200, "elapsed_s": 9.0}
        status = RunStatus(state, started=started, updated=2.0, facts=facts, **this_process(False))
        # Its process is not this one, which would be a training that never ends.
        write_status(self.folder / STATUS_FILE, replace(status, process_id=0))

    def evaluate(self, *steps, **changes):
        lines = [evaluated(step, **dict(val_loss=9 - step / 100, time=1000.0 + step) | changes) for step in steps]
        with open(self.folder / METRICS_FILE, "a") as file:
            file.writelines(line.to_json_line() for line in lines)

    def rewind(self, n_rows):
        """A rollback: only the first rows still count."""
        lines = (self.folder / METRICS_FILE).read_text().splitlines(keepends=True)
        (self.folder / METRICS_FILE).write_text("".join(lines[:n_rows]))

    def sample(self, step, text=SAMPLE_TEXT):
        (self.folder / SAMPLES_FOLDER / f"step-{step:08}.txt").write_text(text)
        with open(self.folder / SAMPLES_FOLDER / "index.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": 1000.0 + step}) + "\n")


class MemoryTracker:
    """Keeps what it gets; raises the next of `failures` first."""

    def __init__(self, run, failures):
        self.run, self.failures, self.log = run, failures, []

    def log_row(self, step, at, values):
        if self.failures:
            raise self.failures.pop(0)
        self.log.append((step, at, values["val_loss"]))

    def log_sample(self, step, at, text):
        self.log.append((step, at, text))

    def roll_back(self, step):
        self.log.append(f"void from {step}")

    def flush(self):
        pass

    def finish(self, state, results):
        self.log.append((state, results))
