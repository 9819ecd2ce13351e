"""MLflow: its database in the working folder, or the server that MLFLOW_TRACKING_URI names. `mlflow ui` shows it."""

import os
import time
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Metric, Param

from tiny_gpt.trackers.base import PROJECT, TrackedRun, TrackedState

# Our id of a run, as a tag there: MLflow chooses its own.
ID_TAG = "tiny_gpt.id"
MAX_PARAM_CHARACTERS = 6000
STATUS = {"training": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def open_run(run: TrackedRun) -> "MLflow":
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME have the last word."""
    client = mlflow.MlflowClient()
    experiment_id = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)).experiment_id
    found = client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{run.id}'")
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status=STATUS["training"])
    else:
        run_id = client.create_run(experiment_id, tags={ID_TAG: run.id}, run_name=run.name).info.run_id
        params = [Param(name, str(value)[:MAX_PARAM_CHARACTERS]) for name, value in run.config.items()]
        for start in range(0, len(params), 100):  # MLflow takes no more at once
            client.log_batch(run_id, params=params[start : start + 100])
    return MLflow(client, run_id)


class MLflow:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log_row(self, step: int, at: float, values: dict[str, float]) -> None:
        metrics = [Metric(name, value, round(1000 * at), step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def log_sample(self, step: int, at: float, text: str) -> None:
        self._client.log_text(self._run_id, text, f"samples/step-{step:08}.txt")

    def roll_back(self, step: int) -> None:
        """MLflow keeps the rows that it has; those after the rollback are added."""

    def flush(self) -> None:
        """Each call has written already."""

    def finish(self, state: TrackedState, results: dict[str, float]) -> None:
        if results:
            step = int(results["step"])
            self.log_row(step, time.time(), {f"best/{name}": value for name, value in results.items()})
        self._client.set_terminated(self._run_id, STATUS[state])
