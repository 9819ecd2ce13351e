"""The settings of a run from their three sources: a recipe, a saved config or the run itself; then the flags.

Flags win. Some of them must be known before all can be parsed, because they decide what the defaults of the others
are: --recipe, --config, the budget, and those that the recipe `auto` would choose.
"""

import argparse
import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import fields, make_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

from tyro.conf import Suppress, arg

from tiny_gpt.cli.arguments import documentation, parse
from tiny_gpt.config import BUDGETS, RunConfig, flag
from tiny_gpt.config.recipes import DEFAULT_DURATION, RECIPES, without_choices
from tiny_gpt.config.training import more_than_one_budget
from tiny_gpt.errors import UsageError

RunArguments = TypeVar("RunArguments", bound=RunConfig)


def recipe_config(name: str, args: Sequence[str]) -> RunConfig:
    """The recipe called `name`, without what `args` set themselves; `auto` trains for DEFAULT_DURATION."""
    base = RECIPES[name]
    if name == "auto":
        base = replace(base, train=replace(base.train, for_=DEFAULT_DURATION))
    return without_given_choices(base, args)


def without_given_choices(config: RunConfig, args: Sequence[str]) -> RunConfig:
    """`config` with the settings that `args` give removed from `train.auto`, so that they are not chosen."""
    values = peek_flags(args, *config.train.auto)
    n_head = values.get("n_head") or ""
    given = [name for name, value in values.items() if value is not None]
    return without_choices(config, given, max(1, int(n_head)) if n_head.isdecimal() else 0)


def parse_run(
    arguments: type[RunArguments],
    prog: str,
    args: Sequence[str],
    base: RunConfig,
    listed: Collection[str] | None = None,
) -> RunArguments:
    """`base` with the settings that `args` give. Raises SystemExit after --help.

    `listed`: the only settings that --help lists, for a command that takes its defaults from a run, whose values are
    not known yet. The command accepts all settings.
    """
    description = documentation(arguments)
    if given_budget(args):
        base = replace(base, train=base.train.without_budget())
    shown = base  # with the defaults that --help and the hints after a misspelled flag show
    if listed is not None:
        names = set(base.to_flat())
        if {"-h", "--help"} & set(args):  # the parser knows no flag that it does not list
            shown = annotated(with_help_default(base, names, ""), names - set(listed), Suppress)
        else:
            shown = with_help_default(base, names, "as in the run")
    elif base.train.auto:
        description += '\n\nSettings marked "chosen" depend on the text, the time and this machine.'
        shown = with_help_default(base, base.train.auto, "chosen")
        if base.train.budget != "epochs":
            shown = with_help_default(shown, ["epochs"], "")
    parsed = parse(
        arguments, prog, args, arguments(shown.model, shown.data, shown.train, shown.reliability), description
    )
    sections = {section.name: type(getattr(base, section.name)) for section in fields(base)}
    return replace(parsed, **{name: _as(kind, getattr(parsed, name)) for name, kind in sections.items()})


def _as(kind: type[Any], section: Any) -> Any:
    """A section with help texts of its own as the section that it is."""
    return kind(**{setting.name: getattr(section, setting.name) for setting in fields(kind)})


def run_settings(arguments: RunConfig, sources: tuple[str, ...] = ()) -> RunConfig:
    """The settings alone, without a command's other arguments; `sources` replace --data."""
    data = replace(arguments.data, data=sources) if sources else arguments.data
    return RunConfig(arguments.model, data, arguments.train, arguments.reliability)


def given_budget(args: Sequence[str]) -> str | None:
    """Which of BUDGETS is among the flags; raises UsageError for more than one, and for a budget of zero."""
    values = {name: value for name, value in peek_flags(args, *BUDGETS).items() if value is not None}
    if len(values) > 1:
        raise UsageError(more_than_one_budget(list(values)), code="several-budgets")
    for name, value in values.items():
        if not value.strip("0."):
            raise UsageError(f"{flag(name)} {value}: must be greater than 0", code="budget-zero")
        return name
    return None


def peek_flags(args: Sequence[str], *names: str) -> dict[str, str | None]:
    """{name: value or None} of a few flags, before the others can be parsed. Errors are left to the real parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(flag(name), dest=name)
    with_hyphens = [re.sub("^--[a-z_]+", lambda found: found[0].replace("_", "-"), arg) for arg in args]
    with contextlib.suppress(argparse.ArgumentError):
        return vars(parser.parse_known_args(with_hyphens)[0])
    return dict.fromkeys(names)


def with_help_default(config: RunConfig, names: Collection[str], text: str) -> RunConfig:
    """`config` for --help: the settings called `names` show "(default: `text`)" instead of their value,
    or nothing if `text` is empty."""
    return annotated(config, names, arg(help_behavior_hint=f"(default: {text})" if text else ""))


def annotated(config: RunConfig, names: Collection[str], annotation: Any) -> RunConfig:
    """`config` with this `annotation` for the parser at the settings called `names`."""
    sections = {section.name: getattr(config, section.name) for section in fields(config)}
    return replace(config, **{name: _annotated(part, names, annotation) for name, part in sections.items()})


def _annotated(section: Any, names: Collection[str], annotation: Any) -> Any:
    # A subclass with other annotations, which is what --help is generated from.
    section_class = type(section)
    types = get_type_hints(section_class, include_extras=True)
    replaced = [
        (setting.name, Annotated[types[setting.name], annotation], setting.default)
        for setting in fields(section)
        if setting.name in names
    ]
    subclass = make_dataclass(
        section_class.__name__,
        replaced,
        bases=(section_class,),
        namespace={"__doc__": section_class.__doc__},
        frozen=True,
    )
    return subclass(**{setting.name: getattr(section, setting.name) for setting in fields(section)})
