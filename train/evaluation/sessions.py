"""The scores of whole sessions, with many profiles at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.attempts import MISSING_NATS, pooled
from emoinv_edge.calibration import Calibration
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank

__all__ = ["session_scores"]


def session_scores(
    utterances: Sequence[tuple[NDArray[np.float32], SpeechQuality]],
    sessions: Sequence[tuple[int, ...]],
    bank: ProfileBank,
    calibration: Calibration,
) -> dict[int, NDArray[np.float64]]:
    """The score of each session with each profile, as `emoinv_edge.attempts.Session` makes it.

    Parameters
    ----------
    utterances : sequence of (embedding, SpeechQuality)
        Of all clips.
    sessions : sequence of tuple of int
        The clips of each, all of one length.
    bank : ProfileBank
    calibration : Calibration

    Returns
    -------
    dict from number of attempts to ndarray, shape (sessions, profiles)
        The first so many clips of each session; 1 is a clip alone, by its LLR.
    """
    known: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def llr(part: tuple[int, ...]) -> NDArray[np.float64]:
        key = tuple(sorted(part))
        if key not in known:
            found = pooled([utterances[i] for i in key])
            known[key] = bank.score(calibration, *found)[0]
        return known[key]

    def score(clips: tuple[int, ...]) -> NDArray[np.float64]:
        parts = [
            llr(part) - MISSING_NATS * (len(clips) - count)
            for count in range(1, len(clips) + 1)
            for part in itertools.combinations(clips, count)
        ]
        return np.asarray(np.max(parts, axis=0))

    longest = max(map(len, sessions), default=0)
    return {count: np.array([score(clips[:count]) for clips in sessions]) for count in range(1, longest + 1)}
