"""HeardBefore: a recording of what the device heard is known again, an honest repeat is not."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.acoustic_fingerprint import AcousticFingerprint, Utterance
from emoinv_edge.errors import AudioError
from emoinv_edge.heard import RIGID, SCORE, HeardBefore, Match

RATE = 16000
NOON = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.timezone.utc)
Speech = Callable[..., NDArray[np.float32]]


def heard(*waveforms: NDArray[np.float32], keep: int = 64) -> HeardBefore:
    found = HeardBefore(keep)
    for number, waveform in enumerate(waveforms):
        found.add(waveform, RATE, NOON + datetime.timedelta(minutes=number))
    return found


def played_back(waveform: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Through a small loudspeaker: no bass, no treble, a resonance, distortion, and noise at 25 dB."""
    hz = np.fft.rfftfreq(len(waveform), 1.0 / RATE)
    gain = (1.0 + 2.0 * np.exp(-0.5 * ((hz - 1500.0) / 200.0) ** 2)) / (1.0 + (300.0 / np.maximum(hz, 1.0)) ** 2)
    sound = np.tanh(2.0 * np.fft.irfft(np.fft.rfft(waveform) * gain / (1.0 + (hz / 6000.0) ** 4), len(waveform)))
    noise = np.random.default_rng(seed).standard_normal(len(sound)) * np.std(sound) * 10.0 ** (-25.0 / 20.0)
    return np.asarray(0.3 * (sound + noise), np.float32)


def test_a_played_back_recording_is_heard_before(speechlike: Speech) -> None:
    first, second = speechlike(4.0, 1), speechlike(3.0, 2, 200.0)
    match = heard(first, second).check(played_back(second), RATE)
    assert match is not None
    assert match.when == NOON + datetime.timedelta(minutes=1)
    assert SCORE < match.score <= 2.0
    assert match.offset_s == 0.0


def test_other_words_of_the_same_voice_are_not(speechlike: Speech) -> None:
    store = heard(*(speechlike(4.0, seed) for seed in range(12)))
    assert all(store.check(speechlike(4.0, seed), RATE) is None for seed in range(20, 30))


@pytest.mark.parametrize("start_s", [0.0, 0.5, 1.234, 2.9])
def test_one_second_out_of_a_recording_is_found_where_it_was(speechlike: Speech, start_s: float) -> None:
    speech = speechlike(4.0, 3)
    start = round(start_s * RATE)
    match = heard(speech).check(played_back(speech)[start : start + RATE], RATE)
    assert match is not None
    assert match.offset_s == pytest.approx(start_s, abs=0.021)


@pytest.mark.parametrize("speed", [0.97, 0.985, 0.99, 1.01, 1.02, 1.03])
def test_another_speed_of_playback_does_not_hide_it(speechlike: Speech, speed: float) -> None:
    speech = speechlike(3.0, 4)
    faster = np.asarray(soxr.resample(speech, RATE * speed, RATE), np.float32)
    assert heard(speech).check(played_back(faster), RATE) is not None


def test_a_longer_recording_around_it_does_not_hide_it(speechlike: Speech) -> None:
    speech = speechlike(2.0, 5)
    around = np.concatenate((speechlike(2.0, 6), speech, speechlike(1.5, 7)))
    match = heard(speech).check(around, RATE)
    assert match is not None
    assert match.offset_s == pytest.approx(-2.0, abs=0.021)


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1.9])
def test_level_does_not_matter(speechlike: Speech, gain: float) -> None:
    speech = speechlike(3.0, 8)
    match = heard(speech).check((gain * speech).astype(np.float32), RATE)
    assert match is not None
    assert match.score > 1.9


def test_every_form_of_audio_that_the_library_takes_is_the_same_utterance(speechlike: Speech) -> None:
    speech = speechlike(3.0, 9)
    store = heard(speech)
    int16 = np.rint(speech * 32767).astype(np.int16)
    stereo = np.stack((speech, speech), axis=1)
    fast = np.asarray(soxr.resample(speech, RATE, 48000), np.float32)
    for waveform, rate in ((int16, RATE), (stereo, RATE), (fast, 48000)):
        match = store.check(waveform, rate)
        assert match is not None
        assert match.score > 1.9


def likeness(before: NDArray[np.float32], now: NDArray[np.float32]) -> tuple[float, float]:
    """Score and rigidity of one utterance over another."""
    first, second = Utterance.of(before, RATE), Utterance.of(now, RATE)
    assert first is not None and second is not None
    stored = AcousticFingerprint.of(first)
    fit = second.fit(stored)
    return (0.0, 0.0) if fit is None else (fit.score, second.rigidity(stored, fit))


@given(st.integers(0, 2**32 - 1), st.integers(0, 40000), st.integers(0, 40000))
@settings(max_examples=25)
def test_silence_around_an_utterance_never_makes_a_score_beyond_two(seed: int, before: int, after: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.asarray(0.1 * rng.standard_normal(RATE), np.float32) for _ in range(2))
    stored = np.concatenate((np.zeros(before, np.float32), first))
    for now, high in ((second, SCORE), (first, 2.001)):
        score, rigid = likeness(stored, np.concatenate((now, np.zeros(after, np.float32))))
        assert 0.0 <= score <= high
        assert -1.001 <= rigid <= 1.001


def repeated(waveform: NDArray[np.float32], percent: float) -> NDArray[np.float32]:
    """The same words again, hurried in one place and slow in another: pitch and time wander by so many percent."""
    seconds = np.arange(len(waveform)) / RATE
    wander = percent / 100.0 * np.sin(2.0 * np.pi * seconds / 1.3) * 1.3 / (2.0 * np.pi)
    return np.interp(seconds + wander, seconds, waveform).astype(np.float32)


@pytest.mark.parametrize("seed", [30, 31, 32, 33])
def test_an_honest_repeat_is_like_the_first_time_and_is_no_recording_of_it(speechlike: Speech, seed: int) -> None:
    speech = speechlike(3.0, seed)
    score, rigid = likeness(speech, played_back(repeated(speech, 2.0)))
    assert score > 0.8 and rigid < RIGID - 0.02
    assert heard(speech).check(repeated(speech, 2.0), RATE) is None


@pytest.mark.parametrize("seed", [30, 31, 32, 33])
def test_a_recording_is_rigid_whatever_it_went_through(speechlike: Speech, seed: int) -> None:
    speech = speechlike(3.0, seed)
    narrow = np.asarray(soxr.resample(soxr.resample(speech, RATE, 8000), 8000, RATE), np.float32)[: len(speech)]
    coarse = np.round(narrow * 30.0) / np.float32(30.0)
    for now in (played_back(speech), played_back(coarse, seed), played_back(speech)[RATE:]):
        score, rigid = likeness(speech, now)
        assert score >= SCORE and rigid >= RIGID


def test_too_short_an_overlap_is_no_match(speechlike: Speech) -> None:
    """A fifth of a second cannot wander, so that everything would be rigid."""
    speech = speechlike(0.8, 34)
    around = np.concatenate((speechlike(2.0, 35), speech[: RATE // 2]))
    assert heard(speech).check(around, RATE) is None


def test_the_best_match_of_several_is_given(speechlike: Speech) -> None:
    speech = speechlike(3.0, 10)
    match = heard(played_back(speech), speech, speechlike(3.0, 11)).check(speech, RATE)
    assert match is not None
    assert match.when == NOON + datetime.timedelta(minutes=1)


def test_only_so_many_are_kept_and_the_oldest_goes_first(speechlike: Speech) -> None:
    clips = [speechlike(2.0, seed) for seed in range(5)]
    store = heard(*clips, keep=3)
    assert len(store) == 3
    assert [store.check(clip, RATE) is not None for clip in clips] == [False, False, True, True, True]


def test_sixty_four_utterances_of_four_seconds_take_a_megabyte(speechlike: Speech) -> None:
    store = heard(*[speechlike(4.0, 12)] * 64)
    assert len(store.to_bytes()) <= 1_150_000


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.79])
def test_too_short_an_utterance_neither_stays_nor_matches(speechlike: Speech, seconds: float) -> None:
    speech = speechlike(2.0, 13)
    store = heard(speech)
    part = speech[: round(seconds * RATE)]
    store.add(part, RATE)
    assert len(store) == 1
    assert store.check(part, RATE) is None


@pytest.mark.parametrize("samples", [0, 2 * RATE])
def test_silence_is_refused_and_leaves_nothing(samples: int) -> None:
    store = HeardBefore()
    with pytest.raises(AudioError):
        store.add(np.zeros(samples, np.float32), RATE)
    assert len(store) == 0


def test_of_a_long_recording_the_first_twenty_seconds_are_kept(speechlike: Speech) -> None:
    speech = speechlike(24.0, 14)
    store = heard(speech)
    assert store.check(speech[5 * RATE : 8 * RATE], RATE) is not None
    assert store.check(speech[21 * RATE : 24 * RATE], RATE) is None


def test_bytes_bring_back_the_same_answers(speechlike: Speech) -> None:
    speech = speechlike(3.0, 15)
    store = heard(speech, speechlike(2.5, 16))
    back = HeardBefore.from_bytes(store.to_bytes())
    assert len(back) == 2
    assert back.check(played_back(speech), RATE) == store.check(played_back(speech), RATE)
    assert len(HeardBefore.from_bytes(b"")) == 0


@pytest.fixture(scope="module")
def stored_bytes() -> bytes:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * np.float32(0.1)
    return heard(noise, noise[: RATE - 1000]).to_bytes()


@given(st.data())
@settings(max_examples=40)
def test_bytes_that_were_cut_are_refused(stored_bytes: bytes, data: st.DataObject) -> None:
    whole = len(HeardBefore.from_bytes(stored_bytes))
    cut = stored_bytes[: data.draw(st.integers(1, len(stored_bytes) - 1))]
    try:
        assert len(HeardBefore.from_bytes(cut)) < whole  # cut between two utterances
    except ValueError as error:
        assert "damaged or foreign" in str(error)


@pytest.mark.parametrize("head", [b"\x00" * 12, b"\xff" * 12, b"\x00" * 8 + b"\xff\xff\xff\xff"])
def test_foreign_bytes_are_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match="damaged or foreign"):
        HeardBefore.from_bytes(head)


@pytest.mark.parametrize("keep", [0, -1, 4097, 1.0, True])
def test_a_number_of_utterances_that_cannot_be_kept_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="keep"):
        HeardBefore(keep)


def test_a_time_without_zone_is_refused(speechlike: Speech) -> None:
    with pytest.raises(ValueError, match="time zone"):
        HeardBefore().add(speechlike(2.0, 17), RATE, datetime.datetime(2026, 11, 1))


def test_a_waveform_that_is_not_finite_is_refused_and_leaves_nothing(speechlike: Speech) -> None:
    store = heard(speechlike(2.0, 18))
    broken = speechlike(2.0, 19)
    broken[100] = np.nan
    with pytest.raises(AudioError):
        store.add(broken, RATE)
    with pytest.raises(AudioError):
        store.check(broken, RATE)
    assert len(store) == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
@settings(max_examples=15)
def test_what_else_was_heard_never_hides_a_match(seed: int, place: int) -> None:
    rng = np.random.default_rng(seed)
    clips = [np.asarray(0.1 * rng.standard_normal(RATE + 320 * k), np.float32) for k in range(4)]
    alone = heard(clips[place]).check(clips[place], RATE)
    among = heard(*clips).check(clips[place], RATE)
    assert isinstance(alone, Match)
    assert isinstance(among, Match)
    assert among.score >= alone.score - 1e-9
