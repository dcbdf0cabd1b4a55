"""How far the threshold of a session lies above that of one attempt, from impostors who try two or three times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import MAX_ATTEMPTS, Calibration, SessionRise
from emoinv_edge.scoring import ProfileBank

from ..evaluation.sessions import session_scores
from .speech import DevelopmentSpeech
from .thresholds import Attempts, table_of
from .trials import Evidence

__all__ = ["draw_sessions", "session_rises"]

SESSIONS = 3  # of one speaker, emotion and noise: who tries again does so at once, in the same voice
NUM_PROFILES = (1, 4)  # the larger rise holds for any number


def draw_sessions(speech: DevelopmentSpeech, tests: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Clips that could be one session each: `MAX_ATTEMPTS` of one speaker in one emotion, all in noise or none."""
    rng = np.random.default_rng((seed, 13))
    copies = speech.copies()
    cells: dict[tuple[str, str, bool], list[int]] = {}
    for i in tests:
        clip = speech.clips[i]
        cells.setdefault((clip.speaker, clip.emotion, i in copies), []).append(i)
    return [
        tuple(int(i) for i in rng.permutation(found)[:MAX_ATTEMPTS])
        for _, found in sorted(cells.items())
        if len(found) >= MAX_ATTEMPTS
        for _ in range(SESSIONS)
    ]


def session_rises(
    speech: DevelopmentSpeech, trials: Sequence[Evidence], calibration: Calibration, seed: int = 0
) -> tuple[SessionRise, ...]:
    """The rises for sessions of 2 attempts and more; empty where no speaker has clips enough for a session.

    Parameters
    ----------
    speech : DevelopmentSpeech
    trials : sequence of Evidence
        Of `draw_trials`: whose profiles are tried, by sessions of the clips that try them there.
    calibration : Calibration
    seed : int
    """
    utterances = list(zip(speech.embeddings, speech.qualities, strict=True))
    attempts: dict[int, list[Attempts]] = {count: [] for count in range(1, MAX_ATTEMPTS + 1)}
    for each in trials:
        profiles = each.trials.profiles
        sessions = draw_sessions(speech, np.unique(each.trials.test).tolist(), seed)
        if not sessions:
            continue
        index = [i for profile in profiles for i in profile]
        bank = ProfileBank.from_arrays(
            [speech.clips[profile[0]].speaker for profile in profiles],
            speech.embeddings[index],
            [speech.qualities[i] for i in index],
            list(map(len, profiles)),
            calibration.emotion_axis,
        )
        # Which profiles a clip tries is known of each clip alone; a session's clips are of one speaker.
        tried = {(int(test), int(enrol)) for test, enrol in zip(each.trials.test, each.trials.enrol, strict=True)}
        speaker = [speech.clips[clips[0]].speaker for clips in sessions]
        strange = np.array(
            [
                [(clips[0], row) in tried and name != speaker[k] for row, name in enumerate(bank.names)]
                for k, clips in enumerate(sessions)
            ]
        )
        test, row = np.nonzero(strange)
        names = [f"{each.corpus} {name}" for name in speaker]
        for count, scores in session_scores(utterances, sessions, bank, calibration).items():
            attempts[count].append(Attempts(scores[test, row], test, test, names))
    return tuple(
        rise for count in range(2, MAX_ATTEMPTS + 1) if (rise := _rise(attempts[1], attempts[count], count)) is not None
    )


def _rise(alone: Sequence[Attempts], together: Sequence[Attempts], count: int) -> SessionRise | None:
    """The rise at each rate that these impostors support."""
    if not alone:
        return None
    rates: tuple[float, ...] = ()
    rises: NDArray[np.float64] = np.zeros(0)
    base: NDArray[np.float64] = np.zeros(0)
    for profiles in NUM_PROFILES:
        one, all_ = table_of(alone, profiles), table_of(together, profiles)
        if one is None or all_ is None:
            continue
        found = np.maximum(np.asarray(all_.thresholds) - np.asarray(one.thresholds), 0.0)
        if not rates:
            rates, rises, base = one.rates, found, np.asarray(one.thresholds)
        shared = min(len(rates), len(found))  # the last rate of a table is its own: the rarest that it supports
        rises[:shared] = np.maximum(rises[:shared], found[:shared])
    if not rates:
        return None
    rises = np.maximum.accumulate(base + rises) - base  # a rarer false accept needs no lower threshold
    return SessionRise(count, rates, tuple(float(max(0.0, each)) for each in rises))
