"""``python -m benchmarks.report``: figures, tables for the README and one page, from the JSON of a run."""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import figures
from .conditions import CONDITIONS

__all__ = ["make", "markdown", "page"]

RESULTS = Path(__file__).resolve().parent / "results"
STAGES = ("test_pipeline.py", "test_scoring.py")  # whose times are per call; the others measure for themselves
Table = tuple[list[str], list[list[str]]]


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """What a run wrote: speed, peers, accuracy and robustness, those that are there."""
    found = {}
    for name in ("speed", "peers", "accuracy", "robustness"):
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            encoders = found[name].get("encoders")
            if isinstance(encoders, dict):  # ours first; the order is that of the measurements
                found[name]["encoders"] = dict(sorted(encoders.items(), key=lambda item: not item[1]["ours"]))
    if not found:
        raise SystemExit(f"{folder}: no results; run `python -m benchmarks` first")
    return found


def percent(rate: float | None, digits: int = 2) -> str:
    """A rate as a percentage."""
    return "" if rate is None else f"{100.0 * rate:.{digits}f}"


def eer(row: dict[str, Any], name: str, protocol: str) -> float | None:
    """The EER of one protocol of one set, where it was measured."""
    value = row.get(name, {}).get(protocol, {}).get("eer")
    return None if value is None else float(value)


def peers_table(results: dict[str, dict[str, Any]]) -> Table:
    """The comparison, a row an encoder."""
    head = [
        "encoder", "model MB", "ms for 3 s", "times faster than fp32 ResNet34-LM", "RSS MB", "neutral", "pairs",
        "enrol (95 %)", "false rejects at 1 % false accepts", "LibriSpeech", "alphanumeric",
    ]  # fmt: skip
    accuracy = results.get("accuracy", {}).get("encoders", {})
    timed = {row["key"]: row for row in results.get("peers", {}).get("encoders", [])}
    rows = []
    for key in [*timed, *(key for key in accuracy if key not in timed)]:
        time, rates = timed.get(key, {}), accuracy.get(key, {})
        enrol = rates.get("ravdess", {}).get("enrol", {})
        spread = enrol.get("eer_interval")
        faster = time.get("times_faster_than_reference")
        rows.append([
            time.get("name") or rates["name"],
            f"{time['model_mb']:.1f}" if time else "",
            f"{time['cpu_ms']:.1f}" if time else "",
            f"{faster:.1f}" if faster else "",
            f"{time['rss_mb']:.0f}" if time else "",
            percent(eer(rates, "ravdess", "neutral")),
            percent(eer(rates, "ravdess", "pairs")),
            percent(enrol.get("eer")) + (f" ({percent(spread[0], 1)}-{percent(spread[1], 1)})" if spread else ""),
            percent(enrol.get("frr_at_far", {}).get("0.01"), 1),
            percent(eer(rates, "librispeech", "same")),
            percent(eer(rates, "alphanumeric", "same")),
        ])  # fmt: skip
        score = rates.get("calibrated")
        if score:
            spread = score["eer_interval"]
            rows.append([
                f"{rates['name']}, calibrated score", "", "", "", "", "", "",
                f"{percent(score['eer'])} ({percent(spread[0], 1)}-{percent(spread[1], 1)})",
                percent(score["frr_at_far"]["0.01"], 1), "", "",
            ])  # fmt: skip
    return head, rows


def emotion_table(results: dict[str, dict[str, Any]]) -> Table | None:
    """`enrol` EER by emotion."""
    accuracy = results.get("accuracy", {}).get("encoders", {})
    found = {key: row["ravdess"]["enrol"]["by_emotion"] for key, row in accuracy.items() if "ravdess" in row}
    if not found:
        return None
    emotions = sorted({name for row in found.values() for name in row})
    rows = [
        [accuracy[key]["name"], *(percent(row.get(name, {}).get("eer"), 1) for name in emotions)]
        for key, row in found.items()
    ]
    return ["encoder", *emotions], rows


def robustness_tables(results: dict[str, dict[str, Any]]) -> list[tuple[str, Table]]:
    """EER by condition, and by seconds of speech."""
    encoders = results.get("robustness", {}).get("encoders", {})
    if not encoders:
        return []
    names = [row["name"] for row in encoders.values()]
    known = [name for name in CONDITIONS if any(name in row["conditions"] for row in encoders.values())]
    rows = [
        [CONDITIONS[name], *(percent(row["conditions"].get(name, {}).get("eer"), 1) for row in encoders.values())]
        for name in known
    ]
    tables = [("EER on degraded tests, %", (["test speech", *names], rows))]
    for corpus in ("librispeech", "alphanumeric"):
        found = [row["seconds"].get(corpus, {}) for row in encoders.values()]
        lengths = sorted({length for each in found for length in each}, key=float)
        if lengths:
            rows = [[f"{length} s", *(percent(each.get(length), 1) for each in found)] for length in lengths]
            tables.append((f"EER by seconds of test speech, {corpus}, %", (["test speech", *names], rows)))
    return tables


def speed_table(results: dict[str, dict[str, Any]]) -> Table | None:
    """Every benchmark with a time per second of audio, or per call."""
    rows = []
    for row in results.get("speed", {}).get("benchmarks", []):
        extra = row["extra"]
        if row["file"] not in STAGES:
            continue
        rows.append([
            label(row["name"]),
            f"{row['median_ms']:.2f}" if row["median_ms"] < 100 else f"{row['median_ms']:.0f}",
            f"{row['iqr_ms']:.2f}",
            f"{extra['rtf']:.5f}" if "rtf" in extra else "",
            f"{extra['percent_of_one_core']:.2f}" if "rtf" in extra else "",
        ])  # fmt: skip
    return (["benchmark", "CPU ms", "IQR", "RTF", "% of one core"], rows) if rows else None


def label(name: str) -> str:
    """``test_embed[base-3]`` as ``embed, base, 3``."""
    stem, _, parameters = name.removeprefix("test_").partition("[")
    return ", ".join([stem.replace("_", " "), *filter(None, parameters.removesuffix("]").split("-"))])


def start_table(results: dict[str, dict[str, Any]]) -> Table | None:
    """Start-up, memory and sizes: what each benchmark of test_startup.py and the stream found."""
    rows = []
    for row in results.get("speed", {}).get("benchmarks", []):
        if row["file"] in STAGES:
            continue
        found = []
        for name, value in row["extra"].items():
            if name in ("points", "x", "y", "audio_s"):
                continue
            if isinstance(value, float):
                value = f"{value:.4g}"
            elif isinstance(value, dict):
                value = ", ".join(f"{key} {each}" for key, each in value.items())
            found.append(f"{name.replace('_', ' ')} {value}")
        if found:
            rows.append([label(row["name"]), "; ".join(found)])
    return (["benchmark", "found"], rows) if rows else None


def draw(results: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Every figure that the results allow: name -> (title, SVG)."""
    out = {}
    accuracy = results.get("accuracy", {}).get("encoders", {})
    timed = {row["key"]: row for row in results.get("peers", {}).get("encoders", [])}
    colour = figures.colours([*timed, *(key for key in accuracy if key not in timed)])
    rated = {key: row for key, row in accuracy.items() if eer(row, "ravdess", "enrol") is not None}
    points = [
        (short(row["name"]), colour[key], timed[key]["cpu_ms"], 100.0 * row["ravdess"]["enrol"]["eer"], row["ours"])
        for key, row in rated.items()
        if key in timed
    ]
    if points:
        title = "Accuracy against latency: left and low is better"
        svg = figures.scatter(
            title, "CPU ms to embed 3 s of audio, one thread", "EER on emotional speech (RAVDESS enrol), %", points
        )
        out["accuracy-latency"] = (title, svg)
    if rated:
        title = "Error rate by emotion, enrolled on neutral speech"
        emotions = sorted({name for row in rated.values() for name in row["ravdess"]["enrol"]["by_emotion"]})
        series = [
            (
                short(row["name"]),
                colour[key],
                [
                    100.0 * each["eer"] if (each := row["ravdess"]["enrol"]["by_emotion"].get(name)) else None
                    for name in emotions
                ],
            )
            for key, row in rated.items()
        ]
        out["emotions"] = (title, figures.bars(title, "EER, %", emotions, series))
        title = "Trade-off of false accepts and false rejects, RAVDESS enrol"
        out["det"] = (
            title,
            figures.det(
                title,
                [
                    (short(row["name"]), colour[key], row["ours"], row["ravdess"]["enrol"]["det"])
                    for key, row in rated.items()
                ],
            ),
        )
    robust = results.get("robustness", {}).get("encoders", {})
    if robust:
        title = "Noise, rooms and channels: EER with a clean profile"
        hue = figures.colours(list(robust))
        names = [name for name in CONDITIONS if any(name in row["conditions"] for row in robust.values())]
        series = [
            (
                short(row["name"]),
                hue[key],
                [100.0 * each["eer"] if (each := row["conditions"].get(name)) else None for name in names],
            )
            for key, row in robust.items()
        ]
        if names:
            out["conditions"] = (title, figures.bars(title, "EER, %", [CONDITIONS[n] for n in names], series))
        title = "Error rate by seconds of test speech, alphanumeric"
        lines = [
            (short(row["name"]), hue[key], [[float(s), 100.0 * v] for s, v in row["seconds"]["alphanumeric"].items()])
            for key, row in robust.items()
            if row["seconds"].get("alphanumeric")
        ]
        if lines:
            out["seconds"] = (
                title,
                figures.curves(title, "seconds of test speech", "EER, %", lines, log_x=True, log_y=False),
            )
    growth: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in results.get("speed", {}).get("benchmarks", []):
        if "points" in row["extra"]:
            stem, _, model = row["name"].removeprefix("test_").partition("[")
            growth.setdefault(stem, []).append((model.removesuffix("]"), row["extra"]))
    for stem, entries in growth.items():
        title = stem.replace("_", " ").capitalize()
        hue = figures.colours([model for model, _ in entries])
        lines = [
            (model + (f", slope {extra['slope']:.2f}" if "slope" in extra else ""), hue[model], extra["points"])
            for model, extra in entries
        ]
        memory = entries[0][1]["y"].startswith("resident")
        svg = figures.curves(title, entries[0][1]["x"], entries[0][1]["y"], lines, log_y=not memory)
        out[f"growth-{stem.replace('_', '-')}"] = (title, svg)
    return out


def short(name: str) -> str:
    """A name for a figure."""
    return {
        "ResNet34-LM, WeSpeaker": "ResNet34-LM",
        "ResNet34-LM, sherpa-onnx": "sherpa-onnx",
        "ERes2Net-base, 3D-Speaker": "ERes2Net",
        "CAM++ zh-en, 3D-Speaker": "CAM++",
        "ECAPA-TDNN, SpeechBrain": "ECAPA-TDNN",
        "GE2E LSTM, Resemblyzer": "Resemblyzer",
    }.get(name, name)


def about(results: dict[str, dict[str, Any]]) -> str:
    """Where the times come from, in a sentence."""
    found = next((results[name]["machine"] for name in ("peers", "speed") if name in results), None)
    if found is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    flags = ", ".join(found["flags"]) or "no int8 instructions known"
    return (
        f"{found['cpu']}, {found['cores']} cores ({flags}), {found['system']} {found['architecture']}; {versions}. "
        f"One thread; times are CPU time, which other programs do not change (load then {found['load']})."
    )


def tables(results: dict[str, dict[str, Any]]) -> list[tuple[str, Table]]:
    """Every table that the results allow, with its title."""
    found: list[tuple[str, Table | None]] = []
    if "peers" in results or "accuracy" in results:
        found.append(("Beside the peers: cost, and EER in % on speech that none was tuned on", peers_table(results)))
    found.append(("EER by emotion, %, RAVDESS enrol", emotion_table(results)))
    found += robustness_tables(results)
    found.append(("Stages", speed_table(results)))
    found.append(("Start-up, memory, sizes, growth", start_table(results)))
    return [(title, table) for title, table in found if table is not None and table[1]]


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The tables for the README."""
    parts = [about(results)] if about(results) else []
    for title, (head, rows) in tables(results):
        aligned = ["---", *("---:" for _ in head[1:])]
        lines = [head, aligned, *rows]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    for name, reason in results.get("peers", {}).get("skipped", {}).items():
        parts.append(f"Not measured: {name} ({reason}).")
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 16px; font: 16px/1.5 system-ui, sans-serif; color: #1d2733;
  background: #fff; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
.figures { columns: 340px; column-gap: 20px; }
figure { margin: 0 0 20px; break-inside: avoid; border: 1px solid #d9dde3; border-radius: 8px; padding: 10px; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid #d9dde3; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 3.5rem; } tr > :first-child { text-align: left; }
.found td:last-child { text-align: left; white-space: normal; min-width: 16rem; }
@media (max-width: 480px) { body { padding: 8px; } figure { padding: 6px 2px; } }
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """One HTML page without any reference to another file."""
    parts = [
        "<h1>emoinv-edge: speed, size and accuracy beside the peers</h1>",
        f"<p>{html.escape(about(results))}</p>",
        "<p>EER is the rate at which false accepts equal false rejects; lower is better. Profiles are made of four "
        "neutral clips, tests are emotional. Every encoder is compared by plain cosine; “calibrated score” is what "
        "the library decides by.</p>",
        '<div class="figures">',
    ]
    for name, (title, svg) in draw(results).items():
        parts.append(f'<figure id="{name}"><figcaption>{html.escape(title)}</figcaption>{svg}</figure>')
    parts.append("</div>")
    for title, (head, rows) in tables(results):
        kind = ' class="found"' if head[-1] == "found" else ""
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        parts.append(
            f'<h2>{html.escape(title)}</h2><div class="wide"><table{kind}><thead><tr>{cells}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    skipped = results.get("peers", {}).get("skipped", {})
    if skipped:
        parts.append("<h2>Not measured</h2><ul>")
        parts += [f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in skipped.items()]
        parts.append("</ul>")
    sources = [row for row in results.get("peers", {}).get("encoders", []) if "get" in row]
    if sources:
        parts.append("<h2>Where the peers come from</h2><ul>")
        for row in sources:
            versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
            parts.append(
                f"<li>{html.escape(row['name'])} ({html.escape(row['licence'])}; {html.escape(versions)}): "
                f"{html.escape(row['get'])}</li>"
            )
        parts.append("</ul>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>emoinv-edge benchmarks</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def make(folder: Path = RESULTS, out: Path | None = None) -> list[Path]:
    """Write report.html, tables.md and one SVG a figure into `out` (default: beside the results)."""
    results = load(folder)
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    written = [target / "report.html", target / "tables.md"]
    written[0].write_text(page(results), encoding="utf-8")
    written[1].write_text(markdown(results), encoding="utf-8")
    for name, (_, svg) in draw(results).items():
        written.append(target / f"{re.sub('[^a-z0-9-]', '', name)}.svg")
        written[-1].write_text(svg + "\n", encoding="utf-8")
    return written


def readme(results: dict[str, dict[str, Any]], text: str, folder: str) -> str:
    """The README with the tables and two figures between its markers; `folder` is where the results lie from there.

    Raises
    ------
    ValueError
        If the README has no such markers.
    """
    found = re.search(r"(<!-- figures: begin[^\n]*-->\n).*?(<!-- figures: end -->)", text, re.DOTALL)
    if found is None:
        raise ValueError("the README has no lines '<!-- figures: begin -->' and '<!-- figures: end -->'")
    drawn = draw(results)
    parts = [
        f"![{drawn[name][0]}]({folder}/{name}.svg)" for name in ("accuracy-latency", "emotions", "det") if name in drawn
    ]
    body = markdown({name: value for name, value in results.items() if name != "speed"})
    more = f"Every stage, growth, start-up and memory: [tables]({folder}/tables.md), [page]({folder}/report.html)."
    filled = "\n".join([*parts, "", body, more, ""])
    return text[: found.end(1)] + filled + text[found.start(2) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="the folder of a run's JSON")
    parser.add_argument("--out", type=Path, help="where to write (default: beside the results)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also fill the figures of this README")
    args = parser.parse_args(arguments)
    for path in make(args.results, args.out):
        print(path)
    if args.readme is not None:
        folder = os.path.relpath(args.out or args.results, args.readme.parent).replace(os.sep, "/")
        filled = readme(load(args.results), args.readme.read_text(encoding="utf-8"), folder)
        args.readme.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
