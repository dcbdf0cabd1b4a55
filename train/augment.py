"""Augmentation of waveforms and features: pure functions, the random generator passed in.

Waveforms are one-dimensional float32 in [-1, 1] at `SAMPLE_RATE`; none is changed in place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "add_noise",
    "change_speed",
    "copy_paste",
    "crop",
    "energy_mask",
    "frame_energy_db",
    "random_gain",
    "reverberate",
    "shift_prosody",
    "telephone_band",
]

SAMPLE_RATE = 16000
LEAST_RMS = 1e-6  # a quieter waveform is not amplified to a level
JOINT_S = 0.005  # cross-fade at a CopyPaste joint: long enough for no click, too short to hear

Waveform = NDArray[np.float32]


def _check(*waveforms: Waveform) -> None:
    for waveform in waveforms:
        if waveform.ndim != 1 or len(waveform) == 0:
            raise ValueError(f"expected shape (samples,) with at least one sample, got {waveform.shape}")


def _rms(waveform: Waveform) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def _clipped(waveform: Waveform) -> Waveform:
    return np.asarray(np.clip(waveform, -1.0, 1.0), np.float32)


def _levelled(waveform: Waveform, rms: float) -> Waveform:
    return _clipped(waveform * np.float32(rms / max(_rms(waveform), LEAST_RMS)))


def crop(waveform: Waveform, samples: int, rng: np.random.Generator) -> Waveform:
    """A random piece of `samples` samples; a shorter waveform is repeated from a random phase until it fills."""
    _check(waveform)
    if len(waveform) >= samples:
        start = int(rng.integers(len(waveform) - samples + 1))
        return waveform[start : start + samples].copy()
    phase = int(rng.integers(len(waveform)))
    return np.take(waveform, np.arange(phase, phase + samples), mode="wrap")


def copy_paste(
    first: Waveform, second: Waveform, rng: np.random.Generator, samples: int, match_level: bool = True
) -> Waveform:
    """Join pieces of two utterances of one speaker, in random order, into one sample.

    The paper joins an emotional utterance with a neutral one, or two of one emotion, so that the
    speaker label stays and the emotion changes within the sample.

    Parameters
    ----------
    first, second : ndarray, shape (samples,), float32 in [-1, 1]
    rng : numpy.random.Generator
        Draws the order and the cut: each side gets 30 to 70 % of the result.
    samples : int
        Length of the result.
    match_level : bool
        Scale the second side to the first one's RMS level.

    References
    ----------
    Pappagari et al., arXiv:2010.14602; for speaker verification, Tian et al., arXiv:2505.18498.
    """
    _check(first, second)
    if rng.random() < 0.5:
        first, second = second, first
    joint = min(round(JOINT_S * SAMPLE_RATE), samples // 4)
    cut = int(samples * rng.uniform(0.3, 0.7))
    left = crop(first, cut + joint, rng)
    right = crop(second, samples - cut, rng)
    if match_level:
        right = right * np.float32(min(_rms(left) / max(_rms(right), 1e-6), 100.0))
    out = np.empty(samples, np.float32)
    out[:cut] = left[:cut]
    fade = np.linspace(0.0, 1.0, joint, dtype=np.float32)
    out[cut:] = right
    out[cut : cut + joint] = left[cut:] * (1 - fade) + right[:joint] * fade
    return _clipped(out)


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """Play faster (above 1) or slower: F0, formants and rate move together, as of another, smaller or larger, speaker.

    By linear interpolation: what it folds back lies 30 dB and more below speech, enough for training.
    """
    _check(waveform)
    if not 0.5 <= factor <= 2.0:
        raise ValueError(f"expected a factor of 0.5 to 2, got {factor}")
    positions = np.arange(max(1, int(len(waveform) / factor))) * factor
    return np.asarray(np.interp(positions, np.arange(len(waveform)), waveform), np.float32)


def frame_energy_db(waveform: Waveform, frame_length: int = 400, frame_shift: int = 160) -> NDArray[np.float32]:
    """RMS level of each analysis frame in dB, aligned with the frames of `emoinv_edge.features.log_mel`."""
    _check(waveform)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame_length)[::frame_shift]
    power = np.einsum("ij,ij->i", frames, frames) / frame_length
    return np.asarray(10.0 * np.log10(power + 1e-10), np.float32)


def energy_mask(
    features: NDArray[np.float32],
    energy_db: NDArray[np.float32],
    rng: np.random.Generator,
    fraction: float = 0.2,
    span: int = 12,
    region: str = "high",
    quantile: float = 0.5,
) -> NDArray[np.float32]:
    """Emotion-aware masking: set contiguous spans to 0, the mean, where the frame energy is salient.

    Parameters
    ----------
    features : ndarray, shape (frames, bins)
        Mean-normalised.
    energy_db : ndarray, shape (frames,)
        From `frame_energy_db`.
    fraction : float
        Share of all frames to mask, 0 to 1.
    span : int
        Frames per span.
    region : {"high", "random"}
        Where the centres of spans are drawn: above the quantile, or anywhere (the control: equal area, whatever
        the energy).
    quantile : float
        Of the frame energy.

    References
    ----------
    Tian et al., arXiv:2505.18498. Frame size, quantile and fill of the paper are not public; these are ours.
    """
    frames = len(features)
    if len(energy_db) != frames:
        raise ValueError(f"expected one energy per frame ({frames}), got {len(energy_db)}")
    if region == "random":
        candidates = np.arange(frames)
    elif region == "high":
        candidates = np.flatnonzero(energy_db >= np.quantile(energy_db, quantile))
    else:
        raise ValueError(f"region should be high or random, got {region!r}")
    masked = np.zeros(frames, bool)
    target = round(fraction * frames)
    for centre in rng.permutation(candidates):
        missing = target - int(masked.sum())
        if missing <= 0:
            break
        start = max(0, int(centre) - span // 2)
        free = np.flatnonzero(~masked[start : start + span])[:missing]
        masked[start + free] = True
    out = features.copy()
    out[masked] = 0.0
    return out


def add_noise(waveform: Waveform, noise: Waveform, snr_db: float, rng: np.random.Generator) -> Waveform:
    """Add a random piece of `noise` at a signal-to-noise ratio of `snr_db`."""
    _check(waveform, noise)
    piece = crop(noise, len(waveform), rng)
    gain = _rms(waveform) / max(_rms(piece), 1e-8) * 10 ** (-snr_db / 20)
    return _clipped(waveform + piece * np.float32(gain))


def reverberate(waveform: Waveform, impulse_response: Waveform) -> Waveform:
    """Convolve with a room's impulse response, aligned to its strongest path, the level kept."""
    _check(waveform, impulse_response)
    length = len(waveform) + len(impulse_response) - 1
    size = 1 << (length - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(impulse_response, size), size)
    delay = int(np.argmax(np.abs(impulse_response)))
    return _levelled(np.asarray(wet[delay : delay + len(waveform)], np.float32), _rms(waveform))


def random_gain(waveform: Waveform, rng: np.random.Generator, low_db: float = -20.0, high_db: float = 6.0) -> Waveform:
    """Scale by a random gain; what exceeds full scale is clipped, as a recorder would."""
    gain = 10 ** (rng.uniform(low_db, high_db) / 20)
    return _clipped(waveform * np.float32(gain))


def telephone_band(waveform: Waveform, low_hz: float = 300.0, high_hz: float = 3400.0) -> Waveform:
    """Keep what a narrow-band channel carries, with soft edges of 100 Hz."""
    _check(waveform)
    spectrum = np.fft.rfft(waveform)
    hz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    spectrum *= np.clip((hz - low_hz) / 100.0, 0, 1) * np.clip((high_hz - hz) / 100.0, 0, 1)
    return np.asarray(np.fft.irfft(spectrum, len(waveform)), np.float32)


def shift_prosody(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """The same voice and words in another emotion: prosody-parallel data through the WORLD vocoder.

    F0 mean and range, rate, energy contour and spectral tilt (vocal effort) change together, raised
    in two of three draws (as in anger, joy, fear) and lowered otherwise (as in sadness, fatigue);
    formants rise slightly with effort, low arousal gets breathier.

    References
    ----------
    Morise et al., "WORLD: a vocoder-based high-quality speech synthesis system", 2016.
    """
    import pyworld

    _check(waveform)
    # Coarser than WORLD's defaults: half of the time. Voices below 94 Hz lose some sharpness of the envelope.
    period_ms, fft_size = 10.0, 512
    source = waveform.astype(np.float64)
    f0, times = pyworld.dio(source, SAMPLE_RATE, frame_period=period_ms)
    f0 = pyworld.stonemask(source, f0, times, SAMPLE_RATE)
    spectrum = pyworld.cheaptrick(source, f0, times, SAMPLE_RATE, fft_size=fft_size)
    aperiodicity = pyworld.d4c(source, f0, times, SAMPLE_RATE, fft_size=fft_size)

    if rng.random() < 2 / 3:
        ratio, spread = np.exp(rng.uniform(np.log(1.08), np.log(1.8))), rng.uniform(0.6, 2.2)
        rate, tilt_db = rng.uniform(0.85, 1.3), rng.uniform(-1.0, 9.0)
        formants, breath = 1.0 + rng.uniform(0.0, 0.12) * (ratio - 1.0), rng.uniform(0.0, 0.15)
        contrast = rng.uniform(0.8, 1.4)
    else:
        ratio, spread = rng.uniform(0.74, 1.0), rng.uniform(0.4, 1.1)
        rate, tilt_db = rng.uniform(0.8, 1.05), rng.uniform(-5.0, 1.0)
        formants, breath = rng.uniform(0.98, 1.0), rng.uniform(0.0, 0.5)
        contrast = rng.uniform(0.6, 1.1)

    voiced = f0 > 0
    if voiced.any():
        log_f0 = np.log(f0[voiced])
        centre = np.median(log_f0)
        f0 = f0.copy()
        f0[voiced] = np.clip(np.exp(centre + np.log(ratio) + (log_f0 - centre) * spread), 50.0, 700.0)

    bins = np.arange(spectrum.shape[1])
    hz = bins * SAMPLE_RATE / 2 / (len(bins) - 1)
    log_spectrum = np.log(spectrum + 1e-16)
    if formants != 1.0:
        position = np.clip(bins / formants, 0, len(bins) - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, len(bins) - 1)
        log_spectrum = log_spectrum[:, low] * (1 - (position - low)) + log_spectrum[:, high] * (position - low)
    log_spectrum += tilt_db / 3 * np.log2(np.clip(hz, 250.0, 8000.0) / 1000.0) * np.log(10) / 10
    level = log_spectrum.mean(axis=1, keepdims=True)
    loud = level > np.quantile(level, 0.3)
    log_spectrum += np.where(loud, (contrast - 1.0) * (level - level[loud].mean() if loud.any() else 0.0), 0.0)
    aperiodicity = np.clip(aperiodicity + breath * (1 - aperiodicity) * (hz / 8000.0), 0.0, 1.0)

    frames = np.clip(np.rint(np.arange(0, len(f0), rate)).astype(int), 0, len(f0) - 1)
    out = pyworld.synthesize(
        np.ascontiguousarray(f0[frames]), np.ascontiguousarray(np.exp(log_spectrum[frames])),
        np.ascontiguousarray(aperiodicity[frames]), SAMPLE_RATE, period_ms,
    )  # fmt: skip
    return _levelled(np.asarray(np.nan_to_num(out), np.float32), _rms(waveform))
