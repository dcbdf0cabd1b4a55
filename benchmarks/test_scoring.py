"""Scoring one embedding against many profiles."""

from __future__ import annotations

import time

import numpy as np
import pytest

from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=1
)

QUALITY = SpeechQuality(3.0, 25.0, 0.0, -25.0, 4.8, 0.2, -10.0, 0.6)


def bank_of(count, calibration):
    """A bank of `count` profiles of one exemplar each, and the exemplars."""
    dim = 256 if calibration.emotion_axis is None else calibration.emotion_axis.dim
    embeddings = np.random.default_rng(count).standard_normal((count, dim), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = [f"speaker {i}" for i in range(count)]
    return ProfileBank.from_arrays(
        names, embeddings, [QUALITY] * count, [1] * count, calibration.emotion_axis
    ), embeddings


@pytest.mark.parametrize("count", (1, 10, 1000, 100_000))
def test_score_against_profiles(benchmark, calibration, sizes, count):
    count = sizes(count, min(count, 1000))
    bank, embeddings = bank_of(count, calibration)
    owner = count // 2
    llrs = benchmark(lambda: bank.score(calibration, embeddings[owner], QUALITY)[0])
    assert int(np.argmax(llrs)) == owner
    benchmark.extra_info["profiles"] = count
