"""Two pictures of an utterance that a loudspeaker, a room and a codec leave as they are, and their comparison.

One column every 20 ms: the tracks of the harmonics (a narrow-band log spectrum without its smooth course over
frequency and its mean over time), and the motion of the envelope (log energies of wide bands without their slow
course over time). Another utterance is laid over them by the normalised cross-correlation of each picture at every
offset; the score is the highest sum of the two at one common offset, 0 to 2.

`Utterance.rigidity` parts a recording from a repeat of the same words: of a recording every third of a second fits
best at one shift and one pitch, while people who repeat themselves hurry and raise their voice in one place and not
in another.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono

__all__ = ["FRAME_BYTES", "HOP_S", "MOST_FRAMES", "AcousticFingerprint", "Fit", "Utterance"]

RATE = 16000
HOP = 320
HOP_S = HOP / RATE
FINE_WINDOW = 2048  # 128 ms: separates the harmonics of a voice
FINE_BINS = (32, 320)  # 250 to 2500 Hz
FINE_SMOOTH = 12  # bins on either side, 94 Hz: what is smoother is the channel's and the vowel's
MARGIN = 24  # bins beyond the picture, for smoothing and for other speeds
ENVELOPE_WINDOW = 640  # 40 ms
ENVELOPE_HZ = (300.0, 5500.0)
ENVELOPE_BANDS = 25
ENVELOPE_SLOW = 41  # frames: what is slower is the room's and the loudness's
LEAST_OVERLAP = 0.6  # of the shorter utterance
LEAST_ENERGY = 1e-4  # in the overlap, of the product of both energies
LEAST_S = 0.8
LONGEST_S = 20.0
SPEEDS = tuple(1.0 + 0.0075 * step for step in (0, 1, -1, 2, -2, 3, -3, 4, -4))  # a correlation bears half a step
LEAST_ENVELOPE = 0.5  # correlation of the envelopes; replays have 0.6 and more
SPEED_LOSS = 0.1  # of the envelope's correlation, at most, where another speed than the best one is looked at
STEP = 0.4  # of the 4-bit numbers, in standard deviations of a picture
PIECE, PIECE_STEP, LEAST_PIECES = 15, 5, 5  # frames of the pieces that are shifted on their own
ENOUGH_PIECES = 25  # 2.7 s; what is shorter has had less time to wander, and counts as less rigid by
SHORTER, SHORTEST = 0.03, 0.042  # so much for each factor e, and so much at most
SHIFTS = (-2, -1, 0, 1, 2)  # frames that a piece may be shifted by,
PITCHES = tuple(1.0 + 0.01 * step for step in range(-4, 5))  # and how much higher it may be
TRACKS = (FINE_BINS[1] - FINE_BINS[0]) // 2  # one for two bins
MOST_FRAMES = 1 + round(LONGEST_S * RATE) // HOP
FRAME_BYTES = (TRACKS + ENVELOPE_BANDS + 1) // 2

Picture = NDArray[np.float32]


class Utterance:
    """The pictures of one utterance, at its own speed and as it was before it was played at another one.

    Parameters
    ----------
    mono : ndarray, shape (samples,), float32
        At 16 kHz. Use `of`.
    """

    @classmethod
    def of(cls, waveform: NDArray[Any], sample_rate: int) -> Utterance | None:
        """Of the first 20 s of what `emoinv_edge.audio.to_mono` takes, with its errors; None below 0.8 s."""
        mono = to_mono(waveform, sample_rate, RATE)[: round(LONGEST_S * RATE)]
        return cls(mono) if len(mono) >= LEAST_S * RATE else None

    def __init__(self, mono: Picture) -> None:
        padded = np.pad(mono, FINE_WINDOW // 2)
        long = np.lib.stride_tricks.sliding_window_view(padded, FINE_WINDOW)[::HOP]
        middle = (FINE_WINDOW - ENVELOPE_WINDOW) // 2
        short = np.lib.stride_tricks.sliding_window_view(padded[middle:], ENVELOPE_WINDOW)[::HOP][: len(long)]
        fine = _log(_power(long, FINE_WINDOW)[:, FINE_BINS[0] - MARGIN : FINE_BINS[1] + MARGIN])
        width = 2 * FINE_SMOOTH + 1
        self._harmonics = fine[:, FINE_SMOOTH:-FINE_SMOOTH] - _moving_sum(fine.T, width).T / np.float32(width)
        bands = _bands()
        wide = _log(np.add.reduceat(_power(short, ENVELOPE_WINDOW)[:, : bands[-1]], bands[:-1], axis=1))
        ends = ENVELOPE_SLOW // 2
        ones = np.pad(np.ones((len(wide), 1), np.float32), ((ends, ends), (0, 0)))
        slow = _moving_sum(np.pad(wide, ((ends, ends), (0, 0))), ENVELOPE_SLOW) / _moving_sum(ones, ENVELOPE_SLOW)
        motion = np.pad(wide - slow, ((1, 1), (0, 0)))
        self._motion = np.asarray(0.25 * motion[:-2] + 0.5 * motion[1:-1] + 0.25 * motion[2:], np.float32)
        self._pictures: dict[tuple[float, float], Picture] = {}
        self._spectra: dict[tuple[int, float, int], _Spectra] = {}

    def tracks(self, speed: float = 1.0, pitch: float = 1.0) -> Picture:
        """The harmonics, shape (frames, 144): slower than heard by `speed`, and lower by `speed` times `pitch`."""
        if (speed, pitch) not in self._pictures:
            low = FINE_BINS[0] - FINE_SMOOTH
            places = np.arange(*FINE_BINS, dtype=np.float64) * (speed * pitch) - low
            found = _between(self._in_time(self._harmonics, speed).T, places).T
            found = found[:, 0::2] + found[:, 1::2]  # fine enough for harmonics, and half the cost
            self._pictures[speed, pitch] = found - found.mean(axis=0)
        return self._pictures[speed, pitch]

    def motion(self, speed: float = 1.0) -> Picture:
        """The envelope, shape (frames, 25). The wide bands move by less than their width with the speed, and stay."""
        return self._in_time(self._motion, speed)

    @staticmethod
    def _in_time(picture: Picture, speed: float) -> Picture:
        return picture if speed == 1.0 else _between(picture, np.arange(0.0, len(picture) - 1, 1.0 / speed))

    def fit(self, stored: AcousticFingerprint, least: float = 0.0) -> Fit | None:
        """The best fit over a stored one, at any speed and offset.

        None where its score is below `least`, or the envelopes alone show that they are no recording of each other.
        """
        frames = len(self._motion) * 33 // 32 + stored.frames
        # The next of 1, 3, 5 and 9 times a power of two: transforms of it are quick.
        length = min(factor << max(0, (-(-frames // factor) - 1).bit_length()) for factor in (1, 3, 5, 9))
        tracks, motion = stored.pictures()
        other = _Spectra(motion, length)
        envelopes = {speed: self._spectra_of(1, speed, length).correlation(other) for speed in SPEEDS}
        peaks = {speed: float(found.max()) for speed, found in envelopes.items()}
        # The harmonics are dear and add 1 at most: only what can still be the best is looked at.
        enough = max(LEAST_ENVELOPE, least - 1.0, max(peaks.values()) - SPEED_LOSS)
        hopeful = [speed for speed in SPEEDS if peaks[speed] >= enough]
        if not hopeful:
            return None
        best, other = None, _Spectra(tracks, length)
        for speed in hopeful:
            own = self._spectra_of(0, speed, length)
            total = envelopes[speed] + own.correlation(other)
            place = int(np.argmax(total))
            if total[place] >= (least if best is None else best.score):
                best = Fit(float(total[place]), speed, int(own.offsets(other)[place]))
        return best

    def _spectra_of(self, picture: int, speed: float, length: int) -> _Spectra:
        """Of `tracks` (0) or `motion` (1), for transforms of a length; each is made once."""
        key = picture, speed, length
        if key not in self._spectra:
            self._spectra[key] = _Spectra(self.motion(speed) if picture else self.tracks(speed), length)
        return self._spectra[key]

    def rigidity(self, stored: AcousticFingerprint, fit: Fit) -> float:
        """How much of the best fit of its pieces one shift and one pitch for all of them gives, -1 to 1.

        1 for the same recording of 2.7 s or more, less for a shorter one; 0 where too little overlaps to judge.
        """
        other, reach = stored.pictures()[0], SHIFTS[-1]
        first = max(fit.offset, reach)
        last = min(fit.offset + len(self.tracks(fit.speed)), stored.frames - reach)
        if last - first < PIECE + (LEAST_PIECES - 1) * PIECE_STEP:
            return 0.0
        shifted = [other[first + shift : last + shift] for shift in SHIFTS]
        energies = [_pieces(each, each) for each in shifted]
        products, norms = [], []
        for pitch in PITCHES:
            own = self.tracks(fit.speed, pitch)[first - fit.offset : last - fit.offset]
            energy = _pieces(own, own)
            products += [_pieces(own, each) for each in shifted]
            norms += [np.sqrt(energy * each) for each in energies]
        weights = np.asarray(norms)  # (pitches x shifts, pieces)
        found = np.asarray(products) / np.maximum(weights, 0.03 * weights.max(axis=1, keepdims=True))
        middle = weights[len(weights) // 2]
        flexible = float(found.max(axis=0) @ middle)
        if not flexible > 0.0:
            return 0.0
        shortness = max(0.0, SHORTER * math.log(ENOUGH_PIECES / len(middle)))
        return float((found @ middle).max()) / flexible - min(shortness, SHORTEST)


class _Spectra:
    """One picture of an utterance over time's frequencies, and its energy up to each frame."""

    def __init__(self, picture: Picture, length: int) -> None:
        self.frames = len(picture)
        self.length = length
        self._values = np.ascontiguousarray(np.fft.rfft(picture.T, length).T, np.complex64)
        squares = np.einsum("ij,ij->i", picture, picture, dtype=np.float64)
        self._energy = np.concatenate(([0.0], np.cumsum(squares)))

    def offsets(self, stored: _Spectra) -> NDArray[np.int64]:
        """The frames of a stored utterance where this one may begin, so that enough of both overlaps."""
        least = math.ceil(LEAST_OVERLAP * min(self.frames, stored.frames))
        return np.arange(least - self.frames, stored.frames - least + 1)

    def correlation(self, stored: _Spectra) -> NDArray[np.float64]:
        """Normalised cross-correlation, -1 to 1, at each of `offsets`."""
        offsets = self.offsets(stored)
        first, last = np.maximum(offsets, 0), np.minimum(offsets + self.frames, stored.frames)
        energies = (stored._energy[last] - stored._energy[first]) * (
            self._energy[last - offsets] - self._energy[first - offsets]
        )
        products = np.einsum("ij,ij->i", self._values.conj(), stored._values)
        # Where next to nothing of either overlaps, as at silence, rounding alone would make a correlation.
        least = max(LEAST_ENERGY * stored._energy[-1] * self._energy[-1], 1e-12)
        return np.asarray(np.fft.irfft(products, self.length)[offsets] / np.sqrt(np.maximum(energies, least)))


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """How one utterance lies best over a stored one.

    Parameters
    ----------
    score : float
        0 to 2.
    speed : float
        How much faster it was played than the stored one.
    offset : int
        Frame of the stored one where it begins.
    """

    score: float
    speed: float
    offset: int


class AcousticFingerprint:
    """The pictures of an utterance in 4 bits a number, 85 bytes a frame.

    Parameters
    ----------
    packed : bytes
        Tracks, then motion, of each frame.
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self.frames = len(packed) // FRAME_BYTES

    @classmethod
    def of(cls, utterance: Utterance) -> AcousticFingerprint:
        """Numbers in steps of `STEP` standard deviations of their picture."""
        pictures = utterance.tracks(), utterance.motion()
        scaled = [picture / max(STEP * float(picture.std()), 1e-9) for picture in pictures]
        values = np.clip(np.rint(np.concatenate(scaled, axis=1)) + 8.0, 0, 15).astype(np.uint8)
        values = np.pad(values, ((0, 0), (0, values.shape[1] % 2)), constant_values=8)
        return cls((values[:, 0::2] | values[:, 1::2] << 4).tobytes())

    def pictures(self) -> tuple[Picture, Picture]:
        """Tracks and motion."""
        pairs = np.frombuffer(self.packed, np.uint8).reshape(self.frames, FRAME_BYTES)
        values = np.empty((self.frames, 2 * FRAME_BYTES), np.float32)
        values[:, 0::2] = pairs & 15
        values[:, 1::2] = pairs >> 4
        values -= 8.0
        return values[:, :TRACKS], values[:, TRACKS : TRACKS + ENVELOPE_BANDS]


def _pieces(left: Picture, right: Picture) -> NDArray[np.float64]:
    """The product of two pictures, summed over each piece."""
    total = np.concatenate(([0.0], np.cumsum(np.einsum("ij,ij->i", left, right, dtype=np.float64))))
    return (total[PIECE:] - total[:-PIECE])[::PIECE_STEP]


@functools.lru_cache(maxsize=1)
def _bands() -> NDArray[np.int64]:
    """Edges of the wide bands in bins of the short window, equally wide in mel."""
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in ENVELOPE_HZ)
    edges_hz = 700.0 * np.expm1(np.linspace(low, high, ENVELOPE_BANDS + 1) / 1127.0)
    return np.rint(edges_hz * ENVELOPE_WINDOW / RATE).astype(np.int64)


def _power(frames: Picture, length: int) -> Picture:
    window = np.hanning(length + 1)[:-1].astype(np.float32)
    spectrum = np.fft.rfft(frames * window, axis=1)
    return np.asarray(np.square(spectrum.real) + np.square(spectrum.imag), np.float32)


def _log(power: Picture) -> Picture:
    """Natural logarithm above a floor 60 dB below the loudest: what is digital silence must not weigh."""
    floor = np.float32(max(float(power.max()) * 1e-6, 1e-20))
    return np.asarray(np.log(np.maximum(power, floor)), np.float32)


def _between(rows: Picture, places: NDArray[np.float64]) -> Picture:
    """Rows at places between the rows, linearly interpolated; beyond the ends, the ends."""
    places = np.clip(places, 0.0, len(rows) - 1.0)
    floor = np.minimum(places.astype(np.int64), len(rows) - 2)
    share = (places - floor).astype(np.float32)[:, None]
    return np.asarray(rows[floor] * (1.0 - share) + rows[floor + 1] * share, np.float32)


def _moving_sum(rows: Picture, width: int) -> Picture:
    total = np.concatenate((np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0, dtype=np.float64)))
    return np.asarray(total[width:] - total[:-width], np.float32)
