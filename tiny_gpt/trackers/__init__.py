"""Copies a run into the trackers that people already use: TensorBoard, Weights & Biases, Trackio, MLflow.

A tracker never runs in the training process. It gets its own process that follows the files of the run's folder,
so one that fails or hangs cannot slow or end a training, and what it missed is sent later.

Quantities have the names of metrics.jsonl in every tracker. The files of each tracker are in the run's `trackers/`:

    wandb.json    the run's id there, by which a resumed training continues the same run
    wandb.sent    what it has got already
    wandb.log     what it printed
    wandb/        the data of a tracker that keeps files
"""
