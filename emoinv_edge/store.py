"""ProfileStore: the enrolled speakers of a device, in one sealed SQLite file.

::

    store = ProfileStore()                            # the user's own file; its key beside it, mode 0600
    store = ProfileStore("door.db", key=Passphrase(text))
    store.put(enroller.profile("ana"))
    profile = store.get("ana", model_fingerprint=encoder.fingerprint)

A voice embedding is biometric data. What the store does for it:

- every name, note, time, embedding, clip and audit entry is sealed (`ledger` says how, `sealing` with which
  keys). In the clear stay: that this is a profile store, how many profiles and exemplars it has, their
  sizes, the fingerprints of the models, and how often a profile was written;
- embeddings lie under a secret orthogonal transform of the store's own (`transform` says what this
  gives and what not);
- a profile is refused by another model (its cure: enrol again, or `upgrade` where the speech was kept), and
  after its expiry;
- what was done with a profile stands in its audit trail: when it was enrolled, adapted, exported, and how
  many verifications a day had which outcome; never audio or embeddings;
- removal overwrites the rows, rebuilds the file and empties its log. Blocks that the file system or a
  flash medium has put aside are out of reach of any program; what they hold is sealed;
- every change is one transaction: after a crash, a full disk or a lost race it happened or it did not.

The key decides who can read: the whole file opens wherever its key is, single rows of it nowhere else. The
default key file lies beside the store, so that backups or thieves that take the whole folder take both: a
passphrase, or a key from elsewhere, is safer. Without the key nobody reads the profiles, their owner included.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from .errors import ModelMismatchError, ProfileExpiredError, StoreError, UnknownSpeakerError
from .ledger import Record, Transaction
from .portable import read_profile_file, seal_profile, write_profile_file
from .profiles import AuditTrail, Exemplar, Profile, ProfileInfo, checked_name, reenrolled
from .sealing import KEY_VARIABLE, PLAINTEXT, KeyFile, KeySource, KeyVariable, Passphrase
from .vault import Vault

if TYPE_CHECKING:
    from .encoder import Encoder

__all__ = [
    "PLAINTEXT",
    "AuditTrail",
    "KeyFile",
    "KeyVariable",
    "Passphrase",
    "ProfileInfo",
    "ProfileStore",
    "default_store_path",
    "reenrolled",
]

MAX_EXEMPLARS = 40  # of a profile that adapts
MAX_ROLLBACKS = 16
MAX_AUDIT_DAYS = 400
OUTCOMES = ("accept", "reject", "no_decision")


def default_store_path() -> pathlib.Path:
    """``emoinv/profiles.db`` in the platform's folder for user data."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local" / "share"
    return pathlib.Path(base) / "emoinv" / "profiles.db"


# Inside the class `list` is the method.
_Names = list[str]
_Infos = list[ProfileInfo]
_Log = list[tuple[datetime.datetime, str]]


class ProfileStore:
    """Profiles by name in one sealed SQLite file; safe between threads and between processes.

    Parameters
    ----------
    path : path, optional
        The file, made at the first `put` or import; by default `default_store_path`.
    key : bytes, function, KeyFile, KeyVariable, Passphrase or PLAINTEXT, optional
        What seals it (see `sealing`). By default the environment variable ``EMOINV_STORE_KEY`` if it
        is set, else the key file ``<path>.key``, made with mode 0600 together with the store. Only
        ``key=PLAINTEXT`` writes in the clear.
    timeout_s : float
        The longest wait for another process that is writing.

    Raises
    ------
    StoreError
        By every method, if the file is damaged, foreign, locked for longer than the timeout, on media that are
        full or (for changes) read-only. Nothing was changed then.
    SealError
        If the key is wrong, or the file or the profile in question was altered or put back to an older state.
    SchemaError
        If a newer version of the library wrote the file. An older one is brought up to date when opened.
    """

    def __init__(
        self, path: str | pathlib.Path | None = None, key: KeySource | None = None, *, timeout_s: float = 30.0
    ) -> None:
        path = pathlib.Path(path) if path is not None else default_store_path()
        if key is None:
            key = KeyVariable() if KEY_VARIABLE in os.environ else KeyFile(f"{path}.key")
        self._vault = Vault(path, key, timeout_s)

    @property
    def path(self) -> pathlib.Path:
        """The file."""
        return self._vault.path

    def __repr__(self) -> str:
        return f"ProfileStore({str(self.path)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ProfileStore is not pickled, since it holds a key; open it anew in the other process")

    # -- profiles ------------------------------------------------------------------------------------------

    def put(self, profile: Profile, *, replace: bool = True) -> None:
        """Keep the profile.

        Parameters
        ----------
        profile : Profile
        replace : bool
            Whether a profile of the same name gives way, with all that it could be rolled back to; its audit
            trail goes on.

        Raises
        ------
        StoreError
            If there is one and `replace` is false.
        """
        self._put(profile, "enrolled", replace=replace)

    def _put(self, profile: Profile, event: str, *, replace: bool) -> None:
        self._vault.create()
        with self._vault.transaction(write=True) as opened:
            if profile.name not in opened.entries:
                opened.add(profile, event)
            elif replace:
                opened.replace(profile, f"{event} anew")
            else:
                raise StoreError(f"there is a profile named {profile.name!r} already; remove it first, or replace it")

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
        name = _wanted_name(name)
        if not self.path.exists():
            raise UnknownSpeakerError(f"no profile named {name!r}: {self.path} does not exist; enrol the speaker first")
        with self._vault.transaction(write=False) as opened:
            profile = opened.profile(name, audio=audio)
        _refuse_expired(profile)
        if model_fingerprint is not None:
            _refuse_other_model(profile, model_fingerprint, "emoinv profiles upgrade")
        return profile

    def names(self) -> _Names:
        """The names, sorted; those of expired and of damaged profiles too."""
        if not self.path.exists():
            return []
        with self._vault.transaction(write=False) as opened:
            return sorted(opened.entries)

    def list(self) -> _Infos:
        """What there is to tell about every profile, sorted by name. Each one is opened and checked."""
        if not self.path.exists():
            return []
        with self._vault.transaction(write=False) as opened:
            return [_info(opened, name) for name in sorted(opened.entries)]

    def info(self, name: str) -> ProfileInfo:
        """What there is to tell about the profile of that name; UnknownSpeakerError if there is none."""
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=False) as opened:
            opened.entry(name)
            return _info(opened, name)

    def remove(self, name: str) -> None:
        """Remove the profile of that name and overwrite what it left in the file.

        The store's log keeps when, and a pseudonym that only says which removals were of one profile.

        Raises
        ------
        UnknownSpeakerError
            If there is none.
        StoreError
            Also if it is removed, but another process kept the file from being rebuilt.
        """
        name = _wanted_name(name)
        if not self.path.exists():
            raise UnknownSpeakerError(f"no profile named {name!r}: {self.path} does not exist")
        with self._vault.transaction(write=True) as opened:
            _remove(opened, name, "removed")
        self._vault.scrub()

    def remove_all(self) -> _Names:
        """Remove every profile, damaged ones too, and overwrite what they left; the names that went."""
        if not self.path.exists():
            return []
        with self._vault.transaction(write=True) as opened:
            names = sorted(opened.entries)
            for name in names:
                _remove(opened, name, "removed")
            opened.db.execute("DELETE FROM exemplar")
            opened.db.execute("DELETE FROM profile")
        self._vault.scrub()
        return names

    def purge(self, now: datetime.datetime | None = None) -> _Names:
        """Remove the profiles whose expiry has passed, and overwrite what they and earlier ones left; their names."""
        if not self.path.exists():
            return []
        with self._vault.transaction(write=True) as opened:
            names = [name for name in sorted(opened.entries) if _has_expired(opened, name, now)]
            for name in names:
                _remove(opened, name, "expired and removed")
        self._vault.scrub()
        return names

    # -- adaptation ----------------------------------------------------------------------------------------

    def adapt(
        self, name: str, exemplar: Exemplar, *, model_fingerprint: str | None = None, limit: int = MAX_EXEMPLARS
    ) -> Profile:
        """Add an exemplar to the profile, in one transaction on its state of that moment.

        Whether the exemplar deserves it is the caller's to judge. The exemplars of the enrolment are never
        dropped; beyond `limit` the oldest adapted one is. `rollback` undoes it.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError, ModelMismatchError
            As in `get`; the last one also for an embedding of another length.
        StoreError
            If the enrolment alone has reached the limit.
        """
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=True) as opened:
            profile = opened.profile(name)
            _refuse_misfit(profile, exemplar, model_fingerprint)
            record = opened.record(name)
            if record.num_enrolled >= limit:
                raise StoreError(f"profile {name!r} has {record.num_enrolled} enrolled exemplars, the limit is {limit}")
            kept = record.exemplars
            if len(kept) >= limit:
                kept = kept[: record.num_enrolled] + kept[len(kept) - limit + 1 + record.num_enrolled :]
            added = opened.add_exemplar(record, exemplar)
            history = (*record.history, record.exemplars)[-MAX_ROLLBACKS:]
            opened.write(dataclasses.replace(record, exemplars=(*kept, added), history=history))
            opened.note_event(name, "adapted")
            return opened.profile(name)

    def extend(
        self,
        name: str,
        exemplars: Sequence[Exemplar],
        *,
        model_fingerprint: str | None = None,
        expires: datetime.datetime | None = None,
        consent: str | None = None,
    ) -> Profile:
        """Add exemplars to the enrolment itself, in one transaction on the profile's state of that moment.

        What adaptation added stays adaptation: it still counts as such, and `rollback` undoes it but not this.

        Parameters
        ----------
        name : str
        exemplars : sequence of Exemplar
            At least one, by the model of the profile.
        model_fingerprint : str, optional
            Of that model.
        expires, consent
            In the place of the present ones, if given.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError, ModelMismatchError
            As in `adapt`.
        """
        name = _wanted_name(name)
        self._must_exist(name)
        if not exemplars:
            raise ValueError("expected at least one exemplar to add")
        with self._vault.transaction(write=True) as opened:
            present = opened.profile(name)
            for exemplar in exemplars:
                _refuse_misfit(present, exemplar, model_fingerprint)
            record = opened.record(name)
            changed = dataclasses.replace(
                present,
                exemplars=(*present.exemplars, *exemplars),  # checked as a profile before anything is written
                expires=present.expires if expires is None else expires,
                consent=present.consent if consent is None else consent,
            )
            added = tuple(opened.add_exemplar(record, exemplar) for exemplar in exemplars)

            def with_added(ids: tuple[int, ...]) -> tuple[int, ...]:
                return (*ids[: record.num_enrolled], *added, *ids[record.num_enrolled :])

            opened.write(
                dataclasses.replace(
                    record,
                    expires=changed.expires,
                    consent=changed.consent,
                    num_enrolled=record.num_enrolled + len(added),
                    exemplars=with_added(record.exemplars),
                    history=tuple(with_added(ids) for ids in record.history),
                )
            )
            opened.note_event(name, "enrolled further")
            return opened.profile(name)

    def rollback(self, name: str) -> Profile:
        """Undo the last `adapt`; up to 16 can be undone, one call each.

        Raises
        ------
        UnknownSpeakerError
            If there is no such profile.
        StoreError
            If there is nothing to undo.
        """
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=True) as opened:
            record = opened.record(name)
            if not record.history:
                raise StoreError(f"profile {name!r} has no adaptation to undo; enrol the speaker again to start anew")
            opened.write(dataclasses.replace(record, exemplars=record.history[-1], history=record.history[:-1]))
            opened.note_event(name, "rolled back")
            return opened.profile(name)

    # -- audit ---------------------------------------------------------------------------------------------

    def note_verified(self, name: str, outcome: str, count: int = 1) -> None:
        """Count verifications against the profile: ``"accept"``, ``"reject"`` or ``"no_decision"``."""
        if outcome not in OUTCOMES:
            raise ValueError(f"expected the outcome as one of {OUTCOMES}, got {outcome!r}")
        if count < 1:
            raise ValueError(f"expected a count of 1 or more, got {count}")
        name = _wanted_name(name)
        self._must_exist(name)
        now = datetime.datetime.now(datetime.timezone.utc)
        with self._vault.transaction(write=True) as opened:
            trail = opened.trail(name)
            days = trail["verified"]
            day = days.setdefault(now.date().isoformat(), {})
            day[outcome] = day.get(outcome, 0) + count
            for old in sorted(days)[:-MAX_AUDIT_DAYS]:
                del days[old]
            trail["last_used"] = now.isoformat(timespec="seconds")
            opened.write_trail(name, trail)

    def audit(self, name: str) -> AuditTrail:
        """What was done with the profile of that name."""
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=False) as opened:
            trail = opened.trail(name)
        return AuditTrail(
            events=tuple((datetime.datetime.fromisoformat(at), event) for at, event in trail["events"]),
            last_used=None if trail["last_used"] is None else datetime.datetime.fromisoformat(trail["last_used"]),
            verified=trail["verified"],
        )

    def log(self) -> _Log:
        """What was done with the store as a whole: removals, by pseudonym, and rotations; the last 1000."""
        if not self.path.exists():
            return []
        with self._vault.transaction(write=False) as opened:
            return [(datetime.datetime.fromisoformat(at), event) for at, event in opened.log]

    # -- carrying and renewing -------------------------------------------------------------------------------

    def export_profile(
        self, name: str, path: str | pathlib.Path, passphrase: Passphrase, *, audio: bool = True
    ) -> None:
        """Write the profile to a portable file (see `portable`), sealed with the passphrase.

        The audit trail notes it before the file is written. Clips go along unless `audio` is false.
        """
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=True) as opened:
            profile = opened.profile(name, audio=audio)
            _refuse_expired(profile)
            opened.note_event(name, "exported")
        write_profile_file(path, seal_profile(profile, passphrase))

    def import_profile(
        self,
        path: str | pathlib.Path,
        passphrase: Passphrase,
        *,
        model_fingerprint: str,
        name: str | None = None,
        replace: bool = False,
        encoder: Encoder | None = None,
    ) -> Profile:
        """Keep the profile of a portable file.

        Parameters
        ----------
        path : path
        passphrase : Passphrase
        model_fingerprint : str
            `Encoder.fingerprint` of the model of this device.
        name : str, optional
            Keep it under this name rather than its own.
        replace : bool
            Whether a profile of the same name gives way.
        encoder : Encoder, optional
            The model itself: then the speaker of a profile by another model is enrolled again, if the file
            has the clips.

        Raises
        ------
        StoreError, SealError, SchemaError
            If the file is foreign, does not open or is too new, or the name is taken.
        ModelMismatchError
            If another model made the profile.
        ProfileExpiredError
            If its expiry has passed.
        """
        profile = read_profile_file(path, passphrase)
        _refuse_expired(profile)
        event = "imported"
        if encoder is not None and profile.model_fingerprint != encoder.fingerprint:
            profile, event = reenrolled(profile, encoder), f"imported for model {encoder.fingerprint[:12]}"
        _refuse_other_model(profile, model_fingerprint, "emoinv profiles import --upgrade")
        if name is not None:
            profile = dataclasses.replace(profile, name=name)
        self._put(profile, event, replace=replace)
        return profile

    def upgrade(self, name: str, encoder: Encoder) -> Profile:
        """Enrol the speaker again on another model, from the clips that were kept.

        Exemplars without a clip are left behind, and so is what could be rolled back to.

        Raises
        ------
        EnrolmentError
            If no clip was kept; the profile stays as it is.
        """
        name = _wanted_name(name)
        self._must_exist(name)
        with self._vault.transaction(write=False) as opened:
            old = opened.profile(name)
            version = opened.entry(name).version
        _refuse_expired(old)
        new = reenrolled(old, encoder)
        with self._vault.transaction(write=True) as opened:
            if opened.entry(name).version != version:
                raise StoreError(f"profile {name!r} was changed by another process meanwhile; run the upgrade again")
            opened.replace(new, f"upgraded to model {encoder.fingerprint[:12]}")
        self._vault.scrub()
        return new

    def rotate(self, key: KeySource | None = None) -> None:
        """Seal everything anew under fresh secrets, in one transaction, and overwrite what was there.

        The store's data key and its orthogonal transform are always drawn anew: vectors that leaked before
        match nothing any more. `key`, if given, takes the place of the user's key, and this object goes on
        with it. A `KeyFile` at the place of the present one gets a new content: not where several
        stores share it, since the others would not open any more.

        Raises
        ------
        SealError
            If a profile does not open; nothing is changed then.
        """
        self._must_exist(None)
        self._vault.renew(self._vault.key if key is None else key, fresh=key is not None)
        self._vault.scrub()

    def own_key_file(self) -> KeyFile | None:
        """The key file that lies beside the store and serves it alone, if that is its key."""
        key = self._vault.key
        return key if isinstance(key, KeyFile) and str(key.path) == f"{self.path}.key" else None

    def _must_exist(self, name: str | None) -> None:
        if not self.path.exists():
            if name is None:
                raise StoreError(f"store {self.path}: does not exist; enrol a speaker first, or give another path")
            raise UnknownSpeakerError(f"no profile named {name!r}: {self.path} does not exist; enrol the speaker first")


def _wanted_name(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise UnknownSpeakerError(f"no profile can have this name: {error}") from None


def _refuse_expired(profile: Profile) -> None:
    if profile.expires is not None and profile.expired():
        raise ProfileExpiredError(
            f"profile {profile.name!r} expired on {profile.expires:%Y-%m-%d %H:%M} UTC; enrol the speaker again, "
            "and remove what is left with `emoinv profiles purge`"
        )


def _refuse_misfit(profile: Profile, exemplar: Exemplar, fingerprint: str | None) -> None:
    """Refuse to add an exemplar to a profile that has expired or that another model made."""
    _refuse_expired(profile)
    if fingerprint is not None:
        _refuse_other_model(profile, fingerprint, "emoinv profiles upgrade")
    if exemplar.embedding.size != profile.embedding_dim:
        raise ModelMismatchError(
            f"profile {profile.name!r} has {profile.embedding_dim} values an embedding, not {exemplar.embedding.size}; "
            "use the model that made it, or enrol again"
        )


def _refuse_other_model(profile: Profile, fingerprint: str, command: str) -> None:
    if profile.model_fingerprint == fingerprint:
        return
    if any(exemplar.audio is not None for exemplar in profile.exemplars):
        cure = f"its speech was kept, so `{command}` enrols it again on this model"
    else:
        cure = "enrol the speaker again (with --keep-audio, a later change of model needs no new recordings)"
    raise ModelMismatchError(
        f"profile {profile.name!r} was made by model {profile.model_fingerprint[:12]}, this one is {fingerprint[:12]}, "
        f"and their embeddings cannot be compared; {cure}, or use the other model"
    )


def _remove(opened: Transaction, name: str, event: str) -> None:
    row = opened.entry(name).row
    pseudonym = hashlib.sha256(b"emoinv removed" + opened.keys.store_id + str(row).encode()).hexdigest()[:8]
    opened.delete(name)
    opened.note(f"{event}: {pseudonym}")


def _has_expired(opened: Transaction, name: str, now: datetime.datetime | None) -> bool:
    try:
        expires = opened.record(name).expires
    except StoreError:  # damaged: not ours to drop
        return False
    return expires is not None and (now or datetime.datetime.now(datetime.timezone.utc)) >= expires


def _info(opened: Transaction, name: str) -> ProfileInfo:
    try:
        record: Record = opened.record(name)
        exemplars = opened.exemplars(name, record, record.exemplars)
        last_used = opened.trail(name)["last_used"]
    except StoreError as error:
        return ProfileInfo(name, problem=f"damaged: {error}")
    now = datetime.datetime.now(datetime.timezone.utc)
    expired = record.expires is not None and now >= record.expires
    return ProfileInfo(
        name=name,
        problem="expired" if expired else "",
        model_fingerprint=record.model_fingerprint,
        num_exemplars=len(exemplars),
        num_clips=sum(exemplar.audio is not None for exemplar in exemplars),
        created=record.created,
        expires=record.expires,
        expired=expired,
        consent=record.consent,
        last_used=None if last_used is None else datetime.datetime.fromisoformat(last_used),
        adaptations=len(record.history),
        num_enrolled=record.num_enrolled,
    )
