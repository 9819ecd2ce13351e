"""`tiny-gpt data`: statistics of a text. Needs no torch, so it starts at once."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from tiny_gpt.cli.arguments import SourcesArgument, parse
from tiny_gpt.config import DataConfig
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.errors import UsageError
from tiny_gpt.ui.terminal import printable


@dataclass(frozen=True)
class DataCommand:
    """Show what a text is like before training on it: size, scripts, repetition.

    Use `tiny-gpt data list` to show the built-in datasets.
    """

    data: DataConfig
    sources: SourcesArgument = ()
    """Text: files, folders, glob patterns, - for standard input, URLs or dataset names."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""


def describe_data(args: Sequence[str]) -> int:
    """Show statistics of a text; `data list` shows the built-in datasets."""
    command = parse(DataCommand, "tiny-gpt data", args, default=DataCommand(RECIPES["auto"].data))
    if not command.sources:
        raise UsageError(
            "name a text: tiny-gpt data my_text.txt (tiny-gpt data list shows the built-in datasets)",
            code="text-not-named",
        )
    if command.sources == ("list",):
        return _list_datasets()
    return _print_statistics(replace(command.data, data=command.sources), command.json)


def _list_datasets() -> int:
    from tiny_gpt.ui.data_report import dataset_lines

    print("\n".join(dataset_lines()))
    return 0


def _print_statistics(config: DataConfig, as_json: bool) -> int:
    # numpy takes longer to import than --help may.
    from tiny_gpt.data.stats import summarize
    from tiny_gpt.ui.data_report import summary_lines
    from tiny_gpt.ui.preparation import with_progress

    summary = with_progress(summarize(config))
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        print("\n".join(map(printable, summary_lines(summary, config.data))))
    return 0
