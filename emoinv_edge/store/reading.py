"""What can be read of a store without changing it: the first half of `ProfileStore`."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NoReturn

from ..errors import EmoinvError, ModelMismatchError, ProfileExpiredError, SealError, UnknownSpeakerError
from ..profiles import AuditTrail, Profile, ProfileInfo, checked_name
from .changes import refuse_expired, refuse_other_model
from .file import StoreFile, default_store_path
from .keys import KEY_VARIABLE, KeyFile, KeySource, KeyVariable
from .rows import Rows

__all__ = ["ReadableStore"]

# Inside the class `list` is the method.
_Names = list[str]
_Infos = list[ProfileInfo]
_Profiles = list[Profile]
_Log = list[tuple[datetime.datetime, str]]


class ReadableStore:
    """A store's file and key, and everything that only reads; `ProfileStore` adds the rest."""

    def __init__(
        self, path: str | pathlib.Path | None = None, key: KeySource | None = None, *, timeout_s: float = 30.0
    ) -> None:
        path = pathlib.Path(path) if path is not None else default_store_path()
        if key is None:
            key = KeyVariable() if KEY_VARIABLE in os.environ else KeyFile(f"{path}.key")
        self._file = StoreFile(path, key, timeout_s)

    @property
    def path(self) -> pathlib.Path:
        """The file."""
        return self._file.path

    def __repr__(self) -> str:
        return f"ProfileStore({str(self.path)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ProfileStore is not pickled, since it holds a key; open it anew in the other process")

    def get(self, name: str, *, model_fingerprint: str | None = None, audio: bool = True) -> Profile:
        """The profile of that name.

        Parameters
        ----------
        name : str
        model_fingerprint : str, optional
            `Encoder.fingerprint` of the model that is going to use it.
        audio : bool
            Whether to read the clips too, where they were kept. A profile read without them and put back has
            lost them.

        Raises
        ------
        UnknownSpeakerError
            If there is none.
        ProfileExpiredError
            If its expiry has passed.
        ModelMismatchError
            If another model made it.
        """
        with self._profile(name) as (name, rows):
            profile = rows.profile(name, audio=audio)
        refuse_expired(profile)
        if model_fingerprint is not None:
            refuse_other_model(profile, model_fingerprint, "emoinv profiles upgrade")
        return profile

    def usable(
        self, model_fingerprint: str, names: Iterable[str] | None = None, *, timeout_s: float | None = None
    ) -> tuple[_Profiles, dict[str, EmoinvError]]:
        """The profiles that can be used with a model, all from one moment, without their clips; and the others.

        Parameters
        ----------
        model_fingerprint : str
            `Encoder.fingerprint`.
        names : iterable of str, optional
            Which; by default all.
        timeout_s : float, optional
            A shorter wait for another process than the store's own.

        Returns
        -------
        profiles : list of Profile
        left_out : dict of str to EmoinvError
            By name, why not: what `get` would have raised. One bad profile costs no other.

        Raises
        ------
        StoreError
            If the store itself cannot be read.
        """
        profiles: _Profiles = []
        left_out: dict[str, EmoinvError] = {}
        if not self._file.exists():
            missing = [] if names is None else [*names]
            return profiles, {name: UnknownSpeakerError(f"no profile named {name!r}") for name in missing}
        with self._file.transaction(write=False, timeout_s=timeout_s) as rows:
            for name in rows.names() if names is None else dict.fromkeys(names):
                try:
                    profile = rows.profile(checked_name(name), audio=False)
                    refuse_expired(profile)
                    refuse_other_model(profile, model_fingerprint, "emoinv profiles upgrade")
                except (SealError, ProfileExpiredError, ModelMismatchError, UnknownSpeakerError) as error:
                    left_out[name] = error
                except ValueError as error:
                    left_out[name] = UnknownSpeakerError(f"no profile can have this name: {error}")
                else:
                    profiles.append(profile)
        return profiles, left_out

    def versions(self, names: Iterable[str], *, timeout_s: float | None = None) -> dict[str, str]:
        """`Profile.version` of those of these names that there are, at one moment."""
        if not self._file.exists():
            return {}
        with self._file.transaction(write=False, timeout_s=timeout_s) as rows:
            return {name: rows.entry(name).state for name in names if name in rows}

    def signature(self) -> tuple[object, ...]:
        """What is another tuple after a change of the file; empty where that is not known yet."""
        return self._file.signature()

    def names(self) -> _Names:
        """The names, sorted; those of expired and of damaged profiles too."""
        if not self._file.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return rows.names()

    def list(self) -> _Infos:
        """What is known of every profile, sorted by name. Each one is opened and checked."""
        if not self._file.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return [rows.info(name) for name in rows.names()]

    def info(self, name: str) -> ProfileInfo:
        """What is known of the profile of that name; UnknownSpeakerError if there is none."""
        with self._profile(name) as (name, rows):
            return rows.info(name)

    def audit(self, name: str) -> AuditTrail:
        """What was done with the profile of that name."""
        with self._profile(name) as (name, rows):
            return rows.trail(name)

    def log(self) -> _Log:
        """What was done with the store as a whole: removals, by pseudonym, and rotations; the last 1000."""
        if not self._file.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return [(datetime.datetime.fromisoformat(at), event) for at, event in rows.log]

    @contextlib.contextmanager
    def _profile(self, name: str, *, write: bool = False, timeout_s: float | None = None) -> Iterator[tuple[str, Rows]]:
        """A transaction for the profile of that name, with the name as the store spells it."""
        try:
            name = checked_name(name)
        except ValueError as error:
            raise UnknownSpeakerError(f"no profile can have this name: {error}") from None
        if not self._file.exists():
            raise UnknownSpeakerError(f"no profile named {name!r}: {self.path} does not exist; enrol the speaker first")
        with self._file.transaction(write=write, timeout_s=timeout_s) as rows:
            rows.entry(name)
            yield name, rows
