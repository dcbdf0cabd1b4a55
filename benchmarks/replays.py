"""How well `HeardBefore` knows a played-back recording, and how often it takes an honest repeat for one.

    python -m benchmarks.replays PREPARED/crema_d PREPARED/emodb -o benchmarks/results/replays.json

The sets are prepared ones (``python -m train prepare``) of actors who say the same sentence several times in one
emotion: their repeats are the honest attempts that come nearest to a replay. Replays are simulated; no loudspeaker
was used: a codec (or none) for the recording, a loudspeaker (band, resonances, distortion), a room by image sources,
a microphone, noise. The thresholds were chosen on every second speaker (``--chosen``); the others are measured.

Corpora hold copies of recordings under other names. A pair whose waveforms correlate by 0.9 or more at some offset
is one recording and no repeat; two takes of a sentence stay below 0.6.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from emoinv_edge.acoustic_fingerprint import AcousticFingerprint, Utterance
from emoinv_edge.encoder import Encoder
from emoinv_edge.heard import RIGID, SCORE
from train.codecs import CODECS, through_codec
from train.prepare import PreparedSet, by_speaker

RATE = 16000
SPEAKERS = {"small": (300.0, 6000.0, 0.5), "phone": (500.0, 7000.0, 0.3), "good": (80.0, 7800.0, 0.1)}
DUPLICATE_COSINE = 0.985  # the rule that compares embeddings
TESTS = 20  # attempts of one speaker
COPY = 0.9  # correlation of the waveforms of one recording
LOSSY = ("none", *CODECS)
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


def likeness(before: Waveform, now: Waveform) -> tuple[float, float]:
    """Score and rigidity of one utterance over another; 0 of a pair that cannot be judged."""
    first, second = Utterance.of(before, RATE), Utterance.of(now, RATE)
    if first is None or second is None:
        return 0.0, 0.0
    stored = AcousticFingerprint.of(first)
    fit = second.fit(stored)
    return (0.0, 0.0) if fit is None else (fit.score, second.rigidity(stored, fit))


def one_recording(left: Waveform, right: Waveform) -> bool:
    """Whether two clips are copies: their waveforms correlate at an offset where most of the shorter one overlaps."""
    length = 1 << (len(left) + len(right) - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(left, length) * np.fft.rfft(right, length).conj(), length)
    energies = [np.concatenate(([0.0], np.cumsum(np.square(each, dtype=np.float64)))) for each in (left, right)]
    least = int(0.6 * min(len(left), len(right)))
    offsets = np.arange(least - len(right), len(left) - least + 1)
    first, last = np.maximum(offsets, 0), np.minimum(offsets + len(right), len(left))
    both = (energies[0][last] - energies[0][first]) * (energies[1][last - offsets] - energies[1][first - offsets])
    floor = 1e-3 * energies[0][-1] * energies[1][-1] + 1e-12
    return bool(np.max(np.abs(products[offsets]) / np.sqrt(np.maximum(both, floor))) >= COPY)


def coded(waveform: Waveform, codec: str, rng: np.random.Generator) -> Waveform:
    """A recording after a codec at any of its bit rates, or as it is."""
    return (
        waveform
        if codec == "none"
        else through_codec(at_peak(waveform), codec, int(rng.choice(CODECS[codec].bit_rates)))
    )


def repeats(clips: PreparedSet) -> dict[tuple[str, str, str], list[int]]:
    """Clips of one speaker, sentence and emotion, where there are at least two."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips.clips):
        if clip.speaker and clip.sentence:
            groups[clip.speaker, clip.sentence, clip.emotion].append(index)
    return {key: indices for key, indices in groups.items() if len(indices) > 1}


def replays(waveform: Waveform, rng: np.random.Generator) -> dict[tuple[str, str], tuple[Waveform, Waveform]]:
    """Of every kind of replay and a codec: what the device heard first, and what it hears now."""

    def played(source: Waveform, kind: str) -> Waveform:
        return through(loudspeaker(source, kind, rng), room(rng, far=False), rng.uniform(25.0, 45.0), rng)

    found: dict[tuple[str, str], tuple[Waveform, Waveform]] = {}
    for kind in SPEAKERS:
        codec = str(rng.choice(LOSSY))
        now = played(coded(waveform, codec, rng), kind)
        found[f"stored clip, {kind} loudspeaker", codec] = waveform, now
        live = through(waveform, room(rng, far=True), rng.uniform(20.0, 40.0), rng)
        found[f"heard live in a room, {kind} loudspeaker", codec] = live, now
        if len(now) >= 1.6 * RATE:
            start = int(rng.integers(0, len(now) - RATE))
            found[f"one second, {kind} loudspeaker", codec] = waveform, now[start : start + RATE]
        for percent in (1, 3):
            codec = str(rng.choice(LOSSY))
            sped = coded(faster(waveform, 1.0 + rng.choice((-1, 1)) * percent / 100.0), codec, rng)
            found[f"{percent} % other speed, {kind} loudspeaker", codec] = waveform, played(sped, kind)
    return found


def attempts(clips: PreparedSet, speakers: list[list[int]], count: int, rng: np.random.Generator) -> list[bool]:
    """Whether honest attempts match one of up to 64 others of the speaker, same sentences among them; copies aside."""
    of_speaker = [indices for indices in speakers if len(indices) >= 30]
    matched: list[bool] = []
    for number in rng.permutation(len(of_speaker))[: -(-count // TESTS)]:
        known = {index: Utterance.of(clips.waveform(index), RATE) for index in of_speaker[number]}
        stored = {index: AcousticFingerprint.of(utterance) for index, utterance in known.items() if utterance}
        for test in rng.permutation(list(stored))[:TESTS]:
            others = [int(each) for each in rng.permutation([each for each in stored if each != test])[:64]]
            hits = [index for index in others if is_match(known[int(test)], stored[index])]
            now = clips.waveform(int(test))
            matched.append(any(not one_recording(clips.waveform(index), now) for index in hits))
    return matched


def is_match(utterance: Utterance | None, stored: AcousticFingerprint) -> bool:
    """What `HeardBefore.check` asks of each stored utterance."""
    fit = utterance.fit(stored, SCORE) if utterance else None
    return fit is not None and utterance is not None and utterance.rigidity(stored, fit) >= RIGID


def measure(
    sets: list[PreparedSet], clips_a_set: int, tries: int, seed: int, encoder: Encoder | None, chosen: bool
) -> dict[str, Any]:
    """(Score, rigidity) of replays, by kind and codec, and of honest repeats, by set; and whether attempts match."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    cosines: dict[str, list[float]] = defaultdict(list)
    found: dict[str, Any] = {"replays": scores, "cosines": cosines, "repeats": {}, "attempts": {}}
    for clips in sets:
        rng = np.random.default_rng(seed)
        name = clips.folder.name
        of_speaker = by_speaker(clips.clips)
        speakers = [of_speaker[speaker] for speaker in sorted(of_speaker)[int(chosen) :: 2]]
        here = {index for indices in speakers for index in indices}
        pairs = [pair for indices in repeats(clips).values() for pair in itertools.pairwise(indices) if pair[0] in here]
        pairs = [pairs[at] for at in rng.permutation(len(pairs))[:tries]]
        waveforms = [(clips.waveform(left), clips.waveform(right)) for left, right in pairs]
        found["repeats"][name] = [likeness(*pair) for pair in waveforms if not one_recording(*pair)]
        long = sorted(index for index in here if clips.clips[index].samples >= 1.2 * RATE)
        for index in rng.permutation(long)[:clips_a_set]:
            for (kind, codec), (before, now) in replays(clips.waveform(int(index)), rng).items():
                scores[kind].append(likeness(before, now))
                if kind.startswith("stored"):
                    scores[f"stored clip, codec {codec}"].append(scores[kind][-1])
                if encoder is not None:
                    cosines[kind].append(float(encoder.embed(before, RATE).vector @ encoder.embed(now, RATE).vector))
        found["attempts"][name] = attempts(clips, speakers, tries, rng)
        print(f"{name}: done", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: caught by the fingerprint and by the cosine rule; honest repeats taken for replays."""
    lines = ["| | n | heard before | cosine > 0.985 |", "|---|---|---|---|"]
    rows = [(kind, found["replays"][kind]) for kind in sorted(found["replays"])]
    rows += [(f"honest repeats, {name}", values) for name, values in found["repeats"].items()]
    for name, values in rows:
        caught = np.mean([score >= SCORE and rigid >= RIGID for score, rigid in values]) if values else math.nan
        cosines = found["cosines"].get(name)
        rule = f"{100.0 * np.mean(np.array(cosines) > DUPLICATE_COSINE):.1f} %" if cosines else ""
        lines.append(f"| {name} | {len(values)} | {100.0 * caught:.1f} % | {rule} |")
    for name, matched in found["attempts"].items():
        share = 100.0 * np.mean(matched) if matched else math.nan
        lines.append(f"| honest attempts against 64, {name} | {len(matched)} | {share:.1f} % | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replays", description=__doc__)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets with repeated sentences")
    parser.add_argument("--clips", type=int, default=40, help="replayed clips of each set (40)")
    parser.add_argument("--tries", type=int, default=200, help="honest repeats and attempts of each set (200)")
    parser.add_argument("--chosen", action="store_true", help="the speakers that the thresholds were chosen on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-cosine", action="store_true", help="leave the rule that compares embeddings out")
    parser.add_argument("-o", "--out", type=Path, help="write every score as JSON")
    arguments = parser.parse_args()
    encoder = None if arguments.no_cosine else Encoder.default()
    sets = [PreparedSet(path) for path in arguments.sets]
    found = measure(sets, arguments.clips, arguments.tries, arguments.seed, encoder, arguments.chosen)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
