"""One recording on its way to a score: its speech, the quality of it, and an embedding or the reason why not.

Every recording comes through `hear`: verification, enrolment, calibration and evaluation hear the same. A
stream cuts its speech out as it comes; the rules and the embedding are these all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono
from .encoder import Embedding
from .errors import EmoinvError
from .features import log_mel
from .quality import SpeechQuality, measure_quality
from .spec import EncoderSpec
from .vad import speech_segments

if TYPE_CHECKING:
    from .guards import Guards

__all__ = [
    "MAX_CLIPPED_FRACTION",
    "MIN_SPEECH_S",
    "Embedder",
    "Refusal",
    "Utterance",
    "embed_speech",
    "hear",
    "no_voice",
    "second_voice",
    "unusable",
    "window_times",
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
        ``empty``, ``not_finite``, ``silent``, ``too_quiet``, ``too_short``, ``clipped``, ``too_noisy``,
        ``no_embedding``, ``no_voice`` or ``second_voice``.
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
    segments : tuple of (int, int)
        First sample and the one after the last of each stretch of speech in the recording, at the encoder's rate.
    """

    speech: NDArray[np.float32]
    quality: SpeechQuality | None
    embedding: Embedding | None
    refusal: Refusal | None
    num_samples: int = 0
    segments: tuple[tuple[int, int], ...] = ()

    def position(self, sample: int) -> int:
        """Where in the recording a sample of `speech` lies, in samples at the encoder's rate."""
        before = 0
        for start, end in self.segments:
            if sample < before + end - start:
                return start + sample - before
            before += end - start
        return self.num_samples


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
    found_speech = speech_segments(mono, rate)
    spans = tuple((segment.start, segment.end) for segment in found_speech)
    speech = np.concatenate([segment.waveform for segment in found_speech]) if spans else np.empty(0, np.float32)
    quality = measure_quality(mono, rate, speech)
    found = unusable(quality, min_speech_s, min_snr_db) or embed_speech(encoder, speech)
    if isinstance(found, Refusal):
        return Utterance(speech, quality, None, found, len(mono), spans)
    quality = quality.with_embedding_norm(found.norm)
    refusal = no_voice(getattr(encoder, "guards", None), found.vector, quality)
    if refusal is not None:
        return Utterance(speech, quality, None, refusal, len(mono), spans)
    return Utterance(speech, quality, found, None, len(mono), spans)


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


def no_voice(guards: Guards | None, embedding: NDArray[np.float32], quality: SpeechQuality) -> Refusal | None:
    """Why this is nobody's voice; None if it may be somebody's, or the model file knows nothing of it.

    Parameters
    ----------
    guards : Guards or None
        Of the model.
    embedding : ndarray, shape (embedding_dim,), float32 of unit norm
    quality : SpeechQuality
        Of the same speech, with the norm of its embedding.
    """
    if guards is None or guards.voice.passes(embedding, quality):
        return None
    return Refusal(
        "no_voice",
        "no voice: this sounds like no person's speech; speak, and keep music, bells and machines away from the "
        "microphone",
    )


def window_times(guards: Guards | None, heard: Utterance, sample_rate: int) -> list[float] | None:
    """Where each window of an utterance's embedding begins in the recording, in seconds; None without windows."""
    if guards is None or guards.windows is None or heard.embedding is None or heard.embedding.windows is None:
        return None
    hop = guards.windows.hop_s * sample_rate
    return [heard.position(round(index * hop)) / sample_rate for index in range(len(heard.embedding.windows))]


def second_voice(
    guards: Guards | None,
    windows: NDArray[np.float32] | None,
    times: Sequence[float] | None = None,
    voice: NDArray[np.float32] | None = None,
) -> Refusal | None:
    """Why speech is not one person's; None if it may be, or is too short to tell, or the model gives no windows.

    Parameters
    ----------
    guards : Guards or None
        Of the model.
    windows : ndarray, shape (windows, embedding_dim), float32 of unit norm, or None
        `Embedding.windows`.
    times : sequence of float, optional
        Where each window begins in the audio, in seconds; without them, in the speech alone.
    voice : ndarray, shape (embedding_dim,), float32 of unit norm, optional
        The mean embedding of the profile that the speech would be accepted as: both parts must fit it.
    """
    if guards is None or windows is None:
        return None
    test = guards.windows if voice is None else guards.door
    if test is None:
        return None
    change = test.find(windows, voice)
    if change is None or change.score < 0.0:
        return None
    starts = [index * test.hop_s for index in range(len(windows))] if times is None else times
    ends = starts[change.last] + test.window_s
    opens, closes = change.first < test.gap, change.last + test.gap >= len(windows)  # no rest before, or after
    if opens:  # either may be the second: what is known is where the voice changes
        where = f"from about {ends:.1f} s on"
    else:
        where = f"from about {starts[change.first]:.1f} {'s on' if closes else f'to {ends:.1f} s'}"
    return Refusal("second_voice", f"a second voice: somebody else seems to speak {where}; let one person speak alone")


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
