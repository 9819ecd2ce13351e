"""The plan of a run on several devices: one device is measured first, then the network and a step on all of them."""

from collections.abc import Generator
from dataclasses import asdict, replace

import torch

from tiny_gpt.config import RunConfig
from tiny_gpt.data.progress import Measuring, Notice, PreparationEvent
from tiny_gpt.distributed.network import measure_network
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.host.torchrun import n_ranks_here, n_shared_cores
from tiny_gpt.planning.autotune import why_unsuitable
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.several_devices import Network
from tiny_gpt.run.sharing import compare_with_one, end_followers, is_open, measure_all, with_micro_batches


def plan_for_group(
    config: RunConfig, planner: Planner, device: torch.device
) -> Generator[PreparationEvent, None, Planner]:
    """`planner`, which has measured one device, for the current ranks; unchanged where several are no faster: then this
    process is alone from here on.

    The model of several devices says how they divide the work; a measured step of what it plans says how long that
    takes.
    """
    ranks = current_ranks()
    if ranks.is_alone:
        return planner
    yield Measuring("the network between the devices", 1.0)
    with ranks.together({"do": "network", "device": device.type}):
        speed = measure_network(ranks.size, ranks.add, device)
    shared = on_ranks(planner, Network.measured(speed, ranks.size))
    chosen = _with_backend(shared.plan(config)[0], shared)
    if is_open(chosen):
        all_s = yield from compare_with_one(chosen, planner.text.vocab_size, device)
        if all_s is None:
            end_followers(ranks)
            return planner
    else:
        all_s = measure_all(with_micro_batches(chosen, ranks.size), planner.text.vocab_size, device)
        yield Notice(f"a step takes {1e3 * all_s:.1f} ms on {ranks.size} devices")
    return shared._replace(step_time=shared.step_time.scaled(all_s / shared.step_time(chosen)))


def _with_backend(config: RunConfig, planner: Planner) -> RunConfig:
    """`config` with the planner's backend and precision, or eager where the settings exclude that."""
    train = replace(config.train, **asdict(planner.candidate))
    backend = "eager" if why_unsuitable(train.backend, train) else train.backend
    return replace(config, train=replace(train, backend=backend))


def on_ranks(planner: Planner, network: Network) -> Planner:
    """`planner` for the current ranks. On a CPU it has measured all cores, which they share with the memory."""
    n_here = n_ranks_here() if planner.device.type == "cpu" else 1
    if n_shared_cores():
        planner = planner._replace(step_time=planner.step_time.scaled(n_here))
    return planner.on_devices(current_ranks().size, network, n_sharing=n_here)
