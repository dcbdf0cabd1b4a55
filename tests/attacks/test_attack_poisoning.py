"""Kind 5: what sessions of an impostor can add to a profile has a ceiling."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.adaptation import LIMIT, Adapter, admissible
from emoinv_edge.calibration import Calibration
from emoinv_edge.encoder import Encoder
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.scoring import ADAPTED_GAIN, ADAPTED_SHARE, ProfileBank
from emoinv_edge.store import ProfileStore
from tests.builders import ANA_HZ, NOW, RATE, calibration, profile, quality, synthesise, unit_vectors

FULL = bool(os.environ.get("EMOINV_FULL_PROOFS"))
SPEECH = Path(os.environ.get("EMOINV_SIMULATION_SET", "prepared/crema_d"))  # of `python -m train prepare`
DIM = 64
MODEL = "ab" * 32


def score(held: Profile, embedding: NDArray[np.float32]) -> float:
    return float(ProfileBank([held]).score(calibration(), embedding, quality())[0][0])


def test_adapted_exemplars_carry_at_most_a_third_of_the_weight_and_add_at_most_a_tenth_of_a_nat() -> None:
    own = unit_vectors(1, 0, DIM)[0]
    near = unit_vectors(40, 1, DIM) * 0.4 + own
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    target = near.mean(axis=0) / np.linalg.norm(near.mean(axis=0))
    alone = profile("ana", own, own, model=MODEL)
    for count in (1, 3, 8, 38):
        added = tuple(Exemplar(vector, quality(), NOW) for vector in near[:count].astype(np.float32))
        grown = dataclasses.replace(alone, exemplars=(*alone.exemplars, *added), num_adapted=count)
        at_most = (1.0 - ADAPTED_SHARE) * own + ADAPTED_SHARE * near[:count].mean(axis=0)
        assert ProfileBank([grown]).voice(0) @ own >= own @ at_most / np.linalg.norm(at_most) - 1e-6
        for test in (target, own, -target, *unit_vectors(20, 2, DIM)):
            before, after = score(alone, test.astype(np.float32)), score(grown, test.astype(np.float32))
            assert before - 1e-9 <= after <= before + ADAPTED_GAIN + 1e-9


def test_hundreds_of_sessions_of_the_nearest_voice_raise_what_it_is_accepted_for_by_next_to_nothing(
    encoder: Encoder, store: ProfileStore
) -> None:
    """With the tiny encoder; the long form takes real speech."""
    near = [synthesise(2.0, seed, 1.07 * ANA_HZ) for seed in range(40)]
    first = store.verifier("ana", encoder)
    before = np.mean([bool(first.verify(waveform, RATE)) for waveform in near])
    adapter = Adapter(encoder, store, "ana", margin=0.0, per_day=1000)  # even without these two
    for _ in range(2):
        for waveform in near:
            adapter.verify(waveform, RATE)
    after = np.mean([bool(store.verifier("ana", encoder).verify(waveform, RATE)) for waveform in near])
    assert store.get("ana").num_adapted <= LIMIT and after <= before + 0.1


@pytest.mark.skipif(not (FULL and (SPEECH / "manifest.csv").is_file()), reason="long, and needs a prepared CREMA-D")
def test_no_pair_of_nearest_voices_rises_by_more_than_two_points() -> None:
    from emoinv_edge.utterance import hear
    from train.prepare import PreparedSet

    encoder, prepared = Encoder.default(), PreparedSet(SPEECH)
    clips: dict[str, list[Exemplar]] = {}
    for place, clip in enumerate(prepared.clips):
        heard = hear(encoder, prepared.waveform(place), 16000)
        if heard.embedding is not None and heard.quality is not None:
            exemplar = Exemplar(heard.embedding.vector, heard.quality, NOW)
            clips.setdefault(clip.speaker, []).append(exemplar)
    held = encoder.calibration
    assert held is not None
    rises = []
    for owner, own in clips.items():
        enrolled = tuple(own[:4])
        others = {name: mean_score(held, enrolled, theirs) for name, theirs in clips.items() if name != owner}
        nearest = clips[max(others, key=lambda name: others[name])]
        for share in (1.0, 0.1):  # alone, and one in ten among the owner's own
            rises.append(rise(held, enrolled, own[4:], nearest, share))
    assert max(rises) <= 0.02, sorted(rises)[-5:]


def mean_score(held: Calibration, enrolled: tuple[Exemplar, ...], tests: list[Exemplar]) -> float:
    bank = ProfileBank.of_exemplars(enrolled, held.emotion_axis)
    return float(np.mean([bank.score(held, each.embedding, each.quality)[0][0] for each in tests[:12]]))


def rise(
    held: Calibration, enrolled: tuple[Exemplar, ...], own: list[Exemplar], impostor: list[Exemplar], share: float
) -> float:
    """How much more of the impostor's clips is accepted after 300 sessions than before."""
    threshold, rng = held.threshold(0.01).llr, np.random.default_rng(0)
    adapted: list[Exemplar] = []

    def bank() -> ProfileBank:
        grown = Profile("x", MODEL, (*enrolled, *adapted), NOW, num_adapted=len(adapted))
        return ProfileBank([grown], held.emotion_axis)

    def accepted() -> float:
        now = bank()
        return float(np.mean([now.score(held, e.embedding, e.quality)[0][0] >= threshold for e in impostor]))

    before = accepted()
    for _ in range(300):
        tried = impostor if rng.random() < share else own
        utterance = tried[int(rng.integers(len(tried)))]
        if bank().score(held, utterance.embedding, utterance.quality)[0][0] < threshold:
            continue
        if admissible(held, enrolled, (*enrolled, *adapted), utterance.embedding, utterance.quality):
            adapted = [*adapted, utterance][-LIMIT:]
    return accepted() - before
