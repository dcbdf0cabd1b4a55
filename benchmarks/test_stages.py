"""Stages one by one: how long each takes on 3 s of audio, on one thread, and beside its peers.

Run with ``OMP_NUM_THREADS=1 pytest benchmarks/test_stages.py``. Machines are shared and clocks
move, so what is compared is measured in turns and the best of many turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import kaldi_native_fbank
import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.features import LogMelStream, log_mel
from emoinv_edge.spec import EncoderSpec

SPEC = EncoderSpec(name="base")
SECONDS = 3.0
ROUNDS = 200


@pytest.fixture(scope="module")
def waveform() -> NDArray[np.float32]:
    """3 s of noise at 16 kHz, shaped like speech in its long-term spectrum; timings do not depend on it."""
    noise = np.random.default_rng(0).standard_normal(round(SECONDS * SPEC.sample_rate))
    smooth = np.convolve(noise, 0.9 ** np.arange(40), mode="same")
    return (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)


def kaldi(samples: list[float]) -> NDArray[np.float32]:
    """The features of `log_mel` by kaldi-native-fbank, from the list that its users pass."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = SPEC.sample_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = SPEC.window
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = SPEC.num_mel_bins
    options.mel_opts.low_freq = SPEC.low_hz
    options.mel_opts.high_freq = SPEC.high_hz
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(SPEC.sample_rate, samples)
    fbank.input_finished()
    return np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])


def best_of_turns(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The shortest time of each call in seconds, all of them measured in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def test_log_mel(benchmark, waveform):
    features = benchmark(log_mel, waveform, SPEC)
    assert features.shape == (298, 80) and np.isfinite(features).all()
    if benchmark.stats:
        benchmark.extra_info["rtf"] = benchmark.stats.stats.median / SECONDS


def test_log_mel_stream_of_ten_millisecond_chunks(benchmark, waveform):
    chunks = np.split(waveform, range(160, len(waveform), 160))

    def run() -> NDArray[np.float32]:
        stream = LogMelStream(SPEC)
        return np.concatenate([stream.process(chunk) for chunk in chunks])

    assert np.array_equal(benchmark(run), log_mel(waveform, SPEC))
    if benchmark.stats:
        benchmark.extra_info["rtf"] = benchmark.stats.stats.median / SECONDS


def test_log_mel_is_three_times_as_fast_as_kaldi_native_fbank(benchmark, waveform):
    samples = (waveform * np.float32(SPEC.waveform_scale)).tolist()
    ours = benchmark.pedantic(log_mel, (waveform, SPEC), rounds=1)
    np.testing.assert_allclose(ours, kaldi(samples), rtol=0, atol=2e-4)
    if not benchmark.enabled:
        pytest.skip("timings are off (--benchmark-disable)")
    fast, slow = best_of_turns(ROUNDS, lambda: log_mel(waveform, SPEC), lambda: kaldi(samples))
    benchmark.extra_info.update(log_mel_ms=1e3 * fast, kaldi_native_fbank_ms=1e3 * slow, ratio=slow / fast)
    assert slow / fast >= 3.0, f"log_mel {1e3 * fast:.2f} ms, kaldi-native-fbank {1e3 * slow:.2f} ms"
