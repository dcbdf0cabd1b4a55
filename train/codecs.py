"""Lossy codecs that speech goes through: GSM and AMR of mobile calls, Opus, MP3 and G.722 of the internet.

Each codes a waveform and decodes it again, in memory: PyAV has the coders, libsndfile that of GSM.

References
----------
ETSI GSM 06.10; 3GPP TS 26.071 (AMR); RFC 6716 (Opus); ITU-T G.722.
"""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .prepare import SAMPLE_RATE

__all__ = ["CODECS", "NARROW_RATE", "Codec", "fitted", "resampled", "through_codec"]

NARROW_RATE = 8000

Waveform = NDArray[np.float32]


def fitted(waveform: NDArray[np.floating], samples: int) -> Waveform:
    """Exactly so many samples: cut, or padded with zeros."""
    out = np.zeros(samples, np.float32)
    out[: min(samples, len(waveform))] = waveform[:samples]
    return out


def resampled(waveform: Waveform, rate: int, new_rate: int) -> Waveform:
    """A waveform at another rate, float32; at its own rate it is returned itself."""
    import soxr

    return waveform if rate == new_rate else np.asarray(soxr.resample(waveform, rate, new_rate, "MQ"), np.float32)


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
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected shape (samples,) with at least one sample, got {waveform.shape}")
    if name not in CODECS:
        raise ValueError(f"expected a codec of {', '.join(CODECS)}, got {name!r}")
    codec = CODECS[name]
    heard = np.clip(resampled(waveform, SAMPLE_RATE, codec.sample_rate), -1.0, 1.0)
    decoded = _gsm(heard) if name == "gsm" else _by_av(heard, codec, bit_rate or codec.bit_rates[0])
    return np.clip(fitted(resampled(decoded, codec.sample_rate, SAMPLE_RATE), len(waveform)), -1.0, 1.0)


def _gsm(narrow: Waveform) -> Waveform:
    import soundfile

    coded = io.BytesIO()
    soundfile.write(coded, narrow, NARROW_RATE, format="WAV", subtype="GSM610")
    coded.seek(0)
    return np.asarray(soundfile.read(coded, dtype="float32")[0], np.float32)


def _by_av(waveform: Waveform, codec: Codec, bit_rate: int) -> Waveform:
    import av

    rate = codec.sample_rate
    encoder: Any  # av's types do not separate audio's contexts from others
    decoder: Any
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
    sound = resampled(np.concatenate(pieces).astype(np.float32), decoder.sample_rate, rate)
    return sound[codec.delay :]
