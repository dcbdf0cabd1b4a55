"""The reports' figures: well-formed, inside their frame, true to the values, readable on a telephone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from train.evaluation.figures import (
    Series,
    bars,
    deviate,
    heat,
    linear,
    logarithmic,
    page,
    percent,
    plot,
    table_html,
    table_markdown,
    with_interval,
)

SVG = "{http://www.w3.org/2000/svg}"
FAR = np.geomspace(1e-5, 0.9, 60)
PEERS = [
    ("base", 25.0, 6.0), ("small", 4.0, 12.0), ("ResNet34-LM", 100.0, 7.0), ("sherpa-onnx", 101.0, 7.5),
    ("ERes2Net-base", 120.0, 8.0), ("CAM++ zh-en", 50.0, 8.5), ("ECAPA-TDNN", 110.0, 9.0), ("GE2E LSTM", 22.0, 9.5),
]  # fmt: skip
SCATTER = plot(
    "t < u",
    logarithmic("ms", 3.0, 200.0),
    linear("EER, %", 13.0),
    [Series(name, f"#{i:06d}", [(x, y)], i < 2) for i, (name, x, y) in enumerate(PEERS)],
    height=246,
    joined=False,
    named=True,
)
DRAWN = {
    "scatter": SCATTER,
    "det": plot(
        "d", deviate("far"), deviate("frr"), [Series("a", "#111", [(x, min(1.0, 0.003 / x)) for x in FAR])],
        height=300, dots=False, diagonal=True,
    ),
    "curves": plot("c", logarithmic("x", 1, 1e5), logarithmic("y", 1e-3, 9.0), [Series("a", "#111", [(1, 1), (9, 2)])]),
    "signed": plot("r", linear("x", 6, -6), linear("y", 6, -6), [Series("a", "#111", [(-5, -4), (0, 0)])]),
    "bars": bars("b", "EER", ["sad", "happy"], [("base", "#123456", [4.0, None]), ("peer", "#654321", [8.0, 2.0])]),
    "heat": heat("h", {"angry/neutral": 0.123, "neutral/neutral": 0.01, "angry/angry": 0.05}),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_well_formed_inside_its_frame_and_readable(name: str) -> None:
    root = ElementTree.fromstring(DRAWN[name])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.find(f"{SVG}title") is not None
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
    for line in root.iter(f"{SVG}polyline"):
        numbers = np.array([pair.split(",") for pair in line.attrib["points"].split()], float)
        assert np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= (width, height)).all()
    for text in root.iter(f"{SVG}text"):
        assert float(text.attrib["font-size"]) >= 10.0


def test_a_scatter_puts_faster_to_the_left_and_more_accurate_below() -> None:
    dots = list(ElementTree.fromstring(SCATTER).iter(f"{SVG}circle"))
    at = {dot.attrib["fill"]: (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots}
    (base_x, base_y), (small_x, small_y) = at["#000000"], at["#000001"]
    assert small_x < base_x and small_y < base_y


def test_names_in_a_scatter_do_not_cover_each_other() -> None:
    boxes = []
    for text in ElementTree.fromstring(SCATTER).iter(f"{SVG}text"):
        if text.text in {name for name, *_ in PEERS}:
            size, x, y = (float(text.attrib[key]) for key in ("font-size", "x", "y"))
            boxes.append((x, y - 0.7 * size, x + 0.5 * size * len(text.text or ""), y))
    assert len(boxes) == len(PEERS)
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_det_axes_are_normal_deviates_and_equal_rates_lie_on_the_diagonal() -> None:
    place = deviate("far").place
    # Steps of one standard deviation of the normal distribution are equally long.
    assert place(0.5) - place(0.158655) == pytest.approx(place(0.158655) - place(0.0227501), rel=1e-4)
    rates = [(0.4, 0.01), (0.1, 0.1), (0.01, 0.4)]
    svg = plot("d", deviate("far"), deviate("frr"), [Series("a", "#111", rates)], height=300, diagonal=True)
    root = ElementTree.fromstring(svg)
    (curve,) = root.iter(f"{SVG}polyline")
    (first, (x, y), last) = (tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split())
    assert first[0] > x > last[0] and first[1] > y > last[1]
    (diagonal,) = (line for line in root.iter(f"{SVG}line") if "stroke-dasharray" in line.attrib)
    x1, y1, x2, y2 = (float(diagonal.attrib[key]) for key in ("x1", "y1", "x2", "y2"))
    assert (x - x1) / (x2 - x1) == pytest.approx((y - y1) / (y2 - y1), abs=1e-3)


def test_bars_are_as_long_as_their_values() -> None:
    widths: dict[str, list[float]] = {}
    for bar in ElementTree.fromstring(DRAWN["bars"]).iter(f"{SVG}rect"):
        widths.setdefault(bar.attrib["fill"], []).append(float(bar.attrib["width"]))
    base, peer = widths["#123456"][1:], widths["#654321"][1:]  # the first is the legend's
    assert len(base) == 1 and len(peer) == 2
    assert peer[0] == pytest.approx(2 * base[0], abs=0.2) and peer[1] == pytest.approx(base[0] / 2, abs=0.2)


def test_a_heat_map_is_symmetric_with_neutral_first() -> None:
    texts = [text.text for text in ElementTree.fromstring(DRAWN["heat"]).iter(f"{SVG}text")]
    assert texts == ["neutral", "1.0", "12.3", "angry", "12.3", "5.0", "neutral", "angry"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.31), (0.0, 25.0), (-6.0, 6.0), (0.0, 1.0)])
def test_a_linear_axis_covers_its_range_with_a_few_ticks(low: float, high: float) -> None:
    axis = linear("x", high, low)
    assert min(axis.ticks) <= low and max(axis.ticks) >= high - 1e-9 and 4 <= len(axis.ticks) <= 8
    assert 0.0 <= axis.place(low) < axis.place(high) <= 1.0 + 1e-9


def test_rates_are_written_in_percent() -> None:
    assert (percent(0.0729), percent(None), percent(0.219, 1)) == ("7.29", "", "21.9")
    assert with_interval(0.0729, [0.045, 0.108]) == "7.29 (4.5-10.8)" and with_interval(None) == ""


def test_tables_and_pages_escape_what_they_hold() -> None:
    assert table_markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    text = page("a < b", [table_html(["<x>"], [["1 & 2"]])])
    assert "<title>a &lt; b</title>" in text and "&lt;x&gt;" in text and "1 &amp; 2" in text
