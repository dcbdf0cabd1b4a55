"""Two recordings, one speaker? `compare` in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge import CalibrationError, Encoder, compare
from emoinv_edge.cli import main
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, synthesise


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("compare"))


def test_one_voice_is_accepted_and_two_are_rejected(encoder: Encoder) -> None:
    ana, again, bob = synthesise(3.0, 1, ANA_HZ), synthesise(3.0, 2, ANA_HZ), synthesise(3.0, 3, BOB_HZ)
    assert compare(encoder, ana, again).accepted
    decision = compare(encoder, ana, bob)
    assert decision.verdict.name == "REJECT"
    assert decision.score is not None and decision.score < decision.threshold
    assert decision.speaker == ""


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([ANA_HZ, BOB_HZ, 150.0]), st.sampled_from([ANA_HZ, BOB_HZ]), st.floats(1.0, 4.0))
def test_the_order_of_the_recordings_makes_no_difference(
    encoder: Encoder, one_hz: float, other_hz: float, seconds: float
) -> None:
    one, other = synthesise(seconds, 1, one_hz), synthesise(3.0, 2, other_hz)
    first, second = compare(encoder, one, other), compare(encoder, other, one)
    assert (first.verdict, first.score, first.code) == (second.verdict, second.score, second.code)


def test_a_lower_rate_asks_for_a_higher_score(encoder: Encoder) -> None:
    ana = synthesise(3.0, 1, ANA_HZ)
    strict, lax = (compare(encoder, ana, ana, target_far=rate) for rate in (0.01, 0.3))
    assert strict.threshold > lax.threshold and strict.score == lax.score
    with pytest.raises(CalibrationError, match="cannot be supported"):
        compare(encoder, ana, ana, target_far=1e-7)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("damaged", "code"),
    [
        (np.zeros(RATE, np.float32), "silent"),
        (np.full(RATE, np.nan, np.float32), "not_finite"),
        (np.empty(0, np.float32), "empty"),
        (synthesise(0.4, 1, ANA_HZ), "too_short"),
    ],
    ids=["silent", "not finite", "empty", "short"],
)
def test_what_cannot_be_judged_is_no_decision_and_is_named(
    encoder: Encoder, place: int, damaged: np.ndarray, code: str
) -> None:
    pair = [synthesise(3.0, 1, ANA_HZ)] * 2
    pair[place] = damaged
    decision = compare(encoder, *pair)
    assert (decision.verdict.name, decision.score, decision.code) == ("NO_DECISION", None, code)
    assert decision.reason.startswith(f"{('first', 'second')[place]} recording: ")


def test_a_model_without_calibration_compares_nothing(tiny_encoder: Encoder) -> None:
    with pytest.raises(CalibrationError, match="no calibration"):
        compare(tiny_encoder, synthesise(3.0, 1), synthesise(3.0, 2))


def test_the_command_answers_without_a_store(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, seed, f0_hz in (("a", 1, ANA_HZ), ("b", 2, ANA_HZ), ("c", 3, BOB_HZ)):
        soundfile.write(tmp_path / f"{name}.wav", synthesise(3.0, seed, f0_hz), RATE)
    options = ["--model", str(encoder.path)]
    a, b, c = (str(tmp_path / f"{name}.wav") for name in "abc")
    assert main(["compare", a, b, *options]) == 0
    assert capsys.readouterr().out.startswith("ACCEPT  one speaker")
    assert main(["compare", a, c, *options]) == 1
    assert capsys.readouterr().out.startswith("REJECT  two speakers")
    assert main(["compare", a, c, "--json", *options]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["same_speaker"] is False and answer["files"] == [a, c]
    assert main(["compare", a, str(tmp_path / "none.wav"), *options]) == 3
    assert not (tmp_path / "data").exists()
