"""A night in small: a training with `--watch`, two kills, and a page that stays open through all of it.

    python -m tests.browser.night TEXT_FILE 10m FOLDER

The training process is killed first, which its watchdog restarts; then the watchdog with it, after which the user
resumes the run. Meanwhile the page must never be loaded anew and must agree with the files; at the end every figure of
the report must be that of metrics.jsonl.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.browser.support import CHROMIUM_FLAGS, Opened, chromium_path
from tests.view.support import figures_of, figures_of_metrics
from tiny_gpt.duration import parse_duration
from tiny_gpt.run.status import read_status

SMALL = ["--n-layer", "1", "--n-head", "2", "--d-model", "32", "--block-size", "64", "--batch-size", "8",
         "--backend", "eager", "--tokenizer", "char", "--checkpoint-minutes", "0.05"]  # fmt: skip
# When the two kills come, as fractions of the time.
KILLED_AT = 0.3, 0.6
PATIENCE_S = 120.0


class Night:
    """The training's processes, the page, and what was wrong."""

    def __init__(self, text: Path, budget: str, folder: Path, browser) -> None:
        self.run, self.output, self.browser = folder / "night", folder / "output.txt", browser
        self.budget_s = parse_duration(budget)
        self.problems: list[str] = []
        self.n_looks = 0
        command = ["train", str(text), "--for", budget, "--watch", "--out-dir", str(self.run), *SMALL]
        self.training = self._start(command)
        self.page = Opened(browser, self._url(), 1440, 900, False, True, {}, PATIENCE_S)
        self.page.page.evaluate("window.isTheSamePage = true")

    def _start(self, arguments: list[str]) -> subprocess.Popen:
        quiet = os.environ | {"BROWSER": "", "SSH_TTY": "none"}  # a screen is not near
        with open(self.output, "a") as output:
            return subprocess.Popen([sys.executable, "-m", "tiny_gpt", *arguments], stdout=output, stderr=output,
                                    stdin=subprocess.DEVNULL, env=quiet)  # fmt: skip

    def _url(self) -> str:
        self.wait(lambda: "Watch night: " in self.output.read_text(), "the page's address")
        return re.search(r"Watch night: (\S+)", self.output.read_text())[1]

    def wait(self, condition, what: str) -> None:
        """Wait for `condition`; a problem if it does not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                self.problems.append(f"not within {PATIENCE_S:.0f} s: {what}; the page says {self.headline()!r}")
                return
            time.sleep(0.2)

    def headline(self) -> str:
        return self.page.page.text_content("h1") if hasattr(self, "page") else ""

    def status(self):
        return read_status(self.run / "status.json")

    def until(self, fraction: float) -> None:
        """Look at the page every few seconds until this fraction of the time is over."""
        while (status := self.status()) is None or (status.state == "training" and status.progress < fraction):
            self.look()
            time.sleep(3)

    def look(self) -> None:
        """The page's table must become that of the files, within the time of some polls."""
        expected, shown = [], []
        for _ in range(20):
            expected = figures_of_metrics(self.run)
            shown = figures_of(self.page.page.inner_html("[data-part=words]")) if expected else []
            if shown == expected:
                self.n_looks += bool(expected)
                return
            time.sleep(0.5)
        self.problems.append(f"the page shows {shown[-3:]}, the files have {expected[-3:]}")

    def kill_training(self) -> None:
        """The watchdog restarts the training, and the page says that."""
        before = self.status()
        os.kill(before.process_id, signal.SIGKILL)
        self.wait(lambda: self.status().process_id != before.process_id, "a new training process")
        self.wait(lambda: "Learning" in self.headline(), "a page that shows the restarted training")
        happened = "[data-part=events]"
        self.wait(lambda: "restarted" in self.page.page.text_content(happened), "the restart among the events")

    def kill_all_and_resume(self) -> None:
        """Nobody restarts it: the page says how to go on, and goes on itself when the user resumes."""
        status = self.status()
        os.kill(self.training.pid, signal.SIGKILL)
        os.kill(status.process_id, signal.SIGKILL)
        self.training.wait()
        self.wait(lambda: "gone" in self.headline(), "a page that says that the process is gone")
        commands = self.page.page.text_content("[data-part=next]")
        if "tiny-gpt resume night" not in commands:
            self.problems.append(f"the page does not say how to resume: {commands!r}")
        self.training = self._start(["resume", str(self.run)])
        self.wait(lambda: self.status().process_id != status.process_id, "a resumed training process")
        self.wait(lambda: "Learning" in self.headline(), "a page that shows the resumed training")

    def end(self) -> None:
        """The page and the report show the end, and the same figures as the file."""
        if code := self.training.wait(self.budget_s + PATIENCE_S):
            self.problems.append(f"the training ended with exit code {code}")
        self.wait(lambda: self.headline().startswith("Finished"), "a page that shows the end")
        self.look()
        if not self.page.page.evaluate("window.isTheSamePage"):
            self.problems.append("the page was loaded anew")
        report = (self.run / "report.html").read_text(encoding="utf-8")
        last = self.output.read_text().splitlines()[-1]
        if "report.html" not in last:
            self.problems.append(f"the last line does not name the report: {last!r}")
        if figures_of(report) != figures_of_metrics(self.run):
            self.problems.append("the report's figures are not those of metrics.jsonl")
        best = min(row[2] for row in figures_of_metrics(self.run))
        for shown in (f"Best {best} bits per byte", f">best {best}</text>", f"<dd>{best}<small>"):
            if shown not in report:
                self.problems.append(f"the report lacks {shown!r}")
        self.problems += self.page.close()


def small_night(text: Path, budget: str, folder: Path, browser) -> Night:
    """The whole of it; its `problems` should be empty."""
    night = Night(text, budget, folder, browser)
    try:
        night.until(KILLED_AT[0])
        night.kill_training()
        night.until(KILLED_AT[1])
        night.kill_all_and_resume()
        night.until(1.0)
        night.end()
    finally:
        night.training.kill()
    return night


def main(text: str, budget: str, folder: str) -> int:
    """Print what was wrong, or how often the page was found right."""
    from playwright.sync_api import sync_playwright

    Path(folder).mkdir(parents=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_FLAGS)
        night = small_night(Path(text), budget, Path(folder), browser)
        browser.close()
    rows = (night.run / "metrics.jsonl").read_text().splitlines()
    print(json.dumps({"evaluations": len(rows), "looks": night.n_looks, "problems": night.problems}, indent=1))
    return int(bool(night.problems))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
