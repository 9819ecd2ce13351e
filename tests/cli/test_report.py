"""Every training ends with a report, also one that is stopped or fails."""

import os
import signal

import pytest

from tests.view.support import figures_of, figures_of_metrics, plant
from tiny_gpt.cli import launch
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.run.events import Evaluated
from tiny_gpt.ui import consumers


@pytest.fixture
def at_second_evaluation(monkeypatch):
    """`at_second_evaluation(do)`: what happens then, in the process that the user started."""
    monkeypatch.setattr(launch, "is_watched", lambda: False)
    deliver, seen = consumers.deliver, []

    def arm(do):
        def deliver_and_do(event, receivers):
            deliver(event, receivers)
            if isinstance(event, Evaluated):
                seen.append(event)
                if len(seen) == 2:
                    do()

        monkeypatch.setattr(consumers, "deliver", deliver_and_do)

    return arm


def fail():
    raise OutOfResourcesError("the disk is full: <b>free 2 GB</b>", code="disk-full")


@pytest.mark.parametrize(
    "do, headline, next_command",
    [
        (lambda: os.kill(os.getpid(), signal.SIGINT), "Stopped early. It can be resumed.", "tiny-gpt resume"),
        (fail, "Failed. Everything saved is intact.", "tiny-gpt resume"),
        (lambda: None, "Finished", "tiny-gpt generate"),
    ],
    ids=["stopped", "failed", "finished"],
)
def test_the_last_line_names_a_report_that_agrees_with_the_metrics(
    train, tmp_path, at_second_evaluation, do, headline, next_command
):
    at_second_evaluation(do)
    done = train(watchdog=False)
    assert done.out.splitlines()[-1] == f"Report: {tmp_path / 'report.html'}"
    page = (tmp_path / "report.html").read_text()
    assert f"<h1>{headline}" in page and next_command in page
    assert figures_of(page) == figures_of_metrics(tmp_path) and len(figures_of(page)) >= 2
    assert ("the disk is full: &lt;b&gt;free 2 GB" in page) == (do is fail)


def test_the_command_writes_it_again(command, tmp_path):
    plant(tmp_path / "night")
    done = command("tiny-gpt", "report", tmp_path / "night")
    assert done.code == 0 and done.out.strip() == str(tmp_path / "night/report.html")
    assert command("tiny-gpt", "report", tmp_path / "none").error_code == "run-not-found"
