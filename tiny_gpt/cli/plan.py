"""`tiny-gpt plan`: prepare the text, measure the machine, and print what a training run would be like."""

import json
import sys
from dataclasses import asdict, replace

from tiny_gpt.config import RunConfig
from tiny_gpt.run.folders import find_model
from tiny_gpt.run.planned_run import measure_run
from tiny_gpt.ui.plan_report import plan_report
from tiny_gpt.ui.preparation import with_progress
from tiny_gpt.ui.terminal import columns, printable


def show_plan(config: RunConfig, as_json: bool) -> int:
    """Print the plan for `config`, and a table of other time budgets and settings; returns the exit code."""
    if config.train.start_from:
        config = replace(config, train=replace(config.train, start_from=str(find_model(config.train.start_from))))
    planned = with_progress(measure_run(config))
    planner = planned.planner
    if as_json:
        chosen, plan = planner.plan(planned.config)
        values = {"settings": chosen.to_flat(), "plan": plan.to_dict(), "text": asdict(planner.text)}
        print(json.dumps(values, indent=2))
        return 0
    for line in plan_report(planned, columns() if sys.stdout.isatty() else None):
        print(printable(line))
    return 0
