"""Charts drawn as SVG elements, which take the colours of the page and so suit its light and its dark theme."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from prime_xmc.reporting.figures import Chart, Point, Series

# Each colour is legible on white and on near black. Further configurations repeat them with other dashes and fillings.
COLOURS = ("#3b82f6", "#e8710a", "#16a34a", "#d6409f", "#8b5cf6", "#0d9488", "#b08900", "#ef4444")
_SYMBOLS = "●■◆▲"
_DASHES = ("", "7 4", "2 3", "8 3 2 3")
_LINE_STYLES = ("solid", "dashed", "dotted", "double")  # what CSS calls them
_FILLINGS = (1.0, 0.55, 0.3, 0.12)  # opacity of bars

WIDTH, HEIGHT = 340.0, 232.0
NAMED_WIDTH, NAMED_HEIGHT = 720.0, 450.0  # of a chart whose points have names beside them
_NAMES, _MORE_FOR_A_NAME = 12, 16.0  # names for which that is high enough, and pixels for each further one
_ROW = 22.0  # height of a row in a chart of rows
_TOP, _RIGHT, _BOTTOM, _BOTTOM_WITH_TITLE = 10.0, 14.0, 24.0, 40.0
_CHARACTER = 6.4  # width in pixels that a character of a tick is given
_LONGEST_NAME = 20  # characters of a configuration's name beside its row
_POINTED = 9.0  # radius of the area that answers to the pointer
_LONGEST_LABEL = 44  # characters of a name beside its point
_LABEL_CHARACTER, _LABEL_HEIGHT = 6.3, 12.0  # pixels of such a name
_NEAR = 8.0  # pixels from a point to its name; farther off, a line leads there
_Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels
# What the page says of the classes of its charts, for a chart that stands alone.
_STYLE = """
svg { --text: #1c2026; --soft: #59616d; --line: #b9bfc8; --grid: #e6e9ee; --background: #ffffff;
  background: var(--background); font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --text: #e6e8ec; --soft: #a3abb7; --line: #4a515d; --grid: #2b3038; --background: #14171c; }
}
text { font-size: 11px; fill: var(--soft); }
.title { font-size: 13px; font-weight: 600; fill: var(--text); }
.name { fill: var(--text); }
.grid { stroke: var(--grid); }
.axis, .leader { stroke: var(--line); }
.dot { fill: var(--series); stroke: var(--background); stroke-width: 1; }
.error { stroke: var(--text); stroke-width: 1.5; }
.reach { fill: transparent; }
"""


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        low: Value at the start.
        high: Value at the end.
        start: Pixel of the lower value.
        end: Pixel of the higher value.
        log: Whether equal distances are equal ratios.
        ticks: Values and texts of the ticks.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        convert: Callable[[float], float] = math.log10 if self.log else float
        low, high = convert(self.low), convert(self.high)
        return self.start + (convert(value) - low) / (high - low) * (self.end - self.start)


def colour(place: int) -> str:
    """Return the colour of a configuration."""
    return COLOURS[place % len(COLOURS)]


def symbol(place: int) -> str:
    """Return the character that looks like the markers of a configuration."""
    return _SYMBOLS[place % len(_SYMBOLS)]


def line_style(place: int) -> str:
    """Return what CSS calls the lines of a configuration."""
    return _LINE_STYLES[place // len(COLOURS) % len(_LINE_STYLES)]


def draw(chart: Chart) -> str:
    """Return a chart as an SVG element."""
    return _text_of(_drawn(chart))


def draw_alone(chart: Chart) -> str:
    """Return a chart as the content of an SVG file, with its title and its colours, for light and dark."""
    root = _drawn(chart)
    width, height = (float(number) for number in root.get("viewBox", "").split()[2:])
    head = 24.0
    whole = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height + head:g}",
        width=f"{width:g}",
        height=f"{height + head:g}",
        role="img",
    )
    whole.set("aria-label", chart.title)
    SubElement(whole, "style").text = _STYLE
    _write(whole, chart.title, 10.0, 17.0, "start", "title")
    SubElement(whole, "g", transform=f"translate(0 {head:g})").extend(root)
    return _text_of(whole) + "\n"


def _drawn(chart: Chart) -> Element:
    rows = len(chart.series) if chart.kind == "rows" else 0
    width, height = (NAMED_WIDTH, NAMED_HEIGHT) if chart.named else (WIDTH, HEIGHT)
    if chart.named:
        height += _MORE_FOR_A_NAME * max(0, len(chart.series) - _NAMES)
    height = _TOP + rows * _ROW + _BOTTOM if rows else height
    root = Element("svg", viewBox=f"0 0 {width:g} {height:g}", role="img")
    root.set("aria-label", chart.title)
    if rows:
        _draw_rows(root, chart, height)
        return root
    bottom = height - (_BOTTOM_WITH_TITLE if chart.x_title else _BOTTOM)
    points = [point for member in chart.series for point in member.points]
    values = [value for point in points for value in (point.y, point.low, point.high)]
    if chart.kind == "bars":
        values.append(0.0)
    low, high = _padded(min(values), max(values), 0.06, log=chart.y_log)
    low = 0.0 if chart.kind == "bars" and min(values) >= 0 else low
    y = Axis(low, high, bottom, _TOP, chart.y_log, ticks(low, high, 5, log=chart.y_log))
    left = 10 + _CHARACTER * max((len(text) for _, text in y.ticks), default=1)
    x = _horizontal(chart, points, left, width - _RIGHT)
    for value, text in y.ticks:
        _line(root, "grid", left, y(value), width - _RIGHT, y(value))
        _write(root, text, left - 5, y(value) + 4, "end")
    for value, text in x.ticks:
        _write(root, text, x(value), bottom + 15, "middle")
    _line(root, "axis", left, _TOP, left, bottom)
    _line(root, "axis", left, bottom, width - _RIGHT, bottom)
    if chart.x_title:
        _write(root, chart.x_title, (left + width - _RIGHT) / 2, height - 6, "middle")
    if chart.kind == "bars":
        _draw_bars(root, chart.series, x, y)
    elif chart.kind == "lines":
        _draw_lines(root, chart.series, x, y)
    else:
        _draw_points(root, chart.series, x, y)
    if chart.named:
        _write_names(root, chart.series, x, y)
    return root


def ticks(low: float, high: float, most: int, *, log: bool = False) -> tuple[tuple[float, str], ...]:
    """Return round values between two bounds, and how they are written.

    Args:
        low: Lower bound.
        high: Upper bound, greater than the lower one.
        most: Desired number of intervals between ticks, which is not exceeded.
        log: Whether the axis is logarithmic; both bounds are positive then.

    Example:
        >>> [text for _, text in ticks(0.13, 0.42, 5)]
        ['0.2', '0.3', '0.4']
        >>> [text for _, text in ticks(0.2, 1500.0, 5, log=True)]
        ['1', '10', '100', '1,000']
    """
    if log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        if len(powers) > 1:
            kept = [10.0**power for power in powers[:: math.ceil(len(powers) / most)]]
            return tuple((value, _number(value, value)) for value in kept)
    step = _step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple((place * step, _number(place * step, step)) for place in range(first, last + 1))


def _step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below a number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _number(value: float, step: float) -> str:
    """Return a number with as many digits as its step needs."""
    place = math.floor(math.log10(step) + 1e-9)
    more = 0 if math.isclose(round(step, -place), step) else 1  # 2.5 has a digit more than 1, 2 and 5
    if -4 <= place < 6:
        return f"{value:,.{max(0, more - place)}f}".replace("-", "−")
    if abs(value) < step / 2:
        return "0"
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - place + more)
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def _padded(low: float, high: float, share: float, *, log: bool) -> tuple[float, float]:
    """Return bounds with room around the values, also where all values are the same."""
    if log:
        room = (high / low) ** share if high > low else 2.0
        return low / room, high * room
    room = share * (high - low) if high > low else max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _horizontal(chart: Chart, points: Sequence[Point], start: float, end: float) -> Axis:
    if chart.kind == "bars":
        return Axis(-0.5, len(chart.x_ticks) - 0.5, start, end, False, chart.x_ticks)
    values = [point.x for point in points]
    low, high = _padded(min(values), max(values), 0.06 if chart.kind == "lines" else 0.12, log=chart.x_log)
    if chart.kind == "points" and not chart.x_log:
        low = max(low, 0.0)
    if chart.x_ticks:
        return Axis(low, high, start, end, chart.x_log, chart.x_ticks)
    shown = ticks(low, high, 6, log=chart.x_log)
    if chart.kind == "lines":  # epochs are whole
        step = max(1, math.ceil((max(values) - min(values)) / 6))
        shown = tuple((float(v), f"{v:,}") for v in range(int(min(values)), int(max(values)) + 1, step))
    return Axis(low, high, start, end, chart.x_log, shown)


def _draw_lines(root: Element, series: Sequence[Series], x: Axis, y: Axis) -> None:
    groups = [_group(root, member) for member in series]
    for group, member in zip(groups, series, strict=True):
        if len(member.points) > 1 and any(point.low < point.high for point in member.points):
            edge = [(point.x, point.high) for point in member.points]
            edge += [(point.x, point.low) for point in reversed(member.points)]
            SubElement(group, "polygon", {"class": "band", "points": _path(edge, x, y)})
    for group, member in zip(groups, series, strict=True):
        path = _path([(point.x, point.y) for point in member.points], x, y)
        line = SubElement(group, "polyline", {"class": "line", "points": path})
        if dashes := _DASHES[member.place // len(COLOURS) % len(_DASHES)]:
            line.set("stroke-dasharray", dashes)
        for point in member.points:
            _mark(group, member, point, x(point.x), y(point.y))


def _draw_points(root: Element, series: Sequence[Series], x: Axis, y: Axis) -> None:
    for member in series:
        group = _group(root, member)
        for point in member.points:
            _mark(group, member, point, x(point.x), y(point.y))
            if point.low < point.high:
                _line(group, "error", x(point.x), y(point.low), x(point.x), y(point.high))


def _write_names(root: Element, series: Sequence[Series], x: Axis, y: Axis) -> None:
    """Write the name of each configuration beside its point, where it covers neither points nor other names."""
    groups = {group.get("data-place"): group for group in root if group.tag == "g"}
    marks = [(x(point.x), y(point.y), member) for member in series for point in member.points[:1]]
    taken = [(across - r, down - r, across + r, down + r) for across, down, m in marks for r in [m.radius + 2]]
    edges = (x.start, y.end, x.end, y.start)
    for across, down, member in sorted(marks, key=lambda mark: mark[:2]):
        name = member.name if len(member.name) <= _LONGEST_LABEL else f"{member.name[: _LONGEST_LABEL - 1]}…"
        size = _LABEL_CHARACTER * len(name)
        places = [_box(across, down, size, *offset) for offset in _offsets()]
        _, best, box = min((_covered(place, taken, edges), order, place) for order, place in enumerate(places))
        taken.append(box)
        group = groups[str(member.place)]
        middle = (box[1] + box[3]) / 2
        near = min(max(across, box[0]), box[2])
        if math.hypot(near - across, middle - down) > _NEAR + _LABEL_HEIGHT:
            _line(group, "leader", across, down, near, middle)
        side = _offsets()[best][0]
        anchor, at = {1: ("start", box[0]), -1: ("end", box[2]), 0: ("middle", (box[0] + box[2]) / 2)}[side]
        _write(group, name, at, box[3] - 3, anchor, "name")


def _offsets() -> list[tuple[int, float, float]]:
    """Return where a name may stand, best first: its side (1 right, -1 left, 0 middle), and how far off and down."""
    near = [(1, _NEAR, 0.0), (-1, _NEAR, 0.0), (0, 0.0, -_NEAR - 6), (0, 0.0, _NEAR + 6)]
    far = [(side, _NEAR, sign * 13.0 * step) for step in range(1, 9) for sign in (-1, 1) for side in (1, -1)]
    return near + far


def _box(across: float, down: float, size: float, side: int, off: float, lower: float) -> _Box:
    left = across + off if side > 0 else across - off - size if side < 0 else across - size / 2
    top = down + lower - _LABEL_HEIGHT / 2
    return left, top, left + size, top + _LABEL_HEIGHT


def _covered(box: _Box, taken: Sequence[_Box], edges: _Box) -> float:
    """Return the area of a box that covers others or is outside of the edges."""

    def common(other: _Box) -> float:
        wide, high = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
        return max(wide, 0.0) * max(high, 0.0)

    outside = (box[2] - box[0]) * (box[3] - box[1]) - common(edges)
    return round(outside + sum(map(common, taken)), 3)


def _draw_bars(root: Element, series: Sequence[Series], x: Axis, y: Axis) -> None:
    unit = abs(x(1.0) - x(0.0))
    width = 0.84 * unit / len(series)
    for order, member in enumerate(series):
        group = _group(root, member)
        for point in member.points:
            left = x(point.x) - 0.42 * unit + order * width
            top, bottom = sorted((y(point.y), y(0.0)))
            holder = _noted(group, member, point)
            bar = {"x": left, "y": top, "width": 0.92 * width, "height": max(bottom - top, 0.5)}
            SubElement(holder, "rect", {"class": "bar", **{name: _round(value) for name, value in bar.items()}}).set(
                "fill-opacity", str(_FILLINGS[member.place // len(COLOURS) % len(_FILLINGS)])
            )
            if point.low < point.high:
                middle = left + 0.46 * width
                _line(holder, "error", middle, y(max(point.low, y.low)), middle, y(point.high))


def _draw_rows(root: Element, chart: Chart, height: float) -> None:
    names = [n if len(n) <= _LONGEST_NAME else f"{n[: _LONGEST_NAME - 1]}…" for n in (s.name for s in chart.series)]
    left = 12 + _CHARACTER * max(map(len, names))
    values = [value for member in chart.series for point in member.points for value in (point.low, point.high)]
    low, high = _padded(min(values), max(values), 0.12, log=chart.y_log)
    x = Axis(low, high, left, WIDTH - _RIGHT, chart.y_log, ticks(low, high, 4, log=chart.y_log))
    bottom = height - _BOTTOM
    for value, text in x.ticks:
        _line(root, "grid", x(value), _TOP, x(value), bottom)
        _write(root, text, x(value), bottom + 15, "middle")
    _line(root, "axis", left, bottom, WIDTH - _RIGHT, bottom)
    for row, (member, name) in enumerate(zip(chart.series, names, strict=True)):
        at = _TOP + (row + 0.5) * _ROW
        group = _group(root, member)
        _write(group, name, left - 6, at + 4, "end")
        for point in member.points:
            if point.low < point.high:
                _line(group, "error", x(point.low), at, x(point.high), at)
            _mark(group, member, point, x(point.x), at)


def _group(root: Element, member: Series) -> Element:
    """Return the group of a configuration, which the page's legend hides and shows."""
    return SubElement(root, "g", {"data-place": str(member.place), "style": f"--series: {colour(member.place)}"})


def _noted(group: Element, member: Series, point: Point) -> Element:
    holder = SubElement(group, "g", {"class": "point"})
    SubElement(holder, "title").text = f"{member.name}\n{point.note}"
    return holder


def _mark(group: Element, member: Series, point: Point, x: float, y: float) -> None:
    holder, radius = _noted(group, member, point), member.radius
    shape = symbol(member.place)
    if shape == "●":
        SubElement(holder, "circle", {"class": "dot", "cx": _round(x), "cy": _round(y), "r": _round(radius)})
    else:
        corners = {
            "■": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "◆": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
            "▲": [(0.0, -1.2), (1.15, 0.8), (-1.15, 0.8)],
        }[shape]
        path = " ".join(f"{_round(x + radius * across)},{_round(y + radius * down)}" for across, down in corners)
        SubElement(holder, "polygon", {"class": "dot", "points": path})
    reach = {"cx": _round(x), "cy": _round(y), "r": _round(max(_POINTED, radius))}
    SubElement(holder, "circle", {"class": "reach", **reach})


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return " ".join(f"{_round(x(across))},{_round(y(up))}" for across, up in points)


def _line(parent: Element, name: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(parent, "line", {"class": name, **{end: _round(value) for end, value in ends.items()}})


def _write(parent: Element, text: str, x: float, y: float, anchor: str, name: str | None = None) -> None:
    kind = {} if name is None else {"class": name}
    SubElement(parent, "text", {**kind, "x": _round(x), "y": _round(y), "text-anchor": anchor}).text = text


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text_of(root: Element) -> str:
    return tostring(root, encoding="unicode")
