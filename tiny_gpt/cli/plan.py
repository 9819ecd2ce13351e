"""`tiny-gpt plan`: prepare the text, measure the machine, and print what a training run would be like."""

import json
import sys
from dataclasses import asdict, replace

import torch

from tiny_gpt.cli.devices import follow_rank_0, join_ranks
from tiny_gpt.config import RunConfig
from tiny_gpt.config.training import ALL_DEVICES
from tiny_gpt.data.progress import Preparation
from tiny_gpt.host.torchrun import is_follower
from tiny_gpt.planning.several_devices import Network, SharedStepTime
from tiny_gpt.run.folders import find_model
from tiny_gpt.run.group_plan import on_ranks, plan_for_group
from tiny_gpt.run.leader import led_ranks
from tiny_gpt.run.planned_run import PlannedRun, measure_run
from tiny_gpt.ui.plan_report import plan_report
from tiny_gpt.ui.preparation import with_progress
from tiny_gpt.ui.terminal import columns, printable


def show_plan(config: RunConfig, as_json: bool, bandwidth: float, latency: float) -> int:
    """Print the plan for `config`, and a table of other time budgets and settings; returns the exit code.

    `bandwidth`, in GB/s, and `latency`, in microseconds, connect the devices of --devices. Started by torchrun, it is a
    plan for the devices that are there, and the network between them is measured.
    """
    if is_follower():
        return follow_rank_0(config)
    if config.train.start_from:
        config = replace(config, train=replace(config.train, start_from=str(find_model(config.train.start_from))))
    join_ranks(config)
    with led_ranks() as ranks:
        planned = with_progress(measure_run(config))
        if not ranks.is_alone:
            planned = with_progress(for_group(planned))
    if ranks.is_alone and (n_devices := devices_to_plan(config)) > 1:
        network = Network(1e9 * bandwidth, 1e-6 * latency)
        planned = planned.map_planners(lambda planner: planner.on_devices(n_devices, network))
    planner = planned.planner
    if as_json:
        chosen, plan = planner.plan(planned.config)
        values = {"settings": chosen.to_flat(), "plan": plan.to_dict(), "text": asdict(planner.text)}
        print(json.dumps(values, indent=2))
        return 0
    for line in plan_report(planned, columns() if sys.stdout.isatty() else None):
        print(printable(line))
    return 0


def for_group(planned: PlannedRun) -> Preparation[PlannedRun]:
    """`planned` for the ranks that torchrun has started."""
    shared = yield from plan_for_group(planned.config, planned.planner, planned.planner.device)
    assert isinstance(shared.step_time, SharedStepTime), "who starts torchrun has decided on several devices"
    network = shared.step_time.network
    return planned.map_planners(lambda planner: on_ranks(planner, network))._replace(planner=shared)


def devices_to_plan(config: RunConfig) -> int:
    """The number of --devices, which need not be on this machine."""
    if config.train.devices == ALL_DEVICES:
        return max(1, torch.cuda.device_count())
    return int(config.train.devices)
