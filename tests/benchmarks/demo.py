r"""How long a visitor of the demo waits: in a real browser, from the press of a key to the picture that answers it.

    python tests/benchmarks/demo.py

One visitor, a server of its own on this machine. Needs Debian's `chromium`.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from playwright.sync_api import sync_playwright
from space_server import CHROMIUM, CHROMIUM_FLAGS, running_space

ROUNDS = 15
# From the visitor's act, as the page hears of it, until the picture of a tab has become another one, has no progress bar, and
# was painted.
MARK = """name => {
    document.querySelectorAll(`#${name}-picture .prose > *`).forEach(part => part.dataset.old = 1);
    const started = new Promise(resolve => {
        for (const act of ["input", "click"])
            window.addEventListener(act, () => resolve(performance.now()), {capture: true, once: true});
    });
    const done = () => !document.querySelector(`#${name}-picture :is([data-old], progress)`);
    window.waited = new Promise(resolve => {
        new MutationObserver(async (_, observer) => {
            if (!done()) return;
            observer.disconnect();
            requestAnimationFrame(() => setTimeout(async () => resolve(performance.now() - await started)));
        }).observe(document.getElementById(`tab-${name}`), {childList: true, subtree: true, attributes: true});
    });
}"""


def after(page, name, act):
    r"""Milliseconds from an action to the whole of its result."""
    page.evaluate(MARK, name)
    act()
    return page.evaluate("window.waited")


def slide(page, name, element, values):
    r"""Milliseconds for each of some values of a slider, as if it were dragged there."""
    times = []
    for value in values:
        slider = page.locator(f"{element} input[type=range]")
        times.append(after(page, name, lambda slider=slider, value=value: slider.fill(str(value))))
    return times


def line(name, times):
    times = sorted(times)
    print(f"{name:44}  median {statistics.median(times):6.0f} ms   worst of {len(times)} {times[-1]:6.0f} ms")


def main() -> None:
    r"""Measure and print."""
    if CHROMIUM is None:
        sys.exit("tests/benchmarks/demo.py needs Debian's chromium.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        started = time.monotonic()
        with running_space(Path(folder)) as (address, _):
            ready = time.monotonic() - started
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
            paints, plots = [], []
            for _ in range(5):
                context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 900})
                page = context.new_page()
                begun = time.monotonic()
                page.goto(address)
                page.wait_for_selector("#gaussian-picture svg")
                plots.append(1000 * (time.monotonic() - begun))
                paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
                context.close()
            print(f"one visitor, one CPU thread; the server is ready {ready:.0f} s after its start, imports of torch included")
            line("first paint", paints)
            line("the first plot is there", plots)
            page = browser.new_page(locale="en-GB", viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.wait_for_selector("#gaussian-picture svg")
            sliders = page.locator("#tab-gaussian input[type=range]")
            times = []
            for index in range(ROUNDS):
                value = str(10 + index)
                times.append(after(page, "gaussian", lambda value=value: sliders.last.fill(value)))
            line("Gaussian: a slider", times)
            page.locator("#tab-forward-button").click()
            line("forward process: t", slide(page, "forward", "#forward-t", [40 + 60 * index for index in range(ROUNDS)]))
            line("forward process: another image", slide(page, "forward", "#forward-number", range(1, 1 + ROUNDS)))
            for name, what in (
                ("score", "score a digit (256 evaluations)"),
                ("reverse", "8 samples, 50 steps"),
                ("bound", "the bound (100 steps, 16 draws)"),
                ("rates", "rate and distortion (100 steps, 16 images)"),
            ):
                page.locator(f"#tab-{name}-button").click()
                press = page.locator(f"#{name}-run").click
                line(what, [after(page, name, press) for _ in range(5)])
            browser.close()


if __name__ == "__main__":
    main()
