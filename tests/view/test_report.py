"""report.html: one file that shows what the run's files say, and nothing else."""

import html
import json
import os
import re
import time
from types import SimpleNamespace

import pytest

from tests.view.support import figures_of, figures_of_metrics, plant, rows, stamp, write_rows, write_sample
from tiny_gpt.config import REPORT_FILE
from tiny_gpt.view.report import write_report
from tiny_gpt.view.run_charts import smoothed
from tiny_gpt.view.run_folder import RunFolder, find_previous

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&{{7*7}}'


def page_of(folder):
    path = write_report(folder)
    assert path == folder / REPORT_FILE
    return path.read_text(encoding="utf-8")


def test_every_figure_is_that_of_metrics_jsonl(tmp_path):
    folder = plant(tmp_path / "night")
    page = page_of(folder)
    expected = figures_of_metrics(folder)
    assert figures_of(page) == expected and len(expected) == 40
    best = min(float(row[2]) for row in expected)
    assert f"Best {best:.3f} bits per byte" in page and f">best {best:.3f}</text>" in page


def test_it_needs_nothing_beside_itself_and_is_small(tmp_path):
    folder = plant(tmp_path / "night", n=2000, samples=dict.fromkeys(range(100, 10000, 100), "The text " * 60))
    page = page_of(folder)
    assert len(page) < 600_000
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:,)""", page) and not re.search("https?:", page)
    assert "@import" not in page and not re.findall(r"url\((?!#)", page)


def test_stages_are_named_in_the_chart_where_there_is_room(tmp_path):
    folder = plant(tmp_path / "night", seconds=900)
    names = ("teacher 1 of 2: from random weights", "teacher 2 of 2: from random weights", "student: learns")
    lines = [f"{stamp(-t)}  step 1: {name}" for t, name in zip((900, 500, 10), names, strict=True)]
    (folder / "train.log").write_text("\n".join(lines))
    page = page_of(folder)
    labels = set(re.findall(r'class="shade-label"[^>]*>(.*?)<', page))
    assert labels == {"teacher 1", "teacher 2"} and "<title>student</title>" in page


def test_all_rows_count_in_the_smoothed_line(tmp_path):
    folder = plant(tmp_path / "night", n=1500)
    view = RunFolder(folder).view()
    write_rows(
        folder,
        (row | {"train_loss": row["train_loss"] * 2} if i % 50 == 7 else row for i, row in enumerate(rows(n=1500))),
    )
    changed = RunFolder(folder).view()
    assert smoothed(changed.train).mean() == pytest.approx(1.02 * smoothed(view.train).mean(), rel=0.01)


@pytest.mark.parametrize("state", ["training", "finished", "stopped", "failed", None])
@pytest.mark.parametrize("n", [0, 1, 2, 40])
@pytest.mark.parametrize("seconds", [0.2, 900.0])
def test_runs_of_every_state_and_length(tmp_path, state, n, seconds):
    plan = None if n == 2 else plant.__defaults__[2]
    folder = plant(tmp_path / "night", n=n, state=state, plan=plan, seconds=seconds)
    if n == 0:
        (folder / "metrics.jsonl").unlink()
    page = page_of(folder)
    assert "<h1>" in page and page.rstrip().endswith("</html>")


def test_content_of_the_files_is_text_never_code(tmp_path):
    log = [f"step 100: skipped a step {EVIL}", f"step 200: {EVIL}"]
    folder = plant(tmp_path / "night", log=log, samples={100: EVIL}, config={"data": [EVIL], "architecture": EVIL})
    status = json.loads((folder / "status.json").read_text())
    status |= {
        "state": "failed",
        "error": EVIL,
        "error_code": EVIL,
        "facts": status["facts"] | {"device": EVIL, "x": EVIL},
    }
    (folder / "status.json").write_text(json.dumps(status))
    page = page_of(folder.rename(tmp_path / "<b onclick=x>&"))
    assert EVIL not in page and "<img" not in page and "<b onclick" not in page and page.count("<script") == 1
    assert html.escape(EVIL, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


@pytest.mark.parametrize(
    "name", ["config.json", "plan.json", "status.json", "metrics.jsonl", "train.log", "samples/index.jsonl"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 20_000, b"\xff\xfe\x00", b"null\n", b'{"forecast": 3}\n', b'{"step": "\\u0000"}\n']
)
def test_damaged_files_cost_only_what_they_hold(tmp_path, name, content):
    folder = plant(tmp_path / "night", samples={100: "The"})
    (folder / name).write_bytes(content)
    assert "<h1>" in page_of(folder)


def test_huge_numbers_and_samples(tmp_path):
    folder = plant(tmp_path / "night", samples={100: "x" * 300_000, 200: "The"})
    status = json.loads((folder / "status.json").read_text())
    status["facts"] |= {"train_tokens": 10**400, "n_parameters": -5, "scored_tokens": 1e300}
    (folder / "status.json").write_text(json.dumps(status | {"left_s": 1e300, "tokens_per_s": 1e-300, "step": 10**30}))
    values = {"n_parameters": 10**400, "step_s": float("nan"), "memory_bytes": -1}
    (folder / "plan.json").write_text(json.dumps(json.loads((folder / "plan.json").read_text()) | values))
    write_sample(folder, 10**14, "far away")
    write_rows(
        folder, (row | {"time": 1e17, "lr": -1e17, "tokens_per_s": 1e17, "elapsed_s": 1e16} for row in rows(n=3))
    )
    page = page_of(folder)
    assert "far away" in page and "x" * 70_000 not in page


def test_metrics_of_a_gigabyte(tmp_path):
    folder = plant(tmp_path / "night")
    os.truncate(folder / "metrics.jsonl", 1 << 30)  # zeros, which take no room on the disk
    start = time.process_time()
    page = page_of(folder)
    assert time.process_time() - start < 10
    assert "metrics.jsonl is larger than 80 MB; only its first 40 rows are shown." in page and "Finished well." in page


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("2026-01-01 00:00:00  step 1: secret words\n")
    folder = plant(tmp_path / "night", samples={100: "The"})
    for name in ("train.log", "samples/step-00000100.txt", "config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    assert "secret words" not in page_of(folder)


def test_links_beside_the_run_that_lead_nowhere_cost_nothing(tmp_path):
    """The run's neighbors are looked through for an earlier run on the same text."""
    folder = plant(tmp_path / "night")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("nothing")
    (tmp_path / "again").symlink_to("night")
    assert find_previous(folder, SimpleNamespace(data={"text_sha256": "x"})) is None
