"""MLflow's pages as people see them. In a real browser; by command: make ui"""

import re

from tests.ui.browser import Browser
from tests.ui.conftest import MANY, Runs

CURVES = """[...document.querySelectorAll('.js-plotly-plot')].map(plot => [
    plot.querySelector('.gtitle, .titletext')?.textContent || '',
    [...plot.querySelectorAll('.scatterlayer .js-line')].map(line => line.getAttribute('d')).join(' ')
]).filter(([, line]) => line)"""
TO_THE_END = """[...document.querySelectorAll('*')]
    .filter(one => one.scrollHeight > one.clientHeight + 50 && getComputedStyle(one).overflowY !== 'visible')
    .forEach(one => { one.scrollTop = 99999 })"""
PICTURE = """(() => {
    const shown = [...document.querySelectorAll('img')].find(one => one.complete && one.width > 40 && one.naturalWidth > 40)
    if (!shown) return ''
    shown.scrollIntoView({block: 'center'})  // a card shows all parameters above its picture
    const [box, canvas] = [shown.getBoundingClientRect(), document.createElement('canvas')]
    const seen = document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2)
    if (seen !== shown && !seen?.contains(shown) && !shown.parentElement.contains(seen)) return '';
    [canvas.width, canvas.height] = [shown.naturalWidth, shown.naturalHeight]
    canvas.getContext('2d').drawImage(shown, 0, 0)
    return canvas.toDataURL()
})()"""
"""The content of the picture that is seen, as an address, or an empty text."""


def test_the_printed_address_opens_the_run_in_the_mode_that_shows_runs(browser: Browser, runs: Runs) -> None:
    browser.open(runs.printed)
    browser.until("Model training", "Overview", "Model metrics", "Best so far: val/loss")
    browser.screenshot("1-first-look")
    browser.click("Runs")  # at the left; the same word above the name leads to MLflow's other mode
    text = browser.until("matching runs", "Models", "lr=1e-3")
    assert "Evaluation runs" not in text
    browser.screenshot("1-list-of-runs")


def test_the_overview_has_what_matters(browser: Browser, runs: Runs) -> None:
    browser.open(runs.page(runs.resumed))
    text = browser.until("Parameters", "Tags", "Datasets", "mltrain.status")
    tags = set(re.findall(r"^mltrain\.[\w.]+", text.partition("\nTags\n")[2], re.MULTILINE))
    assert {"mltrain.status", "mltrain.best", "mltrain.project"} <= tags
    assert len(tags) <= 13, tags  # one of them only where a resume changed a key
    assert "mltrain.heartbeat" not in tags
    assert not {"mltrain.ended.1", "mltrain.best_metric"} & tags
    assert "data" in text.partition("\nDatasets\n")[2].partition("\nTags\n")[0]
    assert "Attempt 2 continued from" in text
    assert "mltrain pull" in text
    parameters = text.partition("\nParameters (")[2].partition("About this run")[0]
    assert "none" not in parameters.splitlines(), "keys that mean nothing are left out"
    browser.screenshot("2-overview")


def test_a_resumed_runs_curves_are_those_of_an_undisturbed_one(browser: Browser, runs: Runs) -> None:
    seen = []
    for name, run_id in (("undisturbed", runs.undisturbed), ("resumed", runs.resumed)):
        browser.open(runs.page(run_id, "/model-metrics"))
        browser.until("val", "train", "Step")
        browser.settled(CURVES)
        browser.screenshot(f"3-charts-{name}")
        seen.append(browser.evaluate(CURVES))
    assert len(seen[0]) >= 3
    assert [line for _, line in seen[0]] == [line for _, line in seen[1]]


def test_pictures_scroll_by_step(browser: Browser, runs: Runs) -> None:
    browser.open(runs.page(runs.undisturbed, "/model-metrics"))
    browser.until("val", "train", "Step")
    browser.settled(CURVES)
    browser.evaluate(TO_THE_END)
    browser.settled("document.querySelectorAll('[role=slider]').length")
    assert browser.evaluate("document.querySelectorAll('[role=slider]').length") >= 1
    found: list[str] = []
    browser.evaluate("document.querySelector('[role=slider]').focus()")
    for _ in range(36):  # steps of the training; every sixth has a picture
        browser.press("ArrowRight")
        picture = browser.evaluate(f"new Promise(done => setTimeout(() => done({PICTURE}), 400))")
        if picture and picture not in found:
            browser.evaluate("new Promise(done => setTimeout(done, 400))")  # until it is drawn where it was scrolled to
            found.append(picture)
            browser.screenshot(f"4-picture-{len(found)}")
        if len(found) == 2:
            return
    raise AssertionError(f"pictures of two steps: {found}")


def test_three_runs_are_compared(browser: Browser, runs: Runs) -> None:
    browser.open(runs.comparison((runs.undisturbed, runs.resumed, runs.many[0])))
    text = browser.until("Comparing 3 Runs", "Parallel Coordinates Plot", "val/loss", "lr")
    assert "undisturbed" in text
    browser.screenshot("5-compare")


def test_parallel_coordinates_over_many_runs(browser: Browser, runs: Runs) -> None:
    browser.open(runs.comparison(runs.many))
    text = browser.until(f"Comparing {MANY} Runs", "Parallel Coordinates Plot", "val/loss")
    varied = text.partition("Parameters:")[2].partition("Metrics:")[0].split()
    assert varied == ["lr"], "only what was varied is drawn"
    assert not text.partition("Metrics:")[2].split()[0].startswith("system/"), "and what the training measured"
    browser.settled("document.querySelectorAll('.js-plotly-plot').length")
    browser.screenshot("6-parallel-coordinates")
    browser.open(f"{runs.address}/#/experiments/0/runs?workflowType=machine_learning&compareRunsMode=CHART")
    browser.until("matching runs", "Add chart")
    browser.settled(CURVES)
    browser.screenshot("6-charts-of-many")
