"""Prosody morphs of prepared clips: the same voice and words in another emotion, made once and kept beside the set."""

from __future__ import annotations

import csv
import zlib
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import augment
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker
from .progress import Report, silent

__all__ = ["MorphedSet", "morph"]

LONGEST_S = 3.2


class MorphedSet:
    """The morphs in a folder: ``audio.i16`` and ``manifest.csv`` (corpus, index, start, samples).

    ``of`` maps (corpus, number of the clip) to the places of its morphs: (start, samples).
    """

    def __init__(self, folder: Path) -> None:
        self.of: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        self.audio = np.memmap(folder / "audio.i16", "<i2", "r")
        with open(folder / "manifest.csv", newline="", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                if row["samples"] is None:  # the last line of a run that was stopped
                    continue
                start, samples = int(row["start"]), int(row["samples"])
                if start + samples <= len(self.audio):
                    self.of[row["corpus"], int(row["index"])].append((start, samples))

    def waveforms(self, corpus: str, index: int) -> list[NDArray[np.float32]]:
        """The morphs of one clip, float32 in [-1, 1]."""
        places = self.of.get((corpus, index), [])
        return [self.audio[start : start + n].astype(np.float32) / np.float32(32768.0) for start, n in places]


_opened: dict[Path, PreparedSet] = {}  # of a worker process of `morph`


def _morph_one(job: tuple[Path, int, int]) -> NDArray[np.int16]:
    folder, index, seed = job
    if folder not in _opened:
        _opened[folder] = PreparedSet(folder)
    rng = np.random.default_rng((seed, zlib.crc32(folder.name.encode()), index))
    waveform = _opened[folder].waveform(index)
    longest = round(LONGEST_S * SAMPLE_RATE)
    if len(waveform) > longest:
        waveform = augment.crop(waveform, longest, rng)
    return np.asarray(np.rint(augment.shift_prosody(waveform, rng) * 32767.0), "<i2")


def morph(folder: Path, per_speaker: int, seed: int = 0, num_workers: int = 2, progress: Report = silent) -> int:
    """Make morphs of up to `per_speaker` clips of each speaker, into ``morphs/`` of a prepared set.

    Returns
    -------
    int
        Morphs made; they do not depend on the number of workers.
    """
    clips_of = by_speaker(PreparedSet(folder).clips)
    rng = np.random.default_rng(seed)
    chosen = [int(i) for _, indices in sorted(clips_of.items()) for i in rng.permutation(indices)[:per_speaker]]
    out = folder / "morphs"
    out.mkdir(exist_ok=True)
    start = 0
    with (
        open(out / "audio.i16", "wb") as audio,
        open(out / "manifest.part", "w", newline="", encoding="utf-8") as manifest,
        ProcessPoolExecutor(num_workers) as pool,
    ):
        rows = csv.writer(manifest)
        rows.writerow(("corpus", "index", "start", "samples"))
        jobs = [(folder, index, seed) for index in chosen]
        for done, (index, samples) in enumerate(zip(chosen, pool.map(_morph_one, jobs, chunksize=8), strict=True), 1):
            audio.write(samples.tobytes())
            rows.writerow((folder.name, index, start, len(samples)))
            start += len(samples)
            progress(done, len(chosen))
    (out / "manifest.part").replace(out / "manifest.csv")
    return len(chosen)
