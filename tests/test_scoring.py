"""Calibration: LLRs that rise with the cosine, thresholds that keep their rate, files read strictly."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.errors import CalibrationError, EnrolmentError, ModelFormatError
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import (
    POOLINGS,
    SHARPNESS,
    TERMS,
    Calibration,
    FarTable,
    Moods,
    ProfileBank,
    Term,
    bayes_threshold,
    cosine,
)

DIM = 16
RATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CALIBRATION = Calibration(
    pooling="centroid",
    bias=-5.0,
    terms=(
        Term("cosine", 15.0, -1.0, 1.0),
        Term("f0_above", 2.0, 0.0, 0.9),
        Term("f0_below", -10.0, 0.0, 0.4),
        Term("test_seconds", -0.5, -0.2, 2.0),
        Term("snr", 0.02, 0.0, 40.0),
        Term("envelope", -4.0, -0.7, 0.5),
    ),
    far_tables=(
        FarTable(1, RATES, (-4.0, -2.0, -1.0, 0.0, 1.0, 1.8)),
        FarTable(8, RATES, (-2.0, -0.5, 0.5, 1.2, 2.5, 3.0)),
    ),
    num_impostor_speakers=400,
    source="invented for the tests",
)

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


def unit(seed: int, count: int | None = None) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count or 1, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors if count else vectors[0]).astype(np.float32)


def bank_of(embeddings: NDArray[np.float32], held: list[SpeechQuality], counts: list[int]) -> ProfileBank:
    return ProfileBank.from_arrays([f"s{k}" for k in range(len(counts))], embeddings, held, counts)


def llr(
    embeddings: NDArray[np.float32],
    held: list[SpeechQuality],
    test: NDArray[np.float32],
    quality: SpeechQuality,
    calibration: Calibration = CALIBRATION,
) -> float:
    bank = bank_of(embeddings, held, [len(embeddings)])
    return float(calibration.llr(bank.evidence(test, quality, calibration.pooling))[0])


def towards(anchor: NDArray[np.float32], other: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """A unit vector whose cosine with `anchor` is `value`."""
    rest = other.astype(np.float64) - (other.astype(np.float64) @ anchor) * anchor
    rest /= np.linalg.norm(rest)
    out = value * anchor.astype(np.float64) + math.sqrt(max(0.0, 1.0 - value * value)) * rest
    return (out / np.linalg.norm(out)).astype(np.float32)


# --- the LLR ----------------------------------------------------------------------------------------


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


@settings(max_examples=80, deadline=None)
@given(pooling=st.sampled_from(POOLINGS), seed=st.integers(0, 999), step=st.floats(0.0, 0.5), data=st.data())
def test_more_impostor_like_never_means_more_accepted(
    pooling: str, seed: int, step: float, data: st.DataObject
) -> None:
    """Lowering the similarity to every exemplar, or to one of them, never raises the pooled cosine."""
    rng = np.random.default_rng(seed)
    count = data.draw(st.integers(1, 5))
    # Orthogonal exemplars, so that the similarity to each can be moved alone; the rest goes to a spare axis.
    axes = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].T.astype(np.float32)
    exemplars, spare = axes[:count], axes[-1]
    similar = rng.uniform(-0.4, 0.4, count)
    lowered = similar - step * rng.integers(0, 2, count)
    lowered = np.maximum(lowered, -0.42)
    quality = [SpeechQuality(float(s), 30.0, 0.0, -20.0, 4.8, 0.1, -5.0, 0.5) for s in rng.uniform(1, 9, count)]
    bank = bank_of(exemplars, quality, [count])

    def pooled(values: NDArray[np.float64]) -> float:
        test = values @ exemplars + math.sqrt(1.0 - float(values @ values)) * spare
        return float(bank.cosines(test.astype(np.float32), pooling)[0])

    assert pooled(lowered) <= pooled(similar) + 1e-6


@settings(max_examples=60, deadline=None)
@given(left=qualities, right=qualities, seed=st.integers(0, 99))
def test_swapping_the_sides_leaves_symmetric_evidence_as_it_was(
    left: SpeechQuality, right: SpeechQuality, seed: int
) -> None:
    a, b = unit(seed), unit(seed + 500)
    forth = bank_of(a[None], [left], [1]).evidence(b, right, "centroid")
    back = bank_of(b[None], [right], [1]).evidence(a, left, "centroid")
    assert forth["cosine"] == pytest.approx(back["cosine"], abs=1e-6)
    for name in ("snr", "f0_unknown", "exemplars", "envelope"):
        assert forth[name] == pytest.approx(back[name])
    assert forth["f0_shift"] == pytest.approx(-back["f0_shift"], abs=1e-9)
    for name in ("f0", "f0_spread", "tilt", "norm"):  # a difference changes its sign, not its size
        assert forth[f"{name}_above"] == pytest.approx(back[f"{name}_below"], abs=1e-9)
        assert forth[f"{name}_below"] == pytest.approx(back[f"{name}_above"], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(profile=qualities, test=qualities, order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_the_order_of_exemplars_does_not_matter(
    profile: SpeechQuality, test: SpeechQuality, order: list[int], seed: int
) -> None:
    exemplars = unit(seed, 4)
    held = [dataclasses.replace(profile, net_speech_s=float(k + 1)) for k in range(4)]
    for pooling in POOLINGS:
        calibration = dataclasses.replace(CALIBRATION, pooling=pooling)
        straight = llr(exemplars, held, unit(seed + 7), test, calibration)
        shuffled = llr(exemplars[order], [held[k] for k in order], unit(seed + 7), test, calibration)
        assert straight == pytest.approx(shuffled, abs=1e-4)


def test_quality_beyond_the_calibrated_range_saturates() -> None:
    anchor, test = unit(1), unit(2)
    base = SpeechQuality(3.0, 20.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6)
    higher = [llr(anchor[None], [base], test, dataclasses.replace(base, log_f0_mean=5.0 + d)) for d in (0.5, 0.9, 1.4)]
    assert higher[0] < higher[1] == pytest.approx(higher[2])


SHAPE = SpeechQuality(4.0, 20.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6, (1.0, -2.0, 0.5, 0.0, 3.0, 0.0, -1.0, 0.5))


def moved(by_db: float, seconds: float = 4.0) -> SpeechQuality:
    """`SHAPE` with an envelope so far away."""
    assert SHAPE.envelope is not None
    return dataclasses.replace(SHAPE, net_speech_s=seconds, envelope=(SHAPE.envelope[0] + by_db, *SHAPE.envelope[1:]))


def test_the_further_the_envelope_the_lower_the_llr_as_far_as_calibrated() -> None:
    anchor, test = unit(1), unit(2)
    near, middle, far, further = (llr(anchor[None], [SHAPE], test, moved(db)) for db in (2.0, 5.0, 40.0, 80.0))
    assert near > middle > far == pytest.approx(further)


def test_an_unknown_envelope_speaks_for_neither_side() -> None:
    anchor, test, unknown = unit(1), unit(2), dataclasses.replace(SHAPE, envelope=None)
    without = dataclasses.replace(CALIBRATION, terms=CALIBRATION.terms[:-1])
    expected = llr(anchor[None], [SHAPE], test, SHAPE, without)
    for held, measured in ((unknown, SHAPE), (SHAPE, unknown), (unknown, unknown)):
        assert llr(anchor[None], [held], test, measured) == pytest.approx(expected)
    # Of several exemplars, those of which it is known speak.
    pair = bank_of(unit(1, 2), [unknown, SHAPE], [2]).evidence(test, moved(9.0), "centroid")["envelope"]
    assert pair[0] == pytest.approx(math.log(2.0) / (1.0 + 2.0 / 4.0 + 2.0 / 8.0))


def test_a_test_that_the_encoder_knows_less_well_than_the_enrolment_is_below() -> None:
    test = unit(2)

    def shift(held: list[float | None], measured: float | None) -> tuple[float, float]:
        enrolled = [dataclasses.replace(SHAPE, log_embedding_norm=value) for value in held]
        bank = bank_of(unit(1, len(held)), enrolled, [len(held)])
        found = bank.evidence(test, dataclasses.replace(SHAPE, log_embedding_norm=measured), "centroid")
        return float(found["norm_above"][0]), float(found["norm_below"][0])

    assert shift([2.0, 3.0], 2.2) == (0.0, pytest.approx(0.3))
    assert shift([2.0, 3.0], 2.6) == (pytest.approx(0.1), 0.0)
    # Of several exemplars, those of which it is known speak; unknown on a side, it speaks for neither.
    assert shift([None, 3.0], 2.2) == (0.0, pytest.approx(0.8))
    assert shift([2.0], None) == shift([None], 2.0) == shift([None, None], None) == (0.0, 0.0)


def test_the_terms_of_a_calibration_are_all_that_its_llr_needs() -> None:
    bank, test = bank_of(unit(1)[None], [SHAPE], [1]), unit(2)
    plain = dataclasses.replace(CALIBRATION, terms=CALIBRATION.terms[:-1])
    assert CALIBRATION.term_names[-1] == "envelope" and "envelope" not in plain.term_names
    for calibration in (CALIBRATION, plain):
        asked = bank.evidence(test, moved(5.0), "centroid", calibration.term_names)
        assert ("envelope" in asked) is (calibration is CALIBRATION)
        assert np.array_equal(calibration.llr(asked), calibration.llr(bank.evidence(test, moved(5.0), "centroid")))


def test_the_envelope_of_little_speech_says_little() -> None:
    anchor, test = unit(1)[None], unit(2)
    found = [
        float(bank_of(anchor, [SHAPE], [1]).evidence(test, moved(9.0, seconds), "centroid")["envelope"][0])
        for seconds in (0.5, 2.0, 8.0)
    ]
    assert 0.0 < found[0] < found[1] < found[2] < math.log(2.0)


def test_the_llr_is_the_sum_that_the_calibration_says() -> None:
    anchor = unit(3)
    profile = SpeechQuality(4.0, 30.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6)
    test = SpeechQuality(2.0, 25.0, 0.0, -20.0, 4.8, 0.1, -5.0, 0.6)
    value = llr(anchor[None], [profile], towards(anchor, unit(4), 0.6), test)
    assert value == pytest.approx(-5.0 + 15.0 * 0.6 - 10.0 * 0.2 - 0.5 * math.log(2.0) + 0.02 * 25.0, abs=1e-4)


def test_a_linear_pooling_is_the_mean_of_the_cosines_it_claims_to_be() -> None:
    exemplars, test = unit(5, 3), unit(6)
    held = [SpeechQuality(s, 30.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6) for s in (1.0, 4.0, 9.0)]
    each = exemplars @ test
    bank = bank_of(exemplars, held, [3])
    centroid = exemplars.mean(axis=0)
    assert bank.cosines(test, "mean")[0] == pytest.approx(each.mean(), abs=1e-6)
    assert bank.cosines(test, "max")[0] == pytest.approx(each.max(), abs=1e-6)
    assert bank.cosines(test, "centroid")[0] == pytest.approx(cosine(centroid, test), abs=1e-6)
    assert bank.cosines(test, "quality")[0] == pytest.approx(float(each @ [1, 2, 3]) / 6.0, abs=1e-6)
    assert each.mean() < bank.cosines(test, "smooth_max")[0] < each.max()


def test_a_compact_bank_scores_the_same_and_refuses_what_it_dropped() -> None:
    exemplars = unit(8, 6)
    held = [SpeechQuality(2.0, 30.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6)] * 6
    whole, small = bank_of(exemplars, held, [1, 2, 3]), bank_of(exemplars, held, [1, 2, 3])
    small.compact("centroid")
    assert np.array_equal(whole.cosines(unit(9), "centroid"), small.cosines(unit(9), "centroid"))
    for pooling in ("max", "mean"):
        with pytest.raises(ValueError, match="compact"):
            small.cosines(unit(9), pooling)


# --- what moods do --------------------------------------------------------------------------------------

ROWS = np.linalg.qr(np.random.default_rng(42).standard_normal((DIM, 3)))[0].T.astype("<f4")
AXIS = (ROWS.T @ np.array([0.6, 0.0, -0.8])).astype("<f4")
SHARES = (1.0, 0.25, 0.6)
MOODS = Moods(ROWS.tobytes(), SHARES, AXIS.tobytes())
MOODY = dataclasses.replace(
    CALIBRATION, moods=MOODS, terms=(*CALIBRATION.terms, Term("mood_shift", 1.5, -0.4, 0.4))
)
STEADY = SpeechQuality(3.0, 30.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6)
vectors = st.integers(0, 10_000).map(lambda seed: unit(seed))


def without_shares(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(left @ right - np.sum(np.array(SHARES) * (ROWS @ left) * (ROWS @ right)))


@settings(max_examples=80, deadline=None)
@given(pooling=st.sampled_from(POOLINGS), seed=st.integers(0, 999), count=st.integers(1, 4))
def test_what_two_voices_share_in_a_mood_counts_for_less(pooling: str, seed: int, count: int) -> None:
    exemplars, test = unit(seed, count), unit(seed + 5000)
    bank = ProfileBank.from_arrays(["s"], exemplars, [STEADY] * count, [count], MOODS)
    each = [without_shares(exemplar, test) for exemplar in exemplars]
    mean = exemplars.mean(axis=0)
    expected = {
        "centroid": without_shares(mean / np.linalg.norm(mean), test),
        "mean": np.mean(each),
        "quality": np.mean(each),  # of one length all
        "max": max(each),
        "smooth_max": np.log(np.mean(np.exp(SHARPNESS * np.array(each)))) / SHARPNESS,
    }
    assert bank.cosines(test, pooling)[0] == pytest.approx(expected[pooling], abs=1e-5)


@settings(max_examples=80, deadline=None)
@given(left=vectors, right=vectors)
def test_swapping_profile_and_test_turns_the_shift_and_nothing_else(
    left: NDArray[np.float32], right: NDArray[np.float32]
) -> None:
    there, back = (
        ProfileBank.from_arrays(["s"], held[None], [STEADY], [1], MOODS).evidence(test, STEADY, "centroid")
        for held, test in ((left, right), (right, left))
    )
    assert there["mood_shift"][0] == pytest.approx(AXIS @ (right - left), abs=1e-5)
    for name, values in there.items():
        assert back[name][0] == pytest.approx((-1.0 if name == "mood_shift" else 1.0) * values[0], abs=1e-5), name


@settings(max_examples=80, deadline=None)
@given(held=vectors, test=vectors)
def test_no_cosine_without_shares_leaves_the_range_of_cosines(
    held: NDArray[np.float32], test: NDArray[np.float32]
) -> None:
    bank = ProfileBank.from_arrays(["s"], held[None], [STEADY], [1], MOODS)
    own, other = bank.cosines(held, "centroid")[0], bank.cosines(test, "centroid")[0]
    assert -1.0 <= other <= 1.0 and 0.0 <= own <= 1.0 + 1e-6


def test_a_mood_that_is_taken_out_whole_moves_no_cosine() -> None:
    whole = Moods(ROWS.tobytes(), (1.0, 1.0, 1.0), AXIS.tobytes())
    bank = ProfileBank.from_arrays(["s"], unit(1, 2), [STEADY] * 2, [2], whole)
    voice = unit(2) - (unit(2) @ ROWS.T) @ ROWS
    for mood in ((0.0, 0.0, 0.0), (0.9, 0.0, 0.1), (-0.3, 1.2, 0.4)):
        moved = voice + np.asarray(mood, np.float32) @ ROWS
        length = np.linalg.norm(moved)
        found = bank.cosines((moved / length).astype(np.float32), "centroid")[0] * length
        assert found == pytest.approx(float(bank.cosines(unit(2), "centroid")[0]), abs=1e-5)


def test_an_embedding_that_is_nothing_but_mood_is_never_accepted() -> None:
    mood = (ROWS[0] + np.float32(1e-7) * unit(3)).astype(np.float32)
    bank = ProfileBank.from_arrays(["s"], mood[None], [STEADY], [1], MOODS)
    llrs, cosines = MOODY.score(bank, mood, STEADY)
    assert abs(cosines[0]) < 0.01
    assert llrs[0] < MOODY.threshold(0.5).llr


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_mood_buys_no_more_than_the_calibration_speech_showed(seed: int) -> None:
    held, test = unit(seed), unit(seed + 5000)
    bank = ProfileBank.from_arrays(["s"], held[None], [STEADY], [1], MOODS)
    plain = dataclasses.replace(MOODY, terms=CALIBRATION.terms)
    assert abs(MOODY.score(bank, test, STEADY)[0][0] - plain.score(bank, test, STEADY)[0][0]) <= 1.5 * 0.4 + 1e-9


def test_a_bank_of_another_calibration_is_not_scored() -> None:
    exemplars = unit(1, 2)
    plain = bank_of(exemplars, [STEADY] * 2, [2])
    with pytest.raises(ValueError, match="make it anew"):
        MOODY.score(plain, unit(2), STEADY)
    beside = ProfileBank.from_arrays(["s"], exemplars, [STEADY] * 2, [2], MOODS)
    with pytest.raises(ValueError, match="make it anew"):
        CALIBRATION.score(beside, unit(2), STEADY)
    llrs, cosines = CALIBRATION.score(plain, unit(2), STEADY)
    evidence = plain.evidence(unit(2), STEADY, CALIBRATION.pooling)
    assert np.array_equal(llrs, CALIBRATION.llr(evidence)) and np.array_equal(cosines, evidence["cosine"])
    assert evidence["mood_shift"][0] == 0.0


def test_a_compact_bank_knows_where_its_profiles_lie_among_the_moods() -> None:
    whole, small = (ProfileBank.from_arrays(["s", "t"], unit(4, 5), [STEADY] * 5, [2, 3], MOODS) for _ in range(2))
    small.compact("centroid")
    there, here = (bank.evidence(unit(6), STEADY, "centroid") for bank in (whole, small))
    assert all(np.array_equal(there[name], here[name]) for name in there)


def test_moods_survive_the_file_and_files_without_them_are_as_before() -> None:
    assert Calibration.from_json(MOODY.to_json()) == MOODY
    before = json.loads(CALIBRATION.to_json())
    assert before["format"] == 1 and "moods" not in before
    assert Calibration.from_json(CALIBRATION.to_json()).moods is None
    assert json.loads(MOODY.to_json())["format"] == 2


DAMAGED: list[tuple[str, Any]] = [
    ("directions", value) for value in ("!", "AAA=", 7, None, ["AAAA"], "AADAfw==", "")
] + [("axis", "AADAfw=="), ("axis", 1), ("axis", base64.b64encode(2 * AXIS).decode()), ("shares", "all")]
DAMAGED += [("shares", list(shares)) for shares in ((), (0.5, 0.5), (0.5, 0.5, 1.1), (0.5, 0.5, -0.1), (1.0, 1.0, "1"))]
DAMAGED += [
    ("directions", base64.b64encode(rows.astype("<f4").tobytes()).decode())
    for rows in (2.0 * ROWS, np.stack([ROWS[0], ROWS[0], ROWS[1]]), np.zeros((3, DIM)), ROWS[:, : DIM - 1])
]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_damaged_moods_are_refused(key: str, value: Any) -> None:
    values = json.loads(MOODY.to_json())
    with pytest.raises(ModelFormatError, match=r"moods|shares"):
        Calibration.from_json(json.dumps(values | {"moods": values["moods"] | {key: value}}))


def test_moods_that_lack_a_key_or_belong_to_other_embeddings_are_refused() -> None:
    values = json.loads(MOODY.to_json())
    for moods in ({}, [], "none", {"directions": values["moods"]["directions"]}):
        with pytest.raises(ModelFormatError, match="moods"):
            Calibration.from_json(json.dumps(values | {"moods": moods}))
    with pytest.raises(ModelFormatError, match="mood_shift"):
        Calibration.from_json(json.dumps(values | {"moods": None}))
    with pytest.raises(ValueError, match=f"{DIM - 1} numbers, got {DIM}"):
        ProfileBank.from_arrays(["s"], unit(0, 1)[:, : DIM - 1], [STEADY], [1], MOODS)


@pytest.mark.parametrize("poison", ["nan", "inf", "zero", "long", "size", "not unit"])
def test_a_broken_test_embedding_gets_no_score(poison: str) -> None:
    anchor = unit(1)
    quality = SpeechQuality(3.0, 20.0, 0.0, -20.0, 5.0, 0.1, -5.0, 0.6)
    test = {
        "nan": np.where(np.arange(DIM) == 3, np.float32(math.nan), anchor),
        "inf": np.where(np.arange(DIM) == 3, np.float32(math.inf), anchor),
        "zero": np.zeros(DIM, np.float32),
        "long": anchor * np.float32(3.0),
        "size": np.ones(DIM // 2, np.float32) / np.float32(math.sqrt(DIM // 2)),
        "not unit": anchor * np.float32(0.5),
    }[poison].astype(np.float32)
    with pytest.raises(ValueError, match="expected an embedding"):
        llr(anchor[None], [quality], test, quality)


def test_evidence_that_is_not_finite_gives_no_llr() -> None:
    evidence = {name: np.array([0.5, math.nan if name == "snr" else 0.0]) for name in TERMS}
    with pytest.raises(ValueError, match="'snr' is not finite"):
        CALIBRATION.llr(evidence)


def test_a_bank_without_profiles_cannot_be_made() -> None:
    with pytest.raises(EnrolmentError, match="at least one profile"):
        ProfileBank([])
    with pytest.raises(ValueError, match="above 0"):
        bank_of(unit(0, 1), [], [])


@pytest.mark.parametrize("broken", [np.zeros(DIM, np.float32), np.full(DIM, np.nan, np.float32)])
def test_a_zero_or_nan_vector_has_no_cosine(broken: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="finite embeddings other than zero"):
        cosine(unit(0), broken)
    with pytest.raises(ValueError, match="one shape"):
        cosine(unit(0), unit(0)[:4])


# --- thresholds -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(first=st.floats(0.0075, 0.9), second=st.floats(0.0075, 0.9), count=st.integers(1, 8))
def test_a_lower_rate_or_more_profiles_never_lower_the_threshold(first: float, second: float, count: int) -> None:
    low, high = sorted((max(first, 0.01), max(second, 0.01)))
    assert CALIBRATION.threshold(low, count).llr >= CALIBRATION.threshold(high, count).llr
    assert CALIBRATION.threshold(low, 8).llr >= CALIBRATION.threshold(low, 1).llr


def test_tabulated_rates_give_tabulated_thresholds() -> None:
    for rate, expected in zip(RATES, CALIBRATION.far_tables[0].thresholds, strict=True):
        found = CALIBRATION.threshold(rate)
        assert found.llr == pytest.approx(expected)
        assert not found.extrapolated


def test_an_unsupported_rate_is_refused_with_the_number() -> None:
    few = dataclasses.replace(CALIBRATION, num_impostor_speakers=200)
    with pytest.raises(CalibrationError, match=r"200 impostor speakers.*0\.015.*rule of three"):
        few.threshold(0.01)
    with pytest.raises(CalibrationError, match="400 impostor speakers"):
        CALIBRATION.threshold(0.001)
    with pytest.raises(CalibrationError, match="up to 8 profiles"):
        CALIBRATION.threshold(0.01, 9)


@settings(max_examples=80, deadline=None)
@given(rate=st.floats(1e-6, 0.4), count=st.integers(1, 100_000))
def test_extrapolation_is_marked_and_stricter_than_both_tails(rate: float, count: int) -> None:
    found = CALIBRATION.threshold(rate, count, extrapolate=True)
    supported = rate >= 0.01 and count <= 8
    assert found.extrapolated == (not supported)
    if count > 8:
        assert found.llr >= CALIBRATION.threshold(max(rate, 0.01), 8).llr - 1e-9
        assert CALIBRATION.threshold(rate, 2 * count, extrapolate=True).llr >= found.llr
    if rate < 0.0075:  # a calibrated LLR obeys P(LLR >= t | impostor) <= exp(-t)
        assert found.llr >= -math.log(rate) - 1e-9


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        CALIBRATION.threshold(rate, extrapolate=True)


def test_bayes_thresholds_follow_prior_and_costs() -> None:
    assert bayes_threshold(0.5) == 0.0
    assert bayes_threshold(0.01) == pytest.approx(math.log(99))
    assert bayes_threshold(0.5, cost_miss=1.0, cost_false_accept=10.0) == pytest.approx(math.log(10))
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="prior"):
            bayes_threshold(wrong)
    with pytest.raises(ValueError, match="cost_miss"):
        bayes_threshold(0.5, cost_miss=0.0)


# --- the file format --------------------------------------------------------------------------------


def test_a_calibration_survives_its_json() -> None:
    assert Calibration.from_json(CALIBRATION.to_json()) == CALIBRATION


def changed(**changes: Any) -> str:
    values = json.loads(CALIBRATION.to_json())
    for path, value in changes.items():
        *parents, last = path.split("__")
        entry = values
        for key in parents:
            entry = entry[int(key) if key.isdigit() else key]
        if value is ...:
            del entry[last]
        else:
            entry[int(last) if last.isdigit() else last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "format 1 or 2, got 3"),
        ({"format": ...}, "format 1 or 2, got None"),
        ({"bias": ...}, "'bias' is missing"),
        ({"surprise": 1}, "'surprise' is unknown"),
        ({"bias": math.nan}, "bias should be a finite number"),
        ({"bias": "3"}, "bias should be a finite number"),
        ({"pooling": "attention"}, "pooling should be one of"),
        ({"terms": []}, "at least the term 'cosine'"),
        ({"terms": {}}, "terms should be a list"),
        ({"terms__0__name": "snr"}, "each term should appear once"),
        ({"terms__0__name": "magic"}, "'cosine' is missing"),
        ({"terms__1__name": "magic"}, "'magic' is unknown"),
        ({"terms__0__weight": -1.0}, "weight of 'cosine' should be above 0"),
        ({"terms__0__weight": 0.0}, "weight of 'cosine' should be above 0"),
        ({"terms__1__low": 5.0}, "low <= high"),
        ({"terms__1__weight": math.inf}, "finite numbers"),
        ({"terms__1__extra": 1}, "'extra' is unknown"),
        ({"num_impostor_speakers": 0}, "count of at least 1"),
        ({"num_impostor_speakers": True}, "count of at least 1"),
        ({"num_impostor_speakers": 3.5}, "count of at least 1"),
        ({"source": 3}, "source should be text"),
        ({"far_tables": []}, "from 1"),
        ({"far_tables__0__num_profiles": 2}, "from 1"),
        ({"far_tables__1__num_profiles": 1}, "from 1"),
        ({"far_tables__0__rates": [0.5]}, "as many thresholds as rates"),
        ({"far_tables__0__rates__1": 0.7}, "should fall"),
        ({"far_tables__0__rates__5": 0.0}, "should fall"),
        ({"far_tables__0__thresholds__1": -5.0}, "higher thresholds"),
        ({"far_tables__0__thresholds__1": None}, "finite"),
    ],
)
def test_a_calibration_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        Calibration.from_json(changed(**changes))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '"x"', "{}"])
def test_text_that_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(ModelFormatError, match="calibration"):
        Calibration.from_json(text)
