"""A real browser for the tests of the page."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mt.report.page import render
from tests.report.sample import report

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


class Browser:
    """A page in Chromium, looked at as a person does."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, data: dict[str, Any]) -> Path:
        """Writes the page and opens it from its file."""
        path = self.folder / "report.html"
        path.write_text(render(data), encoding="utf-8")
        self.forget()
        self.driver.get(path.as_uri())
        return path

    def forget(self) -> None:
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """What the elements hold, to the letter (`.text` would trim and fold spaces)."""
        return list(
            self.js(
                "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
                selector,
            )
        )

    def control(self, label: str) -> Any:
        """The field with this label."""
        return self.driver.find_element(
            "xpath",
            f"//label[starts-with(normalize-space(.), '{label}')]/*[self::input or self::select]",
        )

    def choose(self, label: str, option: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.control(label)).select_by_visible_text(option)

    def press(self, element: Any, *keys: str) -> None:
        self.js("arguments[0].focus()", element)
        for key in keys:
            element.send_keys(key)

    def hover(self, element: Any, x: float = 0, y: float = 0) -> None:
        """Points so far from the middle of an element."""
        from selenium.webdriver import ActionChains

        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element_with_offset(element, round(x), round(y)).perform()

    def drag(self, element: Any, start: float, by: float) -> None:
        from selenium.webdriver import ActionChains

        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        chain = (
            ActionChains(self.driver)
            .move_to_element_with_offset(element, round(start), 0)
            .click_and_hold()
        )
        chain.move_by_offset(round(by), 0).release().perform()

    def tip(self) -> str:
        return str(
            self.js(
                "const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.innerText"
            )
        )

    def column(self, row: int) -> list[str]:
        """One row of text of every sentence that is shown: 0 the source, 1 the reference, 2 the
        first system.
        """
        return [texts[row] for texts in self.js(
            "return [...document.querySelectorAll('.sentence')].map((s) => [...s.querySelectorAll('.text')].map((t) => t.textContent))"
        )]  # fmt: skip

    def errors(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def requests(self) -> list[str]:
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    lacking = [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]
    if lacking:
        pytest.skip(f"no {' and no '.join(lacking)}: install Debian's chromium and chromium-driver")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="no selenium: pip install -e '.[dev]'"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=str(DRIVER))
    )
    chrome.set_window_size(1280, 900)
    yield chrome
    chrome.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> Iterator[Browser]:
    """Every test of the page in a browser also tests that it stays silent: no error, no request."""
    browser = Browser(driver, tmp_path)
    yield browser
    assert not browser.errors()
    own = (tmp_path / "report.html").as_uri()
    theirs = (
        "data:",
        "chrome:",
        "chrome-untrusted:",
    )  # the page's own icon; the tab that the browser began with
    assert not [
        url for url in browser.requests() if url.split("#")[0] != own and not url.startswith(theirs)
    ]


@pytest.fixture
def page(browser: Browser) -> Browser:
    """The report of two runs, freshly opened."""
    browser.open(report())
    return browser
