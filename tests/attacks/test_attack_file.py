"""Kind 10: somebody who can write the store's file, but has no key."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError, SealError, StoreError
from emoinv_edge.store import ProfileStore
from tests.builders import ANA_HZ, BOB_HZ, RATE, enrolled, profile, synthesise, unit_vectors

KEY = bytes(range(32))
FULL = bool(os.environ.get("EMOINV_FULL_PROOFS"))
HERS = synthesise(3.0, 9, ANA_HZ)

HOSTILE = {
    "an endless view in the place of a table": [
        "ALTER TABLE profile RENAME TO hidden",
        "CREATE VIEW profile AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "SELECT x AS id, '' AS model_fingerprint, 1 AS version, x'00' AS body, x'00' AS trail FROM n",
    ],
    "a view over the store's own row": ["ALTER TABLE store RENAME TO s", "CREATE VIEW store AS SELECT * FROM s, s t"],
    "a trigger that keeps what was removed": [
        "CREATE TABLE kept (body BLOB)",
        "CREATE TRIGGER keep BEFORE DELETE ON exemplar BEGIN INSERT INTO kept VALUES (old.vector); END",
    ],
    "a trigger that never ends": [
        "CREATE TRIGGER more AFTER UPDATE ON profile BEGIN INSERT INTO exemplar WITH RECURSIVE n(x) AS (SELECT 1 "
        "UNION ALL SELECT x + 1 FROM n) SELECT x, new.id, x'00', NULL FROM n; END",
    ],
    "a trigger that undoes": ["CREATE TRIGGER stay BEFORE DELETE ON profile BEGIN SELECT RAISE(IGNORE); END"],
    "a column that computes": ["ALTER TABLE exemplar ADD COLUMN more INTEGER AS (id + 1)"],
    "another index": ["CREATE INDEX more ON exemplar (length(vector))"],
    "a table too many": ["CREATE TABLE more (x)"],
    "a thousand tables": [f"CREATE TABLE t{number} (x)" for number in range(1000)],
    "a table too few": ["DROP TABLE page"],
    "a table without its checks": ["DROP TABLE page", "CREATE TABLE page (copy, bucket, body)"],
}


@pytest.mark.parametrize("statements", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_schema_that_is_not_the_stores_own_is_refused_by_everything_at_once(
    statements: list[str], store: ProfileStore, encoder: Encoder
) -> None:
    verifier = store.verifier("ana", encoder)
    db = sqlite3.connect(store.path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    ana = profile("bo", *unit_vectors(1, 0), model="ab" * 32)
    acts = [store.names, store.list, store.log, store.purge, store.remove_all, store.rotate, lambda: store.get("ana")]
    acts += [lambda: store.put(ana), lambda: store.remove("ana"), lambda: store.note_verified("ana", "accept")]
    for act in acts:
        started = time.monotonic()
        with pytest.raises(StoreError):
            act()
        assert time.monotonic() - started < 5.0
    assert not verifier.verify(HERS, RATE)


def test_another_store_under_the_same_key_is_not_taken_by_what_runs(
    store: ProfileStore, encoder: Encoder, tmp_path: Path
) -> None:
    other = ProfileStore(tmp_path / "other.db", KEY)
    other.put(enrolled(encoder, "ana", BOB_HZ))
    for number in range(9):
        other.note_verified("ana", "accept", number + 1)  # so that its count of writes is ahead
    verifier = store.verifier("ana", encoder)
    assert verifier.verify(HERS, RATE)
    shutil.copy(other.path, store.path)
    with pytest.raises(SealError, match="another store"):
        store.get("ana")
    assert not verifier.verify(synthesise(3.0, 9, BOB_HZ), RATE)
    assert not verifier.verify(HERS, RATE)
    assert ProfileStore(store.path, KEY).names() == ["ana"]  # whoever opens it anew takes what is there


def test_an_older_state_of_the_whole_file_is_not_taken_by_what_runs(store: ProfileStore, encoder: Encoder) -> None:
    before = store.path.read_bytes()
    verifier = store.verifier("ana", encoder)
    store.remove("ana")
    assert not verifier.verify(HERS, RATE)
    store.path.write_bytes(before)
    with pytest.raises(SealError, match="older state"):
        store.get("ana")
    assert not verifier.verify(HERS, RATE)


@pytest.mark.parametrize("table", ["exemplar", "profile"])
def test_rows_without_number_from_elsewhere_are_borne_and_dropped(
    table: str, store: ProfileStore, encoder: Encoder
) -> None:
    (row,) = sqlite3.connect(store.path).execute("SELECT id FROM profile").fetchone()
    count = 300_000 if FULL else 30_000
    db = sqlite3.connect(store.path)
    select = f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {count}) "
    if table == "exemplar":
        db.execute(f"INSERT INTO exemplar {select} SELECT x, {row}, x'00', NULL FROM n")
    else:
        db.execute(f"INSERT INTO profile {select} SELECT x, 'ab', 1, x'00', x'00' FROM n")
    db.commit()
    db.close()
    started = time.monotonic()
    assert store.names() == ["ana"] and store.get("ana").name == "ana"
    assert store.verifier("ana", encoder).verify(HERS, RATE)
    store.note_verified("ana", "accept")
    store.rotate()
    assert time.monotonic() - started < 30.0
    (left,) = sqlite3.connect(store.path).execute(f"SELECT count(*) FROM {table}").fetchone()
    assert left <= 2


def test_pages_are_bound_to_their_place_and_their_time(store: ProfileStore, encoder: Encoder) -> None:
    """Old pages, exchanged pages and missing pages are noticed; one damaged copy of each costs nothing."""
    for number in range(6):
        store.put(profile(f"guest {number}", *unit_vectors(1, number), model=encoder.fingerprint))
    db = sqlite3.connect(store.path, isolation_level=None)
    old = db.execute("SELECT copy, bucket, body FROM page").fetchall()
    names = store.names()
    db.execute("UPDATE page SET body = zeroblob(50) WHERE copy = 1")
    assert ProfileStore(store.path, KEY).names() == names
    db.executemany("UPDATE page SET body = ? WHERE copy = ? AND bucket = ?", [(b, c, k) for c, k, b in old])
    store.note_verified("ana", "reject")
    new = db.execute("SELECT copy, bucket, body FROM page").fetchall()
    (bucket,) = {k for (c, k, b) in new if b not in {body for _, _, body in old}}
    db.executemany("UPDATE page SET body = ? WHERE copy = ? AND bucket = ?", [(b, c, k) for c, k, b in old])
    for act in (lambda: store.get("ana"), store.names, lambda: store.remove("ana")):
        with pytest.raises(SealError, match="page"):
            act()
    assert any(opens(store, name) for name in names if name != "ana")  # what lies in other pages
    exchanged = next(body for _, k, body in new if k != bucket)
    db.execute("UPDATE page SET body = ? WHERE bucket = ?", (exchanged, bucket))
    assert not opens(store, "ana")
    db.execute("DELETE FROM page")
    assert not any(opens(store, name) for name in names)
    db.close()


def opens(store: ProfileStore, name: str) -> bool:
    try:
        store.get(name)
    except EmoinvError:
        return False
    return True
