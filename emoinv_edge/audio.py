"""Audio in: read a recording, check and convert a waveform, resample. The only place that resamples.

Everything after this module sees one kind of waveform: float32, one channel, in [-1, 1], at the
rate that it asked for. What cannot be used is refused with an `AudioError` that names the cure;
nothing is guessed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .channels import ChannelComparison
from .decoding import Source, decode, shown
from .errors import AudioError, ChannelError

__all__ = [
    "MAX_DURATION_S",
    "MAX_SAMPLE_RATE",
    "MIN_SAMPLE_RATE",
    "ResampleStream",
    "gather",
    "level_dbfs",
    "mono_chunk",
    "read_audio",
    "read_blocks",
    "read_channels",
    "to_mono",
]

MIN_SAMPLE_RATE = 8000
MAX_SAMPLE_RATE = 192000
# More channels than samples, or than this, is a transposed array rather than a microphone array.
MAX_CHANNELS = 64
# Lossy decoders and float mixes overshoot full scale by a few dB; beyond twice full scale (6 dB)
# the samples are on another scale, most often int16 values cast to float.
MAX_PEAK = 2.0
MAX_DURATION_S = 7200.0
BLOCK_SAMPLES = 1 << 16

_SCALES = {np.dtype(np.int16): 2.0**-15, np.dtype(np.int32): 2.0**-31}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _check_rate(sample_rate: float, name: str = "sample_rate") -> int:
    if isinstance(sample_rate, (float, np.floating)) and float(sample_rate).is_integer():
        sample_rate = int(sample_rate)  # as json, ffprobe and PortAudio give rates
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise TypeError(f"expected {name} as an int in Hz, got {sample_rate!r}; pass e.g. 16000")
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"expected {name} from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, got {sample_rate}; "
            "give the rate that the audio was recorded at, or record again at 16000 Hz"
        )
    return int(sample_rate)


def _check_samples(waveform: object) -> None:
    """Refuse what no chunk and no waveform may be: a foreign type, dtype or shape."""
    if not isinstance(waveform, np.ndarray):
        cure = "convert it with numpy.asarray(waveform, numpy.float32), floats in [-1, 1]"
        if isinstance(waveform, (bytes, bytearray, memoryview)):
            cure = "use numpy.frombuffer(data, numpy.int16) for raw samples, read_audio(io.BytesIO(data)) for a file"
        elif isinstance(waveform, (str, os.PathLike)):
            cure = "read the file with emoinv_edge.read_audio"
        raise TypeError(f"expected a NumPy array, got {type(waveform).__name__}; {cure}")
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


def _peak(samples: NDArray[Any]) -> float:
    """The largest magnitude among floats, without a copy of them; NaN if one of them is."""
    return float(max(samples.max(), -samples.min())) if samples.size else 0.0


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
        peak = _peak(chunk)
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
        `waveform` itself where nothing had to be converted.

    Raises
    ------
    TypeError
        If `waveform` is not an array or a rate is not a whole number.
    AudioError
        If the waveform is empty, all zero, of another shape or dtype, holds a NaN or infinite
        sample or one far beyond full scale, its channels are inverted against each other, or a
        rate is out of range.
    """
    sample_rate = _check_rate(sample_rate)
    target_rate = _check_rate(target_rate, "target_rate")
    _check_samples(waveform)
    if waveform.shape[0] == 0:
        raise AudioError(f"expected some samples, got an empty waveform of shape {waveform.shape}; record it again")
    if waveform.ndim == 2 and waveform.shape[1] > waveform.shape[0]:
        raise AudioError(
            f"expected shape (samples, channels), got {waveform.shape}, more channels than samples; "
            "if the channels come first, pass waveform.T"
        )
    mixer = _Mixer()
    if sample_rate == target_rate and waveform.ndim == 1:
        mono = mixer.mix(waveform, sample_rate)
    else:  # block by block, which takes no memory but the result's
        step = max(1, BLOCK_SAMPLES // (waveform.shape[1] if waveform.ndim == 2 else 1))
        blocks = (waveform[first : first + step] for first in range(0, len(waveform), step))
        mono = gather(_resample(((sample_rate, mixer.mix(block, sample_rate)) for block in blocks), target_rate))
    mixer.check("waveform[:, {index}]")
    if not mixer.sounded:
        raise AudioError(
            f"expected sound, got {waveform.shape[0]} samples that are all zero; "
            "check that the microphone is not muted and that the right device or channel was recorded"
        )
    return mono


class _Mixer:
    """Mixes blocks of a recording down, and knows at their end whether that destroyed it."""

    def __init__(self) -> None:
        self.sounded = False  # whether the mix ever was not zero
        self.peak = 0.0  # before it was limited, in floats
        self.widths: dict[int, None] = {}  # numbers of channels and rates that came, in order
        self.rates: dict[int, None] = {}
        self._silenced = False  # whether zeros were made of what was not
        self.comparison = ChannelComparison()

    def mix(self, block: NDArray[Any], sample_rate: int) -> NDArray[np.float32]:
        mono = mono_chunk(block)
        sounds = bool(mono.any())
        self.sounded |= sounds
        if block.dtype in _FLOATS:
            self.peak = max(self.peak, _peak(block))
        if block.ndim == 2 and block.shape[1] > 1:
            self.comparison.add(block, sample_rate)
            self._silenced |= not sounds and bool(block.any())
        return mono

    def check(self, take: str) -> None:
        """Refuse channels that cancelled each other; `take` describes how to take one, by its index or number."""
        opposed = self.comparison.opposed()
        if opposed is None and (self.sounded or not self._silenced):
            return
        first, second = opposed or (1, 2)
        what = f"channels {first} and {second} are inverted against each other and" if opposed else "the channels"
        cure = f"take one of them alone: {take.format(index=first - 1, number=first)}"
        raise ChannelError(f"{what} cancel each other when mixed down; {cure}")


def level_dbfs(waveform: NDArray[np.float32]) -> float:
    """The level of a mono waveform: its mean power in dB below full scale; -120 for silence or no samples."""
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return 10.0 * math.log10(max(power, 1e-12))


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
        If a rate is not a whole number, or out of range.
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


class _Resampler:
    """A `ResampleStream` for blocks whose rate may change on the way."""

    def __init__(self, target_rate: int) -> None:
        self._target_rate = target_rate
        self._stream: ResampleStream | None = None

    def process(self, mono: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        if self._stream is not None and self._stream.in_rate == sample_rate:
            return self._stream.process(mono)
        rest = self.flush()
        self._stream = ResampleStream(sample_rate, self._target_rate)
        return np.concatenate([rest, self._stream.process(mono)])

    def flush(self) -> NDArray[np.float32]:
        return np.empty(0, np.float32) if self._stream is None else self._stream.flush()


def _resample(blocks: Iterable[tuple[int, NDArray[np.float32]]], target_rate: int) -> Iterator[NDArray[np.float32]]:
    resampler = _Resampler(target_rate)
    for sample_rate, mono in blocks:
        yield resampler.process(mono, sample_rate)
    yield resampler.flush()


def gather(blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Put the blocks of `read_blocks` one behind the other without holding them all twice."""
    samples, length = np.empty(1 << 16, np.float32), 0
    for block in blocks:
        end = length + len(block)
        if end > len(samples):
            samples.resize(max(end, len(samples) * 9 // 8), refcheck=False)  # in place, where it can be
        samples[length:end] = block
        length = end
    samples.resize(length, refcheck=False)
    return samples


def read_audio(
    source: Source,
    target_rate: int = 16000,
    *,
    channel: int | Literal["mix"] = "mix",
    max_duration_s: float = MAX_DURATION_S,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Read a recording as mono float32 at `target_rate`, to its end.

    Memory is that of the result. What comes through a pipe is held besides, as it came.

    Parameters
    ----------
    source : str, path-like or binary file
        A path, ``"-"`` for standard input, a named pipe, or a binary file, which is read from its
        position on and left open. Any format that libsndfile reads: WAV, FLAC, OGG, MP3, AIFF and
        others; with PyAV (the extra ``media``) M4A, WebM, AMR and others as well.
    target_rate : int
        Rate of the result, 8000 to 192000 Hz.
    channel : "mix" or int
        The mean of all channels, or one of them, counted from 1.
    max_duration_s : float
        Longer recordings are refused, before they are read where the header gives their length.

    Returns
    -------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
        All zeros if the recording is.
    notes : tuple of str
        What was done to the audio on the way and what is odd about it, for the user to read: a
        mix-down and what it did harm to, a resampling, limited overshoots, a missing end with both
        lengths. Empty if there is nothing to say.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another kind.
    AudioError
        If the source cannot be read, is no audio or empty, is too long, has no such channel, or
        holds a NaN, an infinite sample or one far beyond full scale; or if its channels are inverted
        against each other, so that mixing would cancel them. The message begins with the source.
    """
    notes: list[str] = []
    blocks = read_blocks(source, target_rate, channel=channel, max_duration_s=max_duration_s, notes=notes)
    return gather(blocks), tuple(notes)


def read_blocks(
    source: Source,
    target_rate: int = 16000,
    *,
    channel: int | Literal["mix"] = "mix",
    max_duration_s: float = MAX_DURATION_S,
    notes: list[str] | None = None,
) -> Generator[NDArray[np.float32], None, None]:
    """Read a recording in blocks, whose concatenation is the waveform of `read_audio`, bit for bit.

    Parameters
    ----------
    source, target_rate, channel, max_duration_s
        As of `read_audio`.
    notes : list of str, optional
        The notes of `read_audio` are put into it at the end.

    Yields
    ------
    ndarray, shape (samples,), float32 in [-1, 1]
        A few seconds or less.

    Raises
    ------
    TypeError, ValueError, AudioError
        As `read_audio`, when the blocks are asked for; that channels cancel each other, only at the end.
    """
    notes = [] if notes is None else notes
    target_rate = _check_rate(target_rate, "target_rate")
    if channel != "mix" and (isinstance(channel, bool) or not isinstance(channel, (int, np.integer)) or channel < 1):
        raise ValueError(f"expected channel as 'mix' or a number from 1, got {channel!r}; 1 is the left one of two")
    missing: list[str] = []
    mixer = _Mixer()
    with _naming(source), contextlib.closing(decode(source, max_duration_s, missing)) as decoded:
        yield from _resample(_pick(decoded, channel, mixer), target_rate)
        mixer.check("channel={number} (--channel {number})")
    what = "mixed {} channels down to their mean" if channel == "mix" else f"took channel {channel} of {{}}"
    notes += [what.format(channels) for channels in mixer.widths if channels > 1]
    if mixer.peak > 1.0:
        notes.append("limited samples beyond full scale")
    notes += [f"resampled from {rate} to {target_rate} Hz" for rate in mixer.rates if rate != target_rate]
    if not mixer.sounded:
        notes.append("silent: every sample is zero; is the microphone muted?")
    notes += [*mixer.comparison.notes(), *missing]


def _pick(
    decoded: Iterable[tuple[int, NDArray[np.float32]]], channel: int | Literal["mix"], mixer: _Mixer
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Mix the channels of decoded blocks, or take one of them."""
    for sample_rate, block in decoded:
        channels = block.shape[1]
        if channel != "mix" and channel > channels:
            raise AudioError(f"expected a channel from 1 to {channels}, got {channel}; the recording has no more")
        mixer.widths[channels] = mixer.rates[_check_rate(sample_rate)] = None
        yield sample_rate, mixer.mix(block if channel == "mix" else block[:, channel - 1], sample_rate)


def read_channels(
    source: Source, target_rate: int = 16000, *, max_duration_s: float = MAX_DURATION_S
) -> tuple[tuple[NDArray[np.float32], ...], tuple[str, ...]]:
    """Read every channel of a recording as a waveform of its own; otherwise as `read_audio`.

    Parameters
    ----------
    source, target_rate
        As of `read_audio`.
    max_duration_s : float
        Of all channels together.

    Returns
    -------
    waveforms : tuple of ndarray, shape (samples,), float32 in [-1, 1]
    notes : tuple of str

    Raises
    ------
    TypeError, AudioError
        As `read_audio`; also if parts of the file have different numbers of channels.
    """
    target_rate = _check_rate(target_rate, "target_rate")
    missing: list[str] = []
    tracks: list[tuple[_Resampler, list[NDArray[np.float32]]]] = []
    rates: dict[int, None] = {}
    seconds = 0.0
    with _naming(source), contextlib.closing(decode(source, max_duration_s, missing)) as decoded:
        for sample_rate, block in decoded:
            rates[_check_rate(sample_rate)] = None
            channels = block.shape[1]
            tracks = tracks or [(_Resampler(target_rate), []) for _ in range(channels)]
            if len(tracks) != channels:
                raise AudioError(
                    f"its parts have {len(tracks)} and {channels} channels; take one: channel=1 (--channel 1)"
                )
            seconds += channels * len(block) / sample_rate
            if seconds > max_duration_s:
                raise AudioError(
                    f"expected at most {max_duration_s:g} s of all {channels} channels together; "
                    "cut the recording, or allow more with max_duration_s (--max-duration)"
                )
            for (resampler, parts), samples in zip(tracks, block.T, strict=True):
                parts.append(resampler.process(mono_chunk(samples), sample_rate))
    notes = [f"resampled from {rate} to {target_rate} Hz" for rate in rates if rate != target_rate]
    return tuple(np.concatenate([*parts, resampler.flush()]) for resampler, parts in tracks), (*notes, *missing)


@contextlib.contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Put the source's name in front of what is wrong with it."""
    try:
        yield
    except AudioError as error:
        raise type(error)(f"{shown(source)}: {error}") from error
    except MemoryError as error:
        cure = "cut the recording, e.g. `ffmpeg -i INPUT -t 600 OUTPUT.wav`"
        raise AudioError(f"{shown(source)}: out of memory; {cure}") from error
