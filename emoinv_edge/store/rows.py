"""What one store holds, within one transaction: sealed rows, and the root that vouches for them.

::

    store     one row twice (so that one damaged copy does not cost the profiles): the store's id, the
              kind of the user's key and its salt; `keys`, the store's own random data key, sealed by the
              user's key; `root` and `log`, sealed by the data key
    page      the profiles of one bucket of names, sealed; each page twice
    profile   one row a profile: `body` (name, times, consent, which exemplars, what to roll back to) and
              `trail` (its audit), both sealed
    exemplar  one row an exemplar, never changed: `vector` (the embedding, its quality and time) and
              `clip` (the utterance, only where it was kept), both sealed
    heard     one row an utterance that was tried against a profile, only where the caller keeps them:
              its `fingerprint` (`emoinv_edge.heard`), sealed; no page lists them

Every seal has as associated data the schema, the store's id, the column, the row's id and, for a
profile's rows, the model's fingerprint and the row's version. So no sealed value opens in another
row, column or store, nor under another schema.

A page lists its profiles with the version of their rows and SHA-256 digests of `body` and `trail`; the root holds the
digests of the pages, counts the writes and remembers the latest time of one. A row put back to an older state, however
genuine its seal, disagrees with page and root and is refused. A name's bucket comes from a keyed hash, so that a write
touches one page however many profiles there are, and who has no key learns nothing of the names. The root also holds
what the device learnt of its models: how it calibrated them (`device_calibration`), and with which files it last
decided. What stays possible to somebody who can write the file: putting the *whole* file back to an
older state, or cutting off a write-ahead log that a crash left. A `ProfileStore` that has seen a newer
state refuses it, for as long as the object lives; a process started afterwards cannot know, since nothing
outside the file remembers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from ..conditions import Heard, describe
from ..errors import SealError, StoreError, UnknownSpeakerError
from ..fields import read_json
from ..model_file import present_fingerprint
from ..profiles import AuditTrail, Exemplar, Profile, ProfileInfo
from .codec import (
    Record,
    decode_exemplar,
    decode_record,
    decode_trail,
    encode_exemplar,
    encode_json,
    encode_record,
    encode_trail,
    refusing,
)
from .keys import SCHEMA, StoreKeys
from .pages import Entry, Pages, digest_of
from .schema2 import turned_back

__all__ = ["NEW_IN_3", "TABLES", "TABLES_2", "Entry", "Rows", "new_ids", "noted"]

MAX_EVENTS = 1000

MAX_HEARD = 4096
TABLES_2 = """
CREATE TABLE store (
    copy INTEGER PRIMARY KEY CHECK (copy IN (1, 2)),
    store_id BLOB NOT NULL,
    key_kind TEXT NOT NULL CHECK (key_kind IN ('plaintext', 'passphrase', 'key')),
    salt BLOB NOT NULL,
    keys BLOB NOT NULL,
    root BLOB NOT NULL,
    log BLOB NOT NULL
) STRICT;
CREATE TABLE profile (
    id INTEGER PRIMARY KEY,
    model_fingerprint TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    body BLOB NOT NULL,
    trail BLOB NOT NULL
) STRICT;
CREATE TABLE exemplar (
    id INTEGER PRIMARY KEY,
    profile_id INTEGER NOT NULL REFERENCES profile (id) ON DELETE CASCADE,
    vector BLOB NOT NULL,
    clip BLOB
) STRICT;
CREATE INDEX exemplar_of_profile ON exemplar (profile_id);
"""
NEW_IN_3 = """
CREATE TABLE page (
    copy INTEGER NOT NULL CHECK (copy IN (1, 2)),
    bucket INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (copy, bucket)
) STRICT;
CREATE TABLE heard (
    id INTEGER PRIMARY KEY,
    profile_id INTEGER NOT NULL REFERENCES profile (id) ON DELETE CASCADE,
    fingerprint BLOB NOT NULL
) STRICT;
CREATE INDEX heard_of_profile ON heard (profile_id);
"""
TABLES = TABLES_2 + NEW_IN_3


class Rows:
    """The contents of a store within one transaction, opened and sealed row by row.

    Parameters
    ----------
    db : sqlite3.Connection
        Within a transaction.
    keys : StoreKeys
    root, log : object, optional
        These columns of one copy of the store's row; without them the store is empty.

    Attributes
    ----------
    counter : int
        How many writes the store has seen.
    written : str
        The latest time of one, in UTC.
    refinements : dict of str to dict
        What this device refined of each model's calibration, by fingerprint.
    decided : dict of str to str
        The SHA-256 of the file that it last decided with, by fingerprint.

    Raises
    ------
    SealError, StoreError
        If the root does not open. A damaged log is lost; an entry of it notes that.
    """

    def __init__(self, db: sqlite3.Connection, keys: StoreKeys, root: object = None, log: object = None) -> None:
        self.keys = keys
        self.counter = 0
        self.written = ""
        self.refinements: dict[str, Any] = {}
        self.decided: dict[str, str] = {}
        self.log: list[tuple[str, str]] = []
        self.log_intact = True
        self._db = db
        self._seal = keys.seal()
        self._pages = Pages(db, keys)
        if root is not None:
            with refusing("the root of a store"):
                values = read_json(self._open(root, "root"))
                self.counter = values["counter"]
                if keys.schema == SCHEMA:
                    self.written = values["written"]
                    self.refinements, self.decided = dict(values["refinements"]), dict(values["decided"])
                    self._pages.digests = {int(bucket): digest for bucket, digest in values["pages"].items()}
                else:  # an older root held all profiles itself
                    for name, *state in values["profiles"]:
                        self._pages.set(name, Entry(*state))
                self.log_intact = digest_of(log) == values["log_digest"]
                if self.log_intact:
                    self.log = [(at, event) for at, event in read_json(self._open(log, "log"))]
            if not self.log_intact:  # worth less than the profiles: a damaged log must not cost them
                self.note("what was here before was altered and is lost")

    def _close(self, plain: bytes, *where: str | int) -> bytes:
        return self._seal.close(plain, self.keys.bound_to(*where))

    def _open(self, sealed: object, *where: str | int) -> bytes:
        return self._seal.open(sealed, self.keys.bound_to(*where))

    # -- pages ---------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of the profiles, sorted."""
        return sorted(self._pages.all())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._pages.get(name) is not None

    def entry(self, name: str) -> Entry:
        """The profile's entry in its page; UnknownSpeakerError if there is none."""
        found = self._pages.get(name)
        if found is None:
            raise UnknownSpeakerError(f"no profile named {name!r}; `emoinv profiles list` shows those that there are")
        return found

    # -- reading -------------------------------------------------------------------------------------------

    def record(self, name: str) -> Record:
        """The body of a profile's row, checked against the root."""
        entry = self.entry(name)
        fingerprint, version, body, _ = self._profile_row(name, entry)
        if digest_of(body) != entry.body_digest or version != entry.version:
            raise _altered(name, "its row was altered or put back to an older state")
        try:
            return decode_record(self._open(body, "body", entry.row, fingerprint, version), fingerprint)
        except StoreError:
            raise _altered(name, "its row does not open") from None

    def trail(self, name: str) -> AuditTrail:
        """The audit of a profile, checked against the root."""
        entry = self.entry(name)
        fingerprint, _, _, trail = self._profile_row(name, entry)
        if digest_of(trail) != entry.trail_digest:
            raise _altered(name, "its audit trail was altered or put back to an older state")
        try:
            return decode_trail(self._open(trail, "trail", entry.row, fingerprint))
        except StoreError:
            raise _altered(name, "its audit trail does not open") from None

    def exemplars(self, record: Record, ids: Sequence[int], *, audio: bool = True) -> tuple[Exemplar, ...]:
        """The profile's exemplars in these rows, with their clips if `audio`."""
        row = self.entry(record.name).row
        query = f"SELECT vector, {'clip' if audio else 'NULL'} FROM exemplar WHERE id = ? AND profile_id = ?"
        found = []
        for id_ in ids:
            stored = self._fetch(record.name, query, id_, row)
            if stored is None:
                raise _altered(record.name, "one of its exemplars is missing")
            vector, clip = stored
            where = row, id_, record.model_fingerprint
            try:
                opened_clip = None if clip is None else self._open(clip, "clip", *where)
                exemplar = decode_exemplar(self._open(vector, "vector", *where), opened_clip, audio=audio)
            except StoreError:
                raise _altered(record.name, "one of its exemplars does not open, or its clip is missing") from None
            if self.keys.transform_secret:
                exemplar = turned_back(exemplar, self.keys.transform_secret)
            found.append(exemplar)
        return tuple(found)

    def heard(self, name: str) -> list[bytes]:
        """The fingerprints of what was tried against a profile, the oldest first, without damaged ones."""
        return [fingerprint for _, fingerprint in self._heard(self.entry(name).row)]

    def _heard(self, row: int) -> list[tuple[int, bytes]]:
        found = []
        if self.keys.schema == SCHEMA:
            query = "SELECT id, fingerprint FROM heard WHERE profile_id = ? ORDER BY id DESC LIMIT ?"
            for id_, sealed in reversed(self._db.execute(query, (row, MAX_HEARD)).fetchall()):
                with contextlib.suppress(SealError):
                    found.append((id_, self._open(sealed, "heard", row, id_)))
        return found

    def profile(self, name: str, *, audio: bool = True) -> Profile:
        """The whole profile, opened and checked."""
        record = self.record(name)
        return record.profile(self.exemplars(record, record.exemplars, audio=audio), self.entry(name).state)

    def state(self, name: str) -> tuple[Record, AuditTrail, tuple[Exemplar, ...]]:
        """The record of a profile, its audit and its exemplars."""
        record = self.record(name)
        return record, self.trail(name), self.exemplars(record, record.exemplars)

    def has_expired(self, name: str, now: datetime.datetime | None = None) -> bool:
        """Whether the expiry of a profile has passed; of one that does not open nobody knows."""
        try:
            expires = self.record(name).expires
        except StoreError:
            return False
        return expires is not None and (now or datetime.datetime.now(datetime.timezone.utc)) >= expires

    def info(self, name: str) -> ProfileInfo:
        """What is known of a profile; of one that does not open, why."""
        try:
            record, trail, exemplars = self.state(name)
        except StoreError as error:
            return ProfileInfo(name, problem=f"damaged: {error}")
        expired = self.has_expired(name)
        return ProfileInfo(
            name=name,
            problem="expired" if expired else "",
            model_fingerprint=present_fingerprint(record.model_fingerprint),
            num_exemplars=len(exemplars),
            num_clips=sum(exemplar.audio is not None for exemplar in exemplars),
            created=record.created,
            expires=record.expires,
            expired=expired,
            consent=record.consent,
            last_used=trail.last_used,
            adaptations=len(record.history),
            num_enrolled=record.num_enrolled,
            condition=describe(Heard.of(*(exemplar.quality for exemplar in exemplars))),
        )

    def _profile_row(self, name: str, entry: Entry) -> tuple[str, int, object, object]:
        query = "SELECT model_fingerprint, version, body, trail FROM profile WHERE id = ?"
        row: tuple[str, int, object, object] | None = self._fetch(name, query, entry.row)
        if row is None:
            raise _altered(name, "its row is missing")
        return row

    def _fetch(self, name: str, query: str, *values: int) -> Any:
        """One row of a profile's; where SQLite finds its page damaged, the profile is, and not the whole store."""
        try:
            return self._db.execute(query, values).fetchone()
        except sqlite3.OperationalError:  # locked, full, ...
            raise
        except sqlite3.DatabaseError as error:
            raise _altered(name, f"its rows cannot be read ({error})") from None

    # -- writing -------------------------------------------------------------------------------------------

    def enrol(self, profile: Profile, event: str) -> None:
        """Keep the profile as newly enrolled; of one that had its name before, nothing stays but the audit trail."""
        trail = AuditTrail((), None, {})
        if profile.name in self:
            try:
                trail = self.trail(profile.name)
            except SealError:  # a new enrolment is the cure for a damaged profile; its row may be missing
                self._delete(profile.name)
                event = f"{event}; what was here before was altered and is lost"
        added = dict(zip(new_ids(len(profile.exemplars)), profile.exemplars, strict=True))
        self.write(Record.enrolled(profile, tuple(added)), noted(trail, event), added)

    def write(self, record: Record, trail: AuditTrail, added: Mapping[int, Exemplar]) -> None:
        """Seal the next version of a profile into its row, which is made if the root lists none.

        Parameters
        ----------
        record : Record
        trail : AuditTrail
        added : mapping of id to Exemplar
            Those that the record names and that have no row yet. The rows of exemplars that it does not name
            any more are dropped.
        """
        entry = self._pages.get(record.name)
        row, version = (*new_ids(1), 1) if entry is None else (entry.row, entry.version + 1)
        self._write(row, version, record, trail, added)

    def _write(self, row: int, version: int, record: Record, trail: AuditTrail, added: Mapping[int, Exemplar]) -> None:
        fingerprint = record.model_fingerprint
        body = self._close(encode_record(record), "body", row, fingerprint, version)
        sealed_trail = self._close(encode_trail(trail), "trail", row, fingerprint)
        self._db.execute(
            "INSERT INTO profile VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET (model_fingerprint, version, "
            "body, trail) = (excluded.model_fingerprint, excluded.version, excluded.body, excluded.trail)",
            (row, fingerprint, version, body, sealed_trail),
        )
        kept = set(record.named())
        for (id_,) in self._db.execute("SELECT id FROM exemplar WHERE profile_id = ?", (row,)).fetchall():
            if id_ not in kept:
                self._db.execute("DELETE FROM exemplar WHERE id = ?", (id_,))
        for id_, exemplar in added.items():
            where = row, id_, fingerprint
            vector = self._close(encode_exemplar(exemplar), "vector", *where)
            clip = None if exemplar.audio is None else self._close(exemplar.audio, "clip", *where)
            self._db.execute("INSERT OR REPLACE INTO exemplar VALUES (?, ?, ?, ?)", (id_, row, vector, clip))
        self._pages.set(record.name, Entry(row, version, digest_of(body), digest_of(sealed_trail)))

    def write_heard(self, name: str, fingerprint: bytes, keep: int) -> None:
        """Seal one more fingerprint, and drop the oldest beyond `keep`."""
        row = self.entry(name).row
        ((newest,),) = self._db.execute("SELECT coalesce(max(id), 0) FROM heard").fetchall()
        self._seal_heard(row, newest + 1, fingerprint)
        self._db.execute(
            "DELETE FROM heard WHERE profile_id = ? AND id NOT IN "
            "(SELECT id FROM heard WHERE profile_id = ? ORDER BY id DESC LIMIT ?)",
            (row, row, keep),
        )

    def drop_heard(self, name: str) -> None:
        """Drop all fingerprints of what was tried against a profile."""
        self._db.execute("DELETE FROM heard WHERE profile_id = ?", (self.entry(name).row,))

    def _seal_heard(self, row: int, id_: int, fingerprint: bytes) -> None:
        sealed = self._close(fingerprint, "heard", row, id_)
        self._db.execute("INSERT OR REPLACE INTO heard VALUES (?, ?, ?)", (id_, row, sealed))

    def write_trail(self, name: str, trail: AuditTrail) -> None:
        """Seal the audit of a profile into its row; its version stays."""
        entry = self.entry(name)
        fingerprint, *_ = self._profile_row(name, entry)
        sealed = self._close(encode_trail(trail), "trail", entry.row, fingerprint)
        self._db.execute("UPDATE profile SET trail = ? WHERE id = ?", (sealed, entry.row))
        self._pages.set(name, dataclasses.replace(entry, trail_digest=digest_of(sealed)))

    def remove(self, name: str, event: str) -> None:
        """Drop a profile's rows, whatever their state, and note it in the log under a pseudonym."""
        row = str(self.entry(name).row).encode()
        pseudonym = hashlib.sha256(b"emoinv removed" + self.keys.store_id + row).hexdigest()[:8]
        self._delete(name)
        self.note(f"{event}: {pseudonym}")

    def _delete(self, name: str) -> None:
        row = self.entry(name).row
        if self.keys.schema == SCHEMA:
            self._db.execute("DELETE FROM heard WHERE profile_id = ?", (row,))
        self._db.execute("DELETE FROM exemplar WHERE profile_id = ?", (row,))
        self._db.execute("DELETE FROM profile WHERE id = ?", (row,))
        self._pages.set(name, None)

    def drop_unlisted(self) -> None:
        """Drop the rows that the root does not list: they came from elsewhere."""
        self._db.execute("CREATE TEMP TABLE listed (id INTEGER PRIMARY KEY)")
        rows = [(entry.row,) for entry in self._pages.all().values()]
        self._db.executemany("INSERT INTO temp.listed VALUES (?)", rows)
        for table, column in (("heard", "profile_id"), ("exemplar", "profile_id"), ("profile", "id")):
            self._db.execute(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT id FROM temp.listed)")
        self._db.execute("DROP TABLE temp.listed")

    def reseal(self, keys: StoreKeys, *, leave_damaged: bool = False) -> None:
        """Seal every row anew under other keys; the profiles keep their versions.

        Raises
        ------
        SealError
            If a profile does not open, unless `leave_damaged`: then its rows stay as they are and go on being
            refused.
        """
        new = Rows(self._db, keys)
        for name, entry in self._pages.all().items():
            try:
                record, trail = self.record(name), self.trail(name)
                exemplars = self.exemplars(record, record.named())
            except SealError:
                if not leave_damaged:
                    raise
                new._pages.set(name, entry)
            else:
                new._write(entry.row, entry.version, record, trail, dict(zip(record.named(), exemplars, strict=True)))
            for id_, fingerprint in self._heard(entry.row):
                new._seal_heard(entry.row, id_, fingerprint)
        new.drop_unlisted()
        self.keys, self._seal = new.keys, new._seal
        self._pages = new._pages
        self.written = ""  # a clock that once ran ahead is forgotten
        self._db.execute("DELETE FROM page")

    def note(self, event: str) -> None:
        """Add to the store's own log."""
        self.log = [*self.log, (_now(), event)][-MAX_EVENTS:]

    def write_root(self) -> None:
        """Count the write and seal changed pages, root and log into both copies of the store's row."""
        self.counter += 1
        self.written = max(self.written, _now())
        self._pages.write()
        log = self._close(encode_json(self.log), "log")
        values = {
            "counter": self.counter,
            "written": self.written,
            "pages": self._pages.digests,
            "log_digest": digest_of(log),
            "refinements": self.refinements,
            "decided": self.decided,
        }
        root = self._close(encode_json(values), "root")
        for copy in (1, 2):
            columns = copy, *self.keys.columns, root, log
            self._db.execute("INSERT OR REPLACE INTO store VALUES (?, ?, ?, ?, ?, ?, ?)", columns)


def new_ids(count: int) -> tuple[int, ...]:
    """Ids for new rows: random, and so wide that none comes twice."""
    return tuple(secrets.randbits(62) + 1 for _ in range(count))


def noted(trail: AuditTrail, event: str) -> AuditTrail:
    """The audit trail with one more event, of now."""
    at = datetime.datetime.fromisoformat(_now())
    return dataclasses.replace(trail, events=(*trail.events, (at, event))[-MAX_EVENTS:])


def _altered(name: str, how: str) -> SealError:
    return SealError(
        f"profile {name!r}: {how}; it is refused, the others are not touched. "
        "Restore the store from a copy, or remove the profile and enrol again"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
