"""Features of real speech for the export: to find ranges, to correct weights, to measure the loss.

Speech comes from prepared sets (``python -m train prepare``). Speakers are split in two halves, one to
fit on and one held back to measure with. Half of the clips are altered as a device would hear them:
quieter, louder up to clipping, or with noise.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec
from train.prepare import PreparedSet

__all__ = ["SECONDS", "Portion", "alter", "take_portion"]

SECONDS = 3.0
SHORTEST_S = 0.8


@dataclasses.dataclass(frozen=True, slots=True)
class Portion:
    """Clips of one length.

    Attributes
    ----------
    features : ndarray, shape (clips, frames, num_mel_bins), float32, mean-normalised
    corpus, speaker, emotion : tuple of str
        Of each clip.
    """

    features: NDArray[np.float32]
    corpus: tuple[str, ...]
    speaker: tuple[str, ...]
    emotion: tuple[str, ...]


def alter(waveform: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A copy of `waveform`: as it is (half of the time), quieter, louder with clipping, or in noise."""
    kind = rng.integers(6)
    if kind < 3:
        return waveform.copy()
    if kind == 3:
        return np.asarray(waveform * np.float32(10.0 ** (rng.uniform(-40.0, -12.0) / 20.0)), np.float32)
    if kind == 4:
        gain = rng.uniform(1.0, 3.0) / max(float(np.abs(waveform).max()), 1e-4)
        return np.asarray(np.clip(waveform * np.float32(gain), -1.0, 1.0), np.float32)
    spectrum = np.fft.rfft(rng.standard_normal(len(waveform)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1.0), len(waveform))
    snr_db = rng.uniform(5.0, 25.0)
    power = float(np.square(waveform, dtype=np.float64).mean()) * 10.0 ** (-snr_db / 10.0)
    pink *= np.sqrt(power / np.square(pink).mean())
    return (waveform + pink).astype(np.float32)


def take_portion(
    sets: Sequence[Path],
    spec: EncoderSpec,
    clips: int,
    held_back: bool,
    altered: bool = True,
    per_speaker: int | None = None,
    seed: int = 0,
) -> Portion:
    """Draw `clips` clips, the same number from every set, and compute their features.

    Parameters
    ----------
    sets : sequence of Path
        Folders of prepared sets.
    clips : int
        In all; rounded up to a multiple of the number of sets.
    held_back : bool
        Which half of the speakers: False to fit on, True to measure with. The halves never meet.
    altered : bool
        Whether to `alter` the clips.
    per_speaker : int, optional
        Draw so many clips of one speaker before the next, for error rates, which need several of each.

    Raises
    ------
    ValueError
        If there is no set, or one has no clip of `SHORTEST_S`, or no speaker with clips enough.
    """
    if not sets:
        raise ValueError("expected at least one prepared set, got none; make one with `python -m train prepare`")
    features, chosen = [], []
    for folder in sets:
        prepared = PreparedSet(Path(folder))
        rng = np.random.default_rng((seed, zlib.crc32(prepared.folder.name.encode())))
        usable = [
            i
            for i, clip in enumerate(prepared.clips)
            if clip.samples >= SHORTEST_S * spec.sample_rate
            and (zlib.crc32(f"{clip.corpus}/{clip.speaker or clip.path}".encode()) % 2 == 1) == held_back
        ]
        if not usable:
            raise ValueError(f"{folder}: no clip of {SHORTEST_S} s in this half of the speakers; give a larger set")
        count = -(-clips // len(sets))
        if per_speaker is None:
            drawn = _varied(prepared, usable, count, rng)
        else:
            drawn = _by_speaker(prepared, usable, count, per_speaker, rng)
            if not drawn:
                raise ValueError(f"{folder}: no speaker with {per_speaker} clips in this half; give a larger set")
        for i in drawn:
            waveform = prepared.waveform(i)
            waveform = alter(waveform, rng) if altered else waveform
            whole = np.resize(waveform, round(SECONDS * spec.sample_rate))
            features.append(mean_normalise(log_mel(np.ascontiguousarray(whole, np.float32), spec)))
            chosen.append(prepared.clips[i])
    return Portion(
        np.stack(features),
        tuple(clip.corpus for clip in chosen),
        tuple(clip.speaker for clip in chosen),
        tuple(clip.emotion for clip in chosen),
    )


def _varied(prepared: PreparedSet, usable: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` of the clips (or as many as there are), emotions in turn."""
    groups: dict[str, list[int]] = {}
    for i in rng.permutation(usable):
        groups.setdefault(prepared.clips[i].emotion, []).append(int(i))
    order = [i for rank in range(max(map(len, groups.values()))) for g in groups.values() for i in g[rank : rank + 1]]
    return order[:count]


def _by_speaker(
    prepared: PreparedSet, usable: list[int], count: int, per_speaker: int, rng: np.random.Generator
) -> list[int]:
    """`per_speaker` clips of each of as many speakers as `count` allows; speakers with fewer are left out."""
    groups: dict[str, list[int]] = {}
    for i in rng.permutation(usable):
        groups.setdefault(prepared.clips[i].speaker, []).append(int(i))
    whole = [own[:per_speaker] for name, own in groups.items() if name and len(own) >= per_speaker]
    return [i for own in whole[: max(2, count // per_speaker)] for i in own]
