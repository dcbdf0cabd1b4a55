"""Log-mel features: the only front end of this repository, for the runtime and for training.

Kaldi-compatible filter-bank energies (Povey et al. 2011; compute-fbank-feats with dither 0,
energy off and ``snip_edges``): per frame the mean is removed, pre-emphasis and window applied,
then power spectrum, triangular mel filters and the logarithm.

`log_mel` and `LogMelStream` share one core, and a frame's bits cannot depend on how the waveform
was cut. Every step but one treats each frame by itself. The exception is the matrix product with
the mel bank, whose rounding may depend on its shape: frames lie in blocks of `BLOCK` at fixed
positions from the start of the waveform, and the product is always of a whole block.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .spec import EncoderSpec

__all__ = ["LogMelStream", "log_mel", "mean_normalise", "mel_bank", "window"]

# Frames per block: its buffers stay in the cache, NumPy's cost per call is spread over many frames,
# and the product with the mel bank stays below the size that OpenBLAS splits over threads.
BLOCK = 60
# The mel bank is cut into this many runs of neighbouring filters, each multiplied by only the bins
# that it covers: a third of the work of the whole matrix, which is nearly empty.
MEL_RUNS = 4


class _MelRun(NamedTuple):
    bins: slice
    filters: slice
    weights: NDArray[np.float32]  # (bins, filters)


def _mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0))


@functools.lru_cache(maxsize=8)
def window(spec: EncoderSpec) -> NDArray[np.float32]:
    """The analysis window times the spec's waveform scale and FFT length, shape (frame_length,); not to be changed."""
    n = spec.frame_length
    phase = 2.0 * np.pi * np.arange(n) / (n - 1)
    if spec.window == "hamming":
        shape = 0.54 - 0.46 * np.cos(phase)
    else:
        shape = (0.5 - 0.5 * np.cos(phase)) ** 0.85
    # The power of two is what `norm="forward"` divides by; it leaves the bits of the mantissa alone.
    return np.asarray(shape * spec.waveform_scale * spec.fft_length, np.float32)


@functools.lru_cache(maxsize=8)
def mel_bank(spec: EncoderSpec) -> NDArray[np.float32]:
    """Triangular filters, shape (fft_length // 2 + 1, num_mel_bins), float32; not to be changed."""
    edges = np.linspace(_mel(spec.low_hz), _mel(spec.high_hz), spec.num_mel_bins + 2)
    bins = _mel(np.arange(spec.fft_length // 2 + 1) * spec.sample_rate / spec.fft_length)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.clip(np.minimum(rising, falling), 0.0, None)
    bank[-1] = 0.0  # Kaldi leaves the Nyquist bin out
    return np.ascontiguousarray(bank, np.float32)


@functools.lru_cache(maxsize=8)
def _mel_runs(spec: EncoderSpec) -> tuple[_MelRun, ...]:
    bank = mel_bank(spec)
    edges = [spec.num_mel_bins * run // MEL_RUNS for run in range(MEL_RUNS + 1)]
    runs = []
    for first, last in itertools.pairwise(edges):
        covered = np.flatnonzero(bank[:, first:last].any(axis=1))
        # Very narrow filters may fall between two bins and cover none; Kaldi gives them no energy.
        bins = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 1)
        runs.append(_MelRun(bins, slice(first, last), np.ascontiguousarray(bank[bins, first:last])))
    return tuple(runs)


def _frames(waveform: NDArray[np.float32], position: int, count: int, spec: EncoderSpec) -> NDArray[np.float32]:
    """Features of the first `count` frames of `waveform`, the first being frame `position` of its stream."""
    out = np.empty((count, spec.num_mel_bins), np.float32)
    if count == 0:
        return out
    shape, runs = window(spec), _mel_runs(spec)
    preemphasis = np.float32(spec.preemphasis)
    size = min(count, BLOCK)
    block = np.empty((size, spec.frame_length), np.float32)
    previous = np.empty((size, spec.frame_length), np.float32)
    power = np.zeros((BLOCK, spec.fft_length // 2 + 1), np.float32)
    energies = np.empty((BLOCK, spec.num_mel_bins), np.float32)
    # The overlapping frames, without a copy; sliding_window_view does the same in sixteen times the time.
    step = waveform.itemsize
    frames: NDArray[np.float32] = np.ndarray(
        (count, spec.frame_length), np.float32, np.ascontiguousarray(waveform), 0, (spec.frame_shift * step, step)
    )
    done = 0
    while done < count:
        row = (position + done) % BLOCK
        n = min(BLOCK - row, count - done)
        centred, emphasis = block[:n], previous[:n]
        mean = frames[done : done + n].sum(axis=1, keepdims=True)
        mean *= np.float32(1.0 / spec.frame_length)
        np.subtract(frames[done : done + n], mean, out=centred)
        # One run over the whole block is twice as fast as row by row; it spoils the first column, set after it.
        np.multiply(centred.reshape(-1)[:-1], preemphasis, out=emphasis.reshape(-1)[1:])
        np.multiply(centred[:, 0], preemphasis, out=emphasis[:, 0])
        centred -= emphasis
        centred *= shape
        # norm="forward" makes NumPy scale by a float32; the int 1 of the default sends the whole
        # transform through float64, with a copy of everything. The window undoes the scale.
        spectrum = np.fft.rfft(centred, spec.fft_length, axis=1, norm="forward")
        parts = spectrum.view(spectrum.real.dtype)  # real and imaginary in turn
        np.square(parts, out=parts)
        np.add(parts[:, 0::2], parts[:, 1::2], out=power[row : row + n])
        for bins, filters, weights in runs:
            np.matmul(power[:, bins], weights, out=energies[:, filters])
        target = out[done : done + n]
        np.maximum(energies[row : row + n], np.finfo(np.float32).eps, out=target)
        np.log(target, out=target)
        done += n
    return out


def _check(waveform: NDArray[np.float32]) -> None:
    if not isinstance(waveform, np.ndarray) or waveform.dtype != np.float32:
        got = waveform.dtype if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise TypeError(f"expected a float32 array in [-1, 1], got {got}; convert it with emoinv_edge.audio.to_mono")
    if waveform.ndim != 1:
        raise ValueError(f"expected shape (samples,), got {waveform.shape}; mix the channels down first")


def log_mel(waveform: NDArray[np.float32], spec: EncoderSpec) -> NDArray[np.float32]:
    """Log-mel filter-bank energies of a waveform.

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
        At the spec's sample rate; it is not resampled here.
    spec : EncoderSpec

    Returns
    -------
    ndarray, shape (frames, num_mel_bins), float32
        Natural logarithm; not normalised (see `mean_normalise`). A waveform shorter than one frame
        gives zero frames.

    Raises
    ------
    TypeError, ValueError
        If the waveform is not a one-dimensional float32 array.

    References
    ----------
    Povey et al., "The Kaldi Speech Recognition Toolkit", ASRU 2011 (``compute-fbank-feats``).
    """
    _check(waveform)
    return _frames(waveform, 0, spec.num_frames(len(waveform)), spec)


def mean_normalise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the mean over frames from features of shape (frames, bins)."""
    return np.asarray(features - features.mean(axis=0, dtype=np.float64).astype(np.float32), np.float32)


class LogMelStream:
    """`log_mel` for a waveform that arrives in chunks, equal to it bit for bit.

    Keeps less than one frame of samples. Not safe to share between threads or streams.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        self._spec = spec
        self._pending = np.empty(0, np.float32)
        self._position = 0

    def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take `chunk` (float32, any length, 0 included) and return the frames that it completed."""
        _check(chunk)
        spec = self._spec
        samples = np.concatenate((self._pending, chunk))
        count = spec.num_frames(len(samples))
        out = _frames(samples, self._position, count, spec)
        self._position += count
        self._pending = samples[count * spec.frame_shift :].copy()
        return out

    def flush(self) -> NDArray[np.float32]:
        """End the stream: an unfinished frame is dropped, as `log_mel` drops it; the stream starts anew."""
        self._pending = np.empty(0, np.float32)
        self._position = 0
        return np.empty((0, self._spec.num_mel_bins), np.float32)
