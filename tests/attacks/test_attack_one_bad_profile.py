"""Kind 9: a profile that is damaged, or goes meanwhile, costs itself and nobody else; no lock stops a decision."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
import soundfile

from emoinv_edge.cli import main
from emoinv_edge.device_calibration import Refinement
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError, SealError
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, BOB_HZ, NOW, RATE, enrolled, profile, synthesise, unit_vectors

HERS = synthesise(3.0, 9, ANA_HZ)


def damage(path: Path, name_is_not: int) -> None:
    """Overwrite the profile row whose id is not this one."""
    db = sqlite3.connect(path)
    db.execute("UPDATE profile SET body = zeroblob(60) WHERE id <> ?", (name_is_not,))
    db.commit()
    db.close()


def rows(path: Path) -> set[int]:
    db = sqlite3.connect(path)
    found = {row for (row,) in db.execute("SELECT id FROM profile")}
    db.close()
    return found


@pytest.fixture
def pair(tmp_path: Path, encoder: Encoder) -> ProfileStore:
    """ana is whole, bob is damaged."""
    store = ProfileStore(tmp_path / "p.db", PLAINTEXT)
    store.put(enrolled(encoder, "ana", ANA_HZ))
    (hers,) = rows(store.path)
    store.put(enrolled(encoder, "bob", BOB_HZ))
    damage(store.path, hers)
    return store


def test_a_damaged_profile_is_left_out_and_reported(
    pair: ProfileStore, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = Verifier(encoder, pair)
    assert verifier.verify(HERS, RATE) and verifier.speakers == ("ana",) and list(verifier.left_out) == ["bob"]
    assert "left out" in caplog.text and "'bob'" in caplog.text
    with pytest.raises(SealError):
        pair.verifier("bob", encoder)


def test_identify_goes_on_without_the_damaged_one(
    pair: ProfileStore, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "ana.wav", HERS, RATE)
    words = ["--store", str(pair.path), "--plaintext", "--model", str(encoder.path)]
    assert main(["identify", *words, "--", str(tmp_path / "ana.wav")]) == 0
    assert "left out" in capsys.readouterr().err
    assert main(["identify", *words, "--among", "ana", "bob", "--", str(tmp_path / "ana.wav")]) == 3
    assert main(["verify", *words, "--", "ana", str(tmp_path / "ana.wav")]) == 0
    capsys.readouterr()


def test_one_to_n_objects_are_built_while_profiles_come_and_go(encoder: Encoder, store: ProfileStore) -> None:
    stop, faults = threading.Event(), []

    def churn() -> None:
        other = ProfileStore(store.path, bytes(range(32)))
        number = 0
        while not stop.is_set():
            number += 1
            (vector,) = unit_vectors(1, number)
            other.put(profile(f"guest {number % 3}", vector, model=encoder.fingerprint))
            other.remove(f"guest {number % 3}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            try:
                assert "ana" in Verifier(encoder, store, extrapolate=True).speakers
            except EmoinvError as error:
                faults.append(error)
    finally:
        stop.set()
        thread.join()
    assert faults == []


def test_a_held_lock_stops_no_decision_and_its_record_not_for_long(
    encoder: Encoder, store: ProfileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = store.verifier("ana", encoder)
    assert verifier.verify(HERS, RATE)
    soundfile.write(tmp_path / "ana.wav", HERS, RATE)
    held = ProfileStore(tmp_path / "p.db", PLAINTEXT)
    held.put(store.get("ana"))
    held.verifier("ana", encoder)
    lock = sqlite3.connect(held.path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    words = ["--store", str(held.path), "--plaintext", "--model", str(encoder.path)]
    started = time.monotonic()
    assert main(["verify", *words, "--", "ana", str(tmp_path / "ana.wav")]) == 0
    assert main(["listen", *words, "--file", str(tmp_path / "ana.wav"), "--", "ana"]) == 0
    assert time.monotonic() - started < 15.0
    out, err = capsys.readouterr()
    assert "ACCEPT" in out and err.count("the audit trail was not written") == 2
    lock.execute("ROLLBACK")
    lock.close()
    assert main(["verify", *words, "--", "ana", str(tmp_path / "ana.wav")]) == 0


def test_two_calibrations_at_once_leave_one_of_them_whole(encoder: Encoder, store: ProfileStore) -> None:
    def refinement(shift: float) -> Refinement:
        raises = tuple((rate, abs(shift)) for rate in (0.5, 0.1))
        return Refinement(encoder.fingerprint, shift, raises, 12, 0, NOW, encoder.file_sha256)

    def keep(shift: float) -> None:
        for _ in range(5):
            ProfileStore(store.path, bytes(range(32))).device.keep(refinement(shift))

    threads = [threading.Thread(target=keep, args=(shift,)) for shift in (-1.0, 0.25, 1.5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for found in store.device.refinements().values():
            assert found == refinement(found.shift)
    for thread in threads:
        thread.join()
    assert store.device.refinements() in [{encoder.fingerprint: refinement(shift)} for shift in (-1.0, 0.25, 1.5)]
