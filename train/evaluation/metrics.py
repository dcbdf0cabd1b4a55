"""Error rates of a verification system, exact on ties, from NumPy alone.

A high score speaks for the same speaker; a trial is accepted where its score is at least the
threshold. Targets are trials of one speaker, non-targets of two. Rates are fractions, not percent.

Between two neighbouring target scores the false-reject rate does not move, so the vertices of the
whole operating curve lie at the target scores: `det_curve` needs no others, and every figure that is
taken from it is exact. Targets and non-targets of equal score are crossed on a straight line, as if
such ties were broken by coin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DetCurve",
    "Interval",
    "bootstrap_far_frr",
    "bootstrap_interval",
    "cllr",
    "det_curve",
    "eer",
    "far_frr_at",
    "frr_at_far",
    "min_cllr",
]

Floats = NDArray[np.float64]


class DetCurve(NamedTuple):
    """Vertices of the operating curve, from accepting everything to rejecting everything.

    ``threshold[k]`` gives ``far[k]`` and ``frr[k]``; `far` never rises and `frr` never falls along the curve.
    """

    threshold: Floats
    far: Floats
    frr: Floats

    def eer(self) -> float:
        """Equal error rate: where the polygon through the vertices crosses far = frr."""
        difference = self.frr - self.far
        k = int(np.argmax(difference >= 0.0))
        if difference[k] == 0.0:
            return float(self.far[k])
        before, after = difference[k - 1], difference[k]
        share = -before / (after - before)
        return float(self.far[k - 1] + share * (self.far[k] - self.far[k - 1]))

    def min_dcf(self, p_target: float) -> float:
        """Minimum normalised detection cost at the prior `p_target`, both costs 1 (NIST SRE 2016, equations 1-3)."""
        if not 0.0 < p_target < 1.0:
            raise ValueError(f"expected a prior between 0 and 1, got {p_target}")
        cost = p_target * self.frr + (1.0 - p_target) * self.far
        return float(cost.min() / min(p_target, 1.0 - p_target))

    def frr_at_far(self, far: float) -> float:
        """The lowest false-reject rate at which at most the share `far` of the non-targets is accepted."""
        if not 0.0 <= far <= 1.0:
            raise ValueError(f"expected a false-accept rate from 0 to 1, got {far}")
        # A rate asked for as 0.01 must allow 3 of 300, whatever the rounding of 3 / 300.
        return float(self.frr[self.far <= far * (1.0 + 1e-12)].min())


def _scores(values: ArrayLike, name: str) -> NDArray[np.floating]:
    scores = np.asarray(values)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    if scores.ndim != 1:
        raise ValueError(f"expected {name} of shape (trials,), got {scores.shape}")
    if not len(scores):
        raise ValueError(f"no {name} at all; these trials give no error rate")
    if np.isnan(scores).any():
        raise ValueError(f"{name}: {int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; find out why first")
    return scores


def det_curve(targets: ArrayLike, nontargets: ArrayLike) -> DetCurve:
    """Every operating point that matters.

    Parameters
    ----------
    targets, nontargets : array-like, shape (trials,)
        Scores; infinities are allowed, NaN is not.

    Raises
    ------
    ValueError
        If either is empty, not one-dimensional or holds a NaN.
    """
    target_scores, nontarget_scores = _same_type(_scores(targets, "targets"), _scores(nontargets, "non-targets"))
    values, counts = np.unique(target_scores, return_counts=True)
    ordered = np.sort(nontarget_scores)
    below, at_or_below = (np.asarray(np.searchsorted(ordered, values, side)) for side in ("left", "right"))
    cells = np.empty(2 * len(values) + 1)
    cells[0] = below[0]
    cells[1::2] = at_or_below - below
    cells[2::2] = np.append(below[1:], len(ordered)) - at_or_below
    return _curve(values, counts.astype(np.float64), cells)


def _same_type(
    targets: NDArray[np.floating], nontargets: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    dtype = np.result_type(targets, nontargets)
    return targets.astype(dtype, copy=False), nontargets.astype(dtype, copy=False)


def _curve(values: NDArray[np.floating], target_mass: Floats, cells: Floats) -> DetCurve:
    """The curve from the distinct target scores, the weight of each, and the weight of non-targets in each cell.

    Cell 2 k + 1 holds the non-targets equal to target score k, cell 2 k those between it and the score before.
    """
    total_target, total_nontarget = target_mass.sum(), cells.sum()
    rejected = np.cumsum(cells)
    rejected_targets = np.concatenate(([0.0], np.cumsum(target_mass)))
    size = 2 * len(values)
    threshold = np.empty(size + 2)
    far, frr = np.empty(size + 2), np.empty(size + 2)
    threshold[0], far[0], frr[0] = -np.inf, 1.0, 0.0
    threshold[1:-1:2], threshold[2:-1:2] = values, np.nextafter(values, np.inf, dtype=values.dtype)
    far[1:-1] = np.maximum((total_nontarget - rejected[:-1]) / total_nontarget, 0.0)
    frr[1:-1:2] = np.minimum(rejected_targets[:-1] / total_target, 1.0)
    frr[2:-1:2] = np.minimum(rejected_targets[1:] / total_target, 1.0)
    threshold[-1], far[-1], frr[-1] = np.inf, 0.0, 1.0
    return DetCurve(threshold, far, frr)


def eer(targets: ArrayLike, nontargets: ArrayLike) -> float:
    """Equal error rate, a fraction."""
    return det_curve(targets, nontargets).eer()


def frr_at_far(targets: ArrayLike, nontargets: ArrayLike, far: float) -> float:
    """False-reject rate at the false-accept rate `far`; see `DetCurve.frr_at_far`."""
    return det_curve(targets, nontargets).frr_at_far(far)


def far_frr_at(targets: ArrayLike, nontargets: ArrayLike, threshold: float) -> tuple[float, float]:
    """The actual (false-accept rate, false-reject rate) at a threshold."""
    accepted = np.mean(_scores(nontargets, "non-targets") >= threshold)
    rejected = np.mean(_scores(targets, "targets") < threshold)
    return float(accepted), float(rejected)


def cllr(targets: ArrayLike, nontargets: ArrayLike) -> float:
    """Cost of log-likelihood ratios (natural logarithm) in bits: 0 perfect, 1 for ratios without information.

    References
    ----------
    Brümmer and du Preez, "Application-independent evaluation of speaker detection", 2006.
    """
    target_scores, nontarget_scores = _scores(targets, "targets"), _scores(nontargets, "non-targets")
    miss = np.logaddexp(0.0, -target_scores.astype(np.float64)).mean()
    false_accept = np.logaddexp(0.0, nontarget_scores.astype(np.float64)).mean()
    return float(0.5 * (miss + false_accept) / math.log(2.0))


def _pav_blocks(targets: NDArray[np.floating], nontargets: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Pool adjacent violators: (targets, non-targets) of each block, rising in the share of targets."""
    targets, nontargets = _same_type(targets, nontargets)
    scores = np.concatenate((targets, nontargets))
    is_target = np.concatenate((np.ones(len(targets), bool), np.zeros(len(nontargets), bool)))
    values, group = np.unique(scores, return_inverse=True)
    num_targets = np.bincount(group[is_target], minlength=len(values)).astype(np.float64)
    num_nontargets = np.bincount(group[~is_target], minlength=len(values)).astype(np.float64)
    # Neighbouring groups that hold only targets, or only non-targets, pool at once.
    pure = np.where(num_nontargets == 0, 1, np.where(num_targets == 0, -1, 0))
    starts = np.flatnonzero(np.append(True, (pure[1:] != pure[:-1]) | (pure[1:] == 0)))
    runs_t, runs_n = np.add.reduceat(num_targets, starts), np.add.reduceat(num_nontargets, starts)
    stack: list[tuple[float, float]] = []
    for a, b in zip(runs_t.tolist(), runs_n.tolist(), strict=True):
        # Pool while the block before has at least the share of targets of this one: a0 / (a0 + b0) >= a / (a + b).
        while stack and stack[-1][0] * b >= a * stack[-1][1]:
            a0, b0 = stack.pop()
            a, b = a + a0, b + b0
        stack.append((a, b))
    block_targets, block_nontargets = (np.array(column) for column in zip(*stack, strict=True))
    return block_targets, block_nontargets


def min_cllr(targets: ArrayLike, nontargets: ArrayLike) -> float:
    """`cllr` after the best monotonic calibration (pool adjacent violators): what calibration cannot mend."""
    target_scores, nontarget_scores = _scores(targets, "targets"), _scores(nontargets, "non-targets")
    a, b = _pav_blocks(target_scores, nontarget_scores)
    prior = len(target_scores) / len(nontarget_scores)
    both = (a > 0) & (b > 0)  # a block of one kind costs nothing
    odds = a[both] / b[both] / prior
    miss = (a[both] * np.log1p(1.0 / odds)).sum() / len(target_scores)
    false_accept = (b[both] * np.log1p(odds)).sum() / len(nontarget_scores)
    return float(0.5 * (miss + false_accept) / math.log(2.0))


class Interval(NamedTuple):
    """A bootstrap interval, and how many resamples had both kinds of trial and so took part."""

    low: float
    high: float
    resamples: int


def bootstrap_interval(
    targets: ArrayLike,
    nontargets: ArrayLike,
    target_speakers: NDArray[np.integer],
    nontarget_speakers: NDArray[np.integer],
    rng: np.random.Generator,
    statistic: Callable[[DetCurve], float] = DetCurve.eer,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of a figure when the speakers, not the trials, are drawn anew with replacement.

    A speaker drawn twice counts twice: in their target trials, and in the non-target trials with every other.
    Trials of one speaker stand or fall together, so resampling trials would make intervals far too narrow.

    Parameters
    ----------
    targets, nontargets : array-like, shape (trials,)
    target_speakers : ndarray of int, shape (targets,)
    nontarget_speakers : ndarray of int, shape (nontargets, 2)
        Indices of speakers, from 0.
    rng : numpy.random.Generator
    statistic : callable
        From a `DetCurve` to a figure, such as ``DetCurve.eer``.

    References
    ----------
    Poh and Bengio, "Estimating the confidence interval of expected performance curve", 2007.
    """
    target_scores, nontarget_scores = _same_type(_scores(targets, "targets"), _scores(nontargets, "non-targets"))
    if target_speakers.shape != target_scores.shape or nontarget_speakers.shape != (len(nontarget_scores), 2):
        raise ValueError(
            f"expected a speaker for each of {len(target_scores)} targets and two for each of {len(nontarget_scores)} "
            f"non-targets, got shapes {target_speakers.shape} and {nontarget_speakers.shape}"
        )
    values, group = np.unique(target_scores, return_inverse=True)
    cell = np.searchsorted(values, nontarget_scores, "left") + np.searchsorted(values, nontarget_scores, "right")
    first, second = np.ascontiguousarray(nontarget_speakers.T)
    figures = []
    for times in _drawn(target_speakers, nontarget_speakers, rng, resamples):
        target_mass: Floats = np.bincount(group, times[target_speakers], len(values)).astype(np.float64)
        cells: Floats = np.bincount(cell, times[first] * times[second], 2 * len(values) + 1).astype(np.float64)
        if target_mass.any() and cells.any():
            figures.append(statistic(_curve(values, target_mass, cells)))
    return _percentiles(figures, confidence)


def bootstrap_far_frr(
    targets: ArrayLike,
    nontargets: ArrayLike,
    threshold: float,
    target_speakers: NDArray[np.integer],
    nontarget_speakers: NDArray[np.integer],
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[Interval, Interval]:
    """Intervals of `far_frr_at` at one threshold; parameters as for `bootstrap_interval`."""
    rejected = _scores(targets, "targets") < threshold
    accepted = _scores(nontargets, "non-targets") >= threshold
    first, second = np.ascontiguousarray(nontarget_speakers.T)
    far, frr = [], []
    for times in _drawn(target_speakers, nontarget_speakers, rng, resamples):
        target_weight, nontarget_weight = times[target_speakers], times[first] * times[second]
        if target_weight.any() and nontarget_weight.any():
            far.append(float(np.average(accepted, weights=nontarget_weight)))
            frr.append(float(np.average(rejected, weights=target_weight)))
    return _percentiles(far, confidence), _percentiles(frr, confidence)


def _drawn(
    target_speakers: NDArray[np.integer], nontarget_speakers: NDArray[np.integer], rng: np.random.Generator, times: int
) -> Iterator[Floats]:
    """How often each speaker is drawn, once for each resample."""
    count = int(max(target_speakers.max(), nontarget_speakers.max())) + 1
    for _ in range(times):
        yield np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _percentiles(figures: list[float], confidence: float) -> Interval:
    if not figures:
        raise ValueError("the speakers are too few to draw from: no resample had both kinds of trial")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(figures, (tail, 100.0 - tail))
    return Interval(float(low), float(high), len(figures))
