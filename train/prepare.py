"""Clips -> one prepared set: 16 kHz int16 audio, trimmed of outer silence, and its manifest.

A prepared set is a folder with

- ``audio.i16``: the samples of all clips, one after the other, little-endian int16; or shards instead
  (`train.shards`), for speech beyond what a disk's cache holds;
- ``manifest.csv``: corpus, speaker, gender, emotion, sentence, start (the first sample in ``audio.i16``, or the
  number in the shards), samples, path (of the source, relative to its corpus);
- ``skipped.csv``: path and reason of every clip that could not be used.

Training maps ``audio.i16`` into memory, so that a set larger than memory streams from disk. The manifest's order is
that of the corpus either way, so that the same clips make the same batches.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.audio import read_audio, to_mono
from emoinv_edge.errors import AudioError

from .corpora import VOXCELEB1_TEST, Clip
from .manifest import COLUMNS, SAMPLE_RATE, Clips, PreparedClip
from .progress import Report, silent
from .shards import INDEX, Shards, write_shards

__all__ = [
    "HELD_OUT",
    "SAMPLE_RATE",
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

SHORTEST_S = 0.4
LONGEST_S = 12.0
# Every so-many-th speaker of these is never trained on: development figures and calibrations need some whom nothing
# learnt from, of corpora with emotions more.
HELD_OUT = {"malayalam": 5, "speechocean762": 5, "crema_d": 2, "banglaser": 2}
SHUFFLED_BY = 0  # seed of the order in which clips lie in shards


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
    """Speaker -> the numbers of their clips.

    Clips without a speaker are left out, those of a skipped shard, and the speakers `without`.
    """
    clips_of: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.speaker and clip.speaker not in without and (isinstance(clip, Clip) or clip.samples):
            clips_of[clip.speaker].append(index)
    return clips_of


def held_out_speakers(clips: Iterable[PreparedClip], corpus: str) -> frozenset[str]:
    """Speakers of a corpus that training leaves out; the clips are all of the corpus."""
    if corpus == "voxceleb":
        return VOXCELEB1_TEST
    if corpus not in HELD_OUT:
        return frozenset()
    return frozenset(sorted({clip.speaker for clip in clips})[:: HELD_OUT[corpus]])


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
    (out / INDEX).unlink(missing_ok=True)  # of shards that were here before
    os.replace(out / "audio.i16.part", out / "audio.i16")
    os.replace(out / "manifest.csv.part", out / "manifest.csv")


def prepare(
    clips: Sequence[Clip], out: Path, num_workers: int = 2, progress: Report = silent, sharded: bool = False
) -> tuple[int, int]:
    """Decode, trim and store clips as a prepared set.

    Parameters
    ----------
    clips : sequence of Clip
    out : Path
        Folder to make; audio and manifest appear when all clips are done.
    num_workers : int
        Processes that decode. The result does not depend on it.
    sharded : bool
        Whether to write shards, in an order that is shuffled, instead of one file.

    Returns
    -------
    (kept, skipped) : counts
    """
    kept = skipped = 0
    with (
        _shards_of(clips, out) if sharded else _file_of(clips, out) as (order, add),
        open(out / "skipped.csv", "w", newline="", encoding="utf-8") as refused,
        ProcessPoolExecutor(num_workers) as pool,
    ):
        refusals = csv.writer(refused)
        refusals.writerow(("path", "reason"))
        decoded = _in_order(pool, (clips[number] for number in order))
        for number, (clip, samples, reason) in zip(order, decoded, strict=True):
            if samples is None:
                refusals.writerow((clip.path, reason))
                skipped += 1
            else:
                add(number, samples)
                kept += 1
            progress(kept + skipped, len(clips))
    return kept, skipped


Order = Sequence[int]
Add = Callable[[int, NDArray[np.int16]], None]


@contextlib.contextmanager
def _file_of(clips: Sequence[Clip], out: Path) -> Iterator[tuple[Order, Add]]:
    """The order in which clips are written to one file, and what writes the clip of a number."""
    with write_set(out) as add:
        yield range(len(clips)), lambda number, samples: add(_labels(clips[number]), samples, _source(clips[number]))


@contextlib.contextmanager
def _shards_of(clips: Sequence[Clip], out: Path) -> Iterator[tuple[Order, Add]]:
    """The same for shards."""
    (out / "manifest.csv").unlink(missing_ok=True)
    starts, lengths = np.full(len(clips), -1, np.int64), np.zeros(len(clips), np.int64)
    order: list[int] = np.random.default_rng(SHUFFLED_BY).permutation(len(clips)).tolist()
    with write_shards(out) as write:

        def add(number: int, samples: NDArray[np.int16]) -> None:
            starts[number], lengths[number] = write(samples), len(samples)

        yield order, add
    with open(out / "manifest.csv.part", "w", newline="", encoding="utf-8") as manifest:
        rows = csv.writer(manifest)
        rows.writerow(COLUMNS)
        for number in np.flatnonzero(starts >= 0).tolist():
            clip = clips[number]
            rows.writerow((*_labels(clip), starts[number], lengths[number], _source(clip)))
    os.replace(out / "manifest.csv.part", out / "manifest.csv")


def _labels(clip: Clip) -> tuple[str, ...]:
    return dataclasses.astuple(clip)[1:]


def _source(clip: Clip) -> str:
    return "/".join(clip.path.parts[-3:])


class PreparedSet:
    """A prepared set on disk: its clips, and their samples, mapped into memory or in shards.

    Attributes
    ----------
    clips : sequence of PreparedClip
        In the order of the manifest. A clip of a skipped shard stays in its place, so that whatever was made for each
        clip still fits, but has no samples; a warning names the shards and counts the clips.
    audio : ndarray, int16, or Shards
        From which each clip is read by its ``start`` and ``samples``.
    held_out : frozenset of str
        Speakers that training leaves out, whatever becomes of `clips`.

    Raises
    ------
    ValueError
        If the folder is no prepared set, or its audio is shorter than in the manifest.
    """

    clips: Sequence[PreparedClip]
    audio: NDArray[np.int16] | Shards

    def __init__(self, folder: Path) -> None:
        table = folder / "manifest.csv"
        if not table.is_file():
            raise ValueError(f"{folder}: no manifest.csv; make it with `python -m train prepare`")
        clips = Clips(table)
        sharded = (folder / INDEX).is_file()
        self.audio = Shards(folder) if sharded else np.memmap(folder / "audio.i16", "<i2", "r")
        needed = int((clips.starts + (1 if sharded else clips.samples)).max(initial=0))
        if len(self.audio) < needed:
            audio, what = (INDEX, "clips") if sharded else ("audio.i16", "samples")
            raise ValueError(f"{folder}: {audio} holds {len(self.audio)} {what}, expected {needed}; prepare again")
        if isinstance(self.audio, Shards) and self.audio.skipped:
            lost = self.audio.lost(clips.starts)
            clips = clips.without_audio(lost)
            which = "; ".join(self.audio.skipped)
            warnings.warn(f"{folder}: {lost.sum()} of {len(clips)} clips are skipped: {which}", stacklevel=2)
        self.clips = clips
        self.folder = folder
        self.held_out = held_out_speakers(self.clips, folder.name)

    def unheard(self, learnt_from: Collection[str] | None = None) -> list[int]:
        """Clips with a speaker whom an encoder never learnt from.

        Parameters
        ----------
        learnt_from : collection of str, optional
            Corpora that it learnt from; by default all that training leaves speakers out of.
        """
        whole = not self.held_out or (learnt_from is not None and self.folder.name not in learnt_from)
        return [
            i
            for i, clip in enumerate(self.clips)
            if clip.speaker and clip.samples and (whole or clip.speaker in self.held_out)
        ]

    def samples(self, index: int) -> NDArray[np.int16]:
        """Samples of clip `index`, int16."""
        clip = self.clips[index]
        if isinstance(self.audio, Shards):
            return self.audio(clip.start, clip.samples)
        return self.audio[clip.start : clip.start + clip.samples]

    def waveform(self, index: int) -> NDArray[np.float32]:
        """Samples of clip `index`, float32 in [-1, 1]."""
        return self.samples(index).astype(np.float32) / np.float32(32768.0)
