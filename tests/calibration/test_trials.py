"""Trials of development speech: who tries whom, and what is known of each trial."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from emoinv_edge.scoring import ProfileBank
from tests.calibration.development import along_an_axis, in_noise, unit
from train.calibration.emotion_axis import fit_axis
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import draw_trials, teaching_trials, with_axis


def test_a_clip_never_meets_the_profile_that_holds_it(development: DevelopmentSpeech) -> None:
    for each in draw_trials(development):
        held = [set(profile) for profile in each.trials.profiles]
        pairs = zip(each.trials.enrol.tolist(), each.trials.test.tolist(), strict=True)
        assert not any(test in held[profile] for profile, test in pairs)


def test_voices_of_two_genders_are_never_compared_and_pitch_parts_those_of_unknown_gender(
    development: DevelopmentSpeech,
) -> None:
    speakers = {clip.speaker: int(clip.speaker.split("-")[1]) for clip in development.clips}
    clips = [
        dataclasses.replace(clip, gender="" if clip.corpus == "corpus2" else ("a", "b")[speakers[clip.speaker] % 2])
        for clip in development.clips
    ]
    qualities = [
        dataclasses.replace(quality, log_f0_mean=(4.6, 5.4)[speakers[clip.speaker] % 2])
        for clip, quality in zip(development.clips, development.qualities, strict=True)
    ]
    found = draw_trials(dataclasses.replace(development, clips=clips, qualities=qualities))
    assert {each.corpus for each in found} == {"corpus0", "corpus1", "corpus2"}
    for each in found:
        even = np.array([int(name.split("-")[1]) % 2 for name in each.names])
        assert (even[each.owner] == even[each.speaker]).all()


def test_a_corpus_whose_neutral_voices_are_confused_teaches_nothing(development: DevelopmentSpeech) -> None:
    noise = unit(np.random.default_rng(0).standard_normal(development.embeddings.shape))
    broken = np.array([clip.corpus == "corpus1" for clip in development.clips])
    embeddings = np.where(broken[:, None], noise, development.embeddings)
    trials = teaching_trials(dataclasses.replace(development, embeddings=embeddings))
    assert {each.corpus for each in trials} == {"corpus0", "corpus2"}
    with pytest.raises(ValueError, match="no corpus of several emotions"):
        teaching_trials(dataclasses.replace(development, embeddings=noise))


def test_a_clip_in_noise_is_a_test_wherever_the_clip_is_and_is_never_enrolled(development: DevelopmentSpeech) -> None:
    count = len(development.clips)
    plain, noisy = draw_trials(development), draw_trials(in_noise(development))
    assert [(each.corpus, each.design) for each in noisy] == [(each.corpus, each.design) for each in plain]
    for before, after in zip(plain, noisy, strict=True):
        assert not before.noisy.any()
        clear, harmed = after.take(~after.noisy), after.take(after.noisy)
        for name in ("owner", "speaker", "target", "emotional"):
            assert np.array_equal(getattr(clear, name), getattr(before, name))
        assert np.array_equal(clear.trials.test, before.trials.test)
        assert np.array_equal(clear.terms["cosine"], before.terms["cosine"])  # so the profiles are the same
        assert np.array_equal(harmed.trials.test - count, before.trials.test)
        assert np.array_equal(harmed.target, before.target)


def test_evidence_along_an_axis_is_what_a_bank_scores() -> None:
    acted, _ = along_an_axis()
    axis = fit_axis(acted, ["corpus1", "corpus2"])
    trials = draw_trials(acted)
    for before, each in zip(trials, with_axis(trials, acted, axis), strict=True):
        assert each.axis == axis and not before.terms["emotion_shift"].any()
        # One exemplar that is the centroid stands for the profile.
        for row in range(0, len(each.target), 97):
            profile, test = int(each.trials.enrol[row]), int(each.trials.test[row])
            quality = acted.qualities[test]
            bank = ProfileBank.from_arrays(["s"], each.centroids[[profile]], [quality], [1], axis)
            evidence = bank.evidence(acted.embeddings[test], quality)
            for name in ("cosine", "emotion_shift"):
                assert each.terms[name][row] == pytest.approx(evidence[name][0], abs=1e-5)
