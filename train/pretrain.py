"""An encoder from random weights: AAM-softmax over the speakers of any speech, then a larger margin on longer crops.

After WeSpeaker's recipe for VoxCeleb (Wang et al., arXiv:2210.17016; ``examples/voxceleb/v2``: ``resnet.yaml`` and
``resnet_lm.yaml``), whose numbers these are: 150 epochs of crops of 2 s, the margin growing to 0.2 from epoch 20 to
40, batches of 256; SGD with Nesterov momentum 0.9 and weight decay 1e-4, the rate falling exponentially from 0.1 to
5e-5 after six epochs of warm-up; six of ten crops in a room or in noise; each speaker played at 0.9 and 1.1 of the
speed is another speaker. Then 5 epochs of crops of 6 s with a margin of 0.5 (Thienpondt et al., arXiv:2010.11255),
from 1e-4 to 2.5e-5. What differs: the moving average of the weights is kept instead of the mean of ten checkpoints,
crops have no dither, and the noise is whatever folder is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from . import augment, loop
from .batch_norm import folded
from .distributed import barrier, rank, world_size
from .losses import AngularMarginSoftmax
from .manifest import Clips
from .model import BASE, autocast, channels_last, save_checkpoint
from .prepare import SAMPLE_RATE, PreparedSet, by_speaker
from .progress import Report, silent
from .schedule import Schedule
from .shards import Shards

__all__ = ["SHAPE", "SPEC", "STAGES", "SpeakerBatches", "Stage", "pretrain"]

SPEEDS = (1.0, 0.9, 1.1)
DISTURBED = 0.6  # share of the crops that get a room or noise
SNR_DB = (0.0, 15.0)
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
# Clips that are shuffled together: those of some eight shards, which a process holds open.
WINDOW = 30_000


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One part of a pretraining.

    Parameters
    ----------
    name : str
        Of its folder.
    epochs : float
        How often each clip is heard.
    batch : int
        Crops of a step, over all ranks and accumulated batches.
    seconds : float
        Length of the crops.
    rate, last_rate : float
        Of SGD at its peak and at the end; in between it falls exponentially.
    warmup : float
        Share of the steps over which the rate rises.
    margin : float
    margin_from, margin_until : float
        Shares of the steps between which the margin grows from 0; a margin from 0 to 0 is there at once.
    """

    name: str
    epochs: float
    batch: int
    seconds: float
    rate: float
    last_rate: float
    warmup: float
    margin: float
    margin_from: float = 0.0
    margin_until: float = 0.0

    def schedule(self, clips: int, accumulate: int = 1, **changes: Any) -> Schedule:
        """The steps and rates of this stage on so many clips."""
        steps = max(1, math.ceil(self.epochs * clips / self.batch))
        return Schedule(
            steps, self.rate, frozen_stages=0, warmup_steps=max(1, round(self.warmup * steps)),
            floor=self.last_rate / self.rate, exponential=True, clip_norm=math.inf, accumulate=accumulate, **changes,
        )  # fmt: skip

    def margin_at(self, step: int, steps: int) -> float:
        """The margin at one of so many steps; it grows exponentially, as in WeSpeaker."""
        begin, end = self.margin_from * steps, self.margin_until * steps
        if step >= end:
            return self.margin
        return self.margin * (1.0 - 1e-3 ** max(0.0, (step - begin) / (end - begin)))

    def crops_of_rank(self, accumulate: int) -> int:
        """Crops of one batch of one rank.

        Raises
        ------
        ValueError
            If the ranks and accumulated batches do not share the stage's batch evenly.
        """
        parts = accumulate * world_size()
        if accumulate < 1 or self.batch % parts or self.batch // parts < 2:
            raise ValueError(
                f"stage {self.name}: a batch of {self.batch} crops cannot be shared by {world_size()} ranks and "
                f"{accumulate} batches to a step, two crops or more each; choose a multiple of {2 * parts}"
            )
        return self.batch // parts


SHAPE, SPEC = BASE, EncoderSpec(name="base")
STAGES = (
    Stage("aam", 150, 256, 2.0, 0.1, 5e-5, 6 / 150, 0.2, 20 / 150, 40 / 150),
    Stage("margin", 5, 128, 6.0, 1e-4, 2.5e-5, 1 / 5, 0.5),
)


class SpeakerBatches(Dataset[loop.Batch]):
    """Batch number `number` of labelled crops: ``features`` (batch, frames, bins) and ``labels`` (batch,).

    Every clip comes once an epoch, in an order that depends on the seed and the epoch alone; clips that lie in the
    same shards come near each other. Each crop is played at one of `SPEEDS`, and is of another class at each.

    Parameters
    ----------
    held_out : frozenset of str
        Speakers that are left out.

    Raises
    ------
    ValueError
        If fewer than two speakers are left.
    """

    def __init__(
        self,
        sets: Sequence[PreparedSet],
        spec: EncoderSpec,
        batch: int,
        seconds: float,
        seed: int,
        noises: Sequence[NDArray[np.float32]] = (),
        rooms: Sequence[NDArray[np.float32]] = (),
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        self.sets, self.spec, self.batch, self.seed = sets, spec, batch, seed
        self.crop = round(seconds * SAMPLE_RATE)
        self.noises, self.rooms = noises, rooms
        clips_of: dict[str, list[tuple[int, list[int]]]] = {}
        for number, each in enumerate(sets):
            for speaker, indices in by_speaker(each.clips, held_out).items():
                clips_of.setdefault(speaker, []).append((number, indices))
        if len(clips_of) < 2:
            raise ValueError(f"expected clips of two speakers or more to train on, got {len(clips_of)} speakers")
        self.speakers = tuple(sorted(clips_of))
        parts = [
            (label, number, indices) for label, name in enumerate(self.speakers) for number, indices in clips_of[name]
        ]
        self._label = np.concatenate([np.full(len(indices), label, np.int32) for label, _, indices in parts])
        self._set = np.concatenate([np.full(len(indices), number, np.int32) for _, number, indices in parts])
        self._clip = np.concatenate([np.array(indices, np.int32) for _, _, indices in parts])
        # Where each clip lies within its set, as a share of the set: in one file anywhere, for any place is as near.
        places = np.empty(len(self._clip))
        for number, each in enumerate(sets):
            rows = np.flatnonzero(self._set == number)
            if isinstance(each.audio, Shards) and isinstance(each.clips, Clips):
                places[rows] = each.clips.starts[self._clip[rows]] / len(each.audio)
            else:
                places[rows] = np.random.default_rng(number).permutation(len(rows)) / max(1, len(rows))
        self._by_place = np.argsort(places, kind="stable").astype(np.int32)
        self._epoch, self._order = -1, self._by_place

    @property
    def classes(self) -> int:
        """Speakers at all speeds."""
        return len(self.speakers) * len(SPEEDS)

    @property
    def clips(self) -> int:
        """Clips of an epoch."""
        return len(self._clip)

    def __getitem__(self, number: int) -> loop.Batch:
        rng = np.random.default_rng((self.seed, number))
        features, labels = [], []
        for position in range(number * self.batch, (number + 1) * self.batch):
            row = self._row(position)
            speed = int(rng.integers(len(SPEEDS)))
            waveform = self.sets[self._set[row]].waveform(int(self._clip[row]))
            needed = math.ceil(self.crop * SPEEDS[speed]) + 2
            waveform = augment.change_speed(augment.crop(waveform, needed, rng), SPEEDS[speed])[: self.crop]
            features.append(mean_normalise(log_mel(np.ascontiguousarray(self._disturbed(waveform, rng)), self.spec)))
            labels.append(int(self._label[row]) + speed * len(self.speakers))
        return {"features": torch.from_numpy(np.stack(features)), "labels": torch.tensor(labels)}

    def _row(self, position: int) -> int:
        """Which clip comes at a position of the endless sequence of epochs."""
        from wids import ChunkedSampler

        epoch, within = divmod(position, self.clips)
        if epoch != self._epoch:
            sampler = ChunkedSampler(None, num_samples=self.clips, chunksize=WINDOW, seed=self.seed, shufflefirst=True)
            sampler.set_epoch(epoch)
            self._order = self._by_place[np.fromiter(sampler, np.int64, self.clips)]
            self._epoch = epoch
        return int(self._order[within])

    def _disturbed(self, waveform: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if rng.random() >= DISTURBED or not (self.noises or self.rooms):
            return waveform
        if self.rooms and (not self.noises or rng.random() < 0.5):
            return augment.reverberate(waveform, self.rooms[int(rng.integers(len(self.rooms)))])
        noise = self.noises[int(rng.integers(len(self.noises)))]
        return augment.add_noise(waveform, noise, rng.uniform(*SNR_DB), rng)


class Classified(nn.Module):
    """An encoder and the classifier of its training speakers."""

    def __init__(self, encoder: nn.Module, classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.softmax = AngularMarginSoftmax(torch.randn(classes, embedding_dim))

    def forward(self, features: Tensor, labels: Tensor, margin: float) -> Tensor:
        """The loss of features (batch, frames, bins) and class numbers (batch,)."""
        loss: Tensor = self.softmax(self.encoder(features).float(), labels, margin)
        return loss


def pretrain(
    encoder: nn.Module,
    spec: EncoderSpec,
    sets: Sequence[PreparedSet],
    out: Path,
    stages: Sequence[Stage] = STAGES,
    accumulate: int = 1,
    seed: int = 1,
    noises: Sequence[NDArray[np.float32]] = (),
    rooms: Sequence[NDArray[np.float32]] = (),
    held_out: frozenset[str] = frozenset(),
    device: str = "cpu",
    num_workers: int = 1,
    compiled: bool = False,
    judge_every: int = 0,
    judge: loop.Judge | None = None,
    progress: Callable[[str], Report] = lambda name: silent,
    plain: Callable[[Any], Any] = folded,
    save: Callable[..., None] = save_checkpoint,
    provenance: Mapping[str, Any] | None = None,
) -> Any:
    """Train an encoder to separate speakers.

    Parameters
    ----------
    encoder : ResidualEncoder with batch norms, or another nn.Module
        Where to start; changed in place. Another architecture maps features (batch, frames, bins) to embeddings
        (batch, ``spec.embedding_dim``) and needs its own `plain` and `save`.
    sets : sequence of PreparedSet
        What to learn from; emotions are not looked at.
    out : Path
        A folder for each stage is made in it, and ``best.pt`` of the last one is the result.
    stages : sequence of Stage
        One after the other, each from the averaged weights of the one before.
    accumulate : int
        Batches of each rank to a step, which then hold so many times fewer crops.
    held_out : frozenset of str
        Speakers that are left out.
    compiled : bool
        Whether torch compiles the encoder. It takes a minute or more, once a stage.
    judge, judge_every
        As `loop.run` and `Schedule` take them.
    progress : callable
        Name of a stage -> what is called as it goes.
    plain, save : callable
        As `loop.State` takes them.
    provenance : mapping, optional
        Goes into ``best.pt``.

    Returns
    -------
    ResidualEncoder, or what `plain` gives
        The exponential moving average of the weights, ready to embed.
    """
    torch.manual_seed(seed)
    encoder = channels_last(encoder, device).train()
    module: Classified | None = None
    for stage in stages:
        crops = stage.crops_of_rank(accumulate)
        batches = SpeakerBatches(sets, spec, crops, stage.seconds, seed, noises, rooms, held_out)
        if module is None:
            module = Classified(encoder, batches.classes, spec.embedding_dim).to(device).train()
            if compiled:
                encoder.compile()
        schedule = stage.schedule(batches.clips, accumulate, judge_every=judge_every)
        optimizer = torch.optim.SGD(
            module.parameters(), schedule.rate, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        about = {"provenance": dict(provenance or {}), "stages": [each.name for each in stages]}
        state = loop.State(module, optimizer, encoder, spec, plain, save, **about)
        _run(out / stage.name, stage, schedule, state, batches, device, num_workers, judge, progress)
        encoder.load_state_dict(state.average)
    if rank() == 0:
        write_atomically(out / "best.pt", (out / stages[-1].name / "best.pt").read_bytes(), 0o666)
    barrier()
    return plain(encoder)


def _run(
    out: Path,
    stage: Stage,
    schedule: Schedule,
    state: loop.State,
    batches: SpeakerBatches,
    device: str,
    num_workers: int,
    judge: loop.Judge | None,
    progress: Callable[[str], Report],
) -> None:
    def losses(batch: loop.Batch, step: int) -> dict[str, Tensor]:
        with autocast(device):
            return {"loss": state.module(batch["features"], batch["labels"], stage.margin_at(step, schedule.steps))}

    ahead = loop.Batches(batches, schedule.batches, num_workers, device)
    loop.run(out, schedule, state, ahead, losses, judge, progress(f"pretrain {stage.name}"))
