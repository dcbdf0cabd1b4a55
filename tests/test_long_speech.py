"""Long recordings: heard block by block in bounded memory, embedded in windows; short ones as they always were."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.encoder import LONGEST_S, Embedding, Encoder, combine
from emoinv_edge.errors import ChannelError, EmoinvError
from emoinv_edge.features import log_mel
from emoinv_edge.quality import BackgroundMeter, measure_quality
from emoinv_edge.utterance import hear, hear_blocks
from emoinv_edge.vad import speech_only
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, BOB_HZ, RATE, calibrated_encoder, enrolled, synthesise, unit_vectors


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("long"))


def noise(seconds: float, level: float = 1e-3, seed: int = 0) -> NDArray[np.float32]:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def talk(seconds: float, f0_hz: float = ANA_HZ) -> NDArray[np.float32]:
    """Speech of about so many seconds with pauses in it."""
    parts = []
    for seed in range(int(seconds // 5) + 1):
        parts += [synthesise(5.0, seed, f0_hz), noise(0.5, seed=seed)]
    return np.concatenate(parts)[: round(seconds * RATE)]


def in_blocks(waveform: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    return (waveform[first : first + size] for first in range(0, len(waveform), size))


@pytest.mark.parametrize("size", [1, 37, 4001, 65536])
def test_the_background_in_blocks_has_the_bits_of_the_whole(size: int) -> None:
    waveform = np.concatenate([noise(0.3), synthesise(1.0, 3), noise(0.2011), np.ones(50, np.float32)])
    meter = BackgroundMeter(RATE)
    for block in in_blocks(waveform, size):
        meter.add(block)
    whole = measure_quality(waveform, RATE, speech_only(waveform, RATE))
    assert (meter.snr_db, meter.clipped_fraction, meter.num_samples) == (
        whole.snr_db,
        whole.clipped_fraction,
        len(waveform),
    )


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.03])
def test_the_background_of_next_to_nothing_is_nothing(seconds: float) -> None:
    meter = BackgroundMeter(RATE)
    meter.add(noise(seconds))
    assert meter.snr_db == 0.0 and meter.clipped_fraction == 0.0


@pytest.mark.parametrize("size", [4001, 65536, 10_000_000])
def test_little_speech_in_a_long_recording_keeps_every_bit(encoder: Encoder, size: int) -> None:
    """Of a recording beyond a minute the speech alone is what a short recording would have held."""
    speech = talk(20.0)
    long = np.concatenate([noise(35.0), speech, noise(30.0)])
    heard = hear_blocks(encoder, in_blocks(long, size))
    found = speech_only(long, RATE)
    assert heard.embedding is not None and heard.quality is not None
    assert heard.quality.with_embedding_norm(1.0) == measure_quality(long, RATE, found).with_embedding_norm(1.0)
    assert np.array_equal(heard.embedding.vector, encoder.embed(found, RATE).vector)


@pytest.mark.parametrize("seconds", [1.0, 12.3, LONGEST_S])
def test_speech_up_to_the_longest_is_embedded_at_once(encoder: Encoder, seconds: float) -> None:
    features = log_mel(talk(seconds), encoder.spec)
    assert len(features) <= 3000
    expected = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    got = encoder.embed_features(features).vector
    assert np.array_equal(got, encoder.embed_features(expected).vector) or np.allclose(
        got, encoder.embed_features(expected).vector, atol=1e-5
    )
    assert np.array_equal(got, encoder.embed(talk(seconds), RATE).vector)


@pytest.mark.parametrize("seconds", [30.1, 47.0, 61.0])
def test_longer_speech_is_the_mean_of_its_windows(encoder: Encoder, seconds: float) -> None:
    waveform = talk(seconds)
    count = int(np.ceil(len(waveform) / (10 * RATE)))
    edges = [len(waveform) * k // count for k in range(count + 1)]
    windows = [encoder.embed(waveform[a:b], RATE) for a, b in itertools.pairwise(edges)]
    assert max(np.diff(edges)) <= 10 * RATE
    expected = combine(windows, np.diff(edges).tolist())
    assert np.array_equal(encoder.embed(waveform, RATE).vector, expected.vector)


def test_array_and_blocks_of_a_long_recording_are_heard_the_same(encoder: Encoder) -> None:
    waveform = talk(95.0)
    one, other = hear(encoder, waveform, RATE), hear_blocks(encoder, in_blocks(waveform, 7777))
    assert one.embedding is not None and other.embedding is not None
    assert np.array_equal(one.embedding.vector, other.embedding.vector)
    assert one.quality == other.quality
    assert len(one.speech) > 80 * RATE and len(other.speech) == 0
    assert len(hear(encoder, waveform, RATE, keep_speech=False).speech) == 0


def test_a_long_recording_of_the_owner_is_accepted_and_of_another_rejected(encoder: Encoder) -> None:
    verifier = Verifier(encoder, enrolled(encoder, "ana", ANA_HZ, takes=3), 0.01)
    owner, stranger = talk(70.0), talk(70.0, BOB_HZ)
    assert verifier.verify(owner, RATE).accepted
    assert verifier.examine_blocks(in_blocks(owner, 16000)).decision.accepted
    assert verifier.verify(stranger, RATE).verdict.name == "REJECT"
    assert verifier.examine_blocks(in_blocks(stranger, 16000)).decision.verdict.name == "REJECT"


@pytest.mark.parametrize(
    ("waveform", "code"),
    [
        (np.zeros(70 * RATE, np.float32), "silent"),
        (np.zeros(0, np.float32), "empty"),
        (noise(70.0), "too_short"),
        (noise(70.0, 1e-5), "too_quiet"),
    ],
    ids=["zeros", "nothing", "noise", "faint noise"],
)
def test_a_long_recording_without_speech_is_refused_as_a_short_one_is(
    encoder: Encoder, waveform: NDArray[np.float32], code: str
) -> None:
    heard = hear_blocks(encoder, in_blocks(waveform, 50_000))
    short = hear(encoder, waveform[: 3 * RATE], RATE)
    assert heard.refusal is not None and short.refusal is not None
    assert heard.refusal.code == short.refusal.code == code
    assert heard.embedding is None


@pytest.mark.parametrize("seconds", [1.0, 80.0])
def test_channels_that_turn_out_to_cancel_are_a_refusal_not_an_accept(encoder: Encoder, seconds: float) -> None:
    def blocks() -> Iterator[NDArray[np.float32]]:
        yield from in_blocks(talk(seconds), 16000)
        raise ChannelError("door.wav: channels 1 and 2 cancel") from ChannelError("channels 1 and 2 cancel")

    heard = hear_blocks(encoder, blocks())
    assert heard.embedding is None and heard.refusal is not None
    assert (heard.refusal.code, heard.refusal.message) == ("channels", "channels 1 and 2 cancel")


def test_inverted_channels_of_an_array_are_no_decision(encoder: Encoder) -> None:
    speech = synthesise(4.0, 1, ANA_HZ)
    pair = np.stack([speech + noise(4.0, 1e-3, 1), -speech + noise(4.0, 1e-3, 2)], axis=1)
    decision = Verifier(encoder, enrolled(encoder, "ana", ANA_HZ), 0.01).verify(pair, RATE)
    assert decision.verdict.name == "NO_DECISION" and decision.code == "channels"
    assert "inverted" in decision.reason


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.5, 30.0)), min_size=1, max_size=8),
    st.integers(0, 1000),
)
def test_a_combined_embedding_has_unit_norm_and_a_norm_between_those_of_its_windows(
    windows: list[tuple[float, float]], seed: int
) -> None:
    base = unit_vectors(1, 9)[0]
    vectors = [v + 2.0 * base for v in unit_vectors(len(windows), seed)]
    embeddings = [
        Embedding((v / np.linalg.norm(v)).astype(np.float32), norm)
        for v, (_, norm) in zip(vectors, windows, strict=True)
    ]
    found = combine(embeddings, [seconds for seconds, _ in windows])
    assert abs(float(np.linalg.norm(found.vector)) - 1.0) < 1e-5
    norms = [norm for _, norm in windows]
    assert min(norms) * 0.999 <= found.norm <= max(norms) * 1.001


def test_windows_that_cancel_each_other_are_an_error_not_an_embedding() -> None:
    vector = unit_vectors(1, 0)[0]
    with pytest.raises(EmoinvError, match="one person"):
        combine([Embedding(vector, 1.0), Embedding(-vector, 1.0)], [5.0, 5.0])


MEASURE = """
import sys
from emoinv_edge import Encoder, Enroller, Verifier, read_audio
from emoinv_edge.audio import read_blocks
from emoinv_edge.machine import resident_mb
encoder = Encoder.open("small")
enroller = Enroller(encoder)
from emoinv_edge.cli.demo import bundled_clips
with bundled_clips() as folder:
    for number in (1, 2, 3):
        enroller.add(read_audio(folder / "awb" / f"neutral-{number}.ogg")[0], 16000)
    verifier = Verifier(encoder, enroller.profile("awb"))
    verifier.verify(read_audio(folder / "awb" / "excited-1.ogg")[0], 16000)
start = resident_mb()
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
if sys.argv[2] == "blocks":
    decision = verifier.examine_blocks(read_blocks(sys.argv[1])).decision
else:
    decision = verifier.verify(read_audio(sys.argv[1])[0], 16000)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(decision.verdict.name, decision.quality.net_speech_s, start, resident_mb(), int(peak) * 1024 / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("way", ["blocks", "array"])
def test_twelve_minutes_take_little_more_memory_than_a_minute(tmp_path: Path, way: str) -> None:
    clips = Path(__file__).parents[1] / "emoinv_edge" / "demo" / "clips" / "awb"
    speech = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sorted(clips.glob("*.ogg"))])
    soundfile.write(tmp_path / "meeting.flac", np.resize(speech, 12 * 60 * RATE), RATE)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "meeting.flac"), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    verdict, seconds, start, after, peak = done.stdout.split()
    waveform_mb = 0.0 if way == "blocks" else 12 * 60 * RATE * 4 / 1e6
    assert verdict == "ACCEPT" and float(seconds) > 600.0
    assert float(peak) < float(start) + waveform_mb + 80.0, done.stdout
    assert float(after) < float(start) + 40.0, done.stdout
