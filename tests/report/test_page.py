"""Test that text cannot inject code into the report page, and that browsers can open the page."""

import base64
import itertools
import json
import re
import time
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from mt.report.page import SCRIPTS, render
from tests.conftest import ROOT
from tests.report.conftest import Browser
from tests.report.sample import attention, corpus, report

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script>",
    "]]>",
    "\"quotes' & &amp; {{js}} \\u003c \\",
    "السلام عليكم يا أصدقاء",
    "שלום עולם, מה שלומך?",
    "👩‍👩‍👧‍👦 🇩🇪 ✌🏽",
    "a\u2028b\u2029c\u0000d",
    "W" * 2000,
    "lone \ud800 half",
]


class Scripts(HTMLParser):
    """Collects the texts of all script elements, and all references, with an HTML parser."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.references: list[str] = []
        self.is_inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_inside = tag == "script"
        if self.is_inside:
            self.texts.append("")
        self.references += [
            value or ""
            for name, value in attrs
            if name in {"src", "href", "srcset", "action", "data", "poster"}
        ]

    def handle_endtag(self, tag: str) -> None:
        self.is_inside = False

    def handle_data(self, data: str) -> None:
        if self.is_inside:
            self.texts[-1] += data


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_reads_back_unchanged_and_does_not_end_the_script(text: str) -> None:
    data = {"title": text, "tests": [{"name": text, "sentences": {"src": [text]}}], text: text}
    page = render(data)
    page.encode("utf-8")
    scripts = Scripts(page)
    assert len(scripts.texts) == 2
    assert json.loads(scripts.texts[0]) == data
    assert scripts.texts[1] == Scripts(render({})).texts[1]


def test_the_page_loads_nothing_from_outside() -> None:
    page = render(report())
    references = Scripts(page).references
    assert references
    assert all(reference.startswith("#") or reference == "data:," for reference in references)
    assert "url(" not in page
    assert "@import" not in page
    assert {part.split('"')[0] for part in page.split("http")[1:]} <= {
        "-equiv=",
        "://www.w3.org/2000/svg",
    }


def test_a_policy_forbids_what_the_page_does_not_need() -> None:
    sources = "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;"
    assert f"content=\"default-src 'none'; {sources}" in render({})


def test_the_script_makes_no_markup_out_of_text() -> None:
    script = Scripts(render({})).texts[1]
    assert not [
        name
        for name in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        )
        if name in script
    ]


def test_numbers_that_are_not_finite_count_as_missing() -> None:
    data = {
        "runs": [{"curves": {"train": {"loss": [1.5, float("nan"), float("inf"), -float("inf")]}}}]
    }
    assert json.loads(Scripts(render(data)).texts[0])["runs"][0]["curves"]["train"]["loss"] == [
        1.5,
        None,
        None,
        None,
    ]


def test_every_asset_is_in_the_page_and_in_the_package() -> None:
    folder = ROOT / "mt/report"
    assert {path.name for path in folder.glob("*.js")} == set(SCRIPTS)
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["package-data"]["mt.report"]
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == {path for path in folder.iterdir() if path.suffix in {".html", ".css", ".js"}}


def test_every_part_shows_what_it_was_given(page: Browser) -> None:
    assert page.one("h1").text == "base and deeper"
    assert page.driver.title == "base and deeper"
    assert "BLEU 41.03" in page.one("#summary").text
    assert "deeper is better than base by 0.62 BLEU (p = 0.012)." in page.one("#summary").text
    assert "40.41 [39.21, 41.61]" in page.one("#scores").text
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" in page.one("#scores").text
    assert "+0.62" in page.one("#comparisons").text
    assert "0.012" in page.one("#comparisons").text
    assert len(page.all("#curves .plot")) == 5
    assert len(page.all("#buckets rect.bar")) == 2 * 5 + 2 * 5
    assert "model.encoder_layers" in page.one("#differences").text
    assert "5cd4a61198789515" in page.one("#provenance").text
    assert not page.all("main .missing")


def test_the_best_of_each_score_is_bold_and_a_low_ter_is_best(page: Browser) -> None:
    num_best = "(row) => row.querySelectorAll('td.best').length"
    assert page.map("#scores tbody tr", num_best) == [0, 3]


def test_choosing_another_test_set_replaces_its_parts(page: Browser) -> None:
    page.choose("Test set", "news")
    assert "45 of 45 sentences" in page.one("#sentences").text
    assert "news, 45 sentences, models in fp32" in page.one("#scores caption").text


def test_pointing_at_a_curve_shows_exact_values(page: Browser) -> None:
    plot = page.one("#curves .plot")
    page.hover(plot)
    data = report()["runs"]
    step = int(page.tip().split("\n")[0].removeprefix("Update ").replace(",", ""))
    for run in data:
        train = run["curves"]["train"]
        assert f"{train['loss'][train['step'].index(step)]:.3f}" in page.tip()
    page.hover(page.one("h1"))
    assert page.tip() == ""


def test_arrow_keys_walk_along_the_updates_of_a_curve(page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    plot = page.all("#curves .plot")[1]
    page.press(plot, Keys.HOME)
    assert page.tip().startswith("Update 500\n")
    page.press(plot, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.tip().startswith("Update 1,500\n")
    page.press(plot, Keys.END)
    assert page.tip().startswith("Update 10,000\n")
    assert f"{report()['runs'][1]['curves']['valid']['bleu'][-1]:.2f}" in page.tip()


def test_a_drag_zooms_every_curve_and_a_double_click_resets(page: Browser) -> None:
    from selenium.webdriver import ActionChains

    def ticks() -> list[list[str]]:
        return [
            [t.text for t in plot.find_elements("css selector", "text[text-anchor=middle]")]
            for plot in page.all("#curves .plot")
        ]

    before = ticks()
    plot = page.one("#curves .plot")
    page.drag(plot, 0, 80)
    zoomed = ticks()
    assert all(now != then for now, then in zip(zoomed, before, strict=True))
    assert page.one("#curves .controls > button:last-child").text == "Reset zoom"
    ActionChains(page.driver).double_click(plot).perform()
    assert ticks() == before


def test_a_hidden_run_leaves_the_curves(page: Browser) -> None:
    assert len(page.all("#curves path.train")) == 2 * 3
    page.one("#curves .legend button").click()
    assert len(page.all("#curves path.train")) == 3
    assert page.one("#curves .legend button").get_attribute("aria-pressed") == "false"


def test_pointing_at_a_bucket_shows_scores_and_count(page: Browser) -> None:
    plot = page.one("#buckets .plot")
    page.hover(plot, x=-plot.size["width"] / 2 + 60)
    assert page.tip().split("\n")[0] == "Source length in words: 1-10"
    assert "44.10" in page.tip()
    assert "310" in page.tip()


def test_a_signature_can_be_copied(page: Browser) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    button = page.one("#scores .copy")
    button.click()
    assert WebDriverWait(page.driver, 5).until(lambda _: button.text in {"Copied", "Selected"})


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("As in the test set", lambda c, n: n),
        ("Shortest source first", lambda c, n: len(c["src"][n])),
        ("Longest source first", lambda c, n: -len(c["src"][n])),
        ("Lowest chrF of base", lambda c, n: c["scores"][0][n]),
        ("Highest chrF of deeper", lambda c, n: -c["scores"][1][n]),
        ("Largest gain, base to deeper", lambda c, n: c["scores"][0][n] - c["scores"][1][n]),
        ("Largest loss, base to deeper", lambda c, n: c["scores"][1][n] - c["scores"][0][n]),
    ],
)
def test_sentences_come_in_the_chosen_order(
    page: Browser, order: str, key: Callable[[dict[str, Any], int], float]
) -> None:
    sentences = corpus(120, 2)
    page.choose("Order", order)
    wanted = sorted(range(120), key=lambda n: key(sentences, n))[:20]
    assert page.column(0) == [sentences["src"][n] for n in wanted]


def test_a_search_finds_source_reference_and_translation_whatever_the_case(page: Browser) -> None:
    sentences = corpus(120, 2)
    columns = [sentences["src"], sentences["ref"], *sentences["hyps"]]
    query = sentences["hyps"][1][40].split()[1].upper()
    wanted = [
        n for n in range(120) if any(query.lower() in column[n].lower() for column in columns)
    ]
    page.control("Search").send_keys(query)
    assert page.column(0) == [sentences["src"][n] for n in wanted][:20]
    assert f"{len(wanted)} of 120 sentences" in page.one("#sentences").text
    hits = page.js(
        "return [...CSS.highlights.get('hit')].map((range) => range.toString().toLowerCase())"
    )
    assert hits
    assert set(hits) == {query.lower()}
    page.control("Search").send_keys("no such word")
    assert "No sentence matches" in page.one("#sentences").text


def test_a_count_of_the_diagnosis_leads_to_its_sentences(page: Browser) -> None:
    sentences = corpus(120, 2)
    page.all("#diagnosis button")[1].click()
    wanted = [n for n in range(120) if sentences["flags"][1][n]]
    assert page.column(0) == [sentences["src"][n] for n in wanted][:20]
    assert page.texts(".sentence .flag")[0] == "untranslated copies"
    page.choose("Show", "All sentences")
    assert len(page.all(".sentence")) == 20


def test_pages_of_sentences_can_be_turned(page: Browser) -> None:
    sentences = corpus(120, 2)
    page.one("[aria-label='Next page']").click()
    assert page.column(0) == sentences["src"][20:40]
    page.one("[aria-label='Last page']").click()
    assert page.column(0) == sentences["src"][100:]
    assert page.one("[aria-label='Next page']").get_attribute("disabled")


@pytest.mark.parametrize(
    ("ref", "hyp", "differ", "lost"),
    [
        ("a black dog runs", "a black dog runs", [], []),
        ("a black dog runs", "a white dog runs", ["white"], ["black"]),
        ("a black dog runs", "runs a black dog", ["runs"], ["runs"]),
        ("the dog", "the dog, the dog", [", the dog"], []),
        ("the old dog sleeps", "", [], ["the old dog sleeps"]),
        ("", "some words", ["some words"], []),
        ("我喜欢猫", "我喜欢狗", ["狗"], ["猫"]),
    ],
)
def test_words_that_differ_from_the_reference_are_marked(
    browser: Browser, ref: str, hyp: str, differ: list[str], lost: list[str]
) -> None:
    sentences = {"src": ["x"], "ref": [ref], "hyps": [[hyp]], "scores": [[50.0]], "flags": [[[]]]}
    browser.open(
        {
            "tests": [
                {
                    "name": "t",
                    "num_sentences": 1,
                    "systems": [{"name": "s"}],
                    "sentences": sentences,
                }
            ]
        }
    )
    assert browser.texts(".sentence .differ") == differ
    assert browser.texts(".sentence .lost") == lost
    assert browser.column(1) == [ref]
    assert browser.column(2) == [hyp]


def test_another_head_draws_another_map_and_the_mean_is_the_mean(page: Browser) -> None:
    def drawn() -> str:
        return "".join(page.map(".map .shade", "(shade) => shade.outerHTML"))

    seen = {drawn()}
    for head in ("Head 1", "Head 2", "Head 4"):
        page.choose("Head", head)
        seen.add(drawn())
    page.choose("Layer", "Layer 2")
    seen.add(drawn())
    page.choose("Kind", "Masked decoder self-attention")
    seen.add(drawn())
    assert len(seen) == 6


def test_pointing_and_arrow_keys_read_single_weights(page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    def weight(head: int, query: int, key: int) -> float:
        block = attention(3)["cross"]
        _, heads, queries, keys = block["shape"]
        data = base64.b64decode(block["data"])
        chosen = range(heads) if head < 0 else [head]
        return sum(data[(h * queries + query) * keys + key] for h in chosen) / 255 / len(chosen)

    plot = page.one(".map")
    page.press(plot, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert page.tip().split("\n")[0] == "▁black → ▁schwarzer"
    assert f"{weight(-1, 1, 1):.3f}" in page.tip()
    page.choose("Head", "Head 3")
    page.press(plot, *[Keys.ARROW_DOWN] * 4, *[Keys.ARROW_RIGHT] * 4)
    assert page.tip().split("\n")[0] == "▁runs → ▁am"
    assert f"{weight(2, 3, 4):.3f}" in page.tip()
    frame = page.one(".map .frame")
    page.hover(frame, x=-frame.size["width"] / 2 + 3, y=-frame.size["height"] / 2 + 3)
    assert page.tip().split("\n")[0] == "▁A → ▁Ein"


def test_a_masked_decoder_shows_nothing_of_the_future(page: Browser) -> None:
    page.choose("Kind", "Masked decoder self-attention")
    paths = "".join(page.map(".map .shade", "(path) => path.getAttribute('d')"))
    cells = re.findall(r"M([\d.]+),([\d.]+)", paths)
    assert cells
    assert all(float(x) <= float(y) for x, y in cells)


def test_a_sentence_leads_to_its_attention(page: Browser) -> None:
    page.driver.find_element("xpath", "//h3[starts-with(., 'Sentence 18')]/button").click()
    assert page.js("return document.activeElement.id") == "h-attention"
    assert page.control("Sentence").get_attribute("value") == "1"


def test_the_theme_changes_and_is_kept(page: Browser) -> None:
    def background() -> str:
        return str(page.js("return getComputedStyle(document.body).backgroundColor"))

    first = background()
    page.one("#theme").click()
    second = background()
    assert first != second
    page.driver.refresh()
    assert background() == second
    page.one("#theme").click()
    assert background() == first


def test_a_narrow_screen_scrolls_only_downwards(browser: Browser) -> None:
    data = report()
    data["tests"][0]["sentences"]["hyps"][0][0] = "W" * 2000
    data["tests"][0]["name"] = data["title"] = "a_name_without_any_place_to_break_" * 4
    emulate = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulate)
    try:
        browser.open(data)
        assert browser.js("return innerWidth") == 390
        assert browser.js("return document.documentElement.scrollWidth") <= 390
        assert browser.js("return document.body.scrollWidth") <= 390
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ten_thousand_sentences_open_and_search_at_once(browser: Browser) -> None:
    data = report()
    data["tests"] = [{**data["tests"][0], "num_sentences": 10_000, "sentences": corpus(10_000, 2)}]
    path = browser.open(data)
    assert path.stat().st_size < 10 * 2**20
    assert "10,000 of 10,000 sentences" in browser.one("#sentences").text
    paint = browser.js("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 2000
    took = browser.js(
        "const field = document.querySelector('input[type=search]'); const times = [];"
        "for (const text of ['e', 'en', 'end', 'en', 'e', '']) {"
        " const start = performance.now(); field.value = text;"
        " field.dispatchEvent(new Event('input')); document.body.offsetHeight;"
        " times.push(performance.now() - start); } return times"
    )
    # This is in milliseconds per key. It is about 100 if the machine is idle.
    assert sorted(took)[len(took) // 2] < 500
    start = time.monotonic()
    browser.choose("Order", "Largest loss, base to deeper")
    assert len(browser.all(".sentence")) == 20
    assert time.monotonic() - start < 2


def test_hostile_text_is_shown_unchanged_and_does_not_run(browser: Browser) -> None:
    texts = [text.replace("\ud800", "") for text in HOSTILE]
    data = report()
    test = data["tests"][0]
    count = len(texts)
    flags = [[["<img src=x onerror=alert(1)>"] for _ in texts] for _ in range(2)]
    test["sentences"] = {
        "src": texts,
        "ref": texts,
        "hyps": [texts, texts],
        "scores": [[50.0] * count] * 2,
        "flags": flags,
    }
    test["attention"] = [{**attention(0), "src_tokens": texts[:9]}]
    for system in test["systems"]:
        system["diagnosis"][0]["label"] = texts[0]
    data["title"] = data["runs"][0]["name"] = test["systems"][0]["name"] = test["name"] = texts[0]
    data["runs"][0]["provenance"][texts[1]] = texts[2]
    data["config_differences"][0] = {"key": texts[1], "values": [texts[0], texts[2]]}
    browser.open(data)
    for shown in range(4):
        assert browser.column(shown) == texts
    assert browser.texts("h1") == [texts[0]]
    assert browser.texts("#differences tbody code")[0] == texts[1]
    assert browser.js("return document.scripts.length") == 2
    assert not browser.all("main img, main script")
    arabic, direction = ".sentence:nth-child(6) .text", "(text) => getComputedStyle(text).direction"
    assert browser.map(arabic, direction) == ["rtl"] * 4


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"title": "nothing yet", "runs": [], "tests": [], "config_differences": []},
        {
            "runs": [
                {
                    "name": "new",
                    "state": "running",
                    "curves": {"train": {}, "valid": {}},
                    "best_step": None,
                    "provenance": {},
                }
            ]
        },
        {"runs": [{"name": "bare"}], "tests": [{"name": "bare", "systems": [{"name": "bare"}]}]},
        {
            "tests": [
                {
                    "name": "t",
                    "num_sentences": 0,
                    "systems": [],
                    "comparisons": [],
                    "buckets": [],
                    "sentences": {},
                    "attention": [],
                }
            ]
        },
    ],
)
def test_an_empty_part_says_what_is_missing(browser: Browser, data: dict[str, Any]) -> None:
    browser.open(data)
    content = "(section) => [section.id, section.querySelector('.part').innerText]"
    parts = dict(browser.map("main section", content))
    assert len(parts) == 10
    assert all(len(text) > 10 for text in parts.values())
    missing = {part for part in parts if browser.all(f"#{part} .missing")}
    assert {
        "curves",
        "comparisons",
        "buckets",
        "diagnosis",
        "sentences",
        "attention",
        "differences",
        "provenance",
    } <= missing


def test_one_run_that_never_validated_shows_its_loss(browser: Browser) -> None:
    run = {
        "name": "new",
        "curves": {"train": {"step": [50, 100], "loss": [7.5, 6.25]}},
        "best_step": None,
    }
    browser.open({"runs": [run]})
    assert len(browser.all("#curves .plot")) == 1
    assert "train.valid_every" in browser.one("#curves").text


def test_every_control_has_a_name_and_is_reached_by_tab(page: Browser) -> None:
    rule = ".sentence { content-visibility: visible }"
    page.js(
        "const style = document.createElement('style'); style.textContent = arguments[0];"
        "document.head.append(style)",
        rule,
    )
    controls = page.all(
        "main button:enabled:not([hidden]), main .plot, main .map, main select, main input, "
        "header button, header select"
    )
    assert len(controls) > 25
    assert not [
        control.get_attribute("outerHTML") for control in controls if not control.accessible_name
    ]
    assert not [
        control.get_attribute("outerHTML")
        for control in controls
        if page.js("return arguments[0].tabIndex", control) < 0
    ]


def test_headings_descend_one_level_at_a_time(page: Browser) -> None:
    levels = [int(heading.tag_name[1]) for heading in page.all("h1, h2, h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels[1:]))
