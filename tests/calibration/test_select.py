"""Judging terms: each corpus by the weights of the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.calibration.development import in_noise, speech
from train.calibration.fit import fit_speech
from train.calibration.select import corpus_by_corpus, left_out_scores, select_terms, unseen_cllr
from train.calibration.speech import DevelopmentSpeech
from train.calibration.thresholds import at_one_threshold
from train.calibration.trials import Evidence, draw_trials, teaching_trials
from train.calibration.weights import problem_of


def test_a_corpus_alone_cannot_choose_terms() -> None:
    with pytest.raises(ValueError, match="two corpora"):
        fit_speech(speech(3, 10, corpora=1))


def test_a_corpus_that_is_too_easy_is_not_judged_on(teaching: list[Evidence]) -> None:
    plain = unseen_cllr(problem_of(teaching), ("cosine",))
    easy = [
        dataclasses.replace(each, terms={**each.terms, "cosine": each.terms["cosine"] + 2.0 * each.target})
        if each.corpus == "corpus1"
        else each
        for each in teaching
    ]
    _, steps = select_terms(easy)
    assert {"corpus0", "corpus1", "corpus2"} == set(plain)
    assert all("corpus1" not in step and "corpus0" in step for step in steps)


def test_a_corpus_left_out_is_judged_by_the_weights_of_the_others(teaching: list[Evidence]) -> None:
    own = corpus_by_corpus(left_out_scores(teaching, ("cosine",)))
    assert set(own) == {"corpus0", "corpus1", "corpus2"}
    others = [each for each in teaching if each.corpus != "corpus0"]
    judged = corpus_by_corpus(left_out_scores(others, ("cosine",), judged=teaching))
    assert judged["corpus0"]["cllr"] == pytest.approx(own["corpus0"]["cllr"], abs=0.02)
    for figures in own.values():
        assert figures["min_cllr"] <= figures["affine_cllr"] <= figures["cllr"] + 1e-6


@pytest.mark.usefixtures("a_quarter_of_the_strangers")
def test_what_noise_does_to_a_score_is_fitted_on_tests_in_noise(development: DevelopmentSpeech) -> None:
    noisy = in_noise(development)
    fitted = fit_speech(noisy)
    names = fitted.term_names
    assert "norm_below" in names
    everyone, teaching = draw_trials(noisy), teaching_trials(noisy)
    knowing, cosine = (corpus_by_corpus(left_out_scores(teaching, some, noisy=True)) for some in (names, ("cosine",)))
    assert all(knowing[corpus]["eer"] < cosine[corpus]["eer"] for corpus in cosine)
    clear = at_one_threshold(everyone, teaching, names)
    harmed = at_one_threshold(everyone, teaching, names, noisy=True)
    assert all(harmed[key]["frr"] > clear[key]["frr"] for key in clear if key[1] == "neutral")
    impostors = np.concatenate([fitted.llr(each.take(~each.target).terms) for each in everyone])
    accepted = float(np.mean(impostors >= fitted.threshold(0.05).llr))
    assert 0.025 < accepted <= 0.06  # the rate is that of both kinds of tests together
