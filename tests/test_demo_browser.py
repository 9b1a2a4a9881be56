r"""The demo in a browser: every tab in both languages, on a desktop and on a phone, by day and by night."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import numpy as np
import pytest
import space_server
from PIL import Image
from tiny import generator, quiet
from vlb_demo.texts import WORDS

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images

if space_server.CHROMIUM is None:
    pytest.skip(
        "no chromium here (Debian's package is `chromium`): the demo is not tried in a browser", allow_module_level=True
    )

TABS = ("score", "gaussian", "forward", "reverse", "bound", "rates", "choose")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DIGIT = space_server.SPACE / "examples" / "pictures" / "digit-3.png"


@pytest.fixture(scope="module")
def address(space):
    return space[0]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=space_server.CHROMIUM, args=space_server.CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(
    params=[("en-GB", DESKTOP, "light"), ("ja-JP", DESKTOP, "dark"), ("en-GB", PHONE, "dark"), ("ja-JP", PHONE, "light")],
    ids=lambda p: f"{p[0][:2]}-{'phone' if p[1] is PHONE else 'desktop'}-{p[2]}",
)
def any_page(request, browser, address):
    yield from open_page_anew(browser, address, *request.param)


@pytest.fixture(scope="module")
def at_a_desk(browser):
    r"""Whoever comes again has the page's scripts already."""
    with browser.new_context(locale="en-GB", viewport=DESKTOP, color_scheme="light") as context:
        yield context


@pytest.fixture
def page(at_a_desk, address):
    yield from open_page(at_a_desk, address, "en-GB")


def open_page_anew(browser, address, language, size, scheme):
    r"""Of somebody who has never been here."""
    with browser.new_context(locale=language, viewport=size, color_scheme=scheme, has_touch=size is PHONE) as context:
        yield from open_page(context, address, language)


def open_page(context, address, language):
    r"""A visitor's page; at the end, that nothing went wrong in it and that it asked for nothing from elsewhere."""
    page = context.new_page()
    page.problems, page.hosts, page.language = [], set(), language[:2]
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("response", lambda answer: page.problems.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("request", lambda asked: page.hosts.add(urlsplit(asked.url).netloc))
    page.goto(address)
    page.wait_for_selector("#score-picture svg")
    yield page
    page.close()
    assert page.problems == []
    assert page.hosts - {""} == {urlsplit(address).netloc}  # "" is data: and blob:


def open_tab(page, name):
    r"""By its button, or, where there is no room for it, from the menu of further tabs."""
    words = WORDS[page.language]["page"][name]
    button = page.locator(f"#tab-{name}-button")
    if not (button.count() and button.is_visible()):
        page.locator(".overflow-menu > button").first.click()
        button = page.locator(".overflow-dropdown button", has_text=words).first
    assert button.text_content().strip() == words
    button.click()
    page.wait_for_selector(f"#{name}-picture", state="visible")


def numbers(page, name):
    r"""What the tab's table says, by row."""
    rows = page.locator(f"#{name}-picture tr")
    texts = [(row.locator("th").inner_text(), row.locator("td").inner_text()) for row in rows.all()]
    return {" ".join(key.split()): value for key, value in texts}


def run(page, name):
    r"""Press the button, and wait until the work begun is done."""
    content = f"#{name}-picture .prose > *"
    page.evaluate("content => document.querySelectorAll(content).forEach(part => part.dataset.old = 1)", content)
    page.locator(f"#{name}-run").click()
    page.wait_for_selector(f"#{name}-picture [data-old]", state="detached", timeout=60_000)
    page.wait_for_selector(f"#{name}-picture progress", state="detached", timeout=60_000)


def move(page, element, value):
    r"""Set a slider by its number."""
    box = page.locator(f"{element} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def test_every_tab_is_there_and_fits(any_page, request):
    page = any_page
    folder = request.config.getoption("--screenshots")
    said, other = (WORDS[language]["page"] for language in ((page.language, "ja") if page.language == "en" else ("ja", "en")))
    assert page.evaluate("document.documentElement.lang") == page.language
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(100)
        panel = page.locator(f"#tab-{name}")
        text = panel.inner_text()
        assert said["code"] in text and said["numbers"] in text and "__i18n__" not in text and "[object" not in text
        assert other["numbers"] not in text and "vlb_" not in text
        # In every picture something is to be seen, and small images are not smoothed.
        pictures = panel.locator(".vlb-picture img")
        for picture in pictures.all():
            width = picture.evaluate("image => image.complete && image.naturalWidth")
            assert width and picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        assert pictures.count() or panel.locator(".vlb-plot svg").count()
        # The other language's sentences are there, and are not seen.
        hidden = panel.locator(f"#{name}-picture [lang={'en' if page.language == 'ja' else 'ja'}]")
        assert hidden.evaluate_all("all => !all.some(one => one.checkVisibility())")
        # Nothing reaches over the edge.
        assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth"), name
        # No tab is hidden in a menu, no equation cut off, no plot lettered in another language.
        assert not page.locator(".overflow-menu > button").first.is_visible()
        widths = "all => all.map(one => [one.scrollWidth, one.clientWidth])"
        assert all(whole <= seen for whole, seen in panel.locator(".katex-display").evaluate_all(widths)), name
        letterings = panel.locator(f".vlb-plot tspan[lang={page.language}]")
        assert letterings.count() or not panel.locator(".vlb-plot").count()
        assert letterings.evaluate_all("all => all.every(one => one.checkVisibility())")
        if name != "choose":
            assert panel.locator(".katex").count()
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            node = request.node.callspec.id
            page.screenshot(path=Path(folder) / f"demo-{name}-{node}.png", full_page=True)
        if name == "bound":
            panel.get_by_text(said["code"], exact=True).click()
            page.wait_for_function("document.querySelector('#bound-code')?.innerText.includes('evaluate_nll')")


def test_sliders_move_the_pictures(page):
    open_tab(page, "gaussian")
    assert numbers(page, "gaussian")["negative log-likelihood (NLL)"] == "138.037"
    box = page.get_by_label(WORDS["en"]["page"]["points"])
    box.fill("0.5")
    page.wait_for_function("document.getElementById('gaussian-picture').innerText.includes('17.3287')")  # 25 ln 2
    box.fill("x")
    page.get_by_text("must be 1 to 100 positive numbers").wait_for()
    page.problems.clear()  # the refusal, which Gradio writes to the console too

    open_tab(page, "forward")
    process = VLBDDPMPipeline.from_pretrained(space_server.SPACE / "checkpoints" / "ddpm-vlb-digits").scheduler
    for t in (0, 500, 999):
        move(page, "#forward-t", t)
        expected = f"{process.forward_process().alphas_cumprod[t].item():.6g}"
        page.wait_for_function(f"document.getElementById('forward-picture').innerText.includes('{expected}')")


def test_the_page_opens_on_a_score(page):
    r"""A picture, where it stands in large, and what the three parts are, before anything is pressed."""
    headline = page.locator("#score-picture .vlb-headline")
    assert re.fullmatch(r"Likelier than \d+ % of held-out images", headline.inner_text())
    heights = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert headline.evaluate_all(heights)[0] > 1.5 * page.locator("#score-picture .vlb-small").evaluate_all(heights)[0]
    for place in ("#sign", "#score-picture"):
        assert page.locator(f"{place} .vlb-parts li i").count() == page.locator(f"{place} .vlb-bar i").count() == 3
    shown = numbers(page, "score")
    bar = page.locator("#score-picture .vlb-bar").get_attribute("aria-label")
    assert f"L_0 {float(shown['L_0 decoder']):.3f}" in bar
    # And as a file, beside what others take.
    # And of which class, at first and of another picture.
    before = page.locator("#score-classes").inner_text()
    assert "settled after" in before and page.locator("#score-classes tr").count() == 10
    page.locator("#score-change").get_by_label("constant").check()
    page.locator("#score-classify button, button#score-classify").click()
    ended = "text => (now => now !== text && !now.includes('so far'))(document.querySelector('#score-classes').innerText)"
    page.wait_for_function(ended, arg=before, timeout=60_000)
    assert page.locator("#score-classes .vlb-best").count() == 1
    page.locator("#score-compress button, button#score-compress").click()
    page.wait_for_function("() => document.querySelector('#score-packed').innerText.includes('PNG')", timeout=60_000)
    assert "bits/dim" in page.locator(".vlb-title").first.inner_text() and page.title().startswith(
        "How likely is this picture?"
    )


def test_an_upload_is_scored_as_evaluate_nll_does(page):
    pipe = quiet(VLBDDPMPipeline.from_pretrained(space_server.SPACE / "checkpoints" / "ddpm-vlb-digits"))
    image = load_images("digits", "test").images[3:4]
    options = {"method": "sampled", "evaluations_per_image": 256}

    open_tab(page, "score")
    page.locator("#tab-score").get_by_role("tab", name="upload").click()
    page.locator("#score-upload input[type=file]").set_input_files(DIGIT)
    page.wait_for_selector("#score-upload img")
    assert page.get_by_label("upload", exact=True).is_checked()
    run(page, "score")
    out = pipe.evaluate_nll(image, generator=generator(0), **options)
    assert numbers(page, "score")["bits/dim"] == f"{out.bits_per_dim.item():.3f} ± {out.monte_carlo_error.item():.3f}"
    assert page.locator("#score-picture .vlb-warning").count() == 1

    page.get_by_label("inverted", exact=True).check()
    run(page, "score")
    out = pipe.evaluate_nll(16 - image, generator=generator(0), **options)
    assert numbers(page, "score")["bits/dim"] == f"{out.bits_per_dim.item():.3f} ± {out.monte_carlo_error.item():.3f}"


def test_a_bad_upload_gets_a_sentence(page, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    open_tab(page, "score")
    page.locator("#tab-score").get_by_role("tab", name="upload").click()
    page.locator("#score-upload input[type=file]").set_input_files(tmp_path / "deep.png")
    page.wait_for_selector("#score-upload img")
    page.locator("#score-run").click()
    page.get_by_text("must have 8 bits a channel").wait_for()
    page.problems.clear()


def test_a_drawing_is_scored(page):
    open_tab(page, "score")
    page.locator("#tab-score").get_by_role("tab", name="draw").click()
    pad = page.locator(".vlb-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=12)
    page.mouse.up()
    run(page, "score")
    assert re.fullmatch(r"\d\.\d{3} ± \d\.\d{3}", numbers(page, "score")["bits/dim"])
    assert page.locator("#score-picture .vlb-picture").count() == 2
    page.get_by_label("clear").click()
    page.locator("#score-run").click()
    page.get_by_text("Draw something first").wait_for()
    page.problems.clear()


def test_the_bound_adds_up_and_can_be_sampled(page):
    open_tab(page, "bound")
    values = {}
    for estimator, steps in (("closed-form KL", 20), ("naive Monte Carlo", 21)):
        page.get_by_label(estimator).check()
        move(page, "#bound-steps", steps)
        run(page, "bound")
        shown = numbers(page, "bound")
        parts = [float(shown[key]) for key in ("L_T prior", f"Σ L_t {steps - 1} KL", "L_0 decoder")]
        total, error = (float(part) for part in shown["bits/dim"].split(" ± "))
        assert sum(parts) == pytest.approx(total, abs=2.1e-4)  # four numbers with four digits each
        values[estimator] = error
    assert values["naive Monte Carlo"] > values["closed-form KL"]


def test_cancelling_leaves_what_was_there(page):
    open_tab(page, "forward")
    move(page, "#forward-number", 300)  # more than the next model has
    open_tab(page, "choose")
    page.locator("#model input").click()
    page.get_by_role("option", name="ddpm-vlb-mnist").click()
    page.wait_for_function("document.getElementById('choose-picture').innerText.includes('28 × 28')")
    open_tab(page, "bound")
    page.locator("#bound-picture").get_by_text(WORDS["en"]["said"]["model_changed"]).wait_for()
    move(page, "#bound-steps", 1000)
    page.locator("#bound-run").click()
    page.wait_for_selector("#bound-picture progress")
    page.locator("#bound-cancel").click()
    page.wait_for_timeout(1500)  # longer than anything is silent
    before = page.locator("#bound-picture").inner_html()
    page.wait_for_timeout(1500)
    assert page.locator("#bound-picture").inner_html() == before
    # And the images are another model's.
    open_tab(page, "forward")
    page.wait_for_function("document.getElementById('forward-picture').innerText.includes('x_300')")
    assert page.locator("#forward-number input[type=number]").get_attribute("max") == "199"


def test_samples_appear_step_by_step(page):
    open_tab(page, "reverse")
    move(page, "#reverse-steps", 120)
    page.evaluate("""() => {
        window.seen = new Set();
        new MutationObserver(() => {
            const caption = document.querySelector("#reverse-picture figcaption");
            if (caption) window.seen.add(caption.innerText);
        }).observe(document.body, { childList: true, subtree: true });
    }""")
    run(page, "reverse")
    assert page.evaluate("window.seen.size") > 5
    assert page.locator("#reverse-picture figcaption").first.inner_text() == "x_0"


def test_two_visitors_choose_for_themselves(browser, address):
    pages = [open_page_anew(browser, address, language, DESKTOP, "light") for language in ("en-GB", "ja-JP")]
    one, other = (next(page) for page in pages)
    for page in (one, other):
        open_tab(page, "choose")
    one.locator("#model input").click()
    one.get_by_role("option", name="ddpm-vlb-mnist").click()
    one.wait_for_function("document.getElementById('choose-picture').innerText.includes('28 × 28')")
    for page, size in ((one, "28 × 28"), (other, "8 × 8")):
        open_tab(page, "score")
        page.locator("#score-run").click()
        # The picture is there before its score.
        page.locator("#score-picture progress").wait_for()
        assert size in page.locator("#score-picture figcaption").first.inner_text()
        page.locator("#score-cancel").click()
    for page in pages:
        assert next(page, None) is None
