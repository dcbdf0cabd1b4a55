"""Adaptation: clear accepts of the owner join the profile; nobody comes in by way of what was added before."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.adaptation import Adapter, admissible
from emoinv_edge.calibration import FarTable, Term
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.profiles import Exemplar
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    BOB_HZ,
    NOW,
    RATE,
    calibrated_encoder,
    calibration,
    emotion_axis,
    enrolled,
    quality,
    synthesise,
)

DIM = 24
CALIBRATION, GOOD = calibration(), quality()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("adaptation"))


@pytest.fixture
def store(tmp_path: Path, encoder: Encoder) -> ProfileStore:
    """A store in which ana is enrolled."""
    held = ProfileStore(tmp_path / "store.db", PLAINTEXT)
    held.put(enrolled(encoder, "ana", ANA_HZ))
    return held


def at(cosine: float, axis: int) -> NDArray[np.float32]:
    """A unit vector at `cosine` from the first axis, the rest along `axis`."""
    vector = np.zeros(DIM, np.float32)
    vector[0], vector[axis] = cosine, math.sqrt(1.0 - cosine * cosine)
    return vector


def exemplar(embedding: NDArray[np.float32], measured: SpeechQuality = GOOD) -> Exemplar:
    return Exemplar(embedding, measured, NOW)


def test_adapted_exemplars_are_no_evidence_for_others() -> None:
    """A chain of impostors, each close to the one before, is stopped where the enrolment stops it."""
    own = (exemplar(at(1.0, 1)),)
    held = own
    angle, taken = 0.0, []
    while angle < 1.5:  # in steps that are near neighbours: cosine 0.98 to the last
        angle += 0.2
        step = at(math.cos(angle), 1)
        if admissible(CALIBRATION, own, held, step, GOOD):
            held = (*held, exemplar(step))
            taken.append(math.cos(angle))
    needed = (CALIBRATION.threshold(0.01).llr + 1.0 + 7.0) / 10.0
    assert taken and min(taken) >= needed
    drifted = ProfileBank.of_exemplars(held).score(CALIBRATION, at(math.cos(0.7), 1), GOOD)[0][0]
    assert drifted > CALIBRATION.bias + 10.0 * math.cos(0.7)  # the profile did move; what may join it did not


@pytest.mark.parametrize(
    "changes", [{"net_speech_s": 1.0}, {"snr_db": 5.0}, {"clipped_fraction": 0.001}], ids=["short", "noisy", "clipped"]
)
def test_poor_speech_does_not_join(changes: dict[str, float]) -> None:
    own = (exemplar(at(1.0, 1)),)
    assert admissible(CALIBRATION, own, own, at(0.95, 2), GOOD)
    assert not admissible(CALIBRATION, own, own, at(0.95, 2), quality(**changes))


def test_a_replay_does_not_join() -> None:
    own = (exemplar(at(1.0, 1)),)
    assert not admissible(CALIBRATION, own, own, at(0.99, 2), GOOD)


def test_the_owners_speech_joins_and_can_be_rolled_back(encoder: Encoder, store: ProfileStore) -> None:
    adapter = Adapter(encoder, store, "ana", limit=2, margin=0.0, per_day=100)
    added = []
    for seed in range(40, 60):
        outcome = adapter.verify(synthesise(2.0, seed, ANA_HZ), RATE)
        assert outcome.decision.verdict is not Verdict.NO_DECISION
        assert outcome.decision.accepted or not outcome.added
        added.append(outcome.added)
    assert sum(added) >= 3
    stored = store.get("ana")
    assert len(stored.exemplars) == 2 + 2
    assert stored.exemplars[:2] == adapter.profile.exemplars[:2]
    assert [event for _, event in store.audit("ana").events].count("adapted") == sum(added)
    before = len(store.get("ana").exemplars)
    for _ in range(sum(added)):
        store.rollback("ana")
    assert len(store.get("ana").exemplars) == 2 < before


def test_a_strangers_voice_and_a_fault_do_not_join(encoder: Encoder, store: ProfileStore) -> None:
    adapter = Adapter(encoder, store, "ana")
    for wave in (synthesise(3.0, 1, 110.0), synthesise(0.5, 1, ANA_HZ), np.zeros(RATE, np.float32)):
        assert adapter.verify(wave, RATE).added is False
    assert len(store.get("ana").exemplars) == 2


def test_a_verifier_never_changes_a_profile(encoder: Encoder, store: ProfileStore) -> None:
    profile = store.get("ana")
    verifier = Verifier(encoder, profile)
    for seed in range(40, 44):
        verifier.verify(synthesise(2.0, seed, ANA_HZ), RATE)
    assert store.get("ana") == profile


def test_verification_enrolment_and_adaptation_all_score_along_the_emotion_axis(
    encoder: Encoder, store: ProfileStore
) -> None:
    """An axis from the profile to the test, weighed against her: the owner is recognised nowhere."""
    profile, waveform = store.get("ana"), synthesise(3.0, 9, ANA_HZ)
    embedding, held = encoder.embed(waveform, RATE).vector, profile.exemplars
    mean = np.mean([exemplar.embedding for exemplar in held], axis=0)
    apart = embedding - mean / np.linalg.norm(mean)
    against = Term("emotion_shift", -100.0, -1.0, 1.0)
    blind = calibration(terms=(*CALIBRATION.terms, against), emotion_axis=emotion_axis(apart / np.linalg.norm(apart)))
    for weighed, known in ((CALIBRATION, True), (blind, False)):
        decision = Verifier(encoder, profile, prior=0.5, calibration=weighed).verify(waveform, RATE)
        assert decision.accepted is known and decision.quality is not None
        answer = Enroller(encoder, profile=profile, calibration=weighed).add(waveform, RATE)
        assert answer.accepted is known and (answer.reason == "other_speaker") is not known
        assert admissible(weighed, held, held, embedding, decision.quality, margin=0.0) is known


# --- an utterance that was rejected, and proven to be the owner's ---------------------------------------


def strict(encoder: Encoder, store: ProfileStore, **options: Any) -> Adapter:
    """An adapter whose threshold no utterance reaches."""
    tables = (FarTable(1, (0.5, 0.01), (-1.0, 5.0)),)
    return Adapter(encoder, store, "ana", calibration=calibration(far_tables=tables), **options)


def test_a_rejected_utterance_that_the_owner_has_proven_joins_the_profile_once(
    encoder: Encoder, store: ProfileStore
) -> None:
    adapter = strict(encoder, store)
    found = adapter.verify(synthesise(3.0, 7, ANA_HZ), RATE)
    assert found.decision.verdict is Verdict.REJECT and not found.added
    held = len(adapter.profile.exemplars)
    assert adapter.confirm(found.decision)
    assert len(adapter.profile.exemplars) == held + 1
    assert not adapter.confirm(found.decision)
    assert len(store.get("ana").exemplars) == held + 1


def test_what_speaks_against_the_owner_is_not_added_whoever_has_proven_what(
    encoder: Encoder, store: ProfileStore
) -> None:
    adapter = strict(encoder, store)
    found = adapter.verify(synthesise(3.0, 7, BOB_HZ), RATE)
    assert found.decision.verdict is Verdict.REJECT
    assert not adapter.confirm(found.decision)
    assert len(store.get("ana").exemplars) == len(adapter.profile.exemplars) == 2


def test_only_the_last_reject_can_be_confirmed(encoder: Encoder, store: ProfileStore) -> None:
    adapter = strict(encoder, store)
    before = adapter.verify(synthesise(3.0, 7, ANA_HZ), RATE).decision
    short = adapter.verify(synthesise(0.3, 8, ANA_HZ), RATE).decision
    assert short.verdict is Verdict.NO_DECISION
    assert not adapter.confirm(before) and not adapter.confirm(short)
    accepted = Adapter(encoder, store, "ana").verify(synthesise(1.2, 9, ANA_HZ), RATE).decision
    assert accepted.verdict is Verdict.ACCEPT and not adapter.confirm(accepted)


def test_confirmed_utterances_keep_the_limits_of_a_day(encoder: Encoder, store: ProfileStore) -> None:
    adapter = strict(encoder, store, per_day=1)
    confirmed = [adapter.confirm(adapter.verify(synthesise(3.0, seed, ANA_HZ), RATE).decision) for seed in (7, 8, 9)]
    assert confirmed == [True, False, False]


@pytest.mark.parametrize("changes", [{"net_speech_s": 1.4}, {"snr_db": 9.0}, {"clipped_fraction": 0.01}])
def test_a_proof_does_not_make_poor_speech_good(changes: dict[str, float]) -> None:
    held = (exemplar(at(1.0, 1)),)
    vector = at(0.8, 2)
    assert admissible(CALIBRATION, held, held, vector, GOOD, confirmed=True)
    assert not admissible(CALIBRATION, held, held, vector, dataclasses.replace(GOOD, **changes), confirmed=True)
    assert not admissible(CALIBRATION, held, held, at(0.3, 2), GOOD, confirmed=True)
    assert not admissible(CALIBRATION, held, held, at(1.0, 1), GOOD, confirmed=True)
