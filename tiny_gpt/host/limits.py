"""When the watchdog intervenes: the limits for hangs, restarts and memory leaks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times in seconds. The defaults suit a training of hours; tests use shorter ones."""

    poll_s: float = 1.0
    hang_s: float = 600.0
    """A hang is a silence of this length,"""
    hang_factor: float = 10.0
    """or of this many median intervals between beats, whichever is longer."""
    start_s: float = 3600.0
    """A process that was started again hangs if it reports nothing for this long before its first step,"""
    idle_share: float = 0.02
    """or, for `hang_s`, uses less than this fraction of a core as well."""
    grace_s: float = 30.0
    """From SIGTERM to SIGKILL."""
    leave_s: float = 5.0
    """The other processes of a group end within this time once the one with the heartbeat has announced its end."""
    max_restarts: int = 3
    """In a row, without a new checkpoint."""
    backoff_s: tuple[float, ...] = (1.0, 5.0, 25.0)
    """Wait before the first restart in a row, the second, and so on."""
    leak_poll_s: float = 10.0
    leak_settle_s: float = 300.0
    """The most memory used in this first time is the baseline."""
    leak_factor: float = 2.0
    """A leak is more than this many times the baseline,"""
    leak_slack_bytes: int = 2**30
    """plus this."""
    scarce_share: float = 0.03
    """While less than this fraction of the system's memory is available,"""
    scarce_factor: float = 1.5
    """this many times the baseline already is a leak."""
