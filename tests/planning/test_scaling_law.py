"""The scaling law and its fit to the recorded runs."""

import json
from dataclasses import replace

import pytest

from benchmarks import forecast as benchmark
from tests.planning.support import LARGE_TEXT, choose
from tiny_gpt.planning.scaling_law import Z_80, batch_inefficiency, forecast, load_scaling_law, reducible_loss
from tiny_gpt.planning.types import TextStats


def test_loss_falls_with_steps_size_and_easier_texts():
    config = choose()
    found = [forecast(config, LARGE_TEXT, steps) for steps in (100, 1000, 10_000)]
    losses = [each.bits_per_byte for each in found]
    assert losses == sorted(losses, reverse=True)
    assert all(each.low < each.bits_per_byte < each.high for each in found)
    harder = replace(LARGE_TEXT, pilot_bits_per_byte=3.5)
    assert forecast(config, harder, 1000).bits_per_byte > losses[1]
    models = [replace(config.model, n_layer=n_layer) for n_layer in (1, 2, 4, 8)]
    reducible = [reducible_loss(replace(config, model=model), LARGE_TEXT, 1000) for model in models]
    assert reducible == sorted(reducible, reverse=True)


def test_batches_beyond_the_critical_size_waste_tokens():
    factors = [batch_inefficiency(2048 * ratio, 1e6) for ratio in (0.5, 1, 2, 8, 64)]
    assert factors[:2] == [1.0, 1.0] and factors == sorted(factors)
    # Far beyond the critical size, more tokens in a step are of no use at all.
    assert factors[-1] / factors[-2] == pytest.approx(8, rel=0.2)


def test_merging_gains_what_its_teachers_differ_and_students_a_little():
    model = replace(choose().model, architecture="qwen3")

    def loss(teachers: int, students: int = 1) -> float:
        config = replace(choose(), model=model)
        train = replace(config.train, teachers=teachers, students=students)
        return forecast(replace(config, train=train), LARGE_TEXT, 1000).bits_per_byte

    # A student of one teacher is no second model of an ensemble.
    assert loss(0) > loss(1) > 0.98 * loss(0)
    assert loss(1) > loss(2) > loss(4) > loss(8) > 0.95 * loss(0)
    assert loss(8, 0) == loss(8, 1) > loss(8, 4) > 0.99 * loss(8, 0)


@pytest.mark.slow
def test_the_law_is_the_fit_to_the_recorded_runs():
    law, fitted = load_scaling_law(), benchmark.fit(recorded_runs())
    assert (fitted.exponent, fitted.repetition_decay) == (law.exponent, law.repetition_decay)
    assert fitted.penalties == law.penalties
    expected = [*law.coefficients, law.residual_std]
    assert [*fitted.coefficients, fitted.residual_std] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_intervals_cover_80_percent_of_runs_on_other_texts():
    rows, law = recorded_runs(), load_scaling_law()
    assert len({row["source"] for row in rows}) >= 8
    assert sum(abs(benchmark.held_out_errors(law, rows)) <= Z_80 * law.residual_std) >= 0.8 * len(rows)
    found = [forecast(benchmark.config_of(row), TextStats(**row["text"]), row["steps"]) for row in rows]
    covered = [each.low <= row["bits_per_byte"] <= each.high for each, row in zip(found, rows, strict=True)]
    assert sum(covered) >= 0.8 * len(rows)


def recorded_runs():
    return [json.loads(line) for line in benchmark.RUNS.read_text().splitlines()]
