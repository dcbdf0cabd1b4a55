"""The calibrated decisions as the runtime makes them: enrolled neutral, tested in every emotion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration
from emoinv_edge.enrolment import MIN_UTTERANCE_S
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.utterance import unusable

from .clips import Clip, is_neutral
from .embeddings import Heard
from .metrics import bootstrap_far_frr, cllr, far_frr_at, min_cllr
from .protocols import ENROL_CLIPS, Trials, codes, cross, error_rates, speaker_pairs

__all__ = ["evaluate_decisions", "reliability"]


def evaluate_decisions(
    heard: Sequence[Heard | None], clips: Sequence[Clip], calibration: Calibration, resamples: int = 0, seed: int = 0
) -> dict[str, Any] | None:
    """Error rates of the calibrated log-likelihood ratios (LLR), by emotion and at the calibration's thresholds.

    A profile holds the speaker's first four neutral clips that can be enrolled. Neutral tests are the neutral
    clips after those; a speaker who has none is tested with each enrolled clip against the other three.

    Parameters
    ----------
    heard, clips : sequence
        From `hear_set`, and the labels of the same clips.
    calibration : Calibration
    resamples, seed : int
        Of the bootstrap over the speakers.

    Returns
    -------
    dict or None
        ``failure_to_acquire`` (share of clips without a decision), ``failure_to_enrol`` (share of speakers
        without a profile), ``num_impostor_speakers``, ``supported_far``, ``enrol`` (every emotion but neutral:
        ``eer``, ``cllr``, ``min_cllr``, ``frr_at_far``, ``min_dcf``, ``thresholds``: the FAR asked for -> LLR,
        actual far and frr), the same ``by_emotion``, and ``reliability``. None where there are no trials of both
        kinds, or nobody to enrol.
    """
    enrolled, candidates = _profiles(heard, clips)
    if not enrolled:
        return None
    trials, llrs = _score(heard, clips, enrolled, calibration)
    if not trials.target.any() or trials.target.all():
        return None
    fars = [far for far in calibration.far_tables[0].rates if far >= calibration.supported_far]
    thresholds = {f"{far:g}": calibration.threshold(far).llr for far in fars}
    emotion = np.array([clip.emotion for clip in clips])[trials.test]
    _, speaker = codes(clip.speaker for clip in clips)

    def figures(chosen: NDArray[np.bool_], intervals: bool) -> dict[str, Any] | None:
        some, values = trials.take(chosen), llrs[chosen]
        pairs = speaker_pairs(some.target, speaker[some.owner], speaker[some.test])
        out = error_rates(values, some.target, pairs, resamples if intervals else 0, seed)
        if out is None:
            return None
        targets, nontargets = values[some.target], values[~some.target]
        out |= {"cllr": cllr(targets, nontargets), "min_cllr": min_cllr(targets, nontargets), "thresholds": {}}
        for name, threshold in thresholds.items():
            far, frr = far_frr_at(targets, nontargets, threshold)
            at: dict[str, Any] = {"llr": threshold, "far": far, "frr": frr}
            if intervals and resamples:
                rng = np.random.default_rng(seed)
                fars, frrs = bootstrap_far_frr(targets, nontargets, threshold, *pairs, rng, resamples)
                at |= {"far_interval": list(fars[:2]), "frr_interval": list(frrs[:2])}
            out["thresholds"][name] = at
        return out

    emotional = figures(emotion != "neutral", True)
    by_emotion = {name: figures(emotion == name, name == "neutral") for name in sorted(set(emotion.tolist()))}
    chosen = emotion != "neutral" if emotional is not None else np.ones(len(llrs), bool)
    return {
        "failure_to_acquire": float(np.mean([each is None for each in heard])),
        "failure_to_enrol": 1.0 - len(enrolled) / candidates,
        "num_impostor_speakers": calibration.num_impostor_speakers,
        "supported_far": calibration.supported_far,
        "enrol": emotional,
        "by_emotion": {name: found for name, found in by_emotion.items() if found is not None},
        "reliability": reliability(llrs[chosen & trials.target], llrs[chosen & ~trials.target]),
    }


def _profiles(heard: Sequence[Heard | None], clips: Sequence[Clip]) -> tuple[dict[str, list[int]], int]:
    """The enrolled clips of each speaker, and how many speakers have clips enough."""
    speakers: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        if clip.speaker and clip.emotion and is_neutral(clip):
            speakers.setdefault(clip.speaker, []).append(i)
    speakers = {name: indices for name, indices in speakers.items() if len(indices) >= ENROL_CLIPS}
    enrolled = {}
    for name, indices in speakers.items():
        usable = [(i, each) for i in indices if (each := heard[i]) is not None]
        fit = [i for i, each in usable if unusable(each.quality, MIN_UTTERANCE_S) is None]
        if fit:
            enrolled[name] = fit[:ENROL_CLIPS]
    return enrolled, len(speakers)


def _score(
    heard: Sequence[Heard | None], clips: Sequence[Clip], enrolled: dict[str, list[int]], calibration: Calibration
) -> tuple[Trials, NDArray[np.float64]]:
    """Every usable clip against every profile of its gender, an enrolled one against the rest of its profile."""

    def bank(profiles: Sequence[Sequence[int]]) -> ProfileBank:
        members = [each for indices in profiles for i in indices if (each := heard[i]) is not None]
        vectors, qualities = np.stack([each.embedding for each in members]), [each.quality for each in members]
        names, counts = list(map(str, profiles)), list(map(len, profiles))
        return ProfileBank.from_arrays(names, vectors, qualities, counts, calibration.emotion_axis)

    profiles, place = list(enrolled.values()), {name: row for row, name in enumerate(enrolled)}
    held = {i for indices in profiles for i in indices}
    neutral = {i for i, clip in enumerate(clips) if clip.emotion and is_neutral(clip)}
    spare = {clips[i].speaker for i in neutral - held}
    everyone = bank(profiles)
    tests, rows = [], []
    for i, (clip, test) in enumerate(zip(clips, heard, strict=True)):
        if test is None or not clip.speaker or not clip.emotion:
            continue
        if i in held and (clip.speaker in spare or len(enrolled[clip.speaker]) < 2):
            continue
        row, _ = everyone.score(calibration, test.embedding, test.quality)
        if i in held:
            rest = bank([[j for j in enrolled[clip.speaker] if j != i]])
            row[place[clip.speaker]] = rest.score(calibration, test.embedding, test.quality)[0][0]
        tests.append(i)
        rows.append(row)
    trials = cross(clips, profiles, tests)
    llrs = np.array(rows).reshape(-1, len(profiles))
    return trials, llrs[np.searchsorted(tests, trials.test), trials.enrol]


def reliability(targets: NDArray[np.floating], nontargets: NDArray[np.floating], bins: int = 15) -> list[list[float]]:
    """Predicted against observed: the LLR of each bin, the LLR that its counts show, targets and non-targets in it.

    Bins hold equal numbers of targets and non-targets together, weighted so that both kinds count alike.
    """
    llrs = np.concatenate((targets, nontargets))
    shares = (0.5 / len(targets), 0.5 / len(nontargets))
    weight = np.repeat(shares, (len(targets), len(nontargets)))
    kind = np.concatenate((np.ones(len(targets), bool), np.zeros(len(nontargets), bool)))
    order = np.argsort(llrs, kind="stable")
    place = np.minimum((np.cumsum(weight[order]) * bins).astype(int), bins - 1)
    out = []
    for k in range(bins):
        chosen = order[place == k]
        num_targets, num_nontargets = int(kind[chosen].sum()), int((~kind[chosen]).sum())
        if num_targets and num_nontargets:
            observed = math.log(num_targets / len(targets)) - math.log(num_nontargets / len(nontargets))
            # What the bin's LLRs together predict of its mixture; their mean would be too sure in the outer bins.
            share = float(np.average(1.0 / (1.0 + np.exp(-np.clip(llrs[chosen], -500, 500))), weights=weight[chosen]))
            out.append([math.log(share) - math.log1p(-share), observed, num_targets, num_nontargets])
    return out
