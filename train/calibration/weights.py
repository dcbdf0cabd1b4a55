"""Weights of the terms: logistic regression on the tests in another emotion than neutral."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import TERMS, Calibration, EmotionAxis, FarTable, Term

from .trials import Evidence

__all__ = [
    "GROUPS",
    "Problem",
    "calibration_of",
    "class_weights",
    "fit_weights",
    "logistic",
    "problem_of",
    "term_names",
]

NONTARGETS_PER_CORPUS = 24000  # of the fit; thresholds use them all
SHRINKAGE = 1e-4  # on the weights of the standardised terms
PRIOR = 0.05  # of the fit: weights for thresholds of few false accepts are fitted where such thresholds lie
# Terms that belong together are tried together.
GROUPS: dict[str, tuple[str, ...]] = {
    "f0": ("f0_above", "f0_below"),
    "envelope": ("envelope",),
    "norm": ("norm_above", "norm_below"),
    "emotion_shift": ("emotion_shift",),
    "test_seconds": ("test_seconds",),
    "enrol_seconds": ("enrol_seconds",),
}


def term_names(groups: Iterable[str]) -> tuple[str, ...]:
    """The terms of some `GROUPS`, ``cosine`` first."""
    return ("cosine", *(name for group in groups for name in GROUPS[group]))


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Trials as one matrix: columns are all `TERMS`, classes and corpora weigh the same."""

    values: NDArray[np.float64]  # (trials, TERMS)
    target: NDArray[np.bool_]
    weight: NDArray[np.float64]
    corpus: NDArray[np.str_]
    owner: NDArray[np.int32]  # speaker of the profile, within the corpus

    def columns(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The values of some terms, shape (trials, names)."""
        return self.values[:, [TERMS.index(name) for name in names]]


def problem_of(trials: Sequence[Evidence], seed: int = 0) -> Problem:
    """The tests in another emotion than neutral, at most `NONTARGETS_PER_CORPUS` non-targets of a corpus.

    In neutral tests a difference of pitch only marks another person; among them the fit would not learn
    that a raised voice explains a lower cosine.
    """
    rng = np.random.default_rng((seed, 11))
    parts = Counter(each.corpus for each in trials)
    chosen = []
    for every in trials:
        each = every.take(every.emotional)
        share = NONTARGETS_PER_CORPUS // parts[each.corpus]
        nontargets = np.flatnonzero(~each.target)
        if len(nontargets) > share:
            nontargets = rng.choice(nontargets, share, replace=False)
        chosen.append(each.take(np.concatenate((np.flatnonzero(each.target), nontargets))))
    return Problem(
        np.concatenate([np.stack([some.terms[name] for name in TERMS], axis=1) for some in chosen]),
        np.concatenate([some.target for some in chosen]),
        np.concatenate([_speaker_weight(some) for some in chosen]),
        np.concatenate([np.full(len(some.target), some.corpus) for some in chosen]),
        np.concatenate([some.owner for some in chosen]),
    )


def _speaker_weight(trials: Evidence) -> NDArray[np.float64]:
    """Every target speaker weighs the same, whatever the corpus; its non-targets weigh as much as its targets."""
    weight = np.zeros(len(trials.target))
    owners = len(np.unique(trials.speaker[trials.target]))
    for kind in (True, False):
        rows = trials.target == kind
        if rows.any():
            _, inverse, counts = np.unique(trials.speaker[rows], return_inverse=True, return_counts=True)
            weight[rows] = owners / len(counts) / counts[inverse]
    return weight


def class_weights(problem: Problem, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights of some rows, 0 elsewhere, so that both classes weigh 0.5."""
    weight = np.where(rows, problem.weight, 0.0)
    for kind in (True, False):
        total = weight[problem.target == kind].sum()
        weight[problem.target == kind] *= 0.5 / max(total, 1e-12)
    return weight


def logistic(
    x: NDArray[np.float64],
    target: NDArray[np.bool_],
    weight: NDArray[np.float64],
    ridge: NDArray[np.float64],
    offset: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """The coefficients of least logistic loss of ``x @ coefficients + offset``, by Newton's method.

    Parameters
    ----------
    x : ndarray, shape (trials, columns)
    target, weight : ndarray, shape (trials,)
    ridge : ndarray, shape (columns,)
        Half of it times the square of each coefficient is added to the loss, in nats; above 0.
    offset : ndarray, shape (trials,), or float
        Such as the log-odds of the prior at which the loss is counted.
    """
    found = np.zeros(x.shape[1])
    for _ in range(100):
        chance = 1.0 / (1.0 + np.exp(-np.clip(x @ found + offset, -50.0, 50.0)))
        gradient = x.T @ (weight * (chance - target)) + ridge * found
        curve = (x * (weight * chance * (1.0 - chance))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curve, gradient)
        largest = float(np.abs(step).max())
        found -= step * min(1.0, 2.0 / (largest + 1e-12))
        if largest < 1e-9:
            break
    return found


def fit_weights(problem: Problem, names: Sequence[str], rows: NDArray[np.bool_]) -> tuple[float, list[float]]:
    """Bias and weights that minimise the logistic loss at `PRIOR` on the rows.

    While the weights are fitted each corpus has an offset of its own: otherwise one of long clips whose scores all lie
    higher teaches that seconds count, and one of high voices that pitch does. The bias is then one for all.
    """
    weight, target = class_weights(problem, rows)[rows], problem.target[rows]
    values = problem.columns(names)[rows]
    centre = np.average(values, axis=0, weights=weight)
    scale = np.sqrt(np.average((values - centre) ** 2, axis=0, weights=weight)) + 1e-9
    x = (values - centre) / scale
    corpora, code = np.unique(problem.corpus[rows], return_inverse=True)
    at_prior = weight * np.where(target, 2.0 * PRIOR, 2.0 * (1.0 - PRIOR))
    odds = math.log(PRIOR / (1.0 - PRIOR))
    ridge = np.concatenate((np.full(len(names), 2.0 * math.log(2.0) * SHRINKAGE), np.full(len(corpora), 1e-9)))
    slopes = logistic(np.hstack((x, np.eye(len(corpora))[code])), target, at_prior, ridge, odds)[: len(names)]
    everywhere, free = np.ones((len(x), 1)), np.full(1, 1e-12)
    bias = float(logistic(everywhere, target, at_prior, free, x @ slopes + odds)[0])
    found = slopes / scale
    return bias - float((found * centre).sum()), [float(slope) for slope in found]


def calibration_of(
    problem: Problem, names: Sequence[str], rows: NDArray[np.bool_], axis: EmotionAxis | None
) -> Calibration:
    """The calibration that these rows give, with a table that supports no rate: thresholds come later."""
    bias, weights = fit_weights(problem, names, rows)
    terms = []
    for name, weight in zip(names, weights, strict=True):
        column = problem.columns([name])[rows, 0]
        low, high = (-1.0, 1.0) if name == "cosine" else np.quantile(column, (0.002, 0.998))
        terms.append(Term(name, weight, float(low), float(high)))
    bare = (FarTable(1, (0.5, 0.4), (0.0, 0.0)),)
    return Calibration(bias, tuple(terms), bare, 1, "", axis)
