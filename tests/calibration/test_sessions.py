"""Rises of a session's threshold: unseen impostors who try two or three times keep the rate over all of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from emoinv_edge.calibration import Calibration
from emoinv_edge.scoring import ProfileBank
from tests.calibration.development import in_noise, speech
from train.calibration.sessions import draw_sessions, session_rises
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import draw_trials
from train.evaluation.sessions import session_scores


def test_a_session_is_of_one_speaker_in_one_emotion_in_noise_or_not() -> None:
    both = in_noise(speech(0, 5))
    copies = both.copies()
    sessions = draw_sessions(both, range(len(both.clips)))
    assert len(sessions) == 3 * 15 * 5 * 2  # draws, speakers, labels, clear and in noise
    for clips in sessions:
        assert len(set(clips)) == 3
        assert len({(both.clips[i].speaker, both.clips[i].emotion, i in copies) for i in clips}) == 1


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.parametrize("rate", [0.3, 0.1])
def test_unseen_impostors_keep_the_rate_over_the_whole_session(fitted: Calibration, attempts: int, rate: float) -> None:
    new = speech(2, 20)
    threshold = fitted.session_threshold(fitted.threshold(rate), attempts).llr
    accepted, alone = [], []
    for each in draw_trials(new):
        profiles = each.trials.profiles
        index = [i for profile in profiles for i in profile]
        owners = [new.clips[profile[0]].speaker for profile in profiles]
        bank = ProfileBank.from_arrays(
            owners, new.embeddings[index], [new.qualities[i] for i in index], list(map(len, profiles))
        )
        sessions = draw_sessions(new, np.unique(each.trials.test).tolist())
        scores = session_scores(list(zip(new.embeddings, new.qualities, strict=True)), sessions, bank, fitted)
        names = [new.clips[clips[0]].speaker for clips in sessions]
        strange = np.array(
            [[owner != name and owner[0] == name[0] for owner in owners] for name in names]  # of one corpus
        )
        accepted.append(scores[attempts][strange] >= threshold)
        alone.append(scores[1][strange] >= fitted.threshold(rate).llr)
    assert np.mean(np.concatenate(accepted)) < 1.35 * rate
    assert np.mean(np.concatenate(accepted)) > 0.5 * np.mean(np.concatenate(alone))


def test_a_session_never_needs_less_than_one_attempt_and_a_rarer_false_accept_no_less(fitted: Calibration) -> None:
    assert [each.attempts for each in fitted.session_rises] == [2, 3]
    for attempts in (2, 3):
        ones = [fitted.threshold(rate) for rate in fitted.far_tables[0].rates]
        all_ = [fitted.session_threshold(one, attempts).llr for one in ones]
        assert all(later >= one.llr for later, one in zip(all_, ones, strict=True))
        assert all(low <= high for low, high in itertools.pairwise(all_))


def test_without_clips_enough_for_a_session_nothing_is_measured(
    development: DevelopmentSpeech, fitted: Calibration
) -> None:
    few = speech(4, 6, emotions=2, neutral=2)
    single = [i for i, clip in enumerate(few.clips) if i % 3 < 2]
    thin = DevelopmentSpeech([few.clips[i] for i in single], few.embeddings[single], [few.qualities[i] for i in single])
    trials = [each.take(np.flatnonzero(each.trials.test % 7 == 0)) for each in draw_trials(thin)]
    assert session_rises(thin, trials, fitted) == ()
