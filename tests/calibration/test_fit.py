"""The whole fit: LLRs of unseen speakers mean what they claim, whatever the corpora are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration
from tests.calibration.development import speech
from train.calibration.fit import fit_speech
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import Evidence, draw_trials
from train.evaluation.metrics import cllr, min_cllr


def scores(calibration: Calibration, trials: list[Evidence]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    llrs = np.concatenate([calibration.llr(each.terms) for each in trials])
    return llrs, np.concatenate([each.target for each in trials])


def test_a_term_that_is_evidence_is_kept(fitted: Calibration) -> None:
    weights = {term.name: term.weight for term in fitted.terms}
    assert weights["cosine"] > 0
    assert weights["f0_above"] > 0  # a raised voice explains a lower cosine
    assert {"envelope", "norm_above", "emotion_shift"}.isdisjoint(weights)  # constant in this speech


def test_llrs_of_unseen_speakers_mean_what_they_claim(fitted: Calibration) -> None:
    llrs, target = scores(fitted, draw_trials(speech(1, 20)))
    found, least = cllr(llrs[target], llrs[~target]), min_cllr(llrs[target], llrs[~target])
    assert found < 0.6
    assert found - least < 0.08


def test_pitch_helps_unseen_speakers(development: DevelopmentSpeech, fitted: Calibration) -> None:
    cosine = fit_speech(development, names=("cosine",))
    trials = [each for each in draw_trials(speech(1, 20)) if each.design == "neutral"]
    with_pitch, target = scores(fitted, trials)
    without, _ = scores(cosine, trials)
    assert cllr(with_pitch[target], with_pitch[~target]) < cllr(without[target], without[~target]) - 0.02


def test_the_fitted_calibration_survives_its_file(fitted: Calibration) -> None:
    assert Calibration.from_json(fitted.to_json()) == fitted


def test_the_fit_is_repeatable(development: DevelopmentSpeech, fitted: Calibration) -> None:
    again = fit_speech(development, names=fitted.term_names)
    assert again.far_tables == fitted.far_tables
    assert again.terms == fitted.terms


def test_one_clip_a_speaker_is_enough_for_an_impostor(development: DevelopmentSpeech, fitted: Calibration) -> None:
    single = speech(5, 40, emotions=0, neutral=1, corpora=1)
    single = dataclasses.replace(single, clips=[dataclasses.replace(clip, corpus="more") for clip in single.clips])
    more = fit_speech(development, names=fitted.term_names, impostors=single)
    assert more.num_impostor_speakers == 60 + 40
    assert "corpus1 (20 speakers), " in more.source and "more (40 speakers, impostors only)" in more.source
    assert [term.weight for term in more.terms] == [term.weight for term in fitted.terms]


@pytest.mark.usefixtures("a_quarter_of_the_strangers")
def test_a_corpus_without_emotions_or_with_muddled_labels_counts_for_impostors_alone(
    development: DevelopmentSpeech,
) -> None:
    rng = np.random.default_rng(0)
    clips = [
        dataclasses.replace(clip, emotion="neutral") if clip.corpus == "corpus1" else clip for clip in development.clips
    ]
    muddled = [i for i, clip in enumerate(clips) if clip.corpus == "corpus2"]
    names = rng.permutation([clips[i].speaker for i in muddled])
    for i, name in zip(muddled, names, strict=True):
        clips[i] = dataclasses.replace(clips[i], speaker=str(name))
    clips += [dataclasses.replace(clip, corpus="corpus3") for clip in development.clips if clip.corpus == "corpus0"]
    copied = [i for i, clip in enumerate(development.clips) if clip.corpus == "corpus0"]
    both = DevelopmentSpeech(
        clips,
        np.concatenate((development.embeddings, development.embeddings[copied])),
        [*development.qualities, *(development.qualities[i] for i in copied)],
    )
    found = fit_speech(both, names=("cosine",))
    assert "corpus1 (20 speakers, impostors only)" in found.source
    assert "corpus2 (20 speakers, impostors only)" in found.source
    assert "corpus0 (20 speakers), " in found.source
