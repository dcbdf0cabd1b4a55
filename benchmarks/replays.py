"""How well `HeardBefore` knows a played-back recording, and how often it takes an honest repeat for one.

    python -m benchmarks.replays PREPARED/crema_d PREPARED/emodb -o benchmarks/results/replays.json

The sets are prepared ones (``python -m train prepare``) of actors who say the same sentence several times in one
emotion: their repeats are the honest attempts that come nearest to a replay. Replays are simulated; no loudspeaker
was used: a loudspeaker (band, resonances, distortion), a room by image sources, a microphone, noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.heard import FIXED_PHRASE, FREE_SPEECH, HeardBefore
from train.prepare import PreparedSet, by_speaker

RATE = 16000
SPEAKERS = {"small": (300.0, 6000.0, 0.5), "phone": (500.0, 7000.0, 0.3), "good": (80.0, 7800.0, 0.1)}
DUPLICATE_COSINE = 0.985  # the rule that compares embeddings
Waveform = NDArray[np.float32]


def filtered(waveform: Waveform, gain: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Waveform:
    """A waveform through a zero-phase filter, given as gain over hertz."""
    length = 1 << (len(waveform) + RATE // 4).bit_length()
    hz = np.fft.rfftfreq(length, 1.0 / RATE)
    return np.fft.irfft(np.fft.rfft(waveform, length) * gain(hz), length)[: len(waveform)].astype(np.float32)


def band(low_hz: float, high_hz: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A band-pass of 12 and 24 dB an octave."""
    return lambda hz: 1.0 / np.sqrt(1.0 + (low_hz / np.maximum(hz, 1.0)) ** 4) / np.sqrt(1.0 + (hz / high_hz) ** 8)


def at_peak(waveform: Waveform, peak: float = 0.5) -> Waveform:
    """Scaled to a peak."""
    return (waveform * (peak / max(float(np.abs(waveform).max()), 1e-6))).astype(np.float32)


def loudspeaker(waveform: Waveform, kind: str, rng: np.random.Generator) -> Waveform:
    """Band, three resonances of +-6 dB, and a distortion of odd and even order."""
    low, high, drive = SPEAKERS[kind]
    centres = np.exp(rng.uniform(np.log(low), np.log(high), 3))
    gains, widths = rng.uniform(-6.0, 6.0, 3), rng.uniform(0.1, 0.4, 3)

    def gain(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        octaves = np.log2(np.maximum(hz, 20.0)[:, None] / centres)
        return band(low, high)(hz) * 10.0 ** ((gains * np.exp(-0.5 * (octaves / widths) ** 2)).sum(axis=1) / 20.0)

    sound = at_peak(filtered(waveform, gain), 1.0)
    sound = np.tanh(2.0 * drive * sound) + 0.1 * drive * sound**2
    return at_peak(np.asarray(sound, np.float32))


def room(rng: np.random.Generator, far: bool) -> Waveform:
    """An impulse response by image sources: RT60 0.15 to 0.6 s, 0.25 to 0.5 m away, or 0.8 to 1.5 m."""
    import pyroomacoustics

    size = rng.uniform((3.0, 2.5, 2.3), (6.0, 5.0, 3.2))
    absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(0.15, 0.6), size)
    shoebox = pyroomacoustics.ShoeBox(
        size, fs=RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, 17)
    )
    source = rng.uniform(0.8, size - 0.8) * (1, 1, 0) + (0, 0, 1.3)
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.5) if far else rng.uniform(0.25, 0.5)
    microphone = np.clip(source + distance * np.array((np.cos(angle), np.sin(angle), 0.1)), 0.1, size - 0.1)
    shoebox.add_source(source)
    shoebox.add_microphone(microphone)
    shoebox.compute_rir()
    response = np.asarray(shoebox.rir[0][0], np.float32)
    return response / np.abs(response).max()


def through(waveform: Waveform, response: Waveform, snr_db: float, rng: np.random.Generator) -> Waveform:
    """In a room, before a microphone of 80 to 7000 Hz, with pink noise."""
    length = len(waveform) + len(response) - 1
    fft = 1 << length.bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, fft) * np.fft.rfft(response, fft), fft)[: len(waveform)]
    noise = filtered(rng.standard_normal(len(wet)).astype(np.float32), lambda hz: 1.0 / np.sqrt(np.maximum(hz, 20.0)))
    noise *= np.float32(np.sqrt(np.mean(wet**2) / np.mean(noise**2)) * 10.0 ** (-snr_db / 20.0))
    return at_peak(filtered((wet + noise).astype(np.float32), band(80.0, 7000.0)))


def faster(waveform: Waveform, speed: float) -> Waveform:
    """Played back at another speed, pitch and all."""
    return np.asarray(soxr.resample(waveform, RATE * speed, RATE), np.float32)


def score(heard: HeardBefore, waveform: Waveform) -> float:
    """The best score against what was heard, whatever the threshold."""
    match = heard.check(waveform, RATE)
    return match.score if match else 0.0


def remembering(waveform: Waveform) -> HeardBefore:
    """One utterance heard, and a threshold that lets every score through."""
    heard = HeardBefore(1, threshold=1e-6)
    heard.add(waveform, RATE)
    return heard


def repeats(clips: PreparedSet) -> dict[tuple[str, str, str], list[int]]:
    """Clips of one speaker, sentence and emotion, where there are at least two."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips.clips):
        if clip.speaker and clip.sentence:
            groups[clip.speaker, clip.sentence, clip.emotion].append(index)
    return {key: indices for key, indices in groups.items() if len(indices) > 1}


def replays(waveform: Waveform, rng: np.random.Generator) -> dict[str, tuple[Waveform, Waveform]]:
    """Of every kind of replay of one utterance: what the device heard first, and what it hears now."""
    found: dict[str, tuple[Waveform, Waveform]] = {}
    for kind in SPEAKERS:
        played = through(loudspeaker(waveform, kind, rng), room(rng, far=False), rng.uniform(25.0, 45.0), rng)
        found[f"stored clip, {kind} loudspeaker"] = waveform, played
        live = through(waveform, room(rng, far=True), rng.uniform(20.0, 40.0), rng)
        found[f"heard live in a room, {kind} loudspeaker"] = live, played
        if len(played) >= 1.6 * RATE:
            start = int(rng.integers(0, len(played) - RATE))
            found[f"one second, {kind} loudspeaker"] = waveform, played[start : start + RATE]
        for percent in (1, 3):
            sped = faster(waveform, 1.0 + rng.choice((-1, 1)) * percent / 100.0)
            sped = through(loudspeaker(sped, kind, rng), room(rng, far=False), rng.uniform(25.0, 45.0), rng)
            found[f"{percent} % other speed, {kind} loudspeaker"] = waveform, sped
    return found


def attempts(clips: PreparedSet, count: int, rng: np.random.Generator) -> list[float]:
    """The best score of honest attempts against up to 64 others of the same speaker, same sentences among them."""
    of_speaker = [indices for indices in by_speaker(clips.clips).values() if len(indices) >= 30]
    scores = []
    for number in range(count if of_speaker else 0):
        test, *stored = rng.permutation(of_speaker[number % len(of_speaker)])[:65]
        heard = HeardBefore(64, threshold=1e-6)
        for index in stored:
            heard.add(clips.waveform(int(index)), RATE)
        scores.append(score(heard, clips.waveform(int(test))))
    return scores


def measure(sets: list[PreparedSet], clips_a_set: int, seed: int, encoder: Encoder | None) -> dict[str, Any]:
    """Scores of replays, by kind, and of honest repeats, by set; the largest of 64 stored as an attempt sees it."""
    scores: dict[str, list[float]] = defaultdict(list)
    cosines: dict[str, list[float]] = defaultdict(list)
    honest: dict[str, list[float]] = {}
    for clips in sets:
        rng = np.random.default_rng(seed)
        groups = repeats(clips)
        name = clips.folder.name
        pairs = [pair for indices in groups.values() for pair in itertools.pairwise(indices)]
        chosen = [pairs[at] for at in rng.permutation(len(pairs))[: 5 * clips_a_set]]
        honest[name] = [score(remembering(clips.waveform(left)), clips.waveform(right)) for left, right in chosen]
        long = [index for index, clip in enumerate(clips.clips) if clip.samples >= 1.2 * RATE]
        for index in rng.permutation(long)[:clips_a_set]:
            for kind, (before, now) in replays(clips.waveform(int(index)), rng).items():
                scores[kind].append(score(remembering(before), now))
                if encoder is not None:
                    cosines[kind].append(float(np.asarray(encoder.embed(before, RATE) @ encoder.embed(now, RATE))))
        honest[f"{name}, an attempt against 64"] = attempts(clips, 5 * clips_a_set, rng)
        print(f"{name}: done", file=sys.stderr, flush=True)
    return {"replays": dict(scores), "cosines": dict(cosines), "honest": honest}


def table(found: dict[str, Any]) -> str:
    """Markdown: caught at each threshold and by the cosine rule; honest repeats taken for replays."""
    lines = ["| | n | FREE_SPEECH | FIXED_PHRASE | cosine > 0.985 |", "|---|---|---|---|---|"]
    rows = [(kind, values, found["cosines"].get(kind)) for kind, values in found["replays"].items()]
    rows += [(f"honest repeats, {name}", values, None) for name, values in found["honest"].items()]
    for name, values, cosines in rows:
        caught = [f"{100.0 * np.mean(np.array(values) >= level):.1f} %" for level in (FREE_SPEECH, FIXED_PHRASE)]
        rule = f"{100.0 * np.mean(np.array(cosines) > DUPLICATE_COSINE):.1f} %" if cosines else ""
        lines.append(f"| {name} | {len(values)} | {' | '.join(caught)} | {rule} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replays", description=__doc__)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets with repeated sentences")
    parser.add_argument("--clips", type=int, default=40, help="replayed clips of each set (40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-cosine", action="store_true", help="leave the rule that compares embeddings out")
    parser.add_argument("-o", "--out", type=Path, help="write every score as JSON")
    arguments = parser.parse_args()
    encoder = None if arguments.no_cosine else Encoder.default()
    sets = [PreparedSet(path) for path in arguments.sets]
    found = measure(sets, arguments.clips, arguments.seed, encoder)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
