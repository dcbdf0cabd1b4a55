"""How cost grows: with the length of the audio, the number of profiles, streams and threads.

Each benchmark fits the slope of log time over log size (1 is linear, 0 is constant) and keeps the points for the
report. What the design promises: linear in the audio, at most linear in the profiles, constant in the length of
a stream and in the number of idle streams.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.verifier import Verifier

from .conftest import cpu_of
from .peers import ROOT
from .test_scoring import QUALITY, bank_of

MEMORY_OF_A_STREAM = """
import json, sys
import numpy as np
from emoinv_edge.cli.bench import demo_speech, stand_in_calibration
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.machine import resident_mb
from emoinv_edge.verifier import Verifier

model, minutes, idle = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
encoder = Encoder.open(model)
calibration = encoder.calibration or stand_in_calibration(encoder.spec.embedding_dim)
voice = demo_speech(16000)
enroller = Enroller(encoder, calibration=calibration)
for start in (0, 4, 8):
    enroller.add(voice[16000 * start : 16000 * (start + 4)], 16000)
verifier = Verifier(encoder, enroller.profile("slt"), extrapolate=True, calibration=calibration)
# Speech with pauses: 10 s of it from anywhere, 5 s of a quiet room. Made ahead, since the allocator keeps what making
# sounds took and that is not the stream's memory.
rng = np.random.default_rng(0)
sounds = []
for _ in range(24):
    piece = np.roll(voice, -int(rng.integers(len(voice))))[:160000]
    room = 0.0003 * rng.standard_normal(80000)
    sounds.append(np.rint(32767 * np.concatenate([piece, room])).astype(np.int16))
stream = verifier.stream(16000)

def minute(index):
    for turn in range(4):
        sound = sounds[int(rng.integers(len(sounds)))]
        for start in range(0, len(sound), 480):
            stream.process(sound[start : start + 480].astype(np.float32) / np.float32(32768))

minute(0)
points = [[1.0, resident_mb()]]
done, wanted = 1, [1]
while wanted[-1] < minutes:
    wanted.append(min(2 * wanted[-1], minutes))
for target in wanted[1:]:
    while done < target:
        minute(done)
        done += 1
    points.append([float(done), resident_mb()])
before = resident_mb()
streams = [verifier.stream(16000) for _ in range(idle)]
for each in streams:
    each.process(voice[:480])
print(json.dumps({"points": points, "idle_mb": resident_mb() - before}))
"""


def slope(points: list[list[float]]) -> float:
    """Exponent of the power law through the points."""
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def test_embedding_grows_linearly_with_the_audio(benchmark, encoder, speech, sizes):
    lengths = sizes((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (1.0, 2.0))

    def measure():
        points = []
        for seconds in lengths:
            embed = functools.partial(encoder.embed, speech(seconds), 16000)
            points.append([seconds, cpu_of(embed, sizes(5, 1))])
        return points

    points = benchmark.pedantic(measure, rounds=1)
    exponent = slope(points)
    benchmark.extra_info.update(points=points, slope=exponent, x="seconds of audio", y="CPU seconds")
    if sizes.full:
        assert 0.8 <= exponent <= 1.2, points


def test_scoring_grows_at_most_linearly_with_the_profiles(benchmark, calibration, sizes):
    counts = sizes((1, 10, 100, 1000, 10_000, 100_000), (1, 10))

    def measure():
        points = []
        for count in counts:
            bank, embeddings = bank_of(count, calibration)

            def score(bank=bank, test=embeddings[0]):
                return bank.score(calibration, test, QUALITY)[0]

            points.append([float(count), cpu_of(score, sizes(15, 1))])
        return points

    points = benchmark.pedantic(measure, rounds=1)
    tail = slope(points[-3:])
    benchmark.extra_info.update(points=points, slope=tail, x="profiles", y="CPU seconds")
    if sizes.full:
        assert tail <= 1.15, points


def test_a_stream_costs_the_same_beside_idle_ones(benchmark, encoder, calibration, profile, speech, sizes):
    verifier = Verifier(encoder, profile, extrapolate=True, calibration=calibration)
    chunks = np.split(speech(sizes(6.0, 1.0), "slt", 5), range(480, round(16000 * sizes(6.0, 1.0)), 480))

    def measure():
        points = []
        idle = []
        for count in sizes((1, 10, 100, 1000), (1, 3)):
            while len(idle) < count - 1:
                idle.append(verifier.stream(16000))
                idle[-1].process(chunks[0])
            stream = verifier.stream(16000)

            def run(stream=stream):
                return [decision for chunk in chunks for decision in stream.process(chunk)] + stream.flush()

            points.append([float(count), cpu_of(run, sizes(3, 1))])
        return points

    points = benchmark.pedantic(measure, rounds=1)
    exponent = slope(points)
    benchmark.extra_info.update(points=points, slope=exponent, x="open streams", y="CPU seconds of one")
    if sizes.full:
        assert exponent <= 0.05, points


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_length_of_a_stream(benchmark, request, model_path, sizes):
    minutes = sizes(request.config.getoption("--stream-minutes"), 1)
    idle = sizes(1000, 10)
    command = [sys.executable, "-c", MEMORY_OF_A_STREAM, model_path, str(minutes), str(idle)]
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "text": True, "cwd": ROOT}, rounds=1)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    points = answer["points"]
    benchmark.extra_info.update(
        points=points, growth_mb=points[-1][1] - points[0][1], kb_per_idle_stream=1000.0 * answer["idle_mb"] / idle,
        x="minutes of stream", y="resident MB",
    )  # fmt: skip
    if sizes.full:
        assert points[-1][1] - points[0][1] < 8.0, points
        assert answer["idle_mb"] / idle < 0.1


def test_threads_share_one_encoder(benchmark, encoder, speech, sizes):
    """Throughput of one encoder used from many Python threads at once, each call on one thread of its own."""
    waveform = speech(sizes(3.0, 1.0))
    expected = encoder.embed(waveform, 16000).vector
    rounds = sizes(12, 2)

    def measure():
        points = []
        for count in sizes((1, 2, 4, 8), (1, 2)):
            results = []
            each = max(1, rounds // count)

            def work(results=results, share=each):
                results.extend(encoder.embed(waveform, 16000).vector for _ in range(share))

            threads = [threading.Thread(target=work) for _ in range(count)]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            points.append([float(count), (time.perf_counter() - start) / len(results)])
            assert all(np.array_equal(result, expected) for result in results)
        return points

    points = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(points=points, x="threads calling", y="seconds on the wall per embedding")


def test_threads_inside_one_inference(benchmark, model_path, speech, sizes):
    waveform = speech(sizes(3.0, 1.0))

    def measure():
        points = []
        for count in (1, 2):
            encoder = Encoder.open(model_path, count)
            encoder.embed(waveform, 16000)
            times = []
            for _ in range(sizes(9, 1)):
                start = time.perf_counter()
                encoder.embed(waveform, 16000)
                times.append(time.perf_counter() - start)
            points.append([float(count), float(np.median(times))])
        return points

    points = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(points=points, x="threads of one session", y="seconds on the wall per embedding")
    assert all(value > 0.0 for _, value in points)
