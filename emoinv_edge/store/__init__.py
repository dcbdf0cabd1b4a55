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

One module each: `file` (the SQLite file and its transactions), `rows` and `pages` (what it holds), `reading` (what only
reads), `changes` (how a profile is adapted, extended and rolled back), `device` (calibration and model files), `keys`
(seals and where keys come from), `codec` (profiles in bytes), `portable` (the file for one profile).
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..cohort import cohort_of, refuse_implausible
from ..errors import ProfileChangedError, StoreError
from ..heard import HeardBefore
from ..profiles import AuditTrail, Exemplar, Profile, ProfileInfo, new_name
from ..reenrolment import reenrolled
from . import changes
from .changes import refuse_expired, refuse_other_model
from .codec import refusing
from .device import Device
from .file import default_store_path
from .keys import PLAINTEXT, KeyFile, KeySource, KeyVariable, Passphrase
from .portable import read_profile_file, write_profile_file
from .reading import ReadableStore
from .rows import noted

if TYPE_CHECKING:
    from ..calibration import Calibration
    from ..decision import Countermeasure
    from ..encoder import Encoder
    from ..verifier import Verifier

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
_Profiles = list[Profile]


class ProfileStore(ReadableStore):
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

    @property
    def device(self) -> Device:
        """What the store holds of its device: calibration and model files."""
        return Device(self._file)

    def calibration(self, encoder: Encoder) -> Calibration | None:
        """The encoder's calibration as ``emoinv calibrate`` refined it for this device; else the model's own.

        Raises
        ------
        CalibrationError
            If what the device refined does not fit this model or its calibration.
        """
        return self.device.calibration(encoder)

    def note_model(self, encoder: Encoder) -> None:
        """Remember the file behind a model, and say so where the last decision was made with another one."""
        self.device.note_model(encoder)

    def verifier(
        self,
        names: str | Iterable[str] | None = None,
        encoder: Encoder | None = None,
        target_far: float = 0.01,
        *,
        prior: float | None = None,
        cost_miss: float = 1.0,
        cost_false_accept: float = 1.0,
        extrapolate: bool = False,
        heard_before: HeardBefore | None = None,
        countermeasure: Countermeasure | None = None,
    ) -> Verifier:
        """A verifier of the profiles of these names, with this device's calibration, that follows the store.

        Parameters
        ----------
        names : str or iterable of str, optional
            By default all that can be used; of those named, every one must be usable.
        encoder : Encoder, optional
            By default `Encoder.default`.
        target_far, prior, cost_miss, cost_false_accept, extrapolate, heard_before, countermeasure
            As for `Verifier`.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError, ModelMismatchError, SealError
            If a profile that was named cannot be used.
        EnrolmentError, CalibrationError
            As for `Verifier`.
        """
        from ..encoder import Encoder
        from ..verifier import Verifier

        encoder = Encoder.default() if encoder is None else encoder
        profiles: _Profiles | ProfileStore = self
        if names is not None:
            asked = [names] if isinstance(names, str) else [*names]
            profiles, left_out = self.usable(encoder.fingerprint, asked)
            for error in left_out.values():
                raise error
        return Verifier(
            encoder,
            profiles,
            target_far,
            prior=prior,
            cost_miss=cost_miss,
            cost_false_accept=cost_false_accept,
            extrapolate=extrapolate,
            heard_before=heard_before,
            countermeasure=countermeasure,
            store=self,
        )

    # -- profiles ------------------------------------------------------------------------------------------

    def put(self, profile: Profile, *, replace: bool = True) -> None:
        """Keep the profile; of one that had its name, the audit trail stays and nothing it could be rolled back to.

        Raises
        ------
        StoreError
            If there is one and `replace` is false.
        ValueError
            If nobody has the name yet and it holds characters that cannot be seen.
        """
        self._put(profile, "enrolled", replace=replace)

    def _put(self, profile: Profile, event: str, *, replace: bool) -> None:
        self._file.create()
        with self._file.transaction(write=True) as rows:
            if profile.name in rows:
                if not replace:
                    raise StoreError(
                        f"there is a profile named {profile.name!r} already; remove it first, or replace it"
                    )
                event = f"{event} anew"
            else:
                new_name(profile.name)
            rows.enrol(profile, event)

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
        if not self._file.exists():
            return []
        with self._file.transaction(write=True) as rows:
            names = rows.names()
            for name in names:
                rows.remove(name, "removed")
            rows.drop_unlisted()
        self._file.scrub()
        return names

    def purge(self, now: datetime.datetime | None = None) -> _Names:
        """Remove the profiles whose expiry has passed, and overwrite what they and earlier ones left; their names."""
        if not self._file.exists():
            return []
        with self._file.transaction(write=True) as rows:
            names = [name for name in rows.names() if rows.has_expired(name, now)]
            for name in names:
                rows.remove(name, "expired and removed")
        self._file.scrub()
        return names

    # -- adaptation ----------------------------------------------------------------------------------------

    def adapt(
        self, judged: Profile, exemplar: Exemplar, *, limit: int = MAX_EXEMPLARS, per_day: int | None = None
    ) -> Profile:
        """Add an exemplar to the profile that it was judged by.

        Whether the exemplar deserves it is the caller's to judge. The exemplars of the enrolment are never
        dropped; beyond `limit` the oldest adapted one is. `rollback` undoes it.

        Parameters
        ----------
        judged : Profile
            As `get`, `adapt`, `extend` or `rollback` gave it: its `version` must be the store's.
        exemplar : Exemplar
        limit : int
            Exemplars of the profile, those of the enrolment included.
        per_day : int, optional
            Adaptations within 24 hours.

        Raises
        ------
        ProfileChangedError
            If the profile of that name is another by now: somebody else's perhaps.
        UnknownSpeakerError, ProfileExpiredError, ModelMismatchError
            As in `get`; the last one also for an embedding of another length.
        DailyLimitError
            If there were `per_day` adaptations within 24 hours.
        StoreError
            If the enrolment alone has reached the limit.
        """
        with self._profile(judged.name, write=True) as (_, rows):
            return changes.adapt(rows, judged, exemplar, limit, per_day)

    def extend(
        self,
        judged: Profile,
        exemplars: Sequence[Exemplar],
        *,
        expires: datetime.datetime | None = None,
        consent: str | None = None,
    ) -> Profile:
        """Add exemplars to the enrolment itself, in one transaction on the profile's state of that moment.

        What adaptation added stays adaptation: it still counts as such, and `rollback` undoes it but not this.

        Parameters
        ----------
        judged : Profile
            As `get` gave it. What was adapted or added since does no harm; another enrolment does.
        exemplars : sequence of Exemplar
            At least one, by the model of the profile.
        expires, consent
            In the place of the present ones, if given.

        Raises
        ------
        ProfileChangedError, UnknownSpeakerError, ProfileExpiredError, ModelMismatchError
            As in `adapt`.
        """
        if not exemplars:
            raise ValueError("expected at least one exemplar to add")
        with self._profile(judged.name, write=True) as (_, rows):
            return changes.extend(rows, judged, exemplars, expires, consent)

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
            return changes.roll_back(rows, name)

    # -- what was heard --------------------------------------------------------------------------------------

    def heard(self, name: str, *, keep: int = 64) -> HeardBefore:
        """What was tried against the profile of that name, to know a played-back recording of it.

        What is added to the object is sealed into the store beside the profile, and erased with it. A fingerprint
        holds the pitch of a voice: it is biometric data.

        Parameters
        ----------
        name : str
        keep : int
            As for `HeardBefore`; the oldest beyond it is dropped.

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
            return HeardBefore.from_bytes(content, keep, on_add=seal)

    def forget_heard(self, name: str) -> None:
        """Erase what was tried against the profile of that name."""
        with self._profile(name, write=True) as (name, rows):
            rows.drop_heard(name)
        self._file.scrub()

    # -- audit ---------------------------------------------------------------------------------------------

    def note_verified(self, name: str, outcome: str, count: int = 1, *, timeout_s: float | None = None) -> None:
        """Count verifications against the profile: ``"accept"``, ``"reject"`` or ``"no_decision"``.

        `timeout_s` is a shorter wait for another process than the store's own: a decision should not wait for its
        record.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"expected the outcome as one of {OUTCOMES}, got {outcome!r}")
        if count < 1:
            raise ValueError(f"expected a count of 1 or more, got {count}")
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        today = now.date().isoformat()
        with self._profile(name, write=True, timeout_s=timeout_s) as (name, rows):
            trail = rows.trail(name)
            counts = trail.verified.get(today, {})
            days = {**trail.verified, today: {**counts, outcome: counts.get(outcome, 0) + count}}
            days = {day: days[day] for day in sorted(days)[-MAX_AUDIT_DAYS:]}
            rows.write_trail(name, dataclasses.replace(trail, last_used=now, verified=days))

    # -- carrying and renewing -------------------------------------------------------------------------------

    def export_profile(
        self, name: str, path: str | pathlib.Path, passphrase: Passphrase, *, audio: bool = True
    ) -> None:
        """Write the profile to a portable file (see `portable`), sealed with the passphrase.

        The audit trail notes it before the file is written. Clips go along unless `audio` is false.
        """
        with self._profile(name, write=True) as (name, rows):
            profile = rows.profile(name, audio=audio)
            refuse_expired(profile)
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
        upgrade: bool = True,
    ) -> Profile:
        """Keep the profile of a portable file.

        Whoever knows its passphrase could have made the file by hand: its numbers must be those of speech, and with the
        model itself it is tried on the strangers in the model's file (`emoinv_edge.cohort`).

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
            The model itself.
        upgrade : bool
            Whether the speaker of a profile by another model is enrolled again on `encoder`, if the file has the
            clips.

        Raises
        ------
        StoreError, SealError, SchemaError
            If the file is foreign, does not open or is too new, or the name is taken.
        ModelMismatchError
            If another model made the profile.
        ProfileExpiredError
            If its expiry has passed.
        EnrolmentError
            If its numbers are not those of speech, or it accepts too many strangers.
        """
        profile = read_profile_file(path, passphrase)
        refuse_expired(profile)
        event = "imported"
        if upgrade and encoder is not None and profile.model_fingerprint != encoder.fingerprint:
            profile, event = reenrolled(profile, encoder), f"imported for model {encoder.fingerprint[:12]}"
        refuse_other_model(profile, model_fingerprint, "emoinv profiles import --upgrade")
        if name is not None:
            profile = dataclasses.replace(profile, name=name)
        if encoder is None:
            refuse_implausible(profile)
        else:
            refuse_implausible(profile, self.calibration(encoder), cohort_of(encoder))
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
        refuse_expired(old)
        new = reenrolled(old, encoder)
        with self._profile(name, write=True) as (name, rows):
            if rows.entry(name).state != old.version:
                raise ProfileChangedError(f"profile {name!r} was changed by another process meanwhile; try again")
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
