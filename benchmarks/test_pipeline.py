"""The way of a recording: speech detection, quality, encoder, embedding, decision, enrolment, stream."""

from __future__ import annotations

import time

import numpy as np
import pytest

from emoinv_edge.decision import Verdict
from emoinv_edge.enrolment import Enroller
from emoinv_edge.features import LogMelStream, log_mel
from emoinv_edge.quality import measure_quality
from emoinv_edge.vad import speech_only
from emoinv_edge.verifier import Verifier

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=1
)

LENGTHS_S = (1, 2, 3, 5, 10)


def test_features(benchmark, encoder, speech, note):
    features = benchmark(log_mel, speech(1.0), encoder.spec)
    assert features.shape == (encoder.spec.num_frames(16000), encoder.spec.num_mel_bins)
    note(1.0)


def test_features_of_a_stream_in_chunks_of_ten_milliseconds(benchmark, encoder, speech, note):
    waveform = speech(3.0)
    chunks = np.split(waveform, range(160, len(waveform), 160))

    def run():
        stream = LogMelStream(encoder.spec)
        return np.concatenate([stream.process(chunk) for chunk in chunks])

    assert np.array_equal(benchmark(run), log_mel(waveform, encoder.spec))
    note(3.0)


def test_speech_detection(benchmark, speech, note):
    found = benchmark(speech_only, speech(3.0))
    assert 16000 < len(found) <= 48000
    note(3.0)


def test_quality(benchmark, speech, note):
    waveform = speech(3.0)
    quality = benchmark(measure_quality, waveform, 16000, speech_only(waveform))
    assert quality.snr_db > 10.0 and quality.log_f0_mean is not None
    note(3.0)


@pytest.mark.parametrize("seconds", LENGTHS_S)
def test_encoder(benchmark, encoder, any_precision, speech, note, seconds):
    features = log_mel(speech(seconds), encoder.spec)
    embedding = benchmark(encoder.embed_features, features)
    assert np.linalg.norm(embedding.vector) == pytest.approx(1.0, abs=1e-5)
    note(seconds)


@pytest.mark.parametrize("seconds", LENGTHS_S)
def test_embed(benchmark, encoder, any_precision, speech, note, seconds):
    waveform = speech(seconds)
    embedding = benchmark(encoder.embed, waveform, 16000)
    again = encoder.embed_features(log_mel(waveform, encoder.spec))
    assert np.array_equal(embedding.vector, again.vector)
    note(seconds)


def test_verify(benchmark, encoder, calibration, profile, speech, note):
    """Speech detection, quality, embedding and score of 3 s against one profile."""
    verifier = Verifier(encoder, profile, extrapolate=True, calibration=calibration)
    decision = benchmark(verifier.verify, speech(3.0, "slt", 6), 16000)
    assert decision.verdict is not Verdict.NO_DECISION and decision.cosine > 0.3
    note(3.0)


def test_enrolment(benchmark, encoder, calibration, speech, note):
    """A profile of three utterances of 3 s, with every check of the enrolment."""
    utterances = [speech(3.0, "slt", first) for first in (0, 2, 4)]

    def enrol():
        enroller = Enroller(encoder, calibration=calibration)
        for utterance in utterances:
            feedback = enroller.add(utterance, 16000)
            assert feedback.accepted, feedback.message
        return enroller.profile("slt")

    assert len(benchmark(enrol).exemplars) == 3
    note(9.0)


@pytest.mark.parametrize("chunk_ms", (10, 30, 100))
def test_stream(benchmark, encoder, calibration, profile, speech, note, sizes, chunk_ms):
    """Speech without end, in chunks: a provisional decision every half second."""
    seconds = sizes(10.0, 3.0)
    chunks = np.split(speech(seconds, "slt", 5), range(16 * chunk_ms, round(16000 * seconds), 16 * chunk_ms))
    verifier = Verifier(encoder, profile, extrapolate=True, calibration=calibration)

    def run():
        stream = verifier.stream(16000)
        return [decision for chunk in chunks for decision in stream.process(chunk)] + stream.flush()

    decisions = benchmark(run)
    assert decisions and any(decision.score is not None for decision in decisions)
    benchmark.extra_info.update(chunk_ms=chunk_ms, decisions=len(decisions))
    note(seconds)
