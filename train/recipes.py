"""How the shipped models are made: which speech in which share, what is held out, which schedules.

A prepared root holds one prepared set a corpus (`train.prepare`; for `base` of 2026-11-25 with ``--per-speaker`` 14 for
speechocean762, 80 for arabic_commands and 6 for emogator, all of the others), beside it the initial encoder's
embedding of each clip (``public.npy``, by `teachers.embed_initial`) and its prosody morphs (``morphs/``).
The recipe is in code, not in a configuration file: this module is what the model card cites.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emoinv_edge.spec import EncoderSpec

from . import finetune
from .branches import BranchedEncoder
from .compress import StageTeacher, cut, fit_stages
from .corpora import CORPORA
from .crops import Crops
from .distributed import barrier, copy_from_first_rank, rank, world_size
from .evaluation.clips import is_neutral
from .evaluation.protocols import evaluate_embeddings
from .manifest import Clips
from .model import AnyNet, EncoderShape, ResidualEncoder, embed_waveforms, load_checkpoint, save_checkpoint
from .pairs import PairBatches, Recipe, Source
from .prepare import SAMPLE_RATE, PreparedSet
from .prosody_morphs import MorphedSet
from .refit import refit_linear
from .schedule import Schedule
from .teachers import LONGEST_S, Teacher, save_rows, teach

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
    "interpolate",
    "join",
    "open_sources",
]

Waveforms = Sequence[NDArray[np.float32]]

FEWEST_CLIPS = {"speech_commands": 3}
# Clips of each speaker that get a prosody morph.
MORPHS_PER_SPEAKER = {
    "speechocean762": 8, "librispeech": 60, "malayalam": 14, "arabic_commands": 20, "speech_commands": 1,
}  # fmt: skip
# Clips of each further voice (`train.speed_voices`).
CLIPS_PER_VOICE = {"malayalam": 8, "librispeech": 4, "arabic_commands": 16, "speech_commands": 1}
# Whose embeddings are the targets of each kind, credited in the model file.
TEACHERS = {
    "public": [{"name": "ResNet34-LM, WeSpeaker", "licence": "CC BY 4.0"}],
    "base": [{"name": "base of emoinv-edge", "licence": "Apache-2.0"}],
    "campplus": [{"name": "CAM++ zh-en, 3D-Speaker", "licence": "Apache-2.0"}],
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
    targets: str = "public"  # or "fused": of several teachers (`teachers.fuse`); or "base" (`fit_pairs`)


# By speakers and variety rather than by hours; a set named +voices holds further voices (`train.speed_voices`).
_SHARES = {
    "speechocean762": 0.18, "speechocean762+voices": 0.10, "librispeech": 0.15, "librispeech+voices": 0.14,
    "malayalam": 0.15, "malayalam+voices": 0.08, "arabic_commands": 0.05, "arabic_commands+voices": 0.04,
    "speech_commands": 0.07, "speech_commands+voices": 0.04,
}  # fmt: skip
# base: distil the fused embedding of several teachers (a per-speaker mean overfits) plus the cosine loss on pairs,
# then interpolate the weights: start + alpha * (mean(runs) - start) (WiSE-FT and model soups: Wortsman et al.,
# arXiv:2109.01903 and arXiv:2203.05482). The start is the public weights, their linear layer interpolated by
# `REFIT_ALPHA` towards one fitted to the fused target: fitted mostly on commands and bursts, all of it harms acted
# sentences (EMO-DB, EMOVO, Korean).
BASE_RUNS = {
    "fused": Run(
        Recipe(own_weight=0.8, pair_weight=0.1, relation_weight=5.0, min_s=1.2, max_s=3.2),
        Schedule(steps=640, rate=1.2e-4, frozen_stages=2, warmup_steps=100, judge_every=320),
        _SHARES,
        targets="fused",
    ),
}
BASE_PAIRS = 32
BASE_ALPHA = 0.3
REFIT_ALPHA = 0.2
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
# small after its compression: the pairs, base's embedding of each clip as its target, with AAM-softmax; then the
# weights interpolated by `PAIRS_ALPHA`, and again towards a linear layer fitted to the same targets.
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
PAIRS_ALPHA = 0.5
PAIRS_REFIT_PENALTY = 1.0
SMALL_SHAPE = EncoderShape(blocks=(1, 2, 3, 1), widths=(32, 64, 128, 224), stem_stride=(1, 2))
SMALL_STAGES = Schedule(steps=10000, rate=7e-3, warmup_steps=50, judge_every=5000)
SMALL_HINTS = (2, 3)  # the stages, from 0, that an int8 teacher gives
# What small is compressed on: all open speech in full (no --per-speaker), bursts and nameless clips included.
SMALL_SHARES = {
    "speechocean762": 0.19, "librispeech": 0.17, "malayalam": 0.18, "arabic_commands": 0.07, "speech_commands": 0.10,
    "emogator": 0.18, "picovoice": 0.11,
}  # fmt: skip


def open_sources(
    prepared: Path, shares: Mapping[str, float], use: str = "open", targets: str = "public"
) -> tuple[list[Source], list[MorphedSet]]:
    """The prepared sets of `shares` as sources of pairs with the targets ``TARGETS.npy``, and their morphs.

    Raises
    ------
    ValueError
        If a corpus is not prepared or has no targets, or its licence does not allow this use.
    """
    sources, morphs = [], []
    for corpus, weight in shares.items():
        known = CORPORA.get(corpus.split("+")[0])  # CORPUS+voices; None for a corpus of the user's own
        if use == "open" and known is not None and known.use != "open":
            raise ValueError(f"{corpus} is for {known.use} only ({known.licence}); not for base")
        folder = prepared / corpus
        clips = PreparedSet(folder)
        path = folder / f"{targets}.npy"
        if not path.is_file():
            command = "teach" if targets == "public" else "fuse"
            raise ValueError(f"{folder}: no {path.name}; make it with `python -m train {command}`")
        embeddings = np.load(path)
        if len(embeddings) != len(clips.clips):
            raise ValueError(
                f"{folder}: {path.name} has {len(embeddings)} rows, expected {len(clips.clips)}; teach again"
            )
        counts = Counter(clip.speaker for clip in clips.clips)
        fewest = FEWEST_CLIPS.get(corpus, 1)
        usable = np.isfinite(embeddings).all(axis=1)
        seldom = np.array([counts[clip.speaker] < fewest for clip in clips.clips], bool)
        assert isinstance(clips.clips, Clips)  # as just read
        clips.clips = clips.clips.nameless(~usable | seldom)
        sources.append(Source(clips, embeddings, weight, clips.held_out))
        if (folder / "morphs" / "manifest.csv").is_file():
            morphs.append(MorphedSet(folder / "morphs"))
    return sources, morphs


class Judge:
    """Development figures of an encoder: cross-emotion EER of corpora not trained on, EER of held-out speakers.

    Calling it with an encoder gives EERs in percent, named ``corpus.protocol``.
    """

    def __init__(self, prepared: Path, spec: EncoderSpec, corpora: Mapping[str, int], seed: int = 5) -> None:
        self.spec = spec
        self.sets: dict[str, tuple[PreparedSet, NDArray[np.int64], tuple[str, ...]]] = {}
        rng = np.random.default_rng(seed)
        for corpus, most in corpora.items():
            clips = PreparedSet(prepared / corpus)
            indices = np.array(clips.unheard())
            acted = any(not is_neutral(clip) for clip in clips.clips)
            protocols: tuple[str, ...] = ("pairs", "enrol", "neutral") if acted else ("same",)
            self.sets[corpus] = clips, np.sort(rng.permutation(indices)[:most]), protocols

    def __call__(self, encoder: ResidualEncoder) -> dict[str, float]:
        figures: dict[str, float] = {}
        for corpus in self.sets:
            figures |= self._judge(encoder, corpus)
        pairs = [value for name, value in figures.items() if name.endswith(".pairs")]
        return figures | ({"mean.pairs": float(np.mean(pairs))} if pairs else {})

    def _judge(self, encoder: ResidualEncoder, corpus: str) -> dict[str, float]:
        clips, indices, protocols = self.sets[corpus]
        used = [clips.clips[i] for i in indices]
        longest = round(LONGEST_S * SAMPLE_RATE)
        samples = [min(clip.samples, longest) for clip in used]
        embeddings = embed_waveforms(encoder, self.spec, lambda i: clips.waveform(int(indices[i]))[:longest], samples)
        found = evaluate_embeddings(embeddings, used, protocols=protocols, detail=False)
        return {f"{corpus}.{name}": 100 * found[name]["eer"] for name in protocols if name in found}


def corpora_of(shares: Iterable[str]) -> list[dict[str, str]]:
    """Names and licences, as the model file's provenance wants them."""
    names = dict.fromkeys(name.split("+")[0] for name in shares)
    return [{"name": name, "licence": CORPORA[name].licence if name in CORPORA else "your own"} for name in names]


def credited(*made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Corpora and teachers of all of these, each once, as the model file's provenance wants them."""
    return {
        key: list({each["name"]: each for known in made_of for each in known.get(key, [])}.values())
        for key in ("corpora", "teachers")
    }


def join(checkpoints: Sequence[Path], shares: Sequence[float], name: str, out: Path) -> BranchedEncoder:
    """Write the checkpoint of one encoder with these as its branches.

    Raises
    ------
    ValueError
        If the shares do not fit, or the branches' front ends are not one.
    """
    loaded = [load_checkpoint(path) for path in checkpoints]
    encoder = BranchedEncoder.of([branch for branch, _, _ in loaded], shares)
    alike = [dataclasses.replace(spec, name=name, embedding_dim=encoder.shape.embedding_dim) for _, spec, _ in loaded]
    for path, spec in zip(checkpoints, alike, strict=True):
        if spec != alike[0]:
            raise ValueError(f"{path}: expected the front end of {checkpoints[0]}, got {spec}; teach it those features")
    provenance = credited(*(saved.get("provenance", {}) for _, _, saved in loaded))
    save_checkpoint(out, encoder, alike[0], provenance=provenance)
    return encoder


def interpolate(start: AnyNet, runs: Sequence[AnyNet], alpha: float) -> AnyNet:
    """The weights start + alpha * (mean(runs) - start), with `alpha` from 0 to 1."""
    first, rest = start.state_dict(), [run.state_dict() for run in runs]
    mixed = copy.deepcopy(start)
    mixed.load_state_dict(
        {name: value + alpha * (torch.stack([r[name] for r in rest]).mean(0) - value) for name, value in first.items()}
    )
    return mixed.eval()


def fit_run(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    run: Run,
    noises: Waveforms,
    rooms: Waveforms,
    pairs: int = 16,
    seed: int = 1,
    use: str = "open",
    **options: Any,
) -> ResidualEncoder:
    """Fine-tune an encoder, in place, by one run; options go to `finetune.fit`."""
    sources, morphs = open_sources(prepared, run.shares, use, run.targets)
    batches = PairBatches(
        sources, spec, run.recipe, pairs, run.schedule.batches * world_size(), seed, morphs, noises, rooms
    )
    provenance = {"corpora": corpora_of(run.shares), "teachers": TEACHERS[run.targets]}
    return finetune.fit(start, spec, batches, run.schedule, out, provenance=provenance, **options)


def fit_base(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    noises: Waveforms,
    rooms: Waveforms,
    pairs: int = BASE_PAIRS,
    **options: Any,
) -> ResidualEncoder:
    """`base`: every run of `BASE_RUNS` from the public weights, and the interpolation towards them; ``best.pt``."""
    runs = []
    for name, run in BASE_RUNS.items():
        begun = interpolate(start, [start], 0.0)
        runs.append(fit_run(begun, spec, prepared, out / name, run, noises, rooms, pairs, **options))
    refitted = interpolate(start, [start], 0.0)
    if rank() == 0:
        refitted_on, _ = open_sources(prepared, dict.fromkeys(REFIT_SETS, 1.0), targets="fused")
        refitted = refit_linear(start, spec, refitted_on, REFIT_PENALTY)
    copy_from_first_rank(refitted.state_dict().values())
    base = interpolate(interpolate(start, [refitted], REFIT_ALPHA), runs, BASE_ALPHA)
    if rank() == 0:
        corpora = corpora_of([*(corpus for run in BASE_RUNS.values() for corpus in run.shares), *REFIT_SETS])
        made_of = credited({"corpora": corpora}, *({"teachers": TEACHERS[run.targets]} for run in BASE_RUNS.values()))
        save_checkpoint(out / "best.pt", base, spec, provenance=made_of | {"runs": list(BASE_RUNS)})
    return base


def fit_pairs(
    start: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    teacher: Teacher,
    noises: Waveforms,
    rooms: Waveforms,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> ResidualEncoder:
    """`PAIRS_RUN` from a compressed encoder, interpolated with it and with a refitted linear layer; ``best.pt``.

    Parameters
    ----------
    teacher : Teacher
        The encoder that it was compressed from; its embedding of each clip is kept as ``base.npy`` beside the sets.
    provenance : mapping, optional
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
        embeddings = teach(teacher, PreparedSet(prepared / corpus), prepared / corpus / "teachers")
        if embeddings is not None:  # rank 0
            save_rows(prepared / corpus / "base.npy", embeddings)
        barrier()
    begun = interpolate(start, [start], 0.0)
    run = fit_run(begun, spec, prepared, out / "pairs", PAIRS_RUN, noises, rooms, PAIRS_BATCH, **options)
    mixed = interpolate(start, [run], PAIRS_ALPHA)
    if rank() == 0:
        sources, _ = open_sources(prepared, PAIRS_RUN.shares, targets=PAIRS_RUN.targets)
        refitted = refit_linear(mixed, spec, sources, PAIRS_REFIT_PENALTY)
        mixed = interpolate(mixed, [refitted], PAIRS_ALPHA)
        made_of = {"corpora": corpora_of(PAIRS_RUN.shares), "teachers": TEACHERS[PAIRS_RUN.targets]}
        save_checkpoint(out / "best.pt", mixed, spec, provenance=credited(provenance or {}, made_of))
    copy_from_first_rank(mixed.state_dict().values())
    return mixed


def fit_small(
    large: ResidualEncoder,
    spec: EncoderSpec,
    prepared: Path,
    out: Path,
    shape: EncoderShape = SMALL_SHAPE,
    schedule: Schedule = SMALL_STAGES,
    batch: int = 32,
    seed: int = 77,
    noises: Waveforms = (),
    rooms: Waveforms = (),
    teacher: StageTeacher | None = None,
    start: ResidualEncoder | None = None,
    device: str = "cpu",
    num_workers: int = 1,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> ResidualEncoder:
    """Cut `large` to `shape` and distil it stage by stage; options go to `compress.fit_stages`.

    Parameters
    ----------
    teacher : StageTeacher, optional
        The large encoder as an int8 file; without it the large encoder itself teaches, at several times the cost.
    start : ResidualEncoder, optional
        An encoder of that shape to go on from, instead of the cut.
    provenance : mapping, optional
        Of `large`; the corpora and the teacher of this compression are added to it.
    """
    sets = [PreparedSet(prepared / corpus) for corpus in SMALL_SHARES]
    morphs: list[tuple[MorphedSet, int, int]] = []
    for clips in sets:
        if (clips.folder / "morphs" / "manifest.csv").is_file():
            morphed = MorphedSet(clips.folder / "morphs")
            morphs += [
                (morphed, first, samples)
                for (_, index), places in morphed.of.items()
                if clips.clips[index].speaker not in clips.held_out
                for first, samples in places
            ]
        clips.clips = [clip for clip in clips.clips if clip.speaker not in clips.held_out]
    # An int8 teacher answers in the processes that make the crops; else crops are made where the encoder learns.
    made_on = "cpu" if teacher else device
    crops = Crops(
        sets, list(SMALL_SHARES.values()), spec, schedule.batches * world_size(), batch, seed, noises, rooms, teacher,
        morphs, device=made_on,
    )  # fmt: skip
    small = start if start is not None else cut(large, shape)
    made_of = credited(provenance or {}, {"corpora": corpora_of(SMALL_SHARES), "teachers": TEACHERS["base"]})
    return fit_stages(
        small, large, spec, crops, schedule, out, device=device, num_workers=num_workers if made_on == "cpu" else 0,
        provenance=made_of, **options,
    )  # fmt: skip
