"""Corpora larger than a disk's cache: tar shards of FLAC, read by groups with bounded memory.

A sharded set is a folder of ``shard-RANK-NNNNN.tar`` in WebDataset's layout (``KEY.flac`` and ``KEY.json``
side by side), ``index.npy`` and ``speakers.txt``. Clips of one speaker lie together in groups of up to
`GROUP_CLIPS`, and the groups are shuffled once when they are written; so one read of a few hundred kilobytes
gives a pair of views, and shards are read from front to back. The index holds where each group lies: any
group can be read alone, which makes batch number `step` depend on (seed, step) alone, whatever the number of
workers, and lets a run resume in the middle of an epoch.

What is held in memory: the index (20 bytes a group; 3 MB for the 1.2 million clips of VoxCeleb 2) and the
groups of the batch in hand.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoinv_edge.spec import EncoderSpec

from . import augment
from .corpora import Clip
from .pairs import PairBatches, Recipe
from .prepare import SAMPLE_RATE, _decode_for_set

__all__ = ["ShardClip", "ShardPairs", "ShardedSpeech", "plan_groups", "write_shards"]

GROUP_CLIPS = 8
INDEX = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("speaker", "<u4"), ("clips", "<u2")])


@dataclasses.dataclass(frozen=True, slots=True)
class ShardClip:
    """The labels of one clip of a shard."""

    corpus: str
    speaker: str
    gender: str
    emotion: str
    sentence: str
    path: str
    samples: int


def plan_groups(clips: Sequence[Clip], seed: int = 0) -> list[list[Clip]]:
    """Clips in groups of one speaker, both the clips of a speaker and the groups shuffled by the seed."""
    of_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.speaker:
            of_speaker.setdefault(clip.speaker, []).append(clip)
    rng = np.random.default_rng(seed)
    groups = []
    for _, mine in sorted(of_speaker.items()):
        order = [mine[i] for i in rng.permutation(len(mine))]
        # Even parts, so that no group is left with a single clip where the speaker has more.
        parts = -(-len(order) // GROUP_CLIPS)
        groups += [order[k * len(order) // parts : (k + 1) * len(order) // parts] for k in range(parts)]
    return [groups[i] for i in rng.permutation(len(groups))]


class _Writer:
    """One rank's shards: the one being written, and a sidecar beside each that is whole."""

    def __init__(self, out: Path, rank: int, plan: str, hours: float) -> None:
        self._out, self._rank, self._plan = out, rank, plan
        self._most = round(hours * 3600 * SAMPLE_RATE)
        self.next_group = 0
        self.number = 0
        self.skipped: list[tuple[str, str]] = []
        self.kept = self.refused = 0
        while (sidecar := self._sidecar(self.number)).is_file() and self._shard(self.number).is_file():
            said = json.loads(sidecar.read_text(encoding="utf-8"))
            if said["plan"] != plan:
                raise ValueError(f"{out}: holds shards of other clips or another setting; give an empty folder")
            self.next_group = said["next_group"]
            self.kept += sum(group[3] for group in said["groups"])
            self.refused += len(said["skipped"])
            self.number += 1
        self._begin()

    def _shard(self, number: int) -> Path:
        return self._out / f"shard-{self._rank:03d}-{number:05d}.tar"

    def _sidecar(self, number: int) -> Path:
        return self._shard(number).with_suffix(".json")

    def _begin(self) -> None:
        self._samples = 0
        self._groups: list[tuple[int, int, str, int]] = []
        self.skipped = []
        self._file = open(self._shard(self.number).with_suffix(".part"), "wb")  # noqa: SIM115 - closed by _finish
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, members: Sequence[tuple[Clip, NDArray[np.int16]]]) -> None:
        """Write one group; the shard is closed once it is long enough."""
        self.next_group += 1
        if members:
            first = self._tar.offset
            for k, (clip, samples) in enumerate(members):
                key = f"{self._rank:03d}-{self.number:05d}-{len(self._groups):05d}-{k}"
                labels = ShardClip(
                    clip.corpus, clip.speaker, clip.gender, clip.emotion, clip.sentence, "/".join(clip.path.parts[-3:]),
                    len(samples),
                )  # fmt: skip
                sound = io.BytesIO()
                soundfile.write(sound, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
                text = json.dumps(dataclasses.asdict(labels), ensure_ascii=False).encode()
                for suffix, data in (("flac", sound.getvalue()), ("json", text)):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    self._tar.addfile(info, io.BytesIO(data))
                self._samples += len(samples)
            self._groups.append((first, self._tar.offset - first, members[0][0].speaker, len(members)))
            self.kept += len(members)
        if self._samples >= self._most:
            self.finish()
            self._begin()

    def skip(self, clip: Clip, reason: str) -> None:
        """Remember a clip that could not be used."""
        self.skipped.append((str(clip.path), reason))
        self.refused += 1

    def finish(self) -> None:
        """Close the shard; its sidecar says that it is whole."""
        self._tar.close()
        self._file.close()
        os.replace(self._shard(self.number).with_suffix(".part"), self._shard(self.number))
        said = {"plan": self._plan, "groups": self._groups, "next_group": self.next_group, "skipped": self.skipped}
        part = self._sidecar(self.number).with_suffix(".json.part")
        part.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        os.replace(part, self._sidecar(self.number))
        self.number += 1

    @property
    def unfinished(self) -> bool:
        """Whether the shard being written holds anything, skipped clips included."""
        return bool(self._groups or self.skipped)

    def drop(self) -> None:
        """Leave the unfinished shard's file for nobody."""
        self._tar.close()
        self._file.close()
        self._shard(self.number).with_suffix(".part").unlink(missing_ok=True)


def write_shards(
    clips: Sequence[Clip],
    out: Path,
    hours: float = 4.0,
    num_workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
    seed: int = 0,
) -> tuple[int, int]:
    """Decode, trim and store clips as tar shards of about `hours` each.

    A stopped call goes on after the last whole shard. Under ``torchrun`` each rank writes shards of its own and
    rank 0 the index. Memory does not grow with the corpus beyond the list of its clips.

    Returns
    -------
    (kept, skipped) : counts of this rank
    """
    from .distributed import barrier, rank, world_size

    if not hours > 0:
        raise ValueError(f"expected shards of more than 0 hours, got {hours}")
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_groups(clips, seed)
    if not plan:
        raise ValueError("no clip has a speaker; shards hold groups of one speaker's clips")
    digest = hashlib.sha256(f"{world_size()} {hours} {seed}".encode())
    for group in plan:
        digest.update("\n".join(f"{clip.speaker} {clip.path}" for clip in group).encode())
    mine = plan[rank() :: world_size()]
    writer = _Writer(out, rank(), digest.hexdigest()[:16], hours)
    done = sum(len(group) for group in mine[: writer.next_group])
    try:
        with ProcessPoolExecutor(num_workers) as pool:
            remaining = iter(mine[writer.next_group :])
            while batch := list(islice(remaining, 32)):
                flat = [clip for group in batch for clip in group]
                decoded = pool.map(_decode_for_set, flat, chunksize=8)
                for group in batch:
                    members = []
                    for clip, samples, reason in islice(decoded, len(group)):
                        if samples is None:
                            writer.skip(clip, reason)
                        else:
                            members.append((clip, samples))
                    writer.add(members)
                    done += len(group)
                    progress(done)
        if writer.unfinished or not writer.number:
            writer.finish()
        else:
            writer.drop()
    except BaseException:
        writer.drop()
        raise
    barrier()
    if rank() == 0:
        _write_index(out)
    barrier()
    return writer.kept, writer.refused


def _write_index(out: Path) -> None:
    """Join the sidecars: index, speakers, skipped clips."""
    shards = sorted(path.with_suffix(".json") for path in out.glob("shard-*.tar"))
    rows: list[tuple[int, int, int, str, int]] = []
    with open(out / "skipped.csv", "w", newline="", encoding="utf-8") as file:
        refusals = csv.writer(file)
        refusals.writerow(("path", "reason"))
        for number, sidecar in enumerate(shards):
            said = json.loads(sidecar.read_text(encoding="utf-8"))
            rows += [(number, *group) for group in said["groups"]]
            refusals.writerows(said["skipped"])
    speakers = sorted({row[3] for row in rows})
    place = {name: k for k, name in enumerate(speakers)}
    index = np.array([(*row[:3], place[row[3]], row[4]) for row in rows], INDEX)
    (out / "speakers.txt").write_text("".join(f"{name}\n" for name in speakers), encoding="utf-8")
    np.save(out / "index.part.npy", index)
    os.replace(out / "index.part.npy", out / "index.npy")


class ShardedSpeech:
    """A sharded set on disk.

    Raises
    ------
    ValueError
        If the folder has no index, or a shard is missing or shorter than the index says.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "index.npy").is_file():
            raise ValueError(f"{folder}: no index.npy; write the shards to their end (train prepare --shard-hours)")
        self.folder = folder
        self.index = np.load(folder / "index.npy", mmap_mode="r")
        self.speakers = (folder / "speakers.txt").read_text(encoding="utf-8").splitlines()
        self._paths = sorted(folder.glob("shard-*.tar"))
        ends = np.zeros(len(self._paths), np.uint64)
        if len(self.index) and int(self.index["shard"].max()) >= len(self._paths):
            raise ValueError(f"{folder}: {len(self._paths)} shards, the index knows more; copy the missing ones")
        np.maximum.at(ends, self.index["shard"], self.index["offset"] + self.index["size"])
        for path, end in zip(self._paths, ends, strict=True):
            if path.stat().st_size < int(end):
                raise ValueError(f"{path}: {path.stat().st_size} bytes, expected at least {int(end)}; copy it again")

    def __len__(self) -> int:
        return len(self.index)

    def group(self, number: int) -> list[tuple[ShardClip, NDArray[np.float32]]]:
        """The clips of one group: labels, and samples as float32 in [-1, 1] at 16 kHz."""
        row = self.index[number]
        path = self._paths[int(row["shard"])]
        with open(path, "rb") as file:
            file.seek(int(row["offset"]))
            data = file.read(int(row["size"]))
        out = []
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                members = {info.name: tar.extractfile(info) for info in tar}
                for name, sound in members.items():
                    if name.endswith(".flac") and sound is not None:
                        labels = members[f"{name.removesuffix('.flac')}.json"]
                        assert labels is not None
                        waveform, rate = soundfile.read(sound, dtype="float32")
                        assert rate == SAMPLE_RATE
                        out.append((ShardClip(**json.loads(labels.read())), waveform))
        except (tarfile.TarError, soundfile.LibsndfileError, KeyError, ValueError) as error:
            raise ValueError(f"{path}, group {number}: damaged ({error}); copy the shard again") from error
        return out

    def order(self, seed: int, epoch: int, window: int = 4) -> NDArray[np.int64]:
        """Group numbers of one epoch: shards in random order, groups shuffled within every `window` shards.

        Reading stays near to sequential, and `window` shards are few enough for a disk's cache.
        """
        rng = np.random.default_rng((seed, epoch))
        shard = np.asarray(self.index["shard"])
        starts = np.searchsorted(shard, np.arange(len(self._paths) + 1))  # the index is in order of shards
        shards = rng.permutation(len(self._paths))
        parts = []
        for first in range(0, len(shards), window):
            numbers = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]])
            parts.append(rng.permutation(numbers))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def stream(self, seed: int, epoch: int) -> Iterator[list[tuple[ShardClip, NDArray[np.float32]]]]:
        """The groups of one epoch, one in memory at a time."""
        for number in self.order(seed, epoch):
            yield self.group(int(number))


class ShardPairs(PairBatches):
    """`PairBatches` from shards: batch number `step` -> pairs of views, for `train.loop.fit`.

    There are no teacher's targets here; classes start in random directions unless `centres` says where.
    """

    def __init__(
        self,
        speech: ShardedSpeech,
        spec: EncoderSpec,
        recipe: Recipe,
        pairs: int,
        steps: int,
        seed: int,
        noises: list[NDArray[np.float32]] | None = None,
        rooms: list[NDArray[np.float32]] | None = None,
        centres: NDArray[np.float32] | None = None,
    ) -> None:
        self.spec, self.recipe, self.pairs, self.steps, self.seed = spec, recipe, pairs, steps, seed
        self.noises, self.rooms, self._speech = noises or [], rooms or [], speech
        if len(speech) < pairs:
            raise ValueError(f"{speech.folder}: {len(speech)} groups are fewer than the {pairs} pairs of a batch")
        if centres is None:
            shape = (len(speech.speakers), spec.embedding_dim)
            centres = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        if len(centres) != len(speech.speakers):
            raise ValueError(f"expected a class for each of {len(speech.speakers)} speakers, got {len(centres)}")
        self.centres = centres
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        samples = round(rng.uniform(self.recipe.min_s, self.recipe.max_s) * SAMPLE_RATE)
        per_epoch = len(self._speech) // self.pairs
        epoch, place = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._speech.order(self.seed, epoch)
        numbers = self._epoch[1][place * self.pairs : (place + 1) * self.pairs]
        views: list[list[NDArray[np.float32]]] = [[], []]
        labels = []
        for number in numbers:
            waveforms = [waveform for _, waveform in self._speech.group(int(number))]
            labels.append(int(self._speech.index["speaker"][number]))
            first, second = rng.choice(len(waveforms), 2, replace=len(waveforms) < 2)
            for side, own in enumerate((first, second)):
                views[side].append(self._shard_view(waveforms, int(own), samples, rng))
        count = 2 * len(labels)
        return {
            "features": torch.from_numpy(np.stack(views[0] + views[1])),
            "labels": torch.tensor(labels + labels),
            "targets": torch.zeros(count, self.spec.embedding_dim),
            "weights": torch.zeros(count),
        }

    def _shard_view(
        self, waveforms: list[NDArray[np.float32]], own: int, samples: int, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        recipe, waveform = self.recipe, waveforms[own]
        if rng.random() < recipe.copy_paste:
            other = waveforms[int(rng.integers(len(waveforms)))]
            waveform = augment.copy_paste(waveform, other, rng, samples, match_level=rng.random() < 0.7)
        else:
            waveform = augment.crop(waveform, samples, rng)
        if rng.random() < recipe.channel:
            waveform = self._channel(waveform, rng)
        return self._features(waveform, rng, mask=rng.random() < recipe.mask)


def describe(folder: Path) -> dict[str, Any]:
    """Counts of a sharded set, for people."""
    speech = ShardedSpeech(folder)
    return {
        "shards": len(list(folder.glob("shard-*.tar"))),
        "groups": len(speech),
        "clips": int(speech.index["clips"].sum()),
        "speakers": len(speech.speakers),
        "megabytes": round(sum(path.stat().st_size for path in folder.glob("shard-*.tar")) / 1e6, 1),
    }
