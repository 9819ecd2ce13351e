"""The plan that a run keeps in its folder."""

import json
import math
from pathlib import Path

from tiny_gpt.config import PLAN_FILE
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.checkpoint_store import DamagedError, read_bounded

MAX_PLAN_BYTES = 1 << 20


def read_saved_plan(folder: Path) -> Plan | None:
    """The plan of the run in `folder`; None if it has none, or one that cannot be read or has infinite numbers."""
    try:
        plan = Plan.from_dict(json.loads(read_bounded(folder / PLAN_FILE, MAX_PLAN_BYTES)))
        forecast = plan.forecast
        numbers = [plan.n_parameters, plan.steps, plan.step_s, plan.tokens, plan.data_epochs, plan.seconds]
        numbers += [plan.memory_bytes, plan.saturation_s, forecast.bits_per_byte, forecast.low, forecast.high]
        return plan if all(math.isfinite(number) and abs(number) < 1e18 for number in numbers) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, DamagedError, RecursionError, ArithmeticError):
        return None
