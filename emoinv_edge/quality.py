"""What besides the voice changes a score: net speech, noise, clipping, level, band, reverberation, pitch, vocal effort.

The pitch is described by mean and spread of log F0 over the voiced frames, vocal effort by how much of the
voiced energy lies high: a raised voice flattens the spectrum. Both come from one short-time spectrum, computed
at most once per `HOP_S` of speech. The same spectrum gives the long-term envelope of the voice, which an
encoder whose features are mean-normalised never sees.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["BackgroundMeter", "SpeechQuality", "measure_quality", "merge_qualities", "snr_db"]

FRAME_S = 0.040  # 2.4 periods of the lowest pitch
HOP_S = 0.020
LOW_F0_HZ = 60.0
HIGH_F0_HZ = 620.0
PITCH_BAND_HZ = 1000.0  # harmonics above carry more noise than pitch
VOICED_CORRELATION = 0.45
QUIET_DB = 25.0  # frames this far below the loud ones are neither voiced nor pitch-bearing
OCTAVE_COST = 0.15  # per octave towards long lags: of two equal peaks the shorter period wins
TRACK_COST = 0.50  # per octave away from the utterance's own median
TILT_SPLIT_HZ = 1000.0
TILT_TOP_HZ = 5000.0
CLIP_LEVEL = 0.999
MAX_SNR_DB = 60.0
SILENT_DBFS = -120.0
# The envelope: mel bands, of whose cosine transform the level, the tilt (effort, distance to the microphone)
# and the fine detail (the words) are left out. From 8 coefficients on, more detail changes little.
ENVELOPE_LOW_HZ = 120.0
ENVELOPE_TOP_HZ = 7000.0
ENVELOPE_BANDS = 32
ENVELOPE_FIRST = 2
ENVELOPE_SIZE = 8
# The band: what the loudest frames hold in each of these, against the most of any band below 3 kHz. It ends where the
# spectrum sinks below a limit that the faintest consonants stay above, or, where telephones end, into a notch that
# speech does not have: a call that was resampled carelessly is mirrored at 4 kHz.
BAND_HZ = 250.0
BANDS_FROM_HZ = 1000.0
BANDS_REFERENCE_HZ = 3000.0
BANDS_TOP_HZ = 8000.0
BAND_QUANTILE = 0.95
SUNK_DB = -58.0
NOTCH_FROM_HZ, NOTCH_TOP_HZ, NOTCH_REACH_HZ = 3250.0, 4500.0, 1250.0
NOTCH_DB = 14.0
# The steepest falls of the level: so far apart are the levels, and this share of the falls is steeper.
FALL_S = 0.08
FALL_STEP_S = 0.01
FALL_QUANTILE = 0.05
FALL_LOUD_DB = 20.0
MIN_DECAY_S, MAX_DECAY_S = 0.05, 2.0
MEASURED_LATER = ("bandwidth_hz", "decay_s")  # profiles of before do not have them


@dataclasses.dataclass(frozen=True, slots=True)
class SpeechQuality:
    """The measurable circumstances of one utterance; every number is finite.

    Parameters
    ----------
    net_speech_s : float
        Seconds of speech, pauses left out.
    snr_db : float
        Loud frames against the quietest ones, -10 to 60 dB. An utterance without any pause reads low.
    clipped_fraction : float
        Samples at full scale, 0 to 1.
    level_dbfs : float
        Level of the speech (of everything where there is none): 0 dB is a full-scale square wave, -120 dB
        the floor.
    log_f0_mean : float or None
        Mean of ln(F0 / Hz) over the voiced frames; None when nothing is voiced.
    log_f0_std : float
        Standard deviation of the same; 0 when nothing is voiced.
    tilt_db : float
        Energy of 1-5 kHz over that below 1 kHz in the voiced frames, dB; rises with vocal effort.
        0 when nothing is voiced.
    voiced_fraction : float
        Voiced part of the loud frames, 0 to 1.
    envelope : tuple of float, or None
        Shape of the mean spectrum (of its logarithm) of the voiced frames, level and tilt left out: 8
        coefficients, scaled so that the Euclidean distance of two is an RMS difference in dB. None when
        nothing is voiced, when the recording ends below 7 kHz, or in a profile where it was not measured.
    log_embedding_norm : float or None
        Natural logarithm of the norm that the embedding had before it was scaled to 1
        (`Embedding.norm`), by the encoder whose profile this is or is compared with. None where nothing
        was embedded, or in a profile where it was not kept.
    bandwidth_hz : float or None
        Up to where there is speech in the spectrum, in steps of 250 Hz up to 8000, whatever the rate of the file:
        3500 to 4250 from a telephone, 7000 to 8000 from a good microphone. None where nothing is loud enough, or in
        a profile where it was not measured.
    decay_s : float or None
        In how many seconds the level would fall by 60 dB at its steepest falls, 0.05 to 2: rises with the reverberation
        of the room, and with noise, which hides the falls. None where nothing falls, or in a profile where it was not
        measured.
    """

    net_speech_s: float
    snr_db: float
    clipped_fraction: float
    level_dbfs: float
    log_f0_mean: float | None
    log_f0_std: float
    tilt_db: float
    voiced_fraction: float
    envelope: tuple[float, ...] | None = None
    log_embedding_norm: float | None = None
    bandwidth_hz: float | None = None
    decay_s: float | None = None

    def __post_init__(self) -> None:
        envelope = self.envelope
        if envelope is not None:
            if not isinstance(envelope, (tuple, list)) or len(envelope) != ENVELOPE_SIZE:
                raise ValueError(f"envelope should be {ENVELOPE_SIZE} numbers or None, got {envelope!r}")
            if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in envelope):
                raise ValueError(f"envelope should be numbers, got {envelope!r}")
            if not all(map(math.isfinite, envelope)):
                raise ValueError(f"envelope should be finite numbers, got {envelope!r}")
            object.__setattr__(self, "envelope", tuple(map(float, envelope)))
        for field in dataclasses.fields(self):
            if field.name == "envelope":
                continue
            value = getattr(self, field.name)
            if value is None and field.name in ("log_f0_mean", "log_embedding_norm", *MEASURED_LATER):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{field.name} should be a finite number, got {value!r}")
            object.__setattr__(self, field.name, float(value))
        for name in ("clipped_fraction", "voiced_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} should be 0 to 1, got {getattr(self, name)!r}")
        if self.net_speech_s < 0.0:
            raise ValueError(f"net_speech_s should be at least 0, got {self.net_speech_s!r}")
        for name in MEASURED_LATER:
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"{name} should be above 0, got {value!r}")

    def with_embedding_norm(self, norm: float) -> SpeechQuality:
        """The same with the norm, above 0, of this utterance's embedding (`Embedding.norm`)."""
        return dataclasses.replace(self, log_embedding_norm=math.log(norm))


@functools.lru_cache(maxsize=4)
def _plan(sample_rate: int) -> tuple[int, int, int, int, NDArray[np.float32], NDArray[np.float32]]:
    """Frame, hop, FFT length, bins of the pitch band, window, and what the window does to each lag."""
    frame = round(FRAME_S * sample_rate)
    hop = round(HOP_S * sample_rate)
    fft = 1 << (frame + round(sample_rate / LOW_F0_HZ) - 1).bit_length()
    band = round(PITCH_BAND_HZ * fft / sample_rate)
    window = np.hanning(frame + 2)[1:-1].astype(np.float32)
    return frame, hop, fft, band, window, _lag_gain(window, fft, band)


def _lag_length(band: int) -> int:
    """Length of the inverse transform: four times the rate that the band needs, for fine lags."""
    return 1 << (4 * band - 1).bit_length()


def _lag_gain(window: NDArray[np.float32], fft: int, band: int) -> NDArray[np.float32]:
    padded = np.abs(np.fft.rfft(window.astype(np.float64), fft)) ** 2
    gain = np.fft.irfft(padded[: band + 1], _lag_length(band))
    return np.asarray(gain / gain[0], np.float32)


@functools.lru_cache(maxsize=4)
def _envelope_plan(sample_rate: int, fft: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First bin of each of the bands, equally wide in mel, and the end; the rows of the cosine transform that are kept.

    Bands with sharp edges need no matrix product, which BLAS would spread over threads that wait for each other.
    """
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (ENVELOPE_LOW_HZ, ENVELOPE_TOP_HZ))
    edges_hz = 700.0 * np.expm1(np.linspace(low, high, ENVELOPE_BANDS + 1) / 1127.0)
    order = np.arange(ENVELOPE_FIRST, ENVELOPE_FIRST + ENVELOPE_SIZE)[:, None]
    rows = np.cos(np.pi / ENVELOPE_BANDS * (np.arange(ENVELOPE_BANDS) + 0.5) * order)
    return np.rint(edges_hz * fft / sample_rate).astype(np.int64), rows * (math.sqrt(2.0) / ENVELOPE_BANDS)


@dataclasses.dataclass(frozen=True, slots=True)
class _Frames:
    power_db: NDArray[np.float32]  # (frames,) mean power per sample
    loud: NDArray[np.bool_]  # (frames,)
    voiced: NDArray[np.bool_]  # (frames,)
    log_f0: NDArray[np.float32]  # (frames,) meaningful where voiced
    tilt: NDArray[np.float32]  # (frames, 2) energy below and above the split
    envelope: tuple[float, ...] | None  # of the voiced frames
    bandwidth_hz: float | None  # of the loud frames


def _analyse(waveform: NDArray[np.float32], sample_rate: int) -> _Frames:
    frame, hop, fft, band, window, lag_gain = _plan(sample_rate)
    if len(waveform) < frame:
        empty = np.empty(0, np.float32)
        return _Frames(empty, empty.astype(bool), empty.astype(bool), empty, np.empty((0, 2), np.float32), None, None)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame)[::hop]
    centred = frames - frames.mean(axis=1, keepdims=True)
    power = np.einsum("ij,ij->i", centred, centred) / np.float32(frame)
    power_db = 10.0 * np.log10(np.maximum(power, np.float32(1e-12)))
    top = float(np.percentile(power_db, 95))
    loud = (power_db > top - QUIET_DB) & (power_db > SILENT_DBFS + 20.0)
    log_f0 = np.zeros(len(frames), np.float32)
    voiced = np.zeros(len(frames), bool)
    tilt = np.zeros((len(frames), 2), np.float32)
    envelope = bandwidth_hz = None
    if loud.any():
        spectrum = np.fft.rfft(centred[loud] * window, fft, axis=1)
        energy = np.square(spectrum.real)
        energy += np.square(spectrum.imag)
        split = round(TILT_SPLIT_HZ * fft / sample_rate)
        high = min(round(TILT_TOP_HZ * fft / sample_rate), energy.shape[1])
        low = round(LOW_F0_HZ * fft / sample_rate)
        tilt[loud, 0] = energy[:, low:split].sum(axis=1)
        tilt[loud, 1] = energy[:, split:high].sum(axis=1)
        flat = np.sqrt(energy[:, : band + 1])  # magnitude rather than power: formants weigh less
        lags = np.asarray(np.fft.irfft(flat, _lag_length(band), axis=1), np.float32)
        voiced[loud], log_f0[loud] = _pitch(lags, lag_gain, sample_rate * _lag_length(band) / fft)
        envelope = _envelope(energy[voiced[loud]], sample_rate, fft)
        bandwidth_hz = _bandwidth(energy, sample_rate, fft)
    return _Frames(power_db, loud, voiced, log_f0, tilt, envelope, bandwidth_hz)


def _bandwidth(energy: NDArray[np.float32], sample_rate: int, fft: int) -> float | None:
    """Where the spectrum of loud frames, shape (frames, bins), ends: the last band before it sinks."""
    count = int(min(BANDS_TOP_HZ, sample_rate / 2.0) / BAND_HZ)
    edges = np.rint(np.arange(count) * BAND_HZ * fft / sample_rate).astype(np.int64)
    end = round(count * BAND_HZ * fft / sample_rate)
    bands = np.add.reduceat(energy[:, :end], edges, axis=1)
    place = min(len(bands) - 1, math.floor(BAND_QUANTILE * len(bands)))
    levels = 10.0 * np.log10(np.maximum(np.partition(bands, place, axis=0)[place], 1e-14))
    first, last = int(BANDS_FROM_HZ / BAND_HZ), int(BANDS_REFERENCE_HZ / BAND_HZ)
    levels -= levels[1:last].max()
    sunk = levels < SUNK_DB
    reach = int(NOTCH_REACH_HZ / BAND_HZ)
    for at in range(int(NOTCH_FROM_HZ / BAND_HZ), min(int(NOTCH_TOP_HZ / BAND_HZ), count)):
        sides = levels[at - reach : at], levels[at + 1 : at + 1 + reach]
        sunk[at] |= len(sides[1]) > 0 and levels[at] < min(map(np.max, sides)) - NOTCH_DB
    ends = np.flatnonzero(sunk[first:])
    return float(BAND_HZ * (first + ends[0] if len(ends) else count))


def _envelope(energy: NDArray[np.float32], sample_rate: int, fft: int) -> tuple[float, ...] | None:
    if not len(energy) or sample_rate < 2.0 * ENVELOPE_TOP_HZ:
        return None
    edges, rows = _envelope_plan(sample_rate, fft)
    bands = np.add.reduceat(energy[:, : edges[-1]], edges[:-1], axis=1) / np.diff(edges).astype(np.float32)
    mean_db = 10.0 * np.log10(np.maximum(bands, np.float32(1e-12))).mean(axis=0, dtype=np.float64)
    return tuple((rows * mean_db).sum(axis=1).tolist())


def _pitch(
    lags: NDArray[np.float32], lag_gain: NDArray[np.float32], lag_rate: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Voicing and ln F0 of each frame from autocorrelations, shape (frames, lags).

    Two passes instead of a Viterbi search: the second one leans towards the utterance's own median,
    which mends most octave jumps and costs two array operations.
    """
    first = math.floor(lag_rate / HIGH_F0_HZ)
    last = math.ceil(lag_rate / LOW_F0_HZ)
    correlation = lags[:, first - 1 : last + 2] / np.maximum(lags[:, :1], np.float32(1e-30))
    correlation /= lag_gain[first - 1 : last + 2]
    peak = np.zeros((len(lags), correlation.shape[1]), bool)
    peak[:, 1:-1] = (correlation[:, 1:-1] >= correlation[:, :-2]) & (correlation[:, 1:-1] > correlation[:, 2:])
    octaves = np.log2(np.arange(first - 1, last + 2) / first).astype(np.float32)
    merit = np.where(peak, correlation - np.float32(OCTAVE_COST) * octaves, np.float32(-np.inf))
    best = merit.argmax(axis=1)
    rows = np.arange(len(lags))
    voiced = peak[rows, best] & (correlation[rows, best] > VOICED_CORRELATION)
    if voiced.any():
        middle = np.float32(np.median(octaves[best[voiced]]))
        merit -= np.float32(TRACK_COST) * np.abs(octaves - middle)
        best = merit.argmax(axis=1)
        voiced = peak[rows, best] & (correlation[rows, best] > VOICED_CORRELATION)
    best = np.clip(best, 1, correlation.shape[1] - 2)
    left, centre, right = correlation[rows, best - 1], correlation[rows, best], correlation[rows, best + 1]
    bend = left - 2.0 * centre + right
    shift = np.where(np.abs(bend) > 1e-12, 0.5 * (left - right) / np.where(np.abs(bend) > 1e-12, bend, 1.0), 0.0)
    period = best + (first - 1) + np.clip(shift, -0.5, 0.5)
    return voiced, np.log(lag_rate / period).astype(np.float32)


def measure_quality(
    waveform: NDArray[np.float32], sample_rate: int = 16000, speech: NDArray[np.float32] | None = None
) -> SpeechQuality:
    """Measure the circumstances of one utterance.

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
        The utterance with its pauses; noise is judged from the pauses.
    sample_rate : int
    speech : ndarray, shape (samples,), float32, optional
        Its speech alone, pauses cut out (`emoinv_edge.vad.speech_only`). Without it the whole waveform
        counts as speech.

    Returns
    -------
    SpeechQuality

    Raises
    ------
    TypeError, ValueError
        If an array is not one-dimensional float32 or holds a NaN or an infinity.
    """
    _check(waveform, sample_rate)
    if speech is None:
        speech = waveform
    else:
        _check(speech, sample_rate)
    frames = _analyse(speech, sample_rate)
    background = frames.power_db if speech is waveform else _power_db(waveform, sample_rate)
    log_f0 = frames.log_f0[frames.voiced].astype(np.float64)
    low, high = frames.tilt[frames.voiced].astype(np.float64).sum(axis=0) if len(log_f0) else (0.0, 0.0)
    heard = speech if len(speech) else waveform  # without any speech, the level of what there was
    power = float(np.mean(np.square(heard, dtype=np.float64))) if len(heard) else 0.0
    return SpeechQuality(
        net_speech_s=len(speech) / sample_rate,
        snr_db=snr_db(background),
        clipped_fraction=float(np.mean(np.abs(waveform) >= CLIP_LEVEL)) if len(waveform) else 0.0,
        level_dbfs=max(SILENT_DBFS, 10.0 * math.log10(max(power, 1e-12))),
        log_f0_mean=float(log_f0.mean()) if len(log_f0) else None,
        log_f0_std=float(log_f0.std()) if len(log_f0) else 0.0,
        tilt_db=10.0 * math.log10(max(high, 1e-12) / max(low, 1e-12)) if len(log_f0) else 0.0,
        voiced_fraction=float(frames.voiced.sum() / max(1, frames.loud.sum())),
        envelope=frames.envelope,
        bandwidth_hz=frames.bandwidth_hz,
        decay_s=_decay(waveform, sample_rate),
    )


def merge_qualities(qualities: list[SpeechQuality]) -> SpeechQuality:
    """The quality of an utterance from those of its consecutive parts.

    Pitch, effort and envelope are averaged over the voiced speech, the spread of the pitch within and
    between the parts; the noise and the clipping are those of the worst part, the band is that of the widest.
    """
    seconds = np.array([quality.net_speech_s for quality in qualities])
    fractions = np.array([quality.voiced_fraction for quality in qualities])
    voiced = fractions * seconds * [quality.log_f0_mean is not None for quality in qualities]
    total, sounded = float(seconds.sum()), float(voiced.sum())
    log_f0_mean, log_f0_std, tilt_db = None, 0.0, 0.0
    if sounded > 0.0:
        share = voiced / sounded
        means = np.array([quality.log_f0_mean or 0.0 for quality in qualities])
        log_f0_mean = float(share @ means)
        within = np.array([quality.log_f0_std for quality in qualities]) ** 2
        log_f0_std = math.sqrt(float(share @ (within + (means - log_f0_mean) ** 2)))
        tilt_db = float(share @ np.array([quality.tilt_db for quality in qualities]))
    known = [k for k, quality in enumerate(qualities) if quality.envelope is not None and voiced[k] > 0.0]
    envelope = None
    if known:
        shapes = np.array([qualities[k].envelope for k in known])
        envelope = tuple((voiced[known] @ shapes / voiced[known].sum()).tolist())
    power = 10.0 ** (np.array([quality.level_dbfs for quality in qualities]) / 10.0)
    return SpeechQuality(
        net_speech_s=total,
        snr_db=min(quality.snr_db for quality in qualities),
        clipped_fraction=max(quality.clipped_fraction for quality in qualities),
        level_dbfs=10.0 * math.log10(max(1e-12, float(power @ seconds) / max(total, 1e-9))),
        log_f0_mean=log_f0_mean,
        log_f0_std=log_f0_std,
        tilt_db=tilt_db,
        voiced_fraction=min(1.0, float(fractions @ seconds) / max(total, 1e-9)),
        envelope=envelope,
        bandwidth_hz=max(
            (quality.bandwidth_hz for quality in qualities if quality.bandwidth_hz is not None), default=None
        ),
        decay_s=_mean_decay(qualities),
    )


def _mean_decay(qualities: list[SpeechQuality]) -> float | None:
    """The mean of the parts' logarithms, by their seconds; None where it was measured in none."""
    known = [(each.net_speech_s, math.log(each.decay_s)) for each in qualities if each.decay_s is not None]
    seconds = sum(weight for weight, _ in known)
    return math.exp(sum(weight * value for weight, value in known) / seconds) if seconds > 0.0 else None


def _decay(waveform: NDArray[np.float32], sample_rate: int) -> float | None:
    """60 dB over the steepest falls of the level per second; None where there is no fall or too little to measure."""
    return _decay_of(_step_powers(waveform, round(FALL_STEP_S * sample_rate)))


def _step_powers(waveform: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    blocks = waveform[: len(waveform) // step * step].reshape(-1, step)
    return np.asarray(np.einsum("ij,ij->i", blocks, blocks) / np.float32(step), np.float32)


def _decay_of(power: NDArray[np.float32]) -> float | None:
    level = 10.0 * np.log10(np.maximum(power, np.float32(1e-12)))
    apart = round(FALL_S / FALL_STEP_S)
    if len(level) <= apart:
        return None
    loud = level[:-apart] > np.percentile(level, 95) - FALL_LOUD_DB
    falls = (level[:-apart] - level[apart:])[loud]
    steepest = float(np.quantile(falls, 1.0 - FALL_QUANTILE)) if len(falls) else 0.0
    return min(MAX_DECAY_S, max(MIN_DECAY_S, 60.0 * FALL_S / steepest)) if steepest > 0.0 else None


class BackgroundMeter:
    """What `measure_quality` takes from a whole recording, pauses included, for one that comes in blocks.

    Noise, clipping and decay have the bits that `measure_quality` gives for the blocks joined.
    """

    def __init__(self, sample_rate: int) -> None:
        self._frame, hop, *_ = _plan(sample_rate)
        self._clipped = self._squares = 0.0
        self.num_samples = 0
        self._steps = (hop, _hop_powers), (round(FALL_STEP_S * sample_rate), _step_powers)
        self._rests = [np.empty(0, np.float32)] * 2
        self._powers: tuple[list[NDArray[np.float32]], ...] = [np.empty(0, np.float32)], [np.empty(0, np.float32)]

    def add(self, block: NDArray[np.float32]) -> None:
        """Take the next samples, shape (samples,), float32 in [-1, 1]; any number of them."""
        self.num_samples += len(block)
        self._clipped += float(np.count_nonzero(np.abs(block) >= CLIP_LEVEL))
        self._squares += float(np.sum(np.square(block, dtype=np.float64)))
        for place, (step, powers) in enumerate(self._steps):
            samples = np.concatenate([self._rests[place], block])
            whole = len(samples) // step * step
            self._powers[place].append(powers(samples[:whole], step))
            self._rests[place] = samples[whole:].copy()

    @property
    def decay_s(self) -> float | None:
        """As `SpeechQuality.decay_s`."""
        return _decay_of(np.concatenate(self._powers[1]))

    @property
    def snr_db(self) -> float:
        """As `SpeechQuality.snr_db`."""
        if self.num_samples < self._frame:
            return snr_db(np.empty(0, np.float32))
        return snr_db(_frame_powers_db(np.concatenate(self._powers[0])))

    @property
    def clipped_fraction(self) -> float:
        """As `SpeechQuality.clipped_fraction`."""
        return self._clipped / max(1, self.num_samples)

    @property
    def level_dbfs(self) -> float:
        """The level of everything, in dB as `SpeechQuality.level_dbfs`."""
        return 10.0 * math.log10(max(self._squares / max(1, self.num_samples), 1e-12))


def _power_db(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    frame, hop, *_ = _plan(sample_rate)
    if len(waveform) < frame:
        return np.empty(0, np.float32)
    return _frame_powers_db(_hop_powers(waveform[: len(waveform) // hop * hop], hop))


def _hop_powers(waveform: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    blocks = waveform.reshape(-1, hop)
    blocks = blocks - blocks.mean(axis=1, keepdims=True)  # an offset is no noise
    return np.asarray(np.einsum("ij,ij->i", blocks, blocks) / np.float32(hop), np.float32)


def _frame_powers_db(powers: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the powers of hops, those of frames, which are two hops long."""
    powers = 0.5 * (powers[:-1] + powers[1:])
    return np.asarray(10.0 * np.log10(np.maximum(powers, np.float32(1e-12))), np.float32)


def snr_db(power_db: NDArray[np.float32]) -> float:
    """Loud frames over quiet ones: 10 log10((speech - noise) / noise), clipped to -10 .. 60 dB.

    Parameters
    ----------
    power_db : ndarray, shape (frames,), float32
        Mean power of each frame, dB; with fewer than 5 the answer is 0.
    """
    if len(power_db) < 5:
        return 0.0
    quiet, loud = np.percentile(power_db, (5, 90))
    noise = 10.0 ** (float(quiet) / 10.0)
    speech = 10.0 ** (float(loud) / 10.0) - noise
    return float(np.clip(10.0 * math.log10(max(speech, 1e-13) / max(noise, 1e-12)), -10.0, MAX_SNR_DB))


def _check(waveform: NDArray[np.float32], sample_rate: int) -> None:
    if not isinstance(waveform, np.ndarray) or waveform.dtype != np.float32:
        got = waveform.dtype if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise TypeError(f"expected a float32 array in [-1, 1], got {got}; convert it with emoinv_edge.audio.to_mono")
    if waveform.ndim != 1:
        raise ValueError(f"expected shape (samples,), got {waveform.shape}; mix the channels down first")
    if not 8000 <= sample_rate <= 192000:
        raise ValueError(f"expected a sample rate of 8000 to 192000, got {sample_rate}")
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds a NaN or an infinity; find the fault in the recording chain")
