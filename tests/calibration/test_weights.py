"""Weights: each term does what it is there for, and a corpus's own offset teaches nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.calibration import TERMS
from tests.calibration.development import speech
from train.calibration.select import select_terms
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import DESIGNS, Evidence, teaching_trials
from train.calibration.weights import GROUPS, fit_weights, logistic, problem_of, term_names


def weights_of(trials: list[Evidence], names: tuple[str, ...]) -> dict[str, float]:
    problem = problem_of(trials)
    _, weights = fit_weights(problem, names, np.ones(len(problem.target), bool))
    return dict(zip(names, weights, strict=True))


def test_every_term_belongs_to_one_group() -> None:
    assert sorted(term_names(GROUPS)) == sorted(TERMS)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), offset=st.floats(-3.0, 3.0))
def test_the_logistic_fit_is_at_the_minimum(seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 3))
    target = rng.random(80) < 1.0 / (1.0 + np.exp(-x @ [1.0, -2.0, 0.3]))
    weight, ridge = rng.uniform(0.1, 1.0, 80), np.array([0.01, 0.1, 1.0])

    def loss(coefficients: np.ndarray) -> float:
        llr = x @ coefficients + offset
        return float(weight @ np.logaddexp(0.0, np.where(target, -llr, llr)) + 0.5 * ridge @ coefficients**2)

    found = logistic(x, target, weight, ridge, offset)
    for step in np.vstack((np.eye(3), rng.standard_normal((3, 3)))) * 1e-3:
        assert loss(found) < min(loss(found + step), loss(found - step))


def test_classes_that_are_apart_are_fitted_all_the_same() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    found = logistic(x, np.array([False, False, True, True]), np.full(4, 0.25), np.array([1e-4]))
    assert 2.0 < found[0] < 100.0


def test_an_envelope_that_knows_the_voice_is_kept_and_counts_against_another() -> None:
    trials = teaching_trials(speech(4, 12, envelopes=True))
    names, _ = select_terms(trials)
    assert weights_of(trials, names)["envelope"] < 0


def test_a_corpus_whose_scores_and_seconds_are_all_higher_does_not_teach_that_seconds_count(
    teaching: list[Evidence],
) -> None:
    problem = problem_of(teaching)
    everywhere = np.ones(len(problem.target), bool)
    names = ("cosine", "test_seconds")
    cosine, seconds = (TERMS.index(name) for name in names)
    values = problem.values.copy()
    values[:, seconds] = np.random.default_rng(0).normal(1.0, 0.1, len(values))  # independent of who speaks
    _, (before, _) = fit_weights(dataclasses.replace(problem, values=values), names, everywhere)
    values[problem.corpus == "corpus1", cosine] += 0.2
    values[problem.corpus == "corpus1", seconds] += 1.0
    _, (after, weight) = fit_weights(dataclasses.replace(problem, values=values), names, everywhere)
    assert after == pytest.approx(before, rel=0.05)
    assert abs(weight) < 0.15 * 0.2 * after  # all of the corpus's shift would be 0.2 of the cosine's weight


def test_weights_are_fitted_on_tests_in_another_emotion(teaching: list[Evidence]) -> None:
    problem = problem_of(teaching)
    emotional = [each.take(each.emotional) for each in teaching]
    assert problem.target.sum() == sum(int(each.target.sum()) for each in emotional)
    assert {each.design for each in emotional} == set(DESIGNS)


def test_a_norm_that_explains_a_lower_cosine_is_kept(development: DevelopmentSpeech) -> None:
    # The further an emotion moves an embedding, the less of a voice the encoder found.
    pairs = list(zip(development.embeddings, development.clips, development.qualities, strict=True))
    centres = {
        speaker: np.mean([embedding for embedding, clip, _ in pairs if clip.speaker == speaker], axis=0)
        for speaker in {clip.speaker for clip in development.clips}
    }
    rng = np.random.default_rng(0)
    known = [
        dataclasses.replace(
            quality,
            log_f0_mean=None,
            log_embedding_norm=float(embedding @ centres[clip.speaker] + rng.normal(0, 0.02)),
        )
        for embedding, clip, quality in pairs
    ]
    trials = teaching_trials(dataclasses.replace(development, qualities=known))
    names, _ = select_terms(trials)
    assert weights_of(trials, names)["norm_below"] > 0
