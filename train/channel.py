"""Channels that speech goes through before a verifier hears it: telephone, codecs, rooms, microphones, noise.

Pure functions: a waveform and the parameters, or an explicit random generator, give a new waveform of equal length.
Waveforms are one-dimensional float32 in [-1, 1] at `SAMPLE_RATE`; none is changed in place. `Channels.hear` draws
one whole chain of a named kind (`KINDS`), as training uses it.

References
----------
ITU-T G.711 (mu-law and A-law); ETSI GSM 06.10; 3GPP TS 26.071 (AMR); RFC 6716 (Opus).
Allen and Berkley, "Image method for efficiently simulating small-room acoustics", 1979.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .augment import add_noise, reverberate

__all__ = [
    "CODECS",
    "KINDS",
    "Channels",
    "Room",
    "a_law",
    "band_pass",
    "clip_peaks",
    "microphone_response",
    "narrow_band",
    "read_rooms",
    "set_level",
    "simulate_rooms",
    "telephone",
    "through_codec",
    "write_rooms",
]

SAMPLE_RATE = 16000
NARROW_RATE = 8000
SOUND_SPEED_M_S = 343.0
LONGEST_RESPONSE_S = 1.0  # of a room: below -60 dB by then for RT60 up to 1 s, and the convolution costs by length
# Above this RT60 the last reflections of an exact simulation cost most of its time and lie 40 dB below the first.
EXACT_RT60_S = 0.6

Waveform = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How PyAV (or libsndfile, for GSM) codes one format.

    Parameters
    ----------
    encoder, decoder : str
        Their names in FFmpeg; for "gsm" both are empty and libsndfile does it.
    sample_rate : int
        Rate that the coder hears, Hz.
    sample_format : str
        Of FFmpeg: "s16" or "fltp".
    bit_rates : tuple of int
        Those that are drawn, bit/s.
    delay : int
        Samples at `sample_rate` by which what FFmpeg decodes still lags behind what was coded.
    options : tuple of (str, str)
        The encoder's private options.
    """

    encoder: str
    decoder: str
    sample_rate: int
    sample_format: str
    bit_rates: tuple[int, ...]
    delay: int = 0
    options: tuple[tuple[str, str], ...] = ()


CODECS: dict[str, Codec] = {
    "gsm": Codec("", "", NARROW_RATE, "s16", (13000,)),
    "amr": Codec("libopencore_amrnb", "amrnb", NARROW_RATE, "s16", (4750, 5900, 7400, 7950, 12200), 39),
    # The lowest complexity of Opus and the fastest search of LAME sound alike for this purpose, at half of the time.
    "opus": Codec(
        "libopus", "libopus", SAMPLE_RATE, "s16", (6000, 8000, 12000, 16000, 24000), 0,
        (("application", "voip"), ("compression_level", "2")),
    ),
    "mp3": Codec(
        "libmp3lame", "mp3float", SAMPLE_RATE, "fltp", (16000, 24000, 32000, 48000), 0,
        (("compression_level", "9"),),
    ),
    "g722": Codec("g722", "g722", SAMPLE_RATE, "s16", (64000,), 22),
}  # fmt: skip

# What `Channels.hear` can draw. Both sides of a matched trial are of one kind, each with parameters of its own.
KINDS = ("clean", "landline", "mobile", "internet", "near_room", "far_room", "noise")


def _check(waveform: Waveform) -> None:
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected shape (samples,) with at least one sample, got {waveform.shape}")


def _fitted(waveform: NDArray[np.floating], samples: int) -> Waveform:
    """Exactly so many samples: cut, or padded with zeros."""
    out = np.zeros(samples, np.float32)
    out[: min(samples, len(waveform))] = waveform[:samples]
    return out


def _resampled(waveform: Waveform, rate: int, new_rate: int) -> Waveform:
    import soxr

    return waveform if rate == new_rate else np.asarray(soxr.resample(waveform, rate, new_rate, "MQ"), np.float32)


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
    return band_pass(_resampled(waveform, SAMPLE_RATE, NARROW_RATE), low_hz, high_hz, NARROW_RATE)


def _from_narrow(narrow: Waveform, samples: int, images: bool) -> Waveform:
    """Back to 16 kHz: by a sinc, which leaves nothing above 4 kHz, or by lines, which leaves faint mirror images."""
    if images:
        at = np.arange(samples) / 2.0
        return np.interp(at, np.arange(len(narrow)), narrow).astype(np.float32)
    return _fitted(_resampled(narrow, NARROW_RATE, SAMPLE_RATE), samples)


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


def through_codec(waveform: Waveform, name: str, bit_rate: int | None = None) -> Waveform:
    """Code and decode; the coder's delay is taken out.

    Parameters
    ----------
    waveform : ndarray, shape (samples,), float32 in [-1, 1]
    name : str
        Of `CODECS`.
    bit_rate : int, optional
        bit/s; the lowest of the codec's own list by default. GSM and G.722 have only one.

    Returns
    -------
    ndarray, shape (samples,), float32 in [-1, 1]

    Raises
    ------
    ValueError
        If the codec is not known, this build of PyAV lacks it, or the waveform is empty or not one-dimensional.
    """
    _check(waveform)
    if name not in CODECS:
        raise ValueError(f"expected a codec of {', '.join(CODECS)}, got {name!r}")
    codec = CODECS[name]
    heard = np.clip(_resampled(waveform, SAMPLE_RATE, codec.sample_rate), -1.0, 1.0)
    decoded = _gsm(heard) if name == "gsm" else _by_av(heard, codec, bit_rate or codec.bit_rates[0])
    return np.clip(_fitted(_resampled(decoded, codec.sample_rate, SAMPLE_RATE), len(waveform)), -1.0, 1.0)


def _gsm(narrow: Waveform) -> Waveform:
    import soundfile

    coded = io.BytesIO()
    soundfile.write(coded, narrow, NARROW_RATE, format="WAV", subtype="GSM610")
    coded.seek(0)
    return np.asarray(soundfile.read(coded, dtype="float32")[0], np.float32)


def _by_av(waveform: Waveform, codec: Codec, bit_rate: int) -> Waveform:
    import av

    rate = codec.sample_rate
    try:
        encoder = av.CodecContext.create(codec.encoder, "w")
        decoder = av.CodecContext.create(codec.decoder, "r")
    except (av.FFmpegError, ValueError) as error:  # an unknown codec is a ValueError of its own
        raise ValueError(f"this build of PyAV has no {codec.encoder} ({error})") from None
    encoder.sample_rate, encoder.layout, encoder.format = rate, "mono", codec.sample_format
    encoder.bit_rate, encoder.options = bit_rate, dict(codec.options)
    encoder.open()
    frame = encoder.frame_size or 320
    # One frame more than there is sound: what the delay holds back at the end comes out too.
    padded = np.zeros((len(waveform) + codec.delay) // frame * frame + 2 * frame, np.float32)
    padded[: len(waveform)] = waveform
    samples = padded if codec.sample_format == "fltp" else np.rint(padded * 32767.0).astype(np.int16)
    packets = []
    for start in range(0, len(samples), frame):
        piece = av.AudioFrame.from_ndarray(samples[None, start : start + frame], codec.sample_format, "mono")
        piece.sample_rate, piece.pts, piece.time_base = rate, start, Fraction(1, rate)
        packets += encoder.encode(piece)
    packets += encoder.encode(None)
    if encoder.extradata:
        decoder.extradata = encoder.extradata
    decoder.sample_rate, decoder.layout = rate, "mono"
    pieces = []
    for packet in [*packets, None]:
        for decoded in decoder.decode(packet):
            values = decoded.to_ndarray().reshape(-1)
            pieces.append(values.astype(np.float32) / (32768.0 if values.dtype == np.int16 else 1.0))
    # Opus decodes at 48 kHz whatever it was given.
    sound = _resampled(np.concatenate(pieces).astype(np.float32), decoder.sample_rate, rate)
    return sound[codec.delay :]


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


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """One place in one simulated room.

    Parameters
    ----------
    near, far : ndarray, shape (taps,), float32
        Impulse responses from one mouth to a microphone at arm's length or closer, and to one across the room.
    rt60_s : float
        Reverberation time that was asked for, s.
    far_m : float
        Distance of the far microphone, m.
    """

    near: Waveform
    far: Waveform
    rt60_s: float
    far_m: float


def simulate_rooms(count: int, seed: int) -> list[Room]:
    """Shoebox rooms by the image-source method, their images slightly displaced (no sweeping echoes).

    Sides of 2.5 to 10 m, 2.3 to 4 m high; RT60 0.2 to 1.0 s; near microphones at 0.15 to 0.6 m, far ones at 1 to 5 m.
    As many orders of reflections are followed as the reverberation time asks for: with a dozen, as is often done, a
    room of 1 s sounds like one of 0.2 s. It takes 0.1 to 3 s a room.

    Parameters
    ----------
    count : int
    seed : int
        Room number i depends on (seed, i) alone.

    Returns
    -------
    list of Room
    """
    return [_simulate_room(np.random.default_rng((seed, number))) for number in range(count)]


def _simulate_room(rng: np.random.Generator) -> Room:
    import pyroomacoustics

    while True:
        size = np.array([rng.uniform(2.5, 10.0), rng.uniform(2.5, 10.0), rng.uniform(2.3, 4.0)])
        rt60 = float(rng.uniform(0.2, 1.0))
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
        except ValueError:  # so short a reverberation is impossible in so large a room
            continue
        mouth = np.array([*rng.uniform(0.4, size[:2] - 0.4), rng.uniform(1.0, 1.8)])
        microphones = []
        for low, high in ((0.15, 0.6), (1.0, 5.0)):
            places = _at_distance(mouth, size, low, high, rng)
            if places is None:
                break
            microphones.append(places)
        if len(microphones) < 2:  # a room too small for the far microphone
            continue
        room = pyroomacoustics.ShoeBox(
            size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption),
            max_order=order if rt60 <= EXACT_RT60_S else round(order * 0.6), use_rand_ism=True, max_rand_disp=0.05,
        )  # fmt: skip
        room.add_source(mouth)
        room.add_microphone(np.stack(microphones, axis=1))
        _compute_responses(room, int(rng.integers(2**31)))
        longest = round(min(1.2 * rt60, LONGEST_RESPONSE_S) * SAMPLE_RATE)
        near, far = (np.asarray(room.rir[m][0], np.float32)[: longest + 2000] for m in range(2))
        scale = [np.float32(1.0 / np.abs(each).max()) for each in (near, far)]
        return Room(near * scale[0], far * scale[1], rt60, float(np.linalg.norm(microphones[1] - mouth)))


def _compute_responses(room: Any, seed: int) -> None:
    """Compute a room's impulse responses, the displacements of its images drawn from `seed` alone."""
    import pyroomacoustics

    if hasattr(pyroomacoustics, "random"):  # since 0.9 it has a generator of its own
        pyroomacoustics.random.seed(seed)
        room.compute_rir()
        return
    # Before, it drew from numpy's global generator: seeded for a moment, and given back as it was.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        room.compute_rir()
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _at_distance(
    mouth: NDArray[np.float64], size: NDArray[np.float64], low_m: float, high_m: float, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """A place so far from the mouth, 5 cm or more from each wall; None if fifty draws find none."""
    for _ in range(50):
        direction = rng.normal(size=3)
        direction[2] *= 0.4  # microphones lie about as high as mouths
        place = mouth + direction / np.linalg.norm(direction) * rng.uniform(low_m, high_m)
        if (place > 0.05).all() and (place < size - 0.05).all():
            return np.asarray(place, np.float64)
    return None


def write_rooms(path: Path, rooms: Sequence[Room]) -> None:
    """Keep simulated rooms as one .npz file, atomically."""
    part = path.with_suffix(".part.npz")
    arrays = {f"{side}{i}": getattr(room, side) for i, room in enumerate(rooms) for side in ("near", "far")}
    facts = np.array([(room.rt60_s, room.far_m) for room in rooms], np.float64).reshape(-1, 2)
    np.savez(part, facts=facts, **arrays)
    part.replace(path)


def read_rooms(path: Path) -> list[Room]:
    """Read what `write_rooms` kept."""
    with np.load(path) as saved:
        return [
            Room(saved[f"near{i}"], saved[f"far{i}"], float(rt60), float(far_m))
            for i, (rt60, far_m) in enumerate(saved["facts"])
        ]


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
