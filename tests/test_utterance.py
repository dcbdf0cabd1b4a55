"""utterance.hear: each recording passes each step once, and comes out as an embedding or as a refusal with its cure."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.audio import to_mono
from emoinv_edge.calibration import SessionRise
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.features import log_mel
from emoinv_edge.quality import measure_quality
from emoinv_edge.utterance import Piece, hear
from emoinv_edge.vad import speech_only, speech_segments
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    RATE,
    build_encoder,
    calibrated_encoder,
    calibration,
    enrolled,
    noise,
    quality,
    synthesise,
    write_emotional_corpus,
)
from train.calibration.speech import measure
from train.evaluation.clips import EvaluationSet
from train.evaluation.embeddings import hear_set, open_model
from train.prepare import PreparedSet


@pytest.fixture(scope="module", params=["features", "waveform"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(build_encoder(tmp_path_factory.mktemp("hear") / "tiny.onnx", flavour=request.param))


def padded(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([noise(1.0), wave, noise(1.0)])


def test_an_utterance_is_its_speech_the_quality_of_it_and_an_embedding(encoder: Encoder) -> None:
    wave = padded(synthesise(2.0, 1))
    heard = hear(encoder, wave, RATE)
    speech = speech_only(wave, RATE)
    expected = encoder.embed(speech, RATE)
    assert heard.refusal is None and heard.embedding is not None
    assert heard.num_samples == 4 * RATE
    assert np.array_equal(heard.speech, speech)
    assert np.array_equal(heard.embedding, expected) and heard.embedding.norm == expected.norm
    assert heard.quality == measure_quality(wave, RATE, speech).with_embedding_norm(expected.norm)


@pytest.mark.parametrize(
    ("wave", "code", "measured"),
    [
        (np.empty(0, np.float32), "empty", False),
        (np.full(RATE, math.nan, np.float32), "not_finite", False),
        (np.zeros(RATE, np.int16), "silent", False),
        (synthesise(2.0, 1) * np.float32(1e-4), "too_quiet", True),
        (synthesise(0.5, 1), "too_short", True),
        (np.clip(8.0 * synthesise(2.0, 1), -1.0, 1.0).astype(np.float32), "clipped", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_judged_is_refused_with_its_cure(
    encoder: Encoder, wave: NDArray[Any], code: str, measured: bool
) -> None:
    heard = hear(encoder, wave, RATE)
    assert heard.refusal is not None and heard.refusal.code == code and heard.embedding is None
    assert ";" in heard.refusal.message
    assert (heard.quality is not None) is measured and (heard.num_samples > 0) is measured


def test_a_model_that_fails_is_a_refusal(tmp_path_factory: pytest.TempPathFactory) -> None:
    broken = Encoder(build_encoder(tmp_path_factory.mktemp("broken") / "tiny.onnx", gain=0.0))
    refusal = hear(broken, synthesise(2.0, 1), RATE).refusal
    assert refusal is not None and refusal.code == "no_embedding" and "means nothing" in refusal.message


def test_more_can_be_asked_of_the_speech(encoder: Encoder) -> None:
    wave = padded(synthesise(2.0, 1))
    for limits, code in (({"min_speech_s": 2.5}, "too_short"), ({"min_snr_db": 60.1}, "too_noisy")):
        refusal = hear(encoder, wave, RATE, **limits).refusal
        assert refusal is not None and refusal.code == code


def test_one_recording_passes_each_step_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = calibrated_encoder(tmp_path_factory.mktemp("once"))
    ana = enrolled(encoder, "ana", ANA_HZ)
    verifier, enroller = Verifier(encoder, ana), Enroller(encoder, profile=ana)
    passed: list[str] = []
    for step in (to_mono, speech_segments, measure_quality, log_mel):

        def noted(*arguments: Any, step: Any = step) -> Any:
            passed.append(step.__name__)
            return step(*arguments)

        monkeypatch.setattr(f"emoinv_edge.utterance.{step.__name__}", noted)
    wave = synthesise(1.5, 7, ANA_HZ, 44100)
    assert verifier.verify(wave, 44100).accepted
    assert passed == ["to_mono", "speech_segments", "measure_quality", "log_mel"]
    passed.clear()
    assert enroller.add(wave, 44100).accepted
    assert passed == ["to_mono", "speech_segments", "measure_quality", "log_mel"]


@pytest.mark.parametrize(
    ("way", "embedded"),
    [("verify", 1), ("scores", 1), ("session", 1), ("enrol", 1), ("stream", 4), ("calibrate", 9), ("evaluate", 1)],
)
def test_whoever_embeds_speech_comes_through_hear(
    way: str, embedded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each utterance once; a stream about every half second."""
    encoder = calibrated_encoder(tmp_path, calibration(session_rises=(SessionRise(2, (0.5, 0.01), (0.2, 0.4)),)))
    ana, wave = enrolled(encoder, "ana", ANA_HZ), padded(synthesise(2.0, 7, ANA_HZ))
    verifier, model = Verifier(encoder, ana), open_model(encoder.path)
    clips = PreparedSet(write_emotional_corpus(tmp_path / "one", "one", 1, "female", lambda *_: wave))
    through: list[bool] = []
    original = Encoder.embed_features

    def noted(*arguments: Any) -> Any:
        frame = inspect.currentframe()
        while frame is not None and frame.f_code is not hear.__code__:
            frame = frame.f_back
        through.append(frame is not None)
        return original(*arguments)

    monkeypatch.setattr(Encoder, "embed_features", noted)
    stream = verifier.stream(RATE)
    ways = {
        "verify": lambda: verifier.verify(wave, RATE),
        "scores": lambda: verifier.scores(wave, RATE),
        "session": lambda: verifier.session(2).add(wave, RATE),
        "enrol": lambda: Enroller(encoder).add(wave, RATE),
        "stream": lambda: [*stream.process(wave), *stream.flush()],
        "calibrate": lambda: measure(encoder, [clips]),
        "evaluate": lambda: hear_set(model, EvaluationSet("one", clips.clips[:1], clips.waveform)),
    }
    assert ways[way]()
    assert through == [True] * embedded


def test_a_piece_is_judged_by_what_was_measured_of_it(encoder: Encoder) -> None:
    wave, good = synthesise(0.5, 1), quality(net_speech_s=0.5)
    heard = hear(encoder, Piece(wave, good), RATE, min_speech_s=0.0)
    assert heard.refusal is None and heard.embedding is not None
    assert np.array_equal(heard.embedding, encoder.embed(wave, RATE))
    assert heard.quality == good.with_embedding_norm(heard.embedding.norm)
    for each, code in (
        (good, "too_short"),
        (quality(snr_db=-1.0), "too_noisy"),
        (quality(level_dbfs=-80.0), "too_quiet"),
    ):
        refusal = hear(encoder, Piece(wave, each), RATE).refusal
        assert refusal is not None and refusal.code == code
    nothing = hear(encoder, Piece(wave[:0], quality()), RATE)
    assert nothing.refusal is not None and nothing.refusal.code == "too_short" and nothing.embedding is None
