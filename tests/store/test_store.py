"""ProfileStore: what it keeps and refuses, how profiles adapt, and what their audit trail shows."""

from __future__ import annotations

import dataclasses
import datetime
import sqlite3
import sys
from pathlib import Path

import pytest

from emoinv_edge.errors import ModelMismatchError, ProfileExpiredError, StoreError, UnknownSpeakerError
from emoinv_edge.store import Passphrase, ProfileStore, default_store_path
from emoinv_edge.store.keys import Seal
from tests.store.profile_samples import KEY, MODEL, OTHER_MODEL, sample_exemplar, sample_profile
from tests.store.raw_store import count_rows, raw_connection

UTC = datetime.timezone.utc


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_what_was_put_is_got(store: ProfileStore) -> None:
    ana = sample_profile("ana", (1, 2, 3), dim=256, consent="on paper", audio=b"clip")
    store.put(ana)
    store.put(sample_profile("bo", (4,)))
    assert store.get("ana") == ana
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
    assert store.get("ana") == sample_profile("ana", (2, 3))
    with pytest.raises(StoreError, match="already"):
        store.put(sample_profile("ana", (4,)), replace=False)
    assert store.get("ana") == sample_profile("ana", (2, 3))


def test_no_change_opens_what_it_has_just_sealed(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(sample_profile("ana"))
    sealed: set[bytes] = set()
    close, open_ = Seal.close, Seal.open

    def closing(seal: Seal, *arguments) -> bytes:
        made = close(seal, *arguments)
        sealed.add(made)
        return made

    def opening(seal: Seal, data: bytes, aad: bytes) -> bytes:
        assert data not in sealed
        return open_(seal, data, aad)

    monkeypatch.setattr(Seal, "close", closing)
    monkeypatch.setattr(Seal, "open", opening)
    for change in (
        lambda: store.put(sample_profile("bo")),
        lambda: store.put(sample_profile("bo", (3,))),
        lambda: store.adapt(store.get("ana"), sample_exemplar(3)),
        lambda: store.extend(store.get("ana"), [sample_exemplar(4)]),
        lambda: store.rollback("ana"),
        lambda: store.note_verified("ana", "accept"),
        lambda: store.remove("bo"),
        store.rotate,
    ):
        sealed.clear()
        change()
        assert sealed


def test_an_unknown_name_is_an_error_that_names_it(store: ProfileStore) -> None:
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
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"emoi", "big"),)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = db.execute("SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite%'").fetchall()
        expected = [("exemplar", 1), ("heard", 1), ("page", 1), ("profile", 1), ("store", 1)]
        assert sorted(tables) == expected


def test_every_connection_keeps_to_what_the_documentation_says(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments, **options) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.set_trace_callback(statements.append)
        return db

    store.put(sample_profile("ana"))
    monkeypatch.setattr(sqlite3, "connect", traced)
    for act in (store.names, lambda: store.put(sample_profile("bo")), lambda: store.remove("bo"), store.rotate):
        statements.clear()
        act()
        for setting in ("foreign_keys = ON", "secure_delete = ON", "synchronous = FULL", "temp_store = MEMORY"):
            assert any(f"PRAGMA {setting}" in statement for statement in statements), setting


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
    for act in (store.get, lambda name: store.adapt(store.get(name), sample_exemplar(1))):
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


# -- audit ------------------------------------------------------------------------------------------------------------


def test_adaptation_is_undone_step_by_step(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2)))
    assert store.adapt(store.get("ana"), sample_exemplar(3)) == sample_profile("ana", (1, 2, 3), adapted=1)
    store.adapt(store.get("ana"), sample_exemplar(4))
    assert store.get("ana") == sample_profile("ana", (1, 2, 3, 4), adapted=2)
    assert store.rollback("ana") == sample_profile("ana", (1, 2, 3), adapted=1)
    assert store.rollback("ana") == sample_profile("ana", (1, 2))
    with pytest.raises(StoreError, match="no adaptation to undo"):
        store.rollback("ana")
    assert count_rows(store.path, "exemplar") == 2


def test_adaptation_drops_the_oldest_adapted_exemplar_and_rollback_brings_it_back(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2)))
    for seed in (3, 4, 5, 6):
        store.adapt(store.get("ana"), sample_exemplar(seed), limit=4)
    assert store.get("ana") == sample_profile("ana", (1, 2, 5, 6), adapted=2)
    assert store.rollback("ana") == sample_profile("ana", (1, 2, 4, 5), adapted=2)
    assert store.rollback("ana") == sample_profile("ana", (1, 2, 3, 4), adapted=2)
    with pytest.raises(StoreError, match="2 enrolled exemplars, the limit is 2"):
        store.adapt(store.get("ana"), sample_exemplar(7), limit=2)


def test_what_can_be_undone_is_bounded_and_so_are_the_rows(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1,)))
    for seed in range(2, 40):
        store.adapt(store.get("ana"), sample_exemplar(seed), limit=3)
    assert store.info("ana").adaptations == 16
    assert count_rows(store.path, "exemplar") <= 3 + 16 + 1
    for _ in range(16):
        store.rollback("ana")
    assert store.get("ana") == sample_profile("ana", (1, 22, 23), adapted=2)


def test_further_enrolment_loses_no_adaptation_and_makes_none_permanent(store: ProfileStore) -> None:
    later = datetime.datetime.now(UTC) + datetime.timedelta(days=9)
    store.put(sample_profile("ana", (1, 2), consent="on paper"))
    store.adapt(store.get("ana"), sample_exemplar(3))
    store.adapt(store.get("ana"), sample_exemplar(4))
    more = (sample_exemplar(5), sample_exemplar(6))
    extended = store.extend(store.get("ana"), more, expires=later)
    expected = sample_profile("ana", (1, 2, 5, 6, 3, 4), consent="on paper", expires=later, adapted=2)
    assert extended == expected and store.get("ana") == expected
    assert (store.info("ana").num_enrolled, store.info("ana").adaptations) == (4, 2)
    assert store.rollback("ana") == sample_profile("ana", (1, 2, 5, 6, 3), consent="on paper", expires=later, adapted=1)
    assert store.rollback("ana") == sample_profile("ana", (1, 2, 5, 6), consent="on paper", expires=later)
    assert [event for _, event in store.audit("ana").events][3] == "enrolled further"
    with pytest.raises(ModelMismatchError):
        store.extend(dataclasses.replace(store.get("ana"), model_fingerprint=OTHER_MODEL), more)
    with pytest.raises(ModelMismatchError, match="8 values"):
        store.extend(store.get("ana"), [sample_exemplar(7, dim=16)])
    with pytest.raises(ValueError, match="at least one"):
        store.extend(store.get("ana"), [])
    with pytest.raises(ValueError, match="at most 4096"):
        store.extend(store.get("ana"), more, consent="x" * 5000)
    with pytest.raises(UnknownSpeakerError):
        store.extend(sample_profile("bo"), more)
    assert count_rows(store.path, "exemplar") == 4


def test_adaptation_by_another_model_is_refused(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with pytest.raises(ModelMismatchError):
        store.adapt(dataclasses.replace(store.get("ana"), model_fingerprint=OTHER_MODEL), sample_exemplar(3))
    with pytest.raises(ModelMismatchError, match="8 values an embedding, not 16"):
        store.adapt(store.get("ana"), sample_exemplar(3, dim=16))
    assert store.get("ana") == sample_profile("ana")


def test_the_audit_trail_lists_what_was_done(store: ProfileStore, folder: Path) -> None:
    start = datetime.datetime.now(UTC).replace(microsecond=0)
    store.put(sample_profile("ana"))
    assert store.audit("ana").last_used is None
    store.adapt(store.get("ana"), sample_exemplar(3))
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
    monkeypatch.setattr("emoinv_edge.store.rows.MAX_EVENTS", 3)
    monkeypatch.setattr("emoinv_edge.store.MAX_AUDIT_DAYS", 1)
    store.put(sample_profile("ana"))
    for seed in range(4):
        store.adapt(store.get("ana"), sample_exemplar(seed))
    assert [event for _, event in store.audit("ana").events] == ["adapted"] * 3
    store.note_verified("ana", "accept")
    assert len(store.audit("ana").verified) == 1


def test_a_removal_is_logged_without_the_name(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    store.remove("ana")
    ((_, event),) = store.log()
    assert event.startswith("removed: ") and "ana" not in event.partition(":")[2]
