"""Our models against fp32 ResNet34-LM with its kaldi-native-fbank front end: the same clip, in turns, one thread."""

from __future__ import annotations

import time

import kaldi_native_fbank
import numpy as np
import pytest

from emoinv_edge.features import log_mel

from .workers import open_workers, take_turns

REFERENCE = "wespeaker"
TARGETS = {"base": 2.5, "small": 12.0}


def test_embedding_three_seconds_beside_resnet34(benchmark, request, model_name, model_path, speech, sizes, tmp_path):
    folder = request.config.getoption("--peers")
    if folder is None:
        pytest.skip("no --peers FOLDER was given; benchmarks/README.md describes where the peers come from")
    np.save(tmp_path / "clip.npy", speech(3.0))
    with open_workers([(model_name, model_path)], folder, only=[REFERENCE]) as (workers, skipped):
        if skipped:
            pytest.skip("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
        times = benchmark.pedantic(take_turns, (workers, tmp_path / "clip.npy", sizes(15, 1)), rounds=1)
        for worker in workers:
            worker.ask(op="embed", clip=str(tmp_path / "clip.npy"), out=str(tmp_path / "row.npy"))
            assert np.isfinite(np.load(tmp_path / "row.npy")).all()
    ratio = times[REFERENCE]["cpu_ms"] / times[model_name]["cpu_ms"]
    benchmark.extra_info.update(
        cpu_ms=times[model_name]["cpu_ms"], resnet34_cpu_ms=times[REFERENCE]["cpu_ms"], ratio=ratio
    )
    if sizes.full and model_name in TARGETS:
        assert ratio >= TARGETS[model_name], f"{ratio:.2f} times faster than ResNet34-LM"


def test_features_take_a_third_of_the_time_of_kaldi_native_fbank(benchmark, encoder, speech, sizes):
    spec, waveform = encoder.spec, speech(3.0)
    samples = (waveform * np.float32(spec.waveform_scale)).tolist()  # a list, as its users pass
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = spec.sample_rate, 0.0
    options.frame_opts.window_type, options.frame_opts.snip_edges = spec.window, True
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = (
        spec.num_mel_bins, spec.low_hz, spec.high_hz,
    )  # fmt: skip

    def kaldi():
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(spec.sample_rate, samples)
        bank.input_finished()
        return np.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)])

    ours = benchmark.pedantic(log_mel, (waveform, spec), rounds=1)
    np.testing.assert_allclose(ours, kaldi(), rtol=0, atol=2e-4)
    fast, slow = [], []
    for _ in range(sizes(200, 1)):  # in turns, and the best of them: machines are shared and clocks move
        for call, times in ((lambda: log_mel(waveform, spec), fast), (kaldi, slow)):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    ratio = min(slow) / min(fast)
    benchmark.extra_info.update(log_mel_ms=1e3 * min(fast), kaldi_native_fbank_ms=1e3 * min(slow), ratio=ratio)
    if sizes.full:
        assert ratio >= 3.0, f"log_mel {1e3 * min(fast):.2f} ms, kaldi-native-fbank {1e3 * min(slow):.2f} ms"
