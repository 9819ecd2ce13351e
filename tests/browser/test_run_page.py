"""The page of a run in a real browser: as a report, and live while the run continues."""

import json
import os
import time
from dataclasses import replace

import pytest

from tests.browser.support import PHONE, violations, wait_until
from tests.view.support import plant, rows, write_rows, write_sample, write_state
from tests.web.support import LOOPBACK, serving
from tiny_gpt.run.status import read_status
from tiny_gpt.view.live import live_app
from tiny_gpt.view.report import write_report
from tiny_gpt.view.text_facts import TextFacts, write_text_facts

SAMPLES = {100: "gibb erish", 900: "The cat sat", 4000: "The cat sat on the mat."}
EVIL = "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>"
LOG = ["step 900: skipped a step up to step 900: loss or gradient NaN", "step 2,000: paused: the battery is low"]


def shown(page, selector):
    return page.evaluate(
        "(s) => [...document.querySelectorAll(s)].filter((e) => e.checkVisibility()).map((e) => e.textContent)",
        selector,
    )


def wait_for_news(page, expression):
    """Have a live page ask its server at once, and wait for what it does with the answer."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_until(page, expression)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(plant(tmp_path_factory.mktemp("runs") / "night", log=LOG, samples=SAMPLES))


def test_report_of_a_finished_run(report, open_page):
    page = open_page(report)
    assert page.text_content("h1") == "Finished well." and violations(page) == []
    for axis, tick in (("tokens", "M"), ("epochs", "0"), ("late", ":")):
        page.click(f"label[for=axis-{axis}]")
        assert len(shown(page, "svg.chart")) == 6 and any(tick in text for text in shown(page, ".tick"))
        assert page.locator(f".variant[data-axis={axis}][data-size=wide]").first.is_visible()
    page.hover("#loss-figure svg >> visible=true", position={"x": 500, "y": 200})
    assert "step" in page.text_content(".readout")
    page.focus("#loss-figure")
    page.keyboard.press("ArrowLeft")
    before = page.text_content(".readout")
    page.keyboard.press("ArrowRight")
    assert page.text_content(".readout") != before


def test_events_are_read_with_pointer_and_keys(report, open_page):
    page = open_page(report)
    event = page.locator("#loss-figure .event >> visible=true").first
    box = event.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 100)
    assert LOG[0].partition(": ")[2] in page.text_content(".readout")
    page.focus("#loss-figure")
    page.keyboard.press("ArrowLeft")
    assert "bits" not in page.text_content(".readout") and "step" in page.text_content(".readout")
    page.keyboard.press("ArrowRight")
    assert LOG[0].partition(": ")[2] in page.text_content(".readout")


def test_chart_and_samples_lead_to_each_other(report, open_page):
    page = open_page(report)
    sampled = ".variant[data-axis=time][data-size=wide] .dot.sampled"
    assert page.get_attribute(sampled, "data-step") == "4000"
    page.focus("#sample-range")
    page.keyboard.press("Home")
    assert page.get_attribute(sampled, "data-step") == "100"
    dot = page.locator("#loss-figure [data-size=wide] .dot[data-step='1000'] >> visible=true").bounding_box()
    page.mouse.click(dot["x"], dot["y"])
    assert shown(page, ".sample pre") == [SAMPLES[900]] and page.get_attribute(sampled, "data-step") == "900"


@pytest.mark.parametrize("kind", ["good", "overfitted", "diverged"])
@pytest.mark.parametrize("view", [{}, PHONE], ids=["desktop", "phone"])
def test_lines_are_labeled_and_no_label_covers_another(tmp_path, open_page, kind, view):
    folder = plant(tmp_path / "night", kind=kind, state="failed" if kind == "diverged" else "finished")
    facts = TextFacts("", 500_000, 50_000, 4.83, 3.59, 3.04, 2.52, 0.0, 500_000)
    write_text_facts(folder, facts)
    page = open_page(write_report(folder), **view)
    names = shown(page, "#loss-figure .rule-label")
    assert names == ["guessing 8", "letter frequencies 4.83", "pairs of letters 3.59", "gzip 3.04", "xz 2.52",
                     "forecast 1.45"]  # fmt: skip
    overlaps = """() => {
        const labels = [...document.querySelectorAll("#loss-figure text")].filter((label) => label.checkVisibility());
        const boxes = labels.map((label) => [label.textContent, label.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
            .filter(([, q]) => p.left < q.right && q.left < p.right)
            .filter(([, q]) => p.top + 3 < q.bottom - 3 && q.top + 3 < p.bottom - 3)
            .map(([b]) => `${a} / ${b}`));
    }"""
    assert page.evaluate(overlaps) == []


def test_sample_slider(report, open_page):
    page = open_page(report)
    assert shown(page, ".sample pre") == [SAMPLES[4000]]
    page.focus("#sample-range")
    page.keyboard.press("ArrowLeft")
    assert shown(page, ".sample pre") == [SAMPLES[900]] and page.text_content("#sample-label") == "2 of 3"
    page.keyboard.press("Home")
    assert shown(page, ".sample pre") == [SAMPLES[100]]
    page.click("#play")
    wait_until(page, "document.querySelector('#sample-label').textContent === '3 of 3'")
    assert page.text_content("#play") == "Play", "it stops at the newest"


def test_swiping_on_a_phone(report, open_page):
    page = open_page(report, **PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than the screen"
    swipe = """([from, to]) => {
        const list = document.querySelector("#samples");
        const touch = (x) => new Touch({ identifier: 1, target: list, clientX: x, clientY: 50 });
        list.dispatchEvent(new TouchEvent("touchstart", { touches: [touch(from)], bubbles: true }));
        list.dispatchEvent(new TouchEvent("touchend", { changedTouches: [touch(to)], bubbles: true }));
    }"""
    page.evaluate(swipe, [100, 250])
    assert shown(page, ".sample pre") == [SAMPLES[900]]
    page.evaluate(swipe, [250, 100])
    assert shown(page, ".sample pre") == [SAMPLES[4000]]
    assert page.locator("[data-size=narrow] svg.chart").first.is_visible() and violations(page) == []


def test_themes(report, open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_page(report, dark=True)
    dark = page.evaluate(background)
    assert violations(page) == []
    page.click("#theme")
    assert page.text_content("#theme span") == "light" and page.evaluate(background) != dark
    page.click("#theme")
    assert page.text_content("#theme span") == "dark" and page.evaluate(background) == dark


def test_report_without_javascript(report, open_page):
    page = open_page(report, javascript=False)
    assert page.is_visible("h1") and page.is_visible("table.plan") and not page.is_visible("#play")
    assert shown(page, ".sample pre") == list(SAMPLES.values())
    page.click("label[for=axis-tokens]")
    assert page.locator(".variant[data-axis=tokens][data-size=wide]").first.is_visible()


@pytest.mark.parametrize(("size", "view"), [("wide", {}), ("narrow", PHONE)], ids=["desktop", "phone"])
def test_live_page_grows_with_the_run(tmp_path, open_page, size, view):
    folder = plant(tmp_path / "night", state="training", until=0.5, n=20, samples={100: "gibb erish"})
    status = read_status(folder / "status.json")
    with serving(live_app(folder, LOOPBACK)) as url:
        page = open_page(url, **view)
        assert page.text_content("h1") == "Learning normally." and violations(page) == []
        assert len(shown(page, ".dot.val")) == 21, "20 evaluations and the legend's"
        page.click("#figures summary")
        page.evaluate("window.isTheSamePage = true")

        write_rows(folder, list(rows(n=22, until=0.55))[20:], "a")
        write_sample(folder, 2200, "The cat sat")
        wait_for_news(page, f"document.querySelectorAll('#loss-figure [data-size={size}] .dot.val').length === 22")
        wait_for_news(page, "document.querySelector('.sample.shown pre').textContent === 'The cat sat'")
        assert page.is_visible("#figures table"), "what the reader has opened stays open"
        page.click("label[for=axis-tokens]")
        page.wait_for_selector(f".variant[data-axis=tokens][data-size={size}] svg.chart")

        # The training is killed; later it is resumed from its checkpoint, some evaluations earlier.
        write_state(folder, status, process_id=2**22 - 3)
        wait_for_news(page, "document.querySelector('h1').textContent.includes('gone')")
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        write_rows(folder, found[:18])
        write_state(folder, replace(status, process_id=os.getpid()), updated=time.time())
        wait_for_news(page, "document.querySelector('h1').textContent === 'Learning normally.'")
        wait_for_news(page, f"document.querySelectorAll('[data-axis=tokens][data-size={size}] .dot.val').length === 18")
        write_state(folder, status, state="finished", left_s=None)
        wait_for_news(page, "document.querySelector('h1').textContent.startsWith('Finished')")
        assert page.evaluate("window.isTheSamePage"), "it was never loaded anew"
        page.close()


def test_live_page_of_a_run_that_is_being_prepared(tmp_path, open_page):
    with serving(live_app(tmp_path / "night", LOOPBACK)) as url:
        page = open_page(url)
        assert page.text_content("h1").startswith("Preparing") and not page.is_visible(".slider")
        plant(tmp_path / "night", state="training", until=0.1, n=2, samples={100: "gibb erish"})
        wait_for_news(page, "document.querySelector('.sample.shown pre')?.textContent === 'gibb erish'")
        assert page.is_visible(".slider") and violations(page) == []
        page.close()


def test_live_page_survives_its_server(tmp_path, open_page):
    folder = plant(tmp_path / "night", state="training", until=0.5, n=20)
    with serving(live_app(folder, LOOPBACK)) as url:
        page = open_page(url)
        page.route("**/state?*", lambda route: route.abort())
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        wait_for_news(page, "!document.querySelector('#connection').hidden")
        assert "does not answer" in page.text_content("#connection") and page.is_visible("#loss-figure svg.chart")
        page.unroute("**/state?*")
        page.reload()
        assert page.text_content("h1") == "Learning normally." and not page.is_visible("#connection")
        page.close()
        page.problems.clear()  # the requests that failed


def test_content_of_the_run_is_never_code(tmp_path, open_page):
    folder = plant(tmp_path / "night", log=[f"step 9: {EVIL}"], samples={100: EVIL}, config={"data": [EVIL]})
    page = open_page(write_report(folder))
    assert EVIL in page.text_content(".sample pre") and "broken into" not in page.title()
    with serving(live_app(folder, LOOPBACK)) as url:
        page = open_page(url)
        write_sample(folder, 200, EVIL)
        page.wait_for_selector("[data-part='sample-200']", state="attached")
        assert "broken into" not in page.title() and page.locator("#samples img").count() == 0
        page.close()
