"""Plans in plan.json."""

import json

import pytest

from tests.planning.support import FIVE_MINUTES, SMALL_TEXT, make_planner
from tiny_gpt.planning.heuristics import tokens_per_step
from tiny_gpt.planning.types import Plan


def test_a_plan_survives_its_file():
    config, plan = make_planner().plan(FIVE_MINUTES)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.seconds == 300 and plan.tokens == plan.steps * tokens_per_step(config)
    assert plan.data_epochs == pytest.approx(plan.tokens / SMALL_TEXT.train_tokens)


def test_a_plan_of_an_earlier_version_is_read():
    _, plan = make_planner().plan(FIVE_MINUTES)
    values = plan.to_dict()
    forecast = values.pop("forecast")
    values["expected"] = {"middle": forecast["bits_per_byte"], "low": forecast["low"], "high": forecast["high"]}
    values["readings"], values["useful_s"] = values.pop("data_epochs"), values.pop("saturation_s")
    assert Plan.from_dict(values) == plan
