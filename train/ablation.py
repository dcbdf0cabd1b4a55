"""The paper's table: each part of the method added in turn, and the controls, at the same compute.

Every arm starts from the same weights and fine-tunes the last stage and the linear layer on the same
training speakers for the same number of steps of the same batch size; every other speaker is left for the
figures. The layers below the last stage are frozen and shared: what they make of a batch is computed once
for all arms that see the same views (CopyPaste, masks and morphs are in the views; the losses are not) and
kept on disk. That is what lets all arms of three seeds fit on two cores. A batch comes round
``steps / pool_batches`` times.

Scores are those of ``pairs``: clips of different emotions, same gender, within a corpus. "merged" pools the
trials of all corpora, as the paper's merged test set does; "mean" is the mean of the corpora's own EERs.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from .embed import autocast
from .evaluation.embeddings import unit
from .evaluation.metrics import eer
from .evaluation.protocols import make_trials
from .losses import AngularMarginSoftmax, contrast_loss, pair_loss, target_loss
from .model import ResidualEncoder
from .pairs import MorphedSet, PairBatches, Recipe, Source
from .prepare import PreparedSet

__all__ = ["ARMS", "Arm", "Budget", "ablate", "format_table", "split_speakers"]

LAMBDA = 1.0  # of 0.1, 0.4, 1, 2, 4 and 8 (RESULTS.md)
MARGIN = 0.2
DEVELOPMENT_FRAMES = 200
CLIPS_PER_CELL = 6  # development clips of each speaker and emotion


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: its name, its switches, and what it shows."""

    name: str
    recipe: Recipe
    shows: str


def _recipe(**changes: Any) -> Recipe:
    """AAM-softmax alone on plain crops, with some switches changed."""
    plain: dict[str, Any] = {
        "copy_paste": 0.0, "morph": 0.0, "mask": 0.0, "channel": 0.0, "pair_weight": 0.0, "margin": MARGIN,
        "softmax_weight": 1.0, "speaker_target": 0.0, "own_weight": 0.0, "own_target": 0.0, "own_share": 0.0,
        "min_s": 1.6, "max_s": 1.6,
    }  # fmt: skip
    return Recipe(**(plain | changes))


_FULL: dict[str, Any] = {"copy_paste": 0.5, "pair_weight": LAMBDA, "mask": 0.5}

ARMS: tuple[Arm, ...] = (
    Arm("aam", _recipe(), "baseline: AAM-softmax on plain crops"),
    Arm("+copypaste", _recipe(copy_paste=0.5), "CopyPaste samples"),
    Arm("+cosine", _recipe(copy_paste=0.5, pair_weight=LAMBDA), "and the cosine loss on pairs"),
    Arm("+masking", _recipe(**_FULL), "and emotion-aware masking: the paper's full method"),
    Arm("random-mask", _recipe(**_FULL, mask_region="random"), "control: masks of equal area, anywhere"),
    Arm("low-mask", _recipe(**_FULL, mask_region="low"), "control: masks of equal area, quiet frames"),
    Arm("both-mask", _recipe(**_FULL, mask_region="both"), "control: masks of equal area, loud and quiet frames"),
    Arm("lambda-rise", _recipe(**_FULL, pair_rise=0.5), "the cosine loss rises over half of the steps"),
    Arm("lambda-0", _recipe(**_FULL | {"pair_weight": 0.0}), "control: the full views without the cosine loss"),
    Arm("no-copypaste", _recipe(**_FULL | {"copy_paste": 0.0}), "control: pairs of plain crops"),
    Arm("contrast", _recipe(**_FULL, contrast_weight=0.2), "a loss against the batch's other speakers"),
    Arm("hard", _recipe(**_FULL, contrast_weight=0.2, hard=0.5), "and half of the batches of one gender and sentence"),
    Arm("channels", _recipe(**_FULL, channel=0.5, codec=0.2), "noise, rooms, telephone and gain on half of the views"),
    Arm("short", _recipe(**_FULL | {"min_s": 0.8, "max_s": 2.4}), "views of 0.8 to 2.4 s, 1.6 s in the mean"),
    Arm(
        "targets",
        _recipe(softmax_weight=0.0, speaker_target=1.0, own_target=1.0, own_share=0.35),
        "instead: every mood pulled to the speaker's mean in the initial encoder's space",
    ),
    Arm("prosody", _recipe(pair_weight=LAMBDA, morph=0.5), "prosody-parallel pairs on ordinary speech too"),
    Arm(
        "all",
        _recipe(**_FULL, morph=0.5, softmax_weight=0.1, speaker_target=1.0, own_target=1.0, own_share=0.35),
        "everything",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """The compute of every arm: steps of batches of `pairs` pairs; `pool_batches` different batches of views."""

    steps: int = 300
    pairs: int = 16
    pool_batches: int = 150
    rate: float = 2e-4
    warmup_steps: int = 30

    def factor(self, step: int) -> float:
        """Share of the peak rate: linear warm-up, then a half cosine to nothing."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)))


def split_speakers(speakers: Sequence[str], train_share: float = 0.6) -> tuple[frozenset[str], frozenset[str]]:
    """Training and development speakers, by the hash of their names: the same whatever else is there.

    Raises
    ------
    ValueError
        If fewer than two speakers are left on either side.
    """
    ordered = sorted(set(speakers), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = round(train_share * len(ordered))
    if count < 2 or len(ordered) - count < 2:
        raise ValueError(f"{len(ordered)} speakers cannot be split into two of training and two of development or more")
    return frozenset(ordered[:count]), frozenset(ordered[count:])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(encoder: ResidualEncoder) -> str:
    """What identifies the weights that pools and targets were made by."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


LOSS_FIELDS = ("pair_weight", "pair_rise", "margin", "softmax_weight", "contrast_weight")


def views_of(recipe: Recipe) -> dict[str, Any]:
    """The switches that change what the encoder sees; arms that differ in the others share their views."""
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name not in LOSS_FIELDS}


def _below(encoder: ResidualEncoder, features: Tensor) -> Tensor:
    """Activations below the last stage, as the trained part reads them."""
    with torch.inference_mode(), autocast():
        x = encoder.frames(features, len(encoder.stages) - 1)
    return x.to(torch.bfloat16).clone()


class Pool:
    """Batches of views after the frozen layers, made once and kept on disk."""

    def __init__(self, folder: Path, encoder: ResidualEncoder, batches: PairBatches, count: int) -> None:
        self._folder, self._encoder, self._batches, self.count = folder, encoder, batches, count
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the batches that are not there yet."""
        for number in range(self.count):
            path = self._folder / f"{number:05d}.pt"
            if not path.is_file():
                batch = self._batches[number]
                batch["activations"] = _below(self._encoder, batch.pop("features"))
                part = path.with_suffix(".part")
                torch.save(batch, part)
                os.replace(part, path)
            progress(number + 1, self.count)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = torch.load(self._folder / f"{number:05d}.pt", weights_only=True)
        return batch


@dataclasses.dataclass(frozen=True)
class Development:
    """The clips that every arm is judged by, after the frozen layers."""

    corpora: Mapping[str, Sequence[Any]]
    activations: Mapping[str, Tensor]


def _fixed(waveform: NDArray[np.float32], spec: EncoderSpec, frames: int) -> NDArray[np.float32]:
    samples = (frames - 1) * spec.frame_shift + spec.frame_length
    start = max(0, (len(waveform) - samples) // 2)
    piece = np.take(waveform, np.arange(start, start + samples), mode="wrap")
    return mean_normalise(log_mel(np.ascontiguousarray(piece), spec))


def _development(
    encoder: ResidualEncoder, spec: EncoderSpec, sets: Sequence[PreparedSet], speakers: frozenset[str],
    progress: Callable[[int, int], None],
) -> Development:  # fmt: skip
    chosen: dict[str, list[tuple[PreparedSet, int]]] = {}
    for prepared in sets:
        cells: dict[tuple[str, str], int] = {}
        for index, clip in enumerate(prepared.clips):
            if clip.speaker in speakers and clip.emotion:
                cell = (clip.speaker, clip.emotion)
                cells[cell] = cells.get(cell, 0) + 1
                if cells[cell] <= CLIPS_PER_CELL:
                    chosen.setdefault(clip.corpus, []).append((prepared, index))
    total, done = sum(map(len, chosen.values())), 0
    activations = {}
    for corpus, rows in chosen.items():
        parts = []
        for first in range(0, len(rows), 32):
            features = [_fixed(p.waveform(i), spec, DEVELOPMENT_FRAMES) for p, i in rows[first : first + 32]]
            parts.append(_below(encoder, torch.from_numpy(np.stack(features))))
            done += len(features)
            progress(done, total)
        activations[corpus] = torch.cat(parts)
    return Development({corpus: [p.clips[i] for p, i in rows] for corpus, rows in chosen.items()}, activations)


class Top(torch.nn.Module):
    """The part that learns: last stage, pooling and linear layer of an encoder."""

    def __init__(self, encoder: ResidualEncoder) -> None:
        super().__init__()
        self.stage = copy.deepcopy(encoder.stages[-1])
        self.encoder = copy.deepcopy(encoder)
        self.encoder.stages = torch.nn.ModuleList()  # the copy pools; its stages are not its business here
        self.encoder.stem = torch.nn.Identity()

    def forward(self, activations: Tensor) -> Tensor:
        """Activations (batch, channels, bins, frames) to embeddings (batch, dim)."""
        x: Tensor = self.encoder.pool(self.stage(activations))
        return x


def judge(top: Top, development: Development) -> dict[str, float]:
    """Cross-emotion EER of each corpus, their mean and the merged one; neutral EER of each corpus."""
    top.eval()
    figures: dict[str, float] = {}
    merged: dict[bool, list[NDArray[np.float32]]] = {True: [], False: []}
    for corpus, clips in development.corpora.items():
        parts = []
        with torch.inference_mode(), autocast():
            for rows in development.activations[corpus].split(64):
                parts.append(top(_like_weights(rows)).float().numpy())
        embeddings = unit(np.concatenate(parts))
        for protocol in ("pairs", "neutral"):
            trials = make_trials(clips, protocol)
            scores = trials.scores(embeddings)
            targets, nontargets = scores[trials.target], scores[~trials.target]
            if len(targets) and len(nontargets):
                figures[f"{corpus} {protocol}"] = eer(targets, nontargets)
                if protocol == "pairs":
                    merged[True].append(targets)
                    merged[False].append(nontargets)
    if not merged[True]:
        raise ValueError("no corpus has cross-emotion trials of both kinds among its development speakers")
    pairs = [value for name, value in figures.items() if name.endswith(" pairs")]
    figures["mean"] = float(np.mean(pairs))
    figures["merged"] = eer(np.concatenate(merged[True]), np.concatenate(merged[False]))
    top.train()
    return figures


def _like_weights(activations: Tensor) -> Tensor:
    """The kept bfloat16 activations, as float32 where the machine computes in that."""
    fast = torch.is_autocast_enabled("cpu")
    x = activations if fast else activations.float()
    return x.contiguous(memory_format=torch.channels_last)


def train_arm(
    encoder: ResidualEncoder, centres: NDArray[np.float32], pool: Pool, recipe: Recipe, budget: Budget, seed: int
) -> Top:
    """Fine-tune the last stage by one recipe; the seed orders the batches."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    top = Top(encoder).to(memory_format=torch.channels_last)
    softmax = AngularMarginSoftmax(torch.from_numpy(centres))
    groups = [{"params": list(top.parameters())}, {"params": list(softmax.parameters()), "lr": 5 * budget.rate}]
    optimizer = torch.optim.AdamW(groups, lr=budget.rate, weight_decay=1e-4)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [*top.parameters(), *softmax.parameters()]
    order: list[int] = []
    for step in range(budget.steps):
        if not order:
            order = rng.permutation(pool.count).tolist()
        batch = pool[order.pop()]
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * budget.factor(step)
        with autocast():
            embeddings = top(_like_weights(batch["activations"])).float()
        first, second = embeddings.chunk(2)
        margin = recipe.margin * min(1.0, step / max(1, budget.steps // 4))
        loss = recipe.softmax_weight * softmax(embeddings, batch["labels"], margin)
        loss = loss + recipe.pair_weight_at(step / budget.steps) * pair_loss(first, second)
        if recipe.contrast_weight:
            loss = loss + recipe.contrast_weight * contrast_loss(first, second, batch["labels"].chunk(2)[0])
        if recipe.speaker_target or recipe.own_target:
            loss = loss + target_loss(embeddings, batch["targets"], batch["weights"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return top


def ablate(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    sets: Sequence[tuple[PreparedSet, NDArray[np.float32]]],
    out: Path,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = (1, 2, 3),
    budget: Budget | None = None,
    ordinary: Sequence[tuple[PreparedSet, NDArray[np.float32]]] = (),
    morphs: Sequence[MorphedSet] = (),
    noises: Sequence[NDArray[np.float32]] = (),
    rooms: Sequence[NDArray[np.float32]] = (),
    train_share: float = 0.6,
    keep_pools: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train and judge every arm; figures are appended to ``results.csv`` as they come, and a second call goes on.

    Parameters
    ----------
    encoder, spec
        Where every arm starts.
    sets : sequence of (PreparedSet, embeddings)
        The emotional corpora; each set's embeddings by `encoder`, shape (clips, dim).
    out : Path
        Folder for the results, and for the kept activations.
    ordinary : sequence of (PreparedSet, embeddings)
        Ordinary speech, seen by the arms with morphs alone.
    morphs : sequence of MorphedSet
        Prosody morphs; without them the arms that need some are left out, and that is said.
    noises, rooms : sequence of ndarray
        Recordings and impulse responses, for the arms with channels; these are left out without noises.
    keep_pools : bool
        Leave the kept activations on disk after the last arm that needs them.

    Returns
    -------
    list of dict
        ``arm``, ``seed`` and the figures of `judge`; arm "start" is the encoder before any training.
    """
    budget = budget or Budget()
    encoder = encoder.eval().to(memory_format=torch.channels_last)
    names = {clip.speaker for prepared, _ in sets for clip in prepared.clips if clip.speaker}
    training: set[str] = set()
    developing: set[str] = set()
    for corpus in sorted({clip.corpus for prepared, _ in sets for clip in prepared.clips}):
        of_corpus = [s for s in names if s.startswith(f"{corpus}-")]
        train, develop = split_speakers(of_corpus, train_share)
        training |= train
        developing |= develop
    assert not training & developing
    for option, given, switch in (("--morphs", morphs, "morph"), ("--noise", noises, "channel")):
        lacking = [] if given else [arm.name for arm in arms if getattr(arm.recipe, switch)]
        arms = [arm for arm in arms if arm.name not in lacking]
        if lacking:
            say(f"left out for want of {option}: {', '.join(lacking)}")
    key = _digest(
        weights_digest(encoder), spec.to_json(), sorted(training), sorted(developing), CLIPS_PER_CELL,
        DEVELOPMENT_FRAMES, sorted(str(prepared.folder) for prepared, _ in [*sets, *ordinary]), len(morphs),
        dataclasses.asdict(budget),
    )  # fmt: skip
    rows = _read_results(out, key)
    done = {(row["arm"], row["seed"]) for row in rows}

    development: Development | None = None
    wanted = [(seed, arm) for seed in seeds for arm in arms if (arm.name, seed) not in done]
    if wanted or ("start", 0) not in done:
        say(f"{len(training)} training and {len(developing)} development speakers")
        development = _development(
            encoder, spec, [prepared for prepared, _ in sets], frozenset(developing), _every(say, "development clips")
        )
    if ("start", 0) not in done:
        assert development is not None
        rows.append(_record(out, key, "start", 0, judge(Top(encoder), development), 0.0))
        say(f"start: {_short(rows[-1])}")

    left = {(_digest(views_of(arm.recipe)), seed) for seed, arm in wanted}
    say(f"{len(wanted)} runs to go, {len(left)} pools of {budget.pool_batches} batches")
    for position, (seed, arm) in enumerate(wanted):
        assert development is not None
        with_morphs = bool(arm.recipe.morph)
        sources = [_source(prepared, embeddings, frozenset(developing)) for prepared, embeddings in sets]
        if with_morphs:
            sources += [_source(prepared, embeddings, frozenset()) for prepared, embeddings in ordinary]
        batches = PairBatches(
            sources, spec, arm.recipe, budget.pairs, budget.pool_batches, seed, list(morphs) if with_morphs else None,
            list(noises), list(rooms),
        )  # fmt: skip
        views = _digest(views_of(arm.recipe))
        folder = out / "pools" / f"{key}-{views}-{seed}"
        pool = Pool(folder, encoder, batches, budget.pool_batches)
        pool.fill(_every(say, f"views for {arm.name}, seed {seed}"))
        started = time.monotonic()
        top = train_arm(encoder, batches.centres, pool, arm.recipe, budget, seed)
        rows.append(_record(out, key, arm.name, seed, judge(top, development), time.monotonic() - started))
        say(f"{position + 1} of {len(wanted)}, {arm.name}, seed {seed}: {_short(rows[-1])}")
        if not keep_pools and not any(
            s == seed and _digest(views_of(a.recipe)) == views for s, a in wanted[position + 1 :]
        ):
            for path in folder.glob("*.pt"):
                path.unlink()
            folder.rmdir()
    return rows


def _source(prepared: PreparedSet, embeddings: NDArray[np.float32], held_out: frozenset[str]) -> Source:
    count = len({clip.speaker for clip in prepared.clips if clip.speaker} - held_out)
    return Source(prepared, embeddings, math.sqrt(count), held_out)


def _every(say: Callable[[str], None], what: str, seconds: float = 30.0) -> Callable[[int, int], None]:
    from .progress import time_left

    started = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last > seconds:
            last = now
            say(f"  {what}: {done} of {total}, {time_left((total - done) * (now - started) / done)} left")

    return progress


def _short(row: Mapping[str, Any]) -> str:
    return f"merged {100 * row['merged']:.2f} %, mean {100 * row['mean']:.2f} %, {row['seconds']:.0f} s"


def _record(out: Path, key: str, arm: str, seed: int, figures: dict[str, float], seconds: float) -> dict[str, Any]:
    path = out / "results.csv"
    out.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if new:
            table.writerow(("setting", "arm", "seed", "figure", "value"))
        for name, value in {**figures, "seconds": seconds}.items():
            table.writerow((key, arm, seed, name, repr(value)))
    return {"arm": arm, "seed": seed, **figures, "seconds": seconds}


def _read_results(out: Path, key: str) -> list[dict[str, Any]]:
    """What earlier calls of the same setting found; a run counts once its last figure (seconds) is there."""
    path = out / "results.csv"
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
    baseline = {row["seed"]: row["merged"] for row in rows if row["arm"] == "aam"}
    order = ["start", *(arm.name for arm in arms)]
    for name in order:
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
