"""`tiny-gpt data`: examine a text before training on it. Does not import torch, so it starts at once."""

import json
from dataclasses import asdict

from tiny_gpt.config import RunConfig
from tiny_gpt.data.stats import summarize
from tiny_gpt.ui.data_report import dataset_lines, summary_lines
from tiny_gpt.ui.preparation import shown
from tiny_gpt.ui.terminal import printable


def describe_data(config: RunConfig, as_json: bool) -> int:
    """Print a summary of the text of `config.data`. Returns the exit code."""
    summary = shown(summarize(config.data))
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        print("\n".join(map(printable, summary_lines(summary, config))))
    return 0


def list_datasets() -> int:
    """Print the known datasets. Returns the exit code."""
    print("\n".join(dataset_lines()))
    return 0
