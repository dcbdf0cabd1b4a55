"""Another mood of the same voice, made in the power spectrum of its frames: F0, effort, level and breath.

`augment.shift_prosody` takes speech apart and puts it together again (WORLD), at a quarter of a second for each
second; this needs a few milliseconds, so that a crop can have another mood each time it is heard. Each frame's
spectrum is parted by its cepstrum into an envelope, which carries the vocal tract, and what is left, which carries
the harmonics. The harmonics are spread or pressed together along a contour; the envelope is tilted the more, the
louder the frame is. Phases are not needed, since only features are made of it.

References
----------
Cepstral separation: Noll 1967. Ranges of the changes: those that make the cosine of a morph to its clip (median
0.45 between two pieces) what RAVDESS has across emotions (0.51).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.features import _mel_bank, _window
from emoinv_edge.spec import EncoderSpec

__all__ = ["Mood", "log_mel_of", "power_spectrum"]

# Where the envelope ends and the harmonics begin, in samples of quefrency at 16 kHz: above F0 of 380 Hz they mix.
ENVELOPE_S = 42 / 16000
SOFTNESS_S = 2 / 16000
LOUDEST, QUIETEST = 3.0, -4.0  # of a frame against the median, natural logarithm of power

Spectrum = NDArray[np.float32]


def power_spectrum(waveform: NDArray[np.float32], spec: EncoderSpec) -> Spectrum:
    """Power of each frame as `emoinv_edge.features.log_mel` sees it, shape (frames, fft_length // 2 + 1)."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, spec.frame_length)[:: spec.frame_shift]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    windowed = (frames - np.float32(spec.preemphasis) * before) * _window(spec)
    return np.square(np.abs(np.fft.rfft(windowed, spec.fft_length, norm="forward"))).astype(np.float32)


def log_mel_of(power: Spectrum, spec: EncoderSpec) -> NDArray[np.float32]:
    """The features of a power spectrum, shape (frames, num_mel_bins): `log_mel` from there on."""
    energies = power @ _mel_bank(spec)
    return np.log(np.maximum(energies, np.finfo(np.float32).eps))


def _contour(rng: np.random.Generator, frames: int, knots: int, amplitude: float) -> NDArray[np.float32]:
    """A line through random heights, one for each frame."""
    heights = rng.standard_normal(knots) * amplitude
    return np.interp(np.linspace(0, knots - 1, frames), np.arange(knots), heights).astype(np.float32)


def _along_bins(rows: Spectrum, positions: NDArray[np.float32]) -> Spectrum:
    """Each row read at fractional positions; beyond the last bin it is mirrored."""
    last = rows.shape[1] - 1
    positions = np.where(positions > last, 2 * last - positions, positions).clip(0, last)
    below = np.minimum(positions.astype(np.int64), last - 1)
    share = (positions - below).astype(np.float32)
    low = np.take_along_axis(rows, below, axis=1)
    return low + (np.take_along_axis(rows, below + 1, axis=1) - low) * share


@dataclasses.dataclass(frozen=True)
class Mood:
    """What a mood does to a voice.

    Parameters
    ----------
    pitch : ndarray, shape (frames,), float32
        Factor of F0 in each frame.
    formants : float
        Factor of the formants.
    effort : float
        Tilt of the spectrum with the level: above 0 loud frames get brighter and quiet ones duller.
    level : ndarray, shape (frames,), float32
        Added to each frame, natural logarithm of power.
    breath : float
        Share of the harmonics that is flattened, 0 to 1.
    """

    pitch: NDArray[np.float32]
    formants: float
    effort: float
    level: NDArray[np.float32]
    breath: float

    @classmethod
    def draw(cls, frames: int, rng: np.random.Generator) -> Mood:
        """A random mood for so many frames: two of three raise F0 by 5 to 70 %, the others lower it by 3 to 25 %."""
        shift = rng.uniform(1.05, 1.7) if rng.random() < 0.7 else rng.uniform(0.75, 0.97)
        moving = _contour(rng, frames, int(rng.integers(3, 9)), rng.uniform(0.0, 0.15))
        return cls(
            pitch=(shift * np.exp(moving)).astype(np.float32),
            formants=rng.uniform(0.96, 1.08),
            effort=rng.uniform(-0.25, 0.5),
            level=_contour(rng, frames, int(rng.integers(3, 7)), rng.uniform(0.0, 1.0)),
            breath=rng.uniform(0.0, 0.5) if rng.random() < 0.5 else 0.0,
        )

    def __call__(self, power: Spectrum, sample_rate: int = 16000) -> Spectrum:
        """The power spectrum (frames, bins) in this mood; silence stays silence.

        Raises
        ------
        ValueError
            If the mood was drawn for another number of frames.
        """
        if len(power) != len(self.pitch):
            raise ValueError(f"expected {len(self.pitch)} frames, as the mood was drawn for, got {len(power)}")
        bins = power.shape[1]
        length = 2 * (bins - 1)
        logarithm = np.log(power + 1e-9 * power.mean() + np.float32(1e-20))
        quefrency = np.minimum(np.arange(length), length - np.arange(length)) / sample_rate
        kept = 1 / (1 + np.exp((quefrency - ENVELOPE_S) / SOFTNESS_S))
        envelope = np.fft.rfft(np.fft.irfft(logarithm, length) * kept, length).real.astype(np.float32)
        numbers = np.arange(bins, dtype=np.float32)
        harmonics = _along_bins(logarithm - envelope, numbers / self.pitch[:, None])
        moved = np.minimum(numbers / np.float32(self.formants), bins - 1)
        envelope = _along_bins(envelope, np.broadcast_to(moved, power.shape))
        loudness = np.log(power.sum(axis=1) + np.float32(1e-20))
        loudness = (loudness - np.median(loudness)).clip(QUIETEST, LOUDEST)
        tilt = 0.5 * self.effort * loudness[:, None] * 4 * (numbers / (bins - 1) - 0.4)
        changed = envelope + harmonics * np.float32(1 - self.breath) + tilt + self.level[:, None]
        return np.exp(changed.clip(-60.0, 60.0)).astype(np.float32)
