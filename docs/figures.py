"""The README's picture: `python docs/figures.py` draws it anew from benchmarks/results/accuracy.json.

Two SVG files of the same bytes for the same results, one for a light and one for a dark page.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
ASSETS = ROOT / "docs" / "assets"

# Ours first; the others are the encoders whose weights anyone can download.
SHOWN = {
    "base": "emoinv-edge base",
    "small": "emoinv-edge small",
    "wespeaker": "ResNet34-LM",
    "eres2net": "ERes2Net",
    "campplus": "CAM++",
    "ecapa": "ECAPA-TDNN",
    "resemblyzer": "Resemblyzer",
}
THEMES = {
    "light": {"text": "#1d2733", "soft": "#5b6775", "grid": "#dfe3e8", "peer": "#8b97a5", "base": "#c2410c"},
    "dark": {"text": "#e6e9ee", "soft": "#a3adba", "grid": "#3a424d", "peer": "#8d99a8", "base": "#ff9d5c"},
}
SHAPES = ("disc", "ring", "square", "diamond", "triangle", "cross", "bar")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WIDTH, ROW, LEFT, RIGHT, TOP = 720, 34, 92, 20, 104


def rates(results: dict[str, Any]) -> tuple[str, dict[str, dict[str, float]]]:
    """What the picture shows, in %, as a title and encoder -> emotion -> rate: false rejects where they were
    measured for every emotion, else the equal error rate."""
    found = {key: results["encoders"][key]["ravdess"]["enrol"]["by_emotion"] for key in SHOWN
             if "ravdess" in results["encoders"].get(key, {})}  # fmt: skip
    if all("frr_at_far" in each for emotions in found.values() for each in emotions.values()):
        title = "False rejects at 1 % false accepts, by emotion, %"
        values = {key: {name: 100.0 * each["frr_at_far"]["0.01"] for name, each in emotions.items()}
                  for key, emotions in found.items()}  # fmt: skip
    else:
        title = "Equal error rate by emotion, %"
        values = {
            key: {name: 100.0 * each["eer"] for name, each in emotions.items()} for key, emotions in found.items()
        }
    return title, values


def mark(shape: str, x: float, y: float, colour: str, size: float) -> str:
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


def draw(results: dict[str, Any], theme: str) -> str:
    """The picture as SVG, for a page of that theme."""
    colour = THEMES[theme]
    title, values = rates(results)
    emotions = sorted(values["base"], key=lambda name: (values["base"][name], name))
    top = max(rate for each in values.values() for rate in each.values())
    step = 5 if top <= 45 else 10
    limit = step * (int(top // step) + 1)
    height = TOP + ROW * len(emotions) + 34

    def across(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * rate / limit

    def text(x: float, y: float, words: str, size: int, role: str = "text", more: str = "") -> str:
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour[role]}"{more}>{html.escape(words)}</text>'
        )

    def look(key: str) -> tuple[str, str, float]:
        ours = key in ("base", "small")
        return SHAPES[list(SHOWN).index(key)], colour["base" if ours else "peer"], 6.0 if ours else 4.5

    parts = [text(0, 20, title, 17, more=' font-weight="600"')]
    parts.append(text(0, 41, "Enrolled with four neutral clips, tested in other emotions. Left is better. RAVDESS, "
                             "24 actors, cosine.", 13, "soft"))  # fmt: skip
    places = [(0, 66), (190, 66), (380, 66), (550, 66), (0, 88), (190, 88), (380, 88)]
    for (key, name), (x, y) in zip(SHOWN.items(), places, strict=True):
        if key in values:
            shape, hue, size = look(key)
            parts += [mark(shape, x + 7, y - 4, hue, size), text(x + 20, y, name, 13)]
    bottom = TOP + ROW * len(emotions)
    for rate in range(0, limit + 1, step):
        x = across(rate)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="{colour["grid"]}"/>')
        parts.append(text(x, bottom + 19, f"{rate}", 12, "soft", ' text-anchor="middle"'))
    for row, emotion in enumerate(emotions):
        y = TOP + ROW * (row + 0.5)
        parts.append(text(LEFT - 14, y + 5, emotion, 14, more=' text-anchor="end"'))
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{colour["grid"]}" stroke-dasharray="2 4"/>')
        for key in reversed(values):
            shape, hue, size = look(key)
            parts.append(mark(shape, across(values[key][emotion]), y, hue, size))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="{FONT}" role="img">\n<title>{html.escape(title)}</title>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Write both files."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    ASSETS.mkdir(exist_ok=True)
    for theme in THEMES:
        (ASSETS / f"emotions-{theme}.svg").write_text(draw(results, theme), encoding="utf-8")


if __name__ == "__main__":
    main()
