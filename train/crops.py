"""What a compression hears: pieces of any open speech in voices, emotions and mixtures that no corpus holds.

No label is needed, since the large encoder answers for whatever it hears (Beyer et al., arXiv:2106.05237: the
teacher hears the very same crop, and the crops vary without bound). Every crop is another voice: played faster
or slower, its formants moved, its rate and emotion changed, mixed with another speaker or joined to one. A fixed
transfer function would be no variety: the mean normalisation takes it out again.

A batch is made at once in torch, on a CPU (6 ms a crop of one core) or where the encoder learns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from emoinv_edge.spec import EncoderSpec

from .emotion_morph import EmotionMorph, contours, uniform
from .prepare import PreparedSet
from .prosody_morphs import MorphedSet
from .spectrum import log_mel_of, mean_normalise, power_spectrum, read_along
from .tape import Pieces, Tape

__all__ = ["CROP_FRAMES", "Crops", "Variety", "warped_bins"]

CROP_FRAMES = (104, 144, 184, 224, 264)  # few: see `pairs.LENGTHS`


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
        Formants alone (`warped_bins`): the exponent's logarithm and the ripple in bins, at most.
    stretch, shortest, longest : float
        Rate alone.
    emotion : float
        F0, effort, level and breath (`emotion_morph.EmotionMorph`): the teacher hears them.
    second_voice, disturbed : float
        Another speaker below the first by 0 to 15 dB; noise, a room, or both: the teacher hears them.
    unheard : float
        Noise, a room, or both that only the small encoder hears: the answer to the clean crop is to be given.
    bent, level : float
        A level that changes within the crop, with this deviation (natural logarithm of power).
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
    emotion: float = 0.3
    second_voice: float = 0.2
    disturbed: float = 0.35
    unheard: float = 0.25
    bent: float = 0.3
    level: float = 1.4
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
    device : torch.device or str
        Where the crops are made, and all the speech is copied if it is a GPU.
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
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.steps, self.batch, self.seed = spec, steps, batch, seed
        self.shares = np.array(shares) / np.sum(shares)
        self.teacher, self.variety = teacher, variety or Variety()
        self.device = torch.device(device)
        morphed = list(dict.fromkeys(of for of, _, _ in morphs))
        noise = _as_recording(noises)
        self._tape = Tape([*(each.audio for each in sets), *(each.audio for each in morphed), noise], device)
        self._clips = [_pieces_of(number, each) for number, each in enumerate(sets)]
        places = [(len(sets) + morphed.index(of), start, samples) for of, start, samples in morphs]
        self._morphs: Pieces = np.array(places, np.int64).reshape(-1, 3)
        ends = np.cumsum([len(each) for each in noises], dtype=np.int64)
        number = len(sets) + len(morphed)
        self._noises: Pieces = np.array(
            [(number, end - len(each), len(each)) for end, each in zip(ends, noises, strict=True)], np.int64
        ).reshape(-1, 3)
        self._rooms = [torch.from_numpy(np.asarray(room, np.float32)).to(self.device) for room in rooms]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        frames = int(rng.choice(CROP_FRAMES))
        clean, seen = self._crops(frames, rng)
        joined = rng.random(self.batch) < self.variety.joined
        cuts = rng.integers(frames // 4, 3 * frames // 4, self.batch)
        for i in range(1, self.batch):
            if joined[i]:
                for crops in (clean, seen):
                    crops[i, cuts[i] :] = crops[i - 1, cuts[i] :]
        clean, seen = mean_normalise(clean), mean_normalise(seen)
        return {"features": seen} | ({"clean": clean} if self.teacher is None else self.teacher(clean.cpu().numpy()))

    def _crops(self, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Crops as the teacher hears them and as the small encoder does, log-mels not yet normalised."""
        variety, batch, device = self.variety, self.batch, self.device
        before = math.ceil(frames * variety.longest) if variety.stretch else frames
        samples = self.spec.frame_length + (before - 1) * self.spec.frame_shift
        waveforms = self._voices(batch, samples, rng)
        two = np.flatnonzero(rng.random(batch) < variety.second_voice)
        second = self._voices(len(two), samples, rng)
        waveforms[two] = _mixed(waveforms[two], second, uniform(rng, 0.0, 15.0, len(two), device))
        heard = self._disturbed(waveforms, np.flatnonzero(rng.random(batch) < variety.disturbed), rng)
        unheard = np.flatnonzero(rng.random(batch) < variety.unheard)
        disturbed = self._disturbed(heard[unheard], np.arange(len(unheard)), rng)

        morphed = np.flatnonzero(rng.random(batch) < variety.emotion)
        morph = EmotionMorph.draw(len(morphed), before, rng, device)
        rates = np.where(
            rng.random(batch) < variety.stretch, rng.uniform(variety.shortest, variety.longest, batch), 1.0
        )
        rates = np.minimum(rates, (before - 1) / (frames - 1))
        begins = rng.random(batch) * (before - 1 - rates * (frames - 1))
        read = torch.from_numpy(np.float32(begins[:, None] + rates[:, None] * np.arange(frames))).to(device)
        bins = self._bins(rng)
        heights = uniform(rng, 0.0, variety.level, batch, device)
        bent = torch.from_numpy((rng.random(batch) < variety.bent).astype(np.float32)).to(device)
        level = contours(rng, frames, int(rng.integers(2, 7)), heights * bent)

        def features(found: Tensor, morph: EmotionMorph, morphed: NDArray[np.int64], rows: Tensor) -> Tensor:
            power = power_spectrum(found, self.spec)
            power[morphed] = morph(power[morphed])
            log_mels = read_along(log_mel_of(power, self.spec), read[rows, :, None], dim=1)
            return read_along(log_mels, bins[rows, None], dim=2) + level[rows, :, None]

        clean = features(heard, morph, morphed, torch.arange(batch, device=device))
        seen = clean.clone()
        if len(unheard):
            # Of those that hear more than the teacher, some are morphed, each by the same morph as for the teacher.
            among = np.flatnonzero(np.isin(unheard, morphed))
            same = morph.rows(torch.from_numpy(np.searchsorted(morphed, unheard[among])).to(device))
            seen[unheard] = features(disturbed, same, among, torch.from_numpy(unheard).to(device))
        return clean, seen

    def _bins(self, rng: np.random.Generator) -> Tensor:
        """Where each bin of each crop is read, shape (batch, bins)."""
        variety, batch = self.variety, self.batch
        warped = rng.random(batch) < variety.warp
        exponents = np.exp(rng.uniform(-variety.exponent, variety.exponent, batch) * warped)
        ripples = rng.uniform(-variety.ripple, variety.ripple, batch) * warped
        positions = warped_bins(self.spec.num_mel_bins, exponents, ripples, rng.integers(1, 4, batch))
        return torch.from_numpy(positions).to(self.device)

    def _voices(self, count: int, samples: int, rng: np.random.Generator) -> Tensor:
        """Clips and morphs, mostly faster or slower than they were spoken."""
        of = rng.choice(len(self._clips), count, p=self.shares)
        pieces = np.array(
            [self._clips[number][int(rng.integers(len(self._clips[number])))] for number in of], np.int64
        ).reshape(-1, 3)
        morphed = np.flatnonzero(rng.random(count) < self.variety.morph)
        if len(self._morphs):
            pieces[morphed] = self._morphs[rng.integers(len(self._morphs), size=len(morphed))]
        speeds = np.where(
            rng.random(count) < self.variety.speed,
            rng.uniform(self.variety.slowest, self.variety.fastest, count),
            1.0,
        )
        return self._tape.read(pieces, speeds, samples, rng)

    def _disturbed(self, waveforms: Tensor, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """A copy with a room, noise, or both in these rows."""
        waveforms = waveforms.clone()
        if not len(rows):
            return waveforms
        count, samples = len(rows), waveforms.shape[1]
        if self._rooms:
            for row in rows[rng.random(count) < 0.4]:
                waveforms[row] = _reverberated(waveforms[row], self._rooms[int(rng.integers(len(self._rooms)))])
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**31)))
        noise = torch.randn((count, samples), generator=generator, device=self.device)
        recorded = np.flatnonzero(rng.random(count) < 0.8)
        if len(self._noises) and len(recorded):
            pieces = self._noises[rng.integers(len(self._noises), size=len(recorded))]
            noise[recorded] = self._tape.read(pieces, np.ones(len(recorded)), samples, rng)
        waveforms[rows] = _mixed(waveforms[rows], noise, uniform(rng, 6.0, 30.0, count, self.device))
        return waveforms


def _pieces_of(number: int, clips: PreparedSet) -> Pieces:
    """Where the clips of a set lie; those of a skipped shard have no samples."""
    places = [(number, clip.start, clip.samples) for clip in clips.clips if clip.samples]
    return np.array(places, np.int64).reshape(-1, 3)


def _as_recording(noises: Sequence[NDArray[np.float32]]) -> NDArray[np.int16]:
    """Noises one after the other, each at three quarters of full scale: only their ratio to the speech counts."""
    scaled = [np.round(each * (24000.0 / max(float(np.abs(each).max()), 1e-6))) for each in noises]
    return np.concatenate(scaled or [np.zeros(1)]).astype(np.int16)


def _rms(waveforms: Tensor) -> Tensor:
    return waveforms.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)


def _mixed(waveforms: Tensor, others: Tensor, ratios_db: Tensor) -> Tensor:
    """Others added so that they lie so much below."""
    return waveforms + others * (_rms(waveforms) / _rms(others) * 10.0 ** (-ratios_db[:, None] / 20.0))


def _reverberated(waveform: Tensor, room: Tensor) -> Tensor:
    """As `augment.reverberate`: aligned to the strongest path, the level kept."""
    size = 1 << (len(waveform) + len(room) - 2).bit_length()
    wet: Tensor = torch.fft.irfft(torch.fft.rfft(waveform, size) * torch.fft.rfft(room, size), size)
    delay = int(room.abs().argmax())
    wet = wet[delay : delay + len(waveform)]
    return wet * (_rms(waveform) / _rms(wet))


def warped_bins(
    bins: int, exponents: NDArray[np.float64], ripples: NDArray[np.float64], waves: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Other vocal tracts: where mel bins are read so that formants move (after Jaitly and Hinton 2013, VTLP).

    Parameters
    ----------
    exponents : ndarray, shape (batch,)
        Bin b of B is read at (b / B) ** exponent: above 1 the formants rise, below 1 they fall.
    ripples : ndarray, shape (batch,)
        Height, in bins, of so many half `waves` of a sine on top of it: formants moved against each other.

    Returns
    -------
    ndarray, shape (batch, bins), float32
    """
    share = np.arange(bins) / (bins - 1)
    positions = (bins - 1) * share ** exponents[:, None]
    positions += ripples[:, None] * np.sin(np.pi * waves[:, None] * share)
    return positions.clip(0, bins - 1).astype(np.float32)
