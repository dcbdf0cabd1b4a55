"""Channels: each leaves what its real counterpart leaves, and depends on its generator alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import synthesise
from train.channel import (
    KINDS,
    Channels,
    a_law,
    band_pass,
    clip_peaks,
    microphone_response,
    narrow_band,
    set_level,
    telephone,
)
from train.codecs import CODECS, through_codec
from train.rooms import read_rooms, simulate_rooms, write_rooms

RATE = 16000


@pytest.fixture(scope="module")
def rooms():
    return simulate_rooms(3, seed=3)


@pytest.fixture(scope="module")
def speech():
    return synthesise(1.5, 4)


def rng(seed=0):
    return np.random.default_rng(seed)


def power_db(wave, low_hz, high_hz):
    """Power within a band relative to all of it."""
    power = np.square(np.abs(np.fft.rfft(wave)))
    hz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return 10 * np.log10(power[(hz >= low_hz) & (hz < high_hz)].sum() / power.sum() + 1e-20)


def hiss(seconds=1.0, level=0.1):
    return (level * rng(9).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_equal_length_and_depends_on_the_generator_alone(kind, rooms, speech):
    channels, before = Channels([hiss()], rooms), speech.copy()
    first, second = channels.hear(speech, kind, rng(3)), channels.hear(speech, kind, rng(3))
    other = channels.hear(speech, kind, rng(4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(speech, before)
    assert first.shape == speech.shape and first.dtype == np.float32
    assert np.isfinite(first).all() and np.abs(first).max() <= 1.0


def test_clean_changes_the_level_alone(speech):
    heard = Channels().hear(speech, "clean", rng(1))
    assert np.allclose(heard / np.abs(heard).max(), speech / np.abs(speech).max(), atol=1e-5)


def test_a_kind_that_is_not_known_and_a_room_that_is_not_there_are_refused(speech):
    with pytest.raises(ValueError, match="kind"):
        Channels().hear(speech, "carrier pigeon", rng())
    with pytest.raises(ValueError, match="simulate_rooms"):
        Channels().hear(speech, "far_room", rng())
    with pytest.raises(ValueError, match="shape"):
        Channels().hear(np.empty(0, np.float32), "clean", rng())


@pytest.mark.parametrize("law", ["mu", "a"])
def test_a_landline_carries_its_band_and_nothing_beyond(law):
    heard = telephone(hiss(), law=law)
    assert power_db(heard, 300, 3400) > -0.2
    # Quantisation fills what the filter leaves up to 4 kHz; above there is only what the piece's ends make.
    assert power_db(heard, 3700, 3950) < -25 and power_db(heard, 4200, 8000) < -40


def test_careless_resampling_leaves_images_above_the_band():
    heard = telephone(hiss(), images=True)
    assert -40 < power_db(heard, 4500, 8000) < -10


def test_an_unknown_law_is_refused(speech):
    with pytest.raises(ValueError, match="law"):
        telephone(speech, law="murphy")


def test_eight_bits_of_a_law_err_by_a_small_share_of_any_level():
    for level in (0.9, 0.1, 0.01):
        wave = (level * np.sin(np.arange(4000) / 7)).astype(np.float32)
        error = a_law(wave) - wave
        assert 20 * np.log10(np.std(error) / np.std(wave)) < -25
    assert len(np.unique(a_law(np.linspace(-1, 1, 5001).astype(np.float32)))) <= 256


def test_a_narrow_band_is_at_8_khz():
    assert len(narrow_band(hiss())) == RATE // 2


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_keeps_time_and_the_words_and_loses_the_rest(name, speech):
    rate = CODECS[name].bit_rates[-1]
    heard = through_codec(speech, name, rate)
    size = 1 << 16
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(speech, size)), size)
    lag = int(np.argmax(product))
    assert min(lag, size - lag) <= 8, "it lags behind"
    assert heard.shape == speech.shape and not np.array_equal(heard, speech)
    assert float(heard @ speech / np.linalg.norm(heard) / np.linalg.norm(speech)) > 0.5


@pytest.mark.parametrize("name", ["gsm", "amr"])
def test_a_mobile_codec_carries_nothing_above_4_khz(name):
    assert power_db(through_codec(hiss(), name), 4200, 8000) < -40


def test_a_codec_loses_more_at_fewer_bits(speech):
    def kept(bit_rate):
        heard = through_codec(speech, "opus", bit_rate)
        return float(heard @ speech / np.linalg.norm(heard) / np.linalg.norm(speech))

    assert kept(6000) < kept(24000)


def test_an_unknown_codec_is_refused(speech):
    with pytest.raises(ValueError, match="codec"):
        through_codec(speech, "morse")


def test_silence_goes_through_every_channel(rooms):
    silence = np.zeros(RATE, np.float32)
    for kind in KINDS:
        assert np.isfinite(Channels([silence], rooms).hear(silence, kind, rng(2))).all()


def test_clipping_cuts_the_loudest_share_and_keeps_the_peak(speech):
    clipped = clip_peaks(speech, 0.02)
    peak = np.abs(speech).max()
    assert np.isclose(np.abs(clipped).max(), peak)
    assert 0.015 < np.mean(np.abs(clipped) >= 0.999 * peak) < 0.03
    with pytest.raises(ValueError, match="share"):
        clip_peaks(speech, 1.0)


def test_level_is_the_peak_in_dbfs(speech):
    assert np.isclose(20 * np.log10(np.abs(set_level(speech, -12.0)).max()), -12.0, atol=0.01)


def test_a_band_falls_to_60_db_beyond_its_edges():
    kept = band_pass(hiss(), 300, 3400)
    assert power_db(kept, 5000, 8000) < -55 and power_db(kept, 300, 3400) > -0.3


def test_microphones_differ_and_none_amplifies_without_bound():
    gains = [microphone_response(RATE, rng(seed)) for seed in range(20)]
    assert all(gain.shape == (RATE // 2 + 1,) and gain.min() >= 0.0 and gain.max() < 30.0 for gain in gains)
    assert not np.allclose(gains[0], gains[1])


def test_a_far_microphone_hears_more_of_the_room_than_a_near_one(rooms):
    def direct_share(response):
        strongest = int(np.argmax(np.abs(response)))
        power = np.square(response)
        return power[: strongest + 80].sum() / power.sum()

    assert all(direct_share(room.near) > direct_share(room.far) for room in rooms)
    assert all(1.0 <= room.far_m <= 5.0 and 0.2 <= room.rt60_s <= 1.0 for room in rooms)


def test_rooms_reverberate_about_as_long_as_asked_for(rooms):
    for room in rooms:
        decay = 10 * np.log10(np.cumsum(np.square(room.far[::-1]))[::-1] / np.square(room.far).sum() + 1e-12)
        start, stop = np.argmax(decay < -5), np.argmax(decay < -25)
        assert 0.5 * room.rt60_s < 3 * (stop - start) / RATE < 1.7 * room.rt60_s


def test_room_number_i_depends_on_seed_and_i_alone_and_numpys_generator_is_left_alone(rooms):
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    again = simulate_rooms(2, seed=3)
    assert np.random.random() == expected  # noqa: NPY002
    assert all(np.array_equal(first.far, second.far) for first, second in zip(rooms, again, strict=False))


def test_rooms_are_read_as_they_were_kept(rooms, tmp_path):
    write_rooms(tmp_path / "rooms.npz", rooms)
    kept = read_rooms(tmp_path / "rooms.npz")
    assert len(kept) == len(rooms)
    for first, second in zip(rooms, kept, strict=True):
        assert np.array_equal(first.near, second.near) and np.array_equal(first.far, second.far)
        assert (first.rt60_s, first.far_m) == (second.rt60_s, second.far_m)
