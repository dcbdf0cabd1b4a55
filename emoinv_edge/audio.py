"""Audio in: read a file, check and convert a waveform, resample. The only place that resamples.

Everything after this module sees one kind of waveform: float32, one channel, in [-1, 1], at the
rate that it asked for. What cannot be used is refused with an `AudioError` that names the cure;
nothing is guessed.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AudioError

__all__ = ["MAX_SAMPLE_RATE", "MIN_SAMPLE_RATE", "ResampleStream", "level_dbfs", "mono_chunk", "read_audio", "to_mono"]

MIN_SAMPLE_RATE = 8000
MAX_SAMPLE_RATE = 192000
# More channels than samples, or than this, is a transposed array rather than a microphone array.
MAX_CHANNELS = 64
# Lossy decoders and float mixes overshoot full scale by a few dB; beyond twice full scale (6 dB)
# the samples are on another scale, most often int16 values cast to float.
MAX_PEAK = 2.0

_SCALES = {np.dtype(np.int16): 2.0**-15, np.dtype(np.int32): 2.0**-31}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _check_rate(sample_rate: int, name: str = "sample_rate") -> int:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise TypeError(f"expected {name} as an int in Hz, got {sample_rate!r}; pass e.g. 16000")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"expected {name} from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, got {sample_rate}; "
            "give the rate that the audio was recorded at, or record again at 16000 Hz"
        )
    return int(sample_rate)


def _check_samples(waveform: NDArray[Any]) -> None:
    """Refuse what no chunk and no waveform may be: a foreign type, dtype or shape."""
    if not isinstance(waveform, np.ndarray):
        raise TypeError(f"expected a NumPy array, got {type(waveform).__name__}; convert it with numpy.asarray")
    if waveform.dtype not in _SCALES and waveform.dtype not in _FLOATS:
        raise AudioError(
            f"expected int16, int32, float32 or float64 samples, got {waveform.dtype}; "
            "read the audio with emoinv_edge.audio.read_audio, or convert it with .astype, minding the scale"
        )
    if waveform.ndim not in (1, 2):
        raise AudioError(
            f"expected shape (samples,) or (samples, channels), got {waveform.shape}; pass one recording at a time"
        )
    if waveform.ndim == 2 and (waveform.shape[1] == 0 or waveform.shape[1] > MAX_CHANNELS):
        raise AudioError(
            f"expected shape (samples, channels) with 1 to {MAX_CHANNELS} channels, got {waveform.shape}; "
            "if the channels come first, pass waveform.T"
        )


def mono_chunk(chunk: NDArray[Any]) -> NDArray[np.float32]:
    """Convert one chunk of a stream to mono float32, at its own rate.

    Parameters
    ----------
    chunk : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
        Integers at full scale, floats in [-1, 1]. Any length, 0 included; silence is legal.

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]
        The mean of the channels. Overshoots of up to 6 dB are limited to full scale. May share
        memory with `chunk`.

    Raises
    ------
    TypeError
        If `chunk` is not an array.
    AudioError
        If its dtype or shape is foreign, or a sample is NaN, infinite or far beyond full scale.
    """
    _check_samples(chunk)
    if chunk.dtype in _SCALES:
        samples = chunk.astype(np.float32)
        samples *= np.float32(_SCALES[chunk.dtype])
    else:
        peak = float(np.abs(chunk).max()) if chunk.size else 0.0
        if not np.isfinite(peak):
            bad = int(np.count_nonzero(~np.isfinite(chunk)))
            raise AudioError(
                f"expected finite samples, got {bad} NaN or infinite of {chunk.size}; "
                "check the step that made them (a division by zero, an uninitialised buffer) or record again"
            )
        if peak > MAX_PEAK:
            raise AudioError(
                f"expected float samples in [-1, 1], got a peak of {peak:.6g}; "
                "divide by the full scale of their origin (32768 for int16) or pass the integers themselves"
            )
        samples = chunk.astype(np.float32, copy=False)
        if peak > 1.0:
            samples = np.clip(samples, np.float32(-1.0), np.float32(1.0))
    if samples.ndim == 1:
        return samples
    mono = samples[:, 0].copy()  # column by column: the same bits whatever the length and layout
    for channel in range(1, samples.shape[1]):
        mono += samples[:, channel]
    mono *= np.float32(1.0 / samples.shape[1])
    return mono


def to_mono(waveform: NDArray[Any], sample_rate: int, target_rate: int = 16000) -> NDArray[np.float32]:
    """Check a whole recording and convert it to mono float32 at `target_rate`.

    Parameters
    ----------
    waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
        Integers at full scale, floats in [-1, 1] (overshoots of up to 6 dB are limited to full
        scale). More than one channel is mixed down to their mean. Not changed.
    sample_rate : int
        Rate of `waveform`, 8000 to 192000 Hz.
    target_rate : int
        Rate of the result, in the same range.

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]
        A new array when anything had to be converted, else `waveform` itself.

    Raises
    ------
    TypeError
        If `waveform` is not an array or a rate is not an int.
    AudioError
        If the waveform is empty, all zero, of another shape or dtype, holds a NaN or infinite
        sample or one far beyond full scale, or a rate is out of range.
    """
    sample_rate = _check_rate(sample_rate)
    target_rate = _check_rate(target_rate, "target_rate")
    _check_samples(waveform)
    if waveform.shape[0] == 0:
        raise AudioError(
            f"expected some samples, got an empty waveform of shape {waveform.shape}; "
            "check the recording's length and that the microphone delivered audio"
        )
    if waveform.ndim == 2 and waveform.shape[1] > waveform.shape[0]:
        raise AudioError(
            f"expected shape (samples, channels), got {waveform.shape}, more channels than samples; "
            "if the channels come first, pass waveform.T"
        )
    mono = mono_chunk(waveform)
    if not mono.any():
        if waveform.ndim == 2 and waveform.shape[1] > 1 and waveform.any():
            raise AudioError(
                f"the {waveform.shape[1]} channels cancel each other to silence when mixed down; "
                "pass one of them, e.g. waveform[:, 0]"
            )
        raise AudioError(
            f"expected sound, got {waveform.shape[0]} samples that are all zero; "
            "check that the microphone is not muted and that the right device or channel was recorded"
        )
    return _resample(mono, sample_rate, target_rate)


def level_dbfs(waveform: NDArray[np.float32]) -> float:
    """The level of a mono waveform: its mean power in dB below full scale; -120 for silence or no samples."""
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return 10.0 * math.log10(max(power, 1e-12))


def _resample(mono: NDArray[np.float32], in_rate: int, out_rate: int) -> NDArray[np.float32]:
    if in_rate == out_rate:
        return mono
    import soxr  # here, not above: it is needed only where rates differ

    resampled: NDArray[np.float32] = soxr.resample(np.ascontiguousarray(mono), in_rate, out_rate)
    return np.clip(resampled, np.float32(-1.0), np.float32(1.0), out=resampled)


class ResampleStream:
    """The resampling of `to_mono` for a waveform that arrives in chunks, equal to it bit for bit.

    The resampler holds back a few milliseconds until `flush`. Not safe to share between threads
    or streams.

    Parameters
    ----------
    in_rate, out_rate : int
        Rates of what comes and of what is wanted, 8000 to 192000 Hz.

    Raises
    ------
    TypeError, AudioError
        If a rate is not an int, or out of range.
    """

    def __init__(self, in_rate: int, out_rate: int) -> None:
        self._in_rate = _check_rate(in_rate, "in_rate")
        self._out_rate = _check_rate(out_rate, "out_rate")
        self._resampler: Any = None
        if self._in_rate != self._out_rate:
            import soxr

            self._resampler = soxr.ResampleStream(self._in_rate, self._out_rate, 1, dtype="float32")

    @property
    def in_rate(self) -> int:
        """Rate of the chunks that `process` takes, in Hz."""
        return self._in_rate

    @property
    def out_rate(self) -> int:
        """Rate of what `process` and `flush` return, in Hz."""
        return self._out_rate

    def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take `chunk` (mono float32 in [-1, 1], any length, 0 included) and return what became ready.

        Raises
        ------
        TypeError, AudioError
            If the chunk is not float32 of shape (samples,) or holds a NaN, infinite or gross
            sample. The stream is then as it was before the call.
        """
        if not isinstance(chunk, np.ndarray) or chunk.dtype != np.float32 or chunk.ndim != 1:
            got = f"{chunk.dtype} of shape {chunk.shape}" if isinstance(chunk, np.ndarray) else type(chunk).__name__
            raise TypeError(f"expected a float32 array of shape (samples,), got {got}; convert it with mono_chunk")
        return self._run(mono_chunk(chunk), last=False)

    def flush(self) -> NDArray[np.float32]:
        """End the stream: return the samples that were held back; the stream starts anew."""
        rest = self._run(np.empty(0, np.float32), last=True)
        if self._resampler is not None:
            self._resampler.clear()
        return rest

    def _run(self, chunk: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return chunk.copy()  # the caller may reuse its buffer
        resampled: NDArray[np.float32] = self._resampler.resample_chunk(np.ascontiguousarray(chunk), last=last)
        return np.clip(resampled, np.float32(-1.0), np.float32(1.0), out=resampled)


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:  # not to be opened at all, which the caller's own error says
        return False
    if b"\0" in head:
        return False
    text = head.decode("utf-8", errors="replace")
    return sum(character.isprintable() or character.isspace() for character in text) > 0.95 * len(text)


def read_audio(path: str | os.PathLike[str], target_rate: int = 16000) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Read an audio file as mono float32 at `target_rate`.

    Parameters
    ----------
    path : str or path-like
        Any format that libsndfile reads: WAV, FLAC, OGG, MP3, AIFF and others.
    target_rate : int
        Rate of the result, 8000 to 192000 Hz.

    Returns
    -------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
    notes : tuple of str
        What was done to the audio on the way, for the user to read: a mix-down, a resampling,
        limited overshoots. Empty if nothing was.

    Raises
    ------
    AudioError
        If the file is missing, is no audio, or holds audio that `to_mono` refuses. The message
        begins with the path.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise AudioError(f"{path}: expected an audio file, got a folder or device; name one file")
    import soundfile  # here, not above: the library also works on arrays alone

    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes); record or copy it again")
        with soundfile.SoundFile(path) as file:
            sample_rate = int(file.samplerate)
            samples = file.read(dtype="float32", always_2d=True)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error}); check its permissions") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        what = "the file holds text" if _looks_like_text(path) else str(error)
        raise AudioError(
            f"{path}: expected an audio file that libsndfile reads (WAV, FLAC, OGG, MP3), but {what}; "
            "convert it, e.g. `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`"
        ) from error
    try:
        waveform = to_mono(samples, sample_rate, target_rate)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error
    notes = []
    if samples.shape[1] > 1:
        notes.append(f"mixed {samples.shape[1]} channels down to their mean")
    if np.abs(samples).max() > 1.0:
        notes.append("limited samples beyond full scale")
    if sample_rate != target_rate:
        notes.append(f"resampled from {sample_rate} to {target_rate} Hz")
    return waveform, tuple(notes)
