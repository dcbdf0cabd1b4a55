"""ProfileStore: what it keeps, refuses, notes, renews and forgets, with each kind of key."""

from __future__ import annotations

import contextlib
import copy
import datetime
import logging
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from profile_samples import (
    KEY,
    MODEL,
    OTHER_MODEL,
    WHEN,
    memory_folder,
    same,
    sample_exemplar,
    sample_profile,
)

from emoinv_edge import sealing
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import (
    EmoinvError,
    EnrolmentError,
    ModelMismatchError,
    ProfileExpiredError,
    SchemaError,
    SealError,
    StoreError,
    UnknownSpeakerError,
)
from emoinv_edge.portable import seal_profile, write_profile_file
from emoinv_edge.sealing import KeySource
from emoinv_edge.store import (
    PLAINTEXT,
    KeyFile,
    KeyVariable,
    Passphrase,
    ProfileStore,
    default_store_path,
)

UTC = datetime.timezone.utc
DATA = Path(__file__).parent / "data"


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture
def store(folder: Path) -> ProfileStore:
    return ProfileStore(folder / "p.db", KEY)


# -- keeping -------------------------------------------------------------------------------------------------


def test_what_was_put_is_got(store: ProfileStore) -> None:
    ana = sample_profile("ana", (1, 2, 3), dim=256, consent="on paper", audio=b"clip")
    store.put(ana)
    store.put(sample_profile("bo", (4,)))
    assert same(store.get("ana"), ana)
    assert store.names() == ["ana", "bo"]


def test_scores_are_the_same_after_the_store(store: ProfileStore) -> None:
    ana = sample_profile("ana", (1, 2), dim=256)
    store.put(ana)
    probe = sample_exemplar(9, dim=256).embedding
    for before, after in zip(ana.exemplars, store.get("ana").exemplars, strict=True):
        assert abs(float(before.embedding @ probe) - float(after.embedding @ probe)) < 1e-5


def test_a_second_put_of_a_name_replaces_or_is_refused(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1,)))
    store.put(sample_profile("ana", (2, 3)))
    assert same(store.get("ana"), sample_profile("ana", (2, 3)))
    with pytest.raises(StoreError, match="already"):
        store.put(sample_profile("ana", (4,)), replace=False)
    assert same(store.get("ana"), sample_profile("ana", (2, 3)))


def test_an_unknown_name_is_told(store: ProfileStore) -> None:
    for act in (store.get, store.remove, store.rollback, store.audit, store.info):
        with pytest.raises(UnknownSpeakerError, match="no profile named 'ana'"):
            act("ana")
    store.put(sample_profile("bo"))
    for act in (store.get, store.remove, store.rollback, store.audit, store.info):
        with pytest.raises(UnknownSpeakerError, match="no profile named 'ana'"):
            act("ana")


def test_reading_makes_no_file(store: ProfileStore, folder: Path) -> None:
    assert store.names() == [] and store.list() == [] and store.log() == []
    assert store.purge() == [] and store.remove_all() == []
    assert list(folder.iterdir()) == []


def test_the_file_is_what_the_documentation_says(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with raw_connection(store.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"emoi", "big"),)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = db.execute("SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite%'").fetchall()
        assert sorted(tables) == [("exemplar", 1), ("profile", 1), ("store", 1)]
    with store._vault.transaction(write=True) as opened:
        for pragma, value in (("foreign_keys", 1), ("secure_delete", 1), ("synchronous", 2), ("temp_store", 2)):
            assert opened.db.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            opened.db.execute("INSERT INTO exemplar VALUES (1, 1, x'00', NULL)")


def test_a_store_at_rest_is_one_file_for_its_owner_only(store: ProfileStore, folder: Path) -> None:
    store.put(sample_profile("ana"))
    store.get("ana")
    assert [path.name for path in folder.iterdir()] == ["p.db"]
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_another_model_is_refused_with_the_cure(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    store.put(sample_profile("bo", audio=b"clip"))
    assert store.get("ana", model_fingerprint=MODEL).name == "ana"
    with pytest.raises(ModelMismatchError, match="enrol the speaker again"):
        store.get("ana", model_fingerprint=OTHER_MODEL)
    with pytest.raises(ModelMismatchError, match="emoinv profiles upgrade"):
        store.get("bo", model_fingerprint=OTHER_MODEL)


def test_an_expired_profile_is_refused_then_purged(store: ProfileStore) -> None:
    now = datetime.datetime.now(UTC)
    store.put(sample_profile("ana", expires=now))
    store.put(sample_profile("bo", expires=now + datetime.timedelta(days=1)))
    assert store.get("bo").name == "bo"
    for act in (store.get, lambda name: store.adapt(name, sample_exemplar(1))):
        with pytest.raises(ProfileExpiredError, match=r"expired on .*purge"):
            act("ana")
    with pytest.raises(ProfileExpiredError):
        store.export_profile("ana", store.path.parent / "ana.emoinv", Passphrase("12345678"))
    assert [(info.name, info.expired, info.problem) for info in store.list()] == [
        ("ana", True, "expired"),
        ("bo", False, ""),
    ]
    assert store.purge() == ["ana"]
    assert store.names() == ["bo"]
    assert store.purge(now + datetime.timedelta(days=2)) == ["bo"]


def test_the_platforms_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_store_path() == Path("/data/emoinv/profiles.db") == ProfileStore().path
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_store_path() == Path.home() / ".local/share/emoinv/profiles.db"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_store_path() == Path.home() / "Library/Application Support/emoinv/profiles.db"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert default_store_path() == Path("/local/emoinv/profiles.db")


def test_a_path_with_signs_that_mean_something_in_a_uri_works(folder: Path) -> None:
    odd = ProfileStore(folder / "a?b#c%20 d.db", KEY)
    odd.put(sample_profile("ana"))
    assert odd.names() == ["ana"] and odd.path.exists()


# -- keys ------------------------------------------------------------------------------------------------------


def test_without_a_key_a_key_file_is_made_beside_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOINV_STORE_KEY", raising=False)
    old_mask = os.umask(0o000)
    try:
        ProfileStore(folder / "p.db").put(sample_profile("anabel", consent="on paper"))
    finally:
        os.umask(old_mask)
    key_file = folder / "p.db.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key_file.read_text())) == 32
    assert ProfileStore(folder / "p.db").names() == ["anabel"]
    content = (folder / "p.db").read_bytes()
    assert b"anabel" not in content and b"on paper" not in content


def test_the_environment_variable_is_the_default_key_where_it_is_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOINV_STORE_KEY", KEY.hex())
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    assert not (folder / "p.db.key").exists()
    assert ProfileStore(folder / "p.db", KEY).names() == ["ana"]
    monkeypatch.setenv("EMOINV_STORE_KEY", "not a key")
    with pytest.raises(StoreError, match="EMOINV_STORE_KEY: expected 64 hexadecimal digits"):
        ProfileStore(folder / "p.db").names()
    monkeypatch.delenv("EMOINV_STORE_KEY")
    with pytest.raises(StoreError, match="EMOINV_STORE_KEY is not set"):
        ProfileStore(folder / "p.db", KeyVariable()).names()


def test_only_plaintext_writes_in_the_clear(folder: Path) -> None:
    ana = sample_profile("anabel", (1, 2), consent="on paper", audio=b"clip-bytes")
    for number, key in enumerate((KEY, lambda: KEY, KeyFile(folder / "key"), None)):
        sealed = ProfileStore(folder / f"{number}.db", key)
        sealed.put(ana)
        sealed.note_verified("anabel", "accept")
        content = sealed.path.read_bytes()
        for secret in (b"anabel", b"on paper", b"clip-bytes", b"accept", b"2.5", ana.exemplars[0].embedding.tobytes()):
            assert secret not in content
    plain = ProfileStore(folder / "plain.db", PLAINTEXT)
    plain.put(ana)
    assert b"anabel" in plain.path.read_bytes()
    assert same(ProfileStore(folder / "plain.db", PLAINTEXT).get("anabel"), ana)


def test_a_store_opens_with_its_own_key_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sealing, "scrypt_key", lambda passphrase, salt: sealing.hashlib.sha256(passphrase + salt).digest()
    )
    keys: dict[str, KeySource] = {
        "bytes": KEY,
        "other": b"x" * 32,
        "word": Passphrase("correct horse"),
        "wrong": Passphrase("wrong horse"),
        "plain": PLAINTEXT,
    }
    for made in ("bytes", "word", "plain"):
        ProfileStore(folder / made, keys[made]).put(sample_profile("ana"))
        for name, key in keys.items():
            opened = ProfileStore(folder / made, key)
            if name == made:
                assert opened.names() == ["ana"]
                continue
            before = opened.path.read_bytes()
            for act, *arguments in (
                (opened.names,),
                (opened.list,),
                (opened.get, "ana"),
                (opened.put, sample_profile("bo")),
            ):
                with pytest.raises(SealError):
                    act(*arguments)
            assert opened.path.read_bytes() == before


def test_the_kind_of_key_that_is_wanted_is_named(folder: Path) -> None:
    ProfileStore(folder / "plain", PLAINTEXT).put(sample_profile("ana"))
    with pytest.raises(SealError, match=r"is in plaintext.*PLAINTEXT"):
        ProfileStore(folder / "plain", KEY).names()
    ProfileStore(folder / "sealed", KEY).put(sample_profile("ana"))
    with pytest.raises(SealError, match="sealed with a key"):
        ProfileStore(folder / "sealed", Passphrase("12345678")).names()


def test_a_passphrase_goes_through_scrypt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(passphrase: bytes, salt: bytes) -> bytes:
        calls.append(salt)
        return sealing.hashlib.sha256(passphrase + salt).digest()

    assert sealing.scrypt_key(b"password", b"NaCl", 10, 8, 16)[:8].hex() == "fdbabe1c9d347200"  # RFC 7914, section 12
    monkeypatch.setattr(sealing, "scrypt_key", counted)
    opened = ProfileStore(folder / "p.db", Passphrase("correct horse"))
    opened.put(sample_profile("ana"))
    for _ in range(5):
        opened.get("ana")
    assert len(calls) == 2 and len(calls[0]) == 16  # once to make the store, once to open it


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        Passphrase("short")
    with pytest.raises(TypeError, match="str"):
        Passphrase(b"12345678")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"short", lambda: b"short", lambda: "x" * 32])
def test_a_key_of_the_wrong_size_is_refused(folder: Path, key: KeySource) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ProfileStore(folder / "p.db", key).put(sample_profile("ana"))
    assert not (folder / "p.db").exists()


def test_a_key_of_the_wrong_type_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="expected a key"):
        ProfileStore(folder / "p.db", "text")  # type: ignore[arg-type]


def test_a_key_file_that_others_can_read_is_refused(folder: Path) -> None:
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    (folder / "p.db.key").chmod(0o644)
    with pytest.raises(StoreError, match=r"mode 0644 .*chmod 600"):
        ProfileStore(folder / "p.db").names()


def test_a_missing_key_file_is_never_made_anew_for_a_store_that_exists(folder: Path) -> None:
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    kept = (folder / "p.db.key").read_bytes()
    (folder / "p.db.key").unlink()
    for act in (lambda: ProfileStore(folder / "p.db").put(sample_profile("bo")), ProfileStore(folder / "p.db").names):
        with pytest.raises(StoreError, match="restore it from a copy"):
            act()
    assert not (folder / "p.db.key").exists()
    (folder / "p.db.key").write_bytes(kept)
    (folder / "p.db.key").chmod(0o600)
    assert ProfileStore(folder / "p.db").names() == ["ana"]


# -- rotation ------------------------------------------------------------------------------------------------


def test_rotation_renews_every_sealed_byte_and_keeps_every_profile(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2), audio=b"clip"))
    store.put(sample_profile("bo", (3,)))
    store.adapt("bo", sample_exemplar(4))
    before = sealed_columns(store.path)
    store.rotate()
    after = sealed_columns(store.path)
    assert len(before) == len(after) and not before & after
    content = store.path.read_bytes()
    assert not any(blob in content for blob in before)
    fresh = ProfileStore(store.path, KEY)
    assert same(fresh.get("ana"), sample_profile("ana", (1, 2), audio=b"clip"))
    assert same(fresh.get("bo"), sample_profile("bo", (3, 4)))
    assert same(fresh.rollback("bo"), sample_profile("bo", (3,)))  # what can be undone is carried along
    assert [event for _, event in fresh.audit("bo").events] == ["enrolled", "adapted", "rolled back"]
    assert [event for _, event in fresh.log()] == ["sealed anew"]


def test_rotation_cancels_the_vectors_that_were_stored(folder: Path) -> None:
    plain = ProfileStore(folder / "p.db", PLAINTEXT)
    plain.put(sample_profile("ana", (1,), dim=256))
    before = stored_vector(plain.path)
    assert not np.allclose(before, sample_exemplar(1, 256).embedding, atol=0.05)
    plain.rotate()
    after = stored_vector(plain.path)
    assert abs(float(before @ after)) < 0.3  # unrelated: 1/16 is one standard deviation
    assert same(plain.get("ana"), sample_profile("ana", (1,), dim=256))


def test_rotation_changes_the_kind_of_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sealing, "scrypt_key", lambda passphrase, salt: sealing.hashlib.sha256(passphrase + salt).digest()
    )
    path = folder / "p.db"
    moving = ProfileStore(path, KEY)
    moving.put(sample_profile("ana"))
    chain: list[KeySource] = [Passphrase("correct horse"), KeyFile(folder / "k"), PLAINTEXT, b"y" * 32]
    previous: KeySource = KEY
    for key in chain:
        moving.rotate(key)
        assert moving.names() == ProfileStore(path, key).names() == ["ana"]
        with pytest.raises(SealError):
            ProfileStore(path, previous).names()
        previous = key
    assert b"ana" not in path.read_bytes()


def test_rotation_renews_a_key_file_in_its_place(folder: Path) -> None:
    path = folder / "p.db"
    first, other = ProfileStore(path), ProfileStore(path)
    first.put(sample_profile("ana"))
    assert other.names() == ["ana"]
    old_key = (folder / "p.db.key").read_text()
    first.rotate(first.own_key_file())
    assert (folder / "p.db.key").read_text() != old_key
    assert (folder / "p.db.key").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in folder.iterdir()) == ["p.db", "p.db.key"]
    assert other.names() == first.names() == ProfileStore(path).names() == ["ana"]  # `other` had the old key open
    with pytest.raises(SealError):
        ProfileStore(path, bytes.fromhex(old_key)).names()


def test_a_rotation_cut_off_between_store_and_key_file_is_finished_by_the_next_write(folder: Path) -> None:
    path = folder / "p.db"
    cut = ProfileStore(path)
    cut.put(sample_profile("ana"))
    old_key = (folder / "p.db.key").read_bytes()
    cut.rotate(cut.own_key_file())
    new_key = (folder / "p.db.key").read_bytes()
    os.rename(folder / "p.db.key", folder / "p.db.key.new")  # as if killed before the last step
    (folder / "p.db.key").write_bytes(old_key)
    (folder / "p.db.key").chmod(0o600)
    assert ProfileStore(path).names() == ["ana"]
    assert (folder / "p.db.key").read_bytes() == old_key  # reading settles nothing
    ProfileStore(path).put(sample_profile("bo"))
    assert (folder / "p.db.key").read_bytes() == new_key and not (folder / "p.db.key.new").exists()
    assert ProfileStore(path).names() == ["ana", "bo"]


def test_a_rotation_cut_off_before_its_commit_leaves_the_old_key(folder: Path) -> None:
    path = folder / "p.db"
    ProfileStore(path).put(sample_profile("ana"))
    (folder / "p.db.key.new").write_text("00" * 32)
    (folder / "p.db.key.new").chmod(0o600)
    assert ProfileStore(path).names() == ["ana"]
    ProfileStore(path).put(sample_profile("bo"))
    assert not (folder / "p.db.key.new").exists() and ProfileStore(path).names() == ["ana", "bo"]


# -- adaptation and audit ------------------------------------------------------------------------------------


def test_adaptation_is_undone_step_by_step(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2)))
    assert same(store.adapt("ana", sample_exemplar(3), model_fingerprint=MODEL), sample_profile("ana", (1, 2, 3)))
    store.adapt("ana", sample_exemplar(4))
    assert same(store.get("ana"), sample_profile("ana", (1, 2, 3, 4)))
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2, 3)))
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2)))
    with pytest.raises(StoreError, match="no adaptation to undo"):
        store.rollback("ana")
    assert rows(store.path, "exemplar") == 2


def test_adaptation_drops_the_oldest_adapted_exemplar_and_rollback_brings_it_back(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2)))
    for seed in (3, 4, 5, 6):
        store.adapt("ana", sample_exemplar(seed), limit=4)
    assert same(store.get("ana"), sample_profile("ana", (1, 2, 5, 6)))
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2, 4, 5)))
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2, 3, 4)))
    with pytest.raises(StoreError, match="2 enrolled exemplars, the limit is 2"):
        store.adapt("ana", sample_exemplar(7), limit=2)


def test_what_can_be_undone_is_bounded_and_so_are_the_rows(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1,)))
    for seed in range(2, 40):
        store.adapt("ana", sample_exemplar(seed), limit=3)
    assert store.info("ana").adaptations == 16
    assert rows(store.path, "exemplar") <= 3 + 16 + 1
    for _ in range(16):
        store.rollback("ana")
    assert same(store.get("ana"), sample_profile("ana", (1, 22, 23)))


def test_further_enrolment_loses_no_adaptation_and_makes_none_permanent(store: ProfileStore) -> None:
    later = datetime.datetime.now(UTC) + datetime.timedelta(days=9)
    store.put(sample_profile("ana", (1, 2), consent="on paper"))
    store.adapt("ana", sample_exemplar(3))
    store.adapt("ana", sample_exemplar(4))
    more = (sample_exemplar(5), sample_exemplar(6))
    extended = store.extend("ana", more, model_fingerprint=MODEL, expires=later)
    expected = sample_profile("ana", (1, 2, 5, 6, 3, 4), consent="on paper", expires=later)
    assert same(extended, expected) and same(store.get("ana"), expected)
    assert (store.info("ana").num_enrolled, store.info("ana").adaptations) == (4, 2)
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2, 5, 6, 3), consent="on paper", expires=later))
    assert same(store.rollback("ana"), sample_profile("ana", (1, 2, 5, 6), consent="on paper", expires=later))
    assert [event for _, event in store.audit("ana").events][3] == "enrolled further"
    with pytest.raises(ModelMismatchError):
        store.extend("ana", more, model_fingerprint=OTHER_MODEL)
    with pytest.raises(ModelMismatchError, match="8 values"):
        store.extend("ana", [sample_exemplar(7, dim=16)])
    with pytest.raises(ValueError, match="at least one"):
        store.extend("ana", [])
    with pytest.raises(ValueError, match="at most 4096"):
        store.extend("ana", more, consent="x" * 5000)
    with pytest.raises(UnknownSpeakerError):
        store.extend("bo", more)
    assert rows(store.path, "exemplar") == 4


def test_adaptation_by_another_model_is_refused(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with pytest.raises(ModelMismatchError):
        store.adapt("ana", sample_exemplar(3), model_fingerprint=OTHER_MODEL)
    with pytest.raises(ModelMismatchError, match="8 values an embedding, not 16"):
        store.adapt("ana", sample_exemplar(3, dim=16))
    assert same(store.get("ana"), sample_profile("ana"))


def test_the_audit_trail_tells_what_was_done(store: ProfileStore, folder: Path) -> None:
    start = datetime.datetime.now(UTC).replace(microsecond=0)
    store.put(sample_profile("ana"))
    assert store.audit("ana").last_used is None
    store.adapt("ana", sample_exemplar(3))
    store.rollback("ana")
    for outcome, count in (("accept", 2), ("reject", 1), ("no_decision", 1)):
        store.note_verified("ana", outcome, count)
    store.export_profile("ana", folder / "ana.emoinv", Passphrase("correct horse"))
    store.put(sample_profile("ana", (7,)))
    audit = store.audit("ana")
    assert [event for _, event in audit.events] == ["enrolled", "adapted", "rolled back", "exported", "enrolled anew"]
    assert all(start <= at <= datetime.datetime.now(UTC) for at, _ in audit.events)
    days = list(audit.verified)
    assert sum(audit.verified[day].get("accept", 0) for day in days) == 2
    assert sum(audit.verified[day].get("reject", 0) for day in days) == 1
    assert audit.last_used is not None and store.info("ana").last_used == audit.last_used
    with pytest.raises(ValueError, match="expected the outcome"):
        store.note_verified("ana", "maybe")
    with pytest.raises(ValueError, match="expected a count of 1 or more, got 0"):
        store.note_verified("ana", "accept", 0)


def test_the_audit_trail_is_bounded(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from emoinv_edge import ledger
    from emoinv_edge import store as module

    monkeypatch.setattr(ledger, "MAX_EVENTS", 3)
    monkeypatch.setattr(module, "MAX_AUDIT_DAYS", 1)
    store.put(sample_profile("ana"))
    for seed in range(4):
        store.adapt("ana", sample_exemplar(seed))
    assert [event for _, event in store.audit("ana").events] == ["adapted"] * 3
    store.note_verified("ana", "accept")
    assert len(store.audit("ana").verified) == 1


def test_a_removal_is_logged_without_the_name(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    store.remove("ana")
    ((_, event),) = store.log()
    assert event.startswith("removed: ") and "ana" not in event.partition(":")[2]


# -- export, import, upgrade -----------------------------------------------------------------------------------


@pytest.fixture
def cheap_export(monkeypatch: pytest.MonkeyPatch) -> None:
    from emoinv_edge import portable

    monkeypatch.setattr(
        portable, "scrypt_key", lambda passphrase, salt, *_: sealing.hashlib.sha256(passphrase + salt).digest()
    )


def test_a_profile_moves_to_another_store(store: ProfileStore, folder: Path, cheap_export: None) -> None:
    word = Passphrase("correct horse")
    ana = sample_profile("ana", (1, 2), audio=b"clip", consent="on paper")
    store.put(ana)
    store.export_profile("ana", folder / "ana.emoinv", word)
    other = ProfileStore(folder / "other.db", b"o" * 32)
    assert same(other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL), ana)
    assert same(other.get("ana"), ana)
    with pytest.raises(StoreError, match="already"):
        other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL)
    other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL, name="ana at home")
    assert other.names() == ["ana", "ana at home"]
    assert [event for _, event in other.audit("ana").events] == ["imported"]


def test_an_export_can_leave_the_speech_out(store: ProfileStore, folder: Path, cheap_export: None) -> None:
    word = Passphrase("correct horse")
    store.put(sample_profile("ana", (1, 2), audio=b"clip"))
    store.export_profile("ana", folder / "ana.emoinv", word, audio=False)
    other = ProfileStore(folder / "other.db", KEY)
    other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL)
    assert same(other.get("ana"), sample_profile("ana", (1, 2)))
    assert same(store.get("ana"), sample_profile("ana", (1, 2), audio=b"clip"))


def test_an_import_for_another_model_or_past_its_expiry_is_refused(
    store: ProfileStore, folder: Path, cheap_export: None
) -> None:
    word = Passphrase("correct horse")
    store.put(sample_profile("ana", audio=b"clip"))
    store.put(sample_profile("cy"))
    for name in ("ana", "cy"):
        store.export_profile(name, folder / name, word)
    write_profile_file(folder / "bo", seal_profile(sample_profile("bo", expires=WHEN), word))
    other = ProfileStore(folder / "other.db", KEY)
    with pytest.raises(ModelMismatchError, match="import --upgrade"):
        other.import_profile(folder / "ana", word, model_fingerprint=OTHER_MODEL)
    with pytest.raises(ModelMismatchError, match="enrol the speaker again"):
        other.import_profile(folder / "cy", word, model_fingerprint=OTHER_MODEL)
    assert datetime.datetime.now(UTC) > WHEN
    with pytest.raises(ProfileExpiredError):
        other.import_profile(folder / "bo", word, model_fingerprint=MODEL)
    with pytest.raises(SealError, match="passphrase"):
        other.import_profile(folder / "ana", Passphrase("wrong horse"), model_fingerprint=MODEL)
    assert other.names() == []


def clip(speech: np.ndarray) -> bytes:
    return np.rint(speech * 32767.0).astype("<i2").tobytes()


def test_kept_speech_is_enrolled_again_on_another_model(
    store: ProfileStore, folder: Path, tiny_encoder: Encoder, speechlike, cheap_export: None
) -> None:
    speech = clip(speechlike(1.5, 1))
    store.put(sample_profile("ana", (1,), audio=speech, consent="on paper"))
    store.put(sample_profile("bo", (2,)))
    store.adapt("ana", sample_exemplar(3))  # has no clip
    store.export_profile("ana", folder / "ana.emoinv", Passphrase("correct horse"))
    new = store.upgrade("ana", tiny_encoder)
    kept = store.get("ana", model_fingerprint=tiny_encoder.fingerprint)
    waveform = np.frombuffer(speech, "<i2").astype(np.float32) / 32768.0
    assert same(kept, new) and kept.consent == "on paper" and kept.created == WHEN
    assert float(kept.exemplars[0].embedding @ tiny_encoder.embed(waveform, 16000)) > 1.0 - 1e-6
    assert len(kept.exemplars) == 1 and kept.exemplars[0].audio == speech
    assert store.audit("ana").events[-1][1] == f"upgraded to model {tiny_encoder.fingerprint[:12]}"
    with pytest.raises(EnrolmentError, match="without --keep-audio"):
        store.upgrade("bo", tiny_encoder)
    assert same(store.get("bo"), sample_profile("bo", (2,)))
    other = ProfileStore(folder / "other.db", KEY)
    imported = other.import_profile(
        folder / "ana.emoinv",
        Passphrase("correct horse"),
        model_fingerprint=tiny_encoder.fingerprint,
        encoder=tiny_encoder,
    )
    assert same(imported, new)


# -- removal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, PLAINTEXT], ids=["sealed", "plaintext"])
def test_after_remove_all_a_search_for_the_old_bytes_finds_nothing(folder: Path, key: KeySource) -> None:
    emptied = ProfileStore(folder / "p.db", key)
    audio = np.random.default_rng(5).bytes(20000)
    for name, seeds in (("anastasia", (1, 2, 3)), ("boniface", (4, 5))):
        emptied.put(sample_profile(name, seeds, dim=256, audio=audio, consent="on yellow paper"))
    emptied.adapt("boniface", sample_exemplar(6, dim=256))
    emptied.note_verified("boniface", "accept")
    before = sealed_columns(emptied.path, "profile", "exemplar")
    assert len(before) == 2 * 2 + 6 + 5
    found = pieces_of_file(emptied.path)
    assert all(pieces(blob) and pieces(blob) <= found for blob in before)  # the search can find
    assert emptied.remove_all() == ["anastasia", "boniface"]
    assert [path.name for path in folder.iterdir()] == ["p.db"]
    found = pieces_of_file(emptied.path)
    for blob in before:
        assert not pieces(blob) & found
    content = emptied.path.read_bytes()
    for secret in (b"anastasia", b"boniface", b"yellow", audio[100:116], MODEL.encode()[:16]):
        assert secret not in content
    assert emptied.names() == []
    emptied.put(sample_profile("cy"))
    assert emptied.names() == ["cy"]


@pytest.mark.parametrize("key", [KEY, PLAINTEXT], ids=["sealed", "plaintext"])
def test_removal_of_one_leaves_nothing_of_it_and_all_of_the_others(folder: Path, key: KeySource) -> None:
    kept = ProfileStore(folder / "p.db", key)
    kept.put(sample_profile("bo", (4, 5), dim=64))
    others = sealed_columns(kept.path, "profile", "exemplar")
    kept.put(sample_profile("anastasia", (1, 2), dim=64, audio=b"clip" * 999))
    before = sealed_columns(kept.path, "profile", "exemplar") - others
    kept.remove("anastasia")
    found = pieces_of_file(kept.path)
    assert not any(pieces(blob) & found for blob in before)
    assert b"anastasia" not in kept.path.read_bytes()
    assert same(kept.get("bo"), sample_profile("bo", (4, 5), dim=64))


# -- schema --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "key"), [("sealed", KEY), ("plaintext", PLAINTEXT)])
def test_a_store_of_schema_1_is_brought_up_to_date(folder: Path, kind: str, key: KeySource) -> None:
    """The data were written by the library as it was at schema 1."""
    path = schema_1(folder, kind)
    old = ProfileStore(path, key)
    assert old.names() == ["ana", "bo"]
    ana, bo = old.get("ana"), old.get("bo")
    for profile, seeds in ((ana, (1, 2)), (bo, (3,))):
        for exemplar, seed in zip(profile.exemplars, seeds, strict=True):
            vector = np.cos(np.arange(8.0) * seed + seed)
            assert np.abs(exemplar.embedding - vector / np.linalg.norm(vector)).max() < 1e-6
    assert ana.consent == "on paper" and bo.expires == datetime.datetime(2099, 1, 1, tzinfo=UTC)
    assert [event for _, event in old.audit("ana").events] == ["migrated from schema 1"]
    old.adapt("ana", sample_exemplar(4))
    assert len(ProfileStore(path, key).get("ana").exemplars) == 3


def test_a_store_of_schema_1_that_does_not_open_stays_as_it_is(folder: Path) -> None:
    path = schema_1(folder, "sealed")
    before = path.read_bytes()
    with pytest.raises(SealError):
        ProfileStore(path, b"x" * 32).names()
    assert path.read_bytes() == before
    with raw_connection(path) as db:
        db.execute(
            "UPDATE profile SET sealed = zeroblob(length(sealed)) WHERE rowid = (SELECT min(rowid) FROM profile)"
        )
    before = path.read_bytes()
    with pytest.raises(SealError, match="a profile of this older store is damaged"):
        ProfileStore(path, KEY).names()
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_left_alone(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with raw_connection(store.path) as db:
        db.execute("PRAGMA user_version = 3")
    before = store.path.read_bytes()
    for act in (store.names, lambda: store.put(sample_profile("bo")), lambda: store.remove("ana")):
        with pytest.raises(SchemaError, match=r"expected schema 1 to 2, got 3; install"):
            act()
    assert store.path.read_bytes() == before


def test_a_current_store_that_claims_to_be_older_is_refused_and_left_alone(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with raw_connection(store.path) as db:
        db.execute("PRAGMA user_version = 1")
    before = store.path.read_bytes()
    with pytest.raises(SealError):
        store.names()
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x", b"RIFF" * 1000, b"SQLite format 3\x00" + b"\x00" * 4080])
def test_a_file_that_is_no_store_is_refused_and_left_alone(folder: Path, content: bytes) -> None:
    (folder / "p.db").write_bytes(content)
    foreign = ProfileStore(folder / "p.db", KEY)
    for act in (foreign.names, lambda: foreign.get("ana"), lambda: foreign.put(sample_profile("ana"))):
        with pytest.raises(StoreError):
            act()
    assert (folder / "p.db").read_bytes() == content


def test_a_database_of_another_program_is_refused(folder: Path) -> None:
    with raw_connection(folder / "p.db") as db:
        db.execute("CREATE TABLE profile (name)")
    with pytest.raises(StoreError, match="no profile store"):
        ProfileStore(folder / "p.db", KEY).put(sample_profile("ana"))


# -- waiting, media ------------------------------------------------------------------------------------------


def test_the_wait_for_another_writer_is_bounded(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    hasty = ProfileStore(store.path, KEY, timeout_s=0.3)
    with raw_connection(store.path) as db:
        db.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with pytest.raises(StoreError, match=r"locked for 0\.3 s; nothing was changed"):
            hasty.put(sample_profile("bo"))
        assert time.monotonic() - start < 10.0  # on a busy machine; 0.3 s on an idle one
        assert hasty.names() == ["ana"]  # readers do not wait
        db.execute("ROLLBACK")
    hasty.put(sample_profile("bo"))


def test_a_removal_that_cannot_rebuild_the_file_says_so_and_purge_makes_up_for_it(store: ProfileStore) -> None:
    store.put(sample_profile("anastasia", (1, 2), dim=64))
    before = sealed_columns(store.path, "profile", "exemplar")
    hasty = ProfileStore(store.path, KEY, timeout_s=0.2)
    with raw_connection(store.path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM store").fetchall()
        with pytest.raises(StoreError, match=r"is done, but old sealed bytes may still lie in the file.*purge"):
            hasty.remove("anastasia")
        reader.execute("ROLLBACK")
    assert store.names() == []
    store.purge()
    found = pieces_of_file(store.path)
    assert not any(pieces(blob) & found for blob in before)


def test_threads_share_a_store(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (0,)))
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                store.adapt("ana", sample_exemplar(number * 10 + turn), limit=1000)
                store.get("ana")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and len(store.get("ana").exemplars) == 41


def mounted(kind: str, folder: Path, options: str) -> bool:
    """Whether a tmpfs could be mounted there: only for root, and not in every container."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", "-t", kind, "-o", options, kind, folder], capture_output=True).returncode == 0


def test_read_only_media_can_be_read_and_say_that_they_cannot_be_written(folder: Path) -> None:
    media = folder / "media"
    media.mkdir()
    on_tmpfs = mounted("tmpfs", media, "size=2m")
    try:
        ProfileStore(media / "p.db", KEY).put(sample_profile("ana"))
        before = (media / "p.db").read_bytes()
        if on_tmpfs:
            subprocess.run(["mount", "-o", "remount,ro", media], check=True)
        elif os.geteuid() == 0:
            pytest.skip("root may write anywhere, and no file system can be mounted here")
        else:
            media.chmod(0o555)
        card = ProfileStore(media / "p.db", KEY)
        assert same(card.get("ana"), sample_profile("ana"))
        assert card.names() == ["ana"] and card.list()[0].problem == "" and card.audit("ana").events
        changes = (
            lambda: card.put(sample_profile("bo")),
            lambda: card.remove("ana"),
            lambda: card.adapt("ana", sample_exemplar(3)),
            lambda: card.note_verified("ana", "accept"),
            card.rotate,
            card.purge,
            lambda: card.export_profile("ana", folder / "ana.emoinv", Passphrase("12345678")),
        )
        for change in changes:
            with pytest.raises(StoreError, match=r"read-only media.*nothing was changed"):
                change()
        with pytest.raises(StoreError, match=r"new\.db"):
            ProfileStore(media / "new.db", KEY).put(sample_profile("ana"))
        assert (media / "p.db").read_bytes() == before and [each.name for each in media.iterdir()] == ["p.db"]
    finally:
        if on_tmpfs:
            subprocess.run(["umount", media], check=True)
        else:
            media.chmod(0o755)


def test_a_full_disk_keeps_what_was_there(folder: Path) -> None:
    media = folder / "media"
    media.mkdir()
    if not mounted("tmpfs", media, "size=512k"):
        pytest.skip("no small file system can be mounted here; the test of a quota covers the same")
    try:
        full = ProfileStore(media / "p.db", KEY)
        ana = sample_profile("ana", (1, 2), dim=256)
        full.put(ana)
        full.adapt("ana", sample_exemplar(3, dim=256))
        (media / "filler").write_bytes(b"")
        fill(media / "filler", leave=0)
        changes = (
            lambda: full.put(sample_profile("bo", tuple(range(40)), dim=256)),
            lambda: full.adapt("ana", sample_exemplar(4, dim=256)),
            full.rotate,
            lambda: full.note_verified("ana", "accept"),
            lambda: full.remove("ana"),
        )
        for change in changes:
            with pytest.raises(StoreError, match="nothing was changed"):
                change()
            assert same(full.get("ana"), sample_profile("ana", (1, 2, 3), dim=256))
        with pytest.raises(StoreError, match="nothing was changed"):
            ProfileStore(media / "new.db", KEY).put(ana)
        assert not (media / "new.db").exists()
        for room in range(0, 200 * 1024, 20 * 1024):  # full at every stage of the work
            fill(media / "filler", leave=room)
            for name, change in (("bo", changes[0]), ("ana", changes[2])):
                try:
                    change()
                except StoreError:
                    assert same(full.get("ana"), sample_profile("ana", (1, 2, 3), dim=256)), (name, room)
            assert same(full.get("ana"), sample_profile("ana", (1, 2, 3), dim=256))
        (media / "filler").unlink()
        # The store's own log may fill so small a disk; more room must cure that.
        subprocess.run(["mount", "-o", "remount,size=2m", media], check=True)
        full.put(sample_profile("cy"))
        assert full.names() == ["ana", "bo", "cy"]
    finally:
        subprocess.run(["umount", media], check=True)


QUOTA = """
import resource, signal, sys
sys.path[:0] = sys.argv[1:3]
from profile_samples import KEY, sample_exemplar, sample_profile, same
from emoinv_edge.errors import StoreError
from emoinv_edge.store import ProfileStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ProfileStore(sys.argv[3], KEY)
ana = sample_profile("ana", (1, 2), dim=256)
store.put(ana)
refused = 0
for limit in range(1024, 160 * 1024, 9 * 1024):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for change in (lambda: store.put(sample_profile("bo", tuple(range(30)), dim=256)), store.rotate):
        try:
            change()
        except StoreError as error:
            assert "nothing was changed" in str(error) or "is done, but" in str(error), error
            refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert same(store.get("ana"), ana), limit
        assert set(store.names()) <= {"ana", "bo"}
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
assert refused > 10, refused
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no quota for one process")
def test_a_quota_that_is_reached_keeps_what_was_there(folder: Path) -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", QUOTA, tests, tests.parent, folder / "p.db"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


# -- secrets -------------------------------------------------------------------------------------------------


def test_secrets_reach_no_log_exception_or_repr(
    folder: Path, caplog: pytest.LogCaptureFixture, cheap_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sealing, "scrypt_key", lambda passphrase, salt, *_: sealing.hashlib.sha256(passphrase + salt).digest()
    )
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    audio = b"THE-CLIP-ITSELF"
    ana = sample_profile("ana", (1, 2), audio=audio)
    word, export_word = Passphrase("store passphrase"), Passphrase("export passphrase")
    wrong_word = Passphrase("another passphrase")

    def attempt(act) -> None:
        try:
            told.append(repr(act()))
        except (EmoinvError, ValueError, TypeError) as error:
            told.append(repr(error) + "".join(traceback.format_exception(type(error), error, error.__traceback__)))

    sources: list[KeySource] = [KEY, lambda: KEY, word, KeyFile(folder / "key"), KeyVariable("EMOINV_TEST_KEY")]
    monkeypatch.setenv("EMOINV_TEST_KEY", KEY.hex())

    def everything_with(opened: ProfileStore) -> None:
        attempt(lambda: opened)
        attempt(
            lambda: opened._vault.key if isinstance(opened._vault.key, (Passphrase, KeyFile, KeyVariable)) else None
        )
        attempt(lambda: opened.put(ana))
        attempt(lambda: opened.get("ana"))
        attempt(lambda: opened._vault._keys)
        attempt(opened.list)
        attempt(lambda: opened.audit("ana"))
        attempt(lambda: opened.adapt("ana", sample_exemplar(3)))
        attempt(lambda: opened.export_profile("ana", folder / "ana.emoinv", export_word))
        attempt(lambda: opened.import_profile(folder / "ana.emoinv", export_word, model_fingerprint=MODEL))
        attempt(lambda: opened.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL))
        attempt(lambda: opened.get("ana", model_fingerprint=OTHER_MODEL))
        attempt(lambda: pickle.dumps(opened))
        attempt(lambda: pickle.dumps(word))
        attempt(lambda: copy.copy(opened))
        attempt(lambda: ProfileStore(opened.path, b"x" * 32).names())
        attempt(lambda: ProfileStore(opened.path, wrong_word).get("ana"))
        with raw_connection(opened.path) as db:
            db.execute("UPDATE exemplar SET vector = zeroblob(200)")
        attempt(lambda: opened.get("ana"))
        attempt(opened.list)
        attempt(opened.rotate)
        with raw_connection(opened.path) as db:
            db.execute("UPDATE store SET keys = zeroblob(92)")
        attempt(opened.names)

    for number, key in enumerate(sources):
        everything_with(ProfileStore(folder / f"{number}.db", key))
    everything = "\n".join([*told, *(record.getMessage() for record in caplog.records)])
    assert "does not open" in everything and "already" in everything and "not pickled" in everything
    keys = [KEY, bytes.fromhex((folder / "key").read_text())]
    secrets = ["store passphrase", "export passphrase", "another passphrase", audio.decode(), "4.8125"]
    secrets += [key.hex() for key in keys] + [repr(key)[2:-1] for key in keys]
    for exemplar in ana.exemplars:
        secrets += [f"{value:.5f}" for value in exemplar.embedding] + [str(value) for value in exemplar.embedding]
        secrets += [repr(exemplar.embedding.tobytes())[2:40], exemplar.embedding.tobytes().hex()]
    for secret in secrets:
        assert secret not in everything


# -- helpers -------------------------------------------------------------------------------------------------


class raw_connection:
    """A plain connection to a store's file, for looking at it and for damaging it."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        return self.db

    def __exit__(self, *_: object) -> None:
        self.db.close()


def sealed_columns(path: Path, *tables: str) -> set[bytes]:
    """Every blob in these tables (by default in all)."""
    with raw_connection(path) as db:
        return {
            value
            for table in tables or ("store", "profile", "exemplar")
            for row in db.execute(f"SELECT * FROM {table}")
            for value in row
            if isinstance(value, bytes) and len(value) > 16
        }


def pieces(blob: bytes) -> set[bytes]:
    """The runs of 12 bytes at its start that are not mere text, which a store in plaintext repeats."""
    runs = (blob[start : start + 12] for start in range(min(len(blob), 400) - 12))
    return {run for run in runs if max(run) > 126}


def pieces_of_file(path: Path) -> set[bytes]:
    content = path.read_bytes()
    return {content[start : start + 12] for start in range(len(content) - 11)}


def rows(path: Path, table: str) -> int:
    with raw_connection(path) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def stored_vector(path: Path) -> np.ndarray:
    """The vector in the only exemplar of a plaintext store of 256 dimensions."""
    with raw_connection(path) as db:
        (sealed,) = db.execute("SELECT vector FROM exemplar").fetchone()
    return np.frombuffer(sealed[-1024:], "<f4")


def schema_1(folder: Path, kind: str) -> Path:
    path = folder / "old.db"
    with raw_connection(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript((DATA / f"store_schema1_{kind}.sql").read_text())
    return path


def fill(path: Path, leave: int) -> None:
    """Fill the file system up to `leave` bytes."""
    path.write_bytes(b"")
    free = os.statvfs(path.parent)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(b"\x00" * max(0, free.f_bavail * free.f_bsize - leave))
