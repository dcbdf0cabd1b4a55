"""What an evaluation prints: a plain table, and one HTML page with figures."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.files import write_atomically

from .figures import Series, deviate, figure, heat, linear, page, percent, plot, table_html, with_interval
from .metrics import det_curve
from .protocols import PROTOCOLS

__all__ = ["det_points", "format_table", "render_report", "write_report"]

Figures = Mapping[str, Any]
COLOURS = {"neutral": "#2a7f62", "same": "#2f6db3", "pairs": "#c2452d", "enrol": "#8a4fb0"}
HEAD = ("EER %", "FRR % at 1 % FAR", "minDCF 0.01", "minDCF 0.05", "targets", "non-targets")
NOTE = (
    "Rates in percent, 95 % intervals by bootstrap over the speakers. neutral: both clips neutral; same: equal "
    "emotions; pairs: different emotions; enrol: four neutral clips against every other emotion."
)


def det_points(scores: NDArray[np.floating], target: NDArray[np.bool_], points: int = 120) -> list[list[float]]:
    """A DET curve thinned for drawing: [far, frr] at thresholds that are even on the curve's own scale."""
    curve = det_curve(scores[target], scores[~target])
    inside = np.flatnonzero((curve.far > 0) & (curve.frr > 0) & (curve.far < 1) & (curve.frr < 1))
    if not len(inside):
        return []
    length = np.log(curve.frr[inside]) - np.log(curve.far[inside])
    wanted = np.linspace(length[0], length[-1], points)
    chosen = np.unique(inside[np.clip(np.searchsorted(length, wanted), 0, len(inside) - 1)])
    return [[float(curve.far[k]), float(curve.frr[k])] for k in chosen]


def _rows(result: Figures) -> Iterator[list[str]]:
    """The protocols' figures by cosine, and those of the LLR where there are any."""
    found = [(protocol, result[protocol]) for protocol in PROTOCOLS if protocol in result]
    if "llr" in result:
        llr = {"enrol LLR": result["llr"]["enrol"], "neutral LLR": result["llr"]["by_emotion"].get("neutral")}
        found += [(name, figures) for name, figures in llr.items() if figures]
    for name, figures in found:
        yield [
            name,
            with_interval(figures["eer"], figures.get("eer_interval")),
            with_interval(figures["frr_at_far"]["0.01"], figures.get("frr_at_far_interval", {}).get("0.01")),
            *(f"{figures['min_dcf'][prior]:.3f}" for prior in ("0.01", "0.05")),
            *(str(figures[kind]) for kind in ("targets", "nontargets")),
        ]


def format_table(results: Mapping[str, Figures]) -> str:
    """A plain table of the sets' figures in percent, one line a set and protocol."""
    rows = [["set", "protocol", *HEAD]]
    rows += [[name, *row] for name, result in results.items() for row in _rows(result)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    for name, result in results.items():
        if "llr" in result:
            lines += ["", f"{name}: {_llr_note(result['llr'])}"]
            for part, figures in _llr_parts(result["llr"]):
                # The rates that a line has room for: 10 %, 5 % and the lowest; JSON and the page have them all.
                lowest = min(figures["thresholds"], key=float, default=None)
                at = ", ".join(
                    f"at {100 * float(rate):g} %: FAR {with_interval(point['far'], point.get('far_interval'))} "
                    f"FRR {with_interval(point['frr'], point.get('frr_interval'))}"
                    for rate, point in figures["thresholds"].items()
                    if rate in ("0.1", "0.05", lowest)
                )
                rates = f"EER {percent(figures['eer'])}  Cllr {figures['cllr']:.3f} (minCllr {figures['min_cllr']:.3f})"
                lines.append(f"  {part:<17} {rates}  {at}")
    return "\n".join(lines)


def _llr_note(llr: Figures) -> str:
    return (
        "log-likelihood ratios as the runtime makes them; no decision on "
        f"{percent(llr['failure_to_acquire'])} % of the clips, no profile for {percent(llr['failure_to_enrol'])} % "
        f"of the speakers; {llr['num_impostor_speakers']} impostor speakers support no FAR below "
        f"{percent(llr['supported_far'])} %"
    )


def _llr_parts(llr: Figures) -> list[tuple[str, Figures]]:
    return ([("emotions together", llr["enrol"])] if llr["enrol"] else []) + list(llr["by_emotion"].items())


def _groups(result: Figures, key: str, title: str) -> str:
    found = {p: result[p][key] for p in PROTOCOLS if p in result and len(result[p].get(key, {})) > 1}
    names = sorted({name for groups in found.values() for name in groups})
    if not names:
        return ""
    rows = [[name, *(percent(groups.get(name, {}).get("eer")) for groups in found.values())] for name in names]
    return f"<h3>{title}</h3>" + table_html(["", *(f"{protocol} EER %" for protocol in found)], rows)


def _llr_section(llr: Figures) -> str:
    parts = _llr_parts(llr)
    rates = list(parts[0][1]["thresholds"]) if parts else []
    rows = [
        [
            name,
            with_interval(figures["eer"], figures.get("eer_interval")),
            f"{figures['cllr']:.3f} / {figures['min_cllr']:.3f}",
            *(
                with_interval(figures["thresholds"][rate][kind], figures["thresholds"][rate].get(f"{kind}_interval"))
                for rate in rates
                for kind in ("far", "frr")
            ),
        ]
        for name, figures in parts
    ]
    head = ["enrolled neutral, tested", "EER %", "Cllr / minCllr"]
    head += [text for rate in rates for text in (f"FAR % (asked {100 * float(rate):g} %)", "FRR %")]
    section = f"<h3>Decisions as the runtime makes them</h3><p>{html.escape(_llr_note(llr))}.</p>"
    return section + table_html(head, rows)


def _reliability(points: Sequence[Sequence[float]]) -> str:
    """Predicted against observed LLR; on the diagonal the LLR means what it claims."""
    reach = max(1.0, math.ceil(max(abs(value) for point in points for value in point[:2])))
    series = [Series("bins of trials", COLOURS["enrol"], [point[:2] for point in points])]
    x, y = (linear(f"log-likelihood ratio {name}", reach, -reach) for name in ("predicted", "observed"))
    return figure("reliability", "Reliability", plot("Reliability", x, y, series, height=300, diagonal=True))


def render_report(results: Figures) -> str:
    """The page of the results of `python -m train evaluate`."""
    parts = [f"<p>SHA-256 <code>{html.escape(results['fingerprint'])}</code></p><p>{NOTE}</p>"]
    for name, result in results["sets"].items():
        used = "" if result["clips_used"] == result["clips"] else f" ({result['clips_used']} used)"
        drawn = []
        curves = [Series(p, COLOURS[p], points) for p, points in result.get("det", {}).items() if points]
        if curves:
            axes = deviate("FAR %"), deviate("FRR %")
            svg = plot("FAR against FRR", *axes, curves, height=300, dots=False, diagonal=True)
            drawn.append(figure("det", "FAR against FRR; lower left is better", svg))
        pairs = {k: v for p in ("same", "pairs") for k, v in result.get(p, {}).get("by_emotion_pair", {}).items()}
        if len(pairs) > 1:
            title = "EER % by the emotions of both clips"
            drawn.append(figure("heat", title, heat(title, {pair: found["eer"] for pair, found in pairs.items()})))
        if result.get("llr", {}).get("reliability"):
            drawn.append(_reliability(result["llr"]["reliability"]))
        parts += [
            f"<h2>{html.escape(name)}</h2><p>{result['clips']} clips{used} of {result['speakers']} speakers</p>",
            table_html(["", *HEAD], list(_rows(result))),
            _llr_section(result["llr"]) if "llr" in result else "",
            f'<div class="figures">{"".join(drawn)}</div>' if drawn else "",
            _groups(result, "by_emotion", "By emotion"),
            _groups(result, "by_gender", "By gender"),
            _groups(result, "by_duration", "By length of the shorter clip"),
        ]
    return page(results["model"], parts)


def write_report(path: Path, results: Figures) -> None:
    """Write the page, atomically."""
    write_atomically(path, render_report(results), mode=0o644)
