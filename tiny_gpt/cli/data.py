"""`tiny-gpt data`: a look at a text before a night is spent on it. Without torch, so it starts at once."""

import json
from dataclasses import asdict

from tiny_gpt.config import RunConfig
from tiny_gpt.data.stats import summarize
from tiny_gpt.ui.data_report import catalog_lines, report
from tiny_gpt.ui.preparation import shown
from tiny_gpt.ui.terminal import printable


def describe_data(config: RunConfig, as_json: bool) -> int:
    """Print what the text of `config.data` is like. Returns the exit code."""
    summary = shown(summarize(config.data))
    print(json.dumps(asdict(summary), indent=2) if as_json else "\n".join(map(printable, report(summary, config))))
    return 0


def list_datasets() -> int:
    """Print the known texts. Returns the exit code."""
    print("\n".join(catalog_lines()))
    return 0
