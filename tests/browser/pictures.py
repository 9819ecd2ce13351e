"""The pictures in docs/: the report of a run, and the playground with its best model.

python -m tests.browser.pictures RUN FOLDER
"""

import re
import sys
from pathlib import Path

from tests.browser.support import CHROMIUM_FLAGS, Opened, chromium_path
from tests.play.support import app_for
from tests.web.support import serving
from tiny_gpt.play.snapshots import Snapshots
from tiny_gpt.view.report import write_report

WIDTH, HEIGHT = 1200, 900
TIMEOUT_S = 120.0
PROMPT = "ROMEO:\n"


def main(run: str, folder: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, serving(app_for(Snapshots(Path(run), "cpu"), Path(run).name)) as address:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_FLAGS)
        report = Opened(browser, write_report(Path(run)), WIDTH, HEIGHT, False, True, {}, TIMEOUT_S)
        report.page.screenshot(path=Path(folder, "report.png"))
        notebook = f"{address}/#prompt={PROMPT}&seed=3&temperature=0.8&max_tokens=120".replace("\n", "%0A")
        play = Opened(browser, notebook, WIDTH, HEIGHT, False, True, {}, TIMEOUT_S)
        play.page.wait_for_selector("body[data-ready]")
        play.page.locator("#text").press("Tab")
        play.page.locator("#status", has_text=re.compile(r"tokens? in")).wait_for()
        play.page.screenshot(path=Path(folder, "playground.png"))
        print(*report.close(), *play.close())
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
