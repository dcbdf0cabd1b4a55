"""No voice: what is far from speech is said to be so, before anything is scored."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emoinv_edge.calibration import Term
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.guards import Guards
from emoinv_edge.profiles import Profile
from emoinv_edge.verifier import Verifier
from emoinv_edge.voice import VoiceTest, is_unvoiced
from tests.builders import (
    ANA_HZ,
    RATE,
    build_encoder,
    calibrated_encoder,
    calibration,
    enrolled,
    in_file,
    profile,
    quality,
    synthesise,
    unit_vectors,
)
from tests.guarding import DIM, guards, guards_in_file, voice_along

SPEECH, SOUND = unit_vectors(2, 3)


def guarded_encoder(folder: Path, held: Guards) -> Encoder:
    return Encoder(build_encoder(folder / "guarded.onnx", metadata=in_file(calibration()) | guards_in_file(held)))


def test_a_score_is_the_direction_the_terms_within_their_ranges_and_the_bias() -> None:
    test = voice_along(2.0 * SPEECH, 0.5, (Term("voiced_fraction", 3.0, 0.2, 0.6),))
    for fraction, counted in ((0.0, 0.2), (0.4, 0.4), (1.0, 0.6)):
        found = test.score(SPEECH, quality(voiced_fraction=fraction))
        assert found == pytest.approx(2.0 + 3.0 * counted + 0.5, abs=1e-5)


def test_a_norm_that_nobody_measured_speaks_for_a_voice() -> None:
    for weight in (2.0, -2.0):
        test = voice_along(np.zeros(DIM), 0.0, (Term("log_norm", weight, -1.0, 1.0),))
        assert test.score(SPEECH, quality()) == pytest.approx(2.0)


def test_what_is_not_a_number_is_no_voice() -> None:
    assert not voice_along(SPEECH).passes(np.full(DIM, math.nan, np.float32), quality())


def test_whispering_is_unvoiced_and_speech_is_not() -> None:
    assert is_unvoiced(quality(voiced_fraction=0.05, log_f0_mean=None))
    assert not is_unvoiced(quality(voiced_fraction=0.6))


def test_no_voice_is_no_decision_however_well_it_would_score(tmp_path: Path) -> None:
    encoder = guarded_encoder(tmp_path, guards(voice=voice_along(SPEECH - SOUND)))
    held = profile("ana", SOUND, model=encoder.fingerprint)
    decision = Verifier(encoder, held).decide(SOUND, quality())
    assert decision.verdict is Verdict.NO_DECISION
    assert decision.code == "no_voice"
    assert "speak" in decision.reason
    assert Verifier(encoder, profile("ana", SPEECH, model=encoder.fingerprint)).decide(SPEECH, quality()).accepted


def test_no_voice_is_refused_at_enrolment_and_by_verify(tmp_path: Path) -> None:
    unguarded = calibrated_encoder(tmp_path)
    wave = synthesise(3.0, 1, ANA_HZ)
    held = enrolled(unguarded, "ana", ANA_HZ)
    against = voice_along(-unguarded.embed(wave, RATE).vector)
    encoder = guarded_encoder(tmp_path, guards(voice=against))
    answer = Enroller(encoder).add(wave, RATE)
    assert (answer.accepted, answer.reason) == (False, "no_voice")
    own = dataclasses.replace(held, model_fingerprint=encoder.fingerprint)
    assert Verifier(encoder, own).verify(synthesise(3.0, 9, ANA_HZ), RATE).code == "no_voice"


def test_an_accept_needs_the_least_cosine_beside_the_score(tmp_path: Path) -> None:
    encoder = guarded_encoder(tmp_path, guards(least_cosine=0.9))
    held = profile("ana", SPEECH, model=encoder.fingerprint)
    near = SPEECH + 0.7 * SOUND
    near = (near / np.linalg.norm(near)).astype(np.float32)
    verifier = Verifier(encoder, held, prior=0.5)
    assert 0.7 < float(near @ SPEECH) < 0.9
    decision = verifier.decide(near, quality())
    assert (decision.verdict, decision.code) == (Verdict.NO_DECISION, "no_voice")
    assert calibrated(tmp_path, held).decide(near, quality()).accepted  # by the score alone
    assert verifier.decide(SPEECH, quality()).accepted


def test_what_is_hardly_a_voice_must_be_all_the_nearer(tmp_path: Path) -> None:
    test = voice_along(np.zeros(DIM), -1.0, (Term("voiced_fraction", 4.0, 0.0, 1.0),))
    encoder = guarded_encoder(tmp_path, guards(voice=test, cosine_weight=10.0, least_sum=10.0))
    verifier = Verifier(encoder, profile("ana", SPEECH, model=encoder.fingerprint), prior=0.5)
    near = SPEECH + 0.5 * SOUND
    near = (near / np.linalg.norm(near)).astype(np.float32)
    assert 0.8 < float(near @ SPEECH) < 0.95
    assert verifier.decide(near, quality(voiced_fraction=0.8)).accepted
    assert verifier.decide(near, quality(voiced_fraction=0.3)).code == "no_voice"
    assert verifier.decide(SPEECH, quality(voiced_fraction=0.3)).accepted


def calibrated(folder: Path, held: Profile) -> Verifier:
    """The same without guards."""
    encoder = calibrated_encoder(folder)
    return Verifier(encoder, dataclasses.replace(held, model_fingerprint=encoder.fingerprint), prior=0.5)


def test_unvoiced_speech_is_taken_and_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = guarded_encoder(tmp_path, guards())
    rng = np.random.default_rng(0)
    wave = synthesise(3.0, 1, ANA_HZ)
    loudness = np.abs(np.convolve(np.abs(wave), np.ones(400) / 400, "same"))
    whisper = (loudness * rng.standard_normal(len(wave))).astype(np.float32)
    answer = Enroller(encoder).add(0.5 * whisper / np.abs(whisper).max(), RATE)
    if not answer.accepted:
        pytest.skip(f"the detector heard no speech in this noise: {answer.message}")
    assert "unvoiced" in answer.message


def test_guards_come_back_from_their_json() -> None:
    held = guards(voice=voice_along(SPEECH, 0.5, (Term("log_norm", 1.0, 0.0, 2.0),)), least_cosine=0.25)
    assert Guards.of_metadata(json.loads(held.to_json()), DIM) == held
    bare = guards(windows=None)
    assert Guards.of_metadata(json.loads(bare.to_json()), DIM) == bare
    assert Guards.of_metadata(None, DIM) is None


def damaged(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(guards().to_json())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = values
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (damaged(format=9), "expected format 1, got 9"),
        (damaged(least_cosine="high"), "least_cosine"),
        (damaged(least_cosine=1.5), "-1 to 1"),
        (damaged(voice__direction="?"), "base64"),
        (damaged(voice__direction="AAAA"), "float32"),
        (damaged(voice__bias=None), "finite number"),
        (damaged(voice__terms=[{"name": "age", "weight": 1.0, "low": 0.0, "high": 1.0}]), "'age' is unknown"),
        (damaged(voice__terms=[{"name": "log_f0", "weight": 1.0, "low": 1.0, "high": 0.0}]), "low <= high"),
        (damaged(windows__cosine=1.0), "below 0|less than 0"),
        (damaged(windows__hop_s=0.0), "hop_s"),
        (damaged(windows__bias="x"), "finite number"),
        (damaged(clips__terms=[]), "'cosine' is missing"),
        (damaged(clips__least="x"), "finite number"),
        (damaged(surplus=1), "'surplus' is unknown"),
        ([], "JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_guards_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        Guards.of_metadata(values, DIM)


def test_guards_of_another_model_are_refused_with_the_file(tmp_path: Path) -> None:
    short = VoiceTest(np.zeros(8, "<f4").tobytes(), (), 1.0)
    with pytest.raises(ModelFormatError, match=r"guarded.onnx: guards: expected a direction of 32 numbers, got 8"):
        guarded_encoder(tmp_path, guards(voice=short))
