"""ProfileStore: the enrolled speakers of a device, in one sealed SQLite file.

::

    store = ProfileStore()                            # the user's own file; its key beside it, mode 0600
    store = ProfileStore("door.db", key=Passphrase(text))
    store.put(enroller.profile("ana"))
    profile = store.get("ana", model_fingerprint=encoder.fingerprint)

A voice embedding is biometric data. What the store does for it:

- every name, note, time, embedding, clip and audit entry is sealed (`rows` describes how, `keys` with which
  keys). In the clear stay: that this is a profile store, how many profiles and exemplars it has, their
  sizes, the fingerprints of the models, and how often a profile was written;
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

One module each: `file` (the SQLite file and its transactions), `rows` (what it holds), `keys` (seals and
where keys come from), `codec` (profiles in bytes), `portable` (the file for one profile).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from ..errors import ModelMismatchError, ProfileExpiredError, StoreError, UnknownSpeakerError
from ..heard import FREE_SPEECH, HeardBefore
from ..profiles import AuditTrail, Exemplar, Profile, ProfileInfo, checked_name, reenrolled
from .codec import refusing
from .file import StoreFile, default_store_path
from .keys import KEY_VARIABLE, PLAINTEXT, KeyFile, KeySource, KeyVariable, Passphrase
from .portable import read_profile_file, write_profile_file
from .rows import Rows, new_ids, noted

if TYPE_CHECKING:
    from ..encoder import Encoder

__all__ = [
    "PLAINTEXT",
    "AuditTrail",
    "KeyFile",
    "KeySource",
    "KeyVariable",
    "Passphrase",
    "ProfileInfo",
    "ProfileStore",
    "default_store_path",
]

MAX_EXEMPLARS = 40  # of a profile that adapts
MAX_AUDIT_DAYS = 400
OUTCOMES = ("accept", "reject", "no_decision")


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
        What seals it (see `keys`). By default the environment variable ``EMOINV_STORE_KEY`` if it
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
        If a newer version of the library wrote the file. An older one is brought up to date by the first change.
    """

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

    # -- profiles ------------------------------------------------------------------------------------------

    def put(self, profile: Profile, *, replace: bool = True) -> None:
        """Keep the profile; of one that had its name, the audit trail stays and nothing it could be rolled back to.

        Raises
        ------
        StoreError
            If there is one and `replace` is false.
        """
        self._put(profile, "enrolled", replace=replace)

    def _put(self, profile: Profile, event: str, *, replace: bool) -> None:
        self._file.create()
        with self._file.transaction(write=True) as rows:
            if profile.name in rows.entries:
                if not replace:
                    raise StoreError(
                        f"there is a profile named {profile.name!r} already; remove it first, or replace it"
                    )
                event = f"{event} anew"
            rows.enrol(profile, event)

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
        _refuse_expired(profile)
        if model_fingerprint is not None:
            _refuse_other_model(profile, model_fingerprint, "emoinv profiles upgrade")
        return profile

    def names(self) -> _Names:
        """The names, sorted; those of expired and of damaged profiles too."""
        if not self.path.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return sorted(rows.entries)

    def list(self) -> _Infos:
        """What is known of every profile, sorted by name. Each one is opened and checked."""
        if not self.path.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return [rows.info(name) for name in sorted(rows.entries)]

    def info(self, name: str) -> ProfileInfo:
        """What is known of the profile of that name; UnknownSpeakerError if there is none."""
        with self._profile(name) as (name, rows):
            return rows.info(name)

    def remove(self, name: str) -> None:
        """Remove the profile of that name and overwrite what it left in the file.

        The store's log keeps when, and a pseudonym that only shows which removals were of one profile.

        Raises
        ------
        UnknownSpeakerError
            If there is none.
        StoreError
            Also if it is removed, but another process kept the file from being rebuilt.
        """
        with self._profile(name, write=True) as (name, rows):
            rows.remove(name, "removed")
        self._file.scrub()

    def remove_all(self) -> _Names:
        """Remove every profile, damaged ones too, and overwrite what they left; the names that went."""
        if not self.path.exists():
            return []
        with self._file.transaction(write=True) as rows:
            names = sorted(rows.entries)
            for name in names:
                rows.remove(name, "removed")
            rows.drop_unlisted()
        self._file.scrub()
        return names

    def purge(self, now: datetime.datetime | None = None) -> _Names:
        """Remove the profiles whose expiry has passed, and overwrite what they and earlier ones left; their names."""
        if not self.path.exists():
            return []
        with self._file.transaction(write=True) as rows:
            names = [name for name in sorted(rows.entries) if rows.has_expired(name, now)]
            for name in names:
                rows.remove(name, "expired and removed")
        self._file.scrub()
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
        with self._profile(name, write=True) as (name, rows):
            record, trail, exemplars = rows.state(name)
            _refuse_misfit(record.profile(exemplars), exemplar, model_fingerprint)
            if record.num_enrolled >= limit:
                raise StoreError(f"profile {name!r} has {record.num_enrolled} enrolled exemplars, the limit is {limit}")
            (id_,) = new_ids(1)
            adapted = record.adapted(id_, limit)
            rows.write(adapted, noted(trail, "adapted"), {id_: exemplar})
        by_id = {**dict(zip(record.exemplars, exemplars, strict=True)), id_: exemplar}
        return adapted.profile(tuple(by_id[kept] for kept in adapted.exemplars))

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
        if not exemplars:
            raise ValueError("expected at least one exemplar to add")
        with self._profile(name, write=True) as (name, rows):
            record, trail, stored = rows.state(name)
            present = record.profile(stored)
            for exemplar in exemplars:
                _refuse_misfit(present, exemplar, model_fingerprint)
            enrolled = record.num_enrolled
            extended = dataclasses.replace(  # checked as a profile before anything is written
                present,
                exemplars=(*stored[:enrolled], *exemplars, *stored[enrolled:]),
                expires=present.expires if expires is None else expires,
                consent=present.consent if consent is None else consent,
            )
            added = dict(zip(new_ids(len(exemplars)), exemplars, strict=True))
            rows.write(record.extended(tuple(added), extended), noted(trail, "enrolled further"), added)
        return extended

    def rollback(self, name: str) -> Profile:
        """Undo the last `adapt`; up to 16 can be undone, one call each.

        Raises
        ------
        UnknownSpeakerError
            If there is no such profile.
        StoreError
            If there is nothing to undo.
        """
        with self._profile(name, write=True) as (name, rows):
            record, trail = rows.record(name), rows.trail(name)
            if not record.history:
                raise StoreError(f"profile {name!r} has no adaptation to undo; enrol the speaker again to start anew")
            record = record.rolled_back()
            profile = record.profile(rows.exemplars(record, record.exemplars))
            rows.write(record, noted(trail, "rolled back"), {})
        return profile

    # -- what was heard --------------------------------------------------------------------------------------

    def heard(self, name: str, *, keep: int = 64, threshold: float = FREE_SPEECH) -> HeardBefore:
        """What was tried against the profile of that name, to know a played-back recording of it.

        What is added to the object is sealed into the store beside the profile, and erased with it. A fingerprint
        holds the pitch of a voice: it is biometric data.

        Parameters
        ----------
        name : str
        keep, threshold
            As for `HeardBefore`; the oldest beyond `keep` is dropped.

        Examples
        --------
        >>> verifier = Verifier(encoder, store.get("ana"), heard_before=store.heard("ana"))  # doctest: +SKIP

        Raises
        ------
        UnknownSpeakerError
            If there is no such profile; also by `HeardBefore.add`, if it was removed meanwhile.
        """

        def seal(fingerprint: bytes) -> None:
            with self._profile(name, write=True) as (spelt, rows):
                rows.write_heard(spelt, fingerprint, keep)

        with self._profile(name) as (spelt, rows):
            content = b"".join(rows.heard(spelt))
        with refusing("what was heard before"):
            return HeardBefore.from_bytes(content, keep, threshold, on_add=seal)

    def forget_heard(self, name: str) -> None:
        """Erase what was tried against the profile of that name."""
        with self._profile(name, write=True) as (name, rows):
            rows.drop_heard(name)
        self._file.scrub()

    # -- audit ---------------------------------------------------------------------------------------------

    def note_verified(self, name: str, outcome: str, count: int = 1) -> None:
        """Count verifications against the profile: ``"accept"``, ``"reject"`` or ``"no_decision"``."""
        if outcome not in OUTCOMES:
            raise ValueError(f"expected the outcome as one of {OUTCOMES}, got {outcome!r}")
        if count < 1:
            raise ValueError(f"expected a count of 1 or more, got {count}")
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        today = now.date().isoformat()
        with self._profile(name, write=True) as (name, rows):
            trail = rows.trail(name)
            counts = trail.verified.get(today, {})
            days = {**trail.verified, today: {**counts, outcome: counts.get(outcome, 0) + count}}
            days = {day: days[day] for day in sorted(days)[-MAX_AUDIT_DAYS:]}
            rows.write_trail(name, dataclasses.replace(trail, last_used=now, verified=days))

    def audit(self, name: str) -> AuditTrail:
        """What was done with the profile of that name."""
        with self._profile(name) as (name, rows):
            return rows.trail(name)

    def log(self) -> _Log:
        """What was done with the store as a whole: removals, by pseudonym, and rotations; the last 1000."""
        if not self.path.exists():
            return []
        with self._file.transaction(write=False) as rows:
            return [(datetime.datetime.fromisoformat(at), event) for at, event in rows.log]

    # -- carrying and renewing -------------------------------------------------------------------------------

    def export_profile(
        self, name: str, path: str | pathlib.Path, passphrase: Passphrase, *, audio: bool = True
    ) -> None:
        """Write the profile to a portable file (see `portable`), sealed with the passphrase.

        The audit trail notes it before the file is written. Clips go along unless `audio` is false.
        """
        with self._profile(name, write=True) as (name, rows):
            profile = rows.profile(name, audio=audio)
            _refuse_expired(profile)
            rows.write_trail(name, noted(rows.trail(name), "exported"))
        write_profile_file(path, profile, passphrase)

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
        with self._profile(name) as (name, rows):
            old = rows.profile(name)
            version = rows.entry(name).version
        _refuse_expired(old)
        new = reenrolled(old, encoder)
        with self._profile(name, write=True) as (name, rows):
            if rows.entry(name).version != version:
                raise StoreError(f"profile {name!r} was changed by another process meanwhile; run the upgrade again")
            rows.enrol(new, f"upgraded to model {encoder.fingerprint[:12]}")
        self._file.scrub()
        return new

    def rotate(self, key: KeySource | None = None) -> None:
        """Seal everything anew under a fresh data key, in one transaction, and overwrite what was there.

        `key`, if given, takes the place of the user's key, and this object goes on with it. A `KeyFile` at
        the place of the present one gets a new content: not where several stores share it, since the others
        would not open any more.

        Raises
        ------
        SealError
            If a profile does not open; nothing is changed then.
        """
        self._file.renew(key)
        self._file.scrub()

    def own_key_file(self) -> KeyFile | None:
        """The key file that lies beside the store and serves it alone, if that is its key."""
        key = self._file.key
        return key if isinstance(key, KeyFile) and str(key.path) == f"{self.path}.key" else None

    @contextlib.contextmanager
    def _profile(self, name: str, *, write: bool = False) -> Iterator[tuple[str, Rows]]:
        """A transaction for the profile of that name, with the name as the store spells it."""
        try:
            name = checked_name(name)
        except ValueError as error:
            raise UnknownSpeakerError(f"no profile can have this name: {error}") from None
        if not self.path.exists():
            raise UnknownSpeakerError(f"no profile named {name!r}: {self.path} does not exist; enrol the speaker first")
        with self._file.transaction(write=write) as rows:
            rows.entry(name)
            yield name, rows


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
