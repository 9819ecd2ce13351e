"""`tiny-gpt plan`: look at the text, measure the machine, and say what a training would be."""

import json
from dataclasses import asdict

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.device import configure_torch, pick_device
from tiny_gpt.errors import UsageError
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.planner import measure_machine_and_text
from tiny_gpt.ui.plan_report import report
from tiny_gpt.ui.preparation import shown
from tiny_gpt.ui.terminal import printable


def show_plan(config: RunConfig, as_json: bool) -> int:
    """Print the plan of `config` and what other times and choices would give. Returns the exit code."""
    if config.train.start_from:
        raise UsageError(f"--start-from {config.train.start_from}: a plan is that of a new model; leave it out")
    device = pick_device(config.train.device)
    configure_torch(device, config.train.deterministic)
    dataset = shown(prepare(config.data, min_block_size(config)))
    planner = shown(measure_machine_and_text(config, dataset, device))
    if as_json:
        chosen, plan = planner.plan(config)
        print(
            json.dumps({"settings": chosen.to_flat(), "plan": plan.to_dict(), "text": asdict(planner.text)}, indent=2)
        )
        return 0
    for line in report(config, planner, dataset):
        print(printable(line))
    return 0
