"""`tiny-gpt data`: statistics of a text, and its shards. Needs no torch, so it starts at once."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from tyro.conf import arg

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

    With --shards, write the text as token ids for training.
    """

    data: DataConfig
    sources: SourcesArgument = ()
    """Text: files, folders, glob patterns, - for standard input, URLs or dataset names."""
    shards: Annotated[str, arg(metavar="FOLDER"), OPTIONAL] = ""
    """Write the text as shards into this folder, or add it to those there: a corpus to train on."""
    shard_size: Annotated[str, arg(metavar="SIZE")] = "100MB"
    """Size of a shard. Training keeps up to eight at a time."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""


def describe_data(args: Sequence[str]) -> int:
    """Describe a text, list the built-in datasets, or write shards."""
    command = parse(DataCommand, "tiny-gpt data", args, default=DataCommand(RECIPES["auto"].data))
    if not command.sources:
        raise UsageError(
            "name a text: tiny-gpt data my_text.txt (tiny-gpt data list shows the built-in datasets)",
            code="text-not-named",
        )
    if command.sources == ("list",):
        return _list_datasets()
    config = replace(command.data, data=command.sources)
    if command.shards:
        return _write_shards(config, command)
    from tiny_gpt.data.token_shards.index import corpus_location

    location = corpus_location(command.sources[0])
    if location and len(command.sources) == 1:
        return _describe_corpus(location, command.json)
    return _print_statistics(config, command.json)


def _list_datasets() -> int:
    from tiny_gpt.ui.data_report import dataset_lines

    print("\n".join(dataset_lines()))
    return 0


def _write_shards(config: DataConfig, command: DataCommand) -> int:
    from tiny_gpt.data.readers.limits import parse_size
    from tiny_gpt.data.token_shards.writer import write_shards
    from tiny_gpt.files import user_path
    from tiny_gpt.ui.preparation import with_progress

    with_progress(write_shards(config, user_path(command.shards), parse_size(command.shard_size, "--shard-size")))
    return _describe_corpus(command.shards, command.json)


def _describe_corpus(location: str, as_json: bool) -> int:
    """Print what the index of a corpus says, and whether its shards are there."""
    from tiny_gpt.data.token_shards.describe import describe_corpus
    from tiny_gpt.ui.data_report import corpus_lines
    from tiny_gpt.ui.preparation import with_progress

    summary = with_progress(describe_corpus(location))
    print(json.dumps(asdict(summary), indent=2) if as_json else "\n".join(map(printable, corpus_lines(summary))))
    return 1 if summary.missing else 0


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
