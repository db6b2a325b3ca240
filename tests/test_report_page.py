"""The page of ``report`` in a browser, opened from the disk: it plays, switches, loops, keeps and exports."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from result_folder import line, sidecar, tone
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from kie_async.report import select_takes, write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")

ODD_NAME = "100% #1? 'a' \"b\" é日本.wav"
HOSTILE = "</script><img src=x onerror=alert(1)>"
CUT, SECONDS, SHORTER = 6.5, 20.0, 13.0
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--force-prefers-reduced-motion",  # nothing is to be waited for
]


class ReportPage:
    """The page in the browser."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address

    def open(self) -> None:
        self.browser.get(self.address)

    def run(self, script: str, *arguments: object) -> Any:  # whatever it returns
        return self.browser.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all that is made, whether or not it is in sight yet."""
        elements = f"[...document.querySelectorAll('{selector}')]"
        found: list[str] = self.run(f"return {elements}.map(each => each.textContent)")
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            webdriver.ActionChains(self.browser).send_keys(key).perform()

    def until(self, script: str) -> None:
        WebDriverWait(self.browser, 30, poll_frequency=0.05).until(lambda _: self.run(f"return {script}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs: with its source, a take and a shorter one; with the continuation alone; one that failed; many more.

    The take is as loud as its source in what both hold, up to the cut, and the shorter one half as loud.
    """
    path = tmp_path_factory.mktemp("results") / "100% #?"
    path.mkdir()
    song = tone(path.parent / ODD_NAME, SECONDS, width=1, before=0.4, loudness=0.5)
    source = {"source": {"path": str(song)}}
    request = {"title": HOSTILE, "continue_at": CUT}
    for number, name, seconds, loudness in ((1, ODD_NAME, SECONDS, 0.4), (2, "b.wav", SHORTER, 0.2)):
        tone(path / name, seconds, width=1, before=loudness)
        sidecar(path, f"a-{number}", number, name=name, key="a", request=request, **source)
    tone(path / "rest.wav", 2.0)
    more: dict[str, Any] = {"verdict": {"kind": "continuation", "seam": 0}, "source": {"path": "gone.wav"}}
    sidecar(path, "rest", key="b", request=request | {"title": "Rest"}, **more)
    tone(path / "seam.wav", 14.0, width=1, before=0.6)
    more["verdict"]["seam"] = 0.25
    sidecar(path, "seam", key="d", request=request | {"title": "Seam"}, **more | source)
    tone(path / "step.wav", 0.2)
    sidecar(path, "step", key="e", request={"audio_id": "id-seam", "continue_at": 5})
    tone(path / "seam-e-joined.wav", 15.0, width=1)
    line(path, "c", state="failed", title="River", error={"message": "a known work", "code": 413})
    for number in range(100):
        line(path, f"more-{number}", title=f"Z{number}", files=["rest.wav"])
    line(path, "more-98", state="unknown", title="Z98", files=["rest.wav"])
    tone(path / "z99-more-99-joined.wav", 0.2)  # the finished song of a chain
    asyncio.run(write_report(path))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for each in OPTIONS:
        options.add_argument(each)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
        yield browser


@pytest.fixture
def page(browser: webdriver.Chrome, folder: Path) -> Iterator[ReportPage]:
    """The page without verdicts; nothing may go wrong on it."""
    page = ReportPage(browser, (folder / "report.html").as_uri())
    page.open()
    page.run("localStorage.clear()")
    page.open()
    yield page
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]  # theirs


SOUNDS = "[...document.querySelectorAll('.job.active audio')]"
VOLUMES = f"{SOUNDS}.map(each => each.volume)"
HEIGHTS = """
return [...document.querySelectorAll('.job.active canvas')].map(each => {
  const copy = new OffscreenCanvas(each.width, each.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(each, 0, 0);
  const { data } = copy.getImageData(16, 0, 1, each.height);
  return data.filter((value, at) => at % 4 === 3 && value > 127).length;
});
"""


def test_takes_play_at_the_same_position_and_loop_round_the_seam(page: ReportPage) -> None:
    page.one(".play").click()
    page.until(f"{SOUNDS}[1].currentTime > 0.2")
    assert page.run(f"return {SOUNDS}.map(each => each.paused)") == [True, False, True]
    as_loud = pytest.approx([0.5, 0.5, 1.0], abs=0.03)  # the song, in all of them
    assert page.run(f"return {VOLUMES}") == as_loud
    assert page.run(HEIGHTS) == pytest.approx([11, 11, 11], abs=1)
    page.one("#match").click()
    assert page.run(f"return {VOLUMES}") == [1, 1, 1]
    assert page.run(HEIGHTS) == pytest.approx([22, 22, 11], abs=1)
    page.one("#match").click()
    assert page.run(f"return {VOLUMES}") == as_loud
    page.one(".job h2").click()  # where a space plays

    page.run(f"{SOUNDS}[1].currentTime = 8")
    page.until(f"{SOUNDS}[1].currentTime > 8.1")
    page.press("2")
    page.until(f"!{SOUNDS}[2].paused && {SOUNDS}[2].currentTime > 8")
    page.press("0")
    page.until(f"!{SOUNDS}[0].paused && {SOUNDS}[0].currentTime > 8.1")
    assert page.run(f"return {SOUNDS}.map(each => each.paused)") == [False, True, True]

    page.press("1", "l")
    page.until(f"{SOUNDS}[1].currentTime < {CUT}")
    assert page.one(".loop").get_attribute("aria-pressed") == "true"
    page.run(f"{SOUNDS}[1].addEventListener('ended', () => {{ window.wasEnded = true; }})")
    page.run(f"{SOUNDS}[1].currentTime = {CUT} + 2.9")
    page.until(f"{SOUNDS}[1].currentTime < {CUT} && {SOUNDS}[1].currentTime > {CUT} - 3.01")
    assert page.run("return window.wasEnded") is None
    page.press("l")

    page.run(f"{SOUNDS}[1].currentTime = 15")
    page.press("2")  # which has ended there
    page.until(f"!{SOUNDS}[2].paused && {SOUNDS}[2].currentTime >= {CUT} - 3")
    page.until("document.getElementById('live').textContent.startsWith('Take 2 has nothing at 0:1')")
    page.run(f"{SOUNDS}[2].currentTime = {SHORTER} - 0.1")
    page.until(f"{SOUNDS}[2].ended")
    page.press("1", "2", " ")  # it is silent meanwhile
    page.until(f"!{SOUNDS}[2].paused && {SOUNDS}[2].currentTime >= {CUT} - 3")
    page.press(" ")
    page.until(f"{SOUNDS}[2].paused")

    page.press(" ")
    page.until("document.querySelector('.job.playing')")
    page.press("n")  # that of the continuation, which begins at the cut
    page.until(f"{SOUNDS}.length === 1 && {SOUNDS}[0].currentTime > 0.1")
    assert len(page.all(".job.playing")) == 1  # the other row shows that it is paused
    assert page.one(".play").get_attribute("aria-label") == f"Play {HOSTILE}"
    assert page.run("return document.activeElement.textContent") == "Rest"
    position = float(page.one(".job.current [type=range]").get_attribute("value") or 0)
    assert CUT <= position <= CUT + 2
    assert page.run("return document.querySelectorAll('audio[src]').length") == 1  # no other is loaded


STARTS = """
window.starts = [];
const { play } = HTMLMediaElement.prototype;
HTMLMediaElement.prototype.play = function () {
  window.starts.push([this.src.endsWith("seam.wav") ? "take" : "source", this.currentTime]);
  return play.call(this);
};
"""


def test_the_keys_go_from_seam_to_seam_of_a_finished_song(page: ReportPage) -> None:
    page.press("n", "n", "n", "n")
    assert page.run("return document.activeElement.textContent") == "Seam finished song of 2 steps"
    assert page.texts(".current .facts span") == ["2 seams: 0:06.50, 0:11.50"]
    assert page.texts(".current .axis .cut") == ["0:06.50", "0:11.50"]
    page.run(STARTS)
    for keys, seam in (("g", CUT), ("g", CUT + 5), ("g", CUT), ("gl", CUT + 5)):  # round, and the one it is at
        page.press(*keys)
        page.until(f"starts.at(-1)?.[1] === {seam - 3}")
    page.run(f"starts.length = 0; {SOUNDS}[0].currentTime = {CUT} + 6")
    page.until(f"{SOUNDS}[0].currentTime > {CUT} + 6.1")
    assert page.run("return starts") == []
    page.run(f"{SOUNDS}[0].currentTime = {CUT} + 7.9")
    page.until(f"starts.at(-1)?.[1] === {CUT} + 2")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)  # nearer to the other
    page.run(f"{SOUNDS}[0].currentTime = {CUT} + 2.9")
    page.until(f"starts.at(-1)?.[1] === {CUT} - 3")
    page.press("l", " ")


def test_a_continuation_is_heard_behind_its_source(page: ReportPage) -> None:
    """The clock is that of the song: the source plays up to the cut, and the take from there."""
    paused = f"{SOUNDS}.map(each => each.paused).join()"
    page.run(STARTS)
    page.press("n", "n", "n", "n", "n")
    assert page.texts(".current .clock") == ["0:00.0 / 0:20.3"]
    page.press("g")
    page.until("starts.length")
    assert page.run("return document.activeElement.textContent") == "Seam step 1 of 2"
    assert page.texts(".current .clock")[0].endswith(" / 0:20.3")
    assert page.run(f"return {VOLUMES}") == pytest.approx([1.0, 0.4 / 0.6], abs=0.03)  # as loud as the song
    page.run(f"{SOUNDS}[0].currentTime = {CUT} - 0.2")
    page.until(f"{paused} === 'true,false' && {SOUNDS}[1].currentTime > 0.3")
    assert page.run("return [starts[0], starts.at(-1)]") == [["source", CUT - 3], ["take", 0.25]]

    page.run("starts.length = 0")
    page.press("l")  # over both
    page.until(f"{paused} === 'false,true'")
    page.run(f"{SOUNDS}[0].currentTime = {CUT} - 0.2")
    page.until(f"{paused} === 'true,false'")
    page.run(f"{SOUNDS}[1].currentTime = 3.3")
    page.until("starts.map(([player]) => player).join().includes('take,source')")
    page.press("l", "g", " ")
    page.until(f"{paused} === 'true,true'")
    assert {tuple(each) for each in page.run("return starts")} == {("source", CUT - 3), ("take", 0.25)}

    page.press("0", Keys.ARROW_RIGHT)
    position = float(page.one(".current [type=range]").get_attribute("value") or 0)
    page.press("1", " ")  # the same position of the take
    page.until(f"{paused} === 'true,false'")
    assert page.run("return starts.at(-1)") == ["take", pytest.approx(position - CUT + 0.25, abs=0.01)]
    page.press("g")
    page.run(f"{SOUNDS}[0].dispatchEvent(new Event('ended'))")  # as of a source that is cut at its end
    page.until(f"{paused} === 'true,false'")
    assert page.run("return starts.at(-1)") == ["take", 0.25]


def test_verdicts_are_kept_exported_and_copied(page: ReportPage, folder: Path, tmp_path: Path) -> None:
    page.browser.set_window_size(1200, 900)
    page.all("[data-verdict=keep]")[1].click()
    page.press("d", "0", "k")  # take 1, which is chosen; then the source, which gets none
    page.until("document.querySelector('#live.shown').textContent === 'The source gets no verdict: choose a take'")
    page.press("e", "a", Keys.SPACE, "k", Keys.ESCAPE, "1", "k", "k")  # a note; kept, and undecided
    page.all(".note")[1].send_keys('"<é>"')
    assert page.one("#progress").text == "1 of 107 decided"
    page.open()
    assert page.one("#progress").text == "1 of 107 decided"
    assert [each.get_attribute("value") for each in page.all(".note")[:2]] == ["a k", '"<é>"']
    assert page.all("[data-verdict=keep]")[1].get_attribute("aria-pressed") == "true"

    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    page.one("#export").click()
    exported = tmp_path / "verdicts.json"
    WebDriverWait(page.browser, 30, poll_frequency=0.05).until(lambda _: exported.exists())
    value = json.loads(exported.read_text("utf-8"))
    assert (value["folder"], value["directory"]) == (folder.name, f"{folder}/")
    assert [
        (take["job"], take["take"], take["file"], take["verdict"], take["note"]) for take in value["takes"][:2]
    ] == [
        ("a", 1, ODD_NAME, None, "a k"),
        ("a", 2, "b.wav", "keep", '"<é>"'),
    ]
    selection = asyncio.run(select_takes(exported, tmp_path / "best"))
    assert selection.copied == (tmp_path / "best" / "b.wav",)


def test_rows_are_made_when_they_are_seen_and_found_by_words(page: ReportPage) -> None:
    assert page.one("#summary").text == "104 songs · 105 takes · 2 finished · 1 failed · 1 unknown"
    assert page.one(".job h2").text == HOSTILE
    assert page.all(".job img") == []
    facts = page.texts(".facts")
    assert (facts[0].endswith("cut at 0:06.50"), page.texts(".axis .cut")[0]) == (True, "cut 0:06.50")
    assert (facts[1], facts[5]) == ("gone.wavits source is not herecut at 0:06.50", "from take 1 of step 1cut at 0:05")
    assert page.texts(".job h2")[5] == "Seam step 2 of 2"
    assert 3 <= len(page.all(".job:not(.waiting)")) < 30
    page.one(".job h2").click()
    page.one("#search").send_keys("z50")
    page.run("document.activeElement.blur()")
    page.press("g")  # of the row that is seen, of which no seam is known
    page.until("document.querySelector('#live.shown').textContent === 'It is not known where the new part begins'")
    page.one("#search").clear()
    page.one("#search").send_keys("STEP 2")
    assert [each.text for each in page.all(".job:not([hidden]) h2")] == ["Seam step 2 of 2"]
    page.one("#search").clear()
    page.one("#search").send_keys("river")
    assert [each.text for each in page.all(".job:not([hidden])")] == ["River\nfailed\na known work (code 413)"]
    page.one("#search").send_keys(" nothing")
    assert page.one("#nothing").is_displayed()
    page.open()
    height = "return document.querySelector('.job:last-child').offsetHeight"
    expected = page.run(height)
    page.run("document.querySelector('.job:last-child').scrollIntoView()")
    page.until("!document.querySelector('.job:last-child').classList.contains('waiting')")
    assert page.run(height) == pytest.approx(expected, abs=30)  # so that nothing jumps, but for a line
    assert page.texts(".job:nth-last-child(-n + 2) .pick b") == ["Song", "Take 1"]


CONTRASTS = """
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const over = ([r, g, b, a = 1], under) => [r, g, b].map((value, at) => a * value + (1 - a) * under[at]);
const light = (color) => color.map((value) => value / 255)
  .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const ground = (element) => (element
  ? over(numbers(getComputedStyle(element).backgroundColor), ground(element.parentElement)) : [255, 255, 255]);
const contrast = (one, other) => {
  const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
};
const root = getComputedStyle(document.documentElement);
const hex = (name) => root.getPropertyValue(`--${name}`).match(/[0-9a-f]{2}/g).map((value) => parseInt(value, 16));
const texts = [...document.querySelectorAll("body *:not(script, style, noscript *)")]
  .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((element) => [contrast(numbers(getComputedStyle(element).color), ground(element)), element.outerHTML]);
const marks = ["wave", "new", "edge", "accent"].flatMap((name) => ["card", "paper"].map((under) => [name, under]))
  .map(([name, under]) => [contrast(hex(name), hex(under)), `${name} on ${under}`]);
return [...texts.filter(([value]) => value < 4.5), ...marks.filter(([value]) => value < 3)];
"""


def test_all_can_be_read_by_light_and_dark_without_colours_and_on_paper(page: ReportPage) -> None:
    for selector in ("[data-verdict=keep]", ".loop"):
        page.one(selector).click()
    page.all("[data-verdict=drop]")[1].click()
    marks = "return [...arguments].map(each => getComputedStyle(each, '::before').content)"
    pressed = page.all(".choice [aria-pressed=true]")
    assert page.run(marks, *pressed) == ['"✓ " / ""', '"✕ " / ""']  # a screen reader says that they are pressed
    assert page.one(".drop b").value_of_css_property("text-decoration-line") == "line-through"
    assert page.run(marks, *page.all(".pick")[:3]) == ["none", '""', "none"]  # the lane that is heard
    try:
        for theme, media in (("light", ""), ("dark", ""), ("dark", "print")):
            features = [{"name": "prefers-color-scheme", "value": theme}]
            page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
            assert page.run(CONTRASTS) == []
        assert not page.one(".bar").is_displayed()
        page.run("dispatchEvent(new Event('beforeprint'))")
        assert page.all(".waiting") == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


OVERLAPS = """
[...document.querySelectorAll('.axis > div')].some(({ children }) => {
  const boxes = [...children].slice(1).filter((each) => each.textContent).map((each) => each.getBoundingClientRect());
  return boxes.some((one) => boxes.some((other) => one.left < other.left && one.right + 4 > other.left));
})
"""


def test_it_fits_a_phone_and_says_what_it_is(page: ReportPage) -> None:
    for width in (320, 390):
        size = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.run("return document.documentElement.scrollWidth") == width
        page.until(f"!({OVERLAPS})")
    loop = "document.querySelector('.loop')"
    width = page.run(f"return {loop}.offsetWidth")
    assert page.run(f"{loop}.click(); return {loop}.offsetWidth") == width  # the clock beside it keeps its line
    small = "[...document.querySelectorAll('button')].filter(each => each.offsetHeight && each.offsetHeight < 32)"
    assert page.run(f"return {small}.map(each => each.textContent)") == []  # a thumb finds them
    page.run("document.querySelectorAll('.job .note')[1].scrollIntoView()")
    assert page.run("return document.elementFromPoint(40, 60).closest('.play') !== null")  # it stays above its takes
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    unnamed = "[...document.querySelectorAll('button, input, select')].filter(each => !each.labels?.length"
    unnamed += " && !(each.getAttribute('aria-label') ?? each.textContent).trim()).length"
    assert page.run(f"return {unnamed}") == 0
    page.press("?")
    assert page.one("#help").is_displayed()
    page.one("#keys-on").click()
    page.press(Keys.ESCAPE)
    page.one("#match").click()
    page.open()  # the switches are as they were left
    assert page.run("return document.getElementById('match').checked") is False
    page.press("?")
    assert not page.one("#help").is_displayed()
    fixed = "Object.defineProperty(HTMLMediaElement.prototype, 'volume', { get: () => 1, set() {} })"  # as an iPhone's
    script = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": fixed})
    page.open()
    assert page.one(".match").text == "Levels are not matched: this device plays all at one volume"
    page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    page.one("[type=range]").send_keys(Keys.ARROW_RIGHT)
    assert page.one(".clock b").text == "0:05.0"
