"""Thresholds: unseen impostors keep the rate asked for, against one profile or several, in every room or in one."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.calibration import Calibration
from emoinv_edge.errors import CalibrationError
from tests.calibration.development import speech
from train.calibration.speech import DevelopmentSpeech
from train.calibration.thresholds import SAFETY, at_one_threshold, draw_chances, far_table, with_thresholds
from train.calibration.trials import Evidence, draw_trials


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.06])
def test_unseen_impostors_keep_the_rate_with_room_for_harder_corpora(fitted: Calibration, rate: float) -> None:
    llrs = np.concatenate([fitted.llr(each.take(~each.target).terms) for each in draw_trials(speech(2, 20))])
    accepted = float(np.mean(llrs >= fitted.threshold(rate).llr))
    assert 0.5 * rate <= SAFETY * accepted <= 1.5 * rate
    assert accepted <= rate


def test_the_support_is_the_rule_of_three_on_speakers(fitted: Calibration) -> None:
    assert fitted.num_impostor_speakers == 60
    assert fitted.supported_far == pytest.approx(3 / 60)
    with pytest.raises(CalibrationError, match="60 impostor speakers"):
        fitted.threshold(0.01)


def test_at_one_threshold_for_all_a_corpus_whose_scores_lie_lower_is_rejected_more(
    development: DevelopmentSpeech, teaching: list[Evidence]
) -> None:
    everyone = draw_trials(development)
    plain = at_one_threshold(everyone, teaching, ("cosine",), 0.1)
    assert {corpus for corpus, _ in plain} == {"corpus0", "corpus1", "corpus2"}
    assert 0.02 < np.mean([figures["far"] for figures in plain.values()]) < 0.2

    def lower(each: Evidence) -> Evidence:
        if each.corpus != "corpus1":
            return each
        return dataclasses.replace(each, terms={**each.terms, "cosine": each.terms["cosine"] - 0.2})

    moved = at_one_threshold(list(map(lower, everyone)), teaching, ("cosine",), 0.1)
    assert moved["corpus1", "neutral"]["frr"] > plain["corpus1", "neutral"]["frr"] + 0.1
    assert moved["corpus1", "neutral"]["far"] < plain["corpus1", "neutral"]["far"]
    assert moved["corpus0", "neutral"]["frr"] <= plain["corpus0", "neutral"]["frr"]  # its threshold fell
    assert not any(figures["extrapolated"] for figures in plain.values())
    beyond = at_one_threshold(everyone, teaching, ("cosine",), 0.01)  # 40 speakers are left
    assert all(figures["extrapolated"] == 1.0 for figures in beyond.values())


@settings(max_examples=40, deadline=None)
@given(profiles=st.integers(1, 40), chosen=st.integers(1, 40))
def test_the_best_of_a_draw_is_somebody(profiles: int, chosen: int) -> None:
    chances = draw_chances(profiles, chosen)
    assert len(chances) == profiles
    assert chances.sum() == pytest.approx(1.0 if chosen <= profiles else 0.0)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(chances))


def test_the_threshold_of_several_profiles_is_that_of_drawn_sets(
    development: DevelopmentSpeech, fitted: Calibration
) -> None:
    """The exact sum over draws agrees with drawing."""
    trials = [each for each in draw_trials(development) if each.design == "neutral"]
    table = far_table(trials, fitted, 4)
    assert table is not None
    rng = np.random.default_rng(0)
    accepted = []
    for each in trials:
        llr, tests = fitted.llr(each.terms), each.trials.test
        for test in np.unique(tests):
            rows = np.flatnonzero((tests == test) & ~each.target)
            drawn = [rng.choice(rows, 4, replace=False) for _ in range(5)]
            accepted += [llr[some].max() >= table.thresholds[3] for some in drawn]
    assert SAFETY * np.mean(accepted) == pytest.approx(table.rates[3], abs=0.02)


@pytest.mark.parametrize(("safety", "rate", "stricter"), [(2.0, 0.2, 0.1), (4.0, 0.2, 0.05), (1.0, 0.3, 0.3)])
def test_safety_asks_for_the_threshold_of_a_rate_so_many_times_lower(
    development: DevelopmentSpeech, fitted: Calibration, safety: float, rate: float, stricter: float
) -> None:
    trials = draw_trials(development)
    safe, plain = (with_thresholds(fitted, trials, (1,), times) for times in (safety, 1.0))
    assert safe.threshold(rate).llr == plain.threshold(stricter).llr
