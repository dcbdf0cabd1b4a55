"""ProfileStore: profiles in one SQLite file, every secret in it sealed.

Schema 1: a row of keys (twice, so that one damaged copy does not cost the others) and one sealed
row a profile, bound to the store, the row, the model's fingerprint and the schema.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import secrets
import sqlite3
import sys
from collections.abc import Iterator

from .errors import ModelMismatchError, ProfileExpiredError, SchemaError, SealError, StoreError, UnknownSpeakerError
from .profiles import Exemplar, Profile, checked_name, decode_profile, encode_profile
from .sealing import (
    KEY_BYTES,
    KEY_VARIABLE,
    PLAINTEXT,
    SALT_BYTES,
    KeyFile,
    KeySource,
    KeyVariable,
    Passphrase,
    Seal,
    associated,
    derive_key,
    key_kind,
    secret_candidates,
)

__all__ = ["PLAINTEXT", "KeyFile", "KeyVariable", "Passphrase", "ProfileInfo", "ProfileStore", "default_store_path"]

SCHEMA = 1
APPLICATION_ID = 0x656D6F69  # "emoi"

TABLES = """
CREATE TABLE store (
    copy INTEGER PRIMARY KEY CHECK (copy IN (1, 2)),
    store_id BLOB NOT NULL,
    key_kind TEXT NOT NULL,
    salt BLOB NOT NULL,
    keys BLOB NOT NULL
) STRICT;
CREATE TABLE profile (
    id INTEGER PRIMARY KEY,
    model_fingerprint TEXT NOT NULL,
    sealed BLOB NOT NULL
) STRICT;
"""


def default_store_path() -> pathlib.Path:
    """``emoinv/profiles.db`` in the platform's folder for user data."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local" / "share"
    return pathlib.Path(base) / "emoinv" / "profiles.db"


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    store_id: bytes
    seal: Seal


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileInfo:
    """What may be told of a stored profile without giving any of its speech away."""

    name: str
    model_fingerprint: str
    num_exemplars: int
    num_clips: int
    created: datetime.datetime
    expires: datetime.datetime | None
    consent: str
    expired: bool


# Inside the class `list` is the method.
_Names = list[str]
_Infos = list[ProfileInfo]
_Profiles = list[Profile]
_Rows = list[tuple[int, Profile]]


class ProfileStore:
    """Profiles by name in one SQLite file; safe between threads and processes.

    Parameters
    ----------
    path : path, optional
        The file, made at the first write; by default `default_store_path`.
    key : bytes, function, KeyFile, KeyVariable, Passphrase or PLAINTEXT, optional
        What seals it (see `sealing`). By default the environment variable ``EMOINV_STORE_KEY`` if it
        is set, else the key file ``<path>.key``, made with mode 0600 together with the store. Only
        ``key=PLAINTEXT`` writes in the clear.
    timeout_s : float
        Longest wait for another process that is writing.
    """

    def __init__(
        self, path: str | pathlib.Path | None = None, key: KeySource | None = None, *, timeout_s: float = 10.0
    ) -> None:
        self.path = pathlib.Path(path) if path is not None else default_store_path()
        if key is None:
            key = KeyVariable() if KEY_VARIABLE in os.environ else KeyFile(f"{self.path}.key")
        key_kind(key)
        self._key = key
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"ProfileStore({str(self.path)!r})"

    def put(self, profile: Profile) -> None:
        """Keep the profile; one of the same name is replaced."""
        self._create()
        with self._transaction(write=True) as (db, opened):
            for row, stored in self._rows(db, opened):
                if stored.name == profile.name:
                    db.execute("DELETE FROM profile WHERE id = ?", (row,))
            row = secrets.randbits(63)
            aad = self._aad(opened, row, profile.model_fingerprint)
            sealed = opened.seal.close(encode_profile(profile), aad)
            db.execute("INSERT INTO profile VALUES (?, ?, ?)", (row, profile.model_fingerprint, sealed))

    def get(self, name: str, *, model_fingerprint: str | None = None) -> Profile:
        """The profile of that name.

        Raises
        ------
        UnknownSpeakerError, ProfileExpiredError, ModelMismatchError, SealError, StoreError
        """
        name = checked_name(name)
        for profile in self._profiles():
            if profile.name == name:
                if profile.expired():
                    raise ProfileExpiredError(f"profile {name!r} expired on {profile.expires:%Y-%m-%d}; enrol again")
                if model_fingerprint is not None and profile.model_fingerprint != model_fingerprint:
                    raise ModelMismatchError(
                        f"profile {name!r} was made by model {profile.model_fingerprint[:12]}, "
                        f"not by {model_fingerprint[:12]}; enrol again with this model"
                    )
                return profile
        raise UnknownSpeakerError(f"no profile named {name!r}; enrol it first")

    def remove(self, name: str) -> None:
        """Remove the profile of that name."""
        name = checked_name(name)
        if not self.path.exists():
            raise UnknownSpeakerError(f"no profile named {name!r}")
        with self._transaction(write=True) as (db, opened):
            rows = [row for row, profile in self._rows(db, opened) if profile.name == name]
            if not rows:
                raise UnknownSpeakerError(f"no profile named {name!r}")
            db.execute("DELETE FROM profile WHERE id = ?", rows)

    def adapt(self, name: str, exemplar: Exemplar) -> Profile:
        """Add an exemplar to the profile of that name, in one transaction."""
        name = checked_name(name)
        with self._transaction(write=True) as (db, opened):
            for row, profile in self._rows(db, opened):
                if profile.name == name:
                    profile = dataclasses.replace(profile, exemplars=(*profile.exemplars, exemplar))
                    aad = self._aad(opened, row, profile.model_fingerprint)
                    sealed = opened.seal.close(encode_profile(profile), aad)
                    db.execute("UPDATE profile SET sealed = ? WHERE id = ?", (sealed, row))
                    return profile
        raise UnknownSpeakerError(f"no profile named {name!r}")

    def names(self) -> _Names:
        """The names, sorted, those of expired profiles too."""
        return [info.name for info in self.list()]

    def list(self) -> _Infos:
        """What there is to tell about every profile, sorted by name, the expired ones too."""
        return [
            ProfileInfo(
                name=profile.name,
                model_fingerprint=profile.model_fingerprint,
                num_exemplars=len(profile.exemplars),
                num_clips=sum(exemplar.audio is not None for exemplar in profile.exemplars),
                created=profile.created,
                expires=profile.expires,
                consent=profile.consent,
                expired=profile.expired(),
            )
            for profile in self._profiles()
        ]

    def _profiles(self) -> _Profiles:
        if not self.path.exists():
            return []
        with self._transaction(write=False) as (db, opened):
            return sorted((profile for _, profile in self._rows(db, opened)), key=lambda profile: profile.name)

    def _aad(self, opened: _Opened, row: int, fingerprint: str) -> bytes:
        return associated("emoinv store", SCHEMA, opened.store_id, "profile", row, fingerprint)

    def _rows(self, db: sqlite3.Connection, opened: _Opened) -> _Rows:
        rows = db.execute("SELECT id, model_fingerprint, sealed FROM profile").fetchall()
        return [
            (row, decode_profile(opened.seal.open(sealed, self._aad(opened, row, fingerprint))))
            for row, fingerprint, sealed in rows
        ]

    def _create(self) -> None:
        """Make the file whole under another name, then link it into place: a crash leaves no half store."""
        if self.path.exists():
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if isinstance(self._key, KeyFile):
            self._key.create()
        draft = pathlib.Path(f"{self.path}.{secrets.token_hex(4)}.tmp")
        store_id, salt = secrets.token_bytes(16), secrets.token_bytes(SALT_BYTES)
        kind = key_kind(self._key)
        keys = secrets.token_bytes(KEY_BYTES)
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; {TABLES} COMMIT;"
                )
                wrap = self._wrap(kind, next(secret_candidates(self._key), b""), salt)
                db.executemany(
                    "INSERT INTO store VALUES (?, ?, ?, ?, ?)",
                    [(c, store_id, kind, salt, wrap.close(keys, _keys_aad(c, store_id, kind))) for c in (1, 2)],
                )
            with contextlib.suppress(FileExistsError):
                os.link(draft, self.path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"store {self.path}: cannot be made ({error})") from None
        finally:
            draft.unlink(missing_ok=True)

    @staticmethod
    def _wrap(kind: str, secret: bytes, salt: bytes) -> Seal:
        return Seal(None if kind == "plaintext" else derive_key(kind, secret, salt, "wrap"))

    def _open(self, db: sqlite3.Connection) -> _Opened:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(f"store {self.path}: not a profile store; give another --store")
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if schema != SCHEMA:
            raise SchemaError(f"store {self.path}: expected schema {SCHEMA}, got {schema}; install a newer version")
        rows = db.execute("SELECT copy, store_id, key_kind, salt, keys FROM store ORDER BY copy").fetchall()
        for copy, store_id, kind, salt, sealed in rows:
            if kind != key_kind(self._key):
                continue
            for secret in [b""] if kind == "plaintext" else secret_candidates(self._key):
                with contextlib.suppress(SealError):
                    key = self._wrap(kind, secret, salt).open(sealed, _keys_aad(copy, store_id, kind))
                    return _Opened(store_id, Seal(None if kind == "plaintext" else key))
        raise SealError(f"store {self.path}: does not open with this key; give the key that it was made with")

    @contextlib.contextmanager
    def _transaction(self, *, write: bool) -> Iterator[tuple[sqlite3.Connection, _Opened]]:
        if not self.path.exists():
            raise StoreError(f"store {self.path}: does not exist; enrol a speaker first")
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None)) as db:
                db.execute("PRAGMA secure_delete = ON")
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield db, self._open(db)
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from None


def _keys_aad(copy: int, store_id: bytes, kind: str) -> bytes:
    return associated("emoinv store", SCHEMA, store_id, "keys", copy, kind)
