"""A morph moves F0 and effort and leaves the vocal tract; without a change, features are those of the front end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emoinv_edge import features as front_end
from emoinv_edge.spec import EncoderSpec
from tests.builders import synthesise
from tests.training import TINY_SPEC
from train.emotion_morph import EmotionMorph
from train.spectrum import log_mel_of, mean_normalise, power_spectrum

POVEY = EncoderSpec(name="povey", window="povey", waveform_scale=1.0)


def spectrum(waveform):
    return power_spectrum(torch.from_numpy(waveform)[None], TINY_SPEC)


def unchanged(frames, **changes):
    same = {
        "pitch": torch.ones(1, frames), "formants": torch.ones(1), "effort": torch.zeros(1),
        "level": torch.zeros(1, frames), "breath": torch.zeros(1),
    }  # fmt: skip
    return EmotionMorph(**(same | changes))


@pytest.mark.parametrize("spec", [TINY_SPEC, POVEY], ids=["hamming", "povey"])
@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 20001])
def test_the_features_of_the_power_spectrum_are_those_of_the_front_end(spec, samples):
    waveforms = np.stack([synthesise(2.0, seed)[:samples] for seed in (3, 4)])
    expected = np.stack([front_end.log_mel(waveform, spec) for waveform in waveforms])
    found = log_mel_of(power_spectrum(torch.from_numpy(waveforms), spec), spec)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)
    normal = np.stack([front_end.mean_normalise(each) for each in expected])
    np.testing.assert_allclose(mean_normalise(found), normal, atol=2e-3)


def test_a_morph_that_changes_nothing_leaves_the_spectrum():
    power = spectrum(synthesise(1.0, 4))
    same = unchanged(power.shape[1])(power)
    np.testing.assert_allclose(log_mel_of(same, TINY_SPEC), log_mel_of(power, TINY_SPEC), atol=0.02)


def harmonic(f0_hz, seconds=0.6):
    """A buzz of all harmonics of one F0."""
    t = np.arange(round(16000 * seconds)) / 16000
    return (0.02 * sum(np.sin(2 * np.pi * f0_hz * k * t) for k in range(1, int(7000 / f0_hz)))).astype(np.float32)


def spacing_hz(power):
    """The distance of the harmonics, by the peak of the mean cepstrum between 80 and 400 Hz."""
    cepstrum = np.fft.irfft(np.log(power[0].numpy() + 1e-12).mean(axis=0))
    first, last = 16000 // 400, 16000 // 80
    return 16000 / (first + np.argmax(cepstrum[first:last]))


@pytest.mark.parametrize("factor", [0.8, 1.25, 1.5])
def test_pitch_moves_the_harmonics_by_its_factor(factor):
    power = spectrum(harmonic(160.0))
    moved = unchanged(power.shape[1], pitch=torch.full(power.shape[:2], factor))(power)
    assert spacing_hz(power) == pytest.approx(160, rel=0.03)
    assert spacing_hz(moved) == pytest.approx(160 * factor, rel=0.05)


def test_pitch_leaves_the_envelope_and_formants_move_it():
    rng = np.random.default_rng(2)
    hz = torch.arange(257) * 31.25
    resonance = torch.exp(-(((hz - 1500) / 300) ** 2)) + 1e-3
    power = resonance * torch.from_numpy(rng.uniform(0.8, 1.2, (1, 60, 257)).astype(np.float32))

    def centre(spectra):
        mean = spectra.mean(dim=(0, 1))
        return float((mean * hz).sum() / mean.sum())

    assert centre(unchanged(60, pitch=torch.full((1, 60), 1.4))(power)) == pytest.approx(centre(power), rel=0.03)
    assert centre(unchanged(60, formants=torch.tensor([1.08]))(power)) == pytest.approx(1.08 * centre(power), rel=0.03)


def test_effort_brightens_loud_frames_alone():
    power = spectrum(synthesise(1.0, 5))
    half = power.shape[1] // 2
    power[:, :half] *= 20
    change = torch.log(unchanged(power.shape[1], effort=torch.tensor([0.5]))(power)) - torch.log(power)
    brighter = change[0, :, 200] - change[0, :, 20]
    assert brighter[:half].mean() > brighter[half:].mean() + 0.3


@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(0, 3), frames=st.integers(1, 60))
def test_every_morph_of_anything_is_finite_and_positive(seed, batch, frames):
    rng = np.random.default_rng(seed)
    power = torch.from_numpy((rng.random((batch, frames, 257)) * 10.0 ** rng.uniform(-12, 6)).astype(np.float32))
    power[torch.from_numpy(rng.random((batch, frames)) < 0.3)] = 0.0
    changed = EmotionMorph.draw(batch, frames, rng)(power)
    assert changed.shape == power.shape and changed.dtype == torch.float32
    assert torch.isfinite(changed).all() and (changed >= 0).all()


def test_a_voice_is_changed_the_same_whoever_else_is_in_the_batch():
    rng = np.random.default_rng(6)
    power = torch.cat([spectrum(synthesise(0.5, seed)) for seed in range(3)])
    morph = EmotionMorph.draw(3, power.shape[1], rng)
    alone = morph.rows(torch.tensor([1]))
    torch.testing.assert_close(morph(power)[1:2], alone(power[1:2]))


def test_morphs_of_other_frames_are_refused():
    with pytest.raises(ValueError, match=r"expected \(1, 5\) crops and frames"):
        EmotionMorph.draw(1, 5, np.random.default_rng(0))(torch.ones(1, 6, 257))
