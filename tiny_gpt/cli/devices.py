"""`--devices`: how many processes a training gets, and the command that starts them.

torch's own launcher, torchrun, starts the same command once for each device. Rank 0 leads (run/leader.py).
"""

import os
import shlex
import sys
from collections.abc import Sequence

from tiny_gpt.config import RunConfig
from tiny_gpt.config.training import ALL_DEVICES
from tiny_gpt.errors import UsageError
from tiny_gpt.host.signals import HeardStop
from tiny_gpt.host.torchrun import CORES_VARIABLE, is_follower, rank_in_environment
from tiny_gpt.ui.terminal import error

# Seconds that torchrun gives its processes to end once one of them has failed.
SHUTDOWN_S = 10


def n_processes(config: RunConfig) -> int:
    """Processes to start for --devices. Raises UsageError where this machine has too few devices."""
    train = config.train
    if train.devices == "1" or rank_in_environment() is not None:
        return 1
    import torch

    from tiny_gpt.distributed.ranks import require_shareable

    if sys.platform == "win32":
        raise UsageError(
            "--devices: torch cannot connect processes on Windows here; use WSL2, or leave out --devices",
            code="devices-on-windows",
        )
    n_gpus = torch.cuda.device_count() if train.device != "cpu" else 0
    if n_gpus == 0 and train.device == "auto" and torch.backends.mps.is_available():
        require_shareable("mps")
    require_shareable(train.device)
    # All of a machine's cores are one device, unless the user divides them.
    available, kind = (n_gpus, "GPU") if n_gpus else (os.cpu_count() or 1, "core")
    if train.devices == ALL_DEVICES:
        return n_gpus or 1
    if int(train.devices) > available:
        raise UsageError(
            f"--devices {train.devices}: this machine has {available} {kind}{'s' if available > 1 else ''}; give "
            f"--devices {available}, with which a run of more devices can be resumed too",
            code="too-few-devices",
        )
    return int(train.devices)


def torchrun_command(command: Sequence[str], n_devices: int) -> list[str]:
    """`command`, which begins with a Python interpreter, run once for each device."""
    python, *arguments = command
    options = ["--standalone", "--nproc-per-node", str(n_devices), "--shutdown-timeout", str(SHUTDOWN_S)]
    return [python, "-m", "torch.distributed.run", *options, *arguments]


def announce(command: Sequence[str], n_devices: int) -> None:
    """Print the command, and divide this machine's cores among the processes that it starts."""
    import torch

    error(f"starting {n_devices} processes: {shlex.join(command)}")
    if "OMP_NUM_THREADS" not in os.environ:
        cores = torch.get_num_threads()
        os.environ[CORES_VARIABLE] = str(cores)
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // n_devices))


def join_ranks(config: RunConfig) -> None:
    """Meet the other processes, if torchrun has started several. Raises LostRankError where they don't arrive."""
    if rank_in_environment() is not None:
        from tiny_gpt.distributed.ranks import join_group, require_shareable

        require_shareable(config.train.device)
        join_group(config.train.device, 60 * config.reliability.rank_timeout)


def follow_rank_0(config: RunConfig) -> int:
    """Train as rank 0 says. Returns the exit code."""
    assert is_follower(), "rank 0 leads"
    stop = HeardStop()
    stop.listen()
    join_ranks(config)
    from tiny_gpt.distributed.ranks import current_ranks
    from tiny_gpt.run.follower import follow

    follow(current_ranks(), stop)
    return 0
