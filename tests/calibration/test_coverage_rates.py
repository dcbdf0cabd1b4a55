"""What coverage is worth, measured on development speech whose profiles reach further in some than in others."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from emoinv_edge.calibration import Calibration
from tests.calibration.development import DIM, along_an_axis, speech, unit
from train.calibration.coverage import coverage_rates
from train.calibration.fit import fit_speech
from train.calibration.speech import DevelopmentSpeech

CORPORA = ("corpus0", "corpus1", "corpus2")


def expressive(seed: int) -> DevelopmentSpeech:
    """Each speaker's emotions raise the pitch, and move the embedding along a direction of the speaker's own."""
    plain = speech(seed, 12)
    rng = np.random.default_rng(seed)
    own = {clip.speaker: rng.standard_normal(DIM) / math.sqrt(DIM) for clip in plain.clips}
    moved = plain.embeddings.astype(np.float64)
    for i, (clip, quality) in enumerate(zip(plain.clips, plain.qualities, strict=True)):
        if clip.emotion != "neutral":
            moved[i] += (0.8 + (quality.log_f0_mean or 0.0) - 4.8) * own[clip.speaker]
    return DevelopmentSpeech(plain.clips, unit(moved), plain.qualities)


def test_profiles_that_reach_further_reject_fewer(fitted: Calibration) -> None:
    rates = coverage_rates(expressive(5), fitted, CORPORA)
    assert rates[0][0] == 0.0 and len(rates) >= 2
    assert all(low[0] < high[0] and low[1] >= high[1] for low, high in itertools.pairwise(rates))
    assert 0.0 < rates[-1][1] < rates[0][1] < 1.0


def test_speech_without_emotions_gives_no_rates(development: DevelopmentSpeech, fitted: Calibration) -> None:
    plain = [dataclasses.replace(clip, emotion="neutral") for clip in development.clips]
    neutral = DevelopmentSpeech(plain, development.embeddings, development.qualities)
    assert coverage_rates(neutral, fitted, CORPORA) == ()
    assert coverage_rates(development, fitted, ()) == ()
    assert coverage_rates(development, fitted, CORPORA) == fitted.coverage


def test_two_emotions_are_too_few_to_leave_some_out() -> None:
    thin, _ = along_an_axis()
    found = coverage_rates(thin, fit_speech(speech(1, 10), names=("cosine",)), CORPORA)
    assert all(0.0 <= frr <= 1.0 for _, frr in found)
    assert np.all(np.diff([share for share, _ in found]) > 0.0)
