"""What a compression hears: pieces of any open speech in voices, rates and mixtures that no corpus holds.

No label is needed, since the large encoder answers for whatever it hears (Beyer et al., arXiv:2106.05237: the
teacher hears the very same crop, and the crops vary without bound). Every crop is another voice: played faster
or slower, its formants moved, its rate and mood changed, mixed with another speaker or joined to one. A fixed
transfer function would be no variety: the mean normalisation takes it out again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment
from .data import MorphedSet
from .moods import Mood, log_mel_of, power_spectrum
from .prepare import PreparedSet

__all__ = ["CROP_FRAMES", "Crops", "Variety"]

CROP_FRAMES = (104, 144, 184, 224, 264)  # few: see `data.LENGTHS`
FEWEST_FRAMES = 40  # that are stretched to a crop


@dataclasses.dataclass(frozen=True, slots=True)
class Variety:
    """How often each change is made, and its bounds.

    Parameters
    ----------
    morph : float
        Share of prosody morphs, where there are any.
    speed, slowest, fastest : float
        F0, formants and rate together: another speaker.
    warp, exponent, ripple : float
        Formants alone (`augment.warp_bins`): the exponent's logarithm and the ripple in bins, at most.
    stretch, shortest, longest : float
        Rate alone.
    mood : float
        F0, effort, level and breath (`moods.Mood`): the teacher hears them.
    second_voice, disturbed : float
        Another speaker below the first by 0 to 15 dB; noise, a room, or both: the teacher hears them.
    unheard : float
        Noise, a room, or both that only the small encoder hears: the answer to the clean crop is to be given.
    bent, level : float
        A level that changes within the crop, by at most so much either way (natural logarithm of power).
    joined : float
        Share of crops that end as the crop before them does: two speakers.
    """

    morph: float = 0.22
    speed: float = 0.85
    slowest: float = 0.7
    fastest: float = 1.4
    warp: float = 0.6
    exponent: float = 0.2
    ripple: float = 2.0
    stretch: float = 0.5
    shortest: float = 0.75
    longest: float = 1.33
    mood: float = 0.3
    second_voice: float = 0.2
    disturbed: float = 0.35
    unheard: float = 0.25
    bent: float = 0.3
    level: float = 2.0
    joined: float = 0.12


class Crops(Dataset[dict[str, Tensor]]):
    """Batch number `step` of unlabelled crops of equal length: ``features`` and, as the teacher hears them, ``clean``.

    Parameters
    ----------
    sets, shares
        What the crops are cut from.
    teacher : callable, optional
        A `compress.StageTeacher`: a batch brings what it makes of the clean crops instead of them, so that a
        worker process does its part.
    morphs : sequence of (MorphedSet, start, samples)
        Prosody morphs, each by its place.
    """

    def __init__(
        self,
        sets: Sequence[PreparedSet],
        shares: Sequence[float],
        spec: EncoderSpec,
        steps: int,
        batch: int,
        seed: int,
        noises: Sequence[NDArray[np.float32]] = (),
        rooms: Sequence[NDArray[np.float32]] = (),
        teacher: Callable[[NDArray[np.float32]], dict[str, Tensor]] | None = None,
        morphs: Sequence[tuple[MorphedSet, int, int]] = (),
        variety: Variety | None = None,
    ) -> None:
        self.sets, self.spec, self.steps, self.batch, self.seed = sets, spec, steps, batch, seed
        self.shares = np.array(shares) / np.sum(shares)
        self.noises, self.rooms, self.teacher, self.morphs = noises, rooms, teacher, morphs
        self.variety = variety or Variety()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        frames = int(rng.choice(CROP_FRAMES))
        clean, seen = map(list, zip(*(self._crop(frames, rng) for _ in range(self.batch)), strict=True))
        for i in range(1, self.batch):
            if rng.random() < self.variety.joined:
                cut = int(rng.integers(frames // 4, 3 * frames // 4))
                for crops in (clean, seen):
                    crops[i] = np.concatenate((crops[i][:cut], crops[i - 1][cut:]))
        heard, features = (np.stack([mean_normalise(crop) for crop in crops]) for crops in (clean, seen))
        batch = {"features": torch.from_numpy(features)}
        return batch | ({"clean": torch.from_numpy(heard)} if self.teacher is None else self.teacher(heard))

    def _crop(self, frames: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One crop as the teacher hears it and as the small encoder does, log-mels not yet normalised."""
        variety = self.variety
        waveform = self._voice(rng)
        rate = rng.uniform(variety.shortest, variety.longest) if rng.random() < variety.stretch else 1.0
        before = max(round(frames * rate), FEWEST_FRAMES)
        samples = self.spec.frame_length + (before - 1) * self.spec.frame_shift
        waveform = augment.crop(waveform, samples, rng)
        if rng.random() < variety.second_voice:
            second = augment.crop(self._voice(rng), samples, rng)
            waveform = augment.add_noise(waveform, second, rng.uniform(0.0, 15.0), rng)
        if rng.random() < variety.disturbed:
            waveform = self._disturbed(waveform, rng)
        mood = Mood.draw(before, rng) if rng.random() < variety.mood else None
        warp = bend = None
        if rng.random() < variety.warp:
            exponent = float(np.exp(rng.uniform(-variety.exponent, variety.exponent)))
            warp = exponent, rng.uniform(-variety.ripple, variety.ripple), int(rng.integers(1, 4))
        if rng.random() < variety.bent:
            bend = rng.uniform(-variety.level, variety.level, int(rng.integers(2, 7)))

        def features(heard: NDArray[np.float32]) -> NDArray[np.float32]:
            if mood is None:
                found = log_mel(heard, self.spec)
            else:
                found = log_mel_of(mood(power_spectrum(heard, self.spec)), self.spec)
            found = found if warp is None else augment.warp_bins(found, *warp)
            found = found if before == frames else augment.stretch(found, frames)
            return np.ascontiguousarray(found if bend is None else augment.bend_level(found, bend))

        clean = features(waveform)
        return clean, features(self._disturbed(waveform, rng)) if rng.random() < variety.unheard else clean

    def _voice(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """A clip or a morph, mostly faster or slower than it was spoken."""
        if self.morphs and rng.random() < self.variety.morph:
            morphed, start, length = self.morphs[int(rng.integers(len(self.morphs)))]
            waveform = morphed.read(start, length)
        else:
            clips = self.sets[int(rng.choice(len(self.sets), p=self.shares))]
            waveform = clips.waveform(int(rng.integers(len(clips.clips))))
        if rng.random() < self.variety.speed:
            waveform = augment.change_speed(waveform, rng.uniform(self.variety.slowest, self.variety.fastest))
        return waveform

    def _disturbed(self, waveform: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """A room, noise, or both."""
        if self.rooms and rng.random() < 0.4:
            waveform = augment.reverberate(waveform, self.rooms[int(rng.integers(len(self.rooms)))])
        hiss = rng.standard_normal(len(waveform)).astype(np.float32)
        noise = self.noises[int(rng.integers(len(self.noises)))] if self.noises and rng.random() < 0.8 else hiss
        return augment.add_noise(waveform, noise, rng.uniform(6.0, 30.0), rng)
