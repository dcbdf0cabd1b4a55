"""Augmentations: pure functions of their input and generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.features import log_mel, mean_normalise
from tests.builders import synthesise
from tests.training import TINY_SPEC
from train.augment import (
    add_noise,
    change_speed,
    copy_paste,
    crop,
    energy_mask,
    frame_energy_db,
    random_gain,
    reverberate,
    shift_prosody,
    telephone_band,
)

RATE = 16000


def rng(seed=0):
    return np.random.default_rng(seed)


def rms(wave):
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def tone(hz, seconds=1.0, level=0.3):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


EVERY = {
    "crop": lambda wave, g: crop(wave, 4000, g),
    "copy_paste": lambda wave, g: copy_paste(wave, wave[::-1].copy(), g, 8000),
    "add_noise": lambda wave, g: add_noise(wave, tone(500), 10.0, g),
    "reverberate": lambda wave, g: reverberate(wave, np.array([0.1, 1.0, 0.4], np.float32)),
    "random_gain": random_gain,
    "telephone_band": lambda wave, g: telephone_band(wave),
    "shift_prosody": shift_prosody,
    "change_speed": lambda wave, g: change_speed(wave, g.uniform(0.8, 1.25)),
}


@pytest.mark.parametrize("name", EVERY)
def test_same_generator_same_result_and_the_input_is_left_alone(name):
    wave = synthesise(0.6, 1)
    before = wave.copy()
    first, second = EVERY[name](wave, rng(3)), EVERY[name](wave, rng(3))
    assert np.array_equal(first, second) and np.array_equal(wave, before)
    assert first.dtype == np.float32 and first.ndim == 1
    assert np.isfinite(first).all() and np.abs(first).max() <= 1.0


@pytest.mark.parametrize("name", set(EVERY) - {"random_gain"})
def test_empty_or_two_dimensional_sound_is_refused(name):
    for bad in (np.empty(0, np.float32), np.zeros((2, 100), np.float32)):
        with pytest.raises(ValueError, match="expected shape"):
            EVERY[name](bad, rng())


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 100))
def test_crop_is_a_piece_of_the_repeated_waveform(length, samples, seed):
    wave = np.arange(1, length + 1, dtype=np.float32)
    piece = crop(wave, samples, rng(seed))
    assert len(piece) == samples
    steps = np.diff(piece)
    assert ((steps == 1) | (steps == 1 - length)).all()


def test_crop_reaches_both_ends():
    wave = np.arange(10, dtype=np.float32)
    starts = {int(crop(wave, 8, rng(seed))[0]) for seed in range(50)}
    assert starts == {0, 1, 2}


@given(st.integers(200, 6000), st.integers(200, 6000), st.integers(4000, 9000), st.integers(0, 50), st.booleans())
@settings(max_examples=50)
def test_copy_paste_has_the_length_asked_for_and_both_sides(first, second, samples, seed, match):
    joined = copy_paste(np.full(first, 0.1, np.float32), np.full(second, -0.4, np.float32), rng(seed), samples, match)
    assert len(joined) == samples
    share = np.mean(joined > 0)
    assert 0.25 <= share <= 0.75  # each side gets 30 to 70 %


def test_copy_paste_joins_either_order_and_matches_the_level_if_asked():
    quiet, loud = tone(200, level=0.05), tone(900, level=0.5)
    orders = set()
    for seed in range(20):
        joined = copy_paste(quiet, loud, rng(seed), RATE, match_level=False)
        orders.add(rms(joined[:2000]) < 0.1)
        matched = copy_paste(quiet, loud, rng(seed), RATE, match_level=True)
        ratio = rms(matched[:2000]) / rms(matched[-2000:])
        assert 0.8 < ratio < 1.25
    assert orders == {True, False}


def test_copy_paste_makes_no_click_at_the_joint():
    # Two constant levels: a hard cut would jump by 1.2 from one sample to the next.
    joined = copy_paste(np.full(5000, 0.6, np.float32), np.full(5000, -0.6, np.float32), rng(1), 8000, False)
    assert np.abs(np.diff(joined)).max() < 0.05
    assert np.sign(joined[0]) != np.sign(joined[-1])


def masked_frames(features, out):
    return np.flatnonzero((out == 0).all(axis=1) & ~(features == 0).all(axis=1))


@given(st.floats(0.0, 0.45), st.integers(1, 40), st.sampled_from(["high", "random"]), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_masks_cover_the_share_asked_for_in_every_region(fraction, span, region, seed):
    features = rng(seed).normal(size=(150, 4)).astype(np.float32)
    energy = rng(seed + 1).normal(size=150).astype(np.float32)
    before = features.copy()
    out = energy_mask(features, energy, rng(seed), fraction, span, region)
    assert len(masked_frames(features, out)) == round(fraction * 150)
    assert np.array_equal(features, before)
    kept = np.setdiff1d(np.arange(150), masked_frames(features, out))
    assert np.array_equal(out[kept], features[kept])


def test_high_masks_lie_where_the_energy_is_high_and_random_ones_anywhere():
    features = rng().normal(size=(200, 4)).astype(np.float32)
    energy = np.where((np.arange(200) // 50) % 2 == 0, -60.0, -20.0).astype(np.float32)  # long loud and quiet stretches
    loud = energy > -40
    share = {}
    for region in ("high", "random"):
        hits = [
            loud[masked_frames(features, energy_mask(features, energy, rng(s), 0.2, 12, region))].mean()
            for s in range(30)
        ]
        share[region] = np.mean(hits)
    assert share["high"] > 0.8
    assert 0.35 < share["random"] < 0.65


def test_masks_are_contiguous_spans():
    features = rng().normal(size=(300, 4)).astype(np.float32)
    out = energy_mask(features, rng(1).normal(size=300), rng(2), 0.2, span=20, region="random")
    frames = masked_frames(features, out)
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    assert len(runs) <= 8  # 60 frames in spans of 20; scattered frames would make about 48 runs


def test_a_mask_of_another_length_or_region_is_refused():
    features = np.zeros((10, 4), np.float32)
    with pytest.raises(ValueError, match="one energy per frame"):
        energy_mask(features, np.zeros(9), rng())
    with pytest.raises(ValueError, match="high or random"):
        energy_mask(features, np.zeros(10), rng(), region="middle")


def test_frame_energy_is_aligned_with_the_features():
    wave = synthesise(0.7, 2)
    for length in (400, 401, 559, 560, 561, 8000):
        energy = frame_energy_db(wave[:length], TINY_SPEC.frame_length, TINY_SPEC.frame_shift)
        assert len(energy) == len(log_mel(wave[:length], TINY_SPEC))
    burst = np.concatenate((np.zeros(8000, np.float32), tone(300, 0.1), np.zeros(8000, np.float32)))
    energy = frame_energy_db(burst)
    mel = log_mel(burst, TINY_SPEC).mean(axis=1)
    assert energy.argmax() in range(48, 61) and abs(int(energy.argmax()) - int(mel.argmax())) <= 6


def test_noise_lies_at_the_ratio_asked_for():
    wave = synthesise(1.0, 0) * 0.2
    for snr in (0.0, 10.0, 25.0):
        added = add_noise(wave, tone(700, 0.3), snr, rng()) - wave
        assert 20 * np.log10(rms(wave) / rms(added)) == pytest.approx(snr, abs=0.5)


def test_a_room_of_one_path_changes_nothing_and_its_delay_is_taken_out():
    wave = synthesise(0.5, 0)
    for delay in (0, 37):
        response = np.zeros(100, np.float32)
        response[delay] = 0.3
        assert np.abs(reverberate(wave, response) - wave).max() < 1e-4


def test_reverberation_keeps_length_and_level():
    wave = synthesise(0.5, 0) * 0.3
    tail = (rng().normal(size=4000) * np.exp(-np.arange(4000) / 800)).astype(np.float32)
    wet = reverberate(wave, tail)
    assert len(wet) == len(wave) and rms(wet) == pytest.approx(rms(wave), rel=0.02)


def test_the_telephone_keeps_the_middle_and_removes_the_rest():
    for hz, kept in ((100, False), (1000, True), (3000, True), (5000, False)):
        ratio = rms(telephone_band(tone(hz))) / rms(tone(hz))
        assert (ratio > 0.95) if kept else (ratio < 0.05)


def test_a_prosody_shift_is_another_delivery_of_the_same_words():
    wave = synthesise(1.2, 5)
    spec = TINY_SPEC
    changed = 0
    for seed in range(4):
        morph = shift_prosody(wave, rng(seed))
        assert rms(morph) == pytest.approx(rms(wave), rel=0.15)
        assert 0.7 < len(morph) / len(wave) < 1.35
        frames = min(len(morph), len(wave)) // 160 - 3
        a, b = (mean_normalise(log_mel(x, spec))[:frames] for x in (wave, morph))
        changed += np.abs(a - b).mean() > 0.3
    assert changed == 4


@pytest.mark.parametrize("factor", [0.78, 1.0, 1.25])
def test_a_faster_voice_is_shorter_and_higher_by_the_same_factor(factor):
    wave = tone(400, 1.0)
    out = change_speed(wave, factor)
    assert len(out) == pytest.approx(len(wave) / factor, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(out * np.hanning(len(out))))) * RATE / len(out)
    assert peak == pytest.approx(400 * factor, rel=0.01)
    assert rms(out) == pytest.approx(rms(wave), rel=0.05)
