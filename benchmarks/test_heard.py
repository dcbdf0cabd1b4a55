"""What it costs to know a recording of one of 64 utterances."""

from __future__ import annotations

from typing import Any

import numpy as np

from emoinv_edge.heard import HeardBefore

from .conftest import cpu_of

RATE = 16000
BASE_MS, STORED_MS = 25.0, 4.0


def test_a_check_against_64_utterances(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    clips = [np.asarray(0.1 * rng.standard_normal(4 * RATE), np.float32) for _ in range(64)]
    heard = HeardBefore(64)
    for clip in clips:
        heard.add(clip, RATE)
    match = benchmark(heard.check, clips[20], RATE)
    assert match is not None and match.score > 1.9
    ms = 1000.0 * cpu_of(lambda: heard.check(clips[20], RATE), 5)
    benchmark.extra_info["cpu_ms"] = round(ms, 1)
    benchmark.extra_info["bytes"] = len(heard.to_bytes())
    assert ms <= BASE_MS + 64 * STORED_MS
