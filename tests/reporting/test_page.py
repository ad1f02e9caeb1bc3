import base64
import hashlib
import json
import re
import shutil
import subprocess
from xml.etree.ElementTree import Element

import html5lib
import plotly.graph_objects as go
import pytest

from prime_xmc.reporting import figures, page
from prime_xmc.reporting.tables import make_tables

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def html(study) -> str:
    return page.render([study], [make_tables(study)], title="A report", method=["p < 0.05"])


@pytest.fixture(scope="module")
def light(html) -> Element:
    """The parsed page, less the five megabytes of the library; an error of syntax raises."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(
        html.replace(page.get_plotlyjs(), "/* library */")
    )


def text_of(element: Element) -> str:
    return "".join(element.itertext())


def test_it_is_well_formed_and_has_every_part(light):
    assert text_of(light.find(".//title")) == "A report"
    identifiers = [element.get("id") for element in light.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    links = [link.get("href") for link in light.iter("a")]
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    sections = [section.get("id") for section in light.iter("section") if section.get("id")]
    parts = ("results", "learning", "cost", "frequency", "diagnostics", "examples", "configurations", "runs")
    assert sections == ["dataset-1", *(f"dataset-1-{part}" for part in parts), "method"]
    for table in light.iter("table"):
        assert len({len(row) for row in table.iter("tr")}) == 1


def test_it_loads_nothing(html, light):
    for element in light.iter():
        if isinstance(element.tag, str):
            assert element.tag not in ("link", "iframe", "img", "object", "embed", "base"), element.tag
            assert not {"src", "srcset", "data", "action", "background", "poster"} & element.attrib.keys()
            assert element.get("href", "#").startswith("#")
    style = text_of(light.find(".//style"))
    assert "url(" not in style
    assert "@import" not in style
    assert html.count(page.get_plotlyjs()) == 1


def test_its_policy_allows_no_script_but_its_own(html, light):
    (policy,) = (meta.get("content") for meta in light.iter("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    allowed = policy.partition("script-src ")[2].split()
    scripts = [page.get_plotlyjs(), *(text_of(s) for s in light.iter("script") if s.get("type") is None)]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert allowed == [hashes[0], hashes[2]]  # the second stands for the library
    assert html.count("<script") - page.get_plotlyjs().count("<script") == 3


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


def test_figures_are_those_of_the_panels(light):
    content = text_of(light.find(".//script[@id='figures']"))
    assert "<" not in content
    charts = json.loads(content)
    places = [int(plot.get("data-figure")) for plot in light.iter("div") if plot.get("data-figure")]
    assert places == list(range(len(charts)))
    for chart in charts:
        assert chart["study"] == "dataset-1"
        assert {trace["meta"] for trace in chart["data"]} <= {0, 1}
        go.Figure(data=chart["data"], layout=chart["layout"])  # plotly checks every property
    buttons = [button for button in light.iter("button") if button.get("data-configuration")]
    assert [re.sub(r"^[●■]", "", text_of(button).strip()).strip() for button in buttons] == [
        *("batch_size=64", "batch_size=128")
    ]


def test_resolved_configurations_are_there(light):
    listed = [text_of(element) for element in light.iter("pre")]
    assert len(listed) == 2
    assert "gamma_min: 0.1" in listed[0]
    assert "num_positives: 2" in listed[0]


class TestFigures:
    def test_learning_curves_are_means_over_seeds(self, study):
        panels = {panel.title: panel.figure for panel in figures.learning_curves(study)}
        assert list(panels) == ["training loss", "validation P@1"]
        band, mean = panels["training loss"].data[:2]
        assert (list(mean.x), list(mean.y)) == ([1, 2], [0.5, 1.25])  # epochs from 1; 0.25 + seed of 0, 1, 2
        assert (list(band.y)) == [0.5, 2.25, 0.25, 0.5]
        assert list(panels["validation P@1"].data[1].x) == [2]  # of the second epoch alone

    def test_diagnostics_are_what_training_logs(self, study):
        assert [panel.title for panel in figures.diagnostics(study)] == ["violators", "learning rate"]

    def test_cost(self, study):
        panels = {panel.title: panel.figure for panel in figures.cost(study)}
        time, negatives = panels["P@1 against training time"], panels["P@1 against negatives"]
        assert [trace.x for trace in time.data] == [(1.2,), (1.9,)]
        assert [trace.x for trace in negatives.data] == [(128,), (256,)]
        assert negatives.data[0].marker.size < negatives.data[1].marker.size
        values = study.runs.configurations[1].final("test/P@1")
        assert time.data[1].y[0] == pytest.approx(100 * sum(values) / 3)

    def test_bars_of_label_frequency(self, study):
        (precision, _) = figures.label_frequency(study)
        assert [trace.type for trace in precision.figure.data] == ["bar", "bar"]
        values = study.runs.configurations[0].final("test/P@5")
        assert sum(precision.figure.data[0].y) == pytest.approx(100 * sum(values) / 3)

    def test_neighbours_look_different(self):
        looks = [(figures.colour(i), figures.symbol(i), figures.line_style(i)) for i in range(24)]
        assert len(set(looks)) == 24


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.slow
def test_a_browser_draws_it(html, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    drawn = html5lib.HTMLParser(namespaceHTMLElements=False).parse(done.stdout.replace(page.get_plotlyjs(), ""))
    plots = [div for div in drawn.iter("div") if div.get("data-figure")]
    assert plots
    assert all(any("main-svg" in (child.get("class") or "") for child in plot.iter()) for plot in plots)
    # what the label's text holds has not run, nor become an element
    assert not [bold for bold in drawn.iter("b")]
