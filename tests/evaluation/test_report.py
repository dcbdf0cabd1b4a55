"""The page of an evaluation: well-formed, complete, and nothing fetched."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.evaluation.population import CALIBRATION, as_heard, population
from train.evaluation.decisions import evaluate_decisions
from train.evaluation.embeddings import unit
from train.evaluation.protocols import PROTOCOLS, evaluate_embeddings, make_trials
from train.evaluation.report import det_points, render_report, write_report


@pytest.fixture(scope="module")
def results():
    clips, embeddings = population()
    result = evaluate_embeddings(embeddings, clips, resamples=20)
    result["det"] = {}
    for protocol in PROTOCOLS:
        trials = make_trials(clips, protocol)
        result["det"][protocol] = det_points(trials.scores(unit(embeddings)), trials.target)
    result["llr"] = evaluate_decisions(as_heard(embeddings), clips, CALIBRATION, resamples=20)
    return {"model": "a<b>.onnx", "fingerprint": "0" * 64, "sets": {"toy & more": result}}


def test_the_page_is_well_formed_and_escapes_names(results):
    page = render_report(results)
    page = re.sub(r"<(meta|link)[^>]*>|<!doctype html>", "", page)
    tree = ElementTree.fromstring(page)
    assert tree.find(".//h1").text == "a<b>.onnx" and tree.find(".//h2").text == "toy & more"


def test_the_page_fetches_nothing_and_fits_a_phone(results):
    page = render_report(results)
    page = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|<script|src=|@import|url\(", page)
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


def test_writing_leaves_no_half_page(results, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, results)
    whole = path.read_text()
    monkeypatch.setattr("train.evaluation.report.render_report", lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
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
