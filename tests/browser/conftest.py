"""Pages in a real browser: Debian's Chromium, driven by Playwright. Without one, these tests are skipped."""

import pytest

from tests.browser.support import CHROMIUM_FLAGS, NAMES_OF_CHROMIUM, Opened, chromium_path


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests. TINY_GPT_CHROMIUM names another one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium_path()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES_OF_CHROMIUM)} is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """`open_page(address, width=1440, dark=False, ...)` -> Playwright's Page, with nothing on its console afterwards.

    An address without a scheme is a file. A test that expects messages on the console empties `page.problems` before it
    ends.
    """
    opened: list[Opened] = []

    def open_address(address, width=1440, height=900, dark=False, javascript=True, **options):
        opened.append(Opened(browser, address, width, height, dark, javascript, options))
        return opened[-1].page

    yield open_address
    problems = [problem for each in opened for problem in each.close()]
    assert not problems, problems
