"""Fixtures for tests that open the report page in a real browser."""

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
    """A page in Chromium, operated as a person would operate it."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, data: dict[str, Any]) -> Path:
        """Write the page to a file, and open the file."""
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

    def map(self, selector: str, function: str) -> list[Any]:
        """Apply a JavaScript function to all elements that match, and return the results."""
        script = f"return [...document.querySelectorAll(arguments[0])].map({function})"
        return list(self.js(script, selector))

    def texts(self, selector: str) -> list[str]:
        """Return the elements' exact texts. `.text` would strip and collapse spaces."""
        return self.map(selector, "(element) => element.textContent")

    def control(self, label: str) -> Any:
        """Return the input field or select box with the given label."""
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
        """Move the pointer to the given offset from the centre of an element."""
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
        """Return one row of each sentence. 0 is the source, 1 the reference, 2 the first system."""
        texts = "[...sentence.querySelectorAll('.text')].map((text) => text.textContent)"
        return [rows[row] for rows in self.map(".sentence", f"(sentence) => {texts}")]

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
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        f"user-data-dir={profile}",
    ):
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
    """Open a browser. After the test, check that the page had no errors and loaded nothing."""
    browser = Browser(driver, tmp_path)
    yield browser
    assert not browser.errors()
    page = (tmp_path / "report.html").as_uri()
    # URLs of the page's own icon, and of the tab that the browser opens first.
    harmless = ("data:", "chrome:", "chrome-untrusted:")
    assert not [
        url
        for url in browser.requests()
        if url.split("#")[0] != page and not url.startswith(harmless)
    ]


@pytest.fixture
def page(browser: Browser) -> Browser:
    """Open the report of two runs."""
    browser.open(report())
    return browser
