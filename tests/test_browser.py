"""The leaderboard page in a real browser: sorted, filtered, opened, in the dark, on a phone, and with 10,000 entries.

    make browser-test

Needs selenium, Chromium and its driver; skipped where one of them is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic

from analysis import board, build, page
from analysis.load import load

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver", allow_module_level=True)

HOSTILE = "</script><img src=x onerror=window.hurt=1><b>${x}{{DATA}}"
Entries = list[dict[str, Any]]
SLOW = float(os.environ.get("ZOBENCH_SLOW", "1"))  # how many times longer a busy machine may take


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Entries, list[Any]]:
    """60 entries of several tasks and schemes; one is named to hurt."""
    folder = tmp_path_factory.mktemp("records")
    synthetic.write(folder, 1200)
    kept = [path for path in build.find(folder) if "method_00" in path.name or "method_07" in path.name]
    entries, parts = board.entries(load(kept), {})
    assert len(entries) == 160
    entries[3] |= {"optimizer": HOSTILE, "hardware": HOSTILE, "notes": [HOSTILE], "verified": 1, "confirmed": True}
    entries[3]["runs"][0] |= {"command": HOSTILE, "run_id": HOSTILE, "verified": True}
    entries[5]["memory"] = entries[5]["std"] = None
    parts[0] = {"name": HOSTILE}
    return entries, parts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page in the browser, as a reader meets it."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.url = driver, path.as_uri()

    def load(self, width: int = 1366, height: int = 900, dark: bool = False, hash: str = "") -> float:
        """Seconds until the first rows stand."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        started = time.monotonic()
        self.driver.get(self.url + hash)
        self.until("return document.querySelectorAll('.tabulator-row').length > 0 && $('count').textContent !== ''")
        return time.monotonic() - started

    def js(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def until(self, script: str) -> None:
        for _ in range(int(600 * SLOW)):
            if self.js(script):
                return
            time.sleep(0.02)
        raise AssertionError(f"never came true: {script}")

    def column(self, field: str) -> list[str]:
        """Texts of the rows that stand, from the top."""
        query = f".tabulator-row .tabulator-cell[tabulator-field='{field}']"
        return list(self.js(f'return [...document.querySelectorAll("{query}")].map((c) => c.textContent)'))

    def click(self, query: str) -> None:
        self.driver.find_element("css selector", query).click()

    def sort(self, field: str) -> None:
        self.click(f".tabulator-col[tabulator-field='{field}'] .tabulator-col-title")

    def choose(self, name: str, value: str) -> None:
        options = self.driver.find_elements("css selector", f"#{name} option")
        next(option for option in options if option.text == value).click()
        time.sleep(0.3)

    def shot(self, name: str) -> None:
        """Keeps a picture where ZOBENCH_SHOTS names a folder."""
        if folder := os.environ.get("ZOBENCH_SHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def shown(few: tuple[Entries, list[Any]], browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.html(*few, "what <i>stands</i> here"), encoding="utf-8")
    return Page(browser, path)


def test_it_stands_without_network_or_errors(shown: Page) -> None:
    shown.driver.get_log("browser"), shown.driver.get_log("performance")
    shown.load()
    shown.shot("wide")
    assert shown.driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in shown.driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} == {"file"}
    assert len(asked) == 1
    assert shown.js("return $('count').textContent") == "160 of 160 entries, 1 verified"
    fields = {"score", "seeds", "forwards", "seconds", "hardware", "memory", "overhead", "trials", "verified"}
    assert fields <= set(shown.js("return table.getColumns().map((c) => c.getField())"))


def test_sorting(shown: Page) -> None:
    shown.load()
    scores = [float(text.split()[0]) for text in shown.column("score")]
    assert scores == sorted(scores, reverse=True)
    shown.sort("forwards")
    shown.sort("memory")
    memory = [float(text) for text in shown.column("memory") if text != "—"]
    assert memory == sorted(memory, reverse=True)
    shown.sort("memory")
    memory = [float(text) for text in shown.column("memory") if text != "—"]
    assert memory == sorted(memory)
    assert shown.js("return table.getRows('active').at(-1).getData().memory") is None  # unknown stands last either way
    shown.sort("optimizer")
    assert shown.column("optimizer")[0] == HOSTILE


def test_filters(shown: Page) -> None:
    shown.load()
    shown.choose("task", "rte")
    shown.choose("scheme", "lora")
    assert set(shown.column("task")) == {"rte"}
    assert set(shown.column("scheme")) == {"lora"}
    n = shown.js("return table.getRows('active').length")
    assert shown.js("return $('count').textContent").startswith(f"{n} of 160 entries")
    assert shown.js("return document.querySelectorAll('#memory-plot .dot').length") == n
    shown.driver.find_element("id", "search").send_keys("opt-13b METHOD_07")
    time.sleep(0.4)
    assert set(shown.column("optimizer")) == {"method_07"}
    assert set(shown.column("model")) == {"opt-13b"}
    address = shown.js("return location.hash")
    shown.click("#reset")
    time.sleep(0.4)
    assert shown.js("return table.getRows('active').length") == 160
    shown.load(hash=address)
    assert set(shown.column("optimizer")) == {"method_07"}
    assert shown.js("return $('task').value") == "rte"
    shown.click("#reset")
    time.sleep(0.4)
    shown.click("#verified")
    time.sleep(0.4)
    assert shown.column("verified") == ["✓ yes (1 seed)"]
    shown.driver.find_element("id", "search").send_keys("nothing at all")
    time.sleep(0.4)
    assert "no entry fits the filters" in shown.js("return $('table').textContent")
    shown.shot("nothing")


def test_a_row_opens_its_config_curve_and_command(shown: Page, few: tuple[Entries, list[Any]]) -> None:
    shown.load()
    shown.click(".tabulator-row .tabulator-cell[tabulator-field='task']")
    shown.shot("open")
    entry = few[0][shown.js("return table.getRows('active')[0].getData().id")]
    assert shown.js("return $('entry').open")
    assert shown.js("return [...document.querySelectorAll('.command')].map((c) => c.textContent)") == [
        run["command"] for run in entry["runs"]
    ]
    said = json.loads(shown.js("return document.querySelector('.config').textContent"))
    assert said == {key: few[1][place] for key, place in entry["config"].items()}
    assert shown.js("return document.querySelector('#entry polyline.curve').points.length") == len(entry["curve"])
    shown.driver.find_element("css selector", "body").send_keys("\ue00c")  # Escape
    assert not shown.js("return $('entry').open")
    shown.js("document.querySelector('#memory-plot .dot').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert shown.js("return $('entry').open")
    shown.click("#close")
    assert not shown.js("return $('entry').open")
    shown.js("document.querySelector('button.open').focus()")
    shown.driver.switch_to.active_element.send_keys("\ue007")  # Enter: rows open without a mouse, too
    assert shown.js("return $('entry').open")


def test_a_record_cannot_put_html_on_the_page(shown: Page) -> None:
    shown.load()
    shown.js("open(entries[3])")
    text = shown.js("return $('entry').textContent")
    assert text.count(HOSTILE) >= 4
    assert shown.js("return document.querySelectorAll('#table img, #table b, #entry img, #entry b').length") == 0
    assert shown.js("return window.hurt") is None
    # What somehow got onto the page would still not run: the policy names the hashes of the two scripts.
    shown.js("const s = document.createElement('script'); s.textContent = 'window.hurt = 2'; document.body.append(s)")
    shown.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hurt=3>')")
    time.sleep(0.2)
    assert shown.js("return window.hurt") is None


LUMINANCE = """
const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$/.test(c)) return c; } return "rgb(255, 255, 255)"; };
return [...document.querySelectorAll(arguments[0])].map((e) => {
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
"""


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(shown: Page, dark: bool) -> None:
    shown.load(dark=dark)
    shown.shot("dark" if dark else "light")
    back = shown.js("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark
    shown.js("open(entries[0])")
    shown.shot("dark-open" if dark else "light-open")
    seen = (
        ".tabulator-col-title, .tabulator-cell, button, select, input, #count, .small, dt, dd, pre, h1, h2, .yes, .no"
    )
    contrasts = shown.driver.execute_script(LUMINANCE, seen)
    assert len(contrasts) > 100
    assert min(contrasts) >= 4.5


def test_a_phone_shows_it(shown: Page) -> None:
    shown.load(width=390, height=844)
    shown.shot("phone")
    assert shown.js("return document.scrollingElement.scrollWidth") <= 390
    visible = shown.js("return table.getColumns().filter((c) => c.isVisible()).map((c) => c.getField())")
    assert visible[:3] == ["optimizer", "score", "scheme"]
    shown.js("document.querySelector('#plots').scrollIntoView()")
    shown.shot("phone-plots")
    shown.js("open(entries[0])")
    shown.shot("phone-open")
    box = shown.js("const b = $('entry').getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]")
    assert box[0] >= 0
    assert box[1] <= 390
    assert box[3] <= 844


def test_a_phone_tells_the_schemes_of_a_method_apart(browser: Any) -> None:
    """On the page of the repository, whose names and scores are long."""
    shown = Page(browser, Path(__file__).parents[1] / "results/leaderboard/index.html")
    shown.load(width=390, height=844, hash="#task=sst2&search=sgd")
    shown.shot("phone-published")
    assert shown.js("return document.scrollingElement.scrollWidth") <= 390
    visible = shown.js("return table.getColumns().filter((c) => c.isVisible()).map((c) => c.getField())")
    assert visible[:3] == ["optimizer", "score", "scheme"]
    assert shown.js("const c = document.querySelector('.tabulator-row .tabulator-cell[tabulator-field=scheme]');"
                    "const b = c.getBoundingClientRect(); return b.width > 20 && b.right <= 390")  # fmt: skip


def test_ten_thousand_entries_stay_usable(few: tuple[Entries, list[Any]], browser: Any, tmp_path: Path) -> None:
    entries, parts = few
    many = [
        {
            **entries[i % 160],
            "id": i,
            "optimizer": f"method_{i:05}",
            "score": 50 + i % 4999 / 100,
            "memory": 1 + i % 777,
        }
        for i in range(10_000)
    ]
    path = tmp_path / "index.html"
    path.write_text(page.html(many, parts, ""), encoding="utf-8")
    shown = Page(browser, path)
    took = {"load": shown.load()}
    shown.shot("many")

    def timed(name: str, script: str, done: str) -> None:
        started = time.monotonic()
        shown.js(script)
        shown.until(done)
        took[name] = time.monotonic() - started

    timed("sort", "table.setSort('memory', 'desc')", "return table.getRows('active')[0].getData().memory === 777")
    timed("scroll", "document.querySelector('.tabulator-tableholder').scrollTop = 200000",
          "return document.querySelectorAll('.tabulator-row').length > 5")  # fmt: skip
    timed("filter", "$('search').value = 'method_09'; $('filters').dispatchEvent(new Event('input'))",
          "return table.getRows('active').length === 1000")  # fmt: skip
    timed("open", "document.querySelector('button.open').click()", "return $('entry').open")
    print({name: round(seconds, 2) for name, seconds in took.items()}, f"{path.stat().st_size / 1e6:.1f} MB")
    assert took["load"] < 8 * SLOW
    assert max(took[name] for name in ("sort", "scroll", "filter", "open")) < 2 * SLOW
