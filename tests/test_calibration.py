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

from emoinv_edge.calibration import TERMS, Calibration, FarTable, Term, bayes_threshold
from emoinv_edge.errors import CalibrationError, ModelFormatError
from tests.builders import emotion_axis

RATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CALIBRATION = Calibration(
    bias=-5.0,
    terms=(Term("cosine", 15.0, -1.0, 1.0), Term("f0_above", 2.0, 0.0, 0.9), Term("test_seconds", -0.5, -0.2, 2.0)),
    far_tables=(
        FarTable(1, RATES, (-4.0, -2.0, -1.0, 0.0, 1.0, 1.8)),
        FarTable(8, RATES, (-2.0, -0.5, 0.5, 1.2, 2.5, 3.0)),
    ),
    num_impostor_speakers=400,
    source="invented for the tests",
)
AXIS = np.array([0.6, 0.0, -0.8, 0.0], "<f4")
WITH_AXIS = dataclasses.replace(
    CALIBRATION,
    terms=(*CALIBRATION.terms, Term("emotion_shift", 1.5, -0.4, 0.4)),
    emotion_axis=emotion_axis(AXIS),
)


def test_the_llr_is_the_sum_that_the_calibration_describes() -> None:
    evidence = {name: np.array([0.5]) for name in TERMS}
    assert CALIBRATION.llr(evidence)[0] == pytest.approx(-5.0 + 15.0 * 0.5 + 2.0 * 0.5 - 0.5 * 0.5)


def test_evidence_beyond_the_calibrated_range_saturates() -> None:
    evidence = {name: np.array([0.0, 0.3, 0.9, 7.0]) if name == "f0_above" else np.zeros(4) for name in TERMS}
    found = CALIBRATION.llr(evidence)
    assert found[0] < found[1] < found[2] == found[3]


def test_evidence_that_is_not_finite_gives_no_llr() -> None:
    evidence = {name: np.array([0.5, math.nan if name == "f0_above" else 0.0]) for name in TERMS}
    with pytest.raises(ValueError, match="'f0_above' is not finite"):
        CALIBRATION.llr(evidence)


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


# --- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", [CALIBRATION, WITH_AXIS], ids=["without axis", "with axis"])
def test_a_calibration_survives_its_json(calibration: Calibration) -> None:
    assert Calibration.from_json(calibration.to_json()) == calibration


def changed(**changes: Any) -> str:
    values = json.loads(WITH_AXIS.to_json())
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
        ({"format": 4}, "format 3, got 4"),
        ({"format": ...}, "format 3, got None"),
        ({"bias": ...}, "'bias' is missing"),
        ({"surprise": 1}, "'surprise' is unknown"),
        ({"bias": math.nan}, "NaN is no JSON number"),
        ({"bias": "3"}, "bias should be a finite number"),
        ({"terms": []}, "at least the term 'cosine'"),
        ({"terms": {}}, "terms should be a list"),
        ({"terms__0__name": "f0_above"}, "each term should appear once"),
        ({"terms__0__name": "magic"}, "'cosine' is missing"),
        ({"terms__1__name": "magic"}, "'magic' is unknown"),
        ({"terms__0__weight": -1.0}, "weight of 'cosine' should be above 0"),
        ({"terms__0__weight": 0.0}, "weight of 'cosine' should be above 0"),
        ({"terms__1__low": 5.0}, "low <= high"),
        ({"terms__1__weight": math.inf}, "Infinity is no JSON number"),
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


def base64_of(values: Any) -> str:
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


@pytest.mark.parametrize("value", ["!", "AAA=", 7, ["AAAA"], "AADAfw==", "", base64_of(2.0 * AXIS)])
def test_a_damaged_emotion_axis_is_refused(value: Any) -> None:
    with pytest.raises(ModelFormatError, match="emotion axis"):
        Calibration.from_json(changed(emotion_axis=value))


def test_the_shift_along_an_axis_needs_the_axis() -> None:
    with pytest.raises(ModelFormatError, match="'emotion_shift' needs an emotion axis"):
        Calibration.from_json(changed(emotion_axis=None))


@pytest.mark.parametrize("format_of_before", [1, 2])
def test_a_calibration_of_before_is_refused_with_its_cure(format_of_before: int) -> None:
    with pytest.raises(ModelFormatError, match=r"calibrate the model again \(python -m export calibrate\)"):
        Calibration.from_json(changed(format=format_of_before))
