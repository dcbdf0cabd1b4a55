"""One HTML page of an evaluation: tables, DET curves, heat maps, reliability. No script, nothing fetched.

The figures are SVG written here, so that the page opens anywhere and stays sharp on a phone.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["det_svg", "heat_svg", "reliability_svg", "render_report", "write_report"]

NAMES = {
    "neutral": "neutral against neutral",
    "same": "equal emotions",
    "pairs": "different emotions",
    "enrol": "four neutral clips against every other emotion",
}
COLOURS = {"neutral": "#2a7f62", "same": "#2f6db3", "pairs": "#c2452d", "enrol": "#8a4fb0"}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --rule: #d5dae2; --faint: #667085; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --paper: #14181f; --rule: #343c49; --faint: #98a2b3; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 60rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-top: 2px solid var(--rule); padding-top: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
small, figcaption, .note { color: var(--faint); font-size: .85rem; } figure { margin: 1.2rem 0; }
svg { width: 100%; height: auto; max-width: 36rem; display: block; } svg text { fill: currentColor; font-size: 13px; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: currentColor; stroke-width: 1.2; }
code { font-size: .85em; }
"""


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    if not interval:
        return _percent(value)
    return f"{_percent(value)} <small>{_percent(interval[0])} to {_percent(interval[1])}</small>"


def _probit(p: float) -> float:
    """The normal deviate of a probability (Acklam's rational approximation, relative error below 1.2e-9)."""
    a = (-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.3577518672690, -30.66479806614716,
         2.506628277459239)  # fmt: skip
    b = (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572)
    c = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
         2.938163982698783)  # fmt: skip
    d = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416)
    if p > 0.5:
        return -_probit(1.0 - p)
    if p < 0.02425:
        q = math.sqrt(-2.0 * math.log(p))
        top = ((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]
        return top / ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1.0)
    q = p - 0.5
    r = q * q
    top = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q
    return top / (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1.0)


TICKS = (0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def det_svg(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """DET curves: name -> points (far, frr), both axes as normal deviates from 0.05 to 50 %."""
    low, high = _probit(TICKS[0]), _probit(0.5)
    left, top, size = 58.0, 12.0, 400.0

    def place(p: float) -> float:
        return size * (min(max(_probit(min(max(p, 1e-6), 1 - 1e-6)), low), high) - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {left + size + 16:g} {top + size + 58:g}" role="img" aria-label="DET curves">']
    for tick in TICKS:
        x, y, label = left + place(tick), top + size - place(tick), f"{100 * tick:g}"
        parts += [
            f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + size}"/>',
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + size}" y2="{y:.1f}"/>',
            f'<text x="{x:.1f}" y="{top + size + 18}" text-anchor="middle">{label}</text>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
        ]
    parts.append(
        f'<line class="grid" stroke-dasharray="4 4" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>'
    )
    for name, points in curves.items():
        inside = [(far, frr) for far, frr in points if far <= 0.5 and frr <= 0.5]
        if inside:
            path = " ".join(f"{left + place(far):.1f},{top + size - place(frr):.1f}" for far, frr in inside)
            colour = COLOURS.get(name.split()[0], "#888")
            dash = ' stroke-dasharray="7 4"' if " " in name else ""
            title = html.escape(name)
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="2.2"{dash} points="{path}">'
                f"<title>{title}</title></polyline>"
            )
    for row, name in enumerate(curves):
        y = top + 18 + 18 * row
        colour = COLOURS.get(name.split()[0], "#888")
        dash = ' stroke-dasharray="7 4"' if " " in name else ""
        parts += [
            f'<line x1="{left + size - 132}" y1="{y - 4}" x2="{left + size - 106}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="3"{dash}/>',
            f'<text x="{left + size - 100}" y="{y}">{html.escape(name)}</text>',
        ]
    parts += [
        f'<text x="{left + size / 2}" y="{top + size + 44}" text-anchor="middle">false accepts, %</text>',
        f'<text transform="translate(14 {top + size / 2}) rotate(-90)" text-anchor="middle">false rejects, %</text>',
        "</svg>",
    ]
    return "".join(parts)


def _shade(share: float) -> tuple[str, str]:
    """Background from pale to red, and the text colour that can be read on it."""
    share = min(max(share, 0.0), 1.0)
    low, high = (247, 244, 238), (178, 40, 24)
    red, green, blue = (round(a + (b - a) * share**0.7) for a, b in zip(low, high, strict=True))
    return f"rgb({red},{green},{blue})", "#fff" if share > 0.4 else "#1d2430"


def heat_svg(pairs: Mapping[str, Mapping[str, Any]]) -> str:
    """A heat map of EER by emotion pair: ``"angry/sad" -> {"eer", ...}``, symmetric; unknown cells are empty."""
    names = sorted({name for pair in pairs for name in pair.split("/")}, key=lambda n: (n != "neutral", n))
    worst = max((figures["eer"] for figures in pairs.values()), default=0.0) or 1.0
    left, top, cell = 84.0, 12.0, 54.0
    width, height = left + cell * len(names) + 6, top + cell * len(names) + 74
    parts = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="EER by emotion pair">']
    for i, row in enumerate(names):
        y = top + cell * i
        parts.append(f'<text x="{left - 8}" y="{y + cell / 2 + 4:g}" text-anchor="end">{html.escape(row)}</text>')
        for j, column in enumerate(names):
            figures = pairs.get("/".join(sorted((row, column))))
            x = left + cell * j
            if figures is None:
                parts.append(f'<rect class="grid" fill="none" x="{x}" y="{y}" width="{cell}" height="{cell}"/>')
                continue
            colour, ink = _shade(figures["eer"] / worst)
            count = f"{figures['targets']} targets, {figures['nontargets']} non-targets"
            parts += [
                f'<rect fill="{colour}" x="{x}" y="{y}" width="{cell}" height="{cell}">'
                f"<title>{html.escape(row)} against {html.escape(column)}: {count}</title></rect>",
                f'<text x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle" style="fill:{ink}">'
                f"{_percent(figures['eer'], 1)}</text>",
            ]
    for j, column in enumerate(names):
        x, y = left + cell * (j + 0.5), top + cell * len(names) + 14
        parts.append(
            f'<text transform="translate({x + 4:g} {y:g}) rotate(-50)" text-anchor="end">{html.escape(column)}</text>'
        )
    return "".join([*parts, "</svg>"])


def reliability_svg(points: Sequence[Sequence[float]]) -> str:
    """Said against found log-likelihood ratios: points (said, found, targets, non-targets)."""
    if not points:
        return '<p class="note">No bin holds both targets and non-targets; there is nothing to draw.</p>'
    reach = max(1.0, math.ceil(max(abs(value) for point in points for value in point[:2])))
    left, top, size = 52.0, 12.0, 400.0

    def place(value: float) -> float:
        return size * (value + reach) / (2 * reach)

    step = 1 if reach <= 4 else 2 if reach <= 9 else 5
    ticks = range(-int(reach // step * step), int(reach) + 1, step)
    parts = [f'<svg viewBox="0 0 {left + size + 16:g} {top + size + 58:g}" role="img" aria-label="reliability">']
    for tick in ticks:
        x, y = left + place(tick), top + size - place(tick)
        parts += [
            f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + size}"/>',
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + size}" y2="{y:.1f}"/>',
            f'<text x="{x:.1f}" y="{top + size + 18}" text-anchor="middle">{tick}</text>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>',
        ]
    parts.append(
        f'<line class="axis" stroke-dasharray="5 4" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>'
    )
    path = " ".join(f"{left + place(said):.1f},{top + size - place(found):.1f}" for said, found, *_ in points)
    parts.append(f'<polyline fill="none" stroke="{COLOURS["enrol"]}" stroke-width="2.2" points="{path}"/>')
    for said, found, targets, nontargets in points:
        title = f"said {said:.2f}, found {found:.2f}: {targets:g} targets, {nontargets:g} non-targets"
        parts.append(
            f'<circle fill="{COLOURS["enrol"]}" cx="{left + place(said):.1f}" '
            f'cy="{top + size - place(found):.1f}" r="4"><title>{title}</title></circle>'
        )
    parts += [
        f'<text x="{left + size / 2}" y="{top + size + 44}" text-anchor="middle">log-likelihood ratio said</text>',
        f'<text transform="translate(14 {top + size / 2}) rotate(-90)" text-anchor="middle">found</text></svg>',
    ]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _main_table(result: Mapping[str, Any]) -> str:
    rows = []
    for protocol, words in NAMES.items():
        if protocol in result:
            figures = result[protocol]
            rows.append(
                [
                    f"<b>{protocol}</b> <small>{words}</small>",
                    _with_interval(figures["eer"], figures.get("eer_interval")),
                    _with_interval(figures["frr_at_far"]["0.01"], figures.get("frr_at_far_interval", {}).get("0.01")),
                    f"{figures['min_dcf']['0.01']:.3f}",
                    f"{figures['min_dcf']['0.05']:.3f}",
                    f"{figures['targets']} / {figures['nontargets']}",
                ]
            )
    head = ("by cosine", "EER %", "FRR % at FAR 1 %", "minDCF 0.01", "minDCF 0.05", "targets / non-targets")
    return _table(head, rows)


def _groups(result: Mapping[str, Any], key: str, title: str) -> str:
    found = {p: result[p][key] for p in NAMES if p in result and len(result[p].get(key, {})) > 1}
    names = sorted({name for groups in found.values() for name in groups})
    if not names:
        return ""
    rows = [
        [html.escape(name), *(_percent(found[p][name]["eer"]) if name in found[p] else "" for p in found)]
        for name in names
    ]
    return f"<h3>{title}</h3>" + _table(("", *(f"{p} EER %" for p in found)), rows)


def _llr_section(llr: Mapping[str, Any]) -> str:
    parts = ([("every mood but neutral", llr["enrol"])] if llr["enrol"] else []) + list(llr["by_emotion"].items())
    rates = list(parts[0][1]["thresholds"]) if parts else []
    rows = []
    for name, figures in parts:
        row = [
            html.escape(name),
            _with_interval(figures["eer"], figures.get("eer_interval")),
            f"{figures['cllr']:.3f} / {figures['min_cllr']:.3f}",
        ]
        for rate in rates:
            at = figures["thresholds"][rate]
            row += [
                _with_interval(at["far"], at.get("far_interval")),
                _with_interval(at["frr"], at.get("frr_interval")),
            ]
        rows.append(row)
    head = ["enrolled neutral, tested", "EER %", "Cllr / least"]
    for rate in rates:
        head += [f"FAR % <small>asked {100 * float(rate):g} %</small>", "FRR %"]
    note = (
        f"No decision on {_percent(llr['failure_to_acquire'])} % of the clips, no profile for "
        f"{_percent(llr['failure_to_enrol'])} % of the speakers. The calibration knows {llr['num_impostor_speakers']} "
        f"impostor speakers and supports no rate below {_percent(llr['supported_far'])} %."
    )
    caption = "Log-likelihood ratios in bins: on the dashed line they mean what they say."
    return (
        "<h3>Decisions as the runtime makes them</h3>"
        + _table(head, rows)
        + f'<p class="note">{note}</p>'
        + _figure(reliability_svg(llr["reliability"]), caption)
    )


def render_report(results: Mapping[str, Any]) -> str:
    """The page of what `train.evaluate.evaluate_model` returns."""
    body = [
        f"<h1>{html.escape(results['model'])}</h1>",
        f"<p class='note'>SHA-256 <code>{html.escape(results['fingerprint'])}</code><br>Rates in percent; intervals "
        "are 95 % by bootstrap over the speakers.</p>",
    ]
    for name, result in results["sets"].items():
        used = "" if result["clips_used"] == result["clips"] else f" ({result['clips_used']} used)"
        body += [
            f"<h2>{html.escape(name)}</h2>",
            f"<p>{result['clips']} clips{used} of {result['speakers']} speakers</p>",
            _main_table(result),
        ]
        curves = {protocol: points for protocol, points in result.get("det", {}).items() if points}
        if curves:
            body.append(_figure(det_svg(curves), "False accepts against false rejects; lower left is better."))
        pairs = {k: v for p in ("same", "pairs") for k, v in result.get(p, {}).get("by_emotion_pair", {}).items()}
        if len(pairs) > 1:
            body.append(_figure(heat_svg(pairs), "EER % by the emotions of both clips; equal ones on the diagonal."))
        body += [
            _groups(result, "by_emotion", "By emotion"),
            _groups(result, "by_gender", "By gender"),
            _groups(result, "by_duration", "By length of the shorter clip"),
        ]
        if "llr" in result:
            body.append(_llr_section(result["llr"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(results['model'])}: error rates</title><style>{STYLE}</style></head><body>"
        + "".join(body)
        + "</body></html>\n"
    )


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(render_report(results), encoding="utf-8")
    os.replace(part, path)
