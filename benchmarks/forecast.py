"""What the plan's forecast rests on: runs of the recipe on texts of several kinds, and the law fitted to them.

python -m benchmarks.forecast record RUN...    scores finished runs over their whole validation text, adds a line each;
                                               give texts that are much alike one `source` there, by hand
python -m benchmarks.forecast [--write]    fits; tells how far off it is for texts that it was not fitted to
"""

from tiny_gpt.cli.main import let_waiting_threads_sleep

let_waiting_threads_sleep()

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.config import BEST_FILE, CONFIG_FILE, METRICS_FILE, RunConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.planning import scaling_law as forecast
from tiny_gpt.planning.pilot_run import probe
from tiny_gpt.planning.scaling_law import CHARACTERS, EIGHT_OF_TEN, Law
from tiny_gpt.planning.types import TextStats

RUNS = Path(__file__).with_name("forecast_runs.jsonl")
LAW = Path(forecast.__file__).with_name("scaling_law.json")
# Tokens that leave a shortfall of one: a matter of units. And the parameters that are worth as much: pairs of runs of
# different sizes and the same time, 60 and 240 seconds long (docs/log/planner.md).
TOKENS, PARAMETERS = 1e6, 2.4e5
# Powers from 0.4 to 0.6 and readings from 3 to 5 fit these runs equally well, within 0.1% (docs/log/planner.md).
POWER = 0.5
READINGS = 3.0
# Larger models gained nothing in runs of many readings.
PARAMETERS_PER_TOKEN = 3.0
# On texts of 36,000 and 66,000 tokens 3 x 128 was 5 to 6% better than 2 x 64.
ALWAYS_USEFUL = 7e5
# What other choices add to ln(bits per byte): means of runs of three minutes beside the recipe's (docs/log/planner.md).
COSTS = {"optimizer adamw": 0.19, "architecture gpt2": 0.10, CHARACTERS: 0.075}
# Part of the runs that the interval holds, of texts that the fit has not seen.
INSIDE = 0.85
# Keeps the weights of what the runs hardly tell apart small.
RIDGE = 1e-3


def record(folder: Path) -> None:
    """Score the best model of the run in `folder` over the whole validation text, add it to RUNS."""
    config = RunConfig().with_flat(json.loads((folder / CONFIG_FILE).read_bytes()), str(folder))
    steps = json.loads((folder / METRICS_FILE).read_text().splitlines()[-1])["step"]
    dataset = finish(prepare(config.data, config.model.block_size))
    model = open_path(folder / BEST_FILE, torch.device("cpu")).model
    windows = FixedWindows(dataset.val.ids, config.model.block_size, 32, len(dataset.val))
    nats = windows.loss(model)
    loss = bits_per_byte(nats, len(dataset.val), dataset.val.n_bytes)
    print(f"{folder.name}: {loss:.4f} bits per byte, {nats:.4f} nats a token after {steps:,} steps")
    settings = {**asdict(config.model), "batch_size": config.train.batch_size, "optimizer": config.train.optimizer}
    row = {
        "source": Path(config.data.data[0]).stem,
        "text": asdict(probe(dataset, torch.device("cpu"), "fused", "bf16")),
        "steps": steps,
        "settings": settings,
    }
    with RUNS.open("a") as file:
        file.write(json.dumps({**row, "bits_per_byte": round(loss, 4)}) + "\n")


def fit(rows: list[dict[str, Any]]) -> Law:
    """The law of least error, and how far off it is for texts that it was not fitted to."""
    law = Law(TOKENS, PARAMETERS, POWER, READINGS, PARAMETERS_PER_TOKEN, ALWAYS_USEFUL, (), (), 0.0, COSTS)
    weights, covariance = weighted(law, rows)
    errors = unseen_errors(law, rows)
    # As normal errors would have it, and not less than what so many of these needed: those of a text are much alike.
    deviation = max(float(np.sqrt(np.mean(np.square(errors)))), float(np.quantile(abs(errors), INSIDE)) / EIGHT_OF_TEN)
    return replace(
        law,
        weights=tuple(map(float, weights)),
        covariance=tuple(tuple(map(float, row)) for row in deviation**2 * covariance),
        deviation=deviation,
    )


def weighted(law: Law, rows: Iterable[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights of least squares, and the inverse of what they were solved with."""
    features = np.array([features_of(law, row) for row in rows])
    inverse = np.linalg.inv(features.T @ features + RIDGE * np.eye(features.shape[1]))
    return inverse @ features.T @ np.log([row["bits_per_byte"] for row in rows]), inverse


def features_of(law: Law, row: dict[str, Any]) -> NDArray[np.float64]:
    text = TextStats(**row["text"])
    return law.features(text, forecast.shortfall(config_of(row), text, row["steps"], law))


def config_of(row: dict[str, Any]) -> RunConfig:
    return RunConfig().with_flat(row["settings"], "a recorded run")


def unseen_errors(law: Law, rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Errors of ln(bits per byte) for each run, by weights that its text had no part in."""
    errors = []
    for row in rows:
        others = [other for other in rows if other["source"] != row["source"]]
        weights, _ = weighted(law, others)
        errors.append(float(features_of(law, row) @ weights) - math.log(row["bits_per_byte"]))
    return np.array(errors)


def main(args: list[str]) -> None:
    if args[:1] == ["record"]:
        for folder in args[1:]:
            record(Path(folder))
        return
    rows = [json.loads(line) for line in RUNS.read_text().splitlines()]
    law = fit(rows)
    errors = unseen_errors(law, rows)
    inside = np.abs(errors) <= EIGHT_OF_TEN * law.deviation
    print(f"{'text':<24}{'steps':>8}{'bits per byte':>15}{'off by':>9}")
    for row, error in zip(rows, errors, strict=True):
        print(f"{row['source']:<24}{row['steps']:>8,}{row['bits_per_byte']:>15.4f}{error:>9.1%}")
    print(f"{len(rows)} runs; deviation {law.deviation:.1%}; {inside.mean():.0%} inside the interval")
    print({name: value for name, value in asdict(law).items() if name != "covariance"})
    if "--write" in args:
        LAW.write_text(json.dumps(asdict(law), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
