"""The page in a real browser: charts show, the table sorts, nothing is fetched, nothing complains."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from compare.report import write_report
from tests.make_records import PROFILES, make_record, write_folder

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    records = [make_record(v, seq_len=n, seed=s) for n in (512, 1024) for v in PROFILES for s in range(2)]
    records += [make_record("linear", label="<script>alert(1)</script>", status="error")]
    write_report(write_folder(folder, records))
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(f"needs Chromium and its driver: found {CHROMIUM} and {DRIVER}")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser


def column(browser: webdriver.Chrome, index: int) -> list[str]:
    rows = "[...document.querySelector('table.results').tBodies[0].rows]"
    script = f"return {rows}.map(row => row.cells[arguments[0]].dataset.key)"
    return list(browser.execute_script(script, index))


def test_every_chart_is_drawn(opened: webdriver.Chrome) -> None:
    charts = opened.find_elements(By.CSS_SELECTOR, "figure img")
    assert len(charts) == 11
    for chart in charts:
        assert opened.execute_script("return arguments[0].complete && arguments[0].naturalWidth", chart) > 0
        assert chart.size["width"] > 300
        assert chart.size["height"] > 200
        assert chart.get_attribute("alt")


def test_the_browser_has_nothing_to_complain_of(opened: webdriver.Chrome) -> None:
    opened.find_element(By.CSS_SELECTOR, "table.results th button").click()
    assert opened.get_log("browser") == []


def test_a_click_sorts_up_and_the_next_one_down(opened: webdriver.Chrome) -> None:
    head = opened.find_elements(By.CSS_SELECTOR, "table.results th")[4]
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    keys = column(opened, 4)
    speeds = [float(key) for key in keys if key]
    assert head.get_attribute("aria-sort") == "ascending"
    assert speeds == sorted(speeds)
    assert keys[: len(speeds)] == [key for key in keys if key]
    button.click()
    speeds = [float(key) for key in column(opened, 4) if key]
    assert head.get_attribute("aria-sort") == "descending"
    assert speeds == sorted(speeds, reverse=True)
    assert len(opened.find_elements(By.CSS_SELECTOR, "table.results th[aria-sort]")) == 1


@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_the_keyboard_sorts_too(opened: webdriver.Chrome, key: str) -> None:
    head = opened.find_elements(By.CSS_SELECTOR, "table.results th")[2]
    opened.execute_script("arguments[0].focus()", head.find_element(By.TAG_NAME, "button"))
    opened.switch_to.active_element.send_keys(key)
    assert head.get_attribute("aria-sort") == "ascending"
    scores = [float(score) for score in column(opened, 2) if score]
    assert scores == sorted(scores)


def test_each_family_stands_beside_its_colour(opened: webdriver.Chrome) -> None:
    cells = opened.find_elements(By.CSS_SELECTOR, "table.results tbody tr td:nth-child(2)")
    shown = {
        cell.text: cell.find_element(By.CLASS_NAME, "swatch").value_of_css_property("background-color")
        for cell in cells
    }
    assert {"exact", "low-rank", "kernel", "fixed sparse", "control"} <= set(shown)
    assert len(set(shown.values())) == len(shown)


def test_a_run_unfolds(opened: webdriver.Chrome) -> None:
    details = opened.find_element(By.TAG_NAME, "details")
    details.find_element(By.TAG_NAME, "summary").click()
    text = details.text
    assert "python -m compare --variants full,linformer" in text
    assert '"n_layers": 2' in text
    assert '"torch": "2.13.0"' in text


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_itself_never_scrolls_sideways(opened: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_labels_are_text_and_not_markup(opened: webdriver.Chrome) -> None:
    tables = opened.find_elements(By.CSS_SELECTOR, "table.results")
    assert any("<script>alert(1)</script>" in table.text for table in tables)
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 1


def test_nothing_is_fetched(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'> ]+""", text) == []
    assert re.findall(r"@import|url\((?!data:)", text) == []
    assert re.findall(r"https?://", text) == []
