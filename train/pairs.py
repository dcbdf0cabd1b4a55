"""Prepared sets -> batches of parallel pairs.

A batch holds pairs of views of one speaker. A view is a piece of a clip in one manner, a prosody
morph, or a CopyPaste of two manners; it may be masked where its energy is high, and gets noise,
rooms, channels and gain. Batch number `step` depends on (seed, step) alone, so results do not
depend on the number of workers and a run resumes where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker

__all__ = ["MorphedSet", "PairBatches", "Recipe", "Source"]

# Lengths of views: few, since a CPU prepares its kernels for each shape anew, which takes longer than a step.
LENGTHS = 5
HARD_SPEAKERS = 4  # fewer that are alike do not make a batch of hard negatives


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Every switch of the method; an arm of the ablation is one of these.

    Parameters
    ----------
    copy_paste, morph : float
        Probability that a view joins two manners; that it is a prosody morph, where there is one.
    mask, mask_region, mask_fraction, mask_span, mask_fill : float, str, float, int, str
        Probability of energy masking of a view, where, how much of it, in spans of how many frames, and with what
        (`augment.energy_mask`).
    channel, codec : float
        Probability of noise, room, telephone band and gain on a view; of those views, the share that goes through a
        telephone call (`augment.mu_law`).
    hard : float
        Probability that a batch's speakers are of one corpus and gender, and its clips of one sentence where the
        corpus says sentences: hard negatives.
    pair_weight, pair_rise : float
        Lambda of the cosine loss on pairs; the share of the steps in which it rises from 0 to that.
    contrast_weight : float
        Of the loss against the batch's other speakers.
    relation_weight : float
        Of the loss between the batch's cosines and those of its targets.
    margin, softmax_weight : float
        Of AAM-softmax.
    speaker_target, own_target : float
        Weights of the pull to the speaker's place in the initial space, and of an untouched clip to its own.
    own_weight : float
        That place, between the speaker's mean embedding (0) and the untouched source clip's own (1).
        A speaker's mean alone is soon learnt by heart: there are too few speakers.
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
    mask_fill: str = "mean"
    channel: float = 0.4
    codec: float = 0.0
    hard: float = 0.0
    pair_weight: float = 0.1
    pair_rise: float = 0.0
    contrast_weight: float = 0.0
    relation_weight: float = 0.0
    margin: float = 0.15
    softmax_weight: float = 0.0
    speaker_target: float = 1.0
    own_weight: float = 0.6
    own_target: float = 1.0
    own_share: float = 0.5
    min_s: float = 1.2
    max_s: float = 3.0

    def pair_weight_at(self, done: float) -> float:
        """Lambda after the share `done` of the steps, 0 to 1."""
        return self.pair_weight * (min(1.0, done / self.pair_rise) if self.pair_rise > 0.0 else 1.0)


class MorphedSet:
    """Prosody morphs of prepared clips: ``audio.i16`` and ``manifest.csv`` (corpus, index, start, samples)."""

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
        return [self.read(start, samples) for start, samples in self.of.get((corpus, index), [])]

    def read(self, start: int, samples: int) -> NDArray[np.float32]:
        """One morph by its place in the file, float32 in [-1, 1]."""
        return self.audio[start : start + samples].astype(np.float32) / np.float32(32768.0)


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
    """

    def __init__(
        self,
        sources: list[Source],
        spec: EncoderSpec,
        recipe: Recipe,
        pairs: int,
        steps: int,
        seed: int,
        morphs: list[MorphedSet] | None = None,
        noises: list[NDArray[np.float32]] | None = None,
        rooms: list[NDArray[np.float32]] | None = None,
    ) -> None:
        self.spec, self.recipe, self.pairs, self.steps, self.seed = spec, recipe, pairs, steps, seed
        self.sources, self.morphs, self.noises, self.rooms = sources, morphs or [], noises or [], rooms or []
        self._speakers: list[list[tuple[int, list[int]]]] = []  # per source: (label, clip numbers)
        self._morphed: dict[tuple[int, int], list[int]] = {}  # (source, label) -> clips that have morphs
        centres = []
        for number, source in enumerate(sources):
            speakers = []
            for _, indices in sorted(by_speaker(source.clips.clips, source.held_out).items()):
                label = len(centres)
                centres.append(_mean_over_manners(source, indices))
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
        recipe = self.recipe
        samples = round(rng.choice(np.linspace(recipe.min_s, recipe.max_s, LENGTHS)) * SAMPLE_RATE)
        views: list[list[NDArray[np.float32]]] = [[], []]
        labels, targets, weights = [], [[], []], [[], []]
        # Drawn only where it is asked for, so that the batches of the other recipes stay as they are.
        among = self._alike(rng) if recipe.hard > 0.0 and rng.random() < recipe.hard else None
        for _ in range(self.pairs):
            if among is None:
                number = int(rng.choice(len(self.sources), p=self._shares))
                label, indices = self._speakers[number][int(rng.integers(len(self._speakers[number])))]
            else:
                number = among[0]
                label, indices = among[1][int(rng.integers(len(among[1])))]
            labels.append(label)
            for side in (0, 1):
                features, target, weight = self._view(number, label, indices, samples, rng, own=side == 0)
                views[side].append(features)
                targets[side].append(target)
                weights[side].append(weight)
        return {
            "features": torch.from_numpy(np.stack(views[0] + views[1])),
            "labels": torch.tensor(labels + labels),
            "targets": torch.from_numpy(np.stack(targets[0] + targets[1])),
            "weights": torch.tensor(weights[0] + weights[1], dtype=torch.float32),
        }

    def _alike(self, rng: np.random.Generator) -> tuple[int, list[tuple[int, list[int]]]]:
        """A source, and its speakers of one gender with their clips of one sentence, where enough of them said it."""
        number = int(rng.choice(len(self.sources), p=self._shares))
        clips, speakers = self.sources[number].clips.clips, self._speakers[number]
        model = speakers[int(rng.integers(len(speakers)))][1]
        like = clips[model[int(rng.integers(len(model)))]]
        alike = [each for each in speakers if clips[each[1][0]].gender == like.gender]
        said = [(label, [i for i in indices if clips[i].sentence == like.sentence]) for label, indices in alike]
        said = [each for each in said if each[1]]
        if like.sentence and len(said) >= HARD_SPEAKERS:
            return number, said
        return number, alike if len(alike) >= HARD_SPEAKERS else speakers

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
        waveform, index = self._manner(number, label, indices, index, rng)
        embedding = source.embeddings[index]
        if rng.random() < recipe.copy_paste:
            other, index = self._manner(number, label, indices, indices[int(rng.integers(len(indices)))], rng)
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

    def _manner(
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
        if self.recipe.codec > 0.0 and rng.random() < self.recipe.codec:
            waveform = augment.mu_law(waveform)
        if self.noises and rng.random() < 0.6:
            noise = self.noises[int(rng.integers(len(self.noises)))]
            waveform = augment.add_noise(waveform, noise, rng.uniform(5.0, 25.0), rng)
        return augment.random_gain(waveform, rng)

    def _features(self, waveform: NDArray[np.float32], rng: np.random.Generator, mask: bool) -> NDArray[np.float32]:
        features = mean_normalise(log_mel(np.ascontiguousarray(waveform), self.spec))
        if mask:
            energy = augment.frame_energy_db(waveform, self.spec.frame_length, self.spec.frame_shift)
            features = augment.energy_mask(
                features, energy, rng, self.recipe.mask_fraction, self.recipe.mask_span, self.recipe.mask_region,
                fill=self.recipe.mask_fill,
            )  # fmt: skip
        return features


def _mean_over_manners(source: Source, indices: list[int]) -> NDArray[np.float32]:
    """Unit-norm mean of a speaker's embeddings, each emotion counting the same."""
    of_emotion: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        of_emotion[source.clips.clips[index].emotion].append(index)
    mean = np.mean([source.embeddings[group].mean(axis=0) for group in of_emotion.values()], axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)
