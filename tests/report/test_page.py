"""The page in a real browser, driven through Chromium's own pipe: keys, clicks, focus, colours, narrow screens."""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

from tests.report.test_figure_boxes import FILES, made_up
from tests.report.test_figures import arm, comparison
from vitlab.report.figure_data import Curve, series, varied_compute
from vitlab.report.page import embedded, page, thinned
from vitlab.report.table import Comparison
from vitlab.storage.metrics import metric
from vitlab.sweep.reader import read

FACTS = {"hardware": "2 CPU cores", "cost": "12 min", "command": "vitlab sweep </script><i>x</i>"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


class Browser:
    """A tab of a headless Chromium; everything that it says beside the answers is kept in `heard`."""

    def __init__(self, folder):
        (down_read, self.down), (self.up, up_write) = os.pipe(), os.pipe()
        sources = os.dup(down_read), os.dup(up_write)  # neither is 3 or 4 itself

        def wire():
            high = [os.dup(os.dup(fd)) for fd in sources]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self.process = subprocess.Popen(
            [BROWSER, *options, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (down_read, up_write, *sources):
            os.close(fd)
        self.buffer, self.heard, self.number, self.session = b"", [], 0, None
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        self.number += 1
        call = {"id": self.number, "method": method, "params": parameters}
        call |= {"sessionId": self.session} if self.session else {}
        os.write(self.down, json.dumps(call).encode() + b"\0")
        while True:
            said = self.hear()
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]
            self.heard.append(said)

    def hear(self):
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            assert select.select([self.up], [], [], end - time.monotonic())[0], "Chromium says nothing"
            part = os.read(self.up, 1 << 16)
            assert part, "Chromium has ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path, width=1200, scheme="light"):
        self.heard.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=path.as_uri())
        while not any(said.get("method") == "Page.loadEventFired" for said in self.heard):
            self.heard.append(self.hear())

    def run(self, code):
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                     **({"text": text} if kind == "keyDown" and text else {}))  # fmt: skip

    def click(self, selector):
        find = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        at = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({find}.getBoundingClientRect())")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def complaints(self):
        wrong = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [said for said in self.heard if said.get("method") in wrong]

    def requests(self):
        sent = [said for said in self.heard if said.get("method") == "Network.requestWillBeSent"]
        return [said["params"]["request"]["url"] for said in sent]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.down)
        os.close(self.up)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "answer.html"
    path.write_text(page(comparison(folder / "runs"), FACTS, "Patches of 2 are <best>."), encoding="utf-8")
    return path


NAMES = "[...document.querySelectorAll('#results tbody th')].map(e => e.childNodes[1].textContent)"


def header(words):
    return f"[...document.querySelectorAll('#results thead th')].find(e => e.textContent.startsWith({words!r}))"


@needs_browser
def test_the_page_asks_nobody_and_complains_of_nothing(browser, written):
    browser.open(written)
    assert browser.requests() == [written.as_uri()]
    assert browser.complaints() == []
    assert browser.run("document.title") == "What does a smaller patch buy, on <digits>?"
    assert browser.run("document.querySelectorAll('figure').length") == 4
    assert browser.run("document.querySelector('.finding').textContent") == "Patches of 2 are <best>."


@needs_browser
def test_markup_in_names_is_text(browser, written):
    browser.open(written)
    assert browser.run("document.querySelectorAll('b, i').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert "</script><b>bold</b>" in browser.run(NAMES)
    assert "vitlab sweep </script><i>x</i>" in browser.run("document.body.textContent")


@needs_browser
def test_a_click_on_a_head_sorts_and_a_third_gives_the_order_of_the_question_back(browser, written):
    browser.open(written)
    order = browser.run(NAMES)
    score = "#results thead th:nth-child(2)"
    browser.click(f"{score} button")
    assert browser.run(f"{header('test')}.getAttribute('aria-sort')") == "descending"
    assert browser.run(NAMES) == [order[1], order[0], order[2], order[3], order[4]]
    browser.click(f"{score} button")
    assert browser.run(f"{header('test')}.getAttribute('aria-sort')") == "ascending"
    assert browser.run(NAMES) == [order[3], order[2], order[0], order[1], order[4]]  # what has no number stays last
    browser.click(f"{score} button")
    assert browser.run(NAMES) == order


@needs_browser
def test_a_head_is_sorted_by_the_keyboard_alone(browser, written):
    browser.open(written)
    browser.run("document.querySelector('#results thead button').focus()")
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.textContent") == "test accuracy (%)"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter", 13, "\r")
    assert browser.run(f"{header('test')}.getAttribute('aria-sort')") == "descending"


@needs_browser
def test_an_arm_without_finished_runs_is_a_row_with_its_state(browser, written):
    browser.open(written)
    last = browser.run("document.querySelector('#results tbody tr:last-child').textContent")
    assert last.startswith("patch 8")
    assert "0/3" in last
    assert "3 failed" in last


@needs_browser
def test_arms_of_the_learning_curves_are_toggled_by_key_and_by_click(browser, written):
    browser.open(written)
    arms = "[...document.querySelectorAll('#curves-svg g[data-arm]')].map(e => e.dataset.arm)"
    assert browser.run(arms) == ["patch 1", "patch 2", "patch_4 & $x^2$ | 50 %", "</script><b>bold</b>"]
    browser.click("#curves .toggles button:nth-child(2)")
    assert "patch 2" not in browser.run(arms)
    assert browser.run("document.querySelector('#curves .toggles button:nth-child(2)').ariaPressed") == "false"
    browser.run("document.querySelector('#curves .toggles button').focus()")
    browser.press(" ", 32, " ")
    assert "patch 1" not in browser.run(arms)
    browser.click("#curves .toggles .all:last-child")
    assert browser.run(arms) == []
    browser.click("#curves .toggles .all")
    assert len(browser.run(arms)) == 4
    assert browser.complaints() == []


@needs_browser
def test_a_run_tells_of_itself_on_focus_and_on_hover(browser, written):
    browser.open(written)
    browser.run("document.querySelector('#against-svg [tabindex=\"0\"]').focus()")
    first = browser.run("tip.innerText")
    assert "patch 1, seed 0" in first
    assert "test accuracy: 98.10 %" in first
    assert "patch-1-s0" in first
    assert "$ vitlab train seed=0 patch=p2" in first
    browser.press("ArrowRight", 39)
    assert "patch 1, seed 1" in browser.run("tip.innerText")
    assert browser.run("document.querySelectorAll('#against-svg [tabindex=\"0\"]').length") == 1
    browser.press("Escape", 27)
    assert browser.run("tip.hidden")
    browser.click("#compute-svg .mark")
    assert "interval" in browser.run("tip.innerText")


@needs_browser
def test_light_and_dark_follow_the_system_until_somebody_chooses(browser, written):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(written, scheme="dark")
    assert browser.run(paper) == "rgb(18, 23, 29)"
    browser.open(written, scheme="light")
    assert browser.run(paper) == "rgb(255, 255, 255)"
    browser.click("#theme")
    assert browser.run(paper) == "rgb(18, 23, 29)"
    browser.click("#theme")
    browser.run("localStorage.clear()")


@needs_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_runs_out_of_the_screen(browser, written, width):
    browser.open(written, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.documentElement.clientWidth") > width - 30


@needs_browser
def test_figures_and_marks_have_names_that_can_be_read_aloud(browser, written):
    browser.open(written)
    assert browser.run("[...document.querySelectorAll('svg')].every(e => e.getAttribute('aria-label').length > 40)")
    assert browser.run("[...document.querySelectorAll('[data-tip]')].every(e => e.ariaLabel && e.role === 'img')")


@needs_browser
def test_configuration_that_differs_from_the_baselines_is_marked(browser, written):
    browser.open(written)
    assert browser.run("document.querySelectorAll('#differs .changed').length") == 4


@needs_browser
def test_words_on_the_axis_and_a_comparison_without_runs_are_shown(browser, tmp_path):
    (tmp_path / "words.html").write_text(page(comparison(numeric=False), {}), encoding="utf-8")
    browser.open(tmp_path / "words.html")
    assert browser.run("document.querySelectorAll('#against-svg .mark').length") == 4
    bare = Comparison(title="?", source="", metric=metric("test/loss"), x=None,
                      rows=(arm("a", state="1 pruned"),), agreement=None)  # fmt: skip
    (tmp_path / "bare.html").write_text(page(bare, {}), encoding="utf-8")
    browser.open(tmp_path / "bare.html")
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('figure').length") == 0
    assert "1 pruned" in browser.run("document.querySelector('#results').textContent")


@pytest.mark.slow
@needs_browser
def test_a_thousand_runs_stay_a_small_page_that_opens(browser, tmp_path):
    values = [0.9 + i / 10000 for i in range(10)]
    rows = tuple(arm(f"arm {i}", values, x=i + 1, asked=range(10), baseline=i == 0) for i in range(100))
    root = tmp_path / "runs"
    root.mkdir()
    long = "".join(json.dumps({"step": e, "epoch": e / 7, "val/accuracy": 1 - 1 / (e + 2)}) + "\n" for e in range(1000))
    for row in rows:
        row.runs["run"] = [str(root / f"{row.name}-{seed}") for seed in row.runs.index]
        for folder in row.runs["run"]:
            os.mkdir(folder)  # noqa: PTH102
            with open(f"{folder}/metrics.jsonl", "w") as file:  # noqa: PTH123
                file.write(long)
    text = page(Comparison(**{**vars(comparison()), "rows": rows, "agreement": None}), {})
    assert len(text.encode()) < 10e6
    (tmp_path / "large.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "large.html")
    assert browser.run("document.querySelectorAll('#results tbody tr').length") == 100
    assert browser.complaints() == []


def test_the_page_names_no_address_but_that_of_svg(written):
    text = written.read_text()
    assert [part.split('"')[0] for part in text.split("http")[1:]] == ["-equiv=", "://www.w3.org/2000/svg"]


def test_what_is_embedded_cannot_end_its_element_and_is_strict_json():
    value = {"</script>": ["<b>", "&", "\u2028", float("nan"), float("inf")], "n": None, "two": 2}
    text = embedded(value)
    assert not {*"<>&\u2028"} & {*text}
    assert json.loads(text) == {"</script>": ["<b>", "&", "\u2028", None, None], "n": None, "two": 2}


def test_data_that_looks_like_the_template_stays_data():
    of = Comparison(**{**vars(comparison()), "title": "{{data}} {{title}}"})
    text = page(of, {"{{data}}": "{{title}}"})
    start = text.index('id="data">') + len('id="data">')
    assert json.loads(text[start : text.index("</script>", start)])["title"] == "{{data}} {{title}}"


@pytest.mark.parametrize("points", [1, 2, 199, 200, 201, 1000, 12345])
def test_long_curves_are_thinned_and_keep_both_ends(points):
    epochs = [float(e) for e in range(points)]
    kept, values = thinned(Curve(0, "run", True, epochs, epochs))
    assert len(kept) == len(values) <= 200
    assert kept[0] == 0
    assert kept[-1] == points - 1


def test_the_same_comparison_gives_the_same_page():
    assert page(comparison(), FACTS) == page(comparison(), FACTS)


@needs_browser
@pytest.mark.parametrize("name", ["figure5_compute", "figure12_cost", "learning_rate_batch_size", "figure8_shape"])
def test_names_and_lines_of_series_cover_no_mark(browser, tmp_path, name):
    of = made_up(read(FILES[name]))
    (tmp_path / "series.html").write_text(page(of, {}), encoding="utf-8")
    browser.open(tmp_path / "series.html")
    assert browser.complaints() == []
    covered = """[...document.querySelectorAll('svg .label')].flatMap(a => {
        const own = a.ownerSVGElement, box = e => e.getBoundingClientRect(), [p, q] = [box(a), e => box(e)];
        return [...own.querySelectorAll('.label, .mark, .bar')].filter(b => b !== a && p.left < q(b).right
            && q(b).left < p.right && p.top + 2 < q(b).bottom && q(b).top < p.bottom - 2).map(b => a.textContent);
    })"""
    assert browser.run(covered) == []
    assert browser.run("document.querySelectorAll('svg .label').length") > 1
    lines = browser.run("[...document.querySelectorAll('#against-svg [data-series]')].map(e => e.dataset.series)")
    assert lines == [*series(of)]
    assert browser.run("[...document.querySelectorAll('#against .key span')].map(e => e.textContent)") == lines
    assert browser.run("document.querySelectorAll('#compute').length") == bool(varied_compute(of))
