"""Further voices from those at hand: clips played faster or slower count as other speakers.

A teacher answers for any voice, so that speech of 2,000 people becomes targets for many more. The
copies lie in a prepared set of their own, named ``CORPUS+voices``, whose speakers are named
``SPEAKER@FACTOR``.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from . import augment
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker, write_set
from .progress import Report, silent

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
    progress: Report = silent,
) -> int:
    """Make `per_voice` clips of each of `VOICES_PER_SPEAKER` further voices of every speaker of a prepared set.

    Parameters
    ----------
    folder : Path
        The set; the copies go into ``FOLDER+voices``, whose files appear when all are made.
    without : frozenset of str
        Speakers that are held out of training.

    Returns
    -------
    int
        Clips made.
    """
    clips = PreparedSet(folder)
    clips_of = by_speaker(clips.clips, without)
    name = f"{folder.name}+voices"
    made, total = 0, len(clips_of) * VOICES_PER_SPEAKER * per_voice
    with write_set(folder.with_name(name)) as add:
        for speaker, indices in sorted(clips_of.items()):
            rng = np.random.default_rng((seed, zlib.crc32(speaker.encode())))
            for factor in rng.permutation(VOICES)[:VOICES_PER_SPEAKER]:
                for index in np.resize(rng.permutation(indices), per_voice):
                    clip, waveform = clips.clips[index], clips.waveform(int(index))
                    longest = round(SECONDS * factor * SAMPLE_RATE)
                    if len(waveform) > longest:
                        waveform = augment.crop(waveform, longest, rng)
                    samples = np.rint(augment.change_speed(waveform, float(factor)) * 32767.0).astype(np.int16)
                    # A corpus name of its own, or the morphs of the set's clips would be taken for these copies'.
                    labels = (name, f"{speaker}@{factor:g}", clip.gender, clip.emotion, clip.sentence)
                    add(labels, samples, clip.path)
                    made += 1
            progress(made, total)
    return made
