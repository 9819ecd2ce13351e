"""`tiny-gpt plan`: prepare the text, measure the machine, and print what a training run would be like."""

import json
import sys
from dataclasses import asdict

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.device import configure_torch, pick_device
from tiny_gpt.errors import UsageError
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.measurement import measure_machine_and_text
from tiny_gpt.ui.plan_report import plan_report
from tiny_gpt.ui.preparation import with_progress
from tiny_gpt.ui.terminal import columns, printable


def show_plan(config: RunConfig, as_json: bool) -> int:
    """Print the plan for `config`, and a table of other time budgets and settings; returns the exit code."""
    if config.train.start_from:
        raise UsageError(
            f"--start-from {config.train.start_from}: plans are for new models only; leave it out",
            code="plan-with-start-from",
        )
    device = pick_device(config.train.device)
    configure_torch(device, config.train.deterministic)
    dataset = with_progress(prepare(config.data, min_block_size(config)))
    planner = with_progress(measure_machine_and_text(config, dataset, device))
    if as_json:
        chosen, plan = planner.plan(config)
        values = {"settings": chosen.to_flat(), "plan": plan.to_dict(), "text": asdict(planner.text)}
        print(json.dumps(values, indent=2))
        return 0
    for line in plan_report(config, planner, dataset, columns() if sys.stdout.isatty() else None):
        print(printable(line))
    return 0
