"""The page and the tables of a run, from its JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emoinv_edge.files import write_atomically
from train.evaluation import figures
from train.evaluation.figures import Series, percent, table_markdown, with_interval

from .conditions import CONDITIONS

__all__ = ["RESULTS", "load", "make", "read"]

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = ("speed", "peers", "accuracy", "robustness", "enrolment")
STAGES = ("test_pipeline.py", "test_scoring.py")  # whose times are per call; the others measure for themselves
# Ours in blue and green, strong; the peers in muted colours that differ in lightness too.
COLOURS = {
    "base": "#0b5cad", "small": "#0a8f76", "large": "#123a6b", "wespeaker": "#b4530a", "sherpa": "#d08a3c",
    "eres2net": "#8a4fa3", "campplus": "#6f7f1d", "ecapa": "#b23a5b", "resemblyzer": "#6d7580",
}  # fmt: skip
OTHER_COLOUR = "#444444"

Results = Mapping[str, dict[str, Any]]
Table = tuple[list[str], list[list[str]]]


def read(path: Path) -> dict[str, Any]:
    """One step's result, or an empty one."""
    if not path.is_file():
        return {}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def load(folder: Path = RESULTS, steps: Sequence[str] = STEPS) -> dict[str, dict[str, Any]]:
    """What a run wrote, those steps that are there; ours come first.

    Raises
    ------
    ValueError
        If there is nothing, or the figures of one encoder come from different model files.
    """
    found = {step: result for step in steps if (result := read(folder / f"{step}.json"))}
    if not found:
        raise ValueError(f"{folder}: no results; run `python -m benchmarks` first")
    for result in found.values():
        encoders = result.get("encoders")
        if isinstance(encoders, dict):
            result["encoders"] = dict(sorted(encoders.items(), key=lambda item: not item[1]["ours"]))
    _refuse_mixtures(found)
    return found


def _refuse_mixtures(results: Results) -> None:
    """Raise where an encoder's rows are not all of one network; its fingerprint stays when only its scores change."""
    files: dict[str, dict[str, list[str]]] = {}
    for step, result in results.items():
        rows = result.get("encoders") or result.get("benchmarks") or []
        for key, row in rows.items() if isinstance(rows, dict) else ((row.get("key"), row) for row in rows):
            if key is not None:
                fingerprint = row.get("origin", {}).get("fingerprint", "no file named")
                files.setdefault(key, {}).setdefault(fingerprint, []).append(step)
    for key, found in files.items():
        if len(found) > 1 or "no file named" in found:
            rows = "; ".join(f"{', '.join(dict.fromkeys(steps))}: {name[:12]}" for name, steps in found.items())
            raise ValueError(
                f"expected the figures of {key} to come from one model file, got {rows}; measure again: "
                f"python -m benchmarks {' '.join(results)}"
            )


def _rated(results: Results) -> dict[str, dict[str, Any]]:
    """Rows of accuracy.json."""
    return dict(results.get("accuracy", {}).get("encoders", {}))


def _timed(results: Results) -> dict[str, dict[str, Any]]:
    """Rows of peers.json by key."""
    return {row["key"]: row for row in results.get("peers", {}).get("encoders", [])}


def _names(results: Results) -> dict[str, str]:
    found = [results.get(step, {}).get("encoders", {}) for step in ("accuracy", "robustness")]
    return {key: row["name"] for rows in found for key, row in rows.items()}


def _eer(row: Mapping[str, Any], name: str, protocol: str) -> float | None:
    value = row.get(name, {}).get(protocol, {}).get("eer")
    return None if value is None else float(value)


def peers_table(results: Results) -> Table:
    """The comparison, a row an encoder, and one more for the calibrated score of ours."""
    head = [
        "encoder", "model MB", "ms for 3 s", "times faster than fp32 ResNet34-LM", "RSS MB", "neutral", "pairs",
        "enrol (95 %)", "FRR at 1 % FAR", "LibriSpeech", "alphanumeric",
    ]  # fmt: skip
    rated, timed = _rated(results), _timed(results)
    rows = []
    for key in dict.fromkeys((*timed, *rated)):
        time, rates = timed.get(key, {}), rated.get(key, {})
        enrol = rates.get("ravdess", {}).get("enrol", {})
        rows.append([
            time.get("name") or rates["name"],
            *(f"{time[name]:.{digits}f}" if time.get(name) else "" for name, digits in (
                ("model_mb", 1), ("cpu_ms", 1), ("times_faster_than_reference", 1), ("rss_mb", 0))),
            percent(_eer(rates, "ravdess", "neutral")),
            percent(_eer(rates, "ravdess", "pairs")),
            with_interval(enrol.get("eer"), enrol.get("eer_interval")),
            percent(enrol.get("frr_at_far", {}).get("0.01"), 1),
            percent(_eer(rates, "librispeech", "same")),
            percent(_eer(rates, "alphanumeric", "same")),
        ])  # fmt: skip
        if score := rates.get("calibrated"):
            eer, frr = with_interval(score["eer"], score["eer_interval"]), percent(score["frr_at_far"]["0.01"], 1)
            rows.append([f"{rates['name']}, calibrated score", *[""] * 6, eer, frr, "", ""])
    return head, rows


def grids(results: Results) -> dict[str, tuple[str, dict[str, dict[str, float]]]]:
    """EER of encoders by emotion, by condition and by seconds of speech: name -> (title, encoder -> group -> EER)."""
    rated, robust = _rated(results), results.get("robustness", {}).get("encoders", {})
    emotions = {key: row["ravdess"]["enrol"]["by_emotion"] for key, row in rated.items() if "ravdess" in row}
    conditions = {
        key: {words: row["conditions"][name] for name, words in CONDITIONS.items() if name in row["conditions"]}
        for key, row in robust.items()
    }
    found = {
        "emotions": ("EER by emotion, enrolled on neutral speech (RAVDESS enrol), %", _eers(emotions)),
        "conditions": ("EER in noise, rooms and channels with a clean profile, %", _eers(conditions)),
    }
    for corpus in ("librispeech", "alphanumeric"):
        seconds = {
            key: {f"{length} s": eer for length, eer in row["seconds"].get(corpus, {}).items()}
            for key, row in robust.items()
        }
        found[f"seconds-{corpus}"] = (f"EER by seconds of test speech, {corpus}, %", seconds)
    return {name: (title, grid) for name, (title, grid) in found.items() if any(grid.values())}


def _eers(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {key: {group: found["eer"] for group, found in groups.items()} for key, groups in rows.items()}


def _groups(grid: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(group for groups in grid.values() for group in groups))


def speed_table(results: Results) -> Table:
    """Every benchmark with a time per second of audio, or per call."""
    rows = []
    for row in results.get("speed", {}).get("benchmarks", []):
        extra = row["extra"]
        if row["file"] in STAGES:
            rows.append([
                _label(row["name"]),
                f"{row['median_ms']:.2f}" if row["median_ms"] < 100 else f"{row['median_ms']:.0f}",
                f"{row['iqr_ms']:.2f}",
                f"{extra['rtf']:.5f}" if "rtf" in extra else "",
                f"{extra['percent_of_one_core']:.2f}" if "rtf" in extra else "",
            ])  # fmt: skip
    return ["benchmark", "CPU ms", "IQR", "RTF", "% of one core"], rows


def start_table(results: Results) -> Table:
    """Start-up, memory, sizes and growth: what each benchmark found."""

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {each}" for key, each in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = []
    for row in results.get("speed", {}).get("benchmarks", []):
        shown = {key: value for key, value in row["extra"].items() if key not in ("points", "x", "y", "audio_s")}
        if row["file"] not in STAGES and shown:
            rows.append([_label(row["name"]), "; ".join(f"{k.replace('_', ' ')} {words(v)}" for k, v in shown.items())])
    return ["benchmark", "found"], rows


def _label(name: str) -> str:
    """``test_embed[base-3]`` as ``embed, base, 3``."""
    stem, _, parameters = name.removeprefix("test_").partition("[")
    return ", ".join([stem.replace("_", " "), *filter(None, parameters.removesuffix("]").split("-"))])


def tables(results: Results) -> list[tuple[str, Table]]:
    """Every table that the results allow, with its title."""
    found = [("Beside the peers: cost, and EER in % on speech that none was tuned on", peers_table(results))]
    names = _names(results)
    for title, grid in grids(results).values():
        rows = [[group, *(percent(grid[key].get(group), 1) for key in grid)] for group in _groups(grid)]
        found.append((title, (["test speech", *(names[key] for key in grid)], rows)))
    found += [("Stages", speed_table(results)), ("Start-up, memory, sizes, growth", start_table(results))]
    return [(title, table) for title, table in found if table[1]]


def draw(results: Results) -> dict[str, tuple[str, str]]:
    """Every figure that the results allow: name -> (title, SVG)."""
    out = {}
    timed, rated = _timed(results), {k: row for k, row in _rated(results).items() if _eer(row, "ravdess", "enrol")}
    enrol = {key: row["ravdess"]["enrol"] for key, row in rated.items()}
    points = [
        Series(_short(row["name"]), _colour(key), [(timed[key]["cpu_ms"], 100.0 * enrol[key]["eer"])], row["ours"])
        for key, row in rated.items()
        if key in timed
    ]
    if points:
        title = "Accuracy against latency: left and low is better"
        costs, rates = zip(*(each.points[0] for each in points), strict=True)
        x = figures.logarithmic("CPU ms to embed 3 s of audio, one thread", min(costs) / 1.6, max(costs) * 1.6)
        y = figures.linear("EER on emotional speech (RAVDESS enrol), %", max(rates) * 1.08)
        out["accuracy-latency"] = (title, figures.plot(title, x, y, points, height=246, joined=False, named=True))
    if rated:
        title = "False accepts against false rejects, RAVDESS enrol"
        series = [Series(_short(row["name"]), _colour(k), enrol[k]["det"], row["ours"]) for k, row in rated.items()]
        axes = figures.deviate("false accepts, %"), figures.deviate("false rejects, %")
        out["det"] = (title, figures.plot(title, *axes, series, height=300, dots=False, diagonal=True))
    names = _names(results)
    for name, (title, grid) in grids(results).items():
        groups = _groups(grid)
        series_of = [
            (_short(names[key]), _colour(key), [100.0 * row[group] if group in row else None for group in groups])
            for key, row in grid.items()
        ]
        out[name] = (title, figures.bars(title, "EER, %", groups, series_of))
    return out | _draw_growth(results)


def _draw_growth(results: Results) -> dict[str, tuple[str, str]]:
    """How costs grow, a figure a benchmark."""
    growth: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in results.get("speed", {}).get("benchmarks", []):
        if "points" in row["extra"]:
            stem, _, model = row["name"].removeprefix("test_").partition("[")
            growth.setdefault(stem, []).append((model.removesuffix("]"), row["extra"]))
    out = {}
    for stem, entries in growth.items():
        title = stem.replace("_", " ").capitalize()
        lines = [
            Series(
                model + (f", slope {extra['slope']:.2f}" if "slope" in extra else ""), _colour(model), extra["points"]
            )
            for model, extra in entries
        ]
        label = entries[0][1]["y"]
        sizes, costs = zip(*(point for line in lines for point in line.points), strict=True)
        x = figures.logarithmic(entries[0][1]["x"], min(sizes), max(sizes))
        y = figures.logarithmic(label, min(costs) / 1.5, max(costs) * 1.5)
        if label.startswith("resident"):
            y = figures.linear(label, max(costs) * 1.02)
        out[f"growth-{stem.replace('_', '-')}"] = (title, figures.plot(title, x, y, lines))
    return out


def _colour(key: str) -> str:
    return COLOURS.get(key, OTHER_COLOUR)


def _short(name: str) -> str:
    """``ResNet34-LM, WeSpeaker`` as ``ResNet34-LM``: a name for a figure."""
    return "sherpa-onnx" if name.endswith("sherpa-onnx") else name.partition(",")[0]


def about(results: Results) -> str:
    """Where the times come from, and which files of ours were measured."""
    found = next((results[step]["machine"] for step in ("peers", "speed") if step in results), None)
    if found is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    flags = ", ".join(found["flags"]) or "no int8 instructions known"
    rows = {**_rated(results), **_timed(results)}
    files = ", ".join(f"{key} {row['origin']['sha256'][:12]}" for key, row in rows.items() if row["ours"])
    return (
        f"{found['cpu']}, {found['cores']} cores ({flags}), {found['system']} {found['architecture']}; {versions}. "
        f"Times are CPU time of one thread. SHA-256 of the model files: {files}."
    )


def markdown(results: Results) -> str:
    """Every table in Markdown."""
    parts = [about(results)] if about(results) else []
    parts += [f"**{title}**\n\n{table_markdown(*table)}" for title, table in tables(results)]
    skipped = results.get("peers", {}).get("skipped", {})
    parts += [f"Not measured: {name} ({reason})." for name, reason in skipped.items()]
    return "\n\n".join(parts) + "\n"


def report(results: Results) -> str:
    """The page."""
    parts = [
        f"<p>{html.escape(about(results))}</p>",
        "<p>EER is the rate at which false accepts equal false rejects; lower is better. Profiles are made of four "
        "neutral clips, tests are emotional. Every encoder is compared by plain cosine; “calibrated score” is what "
        "the library decides by.</p>",
        '<div class="figures">',
        *(figures.figure(name, title, svg) for name, (title, svg) in draw(results).items()),
        "</div>",
        *(f"<h2>{html.escape(title)}</h2>{figures.table_html(*table)}" for title, table in tables(results)),
    ]
    peers = results.get("peers", {})
    missing = [f"{name}: {reason}" for name, reason in peers.get("skipped", {}).items()]
    sources = [
        f"{row['name']} ({row['licence']}; "
        f"{', '.join(' '.join(each) for each in row['origin']['versions'].items())}): {row['get']}"
        for row in peers.get("encoders", [])
        if "get" in row
    ]
    for title, lines in (("Not measured", missing), ("Where the peers come from", sources)):
        if lines:
            items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
            parts.append(f"<h2>{title}</h2><ul>{items}</ul>")
    return figures.page("emoinv-edge: speed, size and accuracy beside the peers", parts)


def make(folder: Path = RESULTS) -> list[Path]:
    """Write report.html and tables.md beside the results."""
    results = load(folder)
    made = {folder / "report.html": report(results), folder / "tables.md": markdown(results)}
    for path, text in made.items():
        write_atomically(path, text, mode=0o644)
    return list(made)
