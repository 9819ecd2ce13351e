"""metrics.jsonl read on while it grows, is replaced, or is broken."""

import json
import math

import numpy as np
import pytest

from tests.view.support import rows, write_rows
from tiny_gpt.view import metrics_reader, row_groups
from tiny_gpt.view.metrics_reader import METRICS_COLUMNS, MetricsReader


@pytest.fixture
def reader(tmp_path):
    return MetricsReader(tmp_path / "metrics.jsonl")


def steps(reader):
    return reader.column("step").tolist()


def test_only_new_bytes_are_read(reader, tmp_path, monkeypatch):
    found = list(rows(n=6))
    assert not reader.update() and reader.n_rows == 0
    write_rows(tmp_path, found[:3])
    assert reader.update() and steps(reader) == [100, 200, 300]
    assert not reader.update()
    write_rows(tmp_path, found[3:], "a")
    parsed = []
    monkeypatch.setattr(metrics_reader, "_values_of", lambda lines: parsed.extend(lines) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reader.update()
    assert len(parsed) == 3


def test_a_line_in_writing_waits_for_its_end(reader, tmp_path):
    line = json.dumps(next(rows()))
    reader.path.write_text(line[:50])
    assert not reader.update()
    reader.path.write_text(line + "\n")
    assert reader.update() and steps(reader) == [100]


def test_a_rolled_back_run_is_read_again(reader, tmp_path):
    found = list(rows(n=6))
    write_rows(tmp_path, found)
    reader.update()
    write_rows(tmp_path, found[:2] + [row | {"val_loss": 9.0} for row in found[2:5]])
    assert reader.update() and steps(reader) == [100, 200, 300, 400, 500] and reader.column("val_loss")[2] == 9
    reader.path.unlink()
    assert reader.update() and reader.n_rows == 0


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        "{}",
        '{"step": "7"}',
        '{"step": true}',
        '{"step": null}',
        '{"step": 1e400}',
        '{"step": -3}',
        '{"step": NaN}',
        "[" * 5000,
        '{"step": 250, "x": "' + "y" * 9000 + '"}',
        "\udcff",
    ],
)
def test_broken_lines_are_counted_and_left_out(reader, tmp_path, line):
    good = [json.dumps(row) for row in rows(n=4)]
    text = "\n".join([*good[:2], line, *good[2:]]) + "\n"
    reader.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert reader.update() and steps(reader) == [100, 200, 300, 400] and reader.n_broken == 1


def test_nan_infinity_and_missing_values_are_gaps(reader, tmp_path):
    found = list(rows(n=3))
    found[1] |= {"val_loss": math.nan, "lr": math.inf, "time": None}
    del found[2]["memory_bytes"]
    found[2]["grad_norm"] = "high"
    write_rows(tmp_path, found)
    reader.update()
    for name in ("val_loss", "lr", "time"):
        assert np.isnan(reader.column(name)).tolist() == [False, True, False]
    assert np.isnan(reader.column("memory_bytes")[2]) and np.isnan(reader.column("grad_norm")[2])


@pytest.mark.parametrize("broken", ["", "not json", '{"step": 250}{"step": 251}', '{"step": true}', " "])
def test_many_rows_at_once_are_read_as_few(reader, tmp_path, monkeypatch, broken):
    """By pyarrow, or line by line if one is broken."""
    found = [json.dumps(row | {"lr": None} if i == 1 else row) for i, row in enumerate(rows(n=4))]
    reader.path.write_text("\n".join([*found[:2], *filter(None, [broken]), *found[2:]]) + "\n")
    reader.update()
    monkeypatch.setattr(metrics_reader, "_ARROW_BYTES", 100)
    quick = MetricsReader(reader.path)
    quick.update()
    for name in METRICS_COLUMNS:
        np.testing.assert_array_equal(quick.column(name), reader.column(name))
    assert quick.n_broken == reader.n_broken == bool(broken.strip())


def test_groups_hold_all_rows_however_they_arrived(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "MAX_GROUPS", 8)
    found = list(rows(n=45))
    found[20] |= {"lr": None}
    for start, end in ((0, 5), (5, 6), (6, 30), (30, 31), (31, 45)):
        write_rows(tmp_path, found[start:end], "a")
        reader.update()
    means, lows, highs = reader.column_of_groups("train_loss")
    values = reader.column("train_loss")
    assert reader.groups.size == 8 and len(means) == 6
    for i in range(6):
        part = values[8 * i : 8 * i + 8]
        assert (means[i], lows[i], highs[i]) == pytest.approx((part.mean(), part.min(), part.max()))
    rates = reader.column("lr")[16:24]
    assert reader.column_of_groups("lr")[0][2] == pytest.approx(rates[np.isfinite(rates)].mean())


def test_of_a_huge_file_the_beginning_is_read(reader, tmp_path, monkeypatch):
    write_rows(tmp_path, rows(n=50))
    monkeypatch.setattr(metrics_reader, "MAX_BYTES_READ", 4000)
    reader.update()
    assert 5 < reader.n_rows < 20 and reader.is_truncated
    assert not reader.update() and reader.is_truncated
