"""Verifier: is this the enrolled speaker? Accept, reject, or an honest "no decision"."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono
from .errors import AudioError, CalibrationError, EmoinvError, ModelMismatchError
from .quality import SpeechQuality, measure_quality
from .scoring import Calibration, ProfileBank, Threshold, bayes_threshold
from .vad import speech_only

if TYPE_CHECKING:
    from .encoder import Encoder
    from .profiles import Profile
    from .stream import VerificationStream

__all__ = ["Decision", "Verdict", "Verifier", "require_calibration", "require_model", "unusable"]

MIN_SPEECH_S = 0.8
MAX_CLIPPED_FRACTION = 0.02
MIN_LEVEL_DBFS = -75.0  # about 6 steps of 16 bits: below, the quantiser speaks
MIN_SNR_DB = 0.0


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
        The pooled cosine behind the score, without what moods share where the calibration knows moods.
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


def unusable(quality: SpeechQuality, min_speech_s: float = MIN_SPEECH_S) -> tuple[str, str] | None:
    """Why speech of this quality cannot be judged, as a code and a sentence; None if it can."""
    if quality.level_dbfs < MIN_LEVEL_DBFS:
        return (
            "too_quiet",
            f"too quiet: {quality.level_dbfs:.0f} dBFS, {MIN_LEVEL_DBFS:.0f} are needed; "
            "raise the microphone's gain or come closer",
        )
    if quality.net_speech_s < min_speech_s:
        return (
            "too_short",
            f"too little speech: {quality.net_speech_s:.2f} s, {min_speech_s:g} s are needed; speak a little longer",
        )
    if quality.clipped_fraction > MAX_CLIPPED_FRACTION:
        return (
            "clipped",
            f"clipped: {quality.clipped_fraction:.1%} of the samples are at full scale; "
            "lower the microphone's gain or step back",
        )
    if quality.snr_db < MIN_SNR_DB:
        return (
            "too_noisy",
            f"too noisy: {quality.snr_db:.0f} dB of speech over noise, {MIN_SNR_DB:.0f} are needed; "
            "come closer or go where it is quieter",
        )
    return None


class Verifier:
    """Decides whether speech is an enrolled speaker's, at a false-accept rate asked for.

    Immutable once built and safe to share between threads.

    Parameters
    ----------
    encoder : Encoder
    profile : Profile or sequence of Profile
        With several, an impostor accepted as any of them counts once against `target_far`.
    target_far : float
        Impostor attempts accepted, e.g. 0.01 for one in 100.
    prior : float, optional
        Probability that an attempt is the owner's. With it, the threshold minimises the expected
        cost and `target_far` is not used.
    cost_miss, cost_false_accept : float
        Used with `prior` only.
    extrapolate : bool
        Allow a rate that the calibration data do not support; decisions are then marked.
    calibration : Calibration, optional
        Instead of the model's own, e.g. one refined for this device (``emoinv calibrate``).

    Raises
    ------
    CalibrationError
        If there is no calibration, or it cannot support the rate.
    ModelMismatchError
        If a profile was made by another model.
    EnrolmentError
        If there is no profile.
    """

    def __init__(
        self,
        encoder: Encoder,
        profile: Profile | Sequence[Profile],
        target_far: float = 0.01,
        *,
        prior: float | None = None,
        cost_miss: float = 1.0,
        cost_false_accept: float = 1.0,
        extrapolate: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        profiles = tuple(profile) if isinstance(profile, Sequence) else (profile,)
        self._encoder = encoder
        self._calibration = require_calibration(encoder, calibration)
        for each in profiles:
            require_model(encoder, each)
        self._bank = ProfileBank(profiles, self._calibration.moods)
        if prior is None:
            self._threshold = self._calibration.threshold(target_far, len(profiles), extrapolate)
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

    def verify(self, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """Decide on one recording.

        Parameters
        ----------
        waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            As `emoinv_edge.audio.to_mono` takes it.
        sample_rate : int
            8000 to 192000 Hz.

        Returns
        -------
        Decision
            NO_DECISION for audio that cannot be judged: empty, silent, not finite, clipped, too
            quiet, too noisy, or with less than 0.8 s of speech.

        Raises
        ------
        TypeError, AudioError
            If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
        """
        return self.examine(waveform, sample_rate)[0]

    def examine(self, waveform: NDArray[Any], sample_rate: int) -> tuple[Decision, NDArray[np.float32] | None]:
        """`verify`, and the embedding behind the decision; None where there is none."""
        if isinstance(waveform, np.ndarray) and waveform.ndim in (1, 2):
            fault = _broken(waveform)
            if fault is not None:
                return self.no_decision(fault), None
        rate = self._encoder.spec.sample_rate
        mono = to_mono(waveform, sample_rate, rate)
        speech = speech_only(mono, rate)
        quality = measure_quality(mono, rate, speech)
        refusal = unusable(quality)
        if refusal is not None:
            return self.no_decision(refusal[1], quality, end=len(mono)), None
        try:
            embedding, norm = self._encoder.embed_with_norm(speech, rate)
        except AudioError:
            raise
        except EmoinvError as error:  # the model failed on this input: no score, no accept
            return self.no_decision(f"the model gave no usable embedding ({error})", quality, end=len(mono)), None
        quality = quality.with_embedding_norm(norm)
        return self.decide(embedding, quality, end=len(mono)), embedding

    def decide(
        self,
        embedding: NDArray[np.float32],
        quality: SpeechQuality,
        *,
        start: int = 0,
        end: int = 0,
        final: bool = True,
    ) -> Decision:
        """Decide on an embedding and the quality of the speech behind it; what `verify` and streams share.

        Anything that cannot be scored (a NaN, a zero or foreign embedding, too little speech) is
        NO_DECISION.
        """
        refusal = unusable(quality)
        if refusal is not None:
            return self.no_decision(refusal[1], quality, start=start, end=end, final=final)
        try:
            llrs, cosines = self._calibration.score(self._bank, embedding, quality)
        except ValueError as error:
            return self.no_decision(f"no score: {error}", quality, start=start, end=end, final=final)
        best = int(np.argmax(llrs))
        score, threshold = float(llrs[best]), self._threshold.llr
        if not math.isfinite(score):
            return self.no_decision("no score: it is not finite", quality, start=start, end=end, final=final)
        accepted = score >= threshold
        return Decision(
            verdict=Verdict.ACCEPT if accepted else Verdict.REJECT,
            score=score,
            reason=f"LLR {score:.2f} is {'at least' if accepted else 'below'} the threshold {threshold:.2f}",
            threshold=threshold,
            target_far=self._threshold.target_far,
            speaker=self._bank.names[best],
            cosine=float(cosines[best]),
            quality=quality,
            start=start,
            end=end,
            final=final,
            extrapolated=self._threshold.extrapolated,
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
        """A NO_DECISION with this verifier's threshold and the reason."""
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

    def stream(self, sample_rate: int = 16000) -> VerificationStream:
        """A stream of decisions on audio that arrives in chunks; each stream has its own state."""
        from .stream import VerificationStream

        return VerificationStream(self, sample_rate)


def _broken(waveform: NDArray[Any]) -> str | None:
    """Why the values, not the form, of this waveform cannot be judged."""
    if waveform.size == 0:
        return "no audio: the recording is empty; record again"
    if waveform.dtype.kind == "f" and not np.isfinite(waveform).all():
        return "not finite: the recording holds a NaN or an infinity; find the fault in the recording chain"
    if not waveform.any():
        return "silent: every sample is zero; is the microphone muted?"
    return None
