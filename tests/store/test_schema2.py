"""What was written before schema 3 opens: stores of schema 2, whose embeddings lay under a secret matrix.

The files in ``data`` were written by the code of before; `write_schema_2` builds the same layout here.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.errors import SealError, StoreError
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.store import PLAINTEXT, KeyFile, KeySource, Passphrase, ProfileStore
from emoinv_edge.store.codec import decode_profile, encode_json, encode_profile
from emoinv_edge.store.keys import Seal, StoreKeys
from emoinv_edge.store.portable import read_profile_file
from emoinv_edge.store.rows import TABLES_2, Rows
from emoinv_edge.store.schema2 import orthogonal_matrix
from tests.store.profile_samples import KEY, MODEL, QUALITY, WHEN, sample_exemplar, sample_profile
from tests.store.raw_store import alter, profile_rows, raw_connection, select

DATA = Path(__file__).parents[1] / "data"
KINDS = [("sealed", KEY), ("plaintext", PLAINTEXT)]


def recorded(folder: Path, kind: str) -> Path:
    """The store that the code of before wrote."""
    path = folder / "old.db"
    with raw_connection(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript((DATA / f"store_schema2_{kind}.sql").read_text())
    return path


def recorded_exemplar(seed: int, clip: bytes | None = None) -> Exemplar:
    """What was put into it."""
    vector = np.cos(np.arange(8.0) * seed + seed)
    quality = dataclasses.replace(QUALITY, envelope=(0.5,) * 8, log_embedding_norm=2.5)
    return Exemplar((vector / np.linalg.norm(vector)).astype(np.float32), quality, WHEN, clip)


def close(one: Profile, other: Profile) -> bool:
    """Whether two profiles are equal but for the rounding of the matrix."""
    apart = [np.abs(a.embedding - b.embedding).max() for a, b in zip(one.exemplars, other.exemplars, strict=True)]
    alike = tuple(
        dataclasses.replace(a, embedding=b.embedding) for a, b in zip(one.exemplars, other.exemplars, strict=True)
    )
    return max(apart) < 1e-6 and dataclasses.replace(one, exemplars=alike) == other


@pytest.mark.parametrize(("kind", "key"), KINDS)
def test_a_store_of_before_opens_and_the_first_change_brings_it_up_to_date(
    folder: Path, kind: str, key: KeySource
) -> None:
    path = recorded(folder, kind)
    before = path.read_bytes()
    old = ProfileStore(path, key)
    clips = recorded_exemplar(1, b"clip"), recorded_exemplar(2, b"clip")
    ana = Profile("ana", MODEL, (*clips, recorded_exemplar(4)), WHEN, None, "on paper", num_adapted=1)
    end = datetime.datetime(2099, 1, 1, tzinfo=datetime.timezone.utc)
    bo = Profile("bo", MODEL, (recorded_exemplar(3),), WHEN, end)
    found = [old.get("ana"), old.get("bo")]
    assert old.names() == ["ana", "bo"] and close(found[0], ana) and close(found[1], bo)
    trail, infos, log = old.audit("ana"), old.list(), old.log()
    assert [event for _, event in trail.events] == ["enrolled", "adapted"]
    assert list(trail.verified.values()) == [{"accept": 1}]
    assert [(info.problem, info.adaptations, info.num_enrolled) for info in infos] == [("", 1, 2), ("", 0, 1)]
    assert [event[:7] for _, event in log] == ["removed"]
    assert path.read_bytes() == before  # reading changes nothing

    old.note_verified("bo", "reject")
    for new in (old, ProfileStore(path, key)):
        assert [new.get("ana"), new.get("bo")] == found  # to the bit
        assert new.audit("ana") == trail and new.info("ana") == infos[0]
        assert new.log()[0] == log[0] and new.log()[1][1] == "brought from schema 2 to 3"
    assert close(ProfileStore(path, key).rollback("ana"), dataclasses.replace(ana, exemplars=clips, num_adapted=0))
    assert select(path, "PRAGMA user_version") == [(3,)]
    assert len(old.log()) == 2  # once only


CHANGES: dict[str, Callable[[ProfileStore], object]] = {
    "put": lambda store: store.put(sample_profile("cy")),
    "replace": lambda store: store.put(sample_profile("bo")),
    "adapt": lambda store: store.adapt(store.get("bo"), sample_exemplar(4)),
    "extend": lambda store: store.extend(store.get("bo"), [sample_exemplar(4)]),
    "remove": lambda store: store.remove("bo"),
    "purge": lambda store: store.purge(),
    "rotate": lambda store: store.rotate(),
    "rotate to a key file": lambda store: store.rotate(KeyFile(store.path.parent / "k")),
    "remove all": lambda store: store.remove_all(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_may_be_the_first_one(folder: Path, change: Callable[[ProfileStore], object]) -> None:
    store = ProfileStore(recorded(folder, "sealed"), KEY)
    before = {name: store.get(name) for name in store.names()}
    change(store)
    assert select(store.path, "PRAGMA user_version") == [(3,)]
    if store.names():
        assert store.get("ana") == before["ana"]
    assert not [info.problem for info in store.list() if info.problem]


def test_a_change_that_is_refused_leaves_the_old_store_as_it_is(folder: Path) -> None:
    store = ProfileStore(recorded(folder, "sealed"), KEY)
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match="already"):
        store.put(sample_profile("ana"), replace=False)
    with pytest.raises(SealError):
        ProfileStore(store.path, b"x" * 32).put(sample_profile("cy"))
    assert store.path.read_bytes() == before


def test_an_old_store_is_read_where_it_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ProfileStore(recorded(folder, "sealed"), KEY)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert store.get("bo").name == "bo" and not [info.problem for info in store.list() if info.problem]
    with pytest.raises(StoreError, match="read-only media"):
        store.note_verified("bo", "accept")


def test_a_damaged_profile_of_an_old_store_stays_damaged_and_costs_no_other(folder: Path) -> None:
    store = ProfileStore(recorded(folder, "sealed"), KEY)
    bo = store.get("bo")
    fewest = min(profile_rows(store.path), key=lambda row: len(exemplars_of(store.path, row)))
    (ana_row,) = profile_rows(store.path) - {fewest}
    alter(store.path, "UPDATE profile SET body = zeroblob(60) WHERE id = ?", ana_row)
    store.adapt(store.get("bo"), sample_exemplar(4))
    assert store.get("bo").exemplars[0] == bo.exemplars[0]
    with pytest.raises(SealError, match=r"'ana'.*the others are not touched"):
        store.get("ana")
    with pytest.raises(SealError, match="'ana'"):
        store.rotate()
    store.put(sample_profile("ana"))
    assert store.get("ana") == sample_profile("ana")
    assert not [info.problem for info in store.list() if info.problem]
    assert not exemplars_of(store.path, ana_row)


def exemplars_of(path: Path, row: int) -> list[tuple[int]]:
    return select(path, "SELECT id FROM exemplar WHERE profile_id = ?", row)


def write_schema_2(path: Path, secret: bytes, *profiles: Profile) -> None:
    """A plaintext store as schema 2 had it: the secret beside the data key, each embedding under its matrix."""
    keys = dataclasses.replace(StoreKeys.fresh(PLAINTEXT, b"store of before!"), schema=2, transform_secret=secret)
    sealed = Seal(None).close(keys.data_key + secret, keys.bound_to("keys", "plaintext"))
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; {TABLES_2}")
        db.executescript(f"PRAGMA application_id = {int.from_bytes(b'emoi', 'big')}; PRAGMA user_version = 2;")
        rows = Rows(db, dataclasses.replace(keys, sealed=sealed))
        for profile in profiles:
            rows.enrol(turned(profile, secret), "enrolled")
        listed = [[profile.name, *dataclasses.astuple(rows.entry(profile.name))] for profile in profiles]
        log = keys.seal().close(b"[]", keys.bound_to("log"))
        values = {"counter": 1, "profiles": listed, "log_digest": hashlib.sha256(log).hexdigest()}
        root = keys.seal().close(encode_json(values), keys.bound_to("root"))
        for copy in (1, 2):
            columns = copy, *rows.keys.columns, root, log
            db.execute("INSERT INTO store VALUES (?, ?, ?, ?, ?, ?, ?)", columns)
        db.commit()


def turned(profile: Profile, secret: bytes) -> Profile:
    matrix = orthogonal_matrix(secret, profile.embedding_dim)
    exemplars = tuple(
        dataclasses.replace(each, embedding=(matrix @ each.embedding.astype(np.float64)).astype(np.float32))
        for each in profile.exemplars
    )
    return dataclasses.replace(profile, exemplars=exemplars)


@pytest.mark.parametrize("dim", [2, 192, 256])
def test_embeddings_of_schema_2_come_back_from_under_their_matrix(folder: Path, dim: int) -> None:
    ana, bo = sample_profile("ana", (1, 2), dim=dim, audio=b"clip"), sample_profile("bo", (3,), dim=dim)
    path = folder / "p.db"
    write_schema_2(path, b"s" * 32, ana, bo)
    kept = ana.exemplars[0].embedding.tobytes()
    assert kept not in path.read_bytes()
    old = ProfileStore(path, PLAINTEXT)
    assert close(old.get("ana"), ana) and close(old.get("bo"), bo)
    found = old.get("ana")
    old.put(sample_profile("cy", (4,), dim=dim))
    assert old.get("ana") == found
    assert found.exemplars[0].embedding.tobytes() in path.read_bytes()


def test_the_matrix_of_a_secret_stays_what_it_was() -> None:
    matrix = orthogonal_matrix(bytes(range(32)), 3)
    expected = [
        [-0.09552921811146686, -0.8528366804218377, -0.5133651380977013],
        [-0.4256319713361699, -0.4312048794162753, 0.7955499839382068],
        [0.8998397598814455, -0.2945028836779967, 0.3218018925392556],
    ]
    assert np.abs(matrix - expected).max() < 1e-12  # or every store of before would lose its embeddings


def test_a_portable_file_of_before_opens() -> None:
    ana = read_profile_file(DATA / "profile_format2.bin", Passphrase("correct horse"))
    clips = recorded_exemplar(1, b"clip"), recorded_exemplar(2, b"clip")
    assert ana == Profile("ana", MODEL, clips, WHEN, None, "on paper")
    assert decode_profile(encode_profile(ana)) == ana
