"""Verifier: the owner in, others out, the right one of many, and no fault that ever opens the door."""

from __future__ import annotations

import dataclasses
import datetime
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, FarTable, Term
from emoinv_edge.decision import Decision, Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import AudioError, CalibrationError, EmoinvError, EnrolmentError, ModelMismatchError
from emoinv_edge.profiles import Profile
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
    enrolled,
    profile,
    quality,
    synthesise,
    unit_vectors,
)

CALIBRATION, GOOD = calibration(), quality()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("verifier"))


@pytest.fixture(scope="module")
def ana(encoder: Encoder) -> Profile:
    return enrolled(encoder, "ana", ANA_HZ)


@pytest.fixture(scope="module")
def bob(encoder: Encoder) -> Profile:
    return enrolled(encoder, "bob", BOB_HZ)


def refused(decision: Decision, word: str) -> None:
    assert decision.verdict is Verdict.NO_DECISION
    assert decision.score is None
    assert decision.cosine is None
    assert word in decision.reason


def test_the_owner_is_accepted_and_another_voice_rejected(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    own = verifier.verify(synthesise(3.0, 5, ANA_HZ), RATE)
    other = verifier.verify(synthesise(3.0, 5, BOB_HZ), RATE)
    assert own.verdict is Verdict.ACCEPT
    assert own.accepted
    assert other.verdict is Verdict.REJECT
    assert own.score is not None and other.score is not None
    assert own.score > own.threshold > other.score
    assert own.cosine == pytest.approx((own.score + 7.0) / 10.0, abs=1e-6)
    assert own.target_far == 0.01 and own.speaker == "ana" and own.final and not own.extrapolated
    assert own.quality is not None and own.quality.net_speech_s > 2.5
    assert own.quality.log_embedding_norm is not None
    assert (own.start, own.end) == (0, 3 * RATE)


def test_only_accept_is_true() -> None:
    assert [verdict for verdict in Verdict if verdict] == [Verdict.ACCEPT]


@pytest.mark.parametrize("form", ["int16", "int32", "float64", "stereo", "48 kHz"])
def test_every_form_of_audio_gives_the_decision_of_the_same_sound(encoder: Encoder, ana: Profile, form: str) -> None:
    wave = synthesise(3.0, 6, ANA_HZ)
    rate = RATE
    audio: NDArray[Any] = wave
    if form == "int16":
        audio = np.rint(wave * 32767).astype(np.int16)
    elif form == "int32":
        audio = np.rint(wave.astype(np.float64) * 2147483647).astype(np.int32)
    elif form == "float64":
        audio = wave.astype(np.float64)
    elif form == "stereo":
        audio = np.stack((wave, wave), axis=1)
    else:
        audio, rate = synthesise(3.0, 6, ANA_HZ, 48000), 48000
    decision = Verifier(encoder, ana).verify(audio, rate)
    assert decision.verdict is Verdict.ACCEPT


def test_the_waveform_is_left_as_it_was(encoder: Encoder, ana: Profile) -> None:
    wave = synthesise(2.0, 7, ANA_HZ)
    before = wave.copy()
    Verifier(encoder, ana).verify(wave, RATE)
    assert np.array_equal(wave, before)


# --- speech that cannot be judged ---------------------------------------------------------------------


def test_less_than_0_8_s_of_speech_is_no_decision(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    refused(verifier.verify(synthesise(0.5, 1, ANA_HZ), RATE), "too little speech")
    padded = np.concatenate((np.zeros(3 * RATE, np.float32), synthesise(0.4, 1, ANA_HZ), np.zeros(RATE, np.float32)))
    refused(verifier.verify(padded, RATE), "too little speech")
    assert verifier.verify(synthesise(1.2, 1, ANA_HZ), RATE).verdict is not Verdict.NO_DECISION


def test_silence_noise_and_nothing_are_no_decision(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    refused(verifier.verify(np.empty(0, np.float32), RATE), "empty")
    refused(verifier.verify(np.zeros(RATE, np.int16), RATE), "muted")
    faint = (1e-5 * np.random.default_rng(0).standard_normal(3 * RATE)).astype(np.float32)
    assert verifier.verify(faint, RATE).verdict is Verdict.NO_DECISION


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 20000, -1])
def test_one_sample_that_is_not_finite_is_no_decision(
    encoder: Encoder, ana: Profile, poison: float, where: int
) -> None:
    wave = synthesise(3.0, 2, ANA_HZ)
    wave[where] = poison
    refused(Verifier(encoder, ana).verify(wave, RATE), "not finite")


def test_clipped_speech_is_no_decision(encoder: Encoder, ana: Profile) -> None:
    wave = np.clip(synthesise(3.0, 3, ANA_HZ) * 8.0, -1.0, 1.0).astype(np.float32)
    refused(Verifier(encoder, ana).verify(wave, RATE), "clipped")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"net_speech_s": 0.79}, "too little speech"),
        ({"clipped_fraction": 0.021}, "clipped"),
        ({"level_dbfs": -75.5}, "too quiet"),
        ({"snr_db": -0.5}, "too noisy"),
    ],
)
def test_each_limit_of_quality_closes_the_door_on_a_perfect_match(
    encoder: Encoder, ana: Profile, changes: dict[str, float], word: str
) -> None:
    verifier = Verifier(encoder, ana)
    embedding = ana.exemplars[0].embedding
    assert verifier.decide(embedding, GOOD).verdict is Verdict.ACCEPT
    refused(verifier.decide(embedding, dataclasses.replace(GOOD, **changes)), word)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["nan", "inf", "zero", "scaled", "short", "matrix"]),
    scale=st.floats(1.01, 1e6),
    where=st.integers(0, 31),
)
def test_a_broken_embedding_is_never_an_accept(
    encoder: Encoder, ana: Profile, kind: str, scale: float, where: int
) -> None:
    embedding = ana.exemplars[0].embedding.copy()
    if kind in ("nan", "inf"):
        embedding[where] = math.nan if kind == "nan" else math.inf
    elif kind == "zero":
        embedding[:] = 0.0
    elif kind == "scaled":
        embedding *= np.float32(scale)
    elif kind == "short":
        embedding = embedding[:where]
    else:
        embedding = np.stack((embedding, embedding))
    refused(Verifier(encoder, ana).decide(embedding, GOOD), "no score")


def test_a_model_that_fails_on_the_speech_is_no_decision(
    encoder: Encoder, ana: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Encoder, features: NDArray[np.float32]) -> None:
        raise EmoinvError("the embedding is not finite")

    verifier = Verifier(encoder, ana)
    monkeypatch.setattr(Encoder, "embed_features", fail)
    refused(verifier.verify(synthesise(3.0, 4, ANA_HZ), RATE), "no usable embedding")


@pytest.mark.parametrize(
    ("audio", "rate", "error"),
    [
        (np.zeros((2, 2, 2), np.float32), RATE, AudioError),
        (np.ones(RATE, np.complex64), RATE, AudioError),
        (np.ones(RATE, np.float32), 4000, AudioError),
        ([0.0, 0.1], RATE, TypeError),
        (np.full(RATE, 1000.0), RATE, AudioError),
    ],
)
def test_a_fault_of_the_program_is_an_error_not_a_decision(
    encoder: Encoder, ana: Profile, audio: Any, rate: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Verifier(encoder, ana).verify(audio, rate)


# --- what it is built from ----------------------------------------------------------------------------


def test_a_profile_of_another_model_is_refused_with_the_cure(
    encoder: Encoder, ana: Profile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = calibrated_encoder(tmp_path_factory.mktemp("other"), seed=9)
    with pytest.raises(ModelMismatchError, match=r"'ana' was made by model .* enrol again"):
        Verifier(other, ana)


def test_a_model_without_calibration_is_refused(tiny_encoder: Encoder, ana: Profile) -> None:
    own = dataclasses.replace(ana, model_fingerprint=tiny_encoder.fingerprint)
    with pytest.raises(CalibrationError, match="carries no calibration"):
        Verifier(tiny_encoder, own)
    assert Verifier(tiny_encoder, own, calibration=CALIBRATION).calibration is CALIBRATION


def test_a_rate_beyond_the_calibration_needs_extrapolation_and_is_marked(encoder: Encoder, ana: Profile) -> None:
    with pytest.raises(CalibrationError, match="300 impostor speakers"):
        Verifier(encoder, ana, 0.001)
    verifier = Verifier(encoder, ana, 0.001, extrapolate=True)
    assert verifier.threshold.extrapolated
    assert verifier.verify(synthesise(3.0, 5, ANA_HZ), RATE).extrapolated
    assert verifier.threshold.llr > Verifier(encoder, ana, 0.01).threshold.llr


def test_a_prior_and_costs_replace_the_rate(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana, prior=0.01, cost_false_accept=10.0)
    decision = verifier.decide(ana.exemplars[0].embedding, GOOD)
    assert decision.threshold == pytest.approx(math.log(10.0 * 99.0))
    assert decision.target_far is None


def test_without_profiles_there_is_no_verifier(encoder: Encoder, tmp_path: Path) -> None:
    for nobody in ([], ProfileStore(tmp_path / "empty.db", PLAINTEXT)):
        with pytest.raises(EnrolmentError, match="at least one profile"):
            Verifier(encoder, nobody)


def test_several_profiles_name_the_right_one_at_a_stricter_threshold(
    encoder: Encoder, ana: Profile, bob: Profile
) -> None:
    verifier = Verifier(encoder, [ana, bob])
    assert verifier.threshold.llr == 0.5 > Verifier(encoder, ana).threshold.llr
    assert verifier.verify(synthesise(3.0, 5, ANA_HZ), RATE).speaker == "ana"
    assert verifier.verify(synthesise(3.0, 5, BOB_HZ), RATE).speaker == "bob"
    assert verifier.verify(synthesise(3.0, 5, 150.0), RATE).verdict is Verdict.REJECT
    with pytest.raises(CalibrationError, match="up to 2 profiles"):
        Verifier(encoder, [ana, bob, dataclasses.replace(ana, name="carl")])


def test_the_threshold_itself_accepts(encoder: Encoder) -> None:
    """An LLR equal to the threshold accepts, the next smaller one does not."""
    axis = np.zeros(32, np.float32)
    axis[0] = 1.0
    edge = profile("edge", axis, model=encoder.fingerprint)
    exact = dataclasses.replace(CALIBRATION, bias=-10.0, far_tables=(FarTable(1, (0.5, 0.01), (-1.0, 0.0)),))
    assert Verifier(encoder, edge, calibration=exact).decide(axis, GOOD).verdict is Verdict.ACCEPT
    above = dataclasses.replace(exact, bias=float(np.nextafter(-10.0, -11.0)))
    assert Verifier(encoder, edge, calibration=above).decide(axis, GOOD).verdict is Verdict.REJECT


def test_threads_share_one_verifier_and_agree(encoder: Encoder, ana: Profile) -> None:
    verifier = Verifier(encoder, ana)
    waves = [synthesise(1.5, seed, hz) for seed in range(3) for hz in (ANA_HZ, BOB_HZ)]
    expected = [verifier.verify(wave, RATE) for wave in waves]
    found: dict[int, list[Decision]] = {}

    def work(number: int) -> None:
        found[number] = [verifier.verify(wave, RATE) for wave in waves]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == expected for number in range(4))


def test_the_stream_of_a_verifier_decides_as_it_does(encoder: Encoder, ana: Profile) -> None:
    stream = Verifier(encoder, ana).stream(RATE)
    quiet = np.zeros(RATE, np.float32)
    decisions = stream.process(np.concatenate((quiet, synthesise(3.0, 5, ANA_HZ), quiet)))
    assert any(decision.final and decision.accepted for decision in decisions)


# --- many profiles ------------------------------------------------------------------------------------

DIM = 32
# Cosines of unrelated unit vectors in 32 dimensions are nearly normal with deviation 1/sqrt(32).
SIGMA = 1.0 / math.sqrt(DIM)
SLOPE = 20.0


def gaussian_threshold(rate: float, num_profiles: int) -> float:
    """The LLR (here SLOPE x cosine) that the best of `num_profiles` unrelated vectors exceeds at `rate`."""
    each = 1.0 - (1.0 - rate) ** (1.0 / num_profiles)
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 0.5 * math.erfc(middle / math.sqrt(2.0)) > each else (low, middle)
    return SLOPE * SIGMA * high


RATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
MANY = Calibration(
    bias=0.0,
    terms=(Term("cosine", SLOPE, -1.0, 1.0),),
    far_tables=tuple(
        FarTable(count, RATES, tuple(gaussian_threshold(rate, count) for rate in RATES)) for count in (1, 2, 4, 8, 16)
    ),
    num_impostor_speakers=400,
    source="unrelated random vectors",
)


def of_many(encoder: Encoder, embeddings: NDArray[np.float32], target_far: float = 0.01) -> Verifier:
    profiles = [profile(f"speaker {k}", each, model=encoder.fingerprint) for k, each in enumerate(embeddings)]
    return Verifier(encoder, profiles, target_far, extrapolate=True, calibration=MANY)


def test_the_right_one_of_many_is_named(encoder: Encoder) -> None:
    held = unit_vectors(200, 1)
    verifier = of_many(encoder, held)
    assert len(verifier.speakers) == 200
    rng = np.random.default_rng(2)
    for k in rng.integers(0, 200, 20):
        test = held[k] + 0.05 * rng.standard_normal(DIM)
        decision = verifier.decide((test / np.linalg.norm(test)).astype(np.float32), GOOD)
        assert decision.verdict is Verdict.ACCEPT
        assert decision.speaker == f"speaker {k}"


@pytest.mark.parametrize("count", [1, 3, 16, 100, 1000])
def test_strangers_are_accepted_no_more_often_however_many_are_enrolled(encoder: Encoder, count: int) -> None:
    """2,000 strangers at 5 %: 3.5 deviations of the binomial above it would be 6.7 %."""
    verifier = of_many(encoder, unit_vectors(count, 3), 0.05)
    strangers = unit_vectors(2000, 4)
    accepted = sum(verifier.decide(stranger, GOOD).accepted for stranger in strangers)
    assert accepted / 2000 <= 0.067
    assert verifier.threshold.extrapolated == (count > 16)
    if count <= 16:  # measured, so neither stricter than it must be
        assert accepted / 2000 >= 0.02


def test_with_a_thousand_profiles_the_threshold_of_one_would_let_strangers_in(encoder: Encoder) -> None:
    """The test above can fail: without the correction nearly everybody would be somebody."""
    verifier = of_many(encoder, unit_vectors(1000, 3), 0.05)
    single = MANY.threshold(0.05).llr
    scores = [verifier.decide(stranger, GOOD).score or 0.0 for stranger in unit_vectors(200, 5)]
    assert np.mean(np.array(scores) >= single) > 0.5


def test_the_threshold_never_falls_as_profiles_are_added(encoder: Encoder) -> None:
    held = unit_vectors(70, 6)
    thresholds = [of_many(encoder, held[:count]).threshold.llr for count in (1, 2, 3, 8, 9, 16, 17, 40, 70)]
    assert thresholds == sorted(thresholds)


def test_more_profiles_than_measured_need_extrapolation(encoder: Encoder) -> None:
    held = unit_vectors(17, 7)
    profiles = [profile(f"speaker {k}", each, model=encoder.fingerprint) for k, each in enumerate(held)]
    with pytest.raises(CalibrationError, match="up to 16 profiles"):
        Verifier(encoder, profiles, calibration=MANY)
    assert of_many(encoder, held).decide(unit_vectors(1, 8)[0], GOOD).extrapolated


def test_the_profiles_of_a_store_are_compared_but_for_the_expired(encoder: Encoder, tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles.db", PLAINTEXT)
    for name, f0_hz in (("ana", ANA_HZ), ("bob", BOB_HZ)):
        store.put(enrolled(encoder, name, f0_hz, takes=3))
    expired = enrolled(encoder, "eve", 150.0)
    store.put(dataclasses.replace(expired, created=NOW, expires=NOW + datetime.timedelta(seconds=1)))
    verifier = Verifier(encoder, store)
    assert verifier.speakers == ("ana", "bob")
    assert verifier.verify(synthesise(3.0, 9, ANA_HZ), RATE).speaker == "ana"
    assert verifier.verify(synthesise(3.0, 9, BOB_HZ), RATE).speaker == "bob"
    short = verifier.verify(synthesise(0.4, 9, BOB_HZ), RATE)
    assert (short.verdict, short.speaker) == (Verdict.NO_DECISION, "")


def test_a_hundred_thousand_profiles_are_one_matrix_product() -> None:
    count = 100_000
    held = unit_vectors(count, 11)
    bank = ProfileBank.from_arrays([""] * count, held, [GOOD] * count, [1] * count)
    llrs, _ = bank.score(MANY, held[77_777], GOOD)
    assert int(np.argmax(llrs)) == 77_777
    assert float(llrs[77_777]) == pytest.approx(SLOPE, abs=1e-3)
