"""Decision: accept, reject, or an honest "no decision", and what one is made of.

`Comparator` holds what stays the same from one utterance to the next: the profiles, the calibration and the
threshold. `Verifier` hands it whole recordings, `VerificationStream` the utterances of a stream.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .calibration import Calibration, Threshold, bayes_threshold
from .encoder import Encoder
from .errors import CalibrationError, ModelMismatchError, ProfileExpiredError
from .profiles import Profile
from .quality import SpeechQuality
from .scoring import ProfileBank
from .utterance import unusable

if TYPE_CHECKING:
    from .store import ProfileStore

__all__ = ["Comparator", "Decision", "Verdict", "require_calibration", "require_model"]


class Verdict(enum.Enum):
    """What was decided; anything but ACCEPT must keep the door closed."""

    ACCEPT = "accept"
    REJECT = "reject"
    NO_DECISION = "no decision"

    def __bool__(self) -> bool:
        """Only ACCEPT is true, so that ``if verdict`` cannot open on doubt."""
        return self is Verdict.ACCEPT


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One decision and everything behind it.

    Parameters
    ----------
    verdict : Verdict
    score : float or None
        Log-likelihood ratio (natural) for the speaker; None with NO_DECISION.
    reason : str
        Why, in a sentence; for NO_DECISION with the cure.
    threshold : float
        The LLR at which ACCEPT begins.
    target_far : float or None
        The false-accept rate that the threshold keeps; None when it came from a prior and costs.
    speaker : str
        The profile that fits best, whatever the verdict.
    cosine : float or None
        The cosine behind the score.
    quality : SpeechQuality or None
        Of the test speech, as far as it could be measured.
    start, end : int
        What was judged, in samples of the encoder's rate from the start of the audio or stream.
    final : bool
        Whether more audio can no longer change this decision.
    extrapolated : bool
        Whether the threshold lies beyond what the calibration data support.
    """

    verdict: Verdict
    score: float | None
    reason: str
    threshold: float
    target_far: float | None
    speaker: str
    cosine: float | None
    quality: SpeechQuality | None
    start: int
    end: int
    final: bool
    extrapolated: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the verdict is ACCEPT."""
        return self.verdict is Verdict.ACCEPT


def require_calibration(encoder: Encoder, calibration: Calibration | None) -> Calibration:
    """The calibration given, else the model's own; without either there is no verification."""
    found = calibration if calibration is not None else encoder.calibration
    if found is None:
        raise CalibrationError(
            f"{encoder.path}: this model carries no calibration, so its scores have no meaning and no threshold; "
            "export it with one (python -m export), or pass calibration="
        )
    return found


def require_model(encoder: Encoder, profile: Profile) -> None:
    """Refuse a profile that another model made: embeddings of two models cannot be compared."""
    if profile.model_fingerprint != encoder.fingerprint:
        raise ModelMismatchError(
            f"the profile {profile.name!r} was made by model {profile.model_fingerprint[:12]}, this one is "
            f"{encoder.fingerprint[:12]} ({encoder.spec.name}); enrol again with this model, or load the other one"
        )


class Comparator:
    """Compares embeddings with profiles and decides; immutable, and safe to share between threads.

    Parameters
    ----------
    encoder, profiles, target_far, prior, cost_miss, cost_false_accept, extrapolate, calibration
        As for `Verifier`, whose constructor this is.
    """

    def __init__(
        self,
        encoder: Encoder,
        profiles: Profile | Iterable[Profile] | ProfileStore,
        target_far: float = 0.01,
        *,
        prior: float | None = None,
        cost_miss: float = 1.0,
        cost_false_accept: float = 1.0,
        extrapolate: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        self._encoder = encoder
        self._calibration = require_calibration(encoder, calibration)
        found = tuple(_each(profiles, encoder))
        for profile in found:
            require_model(encoder, profile)
        self._bank = ProfileBank(found, self._calibration.emotion_axis)
        if prior is None:
            self._threshold = self._calibration.threshold(target_far, len(found), extrapolate)
        else:
            self._threshold = Threshold(bayes_threshold(prior, cost_miss, cost_false_accept), None, extrapolated=False)

    @property
    def encoder(self) -> Encoder:
        """The encoder in use."""
        return self._encoder

    @property
    def calibration(self) -> Calibration:
        """The calibration in use."""
        return self._calibration

    @property
    def threshold(self) -> Threshold:
        """The threshold in use."""
        return self._threshold

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names of the profiles."""
        return self._bank.names

    def decide(
        self,
        embedding: ArrayLike,
        quality: SpeechQuality,
        *,
        start: int = 0,
        end: int = 0,
        final: bool = True,
    ) -> Decision:
        """Decide on an embedding and the quality of the speech behind it.

        Anything that cannot be scored (a NaN, a zero or foreign embedding, too little speech) is
        NO_DECISION.
        """
        refusal = unusable(quality)
        if refusal is not None:
            return self.no_decision(refusal.message, quality, start=start, end=end, final=final)
        try:
            llrs, cosines = self._bank.score(self._calibration, np.asarray(embedding), quality)
        except ValueError as error:
            return self.no_decision(f"no score: {error}", quality, start=start, end=end, final=final)
        best = int(np.argmax(llrs))
        score, threshold = float(llrs[best]), self._threshold.llr
        if not math.isfinite(score):
            return self.no_decision("no score: it is not finite", quality, start=start, end=end, final=final)
        accepted = score >= threshold
        return dataclasses.replace(
            self.no_decision("", quality, start=start, end=end, final=final),
            verdict=Verdict.ACCEPT if accepted else Verdict.REJECT,
            score=score,
            reason=f"LLR {score:.2f} is {'at least' if accepted else 'below'} the threshold {threshold:.2f}",
            speaker=self._bank.names[best],
            cosine=float(cosines[best]),
        )

    def no_decision(
        self,
        reason: str,
        quality: SpeechQuality | None = None,
        *,
        start: int = 0,
        end: int = 0,
        final: bool = True,
    ) -> Decision:
        """A NO_DECISION with the threshold and the reason."""
        return Decision(
            verdict=Verdict.NO_DECISION,
            score=None,
            reason=reason,
            threshold=self._threshold.llr,
            target_far=self._threshold.target_far,
            speaker=self._bank.names[0] if len(self._bank) == 1 else "",
            cosine=None,
            quality=quality,
            start=start,
            end=end,
            final=final,
            extrapolated=self._threshold.extrapolated,
        )


def _each(profiles: Profile | Iterable[Profile] | ProfileStore, encoder: Encoder) -> Iterator[Profile]:
    """Every profile that has not expired; a store is asked for each in turn, without the clips."""
    if isinstance(profiles, Profile):
        yield profiles
    elif isinstance(profiles, Iterable):
        yield from profiles
    else:
        for name in profiles.names():
            try:
                yield profiles.get(name, model_fingerprint=encoder.fingerprint, audio=False)
            except ProfileExpiredError:  # as if it were not there any more; nobody is identified as its speaker
                continue
