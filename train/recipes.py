"""How the shipped models are made: which speech in which share, what is held out, which schedules.

A prepared root holds one prepared set a corpus (`train.prepare`; for `base` of 2026-11-25 with ``--per-speaker`` 14 for
speechocean762, 80 for arabic_commands and 6 for emogator, all of the others), beside it the initial encoder's
embedding of each clip (``public.npy``, by `teach`) and its prosody morphs (``morphs/``, by `morph`).
The recipe is in code, not in a configuration file: this module is what the model card cites.
"""

from __future__ import annotations

import csv
import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from emoinv_edge.spec import EncoderSpec

from . import augment
from .compress import StageTeacher, cut, fit_stages
from .corpora import CORPORA
from .crops import Crops
from .distributed import barrier, copy_from_first_rank, rank, share, world_size
from .embed import embed_waveforms
from .evaluation.protocols import evaluate_embeddings
from .loop import Schedule, fit, load_share
from .model import EncoderShape, ResidualEncoder, save_checkpoint
from .pairs import MorphedSet, PairBatches, Recipe, Source
from .prepare import HELD_OUT, SAMPLE_RATE, PreparedSet, by_speaker, held_out_speakers
from .refit import refit_linear
from .teachers import Teacher
from .teachers import teach as teach_by

__all__ = [
    "BASE_RUNS",
    "RESEARCH_RUN",
    "SMALL_SHAPE",
    "Judge",
    "Run",
    "fit_base",
    "fit_pairs",
    "fit_run",
    "fit_small",
    "morph",
    "open_sources",
    "part_way",
    "teach",
]

TEACHER_SECONDS = 4.0  # of each clip: longer ones say little more about the voice
MORPH_SECONDS = 3.2
FEWEST_CLIPS = {"speech_commands": 3}
# Clips of each speaker that are morphed.
MORPHS_PER_SPEAKER = {
    "speechocean762": 8, "librispeech": 60, "malayalam": 14, "arabic_commands": 20, "speech_commands": 1,
}  # fmt: skip
# Clips of each further voice (`train.speed_voices`).
CLIPS_PER_VOICE = {"malayalam": 8, "librispeech": 4, "arabic_commands": 16, "speech_commands": 1}
# Whose embeddings are the targets of each kind, credited in the model file.
TEACHERS = {
    "public": [{"name": "ResNet34-LM, WeSpeaker", "licence": "CC BY 4.0"}],
    "base": [{"name": "base of emoinv-edge", "licence": "Apache-2.0"}],
    "fused": [
        {"name": "ResNet34-LM, WeSpeaker", "licence": "CC BY 4.0"},
        {"name": "ERes2Net-base, 3D-Speaker", "licence": "Apache-2.0"},
        {"name": "CAM++ zh-en, 3D-Speaker", "licence": "Apache-2.0"},
    ],
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: what it learns from (share of the pairs each corpus gives), how, and how long."""

    recipe: Recipe
    schedule: Schedule
    shares: dict[str, float]
    targets: str = "public"  # or "fused": of several teachers (`train.fusion`); or "base" (`fit_pairs`)


# By speakers and variety rather than by hours; a set named +voices holds further voices (`train.speed_voices`).
_SHARES = {
    "speechocean762": 0.18, "speechocean762+voices": 0.10, "librispeech": 0.15, "librispeech+voices": 0.14,
    "malayalam": 0.15, "malayalam+voices": 0.08, "arabic_commands": 0.05, "arabic_commands+voices": 0.04,
    "speech_commands": 0.07, "speech_commands+voices": 0.04,
}  # fmt: skip
# `base` learns the joint target of several teachers, which generalises where a target of one speaker's mean is
# learnt by heart, together with the pairs; then it goes `BASE_WAY` of the way from where it starts to the
# mean of the runs (Wortsman et al., arXiv:2109.01903 and arXiv:2203.05482). The figures are in RESULTS.md.
# It starts from the public weights, with the linear layer `REFIT_WAY` of the way to one fitted to the joint target:
# learnt mostly from commands and bursts, all of that way harms acted sentences (EMO-DB, EMOVO, Korean).
BASE_RUNS = {
    "fused": Run(
        Recipe(own_weight=0.8, pair_weight=0.1, relation_weight=5.0, min_s=1.2, max_s=3.2),
        Schedule(steps=640, rate=1.2e-4, frozen_stages=2, warmup_steps=100, judge_every=320),
        _SHARES,
        targets="fused",
    ),
}
BASE_PAIRS = 32
BASE_WAY = 0.3
REFIT_WAY = 0.2
REFIT_PENALTY = 0.3
REFIT_SETS = (*_SHARES, "picovoice", "emogator")  # the linear layer is fitted on these
# The research variant: from base, on emotional corpora whose licences keep it out of the wheel, beside open speech.
RESEARCH_RUN = Run(
    Recipe(own_weight=0.4, pair_weight=0.3, relation_weight=5.0, morph=0.3, min_s=1.2, max_s=3.2),
    Schedule(steps=250, rate=1.2e-4, frozen_stages=2, warmup_steps=40),
    {
        "crema_d": 0.28, "ased": 0.12, "emospeech": 0.10, "nemo": 0.10, "baved": 0.05, "urdu": 0.05,
        "speechocean762": 0.10, "librispeech": 0.10, "malayalam": 0.10,
    },
)  # fmt: skip
# `small` fine-tuned on the pairs after its compression, each clip's target being what base says of it, with
# AAM-softmax; then half of the way back, and half of the way to a linear layer fitted anew to the same targets.
PAIRS_RUN = Run(
    Recipe(
        own_weight=0.6, pair_weight=0.3, relation_weight=5.0, softmax_weight=0.1, margin=0.15, min_s=1.2, max_s=3.2
    ),
    Schedule(steps=700, rate=4e-4, lower_rate=0.8, frozen_stages=0, warmup_steps=60),
    {
        "speechocean762": 0.20, "speechocean762+voices": 0.12, "librispeech": 0.14, "librispeech+voices": 0.14,
        "malayalam": 0.16, "malayalam+voices": 0.08, "arabic_commands+voices": 0.05, "speech_commands": 0.07,
        "speech_commands+voices": 0.04,
    },
    targets="base",
)  # fmt: skip
PAIRS_BATCH = 16
PAIRS_WAY = 0.5
PAIRS_REFIT_PENALTY = 1.0
SMALL_SHAPE = EncoderShape(blocks=(1, 2, 3, 1), widths=(32, 64, 128, 224), stem_stride=(1, 2))
SMALL_STAGES = Schedule(steps=10000, rate=7e-3, warmup_steps=50, judge_every=5000)
SMALL_HINTS = (2, 3)  # the stages, from 0, that an int8 teacher gives


def teach(
    encoder: ResidualEncoder, spec: EncoderSpec, folder: Path, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Embed every clip of a prepared set by the initial encoder, into ``public.npy`` beside it.

    Under ``torchrun`` each rank embeds its share, and rank 0 joins them.
    """
    clips = PreparedSet(folder)
    mine = share(len(clips.clips))
    longest = round(TEACHER_SECONDS * SAMPLE_RATE)
    embeddings = embed_waveforms(
        encoder,
        spec,
        lambda i: clips.waveform(mine[i])[:longest],
        [min(clips.clips[i].samples, longest) for i in mine],
        progress,
    )
    parts = [folder / f"public.{r}of{world_size()}.part.npy" for r in range(world_size())]
    np.save(parts[rank()], embeddings)
    barrier()
    if rank() == 0:
        whole = np.empty((len(clips.clips), spec.embedding_dim), np.float32)
        for r, part in enumerate(parts):
            whole[r :: world_size()] = np.load(part)
        np.save(folder / "public.part.npy", whole)
        (folder / "public.part.npy").replace(folder / "public.npy")
        for part in parts:
            part.unlink()
    barrier()


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
    clips_of = by_speaker(PreparedSet(folder).clips)
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


def open_sources(
    prepared: Path, shares: dict[str, float], use: str = "open", targets: str = "public"
) -> tuple[list[Source], list[MorphedSet]]:
    """The prepared sets of `shares` as sources of pairs with the targets ``TARGETS.npy``, and their morphs.

    Raises
    ------
    ValueError
        If a corpus is not prepared or not taught, or its licence does not allow this use.
    """
    sources, morphs = [], []
    for corpus, weight in shares.items():
        known = CORPORA[corpus.split("+")[0]]  # CORPUS+voices
        if use == "open" and known.use != "open":
            raise ValueError(f"{corpus} is for {known.use} only ({known.licence}); not for base")
        folder = prepared / corpus
        clips = PreparedSet(folder)
        taught = folder / f"{targets}.npy"
        if not taught.is_file():
            command = "teach" if targets == "public" else "fuse"
            raise ValueError(f"{folder}: no {taught.name}; make it with `python -m train {command}`")
        embeddings = np.load(taught)
        if len(embeddings) != len(clips.clips):
            raise ValueError(
                f"{folder}: {taught.name} has {len(embeddings)} rows, expected {len(clips.clips)}; teach again"
            )
        counts = Counter(clip.speaker for clip in clips.clips)
        fewest = FEWEST_CLIPS.get(corpus, 1)
        usable = np.isfinite(embeddings).all(axis=1)
        clips.clips = [
            clip if usable[i] and counts[clip.speaker] >= fewest else dataclasses.replace(clip, speaker="")
            for i, clip in enumerate(clips.clips)
        ]
        sources.append(Source(clips, embeddings, weight, held_out_speakers(clips.clips, corpus)))
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


def fit_run(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    run: Run,
    noises: list[NDArray[np.float32]],
    rooms: list[NDArray[np.float32]],
    pairs: int = 16,
    seed: int = 1,
    use: str = "open",
    **options: Any,
) -> ResidualEncoder:
    """Fine-tune an encoder by one run; options go to `train.loop.fit`."""
    sources, morphs = open_sources(prepared, run.shares, use, run.targets)
    batches = PairBatches(sources, spec, run.recipe, pairs, run.schedule.steps, seed, morphs, noises, rooms)
    provenance = {"corpora": corpora_of(run.shares), "teachers": TEACHERS[run.targets]}
    return fit(start, spec, batches, run.recipe, run.schedule, out, provenance=provenance, **options)


def corpora_of(shares: Iterable[str]) -> list[dict[str, str]]:
    """Names and licences, as the model file's provenance wants them."""
    names = dict.fromkeys(name.split("+")[0] for name in shares)
    return [{"name": name, "licence": CORPORA[name].licence} for name in names]


def credited(*made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Corpora and teachers of all of these, each once, as the model file's provenance wants them."""
    return {
        key: list({each["name"]: each for known in made_of for each in known.get(key, [])}.values())
        for key in ("corpora", "teachers")
    }


def part_way(start: ResidualEncoder, runs: list[ResidualEncoder], way: float) -> ResidualEncoder:
    """The weights `way` (0 to 1) of the way from `start` to the mean of `runs`."""
    first, rest = start.state_dict(), [run.state_dict() for run in runs]
    mixed = ResidualEncoder(start.shape)
    mixed.load_state_dict(
        {name: value + way * (torch.stack([r[name] for r in rest]).mean(0) - value) for name, value in first.items()}
    )
    return mixed.eval()


def fit_base(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    noises: list[NDArray[np.float32]],
    rooms: list[NDArray[np.float32]],
    pairs: int = BASE_PAIRS,
    **options: Any,
) -> ResidualEncoder:
    """`base`: every run of `BASE_RUNS` from the public weights; then from those, with the linear layer `REFIT_WAY` of
    the way to one fitted anew (`refit.refit_linear`), `BASE_WAY` of the way to the runs' mean; ``best.pt``.
    """
    runs = []
    for name, run in BASE_RUNS.items():
        begun = ResidualEncoder(start.shape)
        begun.load_state_dict(start.state_dict())
        runs.append(fit_run(begun, spec, prepared, out / name, run, noises, rooms, pairs, **options))
    refitted_on, _ = open_sources(prepared, dict.fromkeys(REFIT_SETS, 1.0), targets="fused")
    refitted = refit_linear(start, spec, refitted_on, REFIT_PENALTY) if rank() == 0 else part_way(start, [start], 0.0)
    copy_from_first_rank(refitted.state_dict().values())
    base = part_way(part_way(start, [refitted], REFIT_WAY), runs, BASE_WAY)
    corpora = corpora_of(dict.fromkeys([*(corpus for run in BASE_RUNS.values() for corpus in run.shares), *REFIT_SETS]))
    taught = {teacher["name"]: teacher for run in BASE_RUNS.values() for teacher in TEACHERS[run.targets]}
    provenance = {"corpora": corpora, "teachers": list(taught.values()), "runs": list(BASE_RUNS)}
    if rank() == 0:
        save_checkpoint(out / "best.pt", base, spec, provenance=provenance)
    return base


def fit_pairs(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    teacher: Teacher,
    noises: list[NDArray[np.float32]],
    rooms: list[NDArray[np.float32]],
    provenance: dict[str, Any] | None = None,
    **options: Any,
) -> ResidualEncoder:
    """`PAIRS_RUN` from a compressed encoder, `PAIRS_WAY` of the way to it and to a refitted linear layer; ``best.pt``.

    Parameters
    ----------
    teacher : Teacher
        The encoder that it was compressed from; what it says of each clip is kept as ``base.npy`` beside the sets.
    provenance : dict, optional
        Of `start`; this run's corpora and teacher are added to it.

    Raises
    ------
    ValueError
        If the teacher's embeddings have another size.
    """
    if teacher.embedding_dim != spec.embedding_dim:
        raise ValueError(
            f"teacher {teacher.name}: expected embeddings of {spec.embedding_dim} numbers, "
            f"got {teacher.embedding_dim}; give the encoder that the start was compressed from"
        )
    for corpus in PAIRS_RUN.shares:
        embeddings = teach_by(teacher, PreparedSet(prepared / corpus), prepared / corpus / "teachers")
        if embeddings is not None:  # rank 0
            np.save(prepared / corpus / "base.part.npy", embeddings)
            (prepared / corpus / "base.part.npy").replace(prepared / corpus / "base.npy")
        barrier()
    begun = part_way(start, [start], 0.0)
    run = fit_run(begun, spec, prepared, out / "pairs", PAIRS_RUN, noises, rooms, PAIRS_BATCH, **options)
    half = part_way(start, [run], PAIRS_WAY)
    if rank() == 0:
        sources, _ = open_sources(prepared, PAIRS_RUN.shares, targets=PAIRS_RUN.targets)
        refitted = refit_linear(half, spec, sources, PAIRS_REFIT_PENALTY)
        half = part_way(half, [refitted], PAIRS_WAY)
        learnt = {"corpora": corpora_of(PAIRS_RUN.shares), "teachers": TEACHERS[PAIRS_RUN.targets]}
        save_checkpoint(out / "best.pt", half, spec, provenance=credited(provenance or {}, learnt))
    copy_from_first_rank(half.state_dict().values())
    return half


# What `small` is compressed on: all open speech in full (no --per-speaker), bursts and nameless clips included.
SMALL_SHARES = {
    "speechocean762": 0.19, "librispeech": 0.17, "malayalam": 0.18, "arabic_commands": 0.07, "speech_commands": 0.10,
    "emogator": 0.18, "picovoice": 0.11,
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
    noises: list[NDArray[np.float32]] | None = None,
    rooms: list[NDArray[np.float32]] | None = None,
    teacher: StageTeacher | None = None,
    start: ResidualEncoder | None = None,
    num_workers: int = 1,
    provenance: dict[str, Any] | None = None,
    **options: Any,
) -> ResidualEncoder:
    """Cut `large` to `shape` and teach it stage by stage; options go to `compress.fit_stages`.

    Parameters
    ----------
    teacher : StageTeacher, optional
        The large encoder as an int8 file; without it the large encoder itself teaches, at several times the cost.
    start : ResidualEncoder, optional
        An encoder of that shape to go on from, instead of the cut.
    provenance : dict, optional
        Of `large`; the corpora and the teacher of this compression are added to it.
    """
    sets = [PreparedSet(prepared / corpus) for corpus in SMALL_SHARES]
    morphs: list[tuple[MorphedSet, int, int]] = []
    for clips in sets:
        held = held_out_speakers(clips.clips, clips.folder.name)
        if (clips.folder / "morphs" / "manifest.csv").is_file():
            morphed = MorphedSet(clips.folder / "morphs")
            morphs += [
                (morphed, start, samples)
                for (_, index), places in morphed.of.items()
                if clips.clips[index].speaker not in held
                for start, samples in places
            ]
        clips.clips = [clip for clip in clips.clips if clip.speaker not in held]
    shares, steps = list(SMALL_SHARES.values()), schedule.steps * world_size()
    # An int8 teacher answers in the processes that make the crops; else crops are made where the encoder learns.
    device = torch.device("cpu" if teacher else options.get("device", "cpu"))
    crops = Crops(sets, shares, spec, steps, batch, seed, noises or (), rooms or (), teacher, morphs, device=device)

    def batches(first: int) -> DataLoader[dict[str, Tensor]]:
        return load_share(crops, first, schedule.steps, num_workers if device.type == "cpu" else 0)

    small = start if start is not None else cut(large, shape)
    learnt = {"corpora": corpora_of(SMALL_SHARES), "teachers": TEACHERS["base"]}
    made_of = credited(provenance or {}, learnt)
    return fit_stages(small, large, spec, batches, schedule, out, provenance=made_of, **options)
