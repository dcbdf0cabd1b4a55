"""The front end: what Kaldi computes, and the same bits whatever the chunking."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.features import BLOCK, LogMelStream, log_mel, mean_normalise, mel_bank, window
from emoinv_edge.spec import EncoderSpec
from tests.builders import synthesise

SPEC = EncoderSpec(name="base")
AWKWARD = [0, 1, 159, 160, 161, 399, 400, 401, 479, 480, 481, 559, 560, 561]
ONE_BLOCK = 400 + 160 * (BLOCK - 1)  # samples that fill exactly one block of frames


def kaldi(waveform: NDArray[np.float32], spec: EncoderSpec) -> NDArray[np.float32]:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = spec.sample_rate
    options.frame_opts.frame_length_ms = spec.frame_length_ms
    options.frame_opts.frame_shift_ms = spec.frame_shift_ms
    options.frame_opts.dither = 0.0
    options.frame_opts.preemph_coeff = spec.preemphasis
    options.frame_opts.window_type = spec.window
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = spec.num_mel_bins
    options.mel_opts.low_freq = spec.low_hz
    options.mel_opts.high_freq = spec.high_hz
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(spec.sample_rate, (waveform * np.float32(spec.waveform_scale)).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])


def double_precision(waveform: NDArray[np.float32], spec: EncoderSpec) -> NDArray[np.float64]:
    """The definition, frame by frame in float64."""
    out = []
    n = np.arange(spec.frame_length)
    window = 0.54 - 0.46 * np.cos(2.0 * np.pi * n / (spec.frame_length - 1))
    for first in range(0, len(waveform) - spec.frame_length + 1, spec.frame_shift):
        frame = waveform[first : first + spec.frame_length].astype(np.float64)
        frame -= frame.mean()
        frame -= spec.preemphasis * np.concatenate((frame[:1], frame[:-1]))
        power = np.abs(np.fft.rfft(frame * window * spec.waveform_scale, spec.fft_length)) ** 2
        out.append(np.log(np.maximum(power @ mel_bank(spec).astype(np.float64), np.finfo(np.float32).eps)))
    return np.array(out)


def cut(waveform: NDArray[np.float32], lengths: list[int]) -> list[NDArray[np.float32]]:
    bounds = np.minimum(np.cumsum([0, *lengths]), len(waveform))
    return [waveform[a:b] for a, b in itertools.pairwise(bounds)] + [waveform[bounds[-1] :]]


def streamed(chunks: list[NDArray[np.float32]], spec: EncoderSpec = SPEC) -> NDArray[np.float32]:
    stream = LogMelStream(spec)
    return np.concatenate([stream.process(chunk) for chunk in chunks] + [stream.flush()])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": "povey"},
        {"num_mel_bins": 40, "low_hz": 0.0},
        {"num_mel_bins": 23, "high_hz": 7600.0, "preemphasis": 0.0},
        {"waveform_scale": 1.0},
        {"sample_rate": 8000, "high_hz": 4000.0, "num_mel_bins": 40},
        {"sample_rate": 11025, "high_hz": 5512.0, "num_mel_bins": 64},  # 275 samples, a shift of 110
        {"sample_rate": 22050, "num_mel_bins": 64},  # 551 samples, a shift of 220
        {"frame_length_ms": 20.0, "frame_shift_ms": 12.5},
    ],
    ids=str,
)
def test_log_mel_equals_kaldi_native_fbank(changes):
    spec = dataclasses.replace(SPEC, **changes)
    waveform = synthesise(3, 1, 110, spec.sample_rate)
    expected = kaldi(waveform, spec)
    got = log_mel(waveform, spec)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)


def test_log_mel_is_closer_to_double_precision_than_kaldi_is():
    waveform = synthesise(5, 2, 200)
    truth = double_precision(waveform, SPEC)
    ours, theirs = np.abs(log_mel(waveform, SPEC) - truth), np.abs(kaldi(waveform, SPEC) - truth)
    assert ours.mean() < theirs.mean()
    assert np.quantile(ours, 0.999) < np.quantile(theirs, 0.999) < 1e-4


def test_offset_of_the_microphone_does_not_matter():
    waveform = 0.5 * synthesise(2, 3)
    np.testing.assert_allclose(log_mel(waveform + np.float32(0.25), SPEC), log_mel(waveform, SPEC), atol=2e-2)


def test_silence_gives_the_floor_and_nothing_infinite():
    silent = log_mel(np.zeros(16000, np.float32), SPEC)
    assert np.all(silent == np.log(np.finfo(np.float32).eps))


@pytest.mark.parametrize("samples", AWKWARD)
def test_number_of_frames_is_that_of_the_spec(samples):
    waveform = np.ones(samples, np.float32)
    assert log_mel(waveform, SPEC).shape == (SPEC.num_frames(samples), 80)


@pytest.mark.parametrize("samples", [400, 48000])
def test_no_step_widens_to_double_precision(monkeypatch, samples):
    if int(np.__version__.split(".")[0]) < 2:
        pytest.skip("NumPy 1 has no single-precision FFT")
    rfft, seen = np.fft.rfft, []

    def watched(frames, *args, **kwargs):
        spectrum = rfft(frames, *args, **kwargs)
        seen.append(spectrum.dtype)
        assert frames.dtype == np.float32
        # NumPy may go through float64 and back (it does by default); its bits would then be these.
        rounded = rfft(frames.astype(np.float64), *args, **kwargs).astype(np.complex64)
        assert not np.array_equal(spectrum, rounded)
        return spectrum

    monkeypatch.setattr(np.fft, "rfft", watched)
    assert log_mel(synthesise(3, 1)[:samples], SPEC).dtype == np.float32
    assert seen and set(seen) == {np.dtype(np.complex64)}
    assert mel_bank(SPEC).dtype == window(SPEC).dtype == np.float32


@pytest.mark.parametrize("size", [size for size in AWKWARD if size] + [ONE_BLOCK - 1, ONE_BLOCK, ONE_BLOCK + 1])
def test_chunking_is_invisible(size):
    waveform = synthesise(2, 4)[: 3000 if size == 1 else None]
    got = streamed(cut(waveform, [size] * (len(waveform) // size)))
    assert np.array_equal(got, log_mel(waveform, SPEC))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(0, 20000),
    lengths=st.lists(st.sampled_from(AWKWARD) | st.integers(0, 9000), max_size=40),
)
def test_chunking_is_invisible_at_any_cut(seed, samples, lengths):
    waveform = (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    assert np.array_equal(streamed(cut(waveform, lengths)), log_mel(waveform, SPEC))


@pytest.mark.parametrize("changes", [{"sample_rate": 11025, "high_hz": 5512.0}, {"window": "povey", "num_mel_bins": 8}])
def test_chunking_is_invisible_to_other_specs(changes):
    spec = dataclasses.replace(SPEC, **changes)
    waveform = synthesise(2, 5, 120, spec.sample_rate)
    assert np.array_equal(streamed(cut(waveform, [777] * 50), spec), log_mel(waveform, spec))


def test_a_frame_depends_on_its_own_samples_alone():
    waveform = synthesise(3, 6)
    spoilt = waveform.copy()
    spoilt[20000] = np.nan
    clean, got = log_mel(waveform, SPEC), log_mel(spoilt, SPEC)
    holding = [frame for frame in range(len(clean)) if frame * 160 <= 20000 < frame * 160 + 400]
    assert np.isnan(got[holding]).all()
    others = np.delete(np.arange(len(clean)), holding)
    assert np.array_equal(got[others], clean[others])


def test_two_streams_do_not_interact():
    one, two = synthesise(1, 7), synthesise(1, 8, 200)
    a, b = LogMelStream(SPEC), LogMelStream(SPEC)
    got_a, got_b = [], []
    for first in range(0, 16000, 333):
        got_a.append(a.process(one[first : first + 333]))
        got_b.append(b.process(two[first : first + 333]))
    assert np.array_equal(np.concatenate(got_a), log_mel(one, SPEC))
    assert np.array_equal(np.concatenate(got_b), log_mel(two, SPEC))


def test_flush_equals_new():
    stream = LogMelStream(SPEC)
    stream.process(synthesise(1, 9)[:12345])
    assert stream.flush().shape == (0, 80)
    assert np.array_equal(stream.process(synthesise(1, 10)), log_mel(synthesise(1, 10), SPEC))


def test_input_is_never_changed_nor_kept():
    waveform = synthesise(1, 11)
    waveform.flags.writeable = False
    expected = log_mel(waveform, SPEC)
    stream, chunk, got = LogMelStream(SPEC), np.empty(160, np.float32), []
    for first in range(0, len(waveform), 160):  # one buffer, reused as a sound card does
        chunk[:] = waveform[first : first + 160]
        got.append(stream.process(chunk))
        chunk[:] = np.nan
    assert np.array_equal(np.concatenate(got), expected)


def test_layout_of_the_waveform_in_memory_does_not_matter():
    waveform = synthesise(1, 12)
    every_other = np.repeat(waveform, 2)[::2]
    assert np.array_equal(log_mel(every_other, SPEC), log_mel(waveform, SPEC))
    assert np.array_equal(log_mel(waveform[::-1], SPEC), log_mel(waveform[::-1].copy(), SPEC))


def test_threads_do_not_interact():
    waveforms = [synthesise(0.5 + 0.1 * seed, seed) for seed in range(16)]
    expected = [log_mel(waveform, SPEC) for waveform in waveforms]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, want in zip(pool.map(lambda w: log_mel(w, SPEC), waveforms), expected, strict=True):
                assert np.array_equal(got, want)


def test_mean_normalisation_removes_a_gain_and_a_channel():
    waveform = synthesise(2, 13)
    normalised = mean_normalise(log_mel(waveform, SPEC))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(mean_normalise(log_mel(0.25 * waveform, SPEC)), normalised, atol=1e-3)


@pytest.mark.parametrize("take", [lambda w: log_mel(w, SPEC), lambda w: LogMelStream(SPEC).process(w)])
@pytest.mark.parametrize(
    ("waveform", "error", "cure"),
    [
        ([0.0] * 400, TypeError, "to_mono"),
        (np.zeros(400), TypeError, "float64"),
        (np.zeros(400, np.int16), TypeError, "int16"),
        (np.zeros((400, 2), np.float32), ValueError, "mix the channels"),
        (np.float32(0.0), TypeError, "float32"),
    ],
)
def test_a_foreign_waveform_is_refused_with_its_cure(take, waveform, error, cure):
    with pytest.raises(error, match=cure):
        take(waveform)
