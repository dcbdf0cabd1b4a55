"""Which terms a calibration weighs, by their worth on corpora that the weights were not fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..evaluation.metrics import cllr, eer, frr_at_far, min_cllr
from .trials import Evidence
from .weights import GROUPS, Problem, class_weights, fit_weights, logistic, problem_of

__all__ = ["corpus_by_corpus", "left_out_scores", "select_terms", "together", "unseen_cllr"]

# A term must lower the Cllr of unseen corpora by this share on the geometric mean, and raise none by HARM: in
# shares, since a corpus of few errors weighs as much on a term as one of many.
GAIN = 0.015
HARM = 0.05
JUDGED_SPEAKERS = 8  # a corpus with fewer profiles helps to fit, but is too small to judge
# Nor is a corpus judged on where the cosine alone leaves so little: a handful of trials makes its Cllr.
EASY_CLLR = 0.05


def _affine_cllr(llr: NDArray[np.float64], target: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """The minimum of Cllr over scale x LLR + offset: what the ordering is worth, whatever the corpus's own offset."""
    centre = float(np.average(llr, weights=weight))
    spread = math.sqrt(float(np.average((llr - centre) ** 2, weights=weight))) + 1e-9
    x = np.stack(((llr - centre) / spread, np.ones(len(llr))), axis=1)
    fitted = x @ logistic(x, target, weight, np.full(2, 1e-6))
    return float((weight * np.logaddexp(0.0, np.where(target, -fitted, fitted))).sum() / math.log(2.0))


def unseen_cllr(problem: Problem, names: Sequence[str], judged: Iterable[str] | None = None) -> dict[str, float]:
    """Cllr on each corpus (or on those of `judged`), its own scale and offset granted, of weights fitted on the others.

    Scale and offset belong to its rooms, microphones and language, which differ by more than any term
    is worth (see `corpus_by_corpus` for Cllr without that grant) and would drown the comparison.

    Raises
    ------
    ValueError
        If no corpus has speakers enough to judge on.
    """
    out = {}
    for corpus in np.unique(problem.corpus) if judged is None else judged:
        held = problem.corpus == corpus
        if len(np.unique(problem.owner[held & problem.target])) < JUDGED_SPEAKERS:
            continue
        bias, weights = fit_weights(problem, names, ~held)
        llr = problem.columns(names)[held] @ np.asarray(weights) + bias
        out[str(corpus)] = _affine_cllr(llr, problem.target[held], class_weights(problem, held)[held])
    if not out:
        raise ValueError(f"expected a corpus with {JUDGED_SPEAKERS} enrolled speakers or more to judge terms on")
    return out


def select_terms(trials: Sequence[Evidence]) -> tuple[tuple[str, ...], list[dict[str, float | str]]]:
    """Forward selection: add the group of terms that lowers Cllr on unseen corpora most, while one does.

    Returns
    -------
    names : tuple of str
        The terms kept, ``cosine`` first.
    steps : list of dict
        For every candidate tried: ``step``, ``terms``, the Cllr of each corpus left out, their ``mean``.

    Raises
    ------
    ValueError
        If there is only one corpus, or none to judge on.
    """
    problem = problem_of(trials)
    if len(np.unique(problem.corpus)) < 2:
        raise ValueError("expected two corpora or more: one is left out to judge the weights of the others")
    names: tuple[str, ...] = ("cosine",)
    # What is easy is so without noise: the noise alone would not make its clips a matter of emotion.
    clear = unseen_cllr(problem_of([each.take(~each.noisy) for each in trials]), names)
    best = unseen_cllr(problem, names)
    best = {corpus: left for corpus, left in best.items() if clear.get(corpus, 0.0) >= EASY_CLLR} or best
    steps: list[dict[str, float | str]] = [_step(0, "cosine", best)]
    remaining = dict(GROUPS)
    for step in range(1, len(GROUPS) + 1):
        found: tuple[float, str, dict[str, float]] | None = None
        for label, group in remaining.items():
            unseen = unseen_cllr(problem, (*names, *group), best)
            steps.append(_step(step, f"+ {label}", unseen))
            change = [math.log((unseen[corpus] + 1e-3) / (best[corpus] + 1e-3)) for corpus in best]
            gain, harm = -np.mean(change), max(change)
            if gain >= GAIN and harm <= HARM and (found is None or gain > found[0]):
                found = float(gain), label, unseen
        if found is None:
            break
        names, best = (*names, *remaining.pop(found[1])), found[2]
        steps.append(_step(step, f"kept {found[1]}", best))
    return names, steps


def _step(step: int, label: str, unseen: Mapping[str, float]) -> dict[str, float | str]:
    return {"step": float(step), "terms": label, **unseen, "mean": float(np.mean(list(unseen.values())))}


def left_out_scores(
    trials: Sequence[Evidence],
    names: Sequence[str],
    design: str = "neutral",
    emotional: bool = True,
    judged: Sequence[Evidence] | None = None,
    noisy: bool = False,
) -> list[tuple[Evidence, NDArray[np.float64]]]:
    """Trials and their LLRs, each corpus scored with the weights and the bias of all the others.

    Parameters
    ----------
    trials : sequence of Evidence
        Those that the weights are fitted on.
    names : sequence of str
        The terms.
    design : {"single", "neutral", "varied"}
    emotional : bool
        Whether the tests are in another emotion than neutral, or neutral.
    judged : sequence of Evidence, optional
        The trials to judge, of other corpora too; by default `trials`.
    noisy : bool
        Whether the tests are those with noise added, or those without.

    Returns
    -------
    list of (Evidence, ndarray of shape (trials,))
        One for each corpus and draw of the profiles that has trials of both kinds.
    """
    problem = problem_of(trials)
    fits: dict[str, tuple[float, list[float]]] = {}
    out = []
    for each in trials if judged is None else judged:
        if each.design != design:
            continue
        some = each.take((each.emotional == emotional) & (each.noisy == noisy))
        if not some.target.any() or some.target.all():
            continue
        if each.corpus not in fits:
            fits[each.corpus] = fit_weights(problem, names, problem.corpus != each.corpus)
        bias, weights = fits[each.corpus]
        scored = [weight * some.terms[name] for name, weight in zip(names, weights, strict=True)]
        out.append((some, bias + np.sum(scored, axis=0)))
    return out


def corpus_by_corpus(scored: Sequence[tuple[Evidence, NDArray[np.float64]]]) -> dict[str, dict[str, float]]:
    """Error rates and Cllr of each corpus from `left_out_scores`, averaged over the draws of the profiles.

    For the design ``neutral`` and emotional tests these are the trials of the protocol ``enrol``.

    Returns
    -------
    dict from corpus to dict
        ``eer``, ``frr_at_1`` (FRR at a FAR of 1 %), ``cllr``, ``affine_cllr`` (with a scale
        and offset of the corpus's own), ``min_cllr``, ``targets``.
    """
    drawn: dict[str, list[dict[str, float]]] = {}
    for some, llr in scored:
        own = int(some.target.sum())
        even = np.where(some.target, 0.5 / own, 0.5 / (len(llr) - own))
        figures = _figures(llr, some.target) | {"affine_cllr": _affine_cllr(llr, some.target, even)}
        drawn.setdefault(some.corpus, []).append(figures)
    return {
        corpus: {name: float(np.mean([figures[name] for figures in draws])) for name in draws[0]}
        for corpus, draws in drawn.items()
    }


def together(scored: Sequence[tuple[Evidence, NDArray[np.float64]]]) -> dict[str, float]:
    """The same figures of all corpora's trials in one: whether one score means the same in all of them."""
    llr = np.concatenate([each for _, each in scored])
    return _figures(llr, np.concatenate([some.target for some, _ in scored]))


def _figures(llr: NDArray[np.float64], target: NDArray[np.bool_]) -> dict[str, float]:
    own, others = llr[target], llr[~target]
    return {
        "eer": eer(own, others),
        "frr_at_1": frr_at_far(own, others, 0.01),
        "cllr": cllr(own, others),
        "min_cllr": min_cllr(own, others),
        "targets": float(len(own)),
    }
