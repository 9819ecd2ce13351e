"""All groups. To add one, write a trial and add a row to GROUPS in its file."""

from tests.faults import clocks, damage, disks, kills, losses, memory, powercuts, ranks, signals, watched
from tests.faults.trial import Group

FILES = kills, damage, disks, losses, memory, clocks, signals, watched, ranks, powercuts
GROUPS: dict[str, Group] = {name: group for file in FILES for name, group in file.GROUPS.items()}
