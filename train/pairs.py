"""Prepared sets -> batches of parallel pairs.

A batch holds pairs of views of one speaker. A view is a piece of a clip in one emotion, a prosody
morph, or a CopyPaste of two; it may be masked where its energy is high, and gets noise, rooms,
telephone bands and gain. Batch number `step` depends on (seed, step) alone, so results do not
depend on the number of workers and a run resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker
from .prosody_morphs import MorphedSet

__all__ = ["PairBatches", "Recipe", "Source"]

# Lengths of views: few, since a CPU prepares its kernels for each shape anew, which takes longer than a step.
LENGTHS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Every switch of the method; an arm of the ablation is one of these.

    Parameters
    ----------
    copy_paste, morph : float
        Probability that a view joins two emotions; that it is a prosody morph, where there is one.
    mask, mask_region, mask_fraction, mask_span : float, str, float, int
        Probability of energy masking of a view, where, how much of it, in spans of how many frames
        (`augment.energy_mask`).
    channel : float
        Probability of noise, room, telephone band and gain on a view.
    pair_weight : float
        Lambda of the cosine loss on pairs.
    relation_weight : float
        Of the loss between the batch's cosines and those of its targets.
    margin, softmax_weight : float
        Of AAM-softmax; the margin rises over the first quarter of the steps.
    speaker_target, own_target : float
        Weights of the pull to the speaker's place in the initial space, and of an untouched clip to its own.
    own_weight : float
        That place, between the speaker's mean embedding (0) and the untouched source clip's own (1).
        A speaker's mean alone overfits: there are too few speakers.
    own_share : float
        Share of first views that are untouched clips held to their own initial embedding (replay).
    min_s, max_s : float
        Length of the views.
    """

    copy_paste: float = 0.25
    morph: float = 0.5
    mask: float = 0.3
    mask_region: str = "high"
    mask_fraction: float = 0.15
    mask_span: int = 12
    channel: float = 0.4
    pair_weight: float = 0.1
    relation_weight: float = 0.0
    margin: float = 0.15
    softmax_weight: float = 0.0
    speaker_target: float = 1.0
    own_weight: float = 0.6
    own_target: float = 1.0
    own_share: float = 0.5
    min_s: float = 1.2
    max_s: float = 3.0

    def margin_at(self, step: int, steps: int) -> float:
        """The margin at one of so many steps."""
        return self.margin * min(1.0, step / max(1, steps // 4))


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared set for training: its clips, the initial encoder's embedding of each, and its share of pairs."""

    clips: PreparedSet
    embeddings: NDArray[np.float32]  # (clips, embedding_dim), unit norm
    share: float
    held_out: frozenset[str] = frozenset()


class PairBatches(Dataset[dict[str, Tensor]]):
    """Batch number `step` -> features (2 pairs, frames, bins), labels, targets and their weights.

    Rows `i` and `i + pairs` are the two views of pair `i`.

    Parameters
    ----------
    aligned : bool
        Whether each view is drawn from the place of its pair alone, so that recipes that draw more or less for a
        view see the same speakers and clips.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: EncoderSpec,
        recipe: Recipe,
        pairs: int,
        steps: int,
        seed: int,
        morphs: Sequence[MorphedSet] = (),
        noises: Sequence[NDArray[np.float32]] = (),
        rooms: Sequence[NDArray[np.float32]] = (),
        aligned: bool = False,
    ) -> None:
        self.spec, self.recipe, self.pairs, self.steps, self.seed = spec, recipe, pairs, steps, seed
        self.aligned = aligned
        self.sources, self.morphs, self.noises, self.rooms = sources, morphs, noises, rooms
        self._speakers: list[list[tuple[int, list[int]]]] = []  # per source: (label, clip numbers)
        self._morphed: dict[tuple[int, int], list[int]] = {}  # (source, label) -> clips that have morphs
        centres: list[NDArray[np.float32]] = []
        for number, source in enumerate(sources):
            speakers = []
            for _, indices in sorted(by_speaker(source.clips.clips, source.held_out).items()):
                label = len(centres)
                centres.append(_speaker_mean(source, indices))
                speakers.append((label, indices))
                corpus = source.clips.clips[indices[0]].corpus
                self._morphed[number, label] = [
                    i for i in indices if any((corpus, i) in morphs.of for morphs in self.morphs)
                ]
            usable = [s for s in speakers if len(s[1]) > 1 or self._morphed[number, s[0]]]
            self._speakers.append(usable or speakers)
        if not centres:
            raise ValueError("no clip with a speaker in the sources; check the manifests and what is held out")
        self.centres = np.stack(centres)
        shares = np.array([source.share for source in sources], float)
        self._shares = shares / shares.sum()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        samples = round(rng.choice(np.linspace(self.recipe.min_s, self.recipe.max_s, LENGTHS)) * SAMPLE_RATE)
        features: tuple[list[NDArray[np.float32]], ...] = ([], [])
        targets: tuple[list[NDArray[np.float32]], ...] = ([], [])
        weights: tuple[list[float], ...] = ([], [])
        labels = []
        for pair in range(self.pairs):
            number = int(rng.choice(len(self.sources), p=self._shares))
            label, indices = self._speakers[number][int(rng.integers(len(self._speakers[number])))]
            labels.append(label)
            for side in (0, 1):
                drawn = np.random.default_rng((self.seed, step, pair, side)) if self.aligned else rng
                view, target, weight = self._view(number, label, indices, samples, drawn, own=side == 0)
                features[side].append(view)
                targets[side].append(target)
                weights[side].append(weight)
        return {
            "features": torch.from_numpy(np.stack(features[0] + features[1])),
            "labels": torch.tensor(labels + labels),
            "targets": torch.from_numpy(np.stack(targets[0] + targets[1])),
            "weights": torch.tensor(weights[0] + weights[1], dtype=torch.float32),
        }

    def _view(
        self, number: int, label: int, indices: list[int], samples: int, rng: np.random.Generator, own: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """One view: its features, its target in the initial space and the target's weight."""
        source, recipe = self.sources[number], self.recipe
        index = indices[int(rng.integers(len(indices)))]
        if own and rng.random() < recipe.own_share:
            # Replay: an untouched clip stays where the initial encoder put it.
            waveform = augment.crop(source.clips.waveform(index), samples, rng)
            return self._features(waveform, rng, mask=False), source.embeddings[index], recipe.own_target
        waveform, index = self._clip_or_morph(number, label, indices, index, rng)
        embedding = source.embeddings[index]
        if rng.random() < recipe.copy_paste:
            other, index = self._clip_or_morph(number, label, indices, indices[int(rng.integers(len(indices)))], rng)
            embedding = embedding + source.embeddings[index]
            waveform = augment.copy_paste(waveform, other, rng, samples, match_level=rng.random() < 0.7)
        else:
            waveform = augment.crop(waveform, samples, rng)
        if rng.random() < recipe.channel:
            waveform = self._channel(waveform, rng)
        features = self._features(waveform, rng, mask=rng.random() < recipe.mask)
        embedding = embedding / max(float(np.linalg.norm(embedding)), 1e-6)
        target = recipe.own_weight * embedding + (1.0 - recipe.own_weight) * self.centres[label]
        return features, np.asarray(target, np.float32), recipe.speaker_target

    def _clip_or_morph(
        self, number: int, label: int, indices: list[int], index: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], int]:
        """A clip as it is, or a morph of one; and which clip."""
        clips = self.sources[number].clips
        morphed = self._morphed[number, label]
        if morphed and rng.random() < self.recipe.morph:
            index = morphed[int(rng.integers(len(morphed)))]
            waveforms = [w for morphs in self.morphs for w in morphs.waveforms(clips.clips[index].corpus, index)]
            if waveforms:
                return waveforms[int(rng.integers(len(waveforms)))], index
        return clips.waveform(index), index

    def _channel(self, waveform: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        kind = rng.random()
        if self.rooms and kind < 0.35:
            waveform = augment.reverberate(waveform, self.rooms[int(rng.integers(len(self.rooms)))])
        elif kind > 0.9:
            waveform = augment.telephone_band(waveform)
        if self.noises and rng.random() < 0.6:
            noise = self.noises[int(rng.integers(len(self.noises)))]
            waveform = augment.add_noise(waveform, noise, rng.uniform(5.0, 25.0), rng)
        return augment.random_gain(waveform, rng)

    def _features(self, waveform: NDArray[np.float32], rng: np.random.Generator, mask: bool) -> NDArray[np.float32]:
        features = mean_normalise(log_mel(np.ascontiguousarray(waveform), self.spec))
        if mask:
            energy = augment.frame_energy_db(waveform, self.spec.frame_length, self.spec.frame_shift)
            recipe = self.recipe
            features = augment.energy_mask(
                features, energy, rng, recipe.mask_fraction, recipe.mask_span, recipe.mask_region
            )
        return features


def _speaker_mean(source: Source, indices: list[int]) -> NDArray[np.float32]:
    """Unit-norm mean of a speaker's embeddings, each emotion counting the same."""
    of_emotion: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        of_emotion[source.clips.clips[index].emotion].append(index)
    mean = np.mean([source.embeddings[group].mean(axis=0) for group in of_emotion.values()], axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)
