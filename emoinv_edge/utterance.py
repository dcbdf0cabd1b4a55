"""One recording on its way to a score: its speech, the quality of it, and an embedding or the reason why not.

All speech comes through `hear`: verification, enrolment, calibration and evaluation hear the same. A stream, which
cuts its speech out as it comes, brings it in a `Piece` at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .audio import gather, to_mono
from .encoder import LONGEST_S, WINDOW_S, Embedding, combine
from .errors import ChannelError, EmoinvError, OutOfMemoryError
from .features import log_mel
from .quality import BackgroundMeter, SpeechQuality, measure_quality, merge_qualities
from .spec import EncoderSpec
from .vad import SpeechSegmenter, speech_segments

if TYPE_CHECKING:
    from .guards import Guards

__all__ = [
    "HARDLY_VOICE",
    "MAX_CLIPPED_FRACTION",
    "MIN_SPEECH_S",
    "Embedder",
    "Piece",
    "Refusal",
    "Utterance",
    "hear",
    "hear_blocks",
    "no_voice",
    "unusable",
]

MIN_SPEECH_S = 0.8
MAX_CLIPPED_FRACTION = 0.02
MIN_LEVEL_DBFS = -75.0  # about 6 steps of 16 bits: below, the quantiser speaks
MIN_SNR_DB = 0.0
HELD_S = 60.0  # a longer recording is heard block by block
LONG_BLOCK = 1 << 17


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
        ``empty``, ``not_finite``, ``silent``, ``channels``, ``too_quiet``, ``too_short``, ``clipped``, ``too_noisy``,
        ``no_embedding``, ``no_voice`` or ``second_voice``.
    message : str
        The same in a sentence, with the cure.
    """

    code: str
    message: str


SILENT = Refusal("silent", "silent: every sample is zero; is the microphone muted?")
TOO_LITTLE = Refusal("too_short", "too little speech that can be used; speak a little longer")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A piece of an utterance, already cut out and measured.

    Parameters
    ----------
    speech : ndarray, shape (samples,) or (frames, num_mel_bins), float32
        Mono at the encoder's rate, or its log-mels where the encoder takes features. Empty, it is judged by its
        quality alone, and is too short where that is good.
    quality : SpeechQuality
    """

    speech: NDArray[np.float32]
    quality: SpeechQuality


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """What was heard in one recording.

    Parameters
    ----------
    speech : ndarray, shape (samples,), float32 in [-1, 1]
        Pauses cut out, one channel, at the encoder's rate; empty where nothing was measured, or it was not kept.
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
        """Where in the recording a sample of its speech lies, in samples at the encoder's rate."""
        before = 0
        for start, end in self.segments:
            if sample < before + end - start:
                return start + sample - before
            before += end - start
        return self.num_samples


def hear(
    encoder: Embedder,
    waveform: NDArray[Any] | Piece,
    sample_rate: int,
    *,
    min_speech_s: float = MIN_SPEECH_S,
    min_snr_db: float = MIN_SNR_DB,
    keep_speech: bool = True,
) -> Utterance:
    """Take one recording of one person, or a piece of one that is already cut.

    Parameters
    ----------
    encoder : Encoder
        Or another `Embedder`.
    waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64; or Piece
        As `emoinv_edge.audio.to_mono` takes it. Of a `Piece` it is not asked whether it is a voice, which only a
        whole utterance shows, and its speech is not given back.
    sample_rate : int
        8000 to 192000 Hz; of a `Piece` the encoder's.
    min_speech_s, min_snr_db : float
        Less speech, or more noise, is refused.
    keep_speech : bool
        Without it the answer for a recording of more than a minute comes without its speech, and in little memory.

    Raises
    ------
    TypeError, AudioError
        If the array's type, dtype, shape or rate is wrong: a fault of the program, not of the speech.
    """
    if isinstance(waveform, Piece):
        refusal = unusable(waveform.quality, min_speech_s, min_snr_db)
        found = refusal or (_embed(encoder, waveform.speech) if len(waveform.speech) else TOO_LITTLE)
        return _utterance(Utterance(np.empty(0, np.float32), waveform.quality, None, None), found)
    if isinstance(waveform, np.ndarray) and waveform.ndim in (1, 2):
        refusal = _broken(waveform)
        if refusal is not None:
            return Utterance(np.empty(0, np.float32), None, None, refusal)
    rate = encoder.spec.sample_rate
    try:
        mono = to_mono(waveform, sample_rate, rate)
    except ChannelError as error:
        return _cancelled(error)
    if len(mono) > HELD_S * rate:
        steps = range(0, len(mono), LONG_BLOCK)
        blocks = (mono[first : first + LONG_BLOCK] for first in steps)
        return _hear_long(encoder, blocks, min_speech_s, min_snr_db, keep_speech)
    segments = speech_segments(mono, rate)
    speech = gather([segment.waveform for segment in segments])
    quality = measure_quality(mono, rate, speech)
    found = unusable(quality, min_speech_s, min_snr_db) or _embed(encoder, speech)
    heard = Utterance(speech, quality, None, None, len(mono), tuple((each.start, each.end) for each in segments))
    return _utterance(heard, found, getattr(encoder, "guards", None))


def hear_blocks(encoder: Embedder, blocks: Iterable[NDArray[np.float32]]) -> Utterance:
    """Take one recording that comes in blocks, and hold no more than a minute of it; otherwise as `hear`.

    Parameters
    ----------
    encoder : Encoder
    blocks : iterable of ndarray, shape (samples,), float32 in [-1, 1]
        Mono, finite, at the encoder's rate. Any error that they raise is passed on.

    Returns
    -------
    Utterance
        Of a recording of more than a minute without its speech.
    """
    rate = encoder.spec.sample_rate
    held: list[NDArray[np.float32]] = []
    coming = iter(blocks)
    try:
        for block in coming:
            held.append(block)
            if sum(map(len, held)) > HELD_S * rate:
                whole = itertools.chain(held, coming)
                return _hear_long(encoder, whole, MIN_SPEECH_S, MIN_SNR_DB, keep_speech=False)
    except ChannelError as error:
        return _cancelled(error)
    return hear(encoder, np.concatenate([np.empty(0, np.float32), *held]), rate)


def _cancelled(error: ChannelError) -> Utterance:
    without_file = error.__cause__ or error
    return Utterance(np.empty(0, np.float32), None, None, Refusal("channels", str(without_file)))


def _utterance(heard: Utterance, found: Embedding | Refusal, guards: Guards | None = None) -> Utterance:
    """What was heard, with its embedding or why there is none."""
    if isinstance(found, Refusal):
        return dataclasses.replace(heard, refusal=found)
    assert heard.quality is not None  # it was measured
    quality = heard.quality.with_embedding_norm(found.norm)
    refusal = no_voice(guards, found.vector, quality)
    if refusal is not None:
        return dataclasses.replace(heard, quality=quality, refusal=refusal)
    return dataclasses.replace(heard, quality=quality, embedding=found)


def _hear_long(
    encoder: Embedder,
    blocks: Iterable[NDArray[np.float32]],
    min_speech_s: float,
    min_snr_db: float,
    keep_speech: bool,
) -> Utterance:
    """As `hear`, for a long recording in blocks: beside the blocks it takes the memory of the longest embedding."""
    rate = encoder.spec.sample_rate
    segmenter, meter, windows = SpeechSegmenter(rate), BackgroundMeter(rate), _SpeechWindows(encoder)
    kept: list[NDArray[np.float32]] = []
    spans: list[tuple[int, int]] = []
    sounded = False
    for block in blocks:
        sounded |= bool(block.any())
        meter.add(block)
        for segment in segmenter.process(block):
            spans.append((segment.start, segment.end))
            windows.add(segment.waveform)
            kept += [segment.waveform] if keep_speech else []
    for segment in segmenter.flush():
        spans.append((segment.start, segment.end))
        windows.add(segment.waveform)
        kept += [segment.waveform] if keep_speech else []
    if not sounded:
        return Utterance(np.empty(0, np.float32), None, None, SILENT)
    quality = windows.quality()
    level = quality.level_dbfs if quality.net_speech_s else meter.level_dbfs
    quality = dataclasses.replace(
        quality,
        snr_db=meter.snr_db,
        clipped_fraction=meter.clipped_fraction,
        level_dbfs=level,
        decay_s=meter.decay_s,
    )
    found = unusable(quality, min_speech_s, min_snr_db) or windows.embedding()
    heard = Utterance(gather(kept), quality, None, None, meter.num_samples, tuple(spans))
    return _utterance(heard, found, getattr(encoder, "guards", None))


class _SpeechWindows:
    """The speech of a long recording as it comes: held whole up to `LONGEST_S`, embedded in windows beyond."""

    def __init__(self, encoder: Embedder) -> None:
        self._encoder = encoder
        self._rate = encoder.spec.sample_rate
        self._held: list[NDArray[np.float32]] = []
        self._length = 0
        self._long = False
        self._qualities: list[SpeechQuality] = []
        self._found: list[Embedding | Refusal] = []

    def add(self, speech: NDArray[np.float32]) -> None:
        self._held.append(speech)
        self._length += len(speech)
        self._long |= self._length > LONGEST_S * self._rate
        window = round(WINDOW_S * self._rate)
        if not self._long or self._length < 2 * window:  # what is left at the end can be halved
            return
        held = np.concatenate(self._held)
        while len(held) >= 2 * window:
            self._embed(held[:window])
            held = held[window:]
        self._held, self._length = [held.copy()], len(held)

    def _embed(self, speech: NDArray[np.float32]) -> None:
        self._qualities.append(measure_quality(speech, self._rate))
        self._found.append(_embed(self._encoder, speech))

    def quality(self) -> SpeechQuality:
        """Of the speech alone, once all of it has come."""
        if not self._long:
            self._held = [gather(self._held)]
            return measure_quality(self._held[0], self._rate)
        held, self._held = np.concatenate(self._held), []
        fits = len(held) <= round(WINDOW_S * self._rate)
        for part in [held] if fits else np.array_split(held, 2):
            self._embed(part)
        return merge_qualities(self._qualities)

    def embedding(self) -> Embedding | Refusal:
        """Of all the speech, after `quality`, or why there is none."""
        if not self._long:
            return _embed(self._encoder, self._held[0])
        embeddings = []
        for found in self._found:
            if isinstance(found, Refusal):
                return found
            embeddings.append(found)
        try:
            return combine(embeddings, [quality.net_speech_s for quality in self._qualities])
        except EmoinvError as error:
            return _no_embedding(error)


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


def _embed(encoder: Embedder, speech: NDArray[np.float32]) -> Embedding | Refusal:
    """The embedding of speech, or of its log-mels; a refusal where the model fails on it: no score, no accept."""
    try:
        if encoder.input == "waveform":
            return encoder.embed(speech, encoder.spec.sample_rate)
        return encoder.embed_features(log_mel(speech, encoder.spec) if speech.ndim == 1 else speech)
    except OutOfMemoryError:  # no fault of the speech
        raise
    except EmoinvError as error:
        return _no_embedding(error)


def _no_embedding(error: EmoinvError) -> Refusal:
    return Refusal("no_embedding", f"the model gave no usable embedding ({error})")


HARDLY_VOICE = Refusal(
    "no_voice",
    "hardly a voice: for speech so unlike a person's it is too far from the profile; say it once more, clearly",
)


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


def _broken(waveform: NDArray[Any]) -> Refusal | None:
    """Why the values, not the form, of this waveform cannot be judged."""
    if waveform.size == 0:
        return Refusal("empty", "no audio: the recording is empty; record again")
    if waveform.dtype.kind == "f" and not (math.isfinite(waveform.max()) and math.isfinite(waveform.min())):
        return Refusal(
            "not_finite", "not finite: the recording holds a NaN or an infinity; find the fault in the recording chain"
        )
    return None if waveform.any() else SILENT
