"""The page in a browser: a poisoned corpus does nothing, clicks show conversations, and it fits phones and paper."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.report.run import examples
from tests.pipeline.report_corpus import poisoned, refine, run

PAPER = {"width": 717, "height": 1000}
"""A4 less the margins, in CSS pixels."""
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def written(here: Path, *words: str) -> None:
    """Write a page without its PNGs, which take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")
        done = refine(here, *words)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a poisoned corpus."""
    here = tmp_path_factory.mktemp("poisoned")
    run(here, poisoned())
    written(here, "report", "my-run", "--check")
    return here / "reports" / "my-run" / "index.html"


@pytest.fixture(scope="module")
def compared(page: Path) -> Path:
    """The page of raw against refined of the same corpus, which shows the run as well."""
    here = page.parent.parent.parent
    written(here, "compare", "raw", "refined", "--run", "my-run", "--no-train", "--check")
    return here / "reports" / "my-run-compare-corpora" / "index.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    """A browser that writes down what it asks the network for and what its console says."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed: `make browser` installs them on Debian")
    options = ChromeOptions()
    options.binary_location = browser
    for word in QUIET:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    driven = Chrome(options=options, service=ChromeService(driver))
    yield driven
    driven.quit()


def show(browser: Chrome, page: Path, *, width: int = 1400, scheme: str = "light") -> None:
    """Open the page and wait until all is drawn."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    for _ in range(600):
        if run_script(browser, "return document.documentElement.dataset.drawn !== undefined"):
            return
        time.sleep(0.05)
    pytest.fail("not all figures were drawn within 30 s")


def run_script(browser: Chrome, script: str, *words: object) -> Any:
    return browser.execute_script(script, *words)


def click_cell(browser: Chrome, figure: str, text: str) -> None:
    """Click a number in a heatmap."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"#figure-{figure} .panel svg text")
    cell = next(cell for cell in cells if cell.text == text)
    run_script(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", cell)
    cell.click()


def nothing_happened(browser: Chrome) -> None:
    """No dialog is open, the console is empty, and nothing was asked for but the page itself."""
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert [entry["message"] for entry in browser.get_log("browser")] == []  # type: ignore[no-untyped-call]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]  # type: ignore[no-untyped-call]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert len({url for url in asked if url.startswith("file")}) == 1


@pytest.mark.parametrize("which", ["page", "compared"])
def test_a_poisoned_corpus_does_nothing(chromium: Chrome, which: str, request: pytest.FixtureRequest) -> None:
    """Open, click a cell, follow a duplicate, filter: text stays text, on a run's page and on a comparison's."""
    show(chromium, request.getfixturevalue(which))
    text = next(
        cell.text
        for cell in chromium.find_elements(By.CSS_SELECTOR, "#figure-ppl-tox .panel svg .mark-text.role-mark text")
        if cell.text.isdigit()
    )
    click_cell(chromium, "ppl-tox", text)
    dialog = chromium.find_element(By.ID, "cell")
    assert dialog.is_displayed()
    assert f"{text} conversations" in dialog.find_element(By.ID, "cell-title").text
    assert dialog.find_elements(By.CSS_SELECTOR, ".one .message")
    dialog.find_element(By.CSS_SELECTOR, "button").click()
    words = chromium.find_element(By.ID, "words")
    words.send_keys("<script>alert(1)")
    found = chromium.find_elements(By.CSS_SELECTOR, "#list .one")
    assert found
    assert all("<script>alert(1)" in one.text for one in found)
    words.clear()
    words.send_keys("U+202E", Keys.ENTER)
    assert "⟨U+202E⟩gnirts" in chromium.find_element(By.CSS_SELECTOR, "#list .one").text
    assert run_script(chromium, "return document.querySelectorAll('#list script, #list img, #list svg').length") == 0
    assert run_script(chromium, "return document.scripts.length") == 3
    nothing_happened(chromium)


def test_a_click_shows_what_it_counts(chromium: Chrome, page: Path) -> None:
    """What a rule removed is dropped for that reason; the bar of what is kept shows kept ones only."""
    show(chromium, page)
    removed = chromium.find_elements(By.CSS_SELECTOR, "#figure-retention svg text")
    label = next(one for one in removed if one.text.startswith("\N{MINUS SIGN}"))
    run_script(chromium, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", label)
    label.click()
    badges = [one.text for one in chromium.find_elements(By.CSS_SELECTOR, "#cell-list .badge")]
    assert badges
    assert set(badges) == {"dropped: too_short"}
    chromium.find_element(By.CSS_SELECTOR, "#cell button").click()
    kept = chromium.find_element(By.ID, "state")
    kept.send_keys("kept", Keys.TAB)
    badges = [one.text for one in chromium.find_elements(By.CSS_SELECTOR, "#list .badge")]
    assert badges
    assert set(badges) == {"kept"}


def test_a_duplicate_leads_to_the_kept_one(chromium: Chrome, page: Path) -> None:
    """The conversation that was kept instead is an example too, one click away."""
    show(chromium, page)
    chromium.find_element(By.ID, "state").send_keys("dropped: near", Keys.TAB)
    link = chromium.find_element(By.CSS_SELECTOR, "#list button.link")
    wanted = link.text
    run_script(chromium, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link)
    link.click()
    first = chromium.find_element(By.CSS_SELECTOR, "#list .one")
    assert wanted in first.text
    assert first.find_element(By.CSS_SELECTOR, ".badge").text == "kept"


@pytest.mark.parametrize("width", [390, 768, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(chromium: Chrome, page: Path, width: int, scheme: str) -> None:
    """Every figure is drawn and as wide as its place, nothing sticks out, and text stands out from its paper."""
    show(chromium, page, width=width, scheme=scheme)
    assert run_script(chromium, "return document.documentElement.scrollWidth") <= width
    outside = "return [...document.querySelectorAll('.chart svg, .panels')].filter((one) => {const box = "
    outside += "one.getBoundingClientRect(); const place = one.closest('.panel, figure').getBoundingClientRect(); "
    outside += "return box.right > place.right + 1 || box.width > window.innerWidth}).length"
    assert run_script(chromium, outside) == 0
    empty = "return [...document.querySelectorAll('.chart')].filter((one) => !one.querySelector('svg path, svg text'))"
    assert run_script(chromium, f"{empty}.length") == 0
    shades = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    ink, paper = (sum(map(int, one[4:-1].split(","))) for one in run_script(chromium, shades))
    assert (ink > paper + 300) is (scheme == "dark")


@pytest.mark.parametrize("which", ["page", "compared"])
def test_it_prints(chromium: Chrome, request: pytest.FixtureRequest, which: str) -> None:
    """Paper is light, whatever the screen is, and has the figures, and all of each table."""
    show(chromium, request.getfixturevalue(which), scheme="dark")
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PAPER, "deviceScaleFactor": 1, "mobile": False})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not chromium.execute_script(
        "return [...document.querySelectorAll('table')].filter((t) => t.offsetWidth > t.parentElement.clientWidth)"
        ".map((t) => t.innerText)"
    )
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = base64.b64decode(chromium.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed[:5] == b"%PDF-"
    assert 3 <= printed.count(b"/Type /Page\n") <= 30


def focused(browser: Chrome) -> str:
    """The name of the element that has the focus."""
    return str(run_script(browser, "return document.activeElement.getAttribute('aria-label')"))


def test_the_keyboard_reaches_each_cell(chromium: Chrome, page: Path) -> None:
    """One Tab enters a chart, arrows go from cell to cell, Enter shows conversations, Escape comes back."""
    show(chromium, page)
    one = (
        "return [...document.querySelectorAll('.chart')].map((one) => one.querySelectorAll('[tabindex=\"0\"]').length)"
    )
    assert set(run_script(chromium, one)) == {1}
    run_script(chromium, "document.querySelector('#figure-ppl-tox').previousElementSibling.setAttribute('tabindex', 0)")
    run_script(chromium, "document.querySelector('#figure-ppl-tox').previousElementSibling.focus()")
    keys: Any = chromium.switch_to
    keys.active_element.send_keys(Keys.TAB)
    first = focused(chromium)
    assert first.startswith("perplexity < ")
    assert ", toxicity < 0.1: " in first
    keys.active_element.send_keys(Keys.ARROW_RIGHT)
    right = focused(chromium)
    assert right.split(", ")[0] != first.split(", ")[0]
    assert ", toxicity < 0.1: " in right
    keys.active_element.send_keys(Keys.ARROW_DOWN)
    below = focused(chromium)
    assert below.split(", ")[0] == right.split(", ")[0]
    assert ", toxicity 0.1 to 0.25: " in below
    assert chromium.find_element(By.ID, "tip").text == below
    assert chromium.find_element(By.CSS_SELECTOR, "#figure-ppl-tox .ring").is_displayed()
    keys.active_element.send_keys(Keys.ARROW_UP, Keys.ENTER)
    assert chromium.find_element(By.ID, "cell-title").text == right
    assert chromium.find_elements(By.CSS_SELECTOR, "#cell-list .one")
    keys.active_element.send_keys(Keys.ESCAPE)
    assert not chromium.find_element(By.ID, "cell").is_displayed()
    assert focused(chromium) == right


def test_a_screen_reader_names_each_cell(chromium: Chrome, page: Path) -> None:
    """A chart is a named group of buttons, one per cell, whose numbers are not read a second time."""
    show(chromium, page)
    nodes = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
    raw = report(page)["figures"]["ppl-tox"]["panels"][0]["rows"]
    cells = [name for role, name in named if role == "button" and name.startswith("perplexity ") and "kept, " in name]
    assert len(cells) == 3 * len(raw)
    assert ("group", "Conversations by perplexity and toxicity: Difference") in named
    assert not [name for role, name in named if role == "StaticText" and name.startswith("perplexity <")]
    texts = chromium.find_elements(By.CSS_SELECTOR, "#figure-ppl-tox .mark-text.role-mark")
    assert {one.get_attribute("aria-hidden") for one in texts} == {"true"}


def test_cards_are_short_and_open(chromium: Chrome, page: Path) -> None:
    """A card shows three lines of three messages; a button shows the rest, and what a search finds is never hidden."""
    show(chromium, page, width=390)
    tall = "return Math.max(...[...document.querySelectorAll('#list .one')].map((one) => one.offsetHeight))"
    while not (buttons := chromium.find_elements(By.CSS_SELECTOR, "#list .one button[aria-expanded=false]")):
        run_script(chromium, "document.querySelector('#list > button').click()")  # more cards
    button, long = buttons[0], buttons[0].find_element(By.XPATH, "..")
    assert run_script(chromium, tall) < 620
    before = long.size["height"]
    run_script(chromium, "arguments[0].click()", button)
    assert (button.get_attribute("aria-expanded"), button.text) == ("true", "Show less")
    assert long.size["height"] > before
    chromium.find_element(By.ID, "words").send_keys("<script>")
    assert chromium.find_elements(By.CSS_SELECTOR, "#list .one.whole")
    assert not chromium.find_elements(By.CSS_SELECTOR, "#list .one:not(.whole)")


def test_a_phone_page_is_short(chromium: Chrome, page: Path) -> None:
    """Shorter than on a wide screen: panels are strips to swipe, and long tables are folded until it is turned."""
    show(chromium, page, width=1180)
    wide = run_script(chromium, "return document.documentElement.scrollHeight")
    show(chromium, page, width=390)
    assert run_script(chromium, "return document.documentElement.scrollHeight") < wide
    strip = chromium.find_element(By.CSS_SELECTOR, "#figure-ppl-tox .panels")
    tops = {one.location["y"] for one in strip.find_elements(By.CSS_SELECTOR, ".panel")}
    assert len(tops) == 1
    assert run_script(chromium, "return arguments[0].scrollWidth > arguments[0].clientWidth", strip)
    folded = "return [...document.querySelectorAll('details.table')].map((one) => one.open)"
    assert set(run_script(chromium, folded)) == {False}
    turned = {"width": 844, "height": 390, "deviceScaleFactor": 1, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", turned)
    assert set(run_script(chromium, folded)) == {True}


def report(page: Path) -> dict[str, Any]:
    """The numbers beside a page."""
    found: dict[str, Any] = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    return found


class Scripts(HTMLParser):
    """Scripts, styles and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.found, self.addresses, self._in = "", {}, [], ""  # type: ignore[var-annotated]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self._in = f"{tag} {said.get('type', '')}".strip() if tag in {"script", "style"} else ""
        if said.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(said["content"])
        self.addresses += [str(value) for name, value in attrs if name in {"href", "src", "action", "srcset"}]
        assert not [name for name in said if name.startswith("on") or name == "style"], (tag, attrs)

    def handle_data(self, data: str) -> None:
        if self._in:
            self.found.setdefault(self._in, []).append(data)
        self._in = ""


def test_the_policy_allows_the_pages_own_scripts_only(page: Path) -> None:
    """Known by digest, without any exception, and no address leads away from the page."""
    parser = Scripts()
    parser.feed(page.read_text(encoding="utf-8"))
    assert "unsafe" not in parser.policy
    assert parser.policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        allowed = parser.policy.split(f"{kind}-src ")[1].split(";")[0].split()
        digests = [hashlib.sha256(text.encode()).digest() for text in parser.found[kind]]
        assert allowed == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert all(address.startswith(("#", "data:,")) for address in parser.addresses)


def test_the_page_is_small_whatever_the_corpus(page: Path) -> None:
    """Lines of a megabyte, thirty of them, do not make a page of more than 5 MB, and are cut where they are long."""
    assert page.stat().st_size < 5_000_000
    data = page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]
    shown = json.loads(data)["examples"]
    assert len(data) < 2 * examples.MAX_BYTES
    assert any(cut > 900_000 for one in shown for _, _, cut in one["messages"])
