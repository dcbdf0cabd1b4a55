"""A store among foreign files, other writers, read-only media and full disks."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emoinv_edge.errors import SchemaError, StoreError
from emoinv_edge.store import Passphrase, ProfileStore
from tests.store.profile_samples import KEY, adapt_anyhow, sample_exemplar, sample_profile
from tests.store.raw_store import pieces, pieces_of_file, raw_connection, sealed_columns

UTC = datetime.timezone.utc


# -- schema -----------------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_and_left_alone(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with raw_connection(store.path) as db:
        db.execute("PRAGMA user_version = 4")
    before = store.path.read_bytes()
    for act in (store.names, lambda: store.put(sample_profile("bo")), lambda: store.remove("ana")):
        with pytest.raises(SchemaError, match=r"expected schema 2 or 3, got 4; install"):
            act()
    assert store.path.read_bytes() == before


def test_a_current_store_that_claims_to_be_older_is_refused_and_left_alone(store: ProfileStore) -> None:
    store.put(sample_profile("ana"))
    with raw_connection(store.path) as db:
        db.execute("PRAGMA user_version = 2")
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match="expected the tables of schema 2"):
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


# -- media ------------------------------------------------------------------------------------------------------------


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


def test_a_removal_that_cannot_rebuild_the_file_is_reported_and_purge_makes_up_for_it(store: ProfileStore) -> None:
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
                adapt_anyhow(store, "ana", sample_exemplar(number * 10 + turn), limit=1000)
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
        assert card.get("ana") == sample_profile("ana")
        assert card.names() == ["ana"] and card.list()[0].problem == "" and card.audit("ana").events
        changes = (
            lambda: card.put(sample_profile("bo")),
            lambda: card.remove("ana"),
            lambda: card.adapt(card.get("ana"), sample_exemplar(3)),
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
        full.adapt(full.get("ana"), sample_exemplar(3, dim=256))
        (media / "filler").write_bytes(b"")
        fill(media / "filler", leave=0)
        changes = (
            lambda: full.put(sample_profile("bo", tuple(range(40)), dim=256)),
            lambda: full.adapt(full.get("ana"), sample_exemplar(4, dim=256)),
            full.rotate,
            lambda: full.note_verified("ana", "accept"),
            lambda: full.remove("ana"),
        )
        for change in changes:
            with pytest.raises(StoreError, match="nothing was changed"):
                change()
            assert full.get("ana") == sample_profile("ana", (1, 2, 3), dim=256, adapted=1)
        with pytest.raises(StoreError, match="nothing was changed"):
            ProfileStore(media / "new.db", KEY).put(ana)
        assert not (media / "new.db").exists()
        for room in range(0, 200 * 1024, 20 * 1024):  # full at every stage of the work
            fill(media / "filler", leave=room)
            for name, change in (("bo", changes[0]), ("ana", changes[2])):
                try:
                    change()
                except StoreError:
                    assert full.get("ana") == sample_profile("ana", (1, 2, 3), dim=256, adapted=1), (name, room)
            assert full.get("ana") == sample_profile("ana", (1, 2, 3), dim=256, adapted=1)
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
from tests.store.profile_samples import KEY, sample_exemplar, sample_profile
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
        assert store.get("ana") == ana, limit
        assert set(store.names()) <= {"ana", "bo"}
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
assert refused > 10, refused
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no quota for one process")
def test_a_quota_that_is_reached_keeps_what_was_there(folder: Path) -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", QUOTA, tests, tests.parents[1], folder / "p.db"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def fill(path: Path, leave: int) -> None:
    """Fill the file system up to `leave` bytes."""
    path.write_bytes(b"")
    free = os.statvfs(path.parent)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(b"\x00" * max(0, free.f_bavail * free.f_bsize - leave))
