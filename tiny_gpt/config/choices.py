"""The names that settings choose from; torch-free, so that `--help` and the reading of saved files are fast.

Each name is one row of a dict where the thing itself is defined:

| names          | dict           | module                   |
|----------------|----------------|--------------------------|
| TokenizerName  | TOKENIZERS     | tokenizer/base.py        |
| OptimizerName  | OPTIMIZERS     | training/optimizer.py    |
| ScheduleName   | SCHEDULES      | training/schedule.py     |
| BackendName    | BACKENDS       | backends.py              |
| PrecisionName  | PRECISIONS     | device.py                |
| ExportFormat   | EXPORTERS      | export/export.py         |
| RecipeName     | RECIPES        | config/recipes.py        |
| TrackerName    | TRACKERS       | trackers/registry.py     |

To add one, write its function or class, its row there and its name here. Flags, help and validation follow;
tests/config/test_choices.py fails if the two differ.
"""

from typing import Literal, get_args

TokenizerName = Literal["char", "byte", "bpe"]
OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "wsd"]
BackendName = Literal["eager", "fused", "compiled", "cuda_graph"]
PrecisionName = Literal["bf16", "fp32"]
ExportFormat = Literal["hf", "gguf", "safetensors"]
RecipeName = Literal["auto", "overnight"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]

# --tokenizer also accepts the path of a tokenizer.json, so its setting is a str.
TOKENIZER_SETTINGS: tuple[str, ...] = get_args(Literal["auto", TokenizerName])
