"""Decision: accept, reject, or an honest "no decision", and what one is made of.

`Comparator` holds what stays the same from one utterance to the next: the profiles, the calibration and the
threshold. `Verifier` hands it whole recordings, `VerificationStream` the utterances of a stream.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import Calibration, Threshold, bayes_threshold
from .conditions import Heard, describe, differ
from .encoder import Embedding, Encoder
from .errors import CalibrationError, EmoinvError, ModelMismatchError, StoreError
from .heard import HeardBefore, heard
from .permission import Permitted, ProfileSource
from .profiles import Profile
from .quality import SpeechQuality
from .second_voice import second_voice
from .utterance import HARDLY_VOICE, Refusal, no_voice, unusable

__all__ = ["Comparator", "Countermeasure", "Decision", "Examined", "Verdict", "require_calibration", "require_model"]

# Takes the waveform and its rate; a reason, or anything else that is true, turns an accept into no decision.
Countermeasure: TypeAlias = Callable[[NDArray[Any], int], object]


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
        Whether the threshold lies beyond what the calibration data support, or the speech, of the test or of the
        profile, beyond the conditions that were calibrated; the reason then names the condition.
    code : str
        The reason of a NO_DECISION for programs: that of a `Refusal`, ``no_score``, ``no_profile``, ``gap``,
        ``heard_before`` or ``countermeasure``; empty for ACCEPT and REJECT.
    expires : datetime or None
        From when on the speaker's profile is refused; None where it never is, and with NO_DECISION.
    condition, profile_condition : str
        Under which conditions the test and the profile were heard, as `emoinv_edge.conditions.describe` puts it;
        empty where nothing was compared.
    warning : str
        Where both differ, what that does; else empty.
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
    code: str = ""
    expires: datetime.datetime | None = None
    condition: str = ""
    profile_condition: str = ""
    warning: str = ""

    def __bool__(self) -> bool:
        """Only ACCEPT is true, so that ``if verifier.verify(...)`` cannot open on doubt."""
        return self.accepted

    @property
    def accepted(self) -> bool:
        """Whether the verdict is ACCEPT."""
        return self.verdict is Verdict.ACCEPT


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """A decision and what it was made from; true for an accept only, as the decision is.

    Parameters
    ----------
    decision : Decision
    embedding : Embedding or None
        Of the speech; None where there is none.
    """

    decision: Decision
    embedding: Embedding | None

    def __bool__(self) -> bool:
        """Whether the verdict is ACCEPT."""
        return self.decision.accepted

    def __iter__(self) -> Iterator[Any]:
        """The two, for ``decision, embedding = verifier.examine(...)``."""
        return iter((self.decision, self.embedding))


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
    """Compares embeddings with profiles and decides; safe to share between threads.

    Parameters
    ----------
    encoder, profiles, target_far, prior, cost_miss, cost_false_accept, extrapolate, calibration, heard_before,
    countermeasure, store
        As for `Verifier`, whose constructor this is.
    """

    def __init__(
        self,
        encoder: Encoder,
        profiles: Profile | Iterable[Profile] | ProfileSource,
        target_far: float = 0.01,
        *,
        prior: float | None = None,
        cost_miss: float = 1.0,
        cost_false_accept: float = 1.0,
        extrapolate: bool = False,
        calibration: Calibration | None = None,
        heard_before: HeardBefore | None = None,
        countermeasure: Countermeasure | None = None,
        store: ProfileSource | None = None,
    ) -> None:
        self._encoder = encoder
        self._extrapolate = extrapolate
        self._heard_before = heard_before
        self._countermeasure = countermeasure
        left_out: dict[str, EmoinvError] = {}
        if isinstance(profiles, Profile):
            found = [profiles]
        elif isinstance(profiles, Iterable):
            found = list(profiles)
        else:
            store = profiles
            found, left_out = store.usable(encoder.fingerprint)
        for profile in found:
            require_model(encoder, profile)
        if store is not None and calibration is None:
            calibration = store.calibration(encoder)
            store.note_model(encoder)
        self._calibration = require_calibration(encoder, calibration)
        self._permitted = Permitted(found, left_out, self._calibration.emotion_axis, store, encoder.fingerprint)
        if prior is None:
            self._threshold = self._calibration.threshold(target_far, len(self.speakers), extrapolate)
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
        """The threshold in use; it stays when a profile is left out."""
        return self._threshold

    def session_threshold(self, attempts: int) -> Threshold:
        """The threshold of a session of so many attempts, at the same rate; see `Calibration.session_threshold`."""
        return self._calibration.session_threshold(self._threshold, attempts, self._extrapolate)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names of the profiles that can be accepted now."""
        return self._permitted.names

    @property
    def left_out(self) -> Mapping[str, str]:
        """By name, which profiles cannot be accepted, and why: expired, removed, damaged, of another model."""
        return self._permitted.left_out

    @property
    def guarded(self) -> bool:
        """Whether `guard` can change a decision."""
        return self._heard_before is not None or self._countermeasure is not None

    def guard(self, decision: Decision, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """The decision, or NO_DECISION where its audio was heard before or the countermeasure objects to it.

        Never an accept that `decision` is not. The audio of a final decision counts as heard from then on.

        Parameters
        ----------
        decision : Decision
        waveform, sample_rate
            The audio that was decided on, as `to_mono` takes it.
        """
        if self._heard_before is not None:
            match = heard(self._heard_before, waveform, sample_rate, remember=decision.final)
            if match is not None and decision.verdict is not Verdict.NO_DECISION:
                return self._withdraw(
                    decision,
                    "heard_before",
                    f"heard before: this is a recording of what was heard on {match.when:%Y-%m-%d at %H:%M} UTC; "
                    "say it anew",
                )
        if self._countermeasure is not None and decision.accepted:
            try:
                objection = self._countermeasure(waveform, sample_rate)
            except Exception as error:  # whatever it raises, nothing is accepted that it has not passed
                objection = f"it failed ({type(error).__name__}: {error})"
            if objection:
                reason = objection if isinstance(objection, str) else "it took this for no live speech"
                return self._withdraw(decision, "countermeasure", f"the countermeasure objects: {reason}")
        return decision

    @staticmethod
    def _withdraw(decision: Decision, code: str, reason: str) -> Decision:
        return dataclasses.replace(
            decision, verdict=Verdict.NO_DECISION, score=None, cosine=None, reason=reason, code=code
        )

    def decide(
        self,
        embedding: Embedding | ArrayLike,
        quality: SpeechQuality,
        *,
        times: Sequence[float] | None = None,
        start: int = 0,
        end: int = 0,
        final: bool = True,
    ) -> Decision:
        """Decide on an embedding and the quality of the speech behind it.

        Anything that cannot be scored (a NaN, a zero or foreign embedding, too little speech) is
        NO_DECISION, and so is everything once no profile is left that may be used. So is what the model's guards
        take for no voice, or for two: an `Embedding` brings the windows by which a second voice is found.

        Parameters
        ----------
        embedding : Embedding, or ndarray, shape (embedding_dim,), float32 of unit norm
        quality : SpeechQuality
        times : sequence of float, optional
            Where each of the embedding's windows begins in the audio, in seconds, to say where a second voice is.
        start, end : int
            What was judged, in samples of the encoder's rate.
        final : bool
            Whether more audio can no longer change this decision.
        """
        refusal = unusable(quality)
        if refusal is not None:
            return self.no_decision(refusal, quality, start=start, end=end, final=final)
        try:
            bank, expires = self._permitted.now()
            llrs, cosines = bank.score(self._calibration, np.asarray(embedding), quality)
        except StoreError as error:
            refusal = Refusal("no_profile", str(error))
            return self.no_decision(refusal, quality, start=start, end=end, final=final)
        except ValueError as error:
            refusal = Refusal("no_score", f"no score: {error}")
            return self.no_decision(refusal, quality, start=start, end=end, final=final)
        best = int(np.argmax(llrs))
        score, threshold = float(llrs[best]), self._threshold.llr
        if not math.isfinite(score):
            refusal = Refusal("no_score", "no score: it is not finite")
            return self.no_decision(refusal, quality, start=start, end=end, final=final)
        accepted = score >= threshold
        doubt = self._doubt(embedding, quality, times, float(cosines[best]), bank.voice(best) if accepted else None)
        if doubt is not None:
            return self.no_decision(doubt, quality, start=start, end=end, final=final)
        test, profile = Heard.of(quality), bank.heard(best)
        beyond = self._beyond(test, profile)
        reason = f"LLR {score:.2f} is {'at least' if accepted else 'below'} the threshold {threshold:.2f}"
        return Decision(
            verdict=Verdict.ACCEPT if accepted else Verdict.REJECT,
            score=score,
            reason=f"{reason}; {beyond}" if beyond else reason,
            threshold=threshold,
            target_far=self._threshold.target_far,
            speaker=bank.names[best],
            cosine=float(cosines[best]),
            quality=quality,
            start=start,
            end=end,
            final=final,
            extrapolated=self._threshold.extrapolated or bool(beyond),
            expires=expires[best],
            condition=describe(test),
            profile_condition=describe(profile),
            warning=differ(profile, test),
        )

    def _beyond(self, test: Heard, profile: Heard) -> str:
        """In what this comparison goes beyond the conditions that were calibrated, or an empty text."""
        conditions = self._calibration.conditions
        if conditions is None:
            return ""
        return conditions.beyond(test, "the test") or conditions.beyond(profile, "the profile")

    def _doubt(
        self,
        embedding: Embedding | ArrayLike,
        quality: SpeechQuality,
        times: Sequence[float] | None,
        cosine: float,
        voice: NDArray[np.float32] | None,
    ) -> Refusal | None:
        """Why the model's guards let nothing be decided; `voice` is the profile's that would be accepted, if any."""
        guards = self._encoder.guards
        if guards is None:
            return None
        vector = np.asarray(embedding)
        windows = embedding.windows if isinstance(embedding, Embedding) else None
        found = no_voice(guards, vector, quality) or second_voice(guards, windows, times)
        if found is not None or voice is None:
            return found
        if not guards.accepts(cosine, vector, quality):
            return HARDLY_VOICE
        return second_voice(guards, windows, times, voice)

    def scores_of(self, embedding: ArrayLike | None, quality: SpeechQuality | None) -> dict[str, float]:
        """The LLR of every profile, the best first; empty for what `decide` would not judge, or None."""
        if embedding is None or quality is None or unusable(quality) is not None:
            return {}
        try:
            bank, _ = self._permitted.now()
            llrs, _ = bank.score(self._calibration, np.asarray(embedding), quality)
        except (StoreError, ValueError):
            return {}
        if not np.isfinite(llrs).all():
            return {}
        return {bank.names[place]: float(llrs[place]) for place in np.argsort(-llrs, kind="stable")}

    def no_decision(
        self,
        refusal: Refusal,
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
            reason=refusal.message,
            threshold=self._threshold.llr,
            target_far=self._threshold.target_far,
            speaker=self._permitted.only,
            cosine=None,
            quality=quality,
            start=start,
            end=end,
            final=final,
            extrapolated=self._threshold.extrapolated,
            code=refusal.code,
        )
