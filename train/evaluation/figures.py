"""Figures, tables and pages of the reports: SVG and HTML that open anywhere, with no script and nothing fetched.

A figure is drawn 380 units wide, so that it can be read on a telephone.
"""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Axis",
    "Series",
    "bars",
    "deviate",
    "figure",
    "heat",
    "linear",
    "logarithmic",
    "page",
    "percent",
    "plot",
    "table_html",
    "table_markdown",
    "with_interval",
]

WIDTH = 380
LEFT, RIGHT, BOTTOM = 46, 12, 40
GRID, INK, SOFT = "#d9dde3", "#1d2733", "#566270"
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif\""
DET_TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
DET_RANGE = (0.0007, 0.55)
STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 16px; font: 16px/1.5 system-ui, sans-serif; color: #1d2733;
  background: #fff; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.figures { columns: 340px; column-gap: 20px; }
figure { margin: 0 0 20px; break-inside: avoid; border: 1px solid #d9dde3; border-radius: 8px; padding: 10px; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid #d9dde3; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 3.5rem; } tr > :first-child { text-align: left; }
td:nth-child(2):last-child { text-align: left; white-space: normal; min-width: 16rem; }
@media (max-width: 480px) { body { padding: 8px; } figure { padding: 6px 2px; } }
"""

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a plot.

    Attributes
    ----------
    label : str
    ticks : mapping of value to its text
    place : callable
        Value to position, 0 to 1; what lies outside is not drawn.
    """

    label: str
    ticks: Mapping[float, str]
    place: Callable[[float], float]


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) of one name; `strong` ones are drawn thicker and on top."""

    name: str
    colour: str
    points: Sequence[Sequence[float]]
    strong: bool = True


def linear(label: str, high: float, low: float = 0.0) -> Axis:
    """An axis from at most `low` to at least `high`, with round ticks."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = {step * i: _number(step * i) for i in range(first, last + 1)}
    return Axis(label, ticks, lambda value: (value / step - first) / (last - first))


def logarithmic(label: str, low: float, high: float) -> Axis:
    """An axis from `low` to `high`, both above 0, with ticks at 1, 2 and 5 times powers of ten (or those alone)."""
    if high / low < 1.01:
        low, high = low / 1.5, high * 1.5
    factors = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    values = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
    return Axis(label, {v: _number(v) for v in values}, lambda value: math.log(value / low) / math.log(high / low))


def deviate(label: str) -> Axis:
    """An axis of error rates (fractions) as normal deviates, as a DET curve has them."""
    inverse = statistics.NormalDist().inv_cdf
    low, high = map(inverse, DET_RANGE)
    return Axis(
        label,
        {tick: f"{100 * tick:g}" for tick in DET_TICKS},
        lambda rate: (inverse(min(max(rate, 1e-9), 1 - 1e-9)) - low) / (high - low),
    )


def plot(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    height: float = 210,
    joined: bool = True,
    dots: bool = True,
    named: bool = False,
    diagonal: bool = False,
) -> str:
    """Points on two axes.

    Parameters
    ----------
    height : float
        Of the plot itself; legend and axes come on top.
    joined, dots : bool
        Draw lines between the points, and the points.
    named : bool
        Write each name beside its last point, instead of a legend.
    diagonal : bool
        Draw the line from the lower left to the upper right.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    parts, top = ([], 8.0) if named else _legend([(each.name, each.colour) for each in series], 16)
    parts.append(_text(4, top + 4, y.label, "start", 11, SOFT))
    top, left, width = top + 16, LEFT + 6, WIDTH - LEFT - RIGHT - 12

    def at(across: float, up: float) -> tuple[float, float]:
        return left + width * across, top + height * (1.0 - up)

    for value, label in y.ticks.items():
        _, row = at(0.0, y.place(value))
        parts += [_line(LEFT, row, WIDTH - RIGHT, row), _text(LEFT - 4, row + 4, label, "end", 10)]
    for value, label in x.ticks.items():
        column, _ = at(x.place(value), 0.0)
        parts += [_line(column, top, column, top + height), _text(column, top + height + 14, label, "middle", 10)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, top + height + 32, x.label, "middle", 11, SOFT))
    if diagonal:
        parts.append(_line(*at(0.0, 0.0), *at(1.0, 1.0), GRID, 1.0, 'stroke-dasharray="4 3"'))
    taken: list[Box] = []
    for each in sorted(series, key=lambda each: each.strong and not named):
        placed = [(x.place(a), y.place(b)) for a, b in each.points]
        inside = [at(a, b) for a, b in placed if -1e-9 <= a <= 1 + 1e-9 and -1e-9 <= b <= 1 + 1e-9]
        if joined and inside:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in inside)
            thick = 2.4 if each.strong else 1.5
            parts.append(f'<polyline points="{path}" fill="none" stroke="{each.colour}" stroke-width="{thick}"/>')
        if dots:
            radius = (6 if each.strong else 4.5) if named else 3
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}" fill="{each.colour}" stroke="#fff"/>'
                for a, b in inside
            ]
        if named and inside:
            parts.append(_name_beside(each, *inside[-1], top + height, taken))
    return _svg(title, top + height + BOTTOM, parts)


def _name_beside(series: Series, x: float, y: float, bottom: float, taken: list[Box]) -> str:
    """The name of a point where it covers the least of what is `taken`, which it joins."""
    size = 12.0 if series.strong else 10.5
    width = 0.54 * size * len(series.name)

    def box(place: tuple[float, float]) -> Box:
        return x + place[0], y + place[1] - size, x + place[0] + width, y + place[1] + 2

    def cost(place: tuple[float, float]) -> tuple[float, float]:
        a, b, c, d = box(place)
        covered = sum(
            max(0.0, min(c, right) - max(a, left)) * max(0.0, min(d, low) - max(b, high))
            for left, high, right, low in taken
        )
        outside = max(0.0, 2 - a) + max(0.0, c - WIDTH + 2) + max(0.0, d - bottom)
        return covered + 50.0 * outside, abs(place[1] - 4.0)

    shifts = (0, 14, -12, 26, -24, 38, -36)
    best = min([(side, 4.0 + shift) for shift in shifts for side in (9.0, -9.0 - width)], key=cost)
    taken += [box(best), (x - 6, y - 6, x + 6, y + 6)]
    weight = 'font-weight="700"' if series.strong else ""
    return _text(x + best[0], y + best[1], series.name, "start", size, series.colour, weight)


def bars(
    title: str, label: str, groups: Sequence[str], series: Sequence[tuple[str, str, Sequence[float | None]]]
) -> str:
    """Horizontal bars: for every group one bar of each series (name, colour, value of each group)."""
    thick, gap, left = 11.5, 12, 100
    parts, top = _legend([(name, colour) for name, colour, _ in series], 16)
    block = thick * len(series) + gap
    bottom = top + block * len(groups)
    axis = linear(label, max((value for *_, values in series for value in values if value is not None), default=1.0))
    for tick, text in axis.ticks.items():
        x = left + (WIDTH - left - 34) * axis.place(tick)
        parts += [_line(x, top, x, bottom), _text(x, bottom + 13, text, "middle")]
    for g, group in enumerate(groups):
        y = top + g * block + gap / 2
        parts.append(_text(left - 6, y + thick * len(series) / 2 + 4, group, "end"))
        for s, (_, colour, values) in enumerate(series):
            value = values[g]
            if value is None:
                continue
            width = max(0.8, (WIDTH - left - 34) * axis.place(value))
            box = f'x="{left}" y="{y + s * thick:.1f}" width="{width:.1f}" height="{thick - 1.5}"'
            parts.append(f'<rect {box} fill="{colour}"/>')
            parts.append(_text(left + width + 3, y + s * thick + 8.8, f"{value:.1f}", "start", 10, SOFT))
    parts.append(_text((left + WIDTH) / 2, bottom + 28, label, "middle", 11, SOFT))
    return _svg(title, bottom + 34, parts)


def heat(title: str, pairs: Mapping[str, float]) -> str:
    """A symmetric map of error rates: ``"angry/sad" -> rate`` (fractions); neutral first, unknown cells are empty."""
    names = sorted({name for pair in pairs for name in pair.split("/")}, key=lambda name: (name != "neutral", name))
    worst = max(pairs.values(), default=0.0) or 1.0
    left, top = 70.0, 12.0
    cell = (WIDTH - left - 6) / max(len(names), 5)
    parts = []
    for i, row in enumerate(names):
        y = top + cell * i
        parts.append(_text(left - 6, y + cell / 2 + 4, row, "end"))
        for j, column in enumerate(names):
            rate = pairs.get("/".join(sorted((row, column))))
            share = 0.0 if rate is None else (rate / worst) ** 0.7
            red, green, blue = (round(a + (b - a) * share) for a, b in ((247, 178), (244, 40), (238, 24)))
            fill = "none" if rate is None else f"rgb({red},{green},{blue})"
            box = f'x="{left + cell * j:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            parts.append(f'<rect {box} fill="{fill}" stroke="{GRID}"/>')
            if rate is not None:
                ink = "#fff" if share > 0.52 else INK
                parts.append(_text(left + cell * (j + 0.5), y + cell / 2 + 4, percent(rate, 1), "middle", 10, ink))
    bottom = top + cell * len(names)
    for j, name in enumerate(names):
        turned = f'transform="rotate(-50 {left + cell * (j + 0.5):.1f} {bottom + 12:.1f})"'
        parts.append(_text(left + cell * (j + 0.5), bottom + 12, name, "end", 11, INK, turned))
    return _svg(title, bottom + 66, parts)


def percent(rate: float | None, digits: int = 2) -> str:
    """A rate (fraction) as a percentage; nothing for None."""
    return "" if rate is None else f"{100.0 * rate:.{digits}f}"


def with_interval(rate: float | None, interval: Sequence[float] | None = None, digits: int = 2) -> str:
    """A rate and its interval (fractions) in percent: ``7.29 (4.5-10.8)``."""
    spread = f" ({percent(interval[0], 1)}-{percent(interval[1], 1)})" if interval and rate is not None else ""
    return percent(rate, digits) + spread


def table_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows))


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where the page is narrow; cells are plain text."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{cells("th", head)}</thead><tbody>{body}</tbody></table></div>'


def figure(name: str, title: str, svg: str) -> str:
    """A drawing with its title above; `name` is its id in the page."""
    return f'<figure id="{html.escape(name)}"><figcaption>{html.escape(title)}</figcaption>{svg}</figure>'


def page(title: str, parts: Sequence[str]) -> str:
    """One HTML page without any reference to another file; `parts` are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"{''.join(parts)}</body></html>\n"
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(title)}" {FONT}><title>{html.escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: float = 11, colour: str = INK, more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}"'
    return f'<text {place} fill="{colour}" {more}>{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, width: float = 1.0, more: str = "") -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-width="{width:g}" {more}/>'


def _legend(entries: Sequence[tuple[str, str]], top: float) -> tuple[list[str], float]:
    """Swatches and names in two columns; what they draw, and where the next thing may begin."""
    parts = []
    for i, (name, colour) in enumerate(entries):
        x, y = 10 + (i % 2) * 186, top + 16 * (i // 2)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 15, y, name))
    return parts, top + 16 * math.ceil(len(entries) / 2)


def _number(value: float) -> str:
    """A short number for an axis."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 12):g}"
