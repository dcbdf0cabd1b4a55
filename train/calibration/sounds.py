"""Sounds that are nobody's speech, made by rule without end: tones, chirps, buzzes, vowels, noises, and whispering.

The first five teach a model what no voice is; whispering, real speech with its voicing taken out, teaches
it that a voice need not be voiced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_toeplitz
from scipy.signal import butter, lfilter, sosfilt

__all__ = ["FAMILIES", "SOURCES", "sound", "whispered"]

RATE = 16000
SOURCES = ("sine", "pair", "square", "saw", "pulses", "harmonics", "noise", "blend")
FAMILIES = ("plain", "vowels", "band", "modulated")

Signal = NDArray[np.floating[Any]]


def sound(rng: np.random.Generator, seconds: float | None = None) -> tuple[NDArray[np.float32], str]:
    """One sound, float32 in [-1, 1] at 16 kHz, and the kind of it: a source and what became of that.

    Parameters
    ----------
    rng : Generator
        The same sound for the same state.
    seconds : float, optional
        Its length; 1 to 4 s by default.
    """
    count = int(RATE * (rng.uniform(1.0, 4.0) if seconds is None else seconds))
    source, family = str(rng.choice(SOURCES)), str(rng.choice(FAMILIES))
    if (source, family) == ("noise", "vowels"):  # that would be whispering
        family = "plain"
    low, high = (60.0, 1200.0) if family == "vowels" else ((60.0, 4000.0) if rng.random() < 0.5 else (80.0, 400.0))
    wave = _source(source, _track(count, low, high, rng), rng)
    if family == "vowels":
        wave = _vowels(wave, rng)
    elif family == "band":
        lower = rng.uniform(60.0, 5000.0)
        upper = min(7800.0, lower * rng.uniform(1.2, 10.0))
        wave = sosfilt(butter(2, [lower, upper], "band", fs=RATE, output="sos"), wave)
    elif family == "modulated":
        wave = wave * _source("sine", _track(count, 1.0, 300.0, rng), rng)
    wave = wave * _envelope(count, rng)
    wave = wave / _peak(wave) * rng.uniform(0.05, 0.9) + rng.standard_normal(count) * 10.0 ** rng.uniform(-5.0, -2.3)
    return np.clip(wave, -1.0, 1.0).astype(np.float32), f"{family} {source}"


def _envelope(count: int, rng: np.random.Generator) -> Signal:
    """Steady, swelling, beeping, plucked or wandering."""
    time = np.arange(count) / RATE
    kind = rng.integers(6)
    if kind == 0:
        return np.ones(count)
    if kind == 5:
        swell = np.sin(2.0 * np.pi * rng.uniform(0.5, 10.0) * time + rng.uniform(0.0, 6.0)) * 0.5 + 0.5
        return np.asarray(np.maximum(1.0 - rng.uniform(0.1, 1.0) * swell, 0.0))
    if kind == 1:
        swell = np.sin(2.0 * np.pi * rng.uniform(0.5, 8.0) * time + rng.uniform(0.0, 6.0)) * 0.5 + 0.5
        return np.asarray(swell ** rng.uniform(0.5, 2.0))
    if kind == 2:
        on, off = rng.uniform(0.05, 0.6), rng.uniform(0.05, 0.4)
        return np.asarray(time % (on + off) < on, np.float64)
    if kind == 3:
        return np.asarray(np.exp(-(time % rng.uniform(0.15, 0.8)) * rng.uniform(2.0, 25.0)))
    points = rng.uniform(0.0, 1.0, max(2, int(count / RATE * rng.uniform(2.0, 10.0))))
    return np.interp(np.linspace(0.0, 1.0, count), np.linspace(0.0, 1.0, len(points)), points)


def _track(count: int, low: float, high: float, rng: np.random.Generator) -> Signal:
    """A frequency over time, in Hz: constant, gliding, sweeping, with vibrato, in steps or wandering."""
    time = np.arange(count) / RATE
    first, last = np.exp(rng.uniform(np.log(low), np.log(high), 2))
    if rng.random() < 0.5:  # vibrato, which voices have too
        wave = np.exp(rng.uniform(0.0, 0.15) * np.sin(2.0 * np.pi * rng.uniform(4.0, 7.0) * time))
        return np.asarray(np.geomspace(first, last, count) * wave)
    kind = rng.integers(6)
    if kind == 0:
        return np.full(count, first)
    if kind == 1:
        return np.geomspace(first, last, count)
    if kind == 2:
        period = rng.uniform(0.1, 2.0)
        return np.asarray(first * (last / first) ** ((time % period) / period))
    if kind == 3:
        depth, pace = rng.uniform(0.02, 0.6), rng.uniform(3.0, 9.0) * rng.uniform(0.1, 1.0)
        return np.asarray(first * np.exp(depth * np.sin(2.0 * np.pi * pace * time)))
    points = rng.uniform(np.log(low), np.log(high), max(2, int(count / RATE * rng.uniform(1.0, 8.0))))
    places = np.arange(count) / count
    if kind == 4:
        return np.asarray(np.exp(points[(places * len(points)).astype(np.int64)]))
    return np.asarray(np.exp(np.interp(places, np.linspace(0.0, 1.0, len(points)), points)))


def _source(kind: str, hz: Signal, rng: np.random.Generator) -> Signal:
    """One of `SOURCES` at the frequency `hz`."""
    phase = 2.0 * np.pi * np.cumsum(hz) / RATE
    if kind == "sine":
        return np.sin(phase)
    if kind == "pair":
        return np.asarray(np.sin(phase) + np.sin(phase * rng.uniform(1.05, 3.5)))
    if kind == "square":
        return np.sign(np.sin(phase))
    if kind == "saw":
        return np.asarray(phase / (2.0 * np.pi) % 1.0 * 2.0 - 1.0)
    if kind == "pulses":
        return np.diff(np.floor(phase / (2.0 * np.pi)), prepend=0.0)
    if kind == "harmonics":
        slope = rng.uniform(0.0, 2.5)
        wave = np.zeros(len(hz))
        for k in range(1, int(rng.integers(2, 30))):
            part = np.sin(k * phase + rng.uniform(0.0, 6.0)) * (k * hz < 7600.0)
            wave += part * rng.uniform(0.2, 1.0) / k**slope
        return wave
    noise = rng.standard_normal(len(hz))
    if kind == "blend":
        parts = (np.sin(phase), phase / (2.0 * np.pi) % 1.0 * 2.0 - 1.0, 0.7 * np.sign(np.sin(phase)), 0.5 * noise)
        return np.asarray(sum(rng.uniform(0.0, 1.0) * (rng.random() < 0.6) * part for part in parts) + 1e-6 * noise)
    return noise


def _vowels(wave: Signal, rng: np.random.Generator) -> Signal:
    """Through four formants: the same ones throughout, or others every syllable."""
    step = len(wave) if rng.random() < 0.4 else int(RATE * rng.uniform(0.08, 0.3))
    states = [np.zeros(2) for _ in range(4)]
    parts = []
    for begin in range(0, len(wave), step):
        part = wave[begin : begin + step]
        for k, (low, high) in enumerate(((250, 900), (800, 2400), (2200, 3400), (3300, 4600))):
            hz, radius = rng.uniform(low, high), np.exp(-np.pi * rng.uniform(40.0, 250.0) / RATE)
            poles = [1.0, -2.0 * radius * np.cos(2.0 * np.pi * hz / RATE), radius**2]
            part, states[k] = lfilter([1.0 - radius], poles, part, zi=states[k])
        parts.append(part)
    made = np.concatenate(parts)
    share = rng.uniform(0.3, 1.0)  # of it, beside the source as it is
    return np.asarray(share * made / _peak(made) + (1.0 - share) * wave / _peak(wave))


def _peak(wave: Signal) -> float:
    return float(np.abs(wave).max()) or 1.0


def whispered(speech: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Speech whispered by rule: noise through its own envelope (linear prediction), frame by frame.

    Parameters
    ----------
    speech : ndarray, shape (samples,), float32
        Pauses cut out, at 16 kHz.
    rng : Generator
        Draws the noise.

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]
        Silence where the speech is shorter than a frame (30 ms).
    """
    length, hop, order = 480, 240, 18
    sharp = np.append(speech[:1], speech[1:] - 0.9 * speech[:-1]).astype(np.float64)
    window = np.hanning(length)
    out = np.zeros(len(sharp))
    for begin in range(0, len(sharp) - length, hop):
        frame = sharp[begin : begin + length] * window
        correlation = np.correlate(frame, frame, "full")[length - 1 : length + order]
        correlation[0] = correlation[0] * 1.001 + 1e-9
        predictor = solve_toeplitz(correlation[:order], correlation[1 : order + 1])
        left = max(correlation[0] - float(predictor @ correlation[1 : order + 1]), 1e-12)
        breath = rng.standard_normal(length) * np.sqrt(left / length * 2.0)
        out[begin : begin + length] += lfilter([1.0], np.concatenate(([1.0], -predictor)), breath) * window
    level = float(np.sqrt(np.mean(np.square(out)))) if len(out) else 0.0
    return np.clip(0.1 * out / max(level, 1e-9), -1.0, 1.0).astype(np.float32)
