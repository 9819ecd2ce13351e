"""The playground driven in a real browser: writing, surprise, sliders, the night, copied passages, the inside."""

import json
import re

import numpy as np
import pytest

import tiny_gpt
from tests.browser.support import PHONE, violations
from tests.play.support import InSmallChunks, app_for, train_run
from tests.run.support import FRENCH
from tests.web.support import serving
from tiny_gpt.config import SampleConfig
from tiny_gpt.inference.sampling import probabilities
from tiny_gpt.play.next_token import summarize_logits
from tiny_gpt.play.snapshots import Snapshots

LINE = FRENCH.splitlines()[0]
SETTINGS = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for temperature, top_k, top_p, min_p in [
        (1.0, 0, 1.0, 0.0),
        (0.8, 0, 0.9, 0.0),
        (0.3, 40, 0.95, 0.0),
        (1.7, 5, 1.0, 0.1),
        (1.2, 100, 0.5, 0.02),
        (2.0, 0, 0.3, 0.05),
    ]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def url(folder):
    """The playground of a run whose text has characters of two tokens; what is written arrives in pieces."""
    with serving(InSmallChunks(app_for(Snapshots(folder, "cpu")))) as address:
        yield address


@pytest.fixture
def expect():
    from playwright.sync_api import expect

    return expect


@pytest.fixture
def open_notebook(url, open_page):
    def open_with(prompt="", **options):
        fragment = f"/#prompt={prompt}&seed=3&temperature=0.9&max_tokens=40" if prompt else "/"
        page = open_page(url + fragment, **options)
        page.wait_for_selector("body[data-ready]")
        return page

    return open_with


def write_on(page):
    """Press Tab in the text and wait until the model has finished."""
    page.locator("#text").press("Tab")
    page.locator("#status", has_text=re.compile(r"tokens? in")).wait_for()


def shown_text(page):
    return page.locator("#text").input_value()


def generated(folder, prompt, **settings):
    """What `tiny_gpt.load` writes; the page does not show a character that is not complete at its end."""
    settings = {"seed": 3, "temperature": 0.9, "max_tokens": 40} | settings
    return tiny_gpt.load(folder, device="cpu").generate(prompt, **settings).rstrip("\ufffd")


def test_tab_writes_what_generate_writes_though_chunks_split_characters(open_notebook, folder):
    page = open_notebook("là-bas")
    write_on(page)
    assert shown_text(page) == "là-bas" + generated(folder, "là-bas")
    page.keyboard.press("Control+z")
    assert shown_text(page) == "là-bas"
    page.keyboard.press("Control+Shift+z")
    assert shown_text(page) == "là-bas" + generated(folder, "là-bas")


def test_lines_survive_every_split(open_notebook):
    """The page's reader, given the same bytes in chunks of 1 to 9."""
    page = open_notebook()
    found = page.evaluate("""async () => {
        const { lines } = await import("/play/static/api.js");
        const text = '{"a": "é😀"}\\n{"b": 2}\\n{"c": "ü"}';
        const bytes = new TextEncoder().encode(text);
        const results = [];
        for (let size = 1; size <= 9; size++) {
            const chunks = [];
            for (let i = 0; i < bytes.length; i += size) chunks.push(bytes.slice(i, i + size));
            const stream = new ReadableStream({ pull(c) { chunks.length ? c.enqueue(chunks.shift()) : c.close(); } });
            const read = [];
            for await (const line of lines(stream)) read.push(JSON.parse(line));
            results.push(JSON.stringify(read));
        }
        return results;
    }""")
    assert set(found) == {json.dumps([{"a": "é😀"}, {"b": 2}, {"c": "ü"}], ensure_ascii=False, separators=(",", ":"))}


def test_stop_keeps_what_is_written(open_notebook, expect):
    page = open_notebook("l'été")
    page.fill("#max_tokens", "2000")
    page.locator("#text").press("Tab")
    expect(page.locator("#text")).not_to_have_value("l'été")
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped").wait_for()
    assert 5 < len(shown_text(page)) < 2000
    expect(page.locator("#continue")).to_be_visible()


def test_alternatives_stand_side_by_side_and_one_is_kept(open_notebook, folder, expect):
    page = open_notebook("un élève")
    page.select_option("#n", "3")
    write_on(page)
    expect(page.locator(".alternative")).to_have_count(3)
    tops = [page.locator(".alternative").nth(i).bounding_box()["y"] for i in range(3)]
    assert len(set(tops)) == 1
    page.keyboard.press("Alt+2")
    assert shown_text(page) == "un élève" + generated(folder, "un élève", seed=4)
    expect(page.locator(".alternative")).to_have_count(0)


def test_text_stays_in_the_browser_and_is_saved_and_shared(open_notebook, expect):
    page = open_notebook()
    page.fill("#text", "à tout le reste")
    page.locator("#mirror .token").nth(1).wait_for()
    page.fill("#seed", "17")
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.path().read_text(encoding="utf-8") == "à tout le reste"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#share")
    page.locator("#status", has_text="Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    page.goto(page.url.partition("#")[0] + "?again")
    page.wait_for_selector("body[data-ready]")
    assert shown_text(page) == "à tout le reste"
    page.fill("#text", "")
    other = page.context.new_page()
    other.goto(link)
    other.wait_for_selector("body[data-ready]")
    assert shown_text(other) == "à tout le reste" and other.input_value("#seed") == "17"
    expect(other.locator("#new_seed")).not_to_be_checked()


def test_tokens_are_colored_by_surprise_and_branch(open_notebook, expect):
    page = open_notebook("xqz")
    write_on(page)
    spans = page.locator("#mirror .token")
    expect(spans).to_have_count(43)
    assert "s5" in spans.nth(1).get_attribute("class")  # q after x
    page.evaluate("document.getElementById('text').setSelectionRange(1, 1)")
    expect(page.locator("#mirror .selected")).to_have_count(1)
    expect(page.locator("#next-where")).to_contain_text("Instead, after")  # not those after the end of the text
    choices = page.locator("#bars button")
    assert choices.count() in (10, 11)
    before = shown_text(page)
    ids = page.locator("#bars button").evaluate_all("all => all.map(each => Number(each.dataset.id))")
    chosen = next(each for each in ids if 32 <= each < 127 and each != ord("q"))
    page.locator("#text").press("Alt+ArrowDown")
    expect(choices.first).to_be_focused()
    for _ in range(ids.index(chosen)):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#status", has_text=re.compile("tokens? in")).wait_for()
    assert shown_text(page).startswith("x" + chr(chosen)) and len(shown_text(page)) > 20
    page.locator("#text").focus()
    page.keyboard.press("Control+z")
    assert shown_text(page) == before


def test_sliders_redraw_at_once_without_a_request(open_notebook, expect):
    page = open_notebook("le")
    first = page.locator("#bars button").first
    expect(first).to_be_visible()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    before = float(first.get_attribute("data-probability"))
    page.locator("#temperature").fill("0.2")
    after = float(first.get_attribute("data-probability"))
    page.locator("#top_k").fill("1")
    assert before < after < float(first.get_attribute("data-probability")) == 1
    assert page.locator("#bars button.out").count() == 9
    assert requests == []


@pytest.mark.parametrize("vocab_size", [256, 5000])
def test_the_distribution_is_what_generate_draws_from(open_notebook, vocab_size):
    logits_V = (3 * np.random.default_rng(1).standard_normal(vocab_size)).astype(np.float32)
    page = open_notebook()
    found = page.evaluate(
        """async ({ summary, all }) => {
            const { distribution } = await import("/play/static/sampling.js");
            return all.map((settings) => {
                const { probabilities, others, allowed } = distribution(summary, settings);
                return { probabilities: [...probabilities], others, allowed };
            });
        }""",
        {"summary": summarize_logits(logits_V), "all": SETTINGS},
    )
    order = np.argsort(-logits_V, kind="stable")
    # Below the likeliest 256 tokens the page knows a histogram only.
    tolerance = 1e-9 if vocab_size == 256 else 2e-3
    for settings, page_has in zip(SETTINGS, found, strict=True):
        expected = probabilities(logits_V, SampleConfig(**settings))
        expected = (expected / expected.sum())[order]
        differences = np.abs(np.array(page_has["probabilities"]) - expected[:256])
        # There, the last token that top-p keeps may be another one.
        assert (differences > tolerance).sum() <= (vocab_size > 256), settings
        assert page_has["others"] == pytest.approx(expected[256:].sum(), abs=tolerance)
        n_allowed = int((expected > 0).sum())
        assert page_has["allowed"] == pytest.approx(n_allowed, rel=0.05 if n_allowed > 256 else 0, abs=vocab_size > 256)


def test_the_night_slider_writes_each_models_text(open_notebook, folder, expect):
    page = open_notebook("là-bas")
    page.click("#tab-night")
    snapshots = Snapshots(folder, "cpu")
    first, last = snapshots.list()[0], snapshots.list()[-1]
    text = page.locator("#night-text")
    expect(page.locator("#night-label")).to_contain_text(f"Step {last.step}")
    expect(text).to_have_text("là-bas" + generated(folder, "là-bas"))
    page.locator("#night").focus()
    page.keyboard.press("Home")
    expect(page.locator("#night-label")).to_contain_text(f"Step {first.step}")
    loaded = snapshots.open(first.key).loaded
    expected = tiny_gpt.Model(loaded).generate("là-bas", seed=3, temperature=0.9, max_tokens=40)
    expect(text).to_have_text("là-bas" + expected.rstrip("\ufffd"))
    page.check("#night-use")
    expect(page.locator("#model")).to_contain_text(f"Step {first.step}")


def test_a_pasted_text_gets_its_figure_and_copies_are_underlined(open_notebook, folder, expect):
    page = open_notebook()
    page.click("#tab-check")
    pasted = f"Zwölf Boxkämpfer.\n{LINE}\n<script>alert(1)</script>"
    page.fill("#check-text", pasted)
    page.click("#check")
    figure = tiny_gpt.load(folder, device="cpu").bits_per_byte(pasted)
    expect(page.locator("#check-figure")).to_have_text(f"{figure:.3f} bits per byte")
    underlined = "".join(page.locator("#check-result .copy").all_text_contents())
    assert underlined.strip(".\n") == LINE.strip(".")
    assert "".join(page.locator("#check-result .token").all_text_contents()) == pasted
    expect(page.locator("#check-copied li")).to_contain_text(["of the training text"])


def test_inside_shows_attention_and_guesses(open_notebook, expect):
    page = open_notebook("là-bas, l'été")
    page.click("#tab-inside")
    page.click("#inside-look")
    expect(page.locator("#inside-heads .head")).to_have_count(2)
    expect(page.locator("#inside-tokens .look")).to_have_count(len("là-bas, l'été".encode()))
    expect(page.locator("#inside-lens li")).to_have_count(3)
    page.locator("#inside-tokens .look").nth(3).click()
    expect(page.locator("#inside-where")).to_contain_text("looks most at")
    weights = page.locator("#inside-tokens .look").evaluate_all(
        "all => all.map(each => Number(each.style.getPropertyValue('--weight')) ** 2)"
    )
    assert sum(weights) == pytest.approx(1, abs=0.05) and not any(weights[4:])
    page.select_option("#inside-layer", "1")
    expect(page.locator("#inside-note")).not_to_have_text("Looking…")


@pytest.mark.parametrize(
    "look",
    [dict(), dict(dark=True), dict(**PHONE), dict(**PHONE, dark=True)],
    ids=["wide", "wide-dark", "phone", "phone-dark"],
)
def test_pages_are_accessible_and_fit(open_notebook, look):
    page = open_notebook("l'été", **look)
    write_on(page)
    page.locator("#bars button").first.wait_for()
    for name in ("next", "night", "check", "inside"):
        page.click(f"#tab-{name}")
        if name == "inside":
            page.click("#inside-look")
            page.locator("#inside-lens li").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        if name in ("next", "inside"):
            assert violations(page) == []
