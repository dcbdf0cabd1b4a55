"""Kind 12: cost does not explode, with the number of profiles or with damaged audio."""

from __future__ import annotations

import os
import sqlite3
import time

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.store import ProfileStore
from emoinv_edge.store.file import StoreFile
from emoinv_edge.verifier import Verifier
from tests.attacks.conftest import KEY
from tests.builders import ANA_HZ, RATE, enrolled, profile, synthesise, unit_vectors

FULL = bool(os.environ.get("EMOINV_FULL_PROOFS"))
MANY = 10_000 if FULL else 600


def filled(store: ProfileStore, count: int, model: str) -> None:
    """So many profiles, put in one transaction: one for each would take its sync to the medium."""
    vectors = unit_vectors(count, 1)
    with StoreFile(store.path, KEY, 30.0).transaction(write=True) as rows:
        for number in range(count):
            rows.enrol(profile(f"guest {number}", vectors[number], model=model), "enrolled")


def fastest(act, times: int = 7) -> float:  # type: ignore[no-untyped-def]
    """CPU time: a sync to a busy medium takes what it takes, whatever is written."""
    found = []
    for _ in range(times):
        started = time.process_time()
        act()
        found.append(time.process_time() - started)
    return min(found)


def test_an_audit_entry_costs_the_same_however_many_profiles_there_are(store: ProfileStore, encoder: Encoder) -> None:
    few = fastest(lambda: store.note_verified("ana", "reject"))
    filled(store, MANY, encoder.fingerprint)
    many = fastest(lambda: store.note_verified("ana", "reject"))
    assert many < 3.0 * few + 0.02, (few, many)


def test_one_to_n_over_a_store_is_read_in_one_go(
    store: ProfileStore, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, MANY, encoder.fingerprint)
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *place, **how: opened.append(how) or connect(*place, **how))
    started = time.perf_counter()
    verifier = Verifier(encoder, store, extrapolate=True)
    assert len(opened) <= 6 and len(verifier.speakers) == MANY + 1
    assert time.perf_counter() - started < 0.01 * MANY + 5.0
    assert verifier.verify(synthesise(3.0, 9, ANA_HZ), RATE).speaker == "ana"


@pytest.mark.parametrize("every", [80, 800, 8000])
def test_samples_damaged_every_now_and_then_make_one_report_a_second(encoder: Encoder, every: int) -> None:
    verifier = Verifier(encoder, enrolled(encoder, "ana", ANA_HZ))
    waveform = synthesise(6.0, 9, ANA_HZ)
    clean = fastest(lambda: run(verifier, waveform), 2)
    waveform[::every] = np.nan
    reports = [decision for decision in run(verifier, waveform) if decision.code == "not_finite"]
    assert 1 <= len(reports) <= 8
    assert fastest(lambda: run(verifier, waveform), 2) < 2.0 * clean + 0.2
    whole = verifier.stream(RATE)
    at_once = [(d.code, d.start, d.end) for d in whole.process(waveform) + whole.flush()]
    assert at_once == [(d.code, d.start, d.end) for d in run(verifier, waveform)]


def run(verifier: Verifier, waveform):  # type: ignore[no-untyped-def]
    stream = verifier.stream(RATE)
    found = []
    for start in range(0, len(waveform), 320):
        found += stream.process(waveform[start : start + 320])
    return found + stream.flush()
