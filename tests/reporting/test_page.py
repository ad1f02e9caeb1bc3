import base64
import hashlib
import re
import shutil
import subprocess
from datetime import UTC, datetime
from xml.etree.ElementTree import Element

import html5lib
import pytest

from prime_xmc.reporting import figures, page
from prime_xmc.reporting.contents import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def html(study) -> str:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    command = "python -m prime_xmc.report 'runs=<all>'"
    return page.render(make_report([study], title="A <report>", command=command, num_resamples=300, now=now))


@pytest.fixture(scope="module")
def light(html) -> Element:
    """The parsed page; an error of syntax raises."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)


def text_of(element: Element) -> str:
    return "".join(element.itertext())


def test_it_is_well_formed_and_has_every_part(light):
    assert text_of(light.find(".//title")) == "A <report>"
    identifiers = [element.get("id") for element in light.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    links = [link.get("href") for link in light.iter("a")]
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    sections = [section.get("id") for section in light.iter("section") if section.get("id")]
    parts = ("results", "learning", "cost", "frequency", "diagnostics", "examples", "configurations", "runs")
    assert sections == ["dataset-1", *(f"dataset-1-{part}" for part in parts), "method"]
    for table in light.iter("table"):
        assert len({len(row) for row in table.iter("tr")}) == 1


def test_its_head_says_what_when_and_how(light):
    head = text_of(light.find(".//header"))
    assert "A <report>" in head
    assert "6 finished runs of 2 configurations on 1 data set. 1 unfinished run is listed at the end." in head
    assert "Made on 1 March 2026 at 12:30 UTC with prime_xmc " in head
    assert "python -m prime_xmc.report 'runs=<all>'" in head


def test_it_is_light(html):
    assert len(html.encode()) < 300_000


def test_it_loads_nothing(html, light):
    for element in light.iter():
        if isinstance(element.tag, str):
            assert element.tag not in ("link", "iframe", "img", "object", "embed", "base"), element.tag
            assert not {"src", "srcset", "data", "action", "background", "poster"} & element.attrib.keys()
            assert element.get("href", "#").startswith("#")
    style = text_of(light.find(".//style"))
    assert "url(" not in style
    assert "@import" not in style


def test_its_policy_allows_no_script_but_its_own(html, light):
    (policy,) = (meta.get("content") for meta in light.iter("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    allowed = policy.partition("script-src ")[2].split()
    scripts = [text_of(script) for script in light.iter("script")]
    assert allowed == [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert len(scripts) == 1
    assert html.count("<script") == 1


def test_texts_are_escaped(html, light, evil):
    assert evil not in html
    labels = [text_of(item) for item in light.iter("li") if "label" in text_of(item)]
    assert any(evil in label for label in labels)
    assert any(text_of(heading) == "<i>query 0</i>" for heading in light.iter("h4"))
    assert "ValueError: <no>" in text_of(light)


def test_hits_are_marked_by_more_than_colour(light, study):
    marked = [item for item in light.iter("li") if item.get("class") == "hit"]
    expected = sum(hit for e in study.examples for predicted in e.predictions.values() for _, hit in predicted)
    assert len(marked) == expected > 0
    assert all(text_of(item).strip().startswith("✓") for item in marked)


def test_charts_are_drawn_for_all_configurations(light, study):
    titles = [text_of(chart.find("figcaption")) for chart in light.iter("figure") if chart.get("class") == "chart"]
    drawn = [*figures.learning_curves(study), *figures.cost(study), *figures.label_frequency(study)]
    drawn += [*figures.coverage(study), *figures.diagnostics(study)]
    assert titles == [chart.title for chart in drawn]
    for chart in light.iter("figure"):
        if chart.get("class") == "chart":
            assert {group.get("data-place") for group in chart.iter() if group.get("data-place")} == {"0", "1"}
    buttons = [button for button in light.iter("button") if button.get("data-configuration")]
    assert [re.sub(r"^[●■]", "", text_of(button).strip()).strip() for button in buttons] == [
        *("batch_size=64", "batch_size=128")
    ]


def test_lines_end_within_names_but_not_within_numbers():
    number = '<span class="whole">{}</span>'.format
    assert str(page._breakable("loss.gamma_min=0.05, lr=1e-4 <b>")) == (
        f"loss.<wbr>gamma_<wbr>min={number('0.05,')} lr={number('1e-4')} &lt;b&gt;"
    )
    assert page._together("62.2 % (p < 0.05) a b").replace("\N{NO-BREAK SPACE}", "_") == "62.2_% (p_<_0.05) a b"


def test_error_bars_have_the_colour_of_the_text_in_both_themes(light):
    style = text_of(light.find(".//style"))
    (rule,) = re.findall(r"\.error \{ stroke: var\((--\w+)\)", style)
    background, text = (re.findall(rf"{name}: (#\w+);", style) for name in ("--background", rule))
    assert len(background) == len(text) == 2  # light and dark
    for behind, before in zip(background, text, strict=True):
        assert abs(int(behind[1:3], 16) - int(before[1:3], 16)) > 150
    assert [line for line in light.iter("{http://www.w3.org/2000/svg}line") if line.get("class") == "error"]


def test_intervals_have_a_line_of_their_own(light):
    intervals = [span for span in light.iter("span") if span.get("class") == "interval"]
    assert len(intervals) == 9
    assert ".interval { display: block;" in text_of(light.find(".//style"))


def test_unfinished_runs_are_folded(light):
    (folded,) = [details for details in light.iter("details") if details.get("class") == "table"]
    assert "ValueError: <no>" in text_of(folded)
    assert folded.get("open") is None


def test_resolved_configurations_are_there(light):
    listed = [text_of(element) for element in light.iter("pre") if element.get("class") is None]
    assert len(listed) == 2
    assert "gamma_min: 0.1" in listed[0]
    assert "num_positives: 2" in listed[0]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.slow
def test_a_browser_draws_it(html, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--disable-component-update",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--window-size=500,900",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    drawn = html5lib.HTMLParser(namespaceHTMLElements=False).parse(done.stdout)
    frames = [div for div in drawn.iter("div") if (div.get("class") or "").startswith("frame")]
    assert frames
    assert all("--first-column" in frame.get("style", "") for frame in frames)  # the script has run
    classes = {frame.find(".//div").get("aria-label"): frame.get("class").split() for frame in frames}
    assert classes["Test metrics"] == ["frame", "wide", "more-right"]  # too wide for the window, which the page shows
    # The text of the label has neither run nor become an element.
    assert not list(drawn.iter("b"))
