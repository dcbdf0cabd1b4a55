"""Further voices from those at hand: clips played faster or slower count as other speakers.

A teacher answers for any voice, so that speech of 2,000 people becomes targets for many more. The
copies lie in a prepared set of their own, named ``CORPUS+voices``, whose speakers are named
``SPEAKER@FACTOR``.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import augment
from .prepare import COLUMNS, SAMPLE_RATE, PreparedSet

__all__ = ["VOICES", "revoice"]

# Beyond a tenth another person is heard; beyond a quarter no adult.
VOICES = (0.79, 0.87, 1.14, 1.24)
VOICES_PER_SPEAKER = 2
SECONDS = 3.5  # of a copy at most


def revoice(
    folder: Path,
    per_voice: int,
    without: frozenset[str] = frozenset(),
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Make `per_voice` clips of each of `VOICES_PER_SPEAKER` further voices of every speaker of a prepared set.

    Parameters
    ----------
    folder : Path
        The set; the copies go into ``FOLDER+voices``, which appears whole or not at all.
    without : frozenset of str
        Speakers that are held out of training.

    Returns
    -------
    int
        Clips made.
    """
    clips = PreparedSet(folder)
    clips_of: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips.clips):
        if clip.speaker and clip.speaker not in without:
            clips_of[clip.speaker].append(index)
    out = folder.with_name(f"{folder.name}+voices")
    out.mkdir(exist_ok=True)
    start = made = 0
    total = len(clips_of) * VOICES_PER_SPEAKER * per_voice
    with (
        open(out / "audio.i16.part", "wb") as audio,
        open(out / "manifest.csv.part", "w", newline="", encoding="utf-8") as manifest,
    ):
        rows = csv.writer(manifest)
        rows.writerow(COLUMNS)
        for speaker, indices in sorted(clips_of.items()):
            rng = np.random.default_rng((seed, zlib.crc32(speaker.encode())))
            for factor in rng.permutation(VOICES)[:VOICES_PER_SPEAKER]:
                chosen = np.resize(rng.permutation(indices), per_voice)
                for index in chosen:
                    clip, waveform = clips.clips[index], clips.waveform(int(index))
                    longest = round(SECONDS * factor * SAMPLE_RATE)
                    if len(waveform) > longest:
                        waveform = augment.crop(waveform, longest, rng)
                    samples = np.rint(augment.change_speed(waveform, float(factor)) * 32767.0).astype("<i2")
                    audio.write(samples.tobytes())
                    name = f"{speaker}@{factor:g}"
                    # A name of its own, or the morphs of the set's clips would be taken for these copies'.
                    rows.writerow(
                        (out.name, name, clip.gender, clip.emotion, clip.sentence, start, len(samples), clip.path)
                    )
                    start += len(samples)
                    made += 1
            progress(made, total)
    os.replace(out / "audio.i16.part", out / "audio.i16")
    os.replace(out / "manifest.csv.part", out / "manifest.csv")
    return made
