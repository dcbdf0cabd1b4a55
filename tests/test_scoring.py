"""ProfileBank: evidence and LLRs of a test against profiles; more like an impostor never means more accepted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.calibration import BANDS, Calibration, Term
from emoinv_edge.errors import EnrolmentError
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank
from tests.builders import calibration, emotion_axis, profile, quality, unit_vectors

DIM = 16
CALIBRATION = calibration(
    terms=(
        Term("cosine", 15.0, -1.0, 1.0),
        Term("f0_above", 2.0, 0.0, 0.9),
        Term("f0_below", -10.0, 0.0, 0.4),
        Term("test_seconds", -0.5, -0.2, 2.0),
        Term("envelope", -4.0, -0.7, 0.5),
    )
)
STEADY = quality(log_f0_mean=5.0)

qualities = st.builds(
    SpeechQuality,
    net_speech_s=st.floats(0.0, 60.0),
    snr_db=st.floats(-10.0, 60.0),
    clipped_fraction=st.floats(0.0, 1.0),
    level_dbfs=st.floats(-120.0, 0.0),
    log_f0_mean=st.none() | st.floats(4.0, 6.5),
    log_f0_std=st.floats(0.0, 1.0),
    tilt_db=st.floats(-60.0, 30.0),
    voiced_fraction=st.floats(0.0, 1.0),
    envelope=st.none() | st.tuples(*[st.floats(-20.0, 20.0)] * 8),
    log_embedding_norm=st.none() | st.floats(-10.0, 10.0),
)


def unit(seed: int) -> NDArray[np.float32]:
    return unit_vectors(1, seed, DIM)[0]


def bank_of(embeddings: NDArray[np.float32], held: list[SpeechQuality], counts: list[int]) -> ProfileBank:
    return ProfileBank.from_arrays([f"s{k}" for k in range(len(counts))], embeddings, held, counts)


def llr(
    embeddings: NDArray[np.float32],
    held: list[SpeechQuality],
    test: NDArray[np.float32],
    measured: SpeechQuality,
    weighed: Calibration = CALIBRATION,
) -> float:
    return float(bank_of(embeddings, held, [len(embeddings)]).score(weighed, test, measured)[0][0])


def towards(anchor: NDArray[np.float32], other: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """A unit vector whose cosine with `anchor` is `value`."""
    rest = other.astype(np.float64) - (other.astype(np.float64) @ anchor) * anchor
    rest /= np.linalg.norm(rest)
    out = value * anchor.astype(np.float64) + math.sqrt(max(0.0, 1.0 - value * value)) * rest
    return (out / np.linalg.norm(out)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(low=st.floats(-1.0, 1.0), high=st.floats(-1.0, 1.0), profile=qualities, test=qualities, seed=st.integers(0, 99))
def test_for_fixed_quality_the_llr_rises_with_the_cosine(
    low: float, high: float, profile: SpeechQuality, test: SpeechQuality, seed: int
) -> None:
    low, high = min(low, high), max(low, high)
    anchor, other = unit(seed), unit(seed + 1000)
    below = llr(anchor[None], [profile], towards(anchor, other, low), test)
    above = llr(anchor[None], [profile], towards(anchor, other, high), test)
    assert above >= below - 1e-5
    if high - low > 1e-3:
        assert above > below


@settings(max_examples=60, deadline=None)
@given(left=qualities, right=qualities, seed=st.integers(0, 99))
def test_swapping_the_sides_leaves_symmetric_evidence_as_it_was(
    left: SpeechQuality, right: SpeechQuality, seed: int
) -> None:
    a, b = unit(seed), unit(seed + 500)
    forth = bank_of(a[None], [left], [1]).evidence(b, right)
    back = bank_of(b[None], [right], [1]).evidence(a, left)
    assert forth["cosine"] == pytest.approx(back["cosine"], abs=1e-6)
    assert forth["envelope"] == pytest.approx(back["envelope"])
    for name in ("f0", "norm"):  # a difference changes its sign, not its size
        assert forth[f"{name}_above"] == pytest.approx(back[f"{name}_below"], abs=1e-9)
        assert forth[f"{name}_below"] == pytest.approx(back[f"{name}_above"], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(profile=qualities, test=qualities, order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_the_order_of_exemplars_does_not_matter(
    profile: SpeechQuality, test: SpeechQuality, order: list[int], seed: int
) -> None:
    exemplars = unit_vectors(4, seed, DIM)
    held = [dataclasses.replace(profile, net_speech_s=float(k + 1)) for k in range(4)]
    straight = llr(exemplars, held, unit(seed + 7), test)
    shuffled = llr(exemplars[order], [held[k] for k in order], unit(seed + 7), test)
    assert straight == pytest.approx(shuffled, abs=1e-4)


SHAPE = quality(net_speech_s=4.0, envelope=(1.0, -2.0, 0.5, 0.0, 3.0, 0.0, -1.0, 0.5))


def moved(by_db: float, seconds: float = 4.0) -> SpeechQuality:
    """`SHAPE` with an envelope so far away."""
    assert SHAPE.envelope is not None
    return dataclasses.replace(SHAPE, net_speech_s=seconds, envelope=(SHAPE.envelope[0] + by_db, *SHAPE.envelope[1:]))


def test_the_further_the_envelope_the_lower_the_llr_as_far_as_calibrated() -> None:
    anchor, test = unit(1), unit(2)
    near, middle, far, further = (llr(anchor[None], [SHAPE], test, moved(db)) for db in (2.0, 5.0, 40.0, 80.0))
    assert near > middle > far == pytest.approx(further)


def test_an_unknown_envelope_favours_neither_side() -> None:
    anchor, test, unknown = unit(1), unit(2), dataclasses.replace(SHAPE, envelope=None)
    without = dataclasses.replace(CALIBRATION, terms=CALIBRATION.terms[:-1])
    expected = llr(anchor[None], [SHAPE], test, SHAPE, without)
    for held, measured in ((unknown, SHAPE), (SHAPE, unknown), (unknown, unknown)):
        assert llr(anchor[None], [held], test, measured) == pytest.approx(expected)
    # Of several exemplars, those of which it is known count.
    pair = bank_of(unit_vectors(2, 1, DIM), [unknown, SHAPE], [2]).evidence(test, moved(9.0))["envelope"]
    assert pair[0] == pytest.approx(math.log(2.0) / (1.0 + 2.0 / 4.0 + 2.0 / 8.0))


def test_a_test_whose_norm_is_lower_than_the_enrolments_is_below() -> None:
    test = unit(2)

    def shift(held: list[float | None], measured: float | None) -> tuple[float, float]:
        enrolled = [dataclasses.replace(SHAPE, log_embedding_norm=value) for value in held]
        bank = bank_of(unit_vectors(len(held), 1, DIM), enrolled, [len(held)])
        found = bank.evidence(test, dataclasses.replace(SHAPE, log_embedding_norm=measured))
        return float(found["norm_above"][0]), float(found["norm_below"][0])

    assert shift([2.0, 3.0], 2.2) == (0.0, pytest.approx(0.3))
    assert shift([2.0, 3.0], 2.6) == (pytest.approx(0.1), 0.0)
    # Of several exemplars, those of which it is known count; unknown on a side, it favours neither.
    assert shift([None, 3.0], 2.2) == (0.0, pytest.approx(0.8))
    assert shift([2.0], None) == shift([None], 2.0) == shift([None, None], None) == (0.0, 0.0)


def test_the_terms_of_a_calibration_are_all_that_its_llr_needs() -> None:
    bank, test = bank_of(unit(1)[None], [SHAPE], [1]), unit(2)
    plain = dataclasses.replace(CALIBRATION, terms=CALIBRATION.terms[:-1])
    assert CALIBRATION.term_names[-1] == "envelope" and "envelope" not in plain.term_names
    for weighed in (CALIBRATION, plain):
        asked = bank.evidence(test, moved(5.0), weighed.term_names)
        assert ("envelope" in asked) is (weighed is CALIBRATION)
        assert np.array_equal(weighed.llr(asked), weighed.llr(bank.evidence(test, moved(5.0))))


def test_the_envelope_of_little_speech_counts_little() -> None:
    anchor, test = unit(1)[None], unit(2)
    found = [
        float(bank_of(anchor, [SHAPE], [1]).evidence(test, moved(9.0, seconds))["envelope"][0])
        for seconds in (0.5, 2.0, 8.0)
    ]
    assert 0.0 < found[0] < found[1] < found[2] < math.log(2.0)


def test_the_cosine_is_that_with_the_mean_of_the_exemplars() -> None:
    exemplars, test = unit_vectors(3, 5, DIM), unit(6)
    mean = exemplars.mean(axis=0)
    found = bank_of(exemplars, [STEADY] * 3, [3]).cosines(test)[0]
    assert found == pytest.approx(float(mean @ test / np.linalg.norm(mean)), abs=1e-6)


def test_a_bank_of_profiles_is_one_of_their_exemplars() -> None:
    embeddings = unit_vectors(3, 8, DIM)
    profiles = [profile("a", *embeddings[:1], model="m"), profile("b", *embeddings[1:], model="m")]
    one, other = ProfileBank(profiles), bank_of(embeddings, [quality()] * 3, [1, 2])
    assert one.names == ("a", "b") and len(one) == 2
    assert np.array_equal(one.score(CALIBRATION, unit(9), STEADY), other.score(CALIBRATION, unit(9), STEADY))


# --- the emotion axis -----------------------------------------------------------------------------------

AXIS = unit(42)
WITH_AXIS = calibration(
    terms=(*CALIBRATION.terms, Term("emotion_shift", 1.5, -0.4, 0.4)), emotion_axis=emotion_axis(AXIS)
)
vectors = st.integers(0, 10_000).map(unit)


def bank_with_axis(*embeddings: NDArray[np.float32]) -> ProfileBank:
    stacked = np.stack(embeddings)
    return ProfileBank.from_arrays(["s"], stacked, [STEADY] * len(stacked), [len(stacked)], WITH_AXIS.emotion_axis)


@settings(max_examples=80, deadline=None)
@given(left=vectors, right=vectors)
def test_swapping_profile_and_test_turns_the_shift_and_nothing_else(
    left: NDArray[np.float32], right: NDArray[np.float32]
) -> None:
    there, back = (bank_with_axis(held).evidence(test, STEADY) for held, test in ((left, right), (right, left)))
    assert there["emotion_shift"][0] == pytest.approx(AXIS @ (right - left), abs=1e-5)
    for name, values in there.items():
        expected = (-1.0 if name == "emotion_shift" else 1.0) * values[0]
        assert back[name][0] == pytest.approx(expected, abs=1e-5, nan_ok=name in BANDS), name


@settings(max_examples=60, deadline=None)
@given(held=vectors, test=vectors)
def test_an_emotion_buys_no_more_than_the_calibration_speech_showed(
    held: NDArray[np.float32], test: NDArray[np.float32]
) -> None:
    bank, plain = bank_with_axis(held), dataclasses.replace(WITH_AXIS, terms=CALIBRATION.terms)
    bought = bank.score(WITH_AXIS, test, STEADY)[0][0] - bank.score(plain, test, STEADY)[0][0]
    assert abs(bought) <= 1.5 * 0.4 + 1e-9


def test_a_bank_of_another_calibration_is_not_scored() -> None:
    plain = bank_of(unit(1)[None], [STEADY], [1])
    for bank, weighed in ((plain, WITH_AXIS), (bank_with_axis(unit(1)), CALIBRATION)):
        with pytest.raises(ValueError, match="make it anew"):
            bank.score(weighed, unit(2), STEADY)
    llrs, cosines = plain.score(CALIBRATION, unit(2), STEADY)
    evidence = plain.evidence(unit(2), STEADY)
    assert np.array_equal(llrs, CALIBRATION.llr(evidence)) and np.array_equal(cosines, evidence["cosine"])
    assert evidence["emotion_shift"][0] == 0.0


def test_an_axis_of_embeddings_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{DIM - 1} numbers, got {DIM}"):
        ProfileBank.from_arrays(["s"], unit_vectors(1, 0, DIM - 1), [STEADY], [1], WITH_AXIS.emotion_axis)


# --- what is not scored ---------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", ["nan", "inf", "zero", "long", "size", "not unit"])
def test_a_broken_test_embedding_gets_no_score(poison: str) -> None:
    anchor = unit(1)
    test = {
        "nan": np.where(np.arange(DIM) == 3, np.float32(math.nan), anchor),
        "inf": np.where(np.arange(DIM) == 3, np.float32(math.inf), anchor),
        "zero": np.zeros(DIM, np.float32),
        "long": anchor * np.float32(3.0),
        "size": np.ones(DIM // 2, np.float32) / np.float32(math.sqrt(DIM // 2)),
        "not unit": anchor * np.float32(0.5),
    }[poison].astype(np.float32)
    with pytest.raises(ValueError, match="expected an embedding"):
        llr(anchor[None], [STEADY], test, STEADY)


def test_a_bank_without_profiles_cannot_be_made() -> None:
    with pytest.raises(EnrolmentError, match="at least one profile"):
        ProfileBank([])
    with pytest.raises(ValueError, match="above 0"):
        bank_of(unit(0)[None], [], [])
