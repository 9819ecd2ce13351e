"""Opening pages in the browser, and checking that they are accessible."""

import os
import shutil
import time
from pathlib import Path

NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PHONE = dict(width=390, height=844)


def chromium_path():
    """The browser on this machine, or the one that TINY_GPT_CHROMIUM names; None without one."""
    return os.environ.get("TINY_GPT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES_OF_CHROMIUM)), None)


class Opened:
    """A page in its own browser context, with what it reports on the console."""

    def __init__(self, browser, address, width, height, dark, javascript, options, timeout_s=10.0):
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
            **options,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * timeout_s)
        self.page.problems = self.problems = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.goto(str(address) if "://" in str(address) else Path(address).resolve().as_uri())

    def _on_console(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def close(self):
        """What the page has reported."""
        self.context.close()
        return self.problems


def wait_until(page, expression, timeout_s=15.0):
    """Wait for a JavaScript expression to be true. Playwright's own waiting evaluates text, which our pages forbid."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)


def violations(page):
    """The serious and critical accessibility violations that axe-core finds: rule, and the first elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {[node['html'][:200] for node in rule['nodes'][:3]]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
