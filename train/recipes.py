"""How the shipped models are made: which speech in which share, what is held out, which schedules.

A prepared root holds one prepared set a corpus (`train.prepare`), beside it the initial encoder's
embedding of each clip (``public.npy``, by `teach`) and its prosody morphs (``morphs/``, by `morph`).
The recipe is in code, not in a configuration file: this module is what the model card cites.
"""

from __future__ import annotations

import csv
import dataclasses
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from . import augment
from .compress import cut, fit_stages
from .corpora import CORPORA
from .data import MorphedSet, PairBatches, Recipe, Source
from .embed import embed_waveforms
from .evaluate import evaluate_embeddings
from .loop import Schedule, fit
from .model import EncoderShape, ResidualEncoder
from .prepare import SAMPLE_RATE, PreparedClip, PreparedSet

__all__ = [
    "BASE_SCHEDULE",
    "BASE_SHARES",
    "SMALL_SHAPE",
    "Judge",
    "fit_base",
    "fit_small",
    "morph",
    "open_sources",
    "teach",
]

TEACHER_SECONDS = 4.0  # of each clip: longer ones say little more about the voice
MORPH_SECONDS = 3.2
# Share of the pairs that each corpus gives: by speakers and variety rather than by hours.
BASE_SHARES = {
    "speechocean762": 0.30, "librispeech": 0.20, "malayalam": 0.24, "arabic_commands": 0.13, "speech_commands": 0.13,
}  # fmt: skip
# Every fifth speaker of these is never trained on: the ordinary speech of the development figures.
HELD_OUT = ("malayalam", "speechocean762")
FEWEST_CLIPS = {"speech_commands": 3}
# Clips of each speaker that are morphed.
MORPHS_PER_SPEAKER = {
    "speechocean762": 21, "librispeech": 60, "malayalam": 22, "arabic_commands": 60, "speech_commands": 3,
}  # fmt: skip
BASE_SCHEDULE = Schedule(steps=1600, rate=1.5e-4, frozen_stages=2, judge_every=400)
SMALL_SHAPE = EncoderShape(blocks=(1, 3, 3, 1), stem_stride=(2, 2))
SMALL_STAGES = Schedule(steps=700, rate=1.5e-3)
# The whole of it then learns the initial encoder's clip embeddings and the pairs.
SMALL_PAIR_SHARES = {
    "speechocean762": 0.25, "librispeech": 0.17, "malayalam": 0.20, "arabic_commands": 0.12, "speech_commands": 0.16,
    "emogator": 0.10,
}  # fmt: skip
SMALL_RECIPE = Recipe(own_share=0.6, morph=0.35, mask=0.2, channel=0.35, pair_weight=0.1, softmax_weight=0.02)
SMALL_SCHEDULE = Schedule(steps=2400, rate=8e-4, lower_rate=1.0, frozen_stages=0, judge_every=600)


def held_out_speakers(clips: list[PreparedClip], corpus: str) -> frozenset[str]:
    """Speakers of a corpus that training leaves out."""
    return frozenset(sorted({clip.speaker for clip in clips})[::5]) if corpus in HELD_OUT else frozenset()


def teach(
    encoder: ResidualEncoder, spec: EncoderSpec, folder: Path, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Embed every clip of a prepared set by the initial encoder, into ``public.npy`` beside it."""
    clips = PreparedSet(folder)
    longest = round(TEACHER_SECONDS * SAMPLE_RATE)
    embeddings = embed_waveforms(
        encoder, spec, lambda i: clips.waveform(i)[:longest], [min(clip.samples, longest) for clip in clips.clips],
        progress,
    )  # fmt: skip
    part = folder / "public.part.npy"
    np.save(part, embeddings)
    part.replace(folder / "public.npy")


_opened: dict[Path, PreparedSet] = {}  # of a worker process of `morph`


def _morph_one(job: tuple[Path, int, int]) -> NDArray[np.int16]:
    folder, index, seed = job
    if folder not in _opened:
        _opened[folder] = PreparedSet(folder)
    rng = np.random.default_rng((seed, zlib.crc32(folder.name.encode()), index))
    waveform = _opened[folder].waveform(index)
    longest = round(MORPH_SECONDS * SAMPLE_RATE)
    if len(waveform) > longest:
        waveform = augment.crop(waveform, longest, rng)
    return np.rint(augment.shift_prosody(waveform, rng) * 32767.0).astype("<i2")


def morph(
    folder: Path,
    per_speaker: int,
    seed: int = 0,
    num_workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Make prosody morphs of up to `per_speaker` clips of each speaker, into ``morphs/`` of a prepared set."""
    clips_of: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(PreparedSet(folder).clips):
        if clip.speaker:
            clips_of[clip.speaker].append(index)
    rng = np.random.default_rng(seed)
    chosen = [int(i) for _, indices in sorted(clips_of.items()) for i in rng.permutation(indices)[:per_speaker]]
    out = folder / "morphs"
    out.mkdir(exist_ok=True)
    start = 0
    with (
        open(out / "audio.i16", "wb") as audio,
        open(out / "manifest.part", "w", newline="", encoding="utf-8") as manifest,
        ProcessPoolExecutor(num_workers) as pool,
    ):
        rows = csv.writer(manifest)
        rows.writerow(("corpus", "index", "start", "samples"))
        jobs = [(folder, index, seed) for index in chosen]
        for done, (index, samples) in enumerate(zip(chosen, pool.map(_morph_one, jobs, chunksize=8), strict=True), 1):
            audio.write(samples.tobytes())
            rows.writerow((folder.name, index, start, len(samples)))
            start += len(samples)
            progress(done, len(chosen))
    (out / "manifest.part").replace(out / "manifest.csv")
    return len(chosen)


def open_sources(prepared: Path, shares: dict[str, float], use: str = "open") -> tuple[list[Source], list[MorphedSet]]:
    """The prepared sets of `shares` as sources of pairs, and their morphs.

    Raises
    ------
    ValueError
        If a corpus is not prepared or not taught, or its licence does not allow this use.
    """
    sources, morphs = [], []
    for corpus, share in shares.items():
        if use == "open" and CORPORA[corpus].use != "open":
            raise ValueError(f"{corpus} is for {CORPORA[corpus].use} only ({CORPORA[corpus].licence}); not for base")
        folder = prepared / corpus
        clips = PreparedSet(folder)
        if not (folder / "public.npy").is_file():
            raise ValueError(f"{folder}: no public.npy; make it with `python -m train teach`")
        embeddings = np.load(folder / "public.npy")
        if len(embeddings) != len(clips.clips):
            raise ValueError(
                f"{folder}: public.npy has {len(embeddings)} rows, expected {len(clips.clips)}; teach again"
            )
        counts = Counter(clip.speaker for clip in clips.clips)
        fewest = FEWEST_CLIPS.get(corpus, 1)
        usable = np.isfinite(embeddings).all(axis=1)
        clips.clips = [
            clip if usable[i] and counts[clip.speaker] >= fewest else dataclasses.replace(clip, speaker="")
            for i, clip in enumerate(clips.clips)
        ]
        sources.append(Source(clips, embeddings, share, held_out_speakers(clips.clips, corpus)))
        if (folder / "morphs" / "manifest.csv").is_file():
            morphs.append(MorphedSet(folder / "morphs"))
    return sources, morphs


class Judge:
    """Development figures of an encoder: cross-emotion EER where it has not learnt, ordinary EER of held-out speakers.

    Calling it with an encoder gives EERs in percent, named ``corpus.protocol``.
    """

    def __init__(self, prepared: Path, spec: EncoderSpec, corpora: dict[str, int], seed: int = 5) -> None:
        self.spec = spec
        self.sets: dict[str, tuple[PreparedSet, NDArray[np.int64], tuple[str, ...]]] = {}
        rng = np.random.default_rng(seed)
        for corpus, most in corpora.items():
            clips = PreparedSet(prepared / corpus)
            if corpus in HELD_OUT:
                held = held_out_speakers(clips.clips, corpus)
                indices = np.array([i for i, clip in enumerate(clips.clips) if clip.speaker in held])
                protocols: tuple[str, ...] = ("same",)
            else:
                indices, protocols = np.arange(len(clips.clips)), ("pairs", "enrol", "neutral")
            self.sets[corpus] = clips, np.sort(rng.permutation(indices)[:most]), protocols

    def __call__(self, encoder: ResidualEncoder) -> dict[str, float]:
        figures = {}
        longest = round(TEACHER_SECONDS * SAMPLE_RATE)
        for corpus, (clips, indices, protocols) in self.sets.items():
            used = [clips.clips[i] for i in indices]
            embeddings = embed_waveforms(
                encoder, self.spec, lambda j, c=clips, k=indices: c.waveform(int(k[j]))[:longest],  # type: ignore[misc]
                [min(clip.samples, longest) for clip in used],
            )  # fmt: skip
            found = evaluate_embeddings(embeddings, used, protocols=protocols, detail=False)
            figures |= {f"{corpus}.{name}": 100 * found[name]["eer"] for name in protocols if name in found}
        pairs = [value for name, value in figures.items() if name.endswith(".pairs")]
        return figures | ({"mean.pairs": float(np.mean(pairs))} if pairs else {})


def fit_base(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    noises: list[NDArray[np.float32]],
    rooms: list[NDArray[np.float32]],
    shares: dict[str, float] = BASE_SHARES,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    schedule: Schedule = BASE_SCHEDULE,
    pairs: int = 16,
    seed: int = 1,
    use: str = "open",
    **options: Any,
) -> ResidualEncoder:
    """Fine-tune the initial encoder by the full method; options go to `train.loop.fit`."""
    sources, morphs = open_sources(prepared, shares, use)
    batches = PairBatches(sources, spec, recipe, pairs, schedule.steps, seed, morphs, noises, rooms)
    provenance = {"corpora": [{"name": name, "licence": CORPORA[name].licence} for name in shares]}
    return fit(start, spec, batches, recipe, schedule, out, provenance=provenance, **options)


class Crops(Dataset[Tensor]):
    """Batch number `step` of unlabelled crops: features (batch, frames, bins) of equal length."""

    def __init__(
        self, sets: list[PreparedSet], shares: list[float], spec: EncoderSpec, steps: int, batch: int, seed: int
    ) -> None:
        self.sets, self.spec, self.steps, self.batch, self.seed = sets, spec, steps, batch, seed
        self.shares = np.array(shares) / np.sum(shares)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.seed, step))
        frames = int(rng.integers(100, 260))
        samples = self.spec.frame_length + (frames - 1) * self.spec.frame_shift
        features = []
        for _ in range(self.batch):
            clips = self.sets[int(rng.choice(len(self.sets), p=self.shares))]
            waveform = augment.crop(clips.waveform(int(rng.integers(len(clips.clips)))), samples, rng)
            if rng.random() < 0.2:
                waveform = augment.random_gain(waveform, rng)
            features.append(mean_normalise(log_mel(waveform, self.spec)))
        return torch.from_numpy(np.stack(features))


# What `small` is compressed on: all open speech, bursts and nameless clips included.
SMALL_SHARES = {
    "speechocean762": 0.22, "librispeech": 0.15, "malayalam": 0.20, "arabic_commands": 0.08, "speech_commands": 0.10,
    "emogator": 0.13, "picovoice": 0.12,
}  # fmt: skip


def fit_small(
    large: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    shape: EncoderShape = SMALL_SHAPE,
    schedule: Schedule = SMALL_STAGES,
    batch: int = 32,
    seed: int = 77,
    num_workers: int = 1,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> ResidualEncoder:
    """Cut `large` to `shape` and teach it stage by stage; `fit_base` then goes on with pairs and targets."""
    sets = [PreparedSet(prepared / corpus) for corpus in SMALL_SHARES]
    crops = Crops(sets, list(SMALL_SHARES.values()), spec, schedule.steps, batch, seed)
    loader = DataLoader(crops, batch_size=None, num_workers=num_workers, prefetch_factor=4 if num_workers else None)
    return fit_stages(cut(large, shape), large, spec, loader, schedule, out, progress=progress)
