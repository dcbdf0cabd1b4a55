"""What the arms of an ablation differ by, and what difference its speakers could have shown.

Every arm judges the same clips. The relative change of an arm's EER against the baseline is paired by seed and fold:
both are of the same trials, and the bootstrap draws the same speakers for both. Speakers are drawn, not trials.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.files import write_atomically

from .evaluation.clips import Clip, Recording
from .evaluation.protocols import make_trials

__all__ = ["Change", "Judged", "changes", "format_changes", "read_judged", "save_judged"]

BINS = 2000  # of the cosines from -1 to 1
MOST_NONTARGETS = 400_000  # of a corpus and fold: a random choice of more would add nothing
# A true change of so many standard errors is found in four of five such experiments, by a two-sided test at 5 %.
DETECTABLE = 2.8


@dataclasses.dataclass(frozen=True)
class Judged:
    """What one run (an arm, a seed, a fold) made of its development clips: labels and embeddings of each corpus."""

    arm: str
    seed: int
    fold: str
    clips: Mapping[str, Sequence[Recording]]
    embeddings: Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """How an arm's EER differs from the baseline's: relative, below 0 where the arm is better.

    ``merged`` pools the trials of all corpora, ``mean`` is the mean of the corpora's own EERs; each with its 95 %
    interval over speakers. ``detectable`` is the smallest change of the merged EER that these speakers would have
    shown in four of five such experiments.
    """

    arm: str
    seeds: int
    eer: float
    merged: float
    merged_interval: tuple[float, float]
    mean: float
    mean_interval: tuple[float, float]
    detectable: float


def save_judged(path: Path, clips: Mapping[str, Sequence[Clip]], embeddings: Mapping[str, NDArray[np.float32]]) -> None:
    """Write what a run made of its development clips."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for corpus, rows in clips.items():
        arrays[f"{corpus} labels"] = np.array([(clip.speaker, clip.gender, clip.emotion) for clip in rows], np.str_)
        arrays[f"{corpus} embeddings"] = embeddings[corpus]
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue(), 0o666)


def read_judged(paths: Sequence[Path]) -> list[Judged]:
    """Runs as `save_judged` wrote them; the runs of one folder are of one fold.

    Raises
    ------
    ValueError
        If a file is gone.
    """
    found = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; delete results.csv beside its folder and run the ablation again")
        _, arm, seed = path.stem.split(" ")
        with np.load(path) as arrays:
            corpora = sorted(name.removesuffix(" labels") for name in arrays.files if name.endswith(" labels"))
            clips = {c: [_recording(c, *row) for row in arrays[f"{c} labels"].tolist()] for c in corpora}
            embeddings = {c: arrays[f"{c} embeddings"] for c in corpora}
        found.append(Judged(arm, int(seed), str(path.parent), clips, embeddings))
    return found


def _recording(corpus: str, speaker: str, gender: str, emotion: str) -> Recording:
    return Recording("", corpus, speaker, gender, emotion, 0.0)


class _Trials:
    """The trials of one corpus and fold, with the speakers numbered over all folds."""

    def __init__(self, clips: Sequence[Recording], numbers: dict[str, int], rng: np.random.Generator) -> None:
        trials = make_trials(clips, "pairs")
        speakers = np.array([numbers.setdefault(clip.speaker, len(numbers)) for clip in clips], np.int64)
        other = np.flatnonzero(~trials.target)
        if len(other) > MOST_NONTARGETS:
            other = np.sort(rng.choice(other, MOST_NONTARGETS, replace=False))
        self._kept = trials.take(np.concatenate((np.flatnonzero(trials.target), other)))
        self.targets = int(trials.target.sum())
        self.first, self.second = speakers[self._kept.enrol], speakers[self._kept.test]

    def bins(self, embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
        """The bin of each trial's cosine, targets first."""
        scores = self._kept.scores(embeddings)
        return np.clip(((scores + 1.0) * (BINS / 2)).astype(np.int64), 0, BINS - 1)

    def weights(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often each trial counts if each speaker is drawn so many times."""
        once = times[self.first].astype(np.float64)
        once[self.targets :] *= times[self.second[self.targets :]]
        return once


def _eer(targets: NDArray[np.float64], nontargets: NDArray[np.float64]) -> float:
    """Equal error rate of two histograms over the bins of the cosine."""
    if not targets.sum() or not nontargets.sum():
        return float("nan")
    frr = np.concatenate(([0.0], np.cumsum(targets))) / targets.sum()
    far = 1.0 - np.concatenate(([0.0], np.cumsum(nontargets))) / nontargets.sum()
    difference = frr - far
    k = int(np.argmax(difference >= 0.0))
    if k == 0 or difference[k] == difference[k - 1]:
        return float(far[k])
    share = -difference[k - 1] / (difference[k] - difference[k - 1])
    return float(far[k - 1] + share * (far[k] - far[k - 1]))


def changes(judged: Sequence[Judged], baseline: str = "aam", resamples: int = 500, seed: int = 0) -> list[Change]:
    """Every arm against the baseline, over the seeds and folds that both have.

    Raises
    ------
    ValueError
        If the baseline is not among the runs, or an arm lacks a fold of a seed that the baseline has.
    """
    rng, numbers = np.random.default_rng(seed), dict[str, int]()
    runs = {(run.arm, run.seed, run.fold): run for run in judged if run.arm != "start"}
    folds = sorted({fold for _, _, fold in runs})
    seeds = sorted({number for arm, number, _ in runs if arm == baseline})
    if not seeds:
        raise ValueError(f"no run of the arm {baseline}; there are {sorted({arm for arm, _, _ in runs})}")
    clips = {run.fold: run.clips for run in runs.values()}
    trials = {(f, c): _Trials(rows, numbers, rng) for f in folds for c, rows in sorted(clips[f].items())}
    arms = [baseline, *sorted({arm for arm, _, _ in runs} - {baseline})]
    bins = {}
    for arm in arms:
        for number in seeds:
            for fold, corpus in trials:
                if (arm, number, fold) not in runs:
                    raise ValueError(f"arm {arm}, seed {number}: no run of the fold {fold}; finish the ablation first")
                bins[arm, number, fold, corpus] = trials[fold, corpus].bins(runs[arm, number, fold].embeddings[corpus])

    def figures(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Merged and mean EER, shape (arms, seeds, 2)."""
        weights = {where: each.weights(times) for where, each in trials.items()}
        out = np.empty((len(arms), len(seeds), 2))
        for place in np.ndindex(len(arms), len(seeds)):
            histograms: dict[str, NDArray[np.float64]] = {}
            for (fold, corpus), each in trials.items():
                found, weight = bins[arms[place[0]], seeds[place[1]], fold, corpus], weights[fold, corpus]
                cut = each.targets
                both = [np.bincount(found[s], weight[s], BINS) for s in (slice(cut), slice(cut, None))]
                histograms.setdefault(corpus, np.zeros((2, BINS)))[:] += both
            own = [value for each in histograms.values() if not math.isnan(value := _eer(*each))]
            out[place] = _eer(*np.sum(list(histograms.values()), axis=0)), np.mean(own) if own else math.nan
        return out

    measured = figures(np.ones(len(numbers), np.int64))
    drawn = [
        _relative(figures(np.bincount(rng.integers(len(numbers), size=len(numbers)), minlength=len(numbers))))
        for _ in range(resamples)
    ]
    return [_change(arm, at, measured, np.array(drawn)) for at, arm in enumerate(arms) if arm != baseline]


def _relative(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative change against the first arm, the mean over the seeds, shape (arms, 2); NaN where that has no errors."""
    base = np.where(found[:1] > 0.0, found[:1], math.nan)
    return np.asarray((found / base - 1.0).mean(axis=1))


def _change(arm: str, at: int, measured: NDArray[np.float64], drawn: NDArray[np.float64]) -> Change:
    merged, mean = _relative(measured)[at]
    known = drawn[np.isfinite(drawn[:, at]).all(axis=1), at]
    if not len(known):  # too few speakers: no draw has trials of both kinds
        known = np.full((1, 2), math.nan)
    low, high = np.percentile(known, (2.5, 97.5), axis=0)
    return Change(
        arm, measured.shape[1], float(measured[at, :, 0].mean()), float(merged), (float(low[0]), float(high[0])),
        float(mean), (float(low[1]), float(high[1])), DETECTABLE * float(known[:, 0].std()),
    )  # fmt: skip


def format_changes(found: Sequence[Change], baseline: str = "aam") -> str:
    """Markdown: each arm's change with its interval, and what could have been shown."""
    head = (
        "arm",
        "seeds",
        "merged EER %",
        f"against {baseline} %",
        "95 % interval",
        "mean of corpora %",
        "95 % interval",
    )
    lines = ["| " + " | ".join((*head, "detectable %")) + " |", "|---" * (len(head) + 1) + "|"]
    for each in found:
        cells = (
            each.arm, str(each.seeds), f"{100 * each.eer:.2f}", f"{100 * each.merged:+.1f}",
            _interval(each.merged_interval), f"{100 * each.mean:+.1f}", _interval(each.mean_interval),
            f"{100 * each.detectable:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    legend = (
        "Below 0 an arm makes fewer errors. Intervals are a bootstrap over speakers, paired by seed and fold; a true "
        "change of the size called detectable would have been found in four of five such experiments."
    )
    return "\n".join([*lines, "", legend])


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
