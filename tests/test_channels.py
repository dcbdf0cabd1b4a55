"""Channels are mixed, chosen or read apart; and where mixing does harm, that is said, not "speak longer"."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import soundfile

from emoinv_edge.audio import read_audio, read_channels, to_mono
from emoinv_edge.channels import ChannelComparison
from emoinv_edge.errors import AudioError
from tests.builders import synthesise

RATE = 16000
SECONDS = 8.0
RNG = np.random.default_rng(0)


def speech(seed: int = 1, f0_hz: float = 120.0) -> np.ndarray:
    """Speech with pauses, as people leave them."""
    wave = synthesise(SECONDS, seed, f0_hz)
    time = np.arange(len(wave)) / RATE
    return (wave * np.where((time + 0.37 * seed) % 2.0 < 1.3, 1.0, 0.003)).astype(np.float32)


def hiss(level_dbfs: float) -> np.ndarray:
    return (10.0 ** (level_dbfs / 20.0) * RNG.standard_normal(round(SECONDS * RATE))).astype(np.float32)


def hum(level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2.0 * np.pi * 50.0 * np.arange(round(SECONDS * RATE)) / RATE)).astype(np.float32)


def recording(*channels: np.ndarray, kind: str = "WAV") -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, np.stack([0.5 * channel for channel in channels], axis=1), RATE, format=kind)
    file.seek(0)
    return file


def notes_of(*channels: np.ndarray) -> tuple[str, ...]:
    return read_audio(recording(*channels))[1]


# --- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_channel_is_chosen_by_its_number_from_one(kind, channels):
    waves = [speech(seed) for seed in range(channels)]
    content = recording(*waves, kind=kind)
    apart, notes = read_channels(io.BytesIO(content.getvalue()))
    assert len(apart) == channels and notes == ()
    for number in range(1, channels + 1):
        waveform, notes = read_audio(io.BytesIO(content.getvalue()), channel=number)
        assert np.array_equal(waveform, apart[number - 1])
        assert np.corrcoef(waveform, waves[number - 1])[0, 1] > 0.9
        assert notes == ((f"took channel {number} of {channels}",) if channels > 1 else ())


def test_channels_are_resampled_as_each_would_be_alone():
    waves = np.stack([speech(1), speech(2)], axis=1)
    file = io.BytesIO()
    soundfile.write(file, waves, 44100, format="WAV", subtype="FLOAT")
    for number in (0, 1):
        file.seek(0)
        assert np.array_equal(read_channels(file)[0][number], to_mono(waves[:, number], 44100))
    file.seek(0)
    assert np.array_equal(read_audio(file)[0], to_mono(waves, 44100))


def test_a_channel_that_is_not_there_is_refused():
    with pytest.raises(AudioError, match="a channel from 1 to 2, got 3"):
        read_audio(recording(speech(1), speech(2)), channel=3)


@pytest.mark.parametrize("channel", [0, -1, 1.5, "left", None, True])
def test_what_is_no_channel_is_refused(channel):
    with pytest.raises(ValueError, match="'mix' or a number from 1"):
        read_audio(recording(speech()), channel=channel)


def test_the_longest_duration_counts_all_channels_that_are_read_apart():
    content = recording(speech(1), speech(2), speech(3))
    with pytest.raises(AudioError, match=r"at most 20 s of all 3 channels.*max_duration_s"):
        read_channels(content, max_duration_s=20)
    content.seek(0)
    assert len(read_channels(content, max_duration_s=25)[0]) == 3


# --- inverted channels -------------------------------------------------------------------------

INVERTED = {
    "exactly": lambda: (speech(), -speech()),
    "softer": lambda: (speech(), -0.7 * speech()),
    "with noise of their own": lambda: (speech() + hiss(-45), -0.99 * speech() + hiss(-45)),
    "over the same hum": lambda: (speech() + hum(), -speech() + hum()),
    "with an offset": lambda: (speech() + 0.2, 0.2 - speech()),
    "the second of three": lambda: (speech(), -1.9 * speech(), speech() + hiss(-60)),
    "a steady tone": lambda: (hum(), -hum()),
}


@pytest.mark.parametrize("channels", INVERTED.values(), ids=INVERTED.keys())
def test_inverted_channels_are_refused_as_that_and_the_cure_works(channels):
    channels = channels()
    with pytest.raises(AudioError, match=r"channels 1 and 2 are inverted .* channel=(\d) \(--channel \1\)") as raised:
        read_audio(recording(*channels))
    number = int(re.search(r"channel=(\d)", str(raised.value))[1])
    waveform, _ = read_audio(recording(*channels), channel=number)
    assert np.corrcoef(waveform, channels[number - 1])[0, 1] > 0.999
    with pytest.raises(AudioError, match=r"channels 1 and 2 are inverted .* waveform\[:, \d\]"):
        to_mono(np.stack([0.5 * channel for channel in channels], axis=1).astype(np.float32), RATE)


MIXED = {
    "the same": lambda: (speech(), speech()),
    "the same with noise": lambda: (speech() + hiss(-30), speech() + hiss(-30)),
    "with hum inverted": lambda: (speech() + hum(), speech() - hum()),
    "with offsets inverted": lambda: (speech() + 0.3, speech() - 0.3),
    "a little later": lambda: (speech(), np.roll(speech(), 40)),
    "much softer": lambda: (speech(), 0.05 * speech()),
    "one silent": lambda: (speech(), 0.0 * speech()),
    "one nearly silent": lambda: (speech(), hiss(-85)),
    "both noise": lambda: (hiss(-20), hiss(-20)),
    "all silent but one of eight": lambda: (speech(), *[0.0 * speech()] * 7),
}


@pytest.mark.parametrize("channels", MIXED.values(), ids=MIXED.keys())
def test_channels_that_mixing_suits_are_mixed_without_a_word(channels):
    channels = channels()
    waveform, notes = read_audio(recording(*channels))
    assert notes == (f"mixed {len(channels)} channels down to their mean",)
    assert np.corrcoef(waveform, np.mean(channels, axis=0))[0, 1] > 0.999


# --- a channel of noise, two people ------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "noisy", "other"),
    [
        (lambda: (speech(), hiss(-20)), 2, 1),
        (lambda: (hiss(-12), speech()), 1, 2),
        (lambda: (speech(), hum(0.2)), 2, 1),
        (lambda: (speech() + hiss(-55), hiss(-30) + hum(0.05)), 2, 1),
        (lambda: (speech(), speech(), hiss(-20)), 3, 1),
    ],
    ids=["right", "left and loud", "hum", "hiss and hum", "third"],
)
def test_a_channel_of_noise_is_said_and_the_cure_works(channels, noisy, other):
    channels = channels()
    assert f"channel {noisy} is steady noise, which mixing added to channel {other}" in notes_of(*channels)[-1]
    assert f"channel={other} (--channel {other})" in notes_of(*channels)[-1]
    waveform, _ = read_audio(recording(*channels), channel=other)
    assert np.corrcoef(waveform, channels[other - 1])[0, 1] > 0.999


@pytest.mark.parametrize("crosstalk", [0.0, 0.03])
def test_two_people_on_two_channels_are_said(crosstalk):
    turn = np.where(np.arange(round(SECONDS * RATE)) // (2 * RATE) % 2, 1.0, 0.0)
    caller, agent = turn * speech(1, 110.0), (1.0 - turn) * speech(2, 210.0)
    notes = notes_of(caller + crosstalk * agent + hiss(-60), agent + crosstalk * caller + hiss(-60))
    assert notes[-1].startswith("channels 1 and 2 hold different sound, as of two people in a call")
    assert "channel=1 (--channel 1), or channel=2" in notes[-1]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5])
def test_too_short_a_recording_is_not_judged(seconds):
    length = max(1, round(seconds * RATE))
    assert len(notes_of(speech()[:length] + 0.01, hiss(-20)[:length])) == 1


@pytest.mark.parametrize("size", [320, 1000, 4801, 65536])
def test_what_is_found_does_not_depend_on_how_a_recording_is_cut(size):
    for channels, found in (((speech(), hiss(-20)), "channel 2 is steady noise"), ((speech(), -speech()), None)):
        waveform = np.stack(channels, axis=1)
        comparison = ChannelComparison()
        for at in range(0, len(waveform), size):
            comparison.add(waveform[at : at + size], RATE)
        assert comparison.opposed() == (None if found else (1, 2))
        assert found is None or found in comparison.notes()[0]
