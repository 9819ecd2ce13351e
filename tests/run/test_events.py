"""A line of metrics.jsonl."""

import json
import math
from dataclasses import replace

import pytest

from tiny_gpt.run.events import (
    Evaluated,
)


def evaluation(step, val_loss=1.5):
    return Evaluated(step, 1, 1.25, val_loss, 2.1, 1.3, 1e-4, 0.1 + 0.2, 12345.6, 7.8)


def test_an_evaluation_round_trips_through_json():
    for row in (evaluation(7), replace(evaluation(7), batch_loss=math.nan, tokens_per_s=math.inf)):
        line = row.to_json_line()
        assert json.loads(line)["step"] == 7 and line.count("\n") == 1
        back = Evaluated.from_json_line(line)
        assert back.to_json_line() == line and back.grad_norm == row.grad_norm
    older = {name: value for name, value in json.loads(evaluation(7).to_json_line()).items() if value is not None}
    assert Evaluated.from_json_line(json.dumps(older)) == evaluation(7), "of an earlier version"
    seven, one = evaluation(7).to_json_line(), evaluation(1).to_json_line()
    for odd in ("", "{}", "[]", seven.replace("7", '"7"'), one.replace("1", "true")):
        with pytest.raises((ValueError, TypeError)):
            Evaluated.from_json_line(odd)
