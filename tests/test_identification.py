"""Identifier: the right one of many or nobody, and strangers no likelier to enter where more are enrolled."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import CalibrationError, EnrolmentError, ModelMismatchError
from emoinv_edge.identification import Identifier
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import Calibration, FarTable, ProfileBank, Term
from emoinv_edge.sealing import PLAINTEXT
from emoinv_edge.store import ProfileStore
from emoinv_edge.verifier import Verdict
from tests.conftest import build_encoder, synthesise

RATE = 16000
DIM = 32
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
GOOD = SpeechQuality(3.0, 25.0, 0.0, -20.0, 4.8, 0.1, -5.0, 0.7)
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
CALIBRATION = Calibration(
    pooling="centroid",
    bias=0.0,
    terms=(Term("cosine", SLOPE, -1.0, 1.0),),
    far_tables=tuple(
        FarTable(count, RATES, tuple(gaussian_threshold(rate, count) for rate in RATES)) for count in (1, 2, 4, 8, 16)
    ),
    num_impostor_speakers=400,
    source="unrelated random vectors",
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("identification") / "tiny.onnx"
    return Encoder(build_encoder(path, metadata={"emoinv.calibration": json.loads(CALIBRATION.to_json())}))


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def profiles(encoder: Encoder, embeddings: NDArray[np.float32]) -> list[Profile]:
    return [
        Profile(f"speaker {k}", encoder.fingerprint, (Exemplar(embedding, GOOD, NOW),), NOW)
        for k, embedding in enumerate(embeddings)
    ]


def test_the_right_one_of_many_is_named(encoder: Encoder) -> None:
    enrolled = vectors(200, 1)
    identifier = Identifier(encoder, profiles(encoder, enrolled))
    assert len(identifier) == 200
    rng = np.random.default_rng(2)
    for k in rng.integers(0, 200, 20):
        test = enrolled[k] + 0.05 * rng.standard_normal(DIM)
        decision = identifier.verifier.decide((test / np.linalg.norm(test)).astype(np.float32), GOOD)
        assert decision.verdict is Verdict.ACCEPT
        assert decision.speaker == f"speaker {k}"


@pytest.mark.parametrize("count", [1, 3, 16, 100, 1000])
def test_strangers_are_accepted_no_more_often_however_many_are_enrolled(encoder: Encoder, count: int) -> None:
    """2,000 strangers at 5 %: 3.5 deviations of the binomial above it would be 6.7 %."""
    identifier = Identifier(encoder, profiles(encoder, vectors(count, 3)), 0.05)
    strangers = vectors(2000, 4)
    accepted = sum(identifier.verifier.decide(stranger, GOOD).accepted for stranger in strangers)
    assert accepted / 2000 <= 0.067
    assert identifier.threshold.extrapolated == (count > 16)
    if count <= 16:  # measured, so neither stricter than it must be
        assert accepted / 2000 >= 0.02


def test_with_a_thousand_profiles_the_threshold_of_one_would_let_strangers_in(encoder: Encoder) -> None:
    """The test above can fail: without the correction nearly everybody would be somebody."""
    identifier = Identifier(encoder, profiles(encoder, vectors(1000, 3)), 0.05)
    single = CALIBRATION.threshold(0.05).llr
    scores = [identifier.verifier.decide(stranger, GOOD).score or 0.0 for stranger in vectors(200, 5)]
    assert np.mean(np.array(scores) >= single) > 0.5


def test_the_threshold_never_falls_as_profiles_are_added(encoder: Encoder) -> None:
    enrolled = profiles(encoder, vectors(70, 6))
    thresholds = [Identifier(encoder, enrolled[:count]).threshold.llr for count in (1, 2, 3, 8, 9, 16, 17, 40, 70)]
    assert thresholds == sorted(thresholds)


def test_more_profiles_than_measured_need_extrapolation(encoder: Encoder) -> None:
    enrolled = profiles(encoder, vectors(17, 7))
    with pytest.raises(CalibrationError, match="up to 16 profiles"):
        Identifier(encoder, enrolled, extrapolate=False)
    assert Identifier(encoder, enrolled).verifier.decide(vectors(1, 8)[0], GOOD).extrapolated


def test_identification_of_speech_from_a_store(encoder: Encoder, tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles.db", PLAINTEXT)
    for name, f0_hz in (("ana", 210.0), ("bob", 110.0)):
        embeddings = [encoder.embed(synthesise(3.0, seed, f0_hz), RATE) for seed in range(3)]
        exemplars = tuple(Exemplar(embedding, GOOD, NOW) for embedding in embeddings)
        store.put(Profile(name, encoder.fingerprint, exemplars, NOW))
    expired = Profile("eve", encoder.fingerprint, exemplars, NOW, expires=NOW + datetime.timedelta(seconds=1))
    store.put(expired)
    identifier = Identifier(encoder, store)
    assert identifier.names == ("ana", "bob")
    assert identifier.identify(synthesise(3.0, 9, 210.0), RATE).speaker == "ana"
    assert identifier.identify(synthesise(3.0, 9, 110.0), RATE).speaker == "bob"
    short = identifier.identify(synthesise(0.4, 9, 110.0), RATE)
    assert (short.verdict, short.speaker) == (Verdict.NO_DECISION, "")


def test_nobody_enrolled_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    for nobody in ([], ProfileStore(tmp_path / "empty.db", PLAINTEXT)):
        with pytest.raises(EnrolmentError, match="nobody to identify"):
            Identifier(encoder, nobody)


def test_a_profile_of_another_model_is_refused(encoder: Encoder) -> None:
    foreign = dataclasses.replace(profiles(encoder, vectors(1, 0))[0], model_fingerprint="e" * 64)
    with pytest.raises(ModelMismatchError):
        Identifier(encoder, [foreign])


def test_a_hundred_thousand_profiles_are_one_matrix_product() -> None:
    """Against the benchmark, which times it: here that the answer is right and nothing is kept twice."""
    count = 100_000
    enrolled = vectors(count, 11)
    bank = ProfileBank.from_arrays([""] * count, enrolled, [GOOD] * count, [1] * count)
    bank.compact("centroid")
    llrs = CALIBRATION.llr(bank.evidence(enrolled[77_777], GOOD, "centroid"))
    assert int(np.argmax(llrs)) == 77_777
    assert float(llrs[77_777]) == pytest.approx(SLOPE, abs=1e-3)
