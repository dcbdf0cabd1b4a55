"""The calibrated decisions: scores, thresholds and refusals as the runtime has them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.population import CALIBRATION, EMOTIONS, Clip, as_heard, brute_force, population
from train.evaluation.decisions import evaluate_decisions, reliability
from train.evaluation.embeddings import unit
from train.evaluation.metrics import eer, far_frr_at


def test_llrs_are_those_of_the_calibration_on_profiles_of_four_neutral_clips():
    clips, embeddings = population()
    result = evaluate_decisions(as_heard(embeddings), clips, CALIBRATION)
    scores, target = brute_force(clips, embeddings, "enrol")
    # All pitches are equal here, so the LLR is a line through the cosine.
    llrs = 12.0 * scores - 8.0
    assert result["enrol"]["targets"] == target.sum()
    assert result["enrol"]["eer"] == pytest.approx(eer(llrs[target], llrs[~target]), abs=1e-6)
    far, frr = far_frr_at(llrs[target], llrs[~target], 0.0)
    at = result["enrol"]["thresholds"]["0.1"]
    assert (at["llr"], at["far"], at["frr"]) == (0.0, pytest.approx(far, abs=1e-6), pytest.approx(frr, abs=1e-6))
    assert set(result["by_emotion"]) == set(EMOTIONS)


def test_rates_that_the_calibration_cannot_support_are_not_reported():
    clips, embeddings = population()
    result = evaluate_decisions(as_heard(embeddings), clips, CALIBRATION)
    assert CALIBRATION.supported_far == 0.05
    assert set(result["enrol"]["thresholds"]) == {"0.5", "0.1"}


def test_unusable_clips_count_as_failures_and_give_no_score():
    clips, embeddings = population()
    speech = as_heard(embeddings)
    mute = [i for i, clip in enumerate(clips) if clip.speaker == "s0" and clip.emotion == "neutral"]
    for i in mute:
        speech[i] = None
    result = evaluate_decisions(speech, clips, CALIBRATION)
    assert result["failure_to_acquire"] == pytest.approx(len(mute) / len(clips))
    assert result["failure_to_enrol"] == pytest.approx(1 / 6)


def test_neutral_clips_that_are_enrolled_are_tested_against_the_other_three():
    clips, embeddings = population(speakers=4, clips=4)  # no neutral clip is left over
    result = evaluate_decisions(as_heard(embeddings), clips, CALIBRATION)
    neutral = result["by_emotion"]["neutral"]
    assert (neutral["targets"], neutral["nontargets"]) == (16, 16)
    vectors, own = unit(embeddings), []
    for i, clip in enumerate(clips):
        if clip.emotion == "neutral":
            rest = [j for j, c in enumerate(clips) if c.speaker == clip.speaker and c.emotion == "neutral" and j != i]
            own.append(12.0 * float(unit(vectors[rest].mean(axis=0)[None])[0] @ vectors[i]) - 8.0)
    _, frr = far_frr_at(own, [0.0], 0.0)
    assert neutral["thresholds"]["0.1"]["frr"] == pytest.approx(frr)


def test_nobody_to_enrol_gives_no_llr():
    clips = [Clip("a"), Clip("b")]
    assert evaluate_decisions(as_heard(np.eye(2)), clips, CALIBRATION) is None


def test_reliability_of_true_llrs_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    # Normal scores of variance 2 m around +m and -m are their own log-likelihood ratios.
    targets, nontargets = rng.normal(2, 2, 20000), rng.normal(-2, 2, 20000)
    points = np.array(reliability(targets, nontargets))
    assert np.abs(points[:, 0] - points[:, 1]).max() < 0.25
    assert points[:, 2:].sum() > 0.9 * 40000
