"""Are these two recordings one speaker? Answered at a false-accept rate, without enrolment and without a store."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from numpy.typing import NDArray

from .calibration import Calibration
from .decision import Decision, Verdict, require_calibration
from .encoder import Encoder
from .profiles import Exemplar, Profile
from .utterance import Utterance, hear
from .verifier import Verifier

__all__ = ["compare", "compare_heard"]


def compare(
    encoder: Encoder,
    first: NDArray[Any],
    second: NDArray[Any],
    sample_rate: int = 16000,
    *,
    target_far: float = 0.01,
    extrapolate: bool = False,
    calibration: Calibration | None = None,
) -> Decision:
    """Decide whether two recordings are of one speaker.

    Each is taken as the enrolment of the other, and the score is the mean of both, so that their order makes no
    difference. Several recordings of a known speaker show more than one does: enrol those, and verify.

    Parameters
    ----------
    encoder : Encoder
    first, second : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
        As `emoinv_edge.audio.to_mono` takes it.
    sample_rate : int
        Of both, 8000 to 192000 Hz.
    target_far : float
        Pairs of two speakers that may be taken for one, e.g. 0.01 for one in 100.
    extrapolate, calibration
        As for `Verifier`.

    Returns
    -------
    Decision
        ACCEPT for one speaker, REJECT for two, NO_DECISION where one of the recordings cannot be judged; the score
        is the LLR. `speaker` is empty, `quality` that of the recording with less speech.

    Raises
    ------
    TypeError, AudioError
        If an array's type, dtype, shape or rate is wrong.
    CalibrationError
        If the calibration cannot support the rate.

    Examples
    --------
    >>> compare(encoder, read_audio("a.wav")[0], read_audio("b.wav")[0]).verdict     # doctest: +SKIP
    <Verdict.ACCEPT: 'accept'>
    """
    heard = [hear(encoder, waveform, sample_rate, keep_speech=False) for waveform in (first, second)]
    return compare_heard(
        encoder, heard[0], heard[1], target_far=target_far, extrapolate=extrapolate, calibration=calibration
    )


def compare_heard(
    encoder: Encoder,
    first: Utterance,
    second: Utterance,
    *,
    target_far: float = 0.01,
    extrapolate: bool = False,
    calibration: Calibration | None = None,
) -> Decision:
    """`compare` for recordings that were heard before, by `emoinv_edge.utterance.hear` or `hear_blocks`."""
    calibration = require_calibration(encoder, calibration)
    threshold = calibration.threshold(target_far, 1, extrapolate)
    for heard, which in ((first, "first"), (second, "second")):
        if heard.refusal is not None:
            return Decision(
                verdict=Verdict.NO_DECISION,
                score=None,
                reason=f"{which} recording: {heard.refusal.message}",
                threshold=threshold.llr,
                target_far=threshold.target_far,
                speaker="",
                cosine=None,
                quality=heard.quality,
                start=0,
                end=heard.num_samples,
                final=True,
                extrapolated=threshold.extrapolated,
                code=heard.refusal.code,
            )
    decisions = []
    for enrolled, test, which in ((first, second, "second"), (second, first, "first")):
        assert test.embedding is not None and test.quality is not None  # it was not refused
        profile = _profile(encoder, enrolled)
        verifier = Verifier(encoder, profile, target_far, extrapolate=extrapolate, calibration=calibration)
        decision = dataclasses.replace(verifier.decide(test.embedding, test.quality, end=test.num_samples), speaker="")
        if decision.score is None:
            return dataclasses.replace(decision, reason=f"{which} recording: {decision.reason}")
        decisions.append(decision)
    return _mean(*decisions)


def _profile(encoder: Encoder, heard: Utterance) -> Profile:
    assert heard.embedding is not None and heard.quality is not None  # it was not refused
    now = datetime.datetime.now(datetime.timezone.utc)
    return Profile("recording", encoder.fingerprint, (Exemplar(heard.embedding.vector, heard.quality, now),), now)


def _mean(one: Decision, other: Decision) -> Decision:
    """The decision by the mean of both scores; what either direction rejects for another reason stays rejected."""
    assert one.score is not None and other.score is not None
    score = (one.score + other.score) / 2.0
    vetoed = any(not each.accepted and each.score >= each.threshold for each in (one, other) if each.score is not None)
    accepted = score >= one.threshold and not vetoed
    shorter = min(one, other, key=lambda each: each.quality.net_speech_s if each.quality else 0.0)
    relation = "at least" if score >= one.threshold else "below"
    return dataclasses.replace(
        shorter,
        verdict=Verdict.ACCEPT if accepted else Verdict.REJECT,
        score=score,
        reason=shorter.reason if vetoed else f"LLR {score:.2f} is {relation} the threshold {one.threshold:.2f}",
    )
