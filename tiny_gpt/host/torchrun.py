"""What torchrun says about this process, in environment variables. Imports no torch."""

import os

# Set by the command that starts torchrun.
CORES_VARIABLE = "TINY_GPT_CORES"


def rank_in_environment() -> int | None:
    """The rank that torchrun gave this process; None if it has not started it, or only a single one."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return rank if size > 1 else None


def is_follower() -> bool:
    """Whether another process leads this one."""
    return bool(rank_in_environment())


def local_rank() -> int:
    """Counted on this machine, from 0: the GPU of this process."""
    return int(os.environ.get("LOCAL_RANK", 0))


def n_ranks_here() -> int:
    """Ranks on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def restart_count() -> str:
    """How many times torchrun has started this process again after a failure."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def is_restarted() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return restart_count() != "0"


def n_shared_cores() -> int:
    """The cores that the ranks on this machine share; 0 where the user has said how many threads each has."""
    cores = os.environ.get(CORES_VARIABLE, "")
    return int(cores) if cores.isdecimal() else 0
