"""The page of an evaluation: well-formed, complete, and nothing fetched."""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_evaluate import CALIBRATION, acquired, population

from train.evaluate import PROTOCOLS, det_points, evaluate_embeddings, evaluate_llr, make_trials, unit
from train.report import _probit, det_svg, heat_svg, reliability_svg, render_report, write_report


@pytest.fixture(scope="module")
def results():
    clips, embeddings = population()
    result = evaluate_embeddings(embeddings, clips, resamples=20)
    result["det"] = {}
    for protocol in PROTOCOLS:
        trials = make_trials(clips, protocol)
        result["det"][protocol] = det_points(trials.scores(unit(embeddings)), trials.target)
    result["llr"] = evaluate_llr(acquired(clips, embeddings), clips, CALIBRATION, resamples=20)
    return {"model": "a<b>.onnx", "fingerprint": "0" * 64, "sets": {"toy & more": result}}


def test_the_page_is_well_formed_and_escapes_names(results):
    page = render_report(results)
    for unclosed in ('<meta charset="utf-8">', '<meta name="viewport" content="width=device-width, initial-scale=1">'):
        page = page.replace(unclosed, "")
    tree = ElementTree.fromstring(page.replace("<!doctype html>", "").replace("<br>", ""))
    assert tree.find(".//h1").text == "a<b>.onnx" and tree.find(".//h2").text == "toy & more"


def test_the_page_fetches_nothing_and_fits_a_phone(results):
    page = render_report(results)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "width=device-width" in page and "overflow-x: auto" in page
    assert len(page) < 300_000


def test_the_page_holds_the_figures(results):
    page = render_report(results)
    result = results["sets"]["toy & more"]
    for protocol in PROTOCOLS:
        assert f"{100 * result[protocol]['eer']:.2f}" in page
    assert page.count("<svg") == 3
    assert f"{result['llr']['enrol']['cllr']:.3f}" in page and "By gender" in page and "6 speakers" in page


def test_a_set_with_one_emotion_and_no_calibration_still_gives_a_page():
    clips, embeddings = population()
    chosen = [i for i, clip in enumerate(clips) if clip.emotion == "neutral"]
    result = evaluate_embeddings(embeddings[chosen], [clips[i] for i in chosen])
    page = render_report({"model": "m", "fingerprint": "f", "sets": {"plain": result}})
    assert "<svg" not in page and "neutral" in page


def test_det_curves_lie_on_the_scale_of_normal_deviates():
    svg = det_svg({"pairs": [[0.4, 0.01], [0.1, 0.1], [0.01, 0.4]]})
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    (_, _), (x, y), (_, _) = points
    # Equal rates lie on the rising diagonal of the square from (58, 412) to (458, 12).
    assert x - 58 == pytest.approx(412 - y, abs=0.2)
    assert points[0][0] > x > points[2][0] and points[0][1] > y > points[2][1]
    ElementTree.fromstring(svg)


def test_normal_deviates_are_right():
    normal = statistics.NormalDist()
    for p in (1e-5, 0.001, 0.02, 0.3, 0.5, 0.7, 0.999):
        assert _probit(p) == pytest.approx(normal.inv_cdf(p), abs=1e-7)


def test_the_heat_map_is_symmetric_with_neutral_first():
    svg = heat_svg({
        "angry/neutral": {"eer": 0.123, "targets": 3, "nontargets": 9},
        "neutral/neutral": {"eer": 0.01, "targets": 3, "nontargets": 9},
    })  # fmt: skip
    tree = ElementTree.fromstring(svg)
    texts = [text.text for text in tree.iter("text")]
    assert texts.count("12.3") == 2 and texts.count("1.0") == 1
    assert texts.index("neutral") < texts.index("angry")
    assert len(list(tree.iter("rect"))) == 4


def test_perfect_reliability_is_drawn_on_the_diagonal():
    svg = reliability_svg([[-2.0, -2.0, 5, 50], [0.0, 0.0, 9, 9], [2.0, 2.0, 50, 5]])
    for circle in ElementTree.fromstring(svg).iter("circle"):
        assert float(circle.get("cx")) - 52 == pytest.approx(412 - float(circle.get("cy")), abs=0.2)
    assert "nothing to draw" in reliability_svg([])


def test_writing_leaves_no_half_page(results, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, results)
    whole = path.read_text()
    monkeypatch.setattr("train.report.render_report", lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError):
        write_report(path, results)
    assert path.read_text() == whole and len(list(tmp_path.iterdir())) == 1


def test_det_points_are_points_of_the_curve():
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=4000), np.arange(4000) < 800
    scores[target] += 2
    for far, frr in det_points(scores, target):
        near = [
            abs(np.mean(scores[~target] >= t) - far) + abs(np.mean(scores[target] < t) - frr)
            for t in np.quantile(scores[target], [frr, min(1.0, frr + 1 / 800), max(0.0, frr - 1 / 800)])
        ]
        assert min(near) < 0.01
