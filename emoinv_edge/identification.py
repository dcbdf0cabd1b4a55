"""Identifier: which of many enrolled speakers is this, or nobody.

Every further profile is one more chance for an impostor, so the threshold rises with their number
and the false-accept rate asked for stays what it was. The calibration measured that rise up to some
tens of profiles; beyond, the union bound (m times the profiles, at most m times the rate) continues
it on the safe side, and the decisions say so with ``extrapolated``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .errors import EnrolmentError, ProfileExpiredError
from .profiles import Profile
from .verifier import Decision, Verifier

if TYPE_CHECKING:
    from .encoder import Encoder
    from .scoring import Calibration, Threshold
    from .store import ProfileStore

__all__ = ["Identifier"]


class Identifier:
    """Finds the enrolled speaker, at a false-accept rate for an attempt as a whole.

    Reads the profiles once: build a new one after enrolments and removals. Immutable, and safe to
    share between threads.

    Parameters
    ----------
    encoder : Encoder
    store : ProfileStore or iterable of Profile
        Expired profiles in a store are left out. 1 to 100,000 profiles; about 1 KB each in memory with 256 dimensions.
    target_far : float
        Strangers accepted as anybody, per attempt, whatever the number of profiles.
    extrapolate : bool
        Allow thresholds beyond what the calibration data support; decisions are then marked. With
        False, more profiles than were measured are refused.
    calibration : Calibration, optional
        Instead of the model's own.

    Raises
    ------
    EnrolmentError
        If there is no profile.
    ModelMismatchError
        If a profile was made by another model.
    CalibrationError
        If there is no calibration, or it cannot support the rate.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: ProfileStore | Iterable[Profile],
        target_far: float = 0.01,
        *,
        extrapolate: bool = True,
        calibration: Calibration | None = None,
    ) -> None:
        profiles = tuple(_profiles(store, encoder.fingerprint))
        if not profiles:
            raise EnrolmentError("there is nobody to identify: no profile is enrolled; enrol a speaker first")
        self._verifier = Verifier(encoder, profiles, target_far, extrapolate=extrapolate, calibration=calibration)

    def __len__(self) -> int:
        """The number of profiles."""
        return len(self._verifier.speakers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the profiles."""
        return self._verifier.speakers

    @property
    def threshold(self) -> Threshold:
        """The threshold for so many profiles."""
        return self._verifier.threshold

    @property
    def verifier(self) -> Verifier:
        """The verifier over all profiles, for streams and ready embeddings."""
        return self._verifier

    def identify(self, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """Name the speaker of one recording, or nobody.

        Returns
        -------
        Decision
            ACCEPT with the ``speaker``; REJECT when it is nobody enrolled (``speaker`` then is only
            the least unlikely one); NO_DECISION as for `Verifier.verify`.
        """
        return self._verifier.verify(waveform, sample_rate)


def _profiles(store: ProfileStore | Iterable[Profile], fingerprint: str) -> Iterable[Profile]:
    """Every profile that has not expired; a store is asked for each in turn, without the clips."""
    if hasattr(store, "names") and hasattr(store, "get"):
        for name in store.names():
            try:
                yield store.get(name, model_fingerprint=fingerprint, audio=False)
            except ProfileExpiredError:  # as if it were not there any more; nobody is identified as its speaker
                continue
    else:
        yield from store
