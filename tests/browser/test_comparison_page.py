"""The comparison of runs in a real browser."""

import pytest

from tests.browser.support import PHONE, violations
from tests.view.support import plant
from tiny_gpt.cli.main import main


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [plant(folder / "night"), plant(folder / "<i>other", "overfitted")]
    assert main(["runs", "compare", *map(str, runs), "--html", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.mark.parametrize("view", [dict(dark=True), PHONE], ids=["dark", "phone"])
def test_comparison_is_read_with_pointer_keys_and_reader(comparison, open_page, view):
    page = open_page(comparison, **view)
    assert violations(page) == []
    assert page.locator("svg.chart >> visible=true").count() == 1
    assert page.locator(".legend li").all_text_contents()[1].strip() == "<i>other"
    page.focus("#loss-figure")
    page.keyboard.press("ArrowRight")
    assert " · " in page.text_content(".readout")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
