"""An encoder that hears through the channel: fine-tuning on speech that went over telephones, codecs and rooms.

The student hears a clip through a channel (`train.channel`); the target is the start's own embedding of the clean clip.
A batch holds three views of each of its speakers, all of one corpus: one clean, held to its own embedding, and two of
other clips that went through one kind of channel, each with parameters of its own. So every loss sees what a verifier
sees: clean against clean, clean against the channel, and both sides through it. The last is where errors live and
where a target for each clip alone helps least: all views of a band move together and the voices within it come to lie
closer; the contrast within the batch pulls them apart again.

Batch number `step` depends on (seed, step) alone; a run resumes where it stopped. As the time that a shared machine
gives is not known beforehand, the learning rate follows the share of a budget of seconds that is spent.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment
from .channel import Channels, Room, set_level, telephone
from .embed import autocast, embed_waveforms
from .evaluate import ENROL_CLIPS, Trials, make_trials, thin, unit
from .loop import CLIP_NORM, WEIGHT_DECAY, averaged, follow, log_figures
from .losses import relation_loss, target_loss
from .metrics import eer
from .model import ResidualEncoder, save_checkpoint
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker

__all__ = [
    "CONDITIONS",
    "ChannelBatches",
    "ChannelJudge",
    "ChannelPlan",
    "ChannelSource",
    "channel_loss",
    "fit_channel",
    "masked_contrast",
]

VIEWS = 3  # of each speaker: one clean, two through the channel
LENGTHS_S = (1.2, 1.7, 2.2, 2.7, 3.2)  # few: a CPU prepares its kernels for each shape anew
# What a judge enrols and tests through.
CONDITIONS = (("clean", "clean"), ("clean", "tel"), ("tel", "tel"), ("clean", "room"), ("room", "room"))


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelPlan:
    """What is drawn, how it is weighed, and how fast it is learnt.

    Parameters
    ----------
    kinds : mapping of str to float
        Share of the batches of each kind of channel (`channel.KINDS`).
    speakers : int
        Of a batch; it holds `VIEWS` times as many crops.
    own_weight : float
        A channelled crop's target lies between the mean of its speaker (0) and its own clean clip (1).
    relation_weight : float
        Of the difference between the batch's cosines and those of its targets.
    contrast_weight, contrast_scale : float
        Of the loss against the batch's other speakers, and of its logits.
    same_gender : float
        Share of batches of one gender, where the corpus says it: hard negatives.
    rate, lower_rate : float
        Peak learning rate of the linear layer and the last stage; each stage below learns at so much of the one above.
    warmup_steps : int
    budget_s : float
        Seconds of learning; the rate falls along a half cosine to 2 % of its peak.
    """

    kinds: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "landline": 0.32, "mobile": 0.16, "internet": 0.08, "near_room": 0.06, "far_room": 0.22, "noise": 0.16,
        }
    )  # fmt: skip
    speakers: int = 16
    own_weight: float = 0.8
    relation_weight: float = 5.0
    contrast_weight: float = 0.15
    contrast_scale: float = 16.0
    same_gender: float = 0.5
    rate: float = 2e-4
    lower_rate: float = 0.85
    warmup_steps: int = 60
    budget_s: float = 3600.0

    def factor(self, step: int, spent_s: float) -> float:
        """Share of the peak rate at a step, after so many seconds of learning."""
        done = min(spent_s / self.budget_s, 1.0)
        cosine = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / self.warmup_steps) * cosine


@dataclasses.dataclass(frozen=True)
class ChannelSource:
    """A prepared set for training.

    Parameters
    ----------
    clips : PreparedSet
    embeddings : ndarray, shape (clips, embedding_dim), float32 of unit norm
        What the start says of each clean clip.
    share : float
        Of the batches.
    held_out : frozenset of str
        Speakers that are left out.
    """

    clips: PreparedSet
    embeddings: NDArray[np.float32]
    share: float
    held_out: frozenset[str] = frozenset()


class ChannelBatches(Dataset[dict[str, Tensor]]):
    """Batch number `step` of `VIEWS` times `speakers` crops: ``features``, ``targets``, ``labels``.

    Rows i, i + speakers and i + 2 speakers are of speaker i: clean, and twice through one kind of channel. ``labels``
    is -1 for a clip without a speaker's name, which has a target but takes no part in the contrast; its three views are
    crops of three clips.

    Raises
    ------
    ValueError
        If a source has fewer embeddings than clips, or nobody to train on.
    """

    def __init__(
        self,
        sources: Sequence[ChannelSource],
        spec: EncoderSpec,
        plan: ChannelPlan,
        channels: Channels,
        seed: int = 0,
        steps: int = 1_000_000,
    ) -> None:
        self.sources, self.spec, self.plan, self.channels = sources, spec, plan, channels
        self.seed, self.steps = seed, steps
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
        plan = self.plan
        kind = str(rng.choice(list(plan.kinds), p=np.array(list(plan.kinds.values())) / sum(plan.kinds.values())))
        number = int(rng.choice(len(self.sources), p=self._shares))
        source, groups, named = self.sources[number], self._clips_of[number], self._named[number]
        chosen = self._speakers(number, rng)
        samples = round(float(rng.choice(LENGTHS_S)) * SAMPLE_RATE)
        features, targets = [], []
        for view in range(VIEWS):
            for speaker in chosen:
                index = self._clip(groups, int(speaker), view, named, step)
                wave = augment.crop(source.clips.waveform(index), samples, rng)
                heard = self.channels.hear(wave, "clean" if view == 0 else kind, rng)
                features.append(mean_normalise(log_mel(heard, self.spec)))
                own = 1.0 if view == 0 else plan.own_weight
                targets.append(own * source.embeddings[index] + (1.0 - own) * self._means[number][index])
        labels = np.tile(chosen if named else np.full(len(chosen), -1), VIEWS)
        return {
            "features": torch.from_numpy(np.stack(features)),
            "targets": torch.from_numpy(np.stack(targets).astype(np.float32)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }

    def _speakers(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Different speakers of a source; of one gender if that is drawn and there are enough of it."""
        count, genders = self.plan.speakers, self._genders[number]
        among = np.arange(len(genders))
        if rng.random() < self.plan.same_gender:
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


def masked_contrast(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Each first view nearer to its own second view than to those of other speakers; nameless rows (-1) are left out.

    Parameters
    ----------
    first, second : Tensor, shape (speakers, embedding_dim)
    labels : Tensor, shape (speakers,)
        Rows of equal label are no negatives of each other.
    scale : float
        Of the cosines.
    """
    known = labels >= 0
    if int(known.sum()) < 2:
        return first.sum() * 0.0
    first, second, labels = first[known], second[known], labels[known]
    cosine = nn.functional.normalize(first.float(), dim=1) @ nn.functional.normalize(second.float(), dim=1).T
    numbers = torch.arange(len(labels), device=labels.device)
    same = (labels[:, None] == labels[None]) & (numbers[:, None] != numbers[None])
    logits = (scale * cosine).masked_fill(same, -torch.inf)
    return 0.5 * (nn.functional.cross_entropy(logits, numbers) + nn.functional.cross_entropy(logits.T, numbers))


def channel_loss(embeddings: Tensor, batch: Mapping[str, Tensor], plan: ChannelPlan) -> dict[str, Tensor]:
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
        "matched": masked_contrast(first, second, labels, plan.contrast_scale),
        "mismatched": masked_contrast(clean, first, labels, plan.contrast_scale),
    }
    parts["loss"] = (
        (parts["own"] + 2.0 * parts["channel"]) / 3.0
        + plan.relation_weight * parts["relation"]
        + plan.contrast_weight * (parts["matched"] + 0.5 * parts["mismatched"])
    )
    return parts


class ChannelJudge:
    """EERs in percent of an encoder on development speech, by condition of enrolment and test (`CONDITIONS`).

    Parameters
    ----------
    sets : mapping of str to (PreparedSet, str)
        Name -> clips and protocol ("enrol" for emotional corpora, "same" for ordinary speech).
    rooms : sequence of Room
        Far microphones of the condition "room"; other rooms than those of the training.
    most : int
        Clips that are tested of each set, evenly over speakers and emotions; those of profiles come on top.
    longest_s : float
        Of a clip.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        sets: Mapping[str, tuple[PreparedSet, str]],
        rooms: Sequence[Room],
        most: int = 200,
        longest_s: float = 4.0,
        conditions: Sequence[tuple[str, str]] = CONDITIONS,
        seed: int = 5,
    ) -> None:
        self.spec, self.rooms, self.conditions, self.seed = spec, rooms, conditions, seed
        self.longest = round(longest_s * SAMPLE_RATE)
        self.sets = {
            name: (clips, _chosen(clips, protocol, most), protocol) for name, (clips, protocol) in sets.items()
        }

    def heard(self, waveform: NDArray[np.float32], condition: str, number: int) -> NDArray[np.float32]:
        """Clip `number` in a condition: "clean", "tel" (G.711, 300-3400 Hz), "room" (far), "noise" (white, 5 dB)."""
        rng = np.random.default_rng((self.seed, number))
        if condition == "tel":
            return telephone(set_level(waveform, -3.5))
        if condition == "room":
            return augment.reverberate(waveform, self.rooms[int(rng.integers(len(self.rooms)))].far)
        if condition == "noise":
            return augment.add_noise(waveform, rng.standard_normal(len(waveform), np.float32), 5.0, rng)
        if condition != "clean":
            raise ValueError(f"expected clean, tel, room or noise, got {condition!r}")
        return waveform

    def embed(self, encoder: ResidualEncoder, name: str, condition: str) -> NDArray[np.float32]:
        """Embeddings (clips, embedding_dim) of unit norm of one set in one condition."""
        clips, indices, _ = self.sets[name]
        waves = [self.heard(clips.waveform(int(i))[: self.longest], condition, int(i)) for i in indices]
        return embed_waveforms(encoder, self.spec, lambda j: waves[j], [len(wave) for wave in waves])

    def __call__(self, encoder: ResidualEncoder) -> dict[str, float]:
        figures: dict[str, float] = {}
        needed = dict.fromkeys(side for pair in self.conditions for side in pair)
        for name, (clips, indices, protocol) in self.sets.items():
            trials = make_trials([clips.clips[int(i)] for i in indices], protocol)
            sides = {condition: self.embed(encoder, name, condition) for condition in needed}
            for enrolled, tested in self.conditions:
                figures[f"{name}.{enrolled}-{tested}"] = 100.0 * across(trials, sides[enrolled], sides[tested])
        for enrolled, tested in self.conditions:
            values = [value for key, value in figures.items() if key.endswith(f".{enrolled}-{tested}")]
            figures[f"mean.{enrolled}-{tested}"] = float(np.mean(values))
        return figures


def _chosen(clips: PreparedSet, protocol: str, most: int) -> NDArray[np.int64]:
    """Clips to judge by: for "enrol", each speaker's first neutral ones and `most` others; else `most`."""
    if protocol != "enrol":
        return thin(clips.clips, most)
    profiles = [
        index
        for indices in by_speaker(clips.clips).values()
        for index in [i for i in indices if clips.clips[i].emotion == "neutral"][:ENROL_CLIPS]
    ]
    tests = [i for i, clip in enumerate(clips.clips) if clip.emotion != "neutral"]
    return np.sort(np.array([*profiles, *(tests[i] for i in thin([clips.clips[i] for i in tests], most))], np.int64))


def across(trials: Trials, enrolled: NDArray[np.float32], tested: NDArray[np.float32]) -> float:
    """EER, a fraction, of trials whose two sides were heard in two conditions.

    Parameters
    ----------
    enrolled, tested : ndarray, shape (clips, embedding_dim)
        The same clips, each side's own embeddings of them.
    """
    both = Trials(trials.enrol, trials.test + np.int32(len(enrolled)), trials.target, trials.profiles)
    scores = both.scores(np.concatenate((enrolled, tested)))
    return eer(scores[trials.target], scores[~trials.target])


def _groups(encoder: ResidualEncoder, plan: ChannelPlan) -> list[dict[str, Any]]:
    """All layers learn, the lower ones more slowly."""
    groups = [{"params": list(encoder.linear.parameters()), "lr": plan.rate}]
    stages = list(encoder.stages)
    for below, stage in enumerate(reversed(stages)):
        groups.append({"params": list(stage.parameters()), "lr": plan.rate * plan.lower_rate**below})
    groups.append({"params": list(encoder.stem.parameters()), "lr": plan.rate * plan.lower_rate ** len(stages)})
    return groups


def fit_channel(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    batches: ChannelBatches,
    plan: ChannelPlan,
    out: Path,
    num_workers: int = 1,
    judge: Callable[[ResidualEncoder], dict[str, float]] | None = None,
    judge_every_s: float = 1500.0,
    checkpoint_every_s: float = 240.0,
    most_steps: int | None = None,
    provenance: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> ResidualEncoder:
    """Fine-tune an encoder through channels, until the plan's budget is spent.

    Parameters
    ----------
    encoder : ResidualEncoder
        Where to start; changed in place.
    out : Path
        Folder for ``last.pt`` (resumable), ``averaged.pt`` (averaged weights), ``log.csv``. If ``last.pt`` is there,
        the run goes on from it.
    judge : callable, optional
        Called with the averaged encoder every `judge_every_s` seconds of learning and at the end; its time is not
        counted as learning.
    most_steps : int, optional
        Stop earlier, after so many steps in all.

    Returns
    -------
    ResidualEncoder
        The exponential moving average of the weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(_groups(encoder, plan), weight_decay=WEIGHT_DECAY)
    peaks = [group["lr"] for group in optimizer.param_groups]
    average = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    start, spent = 0, 0.0
    last = out / "last.pt"
    if last.is_file():
        saved = torch.load(last, map_location="cpu", weights_only=True)
        encoder.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start, spent = saved["average"], saved["step"], saved["spent_s"]

    def save(step: int) -> None:
        state = {"model": encoder.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        torch.save(state | {"step": step, "spent_s": spent}, last.with_suffix(".part"))
        os.replace(last.with_suffix(".part"), last)
        save_checkpoint(
            out / "averaged.pt", averaged(encoder, average), spec, step=step, provenance=provenance or {},
            plan=dataclasses.asdict(plan) | {"kinds": dict(plan.kinds)},
        )  # fmt: skip

    saved_at = judged_at = spent
    coming = torch.utils.data.Subset(batches, range(start, len(batches)))
    loader = DataLoader(coming, batch_size=None, num_workers=num_workers, prefetch_factor=4 if num_workers else None)
    sums: dict[str, float] = {}
    step, before = start, time.monotonic()
    for step, batch in enumerate(loader, start):
        if spent >= plan.budget_s or (most_steps is not None and step >= most_steps):
            break
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * plan.factor(step, spent)
        with autocast():
            embeddings = encoder(batch["features"])
        parts = channel_loss(embeddings.float(), batch, plan)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), CLIP_NORM)
        if torch.isfinite(norm):
            optimizer.step()
        follow(average, encoder, step)
        spent += time.monotonic() - before
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / 20.0
        if (step + 1) % 20 == 0:
            log_figures(out / "log.csv", step + 1, sums | {"spent_s": spent})
            say(f"{step + 1} {spent:.0f} s " + " ".join(f"{name} {value:.4f}" for name, value in sums.items()))
            sums = {}
        if judge is not None and spent - judged_at >= judge_every_s:
            judged_at = spent
            _judged(judge, averaged(encoder, average), out, step + 1, say)
        if spent - saved_at >= checkpoint_every_s:
            saved_at = spent
            save(step + 1)
        before = time.monotonic()
    save(step)
    if judge is not None:
        _judged(judge, averaged(encoder, average), out, step, say)
    return averaged(encoder, average)


def _judged(
    judge: Callable[[ResidualEncoder], dict[str, float]],
    encoder: ResidualEncoder,
    out: Path,
    step: int,
    say: Callable[[str], None],
) -> None:
    figures = judge(encoder)
    log_figures(out / "log.csv", step, figures)
    say(f"judged at {step}: " + " ".join(f"{name} {value:.2f}" for name, value in figures.items()))
