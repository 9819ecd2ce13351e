"""What the commands' arguments have in common; the commands declare their own beside their functions."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import tyro
from tyro.conf import Positional, arg

from tiny_gpt.config.checks import OPTIONAL

Arguments = TypeVar("Arguments")

# Positional arguments that several commands have.
ModelArgument = Annotated[Positional[str], arg(metavar="[MODEL]"), OPTIONAL]
SourcesArgument = Annotated[Positional[tuple[str, ...]], arg(metavar="[SOURCE ...]"), OPTIONAL]


def documentation(thing: type | Callable[..., object]) -> str:
    """The docstring of a class or function, also where Python was told to drop docstrings (-OO, PYTHONOPTIMIZE=2)."""
    found = inspect.getdoc(thing)
    if found is None and sys.flags.optimize >= 2:
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
    if default is None:
        return tyro.cli(arguments, prog=prog, description=description, args=args, config=config)
    return tyro.cli(arguments, prog=prog, description=description, args=args, default=default, config=config)
