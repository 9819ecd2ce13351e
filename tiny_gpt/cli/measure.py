"""Arguments of `tiny-gpt plan` and `tiny-gpt doctor`, which measure this machine; see plan.py and doctor.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tiny_gpt.cli.arguments import SourcesArgument, parse, require_sources
from tiny_gpt.cli.overrides import parse_run, recipe_config, run_settings
from tiny_gpt.config import RunConfig
from tiny_gpt.config.checks import OPTIONAL, require

# What connects machines at least.
ETHERNET_GBYTES, ETHERNET_LATENCY_US = 1.25, 50.0


@dataclass(frozen=True)
class PlanCommand(RunConfig):
    """Predict a training run: model, time, memory, loss. Measures this machine."""

    sources: SourcesArgument = ()
    """Training text, given as for `tiny-gpt train`."""
    bandwidth: float = ETHERNET_GBYTES
    """With --devices: GB per second that each device sends to the next one. 1.25 is 10 Gbit/s Ethernet."""
    latency: float = ETHERNET_LATENCY_US
    """With --devices: microseconds that a message takes to the next device."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""


@dataclass(frozen=True)
class DoctorCommand:
    """Check this machine's arithmetic and which settings are safe for training."""

    device: Annotated[str, arg(metavar="{all,auto,cpu,mps,cuda,cuda:N}")] = "all"
    """Device to check."""
    json: Annotated[bool, OPTIONAL] = False
    """Print JSON."""
    again: Annotated[bool, OPTIONAL] = False
    """Repeat the checks that passed on this machine within the last 30 days."""
    nodes: Annotated[bool, OPTIONAL] = False
    """Check whether the processes started by torchrun can train together, and the speed of their network."""
    data: Annotated[tuple[str, ...], arg(metavar="SOURCE ..."), OPTIONAL] = ()
    """With --nodes: a text, which must be the same on all of them."""


def plan(args: Sequence[str]) -> int:
    """Predict a training run: model, time, memory, loss."""
    command = parse_run(PlanCommand, "tiny-gpt plan", args, recipe_config("auto", args))
    config = run_settings(command, command.sources)
    require_sources((*config.data.data, *config.data.val, *config.data.first))
    from tiny_gpt.cli.plan import show_plan

    require(command.bandwidth > 0, f"--bandwidth {command.bandwidth}: must be greater than 0", "bandwidth-not-positive")
    require(command.latency >= 0, f"--latency {command.latency}: must be at least 0", "latency-negative")
    return show_plan(config, command.json, command.bandwidth, command.latency)


def doctor(args: Sequence[str]) -> int:
    """Check that this machine computes correctly and what it can do."""
    command = parse(DoctorCommand, "tiny-gpt doctor", args)
    if command.nodes:
        require_sources(command.data)
        from tiny_gpt.cli.nodes import examine_nodes

        return examine_nodes(command.data, command.json)
    from tiny_gpt.cli.doctor import examine

    return examine(command.device, command.json, command.again)
