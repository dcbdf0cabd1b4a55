"""Under which conditions speech was heard, and what a calibration knows of them.

A telephone takes the upper half of the spectrum away. Two voices through telephones sound more alike than they are, and
one voice through a telephone and past it less: a calibration holds a shift of the LLR for each case. It also holds how
far the speech reached that it was fitted on; beyond it, a decision is marked.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError
from .fields import is_finite

if TYPE_CHECKING:
    from .quality import SpeechQuality

__all__ = ["Conditions", "Heard", "describe", "differ"]

# Words for people; the shifts of a calibration have a limit of their own.
NARROW_HZ = 4600.0
NOISY_DB = 15.0
ECHOING_S = 0.45
MAX_SHIFT = 6.0  # nats, either way


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """Where one side of a comparison was heard: a test, or a profile by the mean of its exemplars; None is unknown.

    Parameters
    ----------
    bandwidth_hz, snr_db, decay_s : float or None
        As in `SpeechQuality`.
    """

    bandwidth_hz: float | None = None
    snr_db: float | None = None
    decay_s: float | None = None

    @classmethod
    def of(cls, *qualities: SpeechQuality) -> Heard:
        """The means of what is known."""

        def mean(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.mean(known)) if known else None

        return cls(
            mean([quality.bandwidth_hz for quality in qualities]),
            mean([quality.snr_db for quality in qualities]),
            mean([quality.decay_s for quality in qualities]),
        )


def describe(heard: Heard) -> str:
    """The condition in words: ``wide band`` or ``telephone band``, ``noisy``, ``echoing``; ``unknown band``.

    Examples
    --------
    >>> describe(Heard(3750.0, 12.0, 0.2))
    'telephone band, noisy'
    """
    words = [_band(heard)]
    if heard.snr_db is not None and heard.snr_db < NOISY_DB:
        words.append("noisy")
    elif heard.decay_s is not None and heard.decay_s > ECHOING_S:
        words.append("echoing")
    return ", ".join(words)


def _band(heard: Heard) -> str:
    if heard.bandwidth_hz is None:
        return "unknown band"
    return "telephone band" if heard.bandwidth_hz < NARROW_HZ else "wide band"


def differ(profile: Heard, test: Heard) -> str:
    """A warning where the bands of both sides differ, or else an empty text."""
    bands = _band(profile), _band(test)
    if "unknown band" in bands or bands[0] == bands[1]:
        return ""
    return (
        f"the profile was enrolled in {bands[0]}, this is {bands[1]}: owners are rejected more often; "
        "enrol on the device that verifies"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions:
    """What a calibration knows of the conditions that it was fitted in.

    Parameters
    ----------
    narrow_below_hz : float
        Speech whose band ends below is narrow.
    both_narrow, profile_narrow, test_narrow : float
        Added to the LLR where both sides are narrow, or only one is, so that one threshold keeps its rate in all
        cases; -6 to 6.
    narrowest_hz, least_snr_db, longest_decay_s : float
        How far the calibration speech reached.

    Raises
    ------
    ModelFormatError
        If a number is out of range.
    """

    narrow_below_hz: float
    both_narrow: float
    profile_narrow: float
    test_narrow: float
    narrowest_hz: float
    least_snr_db: float
    longest_decay_s: float

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in values.items():
            if not is_finite(value):
                raise ModelFormatError(f"calibration: {name} should be a finite number, got {value!r}; it is damaged")
        for name in ("both_narrow", "profile_narrow", "test_narrow"):
            if abs(values[name]) > MAX_SHIFT:
                raise ModelFormatError(
                    f"calibration: {name} should be {-MAX_SHIFT:g} to {MAX_SHIFT:g}, got {values[name]!r}; "
                    "it is damaged"
                )
        if not 0.0 < self.narrowest_hz <= self.narrow_below_hz:
            raise ModelFormatError(
                f"calibration: narrowest_hz should be above 0 and at most narrow_below_hz, got {self.narrowest_hz!r} "
                f"and {self.narrow_below_hz!r}; it is damaged"
            )

    def shift(self, profile_hz: NDArray[np.float64], test_hz: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added to the LLR of each trial; for an unknown band the least of what it could be.

        Parameters
        ----------
        profile_hz, test_hz : ndarray, shape (trials,), float64
            The bandwidths; NaN where unknown.
        """
        cases = np.array([[0.0, self.test_narrow], [self.profile_narrow, self.both_narrow]])
        found = np.full(np.shape(profile_hz), np.inf)
        for profile_narrow in (0, 1):
            for test_narrow in (0, 1):
                possible = self._may_be(profile_hz, profile_narrow) & self._may_be(test_hz, test_narrow)
                case = cases[profile_narrow, test_narrow]
                found = np.where(possible, np.minimum(found, case), found)
        return found

    def _may_be(self, bandwidth_hz: NDArray[np.float64], narrow: int) -> NDArray[np.bool_]:
        return np.asarray(np.isnan(bandwidth_hz) | ((bandwidth_hz < self.narrow_below_hz) == bool(narrow)))

    def beyond(self, heard: Heard, whose: str) -> str:
        """In what one side goes beyond the calibration speech, or an empty text.

        Parameters
        ----------
        heard : Heard
        whose : str
            The side, in words, with which the text begins.
        """
        if heard.bandwidth_hz is not None and heard.bandwidth_hz < self.narrowest_hz:
            return f"{whose} has a band of {heard.bandwidth_hz:.0f} Hz, calibrated from {self.narrowest_hz:.0f} Hz on"
        if heard.snr_db is not None and heard.snr_db < self.least_snr_db:
            return (
                f"{whose} stands {heard.snr_db:.0f} dB above its noise, calibrated from {self.least_snr_db:.0f} dB on"
            )
        if heard.decay_s is not None and heard.decay_s > self.longest_decay_s:
            return f"{whose} reverberates for {heard.decay_s:.2f} s, calibrated up to {self.longest_decay_s:.2f} s"
        return ""

    def widened(self, narrowest_hz: float, least_snr_db: float, longest_decay_s: float) -> Conditions:
        """The same, reaching as far as a device's own speech where that is farther."""
        return dataclasses.replace(
            self,
            narrowest_hz=min(self.narrowest_hz, narrowest_hz),
            least_snr_db=min(self.least_snr_db, least_snr_db),
            longest_decay_s=max(self.longest_decay_s, longest_decay_s),
        )
