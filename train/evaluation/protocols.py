"""Protocols of the evaluation speech: embeddings and labels -> error rates by cosine.

Four protocols, each over trials of the same gender where both genders are known:

- ``pairs``: every pair of clips of different emotions; the target is the same speaker;
- ``same``: every pair of equal emotions (on ordinary speech: the usual all-pairs figure);
- ``neutral``: both clips neutral;
- ``enrol``: a profile is the mean of a speaker's first four neutral clips in the manifest's order, the tests are
  every non-neutral clip, own (target) and others' (non-target).

A clip without a speaker takes no part; an empty emotion pairs only with an empty one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clips import Clip, is_neutral, thin
from .embeddings import unit
from .metrics import DetCurve, bootstrap_interval, det_curve

__all__ = ["PROTOCOLS", "Trials", "cross", "error_rates", "evaluate_embeddings", "make_trials", "speaker_pairs"]

PROTOCOLS = ("neutral", "same", "pairs", "enrol")
ENROL_CLIPS = 4
PRIORS = (0.01, 0.05)
FARS = (0.01, 0.001)
DURATIONS_S = (0.0, 1.5, 3.0, 6.0)
# The pairs of so many clips are at most 18 million; a larger set is thinned evenly, which the result counts.
MAX_CLIPS = 6000


@dataclasses.dataclass(frozen=True, slots=True)
class Trials:
    """Trials: the enrolment side, the test side, and whether they are one speaker.

    `enrol` indexes clips, or profiles where `profiles` lists the clips of each; `test` indexes clips.
    """

    enrol: NDArray[np.int32]
    test: NDArray[np.int32]
    target: NDArray[np.bool_]
    profiles: tuple[tuple[int, ...], ...] = ()

    @property
    def owner(self) -> NDArray[np.integer]:
        """A clip of the enrolment side of each trial: the first of its profile."""
        if not self.profiles:
            return self.enrol
        return np.array([profile[0] for profile in self.profiles], np.int64)[self.enrol]

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Trials:
        """Some of the trials."""
        return Trials(self.enrol[index], self.test[index], self.target[index], self.profiles)

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each trial; a profile is the mean of its clips' embeddings, scaled to unit norm."""
        side = embeddings
        if self.profiles:
            side = unit(np.stack([embeddings[list(clips)].mean(axis=0) for clips in self.profiles]))
        out = np.empty(len(self.enrol), np.float32)
        # Whole rows of the matrix of cosines, in blocks: far cheaper than one dot product per trial.
        order = np.argsort(self.enrol, kind="stable")
        enrol, test = self.enrol[order], self.test[order]
        for first in range(0, len(side), 512):
            low, high = np.searchsorted(enrol, (first, first + 512))
            if low < high:
                block = side[first : first + 512] @ embeddings.T
                out[order[low:high]] = block[enrol[low:high] - first, test[low:high]]
        return out


def codes(values: Iterable[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Distinct values in sorted order, and the position of each value in it."""
    names, found = np.unique(np.array(list(values), dtype=str), return_inverse=True)
    return [str(name) for name in names], found.astype(np.int32)


def cross(
    clips: Sequence[Clip],
    profiles: Sequence[Sequence[int]],
    tests: Sequence[int] | NDArray[np.integer],
    genders: Sequence[str] | None = None,
) -> Trials:
    """Every profile tried by every test of the same gender, test by test; an unknown gender meets both.

    Parameters
    ----------
    clips : sequence of Clip
    profiles : sequence of sequence of int
        The clips of each.
    tests : sequence of int
        Clips.
    genders : sequence of str, optional
        Of the clips, instead of their own.
    """
    held = tuple(tuple(map(int, profile)) for profile in profiles)
    owners, tried = np.array([profile[0] for profile in held], np.int64), np.asarray(tests, np.int64)
    names, gender = codes(genders if genders is not None else (clip.gender for clip in clips))
    if not len(owners) or not len(tried):
        empty = np.empty(0, np.int32)
        return Trials(empty, empty, np.empty(0, bool), held)
    own, other = gender[owners][None, :], gender[tried][:, None]
    unknown = names.index("") if "" in names else -1
    test, enrol = np.nonzero((own == other) | (own == unknown) | (other == unknown))
    _, speaker = codes(clip.speaker for clip in clips)
    target = speaker[owners[enrol]] == speaker[tried[test]]
    return Trials(enrol.astype(np.int32), tried[test].astype(np.int32), target, held)


def make_trials(clips: Sequence[Clip], protocol: str) -> Trials:
    """The trials of one protocol, in a fixed order.

    Raises
    ------
    ValueError
        If the protocol is not known.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol of {PROTOCOLS}, got {protocol!r}")
    known = np.array([clip.speaker != "" for clip in clips], bool)
    labelled = np.array([clip.emotion != "" for clip in clips], bool)
    neutral = np.array([is_neutral(clip) for clip in clips], bool) & labelled
    if protocol == "enrol":
        mine: dict[str, list[int]] = {}
        for i in np.flatnonzero(neutral & known).tolist():
            mine.setdefault(clips[i].speaker, []).append(i)
        profiles = [indices[:ENROL_CLIPS] for indices in mine.values() if len(indices) >= ENROL_CLIPS]
        return cross(clips, profiles, np.flatnonzero(~neutral & known & labelled))
    genders, gender = codes(clip.gender for clip in clips)
    _, speaker = codes(clip.speaker for clip in clips)
    _, emotion = codes(clip.emotion for clip in clips)
    unknown = genders.index("") if "" in genders else -1
    chosen = np.flatnonzero(known & neutral) if protocol == "neutral" else np.flatnonzero(known)
    left, right = np.triu_indices(len(chosen), 1)
    enrol, test = chosen[left], chosen[right]
    keep = (gender[enrol] == gender[test]) | (gender[enrol] == unknown) | (gender[test] == unknown)
    if protocol == "same":
        keep &= emotion[enrol] == emotion[test]
    elif protocol == "pairs":
        keep &= (emotion[enrol] != emotion[test]) & labelled[enrol] & labelled[test]
    enrol, test = enrol[keep], test[keep]
    return Trials(enrol.astype(np.int32), test.astype(np.int32), speaker[enrol] == speaker[test])


def speaker_pairs(
    target: NDArray[np.bool_], owner: NDArray[np.integer], tested: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Speakers numbered from 0, as the bootstrap draws them: of each target trial, and both of each non-target trial.

    Parameters
    ----------
    target : ndarray, shape (trials,), bool
    owner, tested : ndarray, shape (trials,), int
        The speakers of the two sides, numbered anyhow.
    """
    _, dense = np.unique(np.concatenate((owner, tested)), return_inverse=True)
    first, second = dense[: len(owner)], dense[len(owner) :]
    return second[target], np.stack((first[~target], second[~target]), axis=1)


def error_rates(
    scores: NDArray[np.floating],
    target: NDArray[np.bool_],
    speakers: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Any] | None:
    """EER, FRR at the rates `FARS`, minDCF at `PRIORS`; None where there are no trials of both kinds.

    Parameters
    ----------
    scores, target : ndarray, shape (trials,)
    speakers : tuple of ndarray, optional
        From `speaker_pairs`; with it and `resamples`, 95 % intervals by bootstrap over the speakers.
    resamples, seed : int
        Of the bootstrap.
    """
    targets, nontargets = scores[target], scores[~target]
    if not len(targets) or not len(nontargets):
        return None
    curve = det_curve(targets, nontargets)
    out: dict[str, Any] = {"eer": curve.eer(), "targets": len(targets), "nontargets": len(nontargets)}
    out["frr_at_far"] = {f"{far:g}": curve.frr_at_far(far) for far in FARS}
    out["min_dcf"] = {f"{prior:g}": curve.min_dcf(prior) for prior in PRIORS}
    if speakers is not None and resamples:

        def interval(statistic: Callable[[DetCurve], float]) -> list[float]:
            rng = np.random.default_rng(seed)
            low, high, _ = bootstrap_interval(targets, nontargets, *speakers, rng, statistic, resamples)
            return [low, high]

        out["eer_interval"] = interval(DetCurve.eer)
        out["frr_at_far_interval"] = {f"{FARS[0]:g}": interval(lambda curve: curve.frr_at_far(FARS[0]))}
    return out


def _eer(scores: NDArray[np.floating], target: NDArray[np.bool_]) -> dict[str, Any] | None:
    targets, nontargets = scores[target], scores[~target]
    if not len(targets) or not len(nontargets):
        return None
    return {"eer": det_curve(targets, nontargets).eer(), "targets": len(targets), "nontargets": len(nontargets)}


def _grouped(
    scores: NDArray[np.floating], target: NDArray[np.bool_], code: NDArray[np.integer], names: Mapping[int, str]
) -> dict[str, Any]:
    """Figures of the trials of each code, by name; groups without both kinds of trial are left out."""
    order = np.argsort(code.astype(np.uint16), kind="stable")  # a radix sort
    ordered = code[order]
    out = {}
    for value, name in names.items():
        low, high = np.searchsorted(ordered, (value, value + 1))
        figures = _eer(scores[order[low:high]], target[order[low:high]]) if low < high else None
        if figures is not None:
            out[name] = figures
    return out


def duration_name(index: int) -> str:
    """The label of a bin of `DURATIONS_S`."""
    low = DURATIONS_S[index]
    return f"{low:g}-{DURATIONS_S[index + 1]:g} s" if index + 1 < len(DURATIONS_S) else f"from {low:g} s"


def _breakdown(scores: NDArray[np.floating], trials: Trials, clips: Sequence[Clip]) -> dict[str, Any]:
    """EER by emotion (and pair of emotions), gender, and length of the shorter clip."""
    owner, test, target = trials.owner, trials.test, trials.target
    emotions, emotion = codes(clip.emotion for clip in clips)
    genders, gender = codes(clip.gender for clip in clips)
    seconds = np.array([clip.seconds for clip in clips])
    first, second = emotion[owner], emotion[test]
    out: dict[str, Any] = {}
    if trials.profiles:
        out["by_emotion"] = _grouped(scores, target, second, dict(enumerate(emotions)))
        shorter = seconds[test]
    else:
        low, high, count = np.minimum(first, second), np.maximum(first, second), len(emotions)
        names = {i * count + j: f"{emotions[i]}/{emotions[j]}" for i in range(count) for j in range(i, count)}
        out["by_emotion_pair"] = _grouped(scores, target, low * count + high, names)
        out["by_emotion"] = {}
        for i, name in enumerate(emotions):
            either = (first == i) | (second == i)
            figures = _eer(scores[either], target[either])
            if figures is not None:
                out["by_emotion"][name] = figures
        shorter = np.minimum(seconds[owner], seconds[test])
    named = {i: name or "not given" for i, name in enumerate(genders)}
    out["by_gender"] = _grouped(scores, target, np.maximum(gender[owner], gender[test]), named)
    bins = {i: duration_name(i) for i in range(len(DURATIONS_S))}
    out["by_duration"] = _grouped(scores, target, np.searchsorted(DURATIONS_S, shorter, "right") - 1, bins)
    return out


def evaluate_embeddings(
    embeddings: NDArray[np.floating],
    manifest: Any,
    protocols: Sequence[str] = PROTOCOLS,
    detail: bool = True,
    resamples: int = 0,
    seed: int = 0,
    max_clips: int = MAX_CLIPS,
) -> dict[str, Any]:
    """Every protocol by cosine.

    Parameters
    ----------
    embeddings : ndarray, shape (clips, dim)
        One row a clip, in the manifest's order; scaled to unit norm here.
    manifest : PreparedSet, EvaluationSet or sequence of Clip
    protocols : sequence of str
        Of `PROTOCOLS`; one without trials of both kinds is left out of the result.
    detail : bool
        Also by emotion, emotion pair, gender and duration.
    resamples : int
        Bootstrap resamples of the speakers for 95 % intervals; 0 for none.
    seed : int
        Of the bootstrap.
    max_clips : int
        A larger set is thinned evenly over speakers and emotions.

    Returns
    -------
    dict
        ``{"clips", "clips_used", "speakers", protocol: {"eer", "targets", "nontargets", "frr_at_far", "min_dcf",
        ["eer_interval"], ["by_emotion", "by_emotion_pair", "by_gender", "by_duration"]}}``; rates are fractions.

    Raises
    ------
    ValueError
        If there is not one embedding a clip, or one is zero or not finite.
    """
    clips: Sequence[Clip] = getattr(manifest, "clips", manifest)
    if len(embeddings) != len(clips):
        raise ValueError(f"expected one embedding a clip, got {len(embeddings)} for {len(clips)} clips")
    kept = thin(clips, max_clips)
    used = [clips[i] for i in kept]
    vectors = unit(np.asarray(embeddings)[kept])
    _, speaker = codes(clip.speaker for clip in used)
    people = len({clip.speaker for clip in used if clip.speaker})
    out: dict[str, Any] = {"clips": len(clips), "clips_used": len(used), "speakers": people}
    for protocol in protocols:
        trials = make_trials(used, protocol)
        scores = trials.scores(vectors)
        pairs = speaker_pairs(trials.target, speaker[trials.owner], speaker[trials.test]) if resamples else None
        figures = error_rates(scores, trials.target, pairs, resamples, seed)
        if figures is not None:
            out[protocol] = figures | (_breakdown(scores, trials, used) if detail else {})
    return out
