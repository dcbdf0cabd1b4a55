"""Plain SVG figures, drawn 380 units wide so that they can be read on a telephone; no dependency."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence

__all__ = ["PALETTE", "bars", "colours", "curves", "det", "scatter"]

WIDTH = 380
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
# Ours in blue and green, strong; the peers in muted colours that differ in lightness too.
PALETTE = {
    "base": "#0b5cad", "small": "#0a8f76", "wespeaker": "#b4530a", "sherpa": "#d08a3c", "eres2net": "#8a4fa3",
    "campplus": "#6f7f1d", "ecapa": "#b23a5b", "resemblyzer": "#6d7580",
}  # fmt: skip
SPARE = ("#0b5cad", "#0a8f76", "#444444", "#999999")
GRID, INK, SOFT = "#d9dde3", "#1d2733", "#566270"
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif\""


def colours(keys: Sequence[str]) -> dict[str, str]:
    """A colour for each encoder."""
    return {key: PALETTE.get(key, SPARE[i % len(SPARE)]) for i, key in enumerate(keys)}


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: float = 11, colour: str = INK, more: str = ""
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}" {more}>'
        f"{html.escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, width: float = 1.0, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}" {more}/>'
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}" {FONT}><title>{html.escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _legend(entries: Sequence[tuple[str, str]], top: float) -> tuple[list[str], float]:
    """Swatches and names in two columns; what they draw, and where the next thing may begin."""
    parts = []
    for i, (name, colour) in enumerate(entries):
        x, y = 10 + (i % 2) * 186, top + 16 * (i // 2)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 15, y, name, size=11))
    return parts, top + 16 * math.ceil(len(entries) / 2)


def nice_ticks(high: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `high`."""
    raw = high / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two; powers alone over a wide range."""
    factors = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]


def number(value: float) -> str:
    """A short number for an axis."""
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def scatter(title: str, x_label: str, y_label: str, points: Sequence[tuple[str, str, float, float, bool]]) -> str:
    """Points (name, colour, x on a logarithmic axis, y, ours), each with its name beside it."""
    height = 300
    xs, ys = [p[2] for p in points], [p[3] for p in points]
    low, high = min(xs) / 1.6, max(xs) * 1.6
    ticks = nice_ticks(max(ys) * 1.08)

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / low) / math.log(high / low)

    def py(y: float) -> float:
        return height - BOTTOM - (height - BOTTOM - TOP) * y / ticks[-1]

    parts = []
    for tick in ticks:
        parts += [_line(LEFT, py(tick), WIDTH - RIGHT, py(tick)), _text(LEFT - 5, py(tick) + 4, number(tick), "end")]
    for tick in log_ticks(low, high):
        parts += [
            _line(px(tick), TOP, px(tick), height - BOTTOM),
            _text(px(tick), height - BOTTOM + 14, number(tick), "middle"),
        ]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_label, "middle", 11, SOFT))
    parts.append(_text(LEFT, TOP - 3, y_label, "start", 11, SOFT))
    taken: list[tuple[float, float, float, float]] = []
    dots = []
    for name, colour, x, y, ours in sorted(points, key=lambda p: not p[4]):
        cx, cy = px(x), py(y)
        dots.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{6 if ours else 4.5}" fill="{colour}" stroke="#fff"/>'
        )
        size = 12 if ours else 10.5
        width = 0.54 * size * len(name)
        places = [(9.0, 4.0), (-9.0 - width, 4.0)]
        places += [(side, 4.0 + shift) for shift in (14, -12, 26, -24, 38, -36) for side in (9.0, -9.0 - width)]
        places += [(-width / 2, 18.0), (-width / 2, -10.0)]
        best = min(
            places,
            key=lambda place: (
                _clash((cx + place[0], cy + place[1] - size, cx + place[0] + width, cy + place[1] + 2), taken),
                abs(place[1] - 4.0),
            ),
        )
        box = (cx + best[0], cy + best[1] - size, cx + best[0] + width, cy + best[1] + 2)
        taken += [box, (cx - 6, cy - 6, cx + 6, cy + 6)]
        weight = 'font-weight="700"' if ours else ""
        dots.append(_text(box[0], cy + best[1], name, "start", round(size), colour, weight))
    return _svg(title, height, parts + dots)


def _clash(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float:
    """How much a box overlaps others or leaves the picture."""
    outside = max(0.0, 2 - box[0]) + max(0.0, box[2] - WIDTH + 2) + max(0.0, box[3] - 300 + BOTTOM)
    total = 50.0 * outside
    for other in taken:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width > 0 and height > 0:
            total += width * height
    return total


def bars(
    title: str, x_label: str, groups: Sequence[str], series: Sequence[tuple[str, str, Sequence[float | None]]]
) -> str:
    """Horizontal bars: for every group one bar of each series (name, colour, value of each group)."""
    thick, gap, left = 11.5, 12, 100
    top = 12.0
    legend, top = _legend([(name, colour) for name, colour, _ in series], top + 4)
    block = thick * len(series) + gap
    height = top + block * len(groups) + 34
    high = max((value for *_, values in series for value in values if value is not None), default=1.0)
    ticks = nice_ticks(high)

    def px(x: float) -> float:
        return left + (WIDTH - left - 34) * x / ticks[-1]

    parts = list(legend)
    bottom = top + block * len(groups)
    for tick in ticks:
        parts += [_line(px(tick), top, px(tick), bottom), _text(px(tick), bottom + 13, number(tick), "middle")]
    for g, group in enumerate(groups):
        y = top + g * block + gap / 2
        parts.append(_text(left - 6, y + thick * len(series) / 2 + 4, group, "end"))
        for s, (_, colour, values) in enumerate(series):
            value = values[g]
            if value is None:
                continue
            width = max(0.8, px(value) - left)
            parts.append(
                f'<rect x="{left}" y="{y + s * thick:.1f}" width="{width:.1f}" height="{thick - 1.5}" fill="{colour}"/>'
            )
            parts.append(_text(left + width + 3, y + s * thick + 8.8, f"{value:.1f}", "start", 10, SOFT))
    parts.append(_text((left + WIDTH) / 2, height - 6, x_label, "middle", 11, SOFT))
    return _svg(title, height, parts)


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[tuple[str, str, Sequence[Sequence[float]]]],
    log_x: bool = True,
    log_y: bool = True,
) -> str:
    """Lines with points (name, colour, [[x, y], ...]) on linear or logarithmic axes."""
    legend, top = _legend([(name, colour) for name, colour, _ in series], 16)
    plot = 210
    height = top + plot + BOTTOM + 16
    xs = [x for *_, points in series for x, _ in points]
    ys = [y for *_, points in series for _, y in points]
    x_low, x_high = (min(xs), max(xs)) if log_x else (0.0, nice_ticks(max(xs))[-1])
    y_low, y_high = (min(ys) / 1.5, max(ys) * 1.5) if log_y else (0.0, nice_ticks(max(ys) * 1.02)[-1])
    if log_x and x_high / x_low < 1.01:
        x_low, x_high = x_low / 1.5, x_high * 1.5

    def scale(value: float, low: float, high: float, log: bool) -> float:
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    def px(x: float) -> float:
        return LEFT + 6 + (WIDTH - LEFT - RIGHT - 12) * scale(x, x_low, x_high, log_x)

    def py(y: float) -> float:
        return top + 8 + plot * (1.0 - scale(y, y_low, y_high, log_y))

    parts = list(legend)
    parts.append(_text(4, top, y_label, "start", 11, SOFT))
    top += 8
    for tick in log_ticks(y_low, y_high) if log_y else nice_ticks(y_high):
        parts += [
            _line(LEFT, py(tick), WIDTH - RIGHT, py(tick)),
            _text(LEFT - 4, py(tick) + 4, number(tick), "end", 10),
        ]
    for tick in log_ticks(x_low, x_high) if log_x else nice_ticks(x_high):
        parts += [
            _line(px(tick), top + 8, px(tick), top + 8 + plot),
            _text(px(tick), top + 22 + plot, number(tick), "middle", 10),
        ]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", 11, SOFT))
    for _, colour, points in series:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return _svg(title, height, parts)


def det(title: str, series: Sequence[tuple[str, str, bool, Sequence[Sequence[float]]]]) -> str:
    """Detection error trade-off: (name, colour, ours, [[false accepts, false rejects], ...]) on normal-deviate axes."""
    legend, top = _legend([(name, colour) for name, colour, *_ in series], 16)
    plot = 300
    height = top + plot + BOTTOM + 16
    ticks = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    deviate = statistics.NormalDist().inv_cdf
    low, high = deviate(0.0007), deviate(0.55)

    def part(rate: float) -> float:
        return (deviate(rate) - low) / (high - low)

    def px(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * part(rate)

    def py(rate: float) -> float:
        return top + 8 + plot * (1.0 - part(rate))

    parts = list(legend)
    parts.append(_text(4, top, "false rejects, %", "start", 11, SOFT))
    top += 8
    for tick in ticks:
        name = f"{100 * tick:g}"
        parts += [
            _line(LEFT, py(tick), WIDTH - RIGHT, py(tick)), _text(LEFT - 4, py(tick) + 4, name, "end", 10),
            _line(px(tick), top + 8, px(tick), top + 8 + plot),
            _text(px(tick), top + 22 + plot, name, "middle", 10),
        ]  # fmt: skip
    parts.append(_line(px(0.0007), py(0.0007), px(0.55), py(0.55), GRID, 1.0, 'stroke-dasharray="4 3"'))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 6, "false accepts, %", "middle", 11, SOFT))
    for _, colour, ours, points in sorted(series, key=lambda entry: entry[2]):
        inside = [(far, frr) for far, frr in points if 0.0007 <= far <= 0.55 and 0.0007 <= frr <= 0.55]
        path = " ".join(f"{px(far):.1f},{py(frr):.1f}" for far, frr in inside)
        if inside:
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{2.8 if ours else 1.5}"/>'
            )
    return _svg(title, height, parts)
