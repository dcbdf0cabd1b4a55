"""A mood moves F0 and effort and leaves the vocal tract; without any change the features are those of the front end."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import synthesise
from hypothesis import given
from hypothesis import strategies as st
from training import TINY_SPEC

from emoinv_edge.features import log_mel
from emoinv_edge.spec import EncoderSpec
from train.moods import Mood, log_mel_of, power_spectrum

POVEY = EncoderSpec(name="povey", window="povey", waveform_scale=1.0)


def unchanged(frames, **changes):
    same = {"pitch": np.ones(frames, np.float32), "formants": 1.0, "effort": 0.0, "level": np.zeros(frames, np.float32)}
    return Mood(**(same | {"breath": 0.0} | changes))


@pytest.mark.parametrize("spec", [TINY_SPEC, POVEY], ids=["hamming", "povey"])
@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 20001])
def test_the_features_of_the_power_spectrum_are_those_of_the_front_end(spec, samples):
    waveform = synthesise(2.0, 3)[:samples]
    expected = log_mel(waveform, spec)
    found = log_mel_of(power_spectrum(waveform, spec), spec)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_mood_that_changes_nothing_leaves_the_spectrum():
    power = power_spectrum(synthesise(1.0, 4), TINY_SPEC)
    np.testing.assert_allclose(log_mel_of(unchanged(len(power))(power), TINY_SPEC), log_mel_of(power, TINY_SPEC), atol=0.02)


def harmonic(f0_hz, seconds=0.6):
    """A buzz of all harmonics of one F0."""
    t = np.arange(round(16000 * seconds)) / 16000
    return (0.02 * sum(np.sin(2 * np.pi * f0_hz * k * t) for k in range(1, int(7000 / f0_hz)))).astype(np.float32)


def spacing_hz(power):
    """The distance of the harmonics, by the peak of the mean cepstrum between 80 and 400 Hz."""
    cepstrum = np.fft.irfft(np.log(power + 1e-6).mean(axis=0))
    first, last = 16000 // 400, 16000 // 80
    return 16000 / (first + np.argmax(cepstrum[first:last]))


@pytest.mark.parametrize("factor", [0.8, 1.25, 1.5])
def test_pitch_moves_the_harmonics_by_its_factor(factor):
    power = power_spectrum(harmonic(160.0), TINY_SPEC)
    moved = unchanged(len(power), pitch=np.full(len(power), factor, np.float32))(power)
    assert spacing_hz(power) == pytest.approx(160, rel=0.03)
    assert spacing_hz(moved) == pytest.approx(160 * factor, rel=0.05)


def test_pitch_leaves_the_envelope_and_formants_move_it():
    rng = np.random.default_rng(2)
    hz = np.arange(257) * 31.25
    resonance = np.exp(-(((hz - 1500) / 300) ** 2)).astype(np.float32) + np.float32(1e-3)
    power = (resonance * rng.uniform(0.8, 1.2, (60, 257))).astype(np.float32)

    def centre(spectrum):
        mean = spectrum.mean(axis=0)
        return (mean * hz).sum() / mean.sum()

    assert centre(unchanged(60, pitch=np.full(60, 1.4, np.float32))(power)) == pytest.approx(centre(power), rel=0.03)
    assert centre(unchanged(60, formants=1.08)(power)) == pytest.approx(1.08 * centre(power), rel=0.03)


def test_effort_brightens_loud_frames_alone():
    power = power_spectrum(synthesise(1.0, 5), TINY_SPEC)
    power[: len(power) // 2] *= 20
    changed = unchanged(len(power), effort=0.5)(power)
    brighter = np.log(changed[:, 200]) - np.log(power[:, 200]) - (np.log(changed[:, 20]) - np.log(power[:, 20]))
    assert brighter[: len(power) // 2].mean() > brighter[len(power) // 2 :].mean() + 0.3


@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 60))
def test_every_mood_of_anything_is_finite_and_positive(seed, frames):
    rng = np.random.default_rng(seed)
    power = (rng.random((frames, 257)) * 10.0 ** rng.uniform(-12, 6)).astype(np.float32)
    power[rng.random(frames) < 0.3] = 0.0
    changed = Mood.draw(frames, rng)(power)
    assert changed.shape == power.shape and changed.dtype == np.float32
    assert np.isfinite(changed).all() and (changed >= 0).all()


def test_a_mood_of_other_frames_is_refused():
    with pytest.raises(ValueError, match="expected 5 frames"):
        Mood.draw(5, np.random.default_rng(0))(np.ones((6, 257), np.float32))
