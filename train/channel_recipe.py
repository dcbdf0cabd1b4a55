"""An encoder that hears through the channel: fine-tuning on speech that went over telephones, codecs and rooms.

The student hears a clip through a channel (`train.channel`); the target is the start's own embedding of the clean clip,
and of a crop that stays clean its embedding of that very crop.
A batch holds three views of each of its speakers, all of one corpus: one clean, held to its own embedding, and two of
other clips that went through one kind of channel, each with parameters of its own. So every loss sees what a verifier
sees: clean against clean, clean against the channel, and both sides through it. The last is where errors live and
where a target for each clip alone helps least: all views of a band move together and the voices within it come to lie
closer; the contrast within the batch pulls them apart again.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment, loop
from .channel import Channels
from .distributed import barrier, rank, world_size
from .evaluation.embeddings import unit
from .losses import contrast_loss, relation_loss, target_loss
from .model import AnyNet, autocast, channels_last, save_checkpoint
from .pairs import Source
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker
from .progress import Report, silent
from .recipes import TEACHERS, corpora_of, credited, interpolate, open_sources
from .schedule import Schedule
from .teachers import Teacher, save_rows, teach

__all__ = [
    "ALPHA",
    "SCHEDULE",
    "SHARES",
    "ChannelBatches",
    "ChannelRecipe",
    "channel_loss",
    "fit_channel",
    "fit_run",
    "own_features",
]

# Share of the batches that each corpus gives: open ones only, and real voices only, since made-up speeds and formants
# cost unseen clean speech.
SHARES = {
    "crema_d": 0.24, "speechocean762": 0.22, "malayalam": 0.17, "librispeech": 0.16, "banglaser": 0.07,
    "speech_commands": 0.06, "picovoice": 0.05, "arabic_commands": 0.03,
}  # fmt: skip
# 300,000 crops. The rate is relative to the size of each tensor: there are no batch norms to keep the layers in bounds.
SCHEDULE = Schedule(steps=6250, rate=1.5e-3, frozen_stages=0, warmup_steps=100, judge_every=1250)
ALPHA = 0.5  # of the interpolation between the start and the run; judge others on development corpora
FOREIGN_CLEAN_WEIGHT = 1.5  # of clean crops, where a front end is learned too
VIEWS = 3  # of each speaker: one clean, two through the channel
LENGTHS_S = (1.2, 1.7, 2.2, 2.7, 3.2)  # few: a CPU prepares its kernels for each shape anew


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelRecipe:
    """What is drawn, and how it is weighed.

    Parameters
    ----------
    kinds : mapping of str to float
        Share of the batches of each kind of channel (`channel.KINDS`).
    speakers : int
        Of a batch; it holds `VIEWS` times as many crops.
    clean_weight, channel_weight : float
        Of the distance of clean and of channelled crops from their targets.
    own_weight : float
        A channelled crop's target lies between the mean of its speaker (0) and its own clean clip (1).
    relation_weight : float
        Of the difference between the batch's cosines and those of its targets.
    contrast_weight, contrast_scale : float
        Of the loss against the batch's other speakers, and of its logits.
    same_gender : float
        Share of batches of one gender, where the corpus names it: hard negatives.
    """

    kinds: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "landline": 0.32, "mobile": 0.16, "internet": 0.08, "near_room": 0.06, "far_room": 0.22, "noise": 0.16,
        }
    )  # fmt: skip
    speakers: int = 16
    clean_weight: float = 1.0 / 3.0
    channel_weight: float = 2.0 / 3.0
    own_weight: float = 0.8
    relation_weight: float = 5.0
    contrast_weight: float = 0.15
    contrast_scale: float = 16.0
    same_gender: float = 0.5


class ChannelBatches(Dataset[dict[str, Tensor]]):
    """Batch number `step` of `VIEWS` times `speakers` crops: ``features``, ``targets``, ``labels``.

    Rows i, i + speakers and i + 2 speakers are of speaker i: clean, and twice through one kind of channel. ``labels``
    is -1 for a clip without a speaker's name, which has a target but takes no part in the contrast; its three views are
    crops of three clips. With `original_spec`, the front end of an encoder that the student is to answer like, there
    are the clean crops' features by it too, as ``original``.

    Raises
    ------
    ValueError
        If a source has fewer embeddings than clips, or nobody to train on.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: EncoderSpec,
        recipe: ChannelRecipe,
        channels: Channels,
        seed: int = 0,
        steps: int = 1_000_000,
        original_spec: EncoderSpec | None = None,
    ) -> None:
        self.sources, self.spec, self.recipe, self.channels = sources, spec, recipe, channels
        self.seed, self.steps, self.original_spec = seed, steps, original_spec
        self._shares = np.array([source.share for source in sources]) / sum(source.share for source in sources)
        self._clips_of: list[list[list[int]]] = []
        self._genders: list[NDArray[np.str_]] = []
        self._named: list[bool] = []
        self._means: list[NDArray[np.float32]] = []
        for source in sources:
            clips = source.clips.clips
            name = source.clips.folder.name
            if len(source.embeddings) != len(clips):
                raise ValueError(f"{name}: expected {len(clips)} embeddings, got {len(source.embeddings)}; teach again")
            named = by_speaker(clips, source.held_out)
            groups = list(named.values()) or [[i] for i in range(len(clips))]
            if not groups:
                raise ValueError(f"{name}: nobody to train on")
            means = source.embeddings.copy()
            for group in groups:
                means[group] = unit(source.embeddings[group].mean(axis=0, keepdims=True))
            self._clips_of.append(groups)
            self._named.append(bool(named))
            self._genders.append(np.array([clips[group[0]].gender for group in groups]))
            self._means.append(means)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        recipe = self.recipe
        kind = str(rng.choice(list(recipe.kinds), p=np.array(list(recipe.kinds.values())) / sum(recipe.kinds.values())))
        number = int(rng.choice(len(self.sources), p=self._shares))
        source, groups, named = self.sources[number], self._clips_of[number], self._named[number]
        chosen = self._speakers(number, rng)
        samples = round(float(rng.choice(LENGTHS_S)) * SAMPLE_RATE)
        features, targets, original = [], [], []
        for view in range(VIEWS):
            for speaker in chosen:
                index = self._clip(groups, int(speaker), view, named, step)
                wave = augment.crop(source.clips.waveform(index), samples, rng)
                heard = self.channels.hear(wave, "clean" if view == 0 else kind, rng)
                features.append(mean_normalise(log_mel(heard, self.spec)))
                if view == 0 and self.original_spec is not None:
                    original.append(mean_normalise(log_mel(wave, self.original_spec)))
                own = 1.0 if view == 0 else recipe.own_weight
                targets.append(own * source.embeddings[index] + (1.0 - own) * self._means[number][index])
        labels = np.tile(chosen if named else np.full(len(chosen), -1), VIEWS)
        batch = {
            "features": torch.from_numpy(np.stack(features)),
            "targets": torch.from_numpy(np.stack(targets).astype(np.float32)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }
        return batch | ({"original": torch.from_numpy(np.stack(original))} if original else {})

    def _speakers(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Different speakers of a source; of one gender if that is drawn and there are enough of it."""
        count, genders = self.recipe.speakers, self._genders[number]
        among = np.arange(len(genders))
        if rng.random() < self.recipe.same_gender:
            same = np.flatnonzero(genders == rng.choice(genders))
            if len(same) >= count:
                among = same
        return np.asarray(rng.choice(among, count, replace=len(among) < count), np.int64)

    def _clip(self, groups: list[list[int]], speaker: int, view: int, named: bool, step: int) -> int:
        """Another clip for each view, as far as the speaker has so many."""
        if not named:  # nobody knows whose clips are alike: three of the set
            rng = np.random.default_rng((self.seed, step, speaker, view))
            return groups[int(rng.integers(len(groups)))][0]
        order = np.random.default_rng((self.seed, step, speaker)).permutation(groups[speaker])
        return int(order[view % len(order)])


def channel_loss(embeddings: Tensor, batch: Mapping[str, Tensor], recipe: ChannelRecipe) -> dict[str, Tensor]:
    """The parts of the loss of one batch, and their weighted sum as ``loss``.

    Parameters
    ----------
    embeddings : Tensor, shape (VIEWS * speakers, embedding_dim)
        Of `ChannelBatches`' ``features``.
    """
    clean, first, second = embeddings.chunk(VIEWS)
    labels = batch["labels"].chunk(VIEWS)[0]
    ones = torch.ones(len(clean), device=embeddings.device)
    targets = batch["targets"].chunk(VIEWS)
    parts = {
        "own": target_loss(clean, targets[0], ones),
        "channel": target_loss(torch.cat((first, second)), torch.cat(targets[1:]), torch.cat((ones, ones))),
        "relation": relation_loss(embeddings, batch["targets"]),
        "matched": contrast_loss(first, second, labels, recipe.contrast_scale),
        "mismatched": contrast_loss(clean, first, labels, recipe.contrast_scale),
    }
    parts["loss"] = (
        recipe.clean_weight * parts["own"]
        + recipe.channel_weight * parts["channel"]
        + recipe.relation_weight * parts["relation"]
        + recipe.contrast_weight * (parts["matched"] + 0.5 * parts["mismatched"])
    )
    return parts


def fit_run(
    encoder: AnyNet,
    spec: EncoderSpec,
    batches: ChannelBatches,
    schedule: Schedule,
    out: Path,
    device: str = "cpu",
    num_workers: int = 1,
    judge: loop.Judge | None = None,
    progress: Report = silent,
    provenance: dict[str, Any] | None = None,
) -> AnyNet:
    """Fine-tune an encoder through channels.

    Parameters
    ----------
    encoder : SpeakerNet
        Where to start; changed in place. All its layers learn. What it makes of a clean crop before it learns is the
        target of that crop.
    batches : ChannelBatches
        As many as ``schedule.batches`` times the number of ranks.
    schedule : Schedule
        Its ``frozen_stages`` are 0.
    out, judge, progress
        As `loop.run` takes them.
    provenance : dict, optional
        Goes into ``best.pt``.

    Returns
    -------
    SpeakerNet
        The exponential moving average of the weights.

    Raises
    ------
    ValueError
        If the schedule freezes stages, or there are too few batches.
    """
    if schedule.frozen_stages:
        raise ValueError(f"expected a schedule in which all layers learn, got {schedule.frozen_stages} frozen stages")
    if len(batches) < schedule.batches:
        raise ValueError(f"expected {schedule.batches} batches or more, got {len(batches)}")
    module, recipe = channels_last(encoder, device).train(), batches.recipe
    about: dict[str, Any] = {
        "provenance": provenance or {},
        "recipe": dataclasses.asdict(recipe) | {"kinds": dict(recipe.kinds)},
    }
    original = copy.deepcopy(module).eval().requires_grad_(False)
    state = loop.State(module, _optimizer(module, schedule), module, spec, **about)
    ahead = loop.Batches(batches, schedule.batches, num_workers, device)

    def losses(batch: loop.Batch, step: int) -> dict[str, Tensor]:
        with torch.no_grad(), autocast(device):
            answers = original(batch.get("original", batch["features"].chunk(VIEWS)[0]))
        answers = torch.nn.functional.normalize(answers.float(), dim=1)
        with autocast(device):
            embeddings = module(batch["features"])
        targets = torch.cat((answers, batch["targets"][len(answers) :]))
        return channel_loss(embeddings.float(), batch | {"targets": targets}, recipe)

    averaged: AnyNet = loop.run(out, schedule, state, ahead, losses, judge, progress)
    return averaged


def fit_channel(
    start: AnyNet,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    teacher: Teacher,
    channels: Channels,
    schedule: Schedule = SCHEDULE,
    recipe: ChannelRecipe | None = None,
    alpha: float = ALPHA,
    seed: int = 11,
    provenance: dict[str, Any] | None = None,
    **options: Any,
) -> AnyNet:
    """An encoder that hears through the channel: embed the clean clips, fine-tune, interpolate; ``best.pt``.

    Parameters
    ----------
    start : SpeakerNet
        Where to start; it is left as it is. One with a front end of its own, as the published CAM++ has, learns this
        project's features too: its answers to its own are then the targets, of clean crops to the very crop.
    prepared : Path
        Root of the prepared sets of `SHARES`.
    out : Path
        ``run/`` holds the run itself, which goes on where it stopped; ``best.pt`` is start + alpha * (run - start).
    teacher : teachers.Teacher
        Whose embeddings of the clean clips are the targets: the start itself. They are kept beside the sets, as
        ``base.npy`` or by the name in the start's spec.
    channels : Channels
        With rooms.
    provenance : dict, optional
        Of the start; this run's corpora and teacher are added to it.
    options
        Of `fit_run`.

    Raises
    ------
    ValueError
        If the teacher's embeddings have another size than the start's, or a set is not prepared.
    """
    if teacher.embedding_dim != spec.embedding_dim:
        raise ValueError(
            f"teacher {teacher.name}: expected embeddings of {spec.embedding_dim} numbers, got {teacher.embedding_dim}"
        )
    ours = own_features(spec)
    foreign = spec != ours
    targets = spec.name if foreign else "base"
    for corpus in SHARES:
        embeddings = teach(teacher, PreparedSet(prepared / corpus), prepared / corpus / "teachers")
        if embeddings is not None:  # rank 0
            save_rows(prepared / corpus / f"{targets}.npy", embeddings)
        barrier()
    sources, _ = open_sources(prepared, SHARES, targets=targets)
    steps = schedule.batches * world_size()
    recipe = recipe or (ChannelRecipe(clean_weight=FOREIGN_CLEAN_WEIGHT) if foreign else ChannelRecipe())
    batches = ChannelBatches(sources, ours, recipe, channels, seed, steps, spec if foreign else None)
    made_of = credited(provenance or {}, {"corpora": corpora_of(SHARES), "teachers": TEACHERS[targets]})
    begun = interpolate(start, [start], 0.0)
    run = fit_run(begun, ours, batches, schedule, out / "run", provenance=made_of, **options)
    mixed = interpolate(start, [run], alpha)
    if rank() == 0:
        save_checkpoint(out / "best.pt", mixed, ours, provenance=made_of, alpha=alpha)
    return mixed


def own_features(spec: EncoderSpec) -> EncoderSpec:
    """`spec` with this project's front end in place of its own."""
    return EncoderSpec(name=spec.name, num_mel_bins=spec.num_mel_bins, embedding_dim=spec.embedding_dim)


def _optimizer(encoder: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """Every tensor at the schedule's rate times its own size, so that none is drowned by the first steps."""
    groups = [
        {"params": [tensor], "lr": schedule.rate * float(tensor.detach().float().square().mean().sqrt())}
        for tensor in encoder.parameters()
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)
