"""VerificationStream: the right voice at the right time, and no fault ever accepted or passed over."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.calibration import FarTable
from emoinv_edge.decision import Decision, Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError
from emoinv_edge.stream import VerificationStream
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, calibration, enrolled, noise, profile, synthesise

STRANGER_HZ = 150.0
CALIBRATION = calibration(
    bias=-6.3,
    far_tables=(FarTable(1, (0.5, 0.001), (0.0, 1.0)), FarTable(16, (0.5, 0.001), (0.0, 1.0))),
    num_impostor_speakers=10_000,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("stream"), CALIBRATION)


@pytest.fixture(scope="module")
def verifier(encoder: Encoder) -> Verifier:
    return Verifier(encoder, [enrolled(encoder, name, hz, 3, 4.0) for name, hz in (("ana", ANA_HZ), ("bob", BOB_HZ))])


@pytest.fixture(scope="module")
def talk() -> NDArray[np.float32]:
    """Ana from 1 s to 5 s, Bob from 6 s to 8.5 s, a stranger from 9.5 s to 12 s, a word of Ana's at 13 s."""
    return np.concatenate(
        [
            *(noise(1.0, 1), synthesise(4.0, 100, ANA_HZ)),
            *(noise(1.0, 2), synthesise(2.5, 101, BOB_HZ)),
            *(noise(1.0, 3), synthesise(2.5, 102, STRANGER_HZ)),
            *(noise(1.0, 4), synthesise(0.4, 103, ANA_HZ), noise(1.0, 5)),
        ]
    )


def run(stream: VerificationStream, waveform: NDArray[Any], sizes: list[int]) -> list[Decision]:
    out: list[Decision] = []
    at = turn = 0
    while at < len(waveform):
        size = sizes[turn % len(sizes)]
        out += stream.process(waveform[at : at + size])
        at += size
        turn += 1
    return out + stream.flush()


def finals(decisions: list[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.final and decision.end - decision.start > RATE // 4]


def test_each_voice_is_named_in_its_time(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    decisions = run(verifier.stream(), talk, [320])
    ana, bob, stranger, word = finals(decisions)
    assert (ana.verdict, ana.speaker) == (Verdict.ACCEPT, "ana")
    assert (bob.verdict, bob.speaker) == (Verdict.ACCEPT, "bob")
    assert stranger.verdict is Verdict.REJECT
    assert word.verdict is Verdict.NO_DECISION and word.score is None and "too little" in word.reason
    times = [(1, 5), (6, 8.5), (9.5, 12), (13, 13.4)]
    for decision, (start, end) in zip((ana, bob, stranger, word), times, strict=True):
        assert decision.start / RATE == pytest.approx(start, abs=0.25)
        assert decision.end / RATE == pytest.approx(end, abs=0.25)


def test_provisional_decisions_come_every_half_second_of_speech(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    first, *rest = [d for d in run(verifier.stream(), talk, [320]) if not d.final and d.end < 5.5 * RATE]
    assert first.verdict is Verdict.ACCEPT
    assert first.end / RATE == pytest.approx(1.0 + 0.8, abs=0.25)  # 0.8 s of speech are the least
    ends = [first.end, *(decision.end for decision in rest)]
    assert len(ends) >= 6
    assert all(0.25 * RATE <= step <= 0.5 * RATE for step in np.diff(ends))


def test_a_decision_is_out_soon_after_its_end(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    stream = verifier.stream()
    for at in range(0, len(talk), 160):
        for decision in stream.process(talk[at : at + 160]):
            wait = at + 160 - decision.end
            assert 0 <= wait <= 0.4 * RATE  # a pause that turns out to be one may lie between


@pytest.fixture(scope="module")
def whole(verifier: Verifier, talk: NDArray[np.float32]) -> list[Decision]:
    """The decisions on all of `talk` in one chunk."""
    return run(verifier.stream(), talk, [len(talk)])


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 159, 160, 161, 479, 480, 481]) | st.integers(100, 50000), max_size=6))
def test_chunking_is_invisible(
    verifier: Verifier, talk: NDArray[np.float32], whole: list[Decision], sizes: list[int]
) -> None:
    assert len(whole) > 15
    assert run(verifier.stream(), talk, [*sizes, 3000, 0]) == whole


def test_single_samples_and_one_chunk_of_two_minutes_give_the_same(
    verifier: Verifier, talk: NDArray[np.float32]
) -> None:
    short = talk[: 3 * RATE]
    assert run(verifier.stream(), short, [1]) == run(verifier.stream(), short, [len(short)])
    long = np.concatenate([talk, np.zeros(120 * RATE - len(talk), np.float32)])
    pieces = run(verifier.stream(), long, [8000])
    assert run(verifier.stream(), long, [len(long)]) == pieces
    assert len(finals(pieces)) == 4


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled_and_times_stay_true(
    verifier: Verifier, talk: NDArray[np.float32], rate: int
) -> None:
    from emoinv_edge.audio import to_mono

    at_rate = to_mono(talk[: round(9.2 * RATE)], RATE, rate)
    decisions = run(verifier.stream(rate), at_rate, [441])
    assert decisions == run(verifier.stream(rate), at_rate, [100_000])
    reference = finals(run(verifier.stream(), talk[: round(9.2 * RATE)], [441]))
    for got, expected in zip(finals(decisions), reference, strict=True):
        assert got.start == pytest.approx(expected.start, abs=0.1 * RATE)
        assert got.end == pytest.approx(expected.end, abs=0.1 * RATE)
        if rate > 8000:
            assert (got.verdict, got.speaker) == (expected.verdict, expected.speaker)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_every_sample_format_gives_the_same_verdicts(
    verifier: Verifier, talk: NDArray[np.float32], dtype: type
) -> None:
    scale = 1.0 if dtype is np.float64 else float(np.iinfo(dtype).max)
    converted = (talk[: 6 * RATE].astype(np.float64) * scale).astype(dtype)
    stereo = np.stack([converted, converted], axis=1)
    (decision,) = finals(run(verifier.stream(), stereo, [777]))
    assert (decision.verdict, decision.speaker) == (Verdict.ACCEPT, "ana")


def test_flush_and_reset_equal_new(verifier: Verifier, talk: NDArray[np.float32], whole: list[Decision]) -> None:
    stream = verifier.stream()
    stream.process(talk[: 3 * RATE])
    stream.gap(99)
    stream.reset()
    assert run(stream, talk, [480]) == whole
    assert run(stream, talk, [48_000]) == whole


def test_an_open_utterance_is_decided_by_flush(verifier: Verifier) -> None:
    stream = verifier.stream()
    stream.process(np.concatenate([noise(1.0), synthesise(2.0, 100, ANA_HZ)]))
    assert stream.in_speech
    (decision,) = [decision for decision in stream.flush() if decision.final]
    assert decision.verdict is Verdict.ACCEPT
    assert stream.position == 0 and not stream.in_speech


def test_a_stream_of_nothing_decides_nothing(verifier: Verifier) -> None:
    stream = verifier.stream()
    assert stream.process(np.empty(0, np.float32)) == []
    assert stream.process(np.zeros(10 * RATE, np.int16)) == []
    assert stream.flush() == []


def test_a_final_decision_agrees_with_the_one_shot_verifier(verifier: Verifier) -> None:
    waveform = np.concatenate([noise(1.0), synthesise(3.0, 21, ANA_HZ), noise(1.0)])
    one_shot = verifier.verify(waveform, RATE)
    (streamed,) = finals(run(verifier.stream(), waveform, [480]))
    assert streamed.verdict is one_shot.verdict
    assert streamed.cosine == pytest.approx(one_shot.cosine, abs=0.08)
    assert streamed.quality is not None and one_shot.quality is not None
    assert streamed.quality.net_speech_s == pytest.approx(one_shot.quality.net_speech_s, abs=0.3)
    assert streamed.quality.log_f0_mean == pytest.approx(one_shot.quality.log_f0_mean, abs=0.05)
    assert streamed.quality.tilt_db == pytest.approx(one_shot.quality.tilt_db, abs=1.5)
    assert streamed.quality.snr_db == pytest.approx(one_shot.quality.snr_db, abs=10.0)


def test_a_speaker_who_takes_over_without_a_pause_is_noticed(verifier: Verifier) -> None:
    waveform = np.concatenate([noise(1.0), synthesise(4.0, 31, ANA_HZ), synthesise(9.0, 32, BOB_HZ), noise(1.0)])
    decisions = run(verifier.stream(), waveform, [480])
    early = [d for d in decisions if d.end < 4.5 * RATE and d.verdict is Verdict.ACCEPT]
    late = [d for d in decisions if d.end > 12.5 * RATE]
    assert early and all(decision.speaker == "ana" for decision in early)
    assert late and all(decision.speaker == "bob" for decision in late)
    assert all(decision.start > 4 * RATE for decision in late)


def broken_at(waveform: NDArray[np.float32], start_s: float, end_s: float, value: float) -> NDArray[np.float32]:
    copy = waveform.copy()
    copy[round(start_s * RATE) : round(end_s * RATE)] = value
    return copy


@pytest.mark.parametrize(
    ("value", "size"), [(np.nan, 1), (np.nan, 480), (np.inf, 7919), (-np.inf, 10**6), (1e30, 481), (np.nan, 10**6)]
)
def test_a_burst_that_is_not_finite_ends_the_utterance_undecided(
    verifier: Verifier, talk: NDArray[np.float32], value: float, size: int
) -> None:
    broken = broken_at(talk, 4.0, 4.1, value)[: 9 * RATE] if size > 1 else broken_at(talk, 4.0, 4.1, value)[: 5 * RATE]
    decisions = run(verifier.stream(), broken, [size])
    (fault,) = [decision for decision in decisions if "not finite" in decision.reason]
    assert fault.final and fault.verdict is Verdict.NO_DECISION and fault.score is None
    assert fault.start / RATE == pytest.approx(1.0, abs=0.25)
    assert fault.end == round(4.1 * RATE)
    assert not any(d.verdict is Verdict.ACCEPT and d.start < 4.1 * RATE < d.end for d in decisions)
    if size > 1:  # what comes after is judged as ever, at its true time
        bob = finals(decisions)[-1]
        assert (bob.verdict, bob.speaker) == (Verdict.ACCEPT, "bob")
        assert bob.start / RATE == pytest.approx(6.0, abs=0.25)


def test_nothing_but_nan_is_reported_once_at_its_end(verifier: Verifier) -> None:
    stream = verifier.stream(44100)
    for _ in range(100):
        assert stream.process(np.full(441, np.nan, np.float32)) == []
    (fault,) = stream.process(np.zeros(441, np.float32))
    assert "44100 samples" in fault.reason
    assert (fault.start, fault.end) == (0, RATE)


def test_nan_in_one_channel_is_enough(verifier: Verifier) -> None:
    chunk = np.zeros((4800, 2), np.float32)
    chunk[100, 1] = np.nan
    (fault,) = verifier.stream(48000).process(chunk)
    assert "1 samples were NaN" in fault.reason


@pytest.mark.parametrize("more", range(0, 480, 40))
def test_speech_that_dies_away_into_digital_silence_keeps_its_answer(verifier: Verifier, more: int) -> None:
    speech = synthesise(3.0 + more / 1000, 100, ANA_HZ)
    decisions = run(verifier.stream(), np.concatenate([noise(0.5, 1, 1e-5), speech, noise(1.0, 2, 1e-5)]), [320])
    provisional = [decision for decision in decisions if not decision.final]
    (final,) = finals(decisions)
    assert {decision.verdict for decision in provisional[1:]} == {Verdict.ACCEPT}
    assert (final.verdict, final.speaker) == (Verdict.ACCEPT, "ana"), final.reason


@pytest.mark.parametrize("gain", [6.0, 20.0])
def test_clipped_speech_is_reported_and_not_accepted(verifier: Verifier, gain: float) -> None:
    speech = np.clip(gain * synthesise(3.0, 41, ANA_HZ), -1.0, 1.0).astype(np.float32)
    decisions = run(verifier.stream(), np.concatenate([noise(1.0), speech, noise(1.0)]), [480])
    assert any(decision.verdict is Verdict.NO_DECISION and "clipped" in decision.reason for decision in decisions)
    assert not any(decision.verdict is Verdict.ACCEPT for decision in decisions)


def test_clipped_noise_is_reported_too(verifier: Verifier) -> None:
    clipped = np.clip(20.0 * noise(3.0, level=0.3), -1.0, 1.0).astype(np.float32)
    waveform = np.concatenate([noise(1.1), clipped, noise(1.0), clipped, noise(1.0)])
    decisions = run(verifier.stream(), waveform, [480])
    assert decisions == run(verifier.stream(), waveform, [100_000])
    assert not any(decision.verdict is not Verdict.NO_DECISION for decision in decisions)
    assert sum("clipped" in decision.reason for decision in decisions) >= 2


def test_speech_after_a_clipped_burst_is_judged_alone(verifier: Verifier) -> None:
    speech = synthesise(5.0, 42, ANA_HZ)
    speech[RATE : 2 * RATE] = np.clip(20.0 * speech[RATE : 2 * RATE], -1.0, 1.0)
    decisions = run(verifier.stream(), np.concatenate([noise(1.0), speech, noise(1.0)]), [480])
    assert any("clipped" in decision.reason for decision in decisions)
    for decision in decisions:
        if decision.verdict is Verdict.ACCEPT:  # nothing that was clipped is in what was judged
            assert not (decision.start < 2.9 * RATE and decision.end > 2.1 * RATE)
    assert finals(decisions)[-1].verdict is Verdict.ACCEPT


def test_an_offset_does_not_change_the_verdicts(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    expected = [(d.verdict, d.speaker) for d in finals(run(verifier.stream(), talk, [480]))]
    shifted = run(verifier.stream(), talk + np.float32(0.2), [480])
    assert [(d.verdict, d.speaker) for d in finals(shifted)] == expected


def test_noise_alone_is_never_accepted(verifier: Verifier) -> None:
    rng = np.random.default_rng(8)
    steps = np.repeat(10.0 ** rng.uniform(-3, -0.6, 60), RATE // 2)  # loud and soft by turns
    sound = np.clip(steps * rng.standard_normal(len(steps)), -1, 1).astype(np.float32)
    decisions = run(verifier.stream(), sound, [480])
    assert not any(decision.verdict is Verdict.ACCEPT for decision in decisions)


def test_a_gap_ends_the_utterance_undecided_and_moves_the_clock(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    stream = verifier.stream()
    before = stream.process(talk[: 4 * RATE])
    assert any(decision.verdict is Verdict.ACCEPT for decision in before)
    (fault,) = stream.gap(3600 * RATE)
    assert fault.final and fault.verdict is Verdict.NO_DECISION and "lost" in fault.reason
    assert fault.start / RATE == pytest.approx(1.0, abs=0.25)
    assert fault.end == stream.position == 3604 * RATE
    after = finals(run(stream, talk[round(5.5 * RATE) : round(9.2 * RATE)], [480]))
    assert [(d.verdict, d.speaker) for d in after] == [(Verdict.ACCEPT, "bob")]
    assert after[0].start / RATE == pytest.approx(3604.5, abs=0.25)


def test_speech_is_not_spliced_over_a_gap(verifier: Verifier) -> None:
    stream = verifier.stream()
    word = synthesise(0.6, 51, ANA_HZ)
    decisions: list[Decision] = []
    for _ in range(6):
        decisions += stream.process(word)
        decisions += stream.gap(100)
    assert not any(decision.verdict is Verdict.ACCEPT for decision in decisions + stream.flush())


def test_a_gap_of_unknown_length_is_reported(verifier: Verifier) -> None:
    (fault,) = verifier.stream().gap(0)
    assert (fault.start, fault.end, fault.verdict) == (0, 0, Verdict.NO_DECISION)
    with pytest.raises(ValueError, match="-5"):
        verifier.stream().gap(-5)


def test_times_do_not_drift_over_gaps_at_an_odd_rate(verifier: Verifier) -> None:
    stream = verifier.stream(44100)
    for _ in range(50):
        stream.process(np.zeros(4410, np.float32))
        stream.gap(4411)
    assert stream.position == pytest.approx(50 * 8821 * RATE / 44100, abs=1)


class FailingEncoder:
    """An encoder whose model fails."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_features(self, features: NDArray[np.float32]) -> None:
        raise EmoinvError("out of order")


def test_a_failing_model_is_no_decision(encoder: Encoder, verifier: Verifier, talk: NDArray[np.float32]) -> None:
    broken: Any = FailingEncoder(encoder)
    failing = Verifier(broken, enrolled(encoder, "ana", ANA_HZ))
    decisions = finals(run(failing.stream(), talk, [480]))
    assert decisions and all(decision.verdict is Verdict.NO_DECISION for decision in decisions)
    assert "out of order" in decisions[0].reason


@pytest.mark.parametrize("chunk", [[0.0], np.zeros(3, np.uint8), np.zeros((2, 2, 2), np.float32)])
def test_a_foreign_chunk_is_a_fault_of_the_program(verifier: Verifier, chunk: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="expected"):
        verifier.stream().process(chunk)


@pytest.mark.parametrize("options", [{"hop_s": 0.0}, {"context_s": 0.5}, {"hop_s": 2.0}, {"window_s": 1.0}])
def test_senseless_options_are_refused(verifier: Verifier, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        VerificationStream(verifier, RATE, **options)


def test_sixteen_streams_in_eight_threads_on_one_encoder_do_not_interact(verifier: Verifier) -> None:
    def wave(index: int) -> NDArray[np.float32]:
        voice = (ANA_HZ, BOB_HZ, STRANGER_HZ)[index % 3]
        return np.concatenate([noise(0.6, index), synthesise(2.0, 200 + index, voice), noise(0.6, index)])

    def listen(index: int) -> list[Decision]:
        return run(verifier.stream(), wave(index), [160 + 37 * index])

    expected = [listen(index) for index in range(16)]
    assert all(finals(decisions) for decisions in expected)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(listen, range(16))) == expected


def test_a_graph_with_its_own_front_end_is_streamed_too(talk: NDArray[np.float32], tmp_path: Path) -> None:
    own = calibrated_encoder(tmp_path, CALIBRATION, flavour="waveform")
    ana = profile("ana", own.embed(talk[RATE : 5 * RATE], RATE).vector, model=own.fingerprint)
    stream = Verifier(own, ana).stream()
    decisions = finals(run(stream, talk[: 6 * RATE], [480]))
    assert decisions[0].score is not None and decisions[0].cosine is not None and decisions[0].cosine > 0.9
    assert finals(run(stream, talk[: 6 * RATE], [7919])) == decisions


def growth(stream: VerificationStream, sound: NDArray[np.float32], times: int) -> int:
    """Bytes that are kept more after hearing the sound so many times than after hearing it twice."""
    stream.process(sound)
    tracemalloc.start()
    try:
        stream.process(sound)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            stream.process(sound)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_stream(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    assert growth(verifier.stream(), talk, 3) < 100_000


def test_memory_does_not_grow_with_an_endless_utterance(verifier: Verifier) -> None:
    assert growth(verifier.stream(), synthesise(8.0, 61, ANA_HZ), 4) < 100_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_ten_minutes_of_everything_change_nothing(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    """The short form of the soak in benchmarks/test_stream.py."""

    def resident() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    stream = verifier.stream()
    first = stream.process(talk) + stream.gap(0)
    time = np.arange(5 * RATE) / RATE
    music = (0.1 * np.sin(2 * np.pi * 220.0 * 2.0 ** (np.floor(3 * time) / 12) * time)).astype(np.float32)
    hour = [talk, noise(20.0), music, noise(5.0, 3, 0.1), np.zeros(20 * RATE, np.float32)]
    taken = len(talk)
    flat = None
    while taken < 600 * RATE:
        for part in hour:
            for at in range(0, len(part), 1600):
                stream.process(part[at : at + 1600])
            taken += len(part)
        flat = resident() if flat is None else flat
    assert flat is not None and resident() - flat < 2.0
    stream.gap(0)
    offset = stream.position
    assert offset == taken
    again = stream.process(talk) + stream.gap(0)
    assert [(d.verdict, d.score, d.start, d.end, d.final) for d in first] == [
        (d.verdict, d.score, d.start - offset, d.end - offset, d.final) for d in again
    ]


def test_the_same_decisions_after_an_hour_as_at_the_start(verifier: Verifier, talk: NDArray[np.float32]) -> None:
    stream = verifier.stream()
    first = stream.process(talk) + stream.gap(0)
    stream.gap(3600 * RATE + 7)
    offset = stream.position
    again = stream.process(talk) + stream.gap(0)
    assert len(first) > 15
    for early, late in zip(first, again, strict=True):
        assert (late.verdict, late.speaker, late.score, late.final) == (
            early.verdict,
            early.speaker,
            early.score,
            early.final,
        )
        assert (late.start - offset, late.end - offset) == (early.start, early.end)
