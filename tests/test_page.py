"""The page in a real browser: charts show, tables sort and filter, runs open, nothing is fetched, nothing complains."""

import base64
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from tests.browsing import column, family, find, open_runs, resize, shown_rows, status, visit
from tests.drawn import page_of
from tests.make_records import ENVIRONMENT, PROFILES, RECALL, make_recall, make_record, swept_recall, write_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TABLES, ROWS = 3, 22  # of results: seven variants on each, and one that failed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    settings = [("bytes", 512), ("bytes", 1024), ("mqar", 1024)]
    records = [make_record(v, task=t, seq_len=n, seed=s) for t, n in settings for v in PROFILES for s in range(2)]
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
    return visit(browser, page)


@pytest.mark.browser
def test_every_chart_is_drawn_and_says_what_it_shows(opened: webdriver.Chrome) -> None:
    charts = find(opened, "figure img")
    assert len(charts) == TABLES * 4 + 3 + 1
    for chart in charts:
        assert opened.execute_script("return arguments[0].complete && arguments[0].naturalWidth", chart) > 0
        assert chart.size["width"] > 300
        assert chart.size["height"] > 200
        assert re.search(
            r"from \d.+ to \d|Furthest below full: .+ points|faster than full: .+ \d", chart.get_attribute("alt") or ""
        )


@pytest.mark.browser
def test_the_browser_has_nothing_to_complain_of(opened: webdriver.Chrome) -> None:
    find(opened, "table.results th button")[0].click()
    find(opened, "table.results tbody th a")[0].click()
    family(opened, "exact").send_keys(Keys.SPACE)
    assert opened.get_log("browser") == []


@pytest.mark.browser
def test_a_click_sorts_up_and_the_next_one_down(opened: webdriver.Chrome) -> None:
    head = find(opened, "table.results thead th")[4]
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
    assert len(find(opened, "table.results th[aria-sort]")) == 1


@pytest.mark.browser
@pytest.mark.parametrize("key", [Keys.ENTER, Keys.SPACE])
def test_the_keyboard_sorts_too(opened: webdriver.Chrome, key: str) -> None:
    head = find(opened, "table.results thead th")[2]
    opened.execute_script("arguments[0].focus()", head.find_element(By.TAG_NAME, "button"))
    opened.switch_to.active_element.send_keys(key)
    assert head.get_attribute("aria-sort") == "ascending"
    scores = [float(score) for score in column(opened, 2) if score]
    assert scores == sorted(scores)


@pytest.mark.browser
def test_text_filters_the_rows_of_all_tables_by_variant_and_family(opened: webdriver.Chrome) -> None:
    assert status(opened) == f"All {ROWS} rows shown"
    (box,) = find(opened, "#filter-text")
    box.send_keys("LIN")
    assert set(shown_rows(opened)) == {"linear", "linformer"}
    assert status(opened) == f"{ROWS - 2 * TABLES} of {ROWS} rows hidden"
    assert find(opened, "#table-0-hidden")[0].text == "5 of 7 rows hidden by the filter."
    box.clear()
    box.send_keys("kernel perf")
    assert set(shown_rows(opened)) == {"performer"}


@pytest.mark.browser
def test_families_are_hidden_with_the_keyboard_and_all_come_back(opened: webdriver.Chrome) -> None:
    opened.execute_script("arguments[0].focus()", family(opened, "kernel"))
    opened.switch_to.active_element.send_keys(Keys.SPACE)
    assert not {"linear", "performer"} & set(shown_rows(opened))
    assert "full" in shown_rows(opened)
    assert status(opened) == f"{2 * TABLES + 1} of {ROWS} rows hidden"
    (show_all,) = find(opened, "#show-all")
    show_all.send_keys(Keys.ENTER)
    assert status(opened) == f"All {ROWS} rows shown"
    assert family(opened, "kernel").is_selected()


@pytest.mark.browser
def test_what_failed_is_hidden_on_request(opened: webdriver.Chrome) -> None:
    (box,) = find(opened, "#hide-failed")
    box.click()
    assert "<script>alert(1)</script>" not in shown_rows(opened)
    assert status(opened) == f"1 of {ROWS} rows hidden"


@pytest.mark.browser
def test_the_address_keeps_the_filter(opened: webdriver.Chrome, page: Path) -> None:
    find(opened, "#filter-text")[0].send_keys("lin & co")
    find(opened, "#filter-text")[0].clear()
    find(opened, "#filter-text")[0].send_keys("lin")
    family(opened, "low-rank").click()
    find(opened, "#hide-failed")[0].click()
    find(opened, "nav a[href='#group-1']")[0].click()
    wanted = "#group-1&q=lin&without=low-rank&failed=hidden"
    address = WebDriverWait(opened, 10).until(lambda b: b.current_url if b.current_url.endswith(wanted) else "")
    visit(opened, page, address.partition("#")[2])
    assert set(shown_rows(opened)) == {"linear"}
    assert find(opened, "#filter-text")[0].get_attribute("value") == "lin"
    assert not family(opened, "low-rank").is_selected()
    assert opened.execute_script("return scrollY") > 0


@pytest.mark.browser
def test_a_row_opens_its_runs_by_a_click_anywhere_on_it(opened: webdriver.Chrome) -> None:
    row = find(opened, "#table-0 tbody tr")[0]
    assert row.get_attribute("data-name") == "full"
    row.find_elements(By.TAG_NAME, "td")[1].click()
    assert open_runs(opened) == ["full · seed 0 · ok", "full · seed 1 · ok"]
    assert "#run-full-bytes-512-0" in opened.current_url
    text = find(opened, "details[data-run][open]")[0].text
    assert "python -m compare --variants full,linformer" in text
    assert "sdpa flash" in text
    assert '"n_layers": 2' in text
    assert '"seq_len": 512' in text
    assert '"corpus_sha256": "5f5f' in text
    assert '"torch": "2.13.0"' in text
    assert re.search(r'"test_score": 0\.\d+', text)


@pytest.mark.browser
def test_a_row_opens_its_runs_by_enter_and_the_focus_goes_there(opened: webdriver.Chrome) -> None:
    link = find(opened, "#table-2 tbody th a")[1]
    opened.execute_script("arguments[0].focus()", link)
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert len(open_runs(opened)) == 2
    assert opened.switch_to.active_element.tag_name == "summary"
    assert opened.switch_to.active_element.text == open_runs(opened)[0]


@pytest.mark.browser
def test_a_deep_link_opens_one_run_and_keeps_the_filter(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, "run-local-mqar-1024-1-90&q=lin")
    assert open_runs(browser) == ["local · seed 1 · ok"]
    top = browser.execute_script("return document.querySelector('details[open][data-run]').getBoundingClientRect().top")
    assert 0 <= top < 400
    assert set(shown_rows(browser)) == {"linear", "linformer"}


@pytest.mark.browser
def test_the_command_is_copied(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, "run-local-mqar-1024-1-90")
    (button,) = find(browser, "details[open] button.copy")
    button.click()
    assert find(browser, "details[open] [role=status]")[0].text == "copied"
    box = find(browser, "#filter-text")[0]
    box.send_keys(Keys.CONTROL, "v")
    assert box.get_attribute("value") == ENVIRONMENT["command"]


@pytest.mark.browser
def test_a_drawing_is_saved_from_the_page_itself(opened: webdriver.Chrome, page: Path) -> None:
    link = find(opened, "a.svg")[0]
    name = link.get_attribute("download")
    opened.execute_script("arguments[0].addEventListener('click', e => e.preventDefault()); arguments[0].click()", link)
    script = "fetch(arguments[0].href).then(r => r.text()).then(arguments[1])"
    drawing = opened.execute_async_script(script, link)
    assert (page.parent / "charts" / str(name)).exists()
    assert drawing.startswith("<?xml")
    assert drawing.rstrip().endswith("</svg>")


@pytest.mark.browser
def test_each_family_stands_beside_its_colour(opened: webdriver.Chrome) -> None:
    cells = find(opened, "table.results tbody tr td:nth-child(2)")
    shown = {
        cell.text: cell.find_element(By.CLASS_NAME, "swatch").value_of_css_property("background-color")
        for cell in cells
    }
    assert {"exact", "low-rank", "kernel", "fixed sparse", "control"} <= set(shown)
    assert len(set(shown.values())) == len(shown)


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_itself_never_scrolls_sideways(opened: webdriver.Chrome, width: int) -> None:
    resize(opened, width)
    opened.execute_script("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["a task", "a swept task"])
def test_the_first_screen_holds_the_sentences_and_their_chart(
    browser: webdriver.Chrome, tmp_path: Path, kind: str
) -> None:
    records = swept_recall() if kind == "a swept task" else [make_recall(variant) | {"curve": []} for variant in RECALL]
    write_report(write_folder(tmp_path, records))
    visit(browser, tmp_path / "report.html")
    for width, height in ((1280, 800), (400, 800)):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        *told, chart = find(browser, ".first .sentences p, .first img")
        assert len(told) == 3
        assert chart == find(browser, "img")[0]
        for part in (*told, chart):
            assert part.is_displayed()
            assert part.rect["x"] >= 0
            assert part.rect["x"] + part.rect["width"] <= width
            assert part.rect["y"] + part.rect["height"] <= height
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRASTS = """
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (!colour.endsWith(", 0)")) return colour;
  }
  return "rgb(255, 255, 255)";
};
const texts = [...document.querySelectorAll("body *")].filter(node => node.checkVisibility()
  && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
return texts.map(node => {
  const [a, b] = [getComputedStyle(node).color, ground(node)].map(luminance).sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), node.tagName + "." + node.className + ": " + node.textContent.slice(0, 40)];
}).filter(([contrast]) => contrast < 4.5);
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(opened: webdriver.Chrome, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.execute_script("document.querySelector('[data-run]').open = true")
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert opened.execute_script(CONTRASTS) == []
    grounds = "return getComputedStyle(document.querySelector('figure')).backgroundColor"
    assert opened.execute_script(grounds) == "rgb(255, 255, 255)"
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.browser
def test_headings_landmarks_and_tables_are_in_order_for_a_screen_reader(opened: webdriver.Chrome) -> None:
    levels = [int(head.tag_name[1]) for head in find(opened, "h1, h2, h3, h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [len(find(opened, tag)) for tag in ("header", "nav", "main")] == [1, 1, 1]
    for table in find(opened, "table"):
        assert table.find_elements(By.TAG_NAME, "caption")
        assert table.find_elements(By.CSS_SELECTOR, "thead th[scope=col]")
        assert table.find_elements(By.CSS_SELECTOR, "tbody th[scope=row]")
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))
    targets = opened.execute_script("return [...document.querySelectorAll(\"a[href^='#']\")].map(a => a.hash.slice(1))")
    assert set(targets) <= set(ids)


@pytest.mark.browser
def test_the_first_tab_skips_to_the_results(opened: webdriver.Chrome) -> None:
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    link = opened.switch_to.active_element
    assert link.get_attribute("class") == "skip"
    assert link.rect["x"] >= 0


@pytest.fixture
def on_paper(browser: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """One run open, laid out for print."""
    visit(browser, page, "run-local-mqar-1024-1-90")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    resize(browser, 1047)  # A4 across, less its margins
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_paper_has_no_filter_no_closed_run_and_no_table_cut_off(on_paper: webdriver.Chrome) -> None:
    unwanted = find(on_paper, ".filters, nav, figcaption, details[data-run]:not([open])")
    assert len(unwanted) > 20
    assert not any(node.is_displayed() for node in unwanted)
    (run,) = find(on_paper, "details[data-run][open]")
    assert run.is_displayed()
    tables = [table for table in find(on_paper, "table") if table.is_displayed()]
    assert len(tables) > TABLES
    assert max(table.rect["x"] + table.rect["width"] for table in tables) <= 1047


@pytest.mark.browser
def test_it_prints_to_pages(opened: webdriver.Chrome) -> None:
    printed: dict[str, Any] = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf)) >= 4


@pytest.mark.browser
def test_labels_are_text_and_not_markup(opened: webdriver.Chrome) -> None:
    assert any("<script>alert(1)</script>" in table.text for table in find(opened, "table.results"))
    assert len(find(opened, "script")) == 2


@pytest.mark.browser
def test_the_network_is_never_asked(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, "run-local-mqar-1024-1-90")
    assert browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)") == []


def test_nothing_is_linked_but_the_charts_beside_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"""\s(?:src|href)=["']?((?!data:|#)[^"'> ]+)""", text)
    assert {link.partition("/")[0] for link in links} == {"charts"}
    assert all((page.parent / link).exists() for link in links)
    assert re.findall(r"@import|url\((?!data:|#|%23)", text) == []
    assert re.findall(r"https?://", text) == []


def test_what_a_thousand_runs_share_is_told_once() -> None:
    records = [make_record(v, seq_len=n, seed=s) for n in (512, 1024) for v in PROFILES for s in range(72)]
    assert len(records) > 1000
    for number, record in enumerate(records):
        record["run_id"] = f"{number:x}"
    groups = group_records([Source(records, ENVIRONMENT)])
    started = process_time()
    text = page_of(groups)
    assert process_time() - started < 5
    assert text.count(str(ENVIRONMENT["cpu"])) == 1
    assert text.count(str(records[0]["data"]["corpus_sha256"])) == 1
    assert len(text) < 1500 * len(records)


def test_a_run_that_two_folders_hold_has_two_anchors() -> None:
    machines = [ENVIRONMENT, ENVIRONMENT | {"cpu": "Other"}]
    groups = group_records([Source([make_record("full")], machine) for machine in machines])
    text = page_of(groups)
    anchors = re.findall(r'id="(run-[^"]+)"', text)
    assert anchors == ["run-full-bytes-1024-0-90", "run-full-bytes-1024-0-90-2"]
