"""HeardBefore: is this a recording of an utterance that this device has itself heard?

Nobody speaks a phrase twice with the same pitch at the same hundredths of a second; a played-back recording
always does. An utterance is kept as a fingerprint of two pictures, one column every 20 ms: the tracks of the
harmonics (a narrow-band log spectrum without its smooth course over frequency and its mean over time, so that
loudspeaker, microphone and room leave little in it), and the motion of the envelope (log energies of wide
bands without their slow course over time). Two utterances are compared by the normalised cross-correlation of
each picture at every offset; the score is the highest sum of the two at one common offset, 0 to 2. The search
goes over a few playback speeds as well.

It knows nothing of recordings that were made elsewhere, nor of cloned voices. A fingerprint holds the pitch of a
voice: it is biometric data, to be kept and erased like a profile.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import math
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono
from .errors import AudioError, EmoinvError

__all__ = ["FIXED_PHRASE", "FREE_SPEECH", "HeardBefore", "Match", "heard"]

# Scores at and above which an utterance counts as heard before. People who repeat one phrase in one tone come
# nearer to themselves than people who speak freely.
FIXED_PHRASE = 1.45
FREE_SPEECH = 1.20

RATE = 16000
HOP = 320  # 20 ms
FINE_WINDOW = 2048  # 128 ms: separates the harmonics of a voice
FINE_HZ = (250.0, 2500.0)
FINE_SMOOTH = 12  # bins on either side, 94 Hz: what is smoother is the channel's and the vowel's
ENVELOPE_WINDOW = 640  # 40 ms
ENVELOPE_HZ = (300.0, 5500.0)
ENVELOPE_BANDS = 25
ENVELOPE_SLOW = 41  # frames: what is slower is the room's and the loudness's
MARGIN = 24  # bins beyond the narrow-band picture, for smoothing and for other speeds
LEAST_OVERLAP = 0.6  # of the shorter utterance
LEAST_ENERGY = 1e-4  # in the overlap, of the product of both energies
LEAST_S = 0.8
LONGEST_S = 20.0
SPEEDS = tuple(1.0 + 0.0075 * step for step in (0, 1, -1, 2, -2, 3, -3, 4, -4))  # a correlation bears half a step
SPEED_LOSS = 0.1  # of the envelope's correlation, at most, where another speed than the best one is looked at
STEP = 0.4  # of the 4-bit numbers, in standard deviations of a picture

_HEADER = struct.Struct("<dI")  # time of hearing, frames


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """An earlier utterance that this one is a recording of.

    Parameters
    ----------
    score : float
        0 to 2; 2 is the same recording.
    when : datetime.datetime
        When the earlier one was heard, in UTC.
    offset_s : float
        Where in the earlier one this one begins, in seconds.
    """

    score: float
    when: datetime.datetime
    offset_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Fingerprint:
    when: datetime.datetime
    frames: int
    packed: bytes  # 4 bits a number, FINE then ENVELOPE of each frame

    def to_bytes(self) -> bytes:
        return _HEADER.pack(self.when.timestamp(), self.frames) + self.packed

    def pictures(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pairs = np.frombuffer(self.packed, np.uint8).reshape(self.frames, -1)
        values = np.empty((self.frames, 2 * pairs.shape[1]), np.float32)
        values[:, 0::2] = pairs & 15
        values[:, 1::2] = pairs >> 4
        values -= 8.0
        tracks = _num_tracks()
        return values[:, :tracks], values[:, tracks : tracks + ENVELOPE_BANDS]


class HeardBefore:
    """Utterances that were heard, and whether a new one is a recording of one of them.

    Parameters
    ----------
    keep : int
        Utterances that are kept, 1 to 4096; the oldest goes first. 64 of 4 s take 1.1 MB.
    threshold : float
        Score, above 0 and below 2, from which on an utterance counts as heard before: `FIXED_PHRASE` where
        people say one pass phrase again and again, `FREE_SPEECH` where the words change.
    on_add : callable, optional
        Called with the bytes of each fingerprint that `add` keeps, to seal and store them.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> speech = np.random.default_rng(1).standard_normal(32000).astype(np.float32) * 0.1
    >>> heard = HeardBefore()
    >>> heard.check(speech, 16000) is None
    True
    >>> heard.add(speech, 16000)
    >>> heard.check(0.5 * speech[8000:], 16000).offset_s
    0.5

    References
    ----------
    Wang, "An industrial-strength audio search algorithm", ISMIR 2003, for the idea of finding a recording by what
    survives a loudspeaker; the pictures and the score are our own.
    """

    def __init__(
        self, keep: int = 64, threshold: float = FREE_SPEECH, *, on_add: Callable[[bytes], None] | None = None
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= 4096:
            raise ValueError(f"expected keep as an int from 1 to 4096, got {keep!r}; 64 is usual")
        if not 0.0 < threshold < 2.0:  # written so that NaN fails
            raise ValueError(f"expected a threshold between 0 and 2, got {threshold!r}; FREE_SPEECH is usual")
        self._threshold = float(threshold)
        self._kept: deque[_Fingerprint] = deque(maxlen=keep)
        self._on_add = on_add
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Utterances that are kept now."""
        return len(self._kept)

    @property
    def threshold(self) -> float:
        """Score from which on an utterance counts as heard before."""
        return self._threshold

    def add(self, waveform: NDArray[Any], sample_rate: int, when: datetime.datetime | None = None) -> None:
        """Keep the fingerprint of an utterance; one that is shorter than 0.8 s leaves nothing to recognise.

        Parameters
        ----------
        waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            As `emoinv_edge.audio.to_mono` takes it; its first 20 s are kept.
        sample_rate : int
            8000 to 192000 Hz.
        when : datetime.datetime, optional
            When it was heard, with a time zone; now unless given.

        Raises
        ------
        TypeError, AudioError
            If the array's type, dtype, shape or rate is wrong, or it is empty, silent or not finite.
        ValueError
            If `when` has no time zone.
        """
        when = datetime.datetime.now(datetime.timezone.utc) if when is None else when
        if when.tzinfo is None:
            raise ValueError(f"expected a time with a time zone, got {when!r}; use datetime.timezone.utc")
        found = _spectra(waveform, sample_rate)
        if found is not None:
            fine, envelope = _pictures(*found)
            self._keep(_Fingerprint(when, len(fine), _pack(fine, envelope)))

    def extend(self, other: HeardBefore) -> None:
        """Add what another one has heard."""
        with other._lock:
            heard = tuple(other._kept)
        for fingerprint in heard:
            self._keep(fingerprint)

    def _keep(self, fingerprint: _Fingerprint) -> None:
        with self._lock:
            self._kept.append(fingerprint)
        if self._on_add is not None:
            self._on_add(fingerprint.to_bytes())

    def check(self, waveform: NDArray[Any], sample_rate: int) -> Match | None:
        """The earlier utterance that this one is a recording of, or None.

        Parameters
        ----------
        waveform, sample_rate
            As for `add`.

        Returns
        -------
        Match or None
            The best match of all that are kept; None where none reaches the threshold, and for less than 0.8 s.
        """
        found = _spectra(waveform, sample_rate)
        with self._lock:
            heard = tuple(self._kept)
        if found is None or not heard:
            return None
        tests = [_pictures(*_at_speed(*found, speed)) for speed in SPEEDS]
        spectra: dict[tuple[int, int, int], _Spectra] = {}  # of the tests, by picture and length of the transform

        def of_test(number: int, picture: int, length: int) -> _Spectra:
            key = number, picture, length
            if key not in spectra:
                spectra[key] = _Spectra(tests[number][picture], length)
            return spectra[key]

        best = Match(self._threshold, heard[0].when, math.nan)
        for kept in heard:
            length = _fast_length(len(tests[0][0]) * 33 // 32 + kept.frames)
            fine, envelope = kept.pictures()
            motion = _Spectra(envelope, length)
            envelopes = [_correlation(of_test(number, 1, length), motion) for number in range(len(tests))]
            # The harmonics are dear and add 1 at most: only what can still be the best is looked at.
            peaks = [float(found.max()) for found in envelopes]
            least = max(best.score - 1.0, max(peaks) - SPEED_LOSS)
            hopeful = [number for number, peak in enumerate(peaks) if peak >= least]
            tracks = _Spectra(fine, length) if hopeful else motion
            for number in hopeful:
                test = of_test(number, 0, length)
                total = envelopes[number] + _correlation(test, tracks)
                place = int(np.argmax(total))
                if total[place] >= best.score:
                    offset = int(_offsets(test.frames, kept.frames)[place])
                    best = Match(float(total[place]), kept.when, offset * HOP / RATE)
        return None if math.isnan(best.offset_s) else best

    def to_bytes(self) -> bytes:
        """All fingerprints as bytes, unsealed: seal them before they are written anywhere."""
        with self._lock:
            return b"".join(kept.to_bytes() for kept in self._kept)

    @classmethod
    def from_bytes(
        cls,
        content: bytes,
        keep: int = 64,
        threshold: float = FREE_SPEECH,
        *,
        on_add: Callable[[bytes], None] | None = None,
    ) -> HeardBefore:
        """What `to_bytes`, or several `on_add`, gave.

        Raises
        ------
        ValueError
            If the bytes are damaged or foreign.
        """
        heard = cls(keep, threshold, on_add=on_add)
        size = _packed_size()
        position = 0
        while position < len(content):
            head = content[position : position + _HEADER.size]
            position += _HEADER.size
            seconds, frames = _HEADER.unpack(head) if len(head) == _HEADER.size else (math.nan, 0)
            packed = content[position : position + frames * size]
            position += len(packed)
            if not 0.0 <= seconds < 1e11 or not 0 < frames <= _frames(LONGEST_S) or len(packed) != frames * size:
                raise ValueError("expected fingerprints as to_bytes gives them; these bytes are damaged or foreign")
            when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
            heard._kept.append(_Fingerprint(when, frames, packed))
        return heard


def heard(before: HeardBefore, waveform: NDArray[Any], sample_rate: int, *, remember: bool) -> Match | None:
    """The match of an attempt among what was heard; the attempt counts as heard from then on if `remember`.

    Audio that `to_mono` refuses, as silence, matches nothing and leaves nothing. What cannot be stored is logged:
    the decision on the attempt must not be lost to it.
    """
    try:
        match = before.check(waveform, sample_rate)
        if remember:
            before.add(waveform, sample_rate)
    except AudioError:
        return None
    except EmoinvError as error:
        logging.getLogger(__name__).warning("an attempt was not remembered: %s", error)
    return match


class _Spectra:
    """One picture of an utterance over time's frequencies, and its energy up to each frame."""

    def __init__(self, picture: NDArray[np.float32], length: int) -> None:
        self.frames = len(picture)
        self.length = length
        self.spectra = np.ascontiguousarray(np.fft.rfft(picture.T, length).T, np.complex64)
        squares = np.einsum("ij,ij->i", picture, picture, dtype=np.float64)
        self.energy = np.concatenate(([0.0], np.cumsum(squares)))


def _products(left: NDArray[np.complex64], right: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Of each row of one with the same row of the other, the first one conjugated."""
    if hasattr(np, "vecdot"):  # from NumPy 2.0 on
        return np.asarray(np.vecdot(left, right), np.complex64)
    return np.asarray((left.conj() * right).sum(axis=1), np.complex64)


def _fast_length(least: int) -> int:
    """The next length from `least` on that is 2, 3, 5 or 9 times a power of two: transforms of it are quick."""
    return min(factor << max(0, (-(-least // factor) - 1).bit_length()) for factor in (1, 3, 5, 9))


def _offsets(test_frames: int, stored_frames: int) -> NDArray[np.int64]:
    """The frames of a stored utterance where another one may begin, so that enough of both overlaps."""
    least = math.ceil(LEAST_OVERLAP * min(test_frames, stored_frames))
    return np.arange(least - test_frames, stored_frames - least + 1)


def _correlation(test: _Spectra, stored: _Spectra) -> NDArray[np.float64]:
    """Normalised cross-correlation, -1 to 1, at each of `_offsets`."""
    offsets = _offsets(test.frames, stored.frames)
    first, last = np.maximum(offsets, 0), np.minimum(offsets + test.frames, stored.frames)
    energies = (stored.energy[last] - stored.energy[first]) * (
        test.energy[last - offsets] - test.energy[first - offsets]
    )
    products = np.fft.irfft(_products(test.spectra, stored.spectra), test.length)[offsets]
    # Where next to nothing of either overlaps, as at silence, rounding alone would make a correlation.
    least = LEAST_ENERGY * stored.energy[-1] * test.energy[-1]
    return np.asarray(products / np.sqrt(np.maximum(energies, max(least, 1e-12))))


@functools.lru_cache(maxsize=1)
def _fine_bins() -> tuple[int, int]:
    """First bin of the narrow-band picture, and the end."""
    low, high = (round(hz * FINE_WINDOW / RATE) for hz in FINE_HZ)
    return low, high


def _num_tracks() -> int:
    """Numbers of a frame in the narrow-band picture: one for two bins."""
    low, high = _fine_bins()
    return (high - low) // 2


@functools.lru_cache(maxsize=1)
def _bands() -> NDArray[np.int64]:
    """Edges of the wide bands in bins of the short window, equally wide in mel."""
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in ENVELOPE_HZ)
    edges_hz = 700.0 * np.expm1(np.linspace(low, high, ENVELOPE_BANDS + 1) / 1127.0)
    return np.rint(edges_hz * ENVELOPE_WINDOW / RATE).astype(np.int64)


def _spectra(waveform: NDArray[Any], sample_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Log power in narrow bins (with a margin on either side) and in wide bands, a row every 20 ms."""
    mono = to_mono(waveform, sample_rate, RATE)[: round(LONGEST_S * RATE)]
    if len(mono) < LEAST_S * RATE:
        return None
    padded = np.pad(mono, FINE_WINDOW // 2)
    long = np.lib.stride_tricks.sliding_window_view(padded, FINE_WINDOW)[::HOP]
    middle = (FINE_WINDOW - ENVELOPE_WINDOW) // 2
    short = np.lib.stride_tricks.sliding_window_view(padded[middle:], ENVELOPE_WINDOW)[::HOP][: len(long)]
    low, high = _fine_bins()
    fine = _power(long, FINE_WINDOW)[:, low - MARGIN : high + MARGIN]
    bands = _bands()
    wide = np.add.reduceat(_power(short, ENVELOPE_WINDOW)[:, : bands[-1]], bands[:-1], axis=1)
    return _log(fine), _log(wide)


def _power(frames: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    window = np.hanning(length + 1)[:-1].astype(np.float32)
    spectrum = np.fft.rfft(frames * window, axis=1)
    return np.asarray(np.square(spectrum.real) + np.square(spectrum.imag), np.float32)


def _log(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithm above a floor 60 dB below the loudest: what is digital silence must not weigh."""
    floor = np.float32(max(float(power.max()) * 1e-6, 1e-20))
    return np.asarray(np.log(np.maximum(power, floor)), np.float32)


def _at_speed(
    fine: NDArray[np.float32], envelope: NDArray[np.float32], speed: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The log spectra before a playback that was faster by `speed`: slower in time, lower in frequency.

    The wide bands move by less than their width and stay.
    """
    if speed == 1.0:
        return fine, envelope
    times = np.arange(0.0, len(fine) - 1, 1.0 / speed)
    low = _fine_bins()[0] - MARGIN
    bins = np.clip((low + np.arange(fine.shape[1])) * speed - low, 0.0, fine.shape[1] - 1.001)
    fine = _between(_between(fine, times).T, bins).T
    return fine, _between(envelope, times)


def _between(rows: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows at places between the rows, linearly interpolated."""
    floor = np.minimum(places.astype(np.int64), len(rows) - 2)
    share = (places - floor).astype(np.float32)[:, None]
    return np.asarray(rows[floor] * (1.0 - share) + rows[floor + 1] * share, np.float32)


def _pictures(
    fine: NDArray[np.float32], envelope: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The tracks of the harmonics and the motion of the envelope, from log spectra."""
    width = 2 * FINE_SMOOTH + 1
    inner = fine[:, MARGIN - FINE_SMOOTH : fine.shape[1] - MARGIN + FINE_SMOOTH]
    tracks = inner[:, FINE_SMOOTH:-FINE_SMOOTH] - _moving_sum(inner.T, width).T / np.float32(width)
    tracks = tracks[:, 0::2] + tracks[:, 1::2]  # fine enough for harmonics, and half the cost
    tracks -= tracks.mean(axis=0)
    ends = ENVELOPE_SLOW // 2
    ones = np.pad(np.ones((len(envelope), 1), np.float32), ((ends, ends), (0, 0)))
    slow = _moving_sum(np.pad(envelope, ((ends, ends), (0, 0))), ENVELOPE_SLOW) / _moving_sum(ones, ENVELOPE_SLOW)
    motion = np.pad(envelope - slow, ((1, 1), (0, 0)))
    return tracks, np.asarray(0.25 * motion[:-2] + 0.5 * motion[1:-1] + 0.25 * motion[2:], np.float32)


def _moving_sum(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    total = np.concatenate((np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0, dtype=np.float64)))
    return np.asarray(total[width:] - total[:-width], np.float32)


def _packed_size() -> int:
    """Bytes of one frame."""
    return (_num_tracks() + ENVELOPE_BANDS + 1) // 2


def _frames(seconds: float) -> int:
    return 1 + round(seconds * RATE) // HOP


def _pack(*pictures: NDArray[np.float32]) -> bytes:
    """Four bits a number, in steps of `STEP` standard deviations of its picture."""
    scaled = [picture / max(STEP * float(picture.std()), 1e-9) for picture in pictures]
    values = np.clip(np.rint(np.concatenate(scaled, axis=1)) + 8.0, 0, 15).astype(np.uint8)
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)), constant_values=8)
    return (values[:, 0::2] | values[:, 1::2] << 4).tobytes()
