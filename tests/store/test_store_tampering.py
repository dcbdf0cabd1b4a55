"""A store that somebody altered: each flip, cut, swap and replay is noticed, and costs no other profile.

By default a part of the flips and cuts is tried; with EMOINV_FULL_PROOFS=1 every byte and every length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emoinv_edge.errors import SealError, StoreError
from emoinv_edge.profiles import Profile
from emoinv_edge.store import PLAINTEXT, ProfileStore
from tests.store.profile_samples import FULL, KEY, sample_exemplar, sample_profile
from tests.store.raw_store import alter, profile_rows, select

ANA = sample_profile("ana", (1,), dim=4)
BO = sample_profile("bo", (2,), dim=4)
PROFILES = {"ana": ANA, "bo": BO}


@pytest.fixture
def small_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two profiles in the smallest pages that SQLite knows."""
    monkeypatch.setattr("emoinv_edge.store.file.PAGE_BYTES", 512)
    return folder / "p.db"


def put_all(store: ProfileStore, *profiles: Profile) -> list[int]:
    """Put each profile; the ids of their rows."""
    found = []
    for profile in profiles:
        before = profile_rows(store.path) if store.path.exists() else set()
        store.put(profile)
        found += profile_rows(store.path) - before
    return found


def outcome(path: Path) -> dict[str, bool]:
    """For each profile whether it was read; whatever is read must be what was put.

    Every fault must be one of the library's own, and a profile must never be taken for an unknown one.
    """
    read = {}
    for name, profile in PROFILES.items():
        try:
            got = ProfileStore(path, KEY, timeout_s=1.0).get(name)
        except StoreError:
            read[name] = False
        else:
            assert got == profile
            read[name] = True
    return read


def spans(path: Path, ana: int, bo: int) -> dict[str, list[tuple[int, int]]]:
    """Where in the file the sealed bytes of each profile and of each copy of the store's row lie.

    Of a blob that overflows its page only the pieces that lie in one run are found.
    """
    content = path.read_bytes()
    found: dict[str, list[tuple[int, int]]] = {"ana": [], "bo": [], "copies": []}
    rows = {ana: "ana", bo: "bo"}
    blobs = [
        *((rows[row], blob) for row, *two in select(path, "SELECT id, body, trail FROM profile") for blob in two),
        *((rows[row], blob) for row, blob in select(path, "SELECT profile_id, vector FROM exemplar")),
        *(("copies", blob) for three in select(path, "SELECT keys, root, log FROM store") for blob in three),
    ]
    for owner, blob in blobs:
        start = 0
        while start + 16 <= len(blob):
            at = content.find(blob[start : start + 16])
            length = 16
            if at < 0:
                start += 1
                continue
            while start + length < len(blob) and content[at + length : at + length + 1] == blob[start + length :][:1]:
                length += 1
            while at >= 0:  # both copies of the store's row
                found[owner].append((at, at + length))
                at = content.find(blob[start : start + 16], at + 1)
            start += length
    return found


def test_flipping_any_byte_of_a_store_is_noticed_or_changes_nothing(small_store: Path) -> None:
    inside = spans(small_store, *put_all(ProfileStore(small_store, KEY), ANA, BO))
    intact = small_store.read_bytes()
    assert sum(end - start for where in inside.values() for start, end in where) > len(intact) / 5
    counts = {"both read": 0, "one read": 0, "none read": 0}
    places = range(len(intact)) if FULL else sorted({*range(0, 100, 3), *range(0, len(intact), 23)})
    for place in places:
        with small_store.open("r+b") as file:
            file.seek(place)
            file.write(bytes([intact[place] ^ (0xFF if place % 2 else 1 << place % 8)]))
        read = outcome(small_store)
        counts[("none read", "one read", "both read")[sum(read.values())]] += 1
        if any(start <= place < end for start, end in inside["ana"]):
            assert read["bo"], place
        if any(start <= place < end for start, end in inside["bo"]):
            assert read["ana"], place
        if any(start <= place < end for start, end in inside["copies"]):
            assert all(read.values()), place  # the other copy serves
        altered = small_store.read_bytes()
        assert len(altered) == len(intact) and altered[:place] == intact[:place], (
            place
        )  # reading repaired or lost nothing
        assert altered[place + 1 :] == intact[place + 1 :], place
        with small_store.open("r+b") as file:
            file.seek(place)
            file.write(intact[place : place + 1])
    print(f"{len(places)} flips of {len(intact)} bytes: {counts}")
    assert all(outcome(small_store).values())
    assert counts["one read"] > 0 and counts["none read"] > 0 and counts["both read"] > 0


def test_truncating_a_store_at_any_length_is_noticed(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(ProfileStore(small_store, KEY), ANA, BO)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    intact = small_store.read_bytes()
    lengths = range(len(intact)) if FULL else sorted({*range(0, 120, 7), *range(0, len(intact), 97)})
    for length in lengths:
        small_store.write_bytes(intact[:length])
        read = outcome(small_store)
        assert not any(read.values()), length
        assert small_store.read_bytes() == intact[:length], length
    print(f"{len(lengths)} lengths of {len(intact)} bytes")
    small_store.write_bytes(intact)
    assert all(outcome(small_store).values())


@pytest.mark.parametrize("column", ["body", "trail", "version", "model_fingerprint"])
@pytest.mark.parametrize("key", [KEY, PLAINTEXT], ids=["sealed", "plaintext"])
def test_swapped_columns_of_two_profiles_are_refused(folder: Path, column: str, key) -> None:
    store = ProfileStore(folder / "p.db", key)
    profiles = (sample_profile(name, (seed,), model=f"{seed}" * 64) for seed, name in enumerate(("ana", "bo", "cy"), 1))
    ana, bo, _ = put_all(store, *profiles)
    store.adapt(store.get("ana"), sample_exemplar(4))
    values = dict(select(store.path, f"SELECT id, {column} FROM profile"))
    alter(store.path, f"UPDATE profile SET {column} = ? WHERE id = ?", values[bo], ana)
    alter(store.path, f"UPDATE profile SET {column} = ? WHERE id = ?", values[ana], bo)
    for name in ("ana", "bo"):
        act: Callable[[str], object] = store.audit if column == "trail" else store.get
        with pytest.raises(SealError, match=f"'{name}'.*the others are not touched"):
            act(name)
    assert store.get("cy") == sample_profile("cy", (3,), model="3" * 64)
    problems = {info.name: info.problem[:7] for info in store.list()}
    assert problems == {"ana": "damaged", "bo": "damaged", "cy": ""}


@pytest.mark.parametrize("column", ["vector", "clip"])
def test_swapped_exemplars_are_refused(folder: Path, column: str) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    store.put(sample_profile("ana", (1, 2), audio=b"clip one"))
    store.put(sample_profile("bo", (3,), audio=b"clip two"))
    rows = select(store.path, f"SELECT id, {column} FROM exemplar")
    alter(store.path, f"UPDATE exemplar SET {column} = ? WHERE id = ?", rows[1][1], rows[0][0])
    alter(store.path, f"UPDATE exemplar SET {column} = ? WHERE id = ?", rows[0][1], rows[1][0])
    problems = [info.problem for info in store.list()]
    assert any(problem.startswith("damaged") for problem in problems)


def test_swapped_rows_are_refused(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    ana, bo = put_all(store, ANA, BO)
    for table, column in (("profile", "id"), ("exemplar", "profile_id")):
        for old, new in ((ana, 1), (bo, ana), (1, bo)):
            alter(store.path, f"UPDATE {table} SET {column} = ? WHERE {column} = ?", new, old)
    for name in ("ana", "bo"):
        with pytest.raises(SealError):
            store.get(name)


def test_an_older_state_of_a_row_is_refused(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    ana, _ = put_all(store, ANA, BO)
    (older,) = select(store.path, "SELECT version, body, trail FROM profile WHERE id = ?", ana)
    store.adapt(store.get("ana"), sample_exemplar(3, dim=4))
    (newer,) = select(store.path, "SELECT version, body, trail FROM profile WHERE id = ?", ana)
    assert older[0] + 1 == newer[0]
    alter(store.path, "UPDATE profile SET version = ?, body = ?, trail = ? WHERE id = ?", *older, ana)
    for handle in (store, ProfileStore(store.path, KEY)):
        with pytest.raises(SealError, match="put back to an older state"):
            handle.get("ana")
        with pytest.raises(SealError, match="put back to an older state"):
            handle.audit("ana")
        assert handle.get("bo") == BO
    alter(store.path, "UPDATE profile SET version = ?, body = ?, trail = ? WHERE id = ?", *newer, ana)
    assert len(store.get("ana").exemplars) == 2


def test_an_exemplar_of_an_older_state_does_not_come_back(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    store.put(ANA)
    store.adapt(store.get("ana"), sample_exemplar(3, dim=4))
    rows = select(store.path, "SELECT * FROM exemplar")
    store.rollback("ana")
    for row in rows:
        alter(store.path, "INSERT OR REPLACE INTO exemplar VALUES (?, ?, ?, ?)", *row)
    assert store.get("ana") == ANA  # what no record names is not read
    store.adapt(store.get("ana"), sample_exemplar(5, dim=4))
    assert len(select(store.path, "SELECT id FROM exemplar")) == 2  # and the next change sweeps it out


def test_a_removed_profile_does_not_come_back_with_its_rows(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    store.put(ANA)
    store.put(BO)
    profile, exemplars = select(store.path, "SELECT * FROM profile"), select(store.path, "SELECT * FROM exemplar")
    store.remove("ana")
    for row in profile:
        alter(store.path, "INSERT OR IGNORE INTO profile VALUES (?, ?, ?, ?, ?)", *row)
    for row in exemplars:
        alter(store.path, "INSERT OR IGNORE INTO exemplar VALUES (?, ?, ?, ?)", *row)
    assert store.names() == ["bo"]
    store.rotate()
    assert len(select(store.path, "SELECT id FROM profile")) == 1


def test_an_older_root_is_refused_with_newer_rows(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    store.put(ANA)
    store.put(BO)
    copies = select(store.path, "SELECT * FROM store")
    store.adapt(store.get("ana"), sample_exemplar(3, dim=4))
    alter(store.path, "INSERT OR REPLACE INTO store VALUES (?, ?, ?, ?, ?, ?, ?)", *copies[0])
    assert len(ProfileStore(store.path, KEY).get("ana").exemplars) == 2  # one older copy: the newer one counts
    alter(store.path, "INSERT OR REPLACE INTO store VALUES (?, ?, ?, ?, ?, ?, ?)", *copies[1])
    fresh = ProfileStore(store.path, KEY)
    with pytest.raises(SealError):
        fresh.get("ana")
    assert fresh.get("bo") == BO
    with pytest.raises(SealError, match=r"put back to an older state \(write 3, seen before: 4\)"):
        store.get("bo")  # this object has seen the newer root


def test_a_whole_file_put_back_is_noticed_by_who_saw_the_newer_one_only(folder: Path) -> None:
    """The limit that the module documents: nothing outside the file remembers."""
    store = ProfileStore(folder / "p.db", KEY)
    store.put(ANA)
    older = store.path.read_bytes()
    store.adapt(store.get("ana"), sample_exemplar(3, dim=4))
    store.path.write_bytes(older)
    with pytest.raises(SealError, match="put back to an older state"):
        store.get("ana")
    assert ProfileStore(store.path, KEY).get("ana") == ANA


def test_rows_do_not_move_to_another_store_of_the_same_key(folder: Path) -> None:
    one, other = ProfileStore(folder / "one.db", KEY), ProfileStore(folder / "other.db", KEY)
    one.put(ANA)
    ana, _ = put_all(other, sample_profile("ana", (9,), dim=4), BO)
    (row,) = select(one.path, "SELECT * FROM profile")
    (exemplar,) = select(one.path, "SELECT * FROM exemplar")
    alter(
        other.path,
        "UPDATE profile SET model_fingerprint = ?, version = ?, body = ?, trail = ? WHERE id = ?",
        *row[1:],
        ana,
    )
    alter(other.path, "UPDATE exemplar SET vector = ? WHERE profile_id = ?", exemplar[2], ana)
    with pytest.raises(SealError):
        other.get("ana")
    assert other.get("bo") == BO
    (keys,) = select(one.path, "SELECT keys, root, log FROM store WHERE copy = 1")
    alter(other.path, "UPDATE store SET keys = ?, root = ?, log = ?", *keys)
    with pytest.raises(SealError):
        ProfileStore(other.path, KEY).names()


def test_work_goes_on_around_a_damaged_profile(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    ana, _ = put_all(store, ANA, BO)
    alter(store.path, "UPDATE profile SET body = zeroblob(100) WHERE id = ?", ana)
    alter(store.path, "UPDATE store SET root = zeroblob(100), keys = zeroblob(92) WHERE copy = 1")
    for act in (store.get, lambda name: store.adapt(store.get(name), sample_exemplar(3, dim=4)), store.rollback):
        with pytest.raises(SealError, match="'ana'"):
            act("ana")
    with pytest.raises(SealError, match="'ana'"):
        store.rotate()  # would have to drop it
    store.put(sample_profile("cy", (3,)))
    store.adapt(store.get("bo"), sample_exemplar(3, dim=4))
    assert store.purge() == []
    assert store.names() == ["ana", "bo", "cy"] and len(store.get("bo").exemplars) == 2
    copies = select(store.path, "SELECT keys, root FROM store")
    assert copies[0] == copies[1]  # the next write made the damaged copy good
    store.remove("ana")
    store.put(ANA)
    assert store.get("ana") == ANA


@pytest.mark.parametrize(
    "damage",
    ["UPDATE profile SET body = x''", "UPDATE profile SET trail = x''", "DELETE FROM profile", "DELETE FROM exemplar"],
)
def test_enrolling_again_cures_a_damaged_profile(folder: Path, damage: str) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    ana, _ = put_all(store, ANA, BO)
    alter(store.path, f"{damage} WHERE {'profile_id' if damage.endswith('exemplar') else 'id'} = ?", ana)
    assert [info.problem[:7] for info in store.list()] == ["damaged", ""]
    store.put(ANA)
    assert store.get("ana") == ANA and store.get("bo") == BO
    assert [info.problem for info in store.list()] == ["", ""]


def test_a_damaged_page_costs_the_profiles_on_it_only(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    names = [f"speaker {number:02}" for number in range(12)]
    for number, name in enumerate(names):
        store.put(sample_profile(name, (number,), dim=256))  # some four to a page
    vectors = select(store.path, "SELECT vector FROM exemplar")
    intact = store.path.read_bytes()
    page = intact.index(vectors[0][0][:64]) // 4096 * 4096
    with store.path.open("r+b") as file:
        file.seek(page)
        file.write(b"\x00")  # no kind of page that SQLite knows
    problems = {info.name: info.problem for info in store.list()}
    damaged = [name for name in names if problems[name]]
    assert 1 <= len(damaged) <= 4 and all(problems[name].startswith("damaged") for name in damaged)
    for number, name in enumerate(names):
        if name in damaged:
            with pytest.raises(SealError, match="cannot be read"):
                store.get(name)
        else:
            assert store.get(name) == sample_profile(name, (number,), dim=256)


def test_a_damaged_log_costs_no_profile(folder: Path) -> None:
    store = ProfileStore(folder / "p.db", KEY)
    store.put(ANA)
    store.put(BO)
    store.remove("bo")
    alter(store.path, "UPDATE store SET log = zeroblob(60) WHERE copy = 1")
    assert [event[:7] for _, event in store.log()] == ["removed"]  # from the other copy
    alter(store.path, "UPDATE store SET log = zeroblob(60)")
    assert store.get("ana") == ANA
    assert [event for _, event in store.log()] == ["what was here before was altered and is lost"]
