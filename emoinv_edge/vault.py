"""The SQLite file of a `ProfileStore`: opened, made, migrated, scrubbed and renewed (what is in it: `ledger`).

A new store is made under another name and linked into place, so that a crash leaves a whole store or
none. Every change is one transaction in SQLite's write-ahead log, synced before it counts; a process that
dies leaves its last committed state. No connection outlives a transaction, so that nothing is shared between
threads or processes, and the store at rest is one file.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SchemaError, SealError, StoreError
from .ledger import SCHEMA, TABLES, StoreKeys, Transaction, keys_aad, new_keys, wrapping_seal
from .profiles import decode_profile
from .sealing import KEY_BYTES, KeyFile, KeySource, Seal, associated, key_kind, secret_candidates

__all__ = ["Vault"]

OLDEST_SCHEMA = 1
APPLICATION_ID = 0x656D6F69  # "emoi"
PAGE_BYTES = 4096


class Vault:
    """One store's file and key. It holds no connection: every transaction opens its own."""

    def __init__(self, path: pathlib.Path, key: KeySource, timeout_s: float) -> None:
        key_kind(key)
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(
                f"profiles need SQLite 3.37 or newer (strict tables), this Python has {sqlite3.sqlite_version}; "
                "use a newer Python or system"
            )
        self.path = path
        self.key = key
        self.timeout_s = timeout_s
        self._keys: StoreKeys | None = None  # opened before; valid while the file has the same `sealed`
        self._matrices: dict[tuple[bytes, int], NDArray[np.float64]] = {}
        self._newest: tuple[bytes, int] = b"", 0  # the highest count of writes seen, and in which store

    # -- the file ------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the file, and a missing key file, unless it is there."""
        if self.path.exists():
            return
        draft = pathlib.Path(f"{self.path}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if isinstance(self.key, KeyFile):
                self.key.create()
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("BEGIN")
                _run(db, f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; {TABLES}")
                keys = new_keys(self.key, secrets.token_bytes(16))
                Transaction(db, keys, self._matrices).write_root()
                db.execute("COMMIT")
            try:
                os.link(draft, self.path)
            except FileExistsError:
                pass  # another process was first; its store counts
            except OSError:  # a file system without hard links
                if not self.path.exists():
                    draft.rename(self.path)
            _sync_folder(self.path.parent)
        except (OSError, sqlite3.Error) as error:
            raise self._condition(error) from None
        finally:
            for leftover in (draft, f"{draft}-wal", f"{draft}-shm", f"{draft}-journal"):
                with contextlib.suppress(OSError):
                    os.unlink(leftover)

    def read_only(self) -> bool:
        """Whether the file or its folder cannot be written."""
        return not (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK))

    def _pending_log(self) -> bool:
        with contextlib.suppress(OSError):
            return pathlib.Path(f"{self.path}-wal").stat().st_size > 0
        return False

    def _connect(self, *, immutable: bool = False, alone: bool = False) -> sqlite3.Connection:
        query = "mode=ro&immutable=1" if immutable else "mode=rw"
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{query}", uri=True, timeout=self.timeout_s, isolation_level=None
        )
        try:
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            # A transaction's scratch space must not put plain or sealed bytes into another file.
            _run(db, "PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")
            _run(db, "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;")
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """One transaction; what the block changed is committed at its end, or nothing if it raises."""
        if not self.path.exists():
            raise StoreError(f"store {self.path}: does not exist; enrol a speaker first, or give another path")
        immutable = self.read_only()
        if immutable and write:
            raise StoreError(
                f"store {self.path}: is on read-only media or belongs to another user; profiles can be read, "
                "but not changed. Copy it to a place that you may write to; nothing was changed"
            )
        with contextlib.ExitStack() as stack:
            try:
                db, begun = self._begin(write=write, immutable=immutable)
                stack.callback(db.close)
                yield begun
                if write:
                    begun.write_root()
                    db.execute("COMMIT")
                self._newest = max(self._newest, (begun.keys.store_id, begun.counter), key=lambda seen: seen[1])
            # SQLite may quote a damaged schema in its message, and Python then fails to decode it.
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                raise self._condition(error) from None
        # Closing without COMMIT rolls back, and ends what only read.

    def _begin(self, *, write: bool, immutable: bool) -> tuple[sqlite3.Connection, Transaction]:
        alone = False
        for attempt in range(4):
            if immutable and self._pending_log():
                raise StoreError(
                    f"store {self.path}: was not closed cleanly, and its last changes cannot be brought in on "
                    "read-only media; open it once where it can be written"
                )
            db = None
            try:
                self._refuse_cut_off()
                db = self._connect(immutable=immutable, alone=alone)
                schema = self._schema(db)
                if schema < SCHEMA:
                    if immutable:
                        raise SchemaError(
                            f"store {self.path}: has schema {schema}, read-only, and must be brought to schema "
                            f"{SCHEMA}; open it once where it can be written"
                        )
                    self._migrate(db)
                # Taken before the snapshot: a thread that writes meanwhile must not make it look old.
                newest = self._newest
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                return db, self._open(db, newest, write=write)
            except SealError:
                if db is not None:
                    db.close()
                # A rotation may have changed the key file between our look at it and at the store.
                if not isinstance(self.key, KeyFile) or attempt == 3:
                    raise
                time.sleep(0.02)
            except sqlite3.OperationalError as error:
                if db is not None:
                    db.close()
                # On a full disk there is no room for SQLite's shared index of the log; a process that
                # has the file to itself does without.
                if write or immutable or alone or "locked" in str(error):
                    raise
                alone = True
            except BaseException:
                if db is not None:
                    db.close()
                raise
        raise AssertionError("the last attempt returned or raised")

    def _refuse_cut_off(self) -> None:
        """Notice a file that lost its end, even where SQLite would not come across what is missing."""
        for pause_s in (0.0, 0.05, 0.05):  # another process may be growing the file just now
            time.sleep(pause_s)
            if self._pending_log():
                return
            with open(self.path, "rb") as file:
                head = file.read(32)
                size = file.seek(0, os.SEEK_END)
            page = int.from_bytes(head[16:18], "big")
            if size > 0 and size >= int.from_bytes(head[28:32], "big") * (page if page != 1 else 65536):
                return
        raise StoreError(f"store {self.path}: is cut off after {size} bytes; restore it from a copy")

    def _schema(self, db: sqlite3.Connection) -> int:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(
                f"store {self.path}: is no profile store, or is damaged; give another path, or restore a copy"
            )
        schema = int(db.execute("PRAGMA user_version").fetchone()[0])
        if not OLDEST_SCHEMA <= schema <= SCHEMA:
            raise SchemaError(
                f"store {self.path}: expected schema {OLDEST_SCHEMA} to {SCHEMA}, got {schema}; "
                "install the emoinv-edge version that wrote it, or a newer one"
            )
        return schema

    def _open(self, db: sqlite3.Connection, newest: tuple[bytes, int], *, write: bool) -> Transaction:
        rows = db.execute("SELECT store_id, key_kind, salt, keys, root, log FROM store ORDER BY copy").fetchall()
        opened = []
        for store_id, kind, salt, sealed, root, log in rows:
            with contextlib.suppress(SealError):
                keys = self._unwrap(store_id, kind, salt, sealed, write=write)
                opened.append(Transaction(db, keys, self._matrices, root, log))
        if not opened:
            raise self._wrong_key([kind for _, kind, *_ in rows])
        transaction = max(opened, key=lambda candidate: (candidate.counter, candidate.log_intact))
        if newest[0] == transaction.keys.store_id and transaction.counter < newest[1]:
            raise SealError(
                f"store {self.path}: the file was put back to an older state (write {transaction.counter}, "
                f"seen before: {newest[1]}); if you restored a copy on purpose, open it anew"
            )
        return transaction

    def _unwrap(self, store_id: Any, kind: Any, salt: Any, sealed: Any, *, write: bool) -> StoreKeys:
        known = self._keys
        if known is not None and (store_id, kind, salt, sealed) == (
            known.store_id,
            known.kind,
            known.salt,
            known.sealed,
        ):
            return known
        if not (isinstance(store_id, bytes) and isinstance(salt, bytes) and kind == key_kind(self.key)):
            raise SealError("the kind of key differs")
        aad = keys_aad(store_id, kind)
        for place, secret in enumerate([b""] if kind == "plaintext" else secret_candidates(self.key)):
            with contextlib.suppress(SealError):
                plain = wrapping_seal(kind, secret, salt).open(sealed, aad)
                if isinstance(self.key, KeyFile) and write:
                    self._settle_key_file(place)
                data_key, transform_secret = plain[:KEY_BYTES], plain[KEY_BYTES:]
                keys = StoreKeys(store_id, kind, salt, sealed, data_key, transform_secret)
                self._keys = keys
                return keys
        raise SealError("the key differs")

    def _settle_key_file(self, place: int) -> None:
        """Finish or clear what a killed rotation left; only ever under the store's write lock."""
        if isinstance(self.key, KeyFile):
            with contextlib.suppress(FileNotFoundError):
                if place == 1:
                    self.key.promote_successor()
                else:
                    os.unlink(f"{self.key.path}.new")

    def _wrong_key(self, kinds: list[Any]) -> StoreError:
        kind = key_kind(self.key)
        if kinds and all(other == "plaintext" != kind for other in kinds):
            return SealError(
                f"store {self.path}: is in plaintext, but a key was given; open it with key=PLAINTEXT, "
                "or --plaintext, and seal it with `emoinv profiles rotate --plaintext --new-key-file FILE`"
            )
        if kinds and all(other in ("key", "passphrase") and other != kind for other in kinds):
            wanted, cure = "key", "a key file (--key-file), 32 bytes, or a variable such as EMOINV_STORE_KEY"
            if kinds[0] == "passphrase":
                wanted, cure = "passphrase", "Passphrase(...), or --passphrase on the command line"
            return SealError(f"store {self.path}: is sealed with a {wanted}, not with what was given; give {cure}")
        return SealError(
            f"store {self.path}: does not open: the key is another one, or the file was altered. "
            "Give the key that it was made with, or restore it from a copy"
        )

    def _condition(self, error: Exception) -> StoreError:
        """The StoreError that tells a user what an error of SQLite or of the system means."""
        text = str(error) if not isinstance(error, UnicodeDecodeError) else "its schema is not text"
        if isinstance(error, OSError):
            return StoreError(f"store {self.path}: {error.strerror or text}; nothing was changed")
        if "locked" in text or "busy" in text:
            what = f"another process kept it locked for {self.timeout_s:g} s; nothing was changed, try again"
        elif "full" in text:
            what = "the disk is full; nothing was changed, free some space and try again"
        elif "readonly" in text:
            what = "is on read-only media; nothing was changed"
        elif "disk I/O" in text or "unable to open" in text:
            what = f"reading or writing failed ({text}): no space or quota left, or no permission; nothing was changed"
        else:
            what = f"is damaged or not a profile store ({text}); restore it from a copy, or import exported profiles"
        return StoreError(f"store {self.path}: {what}")

    # -- maintenance ---------------------------------------------------------------------------------------

    def scrub(self) -> None:
        """Rebuild the file without its free pages and empty the write-ahead log.

        Raises
        ------
        StoreError
            If another process held the file for the whole time limit, or the disk is full: what
            was committed stands, but old sealed bytes may still lie in the file.
        """
        later = "the change itself is done, but old sealed bytes may still lie in the file; run `emoinv profiles purge`"
        deadline = time.monotonic() + self.timeout_s
        try:
            with contextlib.closing(self._connect()) as db:
                db.execute("VACUUM")
                while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] != 0:
                    if time.monotonic() > deadline:
                        raise sqlite3.OperationalError("database is locked")
                    time.sleep(0.02)
        except sqlite3.Error as error:
            raise StoreError(f"{self._condition(error)}. In this case {later}") from None

    def renew(self, key: KeySource, *, fresh: bool) -> None:
        """Seal everything anew, in one transaction: fresh data key and transform secret, under `key`.

        `key` becomes the key of this vault. If `fresh`, a KeyFile of the same path gets a new content, which
        takes its place after the transaction.
        """
        in_place = (
            fresh and isinstance(key, KeyFile) and isinstance(self.key, KeyFile) and _same_path(key.path, self.key.path)
        )
        successor = secrets.token_bytes(KEY_BYTES) if in_place else None
        if isinstance(key, KeyFile) and fresh and not in_place:
            key.create()
        with self.transaction(write=True) as old:
            if isinstance(key, KeyFile) and successor is not None:
                key.write_successor(successor)
            keys = new_keys(successor if successor is not None else key, old.keys.store_id)
            new = Transaction(old.db, keys, self._matrices)
            old.copy_into(new)
            # The block's end writes the root of `old`; make it the new one.
            old.become(new)
            old.note("sealed anew")
        self.key = key
        self._keys = keys
        self._matrices.clear()
        if in_place:
            self._keys = None
            with self.transaction(write=True):  # opens with the successor and puts it into place
                pass

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Bring the store to this schema, in one transaction; a store that does not open stays as it is."""
        db.execute("BEGIN IMMEDIATE")
        try:
            if self._schema(db) == 1:  # another process may have been first
                self._migrate_1(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _migrate_1(self, db: sqlite3.Connection) -> None:
        """Schema 1: one sealed row a profile, no transform, no root, no audit."""
        rows = db.execute("SELECT copy, store_id, key_kind, salt, keys FROM store ORDER BY copy").fetchall()
        old = None
        for copy, store_id, kind, salt, sealed in rows:
            if kind == key_kind(self.key):
                aad = associated("emoinv store", 1, store_id, "keys", copy, kind)
                for secret in [b""] if kind == "plaintext" else secret_candidates(self.key):
                    with contextlib.suppress(SealError):
                        data_key = wrapping_seal(kind, secret, salt).open(sealed, aad)
                        old = store_id, Seal(None if kind == "plaintext" else data_key)
        if old is None:
            raise self._wrong_key([row[2] for row in rows])
        store_id, seal = old
        profiles = []
        for row, fingerprint, sealed in db.execute("SELECT id, model_fingerprint, sealed FROM profile"):
            aad = associated("emoinv store", 1, store_id, "profile", row, fingerprint)
            try:
                profiles.append(decode_profile(seal.open(sealed, aad)))
            except StoreError:
                raise SealError(
                    f"store {self.path}: a profile of this older store is damaged, so it was left as it is; "
                    "restore it from a copy"
                ) from None
        db.execute("DROP TABLE profile")
        db.execute("DROP TABLE store")
        _run(db, f"{TABLES} PRAGMA user_version = {SCHEMA};")
        keys = new_keys(self.key, store_id)
        transaction = Transaction(db, keys, self._matrices)
        for profile in profiles:
            transaction.add(profile, "migrated from schema 1")
        transaction.write_root()


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run statements within the transaction at hand (`executescript` would commit it)."""
    for statement in script.split(";"):
        if statement.strip():
            db.execute(statement)


def _same_path(first: pathlib.Path | str, second: pathlib.Path | str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _sync_folder(folder: pathlib.Path) -> None:
    """Make a new name in a folder last; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
