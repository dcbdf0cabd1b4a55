"""What telephones do to the scores: one shift for each case of a narrow profile or test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration
from emoinv_edge.conditions import MAX_SHIFT, NARROW_HZ, Conditions

from .speech import DevelopmentSpeech
from .thresholds import SAFETY, with_thresholds
from .trials import Evidence
from .weights import calibration_of, problem_of

__all__ = ["by_condition", "fit_conditions"]

MATCHED_RATES = (0.05, 0.03, 0.02, 0.01)
FEWEST_SPEAKERS = 20  # impostors of a case; with fewer it has no shift
JUDGED_SPEAKERS = 20  # a corpus with fewer gives no rate of 1 in 100
REACH = 0.002  # share of the clips beyond the range that counts as calibrated


def fit_conditions(bare: Calibration, trials: Sequence[Evidence], speech: DevelopmentSpeech) -> Conditions:
    """Shifts that bring the impostors of each case to where those of wide profiles and wide tests are.

    Parameters
    ----------
    bare : Calibration
        Without conditions.
    trials : sequence of Evidence
        From `channel_trials`.
    speech : DevelopmentSpeech
        Whose range counts as calibrated.
    """
    scores, speakers, cases = [], [], []
    known: dict[tuple[str, str], int] = {}
    for each in trials:
        some = each.take(~each.target)
        narrow = [some.terms[name] < NARROW_HZ for name in ("profile_hz", "test_hz")]
        scores.append(dataclasses.replace(bare, conditions=None).llr(some.terms))
        codes = [known.setdefault((some.corpus, name), len(known)) for name in some.names]
        speakers.append(np.array(codes, np.int64)[some.speaker])
        cases.append(2 * narrow[0] + narrow[1])
    llr, case, speaker = np.concatenate(scores), np.concatenate(cases), np.concatenate(speakers)
    wide = _quantiles(llr[case == 0], speaker[case == 0])
    shifts = []
    for number in (1, 2, 3):
        rows = case == number
        found = 0.0
        if len(np.unique(speaker[rows])) >= FEWEST_SPEAKERS:
            found = float(np.mean(wide - _quantiles(llr[rows], speaker[rows])))
        shifts.append(min(MAX_SHIFT, max(-MAX_SHIFT, found)))
    test_narrow, profile_narrow, both_narrow = shifts
    return Conditions(NARROW_HZ, both_narrow, profile_narrow, test_narrow, *_reach(speech))


def by_condition(
    everyone: Sequence[Evidence],
    through: Sequence[Evidence],
    teaching: Sequence[Evidence],
    names: Sequence[str],
    speech: DevelopmentSpeech,
    rate: float = 0.01,
    safety: float = SAFETY,
) -> dict[tuple[str, str, str], dict[str, float]]:
    """FAR and FRR of each corpus in each condition, at the threshold that all the others give.

    Parameters
    ----------
    everyone, through, teaching : sequence of Evidence
        From `draw_trials`, `channel_trials` and `teaching_trials`.
    names : sequence of str
        The terms.
    speech : DevelopmentSpeech
    rate : float
        The false-accept rate asked for.
    safety : float
        How many times more strictly than the pooled impostors ask.

    Returns
    -------
    dict from (corpus, condition enrolled in, condition tested in) to dict
        ``far``, ``frr`` (NaN where there are no trials of the kind) and ``speakers``, of corpora with
        `JUDGED_SPEAKERS` or more.
    """
    problem = problem_of(teaching)
    out = {}
    for corpus in sorted({each.corpus for each in through if len(each.names) >= JUDGED_SPEAKERS}):
        others, ours = ([each for each in through if (each.corpus == corpus) is own] for own in (False, True))
        bare = calibration_of(problem, names, problem.corpus != corpus, teaching[0].axis)
        bare = dataclasses.replace(bare, conditions=fit_conditions(bare, others, speech))
        rest = [each for each in everyone if each.corpus != corpus]
        calibration = with_thresholds(bare, rest + others, (1,), safety)
        threshold = calibration.threshold(rate, extrapolate=True).llr
        for each in ours:
            accepted = calibration.llr(each.terms) >= threshold
            for condition in np.unique(each.condition):
                rows = each.condition == condition
                own, strange = accepted[rows & each.target], accepted[rows & ~each.target]
                out[corpus, each.design, str(condition)] = {
                    "far": float(strange.mean()) if len(strange) else math.nan,
                    "frr": float(1.0 - own.mean()) if len(own) else math.nan,
                    "speakers": float(len(each.names)),
                }
    return out


def _quantiles(llr: NDArray[np.float64], speaker: NDArray[np.int64]) -> NDArray[np.float64]:
    """The LLRs that `MATCHED_RATES` of the impostors reach, every speaker weighing the same."""
    counts = np.maximum(np.bincount(speaker), 1)
    order = np.argsort(-llr)
    above = np.cumsum(1.0 / counts[speaker[order]])
    places = np.searchsorted(above / above[-1], np.asarray(MATCHED_RATES) * (1.0 + 1e-9), side="right")
    return np.asarray(llr[order][np.minimum(places, len(llr) - 1)])


def _reach(speech: DevelopmentSpeech) -> tuple[float, float, float]:
    """The narrowest band, the least SNR and the longest decay of the speech, but for `REACH` of it."""
    heard = speech.qualities
    bands = [quality.bandwidth_hz for quality in heard if quality.bandwidth_hz is not None]
    decays = [quality.decay_s for quality in heard if quality.decay_s is not None]
    return (
        min(NARROW_HZ, float(np.quantile(bands, REACH))) if bands else NARROW_HZ,
        float(np.quantile([quality.snr_db for quality in heard], REACH)),
        float(np.quantile(decays, 1.0 - REACH)) if decays else 0.0,
    )
