"""Channels that speech goes through before a verifier hears it: telephone, codecs, rooms, microphones, noise.

Pure functions: a waveform and the parameters, or an explicit random generator, give a new waveform of equal length.
Waveforms are one-dimensional float32 in [-1, 1] at `SAMPLE_RATE`; none is changed in place. `Channels.hear` draws
one whole chain of a named kind (`KINDS`), as training uses it.

References
----------
ITU-T G.711 (mu-law and A-law).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .augment import add_noise, reverberate
from .codecs import CODECS, NARROW_RATE, fitted, resampled, through_codec
from .prepare import SAMPLE_RATE
from .rooms import Room

__all__ = [
    "KINDS",
    "Channels",
    "a_law",
    "band_pass",
    "clip_peaks",
    "microphone_response",
    "narrow_band",
    "set_level",
    "telephone",
]

Waveform = NDArray[np.float32]


# What `Channels.hear` can draw. Both sides of a matched trial are of one kind, each with parameters of its own.
KINDS = ("clean", "landline", "mobile", "internet", "near_room", "far_room", "noise")


def _check(waveform: Waveform) -> None:
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected shape (samples,) with at least one sample, got {waveform.shape}")


def set_level(waveform: Waveform, peak_dbfs: float) -> Waveform:
    """Scale so that the largest sample lies at `peak_dbfs` (0 or less: full scale and below).

    Digital silence stays as it is.

    Raises
    ------
    ValueError
        If the waveform is empty or not one-dimensional.
    """
    _check(waveform)
    peak = float(np.abs(waveform).max())
    return waveform * np.float32(10 ** (peak_dbfs / 20) / peak) if peak > 0.0 else waveform.copy()


def clip_peaks(waveform: Waveform, share: float) -> Waveform:
    """Overdrive a recorder: the loudest `share` of the samples (0 to below 1) is cut off; the peak's level is kept.

    Raises
    ------
    ValueError
        If `share` is out of range, or the waveform is empty or not one-dimensional.
    """
    _check(waveform)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"expected a share from 0 to below 1, got {share}")
    magnitude = np.abs(waveform)
    limit = float(np.quantile(magnitude, 1.0 - share))
    if limit <= 0.0:
        return waveform.copy()
    return np.clip(waveform, -limit, limit) * np.float32(float(magnitude.max()) / limit)


def band_pass(waveform: Waveform, low_hz: float, high_hz: float, sample_rate: int = SAMPLE_RATE) -> Waveform:
    """Keep `low_hz` to `high_hz`, with edges of 60 Hz below and 150 Hz above that fall in decibels.

    Beyond its edge the band falls by 12 dB per edge width, to -60 dB at the most: a filter's stop band, not nothing.
    """
    _check(waveform)
    hz = np.fft.rfftfreq(len(waveform), 1.0 / sample_rate)
    fall_db = np.clip((low_hz - hz) / 60.0, 0.0, 5.0) + np.clip((hz - high_hz) / 150.0, 0.0, 5.0)
    gain = 10.0 ** (-0.6 * np.minimum(fall_db, 5.0))
    return np.asarray(np.fft.irfft(np.fft.rfft(waveform) * gain, len(waveform)), np.float32)


def _mu_law(waveform: Waveform) -> Waveform:
    """8 bits a sample by the continuous mu-law of G.711."""
    coded = np.sign(waveform) * np.log1p(255.0 * np.abs(waveform)) / np.log(256.0)
    steps = np.rint(coded * 127.0) / 127.0
    return np.asarray(np.sign(steps) * np.expm1(np.abs(steps) * np.log(256.0)) / 255.0, np.float32)


def a_law(waveform: Waveform) -> Waveform:
    """8 bits a sample by the continuous A-law of G.711 (A = 87.6).

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]
    """
    scale = 1.0 + np.log(87.6)
    magnitude = np.minimum(np.abs(waveform), 1.0)
    small = magnitude < 1.0 / 87.6
    coded = np.where(small, 87.6 * magnitude, 1.0 + np.log(np.maximum(87.6 * magnitude, 1.0))) / scale
    steps = np.rint(coded * 127.0) / 127.0
    decoded = np.where(steps < 1.0 / scale, steps * scale / 87.6, np.exp(steps * scale - 1.0) / 87.6)
    return np.asarray(np.sign(waveform) * decoded, np.float32)


def narrow_band(waveform: Waveform, low_hz: float = 300.0, high_hz: float = 3400.0) -> Waveform:
    """The waveform at 8 kHz within a telephone's band: half as many samples."""
    _check(waveform)
    return band_pass(resampled(waveform, SAMPLE_RATE, NARROW_RATE), low_hz, high_hz, NARROW_RATE)


def _from_narrow(narrow: Waveform, samples: int, images: bool) -> Waveform:
    """Back to 16 kHz: by a sinc, which leaves nothing above 4 kHz, or by lines, which leaves faint mirror images."""
    if images:
        at = np.arange(samples) / 2.0
        return np.interp(at, np.arange(len(narrow)), narrow).astype(np.float32)
    return fitted(resampled(narrow, NARROW_RATE, SAMPLE_RATE), samples)


def telephone(
    waveform: Waveform, low_hz: float = 300.0, high_hz: float = 3400.0, law: str = "mu", images: bool = False
) -> Waveform:
    """A landline: `low_hz` to `high_hz` at 8 kHz, each sample in 8 bits of G.711.

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
        Its level counts: a quiet call has more of the quantisation's noise.
    low_hz, high_hz : float
        The band.
    law : {"mu", "a"}
        North America and Japan, or the rest of the world.
    images : bool
        Resampled carelessly: mirror images of the band above 4 kHz.

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]

    Raises
    ------
    ValueError
        If the law is not known, or the waveform is empty or not one-dimensional.
    """
    if law not in ("mu", "a"):
        raise ValueError(f"expected the law mu or a, got {law!r}")
    narrow = np.clip(narrow_band(waveform, low_hz, high_hz), -1.0, 1.0)
    return _from_narrow(_mu_law(narrow) if law == "mu" else a_law(narrow), len(waveform), images)


def microphone_response(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gain over frequency of a small microphone in a cheap case.

    A high-pass of 60 to 350 Hz, one to three resonances or dips of at most 9 dB, and a fall from 3.5 to 8 kHz on.

    Parameters
    ----------
    samples : int
        Of the waveform whose spectrum (`numpy.fft.rfft`) it will multiply.

    Returns
    -------
    ndarray, shape (samples // 2 + 1,), float64
    """
    hz = np.fft.rfftfreq(samples, 1.0 / SAMPLE_RATE)
    corner = rng.uniform(60.0, 350.0)
    gain_db = -10.0 * np.log10(1.0 + (corner / np.maximum(hz, 1.0)) ** 4)
    octaves = np.log2(np.maximum(hz, 20.0))
    for _ in range(int(rng.integers(1, 4))):
        centre, width = np.log2(rng.uniform(300.0, 7000.0)), rng.uniform(0.15, 0.8)
        gain_db += rng.uniform(-9.0, 9.0) * np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    fall = rng.uniform(3500.0, 8000.0)
    gain_db -= rng.uniform(6.0, 24.0) * np.maximum(octaves - np.log2(fall), 0.0)
    return np.asarray(10.0 ** (gain_db / 20.0), np.float64)


def _through_microphone(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    shaped = np.fft.irfft(np.fft.rfft(waveform) * microphone_response(len(waveform), rng), len(waveform))
    level = float(np.abs(waveform).max()) / max(float(np.abs(shaped).max()), 1e-9)
    return np.asarray(shaped * level, np.float32)


@dataclasses.dataclass(frozen=True)
class Channels:
    """Draws channels: holds the noises and rooms that they are made of.

    Parameters
    ----------
    noises : sequence of ndarray, shape (samples,), float32
        Recorded noises; white noise where there are none.
    rooms : sequence of Room
        Without any, the rooms' kinds are refused.
    """

    noises: Sequence[Waveform] = ()
    rooms: Sequence[Room] = ()

    def hear(self, waveform: Waveform, kind: str, rng: np.random.Generator) -> Waveform:
        """What is left of speech after a channel of this kind, its parameters drawn from `rng`.

        Parameters
        ----------
        waveform : ndarray, shape (samples,), float32 in [-1, 1]
        kind : str
            Of `KINDS`: "clean" (the level alone changes); "landline" (G.711); "mobile" (GSM or AMR); "internet" (Opus,
            MP3 or G.722); "near_room", "far_room"; "noise" (0 to 20 dB). Telephones sometimes stand in a room or in
            noise; any of them may have a small microphone, clip, or be quiet.

        Returns
        -------
        ndarray, shape (samples,), float32 in [-1, 1]

        Raises
        ------
        ValueError
            If the kind is not known, a room is asked for and there is none, or the waveform is empty.
        """
        _check(waveform)
        if kind not in KINDS:
            raise ValueError(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
        if kind.endswith("room") and not self.rooms:
            raise ValueError(f"{kind}: no rooms were given; make some with simulate_rooms")
        if kind == "clean":
            return set_level(waveform, rng.uniform(-24.0, -1.0))
        heard = waveform
        coded = kind in ("landline", "mobile", "internet")
        if kind == "near_room" or (coded and self.rooms and rng.random() < 0.3):
            heard = reverberate(heard, self._room(rng).near)
        elif kind == "far_room":
            heard = reverberate(heard, self._room(rng).far)
        if kind == "noise" or rng.random() < 0.4:
            quietest, loudest = (0.0, 20.0) if kind == "noise" else (8.0, 30.0)
            heard = add_noise(heard, self._noise(len(heard), rng), rng.uniform(quietest, loudest), rng)
        if rng.random() < 0.5:
            heard = _through_microphone(heard, rng)
        if rng.random() < 0.1:
            heard = clip_peaks(heard, 10 ** rng.uniform(-3.5, -1.3))
        heard = set_level(heard, rng.uniform(-24.0, -1.0))
        if kind == "landline":
            law, images = str(rng.choice(("mu", "a"))), rng.random() < 0.25
            return telephone(heard, rng.uniform(200.0, 400.0), rng.uniform(3200.0, 3700.0), law, images)
        if kind == "mobile":
            return self._mobile(heard, rng)
        if kind == "internet":
            name = str(rng.choice(("opus", "opus", "mp3", "g722")))
            return through_codec(heard, name, int(rng.choice(CODECS[name].bit_rates)))
        return heard

    def _mobile(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        name = str(rng.choice(("gsm", "amr", "amr")))
        band = band_pass(waveform, rng.uniform(80.0, 350.0), rng.uniform(3300.0, 3700.0))
        heard = through_codec(band, name, int(rng.choice(CODECS[name].bit_rates)))
        # Networks often carry a mobile's call on over a landline.
        return telephone(heard, 200.0, 3700.0, "a") if rng.random() < 0.3 else heard

    def _room(self, rng: np.random.Generator) -> Room:
        return self.rooms[int(rng.integers(len(self.rooms)))]

    def _noise(self, samples: int, rng: np.random.Generator) -> Waveform:
        if len(self.noises) and rng.random() < 0.85:
            noise = self.noises[int(rng.integers(len(self.noises)))]
            if np.abs(noise).max() > 0.0:
                return noise
        return rng.standard_normal(samples, np.float32)
