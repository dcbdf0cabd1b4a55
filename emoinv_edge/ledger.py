"""What one store holds, within one transaction: sealed rows, and the root that vouches for them.

::

    store     one row twice (so that one damaged copy does not cost the profiles): the store's id, the
              kind of the user's key and its salt; `keys`, the store's own random data key and transform
              secret, sealed by the user's key; `root` and `log`, sealed by the data key
    profile   one row a profile: `body` (name, times, consent, which exemplars, what to roll back to) and
              `trail` (its audit), both sealed
    exemplar  one row an exemplar, never changed: `vector` (the transformed embedding, its quality and
              time) and `clip` (the utterance, only where it was kept), both sealed

Every seal has as associated data the schema, the store's id, the column, the row's id and, for a
profile's rows, the model's fingerprint and the row's version. So no sealed value opens in another
row, column or store, nor under another schema.

The root lists every profile with the version of its row and SHA-256 digests of `body` and `trail`, and
counts the writes. A row put back to an older state, however genuine its seal, disagrees with the root and
is refused. What stays possible to somebody who can write the file: putting the *whole* file back to an
older state, or cutting off a write-ahead log that a crash left. A `ProfileStore` that has seen a newer
state refuses it, for as long as the object lives; a process started afterwards cannot tell, since nothing
outside the file remembers.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import secrets
import sqlite3
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SealError, UnknownSpeakerError
from .profiles import Exemplar, Profile, decode_quality
from .sealing import KEY_BYTES, SALT_BYTES, KeySource, Seal, associated, derive_key, key_kind, secret_candidates
from .transform import orthogonal_matrix

__all__ = ["SCHEMA", "TABLES", "Entry", "Record", "StoreKeys", "Transaction", "keys_aad", "new_keys", "wrapping_seal"]

SCHEMA = 2
MAX_EVENTS = 1000

TABLES = """
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


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One profile in the root: which row, in which state."""

    row: int
    version: int
    body_digest: str
    trail_digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The body of a profile's row; exemplars by their row ids."""

    name: str
    model_fingerprint: str
    created: datetime.datetime
    expires: datetime.datetime | None
    consent: str
    num_enrolled: int  # the first of the exemplars; adaptation added those after them
    exemplars: tuple[int, ...]
    history: tuple[tuple[int, ...], ...] = ()  # the exemplars before each adaptation, the oldest first


@dataclasses.dataclass(frozen=True, slots=True)
class StoreKeys:
    """What the user's key opens, and the columns it was sealed in."""

    store_id: bytes
    kind: str
    salt: bytes
    sealed: bytes
    data_key: bytes = dataclasses.field(repr=False)
    transform_secret: bytes = dataclasses.field(repr=False)

    def seal(self) -> Seal:
        """What opens and closes the rows of the store."""
        return Seal(None if self.kind == "plaintext" else self.data_key)


def new_keys(source: KeySource, store_id: bytes) -> StoreKeys:
    """A fresh data key and transform secret, sealed by the user's key with a fresh salt."""
    kind, salt = key_kind(source), secrets.token_bytes(SALT_BYTES)
    data_key, transform_secret = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
    secret = next(secret_candidates(source), b"")
    aad = keys_aad(store_id, kind)
    sealed = wrapping_seal(kind, secret, salt).close(data_key + transform_secret, aad)
    return StoreKeys(store_id, kind, salt, sealed, data_key, transform_secret)


def keys_aad(store_id: bytes, kind: str) -> bytes:
    """What the seal of a store's keys is bound to."""
    return associated("emoinv store", SCHEMA, store_id, "keys", kind)


def wrapping_seal(kind: str, secret: bytes, salt: bytes) -> Seal:
    """The seal by the user's key."""
    return Seal(None if kind == "plaintext" else derive_key(kind, secret, salt, "wrap"))


class Transaction:
    """The store's contents within one transaction: what the root lists, opened and sealed row by row."""

    def __init__(
        self,
        db: sqlite3.Connection,
        keys: StoreKeys,
        matrices: dict[tuple[bytes, int], NDArray[np.float64]],
        root: Any = None,
        log: Any = None,
    ) -> None:
        self.db = db
        self.keys = keys
        self.seal = keys.seal()
        self.counter = 0
        self.entries: dict[str, Entry] = {}
        self.log_intact = True
        self._matrices = matrices
        self._log: list[list[str]] = []
        if root is not None:
            values = json.loads(self.seal.open(root, self._aad("root")))
            self.counter = values["counter"]
            self.entries = {name: Entry(*state) for name, *state in values["profiles"]}
            self.log_intact = _digest(log) == values["log_digest"]
            if self.log_intact:
                self._log = json.loads(self.seal.open(log, self._aad("log")))
            else:  # worth less than the profiles: a damaged log must not cost them
                self.note("what was here before was altered and is lost")

    def _aad(self, *where: str | int) -> bytes:
        return associated("emoinv store", SCHEMA, self.keys.store_id, *where)

    def _matrix(self, dim: int) -> NDArray[np.float64]:
        key = self.keys.transform_secret, dim
        matrix = self._matrices.get(key)
        if matrix is None:
            matrix = orthogonal_matrix(*key)
            if len(self._matrices) >= 4:
                self._matrices.clear()
            self._matrices[key] = matrix
        return matrix

    def entry(self, name: str) -> Entry:
        """The profile's entry in the root; UnknownSpeakerError if there is none."""
        if name not in self.entries:
            raise UnknownSpeakerError(f"no profile named {name!r}; `emoinv profiles list` shows those that there are")
        return self.entries[name]

    def record(self, name: str) -> Record:
        """The body of a profile's row, checked against the root."""
        entry = self.entry(name)
        row = self._row(name, entry)
        if _digest(row[2]) != entry.body_digest or row[1] != entry.version:
            raise _altered(name, "its row was altered or put back to an older state")
        try:
            body = json.loads(self.seal.open(row[2], self._aad("body", entry.row, row[0], row[1])))
        except SealError:
            raise _altered(name, "its row does not open") from None
        return Record(
            name=body["name"],
            model_fingerprint=row[0],
            created=datetime.datetime.fromisoformat(body["created"]),
            expires=None if body["expires"] is None else datetime.datetime.fromisoformat(body["expires"]),
            consent=body["consent"],
            num_enrolled=body["num_enrolled"],
            exemplars=tuple(body["exemplars"]),
            history=tuple(tuple(ids) for ids in body["history"]),
        )

    def _row(self, name: str, entry: Entry) -> Any:
        query = "SELECT model_fingerprint, version, body, trail FROM profile WHERE id = ?"
        row = self._fetch(name, query, entry.row)
        if row is None:
            raise _altered(name, "its row is missing")
        return row

    def _fetch(self, name: str, query: str, *values: int) -> Any:
        """One row of a profile's; where SQLite finds its page damaged, the profile is, and not the whole store."""
        try:
            return self.db.execute(query, values).fetchone()
        except sqlite3.OperationalError:  # locked, full, ...
            raise
        except sqlite3.DatabaseError as error:
            raise _altered(name, f"its rows cannot be read ({error})") from None

    def exemplars(self, name: str, record: Record, ids: tuple[int, ...], *, audio: bool = True) -> tuple[Exemplar, ...]:
        """The exemplars of these row ids."""
        row = self.entry(name).row
        column = "clip" if audio else "NULL"
        found = []
        for id_ in ids:
            query = f"SELECT vector, {column} FROM exemplar WHERE id = ? AND profile_id = ?"
            stored = self._fetch(name, query, id_, row)
            if stored is None:
                raise _altered(name, "one of its exemplars is missing")
            where = row, id_, record.model_fingerprint
            try:
                plain = self.seal.open(stored[0], self._aad("vector", *where))
                clip = None if stored[1] is None else self.seal.open(stored[1], self._aad("clip", *where))
            except SealError:
                raise _altered(name, "one of its exemplars does not open") from None
            (length,) = struct.unpack_from("<I", plain)
            about = json.loads(plain[4 : 4 + length])
            if audio and (clip is not None) != about["audio"]:
                raise _altered(name, "one of its clips is missing")
            vector = np.frombuffer(plain, "<f4", offset=4 + length).astype(np.float64)
            embedding = vector @ self._matrix(vector.size)  # the transpose is the inverse
            embedding /= np.linalg.norm(embedding)
            found.append(
                Exemplar(
                    embedding.astype(np.float32),
                    decode_quality(about["quality"]),
                    datetime.datetime.fromisoformat(about["created"]),
                    clip,
                )
            )
        return tuple(found)

    def add(self, profile: Profile, event: str) -> None:
        """A new row for a profile that the root does not list."""
        row = self._free_id("profile")
        self.db.execute("INSERT INTO profile VALUES (?, ?, 1, x'', x'')", (row, profile.model_fingerprint))
        self.entries[profile.name] = Entry(row, 0, "", "")
        self.write_trail(profile.name, {"events": [], "last_used": None, "verified": {}})
        self.replace(profile, event)

    def replace(self, profile: Profile, event: str) -> None:
        """Put all of a profile into its row; nothing is left of what it was, but its audit trail goes on."""
        record = Record(
            name=profile.name,
            model_fingerprint=profile.model_fingerprint,
            created=profile.created,
            expires=profile.expires,
            consent=profile.consent,
            num_enrolled=len(profile.exemplars),
            exemplars=(),
        )
        try:
            trail = self.trail(profile.name)
        except SealError:  # a new enrolment is the cure for a damaged profile; its row may be missing
            self.delete(profile.name)
            self.add(profile, f"{event}; what was here before was altered and is lost")
            return
        ids = tuple(self.add_exemplar(record, exemplar) for exemplar in profile.exemplars)
        self.write(dataclasses.replace(record, exemplars=ids))
        self.write_trail(profile.name, _with_event(trail, event))

    def profile(self, name: str, *, audio: bool = True) -> Profile:
        """The whole profile, opened and checked."""
        record = self.record(name)
        return Profile(
            name=record.name,
            model_fingerprint=record.model_fingerprint,
            exemplars=self.exemplars(name, record, record.exemplars, audio=audio),
            created=record.created,
            expires=record.expires,
            consent=record.consent,
        )

    def add_exemplar(self, record: Record, exemplar: Exemplar) -> int:
        """A new row for an exemplar; the caller names it in the record."""
        row, id_ = self.entry(record.name).row, self._free_id("exemplar")
        about = {
            "created": exemplar.created.isoformat(),
            "quality": dataclasses.asdict(exemplar.quality),
            "audio": exemplar.audio is not None,
        }
        text = _json(about)
        vector = self._matrix(exemplar.embedding.size) @ exemplar.embedding.astype(np.float64)
        plain = struct.pack("<I", len(text)) + text + vector.astype("<f4").tobytes()
        where = row, id_, record.model_fingerprint
        clip = None if exemplar.audio is None else self.seal.close(exemplar.audio, self._aad("clip", *where))
        self.db.execute(
            "INSERT INTO exemplar VALUES (?, ?, ?, ?)",
            (id_, row, self.seal.close(plain, self._aad("vector", *where)), clip),
        )
        return id_

    def write(self, record: Record) -> None:
        """Seal a record into its row as the next version, and drop the exemplars that nothing names any more."""
        entry = self.entry(record.name)
        version = entry.version + 1
        body = self.seal.close(
            _json(
                {
                    "name": record.name,
                    "created": record.created.isoformat(),
                    "expires": None if record.expires is None else record.expires.isoformat(),
                    "consent": record.consent,
                    "num_enrolled": record.num_enrolled,
                    "exemplars": record.exemplars,
                    "history": record.history,
                }
            ),
            self._aad("body", entry.row, record.model_fingerprint, version),
        )
        self.db.execute(
            "UPDATE profile SET model_fingerprint = ?, version = ?, body = ? WHERE id = ?",
            (record.model_fingerprint, version, body, entry.row),
        )
        kept = set(record.exemplars).union(*record.history)
        for (id_,) in self.db.execute("SELECT id FROM exemplar WHERE profile_id = ?", (entry.row,)).fetchall():
            if id_ not in kept:
                self.db.execute("DELETE FROM exemplar WHERE id = ?", (id_,))
        self.entries[record.name] = dataclasses.replace(entry, version=version, body_digest=_digest(body))

    def trail(self, name: str) -> dict[str, Any]:
        """The audit of a profile."""
        entry = self.entry(name)
        fingerprint, _, _, sealed = self._row(name, entry)
        if _digest(sealed) != entry.trail_digest:
            raise _altered(name, "its audit trail was altered or put back to an older state")
        try:
            trail: dict[str, Any] = json.loads(self.seal.open(sealed, self._aad("trail", entry.row, fingerprint)))
        except SealError:
            raise _altered(name, "its audit trail does not open") from None
        return trail

    def write_trail(self, name: str, trail: dict[str, Any]) -> None:
        """Seal the audit of a profile into its row."""
        entry = self.entry(name)
        sealed = self.seal.close(_json(trail), self._aad("trail", entry.row, self._row(name, entry)[0]))
        self.db.execute("UPDATE profile SET trail = ? WHERE id = ?", (sealed, entry.row))
        self.entries[name] = dataclasses.replace(entry, trail_digest=_digest(sealed))

    def note_event(self, name: str, event: str) -> None:
        """Add to the audit of a profile."""
        self.write_trail(name, _with_event(self.trail(name), event))

    def delete(self, name: str) -> None:
        """Drop a profile's rows, whatever their state."""
        row = self.entry(name).row
        self.db.execute("DELETE FROM exemplar WHERE profile_id = ?", (row,))
        self.db.execute("DELETE FROM profile WHERE id = ?", (row,))
        del self.entries[name]

    def note(self, event: str) -> None:
        """Add to the store's own log."""
        self._log = [*self._log, [_now(), event]][-MAX_EVENTS:]

    @property
    def log(self) -> list[tuple[str, str]]:
        """The store's own log: what happened to profiles that are no more."""
        return [(at, event) for at, event in self._log]

    def copy_into(self, new: Transaction) -> None:
        """Seal every row anew under the keys of `new`; SealError if one does not open."""
        for name, entry in self.entries.items():
            record, trail = self.record(name), self.trail(name)
            ids = list(dict.fromkeys(id_ for group in (record.exemplars, *record.history) for id_ in group))
            exemplars = dict(zip(ids, self.exemplars(name, record, tuple(ids)), strict=True))
            self.db.execute("DELETE FROM exemplar WHERE profile_id = ?", (entry.row,))
            new.entries[name] = entry
            moved = {id_: new.add_exemplar(record, exemplar) for id_, exemplar in exemplars.items()}
            new.write_trail(name, trail)
            new.write(
                dataclasses.replace(
                    record,
                    exemplars=tuple(moved[id_] for id_ in record.exemplars),
                    history=tuple(tuple(moved[id_] for id_ in ids_) for ids_ in record.history),
                )
            )
        # Rows that the root does not list came from elsewhere.
        self.db.execute("CREATE TEMP TABLE known (id INTEGER PRIMARY KEY)")
        self.db.executemany("INSERT INTO known VALUES (?)", [(entry.row,) for entry in self.entries.values()])
        self.db.execute("DELETE FROM exemplar WHERE profile_id NOT IN (SELECT id FROM known)")
        self.db.execute("DELETE FROM profile WHERE id NOT IN (SELECT id FROM known)")
        new._log = self._log

    def become(self, new: Transaction) -> None:
        """Go on with the keys and entries of `new`."""
        self.keys, self.seal, self.entries, self._log = new.keys, new.seal, new.entries, new._log

    def write_root(self) -> None:
        """Count the write and seal root and log into both copies of the store's row."""
        self.counter += 1
        listed = [[name, *dataclasses.astuple(entry)] for name, entry in self.entries.items()]
        log = self.seal.close(_json(self._log), self._aad("log"))
        values = {"counter": self.counter, "profiles": listed, "log_digest": _digest(log)}
        root = self.seal.close(_json(values), self._aad("root"))
        columns = self.keys.store_id, self.keys.kind, self.keys.salt, self.keys.sealed, root, log
        for copy in (1, 2):
            self.db.execute("INSERT OR REPLACE INTO store VALUES (?, ?, ?, ?, ?, ?, ?)", (copy, *columns))

    def _free_id(self, table: str) -> int:
        while True:
            id_ = secrets.randbits(62) + 1
            if self.db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (id_,)).fetchone() is None:
                return id_


def _with_event(trail: dict[str, Any], event: str) -> dict[str, Any]:
    return {**trail, "events": [*trail["events"], [_now(), event]][-MAX_EVENTS:]}


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _digest(sealed: Any) -> str:
    return hashlib.sha256(sealed).hexdigest() if isinstance(sealed, bytes) else ""


def _altered(name: str, how: str) -> SealError:
    return SealError(
        f"profile {name!r}: {how}; it is refused, the others are not touched. "
        "Restore the store from a copy, or remove the profile and enrol again"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
