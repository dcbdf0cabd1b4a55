"""Thresholds by false-accept rate, from the impostors of the development speech."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import RULE_OF_THREE, Calibration, FarTable

from .trials import Evidence
from .weights import calibration_of, problem_of

__all__ = [
    "SAFETY",
    "Attempts",
    "at_one_threshold",
    "attempts_of",
    "draw_chances",
    "far_table",
    "impostor_speakers",
    "table_of",
    "with_thresholds",
]

# Corpora differ: on a harder one than those that are pooled, impostors pass so many times as often. An encoder needs
# the smallest at which `bands.by_condition` finds no cell above twice the rate.
SAFETY = 2.0
RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)


def impostor_speakers(trials: Iterable[Evidence]) -> set[tuple[str, str]]:
    """Corpus and name of every speaker who tries another's profile."""
    return {(each.corpus, each.names[code]) for each in trials for code in np.unique(each.speaker[~each.target])}


def with_thresholds(
    bare: Calibration, trials: Sequence[Evidence], counts: Iterable[int], safety: float = SAFETY
) -> Calibration:
    """The calibration with the thresholds that the impostors of `trials` give, for so many profiles at once."""
    tables = tuple(table for count in counts if (table := far_table(trials, bare, count, safety)) is not None)
    return dataclasses.replace(bare, far_tables=tables, num_impostor_speakers=len(impostor_speakers(trials)))


def far_table(
    trials: Sequence[Evidence], calibration: Calibration, num_profiles: int, safety: float = SAFETY
) -> FarTable | None:
    """Thresholds on the LLR by FAR, an attempt being compared with `num_profiles` profiles; None without impostors.

    Every impostor speaker weighs the same; of all of them together so few pass that `safety` times as many would be
    asked for. The maximum over a random choice of `num_profiles` of
    the M profiles is the k-th highest LLR with probability C(M - k, num_profiles - 1) / C(M, num_profiles),
    which is summed exactly instead of drawn.
    """
    return table_of([attempts_of(each, calibration) for each in trials], num_profiles, safety)


@dataclasses.dataclass(frozen=True, slots=True)
class Attempts:
    """Impostors' trials: the LLR of each, which test of a corpus it belongs to, and the number of its speaker."""

    llr: NDArray[np.float64]
    test: NDArray[np.integer]
    speaker: NDArray[np.integer]
    names: Sequence[str]  # of the speakers, with their corpus; one may have several numbers


def attempts_of(trials: Evidence, calibration: Calibration) -> Attempts:
    """The non-targets of some trials."""
    some = trials.take(~trials.target)
    names = [f"{some.corpus} {name}" for name in some.names]
    return Attempts(calibration.llr(some.terms), some.trials.test, some.speaker, names)


def table_of(attempts: Sequence[Attempts], num_profiles: int, safety: float = SAFETY) -> FarTable | None:
    """`far_table` of trials whose LLRs are known."""
    llrs, weights, speakers = [], [], []
    known: dict[str, int] = {}
    for some in attempts:
        order = np.lexsort((-some.llr, some.test))
        _, counts = np.unique(some.test[order], return_counts=True)
        lookup = {int(count): draw_chances(int(count), num_profiles) for count in np.unique(counts)}
        llrs.append(some.llr[order])
        weights.append(np.concatenate([np.empty(0), *(lookup[int(count)] for count in counts)]))
        codes = np.array([known.setdefault(name, len(known)) for name in some.names], np.int64)
        speakers.append(codes[some.speaker[order]])
    llr, weight = np.concatenate(llrs), np.concatenate(weights)
    code = np.concatenate(speakers)
    mass = np.bincount(code, weights=weight, minlength=1)
    count = int((mass > 0).sum())
    if count == 0:
        return None
    weight = weight / np.where(mass > 0, mass, 1.0)[code] / count
    order = np.argsort(-llr)
    above, ordered = np.cumsum(weight[order]), llr[order]
    rates = [rate for rate in RATES if rate > RULE_OF_THREE / count * 1.02] + [min(0.5, RULE_OF_THREE / count)]
    if len(rates) < 2:
        return None
    thresholds = []
    for rate in rates:
        allowed = int(np.searchsorted(above, rate / safety * (1 + 1e-9), side="right"))  # these may be accepted
        last = ordered[min(allowed, len(ordered) - 1)]
        thresholds.append(float(np.nextafter(last, math.inf)))
    return FarTable(num_profiles, tuple(rates), tuple(thresholds))


def draw_chances(profiles: int, chosen: int) -> NDArray[np.float64]:
    """Probability that the k-th highest of `profiles` scores is the highest of `chosen` drawn at random, for each k."""
    if profiles < chosen:
        return np.zeros(profiles)
    draws = math.comb(profiles, chosen)
    return np.array([math.comb(profiles - k, chosen - 1) / draws for k in range(1, profiles + 1)])


def at_one_threshold(
    everyone: Sequence[Evidence],
    trials: Sequence[Evidence],
    names: Sequence[str],
    rate: float = 0.01,
    noisy: bool = False,
    judged: Collection[str] | None = None,
) -> dict[tuple[str, str], dict[str, float]]:
    """FRR and FAR of each corpus, tests in other emotions, at the threshold that all the others give.

    What a user meets: neither the weights nor the threshold know their room. `corpus_by_corpus` judges the
    ranking within a corpus; this counts how far the corpora's scores lie apart as well.

    Parameters
    ----------
    everyone : sequence of Evidence
        Whose impostors give the threshold.
    trials : sequence of Evidence
        Those that the weights are fitted on.
    names : sequence of str
        The terms.
    rate : float
        The false-accept rate asked for.
    noisy : bool
        Whether the tests counted are those with noise added, or those without; both give the threshold.
    judged : collection of str, optional
        The corpora to count; all unless given.

    Returns
    -------
    dict from (corpus, design) to dict
        ``frr``, ``far`` (NaN where there are no trials of the kind), ``targets``, and ``extrapolated``: 1 where
        too few speakers are left without the corpus to support the rate.
    """
    problem = problem_of(trials)
    out = {}
    for corpus in sorted({each.corpus for each in everyone if judged is None or each.corpus in judged}):
        others = [each for each in everyone if each.corpus != corpus]
        bare = calibration_of(problem, names, problem.corpus != corpus, trials[0].axis)
        calibration = with_thresholds(bare, others, (1,))
        threshold = calibration.threshold(rate, extrapolate=True)
        for each in everyone:
            some = each.take(each.emotional & (each.noisy == noisy))
            if each.corpus == corpus and len(some.target):
                llr = calibration.llr(some.terms)
                own, strange = llr[some.target], llr[~some.target]
                out[corpus, each.design] = {
                    "frr": float(np.mean(own < threshold.llr)) if len(own) else math.nan,
                    "far": float(np.mean(strange >= threshold.llr)) if len(strange) else math.nan,
                    "extrapolated": float(threshold.extrapolated),
                    "targets": float(len(own)),
                }
    return out
