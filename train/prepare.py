"""Clips -> one prepared set: 16 kHz int16 audio in one file, trimmed of outer silence, and its manifest.

A prepared set is a folder with

- ``audio.i16``: the samples of all clips, one after the other, little-endian int16;
- ``manifest.csv``: corpus, speaker, gender, emotion, sentence, start and samples (positions in
  ``audio.i16``), path (of the source, relative to its corpus);
- ``skipped.csv``: path and reason of every clip that could not be used.

Training maps ``audio.i16`` into memory, so that a set larger than memory streams from disk.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.audio import read_audio, to_mono
from emoinv_edge.errors import AudioError

from .corpora import Clip
from .progress import Report, silent

__all__ = [
    "HELD_OUT",
    "PreparedClip",
    "PreparedSet",
    "by_speaker",
    "decode",
    "held_out_speakers",
    "prepare",
    "thin_speakers",
    "trim_silence",
    "write_set",
]

SAMPLE_RATE = 16000
SHORTEST_S = 0.4
LONGEST_S = 12.0
# Every so-many-th speaker of these is never trained on: development figures and calibrations need some whom nothing
# learnt from, of corpora with emotions more.
HELD_OUT = {"malayalam": 5, "speechocean762": 5, "crema_d": 2, "banglaser": 2}
COLUMNS = ("corpus", "speaker", "gender", "emotion", "sentence", "start", "samples", "path")


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedClip:
    """One row of a prepared set's manifest."""

    corpus: str
    speaker: str
    gender: str
    emotion: str
    sentence: str
    start: int
    samples: int
    path: str

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / SAMPLE_RATE


def decode(path: Path) -> NDArray[np.float32]:
    """Read a clip as 16 kHz mono float32; WebM/Opus and M4A through PyAV, the rest through soundfile."""
    if path.suffix.lower() not in {".webm", ".m4a", ".mp4"}:
        return read_audio(path, SAMPLE_RATE)[0]
    import av

    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
            frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError) as error:
        raise AudioError(f"{path}: cannot be decoded ({error})") from None
    samples = [frame.to_ndarray()[0] for frame in frames]
    return to_mono(np.concatenate(samples) if samples else np.empty(0, np.float32), SAMPLE_RATE, SAMPLE_RATE)


def trim_silence(waveform: NDArray[np.float32], below_peak_db: float = 35.0, margin_s: float = 0.1) -> slice:
    """The part of a waveform from its first to its last 10 ms within `below_peak_db` of the loudest, and a margin."""
    frame = SAMPLE_RATE // 100
    count = len(waveform) // frame
    if count == 0:
        return slice(0, len(waveform))
    energy = np.square(waveform[: count * frame].reshape(count, frame)).mean(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-below_peak_db / 10))
    margin = round(margin_s * SAMPLE_RATE)
    return slice(max(0, loud[0] * frame - margin), min(len(waveform), (loud[-1] + 1) * frame + margin))


def by_speaker(clips: Iterable[Clip | PreparedClip], without: frozenset[str] = frozenset()) -> dict[str, list[int]]:
    """Speaker -> the numbers of their clips; clips without a speaker, and the speakers `without`, are left out."""
    clips_of: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.speaker and clip.speaker not in without:
            clips_of[clip.speaker].append(index)
    return clips_of


def held_out_speakers(clips: list[PreparedClip], corpus: str) -> frozenset[str]:
    """Speakers of a corpus that training leaves out; the clips are all of the corpus."""
    names = sorted({clip.speaker for clip in clips})
    return frozenset(names[:: HELD_OUT[corpus]]) if corpus in HELD_OUT else frozenset()


def thin_speakers(clips: list[Clip], most: int) -> list[Clip]:
    """At most `most` clips of each speaker, evenly spread over theirs; a clip without a speaker stays."""
    kept = [index for index, clip in enumerate(clips) if not clip.speaker]
    for indices in by_speaker(clips).values():
        kept += indices[:: math.ceil(len(indices) / most)]
    return [clips[index] for index in sorted(kept)]


def _decode_for_set(clip: Clip) -> tuple[Clip, NDArray[np.int16] | None, str]:
    try:
        waveform = decode(clip.path)
    except (AudioError, OSError) as error:
        return clip, None, str(error)
    if not waveform.any():
        return clip, None, "silent: every sample is zero"
    waveform = waveform[trim_silence(waveform)][: round(LONGEST_S * SAMPLE_RATE)]
    if len(waveform) < SHORTEST_S * SAMPLE_RATE:
        return clip, None, f"{len(waveform) / SAMPLE_RATE:.2f} s of sound, expected at least {SHORTEST_S} s"
    return clip, np.clip(np.rint(waveform * 32767.0), -32768, 32767).astype(np.int16), ""


def _in_order(pool: ProcessPoolExecutor, clips: Iterable[Clip]) -> Iterator[tuple[Clip, NDArray[np.int16] | None, str]]:
    """Decode in parallel, yield in order, hold few clips at a time."""
    remaining = iter(clips)
    while batch := list(islice(remaining, 512)):
        yield from pool.map(_decode_for_set, batch, chunksize=16)


@contextlib.contextmanager
def write_set(out: Path) -> Iterator[Callable[[tuple[str, ...], NDArray[np.int16], str], None]]:
    """Write a prepared set, whose audio and manifest appear when the block ends.

    Yields
    ------
    callable
        Appends one clip: (corpus, speaker, gender, emotion, sentence), its samples, the path of its source.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = 0
    with (
        open(out / "audio.i16.part", "wb") as audio,
        open(out / "manifest.csv.part", "w", newline="", encoding="utf-8") as manifest,
    ):
        rows = csv.writer(manifest)
        rows.writerow(COLUMNS)

        def add(labels: tuple[str, ...], samples: NDArray[np.int16], source: str) -> None:
            nonlocal start
            audio.write(samples.astype("<i2").tobytes())
            rows.writerow((*labels, start, len(samples), source))
            start += len(samples)

        yield add
    os.replace(out / "audio.i16.part", out / "audio.i16")
    os.replace(out / "manifest.csv.part", out / "manifest.csv")


def prepare(clips: Sequence[Clip], out: Path, num_workers: int = 2, progress: Report = silent) -> tuple[int, int]:
    """Decode, trim and store clips as a prepared set.

    Parameters
    ----------
    clips : sequence of Clip
    out : Path
        Folder to make; audio and manifest appear when all clips are done.
    num_workers : int
        Processes that decode. The result does not depend on it.

    Returns
    -------
    (kept, skipped) : counts
    """
    kept = skipped = 0
    with (
        write_set(out) as add,
        open(out / "skipped.csv", "w", newline="", encoding="utf-8") as refused,
        ProcessPoolExecutor(num_workers) as pool,
    ):
        refusals = csv.writer(refused)
        refusals.writerow(("path", "reason"))
        for clip, samples, reason in _in_order(pool, clips):
            if samples is None:
                refusals.writerow((clip.path, reason))
                skipped += 1
            else:
                add(dataclasses.astuple(clip)[1:], samples, "/".join(clip.path.parts[-3:]))
                kept += 1
            progress(kept + skipped, len(clips))
    return kept, skipped


class PreparedSet:
    """A prepared set on disk: its clips, and their samples mapped into memory.

    Attributes
    ----------
    clips : list of PreparedClip
    held_out : frozenset of str
        Speakers that training leaves out, whatever becomes of `clips`.

    Raises
    ------
    ValueError
        If the folder is no prepared set, or its audio is shorter than in the manifest.
    """

    def __init__(self, folder: Path) -> None:
        table = folder / "manifest.csv"
        if not table.is_file():
            raise ValueError(f"{folder}: no manifest.csv; make it with `python -m train prepare`")
        with open(table, newline="", encoding="utf-8") as rows:
            self.clips = [
                PreparedClip(
                    row["corpus"],
                    row["speaker"],
                    row["gender"],
                    row["emotion"],
                    row["sentence"],
                    int(row["start"]),
                    int(row["samples"]),
                    row["path"],
                )
                for row in csv.DictReader(rows)
            ]
        self.audio = np.memmap(folder / "audio.i16", "<i2", "r")
        needed = max((clip.start + clip.samples for clip in self.clips), default=0)
        if len(self.audio) < needed:
            raise ValueError(f"{folder}: audio.i16 holds {len(self.audio)} samples, expected {needed}; prepare again")
        self.folder = folder
        self.held_out = held_out_speakers(self.clips, folder.name)

    def unheard(self) -> list[int]:
        """Clips with a speaker whom training leaves out; of a corpus that it leaves out as a whole, all of them."""
        whole = self.folder.name not in HELD_OUT
        return [i for i, clip in enumerate(self.clips) if clip.speaker and (whole or clip.speaker in self.held_out)]

    def waveform(self, index: int) -> NDArray[np.float32]:
        """Samples of clip `index`, float32 in [-1, 1]."""
        clip = self.clips[index]
        return self.audio[clip.start : clip.start + clip.samples].astype(np.float32) / np.float32(32768.0)
