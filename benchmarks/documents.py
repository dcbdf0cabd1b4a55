"""Figures in the documents: tables between their markers, and pictures, all from the JSON of the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.evaluation.figures import percent, table_markdown, with_interval

from . import pictures
from .conditions import CONDITIONS
from .peers import ROOT
from .report import RESULTS, load

__all__ = ["documents", "fill", "readme_table"]

# Of the README's table, and what it leaves out when more was measured of all its encoders than there is room for.
MOST_ROWS, MOST_COLUMNS, FIRST_TO_GO = 7, 6, ("EER neutral %", "MB")
STEPS = ("peers", "accuracy", "robustness", "enrolment", "speed")
# What was asked for, in %, and where it was measured: step, encoder and the way to the figure.
TARGETS = (
    ("EER of `pairs` by cosine", 8.4, ("accuracy", "base", "ravdess", "pairs", "eer")),
    ("EER of `enrol` by cosine", 6.6, ("accuracy", "base", "ravdess", "enrol", "eer")),
    ("EER of `enrol`, calibrated", 5.4, ("accuracy", "base", "calibrated", "eer")),
    ("FRR at 1 % of `enrol`, calibrated", 15.0, ("accuracy", "base", "calibrated", "frr_at_far", "0.01")),
    ("EER of `pairs` by cosine", 12.0, ("accuracy", "small", "ravdess", "pairs", "eer")),
    ("EER of `enrol` by cosine", 10.0, ("accuracy", "small", "ravdess", "enrol", "eer")),
    (
        "FRR, four neutral clips, session of two",
        9.0,
        ("enrolment", "base", "sets", "ravdess", "designs", "4 neutral", "session", "frr"),
    ),
    (
        "FRR, one clip in each of four emotions",
        12.0,
        ("enrolment", "base", "sets", "ravdess", "designs", "1 in each of 4 emotions", "one", "frr"),
    ),
    (
        "FRR, one clip in each of four emotions, session of two",
        4.0,
        ("enrolment", "base", "sets", "ravdess", "designs", "1 in each of 4 emotions", "session", "frr"),
    ),
    (
        "FRR, two clips in each of four emotions",
        10.0,
        ("enrolment", "base", "sets", "ravdess", "designs", "2 in each of 4 emotions", "one", "frr"),
    ),
)
# A stage, as docs/benchmarks.md names it -> the benchmarks' names, and how their figures are written.
STAGES = {
    "features of 1 s": (("test_features[{}]",), "median_ms", "{:.2f} ms"),
    "embed 1 s, 3 s, 10 s": (("test_embed[{}-1]", "test_embed[{}-3]", "test_embed[{}-10]"), "median_ms", "{:.1f} ms"),
    "verify 3 s, everything": (("test_verify[{}]",), "median_ms", "{:.1f} ms"),
    "score against 1,000 profiles": (("test_score_against_profiles[{}-1000]",), "median_ms", "{:.2f} ms"),
    "score against 100,000 profiles": (("test_score_against_profiles[{}-100000]",), "median_ms", "{:.1f} ms"),
    "stream, somebody speaking": (("test_speech_all_the_time[{}]",), "share_of_a_core", "{:.1%} of a core"),
    "stream, silence": (("test_silence_costs_next_to_nothing[{}]",), "share_of_a_core", "{:.1%} of a core"),
    "process start to model loaded": (("test_cold_start[{}]",), "cpu_s", "{:.2f} s"),
}

Encoders = Mapping[str, Mapping[str, Any]]


def documents(folder: Path = RESULTS, root: Path = ROOT) -> dict[Path, str]:
    """Every page and picture that holds figures, as the results have them.

    Parameters
    ----------
    folder : Path
        With the JSON of the steps; the tables and pictures of a step that did not run stay as they are.
    root : Path
        With README.md and docs.

    Returns
    -------
    dict from Path to str
        The whole text of each file.

    Raises
    ------
    ValueError
        As `load` and `fill`.
    """
    results = load(folder, STEPS)
    timed = {row["key"]: row for row in results.get("peers", {}).get("encoders", [])}
    rated, robust, enrolled = (results.get(step, {}).get("encoders", {}) for step in STEPS[1:4])
    stages = {row["name"]: row for row in results.get("speed", {}).get("benchmarks", [])}
    out = {root / name: (root / name).read_text(encoding="utf-8") for name in ("README.md", *PAGES)}

    def put(name: str, marker: str, table: str) -> None:
        out[root / name] = fill(out[root / name], table, marker)

    if rated and timed:
        put("README.md", "figures", readme_table(folder))
    for page, tables in PAGES.items():
        for marker, (step, make) in tables.items():
            rows = {
                "peers": timed, "accuracy": rated, "robustness": robust, "enrolment": enrolled, "speed": stages
            }[step]  # fmt: skip
            if rows:
                put(page, marker, make(rows))
    if rated and enrolled:
        put("docs/results.md", "missed", _missed({"accuracy": rated, "enrolment": enrolled}))
    for theme in pictures.THEMES:
        if rated:
            out[root / f"docs/assets/emotions-{theme}.svg"] = pictures.emotions(rated, theme)
        if enrolled:
            out[root / f"docs/assets/enrolment-{theme}.svg"] = pictures.enrolment(enrolled, theme)
    return out


def fill(text: str, body: str, marker: str = "figures") -> str:
    """A document with `body` between its lines ``<!-- marker: begin ... -->`` and ``<!-- marker: end -->``.

    Raises
    ------
    ValueError
        If it has no such lines.
    """
    pattern = rf"(<!-- {re.escape(marker)}: begin[^\n]*-->\n).*?(<!-- {re.escape(marker)}: end -->)"
    found = re.search(pattern, text, re.DOTALL)
    if found is None:
        raise ValueError(
            f"expected lines '<!-- {marker}: begin -->' and '<!-- {marker}: end -->', got a document without"
        )
    return f"{text[: found.end(1)]}{body}\n{text[found.start(2) :]}"


def readme_table(folder: Path = RESULTS) -> str:
    """The figures of the README: one small table of our encoders and the most accurate peers.

    Raises
    ------
    ValueError
        As `load`.
    """
    results = load(folder, STEPS)
    timed = {row["key"]: row for row in results["peers"]["encoders"]}
    rated, robust = (results.get(step, {}).get("encoders", {}) for step in ("accuracy", "robustness"))
    both = [key for key in rated if key in timed]
    both.sort(key=lambda key: (not rated[key]["ours"], rated[key]["ravdess"]["enrol"]["eer"]))
    rows = []
    for key in both[:MOST_ROWS]:
        ravdess = rated[key]["ravdess"]
        rows.append([
            _name(key, rated[key]),
            f"{timed[key]['model_mb']:.1f}",
            f"{timed[key]['cpu_ms']:.1f}",
            percent(ravdess["neutral"]["eer"]),
            percent(ravdess["enrol"]["eer"]),
            percent(ravdess["enrol"]["frr_at_far"]["0.01"], 1),
            percent(ravdess.get("led", {}).get("frr_at_far", {}).get("0.01"), 1),
            percent(robust.get(key, {}).get("conditions", {}).get("telephone", {}).get("eer"), 1),
        ])  # fmt: skip
    head = [
        "encoder", "MB", "ms for 3 s", "EER neutral %", "EER between emotions %", "FRR at 1 % FAR %",
        "FRR, enrolled led %", "EER telephone %",
    ]  # fmt: skip
    shown = [column for column in range(len(head)) if all(row[column] for row in rows)]
    for column in FIRST_TO_GO[: max(0, len(shown) - MOST_COLUMNS)]:
        shown.remove(head.index(column))
    return table_markdown([head[c] for c in shown], [[row[c] for c in shown] for row in rows])


def _name(key: str, row: Mapping[str, Any]) -> str:
    return f"**{key}**, int8" if row["ours"] else str(row["name"])


def _cost(encoders: Encoders) -> str:
    """Size, time and memory."""
    head = ["encoder", "file MB", "ms for 3 s", "times faster than fp32 ResNet34-LM", "resident MB"]
    rows = [
        [
            _name(key, row), f"{row['model_mb']:.1f}", f"{row['cpu_ms']:.1f}",
            f"{row['times_faster_than_reference']:.1f}" if "times_faster_than_reference" in row else "",
            f"{row['rss_mb']:.0f}",
        ]
        for key, row in encoders.items()
    ]  # fmt: skip
    return table_markdown(head, rows)


def _stages(benchmarks: Encoders) -> str:
    """Time of each stage of our models, from the names of the benchmarks."""
    keys = list(dict.fromkeys(row["key"] for row in benchmarks.values() if "key" in row))
    rows = []
    for words, (names, figure, form) in STAGES.items():
        found = [[benchmarks.get(name.format(key), {}) for name in names] for key in keys]
        cells = [[{**each, **each.get("extra", {})}.get(figure) for each in some] for some in found]
        rows.append([words, *(", ".join(form.format(x) for x in some if x is not None) for some in cells)])
    return table_markdown(["what", *keys], rows)


def _cosine(encoders: Encoders) -> str:
    """Every protocol, by plain cosine."""
    head = ["encoder", "neutral", "pairs", "enrol (95 %)", "FRR", "LibriSpeech"]
    rows = []
    for key, row in encoders.items():
        found, enrol = row["ravdess"], row["ravdess"]["enrol"]
        rows.append([
            _name(key, row), percent(found["neutral"]["eer"]), percent(found["pairs"]["eer"]),
            with_interval(enrol["eer"], enrol["eer_interval"]), percent(enrol["frr_at_far"]["0.01"], 1),
            percent(row["librispeech"]["same"]["eer"]),
        ])  # fmt: skip
    return table_markdown(head, rows)


def _calibrated(encoders: Encoders) -> str:
    """Our encoders by cosine and by the calibrated score, and what the shipped threshold for 1 in 100 does."""
    head = ["", "enrol EER (95 %)", "FRR at 1 %", "at the shipped threshold for 1 in 100: FRR", "FAR"]
    rows = []
    for key, row in encoders.items():
        if score := row.get("calibrated"):
            cosine, shipped = row["ravdess"]["enrol"], score["thresholds"]["0.01"]
            for label, found in ((f"{key}, cosine", cosine), (f"**{key}, calibrated**", score)):
                eer, frr = with_interval(found["eer"], found["eer_interval"]), percent(found["frr_at_far"]["0.01"], 1)
                rows.append([label, eer, frr, "", ""])
            rows[-1][3:] = [with_interval(shipped[kind], shipped[f"{kind}_interval"]) for kind in ("frr", "far")]
    return table_markdown(head, rows)


def _emotions(encoders: Encoders) -> str:
    """FRR by emotion, of the encoders for which it was measured."""
    rows: list[list[str]] = []
    head: list[str] = []
    for key, row in encoders.items():
        found = row["ravdess"]["enrol"]["by_emotion"]
        if all("frr_at_far" in each for each in found.values()):
            head = ["encoder", *found]
            rows.append([_name(key, row), *(percent(each["frr_at_far"]["0.01"], 1) for each in found.values())])
    return table_markdown(head, rows)


def _conditions(encoders: Encoders) -> str:
    """EER by condition of the test speech."""
    rows = [
        [words, *(percent(row["conditions"][name]["eer"], 1) for row in encoders.values())]
        for name, words in CONDITIONS.items()
    ]
    return table_markdown(["test speech", *(_name(*item) for item in encoders.items())], rows)


def _seconds(encoders: Encoders) -> str:
    """EER by seconds of test speech."""
    lengths = list(next(iter(encoders.values()))["seconds"]["librispeech"])
    rows = [
        [length, *(percent(row["seconds"]["librispeech"][length], 1) for row in encoders.values())]
        for length in lengths
    ]
    return table_markdown(["seconds", *(_name(*item) for item in encoders.items())], rows)


def _missed(steps: Mapping[str, Encoders]) -> str:
    """The targets that the figures do not reach, of the encoders that were measured."""
    rows = []
    for words, target, (step, key, *path) in TARGETS:
        found: Any = steps[step].get(key)
        for name in path:
            found = (found or {}).get(name)
        if found is not None and 100.0 * found > target:
            rows.append([f"{key}: {words}", f"{target:g}", percent(found, 1)])
    return table_markdown(["RAVDESS", "asked for, %", "reached, %"], rows)


def _enrolment(encoders: Encoders) -> str:
    """FRR and FAR by what was enrolled, of one attempt and of a session of two."""
    return _designs({key: row["sets"]["ravdess"] for key, row in encoders.items()})


def _left_out(encoders: Encoders) -> str:
    """The same on corpora that the calibration was fitted without, of the encoders for which it was measured."""
    parts = []
    for name in dict.fromkeys(name for row in encoders.values() for name in row.get("left_out", {})):
        found = {key: row["left_out"][name] for key, row in encoders.items() if name in row.get("left_out", {})}
        some = next(iter(found.values()))
        parts.append(f"{name}: {some['speakers']} speakers; tested: {', '.join(some['tested'])}.\n\n{_designs(found)}")
    return "\n\n".join(parts)


def _designs(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a design of profiles; FRR with its interval, and FAR."""
    kinds = {"one": "one attempt", "session": "session of two"}
    shown = [(key, kind) for key in found for kind in kinds if kind in next(iter(found[key]["designs"].values()))]
    rows = []
    for design in next(iter(found.values()))["designs"]:
        figures = [found[key]["designs"][design][kind] for key, kind in shown]
        rows.append([
            design,
            *(f"{with_interval(f['frr'], f.get('frr_interval'), 1)} / {percent(f['far'])}" for f in figures),
        ])  # fmt: skip
    return table_markdown(["enrolled", *(f"{key}, {kinds[kind]}" for key, kind in shown)], rows)


Maker = Callable[[Encoders], str]
# Page -> marker -> the step whose encoders the table is made of, and how.
PAGES: dict[str, dict[str, tuple[str, Maker]]] = {
    "docs/benchmarks.md": {"cost": ("peers", _cost), "stages": ("speed", _stages)},
    "docs/results.md": {
        "cosine": ("accuracy", _cosine),
        "calibrated": ("accuracy", _calibrated),
        "emotions": ("accuracy", _emotions),
        "conditions": ("robustness", _conditions),
        "seconds": ("robustness", _seconds),
    },
    "docs/enrolling.md": {"enrolment": ("enrolment", _enrolment)},
    "docs/calibration.md": {"left out": ("enrolment", _left_out)},
}
