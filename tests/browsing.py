"""The page of a report as tests find their way in it with a browser."""

from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement


def visit(browser: webdriver.Chrome, page: Path, anchor: str = "") -> webdriver.Chrome:
    """Open the page anew, at an anchor."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(page.as_uri() + (f"#{anchor}" if anchor else ""))
    return browser


def column(browser: webdriver.Chrome, index: int) -> list[str]:
    rows = "[...document.querySelector('table.results').tBodies[0].rows]"
    script = f"return {rows}.map(row => row.cells[arguments[0]].dataset.key)"
    return list(browser.execute_script(script, index))


def shown_rows(browser: webdriver.Chrome) -> list[str]:
    return [row.get_attribute("data-name") or "" for row in find(browser, "table.results tbody tr:not([hidden])")]


def find(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def status(browser: webdriver.Chrome) -> str:
    (line,) = find(browser, "#filter-status")
    assert line.get_attribute("role") == "status"
    return line.text


def family(browser: webdriver.Chrome, name: str) -> WebElement:
    (box,) = find(browser, f"#filters input[name=family][value='{name}']")
    return box


def open_runs(browser: webdriver.Chrome) -> list[str]:
    return [details.find_element(By.TAG_NAME, "summary").text for details in find(browser, "details[data-run][open]")]


def resize(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
