"""The paper's table: each part of the method added in turn, and its controls, at the same compute.

Every arm starts from the same weights and learns from the same training speakers for the same number of steps of the
same batch size; every other speaker is left for the figures. Either all layers learn (`Budget.whole`), from the same
speakers and clips in every arm of a seed; or the last stage and the linear layer do, on two cores: the layers below
are frozen and shared, and what they make of a batch is computed once for all arms that see the same views (CopyPaste
and masks are in the views; the losses are not) and kept on disk. A batch then comes round ``steps / pool_batches``
times.

Scores are those of ``pairs``: clips of different emotions, same gender, within a corpus. "merged" pools the
trials of all corpora, as the paper's merged test set does; "mean" is the mean of the corpora's own EERs.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from . import loop
from .distributed import from_first_rank, rank, world_size
from .evaluation.clips import thin
from .evaluation.embeddings import unit
from .evaluation.metrics import eer
from .evaluation.protocols import MAX_CLIPS, make_trials
from .finetune import FineTuned, fit
from .folds import split_corpora
from .model import ResidualEncoder, autocast, channels_last, has_bfloat16
from .pairs import PairBatches, Recipe, Source
from .power import save_judged
from .prepare import PreparedClip, PreparedSet
from .progress import Report, silent
from .schedule import Schedule

__all__ = [
    "ARMS",
    "Arm",
    "Budget",
    "Pool",
    "ablate",
    "format_table",
    "train_arm",
    "views_of",
]

LAMBDA = 1.0
DEVELOPMENT_FRAMES = 200
SCHEDULE = Schedule(steps=300, rate=2e-4, warmup_steps=30, floor=0.0)
CLIPS_PER_CELL = 6  # development clips of each speaker and emotion

Taught = tuple[PreparedSet, NDArray[np.float32]]
"""A prepared set and the initial encoder's embeddings of its clips, shape (clips, embedding_dim)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: its name, its recipe, and what it shows."""

    name: str
    recipe: Recipe
    shows: str


# AAM-softmax alone on plain crops.
_PLAIN = Recipe(
    copy_paste=0.0, morph=0.0, mask=0.0, channel=0.0, pair_weight=0.0, margin=0.2, softmax_weight=1.0,
    speaker_target=0.0, own_weight=0.0, own_target=0.0, own_share=0.0, min_s=1.6, max_s=1.6,
)  # fmt: skip
_FULL: dict[str, Any] = {"copy_paste": 0.5, "pair_weight": LAMBDA, "mask": 0.5}

ARMS: tuple[Arm, ...] = tuple(
    Arm(name, dataclasses.replace(_PLAIN, **changes), shows)
    for name, changes, shows in (
        ("aam", {}, "baseline: AAM-softmax on plain crops"),
        ("+copypaste", {"copy_paste": 0.5}, "CopyPaste samples"),
        ("+cosine", {"copy_paste": 0.5, "pair_weight": LAMBDA}, "and the cosine loss on pairs"),
        ("+masking", _FULL, "and emotion-aware masking: the paper's full method"),
        ("random-mask", _FULL | {"mask_region": "random"}, "control: masks of equal area, anywhere"),
        ("no-copypaste", _FULL | {"copy_paste": 0.0}, "control: pairs of plain crops"),
    )
)


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """The compute of every arm.

    Parameters
    ----------
    schedule : Schedule
    pairs : int
        Of a batch.
    pool_batches : int
        How many different batches of views there are.
    whole : bool
        Whether all layers learn, each batch of views seen once.
    """

    schedule: Schedule = SCHEDULE
    pairs: int = 16
    pool_batches: int = 150
    whole: bool = False

    def frozen(self, encoder: ResidualEncoder) -> int:
        """The first stages, which do not learn."""
        return 0 if self.whole else len(encoder.stages) - 1


def views_of(recipe: Recipe) -> dict[str, Any]:
    """The switches that change what the encoder sees; arms that differ in the others share their views."""
    losses = ("pair_weight", "margin", "softmax_weight", "relation_weight")
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name not in losses}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _weights_digest(encoder: ResidualEncoder) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Pool:
    """Batches of views after the frozen layers, made once and kept on disk."""

    def __init__(self, folder: Path, encoder: ResidualEncoder, batches: PairBatches, count: int) -> None:
        self.folder, self.count = folder, count
        self._encoder, self._batches = encoder, batches

    def fill(self, progress: Report = silent) -> None:
        """Compute the batches that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.count):
            path = self.folder / f"{number:05d}.pt"
            if not path.is_file():
                batch = self._batches[number]
                batch["activations"] = _below(self._encoder, batch.pop("features"))
                content = io.BytesIO()
                torch.save(batch, content)
                write_atomically(path, content.getvalue(), 0o666)
            progress(number + 1, self.count)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = torch.load(self.folder / f"{number:05d}.pt", weights_only=True)
        return batch | {"activations": _restored(batch["activations"])}


def _below(encoder: ResidualEncoder, features: Tensor, frozen: int | None = None) -> Tensor:
    """Activations below the stages that learn (by default the last), in half of the space; features if all do."""
    if frozen == 0:
        return features
    with torch.inference_mode(), autocast():
        x = encoder.frames(features, len(encoder.stages) - 1 if frozen is None else frozen)
    return x.to(torch.bfloat16).clone()


def _restored(activations: Tensor) -> Tensor:
    """The kept activations as the last stage takes them: float32 where the machine computes in that."""
    x = activations if has_bfloat16() else activations.float()
    return x.contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True)
class Development:
    """The clips that every arm is judged by, after the frozen layers, for each corpus."""

    corpora: Mapping[str, Sequence[PreparedClip]]
    activations: Mapping[str, Tensor]
    frozen: int

    @classmethod
    def of(
        cls, encoder: ResidualEncoder, spec: EncoderSpec, sets: Sequence[PreparedSet], speakers: frozenset[str],
        frozen: int, progress: Report = silent,
    ) -> Development:  # fmt: skip
        """The first `CLIPS_PER_CELL` clips of each of `speakers` in each emotion, and no more than `MAX_CLIPS`."""
        chosen: dict[str, list[tuple[PreparedSet, int]]] = {}
        for prepared in sets:
            cells: dict[tuple[str, str], int] = {}
            for index, clip in enumerate(prepared.clips):
                if clip.speaker in speakers and clip.emotion and clip.samples:
                    cell = (clip.speaker, clip.emotion)
                    cells[cell] = cells.get(cell, 0) + 1
                    if cells[cell] <= CLIPS_PER_CELL:
                        chosen.setdefault(clip.corpus, []).append((prepared, index))
        for corpus, rows in chosen.items():
            few = thin([p.clips[i] for p, i in rows], MAX_CLIPS)
            chosen[corpus] = [rows[number] for number in few]
        total, done = sum(map(len, chosen.values())), 0
        activations = {}
        for corpus, rows in chosen.items():
            parts = []
            for first in range(0, len(rows), 32):
                features = [_middle(p.waveform(i), spec) for p, i in rows[first : first + 32]]
                parts.append(_below(encoder, torch.from_numpy(np.stack(features)), frozen))
                done += len(features)
                progress(done, total)
            activations[corpus] = torch.cat(parts)
        return cls({corpus: [p.clips[i] for p, i in rows] for corpus, rows in chosen.items()}, activations, frozen)

    def embed(self, encoder: ResidualEncoder) -> dict[str, NDArray[np.float32]]:
        """The embeddings of each corpus's clips, of unit norm."""
        return {corpus: unit(self._embed(encoder, rows)) for corpus, rows in self.activations.items()}

    def judge(self, embedded: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Cross-emotion EER of each corpus, their mean and the merged one; neutral EER of each corpus."""
        figures: dict[str, float] = {}
        targets, nontargets = [], []
        for corpus, clips in self.corpora.items():
            embeddings = embedded[corpus]
            for protocol in ("pairs", "neutral"):
                trials = make_trials(clips, protocol)
                scores = trials.scores(embeddings)
                same, different = scores[trials.target], scores[~trials.target]
                if len(same) and len(different):
                    figures[f"{corpus} {protocol}"] = eer(same, different)
                    if protocol == "pairs":
                        targets.append(same)
                        nontargets.append(different)
        if not targets:
            raise ValueError("no corpus has cross-emotion trials of both kinds among its development speakers")
        figures["mean"] = float(np.mean([value for name, value in figures.items() if name.endswith(" pairs")]))
        figures["merged"] = eer(np.concatenate(targets), np.concatenate(nontargets))
        return figures

    def _embed(self, encoder: ResidualEncoder, activations: Tensor) -> NDArray[np.float32]:
        parts, device = [], next(encoder.parameters()).device
        with torch.inference_mode(), autocast(device.type):
            for rows in torch.split(activations, 64):
                if self.frozen:
                    x = _restored(rows)
                    for stage in list(encoder.stages)[self.frozen :]:
                        x = stage(x)
                    parts.append(encoder.pool(x))
                else:
                    parts.append(encoder(rows.to(device)))
        return torch.cat([part.float().cpu() for part in parts]).numpy()


def _middle(waveform: NDArray[np.float32], spec: EncoderSpec) -> NDArray[np.float32]:
    """Features of the middle of a clip, which is repeated if it is too short."""
    samples = (DEVELOPMENT_FRAMES - 1) * spec.frame_shift + spec.frame_length
    start = max(0, (len(waveform) - samples) // 2)
    piece = np.take(waveform, np.arange(start, start + samples), mode="wrap")
    return mean_normalise(log_mel(np.ascontiguousarray(piece), spec))


def train_arm(
    encoder: ResidualEncoder, spec: EncoderSpec, centres: NDArray[np.float32], pool: Pool, recipe: Recipe,
    schedule: Schedule, seed: int, out: Path,
) -> ResidualEncoder:  # fmt: skip
    """Fine-tune a copy of the encoder, the last stage and the linear layer, by one recipe.

    The seed orders the batches; `out` is the folder of the run, as `loop.run` takes it.
    """
    schedule = dataclasses.replace(schedule, frozen_stages=len(encoder.stages) - 1)
    tuned = channels_last(copy.deepcopy(encoder))
    module = FineTuned(tuned, torch.from_numpy(centres), recipe, schedule.frozen_stages).train()
    state = loop.State(module, module.optimizer(schedule), tuned, spec)
    rng, rounds = np.random.default_rng(seed), math.ceil(schedule.batches / pool.count)
    order = [int(number) for _ in range(rounds) for number in reversed(rng.permutation(pool.count))]

    def losses(batch: loop.Batch, step: int) -> dict[str, Tensor]:
        with autocast():
            embeddings = module.above(batch["activations"]).float()
        return module.losses(embeddings, batch, recipe.margin_at(step, schedule.steps))

    loop.run(out, schedule, state, lambda number: pool[order[number]], losses)
    return tuned.eval()


def train_whole(
    encoder: ResidualEncoder, spec: EncoderSpec, batches: PairBatches, schedule: Schedule, out: Path, **options: Any
) -> ResidualEncoder:
    """Fine-tune all layers of a copy of the encoder by the recipe of `batches`; options go to `finetune.fit`."""
    schedule = dataclasses.replace(schedule, frozen_stages=0)
    return fit(copy.deepcopy(encoder), spec, batches, schedule, out, **options)


def ablate(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    sets: Sequence[Taught],
    out: Path,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = (1, 2, 3),
    budget: Budget | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], Report] = lambda name: silent,
    device: str = "cpu",
    num_workers: int = 1,
    developing: frozenset[str] | None = None,
) -> list[dict[str, Any]]:
    """Train and judge every arm; figures are appended to ``results.csv`` as they come, and a second call goes on.

    Parameters
    ----------
    encoder, spec
        Where every arm starts; not changed.
    sets : sequence of (PreparedSet, embeddings)
        The emotional corpora; each set's embeddings by `encoder`, shape (clips, dim).
    out : Path
        Folder for the results, for what every arm made of the development clips (``judged/``, see `power`), and
        meanwhile for the kept activations and the run.
    log : callable
        Called with a line for each arm that is done.
    progress : callable
        Name of a long piece of work -> what is called as it goes.
    device, num_workers
        Where arms whose layers all learn do so, and how many processes of a rank make their batches.
    developing : frozenset of str, optional
        Speakers whom no arm learns from and all are judged by; without it as in `folds.split_corpora`.

    Returns
    -------
    list of dict
        ``arm``, ``seed``, ``judged`` (the file for `power`) and the figures of `Development.judge`; arm "start" is the
        encoder before any training.
    """
    budget = budget or Budget()
    encoder = channels_last(encoder.eval())
    training, judged_by = split_corpora([prepared for prepared, _ in sets])
    if developing is not None:
        training, judged_by = (training | judged_by) - developing, developing
    key = _digest(
        _weights_digest(encoder), spec.to_json(), sorted(training), sorted(judged_by), CLIPS_PER_CELL,
        DEVELOPMENT_FRAMES, sorted(str(prepared.folder) for prepared, _ in sets), dataclasses.asdict(budget),
    )  # fmt: skip
    table = _Table(out, key)
    wanted = [(seed, arm) for seed in seeds for arm in arms if (arm.name, seed) not in table]
    if not wanted and ("start", 0) in table:
        return table.with_files()
    log(f"{len(training)} training and {len(judged_by)} development speakers, {len(wanted)} runs to go")
    frozen, prepared_sets = budget.frozen(encoder), [prepared for prepared, _ in sets]
    chosen = Development.of(encoder, spec, prepared_sets, judged_by, frozen, progress("development"))
    if ("start", 0) not in table:
        log(f"start: {_short(table.add('start', 0, chosen, channels_last(copy.deepcopy(encoder), device), 0.0))}")
    sources = [_source(prepared, embeddings, judged_by) for prepared, embeddings in sets]
    for position, (seed, arm) in enumerate(wanted, 1):
        run = out / "runs" / f"{key}-{_digest(dataclasses.asdict(arm.recipe))}-{seed}"
        count = budget.schedule.batches * world_size() if budget.whole else budget.pool_batches
        batches = PairBatches(sources, spec, arm.recipe, budget.pairs, count, seed, aligned=budget.whole)
        if budget.whole:
            started, watched = time.monotonic(), progress(f"{arm.name}, seed {seed}")
            options = {"device": device, "num_workers": num_workers, "progress": watched}
            tuned = train_whole(encoder, spec, batches, budget.schedule, run, **options)
        else:
            views = views_of(arm.recipe)
            pool = Pool(out / "pools" / f"{key}-{_digest(views)}-{seed}", encoder, batches, budget.pool_batches)
            pool.fill(progress(f"views for {arm.name}, seed {seed}"))
            started = time.monotonic()
            tuned = train_arm(encoder, spec, batches.centres, pool, arm.recipe, budget.schedule, seed, run)
            if not any(other == seed and views_of(later.recipe) == views for other, later in wanted[position:]):
                shutil.rmtree(pool.folder)
        row = table.add(arm.name, seed, chosen, channels_last(tuned, device), time.monotonic() - started)
        log(f"{position} of {len(wanted)}, {arm.name}, seed {seed}: {_short(row)}")
        if rank() == 0:
            shutil.rmtree(run)
    return table.with_files()


class _Table:
    """The figures of one setting: rank 0 keeps them in ``results.csv``, every rank knows them."""

    def __init__(self, out: Path, key: str) -> None:
        self._out, self._path, self._key = out, out / "results.csv", key
        if rank() == 0:
            (out / "judged").mkdir(parents=True, exist_ok=True)
        self.rows = from_first_rank(lambda: _read_results(self._path, key))

    def _judged(self, arm: str, seed: int) -> Path:
        return self._out / "judged" / f"{self._key} {arm} {seed}.npz"

    def with_files(self) -> list[dict[str, Any]]:
        """The rows, each with the file that holds what its run made of the clips."""
        return [row | {"judged": self._judged(row["arm"], row["seed"])} for row in self.rows]

    def __contains__(self, run: tuple[str, int]) -> bool:
        return any((row["arm"], row["seed"]) == run for row in self.rows)

    def add(self, arm: str, seed: int, chosen: Development, encoder: ResidualEncoder, seconds: float) -> dict[str, Any]:
        """Judge an encoder and keep the figures of its run, and what it made of the clips; its row."""
        embedded = chosen.embed(encoder)
        figures = chosen.judge(embedded) | {"seconds": seconds}
        self.rows.append({"arm": arm, "seed": seed, **figures})
        if rank() == 0:
            save_judged(self._judged(arm, seed), chosen.corpora, embedded)
            new = not self._path.is_file()
            with open(self._path, "a", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                if new:
                    table.writerow(("setting", "arm", "seed", "figure", "value"))
                for name, value in figures.items():
                    table.writerow((self._key, arm, seed, name, repr(value)))
        return self.rows[-1]


def _source(prepared: PreparedSet, embeddings: NDArray[np.float32], held_out: frozenset[str]) -> Source:
    count = len({clip.speaker for clip in prepared.clips if clip.speaker} - held_out)
    return Source(prepared, embeddings, math.sqrt(count), held_out)


def _short(row: Mapping[str, Any]) -> str:
    return f"merged {100 * row['merged']:.2f} %, mean {100 * row['mean']:.2f} %, {row['seconds']:.0f} s"


def _read_results(path: Path, key: str) -> list[dict[str, Any]]:
    """What earlier calls of the same setting found; a run counts once its last figure (seconds) is there."""
    if not path.is_file():
        return []
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["setting"] == key and row["value"]:
                run = runs.setdefault((row["arm"], int(row["seed"])), {"arm": row["arm"], "seed": int(row["seed"])})
                run[row["figure"]] = float(row["value"])
    return [run for run in runs.values() if "seconds" in run]


def format_table(rows: Sequence[Mapping[str, Any]], arms: Sequence[Arm] = ARMS) -> str:
    """Markdown: mean and spread over the seeds, and the reduction of the merged EER against the AAM baseline."""
    corpora = sorted({name.removesuffix(" pairs") for row in rows for name in row if name.endswith(" pairs")})
    columns = ["merged", "mean", *(f"{corpus} pairs" for corpus in corpora)]
    head = ["arm", "seeds", "merged EER %", "against AAM", "mean EER %", *(f"{corpus} EER %" for corpus in corpora)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    baseline = {row["seed"]: row["merged"] for row in rows if row["arm"] == "aam" and row["merged"] > 0.0}
    for name in ["start", *(arm.name for arm in arms)]:
        runs = [row for row in rows if row["arm"] == name]
        if not runs:
            continue
        cells = {column: _mean_spread([100 * run[column] for run in runs if column in run]) for column in columns}
        gains = [100 * (1 - run["merged"] / baseline[run["seed"]]) for run in runs if run["seed"] in baseline]
        against = _mean_spread(gains, "%") if gains and name != "aam" else ""
        values = [name, str(len(runs)), cells["merged"], against, cells["mean"], *(cells[c] for c in columns[2:])]
        lines.append("| " + " | ".join(values) + " |")
    notes = [f"- {arm.name}: {arm.shows}" for arm in arms if any(row["arm"] == arm.name for row in rows)]
    legend = "± is the standard deviation over the seeds; start is the encoder before any training."
    return "\n".join([*lines, "", legend, *notes])


def _mean_spread(values: Sequence[float], suffix: str = "") -> str:
    if not values:
        return "-"
    text = f"{np.mean(values):.2f}"
    return f"{text} ± {np.std(values, ddof=1):.2f}{suffix}" if len(values) > 1 else text + suffix
