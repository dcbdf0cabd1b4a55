"""One recording on its way to a score: its speech, the quality of it, and an embedding or the reason why not.

Every recording comes through `hear`: verification, enrolment, calibration and evaluation hear the same. A
stream cuts its speech out as it comes; the rules and the embedding are these all the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono
from .encoder import Embedding
from .errors import EmoinvError
from .features import log_mel
from .quality import SpeechQuality, measure_quality
from .spec import EncoderSpec
from .vad import speech_only

__all__ = [
    "MAX_CLIPPED_FRACTION",
    "MIN_SPEECH_S",
    "Embedder",
    "Refusal",
    "Utterance",
    "embed_speech",
    "hear",
    "unusable",
]

MIN_SPEECH_S = 0.8
MAX_CLIPPED_FRACTION = 0.02
MIN_LEVEL_DBFS = -75.0  # about 6 steps of 16 bits: below, the quantiser speaks
MIN_SNR_DB = 0.0


class Embedder(Protocol):
    """What makes embeddings: an `Encoder`, or what stands in for one."""

    @property
    def spec(self) -> EncoderSpec:
        """Front end and embedding size."""

    @property
    def input(self) -> str:
        """``"features"`` where `embed_features` is to be used, else ``"waveform"``."""

    def embed(self, waveform: NDArray[Any], sample_rate: int) -> Embedding:
        """As `Encoder.embed`."""

    def embed_features(self, features: NDArray[np.float32]) -> Embedding:
        """As `Encoder.embed_features`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why speech cannot be judged.

    Parameters
    ----------
    code : str
        ``empty``, ``not_finite``, ``silent``, ``too_quiet``, ``too_short``, ``clipped``, ``too_noisy`` or
        ``no_embedding``.
    message : str
        The same in a sentence, with the cure.
    """

    code: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """What was heard in one recording.

    Parameters
    ----------
    speech : ndarray, shape (samples,), float32 in [-1, 1]
        Pauses cut out, one channel, at the encoder's rate; empty where nothing was measured.
    quality : SpeechQuality or None
        As far as it could be measured.
    embedding : Embedding or None
        Either this or `refusal` is there.
    refusal : Refusal or None
    num_samples : int
        Length of the whole recording at the encoder's rate; 0 where nothing was measured.
    """

    speech: NDArray[np.float32]
    quality: SpeechQuality | None
    embedding: Embedding | None
    refusal: Refusal | None
    num_samples: int = 0


def hear(
    encoder: Embedder,
    waveform: NDArray[Any],
    sample_rate: int,
    *,
    min_speech_s: float = MIN_SPEECH_S,
    min_snr_db: float = MIN_SNR_DB,
) -> Utterance:
    """Take one recording of one person.

    Parameters
    ----------
    encoder : Encoder
        Or another `Embedder`.
    waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
        As `emoinv_edge.audio.to_mono` takes it.
    sample_rate : int
        8000 to 192000 Hz.
    min_speech_s, min_snr_db : float
        Less speech, or more noise, is refused.

    Raises
    ------
    TypeError, AudioError
        If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
    """
    if isinstance(waveform, np.ndarray) and waveform.ndim in (1, 2):
        refusal = _broken(waveform)
        if refusal is not None:
            return Utterance(np.empty(0, np.float32), None, None, refusal)
    rate = encoder.spec.sample_rate
    mono = to_mono(waveform, sample_rate, rate)
    speech = speech_only(mono, rate)
    quality = measure_quality(mono, rate, speech)
    found = unusable(quality, min_speech_s, min_snr_db) or embed_speech(encoder, speech)
    if isinstance(found, Refusal):
        return Utterance(speech, quality, None, found, len(mono))
    return Utterance(speech, quality.with_embedding_norm(found.norm), found, None, len(mono))


def unusable(
    quality: SpeechQuality, min_speech_s: float = MIN_SPEECH_S, min_snr_db: float = MIN_SNR_DB
) -> Refusal | None:
    """Why speech of this quality cannot be judged; None if it can."""
    if quality.level_dbfs < MIN_LEVEL_DBFS:
        return Refusal(
            "too_quiet",
            f"too quiet: {quality.level_dbfs:.0f} dBFS, {MIN_LEVEL_DBFS:.0f} are needed; "
            "raise the microphone's gain or come closer",
        )
    if quality.net_speech_s < min_speech_s:
        return Refusal(
            "too_short",
            f"too little speech: {quality.net_speech_s:.2f} s, {min_speech_s:g} s are needed; speak a little longer",
        )
    if quality.clipped_fraction > MAX_CLIPPED_FRACTION:
        return Refusal(
            "clipped",
            f"clipped: {quality.clipped_fraction:.1%} of the samples are at full scale; "
            "lower the microphone's gain or step back",
        )
    if quality.snr_db < min_snr_db:
        return Refusal(
            "too_noisy",
            f"too noisy: {quality.snr_db:.0f} dB of speech over noise, {min_snr_db:.0f} are needed; "
            "come closer or go where it is quieter",
        )
    return None


def embed_speech(encoder: Embedder, speech: NDArray[np.float32]) -> Embedding | Refusal:
    """The embedding of speech that can be judged; a refusal where the model fails on it: no score, no accept.

    Parameters
    ----------
    encoder : Encoder
    speech : ndarray, shape (samples,) or (frames, num_mel_bins), float32
        Mono at the encoder's rate, or its log-mels where the encoder takes features.
    """
    try:
        if encoder.input == "waveform":
            return encoder.embed(speech, encoder.spec.sample_rate)
        return encoder.embed_features(log_mel(speech, encoder.spec) if speech.ndim == 1 else speech)
    except EmoinvError as error:
        return Refusal("no_embedding", f"the model gave no usable embedding ({error})")


def _broken(waveform: NDArray[Any]) -> Refusal | None:
    """Why the values, not the form, of this waveform cannot be judged."""
    if waveform.size == 0:
        return Refusal("empty", "no audio: the recording is empty; record again")
    if waveform.dtype.kind == "f" and not np.isfinite(waveform).all():
        return Refusal(
            "not_finite", "not finite: the recording holds a NaN or an infinity; find the fault in the recording chain"
        )
    if not waveform.any():
        return Refusal("silent", "silent: every sample is zero; is the microphone muted?")
    return None
