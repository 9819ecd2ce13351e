"""A simulated machine, two texts, and configs that leave settings to the recipe `auto`."""

from dataclasses import replace

import torch

from tiny_gpt.config.recipes import AUTO_SETTINGS, RECIPES
from tiny_gpt.planning.heuristics import ComputeBudget, choose_settings
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.throughput import StepTimeModel
from tiny_gpt.planning.types import Candidate, TextStats

AUTO = RECIPES["auto"]
CPU = torch.device("cpu")
SMALL_TEXT = TextStats(1_000_000, 500_000, 60_000, 512, 3.0)
LARGE_TEXT = TextStats(500_000_000, 130_000_000, 2_500_000, 8192, 2.7)
FIVE_MINUTES = replace(AUTO, train=replace(AUTO.train, for_="5m"))
# 500 GFLOP/s, and a fixed 5 ms per step.
step_time = StepTimeModel(0.005, 2e-12, 4096)


def choose(config=AUTO, text=LARGE_TEXT, seconds=300.0, budget=None):
    """The settings chosen on the simulated machine, whose memory is unlimited."""
    return choose_settings(config, text, budget or ComputeBudget(seconds), step_time, lambda _: True)


def auto_with(**settings):
    """The recipe `auto` where the user gave these settings."""
    start = AUTO if "n_head" not in settings else replace(AUTO, model=replace(AUTO.model, d_model=448))
    config = start.with_flat(settings, "a test")
    auto = tuple(name for name in AUTO_SETTINGS if name not in settings)
    return replace(config, train=replace(config.train, auto=auto))


def make_planner(vocab_size=512):
    """A planner for the small text on a machine like `step_time`."""
    return Planner(SMALL_TEXT, CPU, StepTimeModel(0.005, 2e-12, vocab_size), Candidate("fused", "bf16"))
