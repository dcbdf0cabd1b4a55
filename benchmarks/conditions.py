"""Noise, rooms, channels and whispering, made from nothing but the clip and a seed, so that anybody gets the same."""

from __future__ import annotations

import dataclasses
import functools
import io

import numpy as np
from numpy.typing import NDArray

from train.evaluation.clips import EvaluationSet

__all__ = ["CONDITIONS", "DURATIONS", "degrade", "degraded"]

Waveform = NDArray[np.float32]

SAMPLE_RATE = 16000
CONDITIONS = {
    "clean": "as recorded",
    "noise-20": "noise, 20 dB",
    "noise-10": "noise, 10 dB",
    "noise-5": "noise, 5 dB",
    "noise-0": "noise, 0 dB",
    "room-0.3": "room, RT60 0.3 s",
    "room-0.8": "room, RT60 0.8 s",
    "telephone": "telephone, 8 kHz",
    "opus-12": "Opus, 12 kbit/s",
    "whisper": "whisper-like",
}
DURATIONS = {f"first-{seconds:g}": seconds for seconds in (0.5, 1.0, 2.0, 3.0, 5.0)}


def degraded(evaluation: EvaluationSet, condition: str) -> EvaluationSet:
    """The same clips under one condition; the noise of a clip depends on its number alone."""
    if condition == "clean":
        return evaluation
    return dataclasses.replace(evaluation, waveform=lambda index: degrade(evaluation.waveform(index), condition, index))


def degrade(waveform: Waveform, condition: str, seed: int) -> Waveform:
    """One clip under one condition of `CONDITIONS` or `DURATIONS`.

    Raises
    ------
    ValueError
        If there is no such condition.
    """
    rng = np.random.default_rng([20261124, seed])
    kind, _, value = condition.partition("-")
    if condition == "clean":
        out = waveform
    elif kind == "noise":
        out = add_noise(waveform, float(value), rng)
    elif kind == "room":
        out = reverberate(waveform, impulse_response(float(value)))
    elif condition == "telephone":
        out = telephone(waveform)
    elif kind == "opus":
        out = opus(waveform, 1000 * int(value))
    elif condition == "whisper":
        out = whisper(waveform, rng)
    elif condition in DURATIONS:
        out = loudest_part(waveform, DURATIONS[condition])
    else:
        raise ValueError(f"expected a condition of {[*CONDITIONS, *DURATIONS]}, got {condition!r}")
    peak = float(np.abs(out).max())
    return np.asarray(out if peak <= 1.0 else out / peak, np.float32)


def add_noise(waveform: Waveform, snr_db: float, rng: np.random.Generator) -> Waveform:
    """Steady noise with the long-term spectrum of speech, `snr_db` below the clip's RMS.

    The spectrum is flat to 500 Hz and falls by 9 dB an octave above (Byrne et al. 1994, simplified).
    """
    spectrum = np.fft.rfft(rng.standard_normal(len(waveform)))
    hz = np.fft.rfftfreq(len(waveform), 1.0 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * np.maximum(hz / 500.0, 1.0) ** -1.5, len(waveform))
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    noise *= rms * 10.0 ** (-snr_db / 20.0) / np.sqrt(np.mean(noise**2))
    return np.asarray(waveform + noise, np.float32)


@functools.lru_cache(maxsize=4)
def impulse_response(rt60_s: float) -> Waveform:
    """A shoebox room of 6 x 5 x 3 m by the image method, the microphone 2 m from the mouth."""
    import pyroomacoustics

    size = np.array([6.0, 5.0, 3.0])
    absorption, order = pyroomacoustics.inverse_sabine(rt60_s, size)
    room = pyroomacoustics.ShoeBox(
        size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, 30)
    )
    room.add_source([2.0, 2.4, 1.6])
    room.add_microphone([3.9, 2.9, 1.2])
    room.compute_rir()
    response = np.asarray(room.rir[0][0], np.float64)[: round(1.2 * rt60_s * SAMPLE_RATE) + 400]
    # Without the silence of the way from mouth to microphone.
    return np.asarray(response[int(np.argmax(np.abs(response))) :], np.float32)


def reverberate(waveform: Waveform, response: Waveform) -> Waveform:
    """The clip in a room, as long as before and at the same RMS."""
    size = 1 << (len(waveform) + len(response) - 1).bit_length()
    out = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return np.asarray(out * np.sqrt(np.mean(waveform.astype(np.float64) ** 2) / np.mean(out**2)), np.float32)


def telephone(waveform: Waveform) -> Waveform:
    """8 kHz sampling, 300 to 3400 Hz, 8-bit mu-law (G.711), and back to 16 kHz."""
    import soxr

    narrow = soxr.resample(waveform, SAMPLE_RATE, SAMPLE_RATE // 2)
    spectrum = np.fft.rfft(narrow)
    hz = np.fft.rfftfreq(len(narrow), 2.0 / SAMPLE_RATE)
    spectrum[(hz < 300.0) | (hz > 3400.0)] = 0.0
    narrow = np.clip(np.fft.irfft(spectrum, len(narrow)), -1.0, 1.0)
    companded = np.sign(narrow) * np.log1p(255.0 * np.abs(narrow)) / np.log(256.0)
    companded = np.round(companded * 127.0) / 127.0
    narrow = np.sign(companded) * (256.0 ** np.abs(companded) - 1.0) / 255.0
    return np.asarray(soxr.resample(narrow.astype(np.float32), SAMPLE_RATE // 2, SAMPLE_RATE), np.float32)


def opus(waveform: Waveform, bits_per_second: int) -> Waveform:
    """Through an Opus encoder and decoder."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = bits_per_second
        frame = av.AudioFrame.from_ndarray(
            np.round(np.clip(waveform, -1.0, 1.0) * 32767.0).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    file.seek(0)
    with av.open(file, "r") as reader:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        parts = [part.to_ndarray()[0] for frame in reader.decode(audio=0) for part in resampler.resample(frame)]
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.asarray(np.concatenate(parts), np.float32)


def whisper(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """De-voiced speech: the spectral envelope of each 32 ms, driven by noise, tilted up by 6 dB an octave.

    The envelope keeps the lowest 2 ms of the cepstrum, which drops the pitch.
    """
    size, hop = 512, 128
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(waveform.astype(np.float64), (size, size))
    count = 1 + (len(padded) - size) // hop
    frames = np.stack([padded[i * hop : i * hop + size] for i in range(count)]) * window
    log_power = np.log(np.abs(np.fft.rfft(frames)) ** 2 + 1e-10)
    cepstrum = np.fft.irfft(log_power)
    cepstrum[:, 32:-31] = 0.0
    envelope = np.exp(0.5 * np.fft.rfft(cepstrum).real)
    noise = rng.standard_normal(len(padded))
    source = np.fft.rfft(np.stack([noise[i * hop : i * hop + size] for i in range(count)]) * window)
    hz = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    voice = np.fft.irfft(source * envelope * np.maximum(hz, 200.0) / 1000.0) * window
    out = np.zeros(len(padded))
    for i in range(count):
        out[i * hop : i * hop + size] += voice[i]
    out = out[size : size + len(waveform)]
    return np.asarray(out * np.sqrt(np.mean(waveform.astype(np.float64) ** 2) / np.mean(out**2)), np.float32)


def loudest_part(waveform: Waveform, seconds: float) -> Waveform:
    """The stretch of that length with the most energy, so that short parts are speech and not a pause."""
    length = round(seconds * SAMPLE_RATE)
    if len(waveform) <= length:
        return waveform
    energy = np.concatenate(([0.0], np.cumsum(np.square(waveform, dtype=np.float64))))
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return waveform[start : start + length]
