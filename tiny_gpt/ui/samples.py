"""samples/: what the best model wrote after each epoch, or in a run that a clock ends now and then."""

from dataclasses import replace
from pathlib import Path

from tiny_gpt.config import RunConfig, SampleConfig
from tiny_gpt.inference.engine import open_engine
from tiny_gpt.inference.generate import stream
from tiny_gpt.run.clock import Throttle
from tiny_gpt.run.events import EpochDone, Event, Saved, StepDone


class Samples:
    """Consumes a run's events into small text files; writes fewer where writing would take too much of the time."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.folder = folder
        self._sample = replace(SampleConfig(), seed=config.train.seed)
        self._is_timed, self._progress = config.train.is_timed, 0.0
        self._best: Path | None = None
        self._throttle = Throttle()

    def consume(self, event: Event) -> None:
        match event:
            case Saved(is_best=True, path=path):
                self._best = path
                if self._is_timed:
                    self._write_if_cheap(f"progress-{self._progress:.3f}")
            case EpochDone(epoch=epoch):
                self._write_if_cheap(f"epoch-{epoch:04}")
            case StepDone(progress=progress):
                self._progress = progress

    def _write_if_cheap(self, name: str) -> None:
        if self._best is not None and self._throttle.allows():
            with self._throttle.measure():
                self._write(self._best, name)

    def _write(self, model_path: Path, name: str) -> None:
        text = sample_text(model_path, self._sample)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8", errors="replace")


def sample_text(model_path: Path, sample: SampleConfig) -> str:
    """The prompt and what the model makes of it; the same seed gives the same text."""
    assert sample.seed is not None, "a sample to be written down has a seed"
    return sample.prompt + "".join(stream(open_engine(model_path, "cpu"), sample, sample.seed))
