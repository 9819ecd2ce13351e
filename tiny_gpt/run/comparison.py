"""What differs between runs, and which of them is better."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny_gpt.run.summary import RunSummary, read_rows, saved_config, summarize_run

# Runs that differ in nothing but their seed end up to 0.8% apart (docs/benchmarks.md: 1.400 to 1.411).
SEED_DIFFERENCE = 0.008
# Settings that say where a run is or how it is watched over, not what it trains.
NOT_COMPARED = {"out_dir", "verbose", "auto", "checkpoint_minutes", "watchdog", "keep_awake"}


@dataclass(frozen=True)
class Comparison:
    """Two or more runs side by side."""

    runs: list[RunSummary]
    settings: dict[str, list[Any]]
    """The settings that differ, each with one value per run; None for a run without a readable config.json."""
    same_time_s: float | None
    """Training time of the shortest run; None if one has no evaluations."""
    at_same_time: list[float | None]
    """Each run's best bits per byte up to that time."""
    same_text: bool
    """Whether all were trained, and so validated, on the same text."""
    best: str | None
    """The run with the lowest bits per byte; None if one has no evaluation yet, or the texts differ."""
    margin: float | None
    """Bits per byte by which it is better than the second."""
    is_clear: bool
    """Whether that is more than what another seed changes."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare the runs in `folders`. Raises BadInputError if one of them holds no run."""
    runs = [summarize_run(folder) for folder in folders]
    configs = [config.to_flat() if (config := saved_config(folder)) else {} for folder in folders]
    names = dict.fromkeys(name for config in configs for name in config if name not in NOT_COMPARED)
    settings = {name: [config.get(name) for config in configs] for name in names}
    same_time_s, at_same_time = _at_same_time([list(read_rows(folder)) for folder in folders])
    hashes = {run.text_sha256 for run in runs}
    same_text = len(hashes) == 1 and None not in hashes
    ranked = sorted((run.best_val_bits_per_byte, i) for i, run in enumerate(runs) if run.best_val_bits_per_byte)
    is_ranked = same_text and len(ranked) == len(runs)
    margin = ranked[1][0] - ranked[0][0] if is_ranked else None
    return Comparison(
        runs=runs,
        settings={name: values for name, values in settings.items() if any(value != values[0] for value in values)},
        same_time_s=same_time_s,
        at_same_time=at_same_time,
        same_text=same_text,
        best=runs[ranked[0][1]].folder if is_ranked else None,
        margin=margin,
        is_clear=margin is not None and margin > SEED_DIFFERENCE * ranked[0][0],
    )


def _at_same_time(rows: list[list[dict[str, float]]]) -> tuple[float | None, list[float | None]]:
    """The shortest run's time in seconds, and every run's best bits per byte until then."""
    if not all(rows):
        return None, [None] * len(rows)
    time_s = min(run[-1]["elapsed_s"] for run in rows)
    until = [[row["val_bits_per_byte"] for row in run if row["elapsed_s"] <= time_s] for run in rows]
    return time_s, [min(values, default=None) for values in until]
