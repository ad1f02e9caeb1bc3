from dataclasses import replace
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_xmc.reporting import svg
from prime_xmc.reporting.figures import Chart, Point, Series

EVIL = "</svg><script>alert(1)</script> & <b>"


def series(place, *points, name=""):
    return Series(
        place, name or f"configuration {place}", tuple(Point(*map(float, point), note="note") for point in points)
    )


LINES = Chart(
    "Loss",
    "lines",
    (series(0, (1, 2.0, 1.0, 3.0), (2, 4.0, 4.0, 4.0)), series(1, (1, 3.0, 3.0, 3.0))),
    x_title="epoch",
)


def elements(chart, name, kind):
    return [element for element in fromstring(svg.draw(chart)).iter(name) if element.get("class") == kind]


def corners(element):
    return [tuple(map(float, corner.split(","))) for corner in element.get("points").split()]


def test_lines_are_where_the_values_are():
    (path, lone) = (corners(line) for line in elements(LINES, "polyline", "line"))
    (band,) = (corners(polygon) for polygon in elements(LINES, "polygon", "band"))
    (left, two), (right, four) = path
    assert left < right
    assert two > four  # greater values are higher up, where y is smaller
    highest, _, _, lowest = band
    assert (highest[1] + lowest[1]) / 2 == pytest.approx(two, abs=0.1)  # 2 lies in the middle of 1 and 3
    assert lone == [(left, pytest.approx((two + four) / 2, abs=0.1))]


def test_everything_is_within_the_box():
    for kind in ("lines", "points", "bars"):
        ticks = ((1.0, "one"), (2.0, "two")) if kind == "bars" else ()
        for mark in elements(replace(LINES, kind=kind, x_ticks=ticks), "circle", "dot"):
            assert 0 < float(mark.get("cx")) < svg.WIDTH
            assert 0 < float(mark.get("cy")) < svg.HEIGHT


def test_bars_stand_on_zero_and_have_error_bars():
    chart = Chart("Bars", "bars", (series(0, (0, 4.0, 3.0, 5.0), (1, 2.0, 2.0, 2.0)),), "x", ((0.0, "a"), (1.0, "b")))
    first, second = elements(chart, "rect", "bar")
    assert float(first.get("height")) == pytest.approx(2 * float(second.get("height")), abs=0.2)
    (error,) = elements(chart, "line", "error")
    assert float(error.get("y2")) < float(first.get("y")) < float(error.get("y1"))


def boxes_of_names(chart):
    for text in elements(chart, "text", "name"):
        size, base = 6.3 * len(text.text), float(text.get("y"))
        left = float(text.get("x")) - {"start": 0.0, "middle": size / 2, "end": size}[text.get("text-anchor")]
        yield left, base - 9, left + size, base + 3


def test_names_beside_points_cover_nothing():
    points = [(10.0 ** (place / 9), 60 + place % 3, 60 + place % 3, 60 + place % 3) for place in range(24)]
    members = [series(place, point, name=f"method=number_{place}") for place, point in enumerate(points)]
    chart = Chart("Cost", "points", tuple(members), "seconds", x_log=True, named=True)
    boxes = list(boxes_of_names(chart))
    assert len(boxes) == 24
    for place, one in enumerate(boxes):
        assert one[0] > 0
        assert one[2] < svg.NAMED_WIDTH
        for other in boxes[:place]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_name_is_in_the_group_that_the_legend_hides():
    chart = replace(LINES, kind="points", named=True)
    groups = [group for group in fromstring(svg.draw(chart)).iter("g") if group.get("data-place") == "1"]
    assert [text.text for group in groups for text in group.iter("text")] == ["configuration 1"]


def test_a_chart_alone_has_title_colours_and_namespace():
    chart = Chart(EVIL, "points", (series(0, (1, 2.0, 2.0, 2.0), name=EVIL),), "x", named=True)
    root = fromstring(svg.draw_alone(chart))
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    assert [text.text for text in root.iter(f"{name}text") if text.get("class") == "title"] == [EVIL]
    assert "prefers-color-scheme: dark" in root.find(f"{name}style").text
    assert not list(root.iter(f"{name}script"))
    used = {element.get("class") for element in root.iter() if element.get("class")} - {"point"}
    assert all(f".{each}" in root.find(f"{name}style").text for each in used)


def test_rows_have_names_and_grow_with_their_number():
    rows = Chart("Rows", "rows", tuple(series(i, (float(i + 1), 0, i + 1.0, i + 1.0)) for i in range(3)), "")
    root = fromstring(svg.draw(rows))
    names = [text.text for text in root.iter("text")]
    assert "configuration 2" in names
    more = fromstring(svg.draw(replace(rows, series=(*rows.series, series(3, (5.0, 0, 5.0, 5.0))))))
    assert float(more.get("viewBox").split()[3]) > float(root.get("viewBox").split()[3])


def test_texts_are_escaped():
    text = svg.draw(Chart(EVIL, "lines", (series(0, (1, 1, 1, 1), name=EVIL),), x_title=EVIL))
    assert "<script" not in text
    assert "<b>" not in text
    assert fromstring(text).find(".//title").text.startswith(EVIL)


def test_colours_are_those_of_the_page():
    assert "--series: " in svg.draw(LINES)
    assert "stroke=" not in svg.draw(LINES)


@pytest.mark.parametrize("kind", ["lines", "points", "rows"])
def test_values_that_are_all_the_same(kind):
    chart = Chart("Same", kind, (series(0, (0.0, 0.0, 0.0, 0.0)),), x_title="x")
    assert "nan" not in svg.draw(chart)


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    axis = svg.Axis(1.0, 10_000.0, 0.0, 400.0, True, ())
    assert [axis(value) for value in (1.0, 10.0, 100.0, 10_000.0)] == pytest.approx([0, 100, 200, 400])


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6), st.integers(3, 8))
def test_ticks_are_within_the_bounds_and_differ(low, width, most):
    found = svg.ticks(low, low + width, most)
    assert 1 <= len(found) <= most + 1
    tolerance = 1e-6 * max(abs(low), width)
    assert all(low - tolerance <= value <= low + width + tolerance for value, _ in found)
    if width > 1e-9 * abs(low) * 1e5:
        assert len({text for _, text in found}) == len(found)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (-1, 1, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0, 0.00005, ["0", "1e−5", "2e−5", "3e−5", "4e−5", "5e−5"]),
        (0, 5e6, ["0", "1e6", "2e6", "3e6", "4e6", "5e6"]),
        (900, 1300, ["900", "1,000", "1,100", "1,200", "1,300"]),
    ],
)
def test_ticks_are_written_with_as_many_digits_as_they_need(low, high, texts):
    assert [text for _, text in svg.ticks(float(low), float(high), 5)] == texts


def test_neighbours_look_different():
    looks = [(svg.colour(place), svg.symbol(place), svg.line_style(place)) for place in range(24)]
    assert len(set(looks)) == 24
