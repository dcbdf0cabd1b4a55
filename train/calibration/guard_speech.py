"""What the guards are fitted on, as the runtime hears it: clips, sounds, and recordings joined of one or two voices."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import SpeechQuality, measure_quality
from emoinv_edge.utterance import Piece, hear
from emoinv_edge.vad import speech_only

from ..augment import add_noise
from ..evaluation.clips import is_neutral
from ..noise_and_rooms import read_noises
from ..prepare import PreparedSet
from .sounds import sound, whispered
from .speech import NOISE_SNR_DB, learnt_from, pink_noise

__all__ = ["SIDES_S", "Heard", "join_clips", "measure_clips", "measure_sounds", "read_heard", "write_heard"]

SPEAKERS = 60  # of a corpus, at most
CLIPS = 5  # of a speaker, neutral; and as many in other emotions
FEW = 12  # a corpus of fewer speakers gives
MORE_CLIPS = 16  # of each
JOINED = 40  # recordings of each kind, corpus and length
SIDES_S = (3.0, 5.0)  # speech of each of the two halves
MADE = 1500  # sounds by rule
PIECE_S = 6.0  # of a recorded sound
PIECES = 6  # of one
USUAL_MALE_HZ = 165.0  # below, an unlabelled voice counts as a man's


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """One recording as the encoder hears it.

    `kind` is ``clean``, ``noisy`` or ``whispered`` for a clip of one speaker; ``recorded`` or ``made`` for a sound,
    whose category is in `speaker`; ``one`` or ``two`` for a recording of two halves, by one or two voices of a gender,
    whose first is in `speaker`. `emotion` of these is ``""`` where both halves are neutral, else ``mixed``.
    """

    kind: str
    corpus: str
    speaker: str
    gender: str
    emotion: str
    side_s: float  # of recordings of two halves
    vector: NDArray[np.float32]
    quality: SpeechQuality
    windows: NDArray[np.float32] | None


Labels = tuple[str, str, str, str, str, float]
Progress = Callable[[str], None]


def _hear(encoder: Encoder, waveform: NDArray[np.float32], labels: Labels) -> Heard | None:
    """A recording as the runtime hears it, as one `Piece`: the guards are about to be fitted; None if refused."""
    rate = encoder.spec.sample_rate
    speech = speech_only(waveform, rate)
    heard = hear(encoder, Piece(speech, measure_quality(waveform, rate, speech)), rate)
    if heard.embedding is None or heard.quality is None:
        return None
    return Heard(*labels, heard.embedding.vector, heard.quality, heard.embedding.windows)


def _speakers(prepared: PreparedSet, corpora: Collection[str] | None) -> dict[str, list[int]]:
    """Clips of at most `SPEAKERS` speakers that no encoder was trained on."""
    corpus = prepared.folder.name
    found: dict[str, list[int]] = {}
    for index in prepared.unheard(corpora):
        found.setdefault(prepared.clips[index].speaker, []).append(index)
    rng = np.random.default_rng(zlib.crc32(corpus.encode()))
    return {str(name): found[str(name)] for name in rng.permutation(sorted(found))[:SPEAKERS]}


def measure_clips(encoder: Encoder, sets: Iterable[PreparedSet], progress: Progress) -> Iterator[Heard]:
    """Clips of every speaker: clean; some once more in pink noise, and some whispered by rule."""
    rate = encoder.spec.sample_rate
    for prepared in sets:
        corpus, speakers = prepared.folder.name, _speakers(prepared, learnt_from(encoder))
        progress(f"clips of {corpus}")
        for speaker, own in speakers.items():
            rng = np.random.default_rng(zlib.crc32(f"{corpus}/{speaker}".encode()))
            most = CLIPS if len(speakers) > FEW else MORE_CLIPS
            neutral = [i for i in own if is_neutral(prepared.clips[i])]
            drawn = [int(i) for i in rng.permutation(neutral)[:most]]
            drawn += [int(i) for i in rng.permutation(sorted(set(own) - set(neutral)))[:most]]
            for number, index in enumerate(drawn):
                clip, waveform = prepared.clips[index], prepared.waveform(index)
                kinds = {"clean": waveform}
                if number % 4 == 1:
                    noise = pink_noise(len(waveform) / rate, rate, index)
                    kinds["noisy"] = add_noise(waveform, noise, float(rng.uniform(*NOISE_SNR_DB)), rng)
                if number % 6 == 2:
                    kinds["whispered"] = whispered(speech_only(waveform, rate), rng)
                for kind, wave in kinds.items():
                    heard = _hear(encoder, wave, (kind, corpus, speaker, clip.gender, clip.emotion, 0.0))
                    if heard is not None:
                        yield heard


def measure_sounds(encoder: Encoder, folders: Sequence[Path], progress: Progress, made: int = MADE) -> Iterator[Heard]:
    """Recorded sounds in pieces, each folder's name its category, and sounds made by rule."""
    rate = encoder.spec.sample_rate
    length = round(PIECE_S * rate)
    for folder in folders:
        progress(f"sounds of {folder.name}")
        for category in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
            try:
                recordings = read_noises([category])
            except ValueError:  # no sound among the files
                continue
            for recording in recordings:
                for begin in range(0, max(1, min(len(recording), PIECES * length) - length // 3), length):
                    piece = recording[begin : begin + length]
                    heard = _hear(encoder, piece, ("recorded", folder.name, category.name, "", "", 0.0))
                    if heard is not None:
                        yield heard
    progress("sounds made by rule")
    for number in range(made):
        wave, kind = sound(np.random.default_rng((7, number)))
        heard = _hear(encoder, wave, ("made", "", kind, "", "", 0.0))
        if heard is not None:
            yield heard


def join_clips(
    encoder: Encoder, sets: Iterable[PreparedSet], clips: Sequence[Heard], progress: Progress
) -> Iterator[Heard]:
    """Recordings of two halves, by one voice and by two of a gender, neutral and in any emotion.

    Parameters
    ----------
    clips : sequence of Heard
        From `measure_clips`: the pitch of speakers whose gender no corpus labels.
    """
    for prepared in sets:
        corpus, speakers = prepared.folder.name, _speakers(prepared, learnt_from(encoder))
        progress(f"recordings of two halves of {corpus}")
        genders = _genders(corpus, clips, prepared, speakers)
        emotional = any(not is_neutral(clip) for clip in prepared.clips)
        for side_s in SIDES_S:
            for kind in ("one", "two"):
                for mixed in (False, True) if emotional else (False,):
                    rng = np.random.default_rng((zlib.crc32(corpus.encode()), round(side_s), kind == "two", mixed))
                    drawn = _joined(prepared, speakers, genders, side_s, kind == "two", mixed, rng)
                    for _, (speaker, waveform) in zip(range(JOINED), drawn, strict=False):
                        labels = (kind, corpus, speaker, genders[speaker], "mixed" if mixed else "", side_s)
                        heard = _hear(encoder, waveform, labels)
                        if heard is not None:
                            yield heard


def _genders(
    corpus: str, clips: Sequence[Heard], prepared: PreparedSet, speakers: dict[str, list[int]]
) -> dict[str, str]:
    """Each speaker's gender, by the label or else by the pitch of the neutral speech."""
    pitches: dict[str, list[float]] = {}
    for clip in clips:
        pitch = clip.quality.log_f0_mean
        if (clip.corpus, clip.kind) == (corpus, "clean") and clip.emotion in ("", "neutral") and pitch is not None:
            pitches.setdefault(clip.speaker, []).append(pitch)
    found = {}
    for speaker, own in speakers.items():
        low = bool(pitches.get(speaker)) and float(np.median(pitches[speaker])) < math.log(USUAL_MALE_HZ)
        found[speaker] = prepared.clips[own[0]].gender or ("male" if low else "female")
    return found


def _joined(
    prepared: PreparedSet,
    speakers: dict[str, list[int]],
    genders: dict[str, str],
    side_s: float,
    two: bool,
    mixed: bool,
    rng: np.random.Generator,
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Recordings without end, or until so many draws in a row found no speech enough."""
    names, length, vain = sorted(speakers), round(side_s * 16000), 0
    while vain < 4 * JOINED:
        vain += 1
        first = names[int(rng.integers(len(names)))]
        others = [name for name in names if (name != first) == two and genders[name] == genders[first]]
        if not others:
            continue
        second = others[int(rng.integers(len(others)))]
        own = [i for i in speakers[first] if is_neutral(prepared.clips[i]) or (mixed and two)]
        left = _side(prepared, own, length, rng)
        if left is None:
            continue
        theirs = [i for i in speakers[second] if i not in left[1]]
        # One voice in two emotions begins neutral and goes on in another.
        theirs = [i for i in theirs if is_neutral(prepared.clips[i]) != (mixed and not two) or (mixed and two)]
        right = _side(prepared, theirs, length, rng)
        if right is None:
            continue
        vain = 0
        yield first, np.concatenate((left[0], right[0]))


def _side(
    prepared: PreparedSet, indices: Sequence[int], length: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[int]] | None:
    """Clips of one emotion joined to `length` samples, and which; None where there are too few."""
    emotions = sorted({prepared.clips[i].emotion for i in indices})
    if not emotions:
        return None
    emotion = emotions[int(rng.integers(len(emotions)))]
    used: list[int] = []
    for index in rng.permutation([i for i in indices if prepared.clips[i].emotion == emotion]):
        used.append(int(index))
        if sum(prepared.clips[i].samples for i in used) >= length:
            return np.concatenate([prepared.waveform(i) for i in used])[:length], used
    return None


def write_heard(path: Path, heard: Sequence[Heard]) -> None:
    """Keep what was heard, for the next fit on the same embeddings."""
    labels = [
        [h.kind, h.corpus, h.speaker, h.gender, h.emotion, repr(h.side_s), json.dumps(dataclasses.asdict(h.quality))]
        for h in heard
    ]
    windows = [np.empty((0, len(h.vector)), np.float32) if h.windows is None else h.windows for h in heard]
    np.savez_compressed(
        path,
        labels=np.array(labels),
        vectors=np.stack([h.vector for h in heard]),
        windows=np.concatenate(windows),
        counts=[len(each) for each in windows],
    )


def read_heard(path: Path) -> list[Heard]:
    """What `write_heard` kept."""
    with np.load(path) as kept:
        labels, vectors = kept["labels"], kept["vectors"]
        windows = np.split(kept["windows"], np.cumsum(kept["counts"])[:-1])
    return [
        Heard(
            str(row[0]),
            str(row[1]),
            str(row[2]),
            str(row[3]),
            str(row[4]),
            float(row[5]),
            vector,
            SpeechQuality(**json.loads(row[6])),
            own if len(own) else None,
        )
        for row, vector, own in zip(labels, vectors, windows, strict=True)
    ]
