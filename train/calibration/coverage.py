"""What coverage is worth: how many of an owner's utterances profiles reject that reach so far, in unheard emotions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import COVERAGE_FAR, Calibration
from emoinv_edge.coverage import coverage_of
from emoinv_edge.scoring import ProfileBank

from ..evaluation.clips import is_neutral
from .speech import DevelopmentSpeech

__all__ = ["coverage_rates"]

STEPS = (0.0, 0.25, 0.5, 0.75, 0.9)
SIZES = (1, 2, 3, 4, 4, 4, 6, 8)  # exemplars of the profiles that are drawn
PROFILES = 8  # of one speaker, tried by the same clips
UNHEARD = 2  # emotions that try them
TESTS = 8  # clips of each
DRAWS = 400  # sets of unheard emotions, of one corpus
LEAST = 10  # profiles of one corpus and step, below which the step is not counted there


def coverage_rates(
    speech: DevelopmentSpeech, calibration: Calibration, corpora: Collection[str], seed: int = 0
) -> tuple[tuple[float, float], ...]:
    """Share covered, from which on, and the FRR at `COVERAGE_FAR` of such profiles; empty where nothing can be tried.

    Several profiles of one speaker, of other clips and emotions, are tried by the same clips in two emotions that
    none of them holds. Their FRR is counted as the difference from the mean of the speaker's profiles, so that a
    voice that is easy does not make its coverage look good; every corpus weighs the same.

    Parameters
    ----------
    speech : DevelopmentSpeech
    calibration : Calibration
        With its thresholds.
    corpora : collection of str
        Of acted speech in several emotions.
    seed : int
    """
    threshold = calibration.threshold(COVERAGE_FAR, extrapolate=True).llr
    copies = speech.copies()
    rates: dict[str, list[tuple[float, float, float]]] = {}
    for corpus in sorted(corpora):
        cells: dict[str, dict[str, list[int]]] = {}
        for i, clip in enumerate(speech.clips):
            if clip.corpus == corpus and i not in copies:
                label = "neutral" if is_neutral(clip) else clip.emotion
                cells.setdefault(clip.speaker, {}).setdefault(label, []).append(i)
        fit = {name: found for name, found in cells.items() if "neutral" in found and len(found) > UNHEARD}
        rng = np.random.default_rng((seed, 17))
        for _, own in sorted(fit.items()):
            for _ in range(max(1, DRAWS // len(fit))):
                rates.setdefault(corpus, []).extend(_tried(speech, calibration, own, threshold, rng))
    return _steps({corpus: np.array(found) for corpus, found in rates.items() if found})


def _tried(
    speech: DevelopmentSpeech,
    calibration: Calibration,
    own: Mapping[str, Sequence[int]],
    threshold: float,
    rng: np.random.Generator,
) -> list[tuple[float, float, float]]:
    """Coverage, FRR, and its difference from the mean, of several profiles of one speaker tried by the same clips."""
    emotions = [str(each) for each in rng.permutation(sorted(own.keys() - {"neutral"}))]
    unheard, rest = emotions[:UNHEARD], emotions[UNHEARD:]
    tests = [int(i) for emotion in unheard for i in rng.permutation(own[emotion])[:TESTS]]
    profiles = []
    for _ in range(PROFILES):
        size = int(rng.choice(SIZES))
        count = int(rng.integers(0, min(size - 1, len(rest)) + 1))
        decks = [[int(i) for i in rng.permutation(own[each])] for each in ("neutral", *rest[:count])]
        profiles.append(_dealt(decks, size))
    held = [i for clips in profiles for i in clips]
    names, counts = [str(number) for number in range(PROFILES)], list(map(len, profiles))
    qualities = [speech.qualities[i] for i in held]
    bank = ProfileBank.from_arrays(names, speech.embeddings[held], qualities, counts, calibration.emotion_axis)
    llrs = [bank.score(calibration, speech.embeddings[i], speech.qualities[i])[0] for i in tests]
    frrs = [float(frr) for frr in (np.array(llrs) < threshold).mean(axis=0)]
    covered = [coverage_of([speech.qualities[i] for i in clips]) for clips in profiles]
    mean = float(np.mean(frrs))
    # A profile holds a clip at least, so that it has a coverage.
    return [(each.share, frr, frr - mean) for each, frr in zip(covered, frrs, strict=True) if each is not None]


def _dealt(decks: Sequence[Sequence[int]], size: int) -> list[int]:
    """So many clips, from each deck in turn while it lasts."""
    longest = max(map(len, decks))
    return [deck[k] for k in range(longest) for deck in decks if k < len(deck)][:size]


def _steps(rates: Mapping[str, NDArray[np.float64]]) -> tuple[tuple[float, float], ...]:
    """The FRR of each step: the mean of the corpora and, on it, how far profiles of the step lie off, never rising."""
    if not rates:
        return ()
    overall = float(np.mean([found[:, 1].mean() for found in rates.values()]))
    out: list[tuple[float, float]] = []
    for low, high in zip(STEPS, (*STEPS[1:], 2.0), strict=True):
        off = [
            float(found[chosen, 2].mean())
            for found in rates.values()
            if (chosen := (found[:, 0] >= low) & (found[:, 0] < high)).sum() >= LEAST
        ]
        if off:
            frr = min(max(0.0, overall + float(np.mean(off))), out[-1][1] if out else 1.0)
            out.append((low if out else 0.0, frr))
    return tuple(out)
