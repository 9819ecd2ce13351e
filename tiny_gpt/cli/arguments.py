"""What the commands' arguments have in common; the commands declare their own beside their functions."""

import ast
import dataclasses
import glob
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import tyro
from tyro.conf import Positional, arg

from tiny_gpt.config import NO_FIRST
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.files import user_path

Arguments = TypeVar("Arguments")

# Positional arguments that several commands have.
ModelArgument = Annotated[Positional[str], arg(metavar="[MODEL]"), OPTIONAL]
SourcesArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="[SOURCE ...]"), OPTIONAL]


def documentation(thing: type | Callable[..., object]) -> str:
    """The docstring of a class or function, also where Python was told to drop docstrings (-OO, PYTHONOPTIMIZE=2)."""
    found = inspect.getdoc(thing)
    if sys.flags.optimize >= 2:  # a dataclass then has its signature as docstring
        source = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
        assert isinstance(source, ast.ClassDef | ast.FunctionDef), "it was defined as one of them"
        found = ast.get_docstring(source)
    return found or ""


def parse(
    arguments: type[Arguments],
    prog: str,
    args: Sequence[str],
    default: Arguments | None = None,
    description: str | None = None,
) -> Arguments:
    """`args` as an instance of the dataclass `arguments`, whose docstrings are the help texts.

    After --help, and after a usage error has been explained, this raises SystemExit. An impossible value raises
    UsageError. The fields of nested dataclasses are flags without a prefix: --n-layer, not --model.n-layer.
    """
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    description = description or documentation(arguments)
    args = _without_repetitions(args, default)
    if default is None:
        return tyro.cli(arguments, prog=prog, description=description, args=args, config=config)
    return tyro.cli(arguments, prog=prog, description=description, args=args, default=default, config=config)


def require_sources(sources: Sequence[str]) -> None:
    """Raise BadInputError for a path that is not there, before torch is imported, which takes seconds."""
    from tiny_gpt.data.sources.catalog import DATASETS
    from tiny_gpt.data.sources.missing import source_not_found

    named = {"", "-", NO_FIRST, *DATASETS}
    for source in sources:
        is_other = source in named or ":" in source or "|" in source or glob.has_magic(source)
        if not is_other and not os.path.exists(user_path(source)):
            raise source_not_found(source)


def _without_repetitions(args: Sequence[str], default: object) -> list[str]:
    """`args` without flags that set what is so already.

    The parser knows only the flag that changes a setting: --no-watchdog, but --watchdog for a run that was begun with
    --no-watchdog. There the former says nothing new, and is right.
    """
    repeated = set()
    for part in dataclasses.fields(default) if dataclasses.is_dataclass(default) else ():
        value = getattr(default, part.name)
        for name, setting in vars(value).items() if dataclasses.is_dataclass(value) else [(part.name, value)]:
            if isinstance(setting, bool):
                repeated.add(("--" if setting else "--no-") + name.replace("_", "-"))
    return [arg for arg in args if arg.replace("_", "-") not in repeated]
