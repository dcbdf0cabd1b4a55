"""Which profiles may be used at this moment: not the expired, not those that were removed.

`Permitted` is asked in every decision. What has expired goes by the clock. Where the profiles came out of a store, its
file is looked at too: as long as it is unchanged that costs a few microseconds, and after a change a short read.
"""

from __future__ import annotations

import datetime
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .errors import EmoinvError, EnrolmentError, ProfileExpiredError, StoreBusyError, StoreError, UnknownSpeakerError
from .profiles import Profile
from .scoring import ProfileBank

if TYPE_CHECKING:
    from .calibration import Calibration, EmotionAxis
    from .encoder import Encoder

__all__ = ["Permitted", "ProfileSource"]

LOOK_S = 60.0  # the store is read so often even where its file seems unchanged
GRACE_S = 60.0  # how long decisions go on while another process keeps the store from being read
WAIT_S = 0.25

Expiry = datetime.datetime | None

log = logging.getLogger(__name__)


class ProfileSource(Protocol):
    """What a verifier asks of a `ProfileStore`."""

    def usable(
        self, model_fingerprint: str, names: Iterable[str] | None = None, *, timeout_s: float | None = None
    ) -> tuple[list[Profile], dict[str, EmoinvError]]:
        """The profiles that can be used with a model, and by name why the others cannot."""

    def versions(self, names: Iterable[str], *, timeout_s: float | None = None) -> dict[str, str]:
        """`Profile.version` of those that there are."""

    def signature(self) -> tuple[object, ...]:
        """What is another after a change; empty where that is not known yet."""

    def calibration(self, encoder: Encoder) -> Calibration | None:
        """The encoder's calibration on this device."""

    def note_model(self, encoder: Encoder) -> None:
        """Remember the file behind a model, and say so where it is another than before."""


class Permitted:
    """The profiles of one verifier, as far as they may be used now; safe to share between threads.

    Parameters
    ----------
    profiles : sequence of Profile
    left_out : mapping of str to EmoinvError
        Those that could not even be read, and why.
    emotion_axis : EmotionAxis or None
        Of the calibration that will score.
    store : ProfileSource or None
        Where those with a `Profile.version` came from.
    fingerprint : str
        Of the model.

    Raises
    ------
    EnrolmentError
        If there is no profile.
    EmoinvError
        What keeps the one or all of them from being used.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        left_out: Mapping[str, EmoinvError],
        emotion_axis: EmotionAxis | None,
        store: ProfileSource | None,
        fingerprint: str,
    ) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._axis = emotion_axis
        self._store = store
        self._fingerprint = fingerprint
        self._signature: tuple[object, ...] = ()
        self._looked = time.monotonic()
        self._left_out: dict[str, str] = {}
        self._reasons: list[EmoinvError] = []
        for name, error in left_out.items():
            self._leave_out(name, error)
        self._use([profile for profile in profiles if not self._refused(profile)])
        if not self._profiles:
            raise self._reasons[0] if len(self._reasons) == 1 else self._nobody()

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, for another process; a store refuses, since it holds a key."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._process = threading.Lock(), os.getpid()

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that could be used when last looked at."""
        return tuple(profile.name for profile in self._profiles)

    @property
    def only(self) -> str:
        """The name where there is but one; else empty."""
        return self._profiles[0].name if len(self._profiles) == 1 else ""

    @property
    def left_out(self) -> Mapping[str, str]:
        """By name, which may not be used, and why."""
        return dict(self._left_out)

    def now(self) -> tuple[ProfileBank, tuple[Expiry, ...]]:
        """Those that may be used at this moment, and when they expire.

        Raises
        ------
        StoreError
            If there is none left, or the store cannot be read.
        """
        if self._due():
            if self._process != os.getpid():  # a fork may have copied the lock while a thread held it
                self._process, self._lock = os.getpid(), threading.Lock()
            with self._lock:
                if self._store is not None and self._watched:
                    self._look(self._store)
                if self._has_expired():
                    self._use([profile for profile in self._profiles if not self._refused(profile)])
        bank, expires = self._state
        if bank is None:
            raise self._nobody()
        return bank, expires

    def _due(self) -> bool:
        """Whether anything may have changed since the last look."""
        if self._has_expired():
            return True
        if self._store is None or not self._watched:
            return False
        signature = self._store.signature()
        return not signature or signature != self._signature or time.monotonic() - self._looked >= LOOK_S

    def _has_expired(self) -> bool:
        return self._earliest is not None and datetime.datetime.now(datetime.timezone.utc) >= self._earliest

    def _use(self, profiles: Sequence[Profile]) -> None:
        bank = ProfileBank(profiles, self._axis) if profiles else None
        expires = tuple(profile.expires for profile in profiles)
        self._profiles = tuple(profiles)
        self._earliest = min((each for each in expires if each is not None), default=None)
        self._watched = {profile.name: profile.version for profile in profiles if profile.version}
        self._state = bank, expires  # as one, for threads that do not take the lock

    def _refused(self, profile: Profile) -> bool:
        if not profile.expired():
            return False
        self._leave_out(
            profile.name,
            ProfileExpiredError(
                f"profile {profile.name!r} expired on {profile.expires:%Y-%m-%d %H:%M} UTC; enrol the speaker again"
            ),
        )
        return True

    def _leave_out(self, name: str, error: EmoinvError) -> None:
        self._left_out[name] = str(error)
        self._reasons.append(error)
        log.warning("left out: %s", error)

    def _nobody(self) -> EmoinvError:
        if not self._left_out:
            return EnrolmentError("expected at least one profile, got none; enrol a speaker first")
        return StoreError("no profile is left that may be used: " + "; ".join(self._left_out.values()))

    def _look(self, store: ProfileSource) -> None:
        """Leave out what is gone from the store, and take anew what was changed there."""
        signature = store.signature()
        try:
            present = store.versions(self._watched, timeout_s=WAIT_S)
            changed = [name for name, version in self._watched.items() if present.get(name) != version]
            if changed:
                self._take_anew(store, changed)
        except StoreBusyError as error:
            if time.monotonic() - self._looked > GRACE_S:
                raise
            log.warning("the store cannot be read, and the profiles are used as they were: %s", error)
            return
        self._signature, self._looked = signature, time.monotonic()

    def _take_anew(self, store: ProfileSource, names: Sequence[str]) -> None:
        found, left_out = store.usable(self._fingerprint, names, timeout_s=WAIT_S)
        for name in names:
            error = left_out.get(name)
            if error is not None:
                gone = isinstance(error, UnknownSpeakerError)
                self._leave_out(
                    name, UnknownSpeakerError(f"profile {name!r} was removed from the store") if gone else error
                )
        anew = {profile.name: profile for profile in found}
        kept = [anew.get(profile.name, profile) for profile in self._profiles if profile.name not in left_out]
        self._use(kept)
