"""The pictures of the documents: dots in rows, as SVG for a light and for a dark page.

The same results make the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["THEMES", "Dots", "draw", "emotions", "enrolment"]

THEMES = {
    "light": {"text": "#1d2733", "soft": "#5b6775", "grid": "#dfe3e8", "peer": "#8b97a5",
              "base": "#c2410c", "small": "#0b6bcb", "large": "#0a7d5a"},
    "dark": {"text": "#e6e9ee", "soft": "#a3adba", "grid": "#3a424d", "peer": "#8d99a8",
             "base": "#ff9d5c", "small": "#6cb6ff", "large": "#5fd3a6"},
}  # fmt: skip
PEER_SHAPES = ("square", "diamond", "triangle", "cross", "bar", "square", "diamond")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WIDTH, LEFT, RIGHT, GAP = 720, 128, 20, 36
LANE = 11.0  # between the marks of one row that have intervals
TICKS = 6

# As the pictures call the designs of `train.evaluation.enrolment` that they show.
DESIGNS = {
    "4 neutral": "four neutral",
    "1 in each of 4 emotions": "one in each\nof four emotions",
    "2 in each of 4 emotions": "two in each\nof four emotions",
}

Results = Mapping[str, Mapping[str, Any]]
Colour = Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Dots:
    """One series: a value in percent for each panel and row, with its 95 % interval where there is one."""

    name: str
    shape: str
    colour: str  # of `THEMES`
    size: float
    values: Sequence[Sequence[float]]
    intervals: Sequence[Sequence[Sequence[float]]] = ()


def emotions(encoders: Results, theme: str) -> str:
    """False rejects by emotion of every encoder of accuracy.json for which they were measured."""
    found = {key: row["ravdess"]["enrol"]["by_emotion"] for key, row in encoders.items() if "ravdess" in row}
    found = {key: row for key, row in found.items() if all("frr_at_far" in each for each in row.values())}

    def rate(key: str, emotion: str) -> float:
        return float(100.0 * found[key][emotion]["frr_at_far"]["0.01"])

    first = next(iter(found))
    rows = sorted(found[first], key=lambda emotion: (rate(first, emotion), emotion))
    peers = [key for key in found if not encoders[key]["ours"]]
    series = [
        Dots(f"emoinv-edge {key}", "disc", key, 6.0, [[rate(key, row) for row in rows]])
        if encoders[key]["ours"]
        else Dots(encoders[key]["name"], PEER_SHAPES[peers.index(key)], "peer", 4.5, [[rate(key, row) for row in rows]])
        for key in found
    ]
    notes = ["Enrolled with four neutral clips, tested in other emotions. Left is better. RAVDESS, 24 actors, cosine."]
    return draw("False rejects at 1 % false accepts, by emotion, %", notes, rows, [""], series, theme)


def enrolment(encoders: Results, theme: str) -> str:
    """False rejects and false accepts by what was enrolled, of one attempt and of a session of two."""
    series = []
    for key, row in encoders.items():
        designs = row["sets"]["ravdess"]["designs"]
        for kind, words, shape in (("one", "one attempt", "disc"), ("session", "session of two", "ring")):
            if all(kind in designs[name] for name in DESIGNS):
                values, intervals = (
                    [[_percent(designs[name][kind][f"{rate}{part}"]) for name in DESIGNS] for rate in ("frr", "far")]
                    for part in ("", "_interval")
                )
                series.append(Dots(f"{key}, {words}", shape, key, 4.5, values, intervals))
    notes = [
        "Tested in emotions that no profile holds, at the threshold that ships for 1 in 100. Left is better.",
        "RAVDESS, 24 actors; lines are 95 % intervals over the speakers.",
    ]
    panels = ["false rejects (FRR), %", "false accepts (FAR), %"]
    return draw("What enrolment is worth", notes, list(DESIGNS.values()), panels, series, theme)


def _percent(rate: Any) -> Any:
    return [100.0 * each for each in rate] if isinstance(rate, list) else 100.0 * rate


def draw(
    title: str, notes: Sequence[str], rows: Sequence[str], panels: Sequence[str], series: Sequence[Dots], theme: str
) -> str:
    """Rows of dots on an axis for each panel; the first panel is twice as wide as the others.

    Parameters
    ----------
    notes : sequence of str
        Lines below the title.
    rows, panels : sequence of str
        Their names; a line break parts a row's name in two.
    series : sequence of Dots
        The first is drawn on top.
    theme : str
        Of `THEMES`.

    Returns
    -------
    str
        An SVG document.
    """
    colour = THEMES[theme]
    spread = any(each.intervals for each in series)
    height = max(34.0, LANE * len(series) + 14.0) if spread else 34.0
    parts = [_text(colour, 0, 20, title, 17, more=' font-weight="600"')]
    parts += [_text(colour, 0, 41 + 17 * k, note, 13, "soft") for k, note in enumerate(notes)]
    legend, top = _legend(colour, series, 49.0 + 17 * len(notes))
    parts += legend
    top += 22.0 if any(panels) else 6.0
    bottom = top + height * len(rows)
    for row, name in enumerate(rows):
        lines, middle = name.split("\n"), top + height * (row + 0.5)
        for k, line in enumerate(lines):
            shift = 5.0 + 15.0 * (k - (len(lines) - 1) / 2)
            parts.append(_text(colour, LEFT - 14, middle + shift, line, 13, more=' text-anchor="end"'))
        if row and spread:
            parts.append(f'<path d="M0 {top + height * row:.1f}H{WIDTH - RIGHT}" stroke="{colour["grid"]}"/>')
    wide = (WIDTH - LEFT - RIGHT - GAP * (len(panels) - 1)) / (len(panels) + 1)
    left = float(LEFT)
    for panel, words in enumerate(panels):
        width = wide * (2 if panel == 0 else 1)
        parts.append(_text(colour, left, top - 8, words, 13, "soft"))
        parts += _panel(colour, series, panel, (left, top, width, bottom), height, spread)
        left += width + GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34:.0f}" width="{WIDTH}" '
        f'height="{bottom + 34:.0f}" font-family="{FONT}" role="img">\n<title>{html.escape(title)}</title>\n'
        f"{body}\n</svg>\n"
    )


def _panel(
    colour: Colour,
    series: Sequence[Dots],
    panel: int,
    box: tuple[float, float, float, float],
    height: float,
    spread: bool,
) -> list[str]:
    """Grid, axis and marks of one panel; `box` is left, top, width and bottom."""
    left, top, width, bottom = box
    highest = max(
        [value for each in series for value in each.values[panel]]
        + [interval[1] for each in series if each.intervals for interval in each.intervals[panel]]
    )
    step = next(size for size in (0.5, 1, 2, 5, 10, 20) if highest / size < TICKS + (panel == 0) * 3)
    limit = step * (math.floor(highest / step) + 1)
    count = round(limit / step)
    parts = []
    for k in range(count + 1):
        x = left + width * k / count
        parts.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour["grid"]}"/>')
        parts.append(_text(colour, x, bottom + 19, f"{step * k:g}", 12, "soft", ' text-anchor="middle"'))
    rows = len(series[0].values[panel])
    for row in range(rows):
        middle = top + height * (row + 0.5)
        if not spread:
            parts.append(
                f'<path d="M{left} {middle:.1f}h{width:.1f}" stroke="{colour["grid"]}" stroke-dasharray="2 4"/>'
            )
        for k, each in reversed(list(enumerate(series))):
            y = middle + (LANE * (k - (len(series) - 1) / 2) if spread else 0.0)
            hue = colour[each.colour]
            if each.intervals:
                low, high = (left + width * edge / limit for edge in each.intervals[panel][row])
                parts.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{hue}" stroke-opacity="0.55"/>')
            parts.append(_mark(each.shape, left + width * each.values[panel][row] / limit, y, hue, each.size))
    return parts


def _legend(colour: Colour, series: Sequence[Dots], top: float) -> tuple[list[str], float]:
    """Marks and names in lines of as many as there is room for, and where the next thing may begin."""
    parts, x, y = [], 0.0, top + 14.0
    for each in series:
        width = 44.0 + 7.0 * len(each.name)
        if x + width > WIDTH:
            x, y = 0.0, y + 21.0
        parts += [_mark(each.shape, x + 7, y - 4, colour[each.colour], each.size)]
        parts += [_text(colour, x + 20, y, each.name, 13)]
        x += width
    return parts, y + 10.0


def _text(colour: Colour, x: float, y: float, words: str, size: int, role: str = "text", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour[role]}"{more}>{html.escape(words)}</text>'


def _mark(shape: str, x: float, y: float, colour: str, size: float) -> str:
    """One marker, centred on x and y."""
    if shape == "disc":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{colour}"/>'
    line = f'fill="none" stroke="{colour}" stroke-width="1.8"'
    if shape == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" {line}/>'
    if shape == "square":
        return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}" {line}/>'
    paths = {
        "diamond": f"M{x:.1f} {y - 1.3 * size:.1f}l{1.2 * size:.1f} {1.3 * size:.1f}l{-1.2 * size:.1f} "
        f"{1.3 * size:.1f}l{-1.2 * size:.1f} {-1.3 * size:.1f}z",
        "triangle": f"M{x:.1f} {y - size:.1f}l{1.1 * size:.1f} {2 * size:.1f}h{-2.2 * size:.1f}z",
        "cross": f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}l{-2 * size:.1f} "
        f"{2 * size:.1f}",
        "bar": f"M{x:.1f} {y - 1.3 * size:.1f}v{2.6 * size:.1f}",
    }
    return f'<path d="{paths[shape]}" {line}/>'
