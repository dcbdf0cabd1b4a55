"""The SQLite file of a `ProfileStore`: made, opened, sealed anew and scrubbed (what is in it: `rows`).

A new store is made under another name and linked into place, so that a crash leaves a complete store or
none. Every change is one transaction in SQLite's write-ahead log, synced before it counts; a process that
dies leaves its last committed state. No connection outlives a transaction, so that nothing is shared between
threads or processes, and the store at rest is one file.

A store of schema 2 is read as it is. The first change to it, of whatever kind, seals all of it anew in the
present schema, in the same transaction; a profile that is damaged stays so and costs no other.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import pathlib
import secrets
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator

from ..errors import SchemaError, SealError, StoreBusyError, StoreError
from ..files import clear_drafts
from ..forks import FORKS
from .keys import KEY_BYTES, SCHEMA, KeyFile, KeySource, StoreKeys, key_kind, link_new
from .rows import NEW_IN_3, TABLES, TABLES_2, Rows
from .schema2 import SCHEMA_2

__all__ = ["StoreFile", "default_store_path"]

APPLICATION_ID = 0x656D6F69  # "emoi"
PAGE_BYTES = 4096
MAX_ROOT_BYTES = 256 << 20
CLOCK_SLACK_S = 300.0
# SQLite's steps within one transaction: so many, and as many again as the file has bytes. What needs more is no work of
# ours but something that was built to take for ever.
STEPS = 20_000_000
STEPS_A_CALL = 100_000

log = logging.getLogger(__name__)


def default_store_path() -> pathlib.Path:
    """``emoinv/profiles.db`` in the platform's folder for user data.

    Raises
    ------
    StoreError
        If the user has no home folder, as in many containers.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = pathlib.Path.home() / "Library" / "Application Support"
        else:
            base = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local" / "share"
    except RuntimeError:  # neither HOME nor an entry in passwd
        raise StoreError(
            "expected a home folder to find the profiles in, got none: HOME is not set, and the user is not in passwd; "
            "name a file with --store FILE (ProfileStore(path)), or set XDG_DATA_HOME to a folder that stays"
        ) from None
    return pathlib.Path(base) / "emoinv" / "profiles.db"


class StoreFile:
    """One store's file and key. It holds no connection: every transaction opens its own."""

    def __init__(self, path: pathlib.Path, key: KeySource, timeout_s: float) -> None:
        key_kind(key)
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(
                f"profiles need SQLite 3.37 or newer (strict tables), this Python has {sqlite3.sqlite_version}; "
                "use a Python that brings its own, e.g. `uv venv --managed-python`, conda's, or python.org's"
            )
        self.path = path
        self.key = key
        self.timeout_s = timeout_s
        self._keys: StoreKeys | None = None  # opened before; valid while the file has the same `sealed`
        self._newest: tuple[bytes, int] = b"", 0  # which store this is, and the highest count of writes seen in it
        self._warned = self._cleared = False

    # -- the file ------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether the file is there; StoreError where nobody may know, or where something else has its name."""
        try:
            about = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._condition(error) from None
        if not stat.S_ISREG(about.st_mode):
            raise StoreError(f"store {self.path}: is no regular file; give another path")
        for suffix in ("-journal", "-wal", "-shm"):  # SQLite would wait for a pipe
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(os.lstat(f"{self.path}{suffix}").st_mode):
                    raise StoreError(f"store {self.path}{suffix}: is no regular file; remove it")
        return True

    def signature(self) -> tuple[object, ...]:
        """What changes when the file does; empty while a change could still hide behind the clock's coarseness."""
        found: list[object] = []
        for suffix in ("", "-wal"):
            try:
                about = os.stat(f"{self.path}{suffix}")
            except OSError:
                found.append(None)
                continue
            if abs(time.time() - about.st_mtime) < 2.5:
                return ()
            found += about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
        return tuple(found)

    def create(self) -> None:
        """Make the file, and a missing key file, unless it is there."""
        if self.exists():
            return
        draft = pathlib.Path(f"{self.path}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            clear_drafts(self.path)
            if isinstance(self.key, KeyFile):
                self.key.create()
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with FORKS.kept_off(), contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("BEGIN")
                _run(db, f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; {TABLES}")
                Rows(db, StoreKeys.fresh(self.key, secrets.token_bytes(16))).write_root()
                db.execute("COMMIT")
            link_new(draft, self.path)
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

    def _connect(
        self, *, immutable: bool = False, alone: bool = False, timeout_s: float | None = None
    ) -> sqlite3.Connection:
        timeout_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        query = "mode=ro&immutable=1" if immutable else "mode=rw"
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{query}", uri=True, timeout=timeout_s, isolation_level=None
        )
        try:
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            # A transaction's scratch space must not put plain or sealed bytes into another file.
            _run(db, "PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")
            _run(db, "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;")
            left = STEPS + os.stat(self.path).st_size

            def too_many() -> bool:
                nonlocal left
                left -= STEPS_A_CALL
                return left < 0

            db.set_progress_handler(too_many, STEPS_A_CALL)
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def transaction(self, *, write: bool, timeout_s: float | None = None) -> Iterator[Rows]:
        """One transaction; what the block changed is committed at its end, or nothing if it raises.

        `timeout_s` is a shorter wait for another process than this file's own.
        """
        if not self.exists():
            raise StoreError(f"store {self.path}: does not exist; enrol a speaker first, or give another path")
        immutable = self.read_only()
        if immutable and write:
            raise StoreError(
                f"store {self.path}: is on read-only media or belongs to another user; profiles can be read, "
                "but not changed. Copy it to a place that you may write to; nothing was changed"
            )
        with FORKS.kept_off(), contextlib.ExitStack() as stack:
            try:
                db, rows = self._begin(write=write, immutable=immutable, timeout_s=timeout_s)
                stack.callback(db.close)
                self._watch_clock(rows)
                if write:
                    self._clear_drafts()
                if write and rows.keys.schema != SCHEMA:
                    _run(db, NEW_IN_3)
                    rows.reseal(StoreKeys.fresh(self.key, rows.keys.store_id), leave_damaged=True)
                    rows.note(f"brought from schema {SCHEMA_2} to {SCHEMA}")
                    db.execute(f"PRAGMA user_version = {SCHEMA}")
                yield rows
                if write:
                    rows.write_root()
                    db.execute("COMMIT")
                    self._keys = rows.keys
                self._newest = rows.keys.store_id, max(self._newest[1], rows.counter)
            # SQLite may quote a damaged schema in its message, and Python then fails to decode it.
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                raise self._condition(error, timeout_s) from None
        # Closing without COMMIT rolls back, and ends what only read.

    def _begin(self, *, write: bool, immutable: bool, timeout_s: float | None) -> tuple[sqlite3.Connection, Rows]:
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
                db = self._connect(immutable=immutable, alone=alone, timeout_s=timeout_s)
                # Taken before the snapshot: a thread that writes meanwhile must not make it look old.
                newest = self._newest
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                return db, self._open(db, self._schema(db), newest, write=write)
            except BaseException as error:
                if db is not None:
                    db.close()
                # A rotation may have changed the key file between our look at it and at the store.
                if isinstance(error, SealError) and isinstance(self.key, KeyFile) and attempt < 3:
                    time.sleep(0.02)
                # On a full disk there is no room for SQLite's shared index of the log; a process that
                # has the file to itself does without.
                elif (
                    isinstance(error, sqlite3.OperationalError)
                    and not (write or immutable or alone)
                    and "locked" not in str(error)
                ):
                    alone = True
                else:
                    raise
        raise AssertionError("the last attempt returned or raised")

    def _refuse_cut_off(self) -> None:
        """Notice a file that lost its end, even where SQLite would not come across what is missing."""
        for pause_s in (0.0, 0.05, 0.05):  # another process may be growing the file just now
            time.sleep(pause_s)
            if self._pending_log():
                return
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            with open(os.open(self.path, flags), "rb") as file:
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
        if schema not in (SCHEMA_2, SCHEMA):
            raise SchemaError(
                f"store {self.path}: expected schema {SCHEMA_2} or {SCHEMA}, got {schema}; "
                "install the emoinv-edge version that wrote it, or a newer one"
            )
        query = "SELECT type, name, substr(sql, 1, 2000) FROM sqlite_schema WHERE sql IS NOT NULL LIMIT 16"
        found = {(kind, name, " ".join(str(sql).split())) for kind, name, sql in db.execute(query)}
        if found != _objects(TABLES if schema == SCHEMA else TABLES_2):
            raise StoreError(
                f"store {self.path}: expected the tables of schema {schema} and nothing else, got other ones; "
                "the file was altered: restore it from a copy"
            )
        return schema

    def _open(self, db: sqlite3.Connection, schema: int, newest: tuple[bytes, int], *, write: bool) -> Rows:
        query = "SELECT store_id, key_kind, salt, keys, root, log FROM store WHERE length(root) + length(log) <= ?"
        copies = db.execute(f"{query} ORDER BY copy LIMIT 2", (MAX_ROOT_BYTES,)).fetchall()
        opened = []
        for *columns, root, log in copies:
            with contextlib.suppress(SealError):
                keys = self._open_keys(schema, tuple(columns), write=write)
                opened.append(Rows(db, keys, root, log))
        if not opened:
            raise self._wrong_key([kind for _, kind, *_ in copies])
        rows = max(opened, key=lambda candidate: (candidate.counter, candidate.log_intact))
        if newest[0] not in (b"", rows.keys.store_id):
            raise SealError(
                f"store {self.path}: another store lies here now, under the same key; "
                "if you put it there on purpose, open it anew"
            )
        if rows.counter < newest[1]:
            raise SealError(
                f"store {self.path}: the file was put back to an older state (write {rows.counter}, "
                f"seen before: {newest[1]}); if you restored a copy on purpose, open it anew"
            )
        return rows

    def _open_keys(self, schema: int, columns: tuple[object, ...], *, write: bool) -> StoreKeys:
        known = self._keys
        if known is None or (known.schema, known.columns) != (schema, columns):
            known, place = StoreKeys.opened(self.key, schema, *columns)
            if isinstance(self.key, KeyFile) and write:
                # What a killed rotation left; only ever under the store's write lock.
                self.key.settle_successor(promote=place == 1)
            self._keys = known
        return known

    def _watch_clock(self, rows: Rows) -> None:
        """Say once that the clock stands before the store's latest write: by it no expiry can be trusted."""
        if self._warned or not rows.written:
            return
        behind = datetime.datetime.fromisoformat(rows.written) - datetime.datetime.now(datetime.timezone.utc)
        if behind.total_seconds() > CLOCK_SLACK_S:
            self._warned = True
            log.warning(
                "store %s: the clock stands before its latest write (%s), so that profiles may be used beyond their "
                "expiry; set the clock, or if it ran ahead then, run `emoinv profiles rotate`",
                self.path,
                rows.written,
            )

    def _clear_drafts(self) -> None:
        """Remove what killed processes left beside the file and its key; once, and under the write lock."""
        if not self._cleared:
            self._cleared = True
            clear_drafts(self.path)
            if isinstance(self.key, KeyFile):
                self.key.clear_drafts()

    def _wrong_key(self, kinds: list[object]) -> StoreError:
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

    def _condition(self, error: Exception, waited_s: float | None = None) -> StoreError:
        """The StoreError for an error of SQLite or of the system, with what it means and the cure."""
        waited_s = self.timeout_s if waited_s is None else waited_s
        text = str(error) if not isinstance(error, UnicodeDecodeError) else "its schema is not text"
        if isinstance(error, OSError):
            cure = ""
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
                cure = ". Give a file in a place that you may write to: --store FILE, or XDG_DATA_HOME"
            return StoreError(f"store {self.path}: {error.strerror or text}; nothing was changed{cure}")
        if "locked" in text or "busy" in text:
            what = f"another process kept it locked for {waited_s:g} s; nothing was changed, try again"
            return StoreBusyError(f"store {self.path}: {what}")
        elif text == "interrupted":
            what = "takes more work than its size explains; it was altered: restore it from a copy"
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
            If another process held the file for all of the time limit, or the disk is full: what
            was committed stands, but old sealed bytes may still lie in the file.
        """
        later = "the change itself is done, but old sealed bytes may still lie in the file; run `emoinv profiles purge`"
        deadline = time.monotonic() + self.timeout_s
        try:
            with FORKS.kept_off(), contextlib.closing(self._connect()) as db:
                self._schema(db)
                db.execute("VACUUM")
                while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] != 0:
                    if time.monotonic() > deadline:
                        raise sqlite3.OperationalError("database is locked")
                    time.sleep(0.02)
        except sqlite3.Error as error:
            raise StoreError(f"{self._condition(error)}. In this case {later}") from None

    def renew(self, key: KeySource | None) -> None:
        """Seal everything anew, in one transaction, with a fresh data key, under `key` or the present one.

        `key` becomes the key of this file. A KeyFile of the present path gets a new content, which takes its
        place after the transaction.
        """
        successor = None
        if isinstance(key, KeyFile) and isinstance(self.key, KeyFile) and _same_path(key.path, self.key.path):
            successor = secrets.token_bytes(KEY_BYTES)
        with self.transaction(write=True) as rows:
            if isinstance(key, KeyFile):
                if successor is None:
                    key.create()
                else:
                    key.write_successor(successor)
            key = self.key if key is None else key
            rows.reseal(StoreKeys.fresh(successor or key, rows.keys.store_id))
            rows.note("sealed anew")
        self.key = key
        if successor is not None:
            self._keys = None
            with self.transaction(write=True):  # opens with the successor and puts it into place
                pass


def _objects(tables: str) -> set[tuple[str, str, str]]:
    """What sqlite_schema holds of these statements."""
    found = set()
    for statement in filter(None, (" ".join(each.split()) for each in tables.split(";"))):
        _, kind, name, *_ = statement.split()
        found.add((kind.lower(), name, statement))
    return found


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
