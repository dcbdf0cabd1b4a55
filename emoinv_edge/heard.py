"""HeardBefore: is this a recording of an utterance that this device has itself heard?

Nobody speaks a phrase twice with the same pitch at the same hundredths of a second; a played-back recording
always does. It knows nothing of recordings that were made elsewhere, nor of cloned voices. An acoustic fingerprint
holds the pitch of a voice: it is biometric data, to be kept and erased like a profile.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from .acoustic_fingerprint import FRAME_BYTES, HOP_S, MOST_FRAMES, AcousticFingerprint, Utterance
from .errors import AudioError, EmoinvError

__all__ = ["SCORE", "HeardBefore", "Match", "heard"]

SCORE = 1.0  # from which on an utterance may have been heard before,
RIGID = 0.9535  # and has been, if it fits as a whole as well as piece by piece

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


class HeardBefore:
    """Utterances that were heard, and whether a new one is a recording of one of them.

    Parameters
    ----------
    keep : int
        Utterances that are kept, 1 to 4096; the oldest goes first. 64 of 4 s take 1.1 MB.
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

    def __init__(self, keep: int = 64, *, on_add: Callable[[bytes], None] | None = None) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= 4096:
            raise ValueError(f"expected keep as an int from 1 to 4096, got {keep!r}; 64 is usual")
        self._kept: deque[tuple[datetime.datetime, AcousticFingerprint]] = deque(maxlen=keep)
        self._on_add = on_add
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Utterances that are kept now."""
        return len(self._kept)

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
        utterance = Utterance.of(waveform, sample_rate)
        if utterance is not None:
            self._keep(when, AcousticFingerprint.of(utterance))

    def extend(self, other: HeardBefore) -> None:
        """Add what another one has heard."""
        with other._lock:
            heard = tuple(other._kept)
        for when, fingerprint in heard:
            self._keep(when, fingerprint)

    def _keep(self, when: datetime.datetime, fingerprint: AcousticFingerprint) -> None:
        with self._lock:
            self._kept.append((when, fingerprint))
        if self._on_add is not None:
            self._on_add(_to_bytes(when, fingerprint))

    def check(self, waveform: NDArray[Any], sample_rate: int) -> Match | None:
        """The earlier utterance that this one is a recording of, or None.

        Parameters
        ----------
        waveform, sample_rate
            As for `add`.

        Returns
        -------
        Match or None
            The best match of all that are kept; None where none is a recording, and for less than 0.8 s.
        """
        utterance = Utterance.of(waveform, sample_rate)
        with self._lock:
            heard = tuple(self._kept)
        best = None
        if utterance is None:
            return None
        for when, kept in heard:
            fit = utterance.fit(kept, SCORE if best is None else best.score)
            if fit is not None and utterance.rigidity(kept, fit) >= RIGID:
                best = Match(fit.score, when, fit.offset * HOP_S)
        return best

    def to_bytes(self) -> bytes:
        """All fingerprints as bytes, unsealed: seal them before they are written anywhere."""
        with self._lock:
            return b"".join(_to_bytes(*kept) for kept in self._kept)

    @classmethod
    def from_bytes(
        cls, content: bytes, keep: int = 64, *, on_add: Callable[[bytes], None] | None = None
    ) -> HeardBefore:
        """What `to_bytes`, or several `on_add`, gave.

        Raises
        ------
        ValueError
            If the bytes are damaged or foreign.
        """
        heard = cls(keep, on_add=on_add)
        position = 0
        while position < len(content):
            head = content[position : position + _HEADER.size]
            position += _HEADER.size
            seconds, frames = _HEADER.unpack(head) if len(head) == _HEADER.size else (math.nan, 0)
            packed = content[position : position + frames * FRAME_BYTES]
            position += len(packed)
            if not 0.0 <= seconds < 1e11 or not 0 < frames <= MOST_FRAMES or len(packed) != frames * FRAME_BYTES:
                raise ValueError("expected fingerprints as to_bytes gives them; these bytes are damaged or foreign")
            when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
            heard._kept.append((when, AcousticFingerprint(packed)))
        return heard


def _to_bytes(when: datetime.datetime, fingerprint: AcousticFingerprint) -> bytes:
    return _HEADER.pack(when.timestamp(), fingerprint.frames) + fingerprint.packed


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
