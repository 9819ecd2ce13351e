"""What protects an unattended run."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.config.checks import FLAG_OFF, require_positive


@dataclass(frozen=True)
class ReliabilityConfig:
    """Protection of unattended runs."""

    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints; more if saving is slow.
    One is also saved after each epoch and when you stop."""
    rank_timeout: Annotated[float, arg(metavar="MINUTES")] = 10.0
    """Minutes to wait for a device that does not answer before training restarts."""
    watchdog: Annotated[bool, FLAG_OFF] = True
    """Don't restart training from the last checkpoint after a crash, a hang or a kill."""
    keep_awake: Annotated[bool, FLAG_OFF] = True
    """Don't keep the computer from going to sleep while it trains."""

    def __post_init__(self) -> None:
        require_positive(self, "checkpoint_minutes", "rank_timeout")
