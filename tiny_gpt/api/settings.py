"""Settings given as keyword arguments, as a complete config; names and checks are those of the command line's flags."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_gpt.config import BUDGETS, RunConfig
from tiny_gpt.config.recipes import DEFAULT_DURATION, RECIPES, without_choices
from tiny_gpt.errors import UsageError

Source = str | Path | Sequence[str | Path]


def config_for(source: Source, hours: float | None, recipe: str, settings: Mapping[str, Any], caller: str) -> RunConfig:
    """The settings of a new run. `caller` is named in errors. Raises UsageError and BadInputError."""
    if recipe not in RECIPES:
        raise UsageError(f"recipe {recipe!r}: known are {', '.join(RECIPES)}", code="recipe-unknown")
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources or not all(str(each) for each in sources):
        raise UsageError(f"{caller} needs a text: a file, a folder, a URL or a dataset", code="source-not-given")
    base = RECIPES[recipe]
    if recipe == "auto":
        base = replace(base, train=replace(base.train, for_=DEFAULT_DURATION))
    return with_settings(base, {"data": tuple(map(str, sources)), **settings}, hours, caller)


def with_settings(base: RunConfig, settings: Mapping[str, Any], hours: float | None, caller: str) -> RunConfig:
    """`base` with `settings`, none of which is chosen by the planner any more; a budget replaces that of `base`."""
    given = dict(settings)
    if hours is not None:
        if not isinstance(hours, int | float) or not 0 < hours < 366 * 24:
            raise UsageError(f"hours={hours!r}: must be greater than 0 and at most a year", code="hours-out-of-range")
        given["for_"] = f"{hours * 3600:.3f}s"
    if any(name in given for name in BUDGETS):
        base = replace(base, train=base.train.without_budget())
    n_head = given.get("n_head")
    base = without_choices(base, given, n_head if isinstance(n_head, int) else 0)
    return base.with_flat(given, caller)
