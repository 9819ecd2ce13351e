"""Trackers that get a run, and what happens when it ends. Not part of a run's settings, so nothing saves them."""

import os
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from tiny_gpt.config.checks import OPTIONAL, require
from tiny_gpt.config.choices import TrackerName

NOTIFY_VARIABLE = "TINY_GPT_NOTIFY"
"""Environment variable with addresses for --notify, separated by spaces: other users see a command's flags."""


@dataclass(frozen=True)
class ReportingConfig:
    """Trackers and messages."""

    track: Annotated[UseAppendAction[tuple[TrackerName, ...]], OPTIONAL] = ()
    """Send the run to a tracker; give the flag again for another one. Needs its package: pip install wandb.
    A resumed run stays in its trackers without this flag."""
    notify: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL"), OPTIONAL] = ()
    """Post a message when the training has ended, was stopped or failed; give the flag again for another address.
    ntfy.sh topics, Slack and Discord webhooks, or any address that takes JSON.
    TINY_GPT_NOTIFY in the environment can hold it too."""
    then: Annotated[str, arg(metavar="COMMAND"), OPTIONAL] = ""
    """Run this shell command when the training has ended or failed, but not when you stop it.
    The environment variables TINY_GPT_STATUS, TINY_GPT_RUN and others describe the run."""

    def __post_init__(self) -> None:
        require(self.then.strip() != "" or self.then == "", "--then: an empty command", "then-empty")

    def addresses(self) -> list[str]:
        """Where messages go: what --notify names and, if it names nothing, what the environment does."""
        return list(dict.fromkeys(self.notify or os.environ.get(NOTIFY_VARIABLE, "").split()))
