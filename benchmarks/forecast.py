"""The runs behind the scaling law, and its fit: training runs of the recipe `auto` on texts of several kinds.

python -m benchmarks.forecast                  fit the law; print its errors on texts left out of the fit
python -m benchmarks.forecast --write          ... and store it in tiny_gpt/planning/scaling_law.json
python -m benchmarks.forecast record RUN...    score finished runs on their whole validation text and add a line for
                                               each to forecast_runs.jsonl; give similar texts the same `source` by hand
"""

from tiny_gpt.host.threads import limit_thread_spinning

limit_thread_spinning()

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
from tiny_gpt.planning import scaling_law
from tiny_gpt.planning.pilot_run import run_pilot
from tiny_gpt.planning.scaling_law import CHAR_PENALTY, Z_80, ScalingLaw
from tiny_gpt.planning.types import TextStats

RUNS = Path(__file__).with_name("forecast_runs.jsonl")
# D0 only sets the unit of the reducible loss. N0, the parameters that are worth as much as D0 tokens, comes from pairs
# of runs of different sizes and equal time, 60 and 240 seconds long (docs/log/planner.md).
TOKEN_SCALE, PARAMETER_SCALE = 1e6, 2.4e5
# Exponents from 0.4 to 0.6 and decays from 3 to 5 fit these runs equally well, within 0.1%
# (docs/log/planner.md). Chinchilla's exponents are 0.34 and 0.28, for much larger models; Muennighoff et al. found a
# decay of 15.4.
EXPONENT, REPETITION_DECAY = 0.5, 3.0
# In runs of many data epochs, larger models gained nothing.
MAX_PARAMETERS_PER_TOKEN = 3.0
# On texts of 36,000 and 66,000 tokens, 3 x 128 was 5 to 6% better than 2 x 64.
MIN_PARAMETER_LIMIT = 7e5
# Added to ln(bits per byte) for other settings: means over runs of three minutes beside the recipe's
# (docs/log/planner.md).
PENALTIES = {"optimizer adamw": 0.19, "architecture gpt2": 0.10, CHAR_PENALTY: 0.075}
# The share of the runs, each on a text left out of the fit, that the prediction interval must cover.
COVERAGE = 0.85
# Ridge regression: keeps coefficients small that the runs hardly determine.
RIDGE = 1e-3


def record(folder: Path) -> None:
    """Score the best model of the run in `folder` on the whole validation text, and add a line to RUNS."""
    config = RunConfig().with_flat(json.loads((folder / CONFIG_FILE).read_bytes()), str(folder))
    steps = json.loads((folder / METRICS_FILE).read_text().splitlines()[-1])["step"]
    dataset = finish(prepare(config.data, config.model.block_size))
    model = open_path(folder / BEST_FILE, torch.device("cpu")).model
    windows = FixedWindows(dataset.val.ids, config.model.block_size, 32, len(dataset.val))
    nats = windows.loss(model)
    loss = bits_per_byte(nats, len(dataset.val), dataset.val.n_bytes)
    print(f"{folder.name}: {loss:.4f} bits per byte, {nats:.4f} nats per token after {steps:,} steps")
    settings = {**asdict(config.model), "batch_size": config.train.batch_size, "optimizer": config.train.optimizer}
    row = {
        "source": Path(config.data.data[0]).stem,
        "text": asdict(run_pilot(dataset, torch.device("cpu"), "fused", "bf16")),
        "steps": steps,
        "settings": settings,
    }
    with RUNS.open("a") as file:
        file.write(json.dumps({**row, "bits_per_byte": round(loss, 4)}) + "\n")


def fit(rows: list[dict[str, Any]]) -> ScalingLaw:
    """The law with the least squared error of ln(bits per byte) on `rows`, and its error on texts left out of the fit.

    The residual's standard deviation is that of the errors, or more where a normal distribution with it would not cover
    COVERAGE of them: errors on one text resemble each other.
    """
    law = ScalingLaw(
        token_scale=TOKEN_SCALE,
        parameter_scale=PARAMETER_SCALE,
        exponent=EXPONENT,
        repetition_decay=REPETITION_DECAY,
        max_parameters_per_token=MAX_PARAMETERS_PER_TOKEN,
        min_parameter_limit=MIN_PARAMETER_LIMIT,
        coefficients=(),
        covariance=(),
        residual_std=0.0,
        penalties=PENALTIES,
    )
    coefficients, inverse_gram = fit_coefficients(law, rows)
    errors = held_out_errors(law, rows)
    std = max(float(np.sqrt(np.mean(np.square(errors)))), float(np.quantile(abs(errors), COVERAGE)) / Z_80)
    return replace(
        law,
        coefficients=tuple(map(float, coefficients)),
        covariance=tuple(tuple(map(float, row)) for row in std**2 * inverse_gram),
        residual_std=std,
    )


def fit_coefficients(
    law: ScalingLaw, rows: Iterable[dict[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ridge regression on the features X: the coefficients, and (X'X + ridge)^-1, which times the variance of the
    errors is their covariance."""
    features = np.array([features_of(law, row) for row in rows])
    inverse_gram = np.linalg.inv(features.T @ features + RIDGE * np.eye(features.shape[1]))
    return inverse_gram @ features.T @ np.log([row["bits_per_byte"] for row in rows]), inverse_gram


def features_of(law: ScalingLaw, row: dict[str, Any]) -> NDArray[np.float64]:
    text = TextStats(**row["text"])
    return law.features(text, scaling_law.reducible_loss(config_of(row), text, row["steps"], law))


def config_of(row: dict[str, Any]) -> RunConfig:
    return RunConfig().with_flat(row["settings"], "a recorded run")


def held_out_errors(law: ScalingLaw, rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Predicted minus actual ln(bits per byte) of each run, by a fit without any run on its text."""
    errors = []
    for row in rows:
        others = [other for other in rows if other["source"] != row["source"]]
        coefficients, _ = fit_coefficients(law, others)
        errors.append(float(features_of(law, row) @ coefficients) - math.log(row["bits_per_byte"]))
    return np.array(errors)


def main(args: list[str]) -> None:
    if args[:1] == ["record"]:
        for folder in args[1:]:
            record(Path(folder))
        return
    rows = [json.loads(line) for line in RUNS.read_text().splitlines()]
    law = fit(rows)
    errors = held_out_errors(law, rows)
    covered = np.abs(errors) <= Z_80 * law.residual_std
    print(f"{'text':<24}{'steps':>8}{'bits per byte':>15}{'error':>9}")
    for row, error in zip(rows, errors, strict=True):
        print(f"{row['source']:<24}{row['steps']:>8,}{row['bits_per_byte']:>15.4f}{error:>9.1%}")
    print(f"{len(rows)} runs; standard deviation {law.residual_std:.1%}; {covered.mean():.0%} within the interval")
    print({name: value for name, value in asdict(law).items() if name != "covariance"})
    if "--write" in args:
        scaling_law.FILE.write_text(json.dumps(asdict(law), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
