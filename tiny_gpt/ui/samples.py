"""samples/: how the best model writes as it gets better, always from the same prompt and seed.

    step-00001200.txt   the prompt and its continuation
    index.jsonl         a line per sample: its step, loss, time and settings, and how long it took to generate

A sample is written when there is a better model, at intervals that grow with the run, and fewer if they take too much
of its time: early on the text changes quickly.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiny_gpt.config import SAMPLE_INDEX_FILE, RunConfig, SampleConfig, sample_file
from tiny_gpt.inference.engine import open_engine
from tiny_gpt.inference.generate import stream
from tiny_gpt.inference.prompts import fitting_prompt
from tiny_gpt.run.clock import Throttle
from tiny_gpt.run.events import Evaluated, Event, Finished, Prepared, Saved

# The next sample is due when the run has taken this many times as long as at the last one: at most 100 samples from
# the first seconds to the end of a night.
INTERVAL_GROWTH = 1.1


class Samples:
    """Consumes a run's events and writes samples of its best models."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder = folder
        self._sampling = replace(SampleConfig(), seed=config.train.seed)
        self._evaluations: dict[float, Evaluated] = {}
        self._written: Evaluated | None = None
        self._text = ""
        self._throttle = Throttle()
        self.show: Callable[[int, str], None] = lambda step, text: None
        """Gets each new sample, with its step."""

    def consume(self, event: Event) -> None:
        match event:
            case Prepared(history=history):
                self._evaluations = {evaluated.val_loss: evaluated for evaluated in history}
            case Evaluated():
                self._evaluations[event.val_loss] = event
            case Saved(is_best=True, path=path, val_loss=val_loss):
                evaluated = self._evaluations.get(val_loss)
                if evaluated is not None and self._is_due(evaluated) and self._throttle.allows():
                    self._write(path, evaluated)
                    self.show(evaluated.step, self._text)

    def final_text(self, finished: Finished) -> str:
        """The best model's sample; written first if it has got none yet."""
        best = next((each for each in self._evaluations.values() if each.step == finished.best_step), None)
        if best is None:
            return sample_text(finished.best_path, self._sampling)
        if self._written is None or self._written.step != best.step:
            with contextlib.suppress(OSError):  # a full disk must not hide the text
                self._write(finished.best_path, best)
        return self._text

    def _is_due(self, evaluated: Evaluated) -> bool:
        return self._written is None or evaluated.elapsed_s >= INTERVAL_GROWTH * self._written.elapsed_s

    def _write(self, model_path: Path, evaluated: Evaluated) -> None:
        start = time.perf_counter()
        with self._throttle.measure():
            self._text = sample_text(model_path, self._sampling)
            self._written = evaluated
            self.folder.mkdir(exist_ok=True)
            path = self.folder / sample_file(evaluated.step)
            path.write_text(self._text + "\n", encoding="utf-8", errors="replace")
            line = {
                "step": evaluated.step,
                "elapsed_s": evaluated.elapsed_s,
                "time": time.time(),
                "val_loss": evaluated.val_loss,
                "val_bits_per_byte": evaluated.val_bits_per_byte,
                "prompt": self._sampling.prompt,
                "seed": self._sampling.seed,
                "temperature": self._sampling.temperature,
                "seconds": time.perf_counter() - start,
            }
            with open(self.folder / SAMPLE_INDEX_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def sample_text(model_path: Path, sampling: SampleConfig) -> str:
    """The prompt and its continuation; the same seed, which must be set, gives the same text."""
    seed = sampling.seed
    assert seed is not None, "a saved sample must be reproducible"
    engine = open_engine(model_path, "cpu")
    sampling = fitting_prompt(sampling, engine.tokenizer)
    return sampling.prompt + "".join(stream(engine, sampling, seed))
