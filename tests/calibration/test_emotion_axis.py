"""The emotion axis: found in acted speech, and worth something to speakers who gave nothing to it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.calibration.development import along_an_axis, in_noise
from train.calibration.emotion_axis import fit_axis
from train.calibration.fit import fit_speech
from train.calibration.select import corpus_by_corpus, left_out_scores
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import teaching_trials, with_axis

CORPORA = ["corpus1", "corpus2"]


def test_an_axis_along_which_emotion_moves_everybody_is_found_and_explains_their_cosines() -> None:
    acted, axis = along_an_axis()
    found = fit_axis(acted, CORPORA)
    assert float(found.array() @ axis) > 0.7
    teaching = with_axis(teaching_trials(acted), acted, found)
    without, along = (
        corpus_by_corpus(left_out_scores(teaching, names)) for names in (("cosine",), ("cosine", "emotion_shift"))
    )
    # Corpus 0 gave nothing to the axis.
    assert all(along[corpus]["min_cllr"] < without[corpus]["min_cllr"] for corpus in (*CORPORA, "corpus0"))


@pytest.mark.usefixtures("a_quarter_of_the_strangers")
def test_the_fit_holds_the_axis_of_the_corpora_that_are_named() -> None:
    acted, _ = along_an_axis()
    fitted = fit_speech(acted, names=("cosine", "emotion_shift"), axis_corpora=CORPORA)
    assert fitted.term_names == ("cosine", "emotion_shift") and fitted.emotion_axis == fit_axis(acted, CORPORA)
    with pytest.raises(ValueError, match="emotion_shift"):
        fit_speech(acted, names=("cosine", "emotion_shift"))


def test_copies_in_noise_and_speech_of_one_emotion_give_no_axis() -> None:
    acted, _ = along_an_axis()
    assert fit_axis(in_noise(acted), CORPORA) == fit_axis(acted, CORPORA)
    calm = [i for i, clip in enumerate(acted.clips) if clip.emotion == "neutral"]
    clips, qualities = [acted.clips[i] for i in calm], [acted.qualities[i] for i in calm]
    with pytest.raises(ValueError, match="neutral and in another emotion, got none"):
        fit_axis(DevelopmentSpeech(clips, acted.embeddings[calm], qualities), CORPORA)
    with pytest.raises(ValueError, match="speakers of nowhere who are heard"):
        fit_axis(acted, ["nowhere"])


def test_every_speaker_weighs_the_same_however_many_clips_they_have() -> None:
    acted, _ = along_an_axis()
    twice = [*range(len(acted.clips)), *[i for i, clip in enumerate(acted.clips) if clip.speaker == "1-0"]]
    more = DevelopmentSpeech(
        [acted.clips[i] for i in twice], acted.embeddings[twice], [acted.qualities[i] for i in twice]
    )
    assert fit_axis(more, CORPORA).array() == pytest.approx(np.asarray(fit_axis(acted, CORPORA).array()), abs=1e-6)
