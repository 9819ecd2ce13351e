"""`python -m tests.faults`: run the groups, print a table of what held, exit with 1 if something did not."""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from tests.faults.groups import GROUPS
from tests.faults.trial import Outcome, run_group
from tests.faults.world import World


def main() -> int:
    options = parse()
    outcomes = []
    # In memory if possible: fsync is free there, and a kill loses nothing that was written.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory, ignore_cleanup_errors=True) as folder:
        world = World(Path(folder))
        for name in options.only or GROUPS:
            if options.short and not GROUPS[name].n_short:
                continue
            numbers = None if options.trial is None else options.trial
            outcome = run_group(world, name, GROUPS[name], options.seed, numbers, options.short)
            outcomes.append(outcome)
            for failure in outcome.failures:
                print(f"{failure}\n", flush=True)
            print(row(outcome), file=sys.stderr, flush=True)
    print(table(outcomes))
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.failures for outcome in outcomes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Do runs survive faults?")
    parser.add_argument("--short", action="store_true", help="a few trials of each group, as make test runs them")
    parser.add_argument("--seed", type=int, default=0, help="all that the trials draw comes from it")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--trial", nargs="+", type=int, metavar="NUMBER", help="only these of the group")
    parser.add_argument("--json", metavar="FILE", help="the outcomes for a program")
    return parser.parse_args()


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table, and a line that names the machine."""
    head = "| group | trials | what must hold | held | failed | seconds |\n|---|---|---|---|---|---|"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return "\n".join([head, *map(row, outcomes), "", f"{machine}; {versions}"])


def row(outcome: Outcome) -> str:
    held = outcome.n_trials - outcome.n_failed
    cells = outcome.name, outcome.n_trials, outcome.holds, held, outcome.n_failed, f"{outcome.seconds:.0f}"
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
