"""`python -m tests.faults`: run the groups, print a table of what held, exit with 1 if something did not."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tests.faults.child import preload
from tests.faults.groups import GROUPS
from tests.faults.trial import Outcome, run_group
from tests.faults.world import World

# Of the long form of a group; they run side by side.
N_PARTS = 8


class Part(NamedTuple):
    """Of a group: every `of`-th trial from the `number`-th on."""

    group: str
    number: int
    of: int


def main() -> int:
    options = parse()
    names = [name for name in options.only or GROUPS if not options.short or GROUPS[name].n_short]
    n_parts = 1 if options.short or options.trial is not None else N_PARTS
    parts = [Part(name, i, n_parts) for name in names for i in range(n_parts)]
    outcomes = {name: Outcome(name, GROUPS[name].holds) for name in names}
    missing = dict.fromkeys(names, n_parts)
    # In memory if possible: fsync is free there, and a kill loses nothing that was written.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory, ignore_cleanup_errors=True) as folder:
        preload()
        fork = multiprocessing.get_context("fork")
        with fork.Pool(options.jobs, make_world, (folder,)) as pool:
            for outcome in pool.imap_unordered(partial(run_part, options), parts):
                for failure in outcome.failures:
                    print(f"{failure}\n", flush=True)
                outcomes[outcome.name].add(outcome)
                missing[outcome.name] -= 1
                if not missing[outcome.name]:
                    print(row(outcomes[outcome.name]), file=sys.stderr, flush=True)
    print(table([*outcomes.values()]))
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(each) for each in outcomes.values()], indent=1))
    return int(any(outcome.failures for outcome in outcomes.values()))


world: World
"""Of this process of the pool; its trials share it."""


def make_world(folder: str) -> None:
    global world
    world = World(Path(tempfile.mkdtemp(dir=folder)))


def run_part(options: argparse.Namespace, part: Part) -> Outcome:
    return run_group(world, part.group, GROUPS[part.group], options.seed, options.trial, options.short, part[1:])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Do runs survive faults?")
    parser.add_argument("--short", action="store_true", help="a few trials of each group, as make test runs them")
    parser.add_argument("--seed", type=int, default=0, help="all that the trials draw comes from it")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--trial", nargs="+", type=int, metavar="NUMBER", help="only these of the group")
    parser.add_argument("--jobs", type=int, help="processes side by side (default: one per core; with --short one)")
    parser.add_argument("--json", metavar="FILE", help="the outcomes for a program")
    options = parser.parse_args()
    options.jobs = options.jobs or (1 if options.short else os.cpu_count() or 1)
    return options


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
