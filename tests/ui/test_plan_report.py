"""What is printed about a plan."""

import re
from dataclasses import replace

import pytest

from tests.planning.support import FIVE_MINUTES, make_planner
from tiny_gpt.planning.types import Forecast
from tiny_gpt.ui.plan_report import budget_table, forecast_versus_actual, plan_rows


@pytest.mark.parametrize("is_bpe", [True, False])
def test_the_table_compares_other_settings(is_bpe):
    rows = {}
    for line in budget_table(FIVE_MINUTES, make_planner(), is_bpe):
        label, *cells = re.split(" {2,}", line.strip())
        rows[label] = cells
    chosen = [float(loss) for loss in rows["with this plan's settings"]]
    assert ("with --tokenizer char" in rows) == is_bpe
    for label in {"with --tokenizer char", "with --optimizer adamw", "with --architecture gpt2"} & set(rows):
        assert all(float(loss) > best for loss, best in zip(rows[label], chosen, strict=True)), label
    larger = [float(loss) for loss in rows["with a larger model"]]
    assert all(loss >= best - 0.02 for loss, best in zip(larger, chosen, strict=True))
    assert rows["bits per byte after"] == ["5m", "1h", "6h", "24h"]


def test_a_long_run_on_a_small_text_names_its_saturation():
    _, plan = make_planner().plan(FIVE_MINUTES)
    texts = " ".join(text for _, text in plan_rows(replace(plan, saturation_s=120.0)))
    assert "after 2 min 00 s, more time hardly helps" in texts
    texts = " ".join(text for _, text in plan_rows(replace(plan, saturation_s=1e6)))
    assert "hardly helps" not in texts


def test_a_finished_run_stands_beside_its_plan():
    _, plan = make_planner().plan(FIVE_MINUTES)
    plan = replace(plan, tokens=2_000_000, memory_bytes=1 << 30, forecast=Forecast(0.87, 0.8, 0.95))
    line = forecast_versus_actual(plan, 2_500_000, 0.89, 3 << 29, is_timed=True)
    assert line == (
        "the model reached 0.89 bits per byte, as predicted (0.87; 8 of 10 runs end between 0.80 and 0.95); it was "
        "trained on 2.5 M tokens, 25% more than planned because steps took less time than measured beforehand; it took "
        "1.5 GiB of memory, 1.0 were planned"
    )
    line = forecast_versus_actual(plan, 1_500_000, 0.99, 3 << 29, is_timed=True)
    assert "worse than predicted" in line and "25% fewer than planned because steps took longer" in line
    line = forecast_versus_actual(plan, 2_000_000, 0.79, 3 << 29, is_timed=False)
    assert "better than predicted" in line and "2 M tokens, as planned;" in line


def test_table_fits_80_columns():
    assert max(map(len, budget_table(FIVE_MINUTES, make_planner(), is_bpe=True))) <= 80
